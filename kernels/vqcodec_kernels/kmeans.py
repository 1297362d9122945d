"""Codebooks from data: Lloyd's algorithm (k-means), with k-means++ seeding, for G groups at once.

    minimise   inertia[g] = sum_n ||x[g, n] - codebook[g, index[g, n]]||^2
    in turn    index = nearest codeword of each vector,   codebook = mean of each codeword's vectors

Layout: x (N, D) and codebook (K, D), or (G, N, D) and (G, K, D). What comes back fits together:
index is the nearest codeword in that codebook, inertia the formula for both in float64. A step
that does not lower the inertia is not taken. Codewords without vectors move to the vectors that
lie farthest from theirs. All groups draw the same random numbers, so that a group's codebook is the
one it would have alone; the same seed gives the same result on the same device (on a GPU up to
the order of sums, which `torch.use_deterministic_algorithms` fixes).

Sources: S. P. Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28(2), 1982;
D. Arthur, S. Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007, section 2.2.
"""

import operator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqcodec_kernels.codebook_stats import codebook_stats
from vqcodec_kernels.nearest_codeword import (
    _DTYPES,
    Array,
    Backend,
    Precision,
    _from_numpy,
    nearest_codeword,
)

# Seeding looks at a random subset of the vectors, of which it takes at least so many for each
# codeword, and more as long as it computes no more than so many distances for each group.
_SEED_VECTORS = 8
_SEED_DISTANCES = 1 << 24

# So many elements of x are in float64 at a time while distances are summed.
_BLOCK_ELEMENTS = 1 << 20


class KMeans(NamedTuple):
    """Result of `kmeans`: codebook (K, D) or (G, K, D) of x's dtype; index int64 (N,) or (G, N);
    inertia float64 () or (G,); iterations, the most that any group took."""

    codebook: Any
    index: Any  # hides tuple.index
    inertia: Any
    iterations: int


@torch.no_grad()
def kmeans(
    x: Array,
    size: int,
    *,
    iterations: int = 25,
    tolerance: float = 1e-4,
    init: Literal["k-means++", "random"] | Array = "k-means++",
    seed: int = 0,
    precision: Precision = "exact",
    backend: Backend = "auto",
) -> KMeans:
    """Codebook of `size` codewords for the vectors x (N, D), or one for each group (G, N, D).

    x: float32, float16, bfloat16 or float64, finite, N >= size; a torch tensor or, NumPy in,
    NumPy out, an array. A group is done after `iterations` steps, or once a step lowers its
    inertia by no more than the fraction `tolerance`; with 0, once a step changes nothing.
    init: "k-means++" draws seeds far apart, from a random subset of the vectors where
    N > 8 * size and N * size > 2^24; "random" takes vectors at random; or the first codebook,
    (K, D) or (G, K, D), of x's kind and dtype. Where a group has fewer than `size` distinct
    vectors, some codewords are equal. precision, backend: as for `nearest_codeword`.
    Raises ValueError or TypeError for what does not fit, RuntimeError if the backend cannot run.
    """
    vectors: Any = x
    start: Any = init
    if isinstance(x, np.ndarray):
        if isinstance(init, Tensor):
            raise TypeError("x is a NumPy array, init is not: Tensor")
        vectors = _from_numpy("x", x)
        start = _from_numpy("init", init) if isinstance(init, np.ndarray) else init
    size, iterations, seed = operator.index(size), operator.index(iterations), operator.index(seed)
    _check(vectors, size, iterations, tolerance)
    grouped = vectors.ndim == 3
    vectors = (vectors if grouped else vectors.unsqueeze(0)).detach()
    codebook = _first_codebook(vectors, size, start, seed, grouped=grouped)
    options = {"precision": precision, "backend": backend}
    found = _lloyd(vectors, codebook, iterations, tolerance, options)
    codebook, index, inertia = found[:3] if grouped else (tensor[0] for tensor in found[:3])
    if isinstance(x, np.ndarray):
        # A single inertia is a scalar, not an array without dimensions.
        return KMeans(codebook.numpy(), index.numpy(), inertia.numpy()[()], found.iterations)
    return KMeans(codebook, index, inertia, found.iterations)


def _lloyd(
    x: Tensor, codebook: Tensor, iterations: int, tolerance: float, options: dict[str, Any]
) -> KMeans:
    """The iteration on x (G, N, D) and codebook (G, K, D), which it overwrites."""
    index = nearest_codeword(x, codebook, **options)
    distance = _squared_distances(x, codebook, index)
    inertia = distance.sum(-1)
    live = torch.arange(len(x), device=x.device)  # the groups that are not done
    step = 0
    while step < iterations and live.numel():
        step += 1
        moved = _moved_codebook(x, codebook.shape[1], index[live], distance[live])
        found = nearest_codeword(x, moved, **options)
        apart = _squared_distances(x, moved, found)
        before, after = inertia[live], apart.sum(-1)
        # A search that is not exact, and sums that round, can make a step worse.
        better = after < before
        taken = live[better]
        codebook[taken], index[taken] = moved[better], found[better]
        distance[taken], inertia[taken] = apart[better], after[better]
        going = better & (before - after > tolerance * before)
        if not going.all():
            live, x = live[going], x[going]
    return KMeans(codebook, index, inertia, step)


