"""Steps of the uniform quantiser: what each channel and each rate bucket quantises with.

An autoencoder's channels share one step, as the components of an orthonormal transform should. Those of
a VAE follow its posterior: a uniform error of the variance sigma^2 has the step sqrt(12) sigma, so steps
are proportional to the mean sigma of each channel.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.escapes import SYMBOLS
from vqcodec.transform import Analysis, pad_pixels
from vqcodec.uniform import GAIN_UNITS, STEP_UNITS, UniformConfig, UniformQuantizer

# Steps of the first and the last bucket in grey levels: prices of 12000 and 25 squared grey levels a
# bit, the range of the vector quantiser, at high rate.
_COARSEST, _FINEST = 320.0, 14.0
# How far the step of a channel may be from the typical one.
_SPREAD = 8.0


def start_uniform(config: UniformConfig) -> tuple[UniformQuantizer, Tensor]:
    """Equal steps, and code lengths (1, C, K) by a guess to begin with: small values are short."""
    size = (torch.arange(SYMBOLS) + 1) // 2
    bits = 1 + 2 * torch.log2(1.0 + size)
    step = np.full(config.channels, STEP_UNITS, np.int32)
    return UniformQuantizer(config, step, _gains(config)), bits.expand(1, config.channels, SYMBOLS)


@torch.no_grad()
def fit_steps(analysis: Analysis, photos: Sequence[NDArray[np.uint8]]) -> UniformQuantizer:
    """Steps by the mean sigma of each channel's posterior over pictures uint8 (H, W, 3)."""
    deviations = []
    for photo in photos:
        pixels = torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)[None].float()
        _, log_variance = analysis.posterior(pad_pixels(pixels))
        deviations.append((0.5 * log_variance[0]).exp().flatten(1))
    sigma = torch.cat(deviations, 1).mean(1) * analysis.scale
    relative = (sigma / sigma.median()).clamp(1 / _SPREAD, _SPREAD)
    config = UniformConfig(channels=len(sigma))
    step = (relative * STEP_UNITS).round().int().numpy()
    return UniformQuantizer(config, step, _gains(config))


def _gains(config: UniformConfig) -> NDArray[np.int32]:
    """Geometric from the coarsest step to the finest."""
    steps = np.geomspace(_COARSEST, _FINEST, config.buckets)
    return (steps * GAIN_UNITS).round().astype(np.int32)
