"""Mistakes that are easy to make on stock transformers, most of them silent; each has a test."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
import transformers
from contract_helpers import (
    RETENTION,
    TEETH,
    batches,
    close,
    compare_forward,
    compare_generate,
    families,
    fingerprint,
    forward,
    image_id,
    kernels,
    method_of,
    prompt,
    same,
    shared_model,
    some,
    stages_of,
)

import oracle
import prune2drive as p2d
from families_table import BY_NAME, FAMILIES, picture

NEW = 5
plain_positions = some(*[case.name for case in FAMILIES if not case.mrope])


def generate(model, inputs, **settings):
    return model.generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **settings})


# -- positions and masks ------------------------------------------------------------------------------------


@families
@kernels
@pytest.mark.parametrize("use_cache", [True, False])
def test_positions_with_gaps_are_not_packing(case, attn, use_cache):
    """No mask and gaps in the positions: stock masks would split the prompt into several sequences."""
    model, inputs = shared_model(case, attn), prompt(case, "one")
    with p2d.prune(model, retention=RETENTION) as pruned:
        given = forward(model, inputs, use_cache=use_cache)
        bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
        without = forward(model, bare, use_cache=use_cache)
    close(without, given, 1e-5, "logits")
    gone = oracle.dropped_columns(inputs, pruned.record, image_id(case))
    with oracle.masked(model, [(0, gone)]):
        expected = forward(model, inputs)
    close(without[0, -1], expected[0, -1], what="logits")


@families
def test_layer_stages_without_a_mask(case):
    model, inputs = shared_model(case, wide=False), prompt(case, "one")
    bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
    for method in (method_of(2), method_of(2, before=True)):
        retention = RETENTION if not isinstance(method, list) else [0.5, RETENTION]
        with p2d.prune(model, method, retention):
            given = [forward(model, inputs, use_cache=cache)[0, -1] for cache in (True, False)]
            without = [forward(model, bare, use_cache=cache)[0, -1] for cache in (True, False)]
        for one in (given[1], *without):
            close(one, given[0], 1e-5, "logits")


@some("llava", "internvl", "qwen2_5_vl", "gemma3")
def test_generating_without_a_mask(case):
    model, inputs = shared_model(case), prompt(case, "one")
    bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
    with p2d.prune(model, retention=RETENTION):
        expected = generate(model, inputs)
        assert generate(model, bare).equal(expected)
        assert generate(model, bare, use_cache=False).equal(expected)


@plain_positions
def test_forward_and_generate_number_left_padding_as_stock_does(case):
    """Bare forward counts columns, generate counts tokens; each must be gathered as the call would count."""
    model, inputs = shared_model(case, wide=False), prompt(case, "left")
    seen = []

    def spy(module, args, kwargs):
        given = kwargs.get("position_ids")  # None: the decoder itself counts columns
        given = torch.arange(kwargs["inputs_embeds"].shape[1])[None] if given is None else given
        seen.append(given.expand(2, -1).clone())

    handle = oracle.language_model(model).register_forward_pre_hook(spy, with_kwargs=True)
    try:
        forward(model, inputs)
        generate(model, inputs, max_new_tokens=1)
        with p2d.prune(model, retention=RETENTION) as pruned:
            forward(model, inputs)
            generate(model, inputs, max_new_tokens=1)
    finally:
        handle.remove()
    live = oracle.live_columns(inputs, oracle.dropped_columns(inputs, pruned.record, image_id(case)))
    for full, short in zip(seen[:2], seen[2:], strict=True):
        for row, columns in enumerate(live):
            assert short[row, -len(columns) :].tolist() == full[row, columns].tolist()
    assert not seen[2].equal(seen[3])
    if case.one_indexed:
        assert int(seen[0][0, 0]) == int(seen[1][0, 0]) == 1


@some("llava", "qwen2_5_vl", "paligemma", "idefics3")
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_positions_given_by_the_caller(case, method):
    model, inputs = shared_model(case), prompt(case, "one")
    layers = (0,) if method == "tfps" else (1,)
    if case.mrope:
        own = torch.tensor(oracle.mrope_positions(inputs, image_id(case))) * 2 + 5
    else:
        own = torch.arange(inputs["input_ids"].shape[1])[None] * 2 + 5
    with p2d.prune(model, method=method, retention=RETENTION) as pruned:
        got = forward(model, inputs, position_ids=own)
    stages = stages_of(inputs, pruned.record, image_id(case), *layers)
    with oracle.masked(model, stages):
        expected = forward(model, inputs, position_ids=own)
    close(got[0, -1], expected[0, -1], what="logits")


@families
@batches
def test_padding_is_not_a_placeholder(case, batch):
    model, inputs, token = shared_model(case), prompt(case, batch), image_id(case)
    pruned = p2d.prune(model, retention={"IMAGE_0": 0.9, "*": 0.2})
    short = pruned.rewrite(**inputs)
    pads = short["attention_mask"] == 0
    assert not (short["input_ids"][pads] == token).any()
    features = short["mm_encoder_outputs"]["image"].pooler_output
    handed = sum(entry.reshape(-1, entry.shape[-1]).shape[0] for entry in features)
    assert handed == int((short["input_ids"] == token).sum())


@some("llava", "qwen2_5_vl", "gemma3")
def test_a_pad_id_that_is_the_placeholder(case):
    """Some checkpoints pad with an id that means something else; ours must not count as a picture."""
    model, inputs, token = oracle.widen(case.model(attn="sdpa")), prompt(case, "left"), image_id(case)
    model.generation_config.pad_token_id = token
    short = p2d.prune(model, retention=RETENTION).rewrite(**inputs)
    assert not (short["input_ids"][short["attention_mask"] == 0] == token).any()


@some("gemma3", "paligemma", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
@batches
def test_token_types_are_cut(case, batch):
    model, inputs = shared_model(case), prompt(case, batch)
    name = "mm_token_type_ids" if case.mrope else "token_type_ids"
    pruned = p2d.prune(model, retention=RETENTION)
    short = pruned.rewrite(**inputs)
    gone = oracle.dropped_columns(inputs, pruned.record, image_id(case))
    for row, columns in enumerate(oracle.live_columns(inputs, gone)):
        got = short[name][row][short["attention_mask"][row].bool()].tolist()
        assert got == [inputs[name][row].tolist()[c] for c in columns]
    assert short[name].shape == short["input_ids"].shape


# -- features, containers, views ----------------------------------------------------------------------------


@families
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_views_of_ragged_size_through_forward_and_beams(case, method):
    rates = {"IMAGE_0": 1.0, "IMAGE_1": 0.01, "IMAGE_2": 0.6, "*": 0.3}
    layers = (0,) if method == "tfps" else (1,)
    model, inputs = shared_model(case, wide=method == "tfps"), prompt(case, "left")
    record = compare_forward(case, model, inputs, False, method, rates, layers)
    assert record.samples[0]["IMAGE_0"].kept == record.samples[0]["IMAGE_0"].before
    assert record.samples[0]["IMAGE_1"].kept == 1
    compare_generate(case, model, inputs, {"num_beams": 2, "max_new_tokens": 4}, method, rates, layers)


@families
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_two_generations_in_a_row(case, method):
    """Beam expansion writes into the encoder's output; a second call must not see that."""
    model, inputs = shared_model(case, wide=False), prompt(case, "left")
    with p2d.prune(model, method=method, retention=RETENTION) as pruned:
        first, kept = generate(model, inputs, num_beams=3), pruned.record.samples
        assert generate(model, inputs, num_beams=3).equal(first)
        assert pruned.record.samples == kept
        greedy = generate(model, inputs)
    with p2d.prune(model, method=method, retention=RETENTION):
        assert generate(model, inputs).equal(greedy)


