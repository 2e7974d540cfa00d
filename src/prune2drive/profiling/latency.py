"""Time, memory, cache and FLOPs of a model, unpruned and pruned, in one run.

Both variants are measured the same way, alternating (A B A B ...), so that a slow minute of the machine
hits both. Time to first token is one whole call from pixels to the logits of the last prompt token,
choosing and the rewrite of the inputs included. The unpruned side also computes last-token logits only,
as current transformers do: baselines that project every prompt token onto the vocabulary make pruning
look faster than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from ..errors import PruneError
from .hardware import hardware, versions
from .memory import peak_of
from .result import ProfileResult, ratios
from .sides import PrunedBefore, PrunedInside, Side, Unpruned

Progress = Callable[[str], None]


@torch.no_grad()
def profile(
    model: Any,
    inputs: Mapping[str, Any],
    *,
    method: Any = "tfps",
    retention: Any = 0.10,
    rig: Any = "nuscenes",
    new_tokens: int = 8,
    repeat: int = 5,
    warmup: int = 1,
    progress: Progress | None = None,
    **prune_kwargs: Any,
) -> ProfileResult:
    """Measure ``model`` on ``inputs`` without and with pruning.

    Args:
        model: a supported vision-language model, in eval mode, on one device.
        inputs: what the processor gives: ``input_ids``, ``pixel_values``, ...
        method, retention, rig, prune_kwargs: as for `prune2drive.prune`.
        new_tokens: cached decode steps timed per repetition; 0 leaves decode out (None).
        repeat: timed repetitions of each variant, interleaved.
        warmup: untimed calls of each variant first, at least 1; memory is taken in the last of them.
        progress: called with a line of text before each step.

    What is timed, each with the device synchronised before and after:

    - ``vision_ms``: ``base_model.get_image_features``. Pruned: the same part of the pruned call, by the
      engine's own clock (the work is equal; it is not run once more).
    - ``select_ms``: choosing, by the engine's clock, inside the pruned call.
    - ``prefill_ms``: the model on features already encoded (pruned: and already cut), last-token logits,
      with cache. Layer pruners choose inside the language model, so theirs is the whole call less the
      vision part: it includes choosing.
    - ``ttft_ms``: the whole call, from pixels.
    - ``decode_ms_per_token``: steps of one token on the prefill's cache.

    Raises:
        PruneError: inputs without pictures, a count below its minimum, a model in training mode, and
            whatever `prune2drive.prune` refuses.
    """
    if repeat < 1 or warmup < 1 or new_tokens < 0:
        raise PruneError(
            f"repeat={repeat}, warmup={warmup}, new_tokens={new_tokens}: need at least 1, 1 and 0."
        )
    if inputs.get("pixel_values") is None or inputs.get("input_ids") is None:
        raise PruneError(f"profile needs input_ids and pixel_values; got {', '.join(inputs)}.")
    if model.training:
        raise PruneError("The model is in training mode; call model.eval() first.")
    from .. import prune  # here, because the package's __init__ may import this module

    say = progress or (lambda line: None)
    pruned = prune(model, method=method, retention=retention, rig=rig, **prune_kwargs)
    with pruned:
        pass  # refuses a model that is already pruned, which would make both variants the same
    model = pruned.model
    if not hasattr(model.base_model, "get_image_features"):
        raise PruneError(
            f"{type(model).__name__} cannot encode pictures apart; profile a transformers model."
        )
    inside = pruned.works_inside
    unpruned = Unpruned(model, inputs)
    sides: list[Side] = [unpruned, (PrunedInside if inside else PrunedBefore)(model, inputs, pruned)]

    for number in range(warmup):
        for side in sides:
            say(f"warm-up {number + 1}/{warmup}: {side.name}")
            side.peak = peak_of(side.whole_call, side.device)
    for side in sides:
        say(f"preparing: {side.name}")
        side.prepare()
    for number in range(repeat):
        for side in sides:
            say(f"repetition {number + 1}/{repeat}: {side.name}")
            side.repetition(new_tokens)

    results = [side.result(unpruned) for side in sides]
    cameras = sides[1].cameras
    results[0]["tokens_per_camera"] = {name: cell.before for name, cell in cameras.items()}
    results[1]["tokens_per_camera"] = {name: cell.kept for name, cell in cameras.items()}
    input_ids = inputs["input_ids"]
    settings = {
        "model": type(model).__name__,
        "model_type": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn": model.config._attn_implementation,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": model.config.get_text_config().num_hidden_layers,
        "method": _plain(method),
        "where": "inside the language model" if inside else "before the language model",
        "retention": dict(retention) if isinstance(retention, Mapping) else _plain(retention),
        "rig": _plain(rig),
        "positions": str(pruned.positions),
        **{name: _plain(value) for name, value in prune_kwargs.items() if name != "positions"},
        "batch": input_ids.shape[0],
        "prompt_tokens": input_ids.shape[1],
        "new_tokens": new_tokens,
        "repeat": repeat,
        "warmup": warmup,
    }
    return ProfileResult(
        unpruned=results[0],
        pruned=results[1],
        ratio=ratios(results[0], results[1]),
        settings=settings,
        hardware=hardware(sides[0].device),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
