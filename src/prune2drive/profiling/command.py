"""The command ``prune2drive profile``: what pruning saves, as a table and as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ..errors import PruneError
from .result import KEYS, ProfileResult
from .shapes import SHAPES, build_inputs, build_model, shape

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTION = ("sdpa", "eager", "flash_attention_2")
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
        "random weights and needs no download; --model loads a real one.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="NAME", help=f"published size: {', '.join(SHAPES)}")
    source.add_argument("--model", metavar="PATH_OR_HUB_ID", help="folder or hub id of a model")
    parser.add_argument("--images", metavar="DIR", help="pictures for --model, one per camera")
    parser.add_argument("--question", default=QUESTION, help="text for --model (default: %(default)r)")
    parser.add_argument("--method", default="tfps", help="pruning method (default: %(default)s)")
    parser.add_argument("--retention", type=float, default=0.10, help="share of tokens kept (default: 0.10)")
    parser.add_argument("--positions", choices=("keep", "reindex"), default="keep")
    parser.add_argument("--rig", default="nuscenes", help="cameras: a name or a file (default: %(default)s)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 on cuda, fp32 on cpu")
    parser.add_argument("--attn", choices=ATTENTION, default="sdpa")
    parser.add_argument("--batch", type=int, default=1)
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

    from ..allocators import load_allocator
    from ..registry import resolve_method
    from .latency import profile

    # Mistakes first: building a model, and measuring it, can take minutes.
    resolve_method(args.method)
    load_allocator(args.retention)
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise PruneError(f"--json {args.json}: its folder does not exist; create it first.")
    device = _device(args.device)
    dtype = DTYPES[args.dtype or ("bf16" if device.type == "cuda" else "fp32")]
    console = Console()
    shown = Console(stderr=True)
    with shown.status("building the model") as status:

        def progress(line: str) -> None:
            status.update(line)
            if not shown.is_terminal:
                shown.print(line)

        model, inputs = (_from_config if args.config else _from_files)(args, dtype, device)
        result = profile(
            model,
            inputs,
            method=args.method,
            retention=args.retention,
            rig=args.rig,
            positions=args.positions,
            new_tokens=args.new_tokens,
            repeat=args.repeat,
            warmup=args.warmup,
            progress=progress,
        )
    result.settings.update(source=args.config or args.model, random_weights=bool(args.config))
    if args.layer_limit is not None:
        result.settings["layer_limit"] = args.layer_limit
    if args.json:
        result.save(args.json)
    print_table(result, console)
    if args.json:
        console.print(f"written to {args.json}", highlight=False, markup=False)
    return 0


def print_table(result: ProfileResult, console: Any) -> None:
    """Print a profile: unpruned, pruned and their ratio, with the spread of the times."""
    from rich.markup import escape
    from rich.table import Table

    s, hardware = result.settings, result.hardware
    table = Table(
        title=escape(
            f"{s.get('source', s['model'])}, {s['method']} at {s['retention']}, {s['positions']} positions"
        ),
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


def _from_config(args: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    from ..rig import load_rig

    shape(args.config)  # an unknown name is the first thing to say
    rig = load_rig(args.rig)
    cameras = len(rig.names) if rig else 6
    # The cheap part first: it refuses bad counts before gigabytes are filled.
    inputs = build_inputs(args.config, args.batch, cameras, args.text_tokens, dtype, device)
    _check_room(args, dtype, device)
    try:
        model = build_model(args.config, dtype, device, args.attn, layers=args.layer_limit)
    except ImportError as error:
        raise PruneError(f"--attn {args.attn} is not available here: {error}") from error
    return model, inputs


def _from_files(args: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    from ..images import load_frame
    from ..loading import load_model
    from ..prompts import build_inputs as from_pictures

    if not args.images:
        raise PruneError("--model needs --images DIR with one picture per camera (--config needs none).")
    if args.layer_limit is not None:
        raise PruneError("--layer-limit works with --config only: half a trained model answers nothing.")
    frame = load_frame(args.images, args.rig)
    model, processor = load_model(args.model, dtype=dtype, device=device, attn=args.attn)
    return model, from_pictures(processor, model, [frame] * args.batch, args.question, list(frame))


def _check_room(args: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse weights that do not fit: without this the system ends the process with no word."""
    meta = build_model(args.config, dtype, "meta", "eager", layers=args.layer_limit)
    need = sum(p.nbytes for p in meta.parameters())
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        info = Path("/proc/meminfo")
        rows = dict(line.split(":", 1) for line in info.read_text().splitlines()) if info.is_file() else {}
        if "MemAvailable" not in rows:
            return
        free = int(rows["MemAvailable"].split()[0]) * 1024
    if need > free:
        raise PruneError(
            f"{args.config} needs {_written(need, 'bytes')} for weights alone, {device} has "
            f"{_written(free, 'bytes')} free; try --dtype bf16 or --layer-limit N."
        )


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise PruneError(f"--device {name}: not a device; use cpu or cuda.") from error
    if device.type not in ("cpu", "cuda"):
        raise PruneError(f"--device {name}: profiling knows cpu and cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PruneError("--device cuda: this torch sees no CUDA device; use --device cpu.")
    return device


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
