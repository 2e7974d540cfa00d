"""Pruned generation against the masking oracle, for every family."""

from __future__ import annotations

import pytest
import torch
from contract_helpers import (
    RETENTION,
    close,
    compare_generate,
    families,
    fingerprint,
    forward,
    image_id,
    kernels,
    prompt,
    shared_model,
    some,
)
from transformers import CompileConfig, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

import oracle
import prune2drive as p2d
from families_table import BY_NAME

NEW = 6


def generate(model, inputs, **settings):
    return model.generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **settings})


@families
@kernels
@pytest.mark.parametrize("batch", ["one", "left"])
def test_greedy(case, attn, batch):
    compare_generate(case, shared_model(case, attn), prompt(case, batch), {})


@families
def test_greedy_reindexed(case):
    compare_generate(case, shared_model(case), prompt(case, "left"), {}, policy="reindex")


@families
@pytest.mark.parametrize("batch", ["one", "left"])
def test_beams(case, batch):
    compare_generate(case, shared_model(case), prompt(case, batch), {"num_beams": 3})


@families
def test_beams_with_views_of_different_budget(case):
    """Features in one tensor for all pictures must still be repeated sample by sample."""
    rates = {"IMAGE_0": 0.9, "IMAGE_2": 0.05, "*": 0.4}
    settings = {"num_beams": 3, "num_return_sequences": 2}
    compare_generate(case, shared_model(case), prompt(case, "left"), settings, retention=rates)


@families
def test_sampling_several_sequences(case):
    settings = {"do_sample": True, "num_return_sequences": 3, "temperature": 0.7}
    got = compare_generate(case, shared_model(case), prompt(case, "left"), settings)
    assert got.shape[0] == 6
    assert not got[0].equal(got[1])


@families
@pytest.mark.parametrize("batch", ["one", "left"])
@pytest.mark.parametrize("policy", ["keep", "reindex"])
def test_logits_of_every_step(case, batch, policy):
    """Sequences of random models hide small errors; the logits of each step do not."""
    model, inputs = shared_model(case), prompt(case, batch)
    settings = {"return_dict_in_generate": True, "output_logits": True}
    with p2d.prune(model, retention=RETENTION, positions=policy) as pruned:
        got = generate(model, inputs, **settings)
    gone = oracle.dropped_columns(inputs, pruned.record, image_id(case))
    explicit = {}
    if policy == "reindex":
        explicit["position_ids"] = oracle.reindexed(inputs, gone, image_id(case), case.mrope, True, 0)
    with oracle.masked(model, [(0, gone)]):
        expected = generate(model, inputs, **settings, **explicit)
    assert got.sequences.equal(expected.sequences)
    close(torch.stack(got.logits), torch.stack(expected.logits), what="step logits")


@families
@pytest.mark.parametrize("batch", ["one", "left"])
def test_static_cache_equals_dynamic(case, batch):
    model, inputs = shared_model(case, wide=False), prompt(case, batch)
    with p2d.prune(model, retention=RETENTION):
        dynamic = generate(model, inputs)
        static = generate(model, inputs, cache_implementation="static")
    assert static.equal(dynamic)


@families
@pytest.mark.parametrize("batch", ["one", "left"])
def test_no_cache_equals_cache(case, batch):
    model, inputs = shared_model(case), prompt(case, batch)
    settings = {"return_dict_in_generate": True, "output_logits": True}
    with p2d.prune(model, retention=RETENTION):
        cached = generate(model, inputs, **settings)
        bare = generate(model, inputs, use_cache=False, **settings)
    assert bare.sequences.equal(cached.sequences)
    close(torch.stack(bare.logits), torch.stack(cached.logits), what="step logits")


@families
def test_keeping_all_generates_the_same(case):
    model, inputs = shared_model(case, "eager", wide=False), prompt(case, "left")
    settings = {"return_dict_in_generate": True, "output_logits": True}
    full = generate(model, inputs, **settings)
    for method in ("tfps", "tfps-layer"):
        with p2d.prune(model, method=method, retention=1.0):
            got = generate(model, inputs, **settings)
        assert got.sequences.equal(full.sequences)
        assert torch.stack(got.logits).equal(torch.stack(full.logits))


@families
@pytest.mark.parametrize("beams", [1, 2])
def test_sequences_hold_the_full_prompt(case, beams):
    model, inputs = shared_model(case), prompt(case, "left")
    length = inputs["input_ids"].shape[1]
    with p2d.prune(model, retention=RETENTION):
        plain = generate(model, inputs, num_beams=beams)
        wrapped = generate(model, inputs, num_beams=beams, return_dict_in_generate=True)
    assert plain.shape == (2, length + NEW)
    assert plain[:, :length].equal(inputs["input_ids"])
    assert wrapped.sequences.equal(plain)
    assert wrapped.past_key_values is not None


@families
@pytest.mark.parametrize("form", ["argument", "config", "model"])
def test_max_length_counts_the_full_prompt(case, form):
    inputs = prompt(case, "left")
    model = shared_model(case) if form != "model" else oracle.widen(case.model(attn="sdpa"))
    total = inputs["input_ids"].shape[1] + 4
    settings = {"do_sample": False, "max_new_tokens": None}
    if form == "argument":
        settings["max_length"] = total
    elif form == "config":
        settings = {"generation_config": GenerationConfig(max_length=total, pad_token_id=0)}
    else:
        model.generation_config.max_length = total
    with p2d.prune(model, retention=RETENTION):
        got = model.generate(**inputs, **settings)
    assert got.shape[1] == total
    with p2d.prune(model, retention=RETENTION):
        assert got.equal(generate(model, inputs, max_new_tokens=4))


