"""From quality to rate: places the 100 qualities on the rate axis so that equal steps of quality
are equal steps of the logarithm of the bytes.

At one price, two neighbouring buckets give different rates, because the prior expects different
densities of symbols. Each bucket is therefore measured over a range of prices that overlaps its
neighbours', and a rate is given to the bucket in whose middle it lies, at the price that yields it.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vqcodec.bottleneck import VectorBottleneck
from vqcodec.model import QUALITIES
from vqcodec.quantizer import LEVELS, RatePoint, price_in

# Places at which a bucket is measured, in buckets from its middle.
_OFFSETS = (-1.0, 0.0, 1.0)
# Where a new stage sets in, the change of rate differs from picture to picture by a few per cent.
# This much is added to the step (in logarithm of the bytes), so that it stays a step upwards.
_STAGE_MARGIN = 0.03


def calibrate_points(bottleneck: VectorBottleneck, latents: Sequence[Tensor]) -> tuple[RatePoint, ...]:
    """Points of quality 1..100 by the mean code length of latents (C, H, W).

    Quality 1 is the first bucket at its highest price, quality 100 the last at its lowest.
    """
    config = bottleneck.quantizer.config
    count = config.stages * LEVELS
    prices = np.empty((count, len(_OFFSETS)))
    spent = np.empty((count, len(_OFFSETS)))
    for number in range(count):
        stage, level = divmod(number, LEVELS)
        for column, offset in enumerate(_OFFSETS):
            price = price_in(config, stage, (level + 0.5 + offset) / LEVELS)
            point = RatePoint(number + 1, price)
            prices[number, column] = np.log(price)
            spent[number, column] = np.log(
                sum(p.bits for latent in latents for p in bottleneck.to_symbols(latent, point)) + 1
            )
    lowest_rate = float(np.interp(-0.5, _OFFSETS, spent[0]))
    highest_rate = float(np.interp(0.5, _OFFSETS, spent[-1]))
    spacing = (highest_rate - lowest_rate - (config.stages - 1) * _STAGE_MARGIN) / (QUALITIES - 1)
    points: list[RatePoint] = []
    bucket, target = 1, lowest_rate
    for _ in range(QUALITIES):
        chosen = _best_bucket(spent, target, bucket)
        if (chosen - 1) // LEVELS > (bucket - 1) // LEVELS:
            target += _STAGE_MARGIN
            chosen = _best_bucket(spent, target, chosen)
        bucket = chosen
        place = float(np.clip(_crossing(spent[bucket - 1], target), _OFFSETS[0], _OFFSETS[-1]))
        price = float(np.exp(np.interp(place, _OFFSETS, prices[bucket - 1])))
        points.append(RatePoint(bucket, round(price, 3)))
        target = min(target + spacing, highest_rate)
    return tuple(points)


def _best_bucket(spent: np.ndarray, target: float, lowest: int) -> int:
    """The bucket, `lowest` or above, in whose middle a rate lies."""
    places = [abs(_crossing(curve, target)) for curve in spent[lowest - 1 :]]
    return lowest + int(np.argmin(places))


def _crossing(spent: np.ndarray, target: float) -> float:
    """Where the line through the measured rates reaches a target, continued beyond the ends."""
    slopes = np.maximum(np.diff(spent) / np.diff(_OFFSETS), 1e-6)
    if target < spent[1]:
        return float(_OFFSETS[1] + (target - spent[1]) / slopes[0])
    return float(_OFFSETS[1] + (target - spent[1]) / slopes[1])
