"""What one model for all rates costs: the same network, trained on for as long for a single rate.

    python bench/single_rate.py --data PHOTOS --out DIR [--model NAME|PATH] [--qualities Q,...]
                                [--steps N] [--crop PIXELS] [--seed N] [--bar PERCENT] [--json FILE]

Purpose: the model is trained on (networks, codebooks, code lengths, prediction) once for the whole rate
axis and once for each quality's point alone, with one seed, as many steps and one plan of the rate of
learning; then bits at equal PSNR. Models and checkpoints stay in DIR: a run that was cut goes on, a
model that is there is not trained again. Exit status: 0, 1 if a check fails, 2 for a wrong command line,
3 if the model is missing.

What is measured: whole files of centre crops of the pictures that training sets aside, one assignment
(`--effort 1`) by the static code lengths of each model, since the prior is trained after the networks.
That favours the single rate: the lengths for all rates are averages over the axis, of which the prior
knows the place.
The curve of the model for all rates passes through its qualities; the other model's file is compared
with it at that file's PSNR.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

# Run as a script: the root comes last, so that an installed vqcodec is the one that is measured.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.metrics import CurveError, bpp_at, record, require_scipy, write_json
from bench.trained_models import centre, measure, train_once
from vqcodec.effort import GREEDY_EFFORT

if TYPE_CHECKING:
    from vqcodec.model import Model
    from vqcodec.train.settings import TrainConfig

ALL_RATES = "all"
SPREAD = 4
"""Qualities beside the compared one, between which the curve for all rates is interpolated."""


def axis_place(model: Model, quality: int) -> float:
    """Where on the rate axis, 0..1, a quality of a model of mode vq lies. ValueError if training there
    would not tell the synthesis the bucket that the quality's files have."""
    from vqcodec.quantizer import QuantizerConfig, point_at

    point, layout = model.config.points[quality - 1], model.config.quantizer
    assert isinstance(layout, QuantizerConfig)
    first, last = layout.first[point.last_stage], layout.last[point.last_stage]
    fraction = math.log(point.price / first) / math.log(last / first)
    # The axis is open at its beginning.
    place = (point.last_stage + min(1.0, max(1e-9, fraction))) / layout.stages
    if point_at(layout, place * layout.stages).bucket != point.bucket:
        raise ValueError(f"quality {quality} lies between two rate buckets: take another")
    return place


def settings(model: Model, quality: int | None, *, crop: int, preset: str) -> TrainConfig:
    """Training of a model for one quality's point, or for all."""
    from vqcodec.train.settings import preset_config

    place = None if quality is None else axis_place(model, quality)
    rates = (0.0, 1.0) if place is None else (place, place)
    known = model.config
    return dataclasses.replace(
        preset_config(preset),
        transform=known.transform,
        quantizer=known.quantizer,
        prior=known.prior,
        crop=crop,
        rates=rates,
    )


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="single_rate.py", description="What one model for all rates costs."
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="photographs to train on")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="models and checkpoints")
    parser.add_argument("--model", metavar="NAME|PATH", help="default: the model of the package")
    parser.add_argument(
        "--qualities",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[20, 45, 70, 89],
        metavar="Q,...",
        help="default 20,45,70,89",
    )
    parser.add_argument("--steps", type=int, default=1000, help="of each training (default 1000)")
    parser.add_argument("--crop", type=int, default=128, metavar="PIXELS", help="default 128")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="default", help="other settings (default: default)")
    parser.add_argument("--bar", type=float, metavar="PERCENT", help="fail if a single rate saves more")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def compare(
    one: Path, everything: Path, quality: int, pictures: Sequence[NDArray[np.uint8]]
) -> dict[str, Any]:
    """Bits that the model for one quality saves against that for all, in per cent at equal PSNR.
    CurveError if the files of qualities about SPREAD apart do not enclose that PSNR."""
    beside = sorted({max(1, quality - SPREAD), quality, min(100, quality + SPREAD)})
    curve = measure(everything, pictures, effort=GREEDY_EFFORT, qualities=beside)
    single = measure(one, pictures, effort=GREEDY_EFFORT, qualities=[quality])
    bpp, decibels = single.bpp[0], single.decibels[0]
    needed = bpp_at(curve, decibels)
    return {
        "quality": quality,
        "psnr": round(decibels, 3),
        "bpp": round(bpp, 5),
        "bpp_all_rates": round(needed, 5),
        "saving_percent": round(100 * (1 - bpp / needed), 2),
    }


def report(rows: Sequence[dict[str, Any]], bar: float | None) -> bool:
    """Prints the rows and whether the bar is met; a quality without a figure does not meet it."""
    print(f"{'quality':>7} {'PSNR':>6}  bpp, all rates, saved")
    for row in rows:
        if "why" in row:
            print(f"{row['quality']:>7}  n/a: {row['why']}")
            continue
        rates = f"{row['bpp']:.4f}, {row['bpp_all_rates']:.4f}"
        print(f"{row['quality']:>7} {row['psnr']:>6.2f}  {rates}, {row['saving_percent']:+.2f} %")
    if bar is None:
        return True
    passed = all(row.get("saving_percent", math.inf) <= bar for row in rows)
    print(f"{'PASS' if passed else 'FAIL'}  a single rate saves at most {bar:g} %")
    return passed


def main(argv: Sequence[str]) -> int:
    """Run with the arguments after the script's name; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.steps < 1 or args.crop < 16 or args.crop % 16:
        parser.error("--steps must be at least 1, --crop a multiple of 16")
    if not args.qualities or not all(1 <= q <= 100 for q in args.qualities):
        parser.error("--qualities must be numbers 1..100")
    if not args.data.is_dir():
        parser.error(f"{args.data} is not a folder")
    require_scipy(parser)
    from vqcodec.errors import VqcError
    from vqcodec.model import find_model, load_model
    from vqcodec.train.photos import load_photos

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    paths: dict[int | None, Path] = {None: args.out / f"{ALL_RATES}.safetensors"}
    paths |= {quality: args.out / f"quality{quality}.safetensors" for quality in args.qualities}
    try:
        init = find_model(args.model)
        model = load_model(init)
        if model.config.mode != "vq":
            parser.error(f"{init} is of mode {model.config.mode}, not vq")
        configs = {q: settings(model, q, crop=args.crop, preset=args.preset) for q in paths}
        args.out.mkdir(parents=True, exist_ok=True)
        for quality, path in paths.items():
            train_once(
                path,
                data=args.data,
                steps=args.steps,
                seed=args.seed,
                config=configs[quality],
                phases=("joint",),
                init=init,
                code=f"{model.code_id:08x}",
            )
        pictures = [centre(photo) for photo in load_photos(args.data).validation]
    except VqcError as error:
        print(f"single_rate.py: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        parser.error(str(error))
    rows: list[dict[str, Any]] = []
    for quality in args.qualities:
        try:
            rows.append(compare(paths[quality], paths[None], quality, pictures))
        except CurveError as error:
            rows.append({"quality": quality, "why": str(error)})
    print(f"{len(pictures)} pictures, {args.steps} steps")
    passed = report(rows, args.bar)
    if args.json:
        body = {"steps": args.steps, "crop": args.crop, "rows": rows, "passed": passed}
        write_json(args.json, {**record("single_rate", argv, "cpu"), **body})
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
