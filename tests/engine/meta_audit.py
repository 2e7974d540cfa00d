"""What a CUDA graph could record, found out without CUDA.

Tensors that would be on the device are moved to the meta device, whose values nobody can read: a function
that waits for the device raises there. Uploads from the host, which a recording refuses as well, are noted by
`Constants`; an operation that mixes host and device tensors is an upload that nobody announced.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prune2drive.engine.constants import Constants
from prune2drive.engine.frozen import Frozen
from prune2drive.engine.graphs import unchecked
from prune2drive.families import find_family

META = torch.device("meta")
ON_DEVICE = {"position_ids", "window_index", "interp_indices", "interp_weights", "pixel_attention_mask"}
"""Inputs of towers that `frozen_encoder_kwargs` leaves on, or puts on, the device."""


class Unannounced(TorchDispatchMode):
    """Raises where an operation takes tensors of both places (those without a dimension are fine)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        places = {t.device.type for t in tensors if t.dim()}
        if len(places) > 1:
            raise RuntimeError(f"{func} mixes {sorted(places)}")
        return func(*args, **(kwargs or {}))


def moved(value: Any) -> Any:
    """A copy with tensors, also those in dataclasses, on the meta device."""
    if isinstance(value, Tensor):
        return value.to(META)
    if isinstance(value, dict):
        return {key: moved(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and type(value).__module__.startswith("prune2drive.engine"):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        keep = {name: fields.pop(name) for name in ("images", "views", "selector", "rig") if name in fields}
        return type(value)(**{name: moved(each) for name, each in fields.items()}, **keep)
    return value


def on_meta(frozen: Frozen) -> Frozen:
    """The same functions with everything that would be on the device on the meta device."""
    twin = copy.copy(frozen)
    twin.model = copy.deepcopy(frozen.model).to(META)
    twin.family = find_family(twin.model)
    twin.device = META
    for name in ("cutting", "per_token", "full", "full_mask", "kept_rows", "rest"):
        setattr(twin, name, moved(getattr(frozen, name)))
    twin.encoder = {k: moved(v) if k in ON_DEVICE else v for k, v in frozen.encoder.items()}
    twin.shell = copy.copy(frozen.shell)
    for name in list(twin.shell.keys()):
        twin.shell[name] = moved(twin.shell[name])
    return twin


def why_not(function: Any, inputs: tuple[Tensor, ...]) -> str | None:
    """Why a function of tensors on the meta device could not be recorded; None if it could."""
    constants = Constants(META)
    with unchecked():
        try:
            with constants.note():
                function(*inputs)
        except Exception:
            pass  # reads nothing yet: messages are only put together differently while recording
        try:
            with constants.replay(), Unannounced():
                function(*inputs)
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:200]}"
    return None
