"""Speed and memory of vqcodec_kernels.gaussian_sample beside PyTorch, all in one run.

    pytest bench/bench_gaussian_sample.py [--results FILE] [--threads 1,2] [--quick] [-k EXPRESSION]

Purpose: how many times faster than eager PyTorch and torch.compile a sample with its divergence is,
forward and backward; what each keeps for the backward pass; what share of the bandwidth of a copy is
used; and the bars on all that. Needs the extra `test`. Figures decide nothing: a bar that is not met
is printed as FAIL, but only a wrong result fails.

Layout: shapes and bars; what is compared; its check; one case; what is reported; the tests.

What is measured: z and the divergence of float32 arguments in memory, then the gradients of both
arguments for given dz and dkl. Each way of doing it is checked, then all of them take turns as in
bench_nearest_codeword.py, and ratios are those of medians. On a GPU they are captured in CUDA graphs,
which leaves the kernels alone, and the bars go by those; calls as Python makes them are timed too.
The copy moves the bytes that arguments and results have: 12 an element forward, 20 backward. Run it
on an idle machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.rd import Check
from bench.search_baselines import WrongResultError, limited_threads
from bench.timing import FULL, QUICK, Effort, Timing, take_turns
from bench.timing_report import TimingReport
from vqcodec_kernels import gaussian_sample, native_isa, philox_normal
from vqcodec_kernels.gaussian_sample import Backend


@dataclass(frozen=True)
class Shape:
    """N samples of M elements."""

    count: int
    size: int

    @property
    def elements(self) -> int:
        return self.count * self.size


SHAPES = {"2^20": Shape(256, 4096), "2^24": Shape(1024, 16384)}
QUICK_SHAPE = Shape(8, 260)

BAR_THREADS = 2
EAGER_RATIO = {"cpu": 3.0, "cuda": 5.0}
"""Times faster than the best of eager PyTorch, least of the sizes."""
COMPILED_RATIO = 1.15
COPY_SHARE = 0.85
"""Of the bandwidth of a copy, at the largest size. Both on a GPU."""
SAVED_BYTES = 64
"""For the backward pass, beyond the arguments: a seed, no noise."""

BYTES = 32
"""An element of float32: mu, logvar and z forward; these two, dz and two gradients backward."""
OURS, EAGER, DISTRIBUTIONS, COMPILED, COPY = (
    "vqcodec", "eager", "torch.distributions", "torch.compile", "copy",
)  # fmt: skip
GRAPH = ", graph"
"""Ends the name of what was captured in a CUDA graph."""

# --- what is compared -----------------------------------------------------------------------------

Sampler = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""mu, logvar (N, M) -> z (N, M), divergence from N(0, 1) (N,)."""


def sample_eager(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """The formula as it is usually written."""
    sigma = torch.exp(0.5 * logvar)
    z = mu + sigma * torch.randn_like(sigma)
    return z, 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar).sum(1)


