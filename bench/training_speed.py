"""How fast mode vq trains: crops a second of a whole step, and beside it of its networks alone.

    python bench/training_speed.py [--model NAME|PATH] [--device cpu|cuda] [--preset NAME] [--rounds N]
                                   [--share-bar PERCENT] [--crops-bar N] [--json FILE]

Purpose: what a step of joint training (`vqcodec.train.vector`) does beside the convolutions: crops, the
search in every stage, code lengths, codebooks, prediction, optimiser, averages. Exit status: 0, 1 if a
bar is not met, 2 for a wrong command line, 3 if the model is missing.

What is measured: steps of a trainer that began with the model and has settled, so that codebooks and
prediction move; and forward and backward passes of analysis and synthesis with the same weights on
crops that are there, in the same arithmetic, nothing else. They take turns. The bar is on the share of
the networks' rate that the step has. Pictures are synthetic: their contents do not matter here, but
rates of the codewords do for the search, which is why the crops are not noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

# Run as a script: the root comes last, so that an installed vqcodec is the one that is measured.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.codec_speed import synthetic_picture
from bench.metrics import record, write_json
from bench.timing import take_turns
from vqcodec.errors import VqcError
from vqcodec.model import Model, find_model, load_model
from vqcodec.precision import fast_precision
from vqcodec.quantizer import LEVELS, ResidualQuantizer
from vqcodec.train.photos import random_crops
from vqcodec.train.settings import TrainConfig, preset_config
from vqcodec.train.vector import VectorTrainer

SHARE_BAR = 60.0
# Steps before the clock runs: codebooks follow after the first hundred.
SETTLE_STEPS = 101


def make_trainer(model: Model, config: TrainConfig, device: str) -> VectorTrainer:
    """Joint training from a model of mode vq, by the mean of each group's tables as code lengths."""
    assert isinstance(model.quantizer, ResidualQuantizer)
    bits = torch.stack([torch.from_numpy(stage.mean(1)) for stage in model.prior.bits])
    return VectorTrainer(
        config, model.analysis, model.synthesis, model.quantizer, bits, seed=0, device=device
    )


class Networks:
    """Forward and backward passes of a trainer's networks on one batch of crops."""

    def __init__(self, trainer: VectorTrainer, crops: torch.Tensor) -> None:
        self.trainer = trainer
        self.crops = crops.to(trainer.device).contiguous(memory_format=torch.channels_last)
        buckets = trainer.quantizer.config.stages * LEVELS
        self.rates = torch.full((len(crops),), buckets, device=trainer.device)

    def __call__(self) -> float:
        for parameter in self.trainer.parameters:
            parameter.grad = None
        with fast_precision(self.crops.device):
            picture = self.trainer.synthesis(self.trainer.analysis(self.crops).float(), self.rates)
        loss = (picture - self.crops).square().mean()
        loss.backward()
        return float(loss.item())

    def check(self) -> None:
        """AssertionError unless a pass reaches every parameter and gives back about the picture."""
        loss = self()
        assert math.isfinite(loss) and loss < float(self.crops.var())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in self.trainer.parameters)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="training_speed.py", description="How fast mode vq trains.")
    parser.add_argument("--model", metavar="NAME|PATH", help="default: the model of the package")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--preset", default="default", help="crops, batch and rates of learning")
    parser.add_argument("--settle", type=int, default=SETTLE_STEPS, metavar="N", help="steps not timed")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each (default 7)")
    parser.add_argument(
        "--share-bar",
        type=float,
        default=SHARE_BAR,
        metavar="PERCENT",
        help=f"least share of the networks' rate (default {SHARE_BAR:g})",
    )
    parser.add_argument("--crops-bar", type=float, metavar="N", help="least crops a second")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run with the arguments after the script's name; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.settle < 0:
        parser.error("--rounds must be at least 1, --settle at least 0")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU")
    try:
        model = load_model(find_model(args.model))
        preset = preset_config(args.preset)
    except VqcError as error:
        print(f"training_speed.py: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        parser.error(str(error))
    if model.config.mode != "vq":
        parser.error(f"the model is of mode {model.config.mode}, not vq")
    known = model.config
    config = dataclasses.replace(
        preset, transform=known.transform, quantizer=known.quantizer, prior=known.prior
    )
    trainer = make_trainer(model, config, args.device)
    photos = [synthetic_picture(4 * config.crop, 4 * config.crop)]
    crops = random_crops(photos, config.batch, config.crop, np.random.default_rng(0))
    networks = Networks(trainer, crops)
    networks.check()
    for _ in range(args.settle):
        trainer.step(photos, 0.5)
    timings = take_turns(
        {"networks": networks, "step": lambda: trainer.step(photos, 0.5)},
        rounds=args.rounds,
        turn_seconds=0.0,
        finish=torch.cuda.synchronize if args.device == "cuda" else lambda: None,
    )
    rates = {name: config.batch / timing.median for name, timing in timings.items()}
    share = 100 * rates["step"] / rates["networks"]
    print(f"crops of {config.crop}x{config.crop} a second, {config.batch} a step")
    for name, rate in rates.items():
        print(f"  {name:<8} {rate:8.1f}")
    checks = [("share of the networks' rate, %", share, args.share_bar)]
    if args.crops_bar is not None:
        checks.append(("crops a second", rates["step"], args.crops_bar))
    for what, value, bar in checks:
        print(f"{'PASS' if value >= bar else 'FAIL'}  {what}: {value:.1f}, at least {bar:g}")
    passed = all(value >= bar for _, value, bar in checks)
    if args.json:
        body = {
            "crop": config.crop,
            "batch": config.batch,
            "threads": torch.get_num_threads(),
            "crops_per_second": {name: round(rate, 2) for name, rate in rates.items()},
            "share_percent": round(share, 1),
            "seconds": {name: dataclasses.asdict(timing) for name, timing in timings.items()},
            "passed": passed,
        }
        write_json(args.json, {**record("training_speed", argv, args.device), **body})
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
