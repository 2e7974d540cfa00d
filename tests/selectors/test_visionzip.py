"""VisionZip against its published rule, written out in loops."""

import math

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.selectors.visionzip import VisionZip
from signal_batch import batch, kept, merged, row


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def published(one, dominant, contextual):
    """Token -> feature, by the description: dominant tokens, then targets at a stride."""
    h, keys, scores = one["features"].double(), one["vision_keys"].double(), one["saliency"].tolist()
    n = len(scores)
    top = sorted(range(n), key=lambda i: -scores[i])[:dominant]
    rest = [i for i in range(n) if i not in top]
    step = max(1, len(rest) // contextual)
    targets = [rest[j] for j in range(0, len(rest), step)][:contextual]
    got = {t: [] for t in targets}
    for i in rest:
        if i not in targets:
            got[max(targets, key=lambda t: cosine(keys[i], keys[t]))].append(i)
    out = {i: h[i] for i in top}
    for t, members in got.items():
        out[t] = h[t] + (sum(h[i] for i in members) / len(members) if members else 0)
    return out


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "dominant", "contextual"), [(40, 11, 2), (23, 6, 6), (30, 27, 3), (31, 4, 1)])
def test_equals_the_published_rule(seed, n, dominant, contextual):
    one = row(n, seed)
    want = published(one, dominant, contextual)
    k = dominant + contextual
    selection = VisionZip(contextual=contextual / k).select(batch([one]), [k])
    assert sorted(kept(selection, 0)) == sorted(want)
    for token, feature in merged(selection, 0).items():
        torch.testing.assert_close(feature.double(), want[token], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("k", "contextual"), [(192, 30), (128, 20), (64, 10)])
def test_default_share_is_that_of_the_papers_configurations(k, contextual):
    one = row(576, 0)
    selection = VisionZip().select(batch([one]), [k])
    changed = sum(not torch.equal(f, one["features"][t]) for t, f in merged(selection, 0).items())
    assert changed == contextual


def test_keeping_all_changes_nothing():
    one = row(19, 0)
    selection = VisionZip(contextual=0.5).select(batch([one]), [19])
    assert sorted(kept(selection, 0)) == list(range(19))
    assert torch.equal(selection.features[0], one["features"][selection.indices[0]])


@pytest.mark.parametrize("value", [-0.1, 1.1, "1/6", True, float("nan")])
def test_bad_share(value):
    with pytest.raises(PruneError, match=r"visionzip: contextual=.* give a number in \[0, 1\]"):
        VisionZip(contextual=value)
