"""The Triton backend of the Gaussian sampler: noise, results, gradients, layouts, machine code.

What is expected comes from NumPy, in float64 and 64-bit integers. `triton_checks` says what the
three kinds of tests are.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

triton = pytest.importorskip("triton")
tl = triton.language

from triton_checks import (  # noqa: E402
    INTERPRETED,
    compiled,
    gpu,
    interpreted,
    machine_code,
    opcode,
    record_launches,
    run_interpreted,
)

from vqcodec_kernels import gaussian_sample_device as device  # noqa: E402
from vqcodec_kernels import gaussian_sample_triton as host  # noqa: E402
from vqcodec_kernels.gaussian_sample import gaussian_sample, gaussian_sample_ref  # noqa: E402
from vqcodec_kernels.gaussian_sample_triton import (  # noqa: E402
    launch_backward,
    launch_forward,
    tile_config,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, inside the interpreter

KERNELS = (device.sample_kernel, device.fold_kernel, device.gradient_kernel)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALL = (True, True, True, True)
SEEDS = (0, 1, -5, 2**63 - 1, -(2**63), 0x0123456789ABCDEF)
# One element, fewer than a counter's four, not multiples of four, several tiles and a bit, ragged.
SHAPES = ((1, 1), (5, 1), (3, 2), (7, 5), (2, 33), (2, 1025), (3, 2051), (1, 5000), (130, 8), (3, 1028))

# --- what is expected ----------------------------------------------------------------------------


def words(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox4x32-10 as in the paper: counters (..., 4) -> words (..., 4), all below 2^32."""
    mask, low = np.uint64(0xFFFFFFFF), np.uint64(32)
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    k = [np.uint64(key[0]), np.uint64(key[1])]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(second >> low) ^ c[1] ^ k[0], second & mask, (first >> low) ^ c[3] ^ k[1], first & mask]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return np.stack(c, -1)


def words_at(seed: int, index: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The words of the counters `index`, (len, 4)."""
    counter = np.zeros((len(index), 4), np.uint64)
    counter[:, 0], counter[:, 1] = index & 0xFFFFFFFF, index >> 32
    return words(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))


def normals(seed: int, count: int) -> Tensor:
    """The first normals of a seed, in float64."""
    top = (words_at(seed, np.arange((count + 3) // 4)) >> np.uint64(8)).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((top[:, 0::2] + 1.0) * 2.0**-24))
    angle = 2.0 * np.pi * 2.0**-24 * top[:, 1::2]
    found = np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1).reshape(-1)
    return torch.from_numpy(found[:count])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)  # fmt: skip
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    """The vectors of Random123, the paper's own implementation, for what is expected here."""
    assert words(np.array([counter], np.uint64), key)[0].tolist() == list(expected)


class Problem:
    """Arguments of the launches: mu, logvar, priors or None, and what multiplies the results."""

    def __init__(
        self,
        count: int,
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        priors: tuple[bool, bool] = (False, False),
        seed: int = 1234,
    ) -> None:
        random = torch.Generator().manual_seed(count * 7919 + size)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random)

        self.seed = seed
        self.mu, self.logvar = randn(count, size).to(dtype), (2 * randn(count, size)).to(dtype)
        self.priors = [randn(count, size).to(dtype) if given else None for given in priors]
        self.dz, self.dkl = randn(count, size).to(dtype), randn(count)

    @property
    def seeds(self) -> Tensor:
        return torch.tensor([self.seed], device=self.mu.device)

    def forward(self, *, kl: bool = True) -> tuple[Tensor, Tensor]:
        return launch_forward(self.mu, self.logvar, *self.priors, self.seeds, kl=kl)

    def backward(self, needs: tuple[bool, bool, bool, bool] = ALL) -> tuple[Tensor | None, ...]:
        return launch_backward(
            self.dz, self.dkl, self.mu, self.logvar, *self.priors, self.seeds, needs=needs
        )

    def cuda(self) -> "Problem":
        for name in ("mu", "logvar", "dz", "dkl"):
            setattr(self, name, getattr(self, name).cuda())
        self.priors = [None if prior is None else prior.cuda() for prior in self.priors]
        return self


