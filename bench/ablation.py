"""What each part of mode vq is worth: the same training with one part off at a time.

    python bench/ablation.py --data PHOTOS --out DIR [--only NAME,...] [--steps N] [--json FILE]

Purpose: a model of each variant, with narrow networks, trained from the start with one seed and one
number of steps on few and small crops, and its BD-rate against the one that has everything, over the
pictures that training sets aside. Models and checkpoints stay in DIR: a run that was cut goes on, a
variant that is there is not trained again. Exit status: 0, or 2 for a wrong command line.

What is measured: whole files of centre crops at a few qualities, decoded again; means of bpp and of
PSNR-RGB, and BD-rate over the decibels that both curves cover. Budgets are small, so the figures say
which parts matter, not how good the packaged model is.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Run as a script: the root comes last, so that an installed vqcodec is the one that is measured.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.metrics import Curve, lost, record, require_scipy, write_json
from bench.trained_models import centre, measure, train_once
from vqcodec.effort import DEFAULT_EFFORT, GREEDY_EFFORT

if TYPE_CHECKING:
    from vqcodec.train.settings import TrainConfig

QUALITIES = (5, 20, 35, 50, 65, 80, 95)
EVERYTHING = "everything"


@dataclass(frozen=True)
class Variant:
    """off: what it lacks, in words; change: of the settings; phases: of the training; effort: of the
    encoder; trained_as: the variant whose model it takes, if it differs in the encoder alone."""

    off: str
    change: Callable[[TrainConfig], TrainConfig] = lambda config: config
    phases: tuple[str, ...] = ("start", "synthesis", "joint", "prior")
    effort: int = DEFAULT_EFFORT
    trained_as: str | None = None


def _transform(**values: Any) -> Callable[[TrainConfig], TrainConfig]:
    return lambda config: dataclasses.replace(
        config, transform=dataclasses.replace(config.transform, **values)
    )


def _quantizer(**values: Any) -> Callable[[TrainConfig], TrainConfig]:
    return lambda config: dataclasses.replace(
        config, quantizer=dataclasses.replace(config.quantizer, **values)
    )


def _fewer_channels(config: TrainConfig) -> TrainConfig:
    """The channels of the last block of groups left out."""
    blocks = config.quantizer.blocks[:-1]  # type: ignore[union-attr]
    channels = sum(count * dim for count, dim in blocks)
    return _quantizer(blocks=blocks)(_transform(channels=channels)(config))


VARIANTS = {
    EVERYTHING: Variant("nothing"),
    "search": Variant("search at the encoder", effort=GREEDY_EFFORT, trained_as=EVERYTHING),
    "prior": Variant("conditional prior: static tables", phases=("start", "synthesis", "joint")),
    "prediction": Variant("spatial prediction", _quantizer(predicted=())),
    "joint": Variant(
        "joint training: linear analysis, codebooks of the start",
        _transform(analysis_depths=(0, 0, 0)),
        ("start", "synthesis", "prior"),
    ),
    "rate": Variant("gradient of the rate", lambda c: dataclasses.replace(c, rate_share=0.0)),
    "analysis": Variant("branch of the analysis", _transform(analysis_depths=(0, 0, 0))),
    "synthesis": Variant(
        "branch of the synthesis",
        _transform(synthesis_depths=(0, 0, 0)),
    ),
    "rates": Variant("synthesis told of the rate", _transform(rates=0)),
    "average": Variant("moving average of weights", lambda c: dataclasses.replace(c, smoothing=0.0)),
    "channels": Variant("channels 288 to 415", _fewer_channels),
}


def settings(variant: Variant, preset: str) -> TrainConfig:
    """The settings of a variant: those of the preset, but for networks of 2/5 of the width and half as
    many crops of a quarter of the area, so that a variant takes about half an hour on one core."""
    from vqcodec.train.settings import preset_config

    config = preset_config(preset)
    known = config.transform
    transform = dataclasses.replace(
        known,
        analysis_widths=_narrow(known.analysis_widths),
        synthesis_widths=_narrow(known.synthesis_widths),
    )
    config = dataclasses.replace(
        config,
        transform=transform,
        crop=config.crop // 2,
        batch=max(1, config.batch // 2),
        prior_window=config.prior_window // 2,
    )
    return variant.change(config)


def _narrow(widths: tuple[int, int, int]) -> tuple[int, int, int]:
    """About 2/5 of them, whole eights."""
    wide, middle, narrow = (max(8, width * 2 // 5 // 8 * 8) for width in widths)
    return wide, middle, narrow


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="ablation.py", description="What each part of mode vq is worth."
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="photographs to train on")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="models and checkpoints")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(VARIANTS),
        metavar="NAME,...",
        help=f"of {', '.join(VARIANTS)}",
    )
    parser.add_argument("--steps", type=int, default=5000, help="of the networks (default 5000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="default", help="settings of everything (default: default)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run with the arguments after the script's name; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    unknown = [name for name in args.only if name not in VARIANTS]
    if unknown or args.steps < 1:
        parser.error(f"unknown: {', '.join(unknown)}" if unknown else "--steps must be at least 1")
    if not args.data.is_dir():
        parser.error(f"{args.data} is not a folder")
    require_scipy(parser)
    from vqcodec.errors import VqcError
    from vqcodec.train.photos import load_photos

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    names = [EVERYTHING, *(name for name in args.only if name != EVERYTHING)]
    curves: dict[str, Curve] = {}
    pictures = [centre(photo) for photo in load_photos(args.data).validation]
    for name in names:
        trained = VARIANTS[VARIANTS[name].trained_as or name]
        model = args.out / f"{VARIANTS[name].trained_as or name}.safetensors"
        try:
            train_once(
                model,
                data=args.data,
                steps=args.steps,
                seed=args.seed,
                config=settings(trained, args.preset),
                phases=trained.phases,
            )
        except VqcError as error:
            print(f"ablation.py: {error}", file=sys.stderr)
            return error.exit_code
        except ValueError as error:
            parser.error(str(error))
        curves[name] = measure(model, pictures, effort=VARIANTS[name].effort, qualities=QUALITIES)
    print(f"{len(pictures)} pictures, {args.steps} steps\n  {'off':<58} BD-rate lost")
    rows = []
    for name, curve in curves.items():
        points = [{"bpp": b, "psnr": d} for b, d in zip(curve.bpp, curve.decibels, strict=True)]
        row: dict[str, Any] = {"variant": name, "off": VARIANTS[name].off, "points": points}
        try:
            percent, low, high = lost(curve, curves[EVERYTHING])
            said = f"{percent:+.1f} %  ({low:.1f} to {high:.1f} dB)"
            row |= {"percent": percent, "range_db": [low, high]}
        except ValueError as error:
            said = f"n/a: its curve {error}"
        print(f"  {VARIANTS[name].off:<58} {said}")
        rows.append(row)
    if args.json:
        write_json(args.json, {**record("ablation", argv, "cpu"), "steps": args.steps, "variants": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
