"""Turning a question and one picture per camera into model inputs.

Every picture is preceded by its camera's name ("CAM_FRONT: <image>"), in the order given. Models
differ in how a prompt names a picture; what is built here is checked against what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import PruneError


def build_inputs(
    processor: Any,
    model: Any,
    frames: Sequence[Mapping[str, Any]],
    question: str | Sequence[str],
    cameras: Sequence[str],
) -> Any:
    """Build the inputs of ``model.generate`` for a batch of frames.

    Args:
        processor: a Hugging Face processor with a tokenizer and an image processor.
        model: inputs go to its device, pixels to its dtype; None leaves them as they are.
        frames: one mapping camera -> RGB picture per sample.
        question: one for all samples, or one per sample.
        cameras: which pictures, in prompt order; the same for every sample.

    Returns:
        A ``BatchFeature``: ``input_ids`` and ``attention_mask`` ``(len(frames), T)`` padded on the
        left, and the pixels as the model family wants them.

    Raises:
        PruneError: a frame without one of the cameras, a question that holds an image token, or a
            chat template that loses pictures.
    """
    cameras = list(cameras)
    if not frames or not cameras:
        raise PruneError(
            f"nothing to ask about: {len(frames)} frames, {len(cameras)} cameras. Give one at least."
        )
    questions = [question] * len(frames) if isinstance(question, str) else list(question)
    if len(questions) != len(frames):
        raise PruneError(f"{len(questions)} questions for {len(frames)} frames. Give one, or one per frame.")
    for i, frame in enumerate(frames):
        for camera in cameras:
            if camera not in frame:
                raise PruneError(f"frame {i} has no picture of {camera!r}. It has: {', '.join(frame)}.")
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise PruneError(f"{type(processor).__name__} has no tokenizer, so it cannot write prompts.")
    texts = [prompt_text(processor, text, cameras) for text in questions]
    options: dict[str, Any] = {"return_tensors": "pt"}
    if len(texts) > 1:
        if tokenizer.pad_token is None:
            raise PruneError(
                "the tokenizer has no pad_token for a batch. Set tokenizer.pad_token, or ask one by one."
            )
        options.update(padding=True, padding_side="left")
    bos = getattr(tokenizer, "bos_token", None)
    if bos and texts[0].startswith(bos):
        options["add_special_tokens"] = False  # the template wrote it already
    # One list of pictures per sample: families that want a flat list flatten it themselves.
    images = [[frame[camera] for camera in cameras] for frame in frames]
    inputs = processor(text=texts, images=images, **options)
    inputs.pop("labels", None)  # PaliGemma's processor adds them, and with labels a model computes a loss
    return inputs if model is None else inputs.to(model.device, dtype=model.dtype)


def prompt_text(processor: Any, question: str, cameras: Sequence[str]) -> str:
    """The prompt of one sample, with one image placeholder per camera.

    With a chat template: a user turn of name, picture, name, picture, ..., question. Some templates
    move every picture before every text; then the placeholders are written as text instead, which
    keeps each picture beside its name. Without a template: a plain USER/ASSISTANT prompt.

    Raises:
        PruneError: as `build_inputs`.
    """
    marks = _placeholders(processor)
    for mark in marks:
        if mark in question:
            raise PruneError(f"the question holds {mark!r}, which stands for a picture. Remove it.")
    if not _template(processor):
        return _plain(processor, question, cameras)
    parts: list[dict[str, str]] = []
    for camera in cameras:
        parts += [{"type": "text", "text": f"{camera}: "}, {"type": "image"}, {"type": "text", "text": "\n"}]
    written = _written(processor, cameras) + question
    attempts: list[Any] = [
        [*parts, {"type": "text", "text": question}],
        [{"type": "text", "text": written}],
        written,
    ]
    failure: Exception | None = None
    fallback = None
    for content in attempts:
        try:
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # jinja templates fail in every way on a content they do not know
            failure = error
            continue
        count = max((text.count(mark) for mark in marks), default=0)
        if count == len(cameras):
            if _interleaved(text, marks, cameras):
                return text
            fallback = fallback or text
    if fallback is None:
        why = f"it fails: {failure}" if failure else f"the prompt does not show {len(cameras)} pictures"
        raise PruneError(
            f"the chat template of {type(processor).__name__} cannot place {len(cameras)} pictures ({why}). "
            "Set processor.chat_template to the model's own, or to None for a plain prompt."
        ) from failure
    return fallback


def _template(processor: Any) -> Any:
    own = getattr(processor, "chat_template", None)
    return own or getattr(getattr(processor, "tokenizer", None), "chat_template", None)


def _placeholders(processor: Any) -> list[str]:
    """Tokens a prompt may use for a picture; Gemma 3 writes its begin-of-image token instead."""
    tokens = [getattr(processor, "boi_token", None), getattr(processor, "image_token", None)]
    return [str(t) for t in tokens if t] or ["<image>"]


def _written(processor: Any, cameras: Sequence[str]) -> str:
    """Names and placeholders as text, one line per camera."""
    mark = _placeholders(processor)[0]
    if mark == "<|image_pad|>":  # Qwen: the placeholder alone is not a picture
        mark = f"<|vision_start|>{mark}<|vision_end|>"
    return "".join(f"{camera}: {mark}\n" for camera in cameras)


def _plain(processor: Any, question: str, cameras: Sequence[str]) -> str:
    if type(processor).__name__.startswith("PaliGemma"):  # reads all pictures first, then one line of text
        return _placeholders(processor)[0] * len(cameras) + f"{', '.join(cameras)}. {question}"
    return f"USER: {_written(processor, cameras)}{question} ASSISTANT:"


def _interleaved(text: str, marks: Sequence[str], cameras: Sequence[str]) -> bool:
    """True when name 1, picture 1, name 2, picture 2, ... follow each other."""
    at = 0
    for camera in cameras:
        name = text.find(f"{camera}:", at)
        spots = [spot for mark in marks if (spot := text.find(mark, at)) >= 0]
        if name < 0 or not spots or min(spots) < name:
            return False
        at = min(spots) + 1
    return True
