"""Rate and distortion of vqcodec beside the codecs that Pillow has, in one run.

    python bench/rd.py --images DIR [--codecs vqcodec,jpeg,...] [--bits] [--steps] [--json FILE]

Purpose: the curve of means over a folder of pictures, BD-rate against each other codec, and the
bars that belong to them. Exit status: 0, 1 if a check fails, 2 for a wrong command line, 3 if the
model is missing.

Layout: pictures; the classical codecs; vqcodec; code lengths (--bits); tables, checks, plot; main.

What is measured: whole files, in memory. Every file is decoded again, its size is compared with
the picture's, and PSNR-RGB is taken between the 8-bit picture and what came back. A point of a
curve is the plain mean of bpp and of PSNR (in dB) over the pictures at one quality setting.
Pictures are handed over upright, as RGB and without metadata, to every codec alike.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

# Run as a script: the root comes last, so that an installed vqcodec is the one that is measured.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.metrics import (
    Curve,
    CurveError,
    bd_rate,
    bpp_at,
    curve_of_means,
    empirical_bits,
    psnr_at,
    record,
    require_range,
    write_json,
)
from vqcodec.similarity import psnr_rgb

if TYPE_CHECKING:
    from vqcodec.codec import Codec, EncodeStats

BD_LOW, BD_HIGH = 26.0, 35.0
"""PSNR range of the BD-rate, dB."""
FIXED_BPP = (0.15, 0.25, 0.5, 0.75, 1.0, 1.2)
PUBLISHED_LEAST = 6.0
"""dB that a published curve must share with that range to be compared."""
LOWEST_BPP, HIGHEST_BPP = 0.10, 1.2
"""The curve of means must start at or below the first and end at or above the second."""
STEP_LOW, STEP_HIGH = 0.5, 6.0
"""Growth of the mean bytes from each quality to the next, per cent."""
ESTIMATE_TOLERANCE = 1.0
"""Real payload bits against the ideal code length, per cent."""
LEAST_SAVING = 10.0
"""Real payload bits against the empirical entropy of each codebook's indices, per cent."""

