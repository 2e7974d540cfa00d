"""Pure tensor functions on features: no models here."""

from .fps import fps, released_count

__all__ = ["fps", "released_count"]
