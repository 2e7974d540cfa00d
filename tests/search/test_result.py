"""What a finished search says about itself, and that it flatters nobody."""

import json
import socket

import numpy as np
import optuna
import pytest
from fakes import WORTH, FakeTask

from prune2drive.allocators import Rates, load_allocator, load_preset
from prune2drive.benchmarks.statistics import resamples
from prune2drive.errors import PruneError
from prune2drive.search import Search, find_rates
from prune2drive.search.result import check_folder, compare, conclude, importance, nondominated
from prune2drive.search.task import Scores


class Other(FakeTask):
    """Frames of their own, with other noise."""

    def __init__(self, shift=0.0, frames=40):
        super().__init__(frames=frames)
        self.frames = [f"other/{number}" for number in range(frames)]
        self.noise = np.random.default_rng(1).normal(shift, 0.05, frames)


def search(**options):
    return Search(FakeTask(), **{"budget": 0.25, "trials": 25, "parts": {"exact": 1.0}, **options})


def test_the_preset_says_where_it_comes_from():
    made = search()
    found = find_rates(made, name="mine", held_out=Other())
    preset = found.preset
    assert preset.name == "mine"
    assert preset.model == {"name": "fake", "weights": "0" * 64, "dtype": "float32"}
    assert preset.data["ids"] == made.task.frames
    assert preset.objective["budget"] == {"share": 0.25, "tokens": 12}
    assert preset.search["sampler"] == "tpe" and preset.search["trials"] == 25
    assert preset.tokens == {"kept": 12, "of": 48}
    assert sum(round(rate * 16) for rate in preset.rates.values()) == 12
    assert preset.date and preset.version
    json.dumps(found.result)


def test_the_score_is_that_of_the_held_out_frames_against_an_even_split():
    other = Other()
    found = find_rates(search(), held_out=other)
    score = found.preset.score
    ours = other.quality(found.preset.rates) + other.noise.mean()
    theirs = other.quality(dict.fromkeys(WORTH, 4 / 16)) + other.noise.mean()
    assert score["searched"]["exact"]["value"] == pytest.approx(ours, abs=1e-5)
    assert score["uniform"]["exact"]["value"] == pytest.approx(theirs, abs=1e-5)
    assert score["gain"]["exact"]["value"] == pytest.approx(ours - theirs, abs=1e-5)
    low, high = score["searched"]["exact"]["low"], score["searched"]["exact"]["high"]
    drawn = resamples(40) @ (other.quality(found.preset.rates) + other.noise) / 40
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-5)
    # The noise is shared, so the paired difference has none.
    assert score["gain"]["exact"]["low"] == pytest.approx(score["gain"]["exact"]["high"])


def test_a_penalty_is_compared_with_as_many_tokens():
    other = Other()
    found = find_rates(search(budget=None, penalty=0.05), held_out=other)
    kept = found.preset.tokens["kept"]
    counts = [round(rate * 16) for rate in other.calls[-1][0].values()]
    assert sum(counts) == kept and max(counts) - min(counts) <= 1


def test_frames_of_the_search_are_no_held_out_frames():
    made, held = search(), FakeTask(frames=2)
    held.frames = ["new", "frame/3"]
    with pytest.raises(PruneError, match="frame/3"):
        find_rates(made, held_out=held)


def test_the_same_pictures_under_another_name_are_no_held_out_frames():
    class Renamed(Other):
        contents = ("pictures/1",)

    class Named(FakeTask):
        contents = tuple(f"pictures/{number}" for number in range(24))

    with pytest.raises(PruneError, match="other/0"):
        find_rates(Search(Named(), budget=0.25, trials=2), held_out=Renamed(frames=1))


def test_without_held_out_frames_there_is_no_score():
    found = find_rates(search())
    assert found.preset.score is None and found.result["held_out"] is None


def test_importance_points_to_the_camera_that_matters():
    found = find_rates(search(trials=60, sampler="random", pruner="none"))
    shares = found.result["importance"]
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.get) == "AHEAD"


