"""The way from six camera frames on the host to the first token, one improvement after the other.

Every step keeps those before it. All take turns in one run, so a gain is of neighbours measured together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import prune2drive as p2d
from prune2drive.functional import fps
from prune2drive.preprocessing import DevicePreprocessor, PinnedUpload
from prune2drive.profiling.timing import clocked, summary
from prune2drive.selectors.tfps import TFPS
from prune2drive.tokens import Selection, VisualTokens

from .bench import Bench
from .calls import prune_at
from .pictures import frames, processor, stock_pixels
from .setting import CAMERAS, Setting
from .sheet import Skip

RETENTION = 0.1
Part = tuple[str, Callable[[], None]]
"""Name of a part of the way, and what does it."""


@dataclass(frozen=True)
class PlainTFPS(TFPS):
    """T-FPS without its GPU programs."""

    name: ClassVar[str] = "tfps-plain"

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        """As `TFPS.select`."""
        order = fps(tokens.features, list(counts), mask=tokens.mask, backend="torch")
        return Selection(order, list(counts))


@dataclass
class Step:
    """One way from frames to the first token: parts in order, each leaving its result to the next."""

    id: str
    title: str
    parts: list[Part]
    around: Callable[[], Any] = nullcontext
    stages: dict[str, str] | None = None

    def run(self) -> None:
        for _, part in self.parts:
            part()


class Way:
    """What the steps are made of: frames, model, and the values handed from part to part."""

    def __init__(self, bench: Bench, shape: str) -> None:
        self.setting: Setting = bench.setting
        self.model, self.inputs = bench.model(shape), bench.inputs(shape, 1, CAMERAS)
        if not hasattr(self.model.base_model, "vision_tower") or self.inputs["pixel_values"].dim() != 5:
            raise Skip(f"{shape}: the steps are for towers that take one square per camera")
        self.device, self.dtype = self.setting.target, self.setting.torch_dtype
        self.frames = frames(self.setting)
        self.stock = processor(shape)
        self.on_device = DevicePreprocessor.from_processor(self.stock, self.device, self.dtype)
        self.pinned = PinnedUpload(self.device)
        self.host: Any = None
        self.pixels: Tensor = self.inputs["pixel_values"]
        self.features: Any = None

    # -- parts ----------------------------------------------------------------------------------

    def stock_preprocess(self) -> None:
        self.host = stock_pixels(self.stock, self.frames)

    def upload_pixels(self) -> None:
        self.pixels = self.host.to(self.device, self.dtype).reshape(self.inputs["pixel_values"].shape)

    def upload_frames(self) -> None:
        self.host = torch.from_numpy(self.frames).to(self.device, copy=True)

    def upload_pinned(self) -> None:
        self.host = self.pinned.upload(self.frames)

    def device_preprocess(self) -> None:
        made = self.on_device(self.host)["pixel_values"]
        self.pixels = made.reshape(self.inputs["pixel_values"].shape)

    def encode(self) -> None:
        kwargs = {k: v for k, v in self.inputs.items() if k in ("image_sizes", "batch_num_images")}
        self.features = self.model.base_model.get_image_features(
            pixel_values=self.pixels, return_dict=True, **kwargs
        )

    def read(self) -> None:
        """The language model on what was encoded; under `prune` this chooses first."""
        rest = {k: self.inputs[k] for k in ("input_ids", "attention_mask")}
        self.model(**rest, mm_encoder_outputs={"image": self.features}, use_cache=True, logits_to_keep=1)

    # -- surroundings ---------------------------------------------------------------------------

    @contextmanager
    def tower(self, attention: str, apart: bool) -> Iterator[None]:
        """Inside, the vision tower uses this attention, and sees one camera at a time if ``apart``."""
        tower = self.model.base_model.vision_tower
        configs = {
            id(m.config): m.config
            for m in tower.modules()
            if hasattr(getattr(m, "config", None), "_attn_implementation")
        }
        before = {key: config._attn_implementation for key, config in configs.items()}
        whole = tower.forward

        def one_by_one(pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
            return joined([whole(each, *args, **kwargs) for each in pixels.split(1)])

        try:
            for config in configs.values():
                config._attn_implementation = attention
            if apart:
                tower.forward = one_by_one
            yield
        finally:
            for key, config in configs.items():
                config._attn_implementation = before[key]
            if apart:
                del tower.forward


def joined(outs: Sequence[Any]) -> Any:
    """Outputs of a tower for several batches as one: tensors, and tuples of tensors, end to end."""
    out = outs[0]
    for name in list(out.keys()):
        values = [each[name] for each in outs]
        if isinstance(values[0], Tensor):
            out[name] = torch.cat(values)
        elif values[0] is not None:
            levels = zip(*values, strict=True)
            out[name] = tuple(None if level[0] is None else torch.cat(level) for level in levels)
    return out


def steps(way: Way) -> list[Step]:
    """All steps in order."""
    stock: list[Part] = [("preprocess", way.stock_preprocess), ("upload", way.upload_pixels)]
    tower: Part = ("vision", way.encode)
    # What reads the prompt chooses first, where something is pruned.
    read: Part = ("prefill", way.read)
    out = [
        Step("stock", "unpruned; PIL, one camera at a time through the tower, its attention eager",
             [*stock, tower, read], lambda: way.tower("eager", True)),
        Step("tower-sdpa", "fused attention in the tower",
             [*stock, tower, read], lambda: way.tower("sdpa", True)),
        Step("tower-batch", "all cameras through the tower in one batch",
             [*stock, tower, read], lambda: way.tower("sdpa", False)),
    ]  # fmt: skip
    for name, title, method in (
        ("pruned", "10% of the tokens, chosen by the plain version", PlainTFPS()),
        ("kernel", "chosen by the GPU programs, where they run", "tfps"),
    ):
        pruned = prune_at(way.model, RETENTION, CAMERAS, method)
        out.append(Step(name, title, [*stock, tower, read], lambda pruned=pruned: pruned))
    planned = p2d.capture(prune_at(way.model, RETENTION, CAMERAS), way.inputs, graphs=False)
    out.append(_captured("planned", "shapes, masks and positions worked out once", way, planned, stock))
    replayed = planned
    if way.setting.cuda:
        replayed = p2d.capture(prune_at(way.model, RETENTION, CAMERAS), way.inputs)
        title = "tower, choosing and prefill as CUDA graphs"
        out.append(_captured("graphs", title, way, replayed, stock))
    if way.setting.compile:
        replayed = p2d.capture(prune_at(way.model, RETENTION, CAMERAS), way.inputs, compile=True)
        out.append(_captured("compiled", "tower and prefill compiled", way, replayed, stock))
    here: list[Part] = [("upload", way.upload_frames), ("preprocess", way.device_preprocess)]
    out.append(_captured("device-pixels", "pixels made on the device", way, replayed, here))
    pinned: list[Part] = [("upload", way.upload_pinned), ("preprocess", way.device_preprocess)]
    out.append(_captured("pinned", "frames through page-locked memory", way, replayed, pinned))
    return out


def _captured(name: str, title: str, way: Way, captured: Any, before: list[Part]) -> Step:
    def load() -> None:
        captured.load(pixel_values=way.pixels)

    parts = [*before, ("vision", lambda: (load(), captured.encode())), ("select", captured.choose)]
    return Step(name, title, [*parts, ("prefill", captured.prefill)], stages=captured.stages)  # type: ignore[list-item]


@torch.no_grad()
def measure(bench: Bench, shape: str) -> dict[str, dict[str, Any]]:
    """Rows of all steps: the whole way, and its parts with a wait behind each."""
    way = Way(bench, shape)
    ladder = steps(way)
    whole: dict[str, list[float]] = {step.id: [] for step in ladder}
    parts: dict[str, dict[str, list[float]]] = {step.id: {n: [] for n, _ in step.parts} for step in ladder}
    for number in range(bench.setting.repeat + 1):
        for step in ladder if number % 2 == 0 else ladder[::-1]:
            with step.around():
                spent = clocked(step.run, way.device)[0]
                each = {name: clocked(part, way.device)[0] for name, part in step.parts}
            if number:  # the first round warms up
                whole[step.id].append(spent)
                for name, ms in each.items():
                    parts[step.id][name].append(ms)
    rows, previous = {}, None
    for number, step in enumerate(ladder):
        median = summary(whole[step.id])["median"]
        rows[f"steps/{number}-{step.id}"] = {
            "shape": shape,
            "batch": 1,
            "retention": 1.0 if number < 3 else RETENTION,
            "number": number,
            "id": step.id,
            "title": step.title,
            "ttft_ms": summary(whole[step.id]),
            "parts_ms": _told(parts[step.id]),
            "gain": None if previous is None else previous / median,
            "stages": step.stages,
        }
        previous = median
    return rows


def _told(parts: Mapping[str, list[float]]) -> dict[str, Any]:
    return {name: summary(spent) for name, spent in parts.items()}
