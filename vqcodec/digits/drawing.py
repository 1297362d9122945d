"""Digits drawn by the packaged cvae, which `python bench/latents.py --model FILE` trained."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vqcodec.digits.config import SIDE
from vqcodec.digits.family import DigitsModel
from vqcodec.digits.storage import load_digits

PACKAGED = Path(__file__).with_name("cvae.safetensors")


def draw_digits(label: int, count: int, *, seed: int) -> NDArray[np.uint8]:
    """`count` pictures of the digit `label`, uint8 (count, 8, 8), white on black.

    The same seed gives the same pictures, the first of them whatever the count, but for the rounding of
    floats. ValueError for a label that is not 0..9, a count below 1 or a seed outside [-2^63, 2^63);
    TypeError for what is not a whole number.
    """
    for name, value in (("label", label), ("count", count)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, got {type(value).__name__}")
    with torch.inference_mode():
        pixels = _packaged().draw(count, seed=seed, label=label)
    return (255 * pixels).round().to(torch.uint8).numpy().reshape(count, SIDE, SIDE)


@cache
def _packaged() -> DigitsModel:
    return load_digits(PACKAGED)
