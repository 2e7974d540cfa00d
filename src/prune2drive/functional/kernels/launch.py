"""How the GPU programs are laid out and launched: tiles, warps, grids, memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import products

HALF = (torch.bfloat16, torch.float16)
MOST_TOKENS = 8192
"""Tokens a view may have: its running distances lie in the registers of one program."""
ROW_ALIGN = 32
"""Rows of the matrix start at multiples of 128 bytes, so that a thread moves four numbers at once."""
ELEMENTS_PER_THREAD = 16
"""Distances a thread of `measure` works on: 50 to 100 registers, so that several programs share an SM."""


@dataclass(frozen=True)
class GramLaunch:
    """Layout of the product: (tile, tile) results per program, ``depth`` channels per step.

    ``chunk`` channels are summed by the tensor cores before the sum goes to ordinary float32; ``stages``
    steps are in flight (each holds ``4 * tile * depth`` bytes of shared memory); ``warps`` per program.
    """

    tile: int
    depth: int
    chunk: int
    warps: int
    stages: int


LARGE = GramLaunch(tile=128, depth=64, chunk=1024, warps=8, stages=4)
"""For Hopper and a filled GPU: two warp groups, each 64 x 128 by wgmma, 128 KiB of shared memory, 255
registers without a spill (64 sums and 64 sums of a chunk a thread); one program per SM. Six views of 729
tokens make 126 programs: one wave of an H100's 132 SMs. A 256 x 128 tile would read a quarter less but make
only 72 programs; with 4 warps the sums spill."""
SMALL = GramLaunch(tile=64, depth=64, chunk=1024, warps=4, stages=4)
"""For few or short views, and before Hopper, where the large tile's operands go through registers and spill.
64 KiB: three programs per SM, four times as many programs."""
GRAM_LAUNCHES = (
    LARGE,
    SMALL,
    GramLaunch(tile=128, depth=64, chunk=1024, warps=8, stages=3),
    GramLaunch(tile=128, depth=64, chunk=4096, warps=8, stages=4),
    GramLaunch(tile=128, depth=64, chunk=512, warps=8, stages=4),
    GramLaunch(tile=128, depth=32, chunk=1024, warps=8, stages=5),
    GramLaunch(tile=64, depth=128, chunk=1024, warps=4, stages=3),
    GramLaunch(tile=64, depth=64, chunk=1024, warps=8, stages=4),
)
"""Worth trying on a GPU; all compile for sm_90 without a spill."""
PICK_WARPS = (1, 2, 4, 8, 16)
"""Warps per view worth trying in `picks`."""


@dataclass(frozen=True)
class Launch:
    """Layout of all programs: what a benchmark varies. `plan` chooses one."""

    gram: GramLaunch = field(default=LARGE)
    pick_warps: int = 1


def plan(views: int, tokens: int, *, large: bool = True) -> Launch:
    """The layout for (views, tokens); ``large``: whether the GPU takes the large tile.

    The product: large tiles where they give at least half of 132 SMs something to do. Picks are a chain of
    dependent steps, so latency counts, not throughput. One step for 1024 places on sm_90, from the compiled
    code, in cycles, if a row comes from L2 after 300:

        1 warp: 181 instructions, 2 reductions in the warp, no barrier: some 690
        2 warps: 119 each (Triton 3.9: 111), 6 (4) barriers, 4 (2) trips to shared memory: some 850 (750)
        4 warps: 83 (71), as above: some 880 (700)     8 warps: 64 (48), as above: some 850 (680)

    One warp issues 160 of its instructions, comparisons and minima, at half rate. From 2048 places on that
    outweighs the barriers: four warps, one for each scheduler of an SM; at 8192 sixteen, for their registers.

    Expected of an H100 for six views of 729 tokens of 4096 channels, bfloat16, in microseconds, by reckoning
    and not by measurement: product 45 (226 MB from L2 at 5.5 TB/s take 41, the tensor cores 28 at 600
    TFLOP/s), distances 6, picks 30 for k = 72 and 145 for k = 364. Bounds from below: tensor cores 17,
    distances 5, an L2 latency per pick 11 and 56.
    """
    block = _power_of_two(tokens)
    pick_warps = 1 if block <= 1024 else 4 if block <= 4096 else 16
    large = large and views * _triangle(tokens, LARGE.tile) >= 66
    return Launch(LARGE if large else SMALL, pick_warps)


def measure_layout(block: int) -> tuple[int, int]:
    """Rows and warps of one program of `measure`, for rows of ``block`` places."""
    warps = max(4, block // (32 * ELEMENTS_PER_THREAD))
    return max(1, 32 * warps * ELEMENTS_PER_THREAD // block), warps


def row_length(tokens: int) -> int:
    """Numbers between the starts of two rows of the matrix of distances."""
    return -(-tokens // ROW_ALIGN) * ROW_ALIGN


def order(
    features: Tensor,
    counts: Tensor,
    start: Tensor | None,
    mask: Tensor | None,
    metric: str,
    most: int,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch all programs: picks and squared lengths of every view; the host waits for nothing.

    Args:
        features: ``(V, N, D)`` bfloat16, float16 or float32, N up to `MOST_TOKENS`.
        counts: int64 ``(V,)``, tokens to pick of each view, at most ``most``.
        start: int64 ``(V,)`` first picks, or None for the token whose nearest neighbour is farthest.
        mask: bool ``(V, N)``, True at candidates, or None.
        metric: "cosine", "l2" or "nearest", as in `prune2drive.functional.fps`.
        most: columns of the result.
        launch: layout; None for that of `plan`.

    Returns:
        picks int64 ``(V, most)``, rows with a smaller count ending in -1; squares float32 ``(V, N)``.

    Memory: one float32 matrix (V, N, N), rows padded to 128 bytes; from float32 features two more.
    """
    from . import programs

    views, tokens, _ = features.shape
    if launch is None:
        launch = plan(views, tokens, large=_takes_large(features.device))
    picked = features.new_empty((views, most), dtype=torch.int64)
    if views == 0:
        return picked, features.new_empty((views, tokens), dtype=torch.float32)
    block, ld = _power_of_two(tokens), row_length(tokens)
    with _on(features.device):
        # `picks` reads whole blocks, also from where the last row starts.
        memory = features.new_empty(views * tokens * ld + block, dtype=torch.float32)
        if programs.interpreted():
            memory.zero_()  # whose minimum may not ignore a NaN that happens to lie there
        distance = memory[: views * tokens * ld].view(views, tokens, ld)
        dots, squares = _products(features, distance, launch.gram)
        isolated = start is None
        nearest = torch.empty_like(squares) if isolated else squares
        flags = squares if mask is None else mask.contiguous().view(torch.uint8)
        # Never contract to fma: the distances are to be those of the plain version to the bit.
        shared: dict[str, Any] = {"MASKED": mask is not None, "BLOCK": block, "enable_fp_fusion": False}
        rows, warps = measure_layout(block)
        blocks = -(-tokens // rows)
        programs.measure[(views * blocks,)](
            dots, distance, squares, flags, nearest, tokens, dots.stride(1), ld, blocks,
            METRIC="l2" if metric == "l2" else "cosine", ISOLATED=isolated, ROWS=rows,
            num_warps=warps, num_stages=1, **shared,
        )  # fmt: skip
        # Left alone, the compiler saves registers of `picks` for programs that will never share the SM: it
        # asks for a row bit by bit, up to eight latencies per pick instead of one. An upper limit ends that.
        programs.picks[(views,)](
            distance, nearest if start is None else start.contiguous(), flags, counts.contiguous(), picked,
            tokens, ld, most, ISOLATED=isolated, CLOSEST=metric == "nearest",
            num_warps=launch.pick_warps, num_stages=1, maxnreg=min(255, 65536 // (32 * launch.pick_warps)),
            **shared,
        )  # fmt: skip
    return picked, squares


def _products(features: Tensor, distance: Tensor, gram: GramLaunch) -> tuple[Tensor, Tensor]:
    """Inner products (V, N, >= N), in ``distance`` where they can be, and squared lengths (V, N), float32."""
    from . import programs

    views, tokens, channels = features.shape
    if features.dtype not in HALF:
        # A float32 product on tensor cores takes three TF32 ones and still drops the last bits, and one on
        # ordinary cores is what the BLAS does best. With the plain version's own product the picks are the
        # plain version's, and half precision is what models hand over.
        dots = products.gram(features)
        return dots, dots.diagonal(dim1=1, dim2=2).contiguous()
    if features.stride(2) != 1:
        features = features.contiguous()
    squares = features.new_empty((views, tokens), dtype=torch.float32)
    tiles = _triangle(tokens, gram.tile)
    programs.gram[(views * tiles,)](
        features, distance, squares, tokens, channels, features.stride(0), features.stride(1),
        distance.stride(1), tiles,
        TILE=gram.tile, DEPTH=gram.depth, CHUNK=gram.chunk, EVEN=channels % gram.depth == 0,
        WIDEN=programs.interpreted(), num_warps=gram.warps, num_stages=gram.stages, enable_fp_fusion=False,
    )  # fmt: skip
    return distance, squares


def _triangle(tokens: int, tile: int) -> int:
    """Tiles of the lower triangle, diagonal included."""
    side = -(-tokens // tile)
    return side * (side + 1) // 2


def _power_of_two(tokens: int) -> int:
    """Places of a row held at once: at least one vector per thread of a warp."""
    return max(128, 1 << (tokens - 1).bit_length())


def _takes_large(device: torch.device) -> bool:
    # Compute capability 9 and 10 multiply from shared memory; others, 12 included, from registers.
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in (9, 10)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
