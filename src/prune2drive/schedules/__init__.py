"""Schedules: methods of several stages, before the language model and inside it, or at several layers."""

from .apet import ApET
from .base import Schedule
from .duet import Duet, DuetTFPS
from .mvpruner import MVPruner
from .pyramiddrop import PyramidDrop
from .sparsevlm import SparseVLM, SparseVLM2
from .v2drop import V2Drop

__all__ = [
    "ApET",
    "Duet",
    "DuetTFPS",
    "MVPruner",
    "PyramidDrop",
    "Schedule",
    "SparseVLM",
    "SparseVLM2",
    "V2Drop",
]
