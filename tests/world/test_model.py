"""The reference model is a stock LLaVA: its prompt, its words, its weights and its pictures."""

import pytest
import torch
from PIL import Image

from prune2drive.loading import load_model
from prune2drive.prompts import build_inputs
from prune2drive.rig import NUSCENES
from prune2drive.world.generate import scenes
from prune2drive.world.labels import GRID
from prune2drive.world.model import (
    END,
    IMAGE,
    PAD,
    UNKNOWN,
    build_model,
    build_processor,
    build_tokenizer,
    pixels,
    prefix_text,
)
from prune2drive.world.questions import VOCABULARY, all_questions
from prune2drive.world.render import SIDE, render

QUESTION = "What colour is the nearest car in CAM_FRONT ?"
TOKENS = GRID * GRID


@pytest.fixture(scope="module")
def model():
    return build_model().eval()


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def rendered():
    some = list(scenes("validation", 2))
    return some, render(some)


def pictures(images):
    """One mapping camera -> RGB picture per scene, of rendered images (B, V, 3, H, W)."""
    return [
        {
            name: Image.fromarray(image.permute(1, 2, 0).numpy())
            for name, image in zip(NUSCENES.names, views, strict=True)
        }
        for views in images
    ]


def test_prompt_is_the_prefix_and_the_question(model, processor, rendered):
    frames = pictures(rendered[1].images)
    inputs = build_inputs(processor, model, frames[:1], QUESTION, NUSCENES.names)
    text = prefix_text(NUSCENES).replace(IMAGE, IMAGE * TOKENS) + QUESTION
    assert inputs["input_ids"][0].tolist() == processor.tokenizer(text)["input_ids"]
    # A name, a colon and the picture, six times; then the words of the question, the mark last.
    assert inputs["input_ids"].shape == (1, 6 * (TOKENS + 2) + len(QUESTION.split()))
    assert (inputs["input_ids"] == model.config.image_token_index).sum() == 6 * TOKENS
    assert inputs["attention_mask"].all()


def test_some_cameras_in_any_order(processor, rendered):
    frames = pictures(rendered[1].images)
    names = ["CAM_BACK", "CAM_FRONT"]
    inputs = build_inputs(processor, None, frames[:1], QUESTION, names)
    text = "".join(f"{name}: {IMAGE * TOKENS}\n" for name in names) + QUESTION
    assert inputs["input_ids"][0].tolist() == processor.tokenizer(text)["input_ids"]
    torch.testing.assert_close(
        inputs["pixel_values"], pixels(rendered[1].images[0, [3, 0]]), atol=1e-6, rtol=0
    )


def test_a_batch_is_padded_on_the_left(model, processor, rendered):
    frames = pictures(rendered[1].images)
    questions = ["What should we do ?", QUESTION]
    inputs = build_inputs(processor, model, frames, questions, NUSCENES.names)
    missing = len(QUESTION.split()) - len(questions[0].split())
    assert (inputs["input_ids"][0, :missing] == processor.tokenizer.pad_token_id).all()
    assert inputs["attention_mask"].sum(1).tolist() == [6 * (TOKENS + 2) + len(q.split()) for q in questions]


def test_the_template_leaves_the_question_last(processor):
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    for wanted in (True, False):
        text = processor.apply_chat_template([user], tokenize=False, add_generation_prompt=wanted)
        assert text == IMAGE + QUESTION
    plain = [{"role": "user", "content": QUESTION}]
    assert processor.apply_chat_template(plain, tokenize=False) == QUESTION
    told = [user, {"role": "assistant", "content": "red"}]
    assert processor.apply_chat_template(told, tokenize=False) == f"{IMAGE}{QUESTION} red{END}"


def test_pictures_reach_the_tower_as_they_were_drawn(processor, rendered):
    images = rendered[1].images
    inputs = build_inputs(processor, None, pictures(images), QUESTION, NUSCENES.names)
    expected = pixels(images.flatten(0, 1))
    assert expected.dtype == torch.float32 and expected.shape == (12, 3, SIDE, SIDE)
    assert expected.min() >= -1 and expected.max() <= 1
    torch.testing.assert_close(inputs["pixel_values"], expected, atol=1e-6, rtol=0)


def test_every_word_is_one_token():
    tokenizer = build_tokenizer()
    ids = [tokenizer(word)["input_ids"] for word in VOCABULARY]
    assert all(len(found) == 1 for found in ids)
    assert len({found[0] for found in ids}) == len(VOCABULARY)
    assert tokenizer.unk_token_id not in {found[0] for found in ids}
    special = [tokenizer.convert_tokens_to_ids(word) for word in (PAD, END, UNKNOWN, IMAGE)]
    assert special == [0, 1, 2, 3]
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == (PAD, END, UNKNOWN)
    assert tokenizer("zebra")["input_ids"] == [tokenizer.unk_token_id]
    assert tokenizer("red?")["input_ids"] == tokenizer("red ?")["input_ids"]
    assert tokenizer.decode(tokenizer("red")["input_ids"]) == "red"


def test_questions_have_no_unknown_word(rendered):
    tokenizer = build_tokenizer()
    some, frames = rendered
    seen, lamps = frames.visible(max(len(scene.things) for scene in some))
    for b, scene in enumerate(some):
        here = slice(0, len(scene.things))
        for question in all_questions(scene, seen[b, :, here].tolist(), lamps[b, :, here].tolist()):
            ids = tokenizer(f"{question.text} {question.answer}")["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) == len(question.text.split()) + 1


def test_size_and_type(model):
    assert type(model).__module__.startswith("transformers.")
    assert 5e6 < sum(weight.numel() for weight in model.parameters()) < 12e6
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    config = model.config
    longest = 6 * (TOKENS + 2) + 16
    assert config.text_config.max_position_embeddings > longest
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert config.text_config.vocab_size == len(build_tokenizer())


def test_equal_seeds_give_equal_weights(model):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again, other = build_model(0), build_model(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.training
    state, changed = again.state_dict(), other.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
    assert any(not torch.equal(weight, changed[name]) for name, weight in state.items())


def test_it_loads_as_it_was_saved(tmp_path, model, processor, rendered):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, restored = load_model(tmp_path, device="cpu")
    assert type(loaded) is type(model) and type(restored) is type(processor)
    frames = pictures(rendered[1].images)[:1]
    ours = build_inputs(processor, model, frames, QUESTION, NUSCENES.names)
    theirs = build_inputs(restored, loaded, frames, QUESTION, NUSCENES.names)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with torch.inference_mode():
        expected, found = model(**ours).logits, loaded(**theirs).logits
        assert torch.equal(found, expected)
        assert expected.shape[1:] == (ours["input_ids"].shape[1], len(build_tokenizer()))
        out = loaded.generate(**theirs, max_new_tokens=2, do_sample=False)
    assert out[0, ours["input_ids"].shape[1]] == expected[0, -1].argmax()
