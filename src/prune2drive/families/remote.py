"""Models with code of their own: recognised by what they can do, not by what they are.

A legacy model attaches if it offers one of two surfaces:

* ``prepare_inputs_labels_for_multimodal(input_ids, position_ids, attention_mask, past_key_values, labels,
  images, ...)`` returning ``(None, position_ids, attention_mask, past_key_values, inputs_embeds, labels)``,
  as every fork of the LLaVA code base has it (DriveMM among them): see `LlavaFork`.
* ``extract_feature(pixel_values)``, ``img_context_token_id`` and a ``generate`` that takes
  ``visual_features``, as OpenGVLab's InternVLChat has it (DriveLMM-o1): see `InternVLChat`.

A further surface is one subclass of `RemoteFamily`: say when it `fits` and which methods to wrap, and call
the ``cut`` it is given with the features, the images and the masks. Choosing, counting and recording are
then the same as for stock models. Positions are always counted anew: the old ``generate`` takes no others.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..tokens import ImageTokens, PositionPolicy, Segment, Signal
from .base import bound, near_square, runs
from .internvl import tiled

if TYPE_CHECKING:
    from ..engine.cutter import CutPrompt
    from ..layer_pruners.base import LayerPruner

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


class RemoteFamily(ABC):
    """A legacy model bound to the methods through which its prompts are cut."""

    surface: ClassVar[tuple[str, ...]]
    """Attributes by which such a model is known."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether a model offers this surface."""
        return all(hasattr(model, name) for name in cls.surface)

    def lacks(self, signal: Signal) -> str | None:
        """Why a signal cannot be had from this model: none can."""
        name = type(self.model).__name__
        return f"{name} runs code of its own, which shows features alone; convert it to a stock class"

    def check(self, positions: PositionPolicy, pruners: Sequence[LayerPruner]) -> None:
        """Refuse what legacy code cannot do."""
        name = type(self.model).__name__
        if positions is not PositionPolicy.REINDEX:
            raise PruneError(
                f"{name} counts positions by itself: use positions='reindex', or convert it to a stock class"
            )
        if pruners:
            raise PruneError(
                f"{name} runs code of its own, so tokens can only be chosen before its language model "
                f"(method='tfps'), not at layer {pruners[0].layer}; convert it to a stock class for that"
            )

    @abstractmethod
    def wrappers(self, cut: Callable[..., CutPrompt]) -> dict[str, Wrap]:
        """Method name -> function that wraps the model's own method of that name.

        ``cut(flat, images, mask, visual, encode_ms)`` chooses: see `engine.cutter.Cutter`.
        """


