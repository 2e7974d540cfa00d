"""What a call has for a method before the language model besides features: tower signals and the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from ..families.base import Prompt
from ..families.vision import SIGNALS, VISION
from ..selectors.base import Selector
from ..tokens import Signal


@dataclass(frozen=True, eq=False)
class Sources:
    """The same before it is gathered view by view.

    ``per_token`` name of a signal -> ``(T, ...)``, rows as the features; ``text`` and ``text_mask`` as in
    `Signals`.
    """

    per_token: dict[str, Tensor]
    text: Tensor | None = None
    text_mask: Tensor | None = None


def sources_of(selector: Selector | None, out: Any, prompt: Prompt, ids: Tensor, model: Any) -> Sources:
    """What ``selector`` declared, from the encoder's output ``out`` and the prompt's ``ids`` ``(B, L)``.

    Raises:
        PruneError: the output came without the tower's signals, or the prompt has no text.
    """
    if selector is None:
        return Sources({})
    per_token: dict[str, Tensor] = {}
    if wanted := VISION & selector.needs:
        found = getattr(out, SIGNALS, None)
        given = {
            Signal.ENCODER: getattr(found, "encoder", None),
            Signal.SALIENCY: getattr(found, "saliency", None),
            Signal.VISION_KEYS: getattr(found, "keys", None),
        }
        for signal in sorted(wanted):
            if (tensor := given[signal]) is None:
                raise PruneError(
                    f"{selector.name} needs {signal} of the vision tower, and mm_encoder_outputs came "
                    "without: pass pixel_values, or encode with "
                    "prune2drive.families.vision.encode_with_signals"
                )
            per_token[signal.value] = tensor.to(ids.device)
        delattr(out, SIGNALS)  # of a copy; nobody behind the choice reads them
    if Signal.TEXT not in selector.needs:
        return Sources(per_token)
    columns = padded(instruction(prompt)).to(ids.device)
    check_text(columns, selector.name)
    text_mask = columns >= 0
    with torch.no_grad():
        text = model.get_input_embeddings()(ids.gather(1, columns.clamp(min=0)))
    return Sources(per_token, text.masked_fill(~text_mask[..., None], 0), text_mask)


def instruction(prompt: Prompt) -> list[Tensor]:
    """Columns of each row's instruction: the text behind its last visual token, or all of it."""
    out = []
    for mask, visual in zip(prompt.mask, prompt.visual, strict=True):
        text = (mask & ~visual).nonzero().flatten()
        seen = visual.nonzero().flatten()
        behind = text[text > seen[-1]] if len(seen) else text
        out.append(behind if len(behind) else text)
    return out


def check_text(columns: Tensor, method: str) -> None:
    """Refuse prompts without any text for a method that reads it: ``columns`` of each row's, -1 for none."""
    if columns.shape[1] == 0:
        raise PruneError(f"{method} reads the prompt's text, and there is none; use a method of features")


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Stack int64 vectors of different length, -1 at the end of the short ones."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=-1)
