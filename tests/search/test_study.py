"""What a study tries, how it judges, and that nothing is lost or done twice."""

import itertools
import sqlite3

import numpy as np
import optuna
import pytest
from fakes import WORTH, FakeTask
from optuna.trial import TrialState

from prune2drive.allocators.total import split
from prune2drive.errors import PruneError
from prune2drive.search import storage as storage_module
from prune2drive.search import study as study_module
from prune2drive.search.storage import open_storage
from prune2drive.search.study import REPORT, Search


def finished(study):
    return [t for t in study.get_trials() if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]


def worked(search, storage=None, name="s"):
    study = search.join(storage or optuna.storages.InMemoryStorage(), name)
    search.work(study)
    return study


def test_the_first_trial_is_uniform_and_the_best_is_no_worse():
    search = Search(FakeTask(), budget=0.25, trials=12)
    study = worked(search)
    first = study.trials[0]
    assert first.user_attrs["start"] == "uniform"
    assert first.user_attrs[REPORT]["counts"] == dict.fromkeys(WORTH, 4)
    assert study.best_value >= first.value


def test_a_budget_is_met_by_every_trial_to_the_token():
    study = worked(Search(FakeTask(), budget=0.25, trials=25, sampler="random", pruner="none"))
    assert {t.user_attrs[REPORT]["kept"] for t in study.trials} == {12}
    assert {sum(t.user_attrs[REPORT]["counts"].values()) for t in study.trials} == {12}
    lowest = min(min(t.user_attrs[REPORT]["rates"].values()) for t in study.trials)
    assert lowest < 0.25 / 2, "rates far below the uniform one are tried"


def test_the_value_is_reward_less_penalty():
    task = FakeTask()
    search = Search(task, penalty=0.3, parts={"exact": 2.0}, trials=40, pruner="none", low=0.2, high=0.5)
    study = worked(search)
    assert any("copied" in t.user_attrs[REPORT] for t in study.trials), "copies are paid for as well"
    for trial in study.trials:
        report = trial.user_attrs[REPORT]
        reward = 2 * (task.quality(report["rates"]) + task.noise.mean())
        assert report["reward"] == pytest.approx(reward)
        assert trial.value == pytest.approx(reward - 0.3 * sum(report["rates"].values()))


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_it_finds_nearly_the_best_split(sampler):
    task = FakeTask(tokens=16, frames=8)
    splits = (k for k in itertools.product(range(1, 17), repeat=3) if sum(k) == 12)
    best = max(task.quality({c: k / 16 for c, k in zip(WORTH, ks, strict=True)}) for ks in splits)
    uniform = task.quality(dict.fromkeys(WORTH, 4 / 16))
    search = Search(task, budget=0.25, trials=60, sampler=sampler, parts={"exact": 1.0}, spread=8)
    rates = worked(search).best_trial.user_attrs[REPORT]["rates"]
    assert task.quality(rates) > uniform + 0.9 * (best - uniform)


def test_a_front_dominates_its_uniform_starts():
    study = worked(Search(FakeTask(), front=True, parts={"exact": 1.0}, trials=60))
    values = [t.values for t in study.best_trials]
    for a, b in itertools.permutations(values, 2):
        assert not (a[0] >= b[0] and a[1] < b[1])
    starts = [t for t in study.trials if t.user_attrs.get("start")]
    assert len(starts) == 4
    for start in starts:
        assert any(r >= start.values[0] and k <= start.values[1] for r, k in values)


def test_hopeless_trials_are_stopped_and_ranked_by_their_mean():
    task = FakeTask(noise=0.001)
    study = worked(Search(task, budget=0.25, trials=30, sampler="random", parts={"exact": 1.0}))
    stopped = [t for t in study.trials if t.state == TrialState.PRUNED]
    assert len(stopped) > 10
    for trial in stopped:
        report = trial.user_attrs[REPORT]
        assert report["samples"] < len(task.frames)
        last = trial.intermediate_values[max(trial.intermediate_values)]
        assert last == pytest.approx(report["reward"])
    looked = sum(t.user_attrs[REPORT]["samples"] for t in study.trials)
    assert looked == sum(stop - start for _, start, stop in task.calls)
    assert looked < 0.8 * 30 * len(task.frames)


@pytest.mark.parametrize("pruner", ["paired", "median", "halving"])
def test_a_stopped_trial_is_no_better_than_the_best(pruner):
    task = FakeTask(noise=0.2)
    study = worked(
        Search(task, budget=0.25, trials=40, sampler="random", pruner=pruner, parts={"exact": 1.0})
    )
    best = task.quality(study.best_trial.user_attrs[REPORT]["rates"])
    for trial in study.trials:
        if trial.state == TrialState.PRUNED:
            # All frames share their noise, so what was stopped is truly worse.
            assert task.quality(trial.user_attrs[REPORT]["rates"]) <= best


