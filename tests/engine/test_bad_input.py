"""Bad input raises one error that names the thing and the remedy, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
import transformers
from contract_helpers import RETENTION, fingerprint, forward, prompt, same, shared_model, some

import prune2drive as p2d
import tiny_models
from families_table import BY_NAME
from oracle import language_model

LLAVA = BY_NAME["llava"]


@pytest.mark.parametrize(
    ("retention", "message"),
    [
        (0, r"retention 0 .*0\.10"),
        (-0.1, r"retention -0\.1 .*0\.10"),
        (1.5, r"retention 1\.5 .*write"),
        (30, r"retention 30 .*write 0\.30"),
        (float("nan"), r"retention nan .*0\.10"),
        ("x", r"'x'"),
        (None, r"retention=0\.10"),
        (True, r"True .*0\.10"),
        ({"CAM_FRONT": 2.0}, r"CAM_FRONT.*2"),
        ([0.1, 0.2], r"0\.1, 0\.2"),
    ],
    ids=str,
)
def test_retention(retention, message):
    model = shared_model(LLAVA)
    before = fingerprint(model)
    with pytest.raises(p2d.PruneError, match=message):
        p2d.prune(model, retention=retention)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tfsp"}, r"tfsp.*Did you mean 'tfps'"),
        ({"method": 3}, r"method 3"),
        ({"method": []}, r"method"),
        ({"method": ["tfps", "tfps"], "retention": [0.5, 0.2]}, r"first"),
        ({"method": ["tfps", "tfps-layer"]}, r"2 methods need .*2 retentions"),
        ({"positions": "kept"}, r"kept.*Did you mean 'keep'"),
        ({"rig": "nuscene"}, r"nuscene.*Did you mean 'nuscenes'"),
        ({"layout": "per-camra"}, r"per-camra.*Did you mean 'per-camera'"),
        ({"cameras": "CAM_FRONT"}, r"CAM_FRONT.*cameras="),
        ({"cameras": ["A", "A"]}, r"A.*twice"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options(options, message):
    model = shared_model(LLAVA)
    before = fingerprint(model)
    with pytest.raises(p2d.PruneError, match=message):
        p2d.prune(model, **{"retention": RETENTION, **options})
    assert fingerprint(model) == before


def raises_in_call(case, message, call, model=None, **options):
    """The call raises inside the context; afterwards the model is as it was."""
    model = model if model is not None else shared_model(case)
    inputs = prompt(case, "one")
    full = forward(model, inputs)  # the first call of a stock model installs hooks of its own
    before = fingerprint(model)
    with p2d.prune(model, **{"retention": RETENTION, **options}):
        with pytest.raises(p2d.PruneError, match=message):
            call(model, dict(inputs))
        if not options:
            assert not same(forward(model, inputs), full), "the context prunes on after an error"
    assert fingerprint(model) == before
    assert same(forward(model, inputs), full)


def run_forward(change):
    return lambda model, inputs: forward(model, change(inputs))


def run_generate(change):
    return lambda model, inputs: model.generate(**change(inputs), max_new_tokens=2)


both = pytest.mark.parametrize("run", [run_forward, run_generate], ids=["forward", "generate"])


@both
def test_unknown_camera(run):
    cameras = ["CAM_FRNT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"]
    message = r"CAM_FRNT is not a camera of rig nuscenes.*Did you mean 'CAM_FRONT'"
    raises_in_call(LLAVA, message, run(lambda x: x), rig="nuscenes", cameras=cameras)


@both
def test_rate_of_an_unknown_camera(run):
    rates = {"CAM_FRNT": 0.5, "*": 0.2}
    raises_in_call(
        LLAVA, r"CAM_FRNT.*Did you mean 'CAM_FRONT'", run(lambda x: x), rig="nuscenes", retention=rates
    )


@both
def test_number_of_pictures(run):
    three = LLAVA.inputs([3])
    raises_in_call(LLAVA, r"3 images.*6 cameras.*cameras=", run(lambda x: three), rig="nuscenes")


def test_a_model_without_pictures():
    config = transformers.LlamaConfig(**tiny_models.text_config("llama"))
    model = transformers.LlamaForCausalLM(config).eval()
    before = fingerprint(model)
    with pytest.raises(p2d.PruneError, match=r"llama|Llama"):
        p2d.prune(model, retention=RETENTION)
    assert fingerprint(model) == before


def test_not_a_model():
    with pytest.raises(p2d.PruneError):
        p2d.prune(torch.nn.Linear(2, 2), retention=RETENTION)


@some("llava", "qwen2_5_vl", "gemma3", "idefics3")
@both
def test_a_prompt_without_pictures(case, run):
    words = case.inputs([0])
    raises_in_call(case, r"no images.*pixel_values.*text-only", run(lambda x: words))


@both
def test_pictures_without_placeholders(run):
    def words(inputs):
        ids = inputs["input_ids"].masked_fill(
            inputs["input_ids"] == LLAVA.image_token_id(shared_model(LLAVA)), 20
        )
        return dict(inputs, input_ids=ids)

    raises_in_call(LLAVA, r"0 image placeholders.*216 visual tokens", run(words))


@some(
    "llava",
    "internvl",
    "qwen2_5_vl",
    "ovis2",
    "idefics3",
    "aya_vision",
    "mistral3",
    "paligemma",
    "llava_next",
)
@both
def test_a_truncated_prompt(case, run):
    def cut(inputs):
        length = inputs["input_ids"].shape[1]
        return {
            k: v[:, : length - 40] if v.shape[:2] == (1, length) and v.dim() == 2 else v
            for k, v in inputs.items()
        }

    raises_in_call(case, r"placeholders.*truncated", run(cut))


@both
def test_embeddings_instead_of_ids(run):
    def embed(inputs):
        ids = inputs.pop("input_ids")
        return dict(inputs, inputs_embeds=shared_model(LLAVA).get_input_embeddings()(ids).detach())

    raises_in_call(LLAVA, r"pass input_ids, not inputs_embeds", run(embed))


@both
def test_a_mask_with_four_dimensions(run):
    def mask(inputs):
        length = inputs["input_ids"].shape[1]
        return dict(inputs, attention_mask=torch.ones(1, 1, length, length))

    raises_in_call(LLAVA, r"attention_mask of shape \(1, 1, .*\(batch, length\)", run(mask))


@some("qwen2_5_vl", "llava_onevision")
@both
def test_videos(case, run):
    def video(inputs):
        return dict(inputs, pixel_values_videos=inputs["pixel_values"])

    raises_in_call(case, r"videos are not pruned.*frames", run(video))


@some("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
def test_token_types_left_out(case):
    def strip(inputs):
        inputs.pop("mm_token_type_ids")
        return inputs

    raises_in_call(case, r"mm_token_type_ids is missing.*processor", run_forward(strip))


@both
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_features_that_are_not_numbers(run, method):
    """One camera's picture is broken: the error says whose."""
    model, inputs = shared_model(LLAVA), prompt(LLAVA, "one")
    full = forward(model, inputs)  # the first call of a stock model installs hooks of its own
    before = fingerprint(model)
    broken = dict(inputs, pixel_values=inputs["pixel_values"].clone())
    broken["pixel_values"][4] = float("nan")
    with p2d.prune(model, method=method, retention=RETENTION, rig="nuscenes"):
        with pytest.raises(p2d.PruneError, match=r"CAM_.*nan.*check the picture") as caught:
            run(lambda _: broken)(model, broken)
        if method == "tfps":
            assert "CAM_BACK_LEFT" in str(caught.value)
    assert fingerprint(model) == before
    assert same(forward(model, inputs), full)


