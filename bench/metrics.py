"""What the bench scripts share: the measures, and the record of what was measured on.

Purpose: one definition of every figure that a table or a result file shows.

Layout: curves and BD-rate; code lengths; then the record (machine, versions, command, JSON). PSNR and
MS-SSIM are the package's own, `vqcodec.similarity`.

Invariants
- Nothing is extrapolated: a curve answers only between its own ends, otherwise `CurveError`.
- The record names no host, no user and no directory, so that result files can be published.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

INSTRUCTION_SETS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)
"""Flags of /proc/cpuinfo that decide how fast this codec is."""
MARGIN_GRID = 1000
"""Rates between the points of two curves at which their margin is looked at."""


class CurveError(ValueError):
    """A rate-distortion curve cannot answer: it is not monotone or does not reach far enough."""


@dataclass(frozen=True)
class Curve:
    """Points of a rate-distortion curve in the order of the quality setting.

    bpp: bits per pixel; decibels: PSNR, or MS-SSIM as `vqcodec.similarity` spreads it. Both have one
    value a point. measure: what the decibels are, for messages.
    """

    bpp: tuple[float, ...]
    decibels: tuple[float, ...]
    measure: str = "PSNR"


def curve_of_means(bpp: ArrayLike, psnr: ArrayLike) -> Curve:
    """The curve whose points are plain means over pictures, one point for each quality setting.

    bpp, psnr: (settings, pictures), bits per pixel and dB. Each picture counts the same whatever
    its size, and it is the decibels that are averaged, not the squared errors. ValueError for
    shapes that do not match.
    """
    rates = np.asarray(bpp, dtype=np.float64)
    decibels = np.asarray(psnr, dtype=np.float64)
    if rates.ndim != 2 or rates.shape != decibels.shape or rates.size == 0:
        raise ValueError(f"expected two (settings, pictures), got {rates.shape}, {decibels.shape}")
    return Curve(tuple(rates.mean(axis=1).tolist()), tuple(decibels.mean(axis=1).tolist()))


def _pchip(x: ArrayLike, y: ArrayLike) -> Any:
    """Monotone piecewise cubic through the points; scipy comes with the extra `bench`."""
    from scipy.interpolate import PchipInterpolator

    return PchipInterpolator(x, y)


def require_range(curve: Curve, *, low: float, high: float) -> None:
    """CurveError unless `curve` rises strictly and reaches from `low` dB or less to `high` dB."""
    require_rising(curve)
    if curve.decibels[0] > low or curve.decibels[-1] < high:
        raise CurveError(
            f"goes from {curve.decibels[0]:.2f} to {curve.decibels[-1]:.2f} dB "
            f"and does not reach both ends of {low:g} to {high:g} dB"
        )


def require_rates(curve: Curve, *, low: float, high: float) -> None:
    """CurveError unless `curve` rises strictly and reaches from `low` bpp or less to `high` bpp."""
    require_rising(curve)
    if curve.bpp[0] > low or curve.bpp[-1] < high:
        raise CurveError(
            f"goes from {curve.bpp[0]:.3f} to {curve.bpp[-1]:.3f} bpp "
            f"and does not reach both ends of {low:g} to {high:g} bpp"
        )


def bd_rate(curve: Curve, anchor: Curve, *, low: float, high: float) -> float:
    """Mean difference in rate of `curve` against `anchor` at equal decibels, in per cent.

    Negative: `curve` needs fewer bits. Bjøntegaard's measure with log(bpp) as a monotone piecewise
    cubic (PCHIP) of the decibels through all points of each curve, averaged over `low`..`high` dB. Raises
    CurveError unless both curves rise strictly and reach both ends of that range.
    """
    if not low < high:
        raise ValueError(f"expected low < high, got {low} and {high}")
    integrals = []
    for each in (curve, anchor):
        require_range(each, low=low, high=high)
        log_rate = _pchip(each.decibels, np.log(each.bpp))
        integrals.append(float(log_rate.integrate(low, high)))
    return 100.0 * math.expm1((integrals[0] - integrals[1]) / (high - low))


def lost(curve: Curve, best: Curve) -> tuple[float, float, float]:
    """BD-rate in per cent against the best curve, and the range of decibels that it is taken over.
    CurveError for curves that do not rise; ValueError for those that have no decibels in common."""
    low = max(curve.decibels[0], best.decibels[0])
    high = min(curve.decibels[-1], best.decibels[-1])
    return bd_rate(curve, best, low=low, high=high), low, high


def decibels_at(curve: Curve, bpp: float) -> float:
    """Decibels of the curve at `bpp`: PCHIP over log(bpp). CurveError outside the curve."""
    require_rising(curve)
    if not curve.bpp[0] <= bpp <= curve.bpp[-1]:
        raise CurveError(f"has no point at {bpp:g} bpp")
    return float(_pchip(np.log(curve.bpp), curve.decibels)(math.log(bpp)))


def bpp_at(curve: Curve, decibels: float) -> float:
    """Bits per pixel that the curve needs for `decibels`. CurveError outside the curve."""
    require_rising(curve)
    if not curve.decibels[0] <= decibels <= curve.decibels[-1]:
        raise CurveError(f"has no point at {decibels:.2f} dB")
    return math.exp(float(_pchip(curve.decibels, np.log(curve.bpp))(decibels)))


def least_margin(curve: Curve, other: Curve, *, low: float, high: float) -> tuple[float, float]:
    """Least of the decibels of `curve` minus those of `other` at equal rate, and the bpp where.

    Looked for at the points of both curves from `low` to `high` bpp and at MARGIN_GRID rates between,
    each curve as in `decibels_at`. CurveError unless both rise strictly and reach both ends.
    """
    if not low <= high:
        raise ValueError(f"expected low <= high, got {low} and {high}")
    for each in (curve, other):
        require_rates(each, low=low, high=high)
    points = np.array([bpp for bpp in (*curve.bpp, *other.bpp) if low <= bpp <= high])
    rates = np.concatenate([points, np.geomspace(low, high, MARGIN_GRID)])
    ours, theirs = (_pchip(np.log(each.bpp), each.decibels)(np.log(rates)) for each in (curve, other))
    at = int(np.argmin(ours - theirs))
    return float(ours[at] - theirs[at]), float(rates[at])


def require_rising(curve: Curve) -> None:
    """CurveError unless there are two points or more, and bpp and decibels rise with each."""
    if len(curve.bpp) != len(curve.decibels):
        raise ValueError(f"{len(curve.bpp)} rates but {len(curve.decibels)} decibels")
    if len(curve.bpp) < 2:
        raise CurveError("has fewer than two points")
    if not all(math.isfinite(value) for value in (*curve.bpp, *curve.decibels)):
        raise CurveError("has a point without a finite value (a picture came back without loss)")
    if curve.bpp[0] <= 0:
        raise CurveError("has a point without bits")
    for point in range(1, len(curve.bpp)):
        for name, values in (("bpp", curve.bpp), (curve.measure, curve.decibels)):
            if values[point] <= values[point - 1]:
                raise CurveError(
                    f"is not strictly monotone: {name} goes from {values[point - 1]:.4f} "
                    f"to {values[point]:.4f}"
                )


def empirical_bits(counts: ArrayLike) -> float:
    """Bits that `counts` (symbols seen, one count each) cost at their own order-0 entropy: n·H.

    The table is taken as known, so this is a bound that no static table can pass.
    """
    seen = np.asarray(counts, dtype=np.float64)
    if np.any(seen < 0):
        raise ValueError("counts must not be negative")
    seen = seen[seen > 0]
    return float(np.sum(seen * -np.log2(seen / seen.sum()))) if seen.size else 0.0


def require_scipy(parser: argparse.ArgumentParser) -> None:
    """A usage error where what the curves need is missing: before the long part."""
    try:
        import scipy  # noqa: F401
    except ModuleNotFoundError as error:
        parser.error(f"{error}: pip install 'vqcodec[bench]'")


def machine(device: str) -> dict[str, Any]:
    """What a figure was measured on: device in words, CPU, its instruction sets, kernels in use.

    device: "cpu" or "cuda[:i]"; the latter is recorded by the name of the card.
    """
    import torch

    from vqcodec_kernels._extension import native_isa

    model, flags = _cpu()
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "cpu": model,
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "native_kernels": native_isa(),
        "torch_threads": torch.get_num_threads(),
    }


def _cpu() -> tuple[str, frozenset[str]]:
    """Name and flags of the CPU; what the system does not tell is "unknown" or empty."""
    name, flags = platform.processor() or platform.machine() or "unknown", ""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return name, frozenset()
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = value
        elif key in ("flags", "Features"):
            flags = value
    return name, frozenset(flags.split())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the figures."""
    found = {"python": platform.python_version()}
    for name in ("vqcodec", "torch", "pillow", "numpy", "constriction", "pytorch-msssim"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed (run from a checkout)"
    return found


def command_line(argv: Sequence[str]) -> str:
    """`argv` as one line in which every path is cut down to its last part."""
    shown = []
    for argument in argv:
        option, equals, value = "", "", argument
        if argument.startswith("-"):
            option, equals, value = argument.partition("=")
        shown.append(option + equals + (Path(value).name if "/" in value else value))
    return " ".join(shown)


def record(script: str, argv: Sequence[str], device: str) -> dict[str, Any]:
    """The head of a result file: script, date (UTC), command, machine, versions."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "script": script,
        "date": now.isoformat(timespec="seconds"),
        "command": f"python bench/{script}.py {command_line(argv)}".rstrip(),
        "machine": machine(device),
        "versions": versions(),
    }


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result file: indented UTF-8 JSON; ValueError for a number that JSON cannot hold."""
    path.write_text(
        json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
