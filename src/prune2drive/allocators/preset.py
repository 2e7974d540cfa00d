"""Presets: rates that a search found, saved with where they come from and what they are worth."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PruneError, did_you_mean
from ..files import read_json, write_atomically
from .rates import Rates

FORMAT = 1

SHIPPED = Path(__file__).parent.parent / "presets"
"""The folder of the presets that come with the package, one JSON file each, called by its stem."""


@dataclass(frozen=True)
class Preset:
    """Rates with provenance. Only ``rates`` decides what is kept; the rest is for readers.

    Args:
        rates: share of each camera's tokens to keep, in (0, 1].
        name: what it is called.
        model: name and SHA-256 of the weights it was searched for.
        method: the selector or layer pruner that chose, with its hyper-parameters.
        tokens: ``kept`` and ``of``, visual tokens of a frame.
        data: source, split, number and ids of the frames that the search looked at.
        objective: in words, with its weights, lambda or budget.
        search: sampler, pruner, trials, seed.
        score: the searched and the uniform rates on frames that the search did not look at, by score,
            with 95 % bootstrap intervals over frames, and their paired difference; None without any.
        date: of the search, ISO 8601.
        version: of this package.
    """

    rates: Mapping[str, float]
    name: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""
    tokens: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    score: Mapping[str, Any] | None = None
    date: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        Rates(self.rates)  # which checks them

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` turns back into an equal preset."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Any, where: str = "the preset") -> Preset:
        """Read a preset; only ``rates`` is needed, and keys that are not known are left out.

        Raises:
            PruneError: no rates, rates outside (0, 1], or a format of the future.
        """
        if not isinstance(data, Mapping) or "rates" not in data:
            raise PruneError(f"{where} has no 'rates': {{camera: share}}")
        if data.get("format", FORMAT) != FORMAT:
            raise PruneError(
                f"{where} has format {data['format']!r}, this version reads {FORMAT}. Update prune2drive."
            )
        known = cls.__dataclass_fields__
        try:
            return cls(**{key: value for key, value in data.items() if key in known})
        except PruneError as error:
            raise PruneError(f"{where}: {error}") from None

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, atomically."""
        write_atomically(path, json.dumps(self.to_dict(), indent=2) + "\n")
        return Path(path)


def list_presets() -> list[str]:
    """Names of the presets that come with the package, sorted."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def load_preset(name: str | Path) -> Preset:
    """Read a preset: a path, or a name from `list_presets`. An existing file wins.

    Raises:
        PruneError: neither, or a damaged file.
    """
    path = Path(name).expanduser()
    if isinstance(name, str) and not os.path.isfile(path):  # unlike Path's, this takes a text too long
        if name in list_presets():
            path = SHIPPED / f"{name}.json"
        elif not path.suffix and len(path.parts) == 1:
            raise PruneError(
                f"no preset {name!r} and no such file.{did_you_mean(name, list_presets())} "
                f"Shipped: {', '.join(list_presets()) or 'none'}."
            )
    return Preset.from_dict(read_json(path, "preset"), f"the preset file {str(name)!r}")
