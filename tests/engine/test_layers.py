"""Stages inside the language model against the masking oracle with per-layer masks, for every family."""

from __future__ import annotations

import pytest
import torch
from contract_helpers import (
    batches,
    close,
    compare_forward,
    compare_generate,
    families,
    fingerprint,
    forward,
    gather_live,
    half_up,
    image_id,
    is_right,
    kernels,
    method_of,
    prompt,
    shared_model,
    some,
    stages_of,
)
from transformers import DynamicCache, StaticCache

import oracle
import prune2drive as p2d

# name: (layers of the stages, 0 before the language model; shares of the original tokens)
PLANS = {
    "at1": ((1,), 0.3),
    "at2": ((2,), 0.3),
    "at1and3": ((1, 3), [0.5, 0.2]),
    "before+2": ((0, 2), [0.5, 0.2]),
    "before+1and3": ((0, 1, 3), [0.6, 0.4, 0.2]),
}
plans = pytest.mark.parametrize("plan", list(PLANS))


def unpack(case, plan, attn="sdpa"):
    """Model, method, retention and oracle layers; windows only open where the sequence is cut before."""
    layers, retention = PLANS[plan]
    before = layers[0] == 0
    model = shared_model(case, attn, wide=before)
    return model, {
        "method": method_of(*[layer for layer in layers if layer], before=before),
        "retention": retention,
        "layers": layers,
    }


@families
@plans
@batches
def test_forward(case, plan, batch):
    model, stages = unpack(case, plan)
    record = compare_forward(case, model, prompt(case, batch), is_right(batch), **stages)
    rates = stages["retention"] if isinstance(stages["retention"], list) else [stages["retention"]]
    for number, rate in enumerate(rates):
        for row in record.stage(number):
            for cell in row.values():
                assert cell.kept == len(cell.indices) == half_up(cell.before, rate)
    for early, late in zip(range(len(rates)), range(1, len(rates)), strict=False):
        for a, b in zip(record.stage(early), record.stage(late), strict=True):
            assert all(set(b[name].indices) <= set(a[name].indices) for name in a)


@families
@pytest.mark.parametrize("plan", ["at1and3", "before+2"])
@batches
def test_forward_eager(case, plan, batch):
    model, stages = unpack(case, plan, "eager")
    compare_forward(case, model, prompt(case, batch), is_right(batch), **stages)


@families
@plans
def test_greedy(case, plan):
    model, stages = unpack(case, plan)
    compare_generate(case, model, prompt(case, "left"), {}, **stages)


@families
@kernels
@pytest.mark.parametrize("plan", ["at2", "at1and3"])
def test_greedy_of_one_sample(case, plan, attn):
    """Unpadded: masks may be missing altogether. Long enough for a sliding window to move on."""
    model, stages = unpack(case, plan, attn)
    compare_generate(
        case, model, prompt(case, "one"), {"max_new_tokens": 20 if case.sliding else 6}, **stages
    )


@families
@pytest.mark.parametrize("plan", ["at1and3", "before+2"])
def test_beams(case, plan):
    model, stages = unpack(case, plan)
    compare_generate(case, model, prompt(case, "left"), {"num_beams": 3, "num_return_sequences": 2}, **stages)


@families
def test_sampling(case):
    model, stages = unpack(case, "at1")
    settings = {"do_sample": True, "num_return_sequences": 3, "temperature": 0.7}
    compare_generate(case, model, prompt(case, "left"), settings, **stages)


