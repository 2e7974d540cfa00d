"""Layer pruners: methods that choose tokens inside the language model, at the input of one layer."""

from .apet import ApETStage
from .attention_rank import AttentionRank
from .base import LayerPruner
from .dart import DART
from .fastv import FastV
from .mvpruner import MVPrunerStage
from .pact import PACT
from .selector_at import RandomLayer, SelectorAt, StratifiedLayer, StrideLayer
from .sparsevlm import SparseVLM2Stage, SparseVLMStage
from .tfps import TFPSLayer, TFPSReleased
from .v2drop import V2DropStage

__all__ = [
    "DART",
    "PACT",
    "ApETStage",
    "AttentionRank",
    "FastV",
    "LayerPruner",
    "MVPrunerStage",
    "RandomLayer",
    "SelectorAt",
    "SparseVLM2Stage",
    "SparseVLMStage",
    "StratifiedLayer",
    "StrideLayer",
    "TFPSLayer",
    "TFPSReleased",
    "V2DropStage",
]
