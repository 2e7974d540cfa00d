"""The task of a person's own frames: equal to the plain route in every family, and encoded once."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import legacy_standins
from families_table import BY_NAME, FAMILIES
from prune2drive import PruneError, prune
from prune2drive.images import load_frame
from prune2drive.layout import Mosaic
from prune2drive.prompts import build_inputs
from prune2drive.search.frames import FramesTask

CAMERAS = ["FRONT", "LEFT", "BACK"]
RATES = {"FRONT": 0.5, "LEFT": 0.2, "BACK": 0.35}
SIZES = {"FRONT": (48, 40), "LEFT": (24, 24), "BACK": (50, 24)}
QA = [[("what next?", "turn left"), ("where is the car?", "no")], [("why so slow?", "a red light")]]
SOME = ["llava", "llava_onevision", "internvl", "qwen2_5_vl", "qwen3_vl", "paligemma"]
LETTERS = [chr(ord("a") + n) for n in range(26)]


def draw(path, seed, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path)


def write(folder, qa=QA, pictures=True):
    """A data file of two frames with three cameras each."""
    frames = []
    for number, pairs in enumerate(qa):
        images = {camera: f"pictures/{number}_{camera}.png" for camera in CAMERAS}
        if pictures:
            for at, camera in enumerate(CAMERAS):
                draw(folder / images[camera], [number, at], SIZES[camera])
        asked = [{"question": question, "answer": answer} for question, answer in pairs]
        frames.append({"id": f"f{number}", "images": images, "qa": asked})
    path = folder / "frames.json"
    path.write_text(json.dumps({"frames": frames}))
    return path


@pytest.fixture
def data(tmp_path):
    return write(tmp_path)


@pytest.fixture
def make(tmp_path):
    """Make a task of a family; its model answers in lower-case letters only."""

    def build(name="llava", path=None, model=None, **options):
        case = BY_NAME[name]
        model = letters(case) if model is None else model
        options = {"model_id": f"tiny/{name}", "rig": CAMERAS, "cache": tmp_path / "cache", **options}
        return FramesTask(model, case.processor(), path or tmp_path / "frames.json", **options)

    return build


def letters(case):
    model = case.model("sdpa")
    ids = case.tokenizer().convert_tokens_to_ids(LETTERS)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        kept = weight[ids].clone()
        weight.zero_()[ids] = kept
    return model


def plain(task, path, retention, question, answer, frame):
    """(exact, probability, likelihood) without any of the task's code."""
    inputs = build_inputs(
        task.processor, task.model, [load_frame(path, CAMERAS, frame=frame)], question, CAMERAS
    )
    ids = task.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    count = len(ids)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
    kind = int(task.model.config.model_type == "paligemma")
    for name, fill in {"attention_mask": 1, "token_type_ids": kind, "mm_token_type_ids": 0}.items():
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, count), value=fill)
    with torch.no_grad():
        if retention is None:
            logits = task.model(**inputs).logits
        else:
            with prune(task.model, task.method, retention, rig=CAMERAS):
                logits = task.model(**inputs).logits
    logits = logits[0, -count - 1 : -1]
    logp = logits.log_softmax(-1)[range(count), ids].mean().item()
    return float(logits.argmax(-1).tolist() == ids), np.exp(logp), logp


def close(scores, expected):
    """Compare sums by frame with the plain route's scores of each frame's questions."""
    for at, part in enumerate(("exact", "probability", "likelihood")):
        wanted = [sum(scored[at] for scored in frame) for frame in expected]
        np.testing.assert_allclose(scores.sums[part], wanted, atol=1e-4, rtol=1e-4, err_msg=part)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_scores_are_those_of_the_plain_route_in_every_family(case, make, data):
    task = make(case.name, batch=1)
    task.prepare()
    for retention in (RATES, None):
        expected = [
            [plain(task, data, retention, question, answer, f"f{n}") for question, answer in pairs]
            for n, pairs in enumerate(QA)
        ]
        alone = task.score(retention, 0, 2, task.parts)
        assert alone.asked.tolist() == [2.0, 1.0]
        close(alone, expected)
        task.batch = 3
        together = task.score(retention, 0, 2, task.parts)
        close(together, expected)
        np.testing.assert_allclose(together.sums["language"], alone.sums["language"])
        close(task.score(retention, 1, 2), expected[1:])
        task.batch = 1


def greedy(task, data, retention, frame, question):
    inputs = build_inputs(
        task.processor, task.model, [load_frame(data, CAMERAS, frame=frame)], question, CAMERAS
    )
    with prune(task.model, task.method, retention, rig=CAMERAS):
        out = task.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    return task.processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize("name", SOME)
