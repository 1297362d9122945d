"""Codebooks of mode fsq: all points of a product lattice, zero first, steps in units of the deviation."""

import itertools

import numpy as np
import pytest
import torch

from vqcodec.quantizer import SCALE, QuantizerConfig
from vqcodec.train.lattice import count_values, lattice_quantizer

# The fit's own steps; `test_steps_suit_a_gaussian` holds them against the search for the best.
STEPS = {n: (2.65 + 0.66 * np.log2(n)) / n for n in (3, 5, 15, 17, 19)}


@pytest.mark.parametrize(
    ("dim", "codewords", "values"),
    [
        (1, 256, (255,)),
        (1, 2, (1,)),
        (1, 3, (3,)),
        (2, 256, (17, 15)),
        (2, 20, (5, 3)),
        (4, 256, (5, 5, 3, 3)),
        (4, 80, (3, 3, 3, 1)),
        (8, 256, (3, 3, 3, 3, 3, 1, 1, 1)),
    ],
)
def test_values_of_a_channel(dim: int, codewords: int, values: tuple[int, ...]) -> None:
    assert count_values(dim, codewords) == values


def test_codebooks_are_lattices() -> None:
    one = (1.0, 1.0)
    config = QuantizerConfig(((2, 1), (1, 2)), 20, mu=one, first=one, last=one)
    scale = torch.tensor([40.0, 10.0, 8.0, 6.0])
    quantizer = lattice_quantizer(config, scale)
    assert len(quantizer.codebooks) == 2
    single, double = quantizer.codebooks[0]
    assert single.shape == (2, 20, 1) and double.shape == (1, 20, 2)
    # 19 values a channel of the first block; 5 x 3 of the second, the rest filled up.
    steps = STEPS[19] * scale[:2].numpy() * SCALE
    for book, step in zip(single, steps, strict=True):
        assert book[0] == 0 and book[19] == 0
        np.testing.assert_allclose(np.sort(book[:19, 0]), np.arange(-9, 10) * step, atol=0.51)
    wide, narrow = STEPS[5] * 8.0 * SCALE, STEPS[3] * 6.0 * SCALE
    points = {(round(a * wide), round(b * narrow)) for a in range(-2, 3) for b in range(-1, 2)}
    assert {tuple(row) for row in double[0].tolist()} == points
    assert not double[0, 0].any() and not double[0, 15:].any()
    # A stage later the steps are a fraction of what they were.
    ratio = np.abs(single).max() / np.abs(quantizer.codebooks[1][0]).max()
    assert ratio == pytest.approx(5, rel=0.05)


def test_the_nearest_codeword_is_rounding() -> None:
    """Inside the lattice; outside of it, the outermost point."""
    config = QuantizerConfig(((1, 2),), 256, mu=(1.0,), first=(1.0,), last=(1.0,))
    scale = torch.tensor([12.0, 30.0])
    quantizer = lattice_quantizer(config, scale)
    random = np.random.default_rng(0)
    vectors = torch.from_numpy(random.normal(0, 1.5, (200, 2))).float() * scale
    found = quantizer.look_up(0, quantizer.assign_nearest(0, vectors)).float() / SCALE
    steps, most = torch.tensor([STEPS[17], STEPS[15]]) * scale, torch.tensor([8.0, 7.0])
    wanted = (vectors / steps).round().clamp(-most, most) * steps
    # Codewords are rounded to quarters of a grey level, so few vectors near an edge differ.
    apart = (found - wanted).abs() > 0.2
    assert apart.float().mean() < 0.05


def test_all_combinations_are_there() -> None:
    one = (1.0,)
    config = QuantizerConfig(((1, 4),), 256, mu=one, first=one, last=one)
    (book,) = lattice_quantizer(config, torch.full((4,), 40.0)).codebooks[0][0]
    expected = set(itertools.product(*(range(-(n // 2), n // 2 + 1) for n in (5, 5, 3, 3))))
    steps = np.array([STEPS[5], STEPS[5], STEPS[3], STEPS[3]]) * 40 * SCALE
    assert {tuple(row) for row in np.rint(book / steps).astype(int).tolist()} == expected


@pytest.mark.parametrize("values", [3, 5, 15, 127])
def test_steps_suit_a_gaussian(values: int) -> None:
    """Within 2 % of the least error that any step gives."""
    places = np.linspace(-6, 6, 24001)
    density = np.exp(-(places**2) / 2)

    def error(step: float) -> float:
        decoded = (places / step).round().clip(-(values // 2), values // 2) * step
        return float(((places - decoded) ** 2 * density).sum() / density.sum())

    config = QuantizerConfig(((1, 1),), values, mu=(1.0,), first=(1.0,), last=(1.0,))
    (book,) = lattice_quantizer(config, torch.full((1,), 1000.0)).codebooks[0][0]
    step = np.diff(np.unique(book)).mean() / SCALE / 1000
    assert error(step) <= 1.02 * min(error(s) for s in step * np.linspace(0.5, 2, 301))


def test_channels_take_turns_where_there_are_too_many() -> None:
    """Eight channels in 256 codewords: three of them wait for the second stage."""
    one = (1.0,) * 3
    config = QuantizerConfig(((1, 8),), 256, mu=one, first=one, last=one)
    quantizer = lattice_quantizer(config, torch.full((8,), 300.0))
    used = [book[0].any(0).tolist() for (book,) in quantizer.codebooks]
    assert used == [
        [True] * 5 + [False] * 3,
        [True] * 2 + [False] * 3 + [True] * 3,
        [False] * 2 + [True] * 5 + [False],
    ]
    first, second = (quantizer.codebooks[stage][0][0] for stage in (0, 1))
    # The same for who comes first, a third of it for who comes again.
    assert second[:, 5].max() == first[:, 0].max()
    assert second[:, 0].max() == pytest.approx(first[:, 0].max() / 3, abs=1)
