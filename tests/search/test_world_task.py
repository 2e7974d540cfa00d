"""The task of the drawn world: equal to the live route, and encoded once."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from prune2drive import prune
from prune2drive.allocators import Rates
from prune2drive.benchmarks.answering import Answerer
from prune2drive.benchmarks.world import samples
from prune2drive.errors import PruneError
from prune2drive.rig import NUSCENES
from prune2drive.search.space import BudgetSplit
from prune2drive.search.task import Scores
from prune2drive.search.world import WorldTask
from prune2drive.selectors import TFPS, Random
from prune2drive.world.model import build_model, build_processor

SPLIT, COUNT, BATCH = "test", 3, 2
RATES = dict(zip(NUSCENES.names, (0.4, 0.05, 0.1, 0.02, 0.25, 0.01), strict=True))


@pytest.fixture(scope="module")
def answerer():
    """Random weights, scaled so that answers depend on pictures and questions."""
    model = build_model(0).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "language_model" in name:
                weight.mul_(2.5)
    return Answerer(model, build_processor())


@pytest.fixture(scope="module")
def folder(answerer, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "lively"
    answerer.model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A cache for tests that do not look at what is encoded."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def scenes():
    return list(samples(SPLIT, COUNT))


@pytest.fixture
def make(answerer, folder, tmp_path):
    made = []

    def build(model=answerer, path=folder, **options):
        options = {"split": SPLIT, "count": COUNT, "batch": BATCH, "cache": tmp_path / "cache", **options}
        made.append(WorldTask(model, path, **options))
        return made[-1]

    yield build
    for task in made:
        task.close()


@pytest.fixture
def encoded(monkeypatch):
    """Names of the scenes whose pictures went through an encoder."""
    names = []
    own = Answerer.encode

    def encode(self, group):
        names.extend(sample.name for sample in group)
        return own(self, group)

    monkeypatch.setattr(Answerer, "encode", encode)
    return names


def live(answerer, scenes, pruned):
    """(exact, probability, likelihood) of each scene, without any of the task's code."""
    rows = []
    for sample in scenes:
        encoded = answerer.encode([sample])
        words = answerer.answer(encoded, pruned())[0]
        logp = answerer.logits(encoded, pruned())[0].log_softmax(-1)
        ids = [answerer.tokenizer.convert_tokens_to_ids(q.answer) for q in sample.questions]
        scored = logp[range(len(ids)), ids]
        right = sum(word == q.answer for word, q in zip(words, sample.questions, strict=True))
        rows.append((right, scored.exp().sum().item(), scored.sum().item()))
    return np.array(rows).T


def close(scores, expected):
    np.testing.assert_array_equal(scores.sums["exact"], expected[0])
    np.testing.assert_allclose(scores.sums["probability"], expected[1], rtol=1e-3)
    np.testing.assert_allclose(scores.sums["likelihood"], expected[2], rtol=1e-4)


METHODS = {
    "tfps": ("tfps", "keep"),
    "reindexed": ("tfps", "reindex"),
    "released": (TFPS(compat="released"), "keep"),
    "random": (Random(seed=4), "keep"),
    "stratified": ("stratified", "keep"),
    "layer": ("tfps-layer", "keep"),
}


@pytest.mark.parametrize(("method", "positions"), METHODS.values(), ids=METHODS)
def test_scores_are_those_of_the_live_route(method, positions, answerer, make, scenes, shared):
    task = make(method=method, positions=positions, cache=shared)
    expected = live(
        answerer,
        scenes,
        lambda: prune(answerer.model, method, Rates(RATES), rig=NUSCENES, positions=positions),
    )
    scores = task.score(RATES, 0, COUNT)
    assert scores.asked.tolist() == [len(sample.questions) for sample in scenes]
    close(scores, expected)


def test_unpruned_scores_are_those_of_the_live_route(answerer, make, scenes, shared):
    unpruned = make(cache=shared).score(None, 0, COUNT)
    close(unpruned, live(answerer, scenes, lambda: None))
    pruned = make(cache=shared).score(RATES, 0, COUNT)
    assert abs(pruned.sums["likelihood"] - unpruned.sums["likelihood"]).min() > 0.01


