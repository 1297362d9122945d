"""Nearest-codeword searches to compare with: problems, the check of a result, the competitors.

Purpose: `bench_nearest_codeword.py` times these next to `vqcodec_kernels.nearest_codeword`, each of
them after its result was checked against brute force in float64.

Layout: shapes and problems; the check; formulations in torch; libraries; which of them apply.

Rules
- A competitor gets for nothing what a user can prepare once for a codebook: norms, a transposed
  copy, an index, buffers, a compiled graph. Only its search is timed.
- A wrong index is accepted only where the rounding of that competitor's own arithmetic, bounded
  from its formula, explains it. The exact mode has no such excuse: see `EXACT`.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from vqcodec_kernels import nearest_codeword_ref

Search = Callable[[], Tensor]
"""Runs a search that was prepared and returns the indices, (G, N) or something that reshapes to it."""

PRICE, MEAN_BITS = 0.02, 8.0
"""Biases are a price times code lengths; those are exponential, in bits."""
TRUTH_ELEMENTS = 1 << 26
"""(vector, codeword, dimension) triples that brute force may look at for each problem."""


@cache
def optional_module(name: str) -> Any | None:
    """The module, or None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# --- shapes and problems --------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """`groups` independent searches of `count` vectors over `size` codewords of `dim` dimensions.

    tables: bias tables of each group, one of them chosen by each vector; 0 for no bias.
    """

    count: int
    size: int
    dim: int
    groups: int = 1
    tables: int = 0

    @property
    def name(self) -> str:
        """N x K x D as in the tables, with the groups and bias tables if there are any."""
        groups = f"{self.groups}x" if self.groups > 1 else ""
        tables = f"+{self.tables}tables" if self.tables else ""
        return f"{groups}{self.count}x{self.size}x{self.dim}{tables}"

    @property
    def pairs(self) -> int:
        """Pairs of vector and codeword."""
        return self.groups * self.count * self.size

    @property
    def flops(self) -> int:
        """Operations of the matrix product in it: 2NKD."""
        return 2 * self.pairs * self.dim

    @property
    def codebook_bytes(self) -> int:
        """One copy of the codebooks in float32."""
        return 4 * self.groups * self.size * self.dim


@dataclass(frozen=True)
class Problem:
    """x (G, N, D), codebook (G, K, D), bias (G, T, K) with table (G, N), or None both."""

    shape: Shape
    x: Tensor
    codebook: Tensor
    bias: Tensor | None
    table: Tensor | None


def make_problem(shape: Shape, *, device: str = "cpu", seed: int = 0) -> Problem:
    """Normal vectors and codewords, exponential biases, a random table for each vector."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.empty(shape.groups, shape.count, shape.dim).normal_(generator=generator)
    codebook = torch.empty(shape.groups, shape.size, shape.dim).normal_(generator=generator)
    bias = table = None
    if shape.tables:
        bias = torch.empty(shape.groups, shape.tables, shape.size)
        bias.exponential_(1.0 / (PRICE * MEAN_BITS), generator=generator)
        table = torch.randint(shape.tables, (shape.groups, shape.count), generator=generator)
        bias, table = bias.to(device), table.to(device)
    return Problem(shape, x.to(device), codebook.to(device), bias, table)


# --- the check ------------------------------------------------------------------------------------


class WrongResultError(AssertionError):
    """A search returned a codeword that costs more than its arithmetic explains."""


@dataclass(frozen=True)
class Rounding:
    """Arithmetic of a search.

    unit: unit roundoff of its sums; product: relative error of each product, from rounded operands.
    """

    unit: float
    product: float = 0.0


FLOAT32 = Rounding(2.0**-24)
FLOAT64 = Rounding(2.0**-53)
TF32 = Rounding(2.0**-21, product=2.0**-9)
"""Operands may be truncated to 10 bits, sums are truncated as well."""
EXACT = None
"""The contract of precision="exact": at most D * 2^-50 of distance + |bias| above the least cost."""


@dataclass(frozen=True)
class Truth:
    """The nearest codewords, index (G, R), of the vectors `rows` (R,) of each group."""

    rows: Tensor
    index: Tensor


