"""Profiles of tiny models. Nothing here asserts a time: only what follows from sizes and counts."""

import json
import os

import pytest
import torch
from profiling_models import ROWS, TEXT_TOKENS, build

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.tfps import TFPSLayer
from prune2drive.profiling import flops
from prune2drive.profiling.latency import profile
from prune2drive.profiling.result import KEYS, TIMES, ProfileResult

RIG = ["LEFT", "RIGHT"]
QUICK = {"rig": RIG, "new_tokens": 2, "repeat": 2, "warmup": 1}
FAMILIES = ["llava", "llava_onevision", "internvl", "qwen2_5_vl"]


@pytest.fixture(scope="module", params=FAMILIES)
def profiled(request):
    model, inputs = build(request.param)
    lines = []
    result = profile(model, inputs, method="tfps", retention=0.25, progress=lines.append, **QUICK)
    return request.param, model, result, lines


def test_keys_and_ranges(profiled):
    _, _, result, lines = profiled
    for side in (result.unpruned, result.pruned):
        assert set(KEYS) <= set(side)
        for name in TIMES:
            spread = side["spread"][name]
            assert spread["min"] <= side[name] <= spread["max"]
            assert spread["runs"] == (4 if name == "decode_ms_per_token" else 2)
    assert set(result.ratio) == set(KEYS)
    assert result.unpruned["select_ms"] == 0
    assert result.pruned["select_ms"] > 0
    assert result.settings["method"] == "tfps"
    assert result.settings["where"] == "before the language model"
    assert {"torch", "transformers", "python"} <= set(result.versions)
    assert result.hardware["cores"] >= 1
    order = [line.split(": ")[1] for line in lines if line.startswith("repetition")]
    assert order == ["unpruned", "pruned"] * 2


def test_tokens_cache_and_flops_follow_from_the_counts(profiled):
    family, model, result, _ = profiled
    text = model.config.text_config
    structure = int(family == "llava_onevision")
    for side, per_camera in (
        (result.unpruned, [n - structure for n in ROWS[family]]),
        (result.pruned, [(2 * (n - structure) + 4) // 8 for n in ROWS[family]]),  # a quarter, half up
    ):
        assert side["tokens_per_camera"] == dict(zip(RIG, per_camera, strict=True))
        total = TEXT_TOKENS + sum(per_camera) + 2 * structure
        assert side["tokens"] == side["layer_averaged_tokens"] == total
        lengths = [total] * text.num_hidden_layers
        assert side["kv_bytes"] == flops.kv_cache_bytes(text, lengths, dtype=torch.float32)
        assert side["flops_parts"]["prefill"] == flops.language_flops(text, lengths)
        parts = side["flops_parts"]
        assert side["flops"] == sum(parts[k] for k in ("vision", "projector", "select", "prefill", "head"))
    assert result.unpruned["flops_parts"]["select"] == 0
    assert result.pruned["flops_parts"]["select"] > 0
    assert result.unpruned["flops_parts"]["vision"] == result.pruned["flops_parts"]["vision"]


def test_ratios_are_unpruned_by_pruned(profiled):
    _, _, result, _ = profiled
    for key in KEYS:
        a, b = result.unpruned[key], result.pruned[key]
        assert result.ratio[key] == (a / b if a and b else None)
    assert result.ratio["select_ms"] is None
    assert result.ratio["tokens"] > 1


def test_json_round_trip(profiled, tmp_path):
    result = profiled[2]
    path = tmp_path / "profile.json"
    path.write_text("old")
    result.save(path)
    assert ProfileResult.load(path) == result
    data = json.loads(path.read_text())
    assert set(data) == {"unpruned", "pruned", "ratio", "settings", "hardware", "versions", "date"}
    assert os.listdir(tmp_path) == ["profile.json"]


def test_the_model_is_left_as_it_was(profiled):
    model = profiled[1]
    assert "forward" not in model.__dict__
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_pruning_inside_the_language_model():
    model, inputs = build("llava")
    result = profile(model, inputs, method=TFPSLayer(layer=1), retention=0.25, **QUICK)
    assert result.settings["where"] == "inside the language model"
    assert result.pruned["tokens"] == TEXT_TOKENS + 18
    assert result.pruned["layer_averaged_tokens"] == (83 + 29 + 29) / 3
    lengths = [83, 29, 29]
    text = model.config.text_config
    assert result.pruned["kv_bytes"] == flops.kv_cache_bytes(text, lengths, dtype=torch.float32)
    assert result.pruned["flops_parts"]["prefill"] == flops.language_flops(text, lengths)


def test_a_batch_counts_every_sample():
    model, inputs = build("llava")
    one = profile(model, inputs, retention=0.25, **QUICK)
    both = {k: v.repeat(2, *[1] * (v.dim() - 1)) for k, v in inputs.items()}
    two = profile(model, both, retention=0.25, **QUICK)
    assert two.settings["batch"] == 2
    for side in ("unpruned", "pruned"):
        assert getattr(two, side)["tokens"] == getattr(one, side)["tokens"]
        assert getattr(two, side)["kv_bytes"] == 2 * getattr(one, side)["kv_bytes"]
        assert getattr(two, side)["flops"] == 2 * getattr(one, side)["flops"]


def test_without_decode():
    model, inputs = build("llava")
    result = profile(model, inputs, retention=0.25, **{**QUICK, "new_tokens": 0})
    assert result.pruned["decode_ms_per_token"] is None
    assert result.ratio["decode_ms_per_token"] is None


def test_errors_say_what_and_what_to_do():
    model, inputs = build("llava")
    with pytest.raises(PruneError, match="repeat=0"):
        profile(model, inputs, rig=RIG, repeat=0)
    with pytest.raises(PruneError, match="pixel_values"):
        profile(model, {"input_ids": inputs["input_ids"]}, rig=RIG)
    with pytest.raises(PruneError, match="training mode"):
        profile(model.train(), inputs, rig=RIG)
    with pytest.raises(PruneError, match="'ratio' is missing"):
        ProfileResult.from_dict({"unpruned": {}, "pruned": {}})