@some("llava", "internvl", "qwen3_vl", "idefics3", "gemma3")
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_features_encoded_by_the_caller(case, method):
    """They may be used again, so they must come back as they were."""
    model, inputs = shared_model(case), prompt(case, "one")
    names = set(inspect.signature(model.base_model.get_image_features).parameters)
    own = {k: v for k, v in inputs.items() if k in names}
    with torch.no_grad():
        encoded = model.base_model.get_image_features(**own, return_dict=True)
    rows = [entry.clone() for entry in encoded.pooler_output]
    rest = {k: v for k, v in inputs.items() if k not in ("pixel_values", "pixel_attention_mask")}
    rest["mm_encoder_outputs"] = {"image": encoded}
    unpruned = forward(model, inputs)
    with p2d.prune(model, method=method, retention=RETENTION):
        expected = forward(model, inputs)
        first = forward(model, rest)
        second = forward(model, rest)
    assert same(first, expected)
    assert same(second, expected)
    assert all(same(a, b) for a, b in zip(rows, encoded.pooler_output, strict=True))
    assert same(forward(model, rest), unpruned)


@some("llava_next", "llava_onevision")
def test_newline_rows_are_kept_and_not_scored(case):
    model, inputs, token = shared_model(case), prompt(case, "left"), image_id(case)
    with torch.no_grad():
        wanted = {k: inputs[k] for k in ("pixel_values", "image_sizes", "batch_num_images") if k in inputs}
        out = model.base_model.get_image_features(**wanted, return_dict=True)
    flat = torch.cat([entry.reshape(-1, entry.shape[-1]) for entry in out.pooler_output])
    newline = (flat == model.base_model.image_newline).all(-1).tolist()
    assert any(newline)
    with p2d.prune(model, retention=RETENTION) as pruned:
        forward(model, inputs)
    gone = oracle.dropped_columns(inputs, pruned.record, token)
    assert not any(n and g for n, g in zip(newline, gone[inputs["input_ids"] == token].tolist(), strict=True))
    start, ends = 0, (inputs["input_ids"] == token).sum(1).tolist()
    for row, total in zip(pruned.record.views, ends, strict=True):
        covered = {i for view in row.values() for i in view.index.tolist()}
        assert covered == {i for i in range(total) if not newline[start + i]}
        start += total
    assert pruned.record.structure == sum(newline)


