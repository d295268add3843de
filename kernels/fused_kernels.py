"""The Triton kernels behind `fused_ops` and `mixed_copy`, which say what each computes and what it moves.

Blocks are powers of two and sizes need not be: everything past a size is masked. Numbers of rows are in the
grid or not specialized, so that one compilation serves every batch.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def normalize(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    total: tl.tensor,
    num_rows: tl.tensor,
    inner: tl.tensor,
    outer_stride: tl.tensor,
    inner_stride: tl.tensor,
    residual_stride: tl.tensor,
    eps: tl.tensor,
    UNIT_OFFSET: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """ROWS rows a program. Row r of x is at (r // inner, r % inner); the results are dense."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < num_rows)[:, None] & (columns < SIZE)[None, :]
    start = (rows // inner).to(tl.int64) * outer_stride + (rows % inner).to(tl.int64) * inner_stride
    values = tl.load(x + start[:, None] + columns[None, :], mask=inside, other=0.0)
    dense = rows.to(tl.int64)[:, None] * SIZE + columns[None, :]
    if residual is not None:
        at = rows.to(tl.int64)[:, None] * residual_stride + columns[None, :]
        added = values.to(tl.float32) + tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        values = added.to(total.dtype.element_ty)
        tl.store(total + dense, values, mask=inside)
    values = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / SIZE + eps)
    values = values * scale[:, None]
    factors = tl.load(weight + columns, mask=columns < SIZE, other=0.0).to(tl.float32)[None, :]
    if UNIT_OFFSET:
        factors += 1.0
    else:  # rounded before the product, as the original does
        values = values.to(normed.dtype.element_ty).to(tl.float32)
    tl.store(normed + dense, (values * factors).to(normed.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def gate(
    gate_up: tl.tensor,
    out: tl.tensor,
    row_stride: tl.tensor,
    SIZE: tl.constexpr,
    GELU_TANH: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """One program for BLOCK columns of a row."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    start = gate_up + row * row_stride
    x = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    if GELU_TANH:  # (1 + tanh(z)) / 2 is sigmoid(2 z), here with z = sqrt(2 / pi) (x + 0.044715 x^3)
        share = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        share = tl.sigmoid(x)
    tl.store(out + row * SIZE + columns, (x * share * up).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def fill_turns(
    offsets: tl.tensor,
    inv_freq: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    num_rows: tl.tensor,
    scaling: tl.tensor,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """ROWS rows a program. Quarter turns are taken off in float64; an eighth of a turn, either way, is left.

    That is little enough for float32 and a few terms: the library's functions, which expect any angle, take
    100 KB of code here.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < num_rows)[:, None] & (columns < HALF)[None, :]
    offset = tl.load(offsets + rows, mask=rows < num_rows, other=0).to(tl.float64)
    frequency = tl.load(inv_freq + columns, mask=columns < HALF, other=0.0).to(tl.float64)
    quarters = offset[:, None] * (frequency * tl.full([], 0.6366197723675814, tl.float64))[None, :]  # 2 / pi
    whole = tl.floor(quarters + 0.5)
    x = ((quarters - whole) * tl.full([], 1.5707963267948966, tl.float64)).to(tl.float32)
    x2 = x * x
    even = 1 - x2 * (1 / 2 - x2 * (1 / 24 - x2 * (1 / 720 - x2 * (1 / 40320 - x2 * (1 / 3628800)))))
    odd = x * (1 - x2 * (1 / 6 - x2 * (1 / 120 - x2 * (1 / 5040 - x2 * (1 / 362880)))))
    quadrant = whole.to(tl.int64) & 3
    across = (quadrant & 1) == 1
    c = tl.where((quadrant == 1) | (quadrant == 2), -scaling, scaling) * tl.where(across, odd, even)
    s = tl.where(quadrant >= 2, -scaling, scaling) * tl.where(across, even, odd)
    at = rows.to(tl.int64)[:, None] * HALF + columns[None, :]
    tl.store(cos + at, c, mask=inside)
    tl.store(sin + at, s, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_heads(
    source: tl.tensor,
    source_stride: tl.tensor,
    target: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    heads: tl.tensor,
    NUM_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
) -> None:
    """One row's `heads`, rotated. The target is dense."""
    at_half = tl.arange(0, HALF_BLOCK)
    inside = (heads < NUM_HEADS)[:, None] & (at_half < HALF)[None, :]
    c = tl.load(cos + at_half, mask=at_half < HALF, other=0.0)[None, :]
    s = tl.load(sin + at_half, mask=at_half < HALF, other=0.0)[None, :]
    read = source + heads[:, None] * source_stride + at_half[None, :]
    first = tl.load(read, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(read + HALF, mask=inside, other=0.0).to(tl.float32)
    turned_first, turned_second = first * c - second * s, second * c + first * s
    dense = heads[:, None] * DIM + at_half[None, :]
    tl.store(target + dense, turned_first.to(target.dtype.element_ty), mask=inside)
    tl.store(target + dense + HALF, turned_second.to(target.dtype.element_ty), mask=inside)
    if REST_BLOCK:
        _copy_heads(source, source_stride, target, heads, NUM_HEADS, DIM, 2 * HALF, REST_BLOCK)


@triton.jit  # type: ignore[untyped-decorator]
def _copy_heads(
    source: tl.tensor,
    source_stride: tl.tensor,
    target: tl.tensor,
    heads: tl.tensor,
    NUM_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BEGIN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The channels from BEGIN on of one row's `heads`."""
    channels = BEGIN + tl.arange(0, BLOCK)
    inside = (heads < NUM_HEADS)[:, None] & (channels < DIM)[None, :]
    values = tl.load(source + heads[:, None] * source_stride + channels[None, :], mask=inside, other=0.0)
    dense = heads[:, None] * DIM + channels[None, :]
    tl.store(target + dense, values.to(target.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def rotate_and_write(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    k_pool: tl.tensor,
    v_pool: tl.tensor,
    slots: tl.tensor,
    out: tl.tensor,
    turned_tokens: tl.tensor,
    num_turned: tl.tensor,
    turned_cos: tl.tensor,
    turned_sin: tl.tensor,
    num_rows: tl.tensor,
    q_stride: tl.tensor,
    q_head_stride: tl.tensor,
    k_stride: tl.tensor,
    k_head_stride: tl.tensor,
    v_stride: tl.tensor,
    v_head_stride: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """One program for HEADS heads of a row: first the queries' programs, then the keys', then the values'.

    Programs past the rows take the turned ones, each every so-many-th.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    q_parts: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    kv_parts: tl.constexpr = (NUM_KV_HEADS + HEADS - 1) // HEADS
    lanes = tl.arange(0, HEADS)
    if row >= num_rows:
        if part < q_parts:
            for turned in range(row - num_rows, tl.load(num_turned), tl.num_programs(0) - num_rows):
                token = tl.load(turned_tokens + turned).to(tl.int64)
                _rotate_heads(
                    q + token * q_stride, q_head_stride, out + (num_rows + turned) * NUM_HEADS * DIM,
                    turned_cos + turned * HALF, turned_sin + turned * HALF, part * HEADS + lanes,
                    NUM_HEADS, DIM, HALF, HALF_BLOCK, REST_BLOCK,
                )  # fmt: skip
    elif part < q_parts:
        target = out + row * NUM_HEADS * DIM
        heads = part * HEADS + lanes
        _rotate_heads(
            q + row * q_stride, q_head_stride, target, cos + row * HALF, sin + row * HALF, heads,
            NUM_HEADS, DIM, HALF, HALF_BLOCK, REST_BLOCK,
        )  # fmt: skip
    else:
        slot = tl.load(slots + row).to(tl.int64)
        at = slot * NUM_KV_HEADS * DIM
        if slot >= 0:
            if part < q_parts + kv_parts:
                heads = (part - q_parts) * HEADS + lanes
                _rotate_heads(
                    k + row * k_stride, k_head_stride, k_pool + at, cos + row * HALF, sin + row * HALF, heads,
                    NUM_KV_HEADS, DIM, HALF, HALF_BLOCK, REST_BLOCK,
                )  # fmt: skip
            else:
                heads = (part - q_parts - kv_parts) * HEADS + lanes
                _copy_heads(v + row * v_stride, v_head_stride, v_pool + at, heads, NUM_KV_HEADS, DIM, 0, DIM_BLOCK)


@triton.jit  # type: ignore[untyped-decorator]
def copy_mixed(
    k_pool: tl.tensor,
    v_pool: tl.tensor,
    layers: tl.tensor,
    rows: tl.tensor,
    weights: tl.tensor,
    turns: tl.tensor,
    layer_stride: tl.tensor,
    UNITS_PER_PAGE: tl.constexpr,
    PARTS: tl.constexpr,
    ROW_INTS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    UNITS: tl.constexpr,
) -> None:
    """One program for UNITS heads of tokens that follow one another in a page of a layer, keys and values, of all
    parts. What a row says and how copies are turned: `mixed_copy.Packed`.

    All parts are loaded whether they are there or not, so that nothing waits for a branch; of none nothing is read.
    """
    blocks: tl.constexpr = (UNITS_PER_PAGE + UNITS - 1) // UNITS
    row = rows + (tl.program_id(0) // blocks) * ROW_INTS
    units = (tl.program_id(0) % blocks) * UNITS + tl.arange(0, UNITS)
    layer = tl.load(layers + tl.program_id(1)).to(tl.int64) * layer_stride
    target = layer + tl.load(row + PARTS).to(tl.int64) * (UNITS_PER_PAGE * DIM)
    there = units < tl.load(row + PARTS + 1) * NUM_KV_HEADS
    first_part = tl.load(row + PARTS + 2) * PARTS
    at_half, at_dim = tl.arange(0, HALF_BLOCK), tl.arange(0, DIM_BLOCK)
    to_half, to_dim = units[:, None] * DIM + at_half[None, :], units[:, None] * DIM + at_dim[None, :]
    first, second = tl.zeros([UNITS, HALF_BLOCK], tl.float32), tl.zeros([UNITS, HALF_BLOCK], tl.float32)
    values = tl.zeros([UNITS, DIM_BLOCK], tl.float32)
    for i in tl.static_range(PARTS):
        page = tl.load(row + i)
        source = layer + page.to(tl.int64) * (UNITS_PER_PAGE * DIM)
        in_half = (there & (page >= 0))[:, None] & (at_half < HALF)[None, :]
        in_dim = (there & (page >= 0))[:, None] & (at_dim < DIM)[None, :]
        turn = turns + (first_part + i) * (2 * HALF)
        c = tl.load(turn + at_half, mask=at_half < HALF, other=0.0)[None, :]
        s = tl.load(turn + HALF + at_half, mask=at_half < HALF, other=0.0)[None, :]
        one = tl.load(k_pool + source + to_half, mask=in_half, other=0.0).to(tl.float32)
        other = tl.load(k_pool + source + to_half + HALF, mask=in_half, other=0.0).to(tl.float32)
        weight = tl.load(weights + first_part + i)
        value = tl.load(v_pool + source + to_dim, mask=in_dim, other=0.0).to(tl.float32)
        first += one * c - other * s
        second += other * c + one * s
        values += weight * value
    in_half, in_dim = there[:, None] & (at_half < HALF)[None, :], there[:, None] & (at_dim < DIM)[None, :]
    tl.store(k_pool + target + to_half, first.to(k_pool.dtype.element_ty), mask=in_half)
    tl.store(k_pool + target + to_half + HALF, second.to(k_pool.dtype.element_ty), mask=in_half)
    tl.store(v_pool + target + to_dim, values.to(v_pool.dtype.element_ty), mask=in_dim)
    if REST_BLOCK:
        channels = 2 * HALF + tl.arange(0, REST_BLOCK)
        to_rest, below = units[:, None] * DIM + channels[None, :], (channels < DIM)[None, :]
        rest = tl.zeros([UNITS, REST_BLOCK], tl.float32)
        for i in tl.static_range(PARTS):
            page = tl.load(row + i)
            in_rest = (there & (page >= 0))[:, None] & below
            source = layer + page.to(tl.int64) * (UNITS_PER_PAGE * DIM)
            kept = tl.load(k_pool + source + to_rest, mask=in_rest, other=0.0).to(tl.float32)
            rest += tl.load(weights + first_part + i) * kept
        tl.store(k_pool + target + to_rest, rest.to(k_pool.dtype.element_ty), mask=there[:, None] & below)
