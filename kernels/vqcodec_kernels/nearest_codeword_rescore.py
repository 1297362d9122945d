"""Margin test and second search of the Triton search; notation in `nearest_codeword_device`."""

import triton
import triton.language as tl

from vqcodec_kernels.nearest_codeword_device import (
    _BAD_TABLE,
    _INF,
    _LOW,
    _MAX,
    _NAN,
    _NO_CODEWORD,
    _SLACK,
    _TAU,
    _accumulation,
    _centred,
    _codebook_scale,
    _fits,
    _offset,
    _power,
    _row_scale,
    _table_of,
)


@triton.jit
def _halves(x_row, mean_g, d, inside, x_d, scale, r, amax, D: tl.constexpr):
    """x'' for the dimensions d as two fp16 tiles, high + low 2^-11."""
    value, y = _centred(x_row, mean_g, d, inside, x_d, scale, D)
    y = tl.where(_fits(amax)[:, None], y * r[:, None], 0.0)
    first = y.to(tl.float16)
    return first, ((y - first.to(tl.float32)) * 2048.0).to(tl.float16)


@triton.jit
def _bias_at(bias, g, t, k, mask, bias_g, bias_t, bias_k, HAS_BIAS: tl.constexpr):
    """Bias of codeword k in table t (one shape) as float32; 0 without a bias."""
    if HAS_BIAS:
        offset = _offset(g, bias_g) + t * bias_t + _offset(k, bias_k)
        return tl.load(bias + offset, mask=mask, other=0.0).to(tl.float32)
    else:
        return tl.zeros_like(k).to(tl.float32)


