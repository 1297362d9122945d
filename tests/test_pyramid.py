"""Two levels of a grid: blocks of 2x2 positions, whole or cut by the edges, and the quantiser on them."""

import numpy as np
import pytest
import torch

from vqcodec.pyramid import kept_positions, pool_positions, spread_positions
from vqcodec.quantizer import SCALE, QuantizerConfig, ResidualQuantizer, to_latent

GRIDS = [(1, 1), (1, 5), (4, 1), (2, 2), (3, 5), (4, 6), (7, 4)]


def naive_blocks(grid: tuple[int, int]) -> list[list[int]]:
    """The positions of each block, the first of it first."""
    height, width = grid
    return [
        [
            y * width + x
            for y in range(top, min(top + 2, height))
            for x in range(left, min(left + 2, width))
        ]
        for top in range(0, height, 2)
        for left in range(0, width, 2)
    ]


@pytest.mark.parametrize("grid", GRIDS)
def test_blocks(grid: tuple[int, int]) -> None:
    places = grid[0] * grid[1]
    vectors = torch.randn(3, places, 2, generator=torch.Generator().manual_seed(0))
    pooled, spread = pool_positions(vectors, grid), spread_positions(vectors, grid)
    kept = kept_positions(grid)
    seen = np.zeros(places, int)
    for block in naive_blocks(grid):
        seen[block] += 1
        mean = vectors[:, block].mean(1, keepdim=True).expand(-1, len(block), -1)
        torch.testing.assert_close(pooled[:, block], mean)
        assert torch.equal(spread[:, block], vectors[:, block[:1]].expand(-1, len(block), -1))
        assert kept[block].tolist() == [1] + [0] * (len(block) - 1)
    assert (seen == 1).all()


def test_integers_spread_and_gradients_pool() -> None:
    fixed = torch.arange(12, dtype=torch.int32).reshape(6, 2)
    assert spread_positions(fixed, (2, 3)).dtype == torch.int32
    vectors = torch.randn(6, 2, requires_grad=True)
    (pool_positions(vectors, (2, 3)).square().sum() / 2).backward()
    assert vectors.grad is not None
    torch.testing.assert_close(vectors.grad, pool_positions(vectors, (2, 3)).detach())


def test_what_was_asked_for_in_inference_mode_first_serves_outside() -> None:
    with torch.inference_mode():
        kept_positions((5, 9))
    vectors = torch.randn(45, 2, requires_grad=True)
    spread_positions(vectors, (5, 9)).sum().backward()
    assert vectors.grad is not None


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 4)])
def test_stages_of_a_pooled_quantiser(grid: tuple[int, int]) -> None:
    """The first stage codes the means once a block, the second what that leaves of each position."""
    random = np.random.default_rng(1)
    one = (1.0, 1.0)
    layout = QuantizerConfig(((2, 1), (1, 2)), 8, mu=one, first=one, last=one, pooled=True)
    books = [
        [random.integers(-90, 90, (c, 8, d)).astype(np.int16) for c, d in layout.blocks] for _ in one
    ]
    for book in (book for stage in books for book in stage):
        book[:, 0] = 0
    quantizer = ResidualQuantizer(layout, books)
    places = grid[0] * grid[1]
    vectors = torch.from_numpy(random.normal(0, 15, (places, 4))).float()
    first, second = quantizer.nearest_stages(vectors, grid)
    kept = kept_positions(grid).bool()
    means = pool_positions(vectors, grid)
    assert torch.equal(first[:, kept], quantizer.assign_nearest(0, means[kept]))
    assert not first[:, ~kept].any()
    upper = spread_positions(to_latent(quantizer.look_up(0, first)), grid)
    assert torch.equal(second, quantizer.assign_nearest(1, vectors - upper))
    assert float((upper * SCALE).frac().abs().max()) == 0
