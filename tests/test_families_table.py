"""The test bed itself: models build, processors agree with them, a batch holds the samples unchanged."""

from __future__ import annotations

import inspect

import pytest
import torch

from families_table import BY_NAME, FAMILIES, FAMILY_IDS, FamilyCase

COUNTS = ([1], [6], [6, 3], [2, 0])

# Counted by hand from the picture sizes; a change here means that the test bed itself changed.
SIX_VIEWS = {
    "llava": [36] * 6,
    "llava_next": [166, 78, 120, 114, 192, 114],
    "llava_onevision": [37] * 6,
    "internvl": [45, 9, 27, 27, 45, 27],
    "qwen2_vl": [30, 9, 18, 32, 36, 18],
    "qwen2_5_vl": [30, 9, 18, 32, 36, 18],
    "qwen3_vl": [30, 9, 18, 32, 36, 18],
    "idefics3": [45, 45, 27, 27, 45, 27],
    "smolvlm": [45, 45, 27, 27, 45, 27],
    "gemma3": [9] * 6,
    "paligemma": [36] * 6,
    "ovis2": [45, 9, 27, 27, 45, 27],
    "mistral3": [30, 9, 18, 18, 36, 18],
    "aya_vision": [45, 9, 27, 27, 45, 27],
}

families = pytest.mark.parametrize("case", FAMILIES, ids=FAMILY_IDS)


def image_features(model, inputs):
    core = model.base_model
    wanted = inspect.signature(core.get_image_features).parameters
    out = core.get_image_features(**{k: v for k, v in inputs.items() if k in wanted}, return_dict=True)
    return out, torch.cat([entry.reshape(-1, entry.shape[-1]) for entry in out.pooler_output])


def last_logits(model, inputs, attend=None):
    """Logits at the last real token of every row."""
    given = inputs if attend is None else dict(inputs, attention_mask=attend)
    with torch.no_grad():
        logits = model(**given).logits
    ends = [int(row.nonzero().max()) for row in inputs["attention_mask"]]
    return logits[range(len(ends)), ends]


def position_ids(case: FamilyCase, model, inputs) -> dict:
    """Positions of the full sequence for models that derive them from the layout of the images."""
    if not case.mrope:
        return {}
    wanted = inspect.signature(model.base_model.get_rope_index).parameters
    positions, _ = model.base_model.get_rope_index(**{k: v for k, v in inputs.items() if k in wanted})
    return {"position_ids": positions}


@families
def test_placeholders_match_features_and_views(case):
    model = case.model()
    for counts in COUNTS if case.text_only_rows else COUNTS[:-1]:
        inputs, views = case.inputs(counts), case.views(counts)
        with torch.no_grad():
            out, rows = image_features(model, inputs)
        placeholders = (inputs["input_ids"] == case.image_token_id(model)).sum(1).tolist()
        assert placeholders == [sum(sample) for sample in views]
        assert len(rows) == sum(placeholders)
        assert rows.std(0).mean() > 0.1  # tokens differ from each other
        assert len(getattr(out, "deepstack_features", None) or ()) == case.deepstack_layers


@families
def test_views_are_as_counted_by_hand(case):
    assert case.views([6]) == [SIX_VIEWS[case.name]]


def test_onevision_tiles_only_a_lone_image():
    assert BY_NAME["llava_onevision"].views([1, 3]) == [[166], [37, 37, 37]]


@families
def test_forward_and_generate_run(case):
    model = case.model()
    for counts in COUNTS if case.text_only_rows else COUNTS[:-1]:
        inputs = case.inputs(counts)
        assert last_logits(model, inputs).isfinite().all()
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert out.shape == (len(counts), inputs["input_ids"].shape[1] + 3)
        assert (out[:, -3:] != case.image_token_id(model)).all()
    assert last_logits(model, case.inputs([6, 3], padding_side="right")).isfinite().all()
    if case.text_only_batches:
        assert "pixel_values" not in case.inputs([0, 0])
        assert last_logits(model, case.inputs([0, 0])).isfinite().all()


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_holds_the_samples_unchanged(case, side):
    model = case.model()
    batch = case.inputs([6, 3], padding_side=side)
    mask = batch["attention_mask"].bool()
    assert not mask[1, 0 if side == "left" else -1]
    together = last_logits(model, batch)
    for sample in (0, 1):
        alone = case.inputs([6, 3], only=sample)
        assert alone["input_ids"][0].equal(batch["input_ids"][sample][mask[sample]])
        torch.testing.assert_close(last_logits(model, alone)[0], together[sample], atol=1e-4, rtol=0)


@families
def test_image_tokens_matter(case):
    """Without this every comparison of pruned with unpruned logits would pass."""
    model = case.model()
    inputs = case.inputs([6, 3])
    full = last_logits(model, inputs)
    image = inputs["input_ids"] == case.image_token_id(model)
    every_other = image & (image.cumsum(1) % 2 == 0)
    with_positions = inputs | position_ids(case, model, inputs)
    half = last_logits(model, with_positions, attend=inputs["attention_mask"].masked_fill(every_other, 0))
    assert ((half - full).abs().amax(1) > 0.1).all()
    other_pictures = last_logits(model, case.inputs([6, 3], seed=1))
    assert ((other_pictures - full).abs().amax(1) > 0.1).all()


@families
def test_models_are_reproducible_and_attention_kernels_agree(case):
    first, second = case.model("eager"), case.model("sdpa")
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert a.equal(b)
    inputs = case.inputs([2])
    torch.testing.assert_close(last_logits(first, inputs), last_logits(second, inputs), atol=1e-4, rtol=0)
    with torch.no_grad():
        next(second.parameters()).zero_()  # copies are independent
    assert not next(case.model("sdpa").parameters()).eq(0).all()
    assert not next(case.model("sdpa", seed=1).parameters()).equal(next(first.parameters()))
    assert case.model("sdpa", dtype=torch.bfloat16).dtype == torch.bfloat16
