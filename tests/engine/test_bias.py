"""Calibrated positions and weighted keys, against sums over frequencies on the full sequence."""

from __future__ import annotations

import math

import pytest
import torch
from contract_helpers import (
    close,
    families,
    forward,
    gather_live,
    gather_short,
    image_id,
    is_right,
    kernels,
    method_of,
    prompt,
    same,
    shared_model,
    some,
    stages_of,
)
from test_methods_contract import asked, feature_scale, options, sizes_bias, watched, written

import oracle
import prune2drive as p2d
from methods_table import METHODS
from prune2drive.engine.bias import add_bias, distance_gain, key_bias, unit_rope
from prune2drive.families import find_family
from tiny_models import LAYERS

# name: (layers of the stages, 0 before the language model; shares of the original tokens)
PLANS = {"before": ((0,), 0.3), "at2": ((2,), 0.3), "before+2": ((0, 2), [0.5, 0.2])}
plans = pytest.mark.parametrize("plan", list(PLANS))


def positions(case, inputs, generated=0):
    """Positions ``[axis][row][column]`` of prompt and generated columns, and each frequency's axis."""
    token = image_id(case)
    if case.mrope:
        axes = oracle.mrope_positions(inputs, token)
    else:
        axes = [[list(range(len(row))) for row in inputs["input_ids"].tolist()]]
    for row in range(len(axes[0])):
        following = max(max(axis[row]) for axis in axes) + 1
        for axis in axes:
            axis[row] += [following + step for step in range(generated)]
    return axes


def axis_of(case, model, frequencies):
    """Which axis of M-RoPE each frequency follows."""
    if not case.mrope:
        return [0] * len(frequencies)
    config = model.config.get_text_config().rope_parameters
    section = config["mrope_section"]
    if config.get("mrope_interleaved") or case.name == "qwen3_vl":
        out = [0] * len(frequencies)
        for axis in (1, 2):
            for index in range(axis, min(3 * section[axis], len(out)), 3):
                out[index] = axis
        return out
    return [axis for axis in range(3) for _ in range(section[axis])]


def frequencies_of(model, layer):
    rotary = oracle.language_model(model).rotary_emb
    own = getattr(rotary, "inv_freq", None)
    if own is None:  # one set of frequencies for each kind of layer
        own = getattr(rotary, f"{oracle.language_model(model).config.layer_types[layer]}_inv_freq")
    return own.double().tolist()


def calibration(case, model, inputs, record, stages, generated=0):
    """The oracle's bias: log(2 - D) for the views' keys, from the first stage that cut a sample."""
    token = image_id(case)
    keys = []
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        places = [c for c, t in enumerate(ids) if t == token]
        keys.append([places[i] for view in record.views[row].values() for i in view.index.tolist()])
    axes = torch.tensor(positions(case, inputs, generated), dtype=torch.float64)
    family = find_family(model)
    layers = oracle.language_model(model).layers

    def bias(layer, asking, total):
        started = [gone for first, gone in stages if first <= layer]
        if not started or not family.rotates(layers[layer]):
            return None
        frequencies = frequencies_of(model, layer)
        extra = torch.zeros(len(keys), len(asking), total)
        for row, columns in enumerate(keys):
            if not bool(started[-1][row].any()):
                continue
            mean = torch.zeros(len(asking), len(columns), dtype=torch.float64)
            for axis, frequency in zip(axis_of(case, model, frequencies), frequencies, strict=True):
                place = axes[axis, row]
                away = place[asking][:, None] - place[columns][None, :]
                mean += torch.cos(away * frequency) / len(frequencies)
            gain = torch.log((2 - mean).clamp(min=1e-9)).float()
            extra[row] = extra[row].index_copy(1, torch.tensor(columns), gain)
        return extra

    return bias


def unpack(plan):
    layers, retention = PLANS[plan]
    before = layers[0] == 0
    inside = [layer for layer in layers if layer]
    method = method_of(*inside, before=before) if inside else "tfps"
    return layers, {"method": method, "retention": retention, "positions": "calibrate"}


@families
@plans
@pytest.mark.parametrize("batch", ["one", "left"])
def test_calibrated_forward(case, plan, batch):
    layers, options = unpack(plan)
    model, inputs = shared_model(case), prompt(case, batch)
    with p2d.prune(model, **options) as pruned:
        short = forward(model, inputs)
    stages = stages_of(inputs, pruned.record, image_id(case), *layers)
    live = oracle.live_columns(inputs, stages[-1][1])
    with oracle.masked(model, stages, bias=calibration(case, model, inputs, pruned.record, stages)):
        expected = forward(model, inputs)
    close(gather_short(short, live, is_right(batch)), gather_live(expected, live), what="logits")
    with p2d.prune(model, **{**options, "positions": "keep"}):
        plain = forward(model, inputs)
    assert float((plain - short).abs().max()) > 1e-3, "the calibration changed nothing"


@some("llava", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "aya_vision")
@plans
def test_calibrated_decoding(case, plan):
    layers, options = unpack(plan)
    model, inputs = shared_model(case), prompt(case, "left")
    settings = {"max_new_tokens": 4, "do_sample": False}
    with p2d.prune(model, **options) as pruned:
        got = model.generate(**inputs, **settings)
    stages = stages_of(inputs, pruned.record, image_id(case), *layers)
    with oracle.masked(model, stages, bias=calibration(case, model, inputs, pruned.record, stages, 4)):
        expected = model.generate(**inputs, **settings)
    assert got.equal(expected)


