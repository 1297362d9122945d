"""Preparation of the codebook for the Triton search; notation in `nearest_codeword_device`."""

import triton
import triton.language as tl

from vqcodec_kernels.nearest_codeword_device import (
    _INF,
    _LOW,
    _SLACK,
    _codebook_scale,
    _finite,
    _offset,
    _power,
)


@triton.jit
def _alive(bias, g, k, inside, T, bias_g, bias_t, bias_k, HAS_BIAS: tl.constexpr, BLOCK_T: tl.constexpr):
    """Which of the codewords k have a bias below +inf in some table."""
    alive = inside
    if HAS_BIAS:
        found = tl.zeros_like(k)
        for t0 in range(0, T, BLOCK_T):
            t = t0 + tl.arange(0, BLOCK_T)
            offset = _offset(g, bias_g) + _offset(t, bias_t)[:, None] + _offset(k, bias_k)[None, :]
            value = tl.load(bias + offset, mask=(t < T)[:, None] & inside[None, :], other=_INF)
            below = (value.to(tl.float32) < _INF).to(tl.int32)
            found = tl.maximum(found, tl.max(below, axis=0))
        alive = inside & (found > 0)
    return alive


@triton.jit(
    do_not_specialize=[
        "codebook", "bias", "K", "T", "blocks", "codebook_g", "codebook_k", "codebook_d",
        "bias_g", "bias_t", "bias_k",
    ]
)  # fmt: skip
def peak_kernel(
    codebook,
    bias,
    mean,
    state,
    K,
    T,
    blocks,
    codebook_g,
    codebook_k,
    codebook_d,
    bias_g,
    bias_t,
    bias_k,
    D: tl.constexpr,
    DP: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    SAMPLE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HALF: tl.constexpr,
):
    """Writes mean (by the first program of a group) and raises state[g, 0] to max |c - m|.

    Any centre is right, so the mean is that of a sample, which every program computes for itself.
    Half-precision codebooks keep the centre 0 unless the mean is far out: x and c are then exact
    in fp16, and a smaller bound is worth more than the centring.
    """
    g = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    base = codebook + _offset(g, codebook_g)
    sample = ((tl.arange(0, SAMPLE).to(tl.int64) * K) // SAMPLE)[:, None] * codebook_k
    keep = 1.0
    if HALF:
        mean_square = 0.0
        variance = 0.0
        for d0 in range(0, DP, CHUNK):
            d = d0 + tl.arange(0, CHUNK)
            value = tl.load(
                base + sample + _offset(d, codebook_d)[None, :], mask=(d < D)[None, :], other=0.0
            )
            value = value.to(tl.float32)
            value = tl.where(_finite(value), value, 0.0)
            m = tl.sum(value, axis=0) / SAMPLE
            mean_square += tl.sum(m * m)
            variance += tl.sum(tl.sum((value - m[None, :]) * (value - m[None, :]), axis=0)) / SAMPLE
        keep = tl.where(mean_square > variance * 4.0, 1.0, 0.0)
    k = block * ROWS + tl.arange(0, ROWS)
    alive = _alive(bias, g, k, k < K, T, bias_g, bias_t, bias_k, HAS_BIAS, BLOCK_T)
    peak = tl.zeros([ROWS], tl.float32)
    for d0 in range(0, DP, CHUNK):
        d = d0 + tl.arange(0, CHUNK)
        column = _offset(d, codebook_d)[None, :]
        value = tl.load(base + sample + column, mask=(d < D)[None, :], other=0.0).to(tl.float32)
        value = tl.where(_finite(value), value, 0.0)
        m = tl.sum(value, axis=0) / SAMPLE
        m = tl.where(_finite(m), m, 0.0) * keep
        if block == 0:
            tl.store(mean + _offset(g, DP) + d, m)
        row = _offset(k, codebook_k)[:, None]
        c = tl.load(base + row + column, mask=alive[:, None] & (d < D)[None, :], other=0.0)
        c = c.to(tl.float32)
        used = alive[:, None] & (d < D)[None, :] & _finite(c)
        peak = tl.maximum(peak, tl.max(tl.where(used, tl.abs(c - m[None, :]), 0.0), axis=1))
    tl.atomic_max(state + g * 4, tl.max(peak, axis=0).to(tl.int32, bitcast=True))


@triton.jit(
    do_not_specialize=[
        "codebook", "bias", "K", "T", "blocks", "codebook_g", "codebook_k", "codebook_d",
        "bias_g", "bias_t", "bias_k", "h_g", "h_t", "h_k",
    ]
)  # fmt: skip
def codebook_kernel(
    codebook,
    bias,
    mean,
    state,
    high,
    low,
    rounded,
    h,
    K,
    KP,
    T,
    blocks,
    codebook_g,
    codebook_k,
    codebook_d,
    bias_g,
    bias_t,
    bias_k,
    h_g,
    h_t,
    h_k,
    D: tl.constexpr,
    DP: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    DOT: tl.constexpr,
):
    """Writes c'' (high + low 2^-11, or rounded), h'', and raises state[g, 1:] to C, EC, EC2.

    C = max |high| (or |rounded|), EC = max |c'' - high|, EC2 = max |c'' - high - low 2^-11|, over
    the codewords in use. Differences and h'' are computed in float64 and rounded once.
    """
    g = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    base = codebook + _offset(g, codebook_g)
    k = block * ROWS + tl.arange(0, ROWS)
    alive = _alive(bias, g, k, k < K, T, bias_g, bias_t, bias_k, HAS_BIAS, BLOCK_T)
    row = _offset(k, codebook_k)[:, None]
    sound = tl.full([ROWS], 1, tl.int32)
    for d0 in range(0, DP, CHUNK):
        d = d0 + tl.arange(0, CHUNK)
        mask = alive[:, None] & (d < D)[None, :]
        c = tl.load(base + row + _offset(d, codebook_d)[None, :], mask=mask, other=0.0)
        sound = tl.minimum(sound, tl.min(_finite(c.to(tl.float32)).to(tl.int32), axis=1))
    alive = alive & (sound > 0)
    scale = _power(_codebook_scale(state, g)).to(tl.float64)
    square = tl.zeros([ROWS], tl.float64)
    square_high = tl.zeros([ROWS], tl.float64)
    square_rest = tl.zeros([ROWS], tl.float64)
    square_rest2 = tl.zeros([ROWS], tl.float64)
    for d0 in range(0, DP, CHUNK):
        d = d0 + tl.arange(0, CHUNK)
        mask = alive[:, None] & (d < D)[None, :]
        c = tl.load(base + row + _offset(d, codebook_d)[None, :], mask=mask, other=0.0)
        m = tl.load(mean + _offset(g, DP) + d)
        y = (m.to(tl.float64)[None, :] - c.to(tl.float64)) * scale
        y = tl.where(mask, y, 0.0)
        square += tl.sum(y * y, axis=1)
        if DOT:
            first = y.to(tl.float32).to(tl.float16)
            rest = y - first.to(tl.float64)
            second = (rest * 2048.0).to(tl.float32).to(tl.float16)
            rest2 = rest - second.to(tl.float64) * _LOW
            square_high += tl.sum(first.to(tl.float64) * first.to(tl.float64), axis=1)
            square_rest += tl.sum(rest * rest, axis=1)
            square_rest2 += tl.sum(rest2 * rest2, axis=1)
            place = (_offset(g, KP) + k)[:, None] * DP + d[None, :]
            tl.store(high + place, first)
            tl.store(low + place, second)
        else:
            place = _offset(_offset(g, DP) + d, KP)[None, :] + k[:, None]
            tl.store(rounded + place, y.to(tl.float32))
            square_high = square
    norm = tl.sqrt(tl.max(square_high, axis=0)).to(tl.float32) * _SLACK
    tl.atomic_max(state + g * 4 + 1, norm.to(tl.int32, bitcast=True))
    if DOT:
        norm = tl.sqrt(tl.max(square_rest, axis=0)).to(tl.float32) * _SLACK
        tl.atomic_max(state + g * 4 + 2, norm.to(tl.int32, bitcast=True))
        norm = tl.sqrt(tl.max(square_rest2, axis=0)).to(tl.float32) * _SLACK
        tl.atomic_max(state + g * 4 + 3, norm.to(tl.int32, bitcast=True))
    for t0 in range(0, T, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        value = tl.broadcast_to(square[None, :], [BLOCK_T, ROWS])
        if HAS_BIAS:
            offset = _offset(g, bias_g) + _offset(t, bias_t)[:, None] + _offset(k, bias_k)[None, :]
            b = tl.load(bias + offset, mask=(t < T)[:, None] & alive[None, :], other=0.0)
            value = value + b.to(tl.float64) * (scale * scale)
        value = (0.5 * value).to(tl.float32)
        value = tl.where(alive[None, :] & (value == value), value, _INF)
        place = _offset(g, h_g) + _offset(t, h_t)[:, None] + _offset(k, h_k)[None, :]
        tl.store(h + place, value, mask=(t < T)[:, None] & (k < KP)[None, :])