@families
@pytest.mark.parametrize("plan", ["at1", "at1and3", "before+2"])
@pytest.mark.parametrize("batch", ["one", "left"])
def test_logits_of_every_step(case, plan, batch):
    model, stages = unpack(case, plan)
    inputs = prompt(case, batch)
    settings = {
        "max_new_tokens": 6,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    with p2d.prune(model, stages["method"], stages["retention"]) as pruned:
        got = model.generate(**inputs, **settings)
        record = pruned.record
        bare = model.generate(**inputs, **settings, use_cache=False)
    with oracle.masked(model, stages_of(inputs, record, image_id(case), *stages["layers"])):
        expected = model.generate(**inputs, **settings)
    close(torch.stack(got.logits), torch.stack(expected.logits), what="step logits")
    close(torch.stack(bare.logits), torch.stack(expected.logits), what="step logits without cache")
    assert got.sequences.equal(expected.sequences)
    assert bare.sequences.equal(expected.sequences)


@families
@plans
def test_every_layer_caches_what_it_saw(case, plan):
    model, stages = unpack(case, plan)
    inputs = prompt(case, "left")
    with p2d.prune(model, stages["method"], stages["retention"]) as pruned, torch.no_grad():
        out = model(**inputs, use_cache=True)
    cuts = stages_of(inputs, pruned.record, image_id(case), *stages["layers"])
    windows = [getattr(layer, "sliding_window", None) for layer in out.past_key_values.layers]
    for number, (layer, window) in enumerate(zip(out.past_key_values.layers, windows, strict=True)):
        gone = [cut for first, cut in cuts if first <= number]
        width = inputs["input_ids"].shape[1]
        if gone:
            width = max(len(columns) for columns in oracle.live_columns(inputs, gone[-1]))
        if window is not None:
            width = min(width, window - 1)
        assert layer.keys.shape[-2] == width, f"layer {number}"


@families
def test_a_decode_loop_of_ones_own(case):
    """Below the first stage caches are full, so the default positions of stock calls are right."""
    _, stages = unpack(case, "at2")
    model = case.model(attn="sdpa")  # fresh: the Qwen models remember offsets of an earlier call
    inputs = prompt(case, "one")
    settings = {"max_new_tokens": 5, "do_sample": False, "output_logits": True}
    with p2d.prune(model, stages["method"], stages["retention"]), torch.no_grad():
        out = model(**inputs, use_cache=True)
        got = []
        for _ in range(5):
            got.append(out.logits[:, -1])
            token = got[-1].argmax(-1, keepdim=True)
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        expected = model.generate(**inputs, **settings, return_dict_in_generate=True).logits
    close(torch.stack(got), torch.stack(expected), what="step logits")


@families
def test_static_cache_is_refused(case):
    model, stages = unpack(case, "at1")
    inputs = prompt(case, "one")
    full = forward(model, inputs)  # the first call of a stock model installs hooks of its own
    before = fingerprint(model)
    with p2d.prune(model, stages["method"], stages["retention"]):
        with pytest.raises(p2d.PruneError, match=r"static.*(dynamic|before the language model)"):
            model.generate(**inputs, cache_implementation="static", max_new_tokens=2)
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=1024)
        with pytest.raises(p2d.PruneError, match=r"static.*(dynamic|before the language model)"):
            model.generate(**inputs, past_key_values=cache, max_new_tokens=2)
        assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1
    assert fingerprint(model) == before
    assert forward(model, inputs).equal(full)


@families
def test_a_cache_of_ones_own(case):
    model, stages = unpack(case, "at2")
    inputs = prompt(case, "left")
    with p2d.prune(model, stages["method"], stages["retention"]):
        plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        cache = DynamicCache(config=model.config.get_text_config())
        given = model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert given.equal(plain)


