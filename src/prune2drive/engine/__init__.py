"""Attach to a model, cut its prompts, keep positions and caches right, restore it, keep the record."""

from .attach import Pruned, prune
from .record import Record, ViewRecord

__all__ = ["Pruned", "Record", "ViewRecord", "prune"]
