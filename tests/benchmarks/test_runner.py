"""A run from scenes to records: format, controls, going on where another stopped."""

import json
from collections import Counter

import pytest

from prune2drive.benchmarks import runner as runner_module
from prune2drive.benchmarks.guess import Guess
from prune2drive.benchmarks.records import Records
from prune2drive.benchmarks.runner import Runner, fingerprint, weights_hash
from prune2drive.benchmarks.settings import make_settings
from prune2drive.benchmarks.world import samples
from prune2drive.errors import PruneError
from prune2drive.rig import NUSCENES

TYPES = ("exists", "steering")


@pytest.fixture(autouse=True)
def _small_guess(monkeypatch):
    monkeypatch.setattr("prune2drive.benchmarks.guess.SCENES", 2)


def complete(folder, answerer, count, methods=("stride",), batch=2, seen=None, places=("before",)):
    loads = []

    def load():
        loads.append(1)
        return answerer

    records = Records(folder, {})
    settings = make_settings(methods, [0.1], places)
    run = Runner(records, settings, load, split="test", count=count, types=TYPES, batch=batch)
    if run.missing():
        with records:
            run.run(lambda name, done: seen.append((name, done)) if seen is not None else None)
    return run, loads


def test_records(tmp_path, answerer):
    seen = []
    complete(tmp_path, answerer, 3, seen=seen)
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    names = ["unpruned", "blind", "guess", "stride@0.1"]
    assert [(r["setting"], r["sample"]) for r in rows] == [
        *((name, f"test/{n}") for name in names for n in (0, 1)),
        *((name, "test/2") for name in names),
    ]
    assert sum(done for _, done in seen) == len(rows)
    drawn = {s.name: s for s in samples("test", 3, types=TYPES)}
    for row in rows:
        sample = drawn[row["sample"]]
        assert row["weather"] == sample.scene.weather
        assert [(a["text"], a["answer"]) for a in row["answers"]] == [
            (q.text, q.answer) for q in sample.questions
        ]
        assert set(row["answers"][0]) == {"type", "camera", "kind", "text", "answer", "given"}
        count = {"unpruned": 144, "stride@0.1": 14}.get(row["setting"])
        assert row["kept"] == (dict.fromkeys(NUSCENES.names, count) if count else {})
        assert len(row["large"]) == (len(sample.large) if count else 0)
        for thing, known in zip(row["large"], sample.large, strict=False):
            assert (thing["camera"], thing["kind"], thing["patches"]) == (
                known.camera,
                known.kind,
                len(known.patches),
            )
            assert 0 <= thing["kept"] <= thing["patches"]
            assert row["setting"] != "unpruned" or thing["kept"] == thing["patches"]
        shown = Counter(thing.size for thing in sample.shown)
        assert {size: n for size, (n, _) in row["shown"].items() if n} == (shown if count else {})
        lost = [lost for _, lost in row["shown"].values()]
        assert not any(lost) or row["setting"] == "stride@0.1"
    assert any(row["large"] for row in rows)  # test/2 has some
    assert any(row["shown"]["small"][1] for row in rows if row["setting"] == "stride@0.1")
    guess = Guess.counted(0, 2)
    given = {r["sample"]: [a["given"] for a in r["answers"]] for r in rows if r["setting"] == "guess"}
    assert given == {s.name: [guess.answer(q) for q in s.questions] for s in drawn.values()}


def test_more_scenes_and_more_settings_come_on_top(tmp_path, answerer):
    complete(tmp_path / "a", answerer, 1)
    complete(tmp_path / "a", answerer, 2)
    run, _ = complete(tmp_path / "a", answerer, 2, ("stride", "random"), places=("layer1",))
    once, _ = complete(tmp_path / "b", answerer, 2, ("stride", "random"), places=("layer1",))
    names = [s["name"] for s in run.summary("m")["settings"]]
    assert names == ["unpruned", "blind", "guess", "stride-layer1@0.1", "random-layer1@0.1", "stride@0.1"]
    for key, row in once.records.rows.items():
        assert run.records.rows[key] == row
    assert run.summary("m")["settings"][:5] == once.summary("m")["settings"]
    # An earlier setting that lacks a scene is left out: differences are on the same questions.
    run, _ = complete(tmp_path / "a", answerer, 3, ("random",), places=("layer1",))
    assert [s["name"] for s in run.summary("m")["settings"]] == [*names[:3], "random-layer1@0.1"]


def test_a_finished_run_needs_no_model(tmp_path, answerer):
    first, loads = complete(tmp_path, answerer, 1)
    assert loads == [1]
    again, loads = complete(tmp_path, None, 1)
    assert loads == [] and again.summary("m") == first.summary("m")


def test_what_is_missing_of_a_batch_is_filled_in(tmp_path, answerer):
    complete(tmp_path, answerer, 2)
    path = tmp_path / "records.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:-1])[:-7])  # stride of both scenes; the first line torn
    complete(tmp_path, answerer, 2)
    assert path.read_text().splitlines(keepends=True) == whole


def test_layers_are_checked_before_the_first_batch(tmp_path, answerer, monkeypatch):
    monkeypatch.setattr(runner_module, "samples", lambda *a: pytest.fail("drew scenes first"))
    with pytest.raises(PruneError, match="layer 9 asked"):
        complete(tmp_path, answerer, 1, places=("layer9",))


def test_counts_below_one(tmp_path):
    with pytest.raises(PruneError, match="at least 1"):
        Runner(Records(tmp_path, {}), [], lambda: None, split="test", count=0)


def test_fingerprint(tmp_path):
    with pytest.raises(PruneError, match="holds no weights"):
        weights_hash(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"one")
    kinds = {"split": "test", "seed": 0, "dtype": "auto", "version": "0"}
    one = fingerprint(tmp_path, types=["count", "exists"], **kinds)
    assert one == fingerprint(tmp_path, types=["exists", "count"], **kinds)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert fingerprint(tmp_path, types=["exists", "count"], **kinds) != one
