"""What pruning saves: FLOPs by arithmetic, time and memory by measurement."""

from .latency import profile
from .result import ProfileResult

__all__ = ["ProfileResult", "profile"]
