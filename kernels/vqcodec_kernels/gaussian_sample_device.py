"""Device code of the Triton backend of the Gaussian sampler.

    sample_kernel    z, and the sum of the divergence over each tile
    fold_kernel      the tiles of a sample added up
    gradient_kernel  all gradients; the noise is drawn again from (seed, flat index)

Layout: tensors are (N, M) with a unit stride within rows. A program takes a tile of ROWS samples by
COLS columns. Four elements share one call of Philox, so a tile starts at a multiple of 4 of the flat
index row M + column: where M is not a multiple of 4, each row of the tiles starts up to 3 columns
early, and what lies outside the row is masked. VECTOR is the number of elements of a 16-byte
load where all rows are so aligned, else 1; M and strides are given in vectors, which is how the
compiler knows that they are multiples.

Invariants: noise depends on nothing but seed and flat index; sums over tiles are added in a fixed
order, without atomics; offsets that grow with N, M or a stride are int64. Multiply-adds are written
out, as compilers differ in which they fuse. Masked elements are read as 0, for which the divergence
is exactly 0.
"""

import triton
import triton.language as tl

_ROUNDS: tl.constexpr = tl.constexpr(10)
_HALF_LOG2_E: tl.constexpr = tl.constexpr(0.7213475204444817)
_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_TWO_LN_2: tl.constexpr = tl.constexpr(1.3862943611198906)
# 2 pi / 2^24: angles come as 24-bit fractions of a turn.
_ANGLE: tl.constexpr = tl.constexpr(3.7450702829238413e-07)
# Bits of sqrt(1/2) as a float32.
_SQRT_HALF: tl.constexpr = tl.constexpr(0x3F3504F3)