def test_importance_of_few_trials_is_not_told():
    made = search(trials=4)
    study = made.join(optuna.storages.InMemoryStorage(), "s")
    made.work(study)
    assert importance(study.get_trials(), made) is None


def test_every_trial_is_listed_with_its_cost():
    made = search(trials=20)
    found = find_rates(made)
    rows = found.result["trials"]
    assert [row["number"] for row in rows] == list(range(20))
    assert sum(row["samples"] for row in rows) == sum(stop - start for _, start, stop in made.task.calls)
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: row["value"])
    assert found.result["best"] == best["number"]
    assert found.preset.rates == best["rates"]


def test_a_front_has_a_preset_per_point(tmp_path):
    found = find_rates(search(budget=None, front=True, trials=30), held_out=Other())
    assert found.preset is None and found.result["best"] is None
    kept = [preset.tokens["kept"] for preset in found.presets]
    assert kept == sorted(set(kept))
    assert len(kept) == len(found.result["front"])
    assert all(preset.score for preset in found.presets)
    found.save(tmp_path)
    assert {path.stem for path in (tmp_path / "front").iterdir()} == {str(k) for k in kept}
    assert not (tmp_path / "preset.json").exists()


def test_points_that_left_the_front_leave_the_folder(tmp_path):
    storage = f"sqlite:///{tmp_path}/a.db"
    for trials in (6, 30):
        found = find_rates(search(budget=None, front=True, trials=trials), storage=storage)
        found.save(tmp_path / "out")
    kept = {path.stem for path in (tmp_path / "out" / "front").iterdir()}
    assert kept == {str(preset.tokens["kept"]) for preset in found.presets}


def test_the_front_is_what_nobody_beats():
    made = search(budget=None, front=True, trials=40)
    study = made.join(optuna.storages.InMemoryStorage(), "s")
    made.work(study)
    complete = study.get_trials()
    found = {tuple(trial.values) for trial in nondominated(complete)}
    assert found == {tuple(trial.values) for trial in study.best_trials}


def test_hosts_are_not_told():
    found = find_rates(search(trials=3))
    assert {row["worker"] for row in found.result["trials"]} == {1}
    assert socket.gethostname() not in json.dumps(found.result)


def test_what_is_saved_can_be_used(tmp_path):
    found = find_rates(search(), held_out=Other())
    found.save(tmp_path / "out")
    path = tmp_path / "out" / "preset.json"
    assert load_preset(path) == found.preset
    assert load_allocator(path) == Rates(found.preset.rates)
    assert "AHEAD" in (tmp_path / "out" / "report.html").read_text()
    found.save(tmp_path / "out")  # again is fine


def test_another_searchs_folder_is_left_alone(tmp_path):
    find_rates(search()).save(tmp_path)
    before = (tmp_path / "preset.json").read_text()
    with pytest.raises(PruneError, match=r"another budget.share: 0.25 there, 0.5 now"):
        find_rates(search(budget=0.5)).save(tmp_path)
    assert (tmp_path / "preset.json").read_text() == before
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(PruneError, match="another"):
        check_folder(tmp_path, {"name": "x"})


def test_a_study_without_a_finished_trial():
    made = search()
    study = made.join(optuna.storages.InMemoryStorage(), "s")
    with pytest.raises(PruneError, match="no trial"):
        conclude(made, study)


def test_compare_by_hand():
    asked = np.array([2.0, 1.0, 3.0, 2.0, 2.0])
    ours = Scores(asked, {"exact": np.array([2.0, 1.0, 1.0, 2.0, 1.0])})
    theirs = Scores(asked, {"exact": np.array([1.0, 1.0, 2.0, 1.0, 1.0])})
    found = compare(ours, theirs)
    assert found["searched"]["exact"]["value"] == pytest.approx(0.7)
    assert found["gain"]["exact"]["value"] == pytest.approx(0.1)
    assert found["gain"]["exact"]["low"] < 0.1 < found["gain"]["exact"]["high"]
