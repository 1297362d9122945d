"""Triton (CUDA) backend of the Gaussian sampler: host side; the kernels and the layout are in
`gaussian_sample_device`, the formulas in `gaussian_sample`.

Invariants: nothing synchronises with the host and the seed stays on the device, so a call can be
captured in a CUDA graph and drawn anew by writing to the seed; the configuration depends on M, the
size of an element and alignment, never on N, and no kernel is specialised on N, M or a stride.
"""

import contextlib
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from vqcodec_kernels.gaussian_sample_device import fold_kernel, gradient_kernel, sample_kernel

# Elements of a tile by those of a vector: 8 or 16 for each of 128 threads.
_TILE = {1: 1024, 4: 1024, 8: 2048}
_VECTOR_BYTES = 16
# Partial sums that a program of the second kernel adds at a time, at most and at least.
_FOLD, _LEAST_FOLD = 4096, 128


class TileConfig(NamedTuple):
    """Tiles of rows x cols elements, `tiles` of them side by side; loads of `vector` elements."""

    vector: int
    rows: int
    cols: int
    tiles: int


def tile_config(size: int, itemsize: int, aligned: bool) -> TileConfig:
    """Tiles for samples of `size` elements of `itemsize` bytes.

    aligned: every row of every tensor starts at a multiple of 16 bytes. A sample whose size is not a
    multiple of 4 can start up to 3 elements after the counter of its first element.
    """
    vector = _VECTOR_BYTES // itemsize if aligned else 1
    spread = size if size % 4 == 0 else size + 3
    cols = min(_TILE[vector], triton.next_power_of_2(spread))
    return TileConfig(vector, _TILE[vector] // cols, cols, triton.cdiv(spread, cols))


def launch_forward(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    *,
    kl: bool,
) -> tuple[Tensor, Tensor]:
    """z (N, M), contiguous, and the divergences float32 (N,), or (0,) unless kl.

    mu, logvar, priors: (N, M), one dtype of float32, float16, bfloat16, unit stride within rows,
    any stride between them; seed: int64, one element. The caller checks the arguments.
    """
    count, size = mu.shape
    z = torch.empty((count, size), dtype=mu.dtype, device=mu.device)
    divergence = torch.empty(count if kl else 0, dtype=torch.float32, device=mu.device)
    if z.numel() == 0:
        return z, divergence.zero_()
    tensors = [mu, logvar, prior_mu, prior_logvar]
    config = _config(tensors)
    partial = divergence
    if kl and config.tiles > 1:
        partial = torch.empty((count, config.tiles), dtype=torch.float32, device=mu.device)
    with _device_of(mu):
        sample_kernel[_grid(count, config)](
            *_pointers(tensors, mu), seed, z, partial,
            *_sizes(mu, config), *_strides(tensors, config),
            PRIOR_MU=prior_mu is not None, PRIOR_LOGVAR=prior_logvar is not None, KL=kl,
            VECTOR=config.vector, ROWS=config.rows, COLS=config.cols,
        )  # fmt: skip
        if partial is not divergence:
            cols = min(_FOLD, triton.next_power_of_2(config.tiles))
            rows = max(1, _LEAST_FOLD // cols)
            fold_kernel[(triton.cdiv(count, rows),)](
                partial, divergence, count, config.tiles, ROWS=rows, COLS=cols
            )
    return z, divergence


def launch_backward(
    dz: Tensor | None,
    dkl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    *,
    needs: tuple[bool, bool, bool, bool],
) -> list[Tensor | None]:
    """The gradients of mu, logvar, prior_mu and prior_logvar, (N, M), None where there is no need.

    dz: (N, M), as mu, or None; dkl: float32 (N,), any stride, or None; the rest as launch_forward.
    """
    count, size = mu.shape
    found = [
        torch.empty((count, size), dtype=mu.dtype, device=mu.device) if need else None for need in needs
    ]
    if not any(needs) or mu.numel() == 0:
        return found
    tensors = [dz, mu, logvar, prior_mu, prior_logvar]
    config = _config(tensors)
    with _device_of(mu):
        gradient_kernel[_grid(count, config)](
            *_pointers([*tensors, dkl], mu), seed, *_pointers(found, mu),
            *_sizes(mu, config), *_strides(tensors, config), 0 if dkl is None else dkl.stride(0),
            DZ=dz is not None, DKL=dkl is not None,
            PRIOR_MU=prior_mu is not None, PRIOR_LOGVAR=prior_logvar is not None,
            NEED_MU=needs[0], NEED_LOGVAR=needs[1], NEED_PRIOR_MU=needs[2], NEED_PRIOR_LOGVAR=needs[3],
            VECTOR=config.vector, ROWS=config.rows, COLS=config.cols,
        )  # fmt: skip
    return found


def _config(tensors: list[Tensor | None]) -> TileConfig:
    present = [tensor for tensor in tensors if tensor is not None]
    size, itemsize = present[0].shape[1], present[0].element_size()
    aligned = size * itemsize % _VECTOR_BYTES == 0 and all(
        tensor.data_ptr() % _VECTOR_BYTES == 0 and tensor.stride(0) * itemsize % _VECTOR_BYTES == 0
        for tensor in present
    )
    return tile_config(size, itemsize, aligned)


def _grid(count: int, config: TileConfig) -> tuple[int]:
    return (triton.cdiv(count, config.rows) * config.tiles,)


def _pointers(tensors: list[Tensor | None], some: Tensor) -> list[Tensor]:
    """Tensors for a kernel, which never touches `some` where it stands for one that is None."""
    return [some if tensor is None else tensor for tensor in tensors]


def _sizes(mu: Tensor, config: TileConfig) -> tuple[int, int, int]:
    """N, M in vectors, and the number of tiles."""
    return mu.shape[0], mu.shape[1] // config.vector, config.tiles


def _strides(tensors: list[Tensor | None], config: TileConfig) -> list[int]:
    """From row to row, in vectors."""
    return [0 if tensor is None else tensor.stride(0) // config.vector for tensor in tensors]


def _device_of(mu: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device_of(mu) if mu.device.type == "cuda" else contextlib.nullcontext()
