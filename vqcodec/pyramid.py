"""Two levels of a latent: one vector for each 2x2 positions, and what it leaves of each of them.

The upper level of a grid lives at the positions whose row and column are even, the first of each 2x2
positions; at a grid's last row or column a block may have fewer. What is coded there holds for the whole
block (A. Razavi, A. van den Oord, O. Vinyals, "Generating diverse high-fidelity images with VQ-VAE-2",
2019, with the means of one latent in place of an encoder for each level).

Layout: vectors (..., P, C), the P positions of a grid (height, width) in raster order.
"""

from functools import lru_cache

import torch
from torch import Tensor


def pool_positions(vectors: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean of each block at all of its positions."""
    first = _block_of(grid).to(vectors.device)
    total = torch.zeros_like(vectors).index_add(-2, first, vectors)
    count = torch.bincount(first, minlength=len(first)).clamp_min(1)
    return (total / count[:, None])[..., first, :]


def spread_positions(vectors: Tensor, grid: tuple[int, int]) -> Tensor:
    """What the first position of each block has, at all of its positions."""
    return vectors[..., _block_of(grid).to(vectors.device), :]


def kept_positions(grid: tuple[int, int]) -> Tensor:
    """Which positions are the first of a block: uint8 (P,), 0 or 1."""
    first = _block_of(grid)
    return (first == torch.arange(len(first), device="cpu")).to(torch.uint8)


@lru_cache(maxsize=4)
def _block_of(grid: tuple[int, int]) -> Tensor:
    """The place of the first position of each position's block: int64 (P,)."""
    height, width = grid
    # It is kept, and may be of use outside of the inference mode that asks for it first.
    with torch.inference_mode(False):
        sides = (torch.arange(side, device="cpu") for side in (height, width))
        rows, columns = torch.meshgrid(*sides, indexing="ij")
        return ((rows - rows % 2) * width + columns - columns % 2).flatten()
