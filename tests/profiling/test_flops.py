"""FLOP formulas against torch's own counter, to the last FLOP, and against hand arithmetic."""

import pytest
import torch
from profiling_models import GRIDS, ROWS, TEXT_TOKENS, TINY, build
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from prune2drive.errors import PruneError
from prune2drive.profiling import flops, shapes


def counted(function, *args, **kwargs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = function(*args, **kwargs)
    return out, counter.get_total_flops()


@pytest.mark.parametrize("family", TINY)
def test_every_part_equals_the_counter(family):
    model, inputs = build(family)
    want = flops.vlm_flops(
        model.config, ROWS[family], TEXT_TOKENS,
        grids=GRIDS if family == "qwen2_5_vl" else (), structure=int(family == "llava_onevision"),
    )  # fmt: skip
    encoder = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw")}
    encoder |= {k: v for k, v in inputs.items() if k in ("image_sizes", "batch_num_images")}
    features, encoding = counted(model.base_model.get_image_features, **encoder, return_dict=True)
    assert encoding == want["vision"] + want["projector"]
    if family != "qwen2_5_vl":
        _, tower = counted(model.base_model.vision_tower, inputs["pixel_values"])
        assert tower == want["vision"]

    rest = {k: v for k, v in inputs.items() if k != "pixel_values"}
    out, language = counted(
        model, **rest, mm_encoder_outputs={"image": features}, logits_to_keep=1, use_cache=True
    )
    assert language == want["prefill"] + want["head"]
    assert want["select"] == 0
    assert want["total"] == encoding + language

    _, step = counted(
        model, input_ids=torch.tensor([[5]]), past_key_values=out.past_key_values, logits_to_keep=1
    )
    assert step == want["decode"]
    lengths = [layer.keys.shape[-2] - 1 for layer in out.past_key_values.layers]
    held = sum(t.nbytes for layer in out.past_key_values.layers for t in (layer.keys, layer.values))
    text = model.config.text_config
    assert held == flops.kv_cache_bytes(text, [n + 1 for n in lengths], dtype=torch.float32)


@pytest.mark.parametrize("name", [n for n in shapes.SHAPES if n != "qwen2.5-vl-7b"])
def test_published_sizes_on_meta(name):
    """Meta tensors run every product of the real sizes: six views, two layers of language model."""
    model = shapes.build_model(name, torch.bfloat16, "meta", "eager", layers=2)
    inputs = shapes.build_inputs(name, dtype=torch.bfloat16, device="meta")
    rows = shapes.shape(name).rows
    structure = int(model.config.model_type == "llava_onevision")
    want = flops.vlm_flops(model.config, [rows] * 6, 64, structure=structure)
    encoder = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_sizes", "batch_num_images")}
    _, encoding = counted(model.base_model.get_image_features, **encoder)
    assert encoding == want["vision"] + want["projector"]
    width = model.config.text_config.hidden_size
    embeds = torch.empty(1, 6 * rows + 64, width, dtype=torch.bfloat16, device="meta")
    _, language = counted(model, inputs_embeds=embeds, logits_to_keep=1)
    assert language == want["prefill"] + want["head"]


def test_gram_equals_the_counter():
    views = torch.randn(3, 20, 8)
    _, gram = counted(torch.matmul, views, views.mT)
    assert gram == flops.gram_flops([20] * 3, 8)


def test_pruning_before_and_inside():
    config = AutoConfig.for_model("llava", **TINY["llava"])
    full = flops.vlm_flops(config, [36, 36], 10)
    before = flops.vlm_flops(config, [36, 36], 10, kept=[4, 6])
    inside = flops.vlm_flops(config, [36, 36], 10, kept=[4, 6], prune_layer=1)
    assert before["vision"] == full["vision"]
    assert before["select"] == 2 * 2 * 36 * 36 * 64
    assert before["prefill"] == flops.language_flops(config.text_config, [20] * 3)
    assert inside["prefill"] == flops.language_flops(config.text_config, [82, 20, 20])
    assert full["prefill"] > inside["prefill"] > before["prefill"]
    twice = flops.vlm_flops(config, [36, 36], 10, kept=[4, 6], batch=2)
    assert twice == {name: 2 * value for name, value in before.items()}


def test_causal_counts_each_pair_once():
    config = AutoConfig.for_model("llava", **TINY["llava"]).text_config
    n, width = 7, 64
    full = flops.language_flops(config, [n] * 3)
    causal = flops.language_flops(config, [n] * 3, causal=True)
    assert full - causal == 3 * 4 * width * (n * n - sum(range(1, n + 1)))
    # A prefill cut in two costs the same causal pairs as one in one go.
    first = flops.language_flops(config, [3] * 3, causal=True)
    second = flops.language_flops(config, [n] * 3, queries=[4] * 3, causal=True)
    assert first + second == causal


def test_layer_averages():
    assert flops.layer_lengths(4, 100, 20) == [20] * 4
    assert flops.layer_lengths(4, 100, 20, 1) == [100, 20, 20, 20]
    assert flops.layer_averaged_tokens([100, 20, 20, 20]) == 40
    with pytest.raises(PruneError, match="prune_layer"):
        flops.layer_lengths(4, 100, 20, 5)


def test_errors_say_what_and_what_to_do():
    config = AutoConfig.for_model("llava", **TINY["llava"])
    with pytest.raises(PruneError, match="more than the views have"):
        flops.vlm_flops(config, [36], 10, kept=[40])
    with pytest.raises(PruneError, match="1 entries for 2 views"):
        flops.vlm_flops(config, [36, 36], 10, kept=[4])
    with pytest.raises(PruneError, match="3 layers"):
        flops.language_flops(config.text_config, [5])
    with pytest.raises(PruneError, match="grids"):
        flops.vlm_flops(AutoConfig.for_model("qwen2_5_vl", **TINY["qwen2_5_vl"]), [15], 10)
    config.model_type = "lava"
    with pytest.raises(PruneError, match="Did you mean 'llava'"):
        flops.vlm_flops(config, [36], 10)
