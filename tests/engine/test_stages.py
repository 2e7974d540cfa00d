"""What a user asks for becomes stages, or one clear error."""

import pytest

from prune2drive.allocators import Rates, Uniform
from prune2drive.engine.stages import resolve_stages
from prune2drive.errors import PruneError
from prune2drive.layer_pruners import TFPSLayer
from prune2drive.selectors.tfps import TFPS


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
        (3, 0.1, "not a name, a Selector or a LayerPruner"),
        ("tfps", 10, "for 10% write 0.10"),
        ("tfps", 0, r"not in \(0, 1\]"),
        (["tfps", "tfps-layer"], [0.5, 2.0], "for 2% write 0.02"),
    ],
)
def test_what_cannot_work(method, retention, words):
    with pytest.raises(PruneError, match=words):
        resolve_stages(method, retention)
