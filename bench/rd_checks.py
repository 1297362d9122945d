"""What rd.py concludes from what it measured: comparisons of curves, code lengths, and the bars.

Layout: comparisons; code lengths; bars. No picture and no codec is touched here.

Invariants
- A comparison that cannot be made says why; nothing is extrapolated.
- What is the fault of vqcodec's own curve fails a check, what is another's makes it n/a.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.metrics import (
    Curve,
    CurveError,
    bd_rate,
    bpp_at,
    decibels_at,
    empirical_bits,
    least_margin,
    require_range,
    require_rates,
    require_rising,
)

if TYPE_CHECKING:
    from vqcodec.codec import EncodeStats

BD_LOW, BD_HIGH = 26.0, 35.0
"""PSNR range of the BD-rate, dB."""
PUBLISHED_LEAST = 6.0
"""dB that a published curve must share with that range to be compared."""
LOWEST_BPP, HIGHEST_BPP = 0.10, 1.2
"""The curve of means must start at or below the first and end at or above the second."""
MARGIN_LOW, MARGIN_HIGH = 0.15, 1.2
"""Rates that two curves must cover to be compared at every rate, bpp."""
STEP_LOW, STEP_HIGH = 0.5, 6.0
"""Growth of the mean bytes from each quality to the next, per cent."""
ESTIMATE_TOLERANCE = 1.0
"""Real payload bits against the ideal code length, per cent."""
LEAST_SAVING = 10.0
"""Real payload bits against the empirical entropy of each codebook's indices, per cent; the default."""
OVERHEAD_BPP, MOST_OVERHEAD = 0.2, 1.0
"""Bytes beyond the ideal code length must be under the second, per cent, near the first, bpp."""


# --- comparisons ----------------------------------------------------------------------------------


def compare(curve: Curve, others: dict[str, Curve]) -> dict[str, dict[str, Any]]:
    """BD-rate of `curve` against each of `others`: `percent`, or None and the `reason`."""
    found: dict[str, dict[str, Any]] = {}
    for name, other in others.items():
        try:
            percent = round(bd_rate(curve, other, low=BD_LOW, high=BD_HIGH), 2)
            found[name] = {"percent": percent}
        except CurveError as error:
            found[name] = {"percent": None, "reason": str(error)}
    return found


def compare_published(curve: Curve, others: dict[str, Curve]) -> dict[str, dict[str, Any]]:
    """BD-rate of `curve` against those of `others` that are monotone and long enough.

    Few published curves reach both ends of the range, so each is compared over the part of it that
    it has, `range_db`, if that is at least PUBLISHED_LEAST dB.
    """
    found = {}
    for name, other in others.items():
        low, high = max(BD_LOW, other.decibels[0]), min(BD_HIGH, other.decibels[-1])
        if high - low < PUBLISHED_LEAST:
            continue
        try:
            percent = round(bd_rate(curve, other, low=low, high=high), 2)
            found[name] = {"percent": percent, "range_db": [round(low, 2), round(high, 2)]}
        except CurveError:
            continue
    return found


def compare_at(curve: Curve, other: Curve, bpp: float) -> dict[str, float] | None:
    """At `bpp`: PSNR of `curve` minus that of `other`, and the bytes it needs per byte of `other`
    at the PSNR it has there. None where a curve does not reach.
    """
    try:
        psnr = decibels_at(curve, bpp)
        return {
            "psnr_difference": round(psnr - decibels_at(other, bpp), 3),
            "rate_ratio": round(bpp / bpp_at(other, psnr), 4),
        }
    except CurveError:
        return None


