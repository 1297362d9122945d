"""Nearest-codeword search with an additive cost: the assignment step of entropy-constrained VQ.

    index[g, n] = argmin_k  ||x[g, n] - codebook[g, k]||^2 + bias[g, t, k],   t = bias_table[g, n]

Layout: x (..., N, D) with codebook (K, D), or G groups at once, x (G, N, D) with codebook
(G, K, D). Ties (equal computed cost) go to the lowest index; a codeword whose bias is +inf is
never chosen unless all are, in which case the index is 0; a vector with a NaN gets index 0.
Costs are computed in the direct form (no expansion of the square), in float32 by the native
kernel and in float64 by the reference, so offsets of the data do not cancel.

Source of the cost: P. A. Chou, T. Lookabaugh, R. M. Gray, "Entropy-constrained vector
quantization", IEEE Trans. ASSP 37(1), 1989, equation (8).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vqcodec_kernels._extension import load_native

Backend = Literal["auto", "torch", "native"]

# The reference works on blocks of at most this many (vector, codeword, dimension) triples.
_BLOCK_ELEMENTS = 1 << 22


class Nearest(NamedTuple):
    """Result of a search: index int64 (..., N), cost float32 (..., N) with the bias included."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    distance: Tensor


def nearest_codeword(
    x: Tensor,
    codebook: Tensor,
    bias: Tensor | None = None,
    *,
    bias_table: Tensor | None = None,
    backend: Backend = "auto",
    return_distance: bool = False,
) -> Tensor | Nearest:
    """Index of the codeword with the least squared distance plus bias, for every vector.

    x: (..., N, D) with codebook (K, D), or (G, N, D) with (G, K, D); floating point, one dtype
    and device for both. bias: (K,) or (G, K), or (G, T, K) with bias_table (G, N) integers in
    [0, T). Returns int64 (..., N); with return_distance a `Nearest`. Neither carries a gradient.

    backend: "native" is the C++ kernel (CPU), "torch" the reference; "auto" takes the native one
    where it can run. Raises ValueError or TypeError for shapes, dtypes, devices that do not fit,
    RuntimeError if an explicitly chosen backend cannot run.
    """
    x3, codebook3, bias3, table = _as_groups(x, codebook, bias, bias_table)
    native = load_native()
    if backend == "native" and (native is None or x.device.type != "cpu"):
        raise RuntimeError(
            f"backend='native' needs the native extension and CPU tensors, got {x.device}; "
            "use backend='torch'"
        )
    if backend not in ("auto", "torch", "native"):
        raise ValueError(f"backend must be 'auto', 'torch' or 'native', got {backend!r}")
    if backend != "torch" and native is not None and x.device.type == "cpu":
        index, distance = _search_native(native, x3, codebook3, bias3, table)
    else:
        index, distance = nearest_codeword_ref(x3, codebook3, bias3, table)
    index, distance = index.reshape(x.shape[:-1]), distance.reshape(x.shape[:-1])
    return Nearest(index, distance) if return_distance else index


@torch.no_grad()
def nearest_codeword_ref(
    x: Tensor, codebook: Tensor, bias: Tensor, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The formula in float64: x (G, N, D), codebook (G, K, D), bias (G, T, K), table (G, N)."""
    groups, count, dim = x.shape
    size = codebook.shape[1]
    index = torch.empty(groups, count, dtype=torch.int64, device=x.device)
    distance = torch.empty(groups, count, dtype=torch.float32, device=x.device)
    block = max(1, _BLOCK_ELEMENTS // (size * dim))
    for g in range(groups):
        codewords, costs = codebook[g].double(), bias[g].double()
        for start in range(0, count, block):
            rows = slice(start, start + block)
            cost = (x[g, rows, None].double() - codewords).square().sum(-1)
            cost = cost + (costs[0] if table is None else costs[table[g, rows].long()])
            # NaN compares as the minimum in torch; the contract says index 0 for such a vector.
            cost = cost.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
            best = cost.min(-1)
            index[g, rows], distance[g, rows] = best.indices, best.values.float()
    return index, distance


def _search_native(
    native: object, x: Tensor, codebook: Tensor, bias: Tensor, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    def view(tensor: Tensor) -> object:
        return tensor.detach().float().contiguous().numpy()

    index = torch.empty(x.shape[:2], dtype=torch.int64)
    distance = torch.empty(x.shape[:2], dtype=torch.float32)
    native.nearest(  # type: ignore[attr-defined]
        view(x),
        view(codebook),
        view(bias),
        None if table is None else table.to(torch.int32).contiguous().numpy(),
        index.numpy(),
        distance.numpy(),
        torch.get_num_threads(),
    )
    return index, distance


def _as_groups(
    x: Tensor, codebook: Tensor, bias: Tensor | None, table: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Checks every argument and brings it to the grouped layout (G, N, D), (G, K, D), (G, T, K)."""
    arguments = {"x": x, "codebook": codebook, "bias": bias, "bias_table": table}
    for name, tensor in arguments.items():
        if tensor is None and name.startswith("bias"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if name != "bias_table" and not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
    if codebook.dtype != x.dtype:
        raise TypeError(f"x is {x.dtype}, codebook {codebook.dtype}: they must agree")
    if codebook.ndim not in (2, 3) or x.ndim < 2 or (codebook.ndim == 3 and x.ndim != 3):
        raise ValueError(
            "expected x (..., N, D) with codebook (K, D) or x (G, N, D) with codebook (G, K, D), "
            f"got {tuple(x.shape)} and {tuple(codebook.shape)}"
        )
    grouped = codebook.ndim == 3
    if x.shape[-1] != codebook.shape[-1] or (grouped and x.shape[0] != codebook.shape[0]):
        raise ValueError(f"x {tuple(x.shape)} does not match codebook {tuple(codebook.shape)}")
    if codebook.shape[-2] == 0 or codebook.shape[-1] == 0:
        raise ValueError(f"codebook is empty: {tuple(codebook.shape)}")
    x3 = x if grouped else x.reshape(1, -1, x.shape[-1])
    codebook3 = codebook if grouped else codebook.unsqueeze(0)
    groups, size = codebook3.shape[:2]
    if bias is None:
        bias3 = torch.zeros(groups, 1, size, device=x.device)
    elif bias.ndim == 1:
        bias3 = bias[None, None]
    else:
        bias3 = bias[:, None] if bias.ndim == 2 else bias
    if bias3.ndim != 3 or bias3.shape[::2] != (groups, size) or bias3.shape[1] == 0:
        assert bias is not None
        raise ValueError(f"bias {tuple(bias.shape)} does not match codebook {tuple(codebook.shape)}")
    if (table is None) != (bias is None or bias.ndim < 3):
        raise ValueError("bias (G, T, K) and bias_table (G, N) go together")
    if table is not None:
        if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
            raise TypeError(f"bias_table must be integers, got {table.dtype}")
        if table.shape != x3.shape[:2]:
            raise ValueError(f"bias_table {tuple(table.shape)} must be {tuple(x3.shape[:2])}")
        if table.numel() and not 0 <= int(table.min()) <= int(table.max()) < bias3.shape[1]:
            raise ValueError(f"bias_table must lie in [0, {bias3.shape[1]})")
    return x3, codebook3, bias3, table
