"""The database behind a study: opening it, and joining or founding a study in it."""

from __future__ import annotations

import importlib.util
import logging
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from ..errors import PruneError
from .samplers import make_pruner
from .space import Parameters

ABOUT, READY = "about", "ready"
"""User attributes of a study: what it searches, and that its first trials are queued."""

WORKER = "worker"
"""User attribute of a trial: the process that runs it."""

NAMELESS = 30
"""Seconds within which a worker writes its name to a trial, in a storage without heartbeat."""

RETRIES = 3
"""How often a trial is tried again after its worker was killed."""

FOUNDING = 30.0
"""Seconds a worker waits for the one that founds the study to queue its first trials."""


def open_storage(url: str, heartbeat: int = 60) -> RDBStorage:
    """Open a database, SQLite or PostgreSQL, in which a killed worker's trial is tried again.

    Args:
        url: such as ``sqlite:///search/study.db`` or ``postgresql://user:password@host/name``.
        heartbeat: seconds between signs of life; after twice as many without one a trial is given up
            and queued again with the same parameters.

    Raises:
        PruneError: no such database, no driver for it, or it cannot be reached. Passwords are not told.
    """
    if heartbeat < 1:
        raise PruneError(f"heartbeat {heartbeat}: give at least 1 second.")
    # Its warnings are tracebacks of trials that failed; whoever works on them gets the error itself.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    options: dict[str, Any] = {"pool_pre_ping": True}  # a server that was restarted is no reason to stop
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": 60}}  # seconds: several workers write in turns
    shown = hide_password(url)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(
                _with_driver(url),
                engine_kwargs=options,
                heartbeat_interval=heartbeat,
                grace_period=2 * heartbeat,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
            )
    except ImportError as error:
        raise PruneError(
            f"--storage {shown}: the driver is not installed ({error}). pip install 'prune2drive[search]'"
        ) from error
    except Exception as error:  # every database has its own errors, and its own drivers' errors
        reason = re.sub(r"\s+", " ", str(getattr(error, "orig", None) or error)).strip()
        raise PruneError(
            f"--storage {shown} cannot be used: {hide_password(reason)[:300]}. Is the server up and the "
            "address right? Form: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE."
        ) from error


def hide_password(text: str) -> str:
    """A text with the password of every URL in it replaced by stars, odd ones with "/" or "@" included."""
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"(password\s*=\s*)[^&\s]+", r"\1***", text, flags=re.IGNORECASE)


@contextmanager
def lost_database() -> Iterator[None]:
    """Turn the errors of a database that went away in the middle of the work into one sentence."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, UnboundLocalError) as error:
        # Optuna stumbles over a name of its own when the database is gone while it tells a result.
        cause = error.__context__ if isinstance(error, UnboundLocalError) else error
        if not isinstance(cause, SQLAlchemyError | optuna.exceptions.StorageInternalError):
            raise
        told = getattr(cause.__cause__, "orig", None) or getattr(cause, "orig", None) or cause
        reason = " ".join(hide_password(str(told)).split())[:200]
        raise PruneError(
            f"the study's database cannot be used any more: {reason}. Nothing that was told is lost: run the "
            "same command again."
        ) from error


def _with_driver(url: str) -> str:
    """A PostgreSQL URL without a driver gets the one that is installed."""
    kind, separator, rest = url.partition("://")
    if kind not in ("postgres", "postgresql"):
        return url
    driver = "postgresql+psycopg" if importlib.util.find_spec("psycopg") else "postgresql"
    return driver + separator + rest


def join_study(
    storage: RDBStorage,
    name: str,
    about: Mapping[str, Any],
    *,
    directions: Sequence[Any],
    starts: Sequence[Parameters],
    sampler: Any,
    pruner: str,
) -> optuna.Study:
    """Found the study, or join the one of that name if it searches the same.

    Args:
        about: what is searched, plain JSON data; it must agree for all workers.
        starts: what the founder queues as first trials.

    Raises:
        PruneError: a study of that name about something else; nothing of it is changed.
    """
    options: dict[str, Any] = {"study_name": name, "storage": storage, "sampler": sampler}
    rule = make_pruner(pruner)
    try:
        study = optuna.create_study(directions=list(directions), pruner=rule, **options)
        study.set_user_attr(ABOUT, dict(about))
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(pruner=rule, **options)
        study = _joined(study, about)
    _queue(study, starts)
    return study


def _queue(study: optuna.Study, starts: Sequence[Parameters]) -> None:
    """Queue the first trials that are not there: all of a new study, and those that failed of an old one."""
    alive = [
        trial.system_attrs.get("fixed_params", trial.params)
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.FAIL
    ]
    for parameters in starts:
        if dict(parameters) not in alive:
            study.enqueue_trial(dict(parameters), user_attrs={"start": "uniform"})
    if not study.user_attrs.get(READY):
        study.set_user_attr(READY, True)


class Orphans:
    """Running trials whose worker is gone.

    The heartbeat finds those that had one. A worker that was killed between taking a trial and its
    first sign of life leaves a trial that no heartbeat misses; it is known by bearing no worker's name
    for longer than any worker needs to write it.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        storage: Any = study._storage  # a study may wrap it in a cache, which passes this on
        interval = getattr(storage, "get_heartbeat_interval", lambda: None)()
        self._patience = 2.0 * (interval or NAMELESS)
        self._seen: dict[int, float] = {}

    def requeue(self) -> None:
        """Give up what is orphaned, and queue it again with the same parameters."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        now = time.monotonic()
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if WORKER in trial.user_attrs:
                continue
            if now - self._seen.setdefault(trial.number, now) < self._patience:
                continue
            try:
                self._study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                continue  # another worker did so in this moment
            if parameters := trial.system_attrs.get("fixed_params") or trial.params:
                self._study.enqueue_trial(dict(parameters), user_attrs=trial.user_attrs)


def _joined(study: optuna.Study, about: Mapping[str, Any]) -> optuna.Study:
    """Wait until the founder is done, and check that the study searches the same."""
    until = time.monotonic() + FOUNDING
    while not study.user_attrs.get(READY) and time.monotonic() < until:
        time.sleep(0.2)
    found = study.user_attrs.get(ABOUT)
    if found is None and study.get_trials(deepcopy=False):
        raise PruneError(
            f"the study {study.study_name!r} was not made by prune2drive. Choose another --name."
        )
    if found is None:  # killed before it could say what it searches
        study.set_user_attr(ABOUT, dict(about))
        found = about
    if difference := differing(found, about):
        key, old, new = difference
        raise PruneError(
            f"the study {study.study_name!r} searches with another {key}: {old!r} there, {new!r} now. "
            "Choose another --name, or the settings of that study. Nothing was changed."
        )
    return study


def differing(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two pieces of JSON data differ: its dotted name and both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*new, *old]):
            if found := differing(old.get(key), new.get(key), f"{path}.{key}" if path else str(key)):
                return found
        return None
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        old, new = list(old), list(new)
    return None if old == new else (path, old, new)
