"""What holds for every selector that reads signals of the vision tower or the prompt."""

import dataclasses

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.selectors.apet import ApETSelect
from prune2drive.selectors.duet import DuetSelect
from prune2drive.selectors.holov import HoloV
from prune2drive.selectors.mvpruner import MVPrunerSelect
from prune2drive.selectors.visionzip import VisionZip
from prune2drive.selectors.vispruner import VisPruner
from prune2drive.tokens import Signal, Signals
from signal_batch import batch, kept, row, wider

METHODS = [
    VisionZip(),
    VisionZip(contextual=0.5),
    VisPruner(),
    VisPruner(important=1.0),
    VisPruner(important=0.0),
    HoloV(),
    HoloV(chunks=3),
    ApETSelect(),
    ApETSelect(basis=3, start=1),
    ApETSelect(start="center"),
    DuetSelect(),
    DuetSelect(contextual=0.4, cluster_width=2),
    DuetSelect(contextual=0.4, cluster="tfps"),
    MVPrunerSelect(),
]
PER_VIEW = METHODS[:-1]
LENGTHS = [40, 12, 26]


def text(dim=8, dtype=torch.float32):
    return torch.randn(1, 5, dim, generator=torch.Generator().manual_seed(9)).to(dtype)


def rows(lengths=LENGTHS, **options):
    return [row(n, seed, **options) for seed, n in enumerate(lengths)]


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("counts", [[1, 1, 1], [10, 5, 13], [39, 11, 25], [40, 12, 26], [25, 1, 26]])
def test_counts_are_met_and_padding_stays_out(method, counts):
    selection = method.select(batch(rows(), text=text()), counts)
    assert sum(selection.counts) == sum(counts)
    if not method.allocates:
        assert list(selection.counts) == counts
    assert selection.indices.dtype == torch.int64
    assert selection.indices.shape == (3, max(selection.counts))
    for number, (k, n) in enumerate(zip(selection.counts, LENGTHS, strict=True)):
        picks = kept(selection, number)
        assert 1 <= k <= n
        assert len(set(picks)) == k
        assert all(0 <= pick < n for pick in picks)
        assert (selection.indices[number, k:] == -1).all()
    if selection.features is not None:
        assert selection.features.shape == (*selection.indices.shape, 8)
        assert selection.features.dtype == torch.float32


@pytest.mark.parametrize("method", PER_VIEW, ids=repr)
def test_a_row_depends_on_itself_alone(method):
    views, counts = rows(), [17, 4, 13]
    together = method.select(batch(views), counts)
    padded = method.select(wider(batch(views), 7), counts)
    for number, (own, k) in enumerate(zip(views, counts, strict=True)):
        alone = method.select(batch([own]), [k])
        assert kept(together, number) == kept(alone, 0) == kept(padded, number)
        if alone.features is not None:
            torch.testing.assert_close(together.features[number, :k], alone.features[0])
            torch.testing.assert_close(padded.features[number, :k], alone.features[0])


def test_a_sample_depends_on_itself_alone():
    first, second = rows([20, 31]), [row(n, n) for n in (15, 40, 22)]
    words = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    method = MVPrunerSelect()
    together = method.select(batch(first + second, [0, 0, 1, 1, 1], words, mask), [4, 5, 6, 7, 8])
    one = method.select(batch(first, text=words[:1]), [4, 5])
    two = method.select(batch(second, text=words[1:, :4]), [6, 7, 8])
    assert list(together.counts) == [*one.counts, *two.counts]
    alone = [kept(one, n) for n in range(2)] + [kept(two, n) for n in range(3)]
    assert [kept(together, n) for n in range(5)] == alone


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_row_may_be_empty(method):
    views = [row(20, 1), row(0, 2), row(9, 3)]
    words = text()
    selection = method.select(batch(views, text=words), [6, 0, 4])
    without = method.select(batch([views[0], views[2]], text=words), [6, 4])
    assert list(selection.counts) == [without.counts[0], 0, without.counts[1]]
    assert [kept(selection, 0), kept(selection, 2)] == [kept(without, 0), kept(without, 1)]
    assert (selection.indices[1] == -1).all()


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_full(method, dtype):
    views = rows(dtype=dtype)
    same = [{name: tensor.float() for name, tensor in view.items()} for view in views]
    got = method.select(batch(views, text=text(dtype=dtype)), [17, 4, 13])
    want = method.select(batch(same, text=text(dtype=dtype).float()), [17, 4, 13])
    assert torch.equal(got.indices, want.indices)
    if got.features is not None:
        assert got.features.dtype == dtype
        torch.testing.assert_close(got.features, want.features.to(dtype))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_equal_tokens_are_taken_in_order(method):
    # With every token alike, nothing but the index is left to choose by.
    views = rows([30])
    alike = [
        {name: tensor[:1].expand(30, *tensor.shape[1:]) for name, tensor in view.items()} for view in views
    ]
    picks = kept(method.select(batch(alike, text=text()), [16]), 0)
    if isinstance(method, HoloV):
        size, longer = divmod(30, method.chunks)
        assert {c * size + min(c, longer) for c in range(method.chunks)} <= set(picks)
    elif isinstance(method, VisionZip | DuetSelect) and getattr(method, "cluster", "keys") == "keys":
        # Contextual tokens are evenly spaced by definition; the dominant ones come first.
        as_is = 16 - int(16 * method.contextual + 0.5)
        assert set(range(as_is)) <= set(picks)
        assert as_is == 16 or as_is in picks
    elif isinstance(method, VisPruner):
        first = int(16 * method.important)
        assert picks[:first] == list(range(first))
    else:
        assert sorted(picks) == list(range(16))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_only_declared_signals_are_read(method):
    tokens = batch(rows(), text=text())
    names = {Signal.ENCODER: "encoder", Signal.SALIENCY: "saliency", Signal.VISION_KEYS: "vision_keys"}
    given = {name: getattr(tokens.signals, name) for signal, name in names.items() if signal in method.needs}
    if Signal.TEXT in method.needs:
        given |= {"text": tokens.signals.text, "text_mask": tokens.signals.text_mask}
    bare = dataclasses.replace(tokens, signals=Signals(**given))
    assert torch.equal(method.select(bare, [17, 4, 13]).indices, method.select(tokens, [17, 4, 13]).indices)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_global_generator_is_left_alone(method):
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    method.select(batch(rows(), text=text()), [17, 4, 13])
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("method", PER_VIEW, ids=repr)
def test_counts_that_do_not_fit_are_refused(method):
    with pytest.raises(PruneError, match="asked for 13 of 12 tokens"):
        method.select(batch(rows(), text=text()), [5, 13, 5])


@pytest.mark.parametrize("method", PER_VIEW, ids=repr)
def test_scope_is_checked(method):
    assert method.scope == "view"
    assert dataclasses.replace(method, scope="sample").scope == "sample"
    with pytest.raises(PruneError, match="unknown scope='views'; give 'view' or 'sample'"):
        dataclasses.replace(method, scope="views")
