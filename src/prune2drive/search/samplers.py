"""Samplers and pruners of trials by name, all Optuna's, with every choice that matters made explicit."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ..errors import PruneError, did_you_mean
from .paired import PairedPruner
from .space import Space

STARTUP = 10
"""Trials before TPE trusts its model: Optuna's default (NNI's is 20, half of the paper's budget)."""

PRUNERS = ("paired", "wilcoxon", "median", "halving", "none")

PAIRED = ("paired", "wilcoxon")
"""Those that want the objective of each share of the frames; the others want running means."""
SAMPLERS = ("tpe", "cmaes", "nsga2", "random", "grid")


def make_sampler(name: str, space: Space, seed: int, trials: int, front: bool = False) -> BaseSampler:
    """Return a sampler that draws anew for every trial, in whatever process that runs.

    Args:
        name: one of `SAMPLERS`. "tpe": multivariate, with the constant liar, so that workers at the same
            time do not try the same; "cmaes": from the middle, for a budget the uniform split; "nsga2":
            evolution, for fronts.
        seed: of the study.
        trials: how many there will be; evolution's populations depend on it.
        front: two objectives.

    Raises:
        PruneError: an unknown name, CMA-ES for a front, or the package ``cmaes`` is missing.
    """
    if name not in SAMPLERS:
        raise PruneError(f"unknown sampler {name!r}.{did_you_mean(name, SAMPLERS)}")
    if front and name == "cmaes":
        raise PruneError("cmaes has one objective, a front has two. Take nsga2 or tpe.")
    if name == "grid":
        levels: Any = dict.fromkeys(space.names, space.levels())
        return GridSampler(levels, seed=seed)  # its order is the study's: every worker must shuffle alike
    if name == "cmaes":
        try:
            import cmaes  # noqa: F401
        except ImportError as error:
            raise PruneError(
                "the sampler cmaes needs the package cmaes: pip install 'prune2drive[search]'"
            ) from error
    make: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda seed: TPESampler(
            n_startup_trials=STARTUP, multivariate=True, constant_liar=True, seed=seed
        ),
        "cmaes": lambda seed: CmaEsSampler(consider_pruned_trials=True, seed=seed),
        "nsga2": lambda seed: NSGAIISampler(population_size=max(8, min(50, trials // 5)), seed=seed),
        "random": lambda seed: RandomSampler(seed=seed),
    }
    return SeededByTrial(make[name], seed)


def make_pruner(name: str) -> BasePruner:
    """Return the pruner that stops hopeless trials.

    "paired": when the frames seen so far say, pair by pair, that the best trial is better, see
    `PairedPruner`; "wilcoxon": likewise by ranks, Optuna's; "median": below the median of earlier
    trials at the same frames; "halving": asynchronous successive halving; "none": never.

    Raises:
        PruneError: an unknown name.
    """
    if name not in PRUNERS:
        raise PruneError(f"unknown pruner {name!r}.{did_you_mean(name, PRUNERS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "paired":
            return PairedPruner()
        if name == "wilcoxon":
            return WilcoxonPruner(p_threshold=0.1, n_startup_steps=4)
        if name == "median":
            return MedianPruner(n_startup_trials=STARTUP // 2, n_warmup_steps=3)
        if name == "halving":
            return SuccessiveHalvingPruner(min_resource=4, reduction_factor=2)
        return NopPruner()


class SeededByTrial(BaseSampler):
    """A fresh sampler for every trial, seeded by the study's seed and the trial's number.

    Numbers are given out by the storage, so no two workers share one, and a search that was
    interrupted draws what it would have drawn. What samplers know of other trials is in the storage.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = self._fresh(-1)

    def _fresh(self, number: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._make(zlib.crc32(f"{self._seed}/{number}".encode()) % 2**31)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._sampler = self._fresh(trial.number)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Nothing to do: every trial has a seed of its own."""
