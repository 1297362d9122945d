"""Counts and sums of the vectors of each codeword: the update step of Lloyd's algorithm and EMA.

    counts[g, k] = #{n : index[g, n] = k},   sums[g, k] = sum of x[g, n] over those n

Layout: x (N, D) with index (N,), or G groups at once, x (G, N, D) with index (G, N). Sums are
taken in float64: the mean of 2^29 vectors errs by less than 2^-24 of their mean size. On the CPU
they are the same for every number of threads; on a GPU the order, and with it the last bits, is
open unless `torch.use_deterministic_algorithms` fixes it.
"""

import torch
from torch import Tensor

# So many elements of x are in float64 at a time: a CPU's cache, or enough work for a GPU.
_BLOCK_CPU = 1 << 17
_BLOCK_GPU = 1 << 24


def codebook_stats(x: Tensor, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Counts (K,) and sums (K, D), or (G, K) and (G, K, D), float64, for K = size codewords.

    x: (N, D) or (G, N, D) floating point; index: (N,) or (G, N), int64 or int32, in [0, K); any
    strides. Nothing carries a gradient. Raises ValueError or TypeError for shapes, dtypes and
    devices that do not fit. An index outside [0, K) is a ValueError on the CPU; on a GPU, where
    looking would mean waiting, the vector is not counted (-1 is what the search gives there to
    a vector that has no valid table).
    """
    for name, tensor in (("x", x), ("index", index)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")
    if index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"index must be int64 or int32, got {index.dtype}")
    if index.device != x.device:
        raise ValueError(f"index is on {index.device}, x on {x.device}")
    if x.ndim not in (2, 3) or index.shape != x.shape[:-1]:
        raise ValueError(
            "expected x (N, D) with index (N,) or x (G, N, D) with index (G, N), "
            f"got {tuple(x.shape)} and {tuple(index.shape)}"
        )
    if not isinstance(size, (int, torch.SymInt)) or isinstance(size, bool):
        raise TypeError(f"size must be an integer, got {type(size).__name__}")
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    # An operator without a gradient may not see tensors that want one.
    x = x.detach()
    if x.ndim == 3:
        return torch.ops.vqcodec.codebook_stats(x, index, size)
    counts, sums = torch.ops.vqcodec.codebook_stats(x.unsqueeze(0), index.unsqueeze(0), size)
    return counts.squeeze(0), sums.squeeze(0)


def _stats(x: Tensor, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The operator: x (G, N, D), index (G, N) -> counts (G, K), sums (G, K, D)."""
    groups, count, dim = x.shape
    rows = groups * size
    flat = index.long() + torch.arange(groups, device=x.device).unsqueeze(1) * size
    # An index out of range would be counted for another group.
    if x.device.type == "cpu":
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise ValueError(f"every index must lie in [0, {size})")
    else:
        flat = torch.where((index >= 0) & (index < size), flat, rows)
    flat = flat.reshape(groups * count)
    vectors = x.reshape(groups * count, dim)
    # The last row takes what is not counted. `bincount` would wait for the GPU.
    counts = x.new_zeros(rows + 1, dtype=torch.float64)
    counts.index_add_(0, flat, counts.new_ones(1).expand(groups * count))
    sums = x.new_zeros(rows + 1, dim, dtype=torch.float64)
    block = max(1, (_BLOCK_CPU if x.device.type == "cpu" else _BLOCK_GPU) // max(1, dim))
    for start in range(0, groups * count, block):
        some = slice(start, start + block)
        sums.index_add_(0, flat[some], vectors[some].double())
    return counts[:-1].view(groups, size), sums[:-1].view(groups, size, dim)


def _stats_shapes(x: Tensor, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Shapes, dtypes and device of the operator's results, for tracing."""
    counts = x.new_empty((x.shape[0], size), dtype=torch.float64)
    return counts, x.new_empty((x.shape[0], size, x.shape[2]), dtype=torch.float64)


# Opaque to torch.compile: its loop and its look at the index are not for tracing.
_LIBRARY = torch.library.Library("vqcodec", "FRAGMENT")
_LIBRARY.define("codebook_stats(Tensor x, Tensor index, SymInt size) -> (Tensor, Tensor)")
_LIBRARY.impl("codebook_stats", _stats, "CompositeExplicitAutograd")
torch.library.register_fake("vqcodec::codebook_stats", _stats_shapes, lib=_LIBRARY)
