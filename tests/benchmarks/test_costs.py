"""Costs: exact where they can be, measured in pairs, and never measured twice."""

import json

import pytest
import torch

from prune2drive.benchmarks import costs as costs_module
from prune2drive.benchmarks.contenders import Contender
from prune2drive.benchmarks.costs import CostMeter
from prune2drive.errors import PruneError
from prune2drive.profiling.flops import head_flops, kv_cache_bytes, language_flops

ROWS = [Contender("unpruned"), *(Contender(m, "kept", 0.25, "keep") for m in ("tfps", "fastv"))]


def meter(answerer, path, count=1, rows=ROWS, about=None):
    return CostMeter(answerer, rows, path, about or {"weights": "w"}, split="test", count=count)


@pytest.fixture(scope="module")
def measured(answerer, tmp_path_factory):
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    seen = []
    one = meter(answerer, path, 2)
    one.run(lambda name, done: seen.append((name, done)))
    there = [("tfps@kept0.25", 1), ("fastv@kept0.25", 1)]
    assert seen == [*there, *there[::-1]]
    return path, one.summary()


def test_figures(measured, answerer):
    path, found = measured
    assert list(found) == ["unpruned", "tfps@kept0.25", "fastv@kept0.25"]
    unpruned, tfps, fastv = found.values()
    for costs in found.values():
        assert costs["prefill_ms"] > 0 and costs["rounds"] in (2, 4)
        assert costs["memory_bytes"] is None or costs["memory_bytes"] >= 0
        assert costs["language_ms"] <= costs["prefill_ms"]
    assert unpruned["choose_ms"] == 0 and tfps["choose_ms"] > 0 and fastv["choose_ms"] > 0
    ratios = [unpruned[key] for key in ("prefill_ratio", "language_ratio", "flops_ratio", "kv_ratio")]
    assert ratios == [1, 1, 1, 1]
    # One round's numbers against the shapes: 864 visual tokens, 216 of them behind layer 1 or 0.
    config = answerer.model.config.get_text_config()
    own = {name: pair["own"] for name, pair in json.loads(path.read_text())["rounds"]["test/0"].items()} | {
        "unpruned": json.loads(path.read_text())["rounds"]["test/0"]["tfps@kept0.25"]["unpruned"]
    }
    seen = {"unpruned": [864] * 8, "tfps@kept0.25": [216] * 8, "fastv@kept0.25": [864] + [216] * 7}
    byte = kv_cache_bytes(config, [1], dtype=torch.float32)
    words = own["unpruned"]["kv_bytes"] // byte // 8 - 864
    assert 0 < words < 100
    for name, visual in seen.items():
        lengths = [n + words for n in visual]
        assert own[name]["kv_bytes"] == kv_cache_bytes(config, lengths, dtype=torch.float32)
        assert own[name]["flops"] == language_flops(config, lengths) + head_flops(config)
    assert tfps["flops_ratio"] < fastv["flops_ratio"] < 1 and tfps["kv_ratio"] < fastv["kv_ratio"] < 1


def test_what_is_there_is_not_measured_again(measured, answerer, monkeypatch):
    path, found = measured
    monkeypatch.setattr(CostMeter, "_measured", lambda *a: pytest.fail("measured again"))
    again = meter(answerer, path, 2)
    seen = []
    again.run(lambda name, done: seen.append((name, done)))
    assert again.summary() == found
    assert seen == [("tfps@kept0.25", 2), ("fastv@kept0.25", 2)]
    assert set(again.machine) == {"hardware", "versions"}
    # A finished file keeps its machine, wherever it is summed up.
    monkeypatch.setattr(costs_module, "hardware", lambda device: {"cpu": "other"})
    other = meter(answerer, path, 2)
    other.run()
    assert other.summary() == found and other.machine["hardware"] != {"cpu": "other"}


def test_what_lacks_is_added_and_another_machine_starts_over(answerer, tmp_path, monkeypatch):
    path = tmp_path / "costs.json"
    meter(answerer, path, rows=ROWS[:2]).run()
    first = json.loads(path.read_text())["rounds"]["test/0"]["tfps@kept0.25"]
    meter(answerer, path).run()
    data = json.loads(path.read_text())
    assert data["rounds"]["test/0"]["tfps@kept0.25"] == first and len(data["rounds"]["test/0"]) == 2
    monkeypatch.setattr(costs_module, "hardware", lambda device: {"cpu": "other"})
    two = meter(answerer, path, 2, rows=ROWS[:2])
    two.run()
    data = json.loads(path.read_text())
    assert data["hardware"] == {"cpu": "other"} and list(data["rounds"]) == ["test/0", "test/1"]
    assert data["rounds"]["test/0"]["tfps@kept0.25"] != first


def test_a_file_of_something_else(measured, answerer, tmp_path):
    path, _ = measured
    with pytest.raises(PruneError, match="another weights: 'w' there, 'v' now"):
        meter(answerer, path, about={"weights": "v"})
    damaged = tmp_path / "costs.json"
    damaged.write_text("{}")
    with pytest.raises(PruneError, match="is damaged"):
        meter(answerer, damaged)
