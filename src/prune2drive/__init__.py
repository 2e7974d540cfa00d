"""prune2drive: visual token pruning for multi-camera vision-language models.

import prune2drive as p2d

with p2d.prune(model, method="tfps", retention=0.10, rig="nuscenes") as pruned:
    out = model.generate(**inputs, max_new_tokens=64)
print(pruned.record)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import allocators, functional, layer_pruners, layout, schedules, search, selectors
    from .allocators import LayerAveraged, Preset, list_presets, load_preset
    from .engine import Captured, Pruned, Record, capture, prune
    from .errors import PruneError
    from .families import list_families
    from .registry import list_methods, register_method
    from .rig import Camera, Rig, load_rig
    from .tokens import PositionPolicy

__version__ = "0.1.0"

__all__ = [
    "Camera",
    "Captured",
    "LayerAveraged",
    "PositionPolicy",
    "Preset",
    "PruneError",
    "Pruned",
    "Record",
    "Rig",
    "allocators",
    "capture",
    "functional",
    "layer_pruners",
    "layout",
    "list_families",
    "list_methods",
    "list_presets",
    "load_preset",
    "load_rig",
    "prune",
    "register_method",
    "schedules",
    "search",
    "selectors",
]

# Loaded when first named: `import prune2drive` costs nothing, so the command line answers at once.
_HOME = {
    "Camera": "rig",
    "Captured": "engine",
    "LayerAveraged": "allocators",
    "PositionPolicy": "tokens",
    "Preset": "allocators",
    "PruneError": "errors",
    "Pruned": "engine",
    "Record": "engine",
    "Rig": "rig",
    "capture": "engine",
    "list_families": "families",
    "list_methods": "registry",
    "list_presets": "allocators",
    "load_preset": "allocators",
    "load_rig": "rig",
    "prune": "engine",
    "register_method": "registry",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