DEFAULT_QUALITIES = (1, *range(5, 101, 5))
SUFFIXES = frozenset({".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".ppm"})


# --- pictures -------------------------------------------------------------------------------------


def find_pictures(folder: Path) -> list[Path]:
    """Picture files directly in `folder`, by name, numbers in numeric order."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda path: (len(path.stem) if path.stem.isdigit() else 0, path.name))


def load_picture(path: Path) -> Image.Image:
    """The picture upright, as 8-bit RGB, without metadata. ValueError unless it is RGB or grey."""
    with Image.open(path) as opened:
        if opened.mode not in ("RGB", "L"):
            raise ValueError(f"{path.name}: mode {opened.mode}, but only 8-bit RGB and grey work")
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    return Image.fromarray(np.asarray(upright))


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One codec over all pictures.

    settings: (settings,) in order of rising rate; size: whole-file bytes, int64, and bpp, psnr
    (dB), float64: each (settings, pictures).
    """

    settings: tuple[float, ...]
    size: NDArray[np.int64]
    bpp: NDArray[np.float64]
    psnr: NDArray[np.float64]

    @property
    def curve(self) -> Curve:
        """Means over the pictures."""
        return curve_of_means(self.bpp, self.psnr)


def measured(
    settings: Sequence[float],
    pictures: Sequence[Image.Image],
    results: Sequence[Sequence[tuple[int, float]]],
) -> Measured:
    """Gather `results`: for each picture, (bytes, PSNR) for each setting."""
    size = np.array([[size for size, _ in row] for row in results], dtype=np.int64).T
    psnr = np.array([[psnr for _, psnr in row] for row in results]).T
    pixels = np.array([picture.width * picture.height for picture in pictures])
    return Measured(tuple(settings), size, 8.0 * size / pixels, psnr)


def psnr_of_file(picture: Image.Image, decoded: Image.Image, what: str) -> float:
    """PSNR-RGB of what was decoded; RuntimeError if it has another size than the picture."""
    if decoded.size != picture.size:
        raise RuntimeError(f"{what}: {picture.size} went in and {decoded.size} came back")
    return psnr_rgb(np.asarray(picture), np.asarray(decoded.convert("RGB")))


@dataclass(frozen=True)
class Classical:
    """A codec of Pillow: its names there, settings in order of rising rate, options of save()."""

    pillow_format: str
    pillow_feature: str
    settings: tuple[float, ...]
    options: Callable[[float], dict[str, Any]]


CLASSICAL = {
    "jpeg": Classical(
        "JPEG",
        "jpg",
        (5, 8, *range(10, 96, 5)),
        lambda quality: {"quality": quality, "optimize": True, "progressive": True},
    ),
    "webp": Classical(
        "WEBP",
        "webp",
        (0, 1, 2, *range(5, 96, 5)),
        lambda quality: {"quality": quality, "method": 6},
    ),
    # The setting is the target in bpp. Without `mct` the three channels are coded apart, which
    # costs half the rate and which no user of the format would choose.
    "jpeg2000": Classical(
        "JPEG2000",
        "jpg_2000",
        (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.05, 1.2, 1.5, 2, 2.5),
        lambda bpp: {
            "quality_mode": "rates",
            "quality_layers": [24.0 / bpp],
            "irreversible": True,
            "mct": 1,
        },
    ),
    # libavif cuts the picture into more tiles on more threads: one thread gives the same files,
    # and the smallest, on every machine.
    "avif": Classical(
        "AVIF",
        "avif",
        (2, 5, *range(10, 91, 5)),
        lambda quality: {"quality": quality, "max_threads": 1},
    ),
}


def measure_file(name: str, path: Path) -> list[tuple[int, float]]:
    """(bytes, PSNR) of one picture with a classical codec, for each of its settings."""
    codec, picture, results = CLASSICAL[name], load_picture(path), []
    for setting in codec.settings:
        stream = io.BytesIO()
        picture.save(stream, codec.pillow_format, **codec.options(setting))
        size = stream.tell()
        stream.seek(0)
        with Image.open(stream) as decoded:
            results.append((size, psnr_of_file(picture, decoded, f"{name}, {path.name}")))
    return results


def measure_classical(
    name: str, paths: Sequence[Path], pictures: Sequence[Image.Image], *, jobs: int
) -> Measured:
    """A classical codec over all pictures, on `jobs` processes."""
    measure = partial(measure_file, name)
    if jobs == 1:
        results = [measure(path) for path in paths]
    else:
        # spawn: a fork of a process with torch's threads may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            results = list(pool.map(measure, paths))
    return measured(CLASSICAL[name].settings, pictures, results)


def measure_vqcodec(
    codec: Codec,
    paths: Sequence[Path],
    pictures: Sequence[Image.Image],
    *,
    qualities: Sequence[int],
    bits: dict[int, BitCount] | None,
) -> tuple[Measured, int]:
    """vqcodec over all pictures, and the code_id that its files carry.

    With `bits`, the code lengths of each quality are added to it.
    """
    from vqcodec.container import read_header

    results, code_ids = [], set()
    for number, (path, picture) in enumerate(zip(paths, pictures, strict=True), 1):
        row = []
        for quality in qualities:
            data = codec.compress(picture, quality=quality)
            code_ids.add(read_header(data).code_id)
            what = f"vqcodec -q {quality}, {path.name}"
            row.append((len(data), psnr_of_file(picture, codec.decompress(data), what)))
            if bits is not None:
                stats = codec.analyse(picture, quality=quality)
                if stats.bytes != len(data):
                    raise RuntimeError(f"{what}: analyse() counts {stats.bytes} of {len(data)} B")
                bits[quality].add(stats)
        results.append(row)
        say(f"vqcodec: {number} of {len(paths)}")
    if len(code_ids) != 1:
        raise RuntimeError(f"the files name more than one model: {sorted(code_ids)}")
    return measured(qualities, pictures, results), code_ids.pop()


def measure_steps(codec: Codec, pictures: Sequence[Image.Image], known: Measured) -> NDArray[np.float64]:
    """Mean bytes at each quality 1..100, (100,), taking those that `known` has from there."""
    mean = dict(zip(known.settings, known.size.mean(axis=1), strict=True))
    for quality in range(1, 101):
        if quality not in mean:
            sizes = [len(codec.compress(picture, quality=quality)) for picture in pictures]
            mean[quality] = np.mean(sizes)
            say(f"vqcodec: steps, quality {quality}")
    return np.array([mean[quality] for quality in range(1, 101)])


# --- code lengths ---------------------------------------------------------------------------------


@dataclass
class BitCount:
    """Code lengths at one quality, summed over the pictures.

    real: bits of the payloads in the files; estimated: ideal code length under the tables that
    were used; counts: how often each index occurs, for each codebook (stage, group).
    """

    real: int = 0
    estimated: float = 0.0
    counts: dict[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict)

    def add(self, stats: EncodeStats) -> None:
        """Add one picture. `stats.indices`: for each stage an integer array (G, H, W)."""
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


# --- what is said ---------------------------------------------------------------------------------


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


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


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
        low, high = max(BD_LOW, other.psnr[0]), min(BD_HIGH, other.psnr[-1])
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
        psnr = psnr_at(curve, bpp)
        return {
            "psnr_difference": round(psnr - psnr_at(other, bpp), 3),
            "rate_ratio": round(bpp / bpp_at(other, psnr), 4),
        }
    except CurveError:
        return None


def print_points(name: str, settings: Iterable[float], curve: Curve) -> None:
    """The points of one curve."""
    print(f"\n{name}\n  {'setting':>8} {'bpp':>8} {'PSNR dB':>8}")
    for setting, bpp, psnr in zip(settings, curve.bpp, curve.psnr, strict=True):
        print(f"  {setting:>8g} {bpp:>8.4f} {psnr:>8.3f}")


def print_bd(title: str, found: dict[str, dict[str, Any]]) -> None:
    """BD-rates, smallest first; those that could not be computed after them with the reason."""
    print(f"\n{title}, {BD_LOW:g} to {BD_HIGH:g} dB")
    key = {name: math.inf if x["percent"] is None else x["percent"] for name, x in found.items()}
    for name in sorted(found, key=lambda name: key[name]):
        entry = found[name]
        text = f"n/a: the curve {entry['reason']}" if "reason" in entry else f"{key[name]:+.1f} %"
        low, high = entry.get("range_db", (BD_LOW, BD_HIGH))
        if (low, high) != (BD_LOW, BD_HIGH):
            text += f"  (from {low:g} to {high:g} dB)"
        print(f"  {name:<36} {text}")


def print_at_bpp(found: dict[str, dict[str, dict[str, float] | None]]) -> None:
    """PSNR difference and rate ratio at the fixed bpp points."""
    print("\nvqcodec at fixed bpp: PSNR difference, dB; its bytes over the other's at that PSNR")
    print(f"  {'bpp':<10}" + "".join(f"{bpp:>16g}" for bpp in FIXED_BPP))
    for name, row in found.items():
        cells = (
            "n/a" if cell is None else f"{cell['psnr_difference']:+.2f}  x{cell['rate_ratio']:.2f}"
            for cell in row.values()
        )
        print(f"  {name:<10}" + "".join(f"{cell:>16}" for cell in cells))


def print_bits(bits: dict[int, BitCount]) -> None:
    """Code lengths by quality."""
    print("\nPayload bits over all pictures")
    print(f"  {'quality':>7} {'real':>12} {'estimated':>12} {'excess':>11} {'saving':>9}")
    for quality, count in bits.items():
        print(
            f"  {quality:>7} {count.real:>12} {count.estimated:>12.0f}"
            f" {count.excess:>+9.2f} % {count.saving:>+7.1f} %"
        )


def check_curve(curve: Curve) -> list[Check]:
    """The bars on vqcodec's own curve of means."""
    checks = []
    try:
        require_range(curve, low=BD_LOW, high=BD_HIGH)
        value = f"{curve.psnr[0]:.2f} to {curve.psnr[-1]:.2f} dB"
        checks.append(Check(f"curve reaches {BD_LOW:g} and {BD_HIGH:g} dB", value, True))
    except CurveError as error:
        name = f"curve reaches {BD_LOW:g} and {BD_HIGH:g} dB"
        checks.append(Check(name, f"vqcodec's curve {error}", False))
    by_rate = sorted(zip(curve.bpp, curve.psnr, strict=True))
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


def check_bits(bits: dict[int, BitCount]) -> list[Check]:
    """The bars on code lengths; the worst quality decides."""
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
            f"prior saves {LEAST_SAVING:g} % against empirical entropy",
            f"least {saving[least]:+.1f} % (quality {least})",
            saving[least] >= LEAST_SAVING,
        ),
    ]


