"""Any selector inside the language model."""

import pytest
import torch

import prune2drive as p2d
from families_table import BY_NAME
from prune2drive.errors import PruneError
from prune2drive.layer_pruners import TFPSLayer
from prune2drive.layer_pruners.selector_at import SelectorAt
from prune2drive.selectors import TFPS, Random

LLAVA = BY_NAME["llava"]


def kept(model, inputs, method):
    with torch.no_grad(), p2d.prune(model, method, 0.25) as pruned:
        logits = model(**inputs).logits[:, -1]
    return logits, [{k: cell.indices for k, cell in row.items()} for row in pruned.record.samples]


def test_tfps_at_a_layer_is_tfps_layer():
    model, inputs = LLAVA.model(), LLAVA.inputs([2])
    (logits, picks), (want, same) = (
        kept(model, inputs, method) for method in (SelectorAt(TFPS(), 2), TFPSLayer(layer=2))
    )
    assert picks == same
    assert torch.equal(logits, want)


@pytest.mark.parametrize("name", ["random", "stratified", "stride"])
def test_controls_choose_the_same_tokens_everywhere(name):
    model, inputs = LLAVA.model(), LLAVA.inputs([2])
    before, inside = kept(model, inputs, name), kept(model, inputs, f"{name}-layer")
    assert before[1] == inside[1]
    assert not torch.equal(before[0], inside[0])  # layer 0 has seen the others


def test_rounding_is_the_selectors():
    assert SelectorAt(TFPS(compat="released")).rounding == "truncate"
    assert SelectorAt(Random()).rounding == "half-up"


@pytest.mark.parametrize("layer", [0, -1, True, 1.0])
def test_wrong_layers(layer):
    with pytest.raises(PruneError, match="layer 1 or later"):
        SelectorAt(Random(), layer)


def test_something_else():
    with pytest.raises(PruneError, match="is no Selector"):
        SelectorAt("random")
