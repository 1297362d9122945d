"""Spatial prediction of the first stage: what the latents around a position say of it.

A position is predicted from decoded neighbours by a linear map in integers, and the first stage's
codewords add what is missing; later stages refine the sum as they do without prediction. Indices
alone decide a picture's latent, so the entropy coder knows nothing of this.

The leading channels are cut into blocks. A block is predicted in the seven classes of positions of a
dyadic grid, coarse to fine: every eighth position in both directions first, then for the steps
d = 4, 2, 1 the positions in the middle of four known ones (their diagonal neighbours at distance d
are known), then those between (their direct neighbours at distance d are known). The map of a
block and a class sees, in fixed point,
  * the block's own channels at those four neighbours (in class 0 at none);
  * all channels of the blocks before it, which are known everywhere, at the 3x3 positions around.

    predicted = clamp((sum_i weight_i value_i + 2^(SHIFT-1)) >> SHIFT, -2^15, 2^15 - 1)

A neighbour outside the grid is mirrored; where its mirror image is outside as well, the pair across
the other axis stands in for it, and the position itself in the 3x3.

Layout: latents int32 (N, positions, C) in fixed point, positions in raster order. Weights int16
(CLASSES, inputs, channels of the block), inputs in the order above: neighbour by neighbour, channels
inside. Sums stay below 2^53, so the float64 products that compute them are exact, in any order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHIFT = 14
STEPS = (4, 2, 1)
CLASSES = 1 + 2 * len(STEPS)
PASS_CLASSES = (range(CLASSES - 2), range(CLASSES - 2, CLASSES - 1), range(CLASSES - 1, CLASSES))
"""The classes of the positions of each spatial pass of the prior."""
_LOW, _HIGH = -(1 << 15), (1 << 15) - 1
# Positions whose inputs are gathered at once: bounds the memory that large pictures take.
_SLAB = 8192


@dataclass(frozen=True)
class Neighbours:
    """Raster indices of the positions (P,) of a class, of their four known neighbours (P, 4), or none
    of them (P, 0), and of the 3x3 positions around (P, 9)."""

    here: Tensor
    known: Tensor
    around: Tensor


class Predictor:
    """The maps of every block: weights[b] int16 (CLASSES, inputs, channels[b])."""

    def __init__(self, channels: Sequence[int], weights: Sequence[NDArray[np.int16]]) -> None:
        self.channels = tuple(channels)
        self.weights = list(weights)
        for shape, weight in zip(weight_shapes(self.channels), self.weights, strict=True):
            if weight.shape != shape or weight.dtype != np.int16:
                raise ValueError(f"expected int16 weights {shape}, got {weight.dtype} {weight.shape}")
        self.blocks = block_channels(self.channels)
        self._maps = [torch.from_numpy(weight.astype(np.float64)) for weight in self.weights]

    def predict(self, block: int, kind: int, decoded: Tensor, at: Neighbours) -> Tensor:
        """The prediction int32 (N, P, channels of the block) of the positions of a class."""
        own = self.blocks[block]
        predicted = decoded.new_zeros(len(decoded), len(at.here), self.channels[block])
        if not kind and not own.start:
            return predicted
        # Class 0 has no known neighbours, so the first inputs are not there.
        weight = self._maps[block][kind][0 if kind else 4 * self.channels[block] :]
        for first in range(0, len(at.here), _SLAB):
            slab = slice(first, first + _SLAB)
            part = Neighbours(at.here[slab], at.known[slab], at.around[slab])
            total = gather_inputs(own, kind, decoded, part) @ weight
            rounded = ((total + 2.0 ** (SHIFT - 1)) * 2.0**-SHIFT).floor()
            predicted[:, slab] = rounded.clamp(_LOW, _HIGH).int()
        return predicted

    def decode(
        self,
        height: int,
        width: int,
        decoded: Tensor,
        add: Callable[[int, int, Neighbours, Tensor], Tensor],
        *,
        blocks: Sequence[int] | None = None,
        kinds: Sequence[int] = range(CLASSES),
    ) -> None:
        """Fills `decoded` in coding order, in place: add(block, class, positions, predicted) gives the
        sum of prediction and codeword. A part of blocks and classes goes on where the last one ended.
        """
        for block in range(len(self.blocks)) if blocks is None else blocks:
            for kind in kinds:
                at = neighbours(kind, height, width)
                if len(at.here):
                    predicted = self.predict(block, kind, decoded, at)
                    decoded[:, at.here, self.blocks[block]] = add(block, kind, at, predicted)


def block_channels(channels: Sequence[int]) -> list[slice]:
    """The channels of the latent that each block covers."""
    edges = np.cumsum([0, *channels]).tolist()
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def weight_shapes(channels: Sequence[int]) -> list[tuple[int, int, int]]:
    """The shape of each block's weights."""
    return [(CLASSES, 4 * own + 9 * sum(channels[:b]), own) for b, own in enumerate(channels)]


