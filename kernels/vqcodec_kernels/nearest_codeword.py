"""Nearest-codeword search with an additive cost: the assignment step of entropy-constrained VQ.

    index[g, n] = argmin_k  ||x[g, n] - codebook[g, k]||^2 + bias[g, t, k],   t = bias_table[g, n]

Layout: x (..., N, D) with codebook (K, D), or G groups at once, x (G, N, D) with codebook
(G, K, D). Three backends keep one contract, which `precision="exact"` (the default) makes a proof:

- No index returned costs more than the least cost by more than D * 2^-50 of distance + |bias|.
- Equal codewords with equal bias go to the lowest index: a copy is never chosen. So do ties of
  costs that float64 holds exactly; costs closer than the above may go either way.
- A NaN cost counts as +inf. A codeword whose cost is +inf is never chosen unless all are: then
  (a vector with a NaN, for one) the index is 0 and the distance +inf.

A first pass in low precision keeps the best and the runner-up; where its error bound cannot tell
them apart, the vector is scored again, in float64 in the end (docs/kernels.md has the proof).

Source of the cost: P. A. Chou, T. Lookabaugh, R. M. Gray, "Entropy-constrained vector
quantization", IEEE Trans. ASSP 37(1), 1989, equation (8).
"""

from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec_kernels._extension import can_run_triton, load_native

Backend = Literal["auto", "torch", "native", "triton"]
Precision = Literal["exact", "fast"]

# The reference works on blocks of at most this many (vector, codeword, dimension) triples.
_BLOCK_ELEMENTS = 1 << 20

_BACKENDS = ("auto", "torch", "native", "triton")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Array = TypeVar("Array", Tensor, NDArray[Any])


class SearchStats(NamedTuple):
    """What a search had to do: vectors searched, and int64 (): those that the first pass left
    undecided between groups of codewords, so that all of theirs were looked at again."""

    vectors: int
    rescored: Tensor


class Nearest(NamedTuple):
    """Result of a search: index int64 (..., N); distance float32 (..., N), bias included, and
    stats where they were asked for."""

    index: Any  # hides tuple.index
    distance: Any = None
    stats: SearchStats | None = None


def nearest_codeword(
    x: Array,
    codebook: Array,
    bias: Array | None = None,
    *,
    bias_table: Array | None = None,
    precision: Precision = "exact",
    backend: Backend = "auto",
    return_distance: bool = False,
    return_stats: bool = False,
) -> Any:
    """Index of the codeword with the least squared distance plus bias, for every vector.

    x: (..., N, D) with codebook (K, D), or (G, N, D) with (G, K, D); float32, float16, bfloat16
    or float64, the same for both, any strides. bias, float32 or of that dtype: (K,) or (G, K), or
    (G, T, K) with bias_table (G, N) integers in [0, T). Torch tensors, or NumPy arrays throughout.
    Returns int64 (..., N), or a `Nearest` if a flag asks for more. Nothing carries a gradient.

    precision: "exact" as the module says; "fast" lets a backend take its first pass at its
    word, without proof; the Triton kernel does, the others gain too little by it.
    backend: "torch" is the reference; "native" the C++ kernel, for the CPU; "triton" the GPU
    kernel, D up to 1024; neither takes float64. "auto" takes the fastest that can run.
    Raises ValueError or TypeError for shapes, dtypes, devices that do not fit, RuntimeError if an
    explicitly chosen backend cannot run. An entry of bias_table outside [0, T) is a ValueError on
    the CPU; on a GPU, where looking would mean waiting, the vector's index is -1, its distance NaN.
    """
    if isinstance(x, np.ndarray):
        return _search_arrays(
            x,
            codebook,
            bias,
            bias_table,
            precision=precision,
            backend=backend,
            return_distance=return_distance,
            return_stats=return_stats,
        )
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    if precision not in ("exact", "fast"):
        raise ValueError(f"precision must be 'exact' or 'fast', got {precision!r}")
    index, distance, rescored = torch.ops.vqcodec.nearest_codeword(
        *_as_groups(x, codebook, bias, bias_table), precision == "exact", return_distance, backend
    )
    index = index.reshape(x.shape[:-1])
    if not (return_distance or return_stats):
        return index
    return Nearest(
        index,
        distance.reshape(x.shape[:-1]) if return_distance else None,
        SearchStats(index.numel(), rescored) if return_stats else None,
    )


