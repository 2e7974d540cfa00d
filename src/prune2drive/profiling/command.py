"""The command ``prune2drive profile``: what pruning saves, as a table and as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from ..commands.options import (
    add_camera_options,
    add_model_options,
    add_pruning_options,
    check_at_least,
    check_output,
    parse_cameras,
    pruning_setting,
)
from ..commands.show import written_retention
from ..errors import PruneError
from ..loading import load_model, parse_device, parse_dtype
from ..rig import Rig, load_rig
from .result import KEYS, ProfileResult
from .room import check_room
from .shapes import SHAPES, build_inputs, build_model, shape

QUESTION = "What should the ego vehicle do next?"

_ROWS = {
    "vision_ms": ("vision tower + projector", "ms"),
    "select_ms": ("choosing", "ms"),
    "prefill_ms": ("prefill", "ms"),
    "ttft_ms": ("time to first token", "ms"),
    "decode_ms_per_token": ("decode, per token", "ms"),
    "peak_bytes": ("peak memory", "bytes"),
    "kv_bytes": ("KV cache", "bytes"),
    "flops": ("FLOPs to first token", "flops"),
    "tokens": ("prompt tokens", "count"),
}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add ``profile`` to the subparsers of the command line and return its parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "profile",
        help="measure time, memory and FLOPs, unpruned and pruned",
        description="Measure a model unpruned and pruned in one run. --config builds a published size with "
        "random weights and needs no download (nothing is stored, so --dtype auto is bfloat16 on cuda, "
        "float32 on cpu); --model loads a real one.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="NAME", help=f"published size: {', '.join(SHAPES)}")
    source.add_argument("--model", metavar="PATH|ID", help="model folder, or hub id org/name")
    parser.add_argument("--images", metavar="DIR|JSON", help="pictures of one frame, for --model")
    parser.add_argument("--question", help=f'text for --model (default: "{QUESTION}")')
    add_camera_options(parser)
    add_pruning_options(parser)
    add_model_options(parser)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="samples (default: %(default)s)")
    parser.add_argument("--text-tokens", type=int, default=64, help="prompt text of --config (default: 64)")
    parser.add_argument("--new-tokens", type=int, default=8, help="decode steps timed (default: 8)")
    parser.add_argument("--repeat", type=int, default=5, help="timed repetitions of each (default: 5)")
    parser.add_argument("--warmup", type=int, default=1, help="untimed repetitions first (default: 1)")
    parser.add_argument(
        "--layer-limit", type=int, metavar="N", help="cut the language model to N layers (--config)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the result here")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Profile as asked, print a table, return the exit status 0. Raises PruneError for bad input."""
    from rich.console import Console

    from .latency import profile

    # Mistakes first: building a model, and measuring it, can take minutes.
    check_at_least(args, batch=1, new_tokens=0, repeat=1, warmup=1)
    _check_source(args)
    check_output(args.json, "--json")
    rig = load_rig(args.rig)
    assert rig is not None  # None only for None
    cameras = parse_cameras(args.cameras, rig)
    setting = pruning_setting(args, rig, cameras)
    dtype, device = parse_dtype(args.dtype), parse_device(args.device)
    if device.type not in ("cpu", "cuda"):
        raise PruneError(f"--device {args.device}: profiling knows cpu and cuda.")
    console = Console()
    shown = Console(stderr=True)
    with shown.status("building the model") as status:

        def progress(line: str) -> None:
            status.update(line)
            if not shown.is_terminal:
                shown.print(line)

        if args.config:
            model, inputs = _from_config(args, cameras, dtype, device)
        else:
            model, inputs = _from_files(args, rig, cameras, dtype, device)
        result = profile(
            model,
            inputs,
            rig=args.rig,
            cameras=cameras,
            new_tokens=args.new_tokens,
            repeat=args.repeat,
            warmup=args.warmup,
            progress=progress,
            **setting,
        )
    result.settings.update(source=args.config or args.model, random_weights=bool(args.config))
    if args.layer_limit is not None:
        result.settings["layer_limit"] = args.layer_limit
    print_table(result, console)  # before saving: what took minutes to measure outlives a full disk
    if args.json:
        result.save(args.json)
        console.print(f"written to {args.json}", highlight=False, markup=False)
    return 0


