"""First passes of the Triton search; notation in `nearest_codeword_device`."""

import triton
import triton.language as tl

from vqcodec_kernels.nearest_codeword_device import (
    _BAD_TABLE,
    _INF,
    _NO_CODEWORD,
    _NOT_FINITE,
    _SLACK,
    _accumulation,
    _centred,
    _codebook_scale,
    _finite,
    _fits,
    _offset,
    _power,
    _row_scale,
    _table_of,
)


@triton.jit
def _dot_bound(norm, rest, C, EC, DP: tl.constexpr):
    """Bound on |s - exact score| - 2^-23 |s| of scan_dot_kernel; norm = |xh|, rest = |x'' - xh|."""
    rest = rest * _SLACK + (norm + rest) * 2.0**-23 + 2.0**-50
    bound = rest * (C + EC) + norm * (EC + C * (_accumulation(DP) + 2.0**-23))
    return bound * _SLACK + 2.0**-100


@triton.jit
def _store_bound(place, bound, inside, fits, finite, good):
    """Stores the bound of every row, +inf where it does not hold, or why there is none."""
    bound = tl.where(fits, bound, _INF)
    bound = tl.where(finite, bound, _NOT_FINITE)
    tl.store(place, tl.where(good, bound, _BAD_TABLE), mask=inside)


