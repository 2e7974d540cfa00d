"""Attach to a model, cut its prompts, keep positions and caches right, restore it, keep the record."""

from .attach import Pruned, prune
from .capture import Captured, capture
from .record import Record, ViewRecord

__all__ = ["Captured", "Pruned", "Record", "ViewRecord", "capture", "prune"]