def load_published(path: Path) -> dict[str, Curve]:
    """Published curves that have a PSNR column, their points in order of rate.

    File: {"name": {"bpp": [...], "psnr": [...], ...}, ...}; names that start with "_" are notes.
    """
    entries = json.loads(path.read_text(encoding="utf-8"))
    curves = {}
    for name, entry in entries.items():
        if not name.startswith("_") and entry.get("psnr"):
            points = sorted(zip(entry["bpp"], entry["psnr"], strict=True))
            curves[name] = Curve(tuple(x for x, _ in points), tuple(y for _, y in points))
    return curves


def plot(path: Path, curves: dict[str, Curve], title: str) -> None:
    """Draw the curves of means; the suffix of `path` decides between PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for name, curve in curves.items():
        width = 2.2 if name == "vqcodec" else 1.1
        axes.plot(curve.bpp, curve.psnr, marker=".", linewidth=width, label=name)
    axes.set(xlabel="bits per pixel (whole file)", ylabel="PSNR-RGB, dB", title=title)
    axes.set(xlim=(0, 1.6), ylim=(22, 40))
    axes.grid(alpha=0.3)
    axes.legend()
    # Without a date the same figures give the same file.
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


# --- main -----------------------------------------------------------------------------------------


def parse_qualities(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers 1..100, returned in rising order without repeats."""
    qualities = tuple(sorted({int(part) for part in text.split(",")}))
    if not qualities or qualities[0] < 1 or qualities[-1] > 100:
        raise argparse.ArgumentTypeError("expected whole numbers 1..100 with commas between them")
    return qualities


