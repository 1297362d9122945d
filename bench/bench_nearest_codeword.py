"""Speed of vqcodec_kernels.nearest_codeword beside other searches, all in one run.

    pytest bench/bench_nearest_codeword.py [--results FILE] [--threads 1,2] [--quick] [-k EXPRESSION]

Purpose: how many times faster than faiss, scikit-learn and formulations in torch, what share of
the rate of sgemm, how much memory, and the bars on all that. Needs the extras `test` and `bench`.
Figures decide nothing: a bar that is not met is printed as FAIL, but only a wrong result fails.

Layout: shapes and bars; one case; what is reported; the tests.

What is measured: whole calls with everything in memory. Each search is checked, then those of one
shape take turns, round after round, so that a machine that slows down slows all of them; a turn
repeats a fast search. The figure is the median over the rounds, and ratios are those of medians of
one shape and number of threads. pytest-benchmark's own table has our exact search alone, timed
after the others. Run it on an idle machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.rd import Check
from bench.search_baselines import (
    EXACT,
    TF32,
    Problem,
    Rounding,
    Search,
    Shape,
    Truth,
    WrongResultError,
    check_result,
    competitors,
    limited_threads,
    make_problem,
    true_nearest,
)
from bench.search_memory import cuda_memory_beyond_output, memory_beyond_output
from bench.timing import FULL, QUICK, Effort, Timing, take_turns
from bench.timing_report import TimingReport
from vqcodec_kernels import native_isa, nearest_codeword
from vqcodec_kernels.nearest_codeword import Backend, Precision

CPU_SHAPES = (
    Shape(16384, 1024, 64),
    Shape(16384, 512, 64),
    Shape(8192, 8192, 64),
    Shape(2048, 16384, 256),
    Shape(4096, 65536, 32),
    Shape(16384, 1024, 16),
)
GPU_SHAPES = (
    Shape(65536, 1024, 64),
    Shape(65536, 8192, 64),
    Shape(262144, 16384, 256),
    Shape(1048576, 512, 64),
    Shape(16384, 65536, 32),
)
CODEC_SHAPES = tuple(
    Shape(4096, 256, dim, groups=80, tables=tables) for tables in (0, 32) for dim in (1, 2, 4, 8)
)
"""What the codec asks for: many small codebooks, with the biases of its rate control."""

BAR_THREADS = 2
FAISS_RATIO, CDIST_RATIO = 1.4, 4.0
"""Times faster, medians over CPU_SHAPES."""
SGEMM_DIM, SGEMM_SHARE = 64, 0.85
MEMORY_BYTES = 16e6
"""Beyond the output and one packed codebook."""
CODEC_DIM, TORCH_RATIO = 4, 15.0
"""The codec's dimension, and times faster than the best formulations in torch there."""
PAIRS_PER_SECOND = {False: 14e9, True: 8e9}
"""With AVX-512, at CODEC_DIM: without and with bias tables."""

OURS, OURS_FAST, SGEMM = "vqcodec exact", "vqcodec fast", "sgemm"
PACKAGES = (
    "faiss-cpu",
    "flash-kmeans",
    "flashlib",
    "pytest-benchmark",
    "scikit-learn",
    "threadpoolctl",
    "triton",
)
"""Those that decide the figures here, besides the ones that every result file names."""


def shrink(shape: Shape) -> Shape:
    """A shape of the same kind for --quick."""
    return replace(
        shape,
        count=min(shape.count, 300),
        size=min(shape.size, 40),
        groups=min(shape.groups, 3),
        tables=min(shape.tables, 4),
    )


