"""Cutting a picture into blocks that the synthesis takes one at a time.

The synthesis sees far, so a block of latents is synthesised with a margin around it, and only the
pixels that belong to the block itself are kept. Memory is that of a block, whatever the picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from vqcodec.transform import STRIDE

# Margin in latents that keeps a block's pixels out of reach of its artificial borders (the default
# network sees about 130 pixels far).
MARGIN = 12
# Smaller grids of latents than this a side are continued to the right and below.
_SMALLEST = 8


@dataclass(frozen=True)
class Block:
    """latents: rows and columns of the grid with the margin; pixels: rows and columns of the picture
    that the block gives; inside: where these are in the pixels synthesised of `latents`."""

    latents: tuple[slice, slice]
    pixels: tuple[slice, slice]
    inside: tuple[slice, slice]


def cut_blocks(height: int, width: int, side: int) -> Iterator[Block]:
    """The blocks of a picture of height x width pixels, `side` latents wide and high."""
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    for top in range(0, rows, side):
        for left in range(0, columns, side):
            y, x = _span(top, side, height), _span(left, side, width)
            yield Block((y[0], x[0]), (y[1], x[1]), (y[2], x[2]))


def _span(start: int, side: int, pixels: int) -> tuple[slice, slice, slice]:
    first = max(0, start - MARGIN)
    here = slice(start * STRIDE, min((start + side) * STRIDE, pixels))
    skipped = (start - first) * STRIDE
    inside = slice(skipped, skipped + here.stop - here.start)
    return slice(first, start + side + MARGIN), here, inside


def pad_latent(latent: Tensor) -> Tensor:
    """A latent (C, h, w) continued to the least size: the synthesis knows borders, but has not learnt
    from pictures that are hardly more than that."""
    short = [max(0, _SMALLEST - side) for side in latent.shape[1:]]
    return F.pad(latent[None], (0, short[1], 0, short[0]), mode="replicate")[0]
