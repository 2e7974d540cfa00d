"""Every method with every family, through the engine: one table of methods times one table of families.

The oracle is the stock model on the full sequence: dropped columns are hidden by masks, merged rows are
written into the hidden states, and what keys gain is added to the logits. What a method chose is read from
what it returned; whether it chose well is for its own tests.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager

import pytest
import torch
from contract_helpers import (
    BATCHES,
    close,
    families,
    fingerprint,
    forward,
    gather_live,
    gather_short,
    image_id,
    is_right,
    prompt,
    same,
    shared_model,
    some,
    stages_of,
)

import oracle
import prune2drive as p2d
from methods_table import METHOD_IDS, METHODS, PAIRS, RIG, Pair
from prune2drive.engine import choose, layers
from prune2drive.families import find_family
from prune2drive.selectors.base import Selector
from prune2drive.tokens import Selection
from tiny_models import LAYERS

methods = pytest.mark.parametrize("method", METHODS, ids=METHOD_IDS)
RATE = 0.5
TELLING = {"apet-select+pact", "tfps+fastv", "visionzip+pact", "visionzip+sparsevlm-stage"}
TOLD = [pair for pair in PAIRS if pair.name in TELLING]
ENOUGH = 0.6
"""A layer-averaged share that every schedule can meet in a model of four layers."""


def options(batch: str) -> dict:
    """Cameras of a named batch: a ring, so that methods that look at neighbours have some."""
    return {"rig": RIG, "cameras": [RIG[:count] for count in BATCHES[batch][0]]}


def asked(method) -> dict:
    """Method and retention: half of the tokens, or what a schedule can keep on average."""
    stages = method.stages(LAYERS)
    if isinstance(method, Pair):
        return {"method": method.build(), "retention": p2d.LayerAveraged(ENOUGH)}
    return {"method": method.build(), "retention": RATE if len(stages) == 1 else ENOUGH}


@functools.cache
def reason(method_name: str, family_name: str) -> str | None:
    """Why a family cannot give a method what it needs; None if it can."""
    method = next(m for m in [*METHODS, *PAIRS] if m.name == method_name)
    from families_table import BY_NAME

    family = find_family(shared_model(BY_NAME[family_name]))
    for stage in method.stages(LAYERS):
        for signal in sorted(stage.needs):
            if (why := family.lacks(signal)) is not None:
                return why
    return None


def applies(method, case) -> bool:
    """Whether the method works with the family; if not, checks that the library says why."""
    why = reason(method.name, case.name)
    if why is not None:
        with pytest.raises(p2d.PruneError, match="needs") as error:
            p2d.prune(shared_model(case), **asked(method))
        assert why in str(error.value)
    return why is None


@contextmanager
def watched():
    """The selections of all stages, in order, as the engine gets them."""
    seen: list[Selection] = []
    own = choose.select

    def select(*args, **kwargs):
        seen.append(own(*args, **kwargs))
        return seen[-1]

    choose.select = layers.select = select
    try:
        yield seen
    finally:
        choose.select = layers.select = own


def written(inputs, record, chosen, starts, token, scale, weighs):
    """What merging stages wrote, for the oracle: rows by prompt column of the full prompt."""
    out, sizes = [], []
    ids = inputs["input_ids"].tolist()
    before = None
    for number, (selection, layer) in enumerate(zip(chosen, starts, strict=True)):
        places, rows, weights, at = [], [], [], 0
        for sample, views in enumerate(record.views):
            columns = [c for c, t in enumerate(ids[sample]) if t == token]
            for name, view in views.items():
                alive = before[sample][name].indices if before else range(len(view))
                for place in range(selection.counts[at]):
                    index = list(alive)[int(selection.indices[at, place])]
                    places.append((sample, columns[int(view.index[index])]))
                    if selection.features is not None:
                        rows.append(selection.features[at, place])
                    if weighs[number]:
                        weights.append(float(selection.sizes[at, place]))
                at += 1
        if rows:
            features = torch.stack(rows) * (scale if layer == 0 else 1)
            out.append(oracle.Written(layer, places, features))
        if weights:
            sizes.append((layer, places, weights))
        before = record.stage(number)
    return out, sizes


def sizes_bias(sizes, rows):
    """The oracle's bias for merged tokens: log size at a key, from the merging layer on."""

    def bias(layer, asking, total):
        if all(layer < start for start, *_ in sizes):
            return None
        extra = torch.zeros(rows, len(asking), total)
        for start, places, weights in sizes:
            if layer >= start:
                for (row, column), weight in zip(places, weights, strict=True):
                    extra[row, :, column] += torch.tensor(weight).log()
        return extra

    return bias if sizes else None


