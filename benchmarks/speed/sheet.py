"""The result file: written after every job, so that a run that ends early loses nothing and goes on later."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from prune2drive import PruneError
from prune2drive.errors import first_line
from prune2drive.files import read_json, write_atomically
from prune2drive.profiling.hardware import hardware, versions
from prune2drive.profiling.suite import SCHEMA, WHAT, check_suite

from .setting import Setting

Rows = Mapping[str, Mapping[str, Any]]
Say = Callable[[str], None]
OUT_OF_TIME = "out of time"


class Skip(Exception):
    """There is nothing to measure here; the message says why."""


class Sheet:
    """Cells of a run, in ``path``.

    Args:
        budget: seconds from now on after which no more jobs begin; None: no end.
        fresh: begin anew instead of going on with what is there.

    Raises:
        PruneError: the file is of other settings, another machine or other versions, or damaged.
    """

    def __init__(
        self,
        path: Path,
        setting: Setting,
        *,
        budget: float | None = None,
        fresh: bool = False,
        say: Say = print,
    ) -> None:
        self.path, self.say = path, say
        self._end = None if budget is None else time.monotonic() + budget
        about = {
            "hardware": hardware(setting.target),
            "versions": versions(),
            "settings": setting.as_json(),
        }
        self.data: dict[str, Any] = {
            "what": WHAT,
            "schema": SCHEMA,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **about,
            "ceilings": {},
            "predictions": [],
            "cells": {},
            "skipped": [],
            "failures": [],
            "jobs": {},
        }
        if path.exists() and not fresh:
            self._go_on(about)

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        return self.data["cells"]  # type: ignore[no-any-return]

    def run(self, job: str, work: Callable[[], Rows | None]) -> None:
        """Do a job that is not done yet and note its rows: "section/key" -> row.

        Whatever goes wrong is noted under the job's name and the suite goes on. Not enough memory is no
        different: the device's memory is given back first.
        """
        if job in self.data["jobs"]:
            return
        self._forget(job)
        if self._end is not None and time.monotonic() > self._end:
            self.skip(job, OUT_OF_TIME)
            return
        self.say(job)
        start = time.monotonic()
        try:
            rows = work() or {}
        except Skip as why:
            self.skip(job, str(why))
        except Exception as error:  # one cell must not cost the others
            self.fail(job, error)
        else:
            seconds = time.monotonic() - start
            for name, row in rows.items():
                self.cells[name] = {**row, "seconds": round(seconds / len(rows), 3)}
            self.data["jobs"][job] = round(seconds, 3)
        self.write()
        free()

    def _forget(self, cell: str) -> None:
        """What an earlier try said of a cell no longer counts."""
        for kind in ("skipped", "failures"):
            self.data[kind] = [entry for entry in self.data[kind] if entry["cell"] != cell]

    def skip(self, cell: str, reason: str) -> None:
        self._forget(cell)
        self.data["skipped"].append({"cell": cell, "reason": reason})

    def fail(self, cell: str, error: Exception) -> None:
        self._forget(cell)
        self.say(f"{cell}: {first_line(error)}")
        self.data["failures"].append({"cell": cell, "reason": first_line(error)})

    def write(self) -> None:
        check_suite(self.data, "the result")
        write_atomically(self.path, json.dumps(self.data, indent=1) + "\n")

    def _go_on(self, about: Mapping[str, Any]) -> None:
        found = read_json(self.path, "speed result", "Delete it, or pass --fresh.")
        check_suite(found, str(self.path))
        for key, now in json.loads(json.dumps(about)).items():
            if found[key] == now:
                continue
            names = sorted(name for name in {**now, **found[key]} if now.get(name) != found[key].get(name))
            raise PruneError(
                f"{self.path} was measured with other {key} ({', '.join(names)}); "
                "choose another folder with --out, or pass --fresh to begin anew."
            )
        self.data = {**self.data, **found}


def free() -> None:
    """Give memory of what nothing refers to any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