def sample_distributions(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """The same with torch.distributions."""
    from torch.distributions import Normal, kl_divergence

    posterior = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    prior = Normal(torch.zeros_like(mu), torch.ones_like(mu), validate_args=False)
    return posterior.rsample(), kl_divergence(posterior, prior).sum(1)


def our_sampler(backend: Backend, seed: int | None = None) -> Sampler:
    """The kernel, named by its backend so that no fallback is timed in its place."""

    def sample(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = gaussian_sample(mu, logvar, seed=seed, backend=backend)
        assert kl is not None
        return z, kl

    return sample


def samplers(device: str, backend: Backend, *, compiled: bool) -> dict[str, Sampler]:
    """Ours and all that can run here; `compiled`: torch.compile too, which takes seconds."""
    found: dict[str, Sampler] = {
        OURS: our_sampler(backend),
        EAGER: sample_eager,
        DISTRIBUTIONS: sample_distributions,
    }
    # What torch needs to compile for the CPU.
    if compiled and (device == "cuda" or shutil.which(os.environ.get("CXX", "g++"))):
        # After some shapes of one function torch gives up and runs it without compiling.
        torch.compiler.reset()
        found[COMPILED] = torch.compile(sample_eager, dynamic=False)
    return found


class Problem(NamedTuple):
    """mu and logvar (N, M), which want gradients, and those of the results: dz (N, M), dkl (N,)."""

    mu: Tensor
    logvar: Tensor
    dz: Tensor
    dkl: Tensor


def make_problem(shape: Shape, device: str) -> Problem:
    random = torch.Generator(device).manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=random, device=device)

    size = shape.count, shape.size
    mu, logvar = randn(*size).requires_grad_(), (randn(*size) - 1.0).requires_grad_()
    return Problem(mu, logvar, randn(*size), randn(shape.count))


def forward_backward(sample: Sampler, problem: Problem) -> tuple[Tensor, ...]:
    """z, divergence and the gradients of mu and logvar: what is timed."""
    mu, logvar, dz, dkl = problem
    results = sample(mu, logvar)
    return *results, *torch.autograd.grad(results, (mu, logvar), (dz, dkl))


def saved_bytes(sample: Sampler, problem: Problem) -> int:
    """Bytes that are kept from the forward pass for the backward pass, the arguments aside."""
    arguments = {tensor.untyped_storage().data_ptr() for tensor in (problem.mu, problem.logvar)}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = sample(problem.mu, problem.logvar)
    del results  # until here, so that no two tensors had one address
    return sum(size for address, size in kept.items() if address not in arguments)


# --- its check ------------------------------------------------------------------------------------

RELATIVE, ABSOLUTE = 1e-5, 2e-5
"""Of results in float32, against float64."""
DEVIATIONS = 6.0
"""By which mean and variance of the noise may miss 0 and 1, in their own standard deviations."""


def _compare(what: str, found: Tensor, expected: Tensor) -> None:
    if not torch.allclose(found.double(), expected, rtol=RELATIVE, atol=ABSOLUTE):
        worst = (found.double() - expected).abs().max()
        raise WrongResultError(f"{what} is off by {worst:g}")


def check_results(problem: Problem, results: Sequence[Tensor]) -> None:
    """The noise of z is normal, the divergence right, the gradients those of that very noise."""
    z, kl, dmu, dlogvar = (tensor.detach() for tensor in results)
    mu, logvar, dz, dkl = (tensor.detach().double() for tensor in problem)
    noise = z.double() - mu
    eps = noise * torch.exp(-0.5 * logvar)
    count = eps.numel()
    for what, value, deviation in (
        ("mean", eps.mean(), count**-0.5),
        ("variance", eps.square().mean() - 1.0, (2.0 / count) ** 0.5),
        ("correlation of neighbours", (eps[:, 1:] * eps[:, :-1]).mean(), count**-0.5),
    ):
        if not abs(float(value)) <= DEVIATIONS * deviation:
            raise WrongResultError(f"{what} of the noise is off by {float(value):g}")
    _compare("divergence", kl, 0.5 * (mu.square() + logvar.expm1() - logvar).sum(1))
    _compare("gradient of mu", dmu, dz + dkl[:, None] * mu)
    _compare("gradient of logvar", dlogvar, 0.5 * (dz * noise + dkl[:, None] * logvar.expm1()))


def check_noise(problem: Problem, backend: Backend) -> None:
    """The first and last normals of a seed are those that the documentation promises."""
    seed, some = 20, min(problem.mu.numel(), 1 << 16)
    z, _ = our_sampler(backend, seed)(problem.mu.detach(), problem.logvar.detach())
    for start in (0, problem.mu.numel() - some):
        eps = philox_normal(seed, some, start=start, dtype=torch.float64).to(z.device)
        part = slice(start, start + some)
        mu, logvar = (tensor.detach().flatten()[part].double() for tensor in problem[:2])
        _compare("z of a seed", z.flatten()[part], mu + torch.exp(0.5 * logvar) * eps)


# --- one case -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One shape on one device with one number of threads.

    timings: by name, of captured graphs too; saved: bytes for the backward pass by name.
    """

    shape: Shape
    device: str
    backend: Backend
    threads: int
    timings: Mapping[str, Timing]
    saved: Mapping[str, int]

    def seconds(self, name: str) -> float | None:
        """Median of a call or, on a GPU, of its graph; None if it was not timed."""
        timing = self.timings.get(name + GRAPH if self.device == "cuda" else name)
        return None if timing is None else timing.median

    def ratio(self, *names: str) -> float | None:
        """How many times faster ours is than the fastest of `names`."""
        ours = self.seconds(OURS)
        times = [seconds for name in names if (seconds := self.seconds(name)) is not None]
        return min(times) / ours if times and ours else None

    def as_json(self) -> dict[str, Any]:
        """The case as it goes into a result file."""
        ratios = {
            "eager": self.ratio(EAGER, DISTRIBUTIONS),
            "torch.compile": self.ratio(COMPILED),
        }
        ours = self.seconds(OURS)
        return {
            "shape": asdict(self.shape),
            "device": self.device,
            "backend": self.backend,
            "threads": self.threads,
            "seconds": {name: asdict(timing) for name, timing in self.timings.items()},
            "times_faster_than": ratios,
            "share_of_copy_bandwidth": self.ratio(COPY),
            "gb_s": BYTES * self.shape.elements / ours / 1e9 if ours else None,
            "saved_bytes": dict(self.saved),
        }


def prepare_copy(shape: Shape, device: str) -> Callable[[], object]:
    """A copy that reads and writes as many bytes as arguments and results of ours have."""
    source = torch.ones(BYTES // 8 * shape.elements, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """A CUDA graph of the call, which has run before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure(
    shape: Shape, *, device: str, backend: Backend, threads: int, effort: Effort
) -> tuple[Case, Callable[[], object]]:
    """Checks and times everything for one shape; also returns our call, ready to run.

    Raises `WrongResultError` if one of them, ours or another, returns what it must not.
    """
    problem = make_problem(shape, device)
    torch.manual_seed(0)
    calls: dict[str, Callable[[], object]] = {}
    saved: dict[str, int] = {}
    with limited_threads(threads):
        check_noise(problem, backend)
        for name, sample in samplers(device, backend, compiled=effort.compiled).items():
            try:
                check_results(problem, forward_backward(sample, problem))
            except WrongResultError as error:
                error.add_note(f"while looking at {name!r} on {threads} threads")
                raise
            saved[name] = saved_bytes(sample, problem)
            calls[name] = partial(forward_backward, sample, problem)
        ours = calls[OURS]
        calls[COPY] = prepare_copy(shape, device)
        if device == "cuda":
            calls |= {name + GRAPH: captured(call) for name, call in calls.items()}
        timings = take_turns(
            calls,
            rounds=effort.rounds,
            turn_seconds=effort.turn_seconds,
            finish=torch.cuda.synchronize if device == "cuda" else lambda: None,
        )
    return Case(shape, device, backend, threads, timings, saved), ours


# --- what is reported -----------------------------------------------------------------------------


def bars(cases: Iterable[Case]) -> list[Check]:
    """Every bar; on the CPU with BAR_THREADS threads. None where nothing was measured."""
    found: list[Check] = []

    def least(name: str, values: Iterable[float | None], bar: float, form: str, missing: str) -> None:
        known = [value for value in values if value is not None]
        value = form.format(min(known)) if known else missing
        found.append(Check(name, value, min(known) >= bar if known else None))

    every = list(cases)
    for device in ("cpu", "cuda"):
        here = [
            case
            for case in every
            if case.device == device and (device == "cuda" or case.threads == BAR_THREADS)
        ]
        where = {"cpu": "CPU", "cuda": "GPU"}[device]
        owed = device == "cuda" and not torch.cuda.is_available()
        missing = "owed: this machine has no GPU" if owed else "not measured"
        bar = EAGER_RATIO[device]
        ratios = (case.ratio(EAGER, DISTRIBUTIONS) for case in here)
        least(f"{where}: at least {bar:g} times faster than eager", ratios, bar, "{:.2f}", missing)
        if device == "cuda":
            bar, ratios = COMPILED_RATIO, (case.ratio(COMPILED) for case in here)
            name = f"{where}: at least {bar:g} times faster than torch.compile"
            least(name, ratios, bar, "{:.2f}", missing)
            largest = max(shape.elements for shape in SHAPES.values())
            shares = (case.ratio(COPY) for case in here if case.shape.elements == largest)
            name = f"{where}: at least {COPY_SHARE:.0%} of the bandwidth of a copy"
            least(name, shares, COPY_SHARE, "{:.1%}", missing)
        most = max((case.saved[OURS] for case in here), default=None)
        found.append(
            Check(
                f"{where}: no noise saved, {SAVED_BYTES} bytes at most for the backward pass",
                missing if most is None else f"{most} bytes",
                None if most is None else most <= SAVED_BYTES,
            )
        )
    return found


def table(cases: Sequence[Case]) -> list[str]:
    """Lines of a table of cases: ms, ratios, share of the copy, bytes an element saved by each."""
    names = [OURS, EAGER, DISTRIBUTIONS, COMPILED]
    head = f"{'N x M':<12} {'where':>7} " + " ".join(f"{name + ' ms':>22}" for name in names)
    head += f" {'x eager':>8} {'x compile':>9} {'of copy':>8}  saved B/element"
    lines = [head]

    def shown(value: float | None, form: str) -> str:
        return "n/a" if value is None else form.format(value)

    for case in cases:
        where = "GPU" if case.device == "cuda" else f"CPU x{case.threads}"
        line = f"{case.shape.count}x{case.shape.size}".ljust(12) + f" {where:>7}"
        for name in names:
            seconds = case.seconds(name)
            line += " " + shown(None if seconds is None else 1e3 * seconds, "{:.4f}").rjust(22)
        line += " " + shown(case.ratio(EAGER, DISTRIBUTIONS), "{:.2f}").rjust(8)
        line += " " + shown(case.ratio(COMPILED), "{:.2f}").rjust(9)
        line += " " + shown(case.ratio(COPY), "{:.0%}").rjust(8) + "  "
        elements = case.shape.elements
        line += ", ".join(
            f"{name} {case.saved[name] / elements:.1f}" for name in names if name in case.saved
        )
        lines.append(line)
    return lines


class Report(TimingReport[Case]):
    """The cases of this benchmark."""

    script = "bench_gaussian_sample"
    title = "gaussian_sample: z and divergence forward, gradients backward, float32"
    packages = ("triton",)

    def bars(self) -> list[Check]:
        return bars(self.cases)

    def lines(self) -> list[str]:
        return table(self.cases)


# --- the tests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    found = Report(request.config)
    yield found
    if found.cases:
        # A plugin from now on, so that pytest calls its summary hook.
        request.config.pluginmanager.register(found)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The shapes of each test; --quick shrinks them, ids stay."""
    config = metafunc.config
    used = [QUICK_SHAPE if config.getoption("--quick") else shape for shape in SHAPES.values()]
    metafunc.parametrize("shape", used, ids=list(SHAPES))
    if "threads" in metafunc.fixturenames:
        threads = config.getoption("--threads")
        metafunc.parametrize("threads", threads, ids=[f"{number}threads" for number in threads])


def run_case(
    shape: Shape, *, device: str, backend: Backend, threads: int, report: Report, benchmark: Any
) -> None:
    """Measure, hand the case to the report, and let pytest-benchmark time ours too."""
    effort = QUICK if report.quick else FULL
    case, ours = measure(shape, device=device, backend=backend, threads=threads, effort=effort)
    report.cases.append(case)
    benchmark.extra_info.update(case.as_json())

    def call() -> None:
        ours()
        if device == "cuda":
            torch.cuda.synchronize()

    with limited_threads(threads):
        benchmark.pedantic(call, rounds=effort.rounds, iterations=case.timings[OURS].repeats)


def cpu_backend(config: pytest.Config) -> Backend:
    """The native kernel; the reference stands in for it only where no figure is wanted."""
    if native_isa() is not None:
        return "native"
    if not config.getoption("--quick"):
        # Not skipped: a run that measured nothing must not look like one that went well.
        pytest.fail(
            "the native extension is not built; --quick runs the reference in its place", pytrace=False
        )
    return "reference"


def test_cpu(
    shape: Shape, threads: int, report: Report, benchmark: Any, pytestconfig: pytest.Config
) -> None:
    run_case(
        shape,
        device="cpu",
        backend=cpu_backend(pytestconfig),
        threads=threads,
        report=report,
        benchmark=benchmark,
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: its figures are owed")
def test_gpu(shape: Shape, report: Report, benchmark: Any) -> None:
    run_case(
        shape,
        device="cuda",
        backend="triton",
        threads=torch.get_num_threads(),
        report=report,
        benchmark=benchmark,
    )