def feature_scale(case, model, inputs) -> float:
    """What the language model multiplies image features with before its first layer."""
    family = find_family(model)
    kwargs = {k: v for k, v in inputs.items() if k in family.encoder_names()}
    with torch.no_grad():
        flat = family.flatten(family.encode(kwargs).pooler_output)[0]
    noted = {}
    first = oracle.language_model(model).layers[0]

    def spy(module, args, kwargs):
        noted["hidden"] = args[0] if args else kwargs["hidden_states"]

    handle = first.register_forward_pre_hook(spy, with_kwargs=True)
    forward(model, inputs)
    handle.remove()
    entering = noted["hidden"][inputs["input_ids"] == image_id(case)]
    return float((entering / flat).nanmedian())


def run(case, method, batch, attn="sdpa"):
    """Pruned logits of a batch, its record and its selections."""
    model, inputs = shared_model(case, attn), prompt(case, batch)
    with watched() as seen, p2d.prune(model, **asked(method), **options(batch)) as pruned:
        short = forward(model, inputs)
    return model, inputs, short, pruned.record, seen


def expectations(case, method, model, inputs, record, seen):
    """The oracle's arguments for a run."""
    starts = method.layers(LAYERS)
    token = image_id(case)
    stages = stages_of(inputs, record, token, *starts)
    scale = feature_scale(case, model, inputs) if starts[0] == 0 and seen[0].features is not None else 1.0
    weighs = [stage.proportional for stage in method.stages(LAYERS)]
    writes, sizes = written(inputs, record, seen[: len(starts)], starts, token, scale, weighs)
    return stages, writes, sizes_bias(sizes, len(inputs["input_ids"]))


@methods
@families
@pytest.mark.parametrize("batch", ["one", "left", "right"])
def test_forward_equals_the_masked_full_sequence(case, method, batch):
    if not applies(method, case):
        return
    model, inputs, short, record, seen = run(case, method, batch)
    stages, writes, bias = expectations(case, method, model, inputs, record, seen)
    live = oracle.live_columns(inputs, stages[-1][1])
    assert bool(stages[-1][1].any()), "nothing was dropped"
    with oracle.masked(model, stages, writes, bias):
        expected = forward(model, inputs)
    right = is_right(batch)
    close(gather_short(short, live, right), gather_live(expected, live), what="logits")


@pytest.mark.parametrize("pair", PAIRS, ids=[pair.name for pair in PAIRS])
def test_any_selector_goes_before_any_layer_pruner(pair):
    from families_table import BY_NAME

    test_forward_equals_the_masked_full_sequence(BY_NAME["llava"], pair, "left")


@some("qwen2_5_vl", "qwen3_vl", "gemma3", "llava_onevision")
@pytest.mark.parametrize("pair", TOLD, ids=[pair.name for pair in TOLD])
def test_merging_pairs_on_other_families(case, pair):
    """Merged before and inside, weights and all, also through decoding."""
    test_forward_equals_the_masked_full_sequence(case, pair, "right")
    test_decoding_equals_the_masked_full_sequence(case, pair)


@methods
@families
def test_decoding_equals_the_masked_full_sequence(case, method):
    if not applies(method, case):
        return
    model, inputs = shared_model(case), prompt(case, "left")
    settings = {"max_new_tokens": 5, "do_sample": False}
    with watched() as seen, p2d.prune(model, **asked(method), **options("left")) as pruned:
        got = model.generate(**inputs, **settings)
    stages, writes, bias = expectations(case, method, model, inputs, pruned.record, seen)
    with oracle.masked(model, stages, writes, bias):
        expected = model.generate(**inputs, **settings)
    assert got.equal(expected)


@methods
@families
def test_keeping_all_changes_nothing(case, method):
    if not applies(method, case):
        return
    model, inputs = shared_model(case, "eager", wide=False), prompt(case, "left")
    full = forward(model, inputs)
    with p2d.prune(model, method=method.build(), retention=1.0, **options("left")) as pruned:
        got = forward(model, inputs)
    real = inputs["attention_mask"].bool()
    assert all(cell.kept == cell.before for row in pruned.record.samples for cell in row.values())
    assert same(got[real], full[real])


