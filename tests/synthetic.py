"""Synthetic pictures for the tests."""

import numpy as np
from numpy.typing import NDArray


def synthetic_picture(seed: int, height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    """Waves, an edge and a little noise, uint8 (H, W, 3): learnable in a few steps."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    angle = random.random() * np.pi
    wave = np.sin((rows * np.cos(angle) + columns * np.sin(angle)) / (4 + 3 * (seed % 4)))
    channels = [128 + 90 * wave * random.random() + 20 * (columns > width // 2) for _ in range(3)]
    noisy = np.stack(channels, 2) + random.normal(0, 3, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)
