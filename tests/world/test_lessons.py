"""What is taught: losses by hand, and questions about pictures read once against one prompt per question."""

import numpy as np
import pytest
import torch

from prune2drive.world import attention
from prune2drive.world.batches import AnswerBatches, SeeBatches
from prune2drive.world.labels import FIELDS, SIZES
from prune2drive.world.lessons import DECIDE_LAYER, READ_LAYER, Heads, answer, see
from prune2drive.world.model import IMAGE, build_model, build_tokenizer, pixels
from prune2drive.world.scene import KINDS

V = 6


def use(model, name):
    model.model.vision_tower.config._attn_implementation = name
    model.model.language_model.config._attn_implementation = name
    return model


def lively(model):
    """Larger weights in the layers, so that answers hang on the pictures and the words of a question."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".layers." in name and weight.ndim == 2:
                weight.mul_(7.5 if "language_model" in name and "q_proj" in name else 2.5)
    return model


@pytest.fixture(scope="module")
def heads():
    torch.manual_seed(5)
    return [Heads(256, V) for _ in range(2)]


@pytest.fixture(scope="module")
def model():
    """The reference model with random weights and stock attention."""
    return use(lively(build_model()), "sdpa")


@pytest.fixture(scope="module")
def whole():
    return AnswerBatches(1, 0, 1, 1)[0]


@pytest.fixture(scope="module")
def pairs():
    """A batch of pairs of cameras that do not follow each other in the prompt."""
    data = AnswerBatches(1, 0, 100, 3)
    for n in range(20):
        batch = data[n]
        if int((batch["views"].diff(dim=1) > 1).sum()) >= 2:
            return batch
    raise AssertionError("all pairs are neighbours")


def learnt(model, heads, batch, autocast=False):
    """Loss, facts, and the logits of every learnt token in the order of ``batch["target"]``."""
    kept = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, out: kept.append(out.float()))
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, facts = answer(model, *heads, batch)
    finally:
        hook.remove()
    (logits,) = kept
    return loss, facts, logits


def asked(batch, row):
    """The questions of a row: ids without padding."""
    real = (batch["target"][row] != -100).any(-1)
    return [ids[ids != 0] for ids in batch["text"][row][real]]


def alone(model, batch, row, ids, positions=None):
    """Logits after '?' and after the answer, of one plain prompt with one question."""
    prompt = torch.cat([batch["prefix"][row], ids])[None]
    out = model(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        position_ids=positions,
        pixel_values=pixels(batch["images"][row]),
        use_cache=False,
    )
    return out.logits[0, -2:]


@torch.no_grad()
def test_questions_after_one_reading_are_as_if_asked_alone(model, heads, whole):
    loss, facts, logits = learnt(model, heads, whole)
    questions = asked(whole, 0)
    logits = logits.view(len(questions), 2, -1)
    some = range(0, len(questions), 6)
    for n in some:
        expected = alone(model, whole, 0, questions[n])
        torch.testing.assert_close(logits[n], expected, atol=1e-5, rtol=1e-4)
    assert logits[:, 0].std(0).mean() > 0.01  # questions differ, or the above would mean little
    # The loss is that of the answers, a little of the end, and of the heads.
    answers = torch.stack([ids[-1] for ids in questions])
    each = torch.nn.functional.cross_entropy(logits[:, 0], answers, reduction="none")
    weight = whole["weight"][0, : len(questions)]
    assert len(set(weight.tolist())) > 1
    words = (each * weight).sum() / weight.sum()
    end = -logits[:, 1].log_softmax(-1)[:, 1].mean()  # <end> is word 1
    torch.testing.assert_close(facts["answer"], words)
    extra = sum(facts[name] for name in ("place", "patch", "path", "choice"))
    torch.testing.assert_close(loss, words + 0.05 * end + 0.3 * extra + facts["road"] + facts["lane"])
    right = (logits[:, 0].argmax(-1) == answers).float().mean()
    torch.testing.assert_close(facts["right"], right)


@torch.no_grad()
def test_cameras_in_pairs_stand_where_they_stand_among_all(model, heads, pairs):
    _, _, logits = learnt(model, heads, pairs)
    logits, at = logits.view(-1, 2, logits.shape[-1]), 0
    segment = pairs["prefix"].shape[1] // 2
    gaps = 0
    for row, views in enumerate(pairs["views"].tolist()):
        questions = asked(pairs, row)
        places = torch.cat([torch.arange(v * segment, (v + 1) * segment) for v in views])
        for n in range(0, len(questions), 8):
            order = torch.cat([places, V * segment + torch.arange(len(questions[n]))])[None]
            expected = alone(model, pairs, row, questions[n], order)
            torch.testing.assert_close(logits[at + n], expected, atol=1e-5, rtol=1e-4)
            if views[1] > views[0] + 1:
                close = alone(model, pairs, row, questions[n], torch.arange(order.shape[1])[None])
                gaps += not torch.allclose(close, expected, atol=1e-3)
        at += len(questions)
    assert at == len(logits) and gaps


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 3])
def test_quick_attention_teaches_the_same(model, heads, whole, pairs, groups):
    """As near to float32 as the stock attention comes in bfloat16."""
    batch = whole if groups == 1 else pairs
    expected, expected_facts, exact = learnt(model, heads, batch)
    stock = learnt(model, heads, batch, autocast=True)[2]
    try:
        loss, facts, logits = learnt(use(model, attention.register()), heads, batch, autocast=True)
    finally:
        use(model, "sdpa")
    assert (logits - exact).norm() < 1.3 * (stock - exact).norm() < 0.2 * exact.norm()
    # Only the quick attention tells where it looks.
    torch.testing.assert_close(loss - 0.5 * facts["look"], expected, atol=0.02, rtol=0.02)
    assert "look" not in expected_facts
    for key in ("answer", "place", "patch", "road", "lane", "path", "choice"):
        torch.testing.assert_close(facts[key].float(), expected_facts[key], atol=0.03, rtol=0.03)


@torch.no_grad()
@pytest.mark.parametrize("quick", [True, False])
def test_a_question_knows_nothing_of_the_others(small_model, whole, quick):
    model = use(lively(small_model()), attention.register() if quick else "sdpa")
    heads = [Heads(64, V) for _ in range(2)]
    _, _, logits = learnt(model, heads, whole, quick)
    changed = dict(whole, text=whole["text"].clone())
    kept = 7
    for n in range(whole["text"].shape[1]):
        if n != kept:
            changed["text"][0, n] = torch.randint(4, 60, (whole["text"].shape[2],))
    _, _, others = learnt(model, heads, changed, quick)
    pair = slice(2 * kept, 2 * kept + 2)
    if quick:
        assert torch.equal(logits[pair], others[pair])
    torch.testing.assert_close(logits[pair], others[pair], atol=1e-5, rtol=1e-4)
    rest = torch.ones(len(logits), dtype=torch.bool)
    rest[pair] = False
    assert not torch.isclose(logits[rest], others[rest], atol=1e-3).all(-1).any()


@torch.no_grad()
def test_the_answer_does_not_show_before_it_is_given(small_model, whole):
    """The token after '?' changes what follows it only."""
    model, heads = use(lively(small_model()), "sdpa"), [Heads(64, V) for _ in range(2)]
    changed = dict(whole, text=whole["text"].clone())
    first = whole["target"] == build_tokenizer().eos_token_id  # where the answers stand
    changed["text"][first] = torch.randint(4, 60, (int(first.sum()),))
    results = [
        learnt(model, heads, batch)[2].view(-1, 2, 1, model.config.text_config.vocab_size)
        for batch in (whole, changed)
    ]
    assert torch.equal(results[0][:, 0], results[1][:, 0])
    assert not torch.equal(results[0][:, 1], results[1][:, 1])


@torch.no_grad()
def test_heads_read_the_layers_that_are_named(small_model, whole):
    model, heads = use(small_model(), "sdpa"), [Heads(64, V) for _ in range(2)]
    _, facts, _ = learnt(model, heads, whole)
    features = model.model.get_image_features(pixel_values=pixels(whole["images"][0])).pooler_output
    out = model.model(
        input_ids=whole["prefix"], pixel_values=pixels(whole["images"][0]), output_hidden_states=True
    )
    shown = whole["prefix"][0] == model.config.image_token_id
    tokens = out.hidden_states[READ_LAYER][0, shown]
    camera = torch.arange(V).repeat_interleave(len(tokens) // V)
    place = heads[1].place_loss(tokens, camera, whole["cross"], whole["following"])
    torch.testing.assert_close(facts["place"], place, atol=1e-4, rtol=1e-4)
    features = torch.stack(list(features))
    deep = out.hidden_states[DECIDE_LAYER][0, shown].view(V, -1, 64)
    road = torch.cat(  # the front camera, and the one behind
        [heads[0].road(features[v]).log_softmax(-1)[:, whole["road"][0, v]] for v in (0, 3)]
    )
    choice = heads[1].choice(deep[2]).log_softmax(-1)[:, whole["choice"][0, 2]]
    lane = heads[0].lane(features[0]).log_softmax(-1).gather(1, whole["lane"][0, 0][:, None])
    known = whole["path"][0].flatten() >= 0
    path = heads[1].path(tokens[known]).log_softmax(-1)
    path = path.gather(1, whole["path"][0].flatten()[known][:, None])
    expected = {
        "patch": heads[0].patch_loss(features, whole["labels"][0], whole["centres"][0]),
        "road": -road.mean(),
        "lane": -lane.mean(),
        "choice": -choice.mean(),
        "path": -path.mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(facts[name], value, atol=1e-4, rtol=1e-4, msg=name)


# Heads by hand, in float64 with numpy.


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def by_hand(head, tokens):
    weight, bias = (value.detach().double().numpy() for value in (head.weight, head.bias))
    return tokens.double().numpy() @ weight.T + bias


def pick(x, wanted):
    return -np.take_along_axis(log_softmax(x), wanted[..., None], -1).mean()


def test_patch_loss_by_hand():
    torch.manual_seed(0)
    head = Heads(8, V)
    tokens = torch.randn(2, 3, 5, 8)
    labels = torch.stack([torch.randint(SIZES[field], (2, 3, 5)) for field in FIELDS], -1)
    centres = torch.randint(3, (2, 3, 5, len(KINDS))).float()  # two things in a patch count as one
    out, at, expected = by_hand(head.patch, tokens), 0, 0.0
    for n, field in enumerate(FIELDS):
        expected += pick(out[..., at : at + SIZES[field]], labels[..., n].numpy())
        at += SIZES[field]
    sigmoid = 1 / (1 + np.exp(-out[..., at:]))
    there = centres.numpy() > 0
    assert sigmoid.shape == there.shape
    expected += 2 * -np.where(there, np.log(sigmoid), np.log(1 - sigmoid)).sum(-1).mean()
    found = head.patch_loss(tokens, labels, centres)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_place_loss_by_hand():
    torch.manual_seed(1)
    head = Heads(8, V)
    tokens = torch.randn(2, V, 9, 8)
    camera = torch.randint(V, (2, V, 9))
    cross, following = torch.randint(-1, 2, (2, V, 9)), torch.randint(-1, V + 1, (2, V, 9))
    out = by_hand(head.place, tokens)
    views, crosses, after = out[..., :V], out[..., V : V + 2], out[..., V + 2 :]
    seen = pick(views, camera.numpy())
    a, b = cross >= 0, following >= 0
    expected = seen + pick(crosses[a], cross[a].numpy()) + pick(after[b], following[b].numpy())
    assert head.place_loss(tokens, camera, cross, following).item() == pytest.approx(expected, rel=1e-5)
    unknown = torch.full_like(cross, -1)
    assert head.place_loss(tokens, camera, unknown, unknown).item() == pytest.approx(seen, rel=1e-5)


def test_read_outs_of_what_is_not_known_cost_nothing():
    torch.manual_seed(2)
    head = Heads(8, V)
    tokens = torch.randn(2, V, 9, 8)
    for shape in ((2, V), (2, V, 9)):
        assert head.class_loss("path", tokens, torch.full(shape, -1)) == 0
    wanted = torch.full((2, V), -1)
    wanted[1, 2] = 4
    expected = pick(by_hand(head.choice, tokens[1, 2]), np.full(9, 4))
    assert head.class_loss("choice", tokens, wanted).item() == pytest.approx(expected, rel=1e-5)


def test_seeing_is_the_patch_loss_of_the_projected_tokens(small_model):
    model, head = use(small_model(), "sdpa"), Heads(64, V)
    batch = SeeBatches(1, 0, 1)[0]
    loss, facts = see(model, head, batch)
    out = model.model.get_image_features(pixel_values=pixels(batch["images"][0])).pooler_output
    tokens = torch.stack(list(out))
    expected = head.patch_loss(tokens, batch["labels"][0], batch["centres"][0])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(facts["patch"], expected.detach())
    guess = head.patch(tokens)[..., : len(KINDS) + 1].argmax(-1)
    thing = batch["labels"][0, ..., 0] > 0
    assert facts["kind"].item() == pytest.approx(
        (guess == batch["labels"][0, ..., 0])[thing].float().mean().item()
    )


# Learning.


def test_gradients_reach_whatever_is_taught(small_model, whole):
    model, (heads, late) = use(small_model(), attention.register()), [Heads(64, V) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        see(model, heads, SeeBatches(1, 0, 1)[0])[0].backward()
    # The key's bias shifts all scores of a query alike, so that nothing follows from it.
    # The projector reads what comes before the last norm.
    unused = ("k_proj.bias", "post_layernorm")
    dead = [n for n, w in model.named_parameters() if w.grad is None or not w.grad.any()]
    assert all(any(name in n for name in ("language_model", *unused)) for n in dead), dead
    assert not any(w.grad is not None for n, w in model.named_parameters() if "language_model" in n)
    assert heads.patch.weight.grad.any() and heads.place.weight.grad is None
    model.zero_grad()
    heads.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        answer(model, heads, late, whole)[0].backward()
    dead = [n for n, w in model.named_parameters() if w.grad is None or not w.grad.any()]
    assert all(any(name in n for name in unused) for n in dead), dead
    for head in (heads.patch, heads.road, heads.lane, late.place, late.path, late.choice):
        assert head.weight.grad.any(0).all()
    image = build_tokenizer().convert_tokens_to_ids(IMAGE)
    assert model.get_input_embeddings().weight.grad.shape[0] > image


@pytest.mark.parametrize("stage", ["see", "answer"])
def test_one_batch_is_learnt(small_model, whole, stage):
    torch.manual_seed(0)
    model = use(small_model(), attention.register())
    heads, late = (Heads(64, V) for _ in range(2))
    weights = [w for module in (model, heads, late) for w in module.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            found = see(model, heads, whole) if stage == "see" else answer(model, heads, late, whole)
        found[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(found[1]["patch" if stage == "see" else "answer"]))
    assert losses[-1] < 0.75 * losses[0]
    assert losses[-1] < min(losses[:4])