@some("llava", "gemma3")
@kernels
def test_calibrated_logits_of_every_step(case, attn):
    """Bit for bit the tokens agree above; here the numbers do, for both kernels."""
    model, inputs = shared_model(case, attn), prompt(case, "left")
    settings = {"max_new_tokens": 4, "do_sample": False}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    with p2d.prune(model, "tfps-layer", 0.3, positions="calibrate") as pruned:
        got = model.generate(**inputs, **settings).logits
    stages = stages_of(inputs, pruned.record, image_id(case), 1)
    with oracle.masked(model, stages, bias=calibration(case, model, inputs, pruned.record, stages, 4)):
        expected = model.generate(**inputs, **settings).logits
    for step, (a, b) in enumerate(zip(got, expected, strict=True)):
        close(a, b, what=f"step {step}")


@families
def test_a_sample_that_lost_nothing_is_left_alone(case):
    model, inputs = shared_model(case, "eager", wide=False), prompt(case, "left")
    full = forward(model, inputs)
    with p2d.prune(model, retention=1.0, positions="calibrate"):
        got = forward(model, inputs)
    real = inputs["attention_mask"].bool()
    assert same(got[real], full[real])


@some("llava", "qwen2_5_vl", "gemma3")
@pytest.mark.parametrize("name", ["visionzip", "apet", "duet", "sparsevlm", "pact"])
def test_merged_tokens_weigh_what_they_are(case, name):
    """Calibrated, a merged token counts for its members, whether its method asks for that or not."""
    method = next(m for m in METHODS if m.name == name)
    model, inputs = shared_model(case), prompt(case, "left")
    with (
        watched() as seen,
        p2d.prune(model, **asked(method), **options("left"), positions="calibrate") as pruned,
    ):
        short = forward(model, inputs)
    record, starts = pruned.record, method.layers(LAYERS)
    stages = stages_of(inputs, record, image_id(case), *starts)
    scale = 1.0
    if starts[0] == 0 and seen[0].features is not None:
        scale = feature_scale(case, model, inputs)
    weighs = [chosen.sizes is not None for chosen in seen]
    assert any(weighs)
    writes, sizes = written(inputs, record, seen, starts, image_id(case), scale, weighs)
    own = calibration(case, model, inputs, record, stages)
    weights = sizes_bias(sizes, len(inputs["input_ids"]))

    def bias(*call):
        parts = [part for part in (own(*call), weights(*call)) if part is not None]
        return sum(parts) if parts else None

    with oracle.masked(model, stages, writes, bias):
        expected = forward(model, inputs)
    live = oracle.live_columns(inputs, stages[-1][1])
    close(gather_short(short, live, False), gather_live(expected, live), what="logits")


def test_beams_carry_the_calibration():
    from families_table import BY_NAME

    case = BY_NAME["llava"]
    model, inputs = shared_model(case), prompt(case, "left")
    settings = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    with p2d.prune(model, "tfps", 0.3, positions="calibrate") as pruned:
        got = model.generate(**inputs, **settings)
    stages = stages_of(inputs, pruned.record, image_id(case), 0)
    own = calibration(case, model, inputs, pruned.record, stages, 4)

    def fitting(layer, asking, total):
        extra = own(layer, asking, total)
        return extra.repeat_interleave(3, 0)

    with oracle.masked(model, stages, bias=fitting):
        expected = model.generate(**inputs, **settings)
    assert got.equal(expected)


def test_flash_attention_is_refused():
    from families_table import BY_NAME

    model = BY_NAME["llava"].model()
    model.config.get_text_config()._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(p2d.PruneError, match=r"calibrate.*attn_implementation='sdpa'"):
        p2d.prune(model, "tfps", 0.3, positions="calibrate")


def test_legacy_models_and_rewrite_refuse():
    from families_table import BY_NAME

    case = BY_NAME["llava"]
    pruned = p2d.prune(shared_model(case), "tfps", 0.3, positions="calibrate")
    with pytest.raises(p2d.PruneError, match="rewrite"):
        pruned.rewrite(**prompt(case, "one"))


def test_unit_vectors_give_the_mean_cosine():
    torch.manual_seed(0)
    frequencies = torch.rand(4, dtype=torch.float64)
    places = torch.tensor([0, 3, 17, 400])
    angles = places[:, None] * frequencies
    angles = torch.cat([angles, angles], -1)[None]
    for scale in (1.0, 1.7):  # a scale on cosines and sines cancels
        unit = unit_rope((angles.cos() * scale, angles.sin() * scale))
        gain = distance_gain(unit, unit)[0]
        for i, m in enumerate(places.tolist()):
            for j, n in enumerate(places.tolist()):
                mean = float(torch.cos((m - n) * frequencies).mean())
                expected = math.log(max(2 - mean, torch.finfo(torch.float32).eps))
                assert float(gain[i, j]) == pytest.approx(expected, abs=2e-6)


def test_biases_add_up():
    sizes = torch.tensor([[1.0, 2.0, 4.0]]).log()
    visual = torch.tensor([[True, False, True]])
    unit = unit_rope((torch.rand(1, 3, 4), torch.rand(1, 3, 4)))
    both = key_bias(sizes, visual, unit, unit)
    gain = distance_gain(unit, unit)
    assert both is not None
    close(both[0, 0], sizes + gain[0] * visual, 1e-6)
    assert key_bias(None, None, None, None) is None


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_masks_take_a_bias(kind):
    bias = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    closed = torch.tensor([[[[False, True, False], [False, False, True]]]])
    lowest = torch.finfo(torch.float32).min
    mask = {
        "none": None,
        "bool": ~closed,
        "float": torch.zeros(1, 1, 2, 3).masked_fill(closed, lowest),
    }[kind]
    out = add_bias(mask, bias, torch.float32)
    if kind == "none":
        assert same(out, bias)
        return
    assert same(out == lowest, closed)
    assert same(out.masked_fill(closed, 0), bias.expand(1, 1, 2, 3).masked_fill(closed, 0))
