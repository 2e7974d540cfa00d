"""Signals of the vision tower against the pictures' geometry, the eager kernels and the towers themselves."""

from __future__ import annotations

import contextlib
import functools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import get_vision_window_index

import prune2drive as p2d
import tiny_models
from families_table import BY_NAME, FAMILIES, FAMILY_IDS, IMAGE_SIZES, picture
from legacy_standins import build_fork
from prune2drive.errors import PruneError
from prune2drive.families import find_family, vision
from prune2drive.families.probe import PREFIX, Probe, watch
from prune2drive.families.vision import SIGNALS, VISION, encode_with_signals, pooled, received
from prune2drive.tokens import Signal

cases = pytest.mark.parametrize("case", FAMILIES, ids=FAMILY_IDS)

CLS = {"llava", "llava_next", "internvl"}
MERGED = dict.fromkeys(FAMILY_IDS, 4) | {
    "llava": 1,
    "llava_next": 1,
    "llava_onevision": 1,
    "paligemma": 1,
}
"""Patches that make one token."""
BLOCKS = {
    "internvl": "vision_tower.encoder.layer.1.attention",
    "idefics3": "vision_model.encoder.layers.1.self_attn",
    "smolvlm": "vision_model.encoder.layers.1.self_attn",
    "ovis2": "vision_tower.transformer.encoder.layers.1.attention",
    "mistral3": "vision_tower.transformer.layers.1.attention",
    # Features are the last hidden state but one: they leave the first of two blocks.
    "llava": "vision_tower.encoder.layers.0.self_attn",
    "llava_next": "vision_tower.encoder.layers.0.self_attn",
} | dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "visual.blocks.1.attn")


@functools.cache
def shared(case, attn="sdpa"):
    return case.model(attn=attn)


def attention_of(case, model):
    return model.base_model.get_submodule(BLOCKS.get(case.name, "vision_tower.encoder.layers.1.self_attn"))


def bound(case, model, inputs=None):
    """The family, and the encoder's part of a prompt: two samples of three and two pictures."""
    family = find_family(model)
    inputs = case.inputs([3, 2]) if inputs is None else inputs
    return family, {k: v.clone() for k, v in inputs.items() if k in family.encoder_names()}


def signals_of(case, model, inputs=None, needs=VISION):
    family, call = bound(case, model, inputs)
    with torch.no_grad():
        out = encode_with_signals(family, call, needs)
    return getattr(out, SIGNALS), family.flatten(out.pooler_output)[0], out, family, call


# -- patches to tokens ------------------------------------------------------------------------------


