"""From quality to rate: places the 100 qualities on the rate axis so that equal steps of quality
are equal steps of the logarithm of the bytes."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vqcodec.bottleneck import VectorBottleneck
from vqcodec.model import QUALITIES

_LOWEST = 0.02


def calibrate_positions(
    bottleneck: VectorBottleneck, latents: Sequence[Tensor], *, samples_per_stage: int = 8
) -> tuple[float, ...]:
    """Rate positions of quality 1..100 by the mean code length of latents (C, H, W).

    Quality 1 is the lowest position, quality 100 every stage complete.
    """
    stages = bottleneck.quantizer.config.stages
    inner = np.arange(1, stages * samples_per_stage + 1) / samples_per_stage
    after = np.arange(1, stages) + _LOWEST  # just past a stage's end: where the rate may jump
    positions = np.unique(np.concatenate([[_LOWEST], inner, after]))
    spent = np.array(
        [
            sum(sum(p.bits for p in bottleneck.to_symbols(latent, float(at))) for latent in latents)
            for at in positions
        ]
    )
    rising = np.maximum.accumulate(np.log(np.maximum(spent, 1.0)) + 1e-6 * np.arange(len(spent)))
    targets = np.linspace(rising[0], rising[-1], QUALITIES)
    found = np.interp(targets, rising, positions)
    return tuple(round(float(p), 4) for p in found)
