"""A pruner for trials that see the same frames in the same order: a paired comparison with the best one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState


class PairedPruner(BasePruner):
    """Stops a trial when what it has seen says that it is worse than the best trial on all frames.

    Trials report the objective of one share of the frames after the other, not running means. A frame
    that is hard is hard for all rates, so differences on the same shares vary far less than the values
    do: a one-sided t-test of those differences stops a poor trial after few shares. (Optuna's own
    Wilcoxon pruner pairs as well, by ranks; equal values make it slow, and exact match has many.)

    Args:
        level: stop when the p-value is below. The test is made again after every share, so it should
            be well below 0.05. At 0.02 and 32 shares about one trial in ten that is as good as the best
            is stopped, too.
        fewest: shares before which nothing is stopped, at least 2.
    """

    def __init__(self, level: float = 0.02, fewest: int = 4) -> None:
        if not 0 < level < 1 or fewest < 2:
            raise ValueError(f"level {level} must be between 0 and 1, fewest {fewest} at least 2")
        self._level, self._fewest = level, fewest

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        whole = [
            other
            for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if other.value is not None and other.intermediate_values
        ]
        if not whole:
            return False
        best = max(whole, key=lambda other: sign * other.value).intermediate_values  # type: ignore[operator]
        mine = trial.intermediate_values
        gains = [sign * (mine[step] - best[step]) for step in mine if step in best]
        return len(gains) >= self._fewest and worse(gains) < self._level


def worse(gains: Sequence[float]) -> float:
    """P-value of a one-sided t-test that the mean of ``gains`` (two or more) is not below 0."""
    from scipy.stats import t

    mean = math.fsum(gains) / len(gains)
    if mean >= 0:
        return 1.0
    variance = math.fsum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
    if variance == 0:
        return 0.0
    return float(t.cdf(mean / math.sqrt(variance / len(gains)), len(gains) - 1))