def patch_means(case, family, call):
    """Mean colour of every patch, as the tower orders them, read off the processor's own output: (P, 3)."""
    pixels, patch = call["pixel_values"], family.config.vision_config.patch_size
    patch = patch if isinstance(patch, int) else patch[0]
    if case.name.startswith("qwen"):  # rows: channel, time, height, width of one patch
        means = pixels.reshape(len(pixels), 3, -1).mean(-1)
        if case.name != "qwen2_5_vl":
            return means
        settings = family.config.vision_config
        order, _ = get_vision_window_index(
            call["image_grid_thw"], settings.spatial_merge_size, settings.window_size, settings.patch_size
        )
        return means.reshape(-1, 4, 3)[order].reshape(-1, 3)
    if pixels.dim() == 5:  # padded with empty tiles
        pixels = pixels.flatten(0, 1)
        pixels = pixels[pixels.abs().amax((1, 2, 3)) > 0]
    means = nn.functional.avg_pool2d(pixels, patch)
    if case.name == "mistral3":
        sizes = (call["image_sizes"] // patch).tolist()
        parts = [plane[:, :h, :w].flatten(1).T for plane, (h, w) in zip(means, sizes, strict=True)]
        return torch.cat(parts)
    return means.flatten(2).transpose(1, 2).reshape(-1, 3)


def ramp(size, low=0, high=200):
    """A picture whose red runs from left to right and whose green runs downwards; blue is even."""
    width, height = size
    x = low + (high - low) * (np.arange(width) + 0.5) / width
    y = low + (high - low) * (np.arange(height) + 0.5) / height
    pixels = np.full((height, width, 3), 90.0)
    pixels[..., 0], pixels[..., 1] = x[None], y[:, None]
    return Image.fromarray(pixels.round().astype(np.uint8))


def flat_picture(size, level):
    return Image.new("RGB", size, (level, level, 90))


def token_colours(case, model, pictures):
    inputs = case.encode([case.prompt(len(pictures))], [pictures])
    family, call = bound(case, model, inputs)
    with torch.no_grad():
        out = family.encode(call)
        return family.per_token(patch_means(case, family, call), call, out)


def views_of(case, model, pictures):
    """The views of a prompt of pictures, whose boxes say where tokens are."""
    inputs = case.encode([case.prompt(len(pictures))], [pictures])
    cameras = tuple(p2d.Camera(f"CAM_{n}", 0.0, 70.0, size=p.size) for n, p in enumerate(pictures))
    with p2d.prune(model, "stride", 1.0, rig=p2d.Rig("test", cameras)) as pruned, torch.no_grad():
        model(**inputs)
    return pruned.record.views[0]


@cases
@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
def test_a_token_gets_the_patches_that_its_box_covers(case, together):
    """Patches carry their place in the picture; a token's mean must be the centre of its box."""
    model = shared(case)
    # CLIP's processor shows the model only the middle square, so there only squares are whole.
    sizes = [(24, 24), (48, 48)] if case.name == "llava" else list(IMAGE_SIZES)
    # In halves of a token. Cutting whole rows off a padded canvas leaves up to half a row of padding.
    limit = 1.0 if case.newline else 0.05
    for group in [sizes] if together else [[size] for size in sizes]:
        got = token_colours(case, model, [ramp(size) for size in group])
        low = token_colours(case, model, [flat_picture(size, 0) for size in group])
        high = token_colours(case, model, [flat_picture(size, 200) for size in group])
        views = views_of(case, model, [ramp(size) for size in group])
        covered = torch.zeros(len(got), dtype=torch.bool)
        assert list(views) == [f"CAM_{n}" for n in range(len(group))]
        for view in views.values():
            share = ((got - low) / (high - low))[view.index, :2]
            centre = (view.boxes[:, :2] + view.boxes[:, 2:]) / 2
            half = (view.boxes[:, 2:] - view.boxes[:, :2]) / 2
            # Padding stands in tokens at the rim of a padded picture; whole tokens only.
            whole = ((view.boxes >= -1e-3) & (view.boxes <= 1 + 1e-3)).all(-1)
            assert whole.sum() >= len(view) / 3
            off = ((share - centre) / half)[whole].abs().amax(0)
            assert (off < limit).all(), off
            covered[view.index] = True
        if case.newline:
            assert got[~covered].eq(0).all()
            assert len(got) > covered.sum()
        else:
            assert covered.all()


def test_window_order_is_that_of_the_tower():
    case = BY_NAME["qwen2_5_vl"]
    family = find_family(shared(case))
    settings = family.config.vision_config
    grids = torch.tensor([[1, 4, 4], [1, 6, 10], [2, 10, 12], [1, 2, 14], [1, 8, 8]])
    for window in (8, 16, 24, 56):
        settings.window_size, before = window, settings.window_size
        try:
            expected, _ = get_vision_window_index(
                grids, settings.spatial_merge_size, window, settings.patch_size
            )
            assert family.window_order(grids).tolist() == expected.tolist()
        finally:
            settings.window_size = before


def test_onevision_shrinks_values_as_it_shrinks_features():
    case = BY_NAME["llava_onevision"]
    model = case.model(attn="sdpa")
    model.config.vision_aspect_ratio = model.base_model.config.vision_aspect_ratio = "anyres_max_1"
    inputs = case.encode([case.prompt(1)], [[picture(0, 0, 0)]])
    signals, flat, *_ = signals_of(case, model, inputs)
    full, *_ = signals_of(case, shared(case), inputs)
    assert len(signals.saliency) == len(flat) < len(full.saliency)
    assert signals.saliency[:36].equal(full.saliency[:36])


def test_what_a_merge_leaves_over():
    values = torch.arange(9.0)[:, None]
    assert pooled(values, (3, 3), 2).flatten().tolist() == [2.0]
    assert pooled(values, (3, 3), 2, ceil=True).flatten().tolist() == [2.0, 3.5, 6.5, 8.0]


# -- encoder ----------------------------------------------------------------------------------------


@cases
def test_encoder_rows_are_the_projectors_input(case):
    model = shared(case)
    seen = []
    family, _ = bound(case, model)
    handle = model.base_model.get_submodule(family.projector).register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone())
    )
    try:
        signals, flat, out, family, call = signals_of(case, model, needs=[Signal.ENCODER])
    finally:
        handle.remove()
    assert signals.saliency is None and signals.keys is None
    entered = seen[0]
    if case.name in ("internvl", "ovis2"):
        assert signals.encoder.equal(entered.flatten(0, 1))
    else:
        patches = entered.reshape(-1, entered.shape[-1])
        torch.testing.assert_close(signals.encoder, family.per_token(patches, call, out))
    assert len(signals.encoder) == len(flat)
    assert not signals.encoder.requires_grad


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision", "internvl", "paligemma"])
def test_projected_encoder_rows_are_the_features(name):
    """Where a row is all that the projector sees of a token, projecting it gives that token's feature."""
    case = BY_NAME[name]
    model = shared(case)
    signals, flat, *_ = signals_of(case, model)
    real = signals.encoder.abs().sum(-1) > 0
    with torch.no_grad():
        again = model.base_model.multi_modal_projector(signals.encoder[None])[0]
    torch.testing.assert_close(again[real], flat[real])
    newline = getattr(model.base_model, "image_newline", None)
    structure = (flat == newline).all(-1) if newline is not None else torch.zeros(len(flat), dtype=torch.bool)
    assert real.equal(~structure)
    assert case.newline == bool(structure.any())
    for rows in (signals.saliency[:, None], signals.keys):
        assert rows[structure].eq(0).all()
        assert rows[real].abs().sum(-1).gt(0).all()


