"""Models that a bench trains itself: once, resumable, never taken for those of another training; and
the curve of one over centre crops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bench.metrics import Curve, curve_of_means
from vqcodec.similarity import psnr_rgb

if TYPE_CHECKING:
    from vqcodec.train.settings import TrainConfig

SIDE = 384
"""Of the centre crops, pixels at most."""


def train_once(
    path: Path,
    *,
    data: Path,
    steps: int,
    seed: int,
    config: TrainConfig,
    phases: tuple[str, ...],
    init: Path | None = None,
    code: str | None = None,
) -> None:
    """Trains the model of `path` as far as it is not.

    config: as the checkpoint has it. init, code: the model to start from and its code id, eight
    hexadecimal digits. ValueError if what is there was trained with other settings, another seed, number
    of steps or start; VqcError subclasses as `vqcodec.train.train_model`.
    """
    from vqcodec.train import train_model
    from vqcodec.train.checkpoint import checkpoint_path, load_checkpoint
    from vqcodec.train.settings import config_to_json

    going_on = checkpoint_path(path).exists()
    if going_on:
        before = load_checkpoint(checkpoint_path(path))
        notes = json.loads(before["notes"])
        known = before["config"], before["seed"], notes.get("init")
        if known != (config_to_json(config), seed, code):
            raise ValueError(f"{path.name} was trained with other settings: give another --out")
        if set(phases) <= set(before["done"]):
            if steps not in (notes.get("joint_steps"), notes.get("synthesis_steps")):
                raise ValueError(f"{path.name} was not trained for {steps} steps: give another --out")
            return
    train_model(
        data=data,
        out=path,
        steps=steps,
        resume=going_on,
        init=None if going_on or init is None else str(init),
        phases=None if going_on else phases,
        seed=seed,
        config=config,
    )


def measure(
    model: Path, pictures: Sequence[NDArray[np.uint8]], *, effort: int, qualities: Sequence[int]
) -> Curve:
    """The curve of means of a model's files."""
    from vqcodec.codec import load_codec

    codec = load_codec(model, "cpu")
    bpp, psnr = [], []
    for quality in qualities:
        files = [codec.compress(picture, quality=quality, effort=effort) for picture in pictures]
        decoded = [np.asarray(codec.decompress(file)) for file in files]
        bpp.append([8 * len(f) / (p.size // 3) for f, p in zip(files, pictures, strict=True)])
        psnr.append([psnr_rgb(p, d) for p, d in zip(pictures, decoded, strict=True)])
    return curve_of_means(bpp, psnr)


def centre(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle of a photograph, SIDE pixels a side at most."""
    top, left = (max(0, side - SIDE) // 2 for side in photo.shape[:2])
    return np.ascontiguousarray(photo[top : top + SIDE, left : left + SIDE])
