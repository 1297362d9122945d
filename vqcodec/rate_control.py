"""Rate control: a file of a given size, rate or fidelity, found by encoding a picture several times.

Purpose: what a quality costs depends on the picture. Here the rate axis of a model is searched for the
point whose file meets a target; what encodes and what measures is handed in.

Layout: `RateTarget`; `find_file`, the search; the points between two qualities.

Invariants
- The search is a bisection, but sizes and PSNR rise along the axis only nearly always: a file is taken
  for its own bytes and its own PSNR, never for its place. One of more than `max_bytes` or of less than
  `psnr` is never returned.
- Nothing here depends on the kind of latent, and torch is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING

from vqcodec.errors import RateError

if TYPE_CHECKING:
    from vqcodec.quantizer import RatePoint

TOLERANCE = 0.02
"""The share by which a `bpp` may lie beyond what a picture can have and still be taken for its end."""

# How the gap between two qualities is filled: by so many parts less one, the price of the first falling
# to that of the second or to this share, whichever is less. The second may have 5 % more bytes where its
# bucket is another, and 20 % where it has a stage more; less is lost below the gap than by raising the
# price above it.
_IN_BUCKET = 8, math.inf
_IN_STAGE = 16, 0.7
_INTO_STAGE = 128, 0.03


@dataclass(frozen=True, kw_only=True)
class RateTarget:
    """What a file is to meet: exactly one of the three, finite and positive (else ValueError).

    bpp: bits a pixel of the whole file, as nearly as possible. max_bytes: the most that the file may
    have. psnr: the least PSNR in dB, over RGB, of the decoded 8-bit picture.
    """

    bpp: float | None = None
    max_bytes: int | None = None
    psnr: float | None = None

    def __post_init__(self) -> None:
        if len(self._given) != 1:
            raise ValueError("give exactly one of bpp, max_bytes and psnr")
        for name, value in self._given.items():
            kind, to, said = (Integral, int, "whole") if name == "max_bytes" else (Real, float, "finite")
            number = math.nan
            if isinstance(value, kind) and not isinstance(value, bool):
                with suppress(OverflowError):
                    number = to(value)
            if not 0 < number < math.inf:
                raise ValueError(f"{name} must be {said} and positive, got {value!r}")
            object.__setattr__(self, name, number)

    @property
    def _given(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def goal(self) -> float:
        """The number that is given."""
        (goal,) = self._given.values()
        return goal

    def __str__(self) -> str:
        if self.max_bytes is not None:
            return f"at most {self.max_bytes:,} bytes"
        return f"{self.bpp:g} bpp" if self.bpp is not None else f"at least {self.psnr:g} dB"


def find_file(
    target: RateTarget,
    points: Sequence[RatePoint],
    *,
    pixels: int,
    priced: bool,
    encode: Callable[[RatePoint], bytes],
    measure: Callable[[bytes], float],
) -> bytes:
    """The file that meets a target best, of those that the search comes by.

    points: at least one, the rate rising; equal ones are tried once. pixels: of the picture. priced:
    whether the encoder heeds prices, so that some between those of the points are of use. encode: the
    file of a point; measure: the PSNR of a file in dB, asked for only if that is the target.

    max_bytes: the largest file that fits; psnr: the smallest that reaches it, of equally small ones the
    best; bpp: the nearest. RateError, with the range of this picture, if no file fits or reaches it, or
    if bpp lies outside of the range by more than TOLERANCE.
    """
    tried: dict[RatePoint, tuple[float, bytes]] = {}

    def attempt(point: RatePoint) -> float:
        if point not in tried:
            file = encode(point)
            if target.psnr is not None:
                tried[point] = measure(file), file
            else:
                tried[point] = len(file) if target.bpp is None else 8 * len(file) / pixels, file
        return tried[point][0]

    place = _bisect(points, target.goal, attempt)
    if priced and 0 < place < len(points):
        _bisect(_between(points[place - 1], points[place]), target.goal, attempt)
    file = _choose(target, tried.values())
    if file is None:
        for end in (points[0], points[-1]):
            attempt(end)
        file = _choose(target, tried.values())
    if file is None:
        values = [value for value, _ in tried.values()]
        raise RateError(f"{target} cannot be reached: {_range(target, min(values), max(values))}")
    return file


def _bisect(points: Sequence[RatePoint], goal: float, attempt: Callable[[RatePoint], float]) -> int:
    """A place where values pass the goal: below it before, above it from there. 0 or N if none do."""
    low, high = 0, len(points)
    while low < high:
        middle = (low + high) // 2
        if attempt(points[middle]) > goal:
            high = middle
        else:
            low = middle + 1
    return low


def _between(point: RatePoint, following: RatePoint) -> list[RatePoint]:
    """Points after `point` that differ from it in price alone, geometrically falling.

    Prices are the encoder's own: none of them is less valid than those of the qualities.
    """
    if following.bucket == point.bucket:
        parts, most = _IN_BUCKET
    else:
        parts, most = _IN_STAGE if following.last_stage == point.last_stage else _INTO_STAGE
    share = min(following.price / point.price, most)
    return [point._replace(price=point.price * share ** (k / parts)) for k in range(1, parts)]


def _choose(target: RateTarget, tried: Collection[tuple[float, bytes]]) -> bytes | None:
    """The best of some files, each after its value; None if none will do."""
    goal = target.goal
    if target.psnr is not None:
        reached = [(len(file), -value, file) for value, file in tried if value >= goal]
        return min(reached)[2] if reached else None
    if target.max_bytes is not None:
        # Of equal sizes the later: the search goes on upwards from what fits.
        fitting = [file for size, file in tried if size <= goal]
        return max(reversed(fitting), key=len, default=None)
    rates = [rate for rate, _ in tried]
    nearest, file = min(tried, key=lambda found: abs(found[0] - goal))
    inside = min(rates) <= goal <= max(rates)
    return file if inside or abs(nearest - goal) <= TOLERANCE * goal else None


def _range(target: RateTarget, low: float, high: float) -> str:
    if target.max_bytes is not None:
        return f"this picture takes {low:,} to {high:,} bytes"
    if target.bpp is not None:
        return f"this picture takes {low:.3g} to {high:.3g} bpp"
    # Downwards: what is named can be reached.
    return f"this picture gets {low:.2f} to {math.floor(high * 100) / 100:.2f} dB"