@some("llava", "qwen2_5_vl", "gemma3", "paligemma")
@pytest.mark.parametrize("name", ["min_length", "min_new_tokens"])
def test_min_length_counts_the_full_prompt(case, name):
    """The first greedy token is made the end of sequence, so that only the minimum keeps it out."""
    model, inputs = shared_model(case), prompt(case, "one")
    length = inputs["input_ids"].shape[1]
    with p2d.prune(model, retention=RETENTION):
        end = int(generate(model, inputs)[0, length])
    least = {"min_length": length + 3} if name == "min_length" else {"min_new_tokens": 3}
    got = compare_generate(case, model, inputs, {**least, "eos_token_id": end, "max_new_tokens": 8})
    assert end not in got[0, length : length + 3].tolist()


@some("llava", "internvl", "idefics3", "gemma3")
def test_default_length_is_the_stock_one(case):
    """Without any length the call produces as many new tokens as it does unpruned."""
    model, inputs = shared_model(case), prompt(case, "one")
    full = model.generate(**inputs, do_sample=False)
    with p2d.prune(model, retention=RETENTION):
        assert model.generate(**inputs, do_sample=False).shape == full.shape


@families
def test_cached_decode_equals_recomputing(case):
    """The answer appended to the prompt, in one pass with the same kept tokens, gives the same logits."""
    model, inputs = shared_model(case), prompt(case, "left")
    settings = {"return_dict_in_generate": True, "output_logits": True}
    with p2d.prune(model, retention=RETENTION) as pruned:
        out = generate(model, inputs, **settings)
        kept = pruned.record.samples
        longer = dict(inputs, input_ids=out.sequences)
        longer["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW), value=1)
        for name, fill in (("token_type_ids", int(case.name == "paligemma")), ("mm_token_type_ids", 0)):
            if name in inputs:
                longer[name] = torch.nn.functional.pad(inputs[name], (0, NEW), value=fill)
        again = forward(model, longer)
        assert pruned.record.samples == kept
    close(again[:, -NEW - 1 : -1], torch.stack(out.logits, 1), what="teacher-forced logits")


@some("llava", "internvl", "idefics3", "ovis2", "mistral3", "qwen2_5_vl")
def test_prompt_lookup(case):
    model, inputs = shared_model(case), prompt(case, "one")
    with p2d.prune(model, retention=RETENTION):
        plain = generate(model, inputs, max_new_tokens=10)
        looked = generate(model, inputs, max_new_tokens=10, prompt_lookup_num_tokens=3)
    assert looked.equal(plain)


class Collector(BaseStreamer):
    def __init__(self):
        self.pieces = []
        self.ended = False

    def put(self, value):
        self.pieces.append(value.flatten().tolist())

    def end(self):
        self.ended = True


@some("llava", "qwen3_vl", "gemma3", "paligemma")
def test_streamer(case):
    model, inputs = shared_model(case), prompt(case, "one")
    streamer = Collector()
    with p2d.prune(model, retention=RETENTION):
        out = generate(model, inputs, streamer=streamer)
    assert streamer.ended
    assert [token for piece in streamer.pieces[1:] for token in piece] == out[
        0, inputs["input_ids"].shape[1] :
    ].tolist()


class Force(LogitsProcessor):
    """Makes a token certain at one step, counted by calls."""

    def __init__(self, token, step):
        self.token, self.step, self.calls = token, step, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls - 1 == self.step:
            scores = torch.full_like(scores, -1e9)
            scores[:, self.token] = 0
        return scores


@families
def test_a_generated_placeholder_does_not_break_decode(case):
    model, inputs, token = shared_model(case), prompt(case, "left"), image_id(case)

    def forced():
        return {"logits_processor": LogitsProcessorList([Force(token, 1)])}

    got = compare_generate(case, model, inputs, forced(), oracle_settings=forced())
    assert (got[:, inputs["input_ids"].shape[1] + 1] == token).all()


@families
def test_generation_leaves_nothing_behind(case):
    model, inputs = shared_model(case), prompt(case, "left")
    full = generate(model, inputs)  # the first call of a stock model installs hooks of its own
    before = fingerprint(model)
    with p2d.prune(model, retention=RETENTION):
        generate(model, inputs, num_beams=2)
    assert fingerprint(model) == before
    assert generate(model, inputs).equal(full)


@some("llava", "qwen2_vl")
def test_positional_inputs(case):
    """``generate(ids, ...)`` and ``forward(ids, ...)`` with the ids as a positional argument."""
    model, inputs = shared_model(case), prompt(case, "one")
    rest = {k: v for k, v in inputs.items() if k != "input_ids"}
    with p2d.prune(model, retention=RETENTION):
        assert model.generate(inputs["input_ids"], **rest, max_new_tokens=NEW, do_sample=False).equal(
            generate(model, inputs)
        )
        with torch.no_grad():
            assert model(inputs["input_ids"], **rest).logits.equal(forward(model, inputs))


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3"])
def test_compiled_decode_is_one_graph_and_answers_the_same(name):
    """A static cache and a compiled step, as serving uses them; fullgraph raises on any break."""
    case = BY_NAME[name]
    model, inputs = case.model(attn="sdpa"), case.inputs([6, 3])
    config = CompileConfig(backend="eager", fullgraph=True, mode=None)
    config._compile_all_devices = True  # transformers compiles on accelerators only, unless told
    options = {"max_new_tokens": 5, "do_sample": False}
    torch._dynamo.reset()
    with p2d.prune(model, retention=0.3):
        want = model.generate(**inputs, **options)
        got = model.generate(**inputs, **options, cache_implementation="static", compile_config=config)
    assert torch.equal(got, want)