def compare_overlap(curve: Curve, others: dict[str, Curve]) -> dict[str, dict[str, Any]]:
    """BD-rate of `curve`, vqcodec's, against each of `others` over all decibels that both have:
    `percent` and `range_db`, or None and the `reason`.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, other in others.items():
        owner = "of vqcodec "
        try:
            require_rising(curve)
            owner = ""
            require_rising(other)
            low = max(curve.decibels[0], other.decibels[0])
            high = min(curve.decibels[-1], other.decibels[-1])
            if not low < high:
                raise CurveError("has no decibels in common with that of vqcodec")
            percent = round(bd_rate(curve, other, low=low, high=high), 2)
            found[name] = {"percent": percent, "range_db": [round(low, 2), round(high, 2)]}
        except CurveError as error:
            found[name] = {"percent": None, "reason": f"{owner}{error}"}
    return found


def range_text(entry: dict[str, Any]) -> str:
    """The range of a BD-rate that was not taken over the usual one, in brackets; else nothing."""
    low, high = entry.get("range_db", (BD_LOW, BD_HIGH))
    return "" if (low, high) == (BD_LOW, BD_HIGH) else f"  (from {low:g} to {high:g} dB)"


def compare_rates(curve: Curve, other: Curve, *, name: str, overlap: bool) -> dict[str, Any]:
    """Where `curve`, vqcodec's, lies least above `other`, the curve of `name`, at equal rate.

    Looked at from MARGIN_LOW to MARGIN_HIGH bpp, which both must cover, or with `overlap` at all
    rates that both do. `least_db`, negative if it lies below; `bpp`, where; `range_bpp`. Without an
    answer `least_db` is None, `at_fault` is the name of a curve and `reason` what is wrong with it.
    """
    low, high = MARGIN_LOW, MARGIN_HIGH
    for owner, each in (("vqcodec", curve), (name, other)):
        try:
            require_rates(each, low=low, high=high)
        except CurveError as error:
            return {"least_db": None, "at_fault": owner, "reason": str(error)}
    if overlap:
        low, high = max(curve.bpp[0], other.bpp[0]), min(curve.bpp[-1], other.bpp[-1])
    least, bpp = least_margin(curve, other, low=low, high=high)
    return {
        "least_db": round(least, 6),
        "bpp": round(bpp, 4),
        "range_bpp": [round(low, 4), round(high, 4)],
    }


# --- code lengths ---------------------------------------------------------------------------------


@dataclass
class BitCount:
    """Code lengths at one quality, summed over the pictures.

    file_bytes: whole files; real: bits of the payloads in them; estimated: ideal code length under
    the tables that were used; counts: how often each index occurs, for each codebook (stage, group).
    """

    file_bytes: int = 0
    real: int = 0
    estimated: float = 0.0
    counts: dict[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict)

    def add(self, stats: EncodeStats) -> None:
        """Add one picture. `stats.indices`: for each stage an integer array (G, H, W)."""
        self.file_bytes += len(stats.data)
        self.real += 8 * stats.payload_bytes
        self.estimated += stats.estimated_bits
        for stage, planes in enumerate(stats.indices):
            for group, plane in enumerate(planes):
                old = self.counts.get((stage, group), np.zeros(0, dtype=np.int64))
                new = np.bincount(np.asarray(plane).ravel(), minlength=len(old))
                new[: len(old)] += old
                self.counts[stage, group] = new

    @property
    def empirical(self) -> float:
        """Bits of the same indices at the empirical entropy of each codebook over all pictures."""
        return sum(empirical_bits(counts) for counts in self.counts.values())

    @property
    def excess(self) -> float:
        """Real over estimated bits, per cent; 0 if there is nothing to code."""
        return 100.0 * (self.real / self.estimated - 1.0) if self.estimated else 0.0

    @property
    def saving(self) -> float:
        """What the conditional prior saves against `empirical`, per cent; 0 if that is empty."""
        empirical = self.empirical
        return 100.0 * (1.0 - self.real / empirical) if empirical else 0.0

    @property
    def overhead(self) -> float:
        """Share of the files beyond the estimated bits, per cent; 0 without a file."""
        return 100.0 * (1.0 - self.estimated / 8 / self.file_bytes) if self.file_bytes else 0.0


# --- bars -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One bar: `passed` is None where it could not be measured."""

    name: str
    value: str
    passed: bool | None

    @property
    def status(self) -> str:
        """PASS, FAIL or n/a."""
        return {True: "PASS", False: "FAIL", None: "n/a"}[self.passed]


@dataclass(frozen=True)
class Bars:
    """The bars that the command line sets, per cent.

    jpeg, webp: BD-rate at most, for WebP None if it is no bar; published: the same by name of a
    published curve; saving: what the prior must save at least.
    """

    jpeg: float = -20.0
    webp: float | None = None
    published: dict[str, float] = field(default_factory=dict)
    saving: float = LEAST_SAVING


