"""How alike two pictures are: PSNR and MS-SSIM over RGB.

Layout: pictures are uint8 (H, W, 3) of one size. PSNR is taken over all three channels together, in
exact integers up to the logarithm; MS-SSIM is the mean of the channels', in float32.
"""

import math

import numpy as np
from numpy.typing import NDArray

MS_SSIM_SIDE = 161
"""Least side of a picture that MS-SSIM can halve four times for its windows of 11 pixels."""


def psnr_rgb(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """PSNR in dB; `inf` if the pictures are equal. ValueError for what is not two RGB pictures."""
    _check(a, b)
    difference = a.astype(np.int32) - b
    squares = int(np.sum(difference * difference, dtype=np.int64))
    return 10 * math.log10(255**2 * a.size / squares) if squares else math.inf


def ms_ssim_rgb(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float | None:
    """MS-SSIM; None if a side is below MS_SSIM_SIDE. ValueError as for `psnr_rgb`.

    Z. Wang, E. Simoncelli, A. Bovik, "Multiscale structural similarity for image quality
    assessment", Asilomar 2003, as pytorch-msssim computes it.
    """
    import torch
    from pytorch_msssim import ms_ssim  # type: ignore[import-untyped]

    _check(a, b)
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return None
    with torch.inference_mode():
        planes = [torch.tensor(pixels).permute(2, 0, 1)[None].float() for pixels in (a, b)]
        return float(ms_ssim(*planes, data_range=255))


def ms_ssim_decibels(value: float) -> float:
    """-10 log10(1 - value), which spreads out the values near 1; infinite from 1 on."""
    return -10 * math.log10(1 - value) if value < 1 else math.inf


def _check(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> None:
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"expected uint8 pictures, got {a.dtype} and {b.dtype}")
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] != 3 or a.size == 0:
        raise ValueError(f"expected two RGB pictures of one size, got {a.shape} and {b.shape}")
