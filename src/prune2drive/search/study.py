"""A search: what is tried, how a trial is judged, and the loop that any number of workers run."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..errors import PruneError
from .objective import Objective
from .samplers import PAIRED, make_pruner, make_sampler
from .space import BudgetSplit, FreeRates, Space, exact_rates
from .storage import WORKER, Orphans, join_study, lost_database
from .task import Scores, Task

STEPS = 32
"""Shares of the frames after which a trial may be stopped."""

POLL = 1.0
"""Seconds between looks at the database while others finish the last trials."""

REPORT = "report"
"""User attribute of a trial: what `Search.evaluate` found."""


class Search:
    """The rates of every camera that serve best, searched on a task.

    One of three questions, by what is given: ``budget`` (the default): how to split exactly the tokens
    that this uniform rate keeps; ``penalty``: which rates maximise ``R - penalty * sum of rates``, the
    paper's objective; ``front=True``: the best quality for every number of tokens.

    Args:
        task: frames, questions and the model.
        parts: weights of the scores that make R, see `Objective`.
        low, high: bounds of a rate, for a penalty or a front.
        spread: how far rates may differ from each other, for a budget: see `BudgetSplit`.
        sampler, pruner: see `samplers`. A front cannot stop trials early.
        trials: how many are finished or stopped in all, by all workers together.
        steps: shares of the frames after which a trial may be stopped; no more than frames.

    Raises:
        PruneError: contradictory or impossible settings; a score that the task does not give.
    """

    def __init__(
        self,
        task: Task,
        *,
        budget: float | None = None,
        penalty: float | None = None,
        front: bool = False,
        parts: Mapping[str, float] | None = None,
        low: float = 0.02,
        high: float = 1.0,
        spread: float = 4.0,
        sampler: str | None = None,
        pruner: str | None = None,
        trials: int = 100,
        seed: int = 0,
        steps: int = STEPS,
    ) -> None:
        if (budget is not None) + (penalty is not None) + front > 1:
            raise PruneError(
                "a budget fixes the tokens, a penalty weighs them, a front shows all: choose one of them."
            )
        if trials < 1 or steps < 1 or not 0 <= seed < 2**32:
            raise PruneError(
                f"trials {trials}, steps {steps}, seed {seed}: give at least 1, 1 and 0 (a seed below 2**32)."
            )
        self.task, self.trials, self.seed = task, trials, seed
        self.objective = Objective(parts or {"likelihood": 1.0}, penalty or 0.0)
        self.objective.check(task.parts)
        self.mode = "front" if front else "penalty" if penalty is not None else "budget"
        self.space: Space
        if self.mode == "budget":
            self.space = BudgetSplit(task.tokens, 0.1 if budget is None else budget, spread, task.rounding)
        else:
            starts = (0.1, 0.05, 0.25, 0.5) if front else (0.1,)
            self.space = FreeRates(task.tokens, low, high, starts, task.rounding)
        self.sampler = sampler or ("nsga2" if front else "tpe")
        self.pruner = pruner or ("none" if front else "paired")
        if front and self.pruner != "none":
            raise PruneError(
                f"a front compares in two ways, so {self.pruner!r} cannot stop trials. Say none."
            )
        frames = len(task.frames)
        self.steps = min(steps, frames)
        make_sampler(self.sampler, self.space, seed, trials, front)  # their errors now
        make_pruner(self.pruner)
        # Whatever the batch: workers with larger ones must see the same shares.
        self._cuts = [round(frames * step / self.steps) for step in range(self.steps + 1)]
        self._at: int | None = None
        self._error: Exception | None = None

    def about(self) -> dict[str, Any]:
        """What all workers of a study must agree on."""
        budget = None
        if isinstance(self.space, BudgetSplit):
            budget = {"share": self.space.share, "tokens": self.space.total}
        return {
            **self.task.about(),
            "mode": self.mode,
            "budget": budget,
            "penalty": self.objective.penalty if self.mode == "penalty" else None,
            "parts": dict(self.objective.parts),
            "bounds": [self.space.low, self.space.high],
            "sampler": self.sampler,
            "pruner": self.pruner,
            "seed": self.seed,
            "steps": self.steps,
        }

    def join(self, storage: Any, name: str) -> optuna.Study:
        """Found the study ``name``, or join it; see `join_study`."""
        front = self.mode == "front"
        return join_study(
            storage,
            name,
            self.about(),
            directions=["maximize", "minimize"] if front else ["maximize"],
            starts=self.space.starts(),
            sampler=make_sampler(self.sampler, self.space, self.seed, self.trials, front),
            pruner=self.pruner,
        )

    # -- one trial ------------------------------------------------------------------------------

    def evaluate(self, trial: optuna.Trial) -> float | tuple[float, float]:
        """Judge one trial on growing shares of the frames.

        Returns:
            The objective; for a front, the reward and the tokens kept.
        """
        self._at, self._error = trial.number, None
        storage: Any = trial.storage
        if getattr(storage, "get_heartbeat_interval", lambda: None)():
            # Before the trial bears a name: no kill may leave one with a name that is never missed.
            storage.record_heartbeat(trial._trial_id)
        try:
            return self._evaluate(trial)
        except (optuna.TrialPruned, optuna.exceptions.UpdateFinishedTrialError):
            raise
        except Exception as error:
            self._error = error
            raise
        except KeyboardInterrupt:
            # Whoever goes on finds it in the queue, as after a killed worker.
            trial.study.enqueue_trial(trial.params, user_attrs=_marks(trial))
            raise

    def _evaluate(self, trial: optuna.Trial) -> float | tuple[float, float]:
        began = time.perf_counter()
        worker = f"{socket.gethostname()}-{os.getpid()}"
        trial.set_user_attr(WORKER, worker)  # now, so that a trial left behind tells whose it was
        rates = self.space.rates(self.space.suggest(trial))
        counts = self.space.counts(rates)
        if self.task.fixed_length:  # what is really kept is what is paid for
            rates = exact_rates(self.task.tokens, list(counts.values()))
        report: dict[str, Any] = {
            "rates": rates,
            "counts": counts,
            "kept": sum(counts.values()),
            "worker": worker,
        }
        if twin := self._twin(trial, report):
            return self._repeat(trial, twin, report)
        seen: list[Scores] = []
        for step, (start, stop) in enumerate(zip(self._cuts, self._cuts[1:], strict=False)):
            seen.append(self.task.score(rates, start, stop, list(self.objective.parts)))
            means = Scores.joined(seen).means()
            value = self.objective.value(means, rates)
            if not math.isfinite(value):
                first, last = self.task.frames[start], self.task.frames[stop - 1]
                raise PruneError(
                    f"the score of frames {first} to {last} is {value} ({means}). Does the model overflow "
                    "in its number type? Try --dtype bfloat16 or float32."
                )
            hopeless = False
            if self.mode != "front":
                paired = self.pruner in PAIRED
                trial.report(self.objective.value(seen[-1].means(), rates) if paired else value, step)
                hopeless = stop < len(self.task.frames) and trial.should_prune()
            if hopeless or stop == len(self.task.frames):
                report |= {
                    "parts": means,
                    "reward": self.objective.reward(means),
                    "samples": stop,
                    "seconds": round(time.perf_counter() - began, 3),
                }
                trial.set_user_attr(REPORT, report)
            if hopeless:
                # Samplers rank stopped trials by their last value: the mean, not the last share.
                trial.report(value, step + 1)
                raise optuna.TrialPruned
        return (report["reward"], float(report["kept"])) if self.mode == "front" else value

    def _twin(self, trial: optuna.Trial, report: Mapping[str, Any]) -> FrozenTrial | None:
        """An earlier trial that kept as many tokens of every camera: its answers are this one's."""
        same = "counts" if self.task.fixed_length else "rates"  # other frames may round otherwise
        for other in trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            if other.user_attrs.get(REPORT, {}).get(same) == report[same]:
                return other
        return None

    def _repeat(self, trial: optuna.Trial, twin: FrozenTrial, report: dict[str, Any]) -> Any:
        """Give a trial the result of its twin, without asking the model."""
        found = twin.user_attrs[REPORT]
        for step, value in twin.intermediate_values.items():
            trial.report(value, step)
        copied = {key: found[key] for key in ("parts", "reward")}
        trial.set_user_attr(REPORT, {**report, **copied, "samples": 0, "seconds": 0.0, "copied": twin.number})
        if twin.state == TrialState.PRUNED:
            raise optuna.TrialPruned
        return tuple(twin.values) if self.mode == "front" else twin.value

    # -- many trials ----------------------------------------------------------------------------

    def work(
        self, study: optuna.Study, progress: Callable[[Sequence[FrozenTrial]], None] = lambda done: None
    ) -> None:
        """Run trials until the study has all it needs; other workers may do so at the same time.

        Args:
            progress: told all finished and stopped trials after each.

        Raises:
            KeyboardInterrupt: the trial at hand is back in the queue; the same call goes on.
        """
        orphans = Orphans(study)
        while True:
            with lost_database():
                trials = study.get_trials(deepcopy=False)
            done = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
            progress(done)
            running = sum(trial.state == TrialState.RUNNING for trial in trials)
            ended = self._exhausted(study, trials)
            if len(done) >= self.trials or (ended and not running):
                return
            if len(done) + running >= self.trials or ended:
                # Others do the last ones. If one of them was killed, its trial will be queued again.
                time.sleep(POLL)
                with lost_database():
                    orphans.requeue()
                continue
            try:
                with lost_database():
                    study.optimize(self.evaluate, n_trials=1)
            except PruneError:
                raise
            except (optuna.exceptions.UpdateFinishedTrialError, ValueError) as error:
                if error is self._error or not self._taken(study):
                    raise
                # Taken for dead (a machine that slept) and given to somebody else.

    def _taken(self, study: optuna.Study) -> bool:
        """Whether somebody else ended the trial that this process was at."""
        return any(
            t.number == self._at and t.state == TrialState.FAIL for t in study.get_trials(deepcopy=False)
        )

    def _exhausted(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> bool:
        """Whether every point of a grid was tried or is being tried."""
        if self.sampler != "grid":
            return False
        tried = {t.system_attrs["grid_id"] for t in trials if "grid_id" in t.system_attrs}
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        return len(tried) >= len(self.space.levels()) ** len(self.space.names) and not waiting


def _marks(trial: optuna.Trial) -> dict[str, Any]:
    return {key: value for key, value in trial.user_attrs.items() if key not in (REPORT, WORKER)}