@triton.jit
def _philox(seed, counter):
    """The four words of Philox4x32-10 for an int64 seed and int64 counters, as uint32.

    Not tl.philox, which takes the two halves of each product apart: one instruction gives both.
    """
    c0, c1 = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0)
    c3 = c2
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        first = c0.to(tl.uint64) * 0xD2511F53
        second = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (second >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (first >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = second.to(tl.uint32)
        c3 = first.to(tl.uint32)
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _minus_two_log(k):
    """-2 ln(k 2^-24) for int32 k in [1, 2^24], to 2 ulp: k = 2^e m, sqrt(1/2) <= m < sqrt(2).

    The polynomial is that of logf in Cephes. tl.log also looks for zero, infinity and subnormals.
    """
    bits = k.to(tl.float32).to(tl.int32, bitcast=True)
    e = (bits - _SQRT_HALF) >> 23
    f = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(f, 7.0376836292e-2, -1.1514610310e-1)
    p = tl.fma(f, p, 1.1676998740e-1)
    p = tl.fma(f, p, -1.2420140846e-1)
    p = tl.fma(f, p, 1.4249322787e-1)
    p = tl.fma(f, p, -1.6668057665e-1)
    p = tl.fma(f, p, 2.0000714765e-1)
    p = tl.fma(f, p, -2.4999993993e-1)
    p = tl.fma(f, p, 3.3333331174e-1)
    p = tl.fma(f, p, -0.5)
    p = tl.fma(f * f, p, f)
    return tl.fma((24 - e).to(tl.float32), _TWO_LN_2, -2.0 * p)


@triton.jit
def _cos_sin(turn):
    """Cosine and sine of int32 `turn` 2^-24 turns, 0 <= turn < 2^24, to 2 ulp.

    An angle is an integer, so it is brought to within an eighth of a turn of an axis exactly. The
    polynomials are those of sinf and cosf in Cephes.
    """
    quarter = (turn + (1 << 21)) >> 22
    x = (turn - (quarter << 22)).to(tl.float32) * _ANGLE
    square = x * x
    sine = tl.fma(square, -1.9515295891e-4, 8.3321608736e-3)
    sine = tl.fma(square, sine, -1.6666654611e-1)
    sine = tl.fma(square * x, sine, x)
    cosine = tl.fma(square, 2.4433157118e-5, -1.3887316255e-3)
    cosine = tl.fma(square, cosine, 4.1666645683e-2)
    cosine = tl.fma(square, cosine, -0.5)
    cosine = tl.fma(square, cosine, 1.0)
    odd = (quarter & 1) != 0
    across, up = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    across = tl.where(((quarter + 1) & 2) != 0, -across, across)
    return across, tl.where((quarter & 2) != 0, -up, up)


@triton.jit
def _normal_pair(first, second):
    """Two normals of two uint32 words, by Box and Muller."""
    radius = tl.sqrt(_minus_two_log((first >> 8).to(tl.int32) + 1))
    across, up = _cos_sin((second >> 8).to(tl.int32))
    return radius * across, radius * up


@triton.jit
def _four_normals(seed, counter):
    """The normals of elements 4 counter, ..., 4 counter + 3."""
    w0, w1, w2, w3 = _philox(seed, counter)
    n0, n1 = _normal_pair(w0, w1)
    n2, n3 = _normal_pair(w2, w3)
    return n0, n1, n2, n3


@triton.jit
def _normals(seed, counter, VECTOR: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The normals of a tile (ROWS, COLS), counter (ROWS, 1) being that of its first column.

    A thread draws the normals of the elements that it loads: those of two counters where a vector
    has eight elements.
    """
    if VECTOR == 8:
        counter = counter + 2 * tl.arange(0, COLS // 8)[None, :]
        a0, a1, a2, a3 = _four_normals(seed, counter)
        b0, b1, b2, b3 = _four_normals(seed, counter + 1)
        n0, n1, n2, n3 = tl.join(a0, b0), tl.join(a1, b1), tl.join(a2, b2), tl.join(a3, b3)
    else:
        n0, n1, n2, n3 = _four_normals(seed, counter + tl.arange(0, COLS // 4)[None, :])
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [ROWS, COLS])


@triton.jit
def _tile(N, M, tiles, VECTOR: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """What this program works on.

    Returns rows (ROWS,), column of the first lane (ROWS, 1), lanes (1, COLS), which of them are
    inside (ROWS, COLS), counter of the first lane (ROWS, 1), and the number of the tile in its row.
    """
    pid = tl.program_id(0)
    tile = (pid % tiles).to(tl.int64)
    row = (pid // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, COLS)[None, :]
    size = tl.cast(M, tl.int64) * VECTOR
    first = (row * size)[:, None]
    left = tl.zeros_like(first) + tile * COLS
    inside = (row < N)[:, None]
    if VECTOR == 1:
        left = left - (first & 3)
        inside = inside & (lane >= -left)
    inside = inside & (lane < size - left)
    return row, left, lane, inside, (first + left) >> 2, tile


@triton.jit
def _place(base, row, stride, left, lane, VECTOR: tl.constexpr):
    """Pointers to the elements of a tile, whose rows are `stride` vectors apart."""
    place = base + ((row * (tl.cast(stride, tl.int64) * VECTOR))[:, None] + left) + lane
    return tl.multiple_of(place, [1, 16]) if VECTOR > 1 else place


@triton.jit
def _load(base, row, stride, left, lane, inside, VECTOR: tl.constexpr, GIVEN: tl.constexpr):
    """A tile as float32; 0 where it is masked or there is no such tensor."""
    if GIVEN:
        place = _place(base, row, stride, left, lane, VECTOR)
        tile = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    else:
        tile = tl.zeros(inside.shape, tl.float32)
    return tile


@triton.jit
def _store(base, row, stride, left, lane, inside, tile, VECTOR: tl.constexpr, NEEDED: tl.constexpr):
    if NEEDED:
        place = _place(base, row, stride, left, lane, VECTOR)
        tl.store(place, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _excess(ratio, power):
    """exp(ratio) - 1 - ratio, never negative, given power = exp(ratio).

    Near 0 by a polynomial of least relative error for (exp(x) - 1 - x) / x^2, |x| <= 1/2.
    """
    p = tl.fma(ratio, 1.9875629e-4, 1.3981997e-3)
    p = tl.fma(ratio, p, 8.3334520e-3)
    p = tl.fma(ratio, p, 4.1665796e-2)
    p = tl.fma(ratio, p, 1.6666666e-1)
    p = tl.fma(ratio, p, 0.5)
    return tl.where(tl.abs(ratio) < 0.5, ratio * ratio * p, (power - 1.0) - ratio)


@triton.jit
def _divergence_terms(m, lv, pm, pl, sigma, PRIOR_LOGVAR: tl.constexpr):
    """logvar - pl; exp of that, less 1 and itself; mu - pm; (mu - pm) exp(-pl)."""
    distance = m - pm
    if PRIOR_LOGVAR:
        ratio = lv - pl
        power = tl.exp2(ratio * _LOG2_E)
        slope = distance * tl.exp2(pl * -_LOG2_E)
    else:
        ratio = lv
        power = sigma * sigma
        slope = distance
    return ratio, _excess(ratio, power), distance, slope


@triton.jit(
    do_not_specialize=[
        "mu", "logvar", "prior_mu", "prior_logvar", "seed", "z", "partial", "N", "M", "tiles",
        "mu_n", "logvar_n", "prior_mu_n", "prior_logvar_n",
    ]
)  # fmt: skip
def sample_kernel(
    mu,
    logvar,
    prior_mu,
    prior_logvar,
    seed,
    z,
    partial,
    N,
    M,
    tiles,
    mu_n,
    logvar_n,
    prior_mu_n,
    prior_logvar_n,
    PRIOR_MU: tl.constexpr,
    PRIOR_LOGVAR: tl.constexpr,
    KL: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """z, and the divergence summed over each tile: partial (N, tiles)."""
    row, left, lane, inside, counter, tile = _tile(N, M, tiles, VECTOR, ROWS, COLS)
    m = _load(mu, row, mu_n, left, lane, inside, VECTOR, True)
    lv = _load(logvar, row, logvar_n, left, lane, inside, VECTOR, True)
    pm = _load(prior_mu, row, prior_mu_n, left, lane, inside, VECTOR, KL and PRIOR_MU)
    pl = _load(prior_logvar, row, prior_logvar_n, left, lane, inside, VECTOR, KL and PRIOR_LOGVAR)
    eps = _normals(tl.load(seed), counter, VECTOR, ROWS, COLS)
    sigma = tl.exp2(lv * _HALF_LOG2_E)
    _store(z, row, M, left, lane, inside, tl.fma(sigma, eps, m), VECTOR, True)
    if KL:
        ratio, excess, distance, slope = _divergence_terms(m, lv, pm, pl, sigma, PRIOR_LOGVAR)
        total = 0.5 * tl.sum(tl.fma(distance, slope, excess), axis=1)
        tl.store(partial + row * tiles + tile, total, mask=row < N)


@triton.jit(do_not_specialize=["partial", "kl", "N", "tiles"])
def fold_kernel(partial, kl, N, tiles, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Sums of the rows of partial (N, tiles), in float64."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    place = partial + (row * tiles)[:, None] + col[None, :]
    inside = (row < N)[:, None]
    total = tl.zeros([ROWS, COLS], tl.float64)
    for start in range(0, tiles, COLS):
        some = tl.load(place + start, mask=inside & (col < tiles - start)[None, :], other=0.0)
        total += some.to(tl.float64)
    tl.store(kl + row, tl.sum(total, axis=1).to(tl.float32), mask=row < N)


@triton.jit(
    do_not_specialize=[
        "dz", "mu", "logvar", "prior_mu", "prior_logvar", "dkl", "seed",
        "dmu", "dlogvar", "dprior_mu", "dprior_logvar", "N", "M", "tiles",
        "dz_n", "mu_n", "logvar_n", "prior_mu_n", "prior_logvar_n", "dkl_n",
    ]
)  # fmt: skip
def gradient_kernel(
    dz,
    mu,
    logvar,
    prior_mu,
    prior_logvar,
    dkl,
    seed,
    dmu,
    dlogvar,
    dprior_mu,
    dprior_logvar,
    N,
    M,
    tiles,
    dz_n,
    mu_n,
    logvar_n,
    prior_mu_n,
    prior_logvar_n,
    dkl_n,
    DZ: tl.constexpr,
    DKL: tl.constexpr,
    PRIOR_MU: tl.constexpr,
    PRIOR_LOGVAR: tl.constexpr,
    NEED_MU: tl.constexpr,
    NEED_LOGVAR: tl.constexpr,
    NEED_PRIOR_MU: tl.constexpr,
    NEED_PRIOR_LOGVAR: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The gradients that are needed; what only others need is neither read nor computed."""
    row, left, lane, inside, counter, _ = _tile(N, M, tiles, VECTOR, ROWS, COLS)
    lv = _load(logvar, row, logvar_n, left, lane, inside, VECTOR, True)
    sigma = tl.exp2(lv * _HALF_LOG2_E)
    by_mu = _load(dz, row, dz_n, left, lane, inside, VECTOR, DZ)
    by_logvar = tl.zeros([ROWS, COLS], tl.float32)
    by_prior_mu = by_logvar
    by_prior_logvar = by_logvar
    if DZ and NEED_LOGVAR:
        eps = _normals(tl.load(seed), counter, VECTOR, ROWS, COLS)
        by_logvar = 0.5 * by_mu * sigma * eps
    if DKL:
        m = _load(mu, row, mu_n, left, lane, inside, VECTOR, True)
        pm = _load(prior_mu, row, prior_mu_n, left, lane, inside, VECTOR, PRIOR_MU)
        pl = _load(prior_logvar, row, prior_logvar_n, left, lane, inside, VECTOR, PRIOR_LOGVAR)
        ratio, excess, distance, slope = _divergence_terms(m, lv, pm, pl, sigma, PRIOR_LOGVAR)
        weight = tl.load(dkl + row * dkl_n, mask=row < N, other=0.0).to(tl.float32)[:, None]
        growth = excess + ratio
        by_mu = tl.fma(weight, slope, by_mu)
        by_logvar = tl.fma(0.5 * weight, growth, by_logvar)
        by_prior_mu = -weight * slope
        by_prior_logvar = -0.5 * weight * tl.fma(distance, slope, growth)
    _store(dmu, row, M, left, lane, inside, by_mu, VECTOR, NEED_MU)
    _store(dlogvar, row, M, left, lane, inside, by_logvar, VECTOR, NEED_LOGVAR)
    _store(dprior_mu, row, M, left, lane, inside, by_prior_mu, VECTOR, NEED_PRIOR_MU)
    _store(dprior_logvar, row, M, left, lane, inside, by_prior_logvar, VECTOR, NEED_PRIOR_LOGVAR)
