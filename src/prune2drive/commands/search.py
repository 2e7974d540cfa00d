"""`prune2drive search`: find each camera's rate, on one machine or with any number of workers."""

from __future__ import annotations

import argparse
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PruneError
from .evaluate import model_folder
from .options import add_model_options, check_at_least, parse_cameras

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..search.task import Task

DATABASE = "study.db"


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "search",
        help="find each camera's retention rate",
        description="Search the retention rate of every camera on frames with questions, offline. Pictures "
        "are encoded once; a trial is the language model alone. The result is a preset for "
        "--retention, judged on frames that the search did not look at. The same command goes on where it "
        "was stopped; started anywhere with the same --storage and --name it joins in.",
    )
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument(
        "--budget",
        type=float,
        metavar="SHARE",
        help="split exactly as many tokens as this uniform rate keeps (default: 0.10)",
    )
    goal.add_argument(
        "--penalty", type=float, metavar="LAMBDA", help="maximise R - LAMBDA x sum of rates (paper: 0.03)"
    )
    goal.add_argument("--front", action="store_true", help="the best quality for every number of tokens")
    parser.add_argument(
        "--score",
        default="likelihood",
        metavar="PARTS",
        help='what R is made of: exact, probability, likelihood, language, or "exact=0.5,language=0.5" '
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--sampler", metavar="NAME", help="tpe, cmaes, nsga2, random, grid (default: tpe; nsga2 for a front)"
    )
    parser.add_argument(
        "--pruner",
        metavar="NAME",
        help="what stops hopeless trials: paired, wilcoxon, median, halving, none (default: paired)",
    )
    parser.add_argument("--trials", type=int, default=100, metavar="N", help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--bounds",
        default="0.02,1",
        metavar="LOW,HIGH",
        help="of every rate, with --penalty or --front (default: %(default)s)",
    )
    parser.add_argument(
        "--spread",
        type=float,
        default=4.0,
        metavar="X",
        help="with --budget, a rate is 1/X to X of the others' before they share it out (default: 4)",
    )
    parser.add_argument(
        "--data",
        default="world",
        metavar="world|FILE",
        help='frames with questions: "world" (drawn, the default), or a JSON file (see docs/search.md)',
    )
    parser.add_argument("--samples", type=int, default=500, metavar="N", help="frames (default: %(default)s)")
    parser.add_argument(
        "--held-out",
        type=int,
        default=200,
        metavar="N",
        help="frames to judge the result on, which the search does not see: the validation split of the "
        "world, or those behind --samples in a file; 0 for none (default: %(default)s)",
    )
    parser.add_argument("--model", metavar="PATH|ID", help="default: the reference model")
    parser.add_argument(
        "--method", default="tfps", metavar="NAME", help='see "prune2drive methods" (default: %(default)s)'
    )
    parser.add_argument(
        "--positions", choices=("keep", "reindex"), default="keep", help="default: %(default)s"
    )
    parser.add_argument(
        "--rig", default="nuscenes", metavar="NAME|FILE", help="the cameras of a file (default: %(default)s)"
    )
    parser.add_argument("--cameras", metavar="A,B,C", help="only these of a file, in this prompt order")
    add_model_options(parser)
    parser.add_argument("--batch", type=int, metavar="N", help="frames at once (default: 16; 1 for a file)")
    parser.add_argument(
        "--cache", metavar="DIR", help="where encoded pictures lie (default: ~/.cache/prune2drive/features)"
    )
    parser.add_argument(
        "--cache-gib", type=float, default=10.0, metavar="N", help="how much of them (default: %(default)s)"
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="database of the study: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/DATABASE "
        f"(default: {DATABASE} in --out)",
    )
    parser.add_argument("--name", default="search", help="of the study and the preset (default: %(default)s)")
    parser.add_argument(
        "--heartbeat",
        type=int,
        default=60,
        metavar="SECONDS",
        help="a worker silent for twice as long is taken for dead and its trial tried again (default: 60)",
    )
    parser.add_argument(
        "--out",
        default="search",
        metavar="DIR",
        help="preset.json, result.json and report.html (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code. Raises PruneError for what the user can mend."""
    check_at_least(args, trials=1, samples=1, held_out=0, heartbeat=1, seed=0)
    parts = parse_score(args.score)
    low, high = _bounds(args.bounds)
    if not args.name.strip():
        raise PruneError("--name is empty. Give the study a name.")
    if not 0 < args.cache_gib < 2**30:
        raise PruneError(f"--cache-gib {args.cache_gib:g}: give more than 0, such as 10.")
    from rich.console import Console

    from ..allocators.base import check_rate
    from ..registry import resolve_single
    from ..search import Objective, Search, open_storage
    from ..search.result import check_apart, check_folder, conclude
    from ..search.samplers import make_pruner, make_sampler
    from ..search.space import FreeRates

    # Before minutes are spent on loading.
    Objective(parts, args.penalty or 0.0)
    check_rate(0.1 if args.budget is None else args.budget, "--budget")
    space = FreeRates({"any": 100}, low, high)
    make_sampler(args.sampler or "tpe", space, args.seed, args.trials, args.front)
    make_pruner(args.pruner or "none")
    resolve_single(args.method, "a search of rates")

    console = Console()
    out = Path(args.out)
    storage = open_storage(_storage(args, out), args.heartbeat)
    with console.status("loading the model"):
        task, held_out = make_tasks(args)
    search = Search(
        task,
        budget=args.budget,
        penalty=args.penalty,
        front=args.front,
        parts=parts,
        low=low,
        high=high,
        spread=args.spread,
        sampler=args.sampler,
        pruner=args.pruner,
        trials=args.trials,
        seed=args.seed,
    )
    check_folder(out, {"name": args.name, **search.about()})
    check_apart(task, held_out)
    study = search.join(storage, args.name)
    with _terminable():
        if held_out is not None:  # before the trials: a damaged picture should not end hours of them
            _encode(held_out, "encoding held-out frames", console)
        _encode(task, "encoding frames", console)
        _work(search, study, console)
        with console.status("judging the result"):
            found = conclude(search, study, held_out)
    found.save(out)

    from ..report.search import print_search

    print_search(console, found.result)
    for name in ("preset.json", "front", "report.html"):
        if (out / name).exists():
            console.print(f"{name.partition('.')[0]}: {out / name}", highlight=False, markup=False)
    return 0


def make_tasks(args: argparse.Namespace) -> tuple[Task, Task | None]:
    """The frames to search on, and those to judge the result on."""
    from ..loading import load_model, parse_device, parse_dtype

    dtype, device = parse_dtype(args.dtype), parse_device(args.device)
    common: dict[str, Any] = {
        "method": args.method,
        "positions": args.positions,
        "cache": args.cache,
        "limit": round(args.cache_gib * 2**30),
    }
    if args.data == "world":
        from ..benchmarks.answering import Answerer
        from ..search import WorldTask

        if args.cameras or args.rig != "nuscenes":
            raise PruneError("--rig and --cameras are for files; the world has the six cameras of nuScenes.")
        folder = model_folder(args.model)
        answerer = Answerer(*load_model(folder, dtype=dtype, device=device, attn=args.attn))
        common["batch"] = 16 if args.batch is None else args.batch
        task = WorldTask(answerer, folder, split="calibration", count=args.samples, **common)
        if not args.held_out:
            return task, None
        return task, WorldTask(answerer, folder, split="validation", count=args.held_out, **common)

    from ..rig import load_rig
    from ..search import FramesTask
    from ..search.data import count_frames

    if args.model is None:
        raise PruneError("--data FILE needs --model: the reference model knows drawn streets only.")
    rig = load_rig(args.rig)
    assert rig is not None  # None only for None
    model, processor = load_model(
        args.model, dtype=dtype, device=device, attn=args.attn, trust_remote_code=args.trust_remote_code
    )
    common |= {
        "model_id": args.model,
        "rig": rig,
        "cameras": parse_cameras(args.cameras, rig),
        "batch": 1 if args.batch is None else args.batch,
    }
    frames = FramesTask(model, processor, args.data, count=args.samples, **common)
    if not args.held_out:
        return frames, None
    taken, there = len(frames.frames), count_frames(args.data)
    if taken == there:
        raise PruneError(
            f"the search takes all {there} frames of {args.data}, and none are left to judge its result on. "
            f"Give --samples {max(1, there * 4 // 5)}, or --held-out 0."
        )
    return frames, FramesTask(model, processor, args.data, start=taken, count=args.held_out, **common)


def parse_score(text: str) -> dict[str, float]:
    """Read ``--score``: one name, or ``NAME=weight`` pairs.

    Raises:
        PruneError: neither, or a name twice.
    """
    parts: dict[str, float] = {}
    for pair in text.split(","):
        name, equals, weight = (piece.strip() for piece in pair.partition("="))
        try:
            value = float(weight) if equals else 1.0
        except ValueError:
            name = ""
        if not name or name in parts:
            raise PruneError(f'--score {text!r}: give a name, or "exact=0.5,likelihood=0.5", each once.')
        parts[name] = value
    return parts


def _bounds(text: str) -> tuple[float, float]:
    try:
        low, high = (float(piece) for piece in text.split(","))
    except ValueError:
        raise PruneError(f"--bounds {text!r}: give two rates, such as 0.02,1.") from None
    return low, high


def _storage(args: argparse.Namespace, out: Path) -> str:
    if args.storage is not None:
        return str(args.storage)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PruneError(
            f"--out {out}: cannot make this folder ({error.strerror}). Choose another."
        ) from error
    return f"sqlite:///{out / DATABASE}"


def _encode(task: Task, what: str, console: Any) -> None:
    with _progress(console) as bar:
        frames = bar.add_task(what, total=len(task.frames))
        task.prepare(lambda done: bar.advance(frames, done))


def _work(search: Any, study: Any, console: Any) -> None:
    """Run trials under a progress bar."""
    with _progress(console) as bar:
        trials = bar.add_task("trials", total=search.trials)

        def show(done: Any) -> None:
            values = [
                trial.values[0] for trial in done if trial.state.name == "COMPLETE" and search.mode != "front"
            ]
            text = f"trials (best {max(values):.4f})" if values else "trials"
            bar.update(trials, completed=len(done), description=text)

        search.work(study, show)


def _progress(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let a polite kill end the work like Ctrl-C: with the trial at hand back in the queue."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, which alone may say so
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
