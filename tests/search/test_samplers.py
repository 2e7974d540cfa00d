"""Samplers and pruners by name: no draw twice, whoever draws, and the same after an interruption."""

import itertools
import math
import random
import warnings

import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from prune2drive.errors import PruneError
from prune2drive.search.samplers import PRUNERS, SAMPLERS, make_pruner, make_sampler
from prune2drive.search.space import BudgetSplit, FreeRates

SIX = FreeRates(dict.fromkeys("ABCDEF", 144))
MANY = 80


@pytest.fixture(autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    optuna.logging.set_verbosity(before)


def toy(trial, space=SIX):
    """A smooth hill with its top inside the bounds; 0 at best."""
    logs = [math.log(value) for value in space.suggest(trial).values()]
    return -sum((x - math.log(0.05 + 0.08 * n)) ** 2 for n, x in enumerate(logs))


def both(trial):
    value = toy(trial)
    return value, sum(trial.params.values())


def study_of(name, seed=0, trials=24, space=SIX, storage=None):
    sampler = make_sampler(name, space, seed, trials)
    return optuna.create_study(
        study_name="toy", direction="maximize", sampler=sampler, storage=storage, load_if_exists=True
    )


def drawn(study):
    return [tuple(trial.params.values()) for trial in study.get_trials()]


# -- all of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space", [SIX, BudgetSplit(dict.fromkeys("ABCDEF", 144), 0.1)], ids=["free", "budget"]
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_each_samples_six_parameters(name, space):
    study = study_of(name, trials=30, space=space)
    for start in space.starts():
        study.enqueue_trial(start)
    study.optimize(lambda trial: toy(trial, space), n_trials=30)
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    assert study.trials[0].params == space.starts()[0]
    rows = drawn(study)
    assert all(len(row) == 6 and space.low <= min(row) and max(row) <= space.high for row in rows)
    assert len(set(rows)) > 20


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("cmaes", "grid")])
def test_some_sample_fronts(name):
    sampler = make_sampler(name, SIX, 0, 30, front=True)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(both, n_trials=30)
    assert len(study.best_trials) > 1


@pytest.mark.parametrize("name", ["tpe", "random", "cmaes", "grid"])
def test_two_workers_never_draw_the_same(name):
    storage = optuna.storages.InMemoryStorage()
    workers = [study_of(name, seed=5, storage=storage) for _ in range(2)]
    asked = []
    for _ in range(12):
        asked += [(worker, worker.ask()) for worker in workers]
        for _, trial in asked[-2:]:
            SIX.suggest(trial)
        if len(asked) % 8 == 0:  # the others are still at it
            for worker, trial in asked[-6:-2]:
                worker.tell(trial, toy(trial))
    rows = drawn(workers[0])
    assert len(rows) == len(set(rows)) == 24


@pytest.mark.parametrize("after", [7, 15])
@pytest.mark.parametrize("name", ["random", "tpe", "cmaes", "nsga2"])
def test_an_interrupted_study_goes_on_as_an_unbroken_one(name, after):
    whole = study_of(name, seed=3)
    whole.optimize(toy, n_trials=24)
    storage = optuna.storages.InMemoryStorage()
    study_of(name, seed=3, storage=storage).optimize(toy, n_trials=after)
    for _ in range(after, 24):  # every trial somebody else's
        study_of(name, seed=3, storage=storage).optimize(toy, n_trials=1)
    assert drawn(study_of(name, seed=3, storage=storage)) == drawn(whole)


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_another_seed_draws_otherwise(name):
    studies = [study_of(name, seed=seed) for seed in (0, 1)]
    for study in studies:
        study.optimize(toy, n_trials=3)
    assert not set(drawn(studies[0])) & set(drawn(studies[1]))


@pytest.mark.parametrize("seed", range(3))
def test_tpe_finds_more_than_chance(seed):
    best = {}
    for name in ("tpe", "random"):
        study = study_of(name, seed, MANY)
        study.optimize(toy, n_trials=MANY)
        best[name] = study.best_value
    assert best["tpe"] > best["random"]


def test_cmaes_begins_around_the_uniform_split():
    space = BudgetSplit(dict.fromkeys("ABCDEF", 144), 0.1, spread=64.0)
    study = study_of("cmaes", space=space)
    study.optimize(lambda trial: toy(trial, space), n_trials=10)
    # The first trial is drawn at large; the other nine are centred on weights of 1.
    logs = [math.log(value) for row in drawn(study)[1:] for value in row]
    assert abs(sum(logs) / len(logs)) < math.log(64) / 4


def test_cmaes_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_sampler("cmaes", SIX, 0, 24)


def test_grid_takes_every_level_once():
    space = FreeRates(dict.fromkeys("AB", 144), 0.05, 0.25)
    study = study_of("grid", space=space)
    study.optimize(lambda trial: toy(trial, space), n_trials=50)
    assert sorted(drawn(study)) == sorted(itertools.product(space.levels(), repeat=2))
    assert study.sampler.is_exhausted(study)


def test_grid_of_several_workers_takes_every_level_once():
    space = FreeRates(dict.fromkeys("AB", 144), 0.05, 0.25)
    storage = optuna.storages.InMemoryStorage()
    workers = [study_of("grid", space=space, storage=storage) for _ in range(3)]
    for turn in range(9):
        workers[turn % 3].optimize(lambda trial: toy(trial, space), n_trials=1)
    assert sorted(drawn(workers[0])) == sorted(itertools.product(space.levels(), repeat=2))
    assert all(worker.sampler.is_exhausted(worker) for worker in workers)


def test_refusals():
    with pytest.raises(PruneError, match=r"unknown sampler 'tpee'.*Did you mean 'tpe'.*random"):
        make_sampler("tpee", SIX, 0, 10)
    with pytest.raises(PruneError, match=r"cmaes has one objective, a front has two\. Take nsga2 or tpe"):
        make_sampler("cmaes", SIX, 0, 10, front=True)
    with pytest.raises(PruneError, match=r"unknown pruner 'wilcoxn'.*Did you mean 'wilcoxon'.*halving"):
        make_pruner("wilcoxn")


def test_a_grid_of_a_front_is_allowed():
    make_sampler("grid", SIX, 0, 10, front=True)


# -- pruners ------------------------------------------------------------------------------------------

STEPS = 16


def stops(pruner, value):
    """The step at which a trial of such values is stopped, after eight trials around 1; None for never."""
    noise = random.Random(0)
    study = optuna.create_study(
        direction="maximize", sampler=make_sampler("random", SIX, 0, 10), pruner=make_pruner(pruner)
    )
    for number in range(8):
        trial = study.ask()
        for step in range(STEPS):
            trial.report(1 + 0.01 * number + 0.1 * noise.random(), step)
            if pruner == "halving":
                trial.should_prune()  # it remembers who came how far
        study.tell(trial, 1 + 0.01 * number)
    trial = study.ask()
    for step in range(STEPS):
        trial.report(value + 0.1 * noise.random(), step)
        if trial.should_prune():
            return step
    return None


@pytest.mark.parametrize("name", PRUNERS)
def test_each_is_a_pruner_that_lets_the_best_run(name):
    assert isinstance(make_pruner(name), BasePruner)
    assert stops(name, 2.0) is None


@pytest.mark.parametrize("name", [name for name in PRUNERS if name != "none"])
def test_the_hopeless_are_stopped_but_not_at_once(name):
    step = stops(name, 0.0)
    assert step is not None and 0 < step < STEPS - 1


def test_none_stops_nothing():
    assert stops("none", -9.0) is None
