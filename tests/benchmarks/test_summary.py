"""The summary against figures worked out by hand."""

import pytest

from prune2drive.benchmarks.settings import make_settings
from prune2drive.benchmarks.statistics import resamples
from prune2drive.benchmarks.summary import large_account, shown_account, summarize

ABOUT = {"benchmark": "world", "split": "test", "model": "m", "seed": 0}
QUESTIONS = [("exists", "CAM_BACK", "yes"), ("exists", "CAM_FRONT", "no"), ("steering", None, "left")]


def record(setting, number, right, weather="day", kept=10, large=()):
    answers = [
        {"type": t, "camera": c, "kind": None, "text": "", "answer": a, "given": a if ok else "never"}
        for (t, c, a), ok in zip(QUESTIONS, right, strict=True)
    ]
    return {
        "setting": setting.name,
        "sample": f"test/{number}",
        "weather": weather,
        "answers": answers,
        "kept": {"CAM_FRONT": kept, "CAM_BACK": kept},
        "large": list(large),
        "shown": {"small": [2, number], "medium": [1, 0], "big": [0, 0]},
    }


def summary():
    settings = make_settings(["tfps", "random"], [0.1], ["before"])
    right = {
        "unpruned": [(1, 1, 1), (1, 1, 0)],
        "blind": [(1, 0, 0), (1, 0, 0)],
        "guess": [(0, 1, 0), (1, 1, 0)],
        "tfps@0.1": [(1, 0, 1), (1, 1, 0)],
        "random@0.1": [(1, 0, 0), (0, 1, 0)],
    }
    rows = {
        (s.name, f"test/{n}"): record(s, n, right[s.name][n], ("fog", "day")[n])
        for s in settings
        for n in (0, 1)
    }
    return summarize(rows, settings, ["test/0", "test/1"], ABOUT)


def test_accuracy_and_differences():
    out = summary()
    assert {k: out[k] for k in ("benchmark", "split", "model", "seed", "scenes", "questions")} == {
        **ABOUT,
        "scenes": 2,
        "questions": 6,
    }
    unpruned, blind, guess, tfps, random = out["settings"]
    assert unpruned["accuracy"]["overall"]["value"] == pytest.approx(5 / 6)
    assert unpruned["difference"] == {}
    accuracy = tfps["accuracy"]
    assert (accuracy["overall"]["value"], accuracy["overall"]["n"]) == (pytest.approx(4 / 6), 6)
    assert (accuracy["overall"]["low"], accuracy["overall"]["high"]) == (None, None)  # of two scenes
    assert {k: v["value"] for k, v in accuracy["type"].items()} == {"exists": 0.75, "steering": 0.5}
    assert {k: v["value"] for k, v in accuracy["camera"].items()} == {"CAM_FRONT": 0.5, "CAM_BACK": 1.0}
    assert {k: v["n"] for k, v in accuracy["weather"].items()} == {"day": 3, "fog": 3}
    assert {k: v["value"] for k, v in accuracy["stage"].items()} == {"perception": 0.75, "behaviour": 0.5}
    assert tfps["difference"]["unpruned"]["overall"]["value"] == pytest.approx(-1 / 6)
    assert tfps["difference"]["unpruned"]["type"]["exists"]["value"] == pytest.approx(-1 / 4)
    assert tfps["difference"]["random"]["overall"]["value"] == pytest.approx(2 / 6)
    assert (
        list(random["difference"]) == list(blind["difference"]) == list(guess["difference"]) == ["unpruned"]
    )
    assert (tfps["tokens"], tfps["where"], tfps["retention"]) == (20, "before", 0.1)


def test_parts_come_in_a_fixed_order():
    accuracy = summary()["settings"][0]["accuracy"]
    assert list(accuracy) == ["overall", "type", "camera", "weather", "stage"]
    assert list(accuracy["weather"]) == ["day", "fog"]


def test_large_things():
    def thing(patches, kept):
        return {"camera": "CAM_BACK", "patches": patches, "kept": kept}

    rows = [{"kept": {"CAM_BACK": 10}, "large": [thing(72, 5), thing(36, 0)]}]
    # half the patches, half the kept tokens: ratio 1; a quarter of them and none kept: 0
    assert large_account(rows) == {"objects": 2, "lost": 0.5, "ratio": 0.5}
    assert large_account([]) == {"objects": 0, "lost": None, "ratio": None}


def test_things_lost_by_size():
    unpruned, blind, guess, tfps, _ = summary()["settings"]
    assert blind["shown"] == guess["shown"] == {}
    assert unpruned["shown"] == tfps["shown"]
    assert tfps["shown"]["small"] == {"value": 1 / 4, "low": None, "high": None, "n": 4}
    assert tfps["shown"]["medium"] == {"value": 0.0, "low": None, "high": None, "n": 2}
    assert tfps["shown"]["big"] == {"value": None, "low": None, "high": None, "n": 0}
    assert shown_account([], resamples(2)) == {}
