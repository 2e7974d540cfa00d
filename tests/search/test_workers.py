"""Several workers, each a command of its own, on one study; one of them is killed."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState
from postgres import PASSWORD, programs, server

from prune2drive.search.storage import open_storage
from prune2drive.search.study import REPORT

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
TRIALS = 6


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/study.db"
        return
    if programs() is None:
        pytest.skip("PostgreSQL's server is not installed")
    with server() as url:
        yield url


def start(tmp_path, database, out, *more):
    """A worker, as a user starts it."""
    command = [sys.executable, "-m", "prune2drive", "search", "--budget", "0.1", "--trials", str(TRIALS)]
    command += ["--samples", "24", "--held-out", "0", "--batch", "8", "--heartbeat", "1", "--name", "shared"]
    command += [
        "--storage",
        database,
        "--cache",
        str(tmp_path / "cache"),
        "--out",
        str(tmp_path / out),
        *more,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


@functools.cache
def opened(database):
    return open_storage(database, heartbeat=1)


def trials(database):
    """Trials of the study, none before it is founded."""
    try:
        study = optuna.load_study(study_name="shared", storage=opened(database))
    except KeyError:
        return []
    return study.get_trials(deepcopy=False)


def wait_for_a_trial_of(worker, database):
    """Wait until a worker is in the middle of a trial that was sampled, and return its number."""
    for _ in range(1200):
        for trial in trials(database):
            mine = trial.user_attrs.get("worker", "").endswith(f"-{worker.pid}")
            if mine and trial.state == TrialState.RUNNING and trial.intermediate_values and trial.number:
                return trial.number
        assert worker.poll() is None, worker.communicate()[0]
        time.sleep(0.02)
    raise AssertionError("the worker ran no trial")


def test_a_killed_workers_trial_is_run_again_with_the_same_parameters(tmp_path, database):
    first = start(tmp_path, database, "first")
    lost = wait_for_a_trial_of(first, database)
    first.send_signal(signal.SIGKILL)
    first.wait()
    others = [start(tmp_path, database, name) for name in ("second", "third")]
    for other in others:
        said = other.communicate(timeout=300)[0]
        assert other.returncode == 0, said
        assert PASSWORD not in said

    found = trials(database)
    done = [trial for trial in found if trial.state in DONE]
    # Two workers may start their last trials in the same moment, so one more is allowed.
    assert TRIALS <= len(done) <= TRIALS + 1
    assert not [trial for trial in found if trial.state == TrialState.RUNNING], "nothing is left behind"
    assert found[lost].state == TrialState.FAIL
    again = [trial for trial in done if trial.system_attrs.get("retry_history") == [lost]]
    assert len(again) == 1, "the killed trial is tried again, once"
    assert again[0].params == found[lost].params
    fresh = [trial for trial in done if "copied" not in trial.user_attrs[REPORT]]
    counts = Counter(tuple(trial.user_attrs[REPORT]["counts"].values()) for trial in fresh)
    assert max(counts.values()) == 1, "nothing is evaluated twice"
    assert sum("start" in trial.user_attrs for trial in done) == 1, "one uniform start"
    for trial in done:
        assert trial.user_attrs[REPORT]["kept"] == 84
    for name in ("second", "third"):
        assert (tmp_path / name / "preset.json").exists()
        for file in (tmp_path / name).iterdir():
            assert PASSWORD.encode() not in file.read_bytes(), f"{file.name} tells the password"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_goes_on(tmp_path, how):
    database = f"sqlite:///{tmp_path}/study.db"
    first = start(tmp_path, database, "out")
    lost = wait_for_a_trial_of(first, database)
    first.send_signal(how)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 130, said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "preset.json").exists()
    before = {trial.number: trial.value for trial in trials(database) if trial.state in DONE}

    second = start(tmp_path, database, "out")
    assert second.wait(300) == 0
    found = trials(database)
    done = [trial for trial in found if trial.state in DONE]
    assert len(done) == TRIALS
    assert {trial.number: trial.value for trial in done if trial.number in before} == before
    assert sum(trial.params == found[lost].params for trial in done) == 1
