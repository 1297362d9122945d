"""Kinds of latent side by side on the same pictures: what each costs, what comes back, how fast.

Purpose: the figures behind `vqcodec compare`. Every figure is of a whole file that was written and
decoded again; nothing is estimated except the divergence, which is named as such.

Layout: the records, which hold plain numbers and PNG bytes; `compare_pictures` and its parts
(models, one picture, the window and the rate of the crops); table and JSON.

Invariants
- Pictures are taken one by one, and of each only figures and crops are kept, so memory is that of
  the pictures given, the models, and one decoded picture.
- Order and figures, times apart, depend on nothing but pictures, models and device.
- PSNR and MS-SSIM are of 8-bit RGB; a grey picture counts as three equal channels. A mean over
  pictures is the plain mean of their figures, decibels included, whatever their sizes.
"""

from __future__ import annotations

import dataclasses
import io
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vqcodec.codec import Codec, load_codec
from vqcodec.collapse import LatentHealth, describe
from vqcodec.effort import GREEDY_EFFORT
from vqcodec.errors import CorruptError
from vqcodec.image import Picture
from vqcodec.model import MODE_MODELS, QUALITIES
from vqcodec.modes import POSTERIOR_MODES
from vqcodec.similarity import ms_ssim_rgb, psnr_rgb

SCHEMA = 1
"""Version of the object that `to_json` gives; it rises when a key changes its meaning."""

MODES = tuple(MODE_MODELS)
DEFAULT_LABEL = "vq (default model)"
DEFAULT_QUALITIES = (10, 30, 50, 70, 90)
CROP_SIDE = 256
CROP_BPP = 0.5
"""The rate of the crops, where every model reaches it."""

_WITH_DIVERGENCE = (*POSTERIOR_MODES, "dvae")
# A crop's rate: within 2 % of the target, or what so many more encodes find.
_RATE_TOLERANCE = math.log(1.02)
_RATE_SEARCH = 3
# Pixels between the places where a window of a crop may begin.
_WINDOW_STEP = 16


@dataclass(frozen=True)
class PictureInfo:
    """One of the pictures compared; sizes in pixels."""

    name: str
    width: int
    height: int
    grey: bool


@dataclass(frozen=True)
class Figures:
    """What one file took and gave, or the means of several.

    bytes: of the whole file; bpp: 8 * bytes a pixel. psnr: dB, infinite without loss. ms_ssim:
    0..1, None if the picture is too small, or all are. Seconds: wall clock, model loaded.
    divergence_bpp: KL of the posterior to its prior in bits a pixel; None in modes without one.
    """

    bytes: float
    bpp: float
    psnr: float
    ms_ssim: float | None
    encode_seconds: float
    decode_seconds: float
    divergence_bpp: float | None


@dataclass(frozen=True)
class QualityPoint:
    """One quality of one model: the figures of each picture in order, and their means."""

    quality: int
    mean: Figures
    pictures: tuple[Figures, ...]


@dataclass(frozen=True)
class ModelResult:
    """One row of the comparison; label tells rows of one mode apart, code_id is eight hex digits."""

    label: str
    mode: str
    model: str
    code_id: str
    points: tuple[QualityPoint, ...]
    health: LatentHealth


@dataclass(frozen=True)
class Crop:
    """The window of a decoded picture as PNG; bpp and psnr are of the whole picture."""

    label: str
    quality: int
    bpp: float
    psnr: float
    png: bytes


@dataclass(frozen=True)
class CropSet:
    """The window with most detail of one picture: the original and every model near target_bpp."""

    name: str
    left: int
    top: int
    width: int
    height: int
    target_bpp: float
    original_png: bytes
    crops: tuple[Crop, ...]


@dataclass(frozen=True)
class Comparison:
    """All that was measured. results: in the order of the modes; crops: one set a picture."""

    pictures: tuple[PictureInfo, ...]
    qualities: tuple[int, ...]
    results: tuple[ModelResult, ...]
    crops: tuple[CropSet, ...]
    device: str
    threads: int


@dataclass(frozen=True)
class _Entrant:
    """A loaded model and what its row is called."""

    label: str
    mode: str
    codec: Codec


# --- the comparison ------------------------------------------------------------------------


