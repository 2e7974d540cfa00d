"""Published sizes: parameter counts, prompt shapes, and that the models run on what is built for them."""

import pytest
import torch

import prune2drive
from prune2drive.errors import PruneError
from prune2drive.profiling import shapes

PUBLISHED = [name for name, s in shapes.SHAPES.items() if s.parameters]
ENCODER = ("pixel_values", "image_sizes", "batch_num_images", "image_grid_thw")


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name):
    model = shapes.build_model(name, torch.bfloat16, "meta")
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(shapes.shape(name).parameters, rel=0.02)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert not model.training


def test_drivemm_is_the_sum_of_its_parts():
    model = shapes.build_model("drivemm", torch.bfloat16, "meta")
    core = model.model
    assert sum(p.numel() for p in core.vision_tower.parameters()) == pytest.approx(0.397e9, rel=0.02)
    language = sum(p.numel() for p in (*core.language_model.parameters(), *model.lm_head.parameters()))
    assert language == pytest.approx(8.03e9, rel=0.002)
    assert model.config.text_config.model_type == "llama"


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_prompt_length(name):
    inputs = shapes.build_inputs(name, batch=2, cameras=6, text_tokens=64, device="meta")
    assert inputs["input_ids"].shape == (2, 6 * shapes.shape(name).rows + 64)


def test_every_picture_is_a_run_of_its_own():
    ids = shapes.build_inputs("demo", batch=2, cameras=6, text_tokens=64)["input_ids"]
    image = (ids == shapes.build_config("demo").image_token_id).int()
    assert image.sum(-1).tolist() == [6 * 730] * 2
    assert (image.diff(dim=-1) == 1).sum(-1).tolist() == [6] * 2
    assert image[:, 0].sum() == image[:, -1].sum() == 0


@pytest.mark.parametrize("name", [n for n in shapes.SHAPES if n != "qwen2.5-vl-7b"])
def test_features_fill_the_placeholders(name):
    model = shapes.build_model(name, torch.bfloat16, "meta")
    inputs = shapes.build_inputs(name, cameras=3, dtype=torch.bfloat16, device="meta")
    with torch.no_grad():
        encoder = {k: inputs[k] for k in ENCODER if k in inputs}
        out = model.base_model.get_image_features(**encoder, return_dict=True)
    width = model.config.text_config.hidden_size
    s = shapes.shape(name)
    assert [tuple(f.shape) for f in out.pooler_output] == [(s.rows // s.tiles, width)] * 3 * s.tiles


def test_qwen_grid_gives_the_published_rows():
    s = shapes.shape("qwen2.5-vl-7b")
    assert s.grid[0] * s.grid[1] // 4 == s.rows == 1824
    inputs = shapes.build_inputs("qwen2.5-vl-7b", cameras=2, device="meta")
    assert inputs["pixel_values"].shape == (2 * 64 * 114, 3 * 2 * 14 * 14)
    assert inputs["image_grid_thw"].tolist() == [[1, 64, 114]] * 2
    assert inputs["mm_token_type_ids"].shape == inputs["input_ids"].shape


def test_tiles_of_a_picture_are_one_camera(monkeypatch):
    small = shapes.Shape(
        "internvl",
        {"model_type": "internvl_vision", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
         "num_attention_heads": 2, "image_size": [16, 16], "patch_size": [4, 4]},
        {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1200, "tie_word_embeddings": False,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        7 * 4, "tiny",
        extra={"image_token_id": 1100, "image_seq_length": 4, "tie_word_embeddings": False}, tiles=7,
    )  # fmt: skip
    monkeypatch.setitem(shapes.SHAPES, "tiny-tiled", small)
    model = shapes.build_model("tiny-tiled")
    inputs = shapes.build_inputs("tiny-tiled", batch=2)
    assert inputs["pixel_values"].shape == (2 * 6 * 7, 3, 16, 16)
    with torch.no_grad(), prune2drive.prune(model, "tfps", 0.25, rig="nuscenes") as pruned:
        model(**inputs)
    for sample in pruned.record.samples:
        assert [(cell.before, cell.kept) for cell in sample.values()] == [(28, 7)] * 6


def test_qwen_small_grid_runs(monkeypatch):
    """The real tower needs real tensors; a small one of the same family proves the inputs."""
    small = shapes.Shape(
        "qwen2_5_vl",
        {"model_type": "qwen2_5_vl_vision", "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
         "depth": 2, "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1], "out_hidden_size": 64},
        {"model_type": "qwen2_5_vl_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1200, "tie_word_embeddings": False,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
        15, "tiny", extra={"image_token_id": 1100, "video_token_id": 1101}, grid=(6, 10),
    )  # fmt: skip
    monkeypatch.setitem(shapes.SHAPES, "tiny-qwen", small)
    model = shapes.build_model("tiny-qwen")
    inputs = shapes.build_inputs("tiny-qwen", batch=2, cameras=3, text_tokens=10)
    with torch.no_grad():
        out = model(**inputs)
    assert out.logits.shape == (2, 3 * 15 + 10, 1200)
    assert out.logits.isfinite().all()


def test_weights_are_seeded_finite_and_buffers_real():
    model = shapes.build_model("demo", layers=1, seed=3)
    again = shapes.build_model("demo", layers=1, seed=3)
    other = shapes.build_model("demo", layers=1, seed=4)
    weight = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(model.get_parameter(weight), again.get_parameter(weight))
    assert not torch.equal(model.get_parameter(weight), other.get_parameter(weight))
    assert model.get_parameter(weight).std().item() == pytest.approx(0.02, rel=0.01)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    usual = dict(type(model)(model.config).named_buffers())
    assert usual
    for path, buffer in model.named_buffers():
        assert torch.equal(buffer, usual[path]), path


def test_demo_runs():
    model = shapes.build_model("demo", layers=1)
    inputs = shapes.build_inputs("demo", cameras=2, text_tokens=8)
    with torch.no_grad():
        logits = model(**inputs, logits_to_keep=1).logits
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_errors_say_what_and_what_to_do():
    with pytest.raises(PruneError, match=r"Did you mean 'drivemm'"):
        shapes.build_model("drivem")
    with pytest.raises(PruneError, match="layers=99"):
        shapes.build_config("demo", layers=99)
    with pytest.raises(PruneError, match="need at least 7"):
        shapes.build_inputs("demo", text_tokens=6)
    with pytest.raises(PruneError, match="at least 2 cameras"):
        shapes.build_inputs("demo", cameras=1)
