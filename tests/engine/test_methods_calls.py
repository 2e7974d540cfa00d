"""Methods in calls out of the ordinary: guidance, autocast, training, emptied cameras, failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from contract_helpers import close, forward, prompt, same, shared_model

import prune2drive as p2d
from families_table import BY_NAME
from prune2drive.layer_pruners import DART, PACT, FastV, SelectorAt, TFPSLayer
from prune2drive.layer_pruners.base import LayerPruner
from prune2drive.selectors import DivPrune
from prune2drive.selectors.base import Selector
from prune2drive.tokens import Selection, Signal

LLAVA = BY_NAME["llava"]


@pytest.mark.parametrize("method", ["tfps", "tfps-layer", "fastv"])
@pytest.mark.parametrize("length", [1, 300])
@pytest.mark.parametrize("positions", ["keep", "calibrate"])
def test_guidance_reads_its_own_prompt_untouched(method, length, positions):
    """Classifier-free guidance: scores are the weighted sum of pruned prompt and whole negative prompt."""
    model, inputs = shared_model(LLAVA), prompt(LLAVA, "one")
    negative = torch.randint(5, 60, (1, length), generator=torch.Generator().manual_seed(0))
    settings = {
        "max_new_tokens": 1,
        "do_sample": False,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    with p2d.prune(model, method, 0.3, positions=positions):
        plain = model.generate(**inputs, **settings).scores[0]
        guided = model.generate(
            **inputs, **settings, guidance_scale=1.5, negative_prompt_ids=negative
        ).scores[0]
    with torch.no_grad():
        other = model(input_ids=negative).logits[:, -1].log_softmax(-1)
    close(guided, 1.5 * (plain.log_softmax(-1) - other) + other, 1e-4)


@pytest.mark.parametrize(
    "method", ["fastv", "attention-rank", "sparsevlm", "sparsevlm-v2", "dart", "pact", "mvpruner"]
)
@pytest.mark.parametrize("positions", ["keep", "calibrate"])
def test_autocast(method, positions):
    """Under autocast attention rows stay float32, and the call runs."""
    from methods_table import METHODS

    case = next(m for m in METHODS if m.name == method)
    model, inputs = shared_model(LLAVA), prompt(LLAVA, "left")
    with (
        torch.autocast("cpu", torch.bfloat16),
        p2d.prune(model, case.build(), 0.6, positions=positions) as pruned,
    ):
        logits = forward(model, inputs)
    assert logits.isfinite().all()
    assert pruned.record.tokens[1] < pruned.record.tokens[0]


@pytest.mark.parametrize("method", ["visionzip", "apet-select", "duet-select", "pact", "sparsevlm"])
def test_gradients_pass_through_merging(method):
    """The projector learns: a merged row passes its gradient on to the token in whose place it stands."""
    from methods_table import METHODS

    case = next(m for m in METHODS if m.name == method)
    model = LLAVA.model().train()
    inputs = prompt(LLAVA, "left")
    with p2d.prune(model, case.build(), 0.6):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    gradient = model.model.multi_modal_projector.linear_1.weight.grad
    assert gradient is not None and float(gradient.abs().sum()) > 1e-3


@dataclass(frozen=True)
class Twice(Selector):
    """Keeps the first tokens, each the double of itself."""

    name: ClassVar[str] = "twice"

    def select(self, tokens, counts):
        indices = torch.arange(max(counts)).expand(len(counts), -1).clone()
        for row, k in enumerate(counts):
            indices[row, k:] = -1
        kept = tokens.features[:, : max(counts)]
        return Selection(indices, list(counts), features=2 * kept)


def test_merged_values_do_not_depend_on_gradients():
    model, inputs = LLAVA.model(), prompt(LLAVA, "left")
    with p2d.prune(model, Twice(), 0.3):
        with torch.no_grad():
            without = model(**inputs).logits
        close(model(**inputs).logits.detach(), without, 1e-5)


@pytest.mark.parametrize(
    "later",
    [TFPSLayer(layer=2), SelectorAt(DivPrune(), 2), FastV(layer=2), PACT(layer=2), DART(layer=2)],
    ids=lambda method: method.name,
)
@pytest.mark.parametrize("batch", ["one", "left"])
def test_cameras_that_an_earlier_stage_emptied(later, batch):
    """Ranked together, some cameras keep nothing; what comes behind chooses among the others."""

    @dataclass(frozen=True)
    class FrontOnly(LayerPruner):
        """Keeps tokens of the first camera alone, as far as there are enough."""

        name: ClassVar[str] = "front-only"
        layer: int = 1
        scope: str = "sample"

        def select(self, tokens, counts):
            indices = torch.full((len(counts), max(counts)), -1)
            for row, k in enumerate(counts):
                indices[row, :k] = torch.arange(k)
            return Selection(indices, list(counts))

    model, inputs = shared_model(LLAVA), prompt(LLAVA, batch)
    with p2d.prune(model, [FrontOnly(), later], [0.1, 0.05]) as pruned:
        logits = forward(model, inputs)
    assert logits.isfinite().all()
    for before, after in zip(pruned.record.stage(0), pruned.record.stage(1), strict=True):
        assert [c.kept for c in before.values()][1:] == [0] * (len(before) - 1)
        assert sum(c.kept for c in after.values()) == sum(
            max(1, round(c.before * 0.05)) for c in after.values()
        )


@dataclass(frozen=True)
class Heavy(LayerPruner):
    """Keeps the first tokens, each of the weight of three."""

    name: ClassVar[str] = "heavy"
    proportional: ClassVar[bool] = True
    layer: int = 1

    def select(self, tokens, counts):
        indices = torch.arange(max(counts)).expand(len(counts), -1)
        return Selection(indices, list(counts), sizes=torch.full(indices.shape, 3.0))


def test_weights_count_without_merged_features():
    model, inputs = shared_model(LLAVA), prompt(LLAVA, "one")
    with p2d.prune(model, Heavy(), 0.3):
        heavy = forward(model, inputs)

    @dataclass(frozen=True)
    class Light(Heavy):
        def select(self, tokens, counts):
            chosen = super().select(tokens, counts)
            return Selection(chosen.indices, chosen.counts)

    with p2d.prune(model, Light(), 0.3):
        light = forward(model, inputs)
    assert float((heavy - light).abs().max()) > 1e-2


def test_a_failed_prefill_leaves_nothing_behind():
    model, inputs = shared_model(LLAVA), prompt(LLAVA, "one")

    def fail(*_):
        raise RuntimeError("on purpose")

    with p2d.prune(model, FastV(layer=2), 0.3) as pruned:
        good = forward(model, inputs)
        handle = model.base_model.language_model.layers[2].mlp.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            forward(model, inputs)
        handle.remove()
        assert pruned._layers is not None
        assert pruned._layers.signals.current is None and pruned._layers.run is None
        assert same(forward(model, inputs), good)


def test_layer_zero_is_refused():
    @dataclass(frozen=True)
    class First(Heavy):
        layer: int = 0

    with pytest.raises(p2d.PruneError, match="layer 1 or later"):
        p2d.prune(shared_model(LLAVA), First(), 0.3)


def test_signals_are_those_declared_and_no_others():
    @dataclass(frozen=True)
    class Nosy(LayerPruner):
        name: ClassVar[str] = "nosy"
        needs: ClassVar[frozenset[Signal]] = frozenset({Signal.PREVIOUS})
        layer: int = 1

        def select(self, tokens, counts):
            given = tokens.signals
            assert given.previous is not None
            assert given.text is None and given.text_mask is None and given.attention is None
            indices = torch.arange(max(counts)).expand(len(counts), -1)
            return Selection(indices, list(counts))

    with p2d.prune(shared_model(LLAVA), Nosy(), 0.3):
        forward(shared_model(LLAVA), prompt(LLAVA, "one"))


@pytest.mark.parametrize("method", ["fastv", "cdpruner"])
def test_a_prompt_without_text(method):
    """Pictures alone: a method that reads the question says so."""
    model, inputs = shared_model(LLAVA), prompt(LLAVA, "one")
    token = LLAVA.image_token_id(model)
    visual = inputs["input_ids"] == token
    bare = {**inputs, "input_ids": inputs["input_ids"][visual][None]}
    bare["attention_mask"] = torch.ones_like(bare["input_ids"])
    with p2d.prune(model, method, 0.3), pytest.raises(p2d.PruneError, match="reads the prompt's text"):
        forward(model, bare)


def test_changing_the_kernel_inside_the_context():
    """A watched layer follows the model to another attention implementation."""
    model, inputs = LLAVA.model(attn="eager"), prompt(LLAVA, "left")
    with p2d.prune(model, FastV(layer=2), 0.3):
        before = forward(model, inputs)
        model.set_attn_implementation("sdpa")
        after = forward(model, inputs)
    real = inputs["attention_mask"].bool()
    assert before.shape == after.shape
    close(after[real[:, -after.shape[1] :]], before[real[:, -before.shape[1] :]], 1e-4)
