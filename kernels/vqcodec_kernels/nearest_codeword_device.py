"""Device code of the Triton backend of the nearest-codeword search.

Six kernels run one after the other; none needs the host in between:

    peak_kernel      mean of a sample of the codebook, largest |codeword - mean|
    codebook_kernel  the codebook centred, negated, scaled and rounded; h; the norms of the bound
    scan_dot_kernel  first pass on tensor cores: best and second-best group per row
    scan_fma_kernel  the same on the FMA units, for small D
    resolve_kernel   best codeword of the best group; margin test; doubtful rows listed
    rescan_kernel    the listed rows against the whole codebook, float64 as the last word
    merge_kernel     joins the parts where rescan_kernel ran with a split codebook

Notation. m is the centre, 2^i the codebook's and r = 2^j a row's scale; the first passes work with
x'' = (x - m) 2^(i+j), c'' = (m - c) 2^i, h'' = (|c''|^2 + bias 4^i) / 2 and compare the scores
s = h'' r + x''.c'', which order the codewords as |x - c|^2 + bias does. A group is a set of GROUP
codewords of one codebook tile, WIDTH apart; group number q stands for the codewords
(q // WIDTH) BLOCK_K + q % WIDTH + a WIDTH, a = 0..GROUP-1.

Layout of the scratch tensors: mean (G, DP) float32; state (G, 4) int32, the bits of non-negative
floats (peak, C, EC, EC2; see codebook_kernel); high, low (G, KP, DP) float16, or rounded
(G, DP, KP) float32 for scan_fma_kernel; h float32 with given strides; best, second, chosen
(splits, G, N), chosen a group or, from scan_fma_kernel, a codeword; bound, scale (G, N), scale
being r. DP and KP are D and K padded; the padding has c'' = 0, h'' = +inf.

Invariants: every offset that grows with N, G, K or a stride is int64; the row count and strides are
never specialised; excluded codewords (not finite, or bias +inf or NaN) have h'' = +inf and c'' = 0.
"""

import triton
import triton.language as tl

_MAX: tl.constexpr = tl.constexpr(3.4028234e38)
_INF: tl.constexpr = tl.constexpr(float("inf"))
_NAN: tl.constexpr = tl.constexpr(float("nan"))
# What `bound` holds for rows that need no search; every other bound is positive.
_BAD_TABLE: tl.constexpr = tl.constexpr(-1.0)
_NOT_FINITE: tl.constexpr = tl.constexpr(-2.0)
_NO_CODEWORD: tl.constexpr = tl.constexpr(2147483647)
# Scaled operands have their largest element in [2^13, 2^14): room for fp16's underflow below.
_TOP: tl.constexpr = tl.constexpr(13)
# 2^-11: the low half of a split operand is stored times 2^11 so that it does not underflow.
_LOW: tl.constexpr = tl.constexpr(1.0 / 2048)
# Slack over the float32 arithmetic that evaluates the bound itself (D <= 1024).
_SLACK: tl.constexpr = tl.constexpr(1.0 + 2.0**-9)
# Relative error that a score owes to its own magnitude: rounding of h'' and of the last operation.
_TAU: tl.constexpr = tl.constexpr(2.0**-22)


@triton.jit
def _offset(index, stride):
    """Element offset index * stride in int64, whatever the types of the two."""
    return tl.cast(index, tl.int64) * stride


@triton.jit
def _power(exponent):
    """2^exponent in float32, exponent int32 in [-126, 127]."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _exponent(value):
    """Binary exponent of a non-negative float32: -127 for 0 and subnormals, 128 for inf."""
    return (value.to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def _codebook_scale(state, g):
    """2^i as int32 exponent: brings the largest |c - m| of group g to [2^13, 2^14)."""
    peak = tl.load(state + g * 4).to(tl.float32, bitcast=True)
    exponent = tl.minimum(-_exponent(peak) + _TOP, 126)
    return tl.where(peak > 0, exponent, 0)


@triton.jit
def _row_scale(amax):
    """Exponent j of a row whose largest |(x - m) 2^i| is amax."""
    return tl.minimum(tl.maximum(-_exponent(amax) + _TOP, -60), 30)


@triton.jit
def _fits(amax):
    """Whether a row can be scaled into fp16 (false for NaN)."""
    return amax < 1.0e21  # 2^(14 + 60) > 1e21 > 2^69


@triton.jit
def _finite(value):
    return tl.abs(value) <= _MAX


@triton.jit
def _centred(x_row, mean_g, d, inside, x_d, scale, D: tl.constexpr):
    """x as float32 and (x - m) 2^i for a tile of rows (pointers x_row) and the dimensions d."""
    mask = inside[:, None] & (d < D)[None, :]
    x = tl.load(x_row[:, None] + _offset(d, x_d)[None, :], mask=mask, other=0.0).to(tl.float32)
    return x, (x - tl.load(mean_g + d)[None, :]) * scale


@triton.jit
def _table_of(table, g, n, inside, T, table_g, table_n, HAS_TABLE: tl.constexpr):
    """Table number of every row, int64, and whether it is in range (0 where it is not)."""
    if HAS_TABLE:
        t = tl.load(table + _offset(g, table_g) + _offset(n, table_n), mask=inside, other=0)
        t = t.to(tl.int64)
        good = (t >= 0) & (t < T)
        t = tl.where(good, t, 0)
    else:
        t = tl.zeros_like(n).to(tl.int64)
        good = inside
    return t, good


@triton.jit
def _accumulation(DP: tl.constexpr):
    """Relative error of a sum of DP products on adders that truncate, 22 bits kept."""
    return (DP + DP // 8) * 2.0**-22
