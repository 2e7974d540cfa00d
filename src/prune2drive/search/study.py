"""A search: what is tried, how a trial is judged, and the loop that any number of workers run."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..errors import PruneError
from .objective import Objective
from .samplers import PAIRED, make_pruner, make_sampler
from .space import BudgetSplit, FreeRates, Space
from .storage import join_study
from .task import Scores, Task

STEPS = 32
"""Shares of the frames after which a trial may be stopped; at most one per batch."""

POLL = 1.0
"""Seconds between looks at the database while others finish the last trials."""

REPORT, WORKER = "report", "worker"
"""User attributes of a trial: what `Search.evaluate` found, and the process that runs it."""


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
        steps: shares of the frames after which a trial may be stopped.

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
        if trials < 1 or steps < 1 or seed < 0:
            raise PruneError(f"trials {trials}, steps {steps}, seed {seed}: give at least 1, 1 and 0.")
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
        batches = -(-len(task.frames) // task.batch)
        self.steps = min(steps, batches)
        make_sampler(self.sampler, self.space, seed, trials, front)  # their errors now
        make_pruner(self.pruner)
        cuts = [round(batches * step / self.steps) * task.batch for step in range(self.steps + 1)]
        self._cuts = [min(cut, len(task.frames)) for cut in cuts]

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
        try:
            return self._evaluate(trial)
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
        while True:
            trials = study.get_trials(deepcopy=False)
            done = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
            progress(done)
            if len(done) >= self.trials or self._exhausted(study):
                return
            running = sum(trial.state == TrialState.RUNNING for trial in trials)
            if len(done) + running >= self.trials:
                # Others do the last ones. If one of them was killed, its trial will be queued again.
                time.sleep(POLL)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    optuna.storages.fail_stale_trials(study)
                continue
            try:
                study.optimize(self.evaluate, n_trials=1)
            except optuna.exceptions.UpdateFinishedTrialError:
                continue  # taken for dead (a machine that slept) and given to somebody else

    def _exhausted(self, study: optuna.Study) -> bool:
        sampler: Any = study.sampler
        return self.sampler == "grid" and bool(sampler.is_exhausted(study))


def _marks(trial: optuna.Trial) -> dict[str, Any]:
    return {key: value for key, value in trial.user_attrs.items() if key not in (REPORT, WORKER)}