@triton.jit(
    do_not_specialize=[
        "x", "table", "G", "N", "T", "tiles_n", "tiles_k", "splits",
        "x_g", "x_n", "x_d", "table_g", "table_n",
    ]
)  # fmt: skip
def scan_dot_kernel(
    x,
    mean,
    state,
    high,
    h,
    table,
    half_rows,
    best_out,
    second_out,
    chosen_out,
    bound_out,
    scale_out,
    G,
    N,
    KP,
    T,
    tiles_n,
    tiles_k,
    splits,
    x_g,
    x_n,
    x_d,
    table_g,
    table_n,
    D: tl.constexpr,
    DP: tl.constexpr,
    CHUNK: tl.constexpr,
    PART: tl.constexpr,
    HELD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """First pass with fp16 products: best and second-best group of every row, and its bound.

    HELD: the fp16 image of a program's rows is made in registers. Otherwise it goes through half_rows
    (G N, DP); it then stays on chip if D fits one CHUNK and is read chunk by chunk if not.
    The minimum over a group runs along an axis that one thread holds whole, so a pair costs little
    more than one FMA and one minimum.
    """
    pid = tl.program_id(0)
    split = pid % splits
    tile_n = (pid // splits) % tiles_n
    g = pid // splits // tiles_n
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < N
    row = _offset(g, N) + n
    x_row = x + _offset(g, x_g) + _offset(n, x_n)
    mean_g = mean + _offset(g, DP)
    scale = _power(_codebook_scale(state, g))
    offset_d = tl.arange(0, CHUNK)
    offset_p = tl.arange(0, PART)
    finite = tl.full([BLOCK_N], 1, tl.int32)
    amax = tl.zeros([BLOCK_N], tl.float32)
    for d0 in range(0, DP, PART):
        value, y = _centred(x_row, mean_g, d0 + offset_p, inside, x_d, scale, D)
        finite = tl.minimum(finite, tl.min(_finite(value).to(tl.int32), axis=1))
        amax = tl.maximum(amax, tl.max(tl.where(y == y, tl.abs(y), _INF), axis=1))
    r = _power(_row_scale(amax))
    if HELD:
        value, y = _centred(x_row, mean_g, offset_d, inside, x_d, scale, D)
        y = tl.where(_fits(amax)[:, None], y * r[:, None], 0.0)
        xh = y.to(tl.float16)
        rest = y - xh.to(tl.float32)
        norm = tl.sum(xh.to(tl.float32) * xh.to(tl.float32), axis=1)
        rest = tl.sum(rest * rest, axis=1)
    else:
        norm = tl.zeros([BLOCK_N], tl.float32)
        rest = tl.zeros([BLOCK_N], tl.float32)
        for d0 in range(0, DP, PART):
            value, y = _centred(x_row, mean_g, d0 + offset_p, inside, x_d, scale, D)
            y = tl.where(_fits(amax)[:, None], y * r[:, None], 0.0)
            part = y.to(tl.float16)
            left = y - part.to(tl.float32)
            norm += tl.sum(part.to(tl.float32) * part.to(tl.float32), axis=1)
            rest += tl.sum(left * left, axis=1)
            place = row[:, None] * DP + (d0 + offset_p)[None, :]
            # Every split writes the same values.
            tl.store(half_rows + place, part, mask=inside[:, None])
        # The rows just written are read back by other threads of this program.
        tl.debug_barrier()
        if DP == CHUNK:
            xh = tl.load(
                half_rows + row[:, None] * DP + offset_d[None, :], mask=inside[:, None], other=0.0
            )
    t, good = _table_of(table, g, n, inside, T, table_g, table_n, HAS_TABLE)
    # Everything that the loop does not need is stored before it, to free the registers.
    if EXACT:
        C = tl.load(state + g * 4 + 1).to(tl.float32, bitcast=True)
        EC = tl.load(state + g * 4 + 2).to(tl.float32, bitcast=True)
        bound = _dot_bound(tl.sqrt(norm), tl.sqrt(rest), C, EC, DP)
    else:
        bound = tl.zeros([BLOCK_N], tl.float32)
    _store_bound(bound_out + row, bound, inside, _fits(amax), finite > 0, good)
    tl.store(scale_out + row, r, mask=inside)

    # Offsets within a group's codebook stay below 2^31: K <= 2^20 and D <= 1024.
    offset_k = tl.arange(0, BLOCK_K)
    codebook_g = high + _offset(g, KP) * DP
    offset_c = offset_k[None, :] * DP + offset_d[:, None]
    h_g = h + _offset(g, KP) * T
    best = tl.full([BLOCK_N, WIDTH], _INF, tl.float32)
    second = tl.full([BLOCK_N, WIDTH], _INF, tl.float32)
    where = tl.zeros([BLOCK_N, WIDTH], tl.int32)
    first_tile = tiles_k * split // splits
    last_tile = tiles_k * (split + 1) // splits
    for tile in tl.range(first_tile, last_tile, num_stages=STAGES):
        k = tile * BLOCK_K + offset_k
        if DP == CHUNK:
            c = tl.load(codebook_g + tile * (BLOCK_K * DP) + offset_c)
            s = tl.dot(xh, c)
        else:
            s = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
            for d0 in tl.range(0, DP, CHUNK, num_stages=STAGES):
                d = d0 + offset_d
                part = tl.load(
                    half_rows + row[:, None] * DP + d[None, :], mask=inside[:, None], other=0.0
                )
                c = tl.load(codebook_g + tile * (BLOCK_K * DP) + d0 + offset_c)
                s = tl.dot(part, c, s)
        if HAS_TABLE:
            h_k = tl.load(h_g + _offset(t, KP)[:, None] + k[None, :])
        else:
            h_k = tl.load(h_g + tile * BLOCK_K + offset_k)[None, :]
        shape: tl.constexpr = [BLOCK_N, BLOCK_K]
        s = tl.fma(tl.broadcast_to(h_k, shape), tl.broadcast_to(r[:, None], shape), s)
        group = tl.min(tl.reshape(s, [BLOCK_N, BLOCK_K // WIDTH, WIDTH]), axis=1)
        if EXACT:
            second = tl.minimum(second, tl.maximum(best, group))
        where = tl.where(group < best, tile, where)
        best = tl.minimum(best, group)
    where = where * WIDTH + tl.arange(0, WIDTH)[None, :]
    top = tl.min(best, axis=1)
    number = tl.min(tl.where(best == top[:, None], where, _NO_CODEWORD), axis=1)
    # In the winner's column the runner-up is the second, in the others it is their best.
    runner = tl.min(tl.where(where == number[:, None], second, best), axis=1)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    place = (_offset(split, G) + g) * N + n
    if EXACT:
        tl.store(second_out + place, runner, mask=n < N)
    tl.store(best_out + place, top, mask=n < N)
    tl.store(chosen_out + place, number, mask=n < N)


@triton.jit(
    do_not_specialize=[
        "x", "table", "G", "N", "T", "tiles_n", "tiles_k", "splits",
        "x_g", "x_n", "x_d", "table_g", "table_n",
    ]
)  # fmt: skip
def scan_fma_kernel(
    x,
    mean,
    state,
    rounded,
    h,
    table,
    best_out,
    second_out,
    chosen_out,
    bound_out,
    G,
    N,
    KP,
    T,
    tiles_n,
    tiles_k,
    splits,
    x_g,
    x_n,
    x_d,
    table_g,
    table_n,
    D: tl.constexpr,
    DP: tl.constexpr,
    TP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """First pass in float32 FMAs for small D: best and second-best codeword of every row, its bound.

    Tiles are (codeword, row): a thread holds whole columns, i.e. all the codewords of a tile for its
    rows, so neither the minimum nor the bookkeeping crosses threads. With tables h is (G, KP, TP),
    table innermost: at one codeword the rows of a warp read one or a few cache lines.
    """
    pid = tl.program_id(0)
    split = pid % splits
    tile_n = (pid // splits) % tiles_n
    g = pid // splits // tiles_n
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < N
    row = _offset(g, N) + n
    x_row = x + _offset(g, x_g) + _offset(n, x_n)
    scale = _power(_codebook_scale(state, g))
    finite = inside
    square = tl.zeros([BLOCK_N], tl.float32)
    centred = ()
    for d in tl.static_range(D):
        value = tl.load(x_row + _offset(d, x_d), mask=inside, other=0.0).to(tl.float32)
        finite = finite & _finite(value)
        y = (value - tl.load(mean + _offset(g, DP) + d)) * scale
        square += y * y
        centred = centred + (y,)  # type: ignore[assignment]
    t, good = _table_of(table, g, n, inside, T, table_g, table_n, HAS_TABLE)
    C = tl.load(state + g * 4 + 1).to(tl.float32, bitcast=True)
    # D + 1 roundings of at most |h''| + |x''| C, two more of x'' and c''; |h''| <= |s| + |x''| C.
    bound = tl.sqrt(square) * C * ((2 * D + 6) * 2.0**-24) * _SLACK * _SLACK + 2.0**-100
    _store_bound(bound_out + row, bound, inside, square < 1.0e38, finite, good)

    codebook_g = rounded + _offset(g, KP) * DP
    h_g = h + _offset(g, KP) * TP
    best = tl.full([BLOCK_N], _INF, tl.float32)
    second = tl.full([BLOCK_N], _INF, tl.float32)
    where = tl.zeros([BLOCK_N], tl.int32)
    first_tile = tiles_k * split // splits
    last_tile = tiles_k * (split + 1) // splits
    offset_k = tl.arange(0, BLOCK_K)
    h_row = h_g + t
    for tile in tl.range(first_tile, last_tile):
        k = tile * BLOCK_K + offset_k
        if HAS_TABLE:
            # One-dimensional, or some versions of Triton lay the whole loop out along codewords.
            place = tl.reshape(h_row[None, :] + k[:, None] * TP, [BLOCK_K * BLOCK_N])
            s = tl.reshape(tl.load(place), [BLOCK_K, BLOCK_N])
        else:
            s = tl.broadcast_to(tl.load(h_g + k)[:, None], [BLOCK_K, BLOCK_N])
        for d in tl.static_range(D):
            c = tl.load(codebook_g + d * KP + k)
            s = tl.fma(
                tl.broadcast_to(c[:, None], [BLOCK_K, BLOCK_N]),
                tl.broadcast_to(centred[d][None, :], [BLOCK_K, BLOCK_N]),
                s,
            )
        group = tl.min(s, axis=0)
        if EXACT:
            second = tl.minimum(second, tl.maximum(best, group))
        where = tl.where(group < best, tile, where)
        best = tl.minimum(best, group)
    # The same operations again for the best tile alone: which codeword it was, and its runner-up.
    number = tl.zeros([BLOCK_N], tl.int32)
    runner = tl.full([BLOCK_N], _INF, tl.float32)
    least = tl.full([BLOCK_N], _INF, tl.float32)
    for a in range(0, BLOCK_K):
        k = where * BLOCK_K + a
        s = tl.load(h_row + k * TP)
        for d in tl.static_range(D):
            s = tl.fma(tl.load(codebook_g + d * KP + k), centred[d], s)
        runner = tl.minimum(runner, tl.maximum(least, s))
        number = tl.where(s < least, k, number)
        least = tl.minimum(least, s)
    place = (_offset(split, G) + g) * N + n
    if EXACT:
        tl.store(second_out + place, tl.minimum(second, runner), mask=inside)
    tl.store(best_out + place, best, mask=inside)
    tl.store(chosen_out + place, number, mask=inside)
