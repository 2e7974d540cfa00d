"""`prune2drive compare`: every method at equal budgets, what it answers and what it costs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import PruneError
from .evaluate import PAGE, SUMMARY, TABLES, fill_in, model_folder, progress_bar
from .options import check_at_least, parse_shares

KEPT_FILE, COSTS_FILE = "kept.json", "costs.json"

SHOWN_OF = 64
"""Of so many first scenes, the first by day shows what was kept."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "compare",
        help="compare all methods at equal budgets",
        description="Let methods, alone or one behind the other, prune a model to the same number of visual "
        "tokens per layer, ask it about drawn surround-view scenes, and measure in the same run what each "
        "method costs. Results are kept as they come: the same command goes on where it was stopped, and on "
        "a finished folder only computes the summary again.",
    )
    parser.add_argument("--benchmark", choices=("world",), default="world", help="default: %(default)s")
    parser.add_argument("--model", metavar="PATH", help="model folder (default: the reference model)")
    parser.add_argument(
        "--split", default="test", metavar="NAME", help="test, validation, calibration, train (default: test)"
    )
    parser.add_argument("--scenes", type=int, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--methods",
        default="all",
        metavar="A,B+C",
        help='see "prune2drive methods"; A+B chooses twice (default: %(default)s)',
    )
    parser.add_argument(
        "--retention",
        default="0.25,0.10,0.05",
        metavar="A,B",
        help="shares of the visual tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--budget",
        choices=("average", "kept", "both"),
        default="both",
        help="the share that a layer sees on average; that which a method of one stage inside the language "
        "model leaves; or both (default: %(default)s)",
    )
    parser.add_argument(
        "--positions",
        default="keep",
        metavar="A,B",
        help="position ids of kept tokens: keep, reindex, calibrate (default: %(default)s)",
    )
    parser.add_argument(
        "--layer",
        type=int,
        default=1,
        metavar="K",
        help="where methods of one stage inside the language model choose (default: %(default)s)",
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="scenes at once (default: 8)")
    parser.add_argument(
        "--costs",
        type=int,
        default=5,
        metavar="N",
        help="scenes on which costs are measured; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of questions, random selection, intervals (default: 0)"
    )
    parser.add_argument("--device", metavar="NAME", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--dtype",
        default="fp32",
        metavar="NAME",
        help="auto (as stored), float32, bfloat16, float16, or fp32, bf16, fp16 (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        default="compare",
        metavar="DIR",
        help=f"records, {SUMMARY}, {KEPT_FILE}, {COSTS_FILE}, {TABLES}, {PAGE} (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code. Raises PruneError for what the user can mend."""
    check_at_least(args, scenes=1, batch=1, layer=1, costs=0, seed=0)
    from ..world.generate import check_split

    check_split(args.split)
    shares = parse_shares(args.retention)
    folder = model_folder(args.model)

    from ..benchmarks.contenders import examine, make_contenders, parse_methods, parse_positions
    from ..loading import load_model, parse_device, parse_dtype

    methods, broken = parse_methods(args.methods)
    positions = parse_positions(args.positions)
    contenders, useless = make_contenders(methods, shares, args.budget, positions, args.layer)
    dtype, device = parse_dtype(args.dtype), parse_device(args.device)

    from importlib import metadata

    from rich.console import Console

    from ..benchmarks.answering import Answerer
    from ..benchmarks.compare import comparison_fingerprint, kept_tokens, summarize_comparison
    from ..benchmarks.costs import CostMeter
    from ..benchmarks.records import Records
    from ..benchmarks.runner import Runner, fingerprint
    from ..benchmarks.world import samples
    from ..files import write_atomically
    from ..profiling.hardware import hardware, versions
    from ..world.generate import scenes
    from ..world.questions import TYPES

    console = Console()
    about = fingerprint(
        folder,
        split=args.split,
        seed=args.seed,
        types=TYPES,
        dtype=str(dtype).removeprefix("torch."),
        version=metadata.version("prune2drive"),
    )
    records = Records(args.out, comparison_fingerprint(about, args.layer))
    with console.status("loading the model"):
        answerer = Answerer(*load_model(folder, dtype=dtype, device=device))
    depth = answerer.model.config.get_text_config().num_hidden_layers
    if args.layer >= depth:
        raise PruneError(f"--layer {args.layer}: the language model has layers 0 to {depth - 1}.")
    able, unable = examine(contenders, answerer.model, args.seed)
    runner = Runner(
        records,
        able,
        lambda: answerer,
        split=args.split,
        count=args.scenes,
        seed=args.seed,
        batch=args.batch,
    )
    if runner.missing():
        with records:
            fill_in(runner, console)
    out = Path(args.out)
    # A picture by night shows little of what was kept.
    by_day = (n for n, scene in enumerate(scenes(args.split, SHOWN_OF)) if scene.weather == "day")
    shown = next(samples(args.split, 1, args.seed, start=next(by_day, 0)))
    with console.status(f"noting what is kept of {shown.name}"):
        kept = kept_tokens(answerer, able, shown, args.seed, out / KEPT_FILE)
    costs, machine = {}, {"hardware": hardware(answerer.model.device), "versions": versions()}
    if args.costs:
        depends = {key: about[key] for key in ("version", "dtype", "weights")} | {"layer": args.layer}
        meter = CostMeter(
            answerer,
            able,
            out / COSTS_FILE,
            depends,
            split=args.split,
            count=args.costs,
            seed=args.seed,
        )
        _measure(meter, console)
        costs, machine = meter.summary(), meter.machine
    summary = summarize_comparison(
        records,
        able,
        runner.names,
        {"benchmark": "world", "split": args.split, "model": folder.resolve().name, "seed": args.seed},
        layer=args.layer,
        depth=depth,
        impossible={**broken, **useless, **unable},
        costs=costs,
    )
    summary |= machine
    write_atomically(out / SUMMARY, json.dumps(summary, indent=2) + "\n")

    from ..report.compare import write
    from ..report.compare_text import markdown_tables, print_comparison

    print_comparison(console, summary)
    write_atomically(out / TABLES, markdown_tables(summary))
    write(out / PAGE, summary, kept)
    console.print(f"summary: {out / SUMMARY}", highlight=False, markup=False)
    console.print(f"report: {out / PAGE}", highlight=False, markup=False)
    return 0


def _measure(meter: Any, console: Any) -> None:
    """Measure what costs lack under a progress bar."""
    with progress_bar(console) as bar:
        task = bar.add_task("measuring costs", total=meter.count * len(meter.contenders))
        meter.run(lambda name, done: bar.update(task, advance=done, description=f"costs of {name}"))