def _moved_codebook(x: Tensor, size: int, index: Tensor, distance: Tensor) -> Tensor:
    """The mean of each codeword's vectors; of those without, the e-th gets the e-th farthest."""
    counts, sums = codebook_stats(x, index, size)
    means = (sums / counts.clamp_min(1).unsqueeze(-1)).to(x.dtype)
    empty = counts == 0
    most = int(empty.sum(-1).max())
    if most == 0:
        return means
    farthest = distance.argsort(dim=-1, descending=True, stable=True)[:, :most]
    position = farthest.gather(1, (empty.cumsum(-1) - 1).clamp(0, most - 1))
    return torch.where(empty.unsqueeze(-1), _rows(x, position), means)


def _squared_distances(x: Tensor, codebook: Tensor, index: Tensor) -> Tensor:
    """||x[g, n] - codebook[g, index[g, n]]||^2, float64 (G, N)."""
    distance = torch.empty(index.shape, dtype=torch.float64, device=x.device)
    block = max(1, _BLOCK_ELEMENTS // (x.shape[0] * x.shape[2]))
    for start in range(0, x.shape[1], block):
        some = slice(start, start + block)
        difference = x[:, some].double() - _rows(codebook, index[:, some]).double()
        distance[:, some] = difference.square_().sum(-1)
    return distance


def _first_codebook(x: Tensor, size: int, init: str | Tensor, seed: int, *, grouped: bool) -> Tensor:
    """The codebook (G, K, D) to start from, in memory of its own."""
    # The CPU's generator, so that the numbers drawn are the same for every device.
    generator = torch.Generator().manual_seed(seed)
    if isinstance(init, str):
        if init == "k-means++":
            return _plus_plus(x, size, generator)
        if init == "random":
            return x[:, torch.randperm(x.shape[1], generator=generator)[:size].to(x.device)]
        raise ValueError(f"init must be 'k-means++', 'random' or a codebook, got {init!r}")
    if not isinstance(init, Tensor):
        raise TypeError(f"init must be a str or a torch.Tensor, got {type(init).__name__}")
    if init.dtype != x.dtype:
        raise TypeError(f"x is {x.dtype}, init {init.dtype}: they must agree")
    if init.device != x.device:
        raise ValueError(f"init is on {init.device}, x on {x.device}")
    expected = (x.shape[0], size, x.shape[2])[0 if grouped else 1 :]
    if tuple(init.shape) != expected:
        raise ValueError(f"init must be {expected}, got {tuple(init.shape)}")
    if not init.isfinite().all():
        raise ValueError("init has NaN or infinite elements")
    return init.detach().reshape(x.shape[0], size, x.shape[2]).clone()


def _plus_plus(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Vectors drawn one by one, each with probability proportional to its squared distance from
    the nearest of those drawn before."""
    count = max(_SEED_VECTORS * size, _SEED_DISTANCES // size)
    if count < x.shape[1]:
        x = x[:, torch.randperm(x.shape[1], generator=generator)[:count].to(x.device)]
    count = x.shape[1]
    vectors = x.double()
    weight = vectors.new_ones(vectors.shape[:2])  # the first draw is uniform
    picks = torch.empty(len(x), size, dtype=torch.int64, device=x.device)
    draws = torch.rand(size, generator=generator, dtype=torch.float64).tolist()
    for k, draw in enumerate(draws):
        total = weight.cumsum(-1)
        # Right of equal sums: a vector of weight zero is not drawn, unless all weights are.
        pick = torch.searchsorted(total, draw * total[:, -1:], right=True).clamp_max(count - 1)
        picks[:, k] = pick[:, 0]
        # By differences: a copy of a codeword has weight zero, whatever the offset of the data.
        mode = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(vectors, _rows(vectors, pick), compute_mode=mode)
        distance = distance.squeeze(-1).square()
        weight = distance if k == 0 else torch.minimum(weight, distance)
    return _rows(x, picks)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x[g, index[g, m]] for x (G, N, D), index (G, M)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def _check(x: Tensor, size: int, iterations: int, tolerance: float) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor or a NumPy array, got {type(x).__name__}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x must be floating point of 16 to 64 bits, got {x.dtype}")
    if x.ndim not in (2, 3):
        raise ValueError(f"expected x (N, D) or (G, N, D), got {tuple(x.shape)}")
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    if x.numel() == 0:
        raise ValueError(f"x is empty: {tuple(x.shape)}")
    if x.shape[-2] < size:
        raise ValueError(f"{size} codewords need as many vectors, got {x.shape[-2]}")
    if not x.isfinite().all():
        raise ValueError("x has NaN or infinite elements")
