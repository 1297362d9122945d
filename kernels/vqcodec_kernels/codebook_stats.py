"""Counts and sums of the vectors of each codeword: the update step of Lloyd's algorithm and EMA.

counts[g, k] = #{n : index[g, n] = k},   sums[g, k] = sum of x[g, n] over those n
"""

import torch
from torch import Tensor


@torch.no_grad()
def codebook_stats(x: Tensor, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """x (G, N, D) floating, index (G, N) in [0, size) -> counts (G, K), sums (G, K, D), float64.

    ValueError or TypeError for shapes, dtypes and indices that do not fit.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")
    if index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"index must be int64 or int32, got {index.dtype}")
    if x.ndim != 3 or index.shape != x.shape[:2]:
        raise ValueError(f"expected x (G, N, D) and index (G, N), got {x.shape} and {index.shape}")
    # An index out of range would be counted for the next group.
    if size < 1 or (index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size):
        raise ValueError(f"every index must lie in [0, {size})")
    groups, _, dim = x.shape
    offset = torch.arange(groups, device=index.device)[:, None] * size
    flat = (index.long() + offset).reshape(-1)
    counts = torch.bincount(flat, minlength=groups * size).double()
    sums = torch.zeros(groups * size, dim, dtype=torch.float64, device=x.device)
    sums.index_add_(0, flat, x.reshape(-1, dim).double())
    return counts.reshape(groups, size), sums.reshape(groups, size, dim)