def test_a_projector_that_is_not_a_number():
    model, inputs = LLAVA.model(), prompt(LLAVA, "one")
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.fill_(float("nan"))
    forward(model, inputs)
    before = fingerprint(model)
    with (
        p2d.prune(model, retention=RETENTION, rig="nuscenes"),
        pytest.raises(p2d.PruneError, match="CAM_FRONT"),
    ):
        forward(model, inputs)
    assert fingerprint(model) == before


@some("llava", "qwen3_vl")
def test_attaching_twice(case):
    model = shared_model(case)
    before = fingerprint(model)
    with p2d.prune(model, retention=RETENTION):
        second = p2d.prune(model, retention=0.5)
        with pytest.raises(p2d.PruneError, match=r"already pruned.*detach"):
            second.attach()
        second.detach()  # must not take the first one off
        assert fingerprint(model) != before
    assert fingerprint(model) == before


def test_no_record_before_a_call():
    pruned = p2d.prune(shared_model(LLAVA), retention=RETENTION)
    with pytest.raises(p2d.PruneError, match=r"nothing recorded yet"):
        _ = pruned.record


def test_rewriting_with_a_layer_stage():
    pruned = p2d.prune(shared_model(LLAVA), method="tfps-layer", retention=RETENTION)
    with pytest.raises(p2d.PruneError, match=r"inside a language model"):
        pruned.rewrite(**prompt(LLAVA, "one"))


def test_chunked_prefill_with_a_layer_stage():
    call = lambda model, inputs: model.generate(**inputs, prefill_chunk_size=16, max_new_tokens=2)  # noqa: E731
    raises_in_call(LLAVA, r"prefill_chunk_size", call, method="tfps-layer")
    assert len(language_model(shared_model(LLAVA)).layers) == tiny_models.LAYERS
