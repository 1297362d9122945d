"""Tests of vqcodec_kernels.gaussian_sample against the formulas in float64 and the published Philox.

`expected` writes the formulas out once more, with the size of the terms that each result is a sum
of; `assert_close` allows a number of roundings of terms of that size, and the rounding of the
result. The numbers of roundings are bounds of the kernel's functions, relative, in units of 2^-24:
normals 5 (all 2^24 radii and angles were tried), exponentials 3.
"""

import hashlib
import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from isa_probes import ISAS, assert_probe, run_probes
from scipy import stats
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import Normal, kl_divergence

from vqcodec_kernels import (
    Sample,
    gaussian_sample,
    gaussian_sample_ref,
    native_isa,
    philox_4x32,
    philox_normal,
)
from vqcodec_kernels._extension import load_native
from vqcodec_kernels.gaussian_sample import Backend

needs_native = pytest.mark.skipif(native_isa() is None, reason="the native extension is not built")
each_backend = pytest.mark.parametrize(
    "backend", ["reference", pytest.param("native", marks=needs_native)]
)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
UNIT = 2.0**-24
# Blocks of the native kernel are 512 elements, its vectors 4 to 16, counters have 4 normals.
SHAPES = [
    (1, 1),
    (3, 5),
    (5,),
    (2, 3, 4, 5),
    (100, 3),
    (11, 64),
    (3, 16, 16, 3),
    (2, 512),
    (7, 513),
    (1, 1024),
    (2, 1537),
]
# Enough for the native kernel to use several threads: it gives each at least 2^15 elements.
MANY = (3, 40009)
PRIORS = [(), ("prior_mu",), ("prior_logvar",), ("prior_mu", "prior_logvar")]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def arguments_for(
    shape: tuple[int, ...], names: tuple[str, ...] = PRIORS[3], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """mu, logvar and those priors."""
    some = {"prior_mu": randn(*shape, seed=3), "prior_logvar": randn(*shape, seed=4)}
    priors = {name: some[name].to(dtype) for name in names}
    return randn(*shape, seed=1).to(dtype), randn(*shape, seed=2).to(dtype), priors


def gradients_of(
    sample: Sample, arguments: list[Tensor], dz: Tensor | None = None, dkl: Tensor | None = None
) -> list[Tensor]:
    """Gradients of the arguments for fixed ones of z and, if there is one, kl."""
    results, given = [sample.z], [randn(*sample.z.shape, seed=5).to(sample.z) if dz is None else dz]
    if sample.kl is not None:
        results.append(sample.kl)
        given.append(randn(*sample.kl.shape, seed=6).to(sample.kl) if dkl is None else dkl)
    return list(torch.autograd.grad(results, arguments, given))


def run(
    mu: Tensor, logvar: Tensor, *, seed: int = 7, backend: Backend = "native", **options: Any
) -> tuple[Tensor, ...]:
    """z, kl and the gradients of all that is given."""
    priors = {
        name: options.pop(name).detach().requires_grad_() for name in list(options) if "prior" in name
    }
    mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    dz, dkl = options.pop("dz", None), options.pop("dkl", None)
    sample = gaussian_sample(mu, logvar, seed=seed, backend=backend, **priors, **options)
    gradients = gradients_of(sample, [mu, logvar, *priors.values()], dz, dkl)
    return tuple(x.detach() for x in (*sample, *gradients) if x is not None)


def expected(
    mu: Tensor,
    logvar: Tensor,
    *,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    seed: int = 7,
) -> list[tuple[Tensor, Tensor, float]]:
    """What `run` gives: value and size of the terms in float64, and how many roundings of 2^-24."""
    m, lv = mu.double(), logvar.double()
    pm = torch.zeros(()) if prior_mu is None else prior_mu.double()
    pl = torch.zeros(()) if prior_logvar is None else prior_logvar.double()
    dz = randn(*mu.shape, seed=5).to(mu.dtype).double()
    dkl = randn(mu.shape[0], seed=6).double().reshape(-1, *[1] * (mu.ndim - 1))
    eps = philox_normal(seed, mu.numel(), dtype=torch.float64).reshape(mu.shape)
    sigma, v, w, d = (lv / 2).exp(), (lv - pl).exp(), (-pl).exp(), m - pm
    # As many terms are added in one lane as a block has of 16, then 4 levels of lanes, and blocks.
    terms = pl - lv + v + d * d * w - 1
    sizes = pl.abs() + lv.abs() + v + (m.abs() + pm.abs()) ** 2 * w + 1
    rows = mu.shape[0], math.prod(mu.shape[1:])
    slope, slopes = d * w, (m.abs() + pm.abs()) * w
    found = [
        (m + sigma * eps, m.abs() + (sigma * eps).abs(), 10),
        (0.5 * terms.reshape(rows).sum(1), sizes.reshape(rows).sum(1), 12 + 512 / 16 + 4),
        (dz + dkl * slope, dz.abs() + dkl.abs() * slopes, 10),
        (
            dz * 0.5 * sigma * eps + dkl * 0.5 * (v - 1),
            (dz * sigma * eps).abs() + dkl.abs() * (v + 1),
            12,
        ),
    ]
    if prior_mu is not None:
        found.append((-dkl * slope, dkl.abs() * slopes, 10))
    if prior_logvar is not None:
        size = dkl.abs() * (1 + v + (m.abs() + pm.abs()) * slopes)
        found.append((dkl * 0.5 * (1 - v - d * slope), size, 12))
    return found


def assert_close(found: Tensor, value: Tensor, size: Tensor, units: float) -> None:
    kind = torch.finfo(found.dtype)
    assert found.shape == value.shape
    # Half a unit in the last place of a 16-bit number is eps / 2 of it, or of the smallest normal.
    rounding = kind.eps / 2 * value.abs().clamp_min(kind.smallest_normal)
    excess = (found.double() - value).abs() - units * UNIT * size - 1.001 * rounding
    assert (excess <= 0).all(), float(excess.max())


# --- the generator -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers_of_philox(counter: str, key: str, words: str) -> None:
    """Those of Random123, the authors' library: tests/kat_vectors, philox4x32 10."""
    numbers = [torch.tensor([int(word, 16) for word in text.split()]) for text in (counter, key, words)]
    assert torch.equal(philox_4x32(numbers[0], numbers[1]), numbers[2])
    # One key for many counters.
    many = philox_4x32(numbers[0].expand(2, 3, 4), numbers[1])
    assert torch.equal(many, numbers[2].expand(2, 3, 4))


def normal_by_hand(seed: int, index: int) -> float:
    """The definition, with Python's integers."""
    low = 0xFFFFFFFF
    counter, key = [index // 4 & low, index // 4 >> 32, 0, 0], [seed & low, seed >> 32 & low]
    for _ in range(10):
        a, b = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [b >> 32 ^ counter[1] ^ key[0], b & low, a >> 32 ^ counter[3] ^ key[1], a & low]
        key = [key[0] + 0x9E3779B9 & low, key[1] + 0xBB67AE85 & low]
    first, second = (word >> 8 for word in counter[index % 4 // 2 * 2 :][:2])
    angle = 2 * math.pi * second / 2**24
    turned = math.sin(angle) if index % 2 else math.cos(angle)
    return math.sqrt(-2 * math.log((first + 1) / 2**24)) * turned


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**32 + 5, 2**63 - 1, -(2**63), 123456789012345])
@pytest.mark.parametrize("start", [0, 1, 6, 2**32 - 3, 2**34 - 5, 2**34 + 3, 2**40 + 1, 2**62])
def test_normals_by_hand(seed: int, start: int) -> None:
    found = philox_normal(seed, 9, start=start, dtype=torch.float64)
    by_hand = torch.tensor([normal_by_hand(seed, start + i) for i in range(9)], dtype=torch.float64)
    torch.testing.assert_close(found, by_hand, rtol=1e-14, atol=1e-14)
    assert torch.equal(philox_normal(torch.tensor(seed), 9, start=start), found.float())


def test_ranges_of_normals() -> None:
    whole = philox_normal(5, 100)
    assert whole.dtype == torch.float32
    for start, count in ((0, 0), (0, 1), (1, 2), (3, 6), (4, 4), (50, 50), (100, 0)):
        assert torch.equal(philox_normal(5, count, start=start), whole[start : start + count])
    for start, count in ((-1, 3), (0, -1), (2**63 - 4, 4)):
        with pytest.raises(ValueError, match="range"):
            philox_normal(5, count, start=start)


@needs_native
@pytest.mark.parametrize("seed", [7, -(2**63)])
def test_noise_of_the_native_kernel(seed: int) -> None:
    zero = torch.zeros(1 << 18)
    found = gaussian_sample(zero, zero, seed=seed, kl=False, backend="native").z
    normals = philox_normal(seed, 1 << 18, dtype=torch.float64)
    # cos(pi / 2) is 0 there, and 6e-17 where the angle has been rounded.
    assert ((found - normals).abs() <= 5 * UNIT * normals.abs() + 1e-15).all()


def test_distribution() -> None:
    count = 1 << 20
    normals = philox_normal(11, count, dtype=torch.float64)
    assert normals.abs().max() <= 5.77
    # Six standard deviations of each estimate.
    error = 6 / math.sqrt(count)
    moments = [(normals**k).mean().item() for k in range(1, 7)]
    variances = [1, 2, 15, 96, 945, 10170]
    for moment, exact, variance in zip(moments, [0, 1, 0, 3, 0, 15], variances, strict=True):
        assert abs(moment - exact) < error * math.sqrt(variance)
    assert stats.kstest(normals.numpy(), "norm").pvalue > 0.01
    for word in range(4):
        assert stats.kstest(normals[word::4].numpy(), "norm").pvalue > 0.01
    for far in (2, 3, 4, 4.5):
        share = 2 * stats.norm.sf(far)
        for tail in ((normals > far), (normals < -far)):
            assert abs(tail.double().mean().item() - share / 2) < error * math.sqrt(share / 2)


def test_independence() -> None:
    count = 1 << 18
    normals = philox_normal(12, count, dtype=torch.float64)
    error = 6 / math.sqrt(count / 4)
    # The four normals of a counter, and their squares, where a shared radius would show.
    words = normals.reshape(-1, 4).T
    for matrix in (torch.corrcoef(words), torch.corrcoef(words.square())):
        assert (matrix - torch.eye(4)).abs().max() < error
    for lag in (1, 2, 3, 4, 5, 8, 16, 64, 1024):
        assert abs((normals[lag:] * normals[:-lag]).mean()) < error
    # Other seeds, one bit or one word away.
    others = [
        philox_normal(seed, count, dtype=torch.float64) for seed in (13, -13, 12 + 2**32, 12 - 2**63)
    ]
    matrix = torch.corrcoef(torch.stack([normals, *others]))
    assert (matrix - torch.eye(5)).abs().max() < error


# --- values --------------------------------------------------------------------------------


@each_backend
@each_dtype
@pytest.mark.parametrize("names", PRIORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_formulas(
    shape: tuple[int, ...], names: tuple[str, ...], dtype: torch.dtype, backend: Backend
) -> None:
    mu, logvar, priors = arguments_for(shape, names, dtype)
    found = run(mu, logvar, backend=backend, **priors)
    wanted = expected(mu, logvar, **priors)
    assert len(found) == len(wanted)
    assert [x.dtype for x in found] == [dtype, torch.float32] + [dtype] * (len(found) - 2)
    for x, (value, size, units) in zip(found, wanted, strict=True):
        assert_close(x, value, size, units)


@each_backend
def test_wide_range_of_variances(backend: Backend) -> None:
    # Up to where sigma is beyond float32; v is so from 88.7 on.
    logvar = torch.linspace(-250, 177, 20001).reshape(3, 6667)
    mu = torch.zeros_like(logvar)
    z, kl = gaussian_sample(mu, logvar, seed=7, backend=backend)
    exact = gaussian_sample_ref(mu.double(), logvar.double(), seed=7)
    assert exact.kl is not None and kl is not None
    finite = exact.z.abs() < torch.finfo(torch.float32).max
    assert torch.equal(z.isfinite(), finite)
    # Sigma may be 0 below 2^-125; |eps| is below 8.
    excess = (z - exact.z).abs() - 10 * UNIT * exact.z.abs() - 2.0**-122
    assert (excess[finite] <= 0).all()
    torch.testing.assert_close(kl[:2].double(), exact.kl[:2], rtol=1e-5, atol=0)
    assert kl[2] == torch.inf
    huge = gaussian_sample(torch.zeros(9), torch.full((9,), 178.0), seed=7, backend=backend).z
    assert torch.equal(huge, torch.inf * philox_normal(7, 9).sign())


@each_backend
def test_divergence_near_the_prior(backend: Backend) -> None:
    # Where (v - 1) - ln v would lose every digit.
    logvar = torch.tensor([1e-2, -1e-2, 1e-3, -1e-3, 1e-5, 0.3, -0.3, 0.69, 0.7, -0.7, 1.4, 0.0])
    x = logvar.double()
    exact = torch.where(x.abs() < 2e-2, x**2 / 4 * (1 + x / 3 + x**2 / 12), (x.expm1() - x) / 2)
    for priors in ({}, {"prior_logvar": torch.zeros_like(logvar)}):
        kl = gaussian_sample(torch.zeros_like(logvar), logvar, seed=7, backend=backend, **priors).kl
        assert kl is not None and kl[-1] == 0 and (kl >= 0).all()
        # The reference subtracts in float32.
        tolerance = {"rtol": 1e-5, "atol": 0} if backend == "native" else {"rtol": 1e-5, "atol": 1e-7}
        torch.testing.assert_close(kl.double(), exact, **tolerance)


@needs_native
@pytest.mark.parametrize("with_prior", [False, True])
def test_native_divergence_is_never_negative(with_prior: bool) -> None:
    logvar = torch.cat(
        [s * torch.logspace(-38, 1.9, 1 << 16) for s in (-1, 1)] + [torch.linspace(-3, 3, 9999)]
    )
    mu = torch.zeros_like(logvar)
    priors = {"prior_mu": mu, "prior_logvar": mu} if with_prior else {}
    kl = gaussian_sample(mu, logvar, seed=7, backend="native", **priors).kl
    assert kl is not None and (kl >= 0).all()
    kl = gaussian_sample(
        logvar, logvar, prior_mu=logvar, prior_logvar=logvar, seed=7, backend="native"
    ).kl
    assert torch.equal(kl, mu)


@each_backend
def test_divergence_against_torch(backend: Backend) -> None:
    mu, logvar, priors = arguments_for((13, 5, 31))
    kl = gaussian_sample(mu, logvar, backend=backend, **priors).kl
    posterior = Normal(mu.double(), (logvar.double() / 2).exp())
    prior = Normal(priors["prior_mu"].double(), (priors["prior_logvar"].double() / 2).exp())
    closed = kl_divergence(posterior, prior).flatten(1).sum(1)
    torch.testing.assert_close(kl, closed.float(), rtol=1e-5, atol=0)
    alone = gaussian_sample(mu, logvar, backend=backend).kl
    closed = kl_divergence(posterior, Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(alone, closed.float(), rtol=1e-5, atol=0)


def test_float64() -> None:
    mu, logvar, priors = arguments_for((3, 11), dtype=torch.float64)
    found = run(mu, logvar, backend="auto", **priors)
    assert {x.dtype for x in found} == {torch.float64}
    dkl = randn(3, seed=6).double()
    exact = run(mu, logvar, backend="reference", dkl=dkl, **priors)
    for x, (value, size, units) in zip(exact, expected(mu, logvar, **priors), strict=True):
        assert ((x - value).abs() <= units * 2.0**-52 * size).all()


@each_backend
def test_values_that_are_not_finite(backend: Backend) -> None:
    nan, inf = torch.nan, torch.inf
    mu = torch.tensor([0.0, nan, 0.0, inf, -inf, 1.5, 1.5])
    logvar = torch.tensor([0.0, 0.0, nan, 0.0, 0.0, inf, -inf])
    sign = math.copysign(1, normal_by_hand(7, 5))
    # (inf - 1) - inf has no value, as the formula has none.
    wanted_kl = torch.tensor([0.0, nan, nan, inf, inf, nan, inf])
    z, kl = gaussian_sample(mu, logvar, seed=7, backend=backend)
    assert kl is not None
    torch.testing.assert_close(kl, wanted_kl, rtol=0, atol=1e-6, equal_nan=True)
    assert z.isnan().tolist() == [False, True, True, False, False, False, False]
    assert z[3:].tolist() == [inf, -inf, sign * inf, 1.5]
    for dtype in (torch.float16, torch.bfloat16):
        narrow = gaussian_sample(mu.to(dtype), logvar.to(dtype), seed=7, backend=backend)
        assert torch.equal(narrow.z.nan_to_num(7), z.to(dtype).nan_to_num(7))
        assert narrow.z.isnan().tolist() == z.isnan().tolist()


@each_backend
def test_rounding_to_16_bits(backend: Backend) -> None:
    """Without variance, z is mu: every 16-bit number must come through. Then ties and overflow."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        mu = every.view(dtype)
        z = gaussian_sample(mu, torch.full_like(mu, -torch.inf), seed=7, kl=False, backend=backend).z
        assert torch.equal(z.isnan(), mu.isnan())
        assert torch.equal(z.nan_to_num(0, 9, -9), mu.nan_to_num(0, 9, -9))
        # dmu = dz + dkl * mu: ties, where dz is half the way to the next number.
        mu = every[2**15 : 2**15 + 20000].view(dtype)
        dz = ((every[1 + 2**15 : 2**15 + 20001].view(dtype).double() - mu.double()) / 2).to(dtype)
        dmu = run(mu, torch.zeros_like(mu), dz=dz, dkl=torch.ones(20000), backend=backend)[2]
        assert torch.equal(dmu, (dz.float() + mu.float()).to(dtype))
        # Sums that fall between two numbers, and beyond the last.
        limit = torch.finfo(dtype).max
        mu = torch.logspace(-24, math.log2(limit), 999, base=2, dtype=torch.float64).to(dtype)
        dz = randn(999, seed=1).to(dtype) * mu
        weight = 1 + randn(999, seed=2)
        dmu = run(mu, torch.zeros_like(mu), dz=dz, dkl=weight, backend=backend)[2]
        rounded = (dz.float() + weight * mu.float()).to(dtype)
        torch.testing.assert_close(dmu, rounded, rtol=0, atol=0, equal_nan=True)
        assert dmu.isinf().any()


# --- gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("names", PRIORS)
def test_reference_gradients(names: tuple[str, ...]) -> None:
    mu, logvar, priors = arguments_for((2, 3), names, torch.float64)

    def function(mu: Tensor, logvar: Tensor, *given: Tensor) -> tuple[Tensor | None, ...]:
        return gaussian_sample_ref(mu, logvar, seed=7, **dict(zip(names, given, strict=True)))

    arguments = [x.requires_grad_() for x in (mu, logvar, *priors.values())]
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)
    # The operator's, which states them.
    sample = function(*arguments)
    assert isinstance(sample, Sample)
    derived, stated = gradients_of(sample, arguments), run(mu, logvar, **priors, backend="reference")[2:]
    for a, b in zip(derived, stated, strict=True):
        torch.testing.assert_close(a, b)


@each_backend
def test_gradients_of_what_is_asked_for(backend: Backend) -> None:
    """Each subset of arguments and of results has the gradients that it has among all."""
    mu, logvar, priors = arguments_for((3, 70))
    tensors = [mu, logvar, priors["prior_mu"], priors["prior_logvar"]]
    dz, dkl = randn(3, 70, seed=5), randn(3, seed=6)
    for given in ((dz, dkl), (dz, None), (None, dkl)):
        full = [x.clone().requires_grad_() for x in tensors]
        sample = gaussian_sample(
            *full[:2], prior_mu=full[2], prior_logvar=full[3], seed=7, backend=backend
        )
        pairs = [(x, g) for x, g in zip(sample, given, strict=True) if g is not None]
        results, slopes = [x for x, _ in pairs], [g for _, g in pairs]
        all_of_them = torch.autograd.grad(results, full, slopes, allow_unused=True)
        assert [g is None for g in all_of_them] == [False, False, given[1] is None, given[1] is None]
        for wants in itertools.product([False, True], repeat=4):
            some = [x.clone().requires_grad_(want) for x, want in zip(tensors, wants, strict=True)]
            if not any(wants):
                continue
            sample = gaussian_sample(
                *some[:2], prior_mu=some[2], prior_logvar=some[3], seed=7, backend=backend
            )
            results = [x for x, g in zip(sample, given, strict=True) if g is not None]
            wanted = [x for x in some if x.requires_grad]
            found = torch.autograd.grad(results, wanted, slopes, allow_unused=True)
            for a, b in zip(found, itertools.compress(all_of_them, wants), strict=True):
                assert a is None if b is None else torch.equal(a, b)


@each_backend
def test_without_divergence(backend: Backend) -> None:
    mu, logvar, priors = arguments_for((3, 70))
    mu.requires_grad_()
    logvar.requires_grad_()
    sample = gaussian_sample(mu, logvar, seed=7, backend=backend)
    alone = gaussian_sample(mu, logvar, seed=7, kl=False, backend=backend, **priors)
    assert alone.kl is None and torch.equal(alone.z, sample.z)
    dz = randn(3, 70, seed=5)
    for a, b in zip(
        torch.autograd.grad(alone.z, (mu, logvar), dz),
        torch.autograd.grad(sample.z, (mu, logvar), dz),
        strict=True,
    ):
        assert torch.equal(a, b)


@each_backend
def test_priors_broadcast(backend: Backend) -> None:
    mu, logvar, _ = arguments_for((4, 6, 5, 5))
    for shape in ((), (1,), (6, 1, 1), (4, 1, 1, 1), (5, 5), (1, 6, 5, 5), (4, 6, 1, 5)):
        small = [randn(*shape, seed=seed).requires_grad_() for seed in (3, 4)]
        large = [x.detach().expand(mu.shape).clone().requires_grad_() for x in small]
        results = []
        for prior_mu, prior_logvar in (small, large):
            sample = gaussian_sample(
                mu, logvar, prior_mu=prior_mu, prior_logvar=prior_logvar, seed=7, backend=backend
            )
            results.append((sample, gradients_of(sample, [prior_mu, prior_logvar])))
        assert torch.equal(results[0][0].z, results[1][0].z)
        assert torch.equal(results[0][0].kl, results[1][0].kl)
        for found, whole in zip(results[0][1], results[1][1], strict=True):
            assert found.shape == shape
            scale = float(whole.abs().sum())
            torch.testing.assert_close(found, whole.sum_to_size(shape), rtol=0, atol=2e-6 * scale)


@each_backend
def test_second_derivatives_are_refused(backend: Backend) -> None:
    mu, logvar, _ = arguments_for((2, 3))
    mu.requires_grad_()
    sample = gaussian_sample(mu, logvar, seed=7, backend=backend)
    dkl = randn(2, seed=1).requires_grad_()
    (first,) = torch.autograd.grad(sample.kl, mu, dkl, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@each_backend
@pytest.mark.parametrize("kl", [True, False])
def test_nothing_but_arguments_is_saved(backend: Backend, kl: bool) -> None:
    mu, logvar, priors = arguments_for((4, 6, 8, 8))
    # Views that have to be copied, and a prior that is the same for all samples.
    mu, logvar = (x.contiguous(memory_format=torch.channels_last) for x in (mu, logvar))
    priors = {name: x[0].clone() for name, x in priors.items()}
    seed = torch.tensor(7)
    given = [x.requires_grad_() for x in (mu, logvar, *priors.values())]
    saved = []
    with saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        sample = gaussian_sample(mu, logvar, seed=seed, kl=kl, backend=backend, **priors)
    memory = {x.untyped_storage().data_ptr() for x in (*given, seed)}
    assert len(saved) == (5 if kl else 3)
    assert {x.untyped_storage().data_ptr() for x in saved} <= memory
    gradients_of(sample, given[:2])


# --- what z depends on ---------------------------------------------------------------------


@each_backend
def test_flat_index_alone(backend: Backend) -> None:
    mu, logvar, _ = arguments_for((6, 700))

    def z_of(*shape: int) -> Tensor:
        size = math.prod(shape)
        flat = [x.flatten()[:size].reshape(shape) for x in (mu, logvar)]
        return gaussian_sample(*flat, seed=7, kl=False, backend=backend).z.flatten()

    whole = z_of(6, 700)
    for shape in (
        (4200,),
        (700, 6),
        (1, 4200),
        (2, 3, 7, 100),
        (4, 700),
        (3, 7),
        (1,),
        (1399, 3),
        (2, 513),
    ):
        z = z_of(*shape)
        if backend == "native":
            assert torch.equal(z, whole[: len(z)])
        else:  # torch's functions depend on where a vector register ends
            torch.testing.assert_close(z, whole[: len(z)])


@needs_native
@pytest.mark.parametrize("size", [1, 3, 16, 70, 512, 700])
def test_native_divergence_of_a_sample_alone(size: int) -> None:
    mu, logvar, priors = arguments_for((37, size))
    kl = gaussian_sample(mu, logvar, seed=7, backend="native", **priors).kl
    assert kl is not None
    for n in (0, 1, 18, 36):
        rows = slice(n, n + 1)
        some = {name: x[rows] for name, x in priors.items()}
        alone = gaussian_sample(mu[rows], logvar[rows], seed=8, backend="native", **some).kl
        assert torch.equal(alone, kl[rows])


def layouts_of(x: Tensor) -> Iterator[Tensor]:
    """The same 4-D tensor in other memory."""
    yield x.contiguous(memory_format=torch.channels_last)
    yield x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    yield torch.cat([x, x], 1).chunk(2, 1)[1]
    yield torch.cat([x, x], 0)[: len(x)]
    yield torch.stack([x, x], -1)[..., 1]
    yield torch.cat([x.new_zeros(1), x.flatten()])[1:].reshape(x.shape)


@each_dtype
@pytest.mark.parametrize(
    "shape", [(3, 5, 7, 2), (4, 4, 2, 2), (2, 4, 16, 16), (9, 1, 1, 3), (1, 3, 13, 31)]
)
@needs_native
def test_native_layouts(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mu, logvar, priors = arguments_for(shape, dtype=dtype)
    dz = randn(*shape, seed=8).to(dtype)
    usual = run(mu, logvar, dz=dz, **priors)
    given = (mu, logvar, dz, priors["prior_mu"], priors["prior_logvar"])
    for m, lv, d, pm, pl in zip(*map(layouts_of, given), strict=True):
        found = run(m, lv, prior_mu=pm, prior_logvar=pl, dz=d)
        for a, b in zip(found, usual, strict=True):
            assert torch.equal(a, b)
        assert found[0].is_contiguous()


@each_backend
def test_expanded_arguments_and_gradients(backend: Backend) -> None:
    shape = (3, 5, 40)
    one = randn(1, 5, 40, seed=1)
    logvar = torch.tensor(0.3).expand(shape)
    dz, dkl = torch.tensor(0.7).expand(shape), torch.tensor(-0.2).expand(3)
    found = run(one.expand(shape), logvar, dz=dz, dkl=dkl, backend=backend)
    copies = [x.clone() for x in (one.expand(shape), logvar, dz, dkl)]
    usual = run(*copies[:2], dz=copies[2], dkl=copies[3], backend=backend)
    for a, b in zip(found, usual, strict=True):
        torch.testing.assert_close(a, b)
        assert backend == "reference" or torch.equal(a, b)


@each_backend
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (0, 3, 2), (3, 0, 2), (0, 0)])
def test_empty(shape: tuple[int, ...], backend: Backend) -> None:
    mu, logvar, priors = arguments_for(shape)
    z, kl, *gradients = run(mu, logvar, backend=backend, **priors)
    assert z.shape == shape and torch.equal(kl, torch.zeros(shape[0]))
    assert [x.shape for x in gradients] == [shape] * 4
    shared = {"prior_mu": torch.zeros(shape[-1]), "prior_logvar": torch.zeros(())}
    *_, dprior_mu, dprior_logvar = run(mu, logvar, backend=backend, **shared)
    assert torch.equal(dprior_mu, torch.zeros(shape[-1])) and dprior_logvar == 0


# --- the seed ------------------------------------------------------------------------------


@each_backend
def test_manual_seed_governs(backend: Backend) -> None:
    mu, logvar, _ = arguments_for((3, 50))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first, second = (gaussian_sample(mu, logvar, backend=backend).z for _ in range(2))
        torch.manual_seed(5)
        again = gaussian_sample(mu, logvar, backend=backend).z
        # A given seed leaves the generator where it is.
        gaussian_sample(mu, logvar, seed=3, backend=backend)
        third = gaussian_sample(mu, logvar, backend=backend).z
    assert torch.equal(first, again) and torch.equal(second, third)
    assert not torch.equal(first, second)


@each_backend
def test_seeds(backend: Backend) -> None:
    mu, logvar = torch.zeros(40), torch.zeros(40)
    seen = []
    for seed in (0, 1, -1, 5, 5 + 2**32, 2**63 - 1, -(2**63)):
        z = gaussian_sample(mu, logvar, seed=seed, backend=backend).z
        for form in (torch.tensor(seed), torch.tensor([seed]), torch.tensor([[[seed]]])):
            assert torch.equal(gaussian_sample(mu, logvar, seed=form, backend=backend).z, z)
        assert all((z - other).abs().min() > 1e-6 for other in seen)
        seen.append(z)


@each_backend
def test_a_seed_that_has_changed_is_noticed(backend: Backend) -> None:
    mu, seed = torch.zeros(3, 4, requires_grad=True), torch.tensor([1])
    sample = gaussian_sample(mu, mu, seed=seed, backend=backend)
    seed += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sample.z.sum().backward()


# --- errors --------------------------------------------------------------------------------

X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        pytest.param(lambda: gaussian_sample(X, X[:, :2]), ValueError, "logvar .* match", id="shape"),
        pytest.param(lambda: gaussian_sample(X, X[:1]), ValueError, "logvar .* match", id="broadcast"),
        pytest.param(lambda: gaussian_sample(X[0, 0], X[0, 0]), ValueError, "dimension", id="scalar"),
        pytest.param(
            lambda: gaussian_sample(X, X, prior_mu=X[:, :2]), ValueError, "prior_mu", id="prior"
        ),
        pytest.param(
            lambda: gaussian_sample(X, X, prior_logvar=X[None]),
            ValueError,
            "prior_logvar",
            id="more dims",
        ),
        pytest.param(
            lambda: gaussian_sample(X[:1], X[:1], prior_mu=X), ValueError, "prior_mu", id="larger prior"
        ),
        pytest.param(lambda: gaussian_sample(X, X.double()), TypeError, "agree", id="dtypes"),
        pytest.param(lambda: gaussian_sample(X, X, prior_mu=X.half()), TypeError, "agree", id="prior's"),
        pytest.param(lambda: gaussian_sample(X.long(), X.long()), TypeError, "mu must", id="integers"),
        pytest.param(lambda: gaussian_sample(X.numpy(), X), TypeError, "mu must", id="array"),
        pytest.param(lambda: gaussian_sample(X, None), TypeError, "logvar must", id="None"),
        pytest.param(lambda: gaussian_sample(X.to_sparse(), X), TypeError, "dense", id="sparse"),
        pytest.param(lambda: gaussian_sample(X, X.to("meta")), ValueError, "is on", id="device"),
        pytest.param(lambda: gaussian_sample(X, X, backend="cuda"), ValueError, "backend", id="backend"),
        pytest.param(lambda: gaussian_sample(X, X, seed=2**63), ValueError, "seed", id="seed 2^63"),
        pytest.param(
            lambda: gaussian_sample(X, X, seed=-(2**63) - 1), ValueError, "seed", id="seed small"
        ),
        pytest.param(lambda: gaussian_sample(X, X, seed=1.0), TypeError, "seed", id="float seed"),
        pytest.param(lambda: gaussian_sample(X, X, seed=True), TypeError, "seed", id="bool seed"),
        pytest.param(lambda: gaussian_sample(X, X, seed=X.long()), ValueError, "seed", id="six seeds"),
        pytest.param(
            lambda: gaussian_sample(X, X, seed=torch.zeros(1)), TypeError, "seed", id="seed dtype"
        ),
        pytest.param(
            lambda: gaussian_sample(X.double(), X.double(), backend="native"),
            TypeError,
            "float64",
            id="float64 native",
            marks=needs_native,
        ),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


def test_native_needs_the_cpu() -> None:
    with pytest.raises(RuntimeError, match="backend='native'"):
        gaussian_sample(X.to("meta"), X.to("meta"), backend="native")


@needs_native
def test_auto_is_native_on_the_cpu() -> None:
    mu, logvar, _ = arguments_for((1, 5000))
    found = {b: gaussian_sample(mu, logvar, seed=7, backend=b).z for b in ("auto", "native", "reference")}
    assert torch.equal(found["auto"], found["native"])
    # They differ in the last bits, which tells them apart.
    assert not torch.equal(found["auto"], found["reference"])


# --- threads and instruction sets ----------------------------------------------------------


def digest(tensors: tuple[Tensor, ...]) -> str:
    data = b"".join(x.contiguous().view(torch.uint8).numpy().tobytes() for x in tensors)
    return hashlib.sha256(data).hexdigest()


def probe() -> dict[str, str]:
    """Digests of samples, divergences and gradients, the same on every instruction set."""
    digests = {}
    for dtype, shape in itertools.product(
        (torch.float32, torch.float16, torch.bfloat16), [*SHAPES[:-2], MANY, (40009, 3)]
    ):
        mu, logvar, priors = arguments_for(shape, dtype=dtype)
        # From no variance to infinite, and from no precision of the prior to all of it.
        logvar.flatten()[::7] *= 40
        priors["prior_logvar"].flatten()[::11] *= 40
        mu.flatten()[1::1001] = -torch.inf
        for names in PRIORS:
            found = run(mu, logvar, seed=-5, **{name: priors[name] for name in names})
            # Which NaN an operation gives is open.
            found = tuple(x.nan_to_num(nan=7.0, posinf=torch.inf, neginf=-torch.inf) for x in found)
            digests[f"{dtype} {shape} {names}"] = digest(found)
    return digests


@pytest.fixture(scope="module")
def probes() -> dict[str, tuple[str, str]]:
    """What `probe` prints under each instruction set."""
    return run_probes(__file__, ISAS)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets_agree(isa: str, probes: dict[str, tuple[str, str]]) -> None:
    assert_probe(isa, probes[isa], probe())


@pytest.fixture
def restore_threads() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@needs_native
@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("shape", [MANY, (1, 120001), (40009, 3), (120001,)])
def test_native_thread_counts_agree(shape: tuple[int, ...]) -> None:
    mu, logvar, priors = arguments_for(shape)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(mu, logvar, **priors))
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert torch.equal(a, b)


@needs_native
def test_native_threads_without_torch() -> None:
    """The kernel joins torch's threads where torch has been loaded, and has its own elsewhere."""
    code = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("_native", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
mu, logvar = (np.sin(np.arange(3 * 40009) * f).astype(np.float32).reshape(3, -1) for f in (0.1, 0.7))
z, kl = np.empty_like(mu), np.empty(3, np.float32)
native.gaussian_sample(mu, logvar, None, None, -5, z, kl, 3)
assert "torch" not in sys.modules
sys.stdout.buffer.write(z.tobytes() + kl.tobytes())
"""
    command = [sys.executable, "-c", code, str(load_native().__file__)]  # type: ignore[union-attr]
    alone = subprocess.run(command, capture_output=True, check=True).stdout
    waves = [np.sin(np.arange(math.prod(MANY)) * f).astype(np.float32) for f in (0.1, 0.7)]
    mu, logvar = (torch.from_numpy(wave).reshape(MANY) for wave in waves)
    z, kl = gaussian_sample(mu, logvar, seed=-5, backend="native")
    assert kl is not None
    assert alone == z.numpy().tobytes() + kl.numpy().tobytes()


@each_backend
def test_calls_agree(backend: Backend) -> None:
    mu, logvar, priors = arguments_for(MANY)
    first, second = (run(mu, logvar, backend=backend, **priors) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


# --- tracing -------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("kl", [True, False])
@pytest.mark.parametrize("names", [PRIORS[0], PRIORS[3]])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (3, 0)])
def test_opcheck(shape: tuple[int, ...], names: tuple[str, ...], kl: bool, backend: Backend) -> None:
    mu, logvar, priors = arguments_for(shape, names)
    given = [x.requires_grad_() for x in (mu, logvar, *priors.values())]
    given += [None] * (4 - len(given))
    seed = torch.tensor([7])
    torch.library.opcheck(torch.ops.vqcodec.gaussian_sample, (*given, seed, kl, backend))
    plain = [None if x is None else x.detach() for x in given]
    gradients = randn(*shape, seed=5), randn(shape[0], seed=6) if kl else None
    needs = [True, True, kl and bool(names), kl and bool(names)]
    torch.library.opcheck(
        torch.ops.vqcodec.gaussian_sample_backward, (*gradients, *plain, seed, needs, backend)
    )


@pytest.fixture
def forget_what_was_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield


@pytest.mark.usefixtures("forget_what_was_compiled")
@each_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool, backend: Backend) -> None:
    def loss(hidden: Tensor, prior: Tensor, seed: Tensor | None) -> Tensor:
        mu, logvar = hidden.chunk(2, 1)
        z, kl = gaussian_sample(mu, logvar, prior_mu=prior, seed=seed, backend=backend)
        assert kl is not None
        return z.square().sum() + kl.mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    prior = randn(4, 1, 1, seed=3).requires_grad_()
    for count in (2, 3):
        hidden = randn(count, 8, 5, 3, seed=1).requires_grad_()
        seed = torch.tensor(count)
        results = []
        for function in (loss, compiled):
            value = function(hidden, prior, seed)
            results.append((value, *torch.autograd.grad(value, (hidden, prior))))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
    # Seeds from the generator: traced, not fixed.
    assert compiled(hidden, prior, None) != compiled(hidden, prior, None)