def test_exact_is_what_generation_begins_with(name, make, data):
    task = make(name)
    words = [greedy(task, data, RATES, f"f{n}", QA[n][0][0]) for n in (0, 1)]
    assert all(len(word) == 5 and word.isalpha() for word in words)
    wrong = words[0][:4] + ("b" if words[0][4] == "a" else "a")
    write(
        data.parent, [[(QA[0][0][0], w) for w in (words[0], words[0][:2], wrong)], [(QA[1][0][0], words[1])]]
    )
    task = make(name, batch=4, max_new_tokens=5)
    scores = task.score(RATES, 0, 2, ["exact", "language"])
    assert scores.sums["exact"].tolist() == [2.0, 1.0]
    assert scores.sums["language"].tolist() == [1.0, 1.0]  # one word, right or wrong


@pytest.fixture
def encodings(monkeypatch):
    """How often any family's encoder ran."""
    from prune2drive.families.base import Family

    calls = []
    own = Family.encode
    monkeypatch.setattr(Family, "encode", lambda self, given: calls.append(1) or own(self, given))
    return calls


@pytest.mark.parametrize("name", ["llava_onevision", "qwen3_vl"])
def test_pictures_are_encoded_and_processed_once(name, make, data, encodings, monkeypatch):
    done = []
    task = make(name)
    task.prepare(done.append)
    assert len(encodings) == 2 and sum(done) == 2
    first = task.score(RATES, 0, 2)
    task.prepare()
    again = make(name)
    monkeypatch.setattr("prune2drive.search.data.open_picture", None)  # nothing is decoded any more
    again.prepare(done.append)
    np.testing.assert_array_equal(again.score(RATES, 0, 2).sums["likelihood"], first.sums["likelihood"])
    assert len(encodings) == 2 and sum(done) == 4


def test_questions_share_the_work_on_their_pictures(make, data):
    task = make()
    calls = []
    processor = task.processor.image_processor

    class Counting(type(processor)):
        def __call__(self, *args, **kwargs):
            calls.append(1)
            return super().__call__(*args, **kwargs)

    task.processor = BY_NAME["llava"].build_processor(BY_NAME["llava"].tokenizer())
    task.processor.image_processor.__class__ = Counting
    task.prepare()
    assert len(calls) == 2  # once a frame, and f0 has two questions


def test_a_changed_picture_is_encoded_anew_and_a_changed_question_is_not(make, data, encodings):
    before = make().score(RATES, 0, 2)
    about = make().about()
    write(data.parent, [[("how fast?", "turn left"), QA[0][1]], QA[1]], pictures=False)
    after = make().score(RATES, 0, 2)
    assert len(encodings) == 2
    assert after.sums["likelihood"][0] != before.sums["likelihood"][0]
    assert after.sums["likelihood"][1] == before.sums["likelihood"][1]
    draw(data.parent / "pictures/1_LEFT.png", [7, 7], SIZES["LEFT"])
    changed = make().score(RATES, 0, 2)
    assert len(encodings) == 3
    assert changed.sums["likelihood"][0] == after.sums["likelihood"][0]
    assert changed.sums["likelihood"][1] != after.sums["likelihood"][1]
    assert make().about()["data"]["ids"] != about["data"]["ids"]


def test_a_changed_model_or_processor_has_features_of_its_own(make, data, tmp_path, encodings):
    case, folder = BY_NAME["llava"], tmp_path / "model"
    model = letters(case)
    model.save_pretrained(folder)
    make(model=model, model_id=folder).prepare()
    make(model=model, model_id=shutil.copytree(folder, tmp_path / "elsewhere" / "model")).prepare()
    assert len(encodings) == 2
    other = case.model("sdpa", seed=1)
    other.save_pretrained(folder)
    make(model=other, model_id=folder).prepare()
    assert len(encodings) == 4
    assert make(model=other, model_id=folder).about()["model"] == "model"
    task = make(model=other, model_id=folder, method="stride")
    task.prepare()
    assert len(encodings) == 6  # no order in those


