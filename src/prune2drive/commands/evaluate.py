"""`prune2drive evaluate`: right answers of methods and controls on a benchmark, with intervals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import PruneError
from .options import check_at_least, check_output, parse_names, parse_shares

SUMMARY, PAGE, TABLES = "summary.json", "report.html", "tables.md"


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score methods against controls on a benchmark",
        description="Ask a model about drawn surround-view scenes, unpruned, pruned in several ways, and "
        "under controls, and compare the answers. Results are kept as they come: the same command goes on "
        "where it was stopped, and on a finished folder only computes the summary again.",
    )
    parser.add_argument("--benchmark", choices=("world",), default="world", help="default: %(default)s")
    parser.add_argument("--model", metavar="PATH", help="model folder (default: the reference model)")
    parser.add_argument(
        "--split", default="test", metavar="NAME", help="test, validation, calibration, train (default: test)"
    )
    parser.add_argument("--scenes", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--types", metavar="A,B", help="only these types of questions (default: all)")
    parser.add_argument(
        "--methods",
        default="tfps,random,stratified,stride",
        metavar="A,B",
        help='see "prune2drive methods" (default: %(default)s)',
    )
    parser.add_argument(
        "--retention",
        default="0.5,0.25,0.1,0.05",
        metavar="A,B",
        help="shares of each camera's tokens to keep (default: %(default)s)",
    )
    parser.add_argument(
        "--where",
        default="before,layer1",
        metavar="A,B",
        help="before the language model, or at the input of a layer of it (default: %(default)s)",
    )
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="scenes at once (default: 4)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of questions, random selection, intervals (default: 0)"
    )
    parser.add_argument("--device", metavar="NAME", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="NAME",
        help="auto (as stored), float32, bfloat16, float16, or fp32, bf16, fp16 (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        default="evaluation",
        metavar="DIR",
        help=f"records, {SUMMARY}, {PAGE}, {TABLES} and charts (default: %(default)s)",
    )
    parser.add_argument("--report", metavar="FILE", help=f"the page (default: {PAGE} in --out)")


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code. Raises PruneError for what the user can mend."""
    check_at_least(args, scenes=1, batch=1, seed=0)
    check_output(args.report, "--report")
    from ..world.generate import check_split
    from ..world.questions import TYPES, check_types

    check_split(args.split)
    types = TYPES if args.types is None else parse_names(args.types, "--types")
    check_types(types)
    folder = model_folder(args.model)

    from ..benchmarks.settings import make_settings
    from ..loading import parse_device, parse_dtype

    settings = make_settings(
        parse_names(args.methods, "--methods"),
        parse_shares(args.retention),
        parse_names(args.where, "--where"),
    )
    dtype, device = parse_dtype(args.dtype), parse_device(args.device)

    from importlib import metadata

    from rich.console import Console

    from ..benchmarks.answering import Answerer
    from ..benchmarks.records import Records
    from ..benchmarks.runner import Runner, fingerprint
    from ..files import write_atomically

    console = Console()

    def load() -> Answerer:
        from ..loading import load_model

        return Answerer(*load_model(folder, dtype=dtype, device=device))

    about = fingerprint(
        folder,
        split=args.split,
        seed=args.seed,
        types=types,
        dtype=str(dtype).removeprefix("torch."),
        version=metadata.version("prune2drive"),
    )
    records = Records(args.out, about)
    runner = Runner(
        records,
        settings,
        load,
        split=args.split,
        count=args.scenes,
        seed=args.seed,
        types=types,
        batch=args.batch,
    )
    if runner.missing():
        with console.status("loading the model"):
            runner.prepare()  # before the folder is taken: a damaged model should leave no trace in it
        with records:
            fill_in(runner, console)
    summary = runner.summary(folder.resolve().name)
    out = Path(args.out)
    write_atomically(out / SUMMARY, json.dumps(summary, indent=2) + "\n")

    from ..report.evaluation import chart_svg, markdown_tables, print_evaluation, write_evaluation
    from ..report.evaluation_tables import places

    print_evaluation(console, summary)
    write_atomically(out / TABLES, markdown_tables(summary))
    for where in places(summary):
        write_atomically(out / f"accuracy-{where}.svg", chart_svg(summary, where))
    page = write_evaluation(summary, Path(args.report) if args.report else out / PAGE)
    console.print(f"summary: {out / SUMMARY}", highlight=False, markup=False)
    console.print(f"report: {page}", highlight=False, markup=False)
    return 0


def progress_bar(console: Any) -> Any:
    """A bar with counts and the time left, which goes away when done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def fill_in(runner: Any, console: Any) -> None:
    """Fill in what is missing under a progress bar."""
    with progress_bar(console) as bar:
        task = bar.add_task("starting", total=runner.count * len(runner.settings))
        runner.run(lambda name, done: bar.update(task, advance=done, description=name))


def model_folder(path: str | None) -> Path:
    """The folder of the model; the reference model's without a path.

    Raises:
        PruneError: no folder, or the package has no weights.
    """
    if path is not None:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise PruneError(f"--model {path}: no such folder. Give one that save_pretrained wrote.")
        return folder
    from ..world.model import FOLDER

    if not any(FOLDER.glob("*.safetensors")):
        raise PruneError(
            "this installation has no weights of the reference model. Give --model PATH, or train one with "
            "python -m prune2drive.world.train --out FOLDER."
        )
    return FOLDER
