"""Training through a pruned prompt: loss and gradients, checkpointing, adapters."""

from __future__ import annotations

import peft
import pytest
import torch
from contract_helpers import (
    RETENTION,
    close,
    families,
    fingerprint,
    forward,
    image_id,
    method_of,
    prompt,
    same,
    shared_model,
    some,
    stages_of,
)
from transformers.modeling_layers import GradientCheckpointingLayer

import oracle
import prune2drive as p2d


def text_labels(case, inputs):
    """Every text token but the first of its row is asked for."""
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == image_id(case), -100)
    labels[inputs["attention_mask"] == 0] = -100
    for row, real in enumerate(inputs["attention_mask"].tolist()):
        labels[row, real.index(1)] = -100
    return labels


def gradients(model, loss):
    """Gradients of every parameter the loss reaches."""
    model.zero_grad()
    loss.backward()
    out = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return out


def compare_gradients(got, expected):
    """Relative to the largest entry of each tensor; those that are zero but for rounding are left out."""
    top = max(float(grad.abs().max()) for grad in expected.values())
    compared = 0
    for name, grad in expected.items():
        scale = float(grad.abs().max())
        if scale < 1e-5 * top:
            continue
        error = float((got[name] - grad).norm() / grad.norm())
        assert error < 1e-4, f"{name}: relative error {error:.3g}"
        compared += 1
    return compared


@families
@pytest.mark.parametrize("batch", ["left", "right"])
def test_loss_and_gradients(case, batch):
    model, inputs, token = shared_model(case), prompt(case, batch), image_id(case)
    labels = text_labels(case, inputs)
    with p2d.prune(model, retention=RETENTION) as pruned:
        loss = model(**inputs, labels=labels).loss
    got = gradients(model, loss)
    gone = oracle.dropped_columns(inputs, pruned.record, token)
    live = oracle.live_columns(inputs, gone)
    with oracle.masked(model, [(0, gone)]):
        logits = model(**inputs).logits
    shifted = torch.cat([logits[r, c[:-1]] for r, c in enumerate(live)])
    wanted = torch.cat([labels[r, c[1:]] for r, c in enumerate(live)])
    reference = torch.nn.functional.cross_entropy(shifted, wanted)
    expected = gradients(model, reference)
    close(loss.detach(), reference.detach(), 1e-5, "loss")
    assert compare_gradients(got, expected) > 20
    decoder = sum("layers" in name and "q_proj" in name and "vision" not in name for name in expected)
    assert decoder >= 4
    assert any("vision" in n or "visual" in n or "project" in n or "connector" in n for n in expected)


@families
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_gradient_checkpointing(case, method):
    inputs = prompt(case, "left")
    labels = text_labels(case, inputs)
    model = case.model(attn="sdpa").train()
    with p2d.prune(model, method=method, retention=RETENTION):
        loss = model(**inputs, labels=labels, use_cache=False).loss
        expected = gradients(model, loss)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if method != "tfps" and "__call__" in vars(GradientCheckpointingLayer):
            # Older versions checkpoint the hooks along with the layer, so a layer stage is refused.
            with pytest.raises(p2d.PruneError, match="gradient checkpointing off"):
                model(**inputs, labels=labels)
            return
        again = model(**inputs, labels=labels).loss
        got = gradients(model, again)
    close(again.detach(), loss.detach(), 1e-6, "loss")
    assert got.keys() == expected.keys()
    compare_gradients(got, expected)


@families
def test_checkpointing_with_the_backward_pass_outside(case):
    """The recomputation in ``backward`` may happen after the context is left."""
    inputs = prompt(case, "left")
    labels = text_labels(case, inputs)
    model = case.model(attn="sdpa").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with p2d.prune(model, retention=RETENTION):
        inside = gradients(model, model(**inputs, labels=labels, use_cache=False).loss)
    with p2d.prune(model, retention=RETENTION):
        loss = model(**inputs, labels=labels, use_cache=False).loss
    compare_gradients(gradients(model, loss), inside)


def adapted(case):
    """A model with a fresh adapter, which does nothing yet."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(case.model(attn="sdpa"), config).eval()


@families
@pytest.mark.parametrize("method", ["tfps", "tfps-layer"])
def test_adapters(case, method):
    base, wrapped, inputs = shared_model(case, wide=False), adapted(case), prompt(case, "left")
    settings = {"max_new_tokens": 4, "do_sample": False}
    full = forward(wrapped, inputs)  # the first call of a stock model installs hooks of its own
    before = fingerprint(wrapped)
    with p2d.prune(base, method=method, retention=RETENTION):
        expected = forward(base, inputs)
        sequences = base.generate(**inputs, **settings)
    with p2d.prune(wrapped, method=method, retention=RETENTION) as pruned:
        close(forward(wrapped, inputs), expected, 1e-5, "logits")
        assert wrapped.generate(**inputs, **settings).equal(sequences)
        assert pruned.record.tokens[1] < pruned.record.tokens[0]
    assert fingerprint(wrapped) == before
    assert same(forward(wrapped, inputs), full)


@some("llava", "qwen2_5_vl", "gemma3")
def test_training_an_adapter(case):
    wrapped, inputs = adapted(case).train(), prompt(case, "left")
    with p2d.prune(wrapped, retention=RETENTION):
        wrapped(**inputs, labels=text_labels(case, inputs)).loss.backward()
    grads = [p.grad for n, p in wrapped.named_parameters() if "lora_B" in n and "vision" not in n]
    assert any(g is not None and float(g.abs().max()) > 0 for g in grads)


@some("llava", "internvl", "qwen3_vl", "paligemma")
@pytest.mark.parametrize("layers", [(), (2,)], ids=["before", "before+2"])
def test_loss_of_text_between_pictures(case, layers):
    """Labels of text between the pictures: the token before such a text is a surviving picture token."""
    model, inputs, token = shared_model(case), prompt(case, "one"), image_id(case)
    labels = text_labels(case, inputs)
    method = method_of(*layers, before=True)
    with p2d.prune(model, method, [0.5, 0.2] if layers else 0.5) as pruned, torch.no_grad():
        loss = model(**inputs, labels=labels).loss
    cuts = stages_of(inputs, pruned.record, token, 0, *layers)
    live = oracle.live_columns(inputs, cuts[-1][1])
    with oracle.masked(model, cuts):
        logits = forward(model, inputs)
    shifted = torch.cat([logits[r, c[:-1]] for r, c in enumerate(live)])
    wanted = torch.cat([labels[r, c[1:]] for r, c in enumerate(live)])
    close(loss, torch.nn.functional.cross_entropy(shifted, wanted), 1e-5, "loss")
