"""Rate and distortion of vqcodec beside the codecs that Pillow has, in one run.

    python bench/rd.py --images DIR [--codecs vqcodec,jpeg,...] [--ms-ssim] [--bits] [--steps]
                       [--json FILE]

Purpose: the curve of means over a folder of pictures, BD-rate against each other codec, and the
bars that belong to them (rd_checks.py). Exit status: 0, 1 if a check fails, 2 for a wrong command
line, 3 if the model is missing.

Layout: pictures; the classical codecs; vqcodec; tables, result file, plot; main.

What is measured: whole files, in memory. Every file is decoded again, its size is compared with
the picture's, and PSNR-RGB is taken between the 8-bit picture and what came back. A point of a
curve is the plain mean of bpp and of PSNR (in dB) over the pictures at one quality setting; with
--ms-ssim there is also the curve of the mean MS-SSIM, over the pictures that are large enough for it.
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
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

# Run as a script: the root comes last, so that an installed vqcodec is the one that is measured.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.metrics import Curve, curve_of_means, record, write_json
from bench.rd_checks import (
    BD_HIGH,
    BD_LOW,
    MARGIN_HIGH,
    MARGIN_LOW,
    Bars,
    BitCount,
    Check,
    check_bd_rate,
    check_bits,
    check_curve,
    check_overhead,
    check_rates,
    check_steps,
    compare,
    compare_at,
    compare_overlap,
    compare_published,
    compare_rates,
    range_text,
)
from vqcodec.effort import DEFAULT_EFFORT, EFFORTS
from vqcodec.similarity import MS_SSIM_SIDE, ms_ssim_decibels, ms_ssim_rgb, psnr_rgb

if TYPE_CHECKING:
    from vqcodec.codec import Codec

FIXED_BPP = (0.15, 0.25, 0.5, 0.75, 1.0, 1.2)
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


class FileFigures(NamedTuple):
    """One file: bytes; PSNR-RGB, dB; MS-SSIM, None if it was not asked for or cannot be had."""

    size: int
    psnr: float
    ms_ssim: float | None


@dataclass(frozen=True)
class Measured:
    """One codec over all pictures.

    settings: (settings,) in order of rising rate; size: whole-file bytes, int64, and bpp, psnr
    (dB), float64: each (settings, pictures). large: (pictures,) bool, those that have an MS-SSIM;
    ms_ssim: (settings, large pictures), float64.
    """

    settings: tuple[float, ...]
    size: NDArray[np.int64]
    bpp: NDArray[np.float64]
    psnr: NDArray[np.float64]
    large: NDArray[np.bool_]
    ms_ssim: NDArray[np.float64]

    @property
    def curve(self) -> Curve:
        """Means over the pictures."""
        return curve_of_means(self.bpp, self.psnr)

    @property
    def ms_ssim_curve(self) -> Curve | None:
        """Means over the large pictures, MS-SSIM turned to decibels after it; None without any."""
        if not self.large.any():
            return None
        bpp = self.bpp[:, self.large].mean(axis=1)
        decibels = (ms_ssim_decibels(value) for value in self.ms_ssim.mean(axis=1).tolist())
        return Curve(tuple(bpp.tolist()), tuple(decibels), "MS-SSIM")


def measured(
    settings: Sequence[float],
    pictures: Sequence[Image.Image],
    results: Sequence[Sequence[FileFigures]],
) -> Measured:
    """Gather `results`: for each picture, the figures for each setting."""
    size = np.array([[file.size for file in row] for row in results], dtype=np.int64).T
    psnr = np.array([[file.psnr for file in row] for row in results]).T
    pixels = np.array([picture.width * picture.height for picture in pictures])
    large = np.array([all(file.ms_ssim is not None for file in row) for row in results])
    ms_ssim = [[file.ms_ssim for file in row] for row, has in zip(results, large, strict=True) if has]
    return Measured(
        tuple(settings),
        size,
        8.0 * size / pixels,
        psnr,
        large,
        np.array(ms_ssim, dtype=np.float64).reshape(-1, len(settings)).T,
    )


def psnr_of_file(picture: Image.Image, decoded: Image.Image, what: str) -> float:
    """PSNR-RGB of what was decoded; RuntimeError if it has another size than the picture."""
    if decoded.size != picture.size:
        raise RuntimeError(f"{what}: {picture.size} went in and {decoded.size} came back")
    return psnr_rgb(np.asarray(picture), np.asarray(decoded.convert("RGB")))


def figures_of_file(
    picture: Image.Image, size: int, decoded: Image.Image, what: str, *, ms_ssim: bool
) -> FileFigures:
    """The figures of a file of `size` bytes, with MS-SSIM or not; errors as for `psnr_of_file`."""
    psnr = psnr_of_file(picture, decoded, what)
    if not ms_ssim:
        return FileFigures(size, psnr, None)
    likeness = ms_ssim_rgb(np.asarray(picture), np.asarray(decoded.convert("RGB")))
    return FileFigures(size, psnr, likeness)


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


def use_one_thread() -> None:
    """For processes beside each other: torch would take every CPU in each of them."""
    import torch

    torch.set_num_threads(1)


def measure_file(name: str, path: Path, *, ms_ssim: bool) -> list[FileFigures]:
    """The figures of one picture with a classical codec, for each of its settings."""
    codec, picture, results = CLASSICAL[name], load_picture(path), []
    for setting in codec.settings:
        stream = io.BytesIO()
        picture.save(stream, codec.pillow_format, **codec.options(setting))
        size = stream.tell()
        stream.seek(0)
        with Image.open(stream) as decoded:
            what = f"{name}, {path.name}"
            results.append(figures_of_file(picture, size, decoded, what, ms_ssim=ms_ssim))
    return results


def measure_classical(
    name: str,
    paths: Sequence[Path],
    pictures: Sequence[Image.Image],
    *,
    ms_ssim: bool,
    jobs: int,
) -> Measured:
    """A classical codec over all pictures, on `jobs` processes."""
    measure = partial(measure_file, name, ms_ssim=ms_ssim)
    if jobs == 1:
        results = [measure(path) for path in paths]
    else:
        # spawn: a fork of a process with torch's threads may hang.
        context = multiprocessing.get_context("spawn")
        start = use_one_thread if ms_ssim else None
        with ProcessPoolExecutor(jobs, mp_context=context, initializer=start) as pool:
            results = list(pool.map(measure, paths))
    return measured(CLASSICAL[name].settings, pictures, results)


def measure_vqcodec(
    codec: Codec,
    paths: Sequence[Path],
    pictures: Sequence[Image.Image],
    *,
    qualities: Sequence[int],
    effort: int,
    ms_ssim: bool,
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
            stats = codec.analyse(picture, quality=quality, effort=effort)
            data = stats.data
            code_ids.add(read_header(data).code_id)
            what = f"vqcodec -q {quality}, {path.name}"
            decoded = codec.decompress(data)
            row.append(figures_of_file(picture, len(data), decoded, what, ms_ssim=ms_ssim))
            if bits is not None:
                bits[quality].add(stats)
        results.append(row)
        say(f"vqcodec: {number} of {len(paths)}")
    if len(code_ids) != 1:
        raise RuntimeError(f"the files name more than one model: {sorted(code_ids)}")
    return measured(qualities, pictures, results), code_ids.pop()


def measure_steps(
    codec: Codec, pictures: Sequence[Image.Image], known: Measured, *, effort: int
) -> NDArray[np.float64]:
    """Mean bytes at each quality 1..100, (100,), taking those that `known` has from there."""
    mean = dict(zip(known.settings, known.size.mean(axis=1), strict=True))
    for quality in range(1, 101):
        if quality not in mean:
            sizes = [len(codec.compress(p, quality=quality, effort=effort)) for p in pictures]
            mean[quality] = np.mean(sizes)
            say(f"vqcodec: steps, quality {quality}")
    return np.array([mean[quality] for quality in range(1, 101)])


# --- what is said ---------------------------------------------------------------------------------


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def points(result: Measured) -> list[dict[str, Any]]:
    """The points of the curves of means, as the result file has them; None for what is infinite.

    With MS-SSIM, `ms_ssim_bpp` is there where pictures were left out of its mean.
    """
    curve, similar = result.curve, result.ms_ssim_curve
    found: list[dict[str, Any]] = []
    for at, setting in enumerate(result.settings):
        point = {
            "setting": setting,
            "bytes": round(float(result.size[at].mean()), 1),
            "bpp": round(curve.bpp[at], 6),
            "psnr": round_finite(curve.decibels[at], 4),
        }
        if similar is not None:
            point["ms_ssim"] = round(float(result.ms_ssim[at].mean()), 6)
            point["ms_ssim_db"] = round_finite(similar.decibels[at], 4)
            if not result.large.all():
                point["ms_ssim_bpp"] = round(similar.bpp[at], 6)
        found.append(point)
    return found


def round_finite(value: float, digits: int) -> float | None:
    """`value` rounded for a result file; None if it is infinite, which JSON cannot hold."""
    return round(value, digits) if math.isfinite(value) else None


def print_points(name: str, result: Measured) -> None:
    """The points of the curves of means, MS-SSIM with the decibels of its mean."""
    curve, similar = result.curve, result.ms_ssim_curve
    print(f"\n{name}\n  {'setting':>8} {'bpp':>8} {'PSNR dB':>8}", end="")
    print("" if similar is None else f" {'MS-SSIM':>8} {'in dB':>8}")
    for at, setting in enumerate(result.settings):
        print(f"  {setting:>8g} {curve.bpp[at]:>8.4f} {curve.decibels[at]:>8.3f}", end="")
        if similar is not None:
            print(f" {result.ms_ssim[at].mean():>8.5f} {similar.decibels[at]:>8.3f}", end="")
        print()


def print_bd(title: str, found: dict[str, dict[str, Any]]) -> None:
    """BD-rates, smallest first; those that could not be computed after them with the reason."""
    print(f"\n{title}")
    key = {name: math.inf if x["percent"] is None else x["percent"] for name, x in found.items()}
    for name in sorted(found, key=lambda name: key[name]):
        entry = found[name]
        text = f"n/a: the curve {entry['reason']}" if "reason" in entry else f"{key[name]:+.1f} %"
        print(f"  {name:<36} {text}{range_text(entry)}")


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
    print("\nPayload bits over all pictures; overhead: share of the files beyond the estimate")
    heads = f"{'real':>12} {'estimated':>12} {'excess':>11} {'saving':>9} {'overhead':>10}"
    print(f"  {'quality':>7} {heads}")
    for quality, count in bits.items():
        print(
            f"  {quality:>7} {count.real:>12} {count.estimated:>12.0f}"
            f" {count.excess:>+9.2f} % {count.saving:>+7.1f} % {count.overhead:>8.2f} %"
        )


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
        axes.plot(curve.bpp, curve.decibels, marker=".", linewidth=width, label=name)
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
    usual = Bars()
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument("--model", metavar="NAME|PATH", help="default: the model of the package")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda[:i]")
    parser.add_argument(
        "--effort",
        type=int,
        choices=EFFORTS,
        default=DEFAULT_EFFORT,
        metavar="1..9",
        help="default %(default)s",
    )
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
    parser.add_argument("--ms-ssim", action="store_true", help="MS-SSIM beside PSNR (slow)")
    parser.add_argument(
        "--bits", action="store_true", help="code lengths, the prior's saving, overhead of the files"
    )
    parser.add_argument("--steps", action="store_true", help="bytes at every quality 1..100 (slow)")
    parser.add_argument(
        "--jpeg-bar",
        type=float,
        default=usual.jpeg,
        metavar="PERCENT",
        help=f"BD-rate bar (default {usual.jpeg:g})",
    )
    parser.add_argument(
        "--webp-bar",
        type=float,
        metavar="PERCENT",
        help="BD-rate bar, and the bar of a PSNR no lower at any rate (default: none)",
    )
    parser.add_argument(
        "--saving-bar",
        type=float,
        default=usual.saving,
        metavar="PERCENT",
        help=f"what the prior must save, with --bits (default {usual.saving:g})",
    )
    parser.add_argument(
        "--anchors", type=Path, metavar="FILE", help="JSON of published Kodak curves to compare"
    )
    parser.add_argument(
        "--published-bar",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "PERCENT"),
        help="BD-rate bar against a curve of --anchors; may be repeated",
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
    left_out: Sequence[str] | None,
    bars: Bars,
) -> tuple[dict[str, Any], list[Check]]:
    """Print every table; return what belongs into the result file, and the checks.

    left_out: names of the pictures that are too small for MS-SSIM; None if it was not asked for.
    """
    for name, result in results.items():
        print_points(name, result)
    body: dict[str, Any] = {"curves": {name: points(result) for name, result in results.items()}}
    checks: list[Check] = []
    if "vqcodec" in results:
        found, checks = report_psnr(results, published=published, bars=bars)
        body |= found
    if left_out is not None:
        body["ms_ssim"], more = report_ms_ssim(results, left_out=left_out)
        checks += more
    if bits is not None:
        print_bits(bits)
        checks += check_bits(bits, saving_bar=bars.saving)
        own = results["vqcodec"]
        checks.append(check_overhead(bits, dict(zip(own.settings, own.curve.bpp, strict=True))))
        body["bits"] = [
            {
                "quality": quality,
                "file_bytes": count.file_bytes,
                "real": count.real,
                "estimated": round(count.estimated, 1),
                "empirical": round(count.empirical, 1),
                "saving_percent": round(count.saving, 2),
                "overhead_percent": round(count.overhead, 3),
            }
            for quality, count in bits.items()
        ]
    if mean_bytes is not None:
        checks.append(check_steps(mean_bytes))
        body["mean_bytes_by_quality"] = [round(float(size), 1) for size in mean_bytes]
    return body, checks


def report_psnr(
    results: dict[str, Measured], *, published: dict[str, Curve], bars: Bars
) -> tuple[dict[str, Any], list[Check]]:
    """The part of `report` on how vqcodec's curve compares in PSNR."""
    body: dict[str, Any] = {}
    curves = {name: result.curve for name, result in results.items()}
    own = curves.pop("vqcodec")
    checks = check_curve(own)
    # Where vqcodec's own curve is at fault, no comparison exists and the check above says why.
    comparable = checks[0].passed is True
    against = compare(own, curves) if comparable else {}
    usual = f"{BD_LOW:g} to {BD_HIGH:g} dB"
    if against:
        print_bd(f"BD-rate of vqcodec against, {usual}", against)
        at_bpp = {
            name: {f"{bpp:g}": compare_at(own, other, bpp) for bpp in FIXED_BPP}
            for name, other in curves.items()
        }
        print_at_bpp(at_bpp)
        body = {"bd_rate": {"range_db": [BD_LOW, BD_HIGH], "against": against}, "at_bpp": at_bpp}
    if "jpeg" in curves:
        checks.append(check_bd_rate("JPEG", against.get("jpeg"), bars.jpeg))
    if "webp" in curves:
        rates = compare_rates(own, curves["webp"], name="webp", overlap=False)
        body["psnr_over_webp"] = rates
        title = f"PSNR at least WebP's at every rate in {MARGIN_LOW:g} to {MARGIN_HIGH:g} bpp"
        everywhere = check_rates(title, rates, equal=True)
        if bars.webp is None:
            print(f"\nPSNR of vqcodec minus WebP's: {everywhere.value}")
        else:
            checks += [check_bd_rate("WebP", against.get("webp"), bars.webp), everywhere]
    if published:
        found = compare_published(own, published) if comparable else {}
        if comparable:
            print_bd(
                f"BD-rate of vqcodec against published curves (of the 24 Kodak pictures), {usual}", found
            )
            print(f"  left out, not monotone or too short: {len(published) - len(found)}")
            body["published_bd_rate"] = found
        for name, bar in bars.published.items():
            checks.append(check_bd_rate(f"published {name}", found.get(name), bar))
    return body, checks


