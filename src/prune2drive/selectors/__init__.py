"""Selectors: methods that choose tokens before the language model. One file each."""

from .base import Selector
from .random import Random
from .stratified import Stratified
from .stride import Stride
from .tfps import TFPS

__all__ = ["TFPS", "Random", "Selector", "Stratified", "Stride"]
