"""Databases that cannot be used say so without their password; studies are joined, not overwritten."""

import optuna
import pytest
from fakes import FakeTask

from prune2drive.errors import PruneError
from prune2drive.search import storage as module
from prune2drive.search.storage import differing, hide_password, open_storage
from prune2drive.search.study import Search


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@127.0.0.1:1/none",
        "postgres://me:secret@127.0.0.1:1/none",
        "sqlite:////nowhere/at/all/study.db",
        "nonsense",
        "oracle://me:secret@host/db",
        "://",
    ],
)
def test_a_database_that_cannot_be_used(url):
    with pytest.raises(PruneError, match="--storage") as error:
        open_storage(url)
    assert "secret" not in str(error.value)


def test_a_heartbeat_below_a_second():
    with pytest.raises(PruneError, match="at least 1 second"):
        open_storage("sqlite://", heartbeat=0)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("at postgresql+psycopg://me:s:e@host/db: no", "at postgresql+psycopg://me:***@host/db: no"),
        ("postgresql://me:p@ss@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:se/cr@t@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("postgresql://host/db", "postgresql://host/db"),
    ],
)
def test_passwords_are_hidden(text, hidden):
    assert hide_password(text) == hidden


def test_a_study_of_another_model_is_left_alone(tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    study = Search(FakeTask(model="a"), budget=0.25, trials=3).join(open_storage(url), "mine")
    Search(FakeTask(model="a"), budget=0.25, trials=3).work(study)
    before = [(t.number, t.value) for t in study.get_trials()]
    with pytest.raises(PruneError, match="another model: 'a' there, 'b' now") as error:
        Search(FakeTask(model="b"), budget=0.25, trials=3).join(open_storage(url), "mine")
    assert "--name" in str(error.value)
    again = optuna.load_study(study_name="mine", storage=open_storage(url))
    assert [(t.number, t.value) for t in again.get_trials()] == before
    assert again.user_attrs["about"]["model"] == "a"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"budget": 0.1}, "budget.share"),
        ({"penalty": 0.03}, "mode"),
        ({"budget": 0.25, "sampler": "random"}, "sampler"),
        ({"budget": 0.25, "seed": 1}, "seed"),
        ({"budget": 0.25, "parts": {"exact": 1.0}}, "parts.exact"),
    ],
)
def test_a_study_of_other_settings_is_left_alone(tmp_path, options, key):
    url = f"sqlite:///{tmp_path}/a.db"
    Search(FakeTask(), budget=0.25).join(open_storage(url), "mine")
    with pytest.raises(PruneError, match=key):
        Search(FakeTask(), **options).join(open_storage(url), "mine")


def test_somebody_elses_study_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FOUNDING", 0.1)
    url = f"sqlite:///{tmp_path}/a.db"
    other = optuna.create_study(study_name="mine", storage=open_storage(url))
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(PruneError, match="not made by prune2drive"):
        Search(FakeTask(), budget=0.25).join(open_storage(url), "mine")


def test_a_founder_killed_half_way_is_made_up_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FOUNDING", 0.1)
    url = f"sqlite:///{tmp_path}/a.db"
    optuna.create_study(study_name="mine", storage=open_storage(url), direction="maximize")
    search = Search(FakeTask(), budget=0.25, trials=3)
    study = search.join(open_storage(url), "mine")
    search.work(study)
    assert study.trials[0].user_attrs["start"] == "uniform"
    assert sum("start" in t.user_attrs for t in study.trials) == 1


def test_joining_twice_queues_the_first_trial_once(tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    studies = [Search(FakeTask(), budget=0.25).join(open_storage(url), "mine") for _ in range(3)]
    assert len(studies[-1].get_trials()) == 1


def test_differing_names_the_place():
    assert differing({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert differing({"a": {"b": 1}}, {"a": {"b": 2}}) == ("a.b", 1, 2)
    assert differing({"a": 1}, {}) == ("a", 1, None)
    assert differing({"a": [1, 2]}, {"a": (1, 2)}) is None
    assert differing({"a": {"b": 1}}, {"a": None}) == ("a", {"b": 1}, None)
