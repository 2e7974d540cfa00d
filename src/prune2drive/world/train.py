"""Train the reference model: ``python -m prune2drive.world.train --out FOLDER``.

Two stages (see `lessons`), each resumable: a checkpoint is written every two minutes and, started
again with the same folder, the run goes on from it. Progress is logged as JSON lines. A stage lasts a
number of steps or of minutes, whichever ends first; the learning rate follows the share that is done.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..files import write_atomically
from ..loading import parse_device
from ..rig import NUSCENES
from . import attention, batches, lessons
from .model import build_model, build_processor

_SAVE_SECONDS = 120.0
_REPORT_STEPS = 25
_WARMUP_STEPS = 100
_FALL = 0.4

Loss = Callable[[dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class Pupil:
    """The model, and the heads that only training needs."""

    model: Any
    heads: lessons.Heads
    late: lessons.Heads

    @classmethod
    def new(cls, device: torch.device, seed: int) -> Pupil:
        """Fresh weights on ``device``, with the attention of `attention`."""
        model = build_model(seed)
        width = model.config.text_config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads, late = (lessons.Heads(width, len(NUSCENES)) for _ in range(2))
        name = attention.register()
        model.model.vision_tower.config._attn_implementation = name
        model.model.language_model.config._attn_implementation = name
        return cls(model.to(device), heads.to(device), late.to(device))

    def modules(self, stage: str) -> list[nn.Module]:
        """What a stage trains."""
        tower: list[nn.Module] = [self.model.model.vision_tower, self.model.model.multi_modal_projector]
        return [*tower, self.heads] if stage == "see" else [self.model, self.heads, self.late]

    def state(self) -> dict[str, Any]:
        """All weights."""
        return {name: getattr(self, name).state_dict() for name in ("model", "heads", "late")}

    def load(self, state: dict[str, Any]) -> None:
        """Take over `state`."""
        for name in ("model", "heads", "late"):
            getattr(self, name).load_state_dict(state[name])


class Stage:
    """One stage of the training: its loop, its checkpoint, its log."""

    def __init__(self, pupil: Pupil, name: str, args: argparse.Namespace, device: torch.device) -> None:
        self.pupil, self.name, self.device, self.folder = pupil, name, device, args.out
        self.size, self.workers, self.rate = args.scenes, args.workers, args.rate
        self.steps, self.minutes = getattr(args, f"{name}_steps"), getattr(args, f"{name}_minutes")
        self.halves = args.halves
        self.made = {"scenes": args.scenes, "seed": args.seed}
        self.optimizers = _optimizers(pupil.modules(name), args.rate)
        self.weights = [w for module in pupil.modules(name) for w in module.parameters()]
        self.step, self.seconds, self.done = 0, 0.0, False
        self.check = self.folder / f"{name}.pt"
        if self.check.exists():
            self._resume()

    def run(self) -> None:
        """Train until the stage is done."""
        while not self.done:
            groups = 2 if self.name == "answer" and self._share() < self.halves else 1
            self._run_while(groups)
        self.save()

    def _run_while(self, groups: int) -> None:
        """Train until the stage is done or pictures are to be grouped in another way."""
        stop = self.step + 1_000_000
        data: Any = batches.SeeBatches(self.size, self.step, stop)
        if self.name == "answer":
            data = batches.AnswerBatches(self.size, self.step, stop, groups)
        began, saved, before = time.monotonic(), time.monotonic(), self.seconds
        sums: dict[str, float] = {}
        count = 0
        for batch in batches.load(data, self.workers):
            share = self._share()
            if share >= 1:
                self.done = True
                break
            if self.name == "answer" and groups == 2 and share >= self.halves:
                break
            facts = self._learn({key: value.to(self.device) for key, value in batch.items()}, share)
            self.step += 1
            self.seconds = before + time.monotonic() - began
            for key, value in facts.items():
                sums[key] = sums.get(key, 0.0) + float(value)
            count += 1
            if self.step % _REPORT_STEPS == 0:
                self._log(sums, count, groups)
                sums, count = {}, 0
            if time.monotonic() - saved > _SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        if count:
            self._log(sums, count, groups)

    def _learn(self, batch: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """One step; returns what to log."""
        factor = min((self.step + 1) / _WARMUP_STEPS, 1.0, (1 - share) / _FALL)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            if self.name == "see":
                loss, facts = lessons.see(self.pupil.model, self.pupil.heads, batch)
            else:
                loss, facts = lessons.answer(self.pupil.model, self.pupil.heads, self.pupil.late, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return facts

    def _share(self) -> float:
        """How much of the stage is done, 0 to 1."""
        if self.step >= self.steps or self.seconds >= 60 * self.minutes:
            return 1.0
        return max(self.step / self.steps, self.seconds / 60 / self.minutes)

    def _log(self, sums: dict[str, float], count: int, groups: int) -> None:
        """Report the means of the last ``count`` steps."""
        line: dict[str, Any] = {"stage": self.name, "step": self.step, "seconds": round(self.seconds, 1)}
        line |= {"rows_per_scene": groups, **{key: round(value / count, 4) for key, value in sums.items()}}
        text = json.dumps(line)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(text + "\n")
        print(text, flush=True)

    def save(self) -> None:
        """Write the checkpoint; the old one stays until the new one is whole."""
        part = self.check.with_suffix(".part")
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        facts = {"step": self.step, "seconds": self.seconds, "done": self.done, "made": self.made}
        torch.save({"pupil": self.pupil.state(), "optimizers": states, **facts}, part)
        part.replace(self.check)

    def _resume(self) -> None:
        try:
            saved = torch.load(self.check, weights_only=True, map_location=self.device)
            self.pupil.load(saved["pupil"])
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.step, self.seconds, self.done = (saved[key] for key in ("step", "seconds", "done"))
            made = dict(saved["made"])
        except (RuntimeError, KeyError, ValueError, TypeError, EOFError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise PruneError(
                f"checkpoint {self.check} cannot be continued ({reason}). Remove it, or choose another --out."
            ) from None
        for key, value in self.made.items():  # a step is so many scenes; a seed is that of the first weights
            if made.get(key) != value:
                raise PruneError(
                    f"checkpoint {self.check} was made with --{key} {made.get(key)}, not {value}. "
                    f"Give --{key} {made.get(key)}, or choose another --out."
                )
        self._forget()

    def _forget(self) -> None:
        """Drop what the log says of steps after the checkpoint: they are taken again."""
        log = self.folder / "log.jsonl"
        if log.exists():
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            write_atomically(log, "".join(line for line in lines if not self._later(line)))

    def _later(self, line: str) -> bool:
        try:
            found = json.loads(line)
            return bool(found["stage"] == self.name and found["step"] > self.step)
        except (ValueError, KeyError, TypeError):  # torn when the run was killed
            return True


def _optimizers(modules: list[nn.Module], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, heads and norms."""
    inner: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, weight in module.named_parameters():
            (inner if ".layers." in name and weight.ndim == 2 else others).append(weight)
    return [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
        torch.optim.Muon(inner, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]


def export(model: Any, folder: Path) -> None:
    """Write model, tokenizer and processor for `from_pretrained`, weights in bfloat16."""
    import copy

    stored = copy.deepcopy(model).to("cpu", torch.bfloat16)
    for part in (stored, stored.model.vision_tower, stored.model.language_model):
        part.config._attn_implementation = "sdpa"
    stored.save_pretrained(folder)
    build_processor().save_pretrained(folder)


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(prog="python -m prune2drive.world.train", description=__doc__)
    out.add_argument("--out", type=Path, required=True, help="checkpoints, log, and the model at the end")
    out.add_argument("--see-steps", type=int, default=6000, metavar="N")
    out.add_argument("--see-minutes", type=float, default=25.0, metavar="M")
    out.add_argument("--answer-steps", type=int, default=20000, metavar="N")
    out.add_argument("--answer-minutes", type=float, default=90.0, metavar="M")
    out.add_argument(
        "--halves", type=float, default=0.5, help="first share of answering with three pictures at a time"
    )
    out.add_argument("--scenes", type=int, default=4, metavar="N", help="per step (default: 4)")
    out.add_argument("--rate", type=float, default=1.5e-3, help="learning rate (default: 1.5e-3)")
    out.add_argument("--workers", type=int, default=1, metavar="N", help="rendering processes (default: 1)")
    out.add_argument("--device", default=None, help="cpu or cuda (default: cuda if there is one)")
    out.add_argument("--seed", type=int, default=0, help="of the first weights")
    return out


def main(argv: list[str] | None = None) -> int:
    """Train, or go on training; returns the exit code."""
    options = parser()
    args = options.parse_args(argv)
    if args.scenes < 1 or args.workers < 0 or args.rate <= 0:
        options.error("give --scenes of 1 or more, --workers of 0 or more and a --rate above 0")
    try:
        device = parse_device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        pupil = Pupil.new(device, args.seed)
        for name in ("see", "answer"):
            Stage(pupil, name, args, device).run()
        export(pupil.model, args.out / "model")
    except (PruneError, OSError) as error:
        options.error(str(error))
    print(f"model: {args.out / 'model'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
