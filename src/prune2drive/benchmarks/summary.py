"""From records to the figures that are reported: plain data, and the same whenever it is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..rig import NUSCENES
from ..world.labels import GRID
from ..world.questions import STAGES
from ..world.scene import WEATHERS
from .records import Record
from .settings import BLIND, GUESS, UNPRUNED, Setting
from .statistics import difference, resamples, share
from .world import SIZES

GROUPS: dict[str, Sequence[str]] = {
    "type": tuple(STAGES),
    "camera": NUSCENES.names,
    "weather": WEATHERS,
    "stage": tuple(dict.fromkeys(STAGES.values())),
}
"""What accuracy is broken down by, and the order of the parts."""

Array = np.ndarray


def summarize(
    rows: Mapping[tuple[str, str], Record], settings: Sequence[Setting], names: Sequence[str], about: Mapping
) -> dict[str, Any]:
    """Summarize settings over the same scenes.

    Args:
        rows: records by (setting, sample).
        settings: in the order of the report; each must have a record of every scene.
        names: the scenes' names.
        about: benchmark, split, model and seed, which lead the summary.
    """
    drawn = resamples(len(names), about["seed"])
    tables = {s.name: Table([rows[s.name, name] for name in names]) for s in settings}
    out: dict[str, Any] = {
        **about,
        "scenes": len(names),
        "questions": int(tables[UNPRUNED.name].asked["overall"][""].sum()),
        "settings": [],
    }
    for setting in settings:
        table = tables[setting.name]
        out["settings"].append(
            {
                "name": setting.name,
                "method": setting.method,
                "where": setting.where,
                "retention": setting.retention,
                "tokens": float(np.mean(table.tokens)),
                **account(table, tables, _rivals(setting), drawn, setting not in (BLIND, GUESS)),
            }
        )
    return out


def account(
    table: Table, tables: Mapping[str, Table], rivals: Mapping[str, str], drawn: Array, sees: bool = True
) -> dict[str, Any]:
    """What the records of one setting come to, whatever it is a setting of.

    Args:
        rivals: what it is compared with -> which of ``tables`` that is; those that lack are left out.
        sees: whether it sees the pictures, so that things in them can be lost.
    """
    seen = table.rows if sees else []
    return {
        "accuracy": table.accuracy(drawn),
        "difference": {n: table.gain(tables[rival], drawn) for n, rival in rivals.items() if rival in tables},
        "large": large_account(seen),
        "shown": shown_account(seen, drawn),
    }


def _rivals(setting: Setting) -> dict[str, str]:
    """What a setting is compared with, by the names of settings: unpruned, and random alike."""
    if setting == UNPRUNED:
        return {}
    rivals = {"unpruned": UNPRUNED.name}
    if setting.retention is not None and setting.method != "random":
        rivals["random"] = Setting("random", setting.where, setting.retention).name
    return rivals


def large_account(rows: Sequence[Record]) -> dict[str, Any]:
    """What became of the things that fill a view.

    Returns:
        ``objects``: how many. ``lost``: share of them without one kept token. ``ratio``: mean over them
        of their share of the camera's kept tokens, divided by their share of its patches; 1 where the
        choice does not care, below 1 where it passes large things over. None without objects.
    """
    lost, ratios = [], []
    for row in rows:
        for thing in row["large"]:
            lost.append(thing["kept"] == 0)
            # A method that shares a budget out among the cameras may leave one of them nothing.
            if of := row["kept"][thing["camera"]]:
                ratios.append(thing["kept"] / of / (thing["patches"] / GRID**2))
    return {
        "objects": len(lost),
        "lost": float(np.mean(lost)) if lost else None,
        "ratio": float(np.mean(ratios)) if ratios else None,
    }


def shown_account(rows: Sequence[Record], drawn: Array) -> dict[str, Any]:
    """By size of what is clearly in a picture: the share without one kept token, as `statistics.share`."""
    if not rows:
        return {}
    counts = np.array([[row["shown"][size] for size in SIZES] for row in rows])  # (scenes, sizes, 2)
    return {
        size: share(counts[:, number, 1], counts[:, number, 0], drawn) for number, size in enumerate(SIZES)
    }


class Table:
    """Right answers and questions of each scene, overall and by group: group -> key -> int64 (scenes,)."""

    def __init__(self, rows: Sequence[Record]) -> None:
        self.rows = rows
        self.tokens = [sum(row["kept"].values()) for row in rows]
        self.right, self.asked = self._empty(), self._empty()
        for at, row in enumerate(rows):
            for answer in row["answers"]:
                keys = {
                    "overall": "",
                    "type": answer["type"],
                    "camera": answer["camera"],
                    "weather": row["weather"],
                    "stage": STAGES[answer["type"]],
                }
                for group, key in keys.items():
                    if key is None:  # a question about no camera in particular
                        continue
                    self.asked[group][key][at] += 1
                    self.right[group][key][at] += answer["given"] == answer["answer"]
        for group in GROUPS:  # only what was asked
            present = [key for key, asked in self.asked[group].items() if asked.any()]
            for table in (self.right, self.asked):
                table[group] = {key: table[group][key] for key in present}

    def _empty(self) -> dict[str, dict[str, Array]]:
        parts = {"overall": ("",), **GROUPS}
        return {g: {key: np.zeros(len(self.rows), dtype=np.int64) for key in parts[g]} for g in parts}

    def accuracy(self, drawn: Array) -> dict[str, Any]:
        """Share of right answers, overall and by group."""
        parts = {
            group: {key: share(self.right[group][key], asked, drawn) for key, asked in keys.items()}
            for group, keys in self.asked.items()
        }
        return {"overall": parts.pop("overall")[""], **parts}

    def gain(self, other: Table, drawn: Array) -> dict[str, Any]:
        """Difference to the other on the same questions, overall and by type."""
        parts = {
            group: {
                key: difference(self.right[group][key], other.right[group][key], asked, drawn)
                for key, asked in self.asked[group].items()
            }
            for group in ("overall", "type")
        }
        return {"overall": parts["overall"][""], "type": parts["type"]}