@pytest.mark.parametrize("method", ["stride", "tfps-layer"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_other_methods_choose_anew_from_cached_features(name, method, make, data, encodings):
    task = make(name, method=method, batch=3)
    scores = task.score(RATES, 0, 2)
    assert len(encodings) == 2
    expected = [[plain(task, data, RATES, *pair, f"f{n}") for pair in pairs] for n, pairs in enumerate(QA)]
    close(scores, expected)


def test_about_tells_names_only(make, data, tmp_path):
    task = make("llava_onevision", start=1)
    about = task.about()
    assert task.frames == ["f1"] and list(task.cameras) == CAMERAS
    assert json.loads(json.dumps(about)) == about
    assert str(tmp_path) not in json.dumps(about)
    assert about["data"]["source"] == "frames.json"
    assert about["data"]["samples"] == about["data"]["questions"] == 1
    assert about["tokens"] == dict.fromkeys(CAMERAS, 36)


def test_cameras_can_be_left_out_and_reordered(make, data):
    task = make(cameras=["BACK", "FRONT"])
    assert list(task.tokens) == ["BACK", "FRONT"]
    assert task.score({"BACK": 0.5, "FRONT": 0.5}, 0, 1).sums["likelihood"][0] < 0


def test_a_stitched_picture_has_the_cameras_of_its_layout(make, tmp_path):
    draw(tmp_path / "stitched.png", 3, (72, 24))
    qa = [{"question": "what next?", "answer": "stop"}]
    frames = {"frames": [{"images": {"MOSAIC": "stitched.png"}, "qa": qa}]}
    (tmp_path / "frames.json").write_text(json.dumps(frames))
    task = make("internvl", rig=CAMERAS, layout=Mosaic.grid([CAMERAS], (72, 24)))
    assert sorted(task.cameras) == sorted(CAMERAS)
    assert task.score(RATES, 0, 1).sums["likelihood"][0] < 0


# -- bad input ----------------------------------------------------------------------------------------


def frame(**changes):
    images = {camera: f"pictures/0_{camera}.png" for camera in CAMERAS}
    whole = {"id": "f3", "images": images, "qa": [{"question": "what?", "answer": "no"}], **changes}
    return {name: value for name, value in whole.items() if value is not None}


def images(**changes):
    return {"images": frame()["images"] | changes}


BAD = {
    "no frames": ({"frames": []}, "holds 0 frames.*Add frames"),
    "no list": ({"frames": {"a": 1}}, '"frames" must be a list'),
    "no object": ([1], '"frames" must be a list'),
    "frame no object": ({"frames": ["a"]}, '"frames" must be a list'),
    "camera": (
        {"frames": [frame(images={"FRONT": "pictures/0_FRONT.png", "LEFT": "pictures/0_LEFT.png"})]},
        "frame f3: BACK: no picture .*2 of 3 cameras found; missing: BACK.*Add it",
    ),
    "images": ({"frames": [frame(images=None)]}, 'frame f3: .*"images" must map camera to path'),
    "unknown": ({"frames": [frame(**images(BACKK="a.png"))]}, "frame f3: .*'BACKK' is not in the rig.*BACK"),
    "gone": ({"frames": [frame(**images(BACK="gone.png"))]}, "frame f3: BACK: .*gone.png"),
    "outside": ({"frames": [frame(**images(BACK="../x.png"))]}, "frame f3: BACK: .*leads outside"),
    "absolute": ({"frames": [frame(**images(BACK="/x.png"))]}, "frame f3: BACK: .*absolute"),
    "no qa": ({"frames": [frame(qa=None)]}, 'frame f3: no "qa"'),
    "empty qa": ({"frames": [frame(qa=[])]}, 'frame f3: no "qa"'),
    "qa no list": ({"frames": [frame(qa={"question": "a"})]}, 'frame f3: no "qa"'),
    "answer": (
        {"frames": [frame(qa=[{"question": "what?", "answer": " "}])]},
        "frame f3: qa 0 .*no answer. Write",
    ),
    "question": ({"frames": [frame(qa=[{"answer": "no"}])]}, "frame f3: qa 0 .*no question. Write"),
    "text": ({"frames": [frame(qa=["what?"])]}, "frame f3: qa 0 .*no question"),
    "twice": ({"frames": [frame(), frame()]}, "frame f3: written twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_names_the_frame_and_the_remedy(name, make, data):
    content, message = BAD[name]
    data.write_text(json.dumps(content))
    with pytest.raises(PruneError, match=message):
        make()


def test_a_damaged_picture_names_frame_and_camera(make, data):
    (data.parent / "pictures/1_BACK.png").write_text("no picture")
    with pytest.raises(PruneError, match=r"frame f1: BACK: .*Export it again"):
        make().prepare()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 2}, "holds 2 frames, none from 2 on"),
        ({"start": -1}, "from 0 on"),
        ({"count": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"cameras": ["FRONTT"]}, "'FRONTT' is not in the rig.*FRONT"),
        ({"method": "fps"}, "unknown method"),
        ({"method": "duet"}, "duet works in several stages, a search of rates takes a method of one"),
        ({"rig": None}, "Give a rig"),
    ],
)
def test_bad_options(options, message, make, data):
    with pytest.raises(PruneError, match=message):
        make(**options)
    with pytest.raises(PruneError, match=r"unknown score 'exakt'.*exact"):
        make().score(None, 0, 1, ["exakt"])


def test_a_legacy_model_is_refused(make, data):
    with pytest.raises(PruneError, match="search needs a stock model"):
        make(model=legacy_standins.build_fork())