def gather_inputs(block: slice, kind: int, decoded: Tensor, at: Neighbours) -> Tensor:
    """The inputs float64 (N, P, inputs) of a block's map; class 0 has none of the first kind, and its
    weights for them are not used."""
    count, places = len(decoded), len(at.here)
    known = decoded[:, at.known, block].reshape(count, places, -1)
    around = decoded[:, at.around, : block.start].reshape(count, places, -1)
    return torch.cat([known, around], 2).double()


@lru_cache(maxsize=CLASSES)
def neighbours(kind: int, height: int, width: int) -> Neighbours:
    """The positions of a class 0..CLASSES-1 of a grid, in raster order, and what surrounds them."""
    rows, columns = np.indices((height, width)).reshape(2, -1)
    chosen = class_of(rows, columns) == kind
    rows, columns = rows[chosen], columns[chosen]
    around = [
        _mirrored(rows, y, height, rows) * width + _mirrored(columns, x, width, columns)
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    ]
    known = []
    if kind:
        d = STEPS[(kind - 1) // 2]
        if kind % 2:
            # Odd multiples of d on both axes: the one before is always there.
            for y in (-d, d):
                for x in (-d, d):
                    row = _mirrored(rows, y, height, rows - d)
                    known.append(row * width + _mirrored(columns, x, width, columns - d))
        else:
            tall = (rows - d >= 0) | (rows + d < height)
            broad = (columns - d >= 0) | (columns + d < width)
            vertical = [_mirrored(rows, y, height, rows) * width + columns for y in (-d, d)]
            across = [rows * width + _mirrored(columns, x, width, columns) for x in (-d, d)]
            known = [np.where(tall, v, a) for v, a in zip(vertical, across, strict=True)]
            known += [np.where(broad, a, v) for v, a in zip(vertical, across, strict=True)]
    stacked = np.stack(known, 1) if known else np.empty((len(rows), 0), np.int64)
    # They are kept, and may be of use outside of the inference mode that asks for them first.
    with torch.inference_mode(False):
        return Neighbours(
            torch.from_numpy(rows * width + columns),
            torch.from_numpy(stacked),
            torch.from_numpy(np.stack(around, 1)),
        )


def class_of(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of each position."""
    kind = np.zeros(rows.shape, np.int64)
    for level, d in enumerate(STEPS):
        odd_row, odd_column = rows % (2 * d) == d, columns % (2 * d) == d
        on_grid = (rows % d == 0) & (columns % d == 0)
        kind[odd_row & odd_column] = 1 + 2 * level
        kind[on_grid & (odd_row != odd_column)] = 2 + 2 * level
    return kind


def _mirrored(
    place: NDArray[np.int64], step: int, size: int, otherwise: NDArray[np.int64]
) -> NDArray[np.int64]:
    """place + step, or place - step if that is outside 0..size-1, or else `otherwise`."""

    def inside(x: NDArray[np.int64]) -> NDArray[np.bool_]:
        return (x >= 0) & (x < size)

    there, mirrored = place + step, place - step
    return np.where(inside(there), there, np.where(inside(mirrored), mirrored, otherwise))
