"""What the encoder's search costs and gives: seconds and BD-rate of every effort against one assignment.

    python bench/search_effort.py --images DIR [--efforts N,...] [--qualities Q,...] [--json FILE]

Purpose: the table by which to choose `--effort`. Exit status: 0, 2 for a wrong command line, 3 if the
model is missing.

What is measured: whole files of each picture at each quality and effort, the efforts one after the other
so that a machine that slows down slows all of them, decoded again; the sum of the seconds of `compress`,
model loaded, as a multiple of that of the least effort; BD-rate against the least effort over the
decibels that both curves cover. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

# Run as a script: the root comes last, so that an installed vqcodec is the one that is measured.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.metrics import curve_of_means, lost, record, require_scipy, write_json
from bench.rd import parse_qualities, read_pictures, say
from vqcodec.effort import EFFORTS, GREEDY_EFFORT
from vqcodec.similarity import psnr_rgb

if TYPE_CHECKING:
    from vqcodec.codec import Codec


def parse_efforts(text: str) -> tuple[int, ...]:
    """Ascending efforts, the least among them: "1,4,9". ArgumentTypeError for what is none."""
    try:
        found = sorted({int(part) for part in text.split(",")} | {GREEDY_EFFORT})
    except ValueError:
        found = [0]
    if not set(found) <= set(EFFORTS):
        raise argparse.ArgumentTypeError(f"expected efforts {EFFORTS[0]}..{EFFORTS[-1]}, got {text!r}")
    return tuple(found)


def measure(
    codec: Codec,
    pictures: Sequence[Image.Image],
    *,
    efforts: Sequence[int],
    qualities: Sequence[int],
) -> list[dict[str, Any]]:
    """A row for each effort: seconds, their multiple, points of the curve, BD-rate and its range."""
    shape = (len(efforts), len(qualities), len(pictures))
    bpp, psnr, seconds = np.zeros(shape), np.zeros(shape), np.zeros(len(efforts))
    for p, picture in enumerate(pictures):
        pixels = np.asarray(picture)
        codec.compress(picture, quality=qualities[0], effort=GREEDY_EFFORT)
        for q, quality in enumerate(qualities):
            for e, effort in enumerate(efforts):
                start = time.perf_counter()
                file = codec.compress(picture, quality=quality, effort=effort)
                seconds[e] += time.perf_counter() - start
                bpp[e, q, p] = 8 * len(file) / (picture.width * picture.height)
                psnr[e, q, p] = psnr_rgb(pixels, np.asarray(codec.decompress(file).convert("RGB")))
        say(f"search_effort: {p + 1} of {len(pictures)}")
    curves = [curve_of_means(rates, decibels) for rates, decibels in zip(bpp, psnr, strict=True)]
    rows = []
    for effort, spent, curve in zip(efforts, seconds, curves, strict=True):
        found: dict[str, Any] = {}
        try:
            percent, low, high = lost(curve, curves[0])
            found = {"bd_rate_percent": round(percent, 2), "range_db": [round(low, 2), round(high, 2)]}
        except ValueError as error:
            found = {"bd_rate_percent": None, "why": f"its curve {error}"}
        rows.append(
            {
                "effort": effort,
                "seconds": round(float(spent), 3),
                "times_least": round(float(spent / seconds[0]), 2),
                **found,
                "bpp": [round(rate, 5) for rate in curve.bpp],
                "psnr": [round(decibels, 3) for decibels in curve.decibels],
            }
        )
    return rows


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="search_effort.py", description="Time and BD-rate of each encoding effort."
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of pictures")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument("--model", metavar="NAME|PATH", help="default: the model of the package")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda[:i]")
    parser.add_argument(
        "--efforts", type=parse_efforts, default=tuple(EFFORTS), metavar="N,...", help="default all"
    )
    parser.add_argument(
        "--qualities",
        type=parse_qualities,
        default=(10, 30, 50, 70, 90),
        metavar="Q,...",
        help="default 10,30,50,70,90",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run with the arguments after the script's name; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    _, pictures = read_pictures(parser, args.images, args.limit)
    require_scipy(parser)
    from vqcodec.codec import load_codec
    from vqcodec.errors import VqcError

    try:
        codec = load_codec(model=args.model, device=args.device)
    except VqcError as error:
        say(f"search_effort.py: {error}")
        return error.exit_code
    except ValueError as error:
        parser.error(str(error))
    if codec.model.config.mode != "vq":
        parser.error(f"the model is of mode {codec.model.config.mode}: only vq searches")
    rows = measure(codec, pictures, efforts=args.efforts, qualities=args.qualities)
    head = record("search_effort", argv, args.device)
    print(f"{head['machine']['cpu']}, {head['machine']['torch_threads']} threads of torch")
    print(f"{len(pictures)} pictures, qualities {', '.join(map(str, args.qualities))}")
    print(f"{'effort':>6} {'seconds':>8} {'times':>6}  BD-rate")
    for row in rows:
        said = f"n/a: {row.get('why')}"
        if row["bd_rate_percent"] is not None:
            low, high = row["range_db"]
            said = f"{row['bd_rate_percent']:+.1f} %  ({low:.1f} to {high:.1f} dB)"
        print(f"{row['effort']:>6} {row['seconds']:>8.1f} {row['times_least']:>6.1f}  {said}")
    if args.json:
        write_json(args.json, {**head, "model": f"{codec.model.code_id:08x}", "efforts": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