def test_exact_counts_greedy_answers(answerer, make, shared):
    task = make(cache=shared)
    wanted = []
    for number, sample in enumerate(task.samples):
        how = prune(answerer.model, "tfps", Rates(RATES), rig=NUSCENES)
        words = answerer.answer(answerer.encode([sample]), how)[0]
        right = [bool(word) and at % 3 == number for at, word in enumerate(words)]
        answers = [
            word if yes else "left" if word != "left" else "right"
            for word, yes in zip(words, right, strict=True)
        ]
        questions = [dataclasses.replace(q, answer=a) for q, a in zip(sample.questions, answers, strict=True)]
        task.samples[number] = dataclasses.replace(sample, questions=questions)
        wanted.append(sum(right))
    assert min(wanted) > 0
    assert task.score(RATES, 0, COUNT).sums["exact"].tolist() == wanted


def test_a_part_of_the_frames_is_a_part_of_the_scores(make, shared):
    task = make(cache=shared)
    whole = task.score(RATES, 0, COUNT)
    parts = [task.score(RATES, 0, 2), task.score(RATES, 2, 3)]
    assert [len(part.asked) for part in parts] == [2, 1]
    joined = Scores.joined(parts)
    np.testing.assert_array_equal(joined.asked, whole.asked)
    for part in task.parts:
        np.testing.assert_array_equal(joined.sums[part], whole.sums[part])
        assert joined.means()[part] == pytest.approx(whole.sums[part].sum() / whole.asked.sum())
    one = task.score(RATES, 1, 2)
    np.testing.assert_allclose(one.sums["likelihood"], whole.sums["likelihood"][1:2], rtol=1e-4)


def test_batches_do_not_matter(make, shared):
    scores = [make(cache=shared, batch=batch).score(RATES, 0, COUNT) for batch in (1, 3)]
    np.testing.assert_allclose(scores[0].sums["likelihood"], scores[1].sums["likelihood"], rtol=1e-4)


def test_a_scene_without_questions_scores_nothing(make, shared):
    task = make(cache=shared)
    want = task.score(RATES, 0, 2)
    task.samples[0] = dataclasses.replace(task.samples[0], questions=[])
    scores = task.score(RATES, 0, 2)
    assert scores.asked[0] == 0 and all(sums[0] == 0 for sums in scores.sums.values())
    np.testing.assert_allclose(scores.sums["likelihood"][1], want.sums["likelihood"][1], rtol=1e-4)
    assert set(task.score(RATES, 0, 1).means().values()) == {0.0}


# -- what is encoded ----------------------------------------------------------------------------------


def test_every_scene_is_encoded_once(make, encoded, scenes):
    told = []
    task = make()
    task.prepare(told.append)
    assert encoded == [sample.name for sample in scenes] and sum(told) == COUNT
    first = task.score(RATES, 0, COUNT)
    task.score(None, 0, COUNT)
    other = make()
    other.prepare(told.append)
    again = other.score(RATES, 0, COUNT)
    assert len(encoded) == COUNT and sum(told) == 2 * COUNT
    for part in task.parts:
        np.testing.assert_array_equal(again.sums[part], first.sums[part])


def test_scores_need_no_preparation(make, encoded):
    make().score(RATES, 1, 2)
    assert len(encoded) == COUNT


def test_a_closed_task_goes_on(make, encoded):
    task = make()
    task.close()
    first = task.score(RATES, 0, COUNT)
    task.close()
    task.close()
    again = task.score(RATES, 0, COUNT)
    np.testing.assert_array_equal(again.sums["likelihood"], first.sums["likelihood"])
    assert len(encoded) == COUNT


def test_a_closed_task_leaves_its_room_to_others(make, encoded):
    size = 6 * 144 * 256 * 4  # one scene
    limit = COUNT * size * 3 // 2
    first, second = make(limit=limit), make(method=Random(), limit=limit)
    first.prepare()
    with pytest.raises(PruneError, match="full of what other runs use"):
        second.prepare()
    first.close()
    second.prepare()
    assert second.score(RATES, 0, COUNT).asked.min() > 0


def interrupted(task):
    """Begin to prepare, and stop after the first batch."""

    def stop(done):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task.prepare(stop)


def test_an_interrupted_preparation_goes_on(make, encoded, scenes):
    task = make()
    interrupted(task)
    assert len(encoded) == BATCH
    task.prepare()
    assert encoded == [sample.name for sample in scenes]
    assert task.score(RATES, 0, COUNT).asked.min() > 0


