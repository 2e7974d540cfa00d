"""DUET-VLM's first stage against its published rule, written out in loops."""

import math

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.functional import fps
from prune2drive.selectors.duet import DuetSelect
from prune2drive.selectors.visionzip import VisionZip
from signal_batch import batch, kept, merged, row


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def published(one, dominant, contextual, width):
    h, keys, scores = one["features"].double(), one["vision_keys"].double(), one["saliency"].tolist()
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    top = order[:dominant]
    pool = order[dominant:][: width * contextual]  # the most attended first
    step = max(1, len(pool) // contextual)
    anchors = [pool[j * step] for j in range(contextual)]
    got = {t: [] for t in anchors}
    for i in pool:
        if i not in anchors:
            got[max(anchors, key=lambda t: cosine(keys[i], keys[t]))].append(i)
    out = {i: h[i] for i in top}
    for t, members in got.items():
        out[t] = h[t] + (sum(h[i] for i in members) / len(members) if members else 0)
    return out


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("n", "dominant", "contextual", "width"),
    [(40, 11, 2, 4), (40, 6, 6, 4), (30, 25, 3, 4), (31, 4, 3, 1), (24, 3, 2, 3)],
)
def test_equals_the_published_rule(seed, n, dominant, contextual, width):
    one = row(n, seed)
    want = published(one, dominant, contextual, width)
    k = dominant + contextual
    method = DuetSelect(contextual=contextual / k, cluster_width=width)
    selection = method.select(batch([one]), [k])
    assert sorted(kept(selection, 0)) == sorted(want)
    for token, feature in merged(selection, 0).items():
        torch.testing.assert_close(feature.double(), want[token], atol=1e-5, rtol=1e-5)


def test_default_share_is_the_published_one():
    one = row(576, 0)
    selection = DuetSelect().select(batch([one]), [307])
    changed = sum(not torch.equal(f, one["features"][t]) for t, f in merged(selection, 0).items())
    # An anchor that nothing came to is as it was.
    assert changed <= 7
    assert set(one["saliency"].sort(descending=True).indices[:300].tolist()) <= set(kept(selection, 0))


def test_a_pool_of_all_the_rest_is_visionzip_where_attention_falls_along_the_sequence():
    one = row(40, 3)
    one["saliency"] = one["saliency"].sort(descending=True).values
    duet = DuetSelect(contextual=0.25, cluster_width=40).select(batch([one]), [12])
    zipped = VisionZip(contextual=0.25).select(batch([one]), [12])
    assert torch.equal(duet.indices, zipped.indices)
    assert torch.equal(duet.features, zipped.features)


def test_anchors_are_spaced_by_rank_of_attention_and_ties_go_to_the_more_attended():
    one = row(10, 4)
    one["saliency"] = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.4, 0.0, 0.5, 0.6, 0.95, 0.7])
    one["vision_keys"] = one["vision_keys"][:1].expand(10, -1)
    selection = DuetSelect(contextual=0.5, cluster_width=3).select(batch([one]), [4])
    # Pool by rank: 9, 7, 6, 4, 3, 2; anchors are ranks 0 and 3, tokens 9 and 4.
    assert kept(selection, 0) == [1, 4, 8, 9]
    h = one["features"]
    torch.testing.assert_close(merged(selection, 0)[9], h[9] + h[[7, 6, 3, 2]].mean(0))
    assert torch.equal(merged(selection, 0)[4], h[4])


@pytest.mark.parametrize("seed", range(3))
def test_tfps_samples_what_is_not_dominant(seed):
    views = [row(33, seed), row(20, seed)]
    selection = DuetSelect(contextual=0.5, cluster="tfps").select(batch(views), [10, 6])
    assert selection.features is None
    for number, (one, k) in enumerate(zip(views, (10, 6), strict=True)):
        order = one["saliency"].sort(descending=True, stable=True).indices
        top, rest = order[: k // 2], order[k // 2 :].sort().values
        sampled = rest[fps(one["features"][rest], k // 2)]
        assert kept(selection, number) == sorted(top.tolist() + sampled.tolist())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"contextual": 2}, r"contextual=2 is no share of the budget; give a number in \[0, 1\]"),
        ({"cluster_width": 0}, "cluster_width=0 is no pool size; give an int from 1"),
        ({"cluster_width": 2.0}, "cluster_width=2.0 is no pool size"),
        ({"cluster": "tfp"}, "unknown cluster='tfp'. Did you mean 'tfps'"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(PruneError, match=message):
        DuetSelect(**fields)
