"""The result of a profile: plain numbers, written to and read from JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import PruneError
from ..files import read_json, write_atomically

KEYS = (
    "vision_ms", "select_ms", "prefill_ms", "ttft_ms", "decode_ms_per_token", "peak_bytes", "kv_bytes",
    "flops", "tokens",
)  # fmt: skip
"""The numbers of each variant, and of ``ratio``."""
TIMES = KEYS[:5]


@dataclass(frozen=True)
class ProfileResult:
    """What a model costs unpruned and pruned, measured in one run.

    ``unpruned`` and ``pruned`` hold

    - ``vision_ms, select_ms, prefill_ms, ttft_ms, decode_ms_per_token``: medians in milliseconds;
    - ``peak_bytes``: highest memory of a call from pixels to first-token logits. CUDA: all that is
      allocated, weights included; CPU: growth of the process (see `profiling.memory`), or None;
    - ``kv_bytes``: keys and values after the prompt, from the cache's own tensors;
    - ``flops``: all before the first token, for the whole batch; None for architectures not worked out;
    - ``tokens``: prompt tokens of a sample that reach the last layer;

    and the breakdowns ``flops_parts``, ``tokens_per_camera`` (first sample, structure rows not counted),
    ``layer_averaged_tokens``, ``peak_growth_bytes``, ``spread`` (per time: min and max).

    ``ratio`` is unpruned / pruned for every number, None where one side is 0 or missing.
    """

    unpruned: dict[str, Any]
    pruned: dict[str, Any]
    ratio: dict[str, float | None]
    settings: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, str]
    date: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        """Write JSON to ``path``; a reader sees the old file or the whole new one, never a part."""
        write_atomically(path, self.to_json())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ProfileResult:
        """The inverse of `to_dict`. Raises PruneError naming a missing part."""
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in data]
        if missing:
            raise PruneError(f"Not a profile result: {missing[0]!r} is missing.")
        return cls(**{name: data[name] for name in names})

    @classmethod
    def load(cls, path: str | Path) -> ProfileResult:
        """Read what `save` wrote. Raises PruneError for a file that is no profile result."""
        data = read_json(path, "profile")
        if not isinstance(data, dict):
            raise PruneError(f"{path} holds a JSON {type(data).__name__}, not a profile result.")
        return cls.from_dict(data)


def ratios(unpruned: dict[str, Any], pruned: dict[str, Any]) -> dict[str, float | None]:
    """Unpruned / pruned for each of `KEYS`; None where a side is 0 or missing."""
    return {k: unpruned[k] / pruned[k] if unpruned[k] and pruned[k] else None for k in KEYS}