@triton.jit
def _direct(
    x_row, codebook_g, k, mask, x_d, codebook_k, codebook_d,
    D: tl.constexpr, DP: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """|x - c|^2 in float64 of ROWS rows and one codeword each, k (ROWS)."""
    total = tl.zeros([ROWS, CHUNK], tl.float64)
    for d0 in range(0, DP, CHUNK):
        d = d0 + tl.arange(0, CHUNK)
        used = mask[:, None] & (d < D)[None, :]
        x = tl.load(x_row[:, None] + _offset(d, x_d)[None, :], mask=used, other=0.0)
        c = tl.load(
            codebook_g + _offset(k, codebook_k)[:, None] + _offset(d, codebook_d)[None, :],
            mask=used,
            other=0.0,
        )
        difference = x.to(tl.float64) - c.to(tl.float64)
        total += difference * difference
    return tl.sum(total, axis=1)


@triton.jit
def _lower(s, bound, TAU: tl.constexpr):
    """Lower bound of the exact score of a computed score s; a score of +inf may be an overflow."""
    s = tl.minimum(s, _MAX)
    return s - tl.minimum(tl.abs(s), _MAX) * TAU - bound


@triton.jit
def _upper(s, bound, TAU: tl.constexpr):
    """Upper bound of the exact score of a computed score s; a score of -inf may be an overflow."""
    s = tl.maximum(s, -_MAX)
    return s + tl.minimum(tl.abs(s), _MAX) * TAU + bound


@triton.jit(
    do_not_specialize=[
        "x", "codebook", "bias", "table", "G", "N", "T", "tiles_n", "splits",
        "x_g", "x_n", "x_d", "codebook_g", "codebook_k", "codebook_d",
        "bias_g", "bias_t", "bias_k", "table_g", "table_n",
    ]
)  # fmt: skip
def resolve_kernel(
    x,
    codebook,
    bias,
    table,
    mean,
    state,
    high,
    h,
    best_in,
    second_in,
    chosen_in,
    bound_in,
    scale_in,
    index_out,
    distance_out,
    counts,
    flagged,
    G,
    N,
    KP,
    T,
    tiles_n,
    splits,
    x_g,
    x_n,
    x_d,
    codebook_g,
    codebook_k,
    codebook_d,
    bias_g,
    bias_t,
    bias_k,
    table_g,
    table_n,
    D: tl.constexpr,
    DP: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    TAU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    EXACT: tl.constexpr,
    DISTANCE: tl.constexpr,
):
    """Joins the splits, finds the winner in its group, tests the margin, writes index and distance.

    Rows whose margin does not exclude every other codeword go to flagged (G, N), counts (G) in all;
    bound_in of such a row becomes an upper bound of its least exact score. GROUP = 1: the scan found
    the codeword itself.
    """
    g = tl.program_id(0) // tiles_n
    n = (tl.program_id(0) % tiles_n) * ROWS + tl.arange(0, ROWS)
    inside = n < N
    row = _offset(g, N) + n
    x_row = x + _offset(g, x_g) + _offset(n, x_n)
    t, good = _table_of(table, g, n, inside, T, table_g, table_n, HAS_TABLE)
    best = tl.load(best_in + row, mask=inside, other=0.0)
    second = tl.full([ROWS], _INF, tl.float32)
    if EXACT:
        second = tl.load(second_in + row, mask=inside, other=_INF)
    index = tl.load(chosen_in + row, mask=inside, other=0)
    for split in range(1, splits):
        place = (_offset(split, G) + g) * N + n
        best2 = tl.load(best_in + place, mask=inside, other=_INF)
        index2 = tl.load(chosen_in + place, mask=inside, other=0)
        if EXACT:
            second2 = tl.load(second_in + place, mask=inside, other=_INF)
            second = tl.minimum(tl.minimum(second, second2), tl.maximum(best, best2))
        index = tl.where(best2 < best, index2, index)
        best = tl.minimum(best, best2)
    bound = tl.load(bound_in + row, mask=inside, other=0.0)
    plain = inside & (bound >= 0)

    if GROUP > 1:
        # The scores of the best group once more, one by one, by the fp16 operands of the scan.
        start = index // WIDTH * (WIDTH * GROUP) + index % WIDTH
        k = start[:, None] + (tl.arange(0, GROUP) * WIDTH)[None, :]
        scale = _power(_codebook_scale(state, g))
        r = tl.load(scale_in + row, mask=inside, other=1.0)
        high_g = high + _offset(g, KP) * DP
        mean_g = mean + _offset(g, DP)
        products = tl.zeros([ROWS, GROUP, CHUNK], tl.float32)
        for d0 in range(0, DP, CHUNK):
            d = d0 + tl.arange(0, CHUNK)
            value, y = _centred(x_row, mean_g, d, inside, x_d, scale, D)
            y = (y * r[:, None]).to(tl.float16).to(tl.float32)
            c = tl.load(high_g + (k * DP)[:, :, None] + d[None, None, :]).to(tl.float32)
            products += y[:, None, :] * c
        h_k = tl.load(h + _offset(g, KP) * T + _offset(t, KP)[:, None] + k)
        s = h_k * r[:, None] + tl.sum(products, axis=2)
        # A row that does not fit fp16 has no finite products; it is flagged by its bound.
        s = tl.where(s == s, s, _INF)
        best = tl.min(s, axis=1)
        index = tl.min(tl.where(s == best[:, None], k, _NO_CODEWORD), axis=1)
        second = tl.minimum(second, tl.min(tl.where(k == index[:, None], _INF, s), axis=1))

    if EXACT:
        upper = _upper(best, bound, TAU)
        safe = (_lower(second, bound, TAU) > upper) & (tl.abs(best) < 1.0e38)
        doubtful = plain & ~safe
        number = doubtful.to(tl.int32)
        total = tl.sum(number, axis=0)
        if total > 0:
            first_slot = tl.atomic_add(counts + g, total)
            slot = first_slot + tl.cumsum(number, axis=0) - number
            tl.store(flagged + _offset(g, N) + slot, n, mask=doubtful)
            tl.store(bound_in + row, tl.where(upper == upper, upper, _INF), mask=doubtful)
        plain = plain & safe
    index = tl.where(plain, index, 0)
    tl.store(index_out + row, tl.where(bound == _BAD_TABLE, -1, index).to(tl.int64), mask=inside)
    if DISTANCE:
        book = codebook + _offset(g, codebook_g)
        score = _direct(x_row, book, index, plain, x_d, codebook_k, codebook_d, D, DP, CHUNK, ROWS)
        b = _bias_at(bias, g, t, index, plain, bias_g, bias_t, bias_k, HAS_BIAS)
        score = (score + b.to(tl.float64)).to(tl.float32)
        score = tl.where(plain & (score == score), score, _INF)
        tl.store(distance_out + row, tl.where(bound == _BAD_TABLE, _NAN, score), mask=inside)


@triton.jit(
    do_not_specialize=[
        "x", "codebook", "bias", "table", "G", "N", "K", "T", "programs", "splits",
        "x_g", "x_n", "x_d", "codebook_g", "codebook_k", "codebook_d",
        "bias_g", "bias_t", "bias_k", "table_g", "table_n",
    ]
)  # fmt: skip
def rescan_kernel(
    x,
    codebook,
    bias,
    table,
    mean,
    state,
    high,
    low,
    h,
    limit,
    counts,
    flagged,
    part_distance,
    part_index,
    index_out,
    distance_out,
    G,
    N,
    K,
    KP,
    T,
    programs,
    splits,
    x_g,
    x_n,
    x_d,
    codebook_g,
    codebook_k,
    codebook_d,
    bias_g,
    bias_t,
    bias_k,
    table_g,
    table_n,
    D: tl.constexpr,
    DP: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    DISTANCE: tl.constexpr,
    SCREEN: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Searches the whole codebook for the flagged rows; a fixed grid, `programs` for each group.

    SCREEN: scores of three fp16 products (22-bit operands) leave the few codewords whose lower
    bound does not exceed the upper bound of the least score; these are evaluated in float64, one for
    each row at a time, codewords ascending. Otherwise (small D) all are evaluated in float64.
    Bad rows (a bound that is not finite) pass every codeword on, so no case is special.
    """
    g = tl.program_id(0) // programs
    count = tl.load(counts + g)
    items = (count + ROWS - 1) // ROWS * splits
    book = codebook + _offset(g, codebook_g)
    offset_k = tl.arange(0, BLOCK_K)
    offset_d = tl.arange(0, CHUNK)
    tiles_k = (K + BLOCK_K - 1) // BLOCK_K
    if SCREEN:
        mean_g = mean + _offset(g, DP)
        scale = _power(_codebook_scale(state, g))
        C = tl.load(state + g * 4 + 1).to(tl.float32, bitcast=True)
        EC = tl.load(state + g * 4 + 2).to(tl.float32, bitcast=True)
        EC2 = tl.load(state + g * 4 + 3).to(tl.float32, bitcast=True)
        high_g = high + _offset(g, KP) * DP
        low_g = low + _offset(g, KP) * DP
        h_g = h + _offset(g, KP) * T
    for item in range(tl.program_id(0) % programs, items, programs):
        slot = item // splits * ROWS + tl.arange(0, ROWS)
        split = item % splits
        listed = slot < count
        n = tl.load(flagged + _offset(g, N) + slot, mask=listed, other=0)
        row = _offset(g, N) + n
        x_row = x + _offset(g, x_g) + _offset(n, x_n)
        t, good = _table_of(table, g, n, listed, T, table_g, table_n, HAS_TABLE)
        least = tl.full([ROWS], _INF, tl.float64)
        index = tl.zeros([ROWS], tl.int32)
        if SCREEN:
            amax = tl.zeros([ROWS], tl.float32)
            for d0 in range(0, DP, CHUNK):
                value, y = _centred(x_row, mean_g, d0 + offset_d, listed, x_d, scale, D)
                amax = tl.maximum(amax, tl.max(tl.where(y == y, tl.abs(y), _INF), axis=1))
            r = _power(_row_scale(amax))
            norm = tl.zeros([ROWS], tl.float32)
            rest = tl.zeros([ROWS], tl.float32)
            rest2 = tl.zeros([ROWS], tl.float32)
            for d0 in range(0, DP, CHUNK):
                value, y = _centred(x_row, mean_g, d0 + offset_d, listed, x_d, scale, D)
                y = tl.where(_fits(amax)[:, None], y * r[:, None], 0.0)
                first = y.to(tl.float16).to(tl.float32)
                left = y - first
                left2 = left - (left * 2048.0).to(tl.float16).to(tl.float32) * _LOW
                norm += tl.sum(first * first, axis=1)
                rest += tl.sum(left * left, axis=1)
                rest2 += tl.sum(left2 * left2, axis=1)
            norm = tl.sqrt(norm) * _SLACK
            rest = tl.sqrt(rest) * _SLACK + 2.0**-50
            rest2 = tl.sqrt(rest2) * _SLACK + 2.0**-23 * (norm + rest) + 2.0**-50
            # Dropped: low times low, and what low leaves; then the sums, the second at twice the length.
            bound = (rest + rest2) * (EC + EC2) + rest2 * (C + EC) + (norm + rest) * EC2
            bound += norm * C * (_accumulation(DP) + 2.0**-22)
            bound += (norm * (EC + EC2) + (rest + rest2) * C) * (2 * _accumulation(DP))
            bound = tl.where(_fits(amax), bound * _SLACK + 2.0**-100, _INF)
            limit_row = tl.load(limit + row, mask=listed, other=-_INF)
            if DP == CHUNK:
                first, left = _halves(x_row, mean_g, offset_d, listed, x_d, scale, r, amax, D)
        for tile in range(tiles_k * split // splits, tiles_k * (split + 1) // splits):
            k = tile * BLOCK_K + offset_k
            if SCREEN:
                major = tl.zeros([ROWS, BLOCK_K], tl.float32)
                minor = tl.zeros([ROWS, BLOCK_K], tl.float32)
                for d0 in range(0, DP, CHUNK):
                    d = d0 + offset_d
                    if DP > CHUNK:
                        first, left = _halves(x_row, mean_g, d, listed, x_d, scale, r, amax, D)
                    place = k[None, :] * DP + d[:, None]
                    c_high = tl.load(high_g + place)
                    c_low = tl.load(low_g + place)
                    major = tl.dot(first, c_high, major)
                    minor = tl.dot(first, c_low, minor)
                    minor = tl.dot(left, c_high, minor)
                if HAS_TABLE:
                    h_k = tl.load(h_g + _offset(t, KP)[:, None] + k[None, :])
                else:
                    h_k = tl.load(h_g + k)[None, :]
                s = h_k * r[:, None] + (major + minor * _LOW)
                valid = listed[:, None] & (k < K)[None, :]
                lower = _lower(s, bound[:, None], _TAU)
                pending = (valid & ~(lower > limit_row[:, None])).to(tl.int32)
                # Most tiles end here, so the limit is only improved where it may matter.
                if tl.max(tl.max(pending, axis=1), axis=0) > 0:
                    upper = _upper(s, bound[:, None], _TAU)
                    upper = tl.where(valid & (upper == upper), upper, _INF)
                    limit_row = tl.minimum(limit_row, tl.min(upper, axis=1))
                    pending = (valid & ~(lower > limit_row[:, None])).to(tl.int32)
                while tl.max(tl.max(pending, axis=1), axis=0) > 0:
                    choice = tl.min(tl.where(pending > 0, k[None, :], _NO_CODEWORD), axis=1)
                    found = choice < K
                    score = _direct(
                        x_row, book, choice, found, x_d, codebook_k, codebook_d, D, DP, CHUNK, ROWS
                    )  # fmt: skip
                    b = _bias_at(bias, g, t, choice, found, bias_g, bias_t, bias_k, HAS_BIAS)
                    score = score + b.to(tl.float64)
                    better = found & (score < least)
                    least = tl.where(better, score, least)
                    index = tl.where(better, choice, index)
                    pending = tl.where(k[None, :] == choice[:, None], 0, pending)
            else:
                valid = listed[:, None] & (k < K)[None, :]
                score = tl.zeros([ROWS, BLOCK_K], tl.float64)
                for d in tl.static_range(D):
                    value = tl.load(x_row + _offset(d, x_d), mask=listed, other=0.0).to(tl.float64)
                    c = tl.load(
                        book + _offset(k, codebook_k) + _offset(d, codebook_d), mask=k < K, other=0.0
                    )
                    difference = value[:, None] - c.to(tl.float64)[None, :]
                    score += difference * difference
                shape_t = tl.broadcast_to(t[:, None], [ROWS, BLOCK_K])
                shape_k = tl.broadcast_to(k[None, :], [ROWS, BLOCK_K])
                b = _bias_at(bias, g, shape_t, shape_k, valid, bias_g, bias_t, bias_k, HAS_BIAS)
                score = score + b.to(tl.float64)
                score = tl.where(valid & (score == score), score, _INF)
                lowest = tl.min(score, axis=1)
                choice = tl.min(tl.where(score == lowest[:, None], k[None, :], _NO_CODEWORD), axis=1)
                index = tl.where(lowest < least, choice, index)
                least = tl.minimum(least, lowest)
        if SPLIT:
            place = (_offset(split, G) + g) * N + slot
            tl.store(part_distance + place, least, mask=listed)
            tl.store(part_index + place, index, mask=listed)
        else:
            tl.store(index_out + row, index.to(tl.int64), mask=listed)
            if DISTANCE:
                tl.store(distance_out + row, least.to(tl.float32), mask=listed)


@triton.jit(do_not_specialize=["G", "N", "programs", "splits"])
def merge_kernel(
    counts,
    flagged,
    part_distance,
    part_index,
    index_out,
    distance_out,
    G,
    N,
    programs,
    splits,
    ROWS: tl.constexpr,
    DISTANCE: tl.constexpr,
):
    """Best of the parts of the codebook, for the flagged rows; equal scores to the lowest index."""
    g = tl.program_id(0) // programs
    count = tl.load(counts + g)
    for item in range(tl.program_id(0) % programs, (count + ROWS - 1) // ROWS, programs):
        slot = item * ROWS + tl.arange(0, ROWS)
        listed = slot < count
        n = tl.load(flagged + _offset(g, N) + slot, mask=listed, other=0)
        least = tl.full([ROWS], _INF, tl.float64)
        index = tl.zeros([ROWS], tl.int32)
        for split in range(0, splits):
            place = (_offset(split, G) + g) * N + slot
            score = tl.load(part_distance + place, mask=listed, other=_INF)
            choice = tl.load(part_index + place, mask=listed, other=0)
            index = tl.where(score < least, choice, index)
            least = tl.minimum(least, score)
        tl.store(index_out + _offset(g, N) + n, index.to(tl.int64), mask=listed)
        if DISTANCE:
            tl.store(distance_out + _offset(g, N) + n, least.to(tl.float32), mask=listed)
