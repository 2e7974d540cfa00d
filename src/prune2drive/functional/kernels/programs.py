"""The GPU programs of farthest point sampling, in Triton: products, distances, picks.

Only importable where Triton is; `launch` imports this file when it is first needed.
"""

# Triton reads the signatures itself; types there would only confuse it.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from ..distances import SNAP

_SNAP = tl.constexpr(SNAP)
_INF = tl.constexpr(float("inf"))
_FIRST_BEYOND = tl.constexpr(1 << 30)


@triton.jit(do_not_specialize=["n", "channels", "tiles"])
def gram(
    features,
    out,
    squares,
    n,
    channels,
    view_stride,
    token_stride,
    ld,
    tiles,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Inner products of all rows of a view, and squared lengths; one program per tile of the lower triangle.

    features (V, N, D) half precision, channels adjacent; out (V, N, ld) float32, ld >= N; squares (V, N).
    ``tiles`` of the triangle per view; EVEN: DEPTH divides D; WIDEN: multiply as float32 (in the interpreter,
    which would multiply the bits of bfloat16).
    """
    pid = tl.program_id(0)
    view = (pid // tiles).to(tl.int64)
    tile = pid % tiles
    # tile = row (row + 1) / 2 + column, column <= row. The root may be off by one in its last bit.
    row = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > tile, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= tile, row + 1, row)
    column = tile - row * (row + 1) // 2

    left = row * TILE + tl.arange(0, TILE)
    right = column * TILE + tl.arange(0, TILE)
    view_features = features + view * view_stride
    view_out = out + view * n * ld
    # Both triangles are written from the lower one, so the matrix is symmetric to the bit. Masks along a row
    # end at ld, not at n: then a thread stores four numbers at once. What lies between is never looked at.
    place = view_out + left[:, None] * ld + right[None, :]
    inside = (left < n)[:, None] & (right < ld)[None, :]
    if row == column:
        # One operand, read once: 6 of the 21 tiles of 729 tokens.
        dots = _tile(
            view_features, left, left, n, channels, token_stride, TILE, DEPTH, CHUNK, EVEN, WIDEN, True
        )
        here = tl.arange(0, TILE)
        dots = tl.where(here[:, None] >= here[None, :], dots, tl.trans(dots))
        tl.store(place, dots, mask=inside)
        lengths = tl.sum(tl.where(here[:, None] == here[None, :], dots, 0.0), 1)
        tl.store(squares + view * n + left, lengths, mask=left < n)
    else:
        dots = _tile(
            view_features, left, right, n, channels, token_stride, TILE, DEPTH, CHUNK, EVEN, WIDEN, False
        )
        tl.store(place, dots, mask=inside)
        mirror = view_out + right[:, None] * ld + left[None, :]
        tl.store(mirror, tl.trans(dots), mask=(right < n)[:, None] & (left < ld)[None, :])


@triton.jit
def _tile(
    features,
    left,
    right,
    n,
    channels,
    token_stride,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,
    WIDEN: tl.constexpr,
    SAME: tl.constexpr,
):
    """(TILE, TILE) inner products of the rows ``left`` and ``right``."""
    inner = tl.arange(0, DEPTH)
    left_at = features + left.to(tl.int64)[:, None] * token_stride + inner[None, :]
    right_at = features + right.to(tl.int64)[None, :] * token_stride + inner[:, None]
    total = tl.zeros((TILE, TILE), tl.float32)
    # Tensor cores cut off instead of rounding when they add to the sum, once per 16 channels, which biases
    # long sums. So the sum of every CHUNK channels starts from zero and is added in ordinary float32. By an
    # emulation for 4096 channels (mean up to three standard deviations) cosines are off by at most 4e-7 with
    # chunks of 1024, below `SNAP`; by 1.1e-6 in one go; by 1.6e-5 in one chain of float32 multiply-adds.
    for low in range(0, channels, CHUNK):
        part = tl.zeros((TILE, TILE), tl.float32)
        for at in range(low, tl.minimum(low + CHUNK, channels), DEPTH):
            left_there = (left < n)[:, None]
            right_there = (right < n)[None, :]
            if not EVEN:
                left_there = left_there & (inner < channels - at)[None, :]
                right_there = right_there & (inner < channels - at)[:, None]
            rows = tl.load(left_at + at, mask=left_there, other=0.0)
            if SAME:
                columns = tl.trans(rows)
            else:
                columns = tl.load(right_at + at, mask=right_there, other=0.0)
            if WIDEN:
                part = tl.dot(rows.to(tl.float32), columns.to(tl.float32), part)
            else:
                part = tl.dot(rows, columns, part)
        total += part
    return total


@triton.jit(do_not_specialize=["n", "blocks"])
def measure(
    dots,
    distance,
    squares,
    mask,
    nearest,
    n,
    dots_ld,
    ld,
    blocks,
    METRIC: tl.constexpr,
    ISOLATED: tl.constexpr,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Turn inner products into distances; a token's distance to itself becomes -inf.

    dots (V, N, dots_ld) and distance (V, N, ld) float32, which may be the same memory; squares (V, N). METRIC
    "l2" gives squares of distances. ISOLATED also writes every token's distance to the nearest other
    candidate to nearest (V, N). ``blocks`` of ROWS rows a view. The arithmetic, step by step, is that of
    `distances._distance_`; launch without contraction to fma.
    """
    pid = tl.program_id(0)
    view = (pid // blocks).to(tl.int64)
    row = (pid % blocks) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, BLOCK)
    # Up to ld, not n: columns beyond the tokens are never looked at, and whole vectors move.
    inside = (row < n)[:, None] & (at < ld)[None, :]
    from_dots = dots + view * n * dots_ld + row[:, None] * dots_ld + at[None, :]
    product = tl.load(from_dots, mask=(row < n)[:, None] & (at < dots_ld)[None, :], other=0.0)
    left = tl.load(squares + view * n + row, mask=row < n, other=0.0)[:, None]
    right = tl.load(squares + view * n + at, mask=at < n, other=0.0)[None, :]
    if METRIC == "l2":
        scale = left + right
        far = product * -2.0 + scale
        far = tl.where(far < scale * _SNAP, 0.0, far)
    else:
        unit_left = tl.where(left > 0, tl.rsqrt(left), 0.0)
        unit_right = tl.where(right > 0, tl.rsqrt(right), 0.0)
        far = 1.0 - product * (unit_left * unit_right)
        far = tl.where(far <= _SNAP, 0.0, far)
    # A minimum that ignores NaN, as the plain version takes it, is one that sees infinity there.
    far = tl.where(far != far, _INF, far)
    itself = row[:, None] == at[None, :]
    to_distance = distance + view * n * ld + row[:, None] * ld + at[None, :]
    tl.store(to_distance, tl.where(itself, -_INF, far), mask=inside)
    if ISOLATED:
        other = (row[:, None] != at[None, :]) & (at < n)[None, :]
        if MASKED:
            other = other & (tl.load(mask + view * n + at, mask=at < n, other=0) != 0)[None, :]
        closest = tl.min(tl.where(other, far, _INF), 1)
        tl.store(nearest + view * n + row, closest, mask=row < n)


@triton.jit(do_not_specialize=["n", "most"])
def picks(
    distance,
    first,
    mask,
    counts,
    order,
    n,
    ld,
    most,
    ISOLATED: tl.constexpr,
    MASKED: tl.constexpr,
    CLOSEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All picks of a view by one program: order (V, most) int64, rows with a smaller count end in -1.

    distance (V, N, ld) as `measure` leaves it, and BLOCK more numbers behind it; counts (V,) int64; first:
    nearest (V, N) float32 if ISOLATED, else the first picks (V,) int64. CLOSEST: the smallest distance wins,
    not the largest.
    """
    view = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    there = at < n
    if MASKED:
        there = there & (tl.load(mask + view * n + at, mask=there, other=0) != 0)
    count = tl.minimum(tl.load(counts + view), most).to(tl.int32)
    rows = distance + view * n * ld
    slots = order + view * most
    if count < most:
        for low in range(0, most, BLOCK):
            slot = low + at
            tl.store(slots + slot, tl.full((BLOCK,), -1, tl.int64), mask=(slot >= count) & (slot < most))

    if ISOLATED:
        alone = tl.load(first + view * n + at, mask=there, other=-_INF)
        pick = _best(alone, at, False)
    else:
        pick = tl.load(first + view).to(tl.int32)
        pick = tl.minimum(tl.maximum(pick, 0), n - 1)  # a bad one is complained of later; reads stay inside
    # The distance to the picked tokens, in registers throughout. What is picked, masked or beyond the tokens
    # holds -inf, which the minimum keeps.
    near = tl.where(there, _INF, -_INF)
    tl.store(slots, pick.to(tl.int64), mask=count > 0)
    for step in range(1, count):
        # Not masked: beyond the tokens anything may be read, -inf stays. With a mask per vector the compiler
        # runs out of predicates and waits for one part of the row before it asks for the next.
        row = tl.load(rows + pick * ld + at)
        near = tl.minimum(near, row)
        pick = _best(near, at, CLOSEST)
        tl.store(slots + step, pick.to(tl.int64))


@triton.jit
def _best(near, at, CLOSEST: tl.constexpr):
    """The lowest place of the largest (CLOSEST: smallest) of distances; -inf loses either way.

    The bits of floats that are not negative order as integers, and integer reductions over a warp are one
    instruction from sm_80 on. Those of -inf are negative, or read without sign above all others.
    """
    if CLOSEST:
        bits = near.to(tl.uint32, bitcast=True)
        best = tl.min(bits, 0)
    else:
        bits = near.to(tl.int32, bitcast=True)
        best = tl.max(bits, 0)
    return tl.min(tl.where(bits == best, at, _FIRST_BEYOND), 0)


def _made_for_gpu() -> list[bool]:
    """Of a program of ours and one of Triton's library: each looked for the interpreter when it was made."""
    return [isinstance(each, triton.JITFunction) for each in (picks, tl.max)]


def compiled() -> bool:
    """Whether everything here is compiled for the GPU."""
    return all(_made_for_gpu())


def interpreted() -> bool:
    """Whether everything here runs in Triton's interpreter."""
    return not any(_made_for_gpu())
