"""The paired pruner stops what is worse, and only that."""

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from scipy.stats import ttest_rel

from prune2drive.search.paired import PairedPruner, worse


def judged(best, mine, direction="maximize", **options):
    """Whether a trial that reports ``mine`` is stopped after its last share; ``best`` is complete."""
    study = optuna.create_study(direction=direction, pruner=PairedPruner(**options))
    values = dict(enumerate(best))
    study.add_trial(optuna.create_trial(value=float(np.mean(best)), intermediate_values=values))
    trial = study.ask()
    for step, value in enumerate(mine):
        trial.report(value, step)
    return trial.should_prune()


def test_the_p_value_is_that_of_the_paired_t_test():
    generator = np.random.default_rng(0)
    for n in (2, 4, 9, 30):
        a, b = generator.normal(size=(2, n))
        expected = ttest_rel(a, b, alternative="less").pvalue if a.mean() < b.mean() else 1.0
        assert worse(list(a - b)) == pytest.approx(expected)


def test_hard_shares_do_not_hide_a_poor_trial():
    hard = np.random.default_rng(1).normal(0, 10, 8)  # shared by both, and far larger than the difference
    noise = np.random.default_rng(2).normal(0, 0.05, 8)
    assert judged(hard, hard - 0.3 + noise)
    assert not judged(hard, hard + 0.3 + noise)
    assert not judged(hard, hard + noise - noise.mean())


def test_what_is_less_is_better_when_minimizing():
    best = [1.0, 2.0, 3.0, 4.0]
    assert judged(best, [1.5, 2.6, 3.5, 4.6], direction="minimize")
    assert not judged(best, [0.5, 1.4, 2.5, 3.4], direction="minimize")


def test_not_before_enough_shares():
    assert not judged([1.0] * 8, [0.0, 0.1, 0.0])
    assert judged([1.0] * 8, [0.0, 0.1, 0.0], fewest=3)


def test_equal_differences_need_no_variance():
    assert judged([1.0] * 8, [0.5] * 4)
    assert not judged([1.0] * 8, [1.0] * 4)


def test_the_best_is_the_best_of_all_finished():
    study = optuna.create_study(direction="maximize", pruner=PairedPruner())
    for level in (0.1, 0.9, 0.5):
        values = {step: level + 0.01 * step for step in range(6)}
        study.add_trial(optuna.create_trial(value=level, intermediate_values=values))
    values = dict.fromkeys(range(6), 5.0)
    study.add_trial(optuna.create_trial(state=TrialState.PRUNED, intermediate_values=values))
    trial = study.ask()
    for step, gain in enumerate((-0.1, -0.11, -0.09, -0.1)):
        trial.report(0.9 + 0.01 * step + gain, step)
    assert trial.should_prune()


def test_nothing_finished_stops_nothing():
    study = optuna.create_study(direction="maximize", pruner=PairedPruner())
    trial = study.ask()
    for step in range(6):
        trial.report(-1.0, step)
    assert not trial.should_prune()


def test_a_trial_that_is_better_is_seldom_stopped():
    generator = np.random.default_rng(3)
    stopped = 0
    for _ in range(200):
        best = generator.normal(0, 1, 32)
        mine = best + 0.1 + generator.normal(0, 0.3, 32)
        stopped += any(judged(best, mine[:n]) for n in range(4, 32, 3))
    assert stopped < 10


@pytest.mark.parametrize("options", [{"level": 0}, {"level": 1.0}, {"fewest": 1}])
def test_impossible_options(options):
    with pytest.raises(ValueError):
        PairedPruner(**options)