def parse_codecs(text: str) -> tuple[str, ...]:
    """Comma-separated names, vqcodec among them or not."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name != "vqcodec" and name not in CLASSICAL:
            known = ", ".join(("vqcodec", *CLASSICAL))
            raise argparse.ArgumentTypeError(f"unknown codec {name!r}; known: {known}")
        if name in CLASSICAL and not features.check(CLASSICAL[name].pillow_feature):
            raise argparse.ArgumentTypeError(f"this Pillow was built without {name}")
    return names


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="rd.py", description="Rate and distortion of vqcodec beside Pillow's codecs."
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument("--model", metavar="NAME|PATH", help="default: the model of the package")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda[:i]")
    parser.add_argument(
        "--qualities",
        type=parse_qualities,
        default=DEFAULT_QUALITIES,
        metavar="Q,Q,...",
        help="settings of vqcodec (default: 1, 5, 10, ... 100)",
    )
    parser.add_argument(
        "--codecs",
        type=parse_codecs,
        default=("vqcodec", *CLASSICAL),
        metavar="NAME,...",
        help=f"default: {','.join(('vqcodec', *CLASSICAL))}",
    )
    parser.add_argument("--bits", action="store_true", help="code lengths and the prior's saving")
    parser.add_argument("--steps", action="store_true", help="bytes at every quality 1..100 (slow)")
    parser.add_argument(
        "--jpeg-bar", type=float, default=-20.0, metavar="PERCENT", help="BD-rate bar (default -20)"
    )
    parser.add_argument(
        "--anchors", type=Path, metavar="FILE", help="JSON of published Kodak curves to compare"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG or SVG")
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes for the classical codecs (default: all CPUs)",
    )
    return parser


def read_pictures(
    parser: argparse.ArgumentParser, folder: Path, limit: int | None
) -> tuple[list[Path], list[Image.Image]]:
    """Paths and pictures; a wrong folder or picture is a usage error."""
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder")
    paths = find_pictures(folder)[:limit]
    if not paths:
        parser.error(f"no pictures in {folder}")
    try:
        return paths, [load_picture(path) for path in paths]
    except (OSError, ValueError) as error:
        parser.error(str(error))


def report(
    results: dict[str, Measured],
    *,
    published: dict[str, Curve],
    bits: dict[int, BitCount] | None,
    mean_bytes: NDArray[np.float64] | None,
    jpeg_bar: float,
) -> tuple[dict[str, Any], list[Check]]:
    """Print every table; return what belongs into the result file, and the checks."""
    curves = {name: result.curve for name, result in results.items()}
    for name, result in results.items():
        print_points(name, result.settings, curves[name])
    body: dict[str, Any] = {
        "curves": {
            name: [
                {
                    "setting": setting,
                    "bytes": round(float(size), 1),
                    "bpp": round(bpp, 6),
                    "psnr": round(psnr, 4) if math.isfinite(psnr) else None,
                }
                for setting, size, bpp, psnr in zip(
                    result.settings,
                    result.size.mean(axis=1),
                    curves[name].bpp,
                    curves[name].psnr,
                    strict=True,
                )
            ]
            for name, result in results.items()
        }
    }
    if "vqcodec" not in curves:
        return body, []

    own = curves.pop("vqcodec")
    checks = check_curve(own)
    # Where vqcodec's own curve is at fault, no comparison exists and the check above says why.
    comparable = checks[0].passed is True
    against = compare(own, curves) if comparable else {}
    if against:
        print_bd("BD-rate of vqcodec against", against)
        at_bpp = {
            name: {f"{bpp:g}": compare_at(own, other, bpp) for bpp in FIXED_BPP}
            for name, other in curves.items()
        }
        print_at_bpp(at_bpp)
        body |= {"bd_rate": {"range_db": [BD_LOW, BD_HIGH], "against": against}, "at_bpp": at_bpp}
    if "jpeg" in curves:
        percent = against["jpeg"]["percent"] if against else None
        value = "not measured" if percent is None else f"{percent:+.1f} %"
        passed = None if percent is None else percent <= jpeg_bar
        checks.append(Check(f"BD-rate against JPEG at most {jpeg_bar:g} %", value, passed))
    if published and comparable:
        found = compare_published(own, published)
        print_bd("BD-rate of vqcodec against published curves (of the 24 Kodak pictures)", found)
        print(f"  left out, not monotone or too short: {len(published) - len(found)}")
        body["published_bd_rate"] = found
    if bits is not None:
        print_bits(bits)
        checks += check_bits(bits)
        body["bits"] = [
            {
                "quality": quality,
                "real": count.real,
                "estimated": round(count.estimated, 1),
                "empirical": round(count.empirical, 1),
                "saving_percent": round(count.saving, 2),
            }
            for quality, count in bits.items()
        ]
    if mean_bytes is not None:
        checks.append(check_steps(mean_bytes))
        body["mean_bytes_by_quality"] = [round(float(size), 1) for size in mean_bytes]
    return body, checks


def main(argv: Sequence[str]) -> int:
    """Run with the arguments after the script's name; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.jobs < 1 or (args.limit is not None and args.limit < 1):
        parser.error("--jobs and --limit must be at least 1")
    if (args.bits or args.steps) and "vqcodec" not in args.codecs:
        parser.error("--bits and --steps need vqcodec among --codecs")
    if args.plot and args.plot.suffix not in (".png", ".svg"):
        parser.error("--plot must end in .png or .svg")
    paths, pictures = read_pictures(parser, args.images, args.limit)
    published = {}
    try:
        # All that can be missing is looked for before the long part.
        import scipy  # noqa: F401

        if args.plot:
            import matplotlib  # noqa: F401
        if args.anchors:
            published = load_published(args.anchors)
    except ModuleNotFoundError as error:
        parser.error(f"{error}: pip install 'vqcodec[bench]'")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        parser.error(f"{args.anchors}: not a file of curves: {error}")

    results: dict[str, Measured] = {}
    bits = {quality: BitCount() for quality in args.qualities} if args.bits else None
    mean_bytes, code_id = None, None
    if "vqcodec" in args.codecs:
        from vqcodec.codec import load_codec
        from vqcodec.errors import VqcError

        try:
            codec = load_codec(model=args.model, device=args.device)
        except VqcError as error:
            say(f"rd.py: {error}")
            return error.exit_code
        results["vqcodec"], code_id = measure_vqcodec(
            codec, paths, pictures, qualities=args.qualities, bits=bits
        )
        if args.steps:
            mean_bytes = measure_steps(codec, pictures, results["vqcodec"])
    for name in args.codecs:
        if name in CLASSICAL:
            say(f"{name}: {len(paths)} pictures")
            results[name] = measure_classical(name, paths, pictures, jobs=args.jobs)

    folder = args.images.resolve().name
    print(f"{folder}: {len(paths)} pictures; means of bpp (whole file) and of PSNR-RGB")
    body, checks = report(
        results, published=published, bits=bits, mean_bytes=mean_bytes, jpeg_bar=args.jpeg_bar
    )
    print()
    for check in checks:
        print(f"{check.status:<4}  {check.name}: {check.value}")

    if args.plot:
        curves = {name: result.curve for name, result in results.items()}
        plot(args.plot, curves, f"{folder}, mean of {len(paths)} pictures")
    if args.json:
        head = record("rd", argv, args.device)
        if code_id is not None:
            name = Path(args.model).name if args.model else "default"
            head["model"] = {"name": name, "code_id": f"{code_id:08x}"}
        head["images"] = {"folder": folder, "names": [path.name for path in paths]}
        found = [{"check": x.name, "value": x.value, "status": x.status} for x in checks]
        write_json(args.json, {**head, **body, "checks": found})
    return 1 if any(check.passed is False for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
