"""Raw camera frames to model inputs on the device: no PIL, no float upload, no wait for the host."""

from .pixels import DevicePreprocessor
from .upload import PinnedUpload

__all__ = ["DevicePreprocessor", "PinnedUpload"]