@families
@pytest.mark.parametrize("separator", [" ", ""], ids=["spaced", "adjacent"])
def test_a_view_is_a_picture_not_a_run(case, separator):
    """Tiles with markers between them are one view; pictures with nothing between them are several."""
    model = shared_model(case)
    inputs = case.inputs([6, 3], separator=separator)
    with p2d.prune(model, retention=RETENTION) as pruned:
        forward(model, inputs)
    for row, totals in zip(pruned.record.views, case.views([6, 3]), strict=True):
        assert list(row) == [f"IMAGE_{i}" for i in range(len(totals))]
        start = 0
        for view, total in zip(row.values(), totals, strict=True):
            index = view.index.tolist()
            assert start <= index[0]
            assert index[-1] < start + total
            assert len(index) == total or case.newline
            start += total


@some("internvl", "idefics3", "smolvlm", "ovis2", "aya_vision", "mistral3", "llava_next", "qwen2_5_vl")
@batches
def test_the_selection_looks_only_at_its_own_picture(case, batch):
    """What is kept of a picture is the same whichever pictures stand beside it."""
    model, inputs = shared_model(case), prompt(case, batch)
    pruned = p2d.prune(model, retention=RETENTION)
    pruned.rewrite(**inputs)
    together = pruned.record.samples
    for sample, images in enumerate([6] if batch == "one" else [6, 3]):
        for number in range(images):
            pruned.rewrite(**case.encode([case.prompt(1)], [[picture(0, sample, number)]]))
            assert pruned.record.samples[0]["IMAGE_0"] == together[sample][f"IMAGE_{number}"]


