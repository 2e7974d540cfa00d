"""Legacy models attach by what they can do; checked against sequences cut by hand."""

from __future__ import annotations

import pytest
import torch

import prune2drive as p2d
from legacy_standins import build_fork, build_remote, make_fork_inputs, make_remote_inputs
from prune2drive.families.remote import spliced_segments


def kept_columns(record, visual_columns):
    """Columns of the spliced sequence that stay: text, structure, and the record's picks."""
    out = []
    for sample, views, (columns, length) in zip(record.samples, record.views, visual_columns, strict=True):
        drop = set()
        for name, cell in sample.items():
            index = views[name].index
            drop |= set(columns[index].tolist()) - set(columns[index[cell.indices]].tolist())
        out.append([c for c in range(length) if c not in drop])
    return out


def spliced(model, x, row):
    """Embeddings of one sample as the fork splices them, and its picture columns."""
    ids = x["input_ids"][row : row + 1][:, x["attention_mask"][row].bool()]
    marks = torch.ones_like(ids)
    _, _, _, _, embeds, labels = model.prepare_inputs_labels_for_multimodal(
        ids, None, torch.ones_like(ids), None, marks, x["images"][row]
    )
    return embeds[0], (labels[0] == -100).nonzero().flatten()


@pytest.fixture
def fork():
    return build_fork()


@pytest.fixture
def remote():
    return build_remote()


@torch.no_grad()
def test_fork_equals_a_sequence_cut_by_hand(fork):
    x = make_fork_inputs([6, 3])
    by_hand = [spliced(fork, x, row) for row in range(2)]
    with p2d.prune(fork, "tfps", 0.3) as pruned:
        out = fork(**x).logits
        tokens = fork.generate(
            x["input_ids"], images=x["images"], attention_mask=x["attention_mask"], max_new_tokens=5
        )
    assert [list(s) for s in pruned.record.samples] == [
        [f"IMAGE_{i}" for i in range(6)],
        [f"IMAGE_{i}" for i in range(3)],
    ]
    assert all(c.before == 36 and c.kept == 11 for s in pruned.record.samples for c in s.values())
    columns = [(c, len(e)) for e, c in by_hand]
    for row, keep in enumerate(kept_columns(pruned.record, columns)):
        embeds = by_hand[row][0][keep][None]
        expected = fork.model(inputs_embeds=embeds).last_hidden_state
        torch.testing.assert_close(out[row, -len(keep) :], fork.lm_head(expected)[0], atol=2e-5, rtol=0)
        alone = super(type(fork), fork).generate(inputs_embeds=embeds, max_new_tokens=5)
        assert tokens[row].tolist() == alone[0].tolist()


@torch.no_grad()
def test_fork_keeps_newline_rows_and_is_exact_at_full_retention(fork):
    x = make_fork_inputs([2, 1])
    plain = fork(**x).logits
    with p2d.prune(fork, "tfps", 1.0):
        assert torch.equal(fork(**x).logits, plain)
    assert torch.equal(fork(**x).logits, plain)
    with p2d.prune(fork, "tfps", 0.1) as pruned:
        fork(**x)
    assert pruned.record.structure == 3  # one newline row per picture


def test_fork_trains_with_the_callers_labels(fork):
    x = make_fork_inputs([2, 1])
    labels = x["input_ids"].masked_fill((x["input_ids"] < 0) | (x["attention_mask"] == 0), -100)
    with p2d.prune(fork, "tfps", 1.0):
        fork.zero_grad()
        full = fork(**x, labels=labels).loss
        full.backward()
    grad = fork.model.mm_projector[0].weight.grad.clone()
    fork.zero_grad()
    plain = fork(**x, labels=labels).loss
    plain.backward()
    torch.testing.assert_close(full, plain)
    torch.testing.assert_close(grad, fork.model.mm_projector[0].weight.grad, atol=1e-6, rtol=1e-4)
    with p2d.prune(fork, "tfps", 0.2):
        loss = fork(**x, labels=labels).loss
    assert torch.isfinite(loss)
    assert abs(loss.item() - plain.item()) > 1e-4


@torch.no_grad()
def test_remote_equals_a_sequence_cut_by_hand(remote):
    tiles = [[5, 1, 3], [2, 2]]
    x = make_remote_inputs(tiles)
    with p2d.prune(remote, "tfps", 0.4) as pruned:
        tokens = remote.generate(**x, max_new_tokens=5)
    features = remote.extract_feature(x["pixel_values"]).reshape(-1, 64)
    visual = x["input_ids"] == remote.img_context_token_id
    at = 0
    for row in range(2):
        columns = visual[row].nonzero().flatten()
        embeds = remote.language_model.get_input_embeddings()(x["input_ids"][row])
        embeds[columns] = features[at : at + len(columns)]
        at += len(columns)
        keep = kept_columns(_one(pruned.record, row), [(columns, len(embeds))])[0]
        keep = [c for c in keep if x["attention_mask"][row, c]]
        alone = remote.language_model.generate(inputs_embeds=embeds[keep][None], max_new_tokens=5)
        assert tokens[row].tolist() == alone[0].tolist()


class _one:
    """One sample of a record, with the attributes `kept_columns` reads."""

    def __init__(self, record, row):
        self.samples, self.views = record.samples[row : row + 1], record.views[row : row + 1]


@torch.no_grad()
def test_remote_is_exact_at_full_retention_and_restored(remote):
    x = make_remote_inputs([[2, 1]])
    plain = remote.generate(**x, max_new_tokens=5)
    forward = remote(**x).logits
    with p2d.prune(remote, "tfps", 1.0):
        assert torch.equal(remote.generate(**x, max_new_tokens=5), plain)
        assert torch.equal(remote(**x).logits, forward)
    with p2d.prune(remote, "tfps", 0.3):
        assert remote(**x).logits.shape[1] < forward.shape[1]
    assert torch.equal(remote(**x).logits, forward)
    assert not {"generate", "forward", "extract_feature"} & set(remote.__dict__)


def test_what_legacy_code_cannot_do_is_refused(fork, remote):
    for model in (fork, remote):
        with pytest.raises(p2d.PruneError, match="positions='reindex'"):
            p2d.prune(model, "tfps", 0.1, positions="keep")
        with pytest.raises(p2d.PruneError, match="layer 1"):
            p2d.prune(model, "tfps-layer", 0.1)
    remote.img_context_token_id = None
    with pytest.raises(p2d.PruneError, match="IMG_CONTEXT"), p2d.prune(remote, "tfps", 0.1):
        remote.generate(**make_remote_inputs([[1]]))


def test_newline_rows_give_the_grid():
    def lines(length, ends):
        flags = torch.zeros(length, dtype=torch.bool)
        flags[ends] = True
        return spliced_segments(flags)

    assert [s.grid for s in lines(36, [])] == [(6, 6)]
    assert [s.grid for s in lines(37, [36])] == [(6, 6)]
    base, fine = lines(36 + 4 * 6, [41, 47, 53, 59])
    assert base.thumbnail and base.grid == (6, 6)
    assert (fine.start, fine.grid, fine.stride) == (36, (4, 5), 6)
