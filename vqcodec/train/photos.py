"""Training pictures: a folder of images decoded once and kept in memory, and random crops of it.

The validation split is fixed by a hash of the file name (about one picture in twelve), so it does
not change when pictures are added. Pictures that cannot be read are skipped and named.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.errors import ImageError, TooLargeError, VqcError
from vqcodec.image import load_picture

logger = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif"}


@dataclass(frozen=True)
class PhotoSet:
    """Decoded pictures, uint8 (H, W, 3) each, in the order of their names."""

    train: list[NDArray[np.uint8]]
    validation: list[NDArray[np.uint8]]


def is_validation(name: str) -> bool:
    """Whether a picture of this file name belongs to the validation split."""
    return hashlib.sha256(name.encode()).digest()[0] % 12 == 0


def load_photos(folder: Path, *, minimum_side: int = 64) -> PhotoSet:
    """Every readable picture below `folder`. VqcError if none is left to train on."""
    if not folder.is_dir():
        raise VqcError(f"{folder}: not a folder of pictures")
    train: list[NDArray[np.uint8]] = []
    validation: list[NDArray[np.uint8]] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
        try:
            pixels = load_picture(path).pixels
        except (ImageError, TooLargeError, OSError) as error:
            logger.warning("skipped %s: %s", path.name, error)
            continue
        if min(pixels.shape[:2]) < minimum_side:
            logger.warning("skipped %s: a side is below %d pixels", path.name, minimum_side)
            continue
        (validation if is_validation(path.name) else train).append(pixels)
    if not train:
        raise VqcError(f"{folder}: no readable pictures of at least {minimum_side} pixels a side")
    return PhotoSet(train, validation or train[:1])


def random_crops(
    photos: list[NDArray[np.uint8]], count: int, size: int, random: np.random.Generator
) -> Tensor:
    """count crops (N, 3, size, size) float32 0..255, flipped and turned at random; large pictures
    are drawn more often."""
    areas = np.array([p.shape[0] * p.shape[1] for p in photos], dtype=np.float64) ** 0.75
    crops = np.empty((count, size, size, 3), np.uint8)
    for n in range(count):
        photo = photos[random.choice(len(photos), p=areas / areas.sum())]
        side = size
        # A fifth of the crops is seen at half the resolution: finer texture, sharper edges.
        if random.random() < 0.2 and min(photo.shape[:2]) >= 2 * size:
            side = 2 * size
        top = random.integers(0, max(1, photo.shape[0] - side + 1))
        left = random.integers(0, max(1, photo.shape[1] - side + 1))
        crop = photo[top : top + side, left : left + side]
        if crop.shape[:2] != (side, side):
            missing = ((0, side - crop.shape[0]), (0, side - crop.shape[1]), (0, 0))
            crop = np.pad(crop, missing, mode="symmetric")
        if side != size:
            crop = crop.reshape(size, 2, size, 2, 3).mean((1, 3)).round().astype(np.uint8)
        crop = np.rot90(crop, int(random.integers(4)))
        crops[n] = crop[:, ::-1] if random.random() < 0.5 else crop
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float()
