"""From a `Search` to its result in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial

from .result import Found, check_apart, conclude
from .storage import open_storage
from .study import Search
from .task import Task


def find_rates(
    search: Search,
    *,
    storage: str | None = None,
    name: str = "search",
    held_out: Task | None = None,
    heartbeat: int = 60,
    progress: Callable[[Sequence[FrozenTrial]], None] = lambda done: None,
) -> Found:
    """Run a search to its end, alone or with other workers, or go on with one that was stopped.

    Args:
        storage: URL of a database, ``sqlite:///study.db`` or ``postgresql://...``; every process that is
            given the same one and ``name`` works on the same study. None: memory, gone with the process.
        held_out: frames that the search does not look at, on which the result is judged.
        heartbeat: seconds between signs of life, see `open_storage`.
        progress: told all finished and stopped trials after each.

    Raises:
        PruneError: the storage cannot be used, or the study there searches something else.
    """
    opened: Any = InMemoryStorage() if storage is None else open_storage(storage, heartbeat)
    check_apart(search.task, held_out)
    study = search.join(opened, name)
    if held_out is not None:  # before the trials: a damaged picture should not end hours of them
        held_out.prepare()
    search.task.prepare()
    search.work(study, progress)
    return conclude(search, study, held_out)