@families
@plans
@pytest.mark.parametrize("batch", ["left", "right"])
def test_training(case, plan, batch):
    """Loss over the answer, which is all text behind the pictures, and every gradient."""
    model, stages = unpack(case, plan)
    inputs = prompt(case, batch)
    token = image_id(case)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        # The column behind the last picture is fed, not asked for: its input may have been dropped.
        behind = max(c for c, t in enumerate(ids) if t == token) + 2
        labels[row, behind:] = inputs["input_ids"][row, behind:]
    labels[inputs["attention_mask"] == 0] = -100
    model.zero_grad()
    with p2d.prune(model, stages["method"], stages["retention"]) as pruned:
        out = model(**inputs, labels=labels)
        out.loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    cuts = stages_of(inputs, pruned.record, token, *stages["layers"])
    live = oracle.live_columns(inputs, cuts[-1][1])
    with oracle.masked(model, cuts):
        logits = model(**inputs).logits
    shifted = torch.cat([logits[r, c[:-1]] for r, c in enumerate(live)])
    wanted = torch.cat([labels[r, c[1:]] for r, c in enumerate(live)])
    loss = torch.nn.functional.cross_entropy(shifted, wanted)
    loss.backward()
    close(out.loss.detach(), loss.detach(), 1e-5, "loss")
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for name, grad in expected.items():
        scale = float(grad.abs().max())
        if scale > 1e-6:
            close(got[name] / scale, grad / scale, 1e-3, "gradient")


@some("llava", "internvl", "qwen3_vl", "gemma3")
def test_logits_with_labels_keep_their_columns(case):
    """With labels and only layer stages the output has the caller's length, each logit in its column."""
    model, stages = unpack(case, "at1")
    inputs = prompt(case, "left")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == image_id(case), -100)
    with p2d.prune(model, stages["method"], stages["retention"]) as pruned:
        got = forward(model, inputs, labels=labels)
    cuts = stages_of(inputs, pruned.record, image_id(case), *stages["layers"])
    with oracle.masked(model, cuts):
        expected = forward(model, inputs)
    live = oracle.live_columns(inputs, cuts[-1][1])
    assert got.shape == expected.shape
    close(gather_live(got, live), gather_live(expected, live), what="logits")


@some("llava", "internvl", "qwen2_5_vl", "gemma3", "paligemma")
def test_labels_right_behind_a_dropped_token(case):
    """Such a label is asked of the last surviving token, as when the cut is before the language model."""
    model, stages = unpack(case, "at1")
    inputs, token = prompt(case, "one"), image_id(case)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == token, -100)
    with p2d.prune(model, stages["method"], stages["retention"]) as pruned, torch.no_grad():
        loss = model(**inputs, labels=labels).loss
    cuts = stages_of(inputs, pruned.record, token, *stages["layers"])
    live = oracle.live_columns(inputs, cuts[-1][1])
    with oracle.masked(model, cuts):
        logits = forward(model, inputs)
    shifted = torch.cat([logits[r, c[:-1]] for r, c in enumerate(live)])
    wanted = torch.cat([labels[r, c[1:]] for r, c in enumerate(live)])
    close(loss, torch.nn.functional.cross_entropy(shifted, wanted), 1e-5, "loss")


@some("qwen3_vl")
@batches
def test_deepstack_below_and_at_the_stage(case, batch):
    """Layer 1 cuts between the two additions of vision features."""
    assert case.deepstack_layers == 2
    model, stages = unpack(case, "at1")
    inputs = prompt(case, batch)
    compare_forward(case, model, inputs, is_right(batch), **stages)
    if batch != "right":
        compare_generate(case, model, inputs, {"num_beams": 2}, **stages)


@some("llava", "qwen2_5_vl", "gemma3", "idefics3")
def test_a_text_only_row(case):
    model, stages = unpack(case, "at1and3")
    record = compare_forward(case, model, case.inputs([2, 0]), False, **stages)
    assert record.samples[1] == {}


@some("llava", "internvl")
def test_a_growing_budget_is_refused(case):
    with (
        p2d.prune(shared_model(case), method_of(1, before=True), [0.2, 0.5]),
        pytest.raises(p2d.PruneError, match=r"asked for .* left"),
    ):
        forward(shared_model(case), prompt(case, "one"))


@some("llava")
@pytest.mark.parametrize("layers", [(3, 1), (1, 1), (9,)])
def test_impossible_layers_are_refused(case, layers):
    with pytest.raises(p2d.PruneError, match=r"layer"):
        p2d.prune(
            shared_model(case), method_of(*layers), [0.5, 0.2][: len(layers)] if len(layers) > 1 else 0.5
        )
