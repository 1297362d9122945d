"""PSNR and MS-SSIM against figures worked out by hand, and what they refuse."""

import math
from typing import Any

import numpy as np
import pytest
from synthetic import synthetic_picture

from vqcodec.similarity import ms_ssim_decibels, ms_ssim_rgb, psnr_rgb


def grey(value: int, *, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_psnr_of_known_differences() -> None:
    assert psnr_rgb(grey(7), grey(8)) == pytest.approx(20 * math.log10(255))
    # As bytes 3 - 5 would be 254: the sign must survive.
    assert psnr_rgb(grey(3), grey(5)) == pytest.approx(20 * math.log10(255 / 2))
    assert psnr_rgb(grey(0), grey(255)) == pytest.approx(0.0)
    assert psnr_rgb(grey(9), grey(9)) == math.inf


def test_psnr_takes_one_error_over_the_three_channels() -> None:
    other = grey(100)
    other[..., 1] += 6
    # Mean of (0, 36, 0) is 12; the mean of three PSNRs would be infinite.
    assert psnr_rgb(grey(100), other) == pytest.approx(10 * math.log10(255**2 / 12))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (grey(1), grey(1, width=7)),
        (grey(1)[..., 0], grey(1)[..., 0]),
        (grey(1).astype(np.float32), grey(1)),
        (grey(1, height=0), grey(1, height=0)),
    ],
)
def test_psnr_refuses_what_is_not_two_rgb_pictures(a: Any, b: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        psnr_rgb(a, b)


def test_ms_ssim_of_two_greys_is_their_luminance_term() -> None:
    """No structure, so only the coarsest scale's luminance counts, to the power of its weight."""
    a, b = (np.full((176, 192, 3), value, np.uint8) for value in (100, 140))
    constant = (0.01 * 255) ** 2
    luminance = (2 * 100 * 140 + constant) / (100**2 + 140**2 + constant)
    # Variances of float32 squares near 2e4 err by 2^-9 or so, against a constant of 58.
    assert ms_ssim_rgb(a, b) == pytest.approx(luminance**0.1333, abs=1e-3)
    assert ms_ssim_rgb(a, a) == pytest.approx(1, abs=1e-6)


def test_ms_ssim_falls_with_noise_and_needs_161_pixels() -> None:
    pixels = synthetic_picture(3, 161, 170)
    noise = np.random.default_rng(0).normal(0, 1, pixels.shape)
    values = [
        ms_ssim_rgb(pixels, (pixels + size * noise).clip(0, 255).astype(np.uint8)) for size in (0, 5, 30)
    ]
    assert values[0] is not None and values[1] is not None and values[2] is not None
    assert 1 >= values[0] > values[1] > values[2] > 0
    assert ms_ssim_rgb(pixels[:160], pixels[:160]) is None
    assert ms_ssim_rgb(pixels[:, :160], pixels[:, :160]) is None


@pytest.mark.parametrize(
    ("value", "decibels"), [(0.0, 0.0), (0.9, 10.0), (0.99, 20.0), (1.0, math.inf), (1.0000001, math.inf)]
)
def test_ms_ssim_decibels(value: float, decibels: float) -> None:
    assert ms_ssim_decibels(value) == pytest.approx(decibels)