def true_nearest(problem: Problem) -> Truth:
    """Brute force in float64 for a random sample of the vectors, or for all if that is quick."""
    shape = problem.shape
    sample = max(16, TRUTH_ELEMENTS // (shape.groups * shape.size * shape.dim))
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(shape.count, generator=generator)[:sample].to(problem.x.device)
    table = None if problem.table is None else problem.table[:, rows]
    index, _ = nearest_codeword_ref(problem.x[:, rows], problem.codebook, problem.bias, table)
    return Truth(rows, index)


def check_result(problem: Problem, index: Tensor, truth: Truth, rounding: Rounding | None) -> None:
    """WrongResultError unless `index` is as good as `truth`, up to what `rounding` explains."""
    shape = problem.shape
    index = index.reshape(shape.groups, shape.count).long()
    if not bool(((index >= 0) & (index < shape.size)).all()):
        raise WrongResultError(f"{shape.name}: an index outside [0, {shape.size})")
    found = index[:, truth.rows]
    cost, size, reach = _costs(problem, truth.rows, found)
    best_cost, _, best_reach = _costs(problem, truth.rows, truth.index)
    if rounding is EXACT:
        allowed = shape.dim * 2.0**-50 * size
    else:
        # Norms of D terms that pass through a product of D + 2 terms, the sum of the parts, a root:
        # fewer than 2D + 8 roundings of at most (|x| + |c|)^2 + |bias|, for both codewords.
        relative = rounding.product + (2 * shape.dim + 8) * rounding.unit
        allowed = relative * (reach + best_reach)
    wrong = cost - best_cost > allowed
    if bool(wrong.any()):
        raise WrongResultError(
            f"{shape.name}: {int(wrong.sum())} of {wrong.numel()} vectors got a codeword that costs "
            f"more than rounding explains, at worst by {float((cost - best_cost).max()):.3g}"
        )


def _costs(problem: Problem, rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In float64, (G, R) each: cost, distance + |bias|, and (|x| + |c|)^2 + |bias|."""
    x = problem.x[:, rows].double()
    chosen = index[..., None].expand(-1, -1, problem.shape.dim)
    words = problem.codebook.gather(1, chosen).double()
    distance = (x - words).square().sum(-1)
    reach = (x.norm(dim=-1) + words.norm(dim=-1)).square()
    if problem.bias is None or problem.table is None:
        return distance, distance, reach
    bias = problem.bias[_groups(problem), problem.table[:, rows], index].double()
    return distance + bias, distance + bias.abs(), reach + bias.abs()


def _groups(problem: Problem) -> Tensor:
    """The numbers of the groups, (G, 1)."""
    return torch.arange(problem.shape.groups, device=problem.x.device)[:, None]


# --- formulations in torch ------------------------------------------------------------------------


def _offsets(problem: Problem) -> Tensor:
    """Half of |c|^2 + bias, (G, T, K): minus x·c it orders codewords as the cost does."""
    norms = problem.codebook.double().square().sum(-1)[:, None]
    return (norms if problem.bias is None else norms + problem.bias).div(2).float()


def _chunks(count: int, length: int) -> Iterator[slice]:
    return (slice(start, min(start + length, count)) for start in range(0, count, length))


def prepare_cdist(problem: Problem, *, chunk: int | None = None) -> Search:
    """Euclidean distances, then the least: what most code does."""
    x, codebook, count = problem.x, problem.codebook, problem.shape.count

    def search() -> Tensor:
        if chunk is None:
            return torch.cdist(x, codebook).argmin(-1)
        parts = (torch.cdist(x[:, part], codebook).argmin(-1) for part in _chunks(count, chunk))
        return torch.cat(list(parts), 1)

    return search


def prepare_addmm(problem: Problem, *, chunk: int) -> Search:
    """Group by group, `chunk` vectors at a time: half norms minus products, then the least."""
    x, table, shape = problem.x, problem.table, problem.shape
    offsets, words = _offsets(problem), problem.codebook.transpose(1, 2).contiguous()
    buffer = x.new_empty(min(chunk, shape.count), shape.size)

    def search() -> Tensor:
        index = torch.empty(shape.groups, shape.count, dtype=torch.int64, device=x.device)
        for g in range(shape.groups):
            for part in _chunks(shape.count, chunk):
                scores = buffer[: part.stop - part.start]
                if table is None:
                    torch.addmm(offsets[g], x[g, part], words[g], alpha=-1, out=scores)
                else:
                    torch.index_select(offsets[g], 0, table[g, part], out=scores)
                    scores.addmm_(x[g, part], words[g], alpha=-1)
                index[g, part] = scores.min(-1).indices
        return index

    return search


def prepare_baddbmm(problem: Problem, *, chunk: int) -> Search:
    """All groups at once, `chunk` vectors of each at a time, as in `prepare_addmm`."""
    x, shape = problem.x, problem.shape
    offsets, words = _offsets(problem), problem.codebook.transpose(1, 2).contiguous()
    rows = None if problem.table is None else problem.table + shape.tables * _groups(problem)
    buffer = x.new_empty(shape.groups * min(chunk, shape.count), shape.size)

    def search() -> Tensor:
        index = torch.empty(shape.groups, shape.count, dtype=torch.int64, device=x.device)
        for part in _chunks(shape.count, chunk):
            flat = buffer[: shape.groups * (part.stop - part.start)]
            scores = flat.view(shape.groups, -1, shape.size)
            if rows is None:
                torch.baddbmm(offsets, x[:, part], words, alpha=-1, out=scores)
            else:
                torch.index_select(offsets.flatten(0, 1), 0, rows[:, part].flatten(), out=flat)
                scores.baddbmm_(x[:, part], words, alpha=-1)
            index[:, part] = scores.min(-1).indices
        return index

    return search


def prepare_transposed(problem: Problem, *, chunk: int) -> Search:
    """Codewords by vectors, so that the minimum runs down the columns; without biases."""
    columns, offsets = problem.x.transpose(1, 2).contiguous(), _offsets(problem).transpose(1, 2)

    def search() -> Tensor:
        index = columns.new_empty(problem.shape.groups, problem.shape.count, dtype=torch.int64)
        for part in _chunks(problem.shape.count, chunk):
            scores = torch.baddbmm(offsets, problem.codebook, columns[:, :, part], alpha=-1)
            index[:, part] = scores.min(1).indices
        return index

    return search


def prepare_one_hot(problem: Problem, *, chunk: int) -> Search:
    """The bias table as T more dimensions, so that the matrix product adds the bias."""
    shape = problem.shape
    assert problem.table is not None
    tables = torch.nn.functional.one_hot(problem.table, shape.tables).float()
    x = torch.cat([-problem.x, tables], -1)
    words = torch.cat([problem.codebook.transpose(1, 2), _offsets(problem)], 1)

    def search() -> Tensor:
        index = torch.empty(shape.groups, shape.count, dtype=torch.int64, device=x.device)
        for part in _chunks(shape.count, chunk):
            index[:, part] = torch.bmm(x[:, part], words).min(-1).indices
        return index

    return search


def prepare_direct(problem: Problem, *, chunk: int) -> Search:
    """Squares of differences, one dimension after the other; no product of matrices."""
    x, table, shape = problem.x, problem.table, problem.shape
    words, groups = problem.codebook.transpose(1, 2).contiguous(), _groups(problem)

    def search() -> Tensor:
        index = torch.empty(shape.groups, shape.count, dtype=torch.int64, device=x.device)
        for part in _chunks(shape.count, chunk):
            cost = (x[:, part, :1] - words[:, :1]).square_()
            for d in range(1, shape.dim):
                difference = x[:, part, d, None] - words[:, d, None]
                cost.addcmul_(difference, difference)
            if problem.bias is not None and table is not None:
                cost.add_(problem.bias[groups, table[:, part]])
            index[:, part] = cost.min(-1).indices
        return index

    return search


def prepare_compiled(problem: Problem) -> Search:
    """Squares of differences, which torch.compile fuses with bias and minimum."""
    groups = _groups(problem)

    def nearest(x: Tensor, words: Tensor, bias: Tensor | None, table: Tensor | None) -> Tensor:
        cost = (x[..., :1] - words[:, :1]).square()
        for d in range(1, x.shape[-1]):
            cost = cost + (x[..., d, None] - words[:, d, None]).square()
        if bias is not None and table is not None:
            cost = cost + bias[groups, table]
        return cost.argmin(-1)

    # After some shapes of one function torch gives up and runs it without compiling.
    torch.compiler.reset()
    compiled = torch.compile(nearest, dynamic=False)
    words = problem.codebook.transpose(1, 2).contiguous()
    return partial(compiled, problem.x, words, problem.bias, problem.table)


def prepare_searchsorted(problem: Problem) -> Search:
    """Scalars without a bias: binary search among the midpoints of the sorted codewords."""
    words, order = problem.codebook[..., 0].sort(-1)
    midpoints = ((words[:, 1:].double() + words[:, :-1]) / 2).float()
    x = problem.x[..., 0].contiguous()
    return lambda: order.gather(1, torch.searchsorted(midpoints, x))


def in_tf32(prepare: Callable[[Problem], Search], problem: Problem) -> Search:
    """A formulation whose matrix products may round their operands to TF32."""
    search = prepare(problem)

    def search_in_tf32() -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return search()
        finally:
            torch.set_float32_matmul_precision(before)

    return search_in_tf32


# --- libraries ------------------------------------------------------------------------------------


def prepare_faiss(problem: Problem) -> Search:
    """`IndexFlatL2` of faiss-cpu with one neighbour."""
    faiss = importlib.import_module("faiss")
    index = faiss.IndexFlatL2(problem.shape.dim)
    index.add(problem.codebook[0].numpy())
    x = problem.x[0].numpy()
    return lambda: torch.from_numpy(index.search(x, 1)[1])


def prepare_sklearn(problem: Problem) -> Search:
    """`pairwise_distances_argmin` of scikit-learn."""
    metrics = importlib.import_module("sklearn.metrics")
    x, codebook = problem.x[0].numpy(), problem.codebook[0].numpy()
    return lambda: torch.from_numpy(metrics.pairwise_distances_argmin(x, codebook))


FLASH_KMEANS = "flash_kmeans.assign_euclid_triton"
FLASHLIB = "flashlib.primitives.kmeans.triton.assign"


def prepare_flash(module: str, problem: Problem) -> Search:
    """The assignment kernel of flash-kmeans or flashlib; both multiply float32 in TF32."""
    assign = importlib.import_module(module).euclid_assign_triton
    x, codebook = problem.x, problem.codebook
    norms = codebook.square().sum(-1)
    if module == FLASH_KMEANS:
        return partial(assign, x, codebook, x.square().sum(-1), c_sq=norms)
    return partial(assign, x, codebook, c_sq=norms)


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Everything that takes part runs on `threads` threads."""
    with ExitStack() as stack:
        if threadpoolctl := optional_module("threadpoolctl"):
            # It sees only libraries that are loaded.
            optional_module("sklearn.metrics")
            stack.enter_context(threadpoolctl.threadpool_limits(threads))
        if faiss := optional_module("faiss"):
            stack.callback(faiss.omp_set_num_threads, faiss.omp_get_max_threads())
            faiss.omp_set_num_threads(threads)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        yield


# --- which of them apply --------------------------------------------------------------------------


@dataclass(frozen=True)
class Competitor:
    """A search to compare with; of those of one family the fastest counts."""

    name: str
    family: str
    rounding: Rounding
    prepare: Callable[[Problem], Search]


def competitors(shape: Shape, *, device: str = "cpu", compiled: bool = True) -> list[Competitor]:
    """All that can solve a problem of this shape here; `compiled`: those that torch compiles too."""
    if shape.groups > 1 or shape.tables:
        return _torch_formulations(shape, compiled=compiled)
    found = [Competitor("cdist+argmin", "cdist+argmin", FLOAT32, prepare_cdist)]
    # The second block of scores stays in the last cache, whatever K is.
    elements = 1 << (23 if device == "cuda" else 20)
    for chunk in dict.fromkeys((256, max(1, elements // shape.size))):
        prepare = partial(prepare_addmm, chunk=chunk)
        found.append(Competitor(f"addmm+min, {chunk} rows", "addmm+min", FLOAT32, prepare))
    if device == "cuda":
        found += [
            Competitor(f"{c.name}, tf32", f"{c.family}, tf32", TF32, partial(in_tf32, c.prepare))
            for c in found
        ]
        for name, module in (("flash-kmeans", FLASH_KMEANS), ("flashlib", FLASHLIB)):
            if optional_module(module):
                found.append(Competitor(name, name, TF32, partial(prepare_flash, module)))
        return found
    if optional_module("faiss"):
        found.append(Competitor("faiss", "faiss", FLOAT32, prepare_faiss))
    if optional_module("sklearn.metrics"):
        found.append(Competitor("scikit-learn", "scikit-learn", FLOAT64, prepare_sklearn))
    return found


def _torch_formulations(shape: Shape, *, compiled: bool) -> list[Competitor]:
    """For many small codebooks, with the chunks that were fastest on a CPU with 1 MB of L2."""
    found: dict[str, Callable[[Problem], Search]] = {
        "addmm+min": partial(prepare_addmm, chunk=256),
        "baddbmm+min": partial(prepare_baddbmm, chunk=256),
        "direct": partial(prepare_direct, chunk=64),
    }
    if shape.tables:
        found["one-hot bmm+min"] = partial(prepare_one_hot, chunk=256)
    else:
        found["transposed baddbmm+min"] = partial(prepare_transposed, chunk=64)
        found["cdist+argmin"] = partial(prepare_cdist, chunk=64)
        if shape.dim == 1:
            found["searchsorted"] = prepare_searchsorted
    eager = [Competitor(name, "torch", FLOAT32, prepare) for name, prepare in found.items()]
    # What torch needs to compile for the CPU.
    if compiled and shutil.which(os.environ.get("CXX", "g++")):
        return [*eager, Competitor("torch.compile", "torch.compile", FLOAT32, prepare_compiled)]
    return eager
