"""Codebooks that are not learnt: points of a product lattice (mode fsq).

Of a group of d channels each has an odd number of values, 0 among them, and the codewords are all
combinations (F. Mentzer, D. Minnen, E. Agustsson, M. Tschannen, "Finite scalar quantization: VQ-VAE
made simple", 2024; there a bounded function keeps the latent inside, here the nearest codeword is the
outermost one). A channel whose only value is 0 waits for a later stage. Steps are in units of a channel's
standard deviation; a stage that comes after another one of the channel's divides them.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.quantizer import SCALE, QuantizerConfig, ResidualQuantizer


def count_values(dim: int, codewords: int, coded: Sequence[int] | None = None) -> tuple[int, ...]:
    """Values of each of dim channels: odd, as even as can be, their product at most `codewords`.

    coded: how many stages before this one told each channel anything; those that were told least come
    first where not all of them can have three values.
    """
    coded = coded or (0,) * dim
    values = [1] * dim
    while True:
        place = min(range(dim), key=lambda channel: (values[channel], coded[channel], channel))
        more = [size + 2 * (channel == place) for channel, size in enumerate(values)]
        if math.prod(more) > codewords:
            return tuple(values)
        values = more


def lattice_quantizer(config: QuantizerConfig, scale: Tensor) -> ResidualQuantizer:
    """The codebooks of every stage for channels of these standard deviations (C,). Codeword 0 is zero;
    those that a lattice has too few points for are zero as well, and never the nearest before it."""
    refinement = min(max(count_values(dim, config.codewords)) for _, dim in config.blocks)
    coded = [[0] * dim for _, dim in config.blocks]
    stages = []
    for _ in range(config.stages):
        books, first = [], 0
        for block, (count, dim) in enumerate(config.blocks):
            values = count_values(dim, config.codewords, coded[block])
            points = _points(values, config.codewords)
            steps = np.array([_gaussian_step(size) for size in values])
            finer = np.array([refinement**-before for before in map(float, coded[block])])
            sizes = scale[first : first + count * dim].reshape(count, 1, dim).double().numpy()
            books.append(_fixed_point(points * steps * sizes * finer))
            coded[block] = [
                before + (size > 1) for before, size in zip(coded[block], values, strict=True)
            ]
            first += count * dim
        stages.append(books)
    return ResidualQuantizer(config, stages)


def _gaussian_step(values: int) -> float:
    """Step in standard deviations with which so many uniform values suit a Gaussian best: a fit, good to
    a hundredth, of the table of J. Max, "Quantizing for minimum distortion", 1960. Any for one value."""
    return (2.65 + 0.66 * math.log2(values)) / values


def _points(values: tuple[int, ...], codewords: int) -> NDArray[np.float64]:
    """All combinations (K, d) of -(n - 1) / 2 .. (n - 1) / 2, zero first, filled up with zeros."""
    axes = [np.arange(size) - size // 2 for size in values]
    points = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], 1)
    nearest_first = np.argsort(np.abs(points).sum(1), kind="stable")
    filled = np.zeros((codewords, len(values)))
    filled[: len(points)] = points[nearest_first]
    return filled


def _fixed_point(books: NDArray[np.float64]) -> NDArray[np.int16]:
    return torch.from_numpy(books * SCALE).round().clamp(-32768, 32767).short().numpy()