def check_forward(problem: Problem) -> None:
    """z and the divergences against the formulas in float64.

    An exponential of x errs by |x| + 2 ulp at most, a normal by 4; 16-bit results are rounded once,
    which the interpreter does by cutting off.
    """
    z, divergence = problem.forward()
    mu, logvar = problem.mu.double(), problem.logvar.double()
    pm, pl = (torch.zeros_like(mu) if p is None else p.double() for p in problem.priors)
    count, size = mu.shape
    noise = (logvar / 2).exp() * normals(problem.seed, count * size).view(count, size).to(mu.device)
    assert z.shape == mu.shape and z.dtype == problem.mu.dtype and z.is_contiguous()
    error = noise.abs() * (8 + logvar.abs()) * 2.0**-23 + 2.0**-24 * mu.abs()
    error += (mu + noise).abs() * torch.finfo(z.dtype).eps + torch.finfo(z.dtype).tiny
    assert ((z.double() - (mu + noise)).abs() <= error).all()
    ratio = logvar - pl
    terms = torch.stack((ratio.expm1() - ratio, (mu - pm).square() * (-pl).exp()))
    scale = (terms * (8 + ratio.abs() + pl.abs())).sum((0, 2))
    assert divergence.shape == (count,) and divergence.dtype == torch.float32
    assert ((divergence.double() - 0.5 * terms.sum((0, 2))).abs() <= scale * 2.0**-22).all()


def check_backward(problem: Problem) -> None:
    """The gradients against the formulas in float64; tolerances as in check_forward."""
    found = problem.backward()
    mu, logvar, dz = problem.mu.double(), problem.logvar.double(), problem.dz.double()
    pm, pl = (torch.zeros_like(mu) if p is None else p.double() for p in problem.priors)
    dkl = problem.dkl.double()[:, None]
    noise = (logvar / 2).exp() * normals(problem.seed, mu.numel()).view(mu.shape).to(mu.device)
    slope, growth = (mu - pm) * (-pl).exp(), (logvar - pl).expm1()
    parts = (
        (dz, dkl * slope),
        (0.5 * dz * noise, 0.5 * dkl * growth),
        (-dkl * slope,),
        (-0.5 * dkl * growth, -0.5 * dkl * (mu - pm) * slope),
    )
    relative = (8 + logvar.abs() + pl.abs()) * 2.0**-23
    for gradient, part in zip(found, parts, strict=True):
        assert gradient is not None and gradient.shape == mu.shape and gradient.is_contiguous()
        assert gradient.dtype == problem.mu.dtype
        expected, scale = torch.stack(part).sum(0), torch.stack(part).abs().sum(0)
        # An exponential that has lost its last bits to the 1 it is near.
        scale = scale + dkl.abs() * (growth.abs() < 1) * 2.0**-3
        error = scale * relative + expected.abs() * torch.finfo(gradient.dtype).eps
        assert ((gradient.double() - expected).abs() <= error + torch.finfo(gradient.dtype).tiny).all()


# --- on Triton's interpreter -------------------------------------------------------------------


@compiled
def test_interpreter() -> None:
    run_interpreted(__file__)


