"""The engine's contract for one forward pass, for every family."""

from __future__ import annotations

import pytest
import torch
from contract_helpers import (
    RETENTION,
    TEETH,
    batches,
    close,
    compare_forward,
    families,
    fingerprint,
    forward,
    gather_live,
    gather_short,
    half_up,
    image_id,
    is_right,
    kernels,
    method_of,
    prompt,
    same,
    shared_model,
    some,
)

import oracle
import prune2drive as p2d
from families_table import FAMILIES, picture

CAMERAS = ["CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"]
MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@families
@batches
@pytest.mark.parametrize("method", ["tfps", "tfps-layer", "both"])
def test_keeping_all_is_bit_exact(case, batch, method):
    model, inputs = shared_model(case, "eager", wide=False), prompt(case, batch)
    chosen = method_of(1, before=True) if method == "both" else method
    retention = [1.0, 1.0] if method == "both" else 1.0
    full = forward(model, inputs)
    with p2d.prune(model, method=chosen, retention=retention) as pruned:
        got = forward(model, inputs)
    real = inputs["attention_mask"].bool()
    assert all(cell.kept == cell.before for row in pruned.record.samples for cell in row.values())
    assert same(got[real], full[real])


@families
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_keeping_all_is_bit_exact_in_bfloat16(case, method):
    model, inputs = shared_model(case, "eager", False, torch.bfloat16), prompt(case, "left")
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    full = forward(model, inputs)
    with p2d.prune(model, method=method, retention=1.0):
        got = forward(model, inputs)
    real = inputs["attention_mask"].bool()
    assert got.dtype == torch.bfloat16
    assert same(got[real], full[real])


@families
@batches
def test_text_survives_in_order(case, batch):
    model, inputs, token = shared_model(case), prompt(case, batch), image_id(case)
    pruned = p2d.prune(model, retention=RETENTION)
    short = pruned.rewrite(**inputs)
    gone = oracle.dropped_columns(inputs, pruned.record, token)
    for row, columns in enumerate(oracle.live_columns(inputs, gone)):
        left = short["input_ids"][row][short["attention_mask"][row].bool()].tolist()
        before = inputs["input_ids"][row].tolist()
        real = inputs["attention_mask"][row].tolist()
        assert left == [before[c] for c in columns]
        text = [t for t, keep in zip(before, real, strict=True) if keep and t != token]
        assert [t for t in left if t != token] == text
    assert short["input_ids"].shape == short["attention_mask"].shape


@families
@batches
@pytest.mark.parametrize("rate", ["0.3", "0.5", "0.01"])
def test_budget_is_exact(case, batch, rate):
    model, inputs = shared_model(case), prompt(case, batch)
    pruned = p2d.prune(model, retention=float(rate))
    short = pruned.rewrite(**inputs)
    record = pruned.record
    counts = [6] if batch == "one" else [6, 3]
    assert [len(row) for row in record.samples] == counts
    kept_total = 0
    for row, total in zip(record.samples, case.views(counts), strict=True):
        newlines = sum(total) - sum(cell.before for cell in row.values())
        assert newlines == 0 or case.newline
        for cell in row.values():
            assert cell.kept == half_up(cell.before, rate) == len(cell.indices)
            assert cell.indices == sorted(set(cell.indices))
            assert cell.indices[0] >= 0
            assert cell.indices[-1] < cell.before
            kept_total += cell.kept
    assert int((short["input_ids"] == image_id(case)).sum()) == kept_total + record.structure
    assert record.tokens[1] == kept_total


@families
def test_every_visual_token_is_in_one_view_or_structure(case):
    model, inputs = shared_model(case), prompt(case, "left")
    pruned = p2d.prune(model, retention=RETENTION)
    pruned.rewrite(**inputs)
    placeholders = (inputs["input_ids"] == image_id(case)).sum(1).tolist()
    structure = 0
    for row, total in zip(pruned.record.views, placeholders, strict=True):
        covered = sorted(i for view in row.values() for i in view.index.tolist())
        assert covered == sorted(set(covered))
        assert not covered or covered[-1] < total
        structure += total - len(covered)
    assert structure == pruned.record.structure
    assert bool(structure) == case.newline