def test_without_a_pruner_every_trial_sees_every_frame():
    task = FakeTask()
    study = worked(Search(task, budget=0.25, trials=10, pruner="none", sampler="random"))
    fresh = [t for t in study.trials if "copied" not in t.user_attrs[REPORT]]
    assert all(t.user_attrs[REPORT]["samples"] == len(task.frames) for t in fresh)


def test_steps_cover_every_frame_once():
    for frames, batch, steps in [(64, 2, 32), (63, 2, 32), (7, 3, 32), (100, 16, 3), (1, 1, 1)]:
        task = FakeTask(frames=frames, batch=batch)
        worked(Search(task, budget=0.25, trials=1, steps=steps))
        parts = [(start, stop) for _, start, stop in task.calls]
        assert [n for start, stop in parts for n in range(start, stop)] == list(range(frames))


def test_equal_counts_are_not_asked_again():
    task = FakeTask(tokens=4)  # few splits, so trials repeat
    study = worked(Search(task, budget=1 / 2, trials=30, sampler="random", pruner="none", steps=12))
    assert any("copied" in t.user_attrs[REPORT] for t in study.trials)
    asked = {tuple(rates.values()) for rates, _, _ in task.calls}
    assert len(task.calls) == len(asked) * 12
    for trial in study.trials:
        if (twin := trial.user_attrs[REPORT].get("copied")) is not None:
            assert trial.value == study.trials[twin].value
            assert trial.intermediate_values == study.trials[twin].intermediate_values


def test_frames_of_other_lengths_round_otherwise_so_only_equal_rates_are_twins():
    task = FakeTask(tokens=4)
    task.fixed_length = False
    study = worked(Search(task, penalty=0.1, trials=20, sampler="random", pruner="none"))
    assert not any("copied" in t.user_attrs[REPORT] for t in study.trials)


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "grid"])
def test_an_interrupted_search_goes_on_as_if_unbroken(tmp_path, sampler):
    def interrupt(calls):
        if calls == 60:
            raise KeyboardInterrupt

    options = {"budget": 0.25, "trials": 14, "sampler": sampler, "pruner": "none", "seed": 3}
    storage = f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(KeyboardInterrupt):
        worked(Search(FakeTask(before=interrupt), **options), open_storage(storage))
    broken = worked(Search(FakeTask(), **options), open_storage(storage))
    whole = worked(Search(FakeTask(), **options), open_storage(f"sqlite:///{tmp_path}/b.db"))
    assert len(finished(broken)) == 14
    failed = [t for t in broken.trials if t.state == TrialState.FAIL]
    assert len(failed) == 1
    params = [t.params for t in finished(broken)]
    assert params.count(failed[0].params) == 1, "what was interrupted is tried again, once"
    if sampler != "cmaes":  # which counts its generations by trials
        same = [p for p in params if p in [t.params for t in finished(whole)]]
        assert len(same) >= failed[0].number + 1


def test_shares_do_not_depend_on_the_batch():
    cuts = [Search(FakeTask(frames=100, batch=batch), budget=0.25)._cuts for batch in (1, 7, 16)]
    assert cuts[0] == cuts[1] == cuts[2]
    assert cuts[0][0] == 0 and cuts[0][-1] == 100


def test_a_score_that_is_no_number_ends_the_search():
    class Overflowing(FakeTask):
        def quality(self, rates):
            return float("nan")

    with pytest.raises(PruneError, match=r"frame/0 to frame/0 is nan.*--dtype"):
        worked(Search(Overflowing(), budget=0.25, trials=3))