# -- generate, wrappers, loops ------------------------------------------------------------------------------


@some("llava", "internvl", "qwen2_5_vl")
def test_new_pictures_on_a_filled_cache_are_refused(case):
    model, inputs = shared_model(case), prompt(case, "one")
    with p2d.prune(model, retention=RETENTION), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(p2d.PruneError, match=r"new images.*cache.*new prompt"):
            model(**inputs, past_key_values=cache)
        longer = torch.cat([inputs["input_ids"], inputs["input_ids"]], 1)
        with pytest.raises(p2d.PruneError, match=r"new images.*cache.*new prompt"):
            model.generate(
                input_ids=longer,
                attention_mask=torch.ones_like(longer),
                pixel_values=inputs["pixel_values"],
                past_key_values=cache,
                max_new_tokens=2,
            )


@families
@pytest.mark.parametrize("inside", [True, False])
def test_a_decode_loop_of_ones_own(case, inside):
    """Rewritten inputs, then token by token with the positions of the full prompt."""
    model, inputs = shared_model(case), prompt(case, "one")
    length = inputs["input_ids"].shape[1]
    pruned = p2d.prune(model, retention=RETENTION)
    with pruned:
        expected = generate(model, inputs)[0, length:].tolist()
    if inside:
        pruned.attach()
    try:
        with torch.no_grad():
            short = pruned.rewrite(**inputs)
            out = model(**short, use_cache=True)
            got = []
            for step in range(NEW):
                token = out.logits[:, -1:].argmax(-1)
                got.append(int(token))
                axes = short["position_ids"][1:] if case.mrope else short["position_ids"]
                place = torch.tensor([[int(axes.max()) + 1 + step]])
                if case.mrope:
                    place = place.expand(3, 1, 1)
                out = model(
                    input_ids=token, position_ids=place, past_key_values=out.past_key_values, use_cache=True
                )
    finally:
        pruned.detach()
    assert got == expected


@families
def test_rewritten_inputs_can_be_generated_from(case):
    model, inputs = shared_model(case), prompt(case, "left")
    pruned = p2d.prune(model, retention=RETENTION)
    short = pruned.rewrite(**inputs)
    with pruned:
        expected = generate(model, inputs)
    if case.one_indexed:
        short["position_ids"] = short["position_ids"] - 1
    got = generate(model, short)
    assert got[:, -NEW:].equal(expected[:, -NEW:])


@families
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_logits_to_keep(case, method):
    model, inputs = shared_model(case), prompt(case, "one")
    length = inputs["input_ids"].shape[1]
    wanted = torch.tensor([length - 4, length - 2, length - 1])
    with p2d.prune(model, method=method, retention=RETENTION) as pruned:
        everything = forward(model, inputs)
        last = forward(model, inputs, logits_to_keep=3)
        named = forward(model, inputs, logits_to_keep=wanted)
    close(last, everything[:, -3:], 1e-5, "last")
    layers = (0,) if method == "tfps" else (1,)
    stages = stages_of(inputs, pruned.record, image_id(case), *layers)
    columns = oracle.live_columns(inputs, stages[-1][1])[0]
    close(named, everything[:, [columns.index(int(c)) for c in wanted]], 1e-5, "named")


@some("llava", "qwen2_5_vl")
def test_logits_of_a_pruned_column_are_refused(case):
    model, inputs, token = shared_model(case), prompt(case, "one"), image_id(case)
    with p2d.prune(model, retention=RETENTION) as pruned:
        forward(model, inputs)
        gone = oracle.dropped_columns(inputs, pruned.record, token)[0].nonzero()[0]
        with pytest.raises(p2d.PruneError, match=r"logits_to_keep.*pruned"):
            forward(model, inputs, logits_to_keep=gone)


