"""Counts and sums of the vectors of each codeword: the update step of Lloyd's algorithm and EMA.

counts[g, k] = #{n : index[g, n] = k},   sums[g, k] = sum of x[g, n] over those n
"""

import torch
from torch import Tensor


def codebook_stats(x: Tensor, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """x (G, N, D) floating, index (G, N) in [0, size) -> counts (G, K), sums (G, K, D), float64."""
    if x.ndim != 3 or index.shape != x.shape[:2]:
        raise ValueError(f"expected x (G, N, D) and index (G, N), got {x.shape} and {index.shape}")
    groups, _, dim = x.shape
    flat = (index + torch.arange(groups, device=index.device)[:, None] * size).reshape(-1)
    counts = torch.bincount(flat, minlength=groups * size).double()
    sums = torch.zeros(groups * size, dim, dtype=torch.float64, device=x.device)
    sums.index_add_(0, flat, x.reshape(-1, dim).double())
    return counts.reshape(groups, size), sums.reshape(groups, size, dim)