@torch.no_grad()
def nearest_codeword_ref(
    x: Tensor, codebook: Tensor, bias: Tensor | None, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The formula in float64: x (G, N, D), codebook (G, K, D), bias (G, T, K), table (G, N)."""
    groups, count, dim = x.shape
    size = codebook.shape[1]
    index = torch.zeros(groups, count, dtype=torch.int64, device=x.device)
    distance = torch.full((groups, count), torch.inf, dtype=torch.float64, device=x.device)
    some = max(1, min(size, _BLOCK_ELEMENTS // dim))
    block = max(1, _BLOCK_ELEMENTS // (some * dim))
    for g in range(groups):
        for start in range(0, count, block):
            rows = slice(start, start + block)
            for first in range(0, size, some):
                codes = slice(first, first + some)
                cost = x[g, rows, None].double() - codebook[g, codes].double()
                cost = cost.square().sum(-1)
                if bias is not None:
                    cost += bias[g, 0 if table is None else table[g, rows].long(), codes].double()
                # NaN compares as the minimum in torch; here it is never chosen.
                cost = cost.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
                k = cost.argmin(-1)
                value = cost.gather(-1, k[:, None])[:, 0]
                better = value < distance[g, rows]
                index[g, rows] = torch.where(better, k + first, index[g, rows])
                distance[g, rows] = torch.where(better, value, distance[g, rows])
    return index, distance.float()


def _search(
    x: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    table: Tensor | None,
    exact: bool,
    want_distance: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: index (G, N), distance (G, N) or empty, number of vectors rescored."""
    backend = _choose(backend, x)
    if backend == "triton":
        from vqcodec_kernels.nearest_codeword_triton import search_triton

        return search_triton(x, codebook, bias, table, exact=exact, want_distance=want_distance)
    if backend == "native":
        return _search_native(x, codebook, bias, table, want_distance)
    valid = None
    if table is not None and bias is not None:
        table = table.long()  # beyond 2^63, negative: as invalid as before
        valid = (table >= 0) & (table < bias.shape[1])
        if x.device.type == "cpu" and not valid.all():
            raise ValueError(f"bias_table must lie in [0, {bias.shape[1]})")
        table = torch.where(valid, table, 0)
    index, distance = nearest_codeword_ref(x, codebook, bias, table)
    if valid is not None:
        index, distance = index.where(valid, -1), distance.where(valid, torch.nan)
    if not want_distance:
        distance = distance.new_empty(0)
    return index, distance, torch.zeros((), dtype=torch.int64, device=x.device)


def _search_native(
    x: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    table: Tensor | None,
    want_distance: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    index = torch.empty(x.shape[:2], dtype=torch.int64)
    distance = torch.empty(x.shape[:2] if want_distance else (0,), dtype=torch.float32)
    rescored = load_native().nearest_codeword(  # type: ignore[union-attr]
        x,
        codebook.float().contiguous(),
        None if bias is None else bias.float().contiguous(),
        table,
        index,
        distance if want_distance else None,
        torch.get_num_threads(),
    )
    return index, distance, torch.tensor(rescored)


def _search_shapes(
    x: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    table: Tensor | None,
    exact: bool,
    want_distance: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes, dtypes and device of the operator's results, for tracing."""
    _choose(backend, x)
    shape = x.shape[:2]
    return (
        x.new_empty(shape, dtype=torch.int64),
        x.new_empty(shape if want_distance else (0,), dtype=torch.float32),
        x.new_empty((), dtype=torch.int64),
    )


# Opaque to torch.compile. `Library` costs a third of what `custom_op` does for each call.
_LIBRARY = torch.library.Library("vqcodec", "FRAGMENT")
_LIBRARY.define(
    "nearest_codeword(Tensor x, Tensor codebook, Tensor? bias, Tensor? bias_table, bool exact, "
    "bool want_distance, str backend) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("nearest_codeword", _search, "CompositeExplicitAutograd")
torch.library.register_fake("vqcodec::nearest_codeword", _search_shapes, lib=_LIBRARY)


def _choose(backend: str, x: Tensor) -> str:
    """The backend that will run; RuntimeError or TypeError if the one asked for cannot."""
    native = load_native() is not None and x.device.type == "cpu"
    triton = can_run_triton(x.device)
    if backend == "native" and not native:
        raise RuntimeError(
            f"backend='native' needs the native extension and CPU tensors, got {x.device}; "
            "use backend='torch'"
        )
    if backend == "triton" and not triton:
        raise RuntimeError(
            f"backend='triton' needs the package triton and CUDA tensors, got {x.device}; "
            "use backend='torch'"
        )
    if backend in ("native", "triton") and x.dtype == torch.float64:
        raise TypeError(f"backend={backend!r} does not take torch.float64; use backend='torch'")
    if backend == "triton" and x.shape[-1] > 1024:
        raise ValueError(f"backend='triton' takes D up to 1024, got {x.shape[-1]}")
    if backend != "auto":
        return backend
    if x.dtype == torch.float64:
        return "torch"
    if x.device.type == "cuda" and triton and x.shape[-1] <= 1024:
        return "triton"
    return "native" if native else "torch"


def _search_arrays(
    x: NDArray[Any], codebook: Any, bias: Any, bias_table: Any, **options: Any
) -> NDArray[np.int64] | Nearest:
    """NumPy in, NumPy out."""
    arguments = {"x": x, "codebook": codebook, "bias": bias, "bias_table": bias_table}
    for name, array in arguments.items():
        if not isinstance(array, np.ndarray) and not (array is None and name.startswith("bias")):
            raise TypeError(f"x is a NumPy array, {name} is not: {type(array).__name__}")
    tensors: dict[str, Any] = {
        name: None if a is None else _from_numpy(name, a) for name, a in arguments.items()
    }
    found = nearest_codeword(**tensors, **options)
    if isinstance(found, Tensor):
        return found.numpy()
    return Nearest(
        found.index.numpy(), None if found.distance is None else found.distance.numpy(), found.stats
    )


def _from_numpy(name: str, array: NDArray[Any]) -> Tensor:
    # Torch knows neither negative strides nor read-only memory.
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise TypeError(f"{name} has dtype {array.dtype}, which torch does not know") from error


def _as_groups(
    x: Tensor, codebook: Tensor, bias: Tensor | None, table: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Checks every argument and brings it to the grouped layout (G, N, D), (G, K, D), (G, T, K)."""
    arguments = {"x": x, "codebook": codebook, "bias": bias, "bias_table": table}
    for name, tensor in arguments.items():
        if tensor is None and name.startswith("bias"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if name != "bias_table" and tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} must be floating point of 16 to 64 bits, got {tensor.dtype}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got {tensor.layout}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
    if codebook.dtype != x.dtype:
        raise TypeError(f"x is {x.dtype}, codebook {codebook.dtype}: they must agree")
    if bias is not None and bias.dtype not in (x.dtype, torch.float32):
        raise TypeError(f"bias must be torch.float32 or, as x, {x.dtype}, got {bias.dtype}")
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
    x3 = x if grouped else x.reshape(1, x.shape[:-1].numel(), x.shape[-1])
    codebook3 = codebook if grouped else codebook.unsqueeze(0)
    bias3 = bias
    if bias is not None:
        bias3 = bias[None, None] if bias.ndim == 1 else bias[:, None] if bias.ndim == 2 else bias
        expected = (codebook3.shape[0], codebook3.shape[1])
        if bias3.ndim != 3 or (bias3.shape[0], bias3.shape[2]) != expected or bias3.shape[1] == 0:
            raise ValueError(f"bias {tuple(bias.shape)} does not match codebook {tuple(codebook.shape)}")
    if (table is None) != (bias is None or bias.ndim < 3):
        raise ValueError("bias (G, T, K) and bias_table (G, N) go together")
    if table is not None:
        if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
            raise TypeError(f"bias_table must be integers, got {table.dtype}")
        if table.shape != x3.shape[:2]:
            raise ValueError(f"bias_table {tuple(table.shape)} must be {tuple(x3.shape[:2])}")
    # An index has no gradient, and an operator without one may not see tensors that want one.
    return (
        x3.detach(),
        codebook3.detach(),
        None if bias3 is None else bias3.detach(),
        table,
    )
