"""What ``generate`` says about lengths, kept true for the caller's full prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.stopping_criteria import MaxLengthCriteria, StoppingCriteriaList

from ..errors import PruneError


def setting(inputs: dict[str, Any], model: nn.Module, name: str) -> Any:
    """A generation setting: the call's own, else its generation_config's, else the model's."""
    if inputs.get(name) is not None:
        return inputs[name]
    for config in (inputs.get("generation_config"), getattr(model, "generation_config", None)):
        if (value := getattr(config, name, None)) is not None:
            return value
    return None


def pad_id(model: nn.Module, image_token_id: int) -> int:
    """The id that stands at padding; never the placeholder's, which the model would want to fill."""
    pad = getattr(getattr(model, "generation_config", None), "pad_token_id", None)
    pad = pad[0] if isinstance(pad, list) else pad
    return 0 if pad is None or pad == image_token_id else int(pad)


def implied_mask(ids: Tensor, inputs: dict[str, Any], model: nn.Module) -> Tensor:
    """The attention mask that ``generate`` infers when it is given none: host bool ``(B, L)``.

    Pads are told apart unless the pad token also ends sequences.
    """
    pad, eos = setting(inputs, model, "pad_token_id"), setting(inputs, model, "eos_token_id")
    ends = set(eos) if isinstance(eos, list | tuple) else {eos}
    if pad is None or pad in ends:
        return torch.ones_like(ids, dtype=torch.bool)
    return ids != pad


def prompt_mask(ids: Tensor, inputs: dict[str, Any], model: nn.Module, generating: bool) -> Tensor:
    """Which tokens are real, as the unpruned call would take it: host bool ``(B, L)``, as host ``ids``."""
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape != ids.shape:
        raise PruneError(
            f"attention_mask of shape {tuple(mask.shape)} for input_ids "
            f"of shape {tuple(ids.shape)}: pass "
            "the processor's, (batch, length)"
        )
    if mask is not None:
        return mask.cpu().bool()
    if generating:
        return implied_mask(ids, inputs, model)
    return torch.ones(ids.shape, dtype=torch.bool)


def prompt_lengths(inputs: dict[str, Any], model: nn.Module, removed: int) -> dict[str, Any]:
    """``max_length``, ``min_length`` and length criteria count the prompt, so they shrink with it."""
    out: dict[str, Any] = {}
    if (criteria := inputs.get("stopping_criteria")) is not None:
        out["stopping_criteria"] = StoppingCriteriaList(
            MaxLengthCriteria(c.max_length - removed, c.max_position_embeddings)
            if isinstance(c, MaxLengthCriteria)
            else c
            for c in criteria
        )
    for name, alternative in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        value = setting(inputs, model, name)
        if value and setting(inputs, model, alternative) is None:
            out[name] = max(value - removed, 0)
    return out


def restore_prompt(out: Any, ids: Tensor, prompt: int) -> Any:
    """Put the caller's full prompt back in front of what was generated.

    Callers cut the answer off at ``input_ids.shape[1]``; ``prompt`` is the shorter length in ``out``.
    """
    sequences = out if isinstance(out, Tensor) else out.sequences
    full = ids.repeat_interleave(sequences.shape[0] // ids.shape[0], 0).to(sequences.device)
    sequences = torch.cat([full, sequences[:, prompt:]], 1)
    if isinstance(out, Tensor):
        return sequences
    out.sequences = sequences
    return out


def check_layer_stages(inputs: dict[str, Any], model: nn.Module) -> None:
    """Refuse what cannot hold a cache of different length in every layer."""
    kind = setting(inputs, model, "cache_implementation")
    if kind not in (None, "dynamic", "dynamic_full"):
        raise PruneError(
            f"cache_implementation={kind!r} is not the plain dynamic cache; "
            "with a layer pruner every layer's cache has a length of its own: leave it out, "
            "or choose before the language model (method='tfps')"
        )
    if setting(inputs, model, "prefill_chunk_size") is not None:
        raise PruneError(
            "prefill_chunk_size splits the prompt that a layer pruner must see whole; leave it out"
        )
