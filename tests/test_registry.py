"""The registry: names resolve lazily, unknown ones answer with the nearest."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from prune2drive import registry
from prune2drive.errors import PruneError
from prune2drive.layer_pruners import TFPSLayer
from prune2drive.registry import list_methods, register_method, resolve_method, resolve_single
from prune2drive.schedules.base import Schedule
from prune2drive.schedules.pyramiddrop import PyramidDrop
from prune2drive.selectors import TFPS, Random, Selector, Stratified, Stride


@dataclass(frozen=True)
class Mine(Selector):
    name = "mine"

    def select(self, tokens, counts):
        raise NotImplementedError


class NoMethod:
    pass


@pytest.fixture(autouse=True)
def _own_table(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def test_names_resolve_to_defaults():
    assert resolve_method("tfps") == TFPS()
    assert resolve_method("random") == Random()
    assert resolve_method("stratified") == Stratified()
    assert resolve_method("stride") == Stride()


def test_every_name_resolves_to_a_method_of_that_name():
    for name in list_methods():
        assert resolve_method(name).name == name


def test_objects_pass_through():
    method = Random(seed=5)
    assert resolve_method(method) is method


def test_list_methods_is_sorted_and_imports_no_method():
    assert list_methods() == sorted(list_methods())
    assert {"tfps", "random", "stratified", "stride", "tfps-layer"} <= set(list_methods())
    register_method("absent", "no_such_module:X")
    assert "absent" in list_methods()


def test_register_method():
    register_method("mine", f"{__name__}:Mine")
    register_method("mine", f"{__name__}:Mine")  # twice the same is not a conflict
    assert resolve_method("mine") == Mine()
    assert "mine" in list_methods()
    with pytest.raises(PruneError, match=r"'mine' already means .*:Mine"):
        register_method("mine", "elsewhere:Other")
    with pytest.raises(PruneError, match="'tfps' already means"):
        register_method("tfps", "elsewhere:Other")
    with pytest.raises(PruneError, match=r"package\.module:Class"):
        register_method("other", "elsewhere.Other")


def test_entry_points_add_methods_but_do_not_replace_ours(monkeypatch):
    def points(group):
        assert group == "prune2drive.methods"
        return [EntryPoint("mine", f"{__name__}:Mine", group), EntryPoint("random", "evil:Random", group)]

    monkeypatch.setattr(registry, "entry_points", points)
    assert resolve_method("mine") == Mine()
    assert resolve_method("random") == Random()
    assert list_methods().count("random") == 1


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("tpfs", "unknown method 'tpfs'. Did you mean 'tfps'"),
        (Random, r"Random is a class; pass an object: Random\(\)"),
        (3, "method 3 is not a name"),
        (None, "method None"),
        ("gone", "'gone': cannot load no_such_module:X"),
        ("moved", "'moved': cannot load .*:Moved"),
        ("wrong", "'wrong'.*neither a Selector nor a LayerPruner"),
    ],
)
def test_errors(method, words):
    register_method("gone", "no_such_module:X")
    register_method("moved", f"{__name__}:Moved")
    register_method("wrong", f"{__name__}:NoMethod")
    with pytest.raises(PruneError, match=words):
        resolve_method(method)


def test_a_place_for_one_stage_takes_what_has_one():
    assert resolve_single("tfps", "the place") == TFPS()
    assert resolve_single("tfps-layer", "the place") == TFPSLayer()
    method = Random(seed=5)
    assert resolve_single(method, "the place") is method


@pytest.mark.parametrize("method", ["pyramiddrop", PyramidDrop(layers=(1, 2))])
def test_a_place_for_one_stage_refuses_a_schedule_and_says_where_to_go(method):
    with pytest.raises(
        PruneError,
        match="pyramiddrop works in several stages, the place takes a method of one; prune2drive compare",
    ):
        resolve_single(method, "the place")


def test_every_schedule_is_refused_where_one_stage_is_wanted():
    for name in list_methods():
        if isinstance(resolve_method(name), Schedule):
            with pytest.raises(PruneError, match=f"{name} works in several stages"):
                resolve_single(name, "the place")
        else:
            assert resolve_single(name, "the place").name == name


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("tpfs", "unknown method 'tpfs'. Did you mean 'tfps'"),
        (PyramidDrop, r"PyramidDrop is a class; pass an object: PyramidDrop\(\)"),
        (3, "method 3 is not a name"),
    ],
)
def test_a_place_for_one_stage_has_the_errors_of_all(method, words):
    with pytest.raises(PruneError, match=words):
        resolve_single(method, "the place")
