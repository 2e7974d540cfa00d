"""What a user asks for becomes stages, or one clear error."""

from pathlib import Path

import pytest
import torch

from prune2drive.allocators import LayerAveraged, Rates, Total, Uniform
from prune2drive.allocators.average import AveragedStage
from prune2drive.engine.stages import USUAL_DEPTH, resolve_stages
from prune2drive.errors import PruneError
from prune2drive.layer_pruners import TFPSLayer
from prune2drive.layer_pruners.attention_rank import AttentionRank
from prune2drive.rig import NUSCENES
from prune2drive.schedules.duet import Duet
from prune2drive.schedules.pyramiddrop import PyramidDrop
from prune2drive.selectors.duet import DuetSelect
from prune2drive.selectors.tfps import TFPS
from prune2drive.tokens import View


def test_one_method():
    (stage,) = resolve_stages("tfps", 0.1)
    assert stage.method == TFPS()
    assert stage.allocator == Uniform(0.1)
    (stage,) = resolve_stages(TFPSLayer(layer=3), {"CAM_FRONT": 0.5, "*": 0.1})
    assert stage.method == TFPSLayer(layer=3)
    assert isinstance(stage.allocator, Rates)


def test_several_methods_in_order():
    stages = resolve_stages(["tfps", TFPSLayer(layer=2)], [0.5, 0.25])
    assert [type(s.method) for s in stages] == [TFPS, TFPSLayer]
    assert [s.allocator for s in stages] == [Uniform(0.5), Uniform(0.25)]
    assert len(resolve_stages(["tfps"], [0.5])) == 1
    assert len(resolve_stages((TFPSLayer(layer=1), TFPSLayer(layer=2)), (0.5, Uniform(0.2)))) == 2


@pytest.mark.parametrize(
    ("method", "retention", "words"),
    [
        ("tfps", None, "retention=0.10 keeps 10%"),
        ([], [], "no method given"),
        (["tfps", "tfps-layer"], 0.1, "2 methods need a list of 2 retentions"),
        (["tfps", "tfps-layer"], [0.1], "2 methods need a list of 2 retentions"),
        (["tfps", "tfps-layer"], "ab", "2 methods need a list of 2 retentions"),
        (["tfps-layer", "tfps"], [0.5, 0.1], "only the first method may choose before"),
        (["tfps", "random"], [0.5, 0.1], "only the first method may choose before"),
        ("tpfs", 0.1, "unknown method 'tpfs'.*tfps"),
        (TFPS, 0.1, r"is a class; pass an object: TFPS\(\)"),
        (3, 0.1, "not a name, a Selector, a LayerPruner or a Schedule"),
        ("tfps", 10, "for 10% write 0.10"),
        ("tfps", 0, r"not in \(0, 1\]"),
        (["tfps", "tfps-layer"], [0.5, 2.0], "for 2% write 0.02"),
        ("pyramiddrop", None, "retention=0.10 keeps 10%"),
        ("pyramiddrop", 10, "for 10% write 0.10"),
        ("pyramiddrop", True, "retention True is not a number"),
        (
            "pyramiddrop",
            {"*": 0.5},
            r"works in 3 stages: give one number.*list of one.*not \{'\*': 0.5\}",
        ),
        ("pyramiddrop", "a.json", "works in 3 stages: give one number.*not 'a.json'"),
        ("pyramiddrop", Path("a.json"), "works in 3 stages: give one number"),
        ("pyramiddrop", Uniform(0.5), "works in 3 stages: give one number"),
        ("pyramiddrop", Total(50), "works in 3 stages: give one number"),
        ("pyramiddrop", [0.5], r"3 methods need a list of 3 retentions, got \[0.5\]"),
        ("pyramiddrop", [0.5] * 4, "3 methods need a list of 3 retentions"),
        (["pyramiddrop"], [0.5], "3 methods need a list of 3 retentions"),
        (PyramidDrop, 0.5, r"is a class; pass an object: PyramidDrop\(\)"),
        (["tfps", "pyramiddrop"], 0.5, r"pyramiddrop has stages of its own.*PyramidDrop\(\).stages\(depth\)"),
        (
            ["pyramiddrop", "tfps-layer"],
            LayerAveraged(0.5),
            "has stages of its own; use it alone",
        ),
        (["tfps", "tfps-layer"], [LayerAveraged(0.5), 0.1], "asked of all stages at once"),
        (["tfps-layer", "tfps"], LayerAveraged(0.5), "only the first method may choose before"),
    ],
)
def test_what_cannot_work(method, retention, words):
    with pytest.raises(PruneError, match=words):
        resolve_stages(method, retention)


