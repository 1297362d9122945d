"""Timing of calls that compete: they take turns, so that a machine that slows down slows all of them.

Layout: how much effort a run makes; `take_turns`, and what it gives.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SETTLE_SECONDS = 0.02
"""Rest before a turn: each library has its own threads, and they spin for a while after their work,
on the cores that the next search needs."""


@dataclass(frozen=True)
class Effort:
    """rounds: turns of each search; turn_seconds: least time of a turn; sgemm_size: its matrices;
    compiled: let torch compile too, which takes seconds for each shape."""

    rounds: int
    turn_seconds: float
    sgemm_size: int
    compiled: bool


FULL = Effort(rounds=7, turn_seconds=0.1, sgemm_size=2048, compiled=True)
QUICK = Effort(rounds=2, turn_seconds=0.0, sgemm_size=64, compiled=False)


@dataclass(frozen=True)
class Timing:
    """Seconds a call over the rounds; `repeats` calls make a turn."""

    median: float
    min: float
    max: float
    repeats: int


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    turn_seconds: float,
    finish: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Times calls that have run before: a, b, c, a, b, c, ... for `rounds` rounds.

    A turn repeats its call until it should take `turn_seconds`, after SETTLE_SECONDS of rest and, if
    one call is short, one that is not counted. `finish` waits for what a call left running.
    """

    def turn(call: Callable[[], object], repeats: int) -> float:
        time.sleep(SETTLE_SECONDS)
        if repeats > 1:
            call()
            finish()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        finish()
        return (time.perf_counter() - start) / repeats

    repeats = {
        name: max(1, math.ceil(turn_seconds / max(turn(call, 1), 1e-6))) for name, call in calls.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(turn(call, repeats[name]))
    return {
        name: Timing(statistics.median(times), min(times), max(times), repeats[name])
        for name, times in seconds.items()
    }