def compare_pictures(
    pictures: Sequence[tuple[str, Picture]],
    *,
    modes: Sequence[str] = MODES,
    qualities: Sequence[int] = DEFAULT_QUALITIES,
    device: str | None = None,
    models: Mapping[str, str | Path] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Codes every picture with the model of every mode at every quality, and decodes it again.

    pictures: names to show, and pictures. models: name or path of a mode's model instead of the
    packaged one. With mode vq, the default model takes part too, in a row of its own, last.
    progress: gets a line for each step. Encode and decode of a model run once before they are timed.

    Raises ValueError for an unknown mode, a quality outside 1..100 or nothing to compare, the
    errors of `load_codec`, and CorruptError if a picture comes back with another size.
    """
    chosen = tuple(mode for mode in MODES if mode in modes)
    unknown = sorted({*modes, *(models or {})} - set(MODES))
    if unknown:
        raise ValueError(f"unknown mode {unknown[0]!r}, there are {', '.join(MODES)}")
    for quality in qualities:
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= QUALITIES:
            raise ValueError(f"quality must be an integer in 1..{QUALITIES}, got {quality!r}")
    if not (pictures and chosen and qualities):
        raise ValueError("at least one picture, one mode and one quality are needed")
    ascending = tuple(sorted(set(qualities)))
    say = progress or (lambda _: None)

    entrants = []
    for label, mode, model in _models(chosen, models or {}):
        say(f"{label}: loading")
        codec = load_codec(model, device, mode=mode)
        codec.decompress(codec.compress(pictures[0][1], quality=ascending[0], effort=GREEDY_EFFORT))
        entrants.append(_Entrant(label, mode, codec))

    figures: list[dict[int, list[Figures]]] = [{q: [] for q in ascending} for _ in entrants]
    crops = []
    for name, picture in pictures:
        for entrant, table in zip(entrants, figures, strict=True):
            say(f"{name}: {entrant.label}")
            for quality, measured in _measure(entrant, name, picture, ascending).items():
                table[quality].append(measured)
        reached = [{q: table[q][-1].bpp for q in ascending} for table in figures]
        crops.append(_crop_set(entrants, name, picture, reached))

    results = []
    for entrant, table in zip(entrants, figures, strict=True):
        say(f"{entrant.label}: inspecting the latent")
        results.append(
            ModelResult(
                label=entrant.label,
                mode=entrant.mode,
                model=entrant.codec.model.config.name,
                code_id=f"{entrant.codec.model.code_id:08x}",
                points=tuple(QualityPoint(q, _mean(f), tuple(f)) for q, f in table.items()),
                health=entrant.codec.inspect_latent([picture for _, picture in pictures]),
            )
        )
    return Comparison(
        pictures=tuple(
            PictureInfo(name, picture.pixels.shape[1], picture.pixels.shape[0], picture.grey)
            for name, picture in pictures
        ),
        qualities=ascending,
        results=tuple(results),
        crops=tuple(crops),
        device=str(entrants[0].codec.device),
        threads=torch.get_num_threads(),
    )


def _models(
    modes: Sequence[str], models: Mapping[str, str | Path]
) -> list[tuple[str, str, str | Path | None]]:
    """Label, mode and model of each row; None is the default model."""
    # Of vq, whose packaged model is the default one, the small model is asked for by name.
    small = {"vq": MODE_MODELS["vq"], **models}
    rows: list[tuple[str, str, str | Path | None]] = [(mode, mode, small.get(mode)) for mode in modes]
    return [*rows, (DEFAULT_LABEL, "vq", None)] if "vq" in modes else rows


def _measure(
    entrant: _Entrant, name: str, picture: Picture, qualities: Sequence[int]
) -> dict[int, Figures]:
    """The figures of one picture with one model, by quality."""
    codec = entrant.codec
    height, width = picture.pixels.shape[:2]
    divergence = None
    if entrant.mode in _WITH_DIVERGENCE:
        bits = codec.analyse(picture, quality=qualities[0]).divergence_bits
        divergence = None if bits is None else bits / (width * height)
    found = {}
    for quality in qualities:
        start = time.perf_counter()
        data = codec.compress(picture, quality=quality, effort=GREEDY_EFFORT)
        middle = time.perf_counter()
        image = codec.decompress(data)
        end = time.perf_counter()
        pixels = _pixels(image, picture, f"{name}, {entrant.label}, quality {quality}")
        found[quality] = Figures(
            bytes=len(data),
            bpp=8 * len(data) / (width * height),
            psnr=psnr_rgb(picture.pixels, pixels),
            ms_ssim=ms_ssim_rgb(picture.pixels, pixels),
            encode_seconds=middle - start,
            decode_seconds=end - middle,
            divergence_bpp=divergence,
        )
    return found


def _pixels(image: Image.Image, picture: Picture, what: str) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of a decoded picture. CorruptError if its size is not the original's."""
    height, width = picture.pixels.shape[:2]
    if image.size != (width, height):
        raise CorruptError(f"{what}: {width} x {height} came back as {image.width} x {image.height}")
    return np.asarray(image.convert("RGB"))


def _mean(figures: Sequence[Figures]) -> Figures:
    """The plain mean of each figure over the pictures that have it."""

    def mean(name: str) -> float | None:
        values = [v for f in figures if (v := getattr(f, name)) is not None]
        return statistics.fmean(values) if values else None

    return Figures(**{field.name: mean(field.name) for field in dataclasses.fields(Figures)})  # type: ignore[arg-type]


# --- crops ---------------------------------------------------------------------------------


def _crop_set(
    entrants: Sequence[_Entrant], name: str, picture: Picture, reached: Sequence[Mapping[int, float]]
) -> CropSet:
    """Crops of one picture. reached: for each model the bits a pixel measured at each quality."""
    left, top, width, height = find_detail(picture.pixels)
    target = common_rate(reached)
    window = np.s_[top : top + height, left : left + width]
    crops = []
    for entrant, rates in zip(entrants, reached, strict=True):
        quality, data = _code_at(entrant.codec, picture, rates, target)
        image = entrant.codec.decompress(data)
        pixels = _pixels(image, picture, f"{name}, {entrant.label}, quality {quality}")
        crops.append(
            Crop(
                label=entrant.label,
                quality=quality,
                bpp=_bpp(data, picture),
                psnr=psnr_rgb(picture.pixels, pixels),
                png=_png(pixels[window]),
            )
        )
    return CropSet(
        name=name,
        left=left,
        top=top,
        width=width,
        height=height,
        target_bpp=target,
        original_png=_png(picture.pixels[window]),
        crops=tuple(crops),
    )


def common_rate(reached: Sequence[Mapping[int, float]]) -> float:
    """The rate, in bits a pixel, at which to show models that reach these, each by quality.

    CROP_BPP if all can; else the end of their common range that is nearer to it; and where they
    have no rate in common, the geometric mean of the two that keep them apart.
    """
    low = max(min(rates.values()) for rates in reached)
    high = min(max(rates.values()) for rates in reached)
    if low > high:
        return math.sqrt(low * high)
    return min(max(CROP_BPP, low), high)


def _code_at(
    codec: Codec, picture: Picture, rates: Mapping[int, float], target: float
) -> tuple[int, bytes]:
    """The quality whose file comes nearest to `target` bits a pixel, and that file.

    Searched between the qualities in `rates`, by false position on the logarithm of the rate.
    """
    known = dict(rates)

    def distance(quality: int) -> float:
        return abs(math.log(known[quality] / target))

    for _ in range(_RATE_SEARCH):
        below = max((q for q, rate in known.items() if rate <= target), default=None)
        above = min((q for q, rate in known.items() if rate > target), default=None)
        if below is None or above is None or above - below < 2:
            break
        if min(distance(below), distance(above)) <= _RATE_TOLERANCE:
            break
        share = math.log(target / known[below]) / math.log(known[above] / known[below])
        guess = below + min(max(round(share * (above - below)), 1), above - below - 1)
        known[guess] = _bpp(codec.compress(picture, quality=guess, effort=GREEDY_EFFORT), picture)
    best = min(sorted(known), key=distance)
    return best, codec.compress(picture, quality=best, effort=GREEDY_EFFORT)


def find_detail(pixels: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the window of CROP_SIDE with most detail in (H, W, 3).

    Detail is the sum of the absolute differences of neighbouring greys. Windows start every
    16 pixels and at the far ends; of equal ones the first in raster order is taken.
    """
    rows, columns = pixels.shape[:2]
    height, width = min(CROP_SIDE, rows), min(CROP_SIDE, columns)
    grey = pixels.sum(axis=2, dtype=np.int16)
    detail = np.zeros((rows, columns), np.int16)
    detail[:, 1:] += np.abs(np.diff(grey, axis=1))
    detail[1:] += np.abs(np.diff(grey, axis=0))
    # Sums of bands and then of windows in them: no array but these is larger than the picture's.
    tops, lefts = _starts(rows, height), _starts(columns, width)
    best, place = -1, (0, 0)
    for top in tops:
        band = detail[top : top + height].sum(axis=0, dtype=np.int64).cumsum()
        for left in lefts:
            total = int(band[left + width - 1]) - (int(band[left - 1]) if left else 0)
            if total > best:
                best, place = total, (left, top)
    return (*place, width, height)


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin along a side, ascending."""
    return [*range(0, length - window, _WINDOW_STEP), length - window]


def _bpp(data: bytes, picture: Picture) -> float:
    return 8 * len(data) / (picture.pixels.shape[0] * picture.pixels.shape[1])


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


# --- table and JSON ------------------------------------------------------------------------


def format_table(comparison: Comparison) -> str:
    """Means over the pictures as a table in plain text, and a line on the health of each latent."""
    count = len(comparison.pictures)
    head = ("latent", "quality", "bytes", "bpp", "PSNR dB", "MS-SSIM", "encode s", "decode s", "KL bpp")
    lines = [head]
    for result in comparison.results:
        for point in result.points:
            mean = point.mean
            lines.append(
                (
                    result.label,
                    str(point.quality),
                    f"{mean.bytes:,.0f}",
                    f"{mean.bpp:.4f}",
                    f"{mean.psnr:.2f}",
                    "-" if mean.ms_ssim is None else f"{mean.ms_ssim:.4f}",
                    f"{mean.encode_seconds:.3f}",
                    f"{mean.decode_seconds:.3f}",
                    "-" if mean.divergence_bpp is None else f"{mean.divergence_bpp:.4f}",
                )
            )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    title = "1 picture" if count == 1 else f"means over {count} pictures"
    health = [
        f"{result.label}: {describe(result.health).partition(': ')[2]}" for result in comparison.results
    ]
    return "\n".join([title, "", *table, "", *health])


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON takes it: without the pixels of the crops, null for a PSNR without loss."""
    found = dataclasses.asdict(comparison)
    for crops in found["crops"]:
        del crops["original_png"]
        for crop in crops["crops"]:
            del crop["png"]
    return {"schema": SCHEMA, **_finite(found)}


def _finite(value: Any) -> Any:
    """`value` with lists for tuples, and None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