def test_a_start_that_failed_is_tried_again():
    def fail(calls):
        if calls == 2:
            raise RuntimeError("out of memory")

    storage = optuna.storages.InMemoryStorage()
    with pytest.raises(RuntimeError):
        worked(Search(FakeTask(before=fail), budget=0.25, trials=4), storage)
    study = worked(Search(FakeTask(), budget=0.25, trials=4), storage)
    (start,) = [t for t in finished(study) if t.user_attrs.get("start")]
    assert start.user_attrs[REPORT]["counts"] == dict.fromkeys(WORTH, 4)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_trial_that_was_taken_and_never_begun_is_given_up(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(storage_module, "NAMELESS", 0.2)
    monkeypatch.setattr(study_module, "POLL", 0.1)
    url = f"sqlite:///{tmp_path}/a.db"
    storage = optuna.storages.InMemoryStorage() if kind == "memory" else open_storage(url, heartbeat=1)
    search = Search(FakeTask(), budget=0.25, trials=3)
    study = search.join(storage, "s")
    study.ask()  # as a worker that was killed before its first sign of life
    search.work(study)
    assert study.trials[0].state == TrialState.FAIL
    assert [t.state for t in finished(study)].count(TrialState.RUNNING) == 0
    assert len(finished(study)) == 3
    assert len([t for t in finished(study) if t.user_attrs.get("start")]) == 1


def test_a_worker_that_was_taken_for_dead_goes_on(tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    other = {}

    def declare_dead(calls):
        if calls == 30:
            study = other["study"]
            (running,) = study.get_trials(states=(TrialState.RUNNING,))
            study.tell(running.number, state=TrialState.FAIL)

    search = Search(FakeTask(before=declare_dead), budget=0.25, trials=5, pruner="none")
    other["study"] = search.join(open_storage(url), "s")
    study = worked(search, open_storage(url))
    assert len(finished(study)) == 5
    assert [t.state for t in study.trials].count(TrialState.FAIL) == 1


def test_a_value_error_of_the_task_is_no_death():
    def fail(calls):
        if calls == 5:
            raise ValueError("of the task")

    with pytest.raises(ValueError, match="of the task"):
        worked(Search(FakeTask(before=fail), budget=0.25, trials=3))


def test_a_lost_database_is_told_in_one_sentence(tmp_path):
    path = tmp_path / "a.db"

    def drop(calls):
        if calls == 5:
            with sqlite3.connect(path) as connection:
                connection.execute("drop table trial_intermediate_values")

    with pytest.raises(PruneError, match=r"database cannot be used any more.*again"):
        worked(Search(FakeTask(before=drop), budget=0.25, trials=3), open_storage(f"sqlite:///{path}"))


def test_a_finished_study_asks_nothing(tmp_path):
    storage = f"sqlite:///{tmp_path}/a.db"
    worked(Search(FakeTask(), budget=0.25, trials=5), open_storage(storage))
    task = FakeTask()
    study = worked(Search(task, budget=0.25, trials=5), open_storage(storage))
    assert task.calls == []
    assert len(finished(study)) == 5
    worked(Search(task, budget=0.25, trials=8), open_storage(storage))
    assert len(finished(study)) == 8, "more trials go on where it ended"


def test_a_small_grid_ends_when_all_is_tried():
    class OneCamera(FakeTask):
        def __init__(self):
            super().__init__()
            self.cameras, self.tokens = ["AHEAD"], {"AHEAD": 16}

        def quality(self, rates):
            return rates["AHEAD"]

    search = Search(OneCamera(), penalty=0.1, sampler="grid", trials=50, pruner="none")
    study = worked(search)
    tried = [t.params["AHEAD"] for t in finished(study)]
    assert sorted(set(tried)) == search.space.levels() == [0.02, 0.05, 0.1, 0.25, 0.5, 1.0]
    assert len(tried) == 7, "every level once, and the start"


def test_an_error_ends_the_worker_and_the_study_goes_on():
    def fail(calls):
        if calls == 40:
            raise RuntimeError("out of memory")

    storage = optuna.storages.InMemoryStorage()
    with pytest.raises(RuntimeError, match="out of memory"):
        worked(Search(FakeTask(before=fail), budget=0.25, trials=6, pruner="none"), storage)
    study = worked(Search(FakeTask(), budget=0.25, trials=6, pruner="none"), storage)
    assert len(finished(study)) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 0.1, "penalty": 0.03}, "choose one"),
        ({"budget": 0.1, "front": True}, "choose one"),
        ({"penalty": -0.1}, "negative"),
        ({"budget": 0.0}, "not in"),
        ({"budget": 10}, "for 10% write 0.10"),
        ({"parts": {"language": 1}}, "no score 'language'"),
        ({"parts": {"exacct": 1}}, "exact"),
        ({"sampler": "tpee"}, "tpe"),
        ({"pruner": "wilcox"}, "wilcoxon"),
        ({"front": True, "pruner": "median"}, "Say none"),
        ({"front": True, "sampler": "cmaes"}, "one objective"),
        ({"trials": 0}, "at least 1"),
        ({"penalty": 0.03, "low": 0.5, "high": 0.2}, "lower one first"),
        ({"spread": 1.0}, "nothing to search"),
        ({"seed": 2**32}, "seed"),
        ({"budget": 1.0}, "one way only"),
    ],
)
def test_impossible_settings(options, words):
    with pytest.raises(PruneError, match=words):
        Search(FakeTask(), **options)


def test_splits_are_what_total_gives():
    study = worked(Search(FakeTask(), budget=0.25, trials=10, sampler="random", pruner="none"))
    for trial in study.trials:
        weights = [trial.params[camera] for camera in WORTH]
        assert list(trial.user_attrs[REPORT]["counts"].values()) == split(12, [16] * 3, weights)
        assert np.isfinite(trial.value)