def check_curve(curve: Curve) -> list[Check]:
    """The bars on vqcodec's own curve of means."""
    checks = []
    try:
        require_range(curve, low=BD_LOW, high=BD_HIGH)
        value = f"{curve.decibels[0]:.2f} to {curve.decibels[-1]:.2f} dB"
        checks.append(Check(f"curve reaches {BD_LOW:g} and {BD_HIGH:g} dB", value, True))
    except CurveError as error:
        name = f"curve reaches {BD_LOW:g} and {BD_HIGH:g} dB"
        checks.append(Check(name, f"vqcodec's curve {error}", False))
    by_rate = sorted(zip(curve.bpp, curve.decibels, strict=True))
    falls = [
        f"{low[1]:.3f} to {high[1]:.3f} dB at {high[0]:.3f} bpp"
        for low, high in zip(by_rate, by_rate[1:], strict=False)
        if high[1] < low[1]
    ]
    name = "mean PSNR never falls as bytes rise"
    checks.append(Check(name, "; ".join(falls) or f"{len(by_rate)} points", not falls))
    name = f"range {LOWEST_BPP:g} to {HIGHEST_BPP:g} bpp"
    reached = by_rate[0][0] <= LOWEST_BPP and by_rate[-1][0] >= HIGHEST_BPP
    checks.append(Check(name, f"{by_rate[0][0]:.3f} to {by_rate[-1][0]:.3f}", reached))
    return checks


def check_bd_rate(name: str, found: dict[str, Any] | None, bar: float) -> Check:
    """The bar on a BD-rate; `found`: an entry of one of the comparisons, None if there is none."""
    title = f"BD-rate against {name} at most {bar:g} %"
    if found is None or found["percent"] is None:
        return Check(title, "not measured", None)
    return Check(title, f"{found['percent']:+.2f} %{range_text(found)}", found["percent"] <= bar)


def check_rates(name: str, found: dict[str, Any], *, equal: bool) -> Check:
    """The bar on the least margin at equal rate, `found` of `compare_rates`; `equal`: 0 passes too."""
    least = found["least_db"]
    if least is None:
        value = f"the curve of {found['at_fault']} {found['reason']}"
        return Check(name, value, False if found["at_fault"] == "vqcodec" else None)
    low, high = found["range_bpp"]
    value = f"least {least:+.3f} dB, at {found['bpp']:.3f} bpp of {low:.3f} to {high:.3f}"
    return Check(name, value, least > 0 or (equal and least == 0))


def check_steps(mean_bytes: NDArray[np.float64]) -> Check:
    """The bar on the growth of the mean bytes (100,) from each quality to the next."""
    growth = 100.0 * (mean_bytes[1:] / mean_bytes[:-1] - 1.0)
    bad = np.flatnonzero((growth < STEP_LOW) | (growth > STEP_HIGH))
    value = f"{growth.min():+.2f} to {growth.max():+.2f} %"
    if bad.size:
        value += f"; {bad.size} outside: " + ", ".join(
            f"{at + 1} to {at + 2} {growth[at]:+.2f} %" for at in bad[:5]
        )
    return Check(f"each step of quality {STEP_LOW:+g} to {STEP_HIGH:+g} %", value, not bad.size)


def check_bits(bits: dict[int, BitCount], *, saving_bar: float) -> list[Check]:
    """The bars on code lengths; the worst quality decides. saving_bar: per cent."""
    excess = {quality: count.excess for quality, count in bits.items()}
    saving = {quality: count.saving for quality, count in bits.items()}
    far = max(excess, key=lambda quality: abs(excess[quality]))
    least = min(saving, key=lambda quality: saving[quality])
    return [
        Check(
            f"real bits within {ESTIMATE_TOLERANCE:g} % of the estimate",
            f"furthest {excess[far]:+.2f} % (quality {far})",
            abs(excess[far]) <= ESTIMATE_TOLERANCE,
        ),
        Check(
            f"prior saves {saving_bar:g} % against empirical entropy",
            f"least {saving[least]:+.1f} % (quality {least})",
            saving[least] >= saving_bar,
        ),
    ]


def check_overhead(bits: dict[int, BitCount], bpp: Mapping[float, float]) -> Check:
    """The bar on the overhead of the quality whose mean bpp, `bpp[quality]`, is nearest its rate."""
    quality = min(bits, key=lambda quality: abs(bpp[quality] - OVERHEAD_BPP))
    overhead = bits[quality].overhead
    return Check(
        f"overhead at {OVERHEAD_BPP:g} bpp under {MOST_OVERHEAD:g} %",
        f"{overhead:.2f} % (quality {quality}, {bpp[quality]:.3f} bpp)",
        overhead < MOST_OVERHEAD,
    )
