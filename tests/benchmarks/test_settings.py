"""What is compared, and under which name."""

import pytest

from prune2drive.benchmarks.settings import FreshRandom, make_settings
from prune2drive.errors import PruneError


def test_every_method_at_every_place_and_rate():
    names = [s.name for s in make_settings(["tfps", "random"], [0.5, 0.1], ["before", "layer2"])]
    assert names == [
        *("unpruned", "blind", "guess"),
        *("tfps@0.5", "tfps@0.1", "tfps-layer2@0.5", "tfps-layer2@0.1"),
        *("random@0.5", "random@0.1", "random-layer2@0.5", "random-layer2@0.1"),
    ]


def test_layer_pruners_keep_their_own_layer():
    (setting,) = make_settings(["tfps-released"], [0.1], ["before", "layer3"])[3:]
    assert (setting.where, setting.name) == ("layer1", "tfps-released-layer1@0.1")


def test_methods_are_made_for_their_place(model):
    _, _, _, before, inside = make_settings(["random"], [0.1], ["before", "layer2"])
    assert (
        before.draws
        and inside.draws
        and not any(s.draws for s in make_settings(["stride"], [0.1], ["before"]))
    )
    assert before.prune(model, 4, ["a", "b"]).cutter.stages[0].method == FreshRandom(4, ("a", "b"))
    method = inside.prune(model, seed=4).cutter.stages[0].method
    assert (method.layer, method.selector.seed) == (2, 4)
    (named,) = make_settings(["random-layer"], [0.1], ["before"])[3:]
    assert named.draws
    method = named.prune(model, 4, ["a"]).cutter.stages[0].method
    assert (method.layer, method.selector) == (1, FreshRandom(4, ("a",)))
    with pytest.raises(PruneError, match="layer 8 asked, the language model has layers 0 to 7"):
        make_settings(["stride"], [0.1], ["layer8"])[3].prune(model)


def test_random_is_drawn_anew_for_every_scene():
    one, other = (FreshRandom(0, ("test/1", "test/2")).seed_of(n) for n in (0, 1))
    assert one != other
    assert FreshRandom(0, ("test/2",)).seed_of(0) == other  # wherever the scene stands
    assert FreshRandom(1, ("test/2",)).seed_of(0) != other


@pytest.mark.parametrize(
    ("methods", "rates", "places", "words"),
    [
        (["tpfs"], [0.1], ["before"], "Did you mean 'tfps'"),
        (
            ["pyramiddrop"],
            [0.1],
            ["before"],
            "several stages, evaluate takes .* prune2drive compare",
        ),
        (["tfps"], [0.0], ["before"], r"retention 0.0 is not in \(0, 1\]"),
        (["tfps"], [float("nan")], ["before"], r"nan is not in \(0, 1\]"),
        (["tfps"], [0.1], ["layer0"], "'layer0' is no place"),
        (["tfps"], [0.1], ["after"], "'after' is no place"),
        (["tfps"], [0.1, 0.10000001], ["before"], "stands for several"),
    ],
)
def test_mistakes(methods, rates, places, words):
    with pytest.raises(PruneError, match=words):
        make_settings(methods, rates, places)