@methods
@families
def test_budgets_are_met_and_runs_agree(case, method):
    """Totals per sample; every stage chooses among what the one before left; twice the same."""
    if not applies(method, case):
        return
    _, _, logits, record, seen = run(case, method, "left")
    _, _, again, twin, _ = run(case, method, "left")
    assert same(logits, again)
    assert [record.stage(n) for n in range(len(seen))] == [twin.stage(n) for n in range(len(seen))]
    stages = method.stages(LAYERS)
    for number in range(len(stages)):
        for row, sample in enumerate(record.stage(number)):
            for name, cell in sample.items():
                assert cell.kept == len(cell.indices) == len(set(cell.indices))
                if number:
                    assert set(cell.indices) <= set(record.stage(number - 1)[row][name].indices)
    if len(stages) > 1:
        for seen_tokens, sample in zip(record.layer_averaged, record.samples, strict=True):
            asked_for = ENOUGH * sum(cell.before for cell in sample.values())
            assert asked_for - 1 < seen_tokens <= asked_for + 1e-6
    else:
        plain = p2d.prune(shared_model(case), "tfps", RATE, **options("left"))
        with plain:
            forward(shared_model(case), prompt(case, "left"))
        for mine, theirs in zip(record.samples, plain.record.samples, strict=True):
            difference = sum(c.kept for c in mine.values()) - sum(c.kept for c in theirs.values())
            truncating = stages[0].rounding == "truncate"
            assert difference == 0 or (truncating and -len(mine) <= difference < 0)


@methods
@families
def test_a_batch_is_its_samples(case, method):
    """What is kept of a sample does not depend on what else is in the batch.

    Through ``generate``, which counts positions without padding; a bare forward of a stock model shifts
    padded rows, and methods that look at rotated keys see that.
    """
    if not applies(method, case):
        return
    model = shared_model(case)
    counts, side = BATCHES["left"]
    settings = {"max_new_tokens": 1, "do_sample": False}
    with p2d.prune(model, **asked(method), **options("left")) as pruned:
        model.generate(**prompt(case, "left"), **settings)
    together = pruned.record.samples
    for number in range(len(counts)):
        alone = case.inputs(counts, padding_side=side, only=number)
        with p2d.prune(model, **asked(method), rig=RIG, cameras=[RIG[: counts[number]]]) as pruned:
            model.generate(**alone, **settings)
        assert pruned.record.samples[0] == together[number]


@methods
@families
def test_leaving_restores_the_model(case, method):
    if not applies(method, case):
        return
    model, inputs = shared_model(case), prompt(case, "one")
    full = forward(model, inputs)
    before = fingerprint(model)
    with p2d.prune(model, **asked(method), **options("one")):
        forward(model, inputs)
        assert fingerprint(model) != before
    assert fingerprint(model) == before
    assert same(forward(model, inputs), full)


@methods
@pytest.mark.parametrize("average", [0.3, 0.6, 0.9])
def test_a_layer_averaged_budget_is_met(method, average):
    """From below, within what one token more of the last stage would add; or refused with the reason."""
    from families_table import BY_NAME

    case = BY_NAME["llava"]
    model, inputs = shared_model(case), prompt(case, "left")
    pruned = p2d.prune(model, method.build(), p2d.LayerAveraged(average), **options("left"))
    starts = method.layers(LAYERS)
    # Layers before the first stage see everything, and one token of each view of 36 always stays.
    if starts[0] + (LAYERS - starts[0]) / 36 > average * LAYERS:
        with pruned, pytest.raises(p2d.PruneError, match="keeps at least"):
            forward(model, inputs)
        return
    with pruned:
        forward(model, inputs)
    for averaged, sample in zip(pruned.record.layer_averaged, pruned.record.samples, strict=True):
        target = average * sum(cell.before for cell in sample.values())
        assert target - (LAYERS - starts[-1]) / LAYERS - 1e-6 <= averaged <= target + 1e-6


SELECTORS = [m for m in METHODS if all(isinstance(s, Selector) for s in m.stages(LAYERS))]


@pytest.mark.parametrize("method", SELECTORS, ids=[m.name for m in SELECTORS])
def test_permuting_the_cameras_permutes_the_choice(method):
    """Which camera comes first in the prompt does not change what is kept of it."""
    from families_table import BY_NAME

    case = BY_NAME["llava"]
    model, inputs = shared_model(case), prompt(case, "one")
    order = [3, 0, 5, 1, 4, 2]
    turned = dict(inputs, pixel_values=inputs["pixel_values"][order])
    records = []
    for given, names in ((inputs, RIG), (turned, [RIG[n] for n in order])):
        with p2d.prune(model, **asked(method), rig=RIG, cameras=[names]) as pruned:
            forward(model, given)
        records.append(pruned.record.samples[0])
    assert {name: sorted(cell.indices) for name, cell in records[0].items()} == {
        name: sorted(cell.indices) for name, cell in records[1].items()
    }