class LlavaFork(RemoteFamily):
    """Forks of LLaVA: pictures are spliced into the embeddings by one method, which is wrapped.

    It returns embeddings only. Handed labels that are all ones, it marks every picture row with the
    ignore index, which gives the layout whatever the fork does in between.
    """

    surface = ("prepare_inputs_labels_for_multimodal", "get_model")

    def wrappers(self, cut: Callable[..., CutPrompt]) -> dict[str, Wrap]:
        return {"prepare_inputs_labels_for_multimodal": functools.partial(self._wrap, cut)}

    def _wrap(self, cut: Callable[..., CutPrompt], own: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(own)

        @functools.wraps(own)
        def prepare(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind_partial(*args, **kwargs).arguments
            ids, images = call["input_ids"], call.get("images")
            if images is None or ids.shape[1] == 1:  # text, or a decode step
                return own(*args, **kwargs)
            return self._cut(cut, own, dict(call))

        return prepare

    def _cut(self, cut: Callable[..., CutPrompt], own: Callable[..., Any], call: dict[str, Any]) -> Any:
        from ..engine.clock import Clock

        ids, mask, labels, positions = (
            call.get(name) for name in ("input_ids", "attention_mask", "labels", "position_ids")
        )
        assert isinstance(ids, Tensor)
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        call |= {"labels": torch.ones_like(ids), "attention_mask": real, "position_ids": None}
        clock = Clock(ids.device)
        with clock:
            _, _, merged_mask, cache, embeds, marks = own(**call)
        visual = (marks != 1) & merged_mask.bool()
        flat = embeds[visual]
        host_visual = visual.cpu()
        done = cut(
            flat, self._images(flat, host_visual), merged_mask.cpu().bool(), host_visual, lambda: clock.ms
        )
        assert done.cut is not None and done.short is not None
        short = done.short
        embeds = embeds.masked_scatter(visual[..., None], done.cut.features.to(embeds.dtype))
        columns = short.columns[..., None].expand(-1, -1, embeds.shape[-1])
        embeds = embeds.gather(1, columns).masked_fill(~short.valid[..., None], 0)
        if labels is not None:
            text = merged_mask.bool() & ~visual
            given = labels[real & (ids >= 0)]  # pictures stand as negative ids
            if int(text.sum()) != given.numel():
                raise PruneError(
                    f"{given.numel()} text tokens went in, {int(text.sum())} came "
                    "out: the prompt was truncated at the "
                    "model's maximum length; shorten it"
                )
            full = torch.full_like(marks, -100).masked_scatter(text, given.to(marks.dtype))
            labels = short.gather(full, -100)
        explicit = mask is not None or not bool(short.valid.all())
        new_mask = short.valid.to(mask.dtype if mask is not None else torch.bool) if explicit else None
        if positions is not None:
            positions = (short.valid.long().cumsum(-1) - 1).clamp(min=0)
        return None, positions, new_mask, cache, embeds, labels

    def _images(self, flat: Tensor, visual: Tensor) -> list[list[ImageTokens]]:
        """One run of picture rows is one picture; rows equal to the newline vector are structure."""
        newline = getattr(self.model.get_model(), "image_newline", None)
        lines = torch.zeros(len(flat), dtype=torch.bool)
        if newline is not None:
            lines = (flat == newline.to(flat)).all(-1).cpu()
        out, at = [], 0
        for row in visual:
            start, images = 0, []
            for first, end in runs(row):
                length = end - first
                segments = spliced_segments(lines[at : at + length])
                images.append(ImageTokens(start, length, tuple(segments)))
                start, at = start + length, at + length
            out.append(images)
        return out


def spliced_segments(lines: Tensor) -> list[Segment]:
    """Rectangles of a picture from where its newline rows are: none, one at the end, or one per row."""
    ends = lines.nonzero().flatten().tolist()
    if len(ends) < 2:
        return [Segment(0, near_square(len(lines) - len(ends)))]
    stride = ends[1] - ends[0]
    base = ends[0] - (stride - 1)
    fine = Segment(base, (len(ends), stride - 1), stride=stride)
    return [Segment(0, near_square(base), thumbnail=True), fine] if base else [fine]


class InternVLChat(RemoteFamily):
    """OpenGVLab's remote code: ``generate`` takes ready features, the training ``forward`` does not."""

    surface = ("extract_feature", "img_context_token_id", "generate")

    def wrappers(self, cut: Callable[..., CutPrompt]) -> dict[str, Wrap]:
        return {
            "generate": functools.partial(self._wrap_generate, cut),
            "forward": functools.partial(self._wrap_forward, cut),
        }

    def _wrap_generate(self, cut: Callable[..., CutPrompt], own: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(own)

        @functools.wraps(own)
        @torch.no_grad()
        def generate(*args: Any, **kwargs: Any) -> Any:
            call = bound(signature, args, kwargs)
            if call.get("pixel_values") is None:
                return own(**call)
            features, short = self._cut(cut, call, call.pop("visual_features", None))
            return own(**call | short, visual_features=features)

        return generate

    def _wrap_forward(self, cut: Callable[..., CutPrompt], own: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(own)

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = bound(signature, args, kwargs)
            if call.get("pixel_values") is None:
                return own(**call)
            features, short = self._cut(cut, call, None)
            if call.get("image_flags") is not None:
                short["image_flags"] = torch.ones(len(features), 1, dtype=torch.long, device=features.device)
            extract = self.model.__dict__.get("extract_feature")
            object.__setattr__(self.model, "extract_feature", lambda *_, **__: features[:, None])
            try:
                return own(**call | short)
            finally:
                object.__delattr__(self.model, "extract_feature")
                if extract is not None:
                    object.__setattr__(self.model, "extract_feature", extract)

        return forward

    def _cut(
        self, cut: Callable[..., CutPrompt], call: dict[str, Any], features: Tensor | None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Kept features ``(K, D)`` and the shortened per-token inputs of a call."""
        from ..engine.clock import Clock

        token, ids, mask = self.model.img_context_token_id, call["input_ids"], call.get("attention_mask")
        if token is None:
            raise PruneError(
                "img_context_token_id is not set; chat() sets it, or: model.img_context_token_id = "
                "tokenizer.convert_tokens_to_ids('<IMG_CONTEXT>')"
            )
        clock = Clock(ids.device)
        with clock:
            if features is None:
                features = self.model.extract_feature(call["pixel_values"])
        assert features is not None
        if (flags := call.get("image_flags")) is not None:
            features = features[flags.reshape(-1) == 1]
        per_tile = features.shape[-2]
        flat = features.reshape(-1, features.shape[-1])
        visual = ids.cpu() == token
        host_mask = torch.ones_like(visual) if mask is None else mask.cpu().bool()
        if int(visual.sum()) != len(flat):
            raise PruneError(
                f"{int(visual.sum())} <IMG_CONTEXT> tokens in the prompt, {len(flat)} visual tokens"
            )
        images = []
        for row in visual:
            start, found = 0, []
            for first, end in runs(row):
                found.append(ImageTokens(start, end - first, tuple(tiled(end - first, per_tile, None))))
                start += end - first
            images.append(found)
        done = cut(flat, images, host_mask, visual, lambda: clock.ms)
        assert done.cut is not None and done.short is not None
        short: dict[str, Any] = {"input_ids": done.short.gather(ids, 0)}
        short["attention_mask"] = done.short.valid.to(mask.dtype if mask is not None else torch.long)
        if call.get("labels") is not None:
            short["labels"] = done.short.gather(call["labels"], -100)
        if call.get("position_ids") is not None:
            short["position_ids"] = (done.short.valid.long().cumsum(-1) - 1).clamp(min=0)
        return done.cut.features.index_select(0, done.cut.kept), short


def find_remote(model: nn.Module) -> RemoteFamily | None:
    """The legacy surface a model offers, or None."""
    for family in (LlavaFork, InternVLChat):
        if family.fits(model):
            return family(model)
    return None
