"""Rows of a comparison: how they are written, what they ask for, and which of them cannot be."""

import dataclasses

import pytest

from prune2drive import registry
from prune2drive.benchmarks.contenders import (
    CONTROLS,
    TITLES,
    Contender,
    examine,
    make_contenders,
    parse_methods,
    parse_positions,
    reads,
)
from prune2drive.benchmarks.settings import FreshRandom
from prune2drive.errors import PruneError


def names(*args, **kwargs):
    found, reasons = make_contenders(*args, **kwargs)
    return [c.name for c in found if c.name not in CONTROLS], reasons


def test_names_titles_and_places():
    one = Contender("tfps+fastv", "average", 0.1, "keep")
    assert (one.name, one.title, one.stage) == ("tfps+fastv@avg0.1", "T-FPS + FastV", "both")
    assert dataclasses.replace(one, positions="reindex").name == "tfps+fastv@avg0.1/reindex"
    assert Contender("fastv", "kept", 0.25, "keep").name == "fastv@kept0.25"
    assert Contender("fastv", "kept", 0.25, "keep").stage == "inside"
    assert Contender("tfps", "average", 0.25, "keep").stage == "before"
    assert Contender("unpruned").name == "unpruned" and Contender("unpruned").stage == "control"
    assert Contender("of-my-own", "average", 0.1, "keep").title == "of-my-own"


def test_every_registered_method_has_a_title():
    assert set(registry._METHODS) - set(TITLES) <= {"tfps-released"}


def test_a_record_tells_its_contender():
    for one in make_contenders(["tfps", "fastv"], [0.1], positions=["keep", "reindex"], layer=2)[0]:
        assert Contender.from_record(one.facts, 2) in (one, dataclasses.replace(one, layer=2))


def test_the_only_stage_inside_is_put_at_the_layer():
    assert Contender("fastv", "kept", 0.1, "keep", 3).methods[0].layer == 3
    assert Contender("tfps+fastv", "average", 0.1, "keep", 3).methods[1].layer == 3
    several = Contender("random-layer+fastv", "average", 0.1, "keep", 3).methods
    assert [method.layer for method in several] == [1, 2]  # their own


def test_what_reads_the_question():
    assert [reads(Contender(m, "average", 0.5, "keep")) for m in ("tfps", "fastv", "tfps+fastv")] == [
        False,
        True,
        True,
    ]
    assert not reads(Contender("blind"))


def test_budgets():
    both, none = names(["tfps", "fastv", "tfps+fastv"], [0.5, 0.25])
    assert none == {}
    assert both == [
        *("random@avg0.5", "tfps@avg0.5", "fastv@avg0.5", "random-layer@kept0.5", "fastv@kept0.5"),
        *("tfps+fastv@avg0.5", "random@avg0.25", "tfps@avg0.25", "fastv@avg0.25"),
        *("random-layer@kept0.25", "fastv@kept0.25", "tfps+fastv@avg0.25"),
    ]
    average, _ = names(["tfps", "fastv"], [0.5], "average")
    assert average == ["random@avg0.5", "tfps@avg0.5", "fastv@avg0.5"]
    # Before the language model what is kept is the average; of several stages no share is the quoted one.
    kept, reasons = names(["tfps", "fastv", "tfps+fastv"], [0.5], "kept")
    assert kept == ["random@avg0.5", "tfps@avg0.5", "random-layer@kept0.5", "fastv@kept0.5"]
    assert list(reasons) == ["tfps+fastv@kept0.5"]


def test_rivals():
    def rival(*args):
        found = Contender(*args).rival
        return found and found.name

    assert rival("fastv", "average", 0.1, "reindex") == "random@avg0.1/reindex"
    assert rival("fastv", "kept", 0.1, "keep") == "random-layer@kept0.1"
    assert rival("random", "average", 0.1, "keep") is None
    assert rival("random-layer", "average", 0.1, "keep") == "random@avg0.1"
    assert rival("unpruned") is None


def test_positions_that_change_nothing_are_told():
    found, reasons = names(["fastv"], [0.5], "kept", ["keep", "reindex"])
    assert "fastv@kept0.5" in found and "fastv@kept0.5/reindex" not in found
    assert "positions always stay" in reasons["fastv@kept0.5/reindex"]
    assert "random@avg0.5/reindex" in found


def test_expressions():
    assert parse_methods("tfps, fastv,tfps + fastv") == (["tfps", "fastv", "tfps+fastv"], {})
    with pytest.raises(PruneError, match="Did you mean 'fastv'"):
        parse_methods("fastvv")
    with pytest.raises(PruneError, match="each once"):
        parse_methods("tfps,tfps")
    with pytest.raises(PruneError, match="lacks a method"):
        parse_methods("tfps+")
    with pytest.raises(PruneError, match="only the first"):
        parse_methods("fastv+tfps")


def test_all_leaves_out_helpers_and_tells_what_is_broken(monkeypatch):
    some = {name: registry._METHODS[name] for name in ("tfps", "fastv", "tfps-released")}
    monkeypatch.setattr(registry, "_METHODS", {**some, "broken": "no.such:Thing"})
    found, reasons = parse_methods("all,tfps+fastv")
    assert found == ["fastv", "tfps", "tfps+fastv"]
    assert list(reasons) == ["broken"] and "cannot load" in reasons["broken"]


def test_mistakes():
    with pytest.raises(PruneError, match=r"retention 0\.0 is not in"):
        make_contenders(["tfps"], [0.0])
    with pytest.raises(PruneError, match="give each once"):
        make_contenders(["tfps"], [0.1, 0.1])
    with pytest.raises(PruneError, match="Did you mean 'kept'"):
        make_contenders(["tfps"], [0.1], "keptt")
    with pytest.raises(PruneError, match="Did you mean 'reindex'"):
        parse_positions("keep,reindx")
    with pytest.raises(PruneError, match="once"):
        parse_positions("keep,keep")


def test_what_cannot_be_is_found_before_anything_runs(model):
    rows, _ = make_contenders(["tfps", "fastv"], [0.25, 0.05])
    able, reasons = examine(rows, model)
    assert list(reasons) == ["fastv@avg0.05"]
    assert "keeps at least 113.25" in reasons["fastv@avg0.05"]
    assert len(able) == len(rows) - 1
    _, reasons = examine([Contender("fastv", "kept", 0.1, "keep", 9)], model)
    assert "layer 9" in reasons["fastv@kept0.1"]


def test_random_stages_are_drawn_by_scene(model):
    pruned = Contender("random+fastv", "average", 0.2, "keep").prune(model, 3, ["test/0"])
    assert pruned.cutter.stages[0].method == FreshRandom(3, ("test/0",))
    layer = Contender("random-layer", "kept", 0.2, "keep", 2).prune(model, 3, ["test/0"])
    method = layer.cutter.stages[0].method
    assert (method.name, method.layer, method.selector) == ("random-layer", 2, FreshRandom(3, ("test/0",)))
    assert Contender("random+fastv", "average", 0.2, "keep").draws
    assert not Contender("tfps", "average", 0.2, "keep").draws