def test_scores_after_an_interrupted_preparation(make, encoded):
    task = make()
    interrupted(task)
    assert task.score(RATES, 0, COUNT).asked.min() > 0


def test_frames_and_questions_share_what_is_there(make, encoded):
    make().prepare()
    make(seed=8).prepare()
    assert len(encoded) == COUNT
    make(start=1).prepare()
    assert len(encoded) == COUNT + 1
    make(split="validation", count=1).prepare()
    assert len(encoded) == COUNT + 2


def test_a_copied_model_shares_what_is_there(make, encoded, folder, tmp_path):
    make().prepare()
    make(path=shutil.copytree(folder, tmp_path / "elsewhere")).prepare()
    assert len(encoded) == COUNT


def test_other_weights_are_encoded_anew(make, encoded, answerer, tmp_path):
    make(count=1).prepare()
    model = copy.deepcopy(answerer.model)
    with torch.no_grad():
        next(model.model.multi_modal_projector.parameters())[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    task = make(Answerer(model, answerer.processor), tmp_path / "other", count=1)
    task.prepare()
    assert len(encoded) == 2
    assert task.about()["weights"] != make(count=1).about()["weights"]


def test_another_number_type_is_encoded_anew(make, encoded, answerer):
    make(count=1).prepare()
    half = Answerer(copy.deepcopy(answerer.model).bfloat16(), answerer.processor)
    for _ in range(2):
        task = make(half, count=1)
        scores = task.score(RATES, 0, 1)
        assert len(encoded) == 2
    assert task.about()["dtype"] == "bfloat16"
    how = prune(half.model, "tfps", Rates(RATES), rig=NUSCENES)
    logp = half.logits(half.encode(task.samples), how)[0].log_softmax(-1)
    ids = [half.tokenizer.convert_tokens_to_ids(q.answer) for q in task.samples[0].questions]
    np.testing.assert_allclose(
        scores.sums["likelihood"], [logp[range(len(ids)), ids].sum().item()], rtol=1e-2
    )


def test_other_methods_have_orders_of_their_own(make, encoded):
    methods = ["tfps", TFPS(metric="l2"), "random", Random(seed=1), "stratified"]
    for number, method in enumerate(methods):
        for _ in range(2):
            make(method=method, count=1).prepare()
            assert len(encoded) == number + 1
    make(method="tfps-layer", count=1).prepare()  # without an order, as stratified
    assert len(encoded) == len(methods)


# -- what it says -------------------------------------------------------------------------------------


def test_about_is_plain_data_without_places(make, scenes, tmp_path):
    about = make().about()
    assert json.loads(json.dumps(about)) == about
    assert str(tmp_path) not in json.dumps(about) and about["model"] == "lively"
    assert about["tokens"] == dict.fromkeys(NUSCENES.names, 144)
    assert about["data"]["questions"] == sum(len(sample.questions) for sample in scenes)
    for change in ({"seed": 1}, {"start": 1}, {"method": "random"}, {"positions": "reindex"}, {"count": 2}):
        assert make(**change).about() != about


def test_a_budget_holds_for_a_method_that_truncates(answerer, scenes):
    space = BudgetSplit(dict.fromkeys(NUSCENES.names, 144), 0.1)
    how = prune(answerer.model, TFPS(compat="released"), Rates(space.rates(space.starts()[0])), rig=NUSCENES)
    answerer.answer(answerer.encode(scenes[:1]), how)
    assert sum(len(kept) for kept in answerer.kept(how, 0).values()) == space.total


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "0 scenes.*at least 1"),
        ({"batch": 0}, "batches of 0.*at least 1"),
        ({"start": -1}, "from -1"),
        ({"split": "tests"}, "no split 'tests'.*Did you mean 'test'"),
        ({"method": "tpfs"}, "unknown method 'tpfs'.*Did you mean 'tfps'"),
        ({"method": "duet"}, "duet works in several stages, a search of rates takes a method of one"),
    ],
)
def test_refusals(make, options, message):
    with pytest.raises(PruneError, match=message):
        make(**options)


def test_a_folder_without_weights(make, tmp_path):
    with pytest.raises(PruneError, match="holds no weights"):
        make(path=tmp_path)
