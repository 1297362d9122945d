"""Tests of bench/bench_gaussian_sample.py: what it compares, its check and its bars.

Shapes are tiny, so what is timed means nothing; the results are what counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import bench_gaussian_sample as bench
from bench.bench_gaussian_sample import (
    BYTES,
    COMPILED,
    COPY,
    DISTRIBUTIONS,
    EAGER,
    GRAPH,
    OURS,
    SHAPES,
    Case,
    Problem,
    Shape,
)
from bench.search_baselines import WrongResultError
from bench.timing import QUICK, Timing
from vqcodec_kernels import native_isa
from vqcodec_kernels.gaussian_sample import Backend

ROOT = Path(__file__).resolve().parents[1]
BACKEND: Backend = "reference" if native_isa() is None else "native"
SHAPE = Shape(5, 203)

# --- what is compared, and the check --------------------------------------------------------------


@pytest.fixture
def problem() -> Problem:
    torch.manual_seed(0)
    return bench.make_problem(SHAPE, "cpu")


def test_all_pass_the_check(problem: Problem) -> None:
    samplers = bench.samplers("cpu", BACKEND, compiled=False)
    assert list(samplers) == [OURS, EAGER, DISTRIBUTIONS]
    for sample in samplers.values():
        bench.check_results(problem, bench.forward_backward(sample, problem))
    bench.check_noise(problem, BACKEND)


def eager_results(problem: Problem) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in bench.forward_backward(bench.sample_eager, problem)]


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("mean", lambda z, mu: z.add_(0.5)),
        ("variance", lambda z, mu: z.sub_(mu).mul_(1.5).add_(mu)),
        ("correlation", lambda z, mu: z.copy_(z[:, :1]).sub_(mu[:, :1]).add_(mu)),
    ],
)
def test_noise_that_is_not_normal_is_caught(
    what: str, spoil: Callable[[Tensor, Tensor], object], problem: Problem
) -> None:
    with torch.no_grad():
        problem.logvar.zero_()
    results = eager_results(problem)
    spoil(results[0], problem.mu.detach())
    with pytest.raises(WrongResultError, match=what):
        bench.check_results(problem, results)


@pytest.mark.parametrize(("number", "what"), [(1, "divergence"), (2, "of mu"), (3, "of logvar")])
def test_one_wrong_number_is_caught(number: int, what: str, problem: Problem) -> None:
    results = eager_results(problem)
    results[number].view(-1)[3] *= 1.001
    with pytest.raises(WrongResultError, match=what):
        bench.check_results(problem, results)


def test_gradients_of_other_noise_are_caught(problem: Problem) -> None:
    results, others = eager_results(problem), eager_results(problem)
    with pytest.raises(WrongResultError, match="gradient of logvar"):
        bench.check_results(problem, [*results[:3], others[3]])


def test_other_noise_than_that_of_the_seed_is_caught(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "our_sampler", lambda *_: bench.sample_eager)
    with pytest.raises(WrongResultError, match="z of a seed"):
        bench.check_noise(problem, BACKEND)


def test_what_is_saved_for_the_backward_pass(problem: Problem) -> None:
    elements = SHAPE.count * SHAPE.size
    # sigma, the noise, exp(logvar)
    assert bench.saved_bytes(bench.sample_eager, problem) == 3 * 4 * elements
    assert bench.saved_bytes(bench.our_sampler(BACKEND), problem) <= bench.SAVED_BYTES


# --- one case -------------------------------------------------------------------------------------


def test_a_case_has_all_its_figures() -> None:
    before = torch.get_num_threads()
    case, ours = bench.measure(SHAPE, device="cpu", backend=BACKEND, threads=2, effort=QUICK)
    assert torch.get_num_threads() == before
    assert isinstance(ours(), tuple)
    assert set(case.timings) == {OURS, EAGER, DISTRIBUTIONS, COPY}
    seconds = case.timings[OURS].median
    eager = min(case.timings[name].median for name in (EAGER, DISTRIBUTIONS))
    assert case.ratio(EAGER, DISTRIBUTIONS) == pytest.approx(eager / seconds)
    assert case.ratio(COMPILED) is None
    found = json.loads(json.dumps(case.as_json(), allow_nan=False))
    assert found["gb_s"] == pytest.approx(BYTES * 5 * 203 / seconds / 1e9)
    assert found["share_of_copy_bandwidth"] == pytest.approx(case.timings[COPY].median / seconds)


def test_a_wrong_competitor_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_noise(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        return mu + logvar, (mu * logvar).sum(1)

    monkeypatch.setattr(bench, "sample_distributions", without_noise)
    monkeypatch.setattr(bench, "take_turns", lambda *_, **__: pytest.fail("it was timed"))
    with pytest.raises(WrongResultError) as caught:
        bench.measure(SHAPE, device="cpu", backend=BACKEND, threads=1, effort=QUICK)
    assert repr(DISTRIBUTIONS) in caught.value.__notes__[0]


# --- the bars -------------------------------------------------------------------------------------


def made_case(shape: Shape, *, device: str, eager: float, compiled: float, copy: float) -> Case:
    """A case in which the others take so many times as long as ours."""
    ratios = {OURS: 1.0, EAGER: eager, DISTRIBUTIONS: 2 * eager, COMPILED: compiled, COPY: copy}
    timings = {name: Timing(ratio, ratio, ratio, 1) for name, ratio in ratios.items()}
    if device == "cuda":
        # Calls are slow alike: only the graphs tell.
        timings = {name: Timing(9.0, 9.0, 9.0, 1) for name in ratios} | {
            name + GRAPH: timing for name, timing in timings.items()
        }
    return Case(shape, device, "auto", 2, timings, {OURS: 8})


def test_bars() -> None:
    small, large = SHAPES.values()
    cases = [
        made_case(small, device="cpu", eager=3.5, compiled=1.0, copy=0.1),
        made_case(large, device="cpu", eager=2.5, compiled=1.0, copy=0.1),
        made_case(small, device="cuda", eager=6.0, compiled=1.2, copy=0.3),
        made_case(large, device="cuda", eager=5.5, compiled=1.1, copy=0.9),
    ]
    checks = bench.bars(cases)
    assert [check.value for check in checks] == ["2.50", "8 bytes", "5.50", "1.10", "90.0%", "8 bytes"]
    assert [check.status for check in checks] == ["FAIL", "PASS", "PASS", "FAIL", "PASS", "PASS"]
    # The CPU's are those with two threads.
    checks = bench.bars([replace(case, threads=1) for case in cases])
    assert [check.status for check in checks] == ["n/a", "n/a", "PASS", "FAIL", "PASS", "PASS"]
    checks = bench.bars([replace(cases[0], saved={OURS: 65})])
    assert [check.status for check in checks] == ["PASS", "FAIL", "n/a", "n/a", "n/a", "n/a"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_figures_of_a_gpu_are_owed_without_one() -> None:
    assert all("owed" in check.value for check in bench.bars([]) if check.name.startswith("GPU"))


# --- the whole run --------------------------------------------------------------------------------


def test_the_benchmark_runs(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "pytest", "bench/bench_gaussian_sample.py", "--quick"]
    command += [
        "--threads",
        "1",
        "-p",
        "no:cacheprovider",
        "-W",
        "error::pytest.PytestUnknownMarkWarning",
    ]
    command += ["-k", "cpu", "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8x260" in done.stdout
    text = results.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    found = json.loads(text)
    assert found["command"].startswith("pytest bench/bench_gaussian_sample.py --quick --threads 1")
    assert found["quick"] is True and found["threads"] == [1] and found["checks"] == []
    assert [case["shape"]["size"] for case in found["cases"]] == [260, 260]
    assert found["cases"][0]["times_faster_than"]["eager"] > 0
    assert found["cases"][0]["saved_bytes"][EAGER] == 3 * 4 * 8 * 260
