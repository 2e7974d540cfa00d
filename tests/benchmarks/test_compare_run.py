"""A comparison from scenes to summary: records, going on, differences, the front, kept tokens."""

import json

import pytest

from prune2drive.benchmarks.compare import _mark_pareto, kept_tokens, summarize_comparison
from prune2drive.benchmarks.contenders import Contender, examine, make_contenders
from prune2drive.benchmarks.records import Records
from prune2drive.benchmarks.runner import Runner
from prune2drive.rig import NUSCENES

TYPES = ("exists", "steering")
ABOUT = {"benchmark": "world", "split": "test", "model": "m", "seed": 0}


@pytest.fixture(autouse=True)
def _small_guess(monkeypatch):
    monkeypatch.setattr("prune2drive.benchmarks.guess.SCENES", 2)


def complete(folder, answerer, count=2, methods=("tfps", "fastv"), rates=(0.25,), batch=2):
    contenders, _ = make_contenders(methods, rates)
    able, reasons = examine(contenders, answerer.model)
    records = Records(folder, {})
    run = Runner(records, able, lambda: answerer, split="test", count=count, types=TYPES, batch=batch)
    if run.missing():
        with records:
            run.run()
    return run, summarize_comparison(records, able, run.names, ABOUT, depth=8, impossible=reasons)


def by_name(summary):
    return {entry["name"]: entry for entry in summary["contenders"]}


def test_records_and_summary(tmp_path, answerer):
    run, summary = complete(tmp_path, answerer, rates=(0.25, 0.05))
    assert {key: summary[key] for key in (*ABOUT, "scenes", "visual", "depth")} == {
        **ABOUT,
        "scenes": 2,
        "visual": 864,
        "depth": 8,
    }
    found = by_name(summary)
    assert list(found) == [
        *("unpruned", "blind", "guess", "random@avg0.25", "tfps@avg0.25", "fastv@avg0.25"),
        *("random-layer@kept0.25", "fastv@kept0.25"),
        *("random@avg0.05", "tfps@avg0.05", "random-layer@kept0.05", "fastv@kept0.05"),
    ]
    assert [row["name"] for row in summary["impossible"]] == ["fastv@avg0.05"]
    tokens = {name: (entry["layer_averaged"], entry["kept"]) for name, entry in found.items()}
    assert tokens["unpruned"] == (864, 864) and tokens["blind"] == tokens["guess"] == (None, None)
    assert tokens["tfps@avg0.25"] == tokens["random@avg0.25"] == (216, 216)
    assert tokens["fastv@avg0.25"] == ((864 + 7 * 123) / 8, 123)
    assert tokens["fastv@kept0.25"] == tokens["random-layer@kept0.25"] == ((864 + 7 * 216) / 8, 216)
    assert {name: entry["reads_question"] for name, entry in found.items() if entry["reads_question"]} == {
        name: True for name in found if name.startswith("fastv")
    }
    assert list(found["fastv@kept0.25"]["difference"]) == ["unpruned", "random"]
    assert found["unpruned"]["difference"] == {} and list(found["blind"]["difference"]) == ["unpruned"]
    fastv, rival = found["fastv@kept0.25"], found["random-layer@kept0.25"]
    gain = fastv["accuracy"]["overall"]["value"] - rival["accuracy"]["overall"]["value"]
    assert fastv["difference"]["random"]["overall"]["value"] == pytest.approx(gain)
    assert set(fastv["accuracy"]["type"]) == set(TYPES)
    assert found["tfps@avg0.25"]["shown"] and found["blind"]["shown"] == {}
    assert all(entry["costs"] is None for entry in found.values())
    json.dumps(summary)
    row = run.records.rows["fastv@avg0.25", "test/0"]
    assert (row["budget"], row["retention"], row["positions"]) == ("average", 0.25, "keep")


def test_goes_on_where_it_was_stopped(tmp_path, answerer):
    _, summary = complete(tmp_path, answerer)
    path = tmp_path / "records.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:-3])[:-20])  # the line before the last three is torn
    _, again = complete(tmp_path, answerer)
    assert path.read_text().splitlines(keepends=True) == whole
    assert again == summary


def test_earlier_contenders_stay_in_the_summary(tmp_path, answerer):
    complete(tmp_path, answerer, 1, ("stratified",))
    _, summary = complete(tmp_path, answerer, 1, ("tfps",))
    assert list(by_name(summary))[-2:] == ["tfps@avg0.25", "stratified@avg0.25"]


def test_the_batch_makes_no_difference(tmp_path, answerer):
    one, _ = complete(tmp_path / "1", answerer, 2, ["random+fastv", "random-layer"], batch=1)
    two, _ = complete(tmp_path / "2", answerer, 2, ["random+fastv", "random-layer"], batch=2)
    assert one.records.rows == two.records.rows


def test_the_front():
    def entry(tokens, right):
        return {"layer_averaged": tokens, "accuracy": {"overall": {"value": right}}, "pareto": False}

    entries = [
        entry(864.0, 0.8),
        entry(216.0, 0.8),  # as accurate as unpruned with fewer
        entry(86.25, 0.6),  # within a token of the next, which is better
        entry(86.9, 0.7),
        entry(86.0, 0.5),
        entry(40.0, 0.5),
        entry(None, 0.9),  # sees no pictures
    ]
    _mark_pareto(entries)
    assert [e["pareto"] for e in entries] == [False, True, False, True, False, True, False]


def test_kept_tokens(tmp_path, answerer, two_scenes, monkeypatch):
    path = tmp_path / "kept.json"
    rows = [Contender("unpruned"), *(Contender(m, "kept", 0.1, "keep") for m in ("tfps", "fastv"))]
    found = kept_tokens(answerer, rows[:2], two_scenes[0], 0, path)
    assert (found["sample"], found["question"]) == ("test/0", two_scenes[0].questions[0].text)
    assert list(found["contenders"]) == ["tfps@kept0.1"]
    found = kept_tokens(answerer, rows, two_scenes[0], 0, path)
    assert list(found["contenders"]) == ["tfps@kept0.1", "fastv@kept0.1"]
    for cameras in found["contenders"].values():
        assert list(cameras) == list(NUSCENES.names)
        assert sum(map(len, cameras.values())) == 84
        assert all(picks == sorted(set(picks)) for picks in cameras.values())
    assert json.loads(path.read_text()) == found
    monkeypatch.setattr(type(answerer), "encode", lambda *a: pytest.fail("encoded again"))
    assert kept_tokens(answerer, rows, two_scenes[0], 0, path) == found