if INTERPRETED:

    @triton.jit
    def philox_probe_kernel(seed, counter, out, SIZE: tl.constexpr):
        lane = tl.arange(0, SIZE)
        w0, w1, w2, w3 = device._philox(tl.load(seed), tl.load(counter + lane))
        tl.store(out + lane * 4, w0.to(tl.int64))
        tl.store(out + lane * 4 + 1, w1.to(tl.int64))
        tl.store(out + lane * 4 + 2, w2.to(tl.int64))
        tl.store(out + lane * 4 + 3, w3.to(tl.int64))

    @triton.jit
    def log_probe_kernel(number, out, SIZE: tl.constexpr):
        lane = tl.arange(0, SIZE)
        tl.store(out + lane, device._minus_two_log(tl.load(number + lane)))

    @triton.jit
    def angle_probe_kernel(turn, cosine, sine, SIZE: tl.constexpr):
        lane = tl.arange(0, SIZE)
        c, s = device._cos_sin(tl.load(turn + lane))
        tl.store(cosine + lane, c)
        tl.store(sine + lane, s)

    @triton.jit
    def tile_probe_kernel(
        counter, place, N, M, stride, tiles,
        VECTOR: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    ):  # fmt: skip
        row, left, lane, inside, first, tile = device._tile(N, M, tiles, VECTOR, ROWS, COLS)
        here = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
        tl.store(counter + here, first)
        offset = device._place(place, row, stride, left, lane, VECTOR).to(tl.int64) - place.to(tl.int64)
        tl.store(place + here * COLS + lane, tl.where(inside, offset // 8, -1))


def ulps(found: Tensor, expected: NDArray[np.float64]) -> float:
    """Largest error in units of the last place of the right float32."""
    unit = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    return float((np.abs(found.double().numpy() - expected) / unit).max())


@interpreted
@pytest.mark.parametrize("seed", SEEDS)
def test_words(seed: int) -> None:
    index = np.array([0, 1, 2, 3, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 7, 2**61 - 1] * 2)[:16]
    out = torch.empty(16, 4, dtype=torch.int64)
    philox_probe_kernel[(1,)](torch.tensor([seed]), torch.from_numpy(index), out, SIZE=16)
    assert out.tolist() == words_at(seed, index).astype(np.int64).tolist()


@interpreted
def test_logarithm() -> None:
    number = torch.cat(
        [torch.arange(1, 2**11 + 1), torch.arange(2**24 - 2**11 + 1, 2**24 + 1)]
        + [torch.arange(-128, 128) + int(2.0**e / 2**0.5) for e in range(10, 26)]
    ).to(torch.int32)
    number = number.clamp(1, 2**24)
    out = torch.empty(len(number))
    log_probe_kernel[(1,)](number, out, SIZE=len(number))
    assert out[number == 2**24].abs().max() == 0.0
    expected = -2.0 * np.log(number.numpy() * 2.0**-24)
    assert ulps(out[number < 2**24], expected[number.numpy() < 2**24]) <= 2.0


@interpreted
def test_cosine_and_sine() -> None:
    eighth = 1 << 21
    around = [torch.arange(-64, 64) + eighth * number for number in range(1, 8)]
    random = torch.randint(0, 2**24, (2**13 - 1024,), generator=torch.Generator().manual_seed(0))
    turn = torch.cat([torch.arange(64), *around, torch.arange(2**24 - 64, 2**24), random])
    cosine, sine = torch.empty(len(turn)), torch.empty(len(turn))
    angle_probe_kernel[(1,)](turn.to(torch.int32), cosine, sine, SIZE=len(turn))
    # NumPy's angles are rounded: near an axis only differences from it are exact enough.
    quarter = (turn + eighth) >> 22
    rest = (turn - (quarter << 22)).double().numpy() * (2.0 * np.pi * 2.0**-24)
    c, s, quarter = np.cos(rest), np.sin(rest), quarter.numpy() % 4
    assert ulps(cosine, np.choose(quarter, [c, -s, -c, s])) <= 2.0
    assert ulps(sine, np.choose(quarter, [s, c, -s, -c])) <= 2.0
    axes = [int((turn == number << 22).nonzero()[0]) for number in range(4)]
    assert cosine[axes].tolist() == [1.0, 0.0, -1.0, 0.0]
    assert sine[axes].tolist() == [0.0, 1.0, 0.0, -1.0]


@interpreted
@pytest.mark.parametrize("seed", SEEDS)
def test_normals(seed: int) -> None:
    zero = torch.zeros(1, 1 << 14)
    z, _ = launch_forward(zero, zero, None, None, torch.tensor([seed]), kl=False)
    assert ulps(z[0], normals(seed, 1 << 14).numpy()) <= 4.0


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_results(shape: tuple[int, int], dtype: torch.dtype) -> None:
    check_forward(Problem(*shape, dtype=dtype))
    check_backward(Problem(*shape, dtype=dtype))


@interpreted
@pytest.mark.parametrize("priors", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", [(7, 5), (3, 2051), (3, 1028)])
def test_priors(shape: tuple[int, int], priors: tuple[bool, bool]) -> None:
    for dtype in DTYPES:
        problem = Problem(*shape, dtype=dtype, priors=priors)
        check_forward(problem)
        check_backward(problem)


@interpreted
def test_divergence_is_never_negative() -> None:
    """Near the prior it is a difference of numbers that are almost equal."""
    logvar = torch.cat([torch.linspace(-1, 1, 100) * 10.0**-e for e in range(0, 9)])[:, None]
    mu = torch.zeros_like(logvar)
    for prior in (None, torch.full_like(logvar, 0.25)):
        shifted = logvar if prior is None else logvar + prior
        _, kl = launch_forward(mu, shifted, None, prior, torch.tensor([0]), kl=True)
        assert (kl >= 0).all()
        ratio = (shifted if prior is None else shifted - prior)[:, 0].double()
        expected = 0.5 * (ratio.expm1() - ratio)
        known = ratio.abs() > 1e-6  # below, float64 cannot tell either
        torch.testing.assert_close(kl.double()[known], expected[known], rtol=2e-6, atol=0.0)


@interpreted
@pytest.mark.parametrize("shape", [(3, 261), (2, 520), (40, 12)])
def test_tiles_do_not_change_the_noise(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.float16):
        problem = Problem(*shape, dtype=dtype)
        z, kl = problem.forward()
        gradients = problem.backward()
        for tile in (64, 512):
            monkeypatch.setattr(host, "_TILE", dict.fromkeys((1, 4, 8), tile))
            other, other_kl = problem.forward()
            assert torch.equal(other, z)
            torch.testing.assert_close(other_kl, kl, rtol=1e-5, atol=0.0)
            for first, second in zip(problem.backward(), gradients, strict=True):
                assert first is not None and second is not None and torch.equal(first, second)
        monkeypatch.undo()


@interpreted
def test_noise_goes_by_the_flat_index() -> None:
    flat = launch_forward(
        torch.zeros(1, 360), torch.zeros(1, 360), None, None, torch.tensor([9]), kl=False
    )
    for count, size in ((360, 1), (72, 5), (45, 8), (4, 90), (2, 180)):
        zero = torch.zeros(count, size)
        z, _ = launch_forward(zero, zero, None, None, torch.tensor([9]), kl=False)
        assert torch.equal(z.reshape(1, 360), flat[0])


@interpreted
def test_sums_of_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(5, 1000, priors=(True, True))
    _, kl = problem.forward()
    monkeypatch.setattr(host, "_TILE", {1: 64, 4: 64})
    monkeypatch.setattr(host, "_FOLD", 4)
    monkeypatch.setattr(host, "_LEAST_FOLD", 8)
    assert tile_config(1000, 4, True).tiles == 16
    _, other = problem.forward()
    torch.testing.assert_close(other, kl, rtol=1e-6, atol=0.0)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [40, 41])
def test_layouts(size: int, dtype: torch.dtype) -> None:
    """Row strides, rows that are one and the same, and starts that are not aligned."""
    plain = Problem(6, size, dtype=dtype, priors=(True, True))
    plain.priors = [prior[:1].expand(6, size).contiguous() for prior in plain.priors]
    expected, gradients = plain.forward(), plain.backward()

    def check(problem: Problem) -> None:
        found = problem.forward()
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=0.0)
        for one, other in zip(problem.backward(), gradients, strict=True):
            assert one is not None and other is not None and torch.equal(one, other)

    both = Problem(6, size, dtype=dtype, priors=(True, True))
    both.mu, both.logvar = torch.cat((plain.mu, plain.logvar), 1).chunk(2, dim=1)
    both.dz = torch.cat((plain.dz, plain.dz), 1)[:, size:]
    both.priors = [prior[:1].expand(6, size) for prior in plain.priors]
    check(both)
    for start in (1, 3, 8):
        wide = torch.zeros(6, size + 11, dtype=dtype)
        both.mu = wide[:, start : start + size].copy_(plain.mu)
        check(both)


@interpreted
def test_only_what_is_needed_is_returned() -> None:
    problem = Problem(3, 21, priors=(True, True))
    full = problem.backward()
    for needs in product((True, False), repeat=4):
        found = problem.backward(needs)
        for gradient, expected, need in zip(found, full, needs, strict=True):
            assert (gradient is not None) == need
            assert gradient is None or torch.equal(gradient, expected)


@interpreted
def test_missing_gradients_of_the_results() -> None:
    problem = Problem(3, 21, priors=(True, True))
    z_only, kl_only = Problem(3, 21, priors=(True, True)), Problem(3, 21, priors=(True, True))
    z_only.dkl, kl_only.dz = None, None  # type: ignore[assignment]
    parts = list(zip(z_only.backward(), kl_only.backward(), problem.backward(), strict=True))
    for first, second, expected in parts:
        torch.testing.assert_close(first + second, expected, rtol=1e-6, atol=1e-6)
    assert not parts[2][0].any() and not parts[3][0].any()
    problem.dkl = torch.tensor([0.75]).expand(3)
    one = problem.backward()
    problem.dkl = torch.full((3,), 0.75)
    for first, second in zip(one, problem.backward(), strict=True):
        assert torch.equal(first, second)


@interpreted
def test_empty() -> None:
    for shape in ((0, 3), (2, 0), (0, 0)):
        problem = Problem(*shape)
        z, kl = problem.forward()
        assert z.shape == shape and kl.tolist() == [0.0] * shape[0]
        assert [gradient.shape for gradient in problem.backward()] == [shape] * 4
    z, kl = Problem(3, 4).forward(kl=False)
    assert z.shape == (3, 4) and kl.shape == (0,) and kl.dtype == torch.float32


@interpreted
def test_not_finite() -> None:
    mu, logvar = torch.zeros(5, 6), torch.zeros(5, 6)
    mu[0, 1], mu[1, 2], logvar[2, 3], logvar[3, 5] = torch.nan, torch.inf, -torch.inf, torch.nan
    z, kl = launch_forward(mu, logvar, None, None, torch.tensor([3]), kl=True)
    assert z[0, 1].isnan() and z[1, 2].isposinf() and z[2, 3] == 0.0 and z[3, 5].isnan()
    assert z.isfinite().sum() == 30 - 3
    assert kl[0].isnan() and kl[1].isposinf() and kl[2].isposinf() and kl[3].isnan() and kl[4] == 0.0


@interpreted
@pytest.mark.parametrize("size", [2**31 + 4, 2**31 + 7, 2**33])
def test_offsets_beyond_31_bits(size: int) -> None:
    vector = 4 if size % 4 == 0 else 1
    rows, cols, stride = 2, 8, 3 * 2**30
    first, place = torch.zeros(6, dtype=torch.int64), torch.zeros(6, cols, dtype=torch.int64)
    # As if samples had one tile, so that six programs see five rows of three.
    tile_probe_kernel[(3,)](
        first, place, 5, size // vector, stride // vector, 1, VECTOR=vector, ROWS=rows, COLS=cols
    )
    for row in range(6):
        phase = row * size % 4
        assert first[row] == row * size // 4
        lanes = [lane - phase for lane in range(cols)]
        inside = [row < 5 and lane >= 0 for lane in lanes]
        expected = [row * stride + lane if ok else -1 for lane, ok in zip(lanes, inside, strict=True)]
        assert place[row].tolist() == expected


@interpreted
def test_the_public_operator() -> None:
    """Broadcast priors, samples of several dimensions, autograd, the seed of the generator."""
    random = torch.Generator().manual_seed(1)
    shapes = ((4, 3, 5), (4, 3, 5), (5,), (1, 3, 1))
    leaves = [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]
    weight, scale = torch.randn(4, 3, 5, generator=random), torch.randn(4, generator=random)

    def gradients(sample: Callable[..., Any], *tensors: Tensor, **options: Any) -> list[Tensor]:
        mu, logvar, prior_mu, prior_logvar = tensors
        z, kl = sample(mu, logvar, prior_mu=prior_mu, prior_logvar=prior_logvar, seed=-77, **options)
        loss = (z * weight).sum() + (kl * scale).sum()
        return [z.detach(), kl.detach(), *torch.autograd.grad(loss, tensors)]

    found = gradients(gaussian_sample, *leaves, backend="triton")
    expected = gradients(
        gaussian_sample_ref, *(leaf.detach().double().requires_grad_() for leaf in leaves)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-6, atol=2e-6)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(gaussian_sample(leaves[0], leaves[1], kl=False, backend="triton").z)
    assert torch.equal(*drawn)


# --- without a GPU: what the compiler makes of it --------------------------------------------------


def aligned_problem(dtype: torch.dtype, *, priors: bool, size: int = 4096) -> Problem:
    return Problem(4, size, dtype=dtype, priors=(priors, priors))


# Instructions an element of whole kernels: limits, and what Triton 3.7.1 gives (3.6, 3.9: within 5).
BUDGETS = [
    (torch.float32, False, 85, 85),  # 75, 75
    (torch.float32, True, 95, 100),  # 83, 91
    (torch.bfloat16, False, 75, 75),  # 64, 67
    (torch.float16, False, 75, 75),
]


@compiled
@pytest.mark.parametrize(("dtype", "priors", "forward", "backward"), BUDGETS)
def test_machine_code(
    dtype: torch.dtype,
    priors: bool,
    forward: float,
    backward: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loads and stores of 16 bytes, each byte once; no spills; an instruction budget."""
    problem = aligned_problem(dtype, priors=priors)
    needs = (True, True, priors, priors)
    (sample, fold) = record_launches(problem.forward, monkeypatch)
    (gradient,) = record_launches(lambda: problem.backward(needs), monkeypatch)
    assert fold.kernel is device.fold_kernel
    config = tile_config(4096, dtype.itemsize, True)
    each = config.cols // 128 * dtype.itemsize // 16  # vectors of a tensor that a thread holds
    inputs = 4 if priors else 2
    for launch, limit, reads, writes in (
        (sample, forward, inputs, 1),
        (gradient, backward, inputs + 1, inputs),
    ):
        code = machine_code(launch.compile(), tmp_path)
        opcodes = code.opcodes
        per_element = len(opcodes) * 128 / config.cols
        name = launch.kernel.__name__
        print(f"{name} {dtype} priors={priors}: {per_element:.0f} an element, {code.registers} registers")
        assert per_element <= limit
        assert code.stack == 0 and code.registers <= 96
        assert not {"STL", "LDL"} & {opcode.split(".")[0] for opcode in opcodes}
        loads = [opcode for opcode in opcodes if opcode.startswith("LDG")]
        stores = [opcode for opcode in opcodes if opcode.startswith("STG")]
        assert len([opcode for opcode in loads if opcode.endswith(".128")]) == reads * each
        assert len([opcode for opcode in stores if opcode.endswith(".128")]) == writes * each
        # Beside them the seed, and one number for each row.
        assert len(loads) <= reads * each + 2 and len(stores) <= writes * each + 1


@compiled
def test_gradients_that_are_not_needed_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = aligned_problem(torch.float32, priors=False)
    problem.dkl = None  # type: ignore[assignment]
    (launch,) = record_launches(lambda: problem.backward((True, False, False, False)), monkeypatch)
    opcodes = machine_code(launch.compile(), tmp_path).opcodes
    # A copy of dz: two vectors a thread each way, no noise.
    assert sum(opcode.startswith("LDG") for opcode in opcodes) == 2
    assert sum(opcode.startswith("STG") for opcode in opcodes) == 2
    assert not any(opcode.startswith("MUFU.EX2") for opcode in opcodes)


@compiled
@pytest.mark.parametrize("size", [1, 7, 24, 3001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_configuration_compiles(
    dtype: torch.dtype, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem(4, size, dtype=dtype, priors=(True, True))
    found = record_launches(lambda: (problem.forward(), problem.backward()), monkeypatch)
    assert len(found) == (3 if size > 1024 else 2)
    for launch in found:
        assert machine_code(launch.compile(), tmp_path).stack == 0


@compiled
def test_nothing_is_specialised_on_sizes_or_strides() -> None:
    for kernel in KERNELS:
        names = [p.name for p in kernel.params if not (p.is_constexpr or p.do_not_specialize)]
        assert not names, (kernel.__name__, names)


@compiled
def test_opcodes_have_no_predicate() -> None:
    assert opcode("@!P0 LDG.E.128 R4, [R2.64]") == opcode("LDG.E.128 R4, [R2.64]") == "LDG.E.128"


# --- on a GPU ------------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (1000, 256), (64, 16384), (70_000, 3)])
def test_gpu_results(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for priors in ((False, False), (True, True)):
        problem = Problem(*shape, dtype=dtype, priors=priors).cuda()
        check_forward(problem)
        check_backward(problem)
        first, second = problem.forward(), problem.forward()
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@gpu
@pytest.mark.parametrize("seed", SEEDS)
def test_gpu_normals(seed: int) -> None:
    zero = torch.zeros(1, 1 << 20, device="cuda")
    z, _ = launch_forward(zero, zero, None, None, torch.tensor([seed], device="cuda"), kl=False)
    assert ulps(z[0].cpu(), normals(seed, 1 << 20).numpy()) <= 6.0  # its square root may err by one


@gpu
def test_gpu_more_than_31_bits_of_elements() -> None:
    size = 2**31 + 4096
    if torch.cuda.mem_get_info()[0] < 8 * size:
        pytest.skip("needs 17 GB of GPU memory")
    mu = torch.zeros(1, size, dtype=torch.bfloat16, device="cuda")
    z, _ = launch_forward(mu, mu, None, None, torch.tensor([5], device="cuda"), kl=False)
    counters = np.arange((size - 4096) // 4, size // 4)
    top = (words_at(5, counters) >> np.uint64(8)).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((top[:, 0] + 1.0) * 2.0**-24))
    expected = torch.from_numpy(radius * np.cos(2.0 * np.pi * 2.0**-24 * top[:, 1]))
    found = z[0, -4096::4].double().cpu()
    torch.testing.assert_close(found, expected, rtol=2.0**-8, atol=1e-6)


@gpu
def test_gpu_graph_draws_anew_when_the_seed_is_written() -> None:
    problem = Problem(6, 1000).cuda()
    seed = torch.tensor([1], device="cuda")

    def step() -> tuple[Tensor, ...]:
        z, kl = launch_forward(problem.mu, problem.logvar, None, None, seed, kl=True)
        found = launch_backward(
            problem.dz, problem.dkl, problem.mu, problem.logvar, None, None, seed,
            needs=(True, True, False, False),
        )  # fmt: skip
        return z, kl, *(gradient for gradient in found if gradient is not None)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for number in (1, -4, 2**40):
        seed.fill_(number)
        graph.replay()
        for found, expected in zip(captured, step(), strict=True):
            assert torch.equal(found, expected)


@gpu
def test_gpu_one_compiled_kernel_for_every_size() -> None:
    def compiled_kernels() -> int:
        kernels = (device.sample_kernel, device.gradient_kernel)
        return sum(len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels)

    before = None
    for count, size in ((1, 8192), (16, 8192), (17, 2064), (4096, 4096)):
        problem = Problem(count, size).cuda()
        problem.forward()
        problem.backward((True, True, False, False))
        before = compiled_kernels() if before is None else before
        assert compiled_kernels() == before