def views(n=40):
    zeros = torch.zeros(n, dtype=torch.long)
    return [View(name, torch.arange(n), torch.zeros(n, 4), zeros, zeros) for name in NUSCENES.names]


def seen(stages, depth):
    """Tokens that a layer sees on average, layer by layer, of six views of 40."""
    at = {getattr(s.method, "layer", 0): sum(s.allocator.allocate(views(), NUSCENES)) for s in stages}
    layers, now = [], 240
    for layer in range(depth):
        now = at.get(layer, now)
        layers.append(now)
    return sum(layers) / depth


def test_a_schedule_takes_one_number_as_the_average_over_the_layers():
    stages = resolve_stages("pyramiddrop", 0.4, depth=32)
    assert [s.method for s in stages] == [AttentionRank(layer, rows="last") for layer in (8, 16, 24)]
    assert all(isinstance(s.allocator, AveragedStage) for s in stages)
    assert [s.allocator.stage for s in stages] == [0, 1, 2]
    assert 0.4 * 240 - 8 / 32 < seen(stages, 32) <= 0.4 * 240
    again = resolve_stages("pyramiddrop", LayerAveraged(0.4), depth=32)
    assert [s.allocator.plan.asked for s in again] == [LayerAveraged(0.4)] * 3
    assert seen(again, 32) == seen(stages, 32)
    assert [s.method for s in resolve_stages(PyramidDrop(), 1, depth=32)] == [s.method for s in stages]
    assert seen(resolve_stages(["pyramiddrop"], 1, depth=32), 32) == 240


def test_a_schedule_scales_with_the_depth_of_the_model():
    assert [s.method.layer for s in resolve_stages("pyramiddrop", 0.5, depth=8)] == [2, 4, 6]
    assert [s.method.layer for s in resolve_stages("pyramiddrop", 0.5)] == [
        s.method.layer for s in resolve_stages("pyramiddrop", 0.5, USUAL_DEPTH)
    ]
    with pytest.raises(PruneError, match="do not fit a language model of 2 layers"):
        resolve_stages("pyramiddrop", 0.5, depth=2)


def test_a_schedule_takes_a_list_of_one_retention_per_stage():
    stages = resolve_stages("duet", [0.5, {"CAM_FRONT": 0.4, "*": 0.1}, Total(12)], depth=12)
    assert [type(s.method) for s in stages] == [DuetSelect, AttentionRank, AttentionRank]
    assert [s.method.layer for s in stages[1:]] == [6, 9]
    assert stages[0].allocator == Uniform(0.5)
    assert isinstance(stages[1].allocator, Rates)
    assert stages[2].allocator == Total(12)
    assert len(resolve_stages(Duet(), (0.5, 0.2, 0.1), depth=12)) == 3


def test_methods_in_a_row_share_a_layer_averaged_budget():
    stages = resolve_stages(["tfps", TFPSLayer(layer=2), TFPSLayer(layer=5)], LayerAveraged(0.3), depth=8)
    plan = stages[0].allocator.plan
    assert plan.starts == (0, 2, 5) and plan.depth == 8
    assert plan.name == "tfps + tfps-layer + tfps-layer"
    assert 0.3 * 240 - 3 / 8 < seen(stages, 8) <= 0.3 * 240
    first, second, third = plan.totals(240, 6)
    # Each keeps the same share of what the one before left, but for whole tokens and what they left over.
    assert second / first == pytest.approx(first / 240, abs=0.02)
    assert third / second == pytest.approx(first / 240, abs=0.05)


def test_one_method_takes_a_layer_averaged_budget():
    (before,) = resolve_stages("tfps", LayerAveraged(tokens=60), depth=8)
    assert before.allocator.allocate(views(), NUSCENES) == [10] * 6
    # Two layers of 240 and six of 60 are 105 on average.
    (inside,) = resolve_stages(TFPSLayer(layer=2), LayerAveraged(tokens=105), depth=8)
    assert inside.allocator.allocate(views(), NUSCENES) == [10] * 6
    with pytest.raises(PruneError, match=r"tfps-layer: 60 tokens on average asked.*layers before 2 see all"):
        resolve_stages(TFPSLayer(layer=2), LayerAveraged(tokens=60), depth=8)[0].allocator.allocate(
            views(), NUSCENES
        )


def test_equal_plans_are_equal_so_that_one_answer_serves_all_views():
    def plans(retention):
        return [s.allocator.plan for s in resolve_stages(["tfps", "tfps-layer"], LayerAveraged(retention))]

    assert plans(0.3) == plans(0.3)
    assert hash(plans(0.3)[0]) == hash(plans(0.3)[1])
    assert plans(0.3) != plans(0.2)
