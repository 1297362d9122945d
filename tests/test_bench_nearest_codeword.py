"""Tests of bench/bench_nearest_codeword.py: every search it compares, its check, timer and bars.

Shapes are tiny, so what is timed means nothing; the results are what counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bench import bench_nearest_codeword as bench
from bench import search_baselines as baselines
from bench import timing as timing_module
from bench.bench_nearest_codeword import CODEC_SHAPES, CPU_SHAPES, OURS, SGEMM, Case
from bench.search_baselines import EXACT, FLOAT32, FLOAT64, Competitor, Problem, Shape
from bench.search_memory import RESET_PEAK, memory_beyond_output
from bench.timing import QUICK, Timing
from vqcodec_kernels import native_isa, nearest_codeword
from vqcodec_kernels.nearest_codeword import Backend

ROOT = Path(__file__).resolve().parents[1]
BACKEND: Backend = "torch" if native_isa() is None else "native"
PLAIN = Shape(300, 40, 16)
GROUPS = Shape(300, 40, 4, groups=3)
SCALARS = replace(GROUPS, dim=1)
BIASED = replace(GROUPS, tables=5)

# --- the competitors and the check ----------------------------------------------------------------


@pytest.mark.parametrize("shape", [PLAIN, GROUPS, SCALARS, BIASED], ids=lambda shape: shape.name)
def test_every_competitor_finds_the_nearest(shape: Shape) -> None:
    problem = baselines.make_problem(shape)
    truth = baselines.true_nearest(problem)
    assert len(truth.rows) == shape.count
    for competitor in baselines.competitors(shape, compiled=False):
        index = competitor.prepare(problem)().reshape(shape.groups, shape.count)
        baselines.check_result(problem, index, truth, competitor.rounding)
        # Ties of float32 aside, they agree with brute force to the letter.
        assert (index[:, truth.rows] == truth.index).float().mean() > 0.99, competitor.name


@pytest.mark.parametrize("shape", [GROUPS, BIASED], ids=lambda shape: shape.name)
def test_chunks_that_do_not_divide_the_vectors(shape: Shape) -> None:
    problem = baselines.make_problem(shape)
    truth = baselines.true_nearest(problem)
    prepares: list[Callable[..., baselines.Search]] = [
        baselines.prepare_addmm,
        baselines.prepare_baddbmm,
        baselines.prepare_direct,
        baselines.prepare_one_hot if shape.tables else baselines.prepare_transposed,
    ]
    for prepare in prepares:
        for chunk in (7, 1000):
            baselines.check_result(problem, prepare(problem, chunk=chunk)(), truth, FLOAT32)


@pytest.mark.parametrize(("module", "family"), [("faiss", "faiss"), ("sklearn.metrics", "scikit-learn")])
def test_libraries_take_part_where_they_are_installed(module: str, family: str) -> None:
    pytest.importorskip(module)
    assert family in {competitor.family for competitor in baselines.competitors(PLAIN)}


def test_the_kernel_passes_the_check_of_the_exact_mode() -> None:
    for shape in (PLAIN, GROUPS, SCALARS, BIASED):
        problem = baselines.make_problem(shape)
        search = bench.our_search(problem, precision="exact", backend=BACKEND)
        baselines.check_result(problem, search(), baselines.true_nearest(problem), EXACT)


@pytest.mark.parametrize("shape", [PLAIN, BIASED], ids=lambda shape: shape.name)
@pytest.mark.parametrize("rounding", [EXACT, FLOAT32, FLOAT64, baselines.TF32])
def test_one_wrong_index_is_caught(shape: Shape, rounding: baselines.Rounding | None) -> None:
    problem = baselines.make_problem(shape)
    truth = baselines.true_nearest(problem)
    right = torch.empty_like(truth.index)
    right[:, truth.rows] = truth.index
    baselines.check_result(problem, right, truth, rounding)
    for wrong in ((right[0, 7] + 1) % shape.size, -1, shape.size):
        index = right.clone()
        index[0, 7] = wrong
        with pytest.raises(baselines.WrongResultError):
            baselines.check_result(problem, index, truth, rounding)


def test_only_the_exact_mode_must_tell_what_float32_cannot() -> None:
    # The second codeword is nearer by 2^-26 of the distance.
    x = torch.zeros(1, 1, 1)
    codebook = torch.tensor([[[-1.0 - 2.0**-23], [1.0]]])
    problem = Problem(Shape(1, 2, 1), x, codebook, None, None)
    truth = baselines.true_nearest(problem)
    assert truth.index.tolist() == [[1]]
    first = torch.zeros(1, 1, dtype=torch.int64)
    baselines.check_result(problem, first, truth, FLOAT32)
    for rounding in (EXACT, FLOAT64):
        with pytest.raises(baselines.WrongResultError):
            baselines.check_result(problem, first, truth, rounding)


def last_codeword(problem: Problem) -> Callable[[], Tensor]:
    """A search that is wrong for most vectors."""
    return lambda: torch.full((problem.shape.groups, problem.shape.count), problem.shape.size - 1)


def test_a_wrong_competitor_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Competitor("wrong", "wrong", FLOAT32, last_codeword)
    monkeypatch.setattr(bench, "competitors", lambda shape, **_: [wrong])
    monkeypatch.setattr(bench, "take_turns", lambda *_, **__: pytest.fail("it was timed"))
    with pytest.raises(baselines.WrongResultError) as caught:
        measure(PLAIN)
    assert "'wrong'" in caught.value.__notes__[0]


def test_our_search_must_not_lose_to_another_outside_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "TRUTH_ELEMENTS", 0)
    rows = baselines.true_nearest(baselines.make_problem(PLAIN)).rows
    assert len(rows) == 16

    def wrong_outside(problem: Problem, **_: object) -> Callable[[], Tensor]:
        index = nearest_codeword(problem.x, problem.codebook, backend=BACKEND)
        outside = next(n for n in range(PLAIN.count) if n not in rows.tolist())
        index[0, outside] = (index[0, outside] + 1) % PLAIN.size
        return lambda: index

    monkeypatch.setattr(bench, "our_search", wrong_outside)
    with pytest.raises(baselines.WrongResultError, match=f"1 of {PLAIN.count} vectors"):
        measure(PLAIN)


# --- one case -------------------------------------------------------------------------------------


def measure(shape: Shape, *, threads: int = 1) -> Case:
    case, ours = bench.measure(
        shape, device="cpu", backend=BACKEND, threads=threads, effort=QUICK, memory=False
    )
    assert ours().shape == (shape.groups, shape.count)
    return case


def test_searches_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = 0.0, []

    def call(name: str, seconds: float) -> None:
        nonlocal now
        now += seconds
        order.append(name)

    clock = SimpleNamespace(perf_counter=lambda: now, sleep=lambda _: order.append("rest"))
    monkeypatch.setattr(timing_module, "time", clock)
    calls = {"fast": partial(call, "fast", 0.0625), "slow": partial(call, "slow", 0.25)}
    timings = timing_module.take_turns(calls, rounds=3, turn_seconds=0.125)
    assert timings["fast"] == Timing(0.0625, 0.0625, 0.0625, 2)
    assert timings["slow"] == Timing(0.25, 0.25, 0.25, 1)
    # One call each to see how often a turn must repeat it; of several, one more is not counted.
    turns = ["rest", "fast", "fast", "fast", "rest", "slow"]
    assert order == ["rest", "fast", "rest", "slow", *(turns * 3)]


def test_a_case_has_all_its_figures() -> None:
    before = torch.get_num_threads()
    case = measure(Shape(200, 30, 64), threads=2)
    assert torch.get_num_threads() == before
    assert case.shape.flops == 2 * 200 * 30 * 64
    seconds = case.timings[OURS].median
    assert case.pairs_per_second == pytest.approx(200 * 30 / seconds)
    share = case.shape.flops / seconds / (2 * 64**3 / case.timings[SGEMM].median)
    assert case.sgemm_share == pytest.approx(share)
    assert 0.0 <= case.rescored <= 1.0
    best = min(case.timings[name].median for name in case.families["addmm+min"])
    assert case.ratio("addmm+min") == pytest.approx(best / seconds)
    assert case.ratio("no such family") is None
    assert json.loads(json.dumps(case.as_json(), allow_nan=False))["gflop_s"] > 0
    assert measure(GROUPS).sgemm_share is None


@pytest.mark.skipif(not RESET_PEAK.exists(), reason="needs /proc/self/clear_refs")
def test_memory_is_that_of_the_search_alone() -> None:
    shape = Shape(20000, 2, 1)
    beyond = memory_beyond_output(shape, backend="torch", threads=1)
    # The reference holds some float64 and int64 a vector, and torch's code comes on top.
    assert beyond is not None and beyond < 30e6
    more = memory_beyond_output(replace(shape, count=2_000_000), backend="torch", threads=1)
    assert more is not None and beyond + 8 * 1_900_000 < more


# --- the bars -------------------------------------------------------------------------------------


def made_case(shape: Shape, *, ratio: float, threads: int = 2, seconds: float = 1.0) -> Case:
    """A case in which all competitors are `ratio` times slower than our search."""

    def timing(median: float) -> Timing:
        return Timing(median, median, median, 1)

    timings = {OURS: timing(seconds), "slow": timing(ratio * seconds), "slower": timing(4 * ratio)}
    families = {"faiss": ["slow"], "cdist+argmin": ["slower"]}
    if shape.groups > 1:
        families = {"torch": ["slower", "slow"], "torch.compile": ["compiled"]}
        timings["compiled"] = timing(10 * seconds)
    if shape.dim == 64:
        timings[SGEMM] = timing(1.0)
    return Case(shape, "cpu", "native", threads, timings, families, shape.flops, 0.0, int(20e6))


def test_bars_are_taken_at_two_threads_over_all_shapes() -> None:
    cases = [made_case(shape, ratio=ratio) for shape, ratio in zip(CPU_SHAPES, range(1, 7), strict=True)]
    cases += [replace(case, threads=1, timings={}) for case in cases]
    faiss, cdist, sgemm, memory = bench.bars(cases, isa="avx512")[:4]
    assert (faiss.value, faiss.status) == ("3.50 over 6", "PASS")
    assert (cdist.value, cdist.status) == ("14.00 over 6", "PASS")
    # Each D = 64 case was made as fast as sgemm.
    assert (sgemm.value, sgemm.status) == ("100.0%", "PASS")
    # 20 MB less the smallest codebook, 1024 x 16 floats.
    assert (memory.value, memory.status) == ("19.9 MB at most", "FAIL")
    assert bench.bars(cases[1:], isa="avx512")[0].status == "n/a"
    assert {check.status for check in bench.bars([], isa="avx512")} == {"n/a"}


def test_bars_of_the_codec_shapes() -> None:
    pairs = 80 * 4096 * 256
    cases = [made_case(shape, ratio=15.5, seconds=pairs / 10e9) for shape in CODEC_SHAPES]
    checks = bench.bars(cases, isa="avx512")[4:]
    assert [check.status for check in checks] == ["PASS", "FAIL", "FAIL", "PASS", "FAIL", "PASS"]
    assert [check.value for check in checks] == ["15.50", "10.00", "1e+10", "15.50", "10.00", "1e+10"]
    # The bar on pairs is one for AVX-512.
    assert [x.status for x in bench.bars(cases, isa="avx2")[4:]] == ["PASS", "FAIL", "n/a"] * 2


# --- the whole run --------------------------------------------------------------------------------


def test_the_benchmark_runs(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "pytest", "bench/bench_nearest_codeword.py", "--quick"]
    command += [
        "--threads",
        "1",
        "-p",
        "no:cacheprovider",
        "-W",
        "error::pytest.PytestUnknownMarkWarning",
    ]
    command += ["-k", "16384x1024x64 or 256x4", "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300x40x64" in done.stdout and "3x300x40x4+4tables" in done.stdout
    text = results.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    found = json.loads(text)
    assert found["command"].startswith("pytest bench/bench_nearest_codeword.py --quick --threads 1")
    assert found["machine"]["native_kernels"] == native_isa()
    assert (
        found["versions"]["torch"] == torch.__version__.partition("+")[0] or "torch" in found["versions"]
    )
    assert found["quick"] is True and found["threads"] == [1] and found["checks"] == []
    shapes = [(x["shape"]["groups"], x["shape"]["dim"], x["shape"]["tables"]) for x in found["cases"]]
    assert shapes == [(1, 64, 0), (3, 4, 0), (3, 4, 4)]
    assert found["cases"][0]["times_faster_than"]["cdist+argmin"]["ratio"] > 0
