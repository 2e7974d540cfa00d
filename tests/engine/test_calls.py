"""Calls as users make them: settings in odd places, masks left out, pictures hidden, turns continued."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

import prune2drive as p2d
from families_table import BY_NAME, picture
from prune2drive.engine.attach import MARK

SOME = ["llava", "internvl", "qwen2_5_vl", "gemma3"]


def greedy(model, inputs, **options):
    """Step logits of five greedy tokens."""
    options = {"max_new_tokens": 5, "do_sample": False, **options}
    out = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
    return torch.stack(out.logits)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("where", ["call's config", "model's config"])
def test_use_cache_may_be_switched_off_anywhere(name, where):
    case = BY_NAME[name]
    model, inputs = case.model("sdpa"), case.inputs([6])
    with p2d.prune(model, retention=0.3):
        want = greedy(model, inputs)
        if where == "model's config":
            model.generation_config.use_cache = False
            got = greedy(model, inputs)
        else:
            config = GenerationConfig(max_new_tokens=5, do_sample=False, use_cache=False, pad_token_id=0)
            got = greedy(model, inputs, generation_config=config)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_generate_infers_the_mask_of_a_padded_batch(name):
    case = BY_NAME[name]
    model, inputs = case.model(), case.inputs([6, 3])
    bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
    unpruned = greedy(model, bare)
    with p2d.prune(model, retention=1.0):
        assert torch.equal(greedy(model, bare), unpruned)
    with p2d.prune(model, retention=0.3):
        torch.testing.assert_close(greedy(model, bare), greedy(model, inputs), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl"])
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_a_camera_hidden_by_the_mask_stays_hidden(name, method):
    """A blind camera: its placeholders are masked out, so none of its tokens may come back."""
    case = BY_NAME[name]
    model, inputs = case.model(), case.inputs([3])
    columns = (inputs["input_ids"][0] == case.image_token_id(model)).nonzero().flatten()
    second = case.views([3])[0][:2]
    hidden = columns[second[0] : sum(second)]
    inputs["attention_mask"][0, hidden] = 0
    want = greedy(model, inputs)
    with p2d.prune(model, method, 1.0) as pruned:
        torch.testing.assert_close(greedy(model, inputs), want, atol=1e-4, rtol=0)
    assert list(pruned.record.samples[0]) == ["IMAGE_0", "IMAGE_2"]
    with p2d.prune(model, method, 0.3) as pruned:
        assert torch.isfinite(greedy(model, inputs)).all()
    assert list(pruned.record.samples[0]) == ["IMAGE_0", "IMAGE_2"]


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "qwen2_5_vl"])
def test_the_longest_row_may_be_all_text(name, side):
    """Its length does not change at the stage, the picture row's does."""
    case = BY_NAME[name]
    model = case.model()
    texts = [case.prompt(2, 0), case.prompt(0, 1, text="what next? " * 60)]
    pictures = [[picture(0, 0, i) for i in range(2)], []]
    both, alone = case.encode(texts, pictures, side), case.encode(texts[:1], pictures[:1])
    with p2d.prune(model, "tfps-layer", 0.3):
        want = model(**alone).logits[0, -1]
        out = model(**both).logits
    last = -1 if side == "left" else int(both["attention_mask"][0].sum()) - 1
    # The batch keeps its length; with right padding the picture row's tokens move to its front.
    if side == "right":
        dropped = both["input_ids"].shape[1] - out.shape[1]
        assert dropped == 0
        record_kept = alone["input_ids"].shape[1]
        with p2d.prune(model, "tfps-layer", 0.3) as pruned:
            model(**alone)
        before, kept = pruned.record.tokens
        last = record_kept - (before - kept) - 1
    torch.testing.assert_close(out[0, last], want, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_longest_row_may_be_all_text_with_labels():
    case = BY_NAME["llava"]
    model = case.model()
    texts = [case.prompt(2, 0), case.prompt(0, 1, text="what next? " * 60)]
    pictures = [[picture(0, 0, i) for i in range(2)], []]
    losses = []
    for inputs in (case.encode(texts, pictures, "right"), case.encode(texts[:1], pictures[:1])):
        labels = torch.full_like(inputs["input_ids"], -100)
        end = int(inputs["attention_mask"][0].sum())
        labels[0, end - 5 : end] = inputs["input_ids"][0, end - 5 : end]
        with p2d.prune(model, "tfps-layer", 0.3):
            losses.append(model(**inputs, labels=labels).loss)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl"])
def test_a_second_turn_on_a_shortened_cache_is_refused(name):
    case = BY_NAME[name]
    model, inputs = case.model(), case.inputs([3])
    more = torch.tensor([[70, 71, 72]])
    with p2d.prune(model, retention=0.3):
        first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, more], 1)
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with pytest.raises(p2d.PruneError, match="holds a pruned prompt"):
            model.generate(**again, past_key_values=first.past_key_values, max_new_tokens=2)
        wide = torch.ones(1, ids.shape[1], dtype=torch.long)
        with pytest.raises(p2d.PruneError, match="holds a pruned prompt"):
            model(input_ids=more, attention_mask=wide, past_key_values=first.past_key_values)


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl"])
def test_a_second_turn_continues_behind_a_layer_stage(name):
    """Layer 0 keeps the full cache, so the caller's full text fits it."""
    case = BY_NAME[name]
    model, inputs = case.model(), case.inputs([3])
    more = torch.tensor([[70, 71, 72]])
    with p2d.prune(model, "tfps-layer", 0.3):
        first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, more], 1)
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        got = greedy(model, {**again, "past_key_values": first.past_key_values})
        fresh = {**inputs, **again}
        if "mm_token_type_ids" in inputs:
            fresh["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 6))
        want = greedy(model, fresh)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_a_call_inside_a_call_is_pruned_as_well():
    """Contrastive decoding asks the model about the pictures at every step."""
    case = BY_NAME["llava"]
    model, inputs = case.model(), case.inputs([6])
    lengths = []

    class Asks(LogitsProcessor):
        def __call__(self, input_ids, scores):
            lengths.append(model(**inputs).logits.shape[1])
            return scores

    with p2d.prune(model, retention=0.3), torch.no_grad():
        plain = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        asked = model.generate(
            **inputs, max_new_tokens=2, do_sample=False, logits_processor=LogitsProcessorList([Asks()])
        )
        short = model(**inputs).logits.shape[1]
    assert lengths == [short] * 2
    assert torch.equal(plain, asked)


def test_a_failing_attach_leaves_nothing_behind(monkeypatch):
    case = BY_NAME["llava"]
    model, inputs = case.model(), case.inputs([2])
    plain = model(**inputs).logits
    pruned = p2d.prune(model, "tfps-layer", 0.3)
    monkeypatch.setattr(pruned._layers, "attach", lambda: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        pruned.attach()
    assert not {"forward", "generate", MARK} & set(model.__dict__)
    assert torch.equal(model(**inputs).logits, plain)


def test_the_core_of_a_model_is_not_a_model():
    with pytest.raises(p2d.PruneError, match="ForConditionalGeneration"):
        p2d.prune(BY_NAME["llava"].model().base_model, "tfps", 0.3)


def test_a_failed_call_leaves_no_old_record():
    case = BY_NAME["llava"]
    model, inputs = case.model(), case.inputs([2])
    with p2d.prune(model, retention=0.3) as pruned:
        model(**inputs)
        broken = {**inputs, "input_ids": inputs["input_ids"][:, 10:], "attention_mask": None}
        with pytest.raises(p2d.PruneError, match="placeholders"):
            model(**broken)
        with pytest.raises(p2d.PruneError, match="nothing recorded"):
            _ = pruned.record


def test_a_copy_inside_the_context_is_refused():
    model = BY_NAME["llava"].model()
    with p2d.prune(model, retention=0.3), pytest.raises(p2d.PruneError, match="leave the prune context"):
        copy.deepcopy(model)
    copy.deepcopy(model)


def test_a_copy_taken_after_leaving_is_a_model_of_its_own():
    case = BY_NAME["llava"]
    model, inputs = case.model(), case.inputs([2])
    with p2d.prune(model, retention=0.3):
        model(**inputs)
    twin = copy.deepcopy(model)
    with p2d.prune(twin, retention=0.3):
        assert twin(**inputs).logits.shape[1] < model(**inputs).logits.shape[1]


def test_features_encoded_beforehand_are_pruned_and_left_alone():
    """A search encodes its pictures once and asks many times."""
    case = BY_NAME["qwen3_vl"]
    model, inputs = case.model(), case.inputs([3])
    encoder = {k: inputs[k] for k in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        out = model.base_model.get_image_features(**encoder, return_dict=True)
        rest = {k: v for k, v in inputs.items() if k != "pixel_values"}
        with p2d.prune(model, retention=0.3):
            want = model(**inputs).logits
            for _ in range(2):
                got = model(**rest, mm_encoder_outputs={"image": out}).logits
                assert torch.equal(got, want)
                model.generate(**rest, mm_encoder_outputs={"image": out}, num_beams=2, max_new_tokens=2)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["keep", "reindex"])
@pytest.mark.parametrize("turn", ["forward", "generate"])
@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl", "mistral3"])
def test_new_tokens_alone_continue_a_shortened_prompt(name, turn, positions):
    """As if they had stood behind the same pruned prompt from the start."""
    case = BY_NAME[name]
    model, inputs = case.model(), case.inputs([3])
    more = torch.tensor([[70, 71, 72]])
    with p2d.prune(model, retention=0.3, positions=positions):
        first = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        cache = first.past_key_values
        # The last generated token was never fed to the model.
        fresh = torch.cat([first.sequences[:, -1:], more], 1)
        length = cache.get_seq_length() + fresh.shape[1]
        step = {"input_ids": fresh, "attention_mask": torch.ones(1, length, dtype=torch.long)}
        whole = {**inputs, "input_ids": torch.cat([first.sequences, more], 1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        if "mm_token_type_ids" in inputs:
            whole["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 6))
        want = model(**whole).logits[:, -1]
        if turn == "forward":
            if case.mrope:  # stock M-RoPE models take no mask here without position ids
                del step["attention_mask"]
            got = model(**step, past_key_values=cache).logits[:, -1]
        else:
            got = greedy(model, {**step, "past_key_values": cache}, max_new_tokens=1)[0]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_bare_decode_loop_continues_behind_inputs_from_rewrite():
    case = BY_NAME["llava"]
    model, inputs = case.model(), case.inputs([3])
    more = torch.tensor([[70]])
    with p2d.prune(model, retention=0.3) as pruned:
        out = model(**pruned.rewrite(**inputs), use_cache=True)
        got = model(input_ids=more, past_key_values=out.past_key_values).logits[:, -1]
        ids = torch.cat([inputs["input_ids"], more], 1)
        want = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[:, -1]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "internvl"])
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_a_cache_emptied_and_filled_anew_is_nobodys(name, method):
    case = BY_NAME[name]
    model, inputs = case.model(), case.inputs([2])
    text = torch.arange(70, 80)[None]
    cache = DynamicCache(config=model.config.get_text_config())
    with p2d.prune(model, method, 0.3):
        model(**inputs, past_key_values=cache, use_cache=True)
    cache.reset()
    if cache.get_seq_length():
        pytest.skip("this version keeps dynamic caches on reset")
    model(input_ids=text, past_key_values=cache, use_cache=True)
    with p2d.prune(model, method, 0.3):
        got = model(input_ids=text[:, :1], past_key_values=cache).logits[:, -1]
    want = model(input_ids=torch.cat([text, text[:, :1]], 1)).logits[:, -1]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_hiding_every_picture_is_an_error(method):
    case = BY_NAME["llava"]
    model, inputs = case.model(), case.inputs([2])
    inputs["attention_mask"][inputs["input_ids"] == case.image_token_id(model)] = 0
    with p2d.prune(model, method, 0.3), pytest.raises(p2d.PruneError, match="hides every picture"):
        model(**inputs)


def test_length_criteria_count_the_full_prompt():
    case = BY_NAME["llava"]
    model, inputs = case.model(), case.inputs([2])
    length = inputs["input_ids"].shape[1]
    criteria = StoppingCriteriaList([MaxLengthCriteria(length + 3)])
    with p2d.prune(model, retention=0.3):
        out = model.generate(**inputs, stopping_criteria=criteria, max_new_tokens=50, do_sample=False)
    assert out.shape[1] == length + 3


@torch.no_grad()
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_logits_may_be_asked_for_from_the_end_or_by_a_mask(method):
    case = BY_NAME["llava"]
    model, inputs = case.model(), case.inputs([2])
    flags = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
    flags[-2:] = True
    with p2d.prune(model, method, 0.3):
        want = model(**inputs, logits_to_keep=2).logits
        assert torch.equal(model(**inputs, logits_to_keep=torch.tensor([-2, -1])).logits, want)
        assert torch.equal(model(**inputs, logits_to_keep=flags).logits, want)


@torch.no_grad()
def test_layers_on_two_devices():
    """Masks, rotary tables and positions stay where the model made them; states move on."""
    case = BY_NAME["llava"]
    model, inputs = case.model("sdpa"), case.inputs([2, 1])
    moved = []

    def to_second(module, args, kwargs):
        def move(x):
            return x.to("meta") if isinstance(x, torch.Tensor) else x

        moved.append(module)
        kwargs = {k: tuple(map(move, v)) if isinstance(v, tuple) else move(v) for k, v in kwargs.items()}
        kwargs["past_key_values"] = None
        return tuple(map(move, args)), kwargs

    layers = model.base_model.language_model.layers
    layers[2].to("meta")
    layers[3].to("meta")
    model.base_model.language_model.norm.to("meta")
    model.lm_head.to("meta")
    with p2d.prune(model, ["tfps-layer"], 0.3):
        handles = [
            layer.register_forward_pre_hook(to_second, with_kwargs=True) for layer in (layers[2], layers[3])
        ]
        out = model(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    assert len(moved) == 2
    assert out.logits.device.type == "meta"


def test_new_tokens_follow_a_prompt_whose_last_token_was_dropped():
    """A prompt may end with a picture; what follows counts on from the full prompt, as unpruned."""
    case = BY_NAME["llava"]
    model = case.model(attn="sdpa")
    inputs = case.inputs([2], text="")
    keep = int((inputs["input_ids"] == case.image_token_id(model)).nonzero()[-1, 1]) + 1
    inputs["input_ids"] = inputs["input_ids"][:, :keep]
    inputs["attention_mask"] = inputs["attention_mask"][:, :keep]
    more = torch.tensor([[70, 71, 72]])
    pruned = p2d.prune(model, method="stride", retention=0.01)
    with torch.no_grad(), pruned:
        read = model(**inputs, use_cache=True)
        places = torch.arange(keep, keep + 3)[None]
        follow = model(input_ids=more, past_key_values=read.past_key_values).logits
        again = model(**inputs, use_cache=True)
        wanted = model(input_ids=more, position_ids=places, past_key_values=again.past_key_values).logits
    last = list(pruned.record.samples[0].values())[-1]
    assert last.before - 1 not in last.indices
    torch.testing.assert_close(follow, wanted)
