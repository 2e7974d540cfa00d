"""Methods that choose inside the language model."""

from .base import LayerPruner
from .tfps import TFPSLayer, TFPSReleased

__all__ = ["LayerPruner", "TFPSLayer", "TFPSReleased"]
