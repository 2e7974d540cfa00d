"""prune2drive: visual token pruning for multi-camera vision-language models.

import prune2drive as p2d

with p2d.prune(model, method="tfps", retention=0.10, rig="nuscenes") as pruned:
    out = model.generate(**inputs, max_new_tokens=64)
print(pruned.record)
"""

from . import allocators, functional, layer_pruners, layout, selectors
from .engine import Pruned, Record, prune
from .errors import PruneError
from .families import list_families
from .registry import list_methods, register_method
from .rig import Camera, Rig
from .tokens import PositionPolicy

__version__ = "0.1.0"

__all__ = [
    "Camera",
    "PositionPolicy",
    "PruneError",
    "Pruned",
    "Record",
    "Rig",
    "allocators",
    "functional",
    "layer_pruners",
    "layout",
    "list_families",
    "list_methods",
    "prune",
    "register_method",
    "selectors",
]