@some("llava", "qwen3_vl", "gemma3")
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_copies_and_pickles_after_leaving(case, method):
    model, inputs = case.model(attn="sdpa"), prompt(case, "one")
    full = forward(model, inputs)
    with p2d.prune(model, method=method, retention=RETENTION):
        generate(model, inputs)
    twin = copy.deepcopy(model)
    assert same(forward(twin, inputs), full)
    if case.name != "llava":  # hooks that stock CLIP towers install in their first call cannot be pickled
        assert same(forward(pickle.loads(pickle.dumps(model)), inputs), full)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)


@some("llava", "qwen3_vl", "gemma3")
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_saving_inside_the_context(case, method, tmp_path):
    model, inputs = case.model(attn="sdpa"), prompt(case, "one")
    full, keys = forward(model, inputs), set(model.state_dict())
    with p2d.prune(model, method=method, retention=RETENTION):
        forward(model, inputs)
        assert set(model.state_dict()) == keys
        model.save_pretrained(tmp_path)
    again = (
        getattr(transformers, case.class_name).from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    )
    close(forward(again, inputs), full, 1e-5, "logits")
    assert "prune2drive" not in (tmp_path / "config.json").read_text()


@some("llava", "internvl", "idefics3", "qwen2_5_vl")
def test_chunked_prefill(case):
    model, inputs = shared_model(case), prompt(case, "one")
    if not generate(model, inputs, prefill_chunk_size=16).equal(generate(model, inputs)):
        pytest.skip("chunked prefill of this transformers version changes unpruned answers too")
    with p2d.prune(model, retention=RETENTION):
        whole = generate(model, inputs)
        assert generate(model, inputs, prefill_chunk_size=16).equal(whole)


@some("llava", "internvl", "paligemma")
def test_tuples_instead_of_an_output_object(case):
    model, inputs = shared_model(case), prompt(case, "one")
    with p2d.prune(model, retention=RETENTION), torch.no_grad():
        assert same(model(**inputs, return_dict=False)[0], model(**inputs).logits)


@some("llava", "qwen2_5_vl", "gemma3")
def test_two_models_do_not_disturb_each_other(case):
    model, other, inputs = shared_model(case), case.model(attn="sdpa"), prompt(case, "one")
    full = forward(other, inputs)
    with p2d.prune(model, retention=RETENTION):
        pruned = forward(model, inputs)
        assert same(forward(other, inputs), full)
        with p2d.prune(other, method="tfps-layer", retention=0.2):
            forward(other, inputs)
            assert same(forward(model, inputs), pruned)
    assert same(forward(other, inputs), full)


@some("llava", "gemma3", "qwen3_vl")
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_a_context_can_be_entered_again(case, method):
    model, inputs = shared_model(case), prompt(case, "one")
    full = forward(model, inputs)
    before = fingerprint(model)
    pruned = p2d.prune(model, method=method, retention=RETENTION)
    with pruned:
        first = forward(model, inputs)
    with pruned:
        assert same(forward(model, inputs), first)
    pruned.detach()
    assert fingerprint(model) == before
    assert float((forward(model, inputs)[0, -1] - full[0, -1]).abs().max()) == 0
    assert float((first[0, -1] - full[0, -1]).abs().max()) > TEETH


def test_words_alone_continue_a_filled_cache():
    """A second question about the same pictures passes through."""
    case = BY_NAME["llava"]
    model, inputs = shared_model(case), prompt(case, "one")
    pruned = p2d.prune(model, retention=RETENTION)
    question = torch.tensor([[20, 21, 22]])
    with torch.no_grad(), pruned:
        first = model(**inputs, use_cache=True)
        place = inputs["input_ids"].shape[1] + torch.arange(3)[None]
        second = model(input_ids=question, position_ids=place, past_key_values=first.past_key_values).logits
        longer = dict(inputs, input_ids=torch.cat([inputs["input_ids"], question], 1))
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        close(second, model(**longer).logits[:, -3:], what="logits")
