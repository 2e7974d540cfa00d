"""The task of a person's own frames: any stock model, any pictures, questions with reference answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..allocators import Rates, count
from ..benchmarks.language import language
from ..benchmarks.runner import weights_hash
from ..engine.attach import Pruned, prune
from ..engine.stages import Method
from ..errors import PruneError, did_you_mean
from ..families import find_family
from ..families.remote import RemoteFamily
from ..layout import Layout, PerCamera, load_layout
from ..registry import resolve_single
from ..rig import Rig, load_rig
from ..selectors.base import Selector
from .data import Asked, digest, read_frames
from .features import LIMIT, FeatureCache, Item, default_folder
from .items import ANSWER_TYPE, Ask, asks, collated, packed, processed, restored, stacked
from .replay import Recorder, Replay, check_features_serve, is_nested
from .task import Scores, Task
from .world import describe

MOSAIC = "MOSAIC"
"""What the picture of a stitched layout is called in the data file unless ``cameras`` says otherwise."""


class FramesTask(Task):
    """Frames of a JSON file, and any stock vision-language model that `prune` takes.

    Every frame's pictures are encoded once; features, a nested selector's order and the tokenized
    prompts stay in the cache, so that a trial is the language model alone. Other methods choose anew
    in every trial, from cached features. Each question is a prompt of its own.

    Args:
        model, processor: as `load_model` returns them.
        data: see `read_frames`.
        model_id: folder of the model, whose weights are read once to hash them, or its hub id.
        cameras: which cameras, in prompt order; all of the rig's by default. With a stitched layout,
            the name of the stitched picture in the data file ("MOSAIC" by default).
        method: a name or an object, as `prune` takes it.
        count, start: frames ``start`` to ``start + count - 1`` of the file; None for all that follow.
        batch: questions in one pass of the model.
        max_new_tokens: of an answer that is generated for "language".
        cache, limit: where features lie, and how many bytes all of them may take.

    Raises:
        PruneError: data that cannot be read (see `read_frames`), an unknown method, rig or layout, a
            legacy model, or an answer without tokens.
    """

    parts = ("exact", "probability", "likelihood", "language")

    def __init__(
        self,
        model: Any,
        processor: Any,
        data: str | Path,
        *,
        model_id: str | Path,
        rig: str | Path | Rig | Mapping[str, Any] | Sequence[str] = "nuscenes",
        cameras: Sequence[str] | None = None,
        layout: Layout | str | None = None,
        method: Method = "tfps",
        positions: str = "keep",
        count: int | None = None,
        start: int = 0,
        batch: int = 1,
        max_new_tokens: int = 32,
        cache: str | Path | None = None,
        limit: int = LIMIT,
    ) -> None:
        if batch < 1 or max_new_tokens < 1:
            raise PruneError(f"batches of {batch}, {max_new_tokens} new tokens: give at least 1 of each.")
        found = load_rig(rig)
        if found is None:
            raise PruneError("rig=None: rates need camera names. Give a rig, or a list of names.")
        unwrap: Any = getattr(model, "get_base_model", None)
        self.model: Any = (unwrap() if unwrap else model).eval()
        self.processor, self.rig, self.method = processor, found, resolve_single(method, "a search of rates")
        check_features_serve(self.method)
        self.family = _stock_family(self.model)
        self.layout, self.pictures = _pictures(layout, found, cameras)
        self.positions, self.batch, self.max_new_tokens = positions, batch, max_new_tokens
        known = found.names if isinstance(self.layout, PerCamera) else self.pictures
        self.data = read_frames(data, known, self.pictures, start, count)
        self.frames = [frame.id for frame in self.data]
        self._source, self._identity = Path(data).name, _identity(self.model, model_id)
        self.rounding = self.method.rounding
        self._cache = FeatureCache(cache or default_folder(), self._key(), limit)
        self._folder: FeatureCache | None = None
        self._asks: dict[int, list[Ask]] = {}
        self._pending: dict[str, Item] = {}  # prompts that were made when their pictures were encoded
        self._ready: set[str] = set()
        self._answers: dict[str, Tensor] = {}
        for text in {answer for frame in self.data for _, answer in frame.qa}:
            self._answer(text)

    @cached_property
    def tokens(self) -> Mapping[str, int]:  # type: ignore[override]
        """Visual tokens of each camera in the first frame, which is encoded if need be."""
        folder = self._prepared(self.data[:1])
        # What it keeps does not matter: any selector makes the engine lay out the cameras.
        seen = self._prune("stride", 1.0)
        seen.rewrite(**self._inputs(self._questions(0)[:1], [folder[self.data[0].feature_id]]))
        return {name: cell.before for name, cell in seen.record.stage(0)[0].items()}

    @property
    def contents(self) -> Sequence[str]:
        return [frame.pictures for frame in self.data]

    @cached_property
    def cameras(self) -> Sequence[str]:  # type: ignore[override]
        return self.pictures if isinstance(self.layout, PerCamera) else tuple(self.tokens)

    def about(self) -> dict[str, Any]:
        return {
            **self._identity,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "method": describe(self.method),
            "positions": self.positions,
            "cameras": list(self.cameras),
            "layout": repr(self.layout),
            "tokens": dict(self.tokens),
            "data": {
                "source": self._source,
                "version": metadata.version("prune2drive"),
                "samples": len(self.data),
                "questions": sum(len(frame.qa) for frame in self.data),
                "ids": digest([frame.prompt_id for frame in self.data]),
                "max_new_tokens": self.max_new_tokens,
            },
        }

    def prepare(self, progress: Callable[[int], None] = lambda done: None) -> None:
        self._ready.clear()
        self._prepared(self.data, progress)

    @torch.inference_mode()
    def score(
        self, retention: Mapping[str, float] | None, start: int, stop: int, parts: Sequence[str] = ()
    ) -> Scores:
        for part in parts:
            if part not in self.parts:
                raise PruneError(f"unknown score {part!r}.{did_you_mean(part, self.parts)}")
        folder = self._prepared(self.data)
        asks = [ask for number in range(start, stop) for ask in self._questions(number)]
        replay = Replay(self.method.rounding) if self._nested else None
        pruned = None if retention is None else self._prune(replay or self.method, Rates(retention))
        sums = {part: np.zeros(stop - start) for part in self.parts if part != "language" or part in parts}
        for low in range(0, len(asks), self.batch):
            group = asks[low : low + self.batch]
            items = [folder[self.data[ask.frame].feature_id] for ask in group]
            if replay is not None:
                replay.order = stacked([item["order"] for item in items])
            found = dict(zip(self.parts, self._forced(group, items, pruned).tolist(), strict=False))
            if "language" in parts:
                found["language"] = self._spoken(group, items, pruned)
            for part, values in found.items():
                np.add.at(sums[part], [ask.frame - start for ask in group], values)
        return Scores(np.array([float(len(frame.qa)) for frame in self.data[start:stop]]), sums)

    def kept(self, retention: Mapping[str, float]) -> float:
        if not self._nested:
            return super().kept(retention)  # no order to count the tokens of other frames by
        folder, total = self._prepared(self.data), 0
        for frame in self.data:
            lengths = (folder[frame.feature_id]["order"] >= 0).sum(-1).tolist()
            pairs = zip(self.tokens, lengths, strict=True)
            total += sum(count(n, retention[name], self.rounding) for name, n in pairs)
        return total / len(self.data)

    # -- asking ---------------------------------------------------------------------------------

    def _prune(self, method: Method, retention: Any) -> Pruned:
        return prune(
            self.model, method, retention, rig=self.rig, layout=self.layout, positions=self.positions
        )

    def _forced(self, group: Sequence[Ask], items: Sequence[Item], pruned: Pruned | None) -> Tensor:
        """Teacher-forced scores: host float64 ``(3, B)``, exact, probability and likelihood."""
        most = max(len(ask.answer) for ask in group)
        inputs = self._inputs(group, items, answers=True)
        with pruned or nullcontext():
            # Padding is on the left, so that every answer ends in the last column, cut or not. The
            # token before an answer predicts its first.
            logits = self.model(**inputs, logits_to_keep=most + 1, use_cache=False).logits[:, -most - 1 : -1]
        target = inputs["input_ids"][:, -most:].to(logits.device)
        lengths = torch.tensor([len(ask.answer) for ask in group], device=logits.device)
        asked = torch.arange(most, 0, -1, device=logits.device) <= lengths[:, None]
        logp = logits.float().log_softmax(-1).gather(2, target[..., None])[..., 0]
        mean = logp.double().masked_fill(~asked, 0).sum(-1) / lengths
        right = ((logits.argmax(-1) == target) | ~asked).all(-1)
        return torch.stack([right.double(), mean.exp(), mean]).cpu()

    def _spoken(self, group: Sequence[Ask], items: Sequence[Item], pruned: Pruned | None) -> list[float]:
        """Language scores of the greedy answers."""
        inputs = self._inputs(group, items)
        with pruned or nullcontext():
            out = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        texts = self.processor.tokenizer.batch_decode(
            out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [language(text, ask.reference) for text, ask in zip(texts, group, strict=True)]

    def _inputs(self, group: Sequence[Ask], items: Sequence[Item], answers: bool = False) -> dict[str, Any]:
        """A call's inputs for some questions: left-padded prompts, with their answers if wanted."""
        kind = ANSWER_TYPE.get(self.model.config.model_type, 0)
        inputs = collated(group, self._pad, kind if answers else None)
        device = self.model.device
        placed = {name: tensor.to(device) for name, tensor in inputs.items()}
        return {**placed, "mm_encoder_outputs": {"image": restored(items, device)}}

    @property
    def _pad(self) -> int:
        pad = self.processor.tokenizer.pad_token_id
        return 0 if pad is None or pad == self.family.image_token_id else int(pad)

    def _questions(self, number: int) -> list[Ask]:
        """The questions of a frame, from the cache."""
        if number not in self._asks:
            frame = self.data[number]
            self._asks[number] = self._asked(number, self._prepared([frame])[frame.prompt_id])
        return self._asks[number]

    def _asked(self, number: int, prompts: Item) -> list[Ask]:
        return asks(prompts, number, [(text, self._answer(text)) for _, text in self.data[number].qa])

    def _answer(self, text: str) -> Tensor:
        if text not in self._answers:
            ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            if not ids:
                raise PruneError(f"the tokenizer makes no tokens of the answer {text!r}. Write another one.")
            self._answers[text] = torch.tensor(ids)
        return self._answers[text]

    # -- encoding -------------------------------------------------------------------------------

    def _prepared(
        self, frames: Sequence[Asked], progress: Callable[[int], None] = lambda done: None
    ) -> FeatureCache:
        """The cache, with features and prompts of some frames in it."""
        if self._folder is None:
            self._folder = self._cache.__enter__()
        new = [frame for frame in frames if frame.id not in self._ready]
        if new:
            by_id = {name: frame for frame in new for name in (frame.feature_id, frame.prompt_id)}
            encode, write = self._encoded, self._prompted
            self._folder.fill(
                [f.feature_id for f in new], lambda ids: (encode(by_id[i]) for i in ids), 1, progress
            )
            self._folder.fill([f.prompt_id for f in new], lambda ids: (write(by_id[i]) for i in ids), 1)
            self._ready |= {frame.id for frame in new}
        return self._folder

    @torch.inference_mode()
    def _encoded(self, frame: Asked) -> Item:
        """Features of a frame's pictures, and the order of their tokens."""
        inputs, prompts = self._processed_frame(frame)
        self._pending[frame.prompt_id] = prompts
        names = self.family.encoder_names()
        given = {k: v.to(self.model.device) for k, v in inputs.items() if k in names}
        given = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in given.items()}
        item = packed(self.family, self.family.encode(given))
        if self._nested:
            assert isinstance(self.method, Selector)
            recorder = Recorder(self.method)
            first = self._asked(self.frames.index(frame.id), prompts)[:1]
            self._prune(recorder, 1.0).rewrite(**self._inputs(first, [item]))
            assert recorder.order is not None
            item["order"] = recorder.order.to(torch.int32)
        return item

    def _prompted(self, frame: Asked) -> Item:
        """The tokenized questions of a frame."""
        made = self._pending.pop(frame.prompt_id, None)
        return self._processed_frame(frame)[1] if made is None else made

    def _processed_frame(self, frame: Asked) -> tuple[dict[str, Tensor], Item]:
        questions = [question for question, _ in frame.qa]
        return processed(self.processor, frame.load(), questions, self.pictures)

    @property
    def _nested(self) -> bool:
        return is_nested(self.method)

    def _key(self) -> dict[str, Any]:
        """What features and prompts depend on; which frames and questions is in the names of the files."""
        return {
            "source": "frames",
            "version": metadata.version("prune2drive"),
            "transformers": metadata.version("transformers"),
            **self._identity,
            "class": type(self.model).__name__,
            "dtype": str(self.model.dtype),
            "processor": _processor_settings(self.processor),
            "rig": self.rig.to_dict(),
            "layout": repr(self.layout),
            "pictures": list(self.pictures),
            "order": describe(self.method) if self._nested else None,
        }


