"""Train the reference model: ``python -m prune2drive.world.train --out FOLDER``.

Two stages (see `lessons`), each resumable: the run writes a checkpoint every few minutes and, started
again with the same folder, goes on from it. Progress is logged as one JSON line per report.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import batches, lessons
from .model import build_model, build_processor


def optimizers(modules: list[nn.Module], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for everything else (embeddings, heads, norms)."""
    matrices, others = [], []
    for module in modules:
        for name, weight in module.named_parameters():
            if not weight.requires_grad:
                continue
            inner = ".layers." in name and weight.ndim == 2
            (matrices if inner else others).append(weight)
    out: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)]
    if matrices:
        out.append(torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return out


def rate_at(step: int, steps: int, warmup: int = 100, fall: float = 0.35) -> float:
    """Learning rate factor: linear warm-up, flat, linear fall to zero over the last part."""
    return min((step + 1) / warmup, 1.0, (steps - step) / max(1.0, steps * fall))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m prune2drive.world.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=("see",), default="see")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--scenes", type=int, default=4, help="per step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    model = build_model()
    from transformers import AttentionInterface
    AttentionInterface.register("quick", lessons.quick_attention)
    model.model.vision_tower.config._attn_implementation = "quick"
    heads = lessons.Heads(model.config.text_config.hidden_size, 6)
    trained: list[nn.Module] = [model.model.vision_tower, model.model.multi_modal_projector, heads]
    opts = optimizers(trained, args.rate)
    weights = [w for m in trained for w in m.parameters()]
    begun, first = time.time(), 0
    check = args.out / "see.pt"
    if check.exists():
        saved = torch.load(check, weights_only=True)
        model.load_state_dict(saved["model"]); heads.load_state_dict(saved["heads"])
        for o, s in zip(opts, saved["opts"]): o.load_state_dict(s)
        first = saved["step"]
    log = (args.out / "log.jsonl").open("a")
    stream = batches.load(batches.SeeBatches(args.scenes, first, args.steps), args.workers)
    sums: dict[str, float] = {}
    for step, batch in enumerate(stream, first):
        factor = rate_at(step, args.steps)
        for o in opts:
            for g in o.param_groups:
                g["lr"] = args.rate * factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, facts = lessons.see(model, heads, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for o in opts:
            o.step(); o.zero_grad(set_to_none=True)
        for k, v in facts.items():
            sums[k] = sums.get(k, 0.0) + float(v)
        if (step + 1) % 25 == 0:
            line = {"stage": "see", "step": step + 1, "s": round(time.time() - begun, 1), **{k: round(v / 25, 4) for k, v in sums.items()}}
            print(json.dumps(line), file=log, flush=True); print(line, flush=True)
            sums = {}
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            tmp = check.with_suffix(".tmp")
            torch.save({"model": model.state_dict(), "heads": heads.state_dict(), "opts": [o.state_dict() for o in opts], "step": step + 1}, tmp)
            tmp.replace(check)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
