"""Options of the benchmarks that pytest runs.

Purpose: `pytest bench/bench_nearest_codeword.py --help` lists the options, under "bench".
"""

import argparse
from pathlib import Path

import pytest


def parse_threads(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 up with commas between them, in rising order."""
    threads = sorted({int(part) for part in text.split(",")})
    if threads[0] < 1:
        raise argparse.ArgumentTypeError("threads start at 1")
    return tuple(threads)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--results", type=Path, metavar="FILE", help="write the figures here, as JSON")
    group.addoption(
        "--threads",
        type=parse_threads,
        default=(1, 2),
        metavar="N,...",
        help="numbers of threads on the CPU (default 1,2)",
    )
    group.addoption(
        "--quick",
        action="store_true",
        help="tiny shapes, hardly timed: shows that everything runs, no figures",
    )
