"""The torch operators under tracing: torch.library.opcheck, torch.compile, CUDA graphs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vqcodec_kernels import codebook_stats, native_isa, nearest_codeword, quantize
from vqcodec_kernels.nearest_codeword import Backend

needs_native = pytest.mark.skipif(native_isa() is None, reason="the native extension is not built")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
each_backend = pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_native)])
# Of each argument: x (G, N, D), K, T; 0 for no bias, -1 for one bias without tables.
SHAPES = [((1, 1, 1), 1, 0), ((1, 31, 4), 17, -1), ((3, 13, 5), 7, 2), ((2, 0, 3), 5, 0)]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, high: int, seed: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def arguments_for(
    shape: tuple[int, int, int], size: int, tables: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """x, codebook, bias and bias_table of one of SHAPES."""
    groups, count, dim = shape
    bias = table = None
    if tables:
        bias = randn(groups, abs(tables), size, seed=3)
    if tables > 0:
        table = integers(groups, count, high=tables, seed=4)
    return randn(*shape, seed=1), randn(groups, size, dim, seed=2), bias, table


@pytest.fixture(autouse=True)
def forget_what_was_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield


def compiled(function: Callable[..., Any], *, dynamic: bool | None) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)


each_dynamic = pytest.mark.parametrize("dynamic", [False, True])


# --- operators -----------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("want_distance", [True, False])
@pytest.mark.parametrize("shapes", SHAPES)
def test_opcheck_of_the_search(
    backend: Backend, exact: bool, want_distance: bool, shapes: tuple[tuple[int, int, int], int, int]
) -> None:
    torch.library.opcheck(
        torch.ops.vqcodec.nearest_codeword.default,
        (*arguments_for(*shapes), exact, want_distance, backend),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("index_type", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 31, 4), (2, 0, 3)])
def test_opcheck_of_the_stats(
    shape: tuple[int, int, int], index_type: torch.dtype, dtype: torch.dtype
) -> None:
    x, index = randn(*shape, seed=1).to(dtype), integers(*shape[:2], high=7, seed=2)
    torch.library.opcheck(torch.ops.vqcodec.codebook_stats.default, (x, index.to(index_type), 7))
    scattered = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    torch.library.opcheck(torch.ops.vqcodec.codebook_stats.default, (scattered, index, 7))


# --- torch.compile -------------------------------------------------------------------------


@each_backend
@each_dynamic
@pytest.mark.parametrize("flags", ["", "distance", "stats", "distance stats"])
def test_compiled_search(backend: Backend, dynamic: bool, flags: str) -> None:
    def search(x: Tensor, codebook: Tensor, bias: Tensor | None, table: Tensor | None) -> Any:
        return nearest_codeword(
            x,
            codebook,
            bias,
            bias_table=table,
            backend=backend,
            return_distance="distance" in flags,
            return_stats="stats" in flags,
        )

    traced = compiled(search, dynamic=dynamic)
    for shapes in SHAPES[1:3]:
        x, codebook, bias, table = arguments_for(*shapes)
        if table is None and bias is not None:
            bias = bias[:, 0]
        expected, found = search(x, codebook, bias, table), traced(x, codebook, bias, table)
        if not flags:
            assert torch.equal(found, expected)
            continue
        assert torch.equal(found.index, expected.index)
        if "distance" in flags:
            assert torch.equal(found.distance, expected.distance)
        else:
            assert found.distance is None
        if "stats" in flags:
            assert found.stats.vectors == x.shape[0] * x.shape[1]
            assert torch.equal(found.stats.rescored, expected.stats.rescored)
        else:
            assert found.stats is None


@each_dynamic
def test_compiled_search_without_groups(dynamic: bool) -> None:
    traced = compiled(nearest_codeword, dynamic=dynamic)
    for shape in ((2, 5, 7, 4), (31, 4), (0, 4)):
        x, codebook, bias = randn(*shape, seed=1), randn(11, 4, seed=2), randn(11, seed=3)
        assert torch.equal(traced(x, codebook), nearest_codeword(x, codebook))
        assert torch.equal(traced(x, codebook, bias), nearest_codeword(x, codebook, bias))


def test_shapes_that_change_do_not_compile_again() -> None:
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    def step(x: Tensor, codebook: Tensor) -> list[Tensor]:
        found = quantize(x, codebook)
        return [*found, *codebook_stats(x, found.index, codebook.shape[0])]

    traced = torch.compile(step, fullgraph=True, backend=count, dynamic=True)
    for size, length in ((5, 20), (6, 30), (7, 50)):
        x, codebook = randn(length, 4, seed=1), randn(size, 4, seed=2)
        for found, expected in zip(traced(x, codebook), step(x, codebook), strict=True):
            assert torch.equal(found, expected)
    assert graphs == 1


@each_backend
@each_dynamic
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shapes", SHAPES)
def test_compiled_quantize(
    backend: Backend,
    dynamic: bool,
    dtype: torch.dtype,
    shapes: tuple[tuple[int, int, int], int, int],
) -> None:
    def layer(x: Tensor, codebook: Tensor, bias: Tensor | None, table: Tensor | None) -> Any:
        return quantize(2 * x, codebook, bias, bias_table=table, backend=backend)

    def results(run: Callable[..., Any]) -> list[Tensor]:
        x, codebook, bias, table = arguments_for(*shapes)
        if table is None and bias is not None:
            bias = bias[:, 0]
        x, codebook = x.to(dtype).requires_grad_(), codebook.to(dtype).requires_grad_()
        found = run(x, codebook, bias, table)
        weight = randn(*x.shape, seed=5)
        loss = (found.x_q * weight).sum() + 3 * found.codebook_loss + found.commitment_loss
        return [*found, *torch.autograd.grad(loss, (x, codebook))]

    for expected, found in zip(results(layer), results(compiled(layer, dynamic=dynamic)), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@each_dynamic
def test_compiled_stats(dynamic: bool) -> None:
    traced = compiled(codebook_stats, dynamic=dynamic)
    for shape, size in (((3, 31, 4), 7), ((2, 57, 4), 9), ((40, 4), 5), ((0, 4), 5)):
        x, index = randn(*shape, seed=1), integers(*shape[:-1], high=size, seed=2)
        for found, expected in zip(traced(x, index, size), codebook_stats(x, index, size), strict=True):
            assert torch.equal(found, expected)


def test_errors_pass_through_compiled_code() -> None:
    x, index = randn(5, 4, seed=1), torch.full((5,), 3)
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        compiled(codebook_stats, dynamic=False)(x, index, 3)
    table = torch.full((2, 5), 3)
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        compiled(nearest_codeword, dynamic=False)(
            randn(2, 5, 4, seed=1), randn(2, 6, 4, seed=2), randn(2, 3, 6, seed=3), bias_table=table
        )


# --- CUDA graphs ---------------------------------------------------------------------------


@needs_gpu
def test_cuda_graph() -> None:
    def step(x: Tensor, codebook: Tensor, bias: Tensor, table: Tensor) -> list[Tensor]:
        found = nearest_codeword(
            x, codebook, bias, bias_table=table, return_distance=True, return_stats=True
        )
        layer = quantize(x, codebook, bias, bias_table=table)
        stats = codebook_stats(x, found.index, codebook.shape[1])
        return [found.index, found.distance, found.stats.rescored, *layer, *stats]

    def arguments(seed: int) -> list[Tensor]:
        x, codebook = randn(2, 3000, 8, seed=seed), randn(2, 100, 8, seed=seed + 1)
        bias, table = randn(2, 3, 100, seed=seed + 2), integers(2, 3000, high=3, seed=seed + 3)
        return [tensor.cuda() for tensor in (x, codebook, bias, table)]

    fixed = arguments(1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(*fixed)  # compiles kernels, which a graph cannot
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*fixed)
    for seed in (1, 10, 20):
        fresh = arguments(seed)
        for place, tensor in zip(fixed, fresh, strict=True):
            place.copy_(tensor)
        graph.replay()
        for found, expected in zip(captured, step(*fresh), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
