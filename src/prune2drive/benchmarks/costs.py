"""What contenders cost: time to choose and to read a prompt, memory, cache and FLOPs, all in one run.

Every contender is measured right behind the unpruned model, on the same prompt, and a ratio is of such a
pair: a slow minute of the machine hits both. One prompt at a time, with one question, whose pictures are
encoded beforehand, since no method makes the vision tower cheaper.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ..engine.attach import Pruned
from ..errors import PruneError
from ..files import read_json, write_atomically
from ..profiling.flops import head_flops, language_flops
from ..profiling.hardware import hardware, versions
from ..profiling.memory import peak_of
from ..profiling.timing import wait
from .answering import Answerer, Encoded
from .compare import signals_of
from .contenders import CONTROLS, VISUAL, Contender
from .settings import UNPRUNED
from .world import Sample, samples

FORMAT = 1

MEASURED = ("choose_ms", "prefill_ms", "language_ms", "flops", "kv_bytes")
"""Of one call: choosing; the whole call on encoded pictures up to the first token; the same without
choosing; FLOPs of the decoder layers and the head, choosing not counted; bytes of the cache behind it."""

Costs = dict[str, Any]
Progress = Callable[[str, int], None]


class CostMeter:
    """Measures contenders on some prompts, and keeps what it measured in ``path`` as it comes.

    Args:
        answerer: the model, which is not attached to any `prune` meanwhile.
        about: what costs depend on besides the machine, as plain data (weights, dtype, layer); with another
            the file is refused.
        count: scenes, each a round in which every contender has its turn.

    Raises:
        PruneError: a file that is damaged or was made of something else.
    """

    def __init__(
        self,
        answerer: Answerer,
        contenders: Sequence[Contender],
        path: Path,
        about: dict[str, Any],
        *,
        split: str,
        count: int,
        seed: int = 0,
    ) -> None:
        self.answerer, self.path = answerer, path
        self.contenders = [c for c in contenders if c.name not in CONTROLS]
        self.split, self.count, self.seed = split, count, seed
        self.about = {"format": FORMAT, **about, "split": split, "seed": seed}
        self.data: dict[str, Any] = self._read()
        ids = answerer.processor_settings()["prefix"]
        self._warm: set[str] = set()
        self._prefix = torch.tensor([ids], device=answerer.model.device)

    @property
    def names(self) -> list[str]:
        return [f"{self.split}/{number}" for number in range(self.count)]

    def missing(self, name: str) -> list[Contender]:
        """Contenders without a measurement on a scene."""
        done = self.data["rounds"].get(name, {})
        return [c for c in self.contenders if c.name not in done]

    def run(self, progress: Progress = lambda name, done: None) -> None:
        """Measure whatever is missing; ``progress`` gets a contender and how many more prompts it read."""
        if not any(self.missing(name) for name in self.names):
            for contender in self.contenders:
                progress(contender.name, self.count)
            return
        here = self._here()
        if any(self.data[key] != here[key] for key in here):
            # Times of two machines do not go into one median.
            self.data |= {**here, "memory": {}, "rounds": {}}
        for number, sample in enumerate(samples(self.split, self.count, self.seed)):
            lack = self.missing(sample.name)
            for contender in self.contenders:
                if contender not in lack:
                    progress(contender.name, 1)
            if not lack:
                continue
            if not sample.questions:
                raise PruneError(f"{sample.name} has no questions to read; measure another split")
            # There and back, so that nobody always follows the same one.
            order = lack if number % 2 == 0 else lack[::-1]
            self._round(sample, order, progress)
            write_atomically(self.path, json.dumps(self.data) + "\n")

    def summary(self) -> dict[str, Costs]:
        """Medians over the rounds by name: of the unpruned model, and of contenders, earlier ones too."""
        rounds = [self.data["rounds"].get(name, {}) for name in self.names]
        names = dict.fromkeys([*(c.name for c in self.contenders), *(name for r in rounds for name in r)])
        found = {name: entries for name in names if (entries := [r[name] for r in rounds if name in r])}
        whole = [entry["unpruned"] for entries in found.values() for entry in entries]
        out = {UNPRUNED.name: _medians(whole)} if whole else {}
        for name, entries in found.items():
            out[name] = _medians(
                [entry["own"] for entry in entries], [entry["unpruned"] for entry in entries]
            )
        return {name: {**costs, "memory_bytes": self.data["memory"].get(name)} for name, costs in out.items()}

    @property
    def machine(self) -> dict[str, Any]:
        """What the measurements were made on: ``hardware`` and ``versions``."""
        return {key: self.data[key] for key in ("hardware", "versions")}

    # -- measuring ------------------------------------------------------------------------------

    def _round(self, sample: Sample, order: Sequence[Contender], progress: Progress) -> None:
        encoded = self.answerer.encode([sample], signals_of(order))
        prompt = self._prompt(encoded, sample.questions[0].text)
        done = self.data["rounds"].setdefault(sample.name, {})
        self._warm_up(UNPRUNED.name, prompt, None)
        for contender in order:
            pruned = contender.prune(self.answerer.model, self.seed, [sample.name])
            self._warm_up(contender.name, prompt, pruned)
            unpruned = self._measured(prompt, None)
            done[contender.name] = {"unpruned": unpruned, "own": self._measured(prompt, pruned)}
            progress(contender.name, 1)

    def _prompt(self, encoded: Encoded, text: str) -> dict[str, Any]:
        """Inputs of one prompt: the pictures, then one question."""
        tokens = self.answerer.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = torch.cat([self._prefix, torch.tensor([tokens], device=self._prefix.device)], 1)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_encoder_outputs": {"image": encoded.scene(0, 1)},
            "use_cache": True,
            "logits_to_keep": 1,
        }

    @torch.inference_mode()
    def _warm_up(self, name: str, prompt: dict[str, Any], pruned: Pruned | None) -> None:
        """Read the prompt before times are taken, once in this process; note by how much memory grew."""
        if name in self._warm:
            return
        model = self.answerer.model
        with pruned or nullcontext():
            model(**prompt)
            peak = peak_of(lambda: model(**prompt), prompt["input_ids"].device)
        self.data["memory"].setdefault(name, peak.growth)
        self._warm.add(name)

    @torch.inference_mode()
    def _measured(self, prompt: dict[str, Any], pruned: Pruned | None) -> Costs:
        model = self.answerer.model
        device = prompt["input_ids"].device
        with pruned or nullcontext():
            wait(device)
            start = time.perf_counter()
            out = model(**prompt)
            wait(device)
            prefill = (time.perf_counter() - start) * 1e3
        choose = pruned.record.select_ms if pruned is not None else 0.0
        text = model.config.get_text_config()
        words = prompt["input_ids"].shape[1] - VISUAL
        seen = [VISUAL] * text.num_hidden_layers if pruned is None else pruned.record.layer_tokens[0]
        layers = out.past_key_values.layers
        return {
            "choose_ms": choose,
            "prefill_ms": prefill,
            "language_ms": prefill - choose,
            "flops": language_flops(text, [n + words for n in seen]) + head_flops(text),
            "kv_bytes": sum(t.nbytes for layer in layers for t in (layer.keys, layer.values)),
        }

    # -- the file -------------------------------------------------------------------------------

    def _here(self) -> dict[str, Any]:
        return {"hardware": hardware(self.answerer.model.device), "versions": versions()}

    def _read(self) -> dict[str, Any]:
        fresh = {"about": self.about, **self._here(), "memory": {}, "rounds": {}}
        if not self.path.exists():
            return fresh
        remedy = "Delete it; costs are measured again."
        found = read_json(self.path, "costs", remedy)
        if not isinstance(found, dict) or found.keys() != fresh.keys():
            raise PruneError(f"the costs file {str(self.path)!r} is damaged. {remedy}")
        for key in self.about:
            if (old := found["about"].get(key)) != self.about[key]:
                raise PruneError(
                    f"{self.path} holds costs with another {key}: {old!r} there, {self.about[key]!r} now. "
                    "Choose another folder, or delete that file."
                )
        return found


def _medians(own: Sequence[Costs], others: Sequence[Costs] | None = None) -> Costs:
    """Medians of measurements, and of their ratios to those of ``others`` in the same pair (1 without)."""
    pairs = list(zip(own, others or own, strict=True))

    def ratio(key: str) -> float:
        return statistics.median(mine[key] / other[key] for mine, other in pairs)

    return {
        **{key: statistics.median(costs[key] for costs in own) for key in MEASURED},
        "prefill_ratio": ratio("prefill_ms"),
        "language_ratio": ratio("language_ms"),
        "flops_ratio": ratio("flops"),
        "kv_ratio": ratio("kv_bytes"),
        "rounds": len(own),
    }
