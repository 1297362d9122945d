"""Fitting the spatial prediction: least squares on decoded neighbours.

Every block and class of `vqcodec.prediction` has its own normal equations, gathered over grids of
latents and what was decoded of them, and solved with a small ridge. The decoded values depend on the
prediction in turn, so fitting and coding alternate.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.prediction import (
    CLASSES,
    SHIFT,
    Neighbours,
    Predictor,
    block_channels,
    gather_inputs,
    neighbours,
    weight_shapes,
)
from vqcodec.quantizer import SCALE

# Of an input's energy, and in squared grey levels a sample: keeps the weights of rare inputs small.
_RIDGE, _FLOOR = 1e-3, 1e-3


class NormalEquations:
    """Sums of x x^T and x y^T, and their solution: the weights of a `Predictor`."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        self.channels = channels
        shapes = weight_shapes(channels)
        self.square = [torch.zeros(CLASSES, i, i, dtype=torch.float64) for _, i, _ in shapes]
        self.cross = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        self.count = torch.zeros(CLASSES, dtype=torch.float64)
        self.blocks = block_channels(channels)

    def add(self, target: Tensor, decoded: Tensor, grid: tuple[int, int], *, decay: float = 1.0) -> None:
        """Takes latents float32 (N, P, C) of grids (height, width) and what is decoded of them, int32.

        decay: of what was taken before.
        """
        for kind in range(CLASSES):
            at = _inner(neighbours(kind, *grid))
            if not len(at.here):
                continue
            self.count[kind] = decay * self.count[kind] + len(target) * len(at.here)
            for b, block in enumerate(self.blocks):
                inputs = gather_inputs(block, kind, decoded, at).flatten(0, 1) / SCALE
                wanted = target[:, at.here, block].flatten(0, 1).double()
                first = self.cross[b].shape[1] - inputs.shape[1]
                self.square[b][kind] *= decay
                self.cross[b][kind] *= decay
                self.square[b][kind, first:, first:] += inputs.T @ inputs
                self.cross[b][kind, first:] += inputs.T @ wanted

    def solve(self, before: Predictor | None = None) -> Predictor:
        """The predictor with the least squared error over what was taken. Classes that no grid had keep
        the weights of `before`, or get none."""
        weights: list[NDArray[np.int16]] = []
        for b, (square, cross) in enumerate(zip(self.square, self.cross, strict=True)):
            ridge = _RIDGE * square.diagonal(dim1=1, dim2=2) + _FLOOR * self.count[:, None] + _FLOOR
            found = torch.linalg.solve(square + torch.diag_embed(ridge), cross)
            fixed = (found * (1 << SHIFT)).round().clamp(-32768, 32767)
            weights.append(fixed.to(torch.int16).numpy())
            if before is not None:
                unseen = self.count.numpy() == 0
                weights[b][unseen] = before.weights[b][unseen]
        return Predictor(self.channels, weights)

    def state(self) -> dict[str, Any]:
        """Everything that later solutions depend on."""
        return {"square": self.square, "cross": self.cross, "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to where `state` was taken."""
        self.square = [part.clone() for part in state["square"]]
        self.cross = [part.clone() for part in state["cross"]]
        self.count = state["count"].clone()


def _inner(at: Neighbours) -> Neighbours:
    """The positions whose known neighbours are four different ones, or all if there are none.

    The grids of training crops are small: at a step of 4 most neighbours would be mirror images, which in
    pictures they are not.
    """
    ordered = at.known.sort(1).values
    different = (ordered[:, 1:] != ordered[:, :-1]).all(1)
    if not different.any():
        return at
    return Neighbours(at.here[different], at.known[different], at.around[different])
