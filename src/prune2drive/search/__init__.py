"""View-adaptive retention: each camera's rate, found offline on frames with questions.

    task = WorldTask.load(count=500)                       # or FramesTask: your own frames
    found = find_rates(Search(task, budget=0.10))
    found.preset.save("mine.json")                         # prune(model, retention="mine.json")

Needs Optuna: ``pip install 'prune2drive[search]'``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import PruneError

if TYPE_CHECKING:
    from .features import FeatureCache
    from .frames import FramesTask
    from .objective import Objective
    from .result import Found, conclude
    from .run import find_rates
    from .storage import open_storage
    from .study import Search
    from .task import PARTS, Scores, Task
    from .world import WorldTask

_HOME = {
    "FeatureCache": "features",
    "Found": "result",
    "FramesTask": "frames",
    "Objective": "objective",
    "PARTS": "task",
    "Scores": "task",
    "Search": "study",
    "Task": "task",
    "WorldTask": "world",
    "conclude": "result",
    "find_rates": "run",
    "open_storage": "storage",
}

__all__ = [
    "PARTS",
    "FeatureCache",
    "Found",
    "FramesTask",
    "Objective",
    "Scores",
    "Search",
    "Task",
    "WorldTask",
    "conclude",
    "find_rates",
    "open_storage",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("optuna", "sqlalchemy", "scipy"):
            raise PruneError(
                f"a search needs the package {error.name}: pip install 'prune2drive[search]'"
            ) from error
        raise
