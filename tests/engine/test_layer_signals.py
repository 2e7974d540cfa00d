"""What layer stages are given, against the stock model's own attention weights and hidden states."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from contract_helpers import close, families, forward, image_id, prompt, shared_model
from torch import Tensor

import oracle
import prune2drive as p2d
from prune2drive.families import find_family
from prune2drive.layer_pruners.base import LayerPruner
from prune2drive.tokens import Selection, Signal, VisualTokens

batches = pytest.mark.parametrize("batch", ["one", "left", "right"])
NEAR = 5e-5
FIRST, SECOND = 1, 3
"""Layers of the two stages that look: nothing is cut before the first."""


@dataclass(frozen=True)
class Spy(LayerPruner):
    """Needs everything, notes it, and keeps every second token."""

    name: ClassVar[str] = "spy"
    needs: ClassVar[frozenset[Signal]] = frozenset(
        set(Signal) - {Signal.ENCODER, Signal.SALIENCY, Signal.VISION_KEYS}
    )
    seen: ClassVar[list[VisualTokens]] = []
    layer: int = FIRST

    def select(self, tokens: VisualTokens, counts) -> Selection:
        self.seen.append(tokens)
        rows = [torch.arange(k) * 2 % max(n, 1) for k, n in zip(counts, tokens.lengths, strict=True)]
        return Selection(
            torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1), list(counts)
        )


def look(case, batch, attn, *layers):
    """What spies at ``layers`` are given, the first at half of the tokens and the second at a quarter."""
    Spy.seen.clear()
    model, inputs = shared_model(case, attn), prompt(case, batch)
    rates = [0.5, 0.25][: len(layers)]
    spies = [Spy(layer=layer) for layer in layers]
    with p2d.prune(
        model, spies if len(layers) > 1 else spies[0], rates if len(layers) > 1 else rates[0]
    ) as pruned:
        forward(model, inputs)
    return model, inputs, pruned.record, list(Spy.seen)


def columns_of(inputs, token, record, stage=None):
    """Prompt columns of each view's tokens, all samples in order; of a stage's survivors if given."""
    out = []
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        places = [c for c, t in enumerate(ids) if t == token]
        for name, view in record.views[row].items():
            alive = range(len(view)) if stage is None else record.stage(stage)[row][name].indices
            out.append((row, [places[int(view.index[i])] for i in alive]))
    return out


def instruction_of(inputs, token):
    """Columns of the text behind the last picture of each row, or all text."""
    out = []
    for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
        text = [c for c, t in enumerate(ids) if mask[c] and t != token]
        last = max((c for c, t in enumerate(ids) if mask[c] and t == token), default=-1)
        out.append([c for c in text if c > last] or text)
    return out


def everything(model, inputs, stages=()):
    """Attention weights of all layers and hidden states entering them, of the (masked) full sequence."""
    noted: dict[int, Tensor] = {}
    handles = []
    for number, layer in enumerate(oracle.language_model(model).layers):

        def spy(module, args, kwargs, number=number):
            noted[number] = (args[0] if args else kwargs["hidden_states"]).clone()

        handles.append(layer.register_forward_pre_hook(spy, with_kwargs=True))
    with oracle.masked(model, stages), torch.no_grad():
        out = model(**inputs, output_attentions=True)
    for handle in handles:
        handle.remove()
    return out.attentions, noted


@functools.cache
def reference(case, batch):
    return everything(shared_model(case, "eager"), prompt(case, batch))


@families
@batches
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_first_stage_sees_the_models_own_attention(case, batch, attn):
    _, inputs, record, (tokens,) = look(case, batch, attn, FIRST)
    attentions, hidden = reference(case, batch)
    token = image_id(case)
    asked = instruction_of(inputs, token)
    given = tokens.signals
    for v, (row, columns) in enumerate(columns_of(inputs, token, record)):
        n, rows = len(columns), asked[row]
        assert given.text_mask[row].tolist() == [i < len(rows) for i in range(given.text_mask.shape[1])]
        for name, layer in (("attention", FIRST - 1), ("own_attention", FIRST)):
            expected = attentions[layer][row][:, rows][:, :, columns].permute(2, 0, 1)
            got = getattr(given, name)
            close(got[v, :n, :, : len(rows)], expected, NEAR, name)
            assert not got[v, n:].any()
            assert not got[v, :, :, len(rows) :].any()
        last = attentions[FIRST - 1][row][:, rows[-1]][:, columns].T
        close(given.last_attention[v, :n], last, NEAR, "last attention")
        close(given.previous[v, :n], hidden[FIRST - 1][row, columns], NEAR, "previous")
        close(given.input[v, :n], hidden[0][row, columns], NEAR, "input")
        close(given.text[row, : len(rows)], hidden[FIRST][row, rows], NEAR, "text")
        close(given.text_input[row, : len(rows)], hidden[0][row, rows], NEAR, "text input")
        close(tokens.features[v, :n], hidden[FIRST][row, columns], NEAR, "features")


@families
@batches
def test_a_later_stage_sees_what_is_left(case, batch):
    """Attention among the survivors only; what entered layer 0 is remembered for those still there."""
    _, inputs, record, (_, tokens) = look(case, batch, "sdpa", FIRST, SECOND)
    token = image_id(case)
    stages = [(FIRST, oracle.dropped_columns(inputs, record, token, 0))]
    attentions, hidden = everything(shared_model(case, "eager"), inputs, stages)
    asked = instruction_of(inputs, token)
    for v, (row, columns) in enumerate(columns_of(inputs, token, record, 0)):
        n, rows = len(columns), asked[row]
        expected = attentions[SECOND - 1][row][:, rows][:, :, columns].permute(2, 0, 1)
        close(tokens.signals.attention[v, :n, :, : len(rows)], expected, NEAR, "attention")
        own = attentions[SECOND][row][:, rows][:, :, columns].permute(2, 0, 1)
        close(tokens.signals.own_attention[v, :n, :, : len(rows)], own, NEAR, "own attention")
        close(tokens.signals.previous[v, :n], hidden[SECOND - 1][row, columns], 1e-4, "previous")
        close(tokens.signals.input[v, :n], hidden[0][row, columns], NEAR, "input")


@families
def test_keys_are_those_in_the_cache(case):
    """Rotated keys of the layer before, and of the layer itself, as the unpruned model caches them."""
    model, inputs, record, (tokens,) = look(case, "left", "sdpa", FIRST)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    token = image_id(case)
    asked = instruction_of(inputs, token)
    for v, (row, columns) in enumerate(columns_of(inputs, token, record)):
        for got, layer in ((tokens.signals.keys, FIRST - 1), (tokens.signals.own_rotated_keys, FIRST)):
            keys = cache.layers[layer].keys[row].transpose(0, 1).flatten(1)
            close(got[v, : len(columns)], keys[columns], NEAR, "keys")
        keys = cache.layers[FIRST - 1].keys[row].transpose(0, 1).flatten(1)
        close(tokens.signals.text_keys[row, : len(asked[row])], keys[asked[row]], NEAR, "text keys")


@families
def test_keys_and_queries_before_rotation(case):
    """Their lengths are those of the rotated ones, and a layer's logits follow from them and the angles."""
    model, _, _, (tokens,) = look(case, "one", "sdpa", FIRST)
    given = tokens.signals
    heads = given.own_keys.shape[2]
    rotated = given.own_rotated_keys.unflatten(-1, (-1, given.own_keys.shape[-1]))
    rotated = rotated.repeat_interleave(heads // rotated.shape[2], 2)
    close(given.own_keys.norm(dim=-1), rotated.norm(dim=-1), 1e-4, "lengths")
    turned = float((given.own_keys - rotated).abs().max())
    layer = oracle.language_model(model).layers[FIRST]
    assert (turned > 1e-2) == find_family(model).rotates(layer)
    assert given.own_queries.shape == given.own_keys.shape


@pytest.mark.parametrize("batch", ["one", "left"])
def test_rope_alone_counted_by_hand(batch):
    """sqrt(d) D(m - n), no softmax, by loops over positions and frequencies; nothing for absent text."""
    from families_table import BY_NAME

    case = BY_NAME["llava"]
    model, inputs, record, (tokens,) = look(case, batch, "sdpa", FIRST)
    token = image_id(case)
    asked = instruction_of(inputs, token)
    frequencies = oracle.language_model(model).rotary_emb.inv_freq.double().tolist()
    width = 2 * len(frequencies)
    for v, (row, columns) in enumerate(columns_of(inputs, token, record)):
        rope, n = tokens.signals.rope[v], len(columns)
        assert rope.dtype is torch.float32
        for t, query in enumerate(asked[row]):
            expected = [
                width**0.5 * 2 / width * sum(math.cos((query - key) * f) for f in frequencies)
                for key in columns
            ]
            close(rope[:n, t], torch.tensor(expected), NEAR, "rope")
        assert not rope[n:].any()
        assert not rope[:, len(asked[row]) :].any()


def test_rope_alone_of_a_layer_that_does_not_rotate(monkeypatch):
    from families_table import BY_NAME

    case = BY_NAME["llava"]
    monkeypatch.setattr(type(find_family(shared_model(case))), "rotates", lambda self, layer: False)
    model, inputs, record, (tokens,) = look(case, "left", "sdpa", FIRST)
    width = 2 * len(oracle.language_model(model).rotary_emb.inv_freq)
    asked = instruction_of(inputs, image_id(case))
    for v, (row, columns) in enumerate(columns_of(inputs, image_id(case), record)):
        expected = torch.full((len(columns), len(asked[row])), width**0.5)
        close(tokens.signals.rope[v, : len(columns), : len(asked[row])], expected, NEAR, "rope")


def test_an_early_stage_cannot_look_before_the_first_layer():
    from families_table import BY_NAME

    with pytest.raises(p2d.PruneError, match="layer 1 or later"):
        p2d.prune(shared_model(BY_NAME["llava"]), Spy(layer=0), 0.5)


def test_text_rows_in_a_batch_with_a_row_without_pictures():
    from families_table import BY_NAME

    case = BY_NAME["llava"]
    Spy.seen.clear()
    model, inputs = shared_model(case), case.inputs([2, 0])
    with p2d.prune(model, Spy(), 0.5):
        forward(model, inputs)
    (tokens,) = Spy.seen
    expected = [len(rows) for rows in instruction_of(inputs, image_id(case))]
    assert tokens.signals.text_mask.sum(-1).tolist() == expected