def report_ms_ssim(
    results: dict[str, Measured], *, left_out: Sequence[str]
) -> tuple[dict[str, Any], list[Check]]:
    """The part of `report` on how vqcodec's curve compares in MS-SSIM."""
    body: dict[str, Any] = {"left_out": list(left_out)}
    if left_out:
        print(f"\nMS-SSIM needs {MS_SSIM_SIDE} pixels a side; left out: {', '.join(left_out)}")
    curves = {name: curve for name, result in results.items() if (curve := result.ms_ssim_curve)}
    own = curves.pop("vqcodec", None)
    if own is not None and curves:
        body["bd_rate"] = compare_overlap(own, curves)
        print_bd("BD-rate of vqcodec against, at equal MS-SSIM in dB", body["bd_rate"])
    if not {"vqcodec", "webp"} <= results.keys():
        return body, []
    title = "MS-SSIM above WebP's at every rate"
    if own is None:
        return body, [Check(title, "every picture is too small", None)]
    body["over_webp"] = compare_rates(own, curves["webp"], name="webp", overlap=True)
    return body, [check_rates(title, body["over_webp"], equal=False)]


def main(argv: Sequence[str]) -> int:
    """Run with the arguments after the script's name; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.jobs < 1 or (args.limit is not None and args.limit < 1):
        parser.error("--jobs and --limit must be at least 1")
    if (args.bits or args.steps) and "vqcodec" not in args.codecs:
        parser.error("--bits and --steps need vqcodec among --codecs")
    if args.webp_bar is not None and not {"vqcodec", "webp"} <= set(args.codecs):
        parser.error("--webp-bar needs vqcodec and webp among --codecs")
    if args.published_bar and ("vqcodec" not in args.codecs or args.anchors is None):
        parser.error("--published-bar needs --anchors, and vqcodec among --codecs")
    try:
        bars = Bars(
            jpeg=args.jpeg_bar,
            webp=args.webp_bar,
            published={name: float(percent) for name, percent in args.published_bar},
            saving=args.saving_bar,
        )
    except ValueError as error:
        parser.error(f"--published-bar: {error}")
    if args.plot and args.plot.suffix not in (".png", ".svg"):
        parser.error("--plot must end in .png or .svg")
    paths, pictures = read_pictures(parser, args.images, args.limit)
    published = {}
    try:
        # All that can be missing is looked for before the long part.
        import scipy  # noqa: F401

        if args.ms_ssim:
            import pytorch_msssim  # type: ignore[import-untyped]  # noqa: F401
        if args.plot:
            import matplotlib  # noqa: F401
        if args.anchors:
            published = load_published(args.anchors)
    except ModuleNotFoundError as error:
        parser.error(f"{error}: pip install 'vqcodec[bench]'")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        parser.error(f"{args.anchors}: not a file of curves: {error}")
    for name in bars.published:
        if name not in published:
            parser.error(f"--published-bar: {args.anchors.name} has no curve {name!r} with a PSNR")

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
        except ValueError as error:
            parser.error(str(error))
        results["vqcodec"], code_id = measure_vqcodec(
            codec,
            paths,
            pictures,
            qualities=args.qualities,
            effort=args.effort,
            ms_ssim=args.ms_ssim,
            bits=bits,
        )
        if args.steps:
            mean_bytes = measure_steps(codec, pictures, results["vqcodec"], effort=args.effort)
    for name in args.codecs:
        if name in CLASSICAL:
            say(f"{name}: {len(paths)} pictures")
            results[name] = measure_classical(name, paths, pictures, ms_ssim=args.ms_ssim, jobs=args.jobs)

    folder = args.images.resolve().name
    print(f"{folder}: {len(paths)} pictures; means of bpp (whole file) and of PSNR-RGB")
    left_out = None
    if args.ms_ssim:
        large = next(iter(results.values())).large
        left_out = [path.name for path, has in zip(paths, large, strict=True) if not has]
    body, checks = report(
        results,
        published=published,
        bits=bits,
        mean_bytes=mean_bytes,
        left_out=left_out,
        bars=bars,
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