@families
def test_two_runs_agree(case):
    model, inputs = shared_model(case), prompt(case, "left")
    with p2d.prune(model, retention=RETENTION) as pruned:
        first, one = forward(model, inputs), pruned.record.samples
        second, two = forward(model, inputs), pruned.record.samples
    assert one == two
    assert same(first, second)


@families
@pytest.mark.parametrize("batch", ["left", "right"])
def test_a_batch_of_two_is_two_batches_of_one(case, batch):
    model, inputs = shared_model(case, wide=False), prompt(case, batch)
    with p2d.prune(model, retention=RETENTION) as pruned:
        together, both = forward(model, inputs), pruned.record.samples
        ends = []
        for row, real in enumerate(pruned.rewrite(**inputs)["attention_mask"].bool()):
            ends.append(together[row, int(real.nonzero().max())])
        for sample in (0, 1):
            alone = forward(model, case.inputs([6, 3], only=sample))
            assert pruned.record.samples[0] == both[sample]
            close(ends[sample], alone[0, -1], what="logits")


@families
@kernels
@batches
@pytest.mark.parametrize("policy", ["keep", "reindex"])
def test_pruned_forward_is_the_masked_forward(case, attn, batch, policy):
    model, inputs = shared_model(case, attn), prompt(case, batch)
    compare_forward(case, model, inputs, is_right(batch), policy=policy)


@families
def test_rates_of_cameras_are_followed(case):
    rates = {"CAM_FRONT": 0.9, "CAM_BACK": 0.05, "*": 0.4}
    options = {"rig": "nuscenes"}
    model, inputs = shared_model(case), prompt(case, "one")
    record = compare_forward(case, model, inputs, False, retention=rates, **options)
    assert list(record.samples[0]) == CAMERAS
    for name, cell in record.samples[0].items():
        assert cell.kept == half_up(cell.before, rates.get(name, 0.4))


@families
def test_permuting_the_cameras_permutes_the_selection(case):
    model = shared_model(case)
    order = [4, 2, 0, 5, 1, 3]
    pictures = [picture(0, 0, i) for i in range(6)]
    text = [case.prompt(6)]
    straight = case.encode(text, [pictures])
    mixed = case.encode(text, [[pictures[i] for i in order]])
    rates = {"CAM_FRONT": 0.5, "*": 0.25}
    options = {"rig": "nuscenes", "retention": rates}
    first = p2d.prune(model, **options)
    first.rewrite(**straight)
    second = p2d.prune(model, cameras=[CAMERAS[i] for i in order], **options)
    second.rewrite(**mixed)
    assert list(second.record.samples[0]) == [CAMERAS[i] for i in order]
    assert first.record.samples[0] == second.record.samples[0]


@families
@pytest.mark.parametrize("method", ["tfps", "tfps-layer", "both"])
def test_leaving_restores_everything(case, method):
    model, inputs = shared_model(case), prompt(case, "left")
    full = forward(model, inputs)  # the first call of a stock model installs hooks of its own
    before = fingerprint(model)
    chosen = method_of(1, before=True) if method == "both" else method
    with p2d.prune(model, method=chosen, retention=[0.5, 0.2] if method == "both" else RETENTION):
        assert not same(forward(model, inputs), full)
    assert fingerprint(model) == before
    assert same(forward(model, inputs), full)