# --- one case -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One shape on one device with one number of threads.

    timings: of every search and of sgemm where it was timed; families: names of the competitors
    among which the fastest counts; rescored: share of the vectors that the first pass of our exact
    search left undecided; memory: bytes beyond the output, None where it was not measured.
    """

    shape: Shape
    device: str
    backend: Backend
    threads: int
    timings: Mapping[str, Timing]
    families: Mapping[str, Sequence[str]]
    sgemm_flops: int
    rescored: float
    memory: int | None

    @property
    def flops_per_second(self) -> float:
        """2NKD over the time of our exact search."""
        return self.shape.flops / self.timings[OURS].median

    @property
    def pairs_per_second(self) -> float:
        """NK over the time of our exact search."""
        return self.shape.pairs / self.timings[OURS].median

    @property
    def sgemm_share(self) -> float | None:
        """Our rate over that of sgemm in the same rounds."""
        if SGEMM not in self.timings:
            return None
        return self.flops_per_second * self.timings[SGEMM].median / self.sgemm_flops

    def fastest(self, family: str) -> str | None:
        """The competitor of a family that counts; None if none of them could run."""
        names = self.families.get(family)
        return min(names, key=lambda name: self.timings[name].median) if names else None

    def ratio(self, family: str) -> float | None:
        """How many times faster our exact search is than the fastest of a family."""
        name = self.fastest(family)
        return None if name is None else self.timings[name].median / self.timings[OURS].median

    def as_json(self) -> dict[str, Any]:
        """The case as it goes into a result file."""
        ratios = {family: (self.fastest(family), self.ratio(family)) for family in self.families}
        return {
            "shape": asdict(self.shape),
            "device": self.device,
            "backend": self.backend,
            "threads": self.threads,
            "seconds": {name: _rounded(asdict(timing)) for name, timing in self.timings.items()},
            "times_faster_than": {
                family: {"name": name, "ratio": _significant(ratio)}
                for family, (name, ratio) in ratios.items()
            },
            "gflop_s": _significant(self.flops_per_second / 1e9),
            "gpairs_s": _significant(self.pairs_per_second / 1e9),
            "share_of_sgemm": _significant(self.sgemm_share),
            "rescored_share": _significant(self.rescored),
            "memory_beyond_output_bytes": self.memory,
            "codebook_bytes": self.shape.codebook_bytes,
        }


def _significant(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _significant(value) for name, value in values.items()}


def our_search(problem: Problem, *, precision: Precision, backend: Backend) -> Search:
    """A call of the kernel, named by its backend so that no fallback is timed in its place."""
    return partial(
        nearest_codeword,
        problem.x,
        problem.codebook,
        problem.bias,
        bias_table=problem.table,
        precision=precision,
        backend=backend,
    )


def prepare_sgemm(size: int, device: str) -> Callable[[], Tensor]:
    """A product of two square matrices in float32."""
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return partial(torch.mm, a, b, out=torch.empty_like(a))


def measure(
    shape: Shape, *, device: str, backend: Backend, threads: int, effort: Effort, memory: bool
) -> tuple[Case, Search]:
    """Checks and times every search for one shape; also returns our exact search, ready to run.

    Raises `WrongResultError` if a search, ours or another, returns what it must not.
    """
    problem = make_problem(shape, device=device)
    truth = true_nearest(problem)
    ours = our_search(problem, precision="exact", backend=backend)
    searches: dict[str, tuple[Rounding | None, Search]] = {OURS: (EXACT, ours)}
    families: dict[str, list[str]] = {}
    with limited_threads(threads):
        if backend == "triton":  # the others do nothing else for "fast"
            searches[OURS_FAST] = (TF32, our_search(problem, precision="fast", backend=backend))
        for each in competitors(shape, device=device, compiled=effort.compiled):
            searches[each.name] = each.rounding, each.prepare(problem)
            families.setdefault(each.family, []).append(each.name)
        found = {name: search() for name, (_, search) in searches.items()}
        every_row = torch.arange(shape.count, device=device)
        for name, (rounding, _) in searches.items():
            index = found[name].reshape(shape.groups, shape.count).long()
            try:
                check_result(problem, index, truth, rounding)
                # Brute force saw a sample. On no vector may another do better than our exact search.
                check_result(problem, found[OURS], Truth(every_row, index), EXACT)
            except WrongResultError as error:
                error.add_note(f"while looking at {name!r} on {threads} threads")
                raise
        calls: dict[str, Callable[[], object]] = {name: x for name, (_, x) in searches.items()}
        if shape.dim == SGEMM_DIM:
            calls[SGEMM] = prepare_sgemm(effort.sgemm_size, device)
            calls[SGEMM]()
        timings = take_turns(
            calls,
            rounds=effort.rounds,
            turn_seconds=effort.turn_seconds,
            finish=torch.cuda.synchronize if device == "cuda" else lambda: None,
        )
        counted = nearest_codeword(
            problem.x,
            problem.codebook,
            problem.bias,
            bias_table=problem.table,
            backend=backend,
            return_stats=True,
        )
    beyond = None
    if memory and device == "cuda":
        beyond = cuda_memory_beyond_output(shape, backend=backend)
    elif memory:
        beyond = memory_beyond_output(shape, backend=backend, threads=threads)
    case = Case(
        shape=shape,
        device=device,
        backend=backend,
        threads=threads,
        timings=timings,
        families=families,
        sgemm_flops=2 * effort.sgemm_size**3,
        rescored=int(counted.stats.rescored) / counted.stats.vectors,
        memory=beyond,
    )
    return case, ours


# --- what is reported -----------------------------------------------------------------------------


def bars(cases: Iterable[Case], *, isa: str | None) -> list[Check]:
    """Every bar, measured on the CPU with BAR_THREADS threads; None where a case is missing."""
    here = {case.shape: case for case in cases if case.device == "cpu" and case.threads == BAR_THREADS}
    found = []
    for family, bar in (("faiss", FAISS_RATIO), ("cdist+argmin", CDIST_RATIO)):
        values = [here[shape].ratio(family) for shape in CPU_SHAPES if shape in here]
        ratios = [value for value in values if value is not None]
        name = f"median over {len(CPU_SHAPES)} shapes at least {bar:g} times faster than {family}"
        value = f"{statistics.median(ratios):.2f} over {len(ratios)}" if ratios else "not measured"
        complete = len(ratios) == len(CPU_SHAPES)
        found.append(Check(name, value, statistics.median(ratios) >= bar if complete else None))
    shares = [case.sgemm_share for case in here.values() if case.shape in CPU_SHAPES]
    known = [share for share in shares if share is not None]
    found.append(
        _least_check(
            f"at least {SGEMM_SHARE:.0%} of the rate of sgemm at D = {SGEMM_DIM}",
            known,
            SGEMM_SHARE,
            "{:.1%}",
        )
    )
    beyond = [c.memory - c.shape.codebook_bytes for c in here.values() if c.memory is not None]
    most = max(beyond, default=None)
    found.append(
        Check(
            f"less than {MEMORY_BYTES / 1e6:g} MB beyond output and one packed codebook",
            "not measured" if most is None else f"{max(most, 0) / 1e6:.1f} MB at most",
            None if most is None else most < MEMORY_BYTES,
        )
    )
    for tables in (False, True):
        codec = [
            here[s] for s in CODEC_SHAPES if s in here and s.dim == CODEC_DIM and bool(s.tables) == tables
        ]
        what = f"codec shape, D = {CODEC_DIM}, {'with' if tables else 'without'} bias tables"
        for family, best in (("torch", "the best of eager torch"), ("torch.compile", "torch.compile")):
            ratios = [ratio for case in codec if (ratio := case.ratio(family)) is not None]
            name = f"{what}: at least {TORCH_RATIO:g} times faster than {best}"
            found.append(_least_check(name, ratios, TORCH_RATIO, "{:.2f}"))
        bar = PAIRS_PER_SECOND[tables]
        rates = [case.pairs_per_second for case in codec]
        name = f"{what}: at least {bar:.3g} pairs/s with AVX-512"
        check = _least_check(name, rates, bar, "{:.3g}")
        found.append(check if isa in ("avx512", "amx") else replace(check, passed=None))
    return found


def _least_check(name: str, values: Sequence[float], bar: float, form: str) -> Check:
    """The least of the values must reach the bar."""
    if not values:
        return Check(name, "not measured", None)
    return Check(name, form.format(min(values)), min(values) >= bar)


def table(cases: Sequence[Case]) -> list[str]:
    """Lines of a table of cases that have the same families."""
    families = list(dict.fromkeys(family for case in cases for family in case.families))
    head = f"{'shape':<26} {'thr':>3} {'exact ms':>9} {'fast ms':>9} {'GFLOP/s':>8} {'Gpairs/s':>8}"
    head += f" {'sgemm':>6} {'rescored':>8} {'MB':>6}  " + "  ".join(f"{x:>12}" for x in families)
    lines = [head]
    for case in cases:
        share = "" if case.sgemm_share is None else f"{case.sgemm_share:.0%}"
        memory = "" if case.memory is None else f"{case.memory / 1e6:.1f}"
        cells = []
        for family in families:
            ratio = case.ratio(family)
            cells.append(f"{'n/a' if ratio is None else f'x{ratio:.2f}':>{max(12, len(family))}}")
        # Within a family of several formulations the reader wants to know which was the best.
        best = case.fastest("torch")
        fast = f"{1e3 * case.timings[OURS_FAST].median:.3f}" if OURS_FAST in case.timings else ""
        lines.append(
            f"{case.shape.name:<26} {case.threads:>3} {1e3 * case.timings[OURS].median:>9.3f}"
            f" {fast:>9} {case.flops_per_second / 1e9:>8.1f}"
            f" {case.pairs_per_second / 1e9:>8.2f} {share:>6} {case.rescored:>8.3%} {memory:>6}  "
            + "  ".join(cells)
            + (f"  {best}" if best else "")
        )
    return lines


class Report(TimingReport[Case]):
    """The cases of this benchmark, in tables by device and kind of competitors."""

    script = "bench_nearest_codeword"
    title = "nearest_codeword: how many times faster our exact search is"
    notes = (
        "GFLOP/s counts 2NKD, sgemm is that as a share of torch's float32 product; ours also works",
        "in 16 bits. Set-up of others is not timed. faiss returns distances too.",
    )
    packages = PACKAGES

    def bars(self) -> list[Check]:
        return bars(self.cases, isa=native_isa())

    def lines(self) -> list[str]:
        kinds: dict[tuple[str, bool], list[Case]] = {}
        for case in self.cases:
            kinds.setdefault((case.device, "torch" in case.families), []).append(case)
        lines: list[str] = []
        for cases in kinds.values():
            lines += ["", *table(cases)] if lines else table(cases)
            for family in dict.fromkeys(family for case in cases for family in case.families):
                for threads in sorted({case.threads for case in cases}):
                    ratios = [
                        ratio
                        for case in cases
                        if case.threads == threads and (ratio := case.ratio(family)) is not None
                    ]
                    if ratios:
                        median = statistics.median(ratios)
                        lines.append(f"  median against {family}, {threads} threads: x{median:.2f}")
        return lines


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
    shapes = {"test_cpu": CPU_SHAPES, "test_codec": CODEC_SHAPES, "test_gpu": GPU_SHAPES}[
        metafunc.function.__name__
    ]
    used = [shrink(shape) if config.getoption("--quick") else shape for shape in shapes]
    metafunc.parametrize("shape", used, ids=[shape.name for shape in shapes])
    if "threads" in metafunc.fixturenames:
        threads = config.getoption("--threads")
        metafunc.parametrize("threads", threads, ids=[f"{number}threads" for number in threads])


def run_case(
    shape: Shape,
    *,
    device: str,
    backend: Backend,
    threads: int,
    memory: bool,
    report: Report,
    benchmark: Any,
) -> None:
    """Measure, hand the case to the report, and let pytest-benchmark time our exact search too."""
    effort = QUICK if report.quick else FULL
    case, ours = measure(
        shape, device=device, backend=backend, threads=threads, effort=effort, memory=memory
    )
    report.cases.append(case)
    benchmark.extra_info.update(case.as_json())

    def call() -> None:
        ours()
        if device == "cuda":
            torch.cuda.synchronize()

    with limited_threads(threads):
        iterations = case.timings[OURS].repeats
        benchmark.pedantic(call, rounds=effort.rounds, iterations=iterations)


def cpu_backend(config: pytest.Config) -> Backend:
    """The native kernel; the reference stands in for it only where no figure is wanted."""
    if native_isa() is not None:
        return "native"
    if not config.getoption("--quick"):
        # Not skipped: a run that measured nothing must not look like one that went well.
        pytest.fail(
            "the native extension is not built; --quick runs the reference in its place", pytrace=False
        )
    return "torch"


def run_cpu_case(
    shape: Shape, threads: int, report: Report, benchmark: Any, config: pytest.Config
) -> None:
    run_case(
        shape,
        device="cpu",
        backend=cpu_backend(config),
        threads=threads,
        memory=threads == BAR_THREADS,
        report=report,
        benchmark=benchmark,
    )


def test_cpu(
    shape: Shape, threads: int, report: Report, benchmark: Any, pytestconfig: pytest.Config
) -> None:
    run_cpu_case(shape, threads, report, benchmark, pytestconfig)


def test_codec(
    shape: Shape, threads: int, report: Report, benchmark: Any, pytestconfig: pytest.Config
) -> None:
    run_cpu_case(shape, threads, report, benchmark, pytestconfig)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu(shape: Shape, report: Report, benchmark: Any) -> None:
    run_case(
        shape,
        device="cuda",
        backend="triton",
        threads=torch.get_num_threads(),
        memory=True,
        report=report,
        benchmark=benchmark,
    )
