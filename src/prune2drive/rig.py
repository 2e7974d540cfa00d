"""A rig: the named cameras of a vehicle, their order and their ring neighbours.

A rig is data. ``"nuscenes"`` is built in; any other comes as a JSON file, a dictionary, or just a
list of camera names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import PruneError, did_you_mean
from .files import read_json


@dataclass(frozen=True)
class Camera:
    """One camera of a rig.

    ``yaw_deg``: where it looks, in degrees, 0 straight ahead, positive to the left.
    ``fov_deg``: horizontal field of view in degrees, in (0, 360].
    ``size``: width, height of its picture in pixels.
    """

    name: str
    yaw_deg: float
    fov_deg: float
    size: tuple[int, int] = (1600, 900)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise PruneError(f"a camera needs a name, got {self.name!r}")
        if not _is_finite(self.yaw_deg):
            raise PruneError(f"camera {self.name}: yaw_deg {self.yaw_deg!r} is not a number of degrees")
        if not _is_finite(self.fov_deg) or not 0 < self.fov_deg <= 360:
            raise PruneError(f"camera {self.name}: fov_deg {self.fov_deg!r} is not in (0, 360]")
        object.__setattr__(self, "size", check_size(self.size, f"camera {self.name}"))


@dataclass(frozen=True)
class Rig:
    """Named cameras, in the order in which prompts show them.

    Raises:
        PruneError: no cameras, or two of the same name.
    """

    name: str
    cameras: tuple[Camera, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        if not self.cameras:
            raise PruneError(f"rig {self.name!r} has no cameras; give it at least one")
        for camera in self.cameras:
            if not isinstance(camera, Camera):
                raise PruneError(f"rig {self.name!r}: {camera!r} is not a Camera; see Rig.from_dict")
        if twice := duplicates(self.names):
            raise PruneError(
                f"rig {self.name!r} names {', '.join(twice)} twice; every camera needs its own name"
            )

    def __len__(self) -> int:
        return len(self.cameras)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Camera names, in the rig's order."""
        return tuple(camera.name for camera in self.cameras)

    def camera(self, name: str) -> Camera:
        """Return the camera called ``name``; PruneError with the nearest name if there is none."""
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise PruneError(f"{name} is not a camera of rig {self.name}.{did_you_mean(name, self.names)}")

    def neighbours(self, name: str) -> tuple[str, str]:
        """Return the names of the next camera to the left and to the right, around the vehicle.

        The ring closes behind the vehicle. Of two cameras each is both neighbours of the other, and
        a lone camera is its own. Cameras of the same yaw (a wide and a tele lens) keep the rig's order.
        """
        self.camera(name)
        ring = [camera.name for camera in sorted(self.cameras, key=lambda camera: camera.yaw_deg % 360)]
        at = ring.index(name)
        return ring[(at + 1) % len(ring)], ring[at - 1]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rig:
        """Build a rig from ``{"name": ..., "cameras": [{"name", "yaw_deg", "fov_deg", "size"?}, ...]}``.

        Raises:
            PruneError: a key is missing or unknown, or a value is impossible; the message names it.
        """
        _check_keys(data, required=("name", "cameras"), optional=(), where="a rig")
        name, entries = data["name"], data["cameras"]
        if isinstance(entries, str | Mapping) or not isinstance(entries, Sequence):
            raise PruneError(f"rig {name!r}: cameras must be a list of dictionaries, got {entries!r}")
        cameras = []
        for at, entry in enumerate(entries):
            where = f"rig {name!r}, camera {at}"
            _check_keys(entry, required=("name", "yaw_deg", "fov_deg"), optional=("size",), where=where)
            cameras.append(Camera(**entry))
        return cls(str(name), tuple(cameras))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` turns back into an equal rig."""
        return {
            "name": self.name,
            "cameras": [
                {"name": c.name, "yaw_deg": c.yaw_deg, "fov_deg": c.fov_deg, "size": list(c.size)}
                for c in self.cameras
            ],
        }

    @classmethod
    def from_json(cls, path: str | Path) -> Rig:
        """Read a rig from a JSON file in the form of `to_dict`; PruneError if it cannot be read."""
        return cls.from_dict(read_json(path, "rig"))

    @classmethod
    def from_names(cls, names: Sequence[str], name: str = "custom") -> Rig:
        """Build a rig from names alone: the first looks ahead, the others follow evenly to the left.

        Good enough to check names and count images. Give real angles where neighbours matter.
        """
        count = max(len(names), 1)
        yaws = [360.0 * at / count for at in range(len(names))]
        turned = [yaw if yaw <= 180 else yaw - 360 for yaw in yaws]
        return cls(name, tuple(Camera(n, yaw, 360.0 / count) for n, yaw in zip(names, turned, strict=True)))


def duplicates(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once, each once, in order of first appearance."""
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def check_size(size: Any, where: str) -> tuple[int, int]:
    """Return ``size`` as (width, height) in pixels, or raise a PruneError that starts with ``where``."""
    good = isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2
    if not good or not all(isinstance(side, int) and side > 0 for side in size):
        raise PruneError(f"{where}: size {size!r} is not (width, height) in whole pixels")
    return size[0], size[1]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_keys(data: Any, required: Sequence[str], optional: Sequence[str], where: str) -> None:
    if not isinstance(data, Mapping):
        raise PruneError(f"{where} must be a dictionary with {', '.join(required)}; got {data!r}")
    for key in required:
        if key not in data:
            raise PruneError(f"{where} lacks {key!r}; it needs {', '.join(required)}")
    for key in data:
        if key not in required and key not in optional:
            raise PruneError(f"{where}: unknown key {key!r}.{did_you_mean(str(key), [*required, *optional])}")


NUSCENES = Rig(
    "nuscenes",
    (
        # DriveLM's order, which is also the order of its prompts.
        Camera("CAM_FRONT", 0.0, 70.0),
        Camera("CAM_FRONT_LEFT", 55.0, 70.0),
        Camera("CAM_FRONT_RIGHT", -55.0, 70.0),
        Camera("CAM_BACK", 180.0, 110.0),
        Camera("CAM_BACK_LEFT", 110.0, 70.0),
        Camera("CAM_BACK_RIGHT", -110.0, 70.0),
    ),
)
"""The six cameras of nuScenes, in DriveLM's order."""

RIGS: dict[str, Rig] = {NUSCENES.name: NUSCENES}
"""The built-in rigs by name."""


def load_rig(rig: str | Path | Rig | Mapping[str, Any] | Sequence[str] | None) -> Rig | None:
    """Return the rig that ``rig`` describes; None stays None.

    Args:
        rig: a built-in name, the path of a JSON file, a `Rig`, a dictionary as `Rig.from_dict` reads
            it, or a sequence of camera names (see `Rig.from_names`).

    Raises:
        PruneError: unknown name, unreadable file, or impossible contents.
    """
    if rig is None or isinstance(rig, Rig):
        return rig
    if isinstance(rig, str) and rig in RIGS:
        return RIGS[rig]
    if isinstance(rig, str | Path):
        if Path(rig).suffix == ".json" or Path(rig).is_file():
            return Rig.from_json(rig)
        raise PruneError(
            f"unknown rig {str(rig)!r}.{did_you_mean(str(rig), RIGS)} "
            "Or pass a .json path, a Rig, or a list of camera names."
        )
    if isinstance(rig, Mapping):
        return Rig.from_dict(rig)
    if isinstance(rig, Sequence):
        return Rig.from_names(rig)
    raise PruneError(f"rig {rig!r} is not a name, a path, a Rig, a dictionary or a list of camera names")
