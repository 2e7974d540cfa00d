"""The task of the rendered world: the default data of a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..allocators import Rates
from ..benchmarks.answering import Answerer
from ..benchmarks.runner import FORMAT, weights_hash
from ..benchmarks.world import Sample, samples
from ..engine.attach import prune
from ..engine.stages import Method
from ..errors import PruneError
from ..registry import resolve_single
from ..rig import NUSCENES
from ..selectors.base import Selector
from ..world.generate import check_split
from ..world.model import FOLDER
from .data import digest
from .features import LIMIT, FeatureCache, Item, default_folder
from .replay import Recorder, Replay, check_features_serve, is_nested
from .task import Scores, Task


class WorldTask(Task):
    """Drawn scenes of one split, and the reference model or another one made for them.

    Features come from the cache; a nested selector's order as well, so that a trial is the language
    model alone. Other methods choose anew in every trial, from cached features.

    Args:
        answerer: the model.
        model: the folder with its weights, which are read once to hash them.
        split, count, start: scenes ``start`` to ``start + count - 1`` of the split.
        seed: of the questions.
        method: a name or an object, as `prune` takes it.
        batch: scenes scored at once.
        cache: where features lie, and how many bytes all of them may take.

    Raises:
        PruneError: an unknown split or method, or no scenes.
    """

    parts = ("exact", "probability", "likelihood")
    fixed_length = True
    cameras = NUSCENES.names

    def __init__(
        self,
        answerer: Answerer,
        model: str | Path,
        *,
        split: str = "calibration",
        count: int = 500,
        start: int = 0,
        seed: int = 0,
        method: Method = "tfps",
        positions: str = "keep",
        batch: int = 16,
        cache: str | Path | None = None,
        limit: int = LIMIT,
    ) -> None:
        if count < 1 or start < 0 or batch < 1:
            raise PruneError(f"{count} scenes from {start} in batches of {batch}: give at least 1 of each.")
        self.answerer, self.method = answerer, resolve_single(method, "a search of rates")
        check_features_serve(self.method)
        self.split, self.start, self.seed, self.batch = check_split(split), start, seed, batch
        self.positions, self.rounding = positions, self.method.rounding
        self.frames = [f"{split}/{number}" for number in range(start, start + count)]
        self.tokens = dict.fromkeys(self.cameras, answerer.tokens_per_picture)
        self._weights = weights_hash(Path(model))
        self._name = Path(model).resolve().name
        self._samples: list[Sample] | None = None
        self._answers: dict[str, int] = {}
        self._cache = FeatureCache(cache or default_folder(), self._key(), limit)
        self._folder: FeatureCache | None = None
        self._ready = False

    @classmethod
    def load(
        cls,
        folder: str | Path = FOLDER,
        *,
        dtype: str | torch.dtype = "auto",
        device: Any = None,
        **options: Any,
    ) -> WorldTask:
        """Load a model, by default the reference model, and make its task; ``options`` as above."""
        from ..loading import load_model

        return cls(Answerer(*load_model(folder, dtype=dtype, device=device)), folder, **options)

    @property
    def samples(self) -> list[Sample]:
        """The scenes; drawn when first needed."""
        if self._samples is None:
            self._samples = list(samples(self.split, len(self.frames), self.seed, start=self.start))
        return self._samples

    def about(self) -> dict[str, Any]:
        return {
            "model": self._name,
            "weights": self._weights,
            "dtype": str(self.answerer.model.dtype).removeprefix("torch."),
            "method": describe(self.method),
            "positions": self.positions,
            "cameras": list(self.cameras),
            "tokens": dict(self.tokens),
            "data": {
                "source": "world",
                "format": FORMAT,
                "version": metadata.version("prune2drive"),
                "split": self.split,
                "first": self.start,
                "samples": len(self.frames),
                "questions": sum(len(sample.questions) for sample in self.samples),
                "seed": self.seed,
            },
        }

    def prepare(self, progress: Callable[[int], None] = lambda done: None) -> None:
        if self._folder is None:
            self._folder = self._cache.__enter__()
        self._folder.fill(self.frames, self._encode, min(self.batch, 8), progress)
        self._ready = True

    def score(
        self, retention: Mapping[str, float] | None, start: int, stop: int, parts: Sequence[str] = ()
    ) -> Scores:
        done = []
        for low in range(start, stop, self.batch):
            done.append(self._score(retention, low, min(low + self.batch, stop)))
        return Scores.joined(done)

    def close(self) -> None:
        if self._folder is not None:
            self._folder.__exit__()
            self._folder, self._ready = None, False

    # -- inside ---------------------------------------------------------------------------------

    def _key(self) -> dict[str, Any]:
        """What the features depend on; questions do not matter to them."""
        return {
            "source": "world",
            "split": self.split,
            "format": FORMAT,
            "version": metadata.version("prune2drive"),
            "transformers": metadata.version("transformers"),
            "weights": self._weights,
            "config": digest(self.answerer.model.config.to_dict()),
            "dtype": str(self.answerer.model.dtype),
            "processor": self.answerer.processor_settings(),
            "order": describe(self.method) if self._nested else None,
        }

    @property
    def _nested(self) -> bool:
        return is_nested(self.method)

    def _encode(self, frames: list[str]) -> Iterator[Item]:
        """Features of some scenes, and the order of their tokens."""
        group = [self.samples[self.frames.index(frame)] for frame in frames]
        encoded = self.answerer.encode(group)
        features = torch.stack(list(encoded.output.pooler_output)).unflatten(0, (len(group), -1))
        items: list[Item] = [{"features": row} for row in features]
        if self._nested:
            assert isinstance(self.method, Selector)
            recorder = Recorder(self.method)
            self.answerer.choose(encoded, prune(self.answerer.model, recorder, 1.0, rig=NUSCENES))
            assert recorder.order is not None
            for item, order in zip(items, recorder.order.unflatten(0, (len(group), -1)), strict=True):
                item["order"] = order.to(torch.int32)
        return iter(items)

    def _score(self, retention: Mapping[str, float] | None, low: int, high: int) -> Scores:
        if not self._ready:
            self.prepare()
        assert self._folder is not None
        group, items = self.samples[low:high], [self._folder[frame] for frame in self.frames[low:high]]
        pruned = None
        if retention is not None:
            method: Any = self.method
            if self._nested:
                method = Replay(method.rounding)
                method.order = torch.cat([item["order"] for item in items])
            pruned = prune(
                self.answerer.model, method, Rates(retention), rig=NUSCENES, positions=self.positions
            )
        features = torch.stack([item["features"] for item in items])
        texts = [[question.text for question in sample.questions] for sample in group]
        found = self.answerer.logits(self.answerer.restored(features, texts), pruned)
        sums = np.zeros((3, len(group)))
        for number, (sample, logits) in enumerate(zip(group, found, strict=True)):
            if not sample.questions:
                continue
            target = torch.tensor([self._answer(question.answer) for question in sample.questions])
            target = target.to(logits.device)[:, None]
            logp = logits.log_softmax(-1).gather(1, target)
            right = logits.argmax(-1, keepdim=True) == target
            sums[:, number] = torch.stack([right.sum(), logp.exp().sum(), logp.sum()]).cpu().double().numpy()
        asked = np.array([len(sample.questions) for sample in group], dtype=float)
        return Scores(asked, dict(zip(self.parts, sums, strict=True)))

    def _answer(self, word: str) -> int:
        if word not in self._answers:
            self._answers[word] = self.answerer.tokenizer(word, add_special_tokens=False)["input_ids"][0]
        return self._answers[word]


def describe(method: object) -> str:
    """A method with all its hyper-parameters, in words that two processes agree on."""
    name, words = getattr(method, "name", type(method).__name__), repr(method)
    if " at 0x" in words:
        raise PruneError(
            f"{type(method).__name__} does not tell its hyper-parameters, so what it chose cannot be kept. "
            "Make it a dataclass."
        )
    return f"{name}: {words}"