# -- saliency and keys ------------------------------------------------------------------------------


def eager_run(case, monkeypatch):
    """An eager encode: the weights, keys and masks of the watched block, call by call."""
    model = shared(case, "eager")
    module = attention_of(case, model)
    home = sys.modules[type(module).__module__]
    original, calls = home.eager_attention_forward, []

    def recording(owner, query, key, *args, **kwargs):
        out = original(owner, query, key, *args, **kwargs)
        if owner is module:
            calls.append((out[1], key))
        return out

    monkeypatch.setattr(home, "eager_attention_forward", recording)
    family, call = bound(case, model)
    with torch.no_grad():
        out = family.encode(call)
    monkeypatch.undo()
    return calls, family, call, out


def eager_saliency(case, calls, call):
    """Attention received, mean over heads: flat over patches."""
    parts = []
    for weights, _ in calls:
        if case.name in CLS:
            parts.append(weights.mean(1)[:, 0, 1:])
        elif case.name == "mistral3":  # one row of pictures, blind to each other
            lengths = (call["image_sizes"] // 4).prod(-1)
            parts.append(weights.mean(1).sum(1) / lengths.repeat_interleave(lengths))
        else:
            parts.append(weights.mean((1, 2)))
    return torch.cat([part.flatten() for part in parts])


@cases
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_saliency_and_keys_are_those_of_the_eager_kernel(case, attn, monkeypatch):
    calls, family, call, out = eager_run(case, monkeypatch)
    signals, flat, *_ = signals_of(case, shared(case, attn))
    first = int(case.name in CLS)
    keys = torch.cat([key.mean(1)[:, first:].flatten(0, 1) for _, key in calls])
    assert signals.saliency.dtype == torch.float32
    assert signals.saliency.shape == (len(flat),)
    expected = family.per_token(eager_saliency(case, calls, call)[:, None], call, out)[:, 0]
    torch.testing.assert_close(signals.saliency, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(signals.keys, family.per_token(keys, call, out), atol=1e-5, rtol=1e-4)
    assert signals.saliency.std() > 1e-4
    assert not signals.keys.requires_grad


@pytest.mark.parametrize(
    "name", ["llava", "llava_next", "llava_onevision", "gemma3", "paligemma", "mistral3"]
)
def test_saliency_is_what_the_tower_reports(name):
    """Towers that hand out their attention: ``output_attentions`` says the same."""
    case = BY_NAME[name]
    model = shared(case, "eager")
    signals, _, out, family, call = signals_of(case, model)
    with torch.no_grad():
        told = family.encode({**call, "output_attentions": True}).attentions
    weights = told[-2 if name in CLS and name != "internvl" else -1]
    expected = family.per_token(eager_saliency(case, [(weights, None)], call)[:, None], call, out)[:, 0]
    torch.testing.assert_close(signals.saliency, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in FAMILY_IDS if name not in CLS | {"llava_onevision"}])
def test_saliency_sums_to_one_per_picture(name):
    case = BY_NAME[name]
    signals, _, out, *_ = signals_of(case, shared(case))
    entries = out.pooler_output
    if name in ("idefics3", "smolvlm"):  # an entry is a sample: its tiles have nine tokens each
        entries = [tile for entry in entries for tile in entry.split(9)]
    start = 0
    for entry in entries:
        total = signals.saliency[start : start + len(entry)].sum() * MERGED[name]
        assert total.item() == pytest.approx(1, abs=1e-4)
        start += len(entry)
    assert start == len(signals.saliency)


@cases
def test_a_picture_has_the_same_signals_alone(case):
    """Nothing crosses from one picture of a batch to another."""
    if case.single_image_differs:
        pytest.skip("one picture alone is cut into tiles")
    model = shared(case)
    both, *_ = signals_of(case, model, case.inputs([2, 1]))
    alone, *_ = signals_of(case, model, case.inputs([2, 1], only=1))
    n = len(alone.saliency)
    torch.testing.assert_close(both.saliency[-n:], alone.saliency, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(both.keys[-n:], alone.keys, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.encoder[-n:], alone.encoder, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [-1, -2, 1, 2, [1, 2], [-2]])
def test_the_watched_block_is_the_one_whose_output_is_taken(layer):
    case = BY_NAME["llava"]
    family = find_family(shared(case))
    block = family.vision_attention({"vision_feature_layer": layer})
    last = layer[-1] if isinstance(layer, list) else layer
    number = last - 1 if last > 0 else 2 + last
    assert block is family.core.vision_tower.encoder.layers[number].self_attn


def test_a_windowed_tower_is_watched_where_it_sees_whole_pictures():
    case = BY_NAME["qwen2_5_vl"]
    model = case.model()
    family = find_family(model)
    blocks = model.base_model.visual.blocks
    for full, expected in [([0], 0), ([1], 1), ([0, 1], 1), ([], 1)]:
        model.config.vision_config.fullatt_block_indexes = full
        assert family.vision_attention({}) is blocks[expected].attn


# -- the computation --------------------------------------------------------------------------------


def plain_received(query, key, scaling, mask=None):
    logits = query.double() @ key.double().repeat_interleave(query.shape[1] // key.shape[1], 1).mT * scaling
    return (logits if mask is None else logits + mask).softmax(-1).mean((1, 2)).float()


@pytest.mark.parametrize("chunk", [1, 100, 2**25])
def test_received_does_not_depend_on_chunks(chunk, monkeypatch):
    monkeypatch.setattr(vision, "CHUNK", chunk)
    query, key = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
    torch.testing.assert_close(received(query, key, 0.3), plain_received(query, key, 0.3))
    seen = torch.rand(2, 1, 7, 7) > 0.3
    seen[..., 0] = True
    additive = torch.zeros(2, 1, 7, 7).masked_fill(~seen, torch.finfo(torch.float32).min)
    expected = plain_received(query, key, 0.3, additive.double())
    torch.testing.assert_close(received(query, key, 0.3, seen), expected)
    torch.testing.assert_close(received(query, key, 0.3, additive), expected)
    padding = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    got = received(query, key, 0.3, padding)
    assert got[1, 4:].eq(0).all()
    torch.testing.assert_close(got.sum(-1), torch.ones(2))
    torch.testing.assert_close(received(query, key, cls=True), plain_received(query[:, :, :1], key, 8**-0.5))


def test_received_is_float32_in_half_precision_and_under_autocast():
    query, key = torch.randn(1, 2, 9, 8).bfloat16(), torch.randn(1, 2, 9, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = received(query, key, 0.3)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, plain_received(query, key, 0.3))


def test_a_mask_that_cannot_be_read_is_refused():
    with pytest.raises(PruneError, match="SimpleNamespace"):
        received(torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2, 4), mask=SimpleNamespace())


@contextlib.contextmanager
def packed_kernel():
    """A kernel that calls itself flash: it gets all pictures in one row, and the edges between them."""
    calls = []

    def kernel(module, query, key, value, attention_mask, cu_seq_lens_q=None, cu_seq_lens_k=None, **kwargs):
        if cu_seq_lens_q is None:
            pytest.skip("this release of transformers tells packed pictures apart in another way")
        assert attention_mask is None
        assert module.config._attn_implementation == "test_flash_kernel"
        calls.append(module)
        lengths = cu_seq_lens_q.diff().tolist()
        for name in ("max_length_q", "max_length_k"):
            kwargs.pop(name)
        pieces = zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True)
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return torch.cat([sdpa(module, q, k, v, None, **kwargs)[0] for q, k, v in pieces], 1), None

    ALL_ATTENTION_FUNCTIONS["test_flash_kernel"] = kernel
    try:
        yield calls
    finally:
        del ALL_ATTENTION_FUNCTIONS["test_flash_kernel"]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3"])
def test_pictures_in_one_row_are_told_apart_by_their_edges(name):
    """Flash attention gets all pictures at once: watched, it still does, and the signals are the same."""
    case = BY_NAME[name]
    model = case.model(attn="sdpa")
    expected, *_ = signals_of(case, shared(case))
    attention_of(case, model).config._attn_implementation_internal = "test_flash_kernel"
    with packed_kernel() as calls:
        got, *_ = signals_of(case, model)
    assert calls.count(attention_of(case, model)) == 1
    torch.testing.assert_close(got.saliency, expected.saliency, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(got.keys, expected.keys, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.encoder, expected.encoder, atol=1e-5, rtol=1e-4)


@cases
def test_half_precision(case):
    model = case.model(attn="sdpa", dtype=torch.bfloat16)
    signals, flat, *_ = signals_of(case, model)
    exact, *_ = signals_of(case, shared(case))
    assert signals.saliency.dtype == torch.float32
    assert signals.encoder.dtype == signals.keys.dtype == flat.dtype == torch.bfloat16
    for name in ("saliency", "keys", "encoder"):
        got, wanted = getattr(signals, name).float(), getattr(exact, name)
        assert (got - wanted).norm() < 0.2 * wanted.norm(), name


def other_llava(vision_config, **options):
    case = BY_NAME["llava"]
    config = transformers.LlavaConfig(
        vision_config=vision_config,
        text_config=tiny_models.text_config("llama"),
        image_token_index=case.tokenizer().image_token_id,
        tie_word_embeddings=False,
        **options,
    )
    return tiny_models.build_model(
        "LlavaForConditionalGeneration", config, "sdpa", torch.float32, 0, range(0)
    )


def test_llava_on_a_pixtral_tower():
    """Pictures of several sizes in one row of patches."""
    shape = tiny_models._vision("pixtral", image_size=48, head_dim=16)
    model = other_llava(shape, vision_feature_layer=-1, vision_feature_select_strategy="full")
    family = find_family(model)
    call = {"pixel_values": torch.randn(2, 3, 24, 32), "image_sizes": torch.tensor([[24, 32], [16, 24]])}
    signals = []
    for rows in ([0, 1], [0], [1]):
        part = {k: v[rows] for k, v in call.items()}
        if rows == [1]:
            part["pixel_values"] = part["pixel_values"][..., :16, :24]
        with torch.no_grad():
            out = encode_with_signals(family, part, VISION)
        signals.append(getattr(out, SIGNALS))
        assert [len(entry) for entry in out.pooler_output] == [[48, 24][row] for row in rows]
    both, first, second = signals
    for name in ("encoder", "saliency", "keys"):
        alone = torch.cat([getattr(first, name), getattr(second, name)])
        torch.testing.assert_close(getattr(both, name), alone, atol=1e-5, rtol=1e-4)
    assert both.saliency[:48].sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("strategy", ["full", "default"])
def test_llava_on_a_siglip_tower(strategy):
    """Without a CLS token the choice "default" drops a patch, and so do the signals."""
    shape = tiny_models._vision("siglip_vision_model", vision_use_head=False)
    model = other_llava(shape, vision_feature_layer=-1, vision_feature_select_strategy=strategy)
    signals, flat, *_ = signals_of(BY_NAME["llava"], model, {"pixel_values": torch.randn(2, 3, 24, 24)})
    assert len(flat) == 2 * (36 if strategy == "full" else 35) == len(signals.saliency)
    total = signals.saliency.reshape(2, -1).sum(-1)
    assert torch.allclose(total, torch.ones(2)) == (strategy == "full")
    again = model.base_model.multi_modal_projector(signals.encoder)
    torch.testing.assert_close(again, flat)


def test_a_tower_that_the_family_does_not_know():
    model = BY_NAME["gemma3"].model(attn="sdpa")
    family, call = bound(BY_NAME["gemma3"], model)
    family.per_token = lambda values, *_: values
    with pytest.raises(PruneError, match="rows were brought together"), torch.no_grad():
        encode_with_signals(family, call, [Signal.SALIENCY])


# -- nothing left behind ----------------------------------------------------------------------------


def traces(model):
    """Every attribute of every module by identity, its hooks, and the configs' contents."""
    out = {}
    for name, module in model.named_modules():
        plain = {k: id(v) for k, v in module.__dict__.items()}
        hooks = (
            len(module._forward_pre_hooks),
            len(module._forward_hooks),
            len(module._forward_pre_hooks_with_kwargs),
        )
        out[name] = (plain, hooks)
        if (config := module.__dict__.get("config")) is not None:
            out[name] += (str(config.__dict__),)
    return out


@cases
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_watching_changes_nothing_and_leaves_nothing(case, attn):
    model = shared(case, attn)
    family, call = bound(case, model)
    with torch.no_grad():
        plain = family.encode(dict(call))
        before = traces(model)
        kernels = {k: ALL_ATTENTION_FUNCTIONS[k] for k in ALL_ATTENTION_FUNCTIONS if not k.startswith(PREFIX)}
        watched = encode_with_signals(family, dict(call), VISION)
    assert traces(model) == before
    assert all(ALL_ATTENTION_FUNCTIONS[k] is v for k, v in kernels.items())
    assert family.flatten(plain.pooler_output)[0].equal(family.flatten(watched.pooler_output)[0])
    for a, b in zip(
        plain.get("deepstack_features") or [], watched.get("deepstack_features") or [], strict=True
    ):
        assert family.flatten(a)[0].equal(family.flatten(b)[0])


@cases
def test_nothing_is_left_after_an_exception(case, monkeypatch):
    model = shared(case)
    family, call = bound(case, model)
    with torch.no_grad():
        family.encode(dict(call))
    before = traces(model)

    def broken(*args, **kwargs):
        raise ValueError("broken")

    for place in ("received", "kernel"):
        if place == "received":
            monkeypatch.setattr(vision, "received", broken)
        else:
            monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", broken)
        with pytest.raises(ValueError, match="broken"), torch.no_grad():
            encode_with_signals(family, dict(call), VISION)
        monkeypatch.undo()
        assert traces(model) == before


def test_gradients_flow_through_features_only():
    case = BY_NAME["llava"]
    model = case.model(attn="sdpa")
    family, call = bound(case, model)
    out = encode_with_signals(family, call, VISION)
    family.flatten(out.pooler_output)[0].sum().backward()
    assert model.base_model.multi_modal_projector.linear_1.weight.grad is not None
    signals = getattr(out, SIGNALS)
    assert not any(v.requires_grad for v in (signals.encoder, signals.saliency, signals.keys))


# -- asking -----------------------------------------------------------------------------------------


@cases
def test_every_family_gives_every_signal(case):
    family, call = bound(case, shared(case))
    assert all(family.lacks(signal) is None for signal in Signal)
    with torch.no_grad():
        empty = getattr(encode_with_signals(family, call, [Signal.ATTENTION]), SIGNALS)
    assert empty.encoder is empty.saliency is empty.keys is None


@pytest.mark.parametrize("signal", sorted(VISION))
def test_what_cannot_be_had_is_refused_with_its_reason(signal, monkeypatch):
    case = BY_NAME["llava"]
    model = case.model()
    family, call = bound(case, model)
    monkeypatch.setattr(type(family), "vision_lacks", "its tower is a painting")
    assert family.lacks(signal) == "its tower is a painting"
    assert family.lacks(Signal.TEXT) is None
    with pytest.raises(PruneError, match=f"{signal.value}.*painting"):
        encode_with_signals(family, call, [signal])
    monkeypatch.undo()
    model.base_model.vision_tower = nn.Conv2d(3, 3, 1)
    del model.base_model.multi_modal_projector
    with pytest.raises(PruneError, match=r"Conv2d|multi_modal_projector"):
        encode_with_signals(family, call, [signal])


def test_legacy_models_give_no_vision_signals():
    family = find_family(build_fork())
    assert all("stock class" in family.lacks(signal) for signal in VISION)
    assert "features alone" in family.lacks(Signal.TEXT)


# -- the probe --------------------------------------------------------------------------------------


def test_probes_nest_and_stay_apart():
    case = BY_NAME["llava"]
    model = shared(case)
    first, second = (layer.self_attn for layer in model.base_model.vision_tower.encoder.layers)
    family, call = bound(case, model)
    seen = []

    def note(name):
        return lambda module, query, key, value, mask, kwargs: seen.append((name, module, kwargs["scaling"]))

    config = first.config
    with (
        torch.no_grad(),
        watch(first, note("outer")),
        watch(first, note("inner")),
        watch(second, note("other")),
    ):
        assert first.config._attn_implementation == second.config._attn_implementation == PREFIX + "sdpa"
        out = family.encode(call)
    assert first.config is config
    assert [entry[:2] for entry in seen] == [("inner", first), ("outer", first), ("other", second)]
    assert seen[0][2] == first.scale
    with torch.no_grad():
        again = family.encode(call)
    assert family.flatten(out.pooler_output)[0].equal(family.flatten(again.pooler_output)[0])
    assert len(seen) == 3


def test_a_probe_is_attached_once_and_leaves_in_order():
    model = shared(BY_NAME["llava"])
    module = attention_of(BY_NAME["llava"], model)
    config = module.config
    probe, other = (Probe(module, lambda *args: None) for _ in range(2))
    probe.detach()
    probe.attach()
    with pytest.raises(RuntimeError, match="already"):
        probe.attach()
    other.attach()
    with pytest.raises(RuntimeError, match="reverse order"):
        probe.detach()
    other.detach()
    probe.detach()
    probe.detach()
    assert module.config is config
    with pytest.raises(PruneError, match="Linear"):
        Probe(nn.Linear(2, 2), lambda *args: None).attach()
