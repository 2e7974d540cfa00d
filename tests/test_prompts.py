"""Prompts: one picture per camera beside its name, for every family, with and without a chat template."""

import pytest
import torch

from families_table import FAMILIES, picture
from prune2drive import PruneError
from prune2drive.prompts import build_inputs, prompt_text

CAMERAS = ["CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK"]
BY_NAME = {case.name: case for case in FAMILIES}

# How published templates differ: pictures in place, pictures first, content as a string only.
IN_PLACE = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}MARK"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} bot:{% endif %}"
)
PICTURES_FIRST = (
    "{% for m in messages %}{{ m.role }}: "
    "{% for c in m.content | selectattr('type', 'equalto', 'image') %}MARK\n{% endfor %}"
    "{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} bot:{% endif %}"
)
STRING_ONLY = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %} bot:"


def frame(sample: int = 0) -> dict:
    return {camera: picture(0, sample, i) for i, camera in enumerate(CAMERAS)}


@pytest.fixture
def llava():
    processor = BY_NAME["llava"].processor()
    yield processor
    processor.chat_template = None


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_plain_prompts_place_every_picture_of_every_family(case):
    processor, model = case.processor(), case.model()
    two = build_inputs(processor, model, [frame(0), frame(1)], ["why?", "what is ahead?"], CAMERAS)
    one = build_inputs(processor, model, [frame(1)], "what is ahead?", CAMERAS)
    found = (two["input_ids"] == case.image_token_id(model)).sum(1).tolist()
    assert found == [sum(views) for views in case.views([3, 3])]
    assert two["attention_mask"][:, -1].tolist() == [1, 1]  # padded on the left
    width = int(two["attention_mask"][1].sum())
    assert torch.equal(two["input_ids"][1, -width:], one["input_ids"][0])
    assert two["pixel_values"].dtype == model.dtype
    with torch.no_grad():
        assert model(**one).logits.isfinite().all()


@pytest.mark.parametrize(
    "template", [IN_PLACE, PICTURES_FIRST, STRING_ONLY], ids=["in place", "first", "string"]
)
def test_templates_keep_each_picture_beside_its_name(llava, template):
    llava.chat_template = template.replace("MARK", "<image>")
    text = prompt_text(llava, "why?", CAMERAS)
    lines = "user: CAM_FRONT: <image>\nCAM_FRONT_LEFT: <image>\nCAM_BACK: <image>\nwhy? bot:"
    assert text == lines


def test_template_with_markers_around_the_picture():
    processor = BY_NAME["qwen2_5_vl"].processor()
    processor.chat_template = IN_PLACE.replace("MARK", "<|vision_start|><|image_pad|><|vision_end|>")
    try:
        text = prompt_text(processor, "why?", CAMERAS)
        inputs = build_inputs(processor, None, [frame()], "why?", CAMERAS)
    finally:
        processor.chat_template = None
    assert text.count("CAM_FRONT_LEFT: <|vision_start|><|image_pad|><|vision_end|>\n") == 1
    assert len(inputs["image_grid_thw"]) == 3


def test_begin_of_text_is_not_written_twice(llava):
    llava.chat_template = "<s>" + IN_PLACE.replace("MARK", "<image>")
    assert (build_inputs(llava, None, [frame()], "why?", CAMERAS)["input_ids"] == 1).sum() <= 1


@pytest.mark.parametrize("template", ["{{ raise_exception('no pictures') }}", "nothing at all"])
def test_template_that_loses_pictures(llava, template):
    llava.chat_template = template
    with pytest.raises(PruneError, match=r"cannot place 3 pictures.*chat_template"):
        prompt_text(llava, "why?", CAMERAS)


def test_wrong_input(llava):
    with pytest.raises(PruneError, match="'<image>', which stands for a picture"):
        build_inputs(llava, None, [frame()], "what is <image>?", CAMERAS)
    with pytest.raises(PruneError, match="frame 0 has no picture of 'CAM_TOP'"):
        build_inputs(llava, None, [frame()], "why?", ["CAM_TOP"])
    with pytest.raises(PruneError, match="2 questions for 1 frames"):
        build_inputs(llava, None, [frame()], ["a", "b"], CAMERAS)
    with pytest.raises(PruneError, match="nothing to ask about"):
        build_inputs(llava, None, [], "why?", CAMERAS)
