"""Speed, memory and start-up time of the codec, end to end.

    python bench/codec_speed.py [--image FILE] [--device cpu|cuda] [--threads N] [--json FILE]

Purpose: megapixels per second of `Codec.compress` and `Codec.decompress` with the model loaded,
peak memory of this process, wall time of the commands that must answer at once, and their bars.
Exit status: 0, 1 if a check fails, 2 for a wrong command line, 3 if the model is missing.

Layout: the picture; codec; start-up; main.

What is measured: picture in memory to file in memory and back, one call at a time, after one call
of each that is not counted; first at the least effort, then at the default one. Every repetition
must give the same file and the same picture. Peak memory is the high-water mark of the whole
process, interpreter and libraries included. Run it on an idle machine; the load average is shown so
that a reader can see whether it was.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Run as a script: the root comes last, so that an installed vqcodec is the one that is measured.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.metrics import record, write_json
from vqcodec.effort import DEFAULT_EFFORT, GREEDY_EFFORT
from vqcodec.similarity import psnr_rgb

if TYPE_CHECKING:
    from vqcodec.codec import Codec

T = TypeVar("T")

QUALITIES = (10, 50, 90)
WIDTH, HEIGHT = 1920, 1088
SPEED_WITH_AMX, SPEED_WITHOUT = 2.0, 1.0
"""Bars on the median, MP/s."""
START_UP_SECONDS = 0.25
PEAK_BYTES = 1.5e9
SANE_PSNR = 20.0
"""dB; below it, what came back is not the picture. The synthetic picture is harder than a photo."""


def synthetic_picture(width: int, height: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with the statistics of a photo: edges, texture at all scales, noise.

    Discs that cover each other, sizes by a power law (so occlusion edges at every scale), times
    noise in octaves whose amplitude falls with frequency, plus a little noise of a sensor. The
    amounts were chosen so that JPEG needs about the bits per pixel that it needs for Kodak.
    """
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 0.5, dtype=np.float32)
    for _ in range(4000):
        radius = min(4.0 / rng.uniform(0.005, 1.0) ** 0.75, 0.4 * height)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        # Mostly a change of brightness, as in photos: colour varies less than light does.
        colour = rng.uniform(0.1, 0.8) + rng.normal(0.0, 0.06, 3)
        top, bottom = max(0, int(y - radius)), min(height, int(y + radius) + 1)
        left, right = max(0, int(x - radius)), min(width, int(x + radius) + 1)
        rows = np.arange(top, bottom)[:, None] - y
        columns = np.arange(left, right)[None, :] - x
        inside = rows * rows + columns * columns < radius * radius
        shade = 1.0 + rng.uniform(-0.3, 0.3) * (columns / radius) + 0.0 * rows
        area = picture[top:bottom, left:right]
        area[inside] = (shade[..., None] * colour)[inside]
    for octave in range(1, 9):
        size = 2**octave
        coarse = rng.normal(0.0, 0.009 * size**0.4, (height // size + 2, width // size + 2))
        picture += _enlarge(coarse, size)[:height, :width, None].astype(np.float32)
    picture += rng.normal(0.0, 0.008, picture.shape).astype(np.float32)
    return np.clip(np.rint(picture * 255.0), 0, 255).astype(np.uint8)


def _enlarge(coarse: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Bilinear enlargement of (h, w) to ((h - 1)·factor, (w - 1)·factor)."""
    weight = (np.arange(factor) / factor)[None, :, None]
    rows = coarse[:-1, None] * (1.0 - weight) + coarse[1:, None] * weight
    columns = rows.reshape(-1, coarse.shape[1]).T
    both = columns[:-1, None] * (1.0 - weight) + columns[1:, None] * weight
    return both.reshape(-1, columns.shape[1]).T


def timed(call: Callable[[], T], repeat: int) -> tuple[list[T], list[float]]:
    """Results and seconds of `repeat` calls, after one that is thrown away."""
    call()
    results, seconds = [], []
    for _ in range(repeat):
        start = time.perf_counter()
        results.append(call())
        seconds.append(time.perf_counter() - start)
    return results, seconds


def speed(seconds: Sequence[float], pixels: int) -> dict[str, float]:
    """Megapixels per second: median, and those of the slowest and of the fastest repetition."""
    rates = [pixels / 1e6 / each for each in seconds]
    found = {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}
    return {name: round(rate, 3) for name, rate in found.items()}


def measure(
    codec: Codec, picture: Image.Image, quality: int, repeat: int, *, effort: int
) -> dict[str, Any]:
    """Speeds, bytes and PSNR at one quality. RuntimeError if a round trip is not right."""
    pixels = picture.width * picture.height
    files, compress = timed(lambda: codec.compress(picture, quality=quality, effort=effort), repeat)
    if any(data != files[0] for data in files):
        raise RuntimeError(f"quality {quality}, effort {effort}: the same picture gave different files")
    decoded, decompress = timed(lambda: codec.decompress(files[0]), repeat)
    if any(again.tobytes() != decoded[0].tobytes() for again in decoded):
        raise RuntimeError(f"quality {quality}, effort {effort}: the same file gave different pictures")
    if decoded[0].size != picture.size:
        raise RuntimeError(
            f"quality {quality}, effort {effort}: {picture.size} in, {decoded[0].size} back"
        )
    psnr = psnr_rgb(np.asarray(picture), np.asarray(decoded[0].convert("RGB")))
    return {
        "effort": effort,
        "quality": quality,
        "compress_mp_s": speed(compress, pixels),
        "decompress_mp_s": speed(decompress, pixels),
        "bytes": len(files[0]),
        "bpp": round(8 * len(files[0]) / pixels, 5),
        "psnr": round(min(psnr, 999.0), 3),  # JSON has no infinity
    }


def peak_memory() -> int:
    """High-water mark of this process's resident memory, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def start_up(arguments: Sequence[str], repeat: int) -> float:
    """Median wall seconds of `python -m vqcodec ...` as a new process, after one not counted."""
    command = [sys.executable, "-m", "vqcodec", *arguments]
    run = partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
    _, seconds = timed(run, repeat)
    return round(statistics.median(seconds), 4)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="codec_speed.py", description="Speed, memory and start-up time of the codec."
    )
    parser.add_argument(
        "--image",
        type=Path,
        metavar="FILE",
        help=f"an RGB picture (default: a synthetic one, {WIDTH}x{HEIGHT})",
    )
    parser.add_argument("--model", metavar="NAME|PATH", help="default: the model of the package")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda[:i]")
    parser.add_argument("--threads", type=int, metavar="N", help="torch threads (default: its own)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="repetitions (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run with the arguments after the script's name; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.repeat < 1 or (args.threads is not None and args.threads < 1):
        parser.error("--repeat and --threads must be at least 1")
    if args.image:
        try:
            with Image.open(args.image) as opened:
                picture = Image.fromarray(np.asarray(opened.convert("RGB")))
        except OSError as error:
            parser.error(str(error))
    else:
        picture = Image.fromarray(synthetic_picture(WIDTH, HEIGHT))

    import torch

    from vqcodec.codec import load_codec
    from vqcodec.errors import VqcError

    if args.threads:
        torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    try:
        codec = load_codec(model=args.model, device=args.device)
    except VqcError as error:
        print(f"codec_speed.py: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        parser.error(str(error))
    rows = [
        measure(codec, picture, quality, args.repeat, effort=effort)
        for effort in (GREEDY_EFFORT, DEFAULT_EFFORT)
        for quality in QUALITIES
    ]
    peak = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.vqc"
        file.write_bytes(codec.compress(picture, quality=50))
        commands = {"--help": ["--help"], "info": ["info", str(file)]}
        seconds = {name: start_up(arguments, 5) for name, arguments in commands.items()}

    head = record("codec_speed", argv, args.device)
    machine = head["machine"]
    sets = " ".join(machine["instruction_sets"]) or "none known"
    print(f"{machine['cpu']}, {machine['device']}, {machine['torch_threads']} threads of torch")
    print(f"instruction sets: {sets}; native kernels: {machine['native_kernels'] or 'not built'}")
    print(f"load average before: {load_before:.2f} on {os.cpu_count()} CPUs")
    megapixels = picture.width * picture.height / 1e6
    source = args.image.name if args.image else "synthetic"
    print(f"{source}, {picture.width}x{picture.height}, {megapixels:.2f} MP, {args.repeat} times\n")
    columns = f"{'effort':>6} {'quality':>7} {'bpp':>7} {'PSNR':>6}"
    print(f"{columns}   compress MP/s (min, max)   decompress MP/s")
    for row in rows:
        cells = "   ".join(
            f"{row[way]['median']:>6.2f} ({row[way]['min']:.2f}, {row[way]['max']:.2f})   "
            for way in ("compress_mp_s", "decompress_mp_s")
        )
        which = f"{row['effort']:>6} {row['quality']:>7} {row['bpp']:>7.3f} {row['psnr']:>6.2f}"
        print(f"{which}   {cells}".rstrip())

    bar = SPEED_WITH_AMX if "amx_tile" in machine["instruction_sets"] else SPEED_WITHOUT
    checks: list[tuple[str, str, bool]] = []
    for way in ("compress", "decompress"):
        # The search takes its time; the bar is that of coding.
        barred = [row for row in rows if way == "decompress" or row["effort"] == GREEDY_EFFORT]
        slowest = min(row[f"{way}_mp_s"]["median"] for row in barred)
        label = f"{way} --effort {GREEDY_EFFORT}" if way == "compress" else way
        checks.append((f"{label} at least {bar:g} MP/s", f"{slowest:.2f}", slowest >= bar))
    for name, wall in seconds.items():
        checks.append((f"{name} under {START_UP_SECONDS} s", f"{wall:.3f}", wall < START_UP_SECONDS))
    checks.append((f"peak memory under {PEAK_BYTES / 1e9} GB", f"{peak / 1e9:.2f}", peak < PEAK_BYTES))
    worst = min(row["psnr"] for row in rows)
    checks.append((f"PSNR at least {SANE_PSNR:g} dB", f"{worst:.2f}", worst >= SANE_PSNR))
    print()
    for name, value, passed in checks:
        print(f"{'PASS' if passed else 'FAIL'}  {name}: {value}")

    if args.json:
        body = {
            "picture": {"source": source, "width": picture.width, "height": picture.height},
            "repetitions": args.repeat,
            "load_average_before": round(load_before, 2),
            "speed": rows,
            "peak_memory_bytes": peak,
            "start_up_seconds": seconds,
            "checks": [
                {"check": name, "value": value, "status": "PASS" if passed else "FAIL"}
                for name, value, passed in checks
            ],
        }
        write_json(args.json, {**head, **body})
    return 0 if all(passed for _, _, passed in checks) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
