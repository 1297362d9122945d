"""Autoencoders of handwritten digits, small enough to try every kind in minutes: what regular latents
buy.

    model = train_digits("vae", pixels, labels, digits_config("vae", latent=2))
    model.encode(pixels); model.decode(latent); model.draw(16, seed=1)
    draw_digits(3, 16, seed=1)      # sixteen threes, uint8 (16, 8, 8), from the packaged cvae

Pictures are 8x8, those of scikit-learn's `load_digits` divided by 16; they are passed in, the package has
none. docs/latents.md has the study.
"""

from vqcodec.digits.config import KINDS, DigitsConfig, digits_config
from vqcodec.digits.drawing import draw_digits
from vqcodec.digits.family import DigitsModel
from vqcodec.digits.storage import load_digits, save_digits
from vqcodec.digits.training import train_digits

__all__ = [
    "KINDS",
    "DigitsConfig",
    "DigitsModel",
    "digits_config",
    "draw_digits",
    "load_digits",
    "save_digits",
    "train_digits",
]