def print_table(result: ProfileResult, console: Any) -> None:
    """Print a profile: unpruned, pruned and their ratio, with the spread of the times."""
    from rich.markup import escape
    from rich.table import Table

    s, hardware = result.settings, result.hardware
    share, source = written_retention(s["retention"]), s.get("source", s["model"])
    table = Table(
        title=escape(f"{source}, {s['method']} at {share}, {s['positions']} positions"),
        caption=f"{hardware.get('gpu', hardware['cpu'])}, {s['dtype']}, {s['attn']}, batch {s['batch']}; "
        f"median of {s['repeat']}, spread min to max",
    )
    for heading, justify in (
        ("", "left"),
        ("unpruned", "right"),
        ("pruned", "right"),
        ("ratio", "right"),
        ("spread unpruned | pruned", "left"),
    ):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for key in KEYS:
        label, unit = _ROWS[key]
        if key == "peak_bytes" and hardware["device"] == "cpu":
            label = "peak memory growth"
        ratio = result.ratio[key]
        spreads = [side["spread"].get(key) for side in (result.unpruned, result.pruned)]
        spread = " | ".join(
            f"{_written(x['min'], unit)} to {_written(x['max'], unit)}" if x else "" for x in spreads
        )
        table.add_row(
            label,
            _written(result.unpruned[key], unit),
            _written(result.pruned[key], unit),
            "" if ratio is None else f"{ratio:.2f}x",
            spread if any(spreads) and key != "select_ms" else spread.partition(" | ")[2],
        )
    table.add_row(
        "tokens, mean over layers",
        f"{result.unpruned['layer_averaged_tokens']:.1f}",
        f"{result.pruned['layer_averaged_tokens']:.1f}",
        f"{result.unpruned['layer_averaged_tokens'] / result.pruned['layer_averaged_tokens']:.2f}x",
        "",
    )
    console.print(table)


def _check_source(args: argparse.Namespace) -> None:
    """Refuse what belongs to the other of --config and --model: it would be ignored."""
    if args.config:
        shape(args.config)
        for name in ("images", "question", "frame", "trust_remote_code"):
            if getattr(args, name):
                raise PruneError(
                    f"--{name.replace('_', '-')} works with --model only: --config reads no files."
                )
        return
    if not args.images:
        raise PruneError("--model needs --images DIR with one picture per camera (--config needs none).")
    if args.layer_limit is not None:
        raise PruneError("--layer-limit works with --config only: half a trained model answers nothing.")


def _from_config(
    args: argparse.Namespace, cameras: Sequence[str], dtype: torch.dtype | str, device: torch.device
) -> tuple[Any, Any]:
    if isinstance(dtype, str):  # auto
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    # The cheap part first: it refuses bad counts before gigabytes are filled.
    inputs = build_inputs(args.config, args.batch, len(cameras), args.text_tokens, dtype, device)
    check_room(args.config, dtype, device, args.layer_limit)
    attn = args.attn or "sdpa"
    try:
        model = build_model(args.config, dtype, device, attn, layers=args.layer_limit)
    except PruneError:
        raise
    except (ImportError, ValueError) as error:
        raise PruneError(f"--attn {attn} is not available here: {error}") from error
    return model, inputs


def _from_files(
    args: argparse.Namespace,
    rig: Rig,
    cameras: Sequence[str],
    dtype: torch.dtype | str,
    device: torch.device,
) -> tuple[Any, Any]:
    from ..images import load_frame
    from ..prompts import build_inputs as from_pictures

    frame = load_frame(args.images, rig, cameras=cameras, frame=args.frame)
    model, processor = load_model(
        args.model, dtype=dtype, device=device, attn=args.attn, trust_remote_code=args.trust_remote_code
    )
    question = args.question or QUESTION
    return model, from_pictures(processor, model, [frame] * args.batch, question, cameras)


def _written(value: float | None, unit: str) -> str:
    """A number with its unit, three to four digits."""
    if value is None:
        return "-"
    if unit == "ms":
        return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"
    if unit == "count":
        return f"{value:,}"
    base, names = 1024.0, ["B", "KiB", "MiB", "GiB", "TiB"]
    if unit == "flops":
        base, names = 1000.0, ["", "K", "M", "G", "T", "P"]
    power = 0
    while abs(value) >= base and power < len(names) - 1:
        value, power = value / base, power + 1
    return f"{value:.4g} {names[power]}".rstrip()
