"""A run of the world benchmark: every setting on every scene, recorded as it comes.

Scenes go in batches outside, settings inside, so that each picture is drawn and encoded once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ..engine.attach import Pruned
from ..errors import PruneError
from ..tokens import Signal
from ..world.generate import check_split
from ..world.questions import TYPES, check_types
from .answering import Answerer, Encoded, reads_question
from .guess import Guess
from .records import Record, Records
from .settings import BLIND, GUESS, Setting
from .summary import summarize
from .world import SIZES, Large, Sample, Shown, samples

Answers = tuple[list[str], dict[str, list[int]], float]
"""Of one scene: the words, the tokens kept of each camera, the tokens that a layer saw on average."""

FORMAT = 2
"""Of the records. A folder with another one is refused."""


class Row(Protocol):
    """What a run records: a `Setting`, or a row of another comparison that can say as much of itself."""

    @property
    def name(self) -> str: ...
    @property
    def draws(self) -> bool: ...
    @property
    def facts(self) -> dict[str, Any]: ...
    def prune(self, model: Any, seed: int = 0, scenes: Sequence[str] = ()) -> Pruned | None: ...


class Runner:
    """Fills ``records`` with ``count`` scenes of a split.

    Args:
        load: returns the `Answerer`; called only when something is left that needs the model.
        batch: scenes at once; results do not depend on it but for rounding.

    Raises:
        PruneError: an unknown split or type, or counts below 1.
    """

    def __init__(
        self,
        records: Records,
        settings: Sequence[Row],
        load: Callable[[], Answerer],
        *,
        split: str,
        count: int,
        seed: int = 0,
        types: Iterable[str] = TYPES,
        batch: int = 8,
    ) -> None:
        self.records, self.settings, self._load = records, list(settings), load
        self.split, self.count, self.seed = check_split(split), count, seed
        self.types, self.batch = tuple(types), batch
        self._pruned: dict[str, Pruned | None] = {}
        check_types(self.types)
        if count < 1 or batch < 1:
            raise PruneError(f"{count} scenes in batches of {batch}: give at least 1 of each.")

    @property
    def names(self) -> list[str]:
        return [f"{self.split}/{number}" for number in range(self.count)]

    def missing(self, start: int = 0, stop: int | None = None) -> list[Row]:
        """Settings without a record of some scene from ``start`` to before ``stop``."""
        names = self.names[start:stop]
        rows = self.records.rows
        return [s for s in self.settings if any((s.name, name) not in rows for name in names)]

    def prepare(self) -> None:
        """Load the model if it is needed, and refuse what it cannot do; `run` does so by itself."""
        if any(setting.name != GUESS.name for setting in self.missing()) and not self._pruned:
            self._pruned = {s.name: s.prune(self.answerer.model, self.seed) for s in self.settings}

    def run(self, progress: Callable[[str, int], None] = lambda name, done: None) -> None:
        """Record whatever is missing; ``progress`` gets a setting and how many scenes more have it."""
        self.prepare()
        for start in range(0, self.count, self.batch):
            number = min(self.batch, self.count - start)
            todo = self.missing(start, start + number)
            for setting in self.settings:
                if setting not in todo:
                    progress(setting.name, number)
            if not todo:
                continue
            group = list(samples(self.split, number, self.seed, self.types, start))
            # Only a method needs the pictures of this batch; controls need none.
            sees = [setting for setting in todo if setting.name not in (BLIND.name, GUESS.name)]
            encoded = self.answerer.encode(group, self._needs(sees)) if sees else None
            for setting in todo:
                self.records.add(self._rows(setting, group, encoded))
                progress(setting.name, number)

    def summary(self, model: str) -> dict[str, Any]:
        """Summarize all settings that have a record of every scene, those of earlier runs included.

        ``model``: its name in the summary.
        """
        known: dict[str, Any] = {setting.name: setting for setting in self.settings}
        for row in self.records.rows.values():
            if row["setting"] not in known:
                known[row["setting"]] = Setting(row["method"], row["where"], row["retention"])
        rows, names = self.records.rows, self.names
        whole = [s for s in known.values() if all((s.name, scene) in rows for scene in names)]
        about = {"benchmark": "world", "split": self.split, "model": model, "seed": self.seed}
        return summarize(rows, whole, names, about)

    @cached_property
    def answerer(self) -> Answerer:
        return self._load()

    @cached_property
    def _guess(self) -> Guess:
        return Guess.counted(self.seed)

    def _needs(self, settings: Sequence[Row]) -> set[Signal]:
        """What the methods of some settings need of the vision tower, among other things."""
        found = [self._pruned[setting.name] for setting in settings]
        stages = [stage for pruned in found if pruned is not None for stage in pruned.cutter.stages]
        return {signal for stage in stages for signal in stage.method.needs}

    def _rows(self, setting: Row, group: Sequence[Sample], encoded: Encoded | None) -> list[Record]:
        """The records of one setting for a batch of scenes."""
        if setting.name == GUESS.name:
            words = [[self._guess.answer(q) for q in sample.questions] for sample in group]
        elif setting.name == BLIND.name:
            words = self.answerer.blind(group)
        else:
            assert encoded is not None  # encoded whenever such a setting is left to do
            answers = self._answers(setting, group, encoded)
            return [make_record(setting, s, *answer) for s, answer in zip(group, answers, strict=True)]
        return [make_record(setting, sample, given) for sample, given in zip(group, words, strict=True)]

    def _answers(self, setting: Row, group: Sequence[Sample], encoded: Encoded) -> list[Answers]:
        pruned = self._pruned[setting.name]
        if not setting.draws or pruned is None:
            return self._answered(encoded, pruned)
        model = self.answerer.model
        if not reads_question(pruned.cutter.stages):
            names = [sample.name for sample in group]
            return self._answered(encoded, setting.prune(model, self.seed, names))
        # Here a scene's questions are a batch of their own, and all draw by the name of the scene.
        out = []
        for number, (sample, texts) in enumerate(zip(group, encoded.texts, strict=True)):
            alone = Encoded(encoded.scene(number, 1), [texts])
            out += self._answered(alone, setting.prune(model, self.seed, [sample.name] * len(texts)))
        return out

    def _answered(self, encoded: Encoded, pruned: Pruned | None) -> list[Answers]:
        asked = self.answerer
        return [
            (words, asked.kept(pruned, number), asked.layer_averaged(pruned, number))
            for number, words in enumerate(asked.answer(encoded, pruned))
        ]


def make_record(
    setting: Row,
    sample: Sample,
    given: Sequence[str],
    kept: dict[str, list[int]] | None = None,
    layer_averaged: float | None = None,
) -> Record:
    """One line of the records.

    ``kept``: indices of the tokens kept of each camera, and ``layer_averaged`` the tokens that a layer saw
    on average; None for a control, which sees no picture.
    """
    return {
        **setting.facts,
        "sample": sample.name,
        "weather": sample.scene.weather,
        "answers": [
            {
                "type": q.type,
                "camera": q.camera,
                "kind": q.kind,
                "text": q.text,
                "answer": q.answer,
                "given": word,
            }
            for q, word in zip(sample.questions, given, strict=True)
        ],
        "kept": {camera: len(picks) for camera, picks in (kept or {}).items()},
        "layer_averaged": layer_averaged,
        "large": [] if kept is None else [_large(thing, kept[thing.camera]) for thing in sample.large],
        "shown": {} if kept is None else _shown(sample.shown, kept),
    }


def _large(thing: Large, kept: Sequence[int]) -> Record:
    return {
        "camera": thing.camera,
        "kind": thing.kind,
        "colour": thing.colour,
        "share": round(thing.share, 4),
        "patches": len(thing.patches),
        "kept": len(set(kept) & set(thing.patches)),
    }


def _shown(things: Sequence[Shown], kept: dict[str, list[int]]) -> dict[str, list[int]]:
    """By size: how many things are shown, and how many of them by no kept token."""
    counts = {size: [0, 0] for size in SIZES}
    for thing in things:
        counts[thing.size][0] += 1
        counts[thing.size][1] += not set(kept[thing.camera]) & set(thing.patches)
    return counts


def fingerprint(
    model: Path, *, split: str, seed: int, types: Iterable[str], dtype: str, version: str
) -> dict[str, Any]:
    """What results depend on.

    Args:
        model: the folder with the weights, which are read once to hash them.
        version: of this package, whose renderer and questions may change.

    Raises:
        PruneError: no weights there, or files that cannot be read.
    """
    wanted = set(types)
    return {
        "benchmark": "world",
        "format": FORMAT,
        "version": version,
        "split": split,
        "seed": seed,
        "types": [name for name in TYPES if name in wanted],
        "dtype": dtype,
        "weights": weights_hash(model),
    }


def weights_hash(model: Path) -> str:
    """SHA-256 of the weight files of a model folder, in hexadecimal.

    Raises:
        PruneError: as `fingerprint`.
    """
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise PruneError(f"{model} holds no weights (*.safetensors). Give the folder of a trained model.")
    total = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                # A hash of hashes, so that moving bytes from one file to the next changes it.
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise PruneError(f"cannot read {path}: {error.strerror}. Copy the model again.") from error
    return total.hexdigest()
