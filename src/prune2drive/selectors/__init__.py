"""Selectors: methods that choose tokens before the language model. One file each."""

from .apet import ApETSelect
from .base import Selector
from .cdpruner import CDPruner
from .divprune import DivPrune
from .duet import DuetSelect
from .holov import HoloV
from .mvpruner import MVPrunerSelect
from .random import Random
from .scope import Scope
from .stprune import STPrune
from .stratified import Stratified
from .stride import Stride
from .tfps import TFPS
from .visionzip import VisionZip
from .vispruner import VisPruner

__all__ = [
    "TFPS",
    "ApETSelect",
    "CDPruner",
    "DivPrune",
    "DuetSelect",
    "HoloV",
    "MVPrunerSelect",
    "Random",
    "STPrune",
    "Scope",
    "Selector",
    "Stratified",
    "Stride",
    "VisPruner",
    "VisionZip",
]