def _stock_family(model: Any) -> Any:
    found = find_family(model)
    if isinstance(found, RemoteFamily):
        raise PruneError(
            f"{type(model).__name__} runs code of its own and takes no features encoded before; a search "
            "needs a stock model (prune2drive.list_families()). Convert it to a stock class first."
        )
    return found


def _pictures(
    layout: Layout | str | None, rig: Rig, cameras: Sequence[str] | None
) -> tuple[Layout, tuple[str, ...]]:
    """The layout, and the names of the pictures of a prompt in order."""
    found = load_layout(layout)
    if not isinstance(found, PerCamera):
        return found, tuple(cameras or (MOSAIC,))
    if found.cameras is None or cameras is not None:
        found = load_layout(found, tuple(rig.names if cameras is None else cameras))
    assert isinstance(found, PerCamera)
    names = tuple(found.cameras or ())
    for name in names:
        if name not in rig:
            raise PruneError(f"camera {name!r} is not in the rig.{did_you_mean(str(name), rig.names)}")
    return found, names  # type: ignore[return-value]


def _identity(model: Any, model_id: str | Path) -> dict[str, Any]:
    """Name and hashes of a model: of its settings, and of its weights where they lie in a folder."""
    folder = Path(model_id).expanduser()
    settings = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):  # where it lies, and who wrote it
        settings.pop(name, None)
    hashes = {"config": digest(settings), "commit": getattr(model.config, "_commit_hash", None)}
    if hasattr(model, "peft_config") or any(".lora_" in name for name, _ in model.named_parameters()):
        hashes["adapted"] = _parameters_hash(model)  # what lies in the folder is not what runs
    if folder.is_dir():
        return {"model": folder.resolve().name, "weights": weights_hash(folder), **hashes}
    return {"model": str(model_id), "weights": None, **hashes}


def _parameters_hash(model: Any) -> str:
    """SHA-256 over the names and values of all parameters."""
    total = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        total.update(name.encode())
        total.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _processor_settings(processor: Any) -> dict[str, Any]:
    """How pictures and questions become inputs, as plain data."""
    tokenizer = processor.tokenizer
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    plain = {k: v for k, v in vars(processor).items() if isinstance(v, str | int | float | bool)}
    images = json.loads(json.dumps(processor.image_processor.to_dict(), default=str))
    return {
        "class": type(processor).__name__,
        "images": images,
        "settings": plain,
        "template": str(template),
        "tokenizer": digest([type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.special_tokens_map]),
    }
