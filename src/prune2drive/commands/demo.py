"""`prune2drive demo`: the shipped model on rendered streets, answering with all tokens and with few."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .evaluate import model_folder
from .options import add_pruning_options, check_at_least, check_output, pruning_setting

if TYPE_CHECKING:
    from ..benchmarks.answering import Answerer
    from ..benchmarks.settings import Setting
    from ..benchmarks.world import Sample
    from ..engine import Pruned

CHART = (0.5, 0.25, 0.1, 0.05)
"""Retentions of the chart."""

SPLIT = "calibration"
"""Scenes the model was not trained on, and the ones to choose by: whoever tries settings here chooses."""

_AT_ONCE = 4
_SHOWN = (640, 360)
_LISTED = 18
_NOTABLE = 1.05


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "demo",
        help="try it without data or downloads",
        description="Let the small model that ships with the package answer driving questions about rendered "
        "six-camera scenes, with all visual tokens and with few: accuracy, tokens, time, and one page.",
    )
    add_pruning_options(parser)
    parser.add_argument(
        "--scenes", type=int, default=16, metavar="N", help="about 17 questions each (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the questions (default: %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="timed calls of each kind (default: %(default)s)"
    )
    parser.add_argument("--model", metavar="DIR", help="another model of prune2drive.world.train")
    parser.add_argument("--report", metavar="FILE", help="write a self-contained HTML page")


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    from ..rig import NUSCENES

    check_at_least(args, scenes=1, repeat=1, seed=0)
    check_output(args.report, "--report")
    setting = pruning_setting(args, NUSCENES, NUSCENES.names)
    folder = model_folder(args.model)
    name = "the reference model of prune2drive.world" if args.model is None else folder.resolve().name

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from .. import prune
    from ..benchmarks.answering import Answerer
    from ..benchmarks.world import samples
    from ..loading import load_model
    from ..profiling.latency import profile
    from ..prompts import build_inputs
    from .show import compared, facts, panels, print_result

    console = Console()
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True) as bar:
        task = bar.add_task("loading the model", total=args.scenes + 2 + 2 * (2 + args.repeat))

        def progress(done: int, doing: str) -> None:
            bar.update(task, advance=done, description=doing)

        model, processor = load_model(folder, dtype="float32", device="cpu")
        answerer = Answerer(model, processor)
        pruned = prune(model, rig=NUSCENES, **setting)
        table = _Table(answerer, setting, pruned, args.seed)
        progress(1, "drawing and answering")
        for start in range(0, args.scenes, _AT_ONCE):
            group = list(samples(SPLIT, min(_AT_ONCE, args.scenes - start), args.seed, start=start))
            table.fill(group)
            progress(len(group), "drawing and answering")
        asked = table.asked

        # The page shows one scene closely, asked the way a user asks: pictures through the processor.
        shown = next((row for row in asked if row[0].large and row[0].questions), asked[0])[0]
        frame = _pictures(shown)
        question = shown.questions[0]
        inputs = build_inputs(processor, model, [frame], question.text, NUSCENES.names)
        progress(1, "answering one question about one scene")
        with pruned:
            answer = _generate(model, processor, inputs)
        unpruned_answer = _generate(model, processor, inputs)
        result = profile(
            model,
            inputs,
            rig=NUSCENES,
            new_tokens=0,
            repeat=args.repeat,
            progress=lambda line: progress(1, f"measuring: {line}"),
            **setting,
        )
    times, record = compared(result), pruned.record
    print_result(console, record, times)
    said = table.said(record.tokens)
    console.print(said, highlight=False)
    faster = result.ratio["ttft_ms"] or 1.0
    change = f"{faster:.1f} times faster than" if faster >= _NOTABLE else "not faster than"
    console.print(f"Time to first token: {change} unpruned.", highlight=False)
    if args.report:
        from ..benchmarks.summary import summarize
        from ..report.evaluation import EVALUATION_CSS, evaluation_section
        from ..report.page import Asked, Report, write_page

        names = [sample.name for sample, _, _ in asked]
        about = {"benchmark": "world", "split": SPLIT, "model": name, "seed": args.seed}
        summary = summarize(table.rows, table.settings, names, about)
        large = {camera: picture.resize(_SHOWN) for camera, picture in frame.items()}
        page = Report(
            title=f"Six rendered cameras, {record.tokens[1]:,} of {record.tokens[0]:,} visual tokens",
            question=f"{question.text} (right: {question.answer})",
            answer=answer,
            unpruned_answer=unpruned_answer,
            panels=panels(record, large, NUSCENES),
            times=times,
            asked=[
                Asked(q.text, q.answer, with_few, with_all)
                for sample, few, full in asked
                if sample is shown
                for q, with_few, with_all in zip(sample.questions, few, full, strict=True)
            ][:_LISTED],
            section=evaluation_section(summary, said),
            section_css=EVALUATION_CSS,
            facts=facts(
                model,
                name,
                record,
                setting["retention"],
                args.positions,
                Scene=f"{shown.name}, {shown.scene.weather}",
                Questions=f"{table.count} about {len(asked)} scenes of the {SPLIT} split",
            ),
        )
        console.print(f"report: {write_page(page, args.report)}", highlight=False, markup=False)
    return 0


class _Table:
    """Answers in every setting of the chart, and in the one that was asked for.

    ``rows``: records by (setting, scene). ``asked``: every scene with the answers that few tokens and all
    tokens gave.
    """

    def __init__(self, answerer: Answerer, setting: dict[str, Any], pruned: Pruned, seed: int) -> None:
        from ..benchmarks.settings import GUESS, Setting, make_settings, place_of

        self.answerer, self.pruned, self.seed = answerer, pruned, seed
        self.positions = setting["positions"]
        method, rate = setting["method"], setting["retention"]
        uniform = isinstance(rate, float) and rate < 1
        place = place_of(method)
        # The rates of the chart, for the method and for random selection at the same place.
        rates = sorted({*CHART, *([rate] if uniform else [])}, reverse=True)
        mine = Setting(method, place, rate if uniform else CHART[0])
        methods = [method] if mine.draws else [method, "random"]
        self.settings = [s for s in make_settings(methods, rates, [place]) if s != GUESS]
        self.chosen = mine if uniform else None
        self.rows: dict[tuple[str, str], Any] = {}
        self.asked: list[tuple[Sample, list[str], list[str]]] = []

    def fill(self, group: Sequence[Sample]) -> None:
        """Answer some scenes in every setting."""
        from ..benchmarks.runner import make_record
        from ..benchmarks.settings import BLIND, UNPRUNED

        names = [sample.name for sample in group]
        encoded = self.answerer.encode(group, self.pruned.needs)
        found: dict[Setting, list[list[str]]] = {}
        for setting in self.settings:
            kept: list[Any] = [None] * len(group)
            if setting == BLIND:
                given = self.answerer.blind(group)
            else:
                pruned = setting.prune(self.answerer.model, self.seed, names, self.positions)
                given = self.answerer.answer(encoded, pruned)
                kept = [self.answerer.kept(pruned, number) for number in range(len(group))]
            found[setting] = given
            for sample, words, picks in zip(group, given, kept, strict=True):
                self.rows[setting.name, sample.name] = make_record(setting, sample, words, picks)
        few = found[self.chosen] if self.chosen else self.answerer.answer(encoded, self.pruned)
        self.asked += zip(group, few, found[UNPRUNED], strict=True)

    @property
    def count(self) -> int:
        """Questions asked."""
        return sum(len(sample.questions) for sample, _, _ in self.asked)

    def said(self, tokens: tuple[int, int]) -> str:
        """What came out, in a sentence; ``tokens``: before and after pruning."""
        right = {"few": 0, "all": 0, "same": 0}
        for sample, few, full in self.asked:
            for question, with_few, with_all in zip(sample.questions, few, full, strict=True):
                right["few"] += with_few == question.answer
                right["all"] += with_all == question.answer
                right["same"] += with_few == with_all
        share = {name: f"{number / max(self.count, 1):.1%}" for name, number in right.items()}
        return (
            f"{self.count} questions about scenes the model has not seen: {share['few']} right with "
            f"{tokens[1]:,} visual tokens, {share['all']} with all {tokens[0]:,}; {share['same']} of the "
            "answers are the same."
        )


def _pictures(sample: Sample) -> dict[str, Any]:
    """The scene as a user holds it: camera -> PIL picture."""
    from PIL import Image

    from ..rig import NUSCENES

    arrays = sample.images.permute(0, 2, 3, 1).numpy()
    return {name: Image.fromarray(array) for name, array in zip(NUSCENES.names, arrays, strict=True)}


def _generate(model: Any, processor: Any, inputs: Any) -> str:
    import torch

    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return str(processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