@families
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_an_exception_inside_restores_everything(case, method):
    model, inputs = shared_model(case), prompt(case, "one")
    full = forward(model, inputs)  # the first call of a stock model installs hooks of its own
    before = fingerprint(model)

    def fail(*_):
        raise RuntimeError("on purpose")

    def leave_by_exception():
        with p2d.prune(model, method=method, retention=RETENTION):
            forward(model, inputs)

    handle = oracle.language_model(model).layers[-1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        leave_by_exception()
    handle.remove()
    assert fingerprint(model) == before
    assert same(forward(model, inputs), full)


@families
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_the_context_survives_an_exception_in_a_call(case, method):
    """A call that fails half-way must not leave the next one half-pruned."""
    model, inputs = shared_model(case), prompt(case, "one")
    last = oracle.language_model(model).layers[-1]

    def fail(*_):
        raise RuntimeError("on purpose")

    with p2d.prune(model, method=method, retention=RETENTION):
        good = forward(model, inputs)
        handle = last.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            forward(model, inputs)
        handle.remove()
        assert same(forward(model, inputs), good)


@some(*MROPE)
@batches
@pytest.mark.parametrize("policy", ["keep", "reindex"])
def test_mrope_rows_follow(case, batch, policy):
    """The three axes of the surviving tokens, counted by hand; the text row has no gaps."""
    model, inputs, token = shared_model(case), prompt(case, batch), image_id(case)
    pruned = p2d.prune(model, retention=RETENTION, positions=policy)
    short = pruned.rewrite(**inputs)
    live = oracle.live_columns(inputs, oracle.dropped_columns(inputs, pruned.record, token))
    axes = oracle.mrope_positions(inputs, token)
    if policy == "reindex":
        axes = oracle.renumber(axes, live)
    width = short["input_ids"].shape[1]
    for row, columns in enumerate(live):
        places = slice(0, len(columns)) if is_right(batch) else slice(width - len(columns), width)
        got = short["position_ids"][:, row, places].tolist()
        assert got[0] == list(range(len(columns)))
        assert got[1:] == [[axis[row][c] for c in columns] for axis in axes]


@some(*[case.name for case in FAMILIES if not case.mrope])
@batches
@pytest.mark.parametrize("policy", ["keep", "reindex"])
def test_plain_positions_follow(case, batch, policy):
    model, inputs = shared_model(case), prompt(case, batch)
    pruned = p2d.prune(model, retention=RETENTION, positions=policy)
    short = pruned.rewrite(**inputs)
    gone = oracle.dropped_columns(inputs, pruned.record, image_id(case))
    live = oracle.live_columns(inputs, gone)
    axis = oracle.plain_positions(inputs, False, int(case.one_indexed))
    if policy == "reindex":
        axis = oracle.renumber([axis], live)[0]
    width = short["input_ids"].shape[1]
    for row, columns in enumerate(live):
        places = slice(0, len(columns)) if is_right(batch) else slice(width - len(columns), width)
        assert short["position_ids"][row, places].tolist() == [axis[row][c] for c in columns]


@some("qwen3_vl")
@batches
def test_deepstack_planes_follow(case, batch):
    """Every plane handed to the language model holds the rows of the kept tokens, and no others."""
    model, inputs, token = shared_model(case), prompt(case, batch), image_id(case)
    seen = []

    def spy(module, args, kwargs):
        seen.append([plane.clone() for plane in kwargs["deepstack_visual_embeds"]])

    handle = oracle.language_model(model).register_forward_pre_hook(spy, with_kwargs=True)
    try:
        forward(model, inputs)
        with p2d.prune(model, retention=RETENTION) as pruned:
            forward(model, inputs)
    finally:
        handle.remove()
    full, short = seen
    gone = oracle.dropped_columns(inputs, pruned.record, token)
    rows = [i for i, g in enumerate(gone[inputs["input_ids"] == token].tolist()) if not g]
    assert len(full) == len(short) == case.deepstack_layers
    for plane, cut in zip(full, short, strict=True):
        assert cut.shape[0] == len(rows)
        close(cut, plane[rows], 1e-5, "deepstack")


@some(*[case.name for case in FAMILIES if case.text_only_rows])
@pytest.mark.parametrize("batch_counts", [[2, 0], [0, 2]], ids=["second", "first"])
def test_a_row_without_pictures(case, batch_counts):
    model, inputs = shared_model(case), case.inputs(batch_counts)
    record = compare_forward(case, model, inputs, False)
    assert record.samples[batch_counts.index(0)] == {}


def hand_built(case, model, inputs, gone):
    """Logits of the shorter sequence, put together row by row and given to the language model itself."""
    captured = {}

    def spy(module, args, kwargs):
        captured.update(kwargs)

    decoder = oracle.language_model(model)
    handle = decoder.register_forward_pre_hook(spy, with_kwargs=True)
    try:
        forward(model, inputs)
    finally:
        handle.remove()
    columns = oracle.live_columns(inputs, gone)[0]
    token = image_id(case)
    embeds = torch.stack([captured["inputs_embeds"][0, c] for c in columns])[None]
    ones = torch.ones(1, len(columns), dtype=torch.long)
    extra = {"inputs_embeds": embeds, "attention_mask": ones}
    if case.mrope:
        axes = oracle.mrope_positions(inputs, token)
        extra["position_ids"] = torch.tensor([[[axis[0][c] for c in columns]] for axis in axes])
    else:
        extra["position_ids"] = torch.tensor([[c + int(case.one_indexed) for c in columns]])
    if case.deepstack_layers:
        visual = [c for c, t in enumerate(inputs["input_ids"][0].tolist()) if t == token]
        rows = [i for i, c in enumerate(visual) if c in set(columns)]
        extra["visual_pos_masks"] = torch.tensor([[c in set(visual) for c in columns]])
        extra["deepstack_visual_embeds"] = [
            torch.stack([plane[i] for i in rows]) for plane in captured["deepstack_visual_embeds"]
        ]
    inner = decoder
    if case.bidirectional:  # the module around the decoder turns token types into a mask
        types = inputs["token_type_ids"][0].tolist()
        extra["token_type_ids"] = torch.tensor([[types[c] for c in columns]])
        inner = model.base_model
    with torch.no_grad():
        return model.get_output_embeddings()(inner(**extra).last_hidden_state)


@families
def test_a_hand_built_shorter_sequence_is_the_same(case):
    model, inputs = shared_model(case, wide=False), prompt(case, "one")
    with p2d.prune(model, retention=RETENTION) as pruned:
        got = forward(model, inputs)
    gone = oracle.dropped_columns(inputs, pruned.record, image_id(case))
    close(got, hand_built(case, model, inputs, gone), what="logits")


@families
@batches
def test_rewritten_inputs_are_what_the_context_runs(case, batch):
    model, inputs = shared_model(case), prompt(case, batch)
    kept = {name: value.clone() for name, value in inputs.items()}
    pruned = p2d.prune(model, retention=RETENTION)
    short = pruned.rewrite(**inputs)
    outside = forward(model, short)
    with pruned:
        inside = forward(model, inputs)
    assert same(inside, outside)
    assert all(inputs[name].equal(value) for name, value in kept.items()), "the caller's inputs changed"


@some("llava", "internvl", "qwen2_5_vl", "gemma3")
def test_bfloat16_is_near_float32(case):
    """Half precision drops the same number of tokens and stays close to its own oracle."""
    model, inputs = shared_model(case, "sdpa", True, torch.bfloat16), prompt(case, "left")
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    with p2d.prune(model, retention=RETENTION) as pruned:
        short = forward(model, inputs)
    gone = oracle.dropped_columns(inputs, pruned.record, image_id(case))
    live = oracle.live_columns(inputs, gone)
    with oracle.masked(model, [(0, gone)]):
        expected = forward(model, inputs)
    got, wanted = gather_short(short, live, False), gather_live(expected, live)
    assert got.isfinite().all()
    assert float((got - wanted).float().abs().mean()) < TEETH
