"""Tests of vqcodec_kernels.nearest_codeword against brute force in extended precision.

`assert_nearest` holds every backend to the contract of precision "exact": the cost of the index
returned is above the least cost by at most D * 2^-50 of distance + |bias|, without a term for the
size of the data, so an expanded square or a cost in float32 fails. Where every intermediate value
is exact, `assert_equal_to_brute_force` wants the very index.
"""

import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from isa_probes import ISAS, assert_probe, run_probes
from numpy.typing import NDArray
from torch import Tensor

from vqcodec_kernels import (
    Nearest,
    _extension,
    native_isa,
    nearest_codeword,
)
from vqcodec_kernels.nearest_codeword import Backend

needs_native = pytest.mark.skipif(native_isa() is None, reason="the native extension is not built")
each_backend = pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_native)])
# Enough for the native kernel to use several threads: it gives each at least 1024 of these.
MANY, MANY_SIZE, MANY_DIM = 4099, 256, 4

# 80 bits on x86, 64 of them of the significand.
Floats = NDArray[np.longdouble]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, seed: int, low: int = -4, high: int = 5) -> Tensor:
    """Small integers as floats, for which all costs are exact in every precision."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).float()


def tables_for(groups: int, count: int, tables: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, tables, (groups, count), generator=generator)


def brute_force(
    x: Tensor, codebook: Tensor, bias: Tensor | None, table: Tensor | None
) -> tuple[Floats, Floats]:
    """Cost (G, N, K), and distance + |bias|, to which the contract is relative; NaN costs are +inf."""
    dim = x.shape[-1]
    codewords = codebook.double().numpy().reshape(-1, *codebook.shape[-2:]).astype(np.longdouble)
    vectors = x.double().numpy().reshape(len(codewords), -1, dim).astype(np.longdouble)
    cost = np.empty((*vectors.shape[:2], codewords.shape[1]), np.longdouble)
    size = np.empty_like(cost)
    for g in range(len(codewords)):
        squares = (vectors[g, :, None] - codewords[g]) ** 2
        added = np.zeros(codewords.shape[1])
        if bias is not None:
            added = bias.double().numpy().reshape(len(codewords), -1, codewords.shape[1])[g]
            added = added[np.zeros(len(vectors[g]), int) if table is None else table[g].numpy()]
        cost[g] = squares.sum(-1) + added
        size[g] = squares.sum(-1) + np.abs(added)
    cost[np.isnan(cost)] = np.inf
    return cost, size


def assert_nearest(
    x: Tensor,
    codebook: Tensor,
    bias: Tensor | None = None,
    table: Tensor | None = None,
    *,
    backend: Backend,
) -> Tensor:
    """Runs the search, checks it against brute force, and returns the indices."""
    found = nearest_codeword(
        x,
        codebook,
        bias,
        bias_table=table,
        backend=backend,
        return_distance=True,
        return_stats=True,
    )
    assert isinstance(found, Nearest) and found.stats is not None
    assert found.index.dtype == torch.int64 and found.distance.dtype == torch.float32
    assert found.index.shape == found.distance.shape == x.shape[:-1]
    assert found.stats.vectors == found.index.numel() >= int(found.stats.rescored) >= 0
    alone = nearest_codeword(x, codebook, bias, bias_table=table, backend=backend)
    assert isinstance(alone, Tensor) and torch.equal(alone, found.index)

    cost, size = brute_force(x, codebook, bias, table)
    index = found.index.numpy().reshape(cost.shape[:2])
    distance = found.distance.numpy().reshape(cost.shape[:2]).astype(np.longdouble)
    assert ((0 <= index) & (index < cost.shape[2])).all()
    best = cost.argmin(-1)

    def at(values: Floats, k: NDArray[np.int64]) -> Floats:
        return np.take_along_axis(values, k[..., None], -1)[..., 0]

    finite = np.isfinite(at(cost, best))
    assert (index[~finite] == 0).all() and (distance[~finite] == np.inf).all()
    with np.errstate(invalid="ignore"):
        excess = at(cost, index) - at(cost, best)
        slack = x.shape[-1] * 2.0**-50 * at(size, index)
        error = np.abs(distance - at(cost, index))
        # 2^-149: the spacing of the smallest numbers of float32.
        allowed = slack + 2.0**-24 * np.abs(at(cost, index)) + 2.0**-149
    assert (excess <= slack)[finite].all(), "a codeword that is not the nearest"
    # The distance may be beyond float32 where the index is not.
    error[(distance == np.inf) & (at(cost, index) > np.finfo(np.float32).max)] = 0
    assert (error <= allowed)[finite].all(), "a cost that is farther off than rounding explains"
    return found.index


def assert_equal_to_brute_force(
    x: Tensor,
    codebook: Tensor,
    bias: Tensor | None = None,
    table: Tensor | None = None,
    *,
    backend: Backend,
) -> None:
    """For data on which every cost is exact: the lowest index of the least cost, and that cost."""
    found = nearest_codeword(x, codebook, bias, bias_table=table, backend=backend, return_distance=True)
    assert isinstance(found, Nearest)
    cost, _ = brute_force(x, codebook, bias, table)
    np.testing.assert_array_equal(found.index.numpy().reshape(cost.shape[:2]), cost.argmin(-1))
    np.testing.assert_array_equal(found.distance.numpy().reshape(cost.shape[:2]), cost.min(-1))


# --- random data ---------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("size", [1, 7, 16, 17, 256, 1000])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 8, 17])
def test_shapes(backend: Backend, dim: int, size: int) -> None:
    for count in (0, 1, 17):
        x = randn(3, count, dim, seed=dim)
        codebook = randn(3, size, dim, seed=size + 100)
        assert_nearest(x, codebook, backend=backend)
        assert_nearest(x[0], codebook[0], randn(size, seed=1), backend=backend)
        exact = integers(3, count, dim, seed=2), integers(3, size, dim, seed=3)
        assert_equal_to_brute_force(*exact, integers(3, size, seed=4), backend=backend)


@each_backend
@pytest.mark.parametrize("dim", [1, 3, 4, 8])
def test_clustered(backend: Backend, dim: int) -> None:
    codebook = randn(2, 61, dim, seed=1)
    own = tables_for(2, 500, 61, seed=2)
    x = torch.stack([codebook[g, own[g]] for g in range(2)]) + 1e-4 * randn(2, 500, dim, seed=3)
    index = assert_nearest(x, codebook, backend=backend)
    assert (index == own).float().mean() > 0.98


@each_backend
@pytest.mark.parametrize("dim", [1, 3, 4, 8, 17])
@pytest.mark.parametrize("offset", [20.0, -1e4])
def test_offset_data_does_not_cancel(backend: Backend, offset: float, dim: int) -> None:
    x, codebook = randn(300, dim, seed=1) + offset, randn(256, dim, seed=2) + offset
    assert_nearest(x, codebook, backend=backend)
    assert_nearest(x, codebook, 0.1 * randn(256, seed=3).abs(), backend=backend)


@each_backend
def test_vectors_that_are_codewords(backend: Backend) -> None:
    codebook = randn(300, 5, seed=1) + 100
    index = assert_nearest(codebook, codebook, backend=backend)
    assert torch.equal(index, torch.arange(300))


@each_backend
@pytest.mark.parametrize("scale", [1e-15, 1e-8, 1e8, 1e17])
def test_range_of_float32(backend: Backend, scale: float) -> None:
    assert_nearest(scale * randn(100, 4, seed=1), scale * randn(33, 4, seed=2), backend=backend)


@each_backend
def test_many_vectors_and_groups(backend: Backend) -> None:
    x, codebook = randn(2, MANY, MANY_DIM, seed=1), randn(2, MANY_SIZE, MANY_DIM, seed=2)
    assert_nearest(x, codebook, randn(2, MANY_SIZE, seed=3), backend=backend)
    no_groups = nearest_codeword(x[:0], codebook[:0], backend=backend)
    assert isinstance(no_groups, Tensor) and no_groups.shape == (0, MANY)


@each_backend
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-19, 1e19, 1e25])
def test_squares_beyond_the_range_of_float32(backend: Backend, scale: float) -> None:
    x, codebook = scale * randn(100, 5, seed=1), scale * randn(33, 5, seed=2)
    assert_nearest(x, codebook, backend=backend)
    codebook[7] = 3
    assert_nearest(x, codebook, backend=backend)


@each_backend
@pytest.mark.parametrize("dim", [1, 2, 4, 7, 8, 64, 65, 200])
def test_gaps_of_one_bit(backend: Backend, dim: int) -> None:
    # Codewords that differ in the last bit of one component: in float32 scores they are the same.
    x = randn(200, dim, seed=1)
    codebook = randn(1, dim, seed=2).expand(40, dim).contiguous()
    pick = torch.randint(0, dim, (40,), generator=torch.Generator().manual_seed(3))
    rows = torch.arange(40)
    codebook[rows, pick] = torch.nextafter(codebook[rows, pick], torch.tensor(torch.inf))
    codebook[rows[::2], pick[::2]] *= 1 + 2.0**-20
    # Others move the mean away from them, so that the difference does not survive its subtraction.
    codebook = torch.cat([codebook, randn(40, dim, seed=4) + 30])
    found = assert_nearest(x, codebook, backend=backend)
    # The first pass by itself is wrong here.
    shifted = codebook - codebook.mean(0)
    scores = shifted.square().sum(1) / 2 - (x - codebook.mean(0)) @ shifted.T
    assert not torch.equal(scores.argmin(1), found), "data that is too easy to show anything"


@each_backend
@pytest.mark.parametrize("dim", [1, 3, 4, 64])
def test_vectors_halfway_between_codewords(backend: Backend, dim: int) -> None:
    codebook = randn(60, dim, seed=1)
    pairs = torch.randint(0, 60, (2, 300), generator=torch.Generator().manual_seed(2))
    x = (codebook[pairs[0]] + codebook[pairs[1]]) / 2
    assert_nearest(x, codebook, backend=backend)
    # Exactly halfway: whole numbers with even sums.
    whole = integers(60, dim, seed=3) * 2
    assert_equal_to_brute_force((whole[pairs[0]] + whole[pairs[1]]) / 2, whole, backend=backend)


@each_backend
def test_outlying_codewords_and_vectors(backend: Backend) -> None:
    for far in (1e3, 1e8, 1e15, 1e30, 3e38):
        x, codebook = randn(120, 6, seed=1), randn(50, 6, seed=2)
        codebook[13] = far
        assert_nearest(x, codebook, backend=backend)
        x[::7] *= far / 4
        assert_nearest(x, codebook, backend=backend)


@each_backend
@pytest.mark.parametrize("huge", [1e10, 1e29, 1e30, 1e35, 3e38])
def test_huge_finite_biases(backend: Backend, huge: float) -> None:
    bias = randn(41, seed=1)
    bias[::3] += huge
    assert_nearest(randn(100, 4, seed=2), randn(41, 4, seed=3), bias, backend=backend)
    assert_nearest(randn(100, 4, seed=2), randn(41, 4, seed=3), -bias, backend=backend)
    assert_nearest(randn(100, 4, seed=2), randn(41, 4, seed=3), bias.abs() + huge, backend=backend)


@each_backend
@pytest.mark.parametrize("dim", [4, 8, 63])
def test_codewords_that_integers_round_apart(backend: Backend, dim: int) -> None:
    # In units of the 16-bit pass: `near` is rounded down throughout, `other` up and down, and the
    # vectors not at all. Their order is then that of the rounding, unless the bound knows of it.
    step = (1 + 1e-6) / 16383 * (8 / dim) ** 0.5
    near = torch.full((dim,), 5000.49).double()
    other = torch.tensor([5000.56, 5000.38] * dim).double()[:dim]
    far = torch.zeros(dim).double()
    far[0] = 16383 * (dim / 8) ** 0.5
    codebook = (torch.stack([far, -far, other, -other, other, -other, near, -near]) * step).float()
    x = (torch.full((40, dim), 11000.0) * step).float()
    assert_nearest(x, codebook, backend=backend)
    assert_nearest(-x, codebook.flip(0).repeat_interleave(5, 0), backend=backend)


@each_backend
def test_sums_that_round_one_way(backend: Backend) -> None:
    # Each of 63 terms of `up` is rounded up to a unit in the last place of the sum, each of `down`
    # to nothing: in float32 the first seems to have the larger product, by 51 units.
    unit = 2.0**-23
    up, down = torch.full((2, 64), 0.6 * unit).unbind()
    down = down * 0.75
    up[0], down[0] = 1, 1 + 12 * unit
    codebook = torch.cat([up.expand(8, 64), down.expand(8, 64)])
    codebook = torch.cat([codebook, -codebook])
    bias = -codebook.double().square().sum(1).float()
    index = assert_nearest(torch.ones(20, 64), codebook, bias, backend=backend)
    assert (index == 8).all()


@each_backend
@pytest.mark.parametrize("dim", [3, 4, 70])
def test_components_whose_squares_underflow(backend: Backend, dim: int) -> None:
    small = 3e-20 * randn(40, dim, seed=1)
    x = 1e-20 * randn(100, dim, seed=2)
    assert_nearest(x, small, backend=backend)
    small[0, 0] = 1
    assert_nearest(x, small, backend=backend)


@each_backend
def test_minus_infinity_wins(backend: Backend) -> None:
    bias = randn(41, seed=1)
    bias[[17, 33]] = -torch.inf
    found = nearest_codeword(
        randn(9, 4, seed=2), randn(41, 4, seed=3), bias, backend=backend, return_distance=True
    )
    assert (found.index == 17).all() and (found.distance == -torch.inf).all()


@each_backend
@pytest.mark.parametrize("dim", [64, 129, 1024])
def test_long_vectors(backend: Backend, dim: int) -> None:
    x, codebook = randn(70, dim, seed=1), randn(90, dim, seed=2)
    assert_nearest(x, codebook, randn(90, seed=3), backend=backend)
    assert_nearest(x + 20, codebook + 20, backend=backend)
    codebook[45:] = codebook[:45]
    assert int(assert_nearest(x, codebook, backend=backend).max()) < 45


@each_backend
def test_large_codebook(backend: Backend) -> None:
    # More than one part of the codebook, of which the first pass keeps one in the cache.
    x, codebook = randn(33, 16, seed=1), randn(20_000, 16, seed=2)
    codebook[10_000:10_010] = codebook[:10]
    index = assert_nearest(torch.cat([x, codebook[10_000:10_010]]), codebook, backend=backend)
    assert index[33:].tolist() == list(range(10))


@needs_native
def test_few_vectors_are_rescored() -> None:
    for offset in (0, 20):
        x, codebook = randn(4000, 64, seed=1) + offset, randn(1024, 64, seed=2) + offset
        found = nearest_codeword(x, codebook, backend="native", return_stats=True)
        assert isinstance(found, Nearest) and found.stats is not None
        assert 0 < int(found.stats.rescored) < 200


@each_backend
def test_fast_is_right_where_it_is_easy(backend: Backend) -> None:
    x, codebook = randn(2, 300, 12, seed=1), randn(2, 100, 12, seed=2)
    bias, table = randn(2, 5, 100, seed=3), tables_for(2, 300, 5, seed=4)
    x[0, 3] = torch.nan
    exact = nearest_codeword(x, codebook, bias, bias_table=table, backend=backend)
    fast = nearest_codeword(
        x,
        codebook,
        bias,
        bias_table=table,
        precision="fast",
        backend=backend,
        return_distance=True,
        return_stats=True,
    )
    assert torch.equal(fast.index, exact)
    distance = nearest_codeword(
        x, codebook, bias, bias_table=table, backend=backend, return_distance=True
    ).distance
    assert torch.equal(fast.distance, distance)


# --- NumPy ---------------------------------------------------------------------------------


@each_backend
def test_numpy_in_numpy_out(backend: Backend) -> None:
    x, codebook = randn(2, 40, 4, seed=1), randn(2, 20, 4, seed=2)
    bias, table = randn(2, 5, 20, seed=3), tables_for(2, 40, 5, seed=4)
    expected = nearest_codeword(
        x, codebook, bias, bias_table=table, backend=backend, return_distance=True
    )
    arrays = x.numpy(), codebook.numpy(), bias.numpy()
    index = nearest_codeword(*arrays, bias_table=table.numpy(), backend=backend)
    assert isinstance(index, np.ndarray) and index.dtype == np.int64
    np.testing.assert_array_equal(index, expected.index.numpy())
    found = nearest_codeword(
        *arrays, bias_table=table.numpy(), backend=backend, return_distance=True, return_stats=True
    )
    assert isinstance(found.distance, np.ndarray) and found.stats.vectors == 80
    np.testing.assert_array_equal(found.distance, expected.distance.numpy())
    # Reversed, read-only and in double precision: what NumPy users have.
    reversed_x = arrays[0][:, ::-1]
    reversed_x.flags.writeable = False
    np.testing.assert_array_equal(
        nearest_codeword(reversed_x, arrays[1], backend=backend),
        nearest_codeword(x.flip(1), codebook, backend=backend).numpy(),
    )
    doubles = nearest_codeword(arrays[0].astype(float), arrays[1].astype(float))
    np.testing.assert_array_equal(doubles, nearest_codeword(x, codebook, backend="torch").numpy())


# --- ties ----------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 8])
def test_ties_of_exact_costs_go_to_the_lowest_index(backend: Backend, dim: int) -> None:
    x = integers(4, 200, dim, seed=1, low=-1, high=2)
    codebook = integers(4, 100, dim, seed=2, low=-1, high=2)
    cost, _ = brute_force(x, codebook, None, None)
    assert ((cost == cost.min(-1, keepdims=True)).sum(-1) > 1).any()
    assert_equal_to_brute_force(x, codebook, backend=backend)
    bias = integers(4, 100, seed=3, low=0, high=3)
    assert_equal_to_brute_force(x, codebook, bias, backend=backend)
    bias = integers(4, 6, 100, seed=4, low=0, high=3)
    table = tables_for(4, 200, 6, seed=5)
    assert_equal_to_brute_force(x, codebook, bias, table, backend=backend)


@each_backend
@pytest.mark.parametrize("size", [5, 16, 33])
def test_copies_of_a_codeword_are_never_chosen(backend: Backend, size: int) -> None:
    distinct = randn(size, 4, seed=1)
    source = torch.randint(0, size, (200,), generator=torch.Generator().manual_seed(2))
    source = torch.cat([torch.arange(size), source])
    index = assert_nearest(randn(500, 4, seed=3), distinct[source], backend=backend)
    assert int(index.max()) < size
    reverse = assert_nearest(randn(500, 4, seed=3), distinct[source.flip(0)], backend=backend)
    first = {int(k): i for i, k in reversed(list(enumerate(source.flip(0))))}
    assert all(first[int(source.flip(0)[i])] == i for i in reverse.tolist())


@each_backend
@pytest.mark.parametrize("size", [1, 3, 16, 40, 257])
def test_equal_codewords_give_index_zero(backend: Backend, size: int) -> None:
    index = nearest_codeword(randn(50, 3, seed=1), torch.ones(size, 3), backend=backend)
    assert isinstance(index, Tensor) and not index.any()


# --- biases --------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("index_type", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_bias_tables(backend: Backend, index_type: torch.dtype) -> None:
    x, codebook = randn(3, 400, 4, seed=1), randn(3, 50, 4, seed=2)
    bias, table = 2 * randn(3, 7, 50, seed=3), tables_for(3, 400, 7, seed=4)
    bias[:, :, ::3] = torch.inf
    index = assert_nearest(x, codebook, bias, table.to(index_type), backend=backend)
    assert (index % 3).all()
    by_table = torch.stack([bias[g, table[g]] for g in range(3)])
    for g, n in ((0, 0), (1, 17), (2, 399)):
        alone = nearest_codeword(x[g, n : n + 1], codebook[g], by_table[g, n], backend=backend)
        assert isinstance(alone, Tensor) and int(alone) == index[g, n]


@each_backend
def test_one_table_is_a_plain_bias(backend: Backend) -> None:
    x, codebook, bias = randn(2, 40, 4, seed=1), randn(2, 9, 4, seed=2), randn(2, 1, 9, seed=3)
    table = torch.zeros(2, 40, dtype=torch.int64)
    by_table = assert_nearest(x, codebook, bias, table, backend=backend)
    assert torch.equal(by_table, assert_nearest(x, codebook, bias[:, 0], backend=backend))


@each_backend
def test_a_large_bias_decides_alone(backend: Backend) -> None:
    bias = torch.full((31,), 1e6)
    bias[[12, 29]] = -1e6
    index = assert_nearest(randn(60, 2, seed=1) / 1e3, torch.zeros(31, 2), bias, backend=backend)
    assert (index == 12).all()


@each_backend
@pytest.mark.parametrize("allowed", [0, 6, 15, 16, 36])
def test_infinite_bias_is_never_chosen(backend: Backend, allowed: int) -> None:
    bias = torch.full((37,), torch.inf)
    bias[allowed] = 5.0
    codebook = randn(37, 4, seed=1)
    codebook[allowed] += 1000
    index = assert_nearest(randn(100, 4, seed=2), codebook, bias, backend=backend)
    assert (index == allowed).all()


@each_backend
@pytest.mark.parametrize("size", [1, 15, 16, 37])
def test_all_biases_infinite_give_index_zero(backend: Backend, size: int) -> None:
    bias = torch.full((size,), torch.inf)
    assert_nearest(randn(20, 4, seed=1), randn(size, 4, seed=2), bias, backend=backend)
    # One table of the two is all infinite.
    bias2 = torch.stack([bias, torch.zeros(size)])[None]
    x, codebook = randn(1, 20, 4, seed=1), randn(1, size, 4, seed=2)
    table = tables_for(1, 20, 2, seed=3)
    index = assert_nearest(x, codebook, bias2, table, backend=backend)
    assert not index[table == 0].any()


# --- NaN and infinity ----------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("dim", [1, 3, 4])
def test_vectors_with_nan_get_index_zero(backend: Backend, dim: int) -> None:
    x, codebook = randn(90, dim, seed=1), randn(37, dim, seed=2)
    broken = x.clone()
    broken[::3, dim - 1] = torch.nan
    index = assert_nearest(broken, codebook, backend=backend)
    assert not index[::3].any()
    whole = torch.arange(90) % 3 != 0
    assert torch.equal(index[whole], assert_nearest(x, codebook, backend=backend)[whole])


@each_backend
def test_codewords_with_nan_or_infinity_are_never_chosen(backend: Backend) -> None:
    codebook = randn(37, 4, seed=1)
    codebook[0, 1], codebook[20, 2], codebook[36, 0] = torch.nan, torch.inf, -torch.inf
    index = assert_nearest(randn(200, 4, seed=2), codebook, backend=backend)
    assert not set(index.tolist()) & {0, 20, 36}


@each_backend
def test_infinite_vectors_get_index_zero(backend: Backend) -> None:
    x = torch.tensor([[torch.inf, 0.0], [0.0, -torch.inf]])
    assert not assert_nearest(x, randn(20, 2, seed=1), backend=backend).any()


# --- forms of the arguments ----------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(backend: Backend, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and backend == "native":
        with pytest.raises(TypeError, match="does not take torch.float64"):
            nearest_codeword(torch.zeros(3, 4).double(), torch.zeros(5, 4).double(), backend=backend)
        backend = "auto"
    for offset in (0, 20):
        x = (randn(2, 200, 4, seed=1).double() + offset).to(dtype)
        codebook = (randn(2, 100, 4, seed=2).double() + offset).to(dtype)
        assert_nearest(x, codebook, backend=backend)
        for bias in (randn(2, 100, seed=3), randn(2, 100, seed=3).to(dtype)):
            assert_nearest(x, codebook, bias, backend=backend)
    exact = integers(2, 200, 4, seed=4).to(dtype), integers(2, 100, 4, seed=5).to(dtype)
    assert_equal_to_brute_force(*exact, backend=backend)


@each_backend
def test_leading_dimensions(backend: Backend) -> None:
    x, codebook, bias = randn(2, 3, 5, 4, seed=1), randn(20, 4, seed=2), randn(20, seed=3)
    index = assert_nearest(x, codebook, bias, backend=backend)
    assert index.shape == (2, 3, 5)
    flat = nearest_codeword(x.reshape(-1, 4), codebook, bias, backend=backend)
    assert isinstance(flat, Tensor) and torch.equal(flat, index.reshape(-1))
    assert assert_nearest(x[:, :0], codebook, bias, backend=backend).shape == (2, 0, 5)


@each_backend
def test_memory_layouts(backend: Backend) -> None:
    x, codebook = randn(3, 40, 4, seed=1), randn(3, 20, 4, seed=2)
    bias, table = randn(3, 5, 20, seed=3), tables_for(3, 40, 5, seed=4)
    expected = assert_nearest(x, codebook, bias, table, backend=backend)

    def strided(t: Tensor) -> Tensor:
        """The same values: last dimension outermost in memory, every second row of a larger one."""
        wide = torch.zeros(*reversed([2 * n for n in t.shape]), dtype=t.dtype)
        view = wide.permute(*reversed(range(t.ndim)))[tuple(slice(None, None, 2) for _ in t.shape)]
        view.copy_(t)
        assert not view.is_contiguous()
        return view

    scattered = (strided(x), strided(codebook), strided(bias), strided(table))
    assert torch.equal(assert_nearest(*scattered, backend=backend), expected)

    # Expanded: one vector, one codebook, one bias, one table for all.
    index = assert_nearest(
        x[:1, :1].expand(3, 40, 4),
        codebook[:1].expand(3, 20, 4),
        bias[:1].expand(3, 5, 20),
        table[:1, :1].expand(3, 40),
        backend=backend,
    )
    assert (index == expected[0, 0]).all()


@each_backend
def test_arguments_are_left_alone_and_results_carry_no_gradient(backend: Backend) -> None:
    x, codebook = randn(2, 30, 4, seed=1), randn(2, 9, 4, seed=2)
    bias = randn(2, 9, seed=3)
    before = [t.clone() for t in (x, codebook, bias)]
    found = nearest_codeword(
        x.requires_grad_(),
        codebook.requires_grad_(),
        bias.requires_grad_(),
        backend=backend,
        return_distance=True,
    )
    assert isinstance(found, Nearest)
    assert not found.index.requires_grad and not found.distance.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, (x, codebook, bias), strict=True))


# --- backends, threads, instruction sets ---------------------------------------------------


@pytest.fixture
def restore_threads() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@each_backend
@pytest.mark.usefixtures("restore_threads")
def test_thread_counts_agree(backend: Backend) -> None:
    results = {}
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results[threads] = probe(backend)
    assert results[1] == results[2] == results[3]


@needs_native
def test_auto_is_native_on_the_cpu() -> None:
    # The reference has no first pass that could leave a vector undecided: that tells them apart.
    arguments = randn(100, 8, seed=1), torch.zeros(50, 8)
    rescored = {}
    for backend in ("auto", "native", "torch"):
        found = nearest_codeword(*arguments, backend=backend, return_stats=True)
        assert isinstance(found, Nearest) and found.stats is not None
        rescored[backend] = int(found.stats.rescored)
    assert rescored == {"auto": 100, "native": 100, "torch": 0}


def probe(backend: Backend = "native") -> dict[str, str]:
    """Digests of indices and costs of some searches, the same on every instruction set."""
    digests = {}
    for dim, size in ((1, 17), (2, 256), (3, 100), (4, 256), (8, 1000), (17, 33), (64, 300), (100, 90)):
        count = MANY if (dim, size) == (MANY_DIM, MANY_SIZE) else 50
        x, codebook = randn(2, count, dim, seed=1), randn(2, size, dim, seed=2)
        bias, table = randn(2, 5, size, seed=3), tables_for(2, count, 5, seed=4)
        bias[:, 1] = torch.inf
        x[0, 7] = torch.nan
        codebook[:, size // 2 :] = codebook[:, : size - size // 2]
        found = nearest_codeword(
            x, codebook, bias, bias_table=table, backend=backend, return_distance=True
        )
        assert isinstance(found, Nearest)
        data = found.index.numpy().tobytes() + found.distance.numpy().tobytes()
        digests[f"{dim} x {size}"] = hashlib.sha256(data).hexdigest()
        # So far away that float64 cannot tell the codewords apart, though a first pass might.
        far = nearest_codeword(1e17 * x, codebook, backend=backend)
        digests[f"{dim} x {size}, far"] = hashlib.sha256(far.numpy().tobytes()).hexdigest()
    return digests


@pytest.fixture(scope="module")
def probes() -> dict[str, tuple[str, str]]:
    """What `probe` prints under each instruction set."""
    return run_probes(__file__, (*ISAS, "nonsense"))


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("threads", [1, 3])
def test_memory_that_runs_out_in_a_thread(threads: int) -> None:
    # 50 MB for each thread's panels, of 40 that there are.
    code = f"""
import resource, torch
from vqcodec_kernels import nearest_codeword
torch.set_num_threads({threads})
nearest_codeword(torch.zeros(4096, 8), torch.zeros(300, 8), backend="native")
x, codebook = torch.zeros(1, 1).expand(64, 1 << 18), torch.zeros(8, 1 << 18)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (40 << 20),) * 2)
try:
    nearest_codeword(x, codebook, backend="native")
except MemoryError:
    print("MemoryError")
"""
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "MemoryError", done.stderr


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets_agree(isa: str, probes: dict[str, tuple[str, str]]) -> None:
    assert_probe(isa, probes[isa], probe())


@needs_native
def test_unknown_instruction_set(probes: dict[str, tuple[str, str]]) -> None:
    output, errors = probes["nonsense"]
    expected = "VQCODEC_ISA=nonsense: expected portable, avx2, avx512, avx512_bf16 or amx"
    assert not output and expected in errors


@pytest.mark.parametrize(("wanted", "built", "found"), [("0", True, False), ("auto", False, False)])
def test_fallback_without_the_extension(
    monkeypatch: pytest.MonkeyPatch, wanted: str, built: bool, found: bool
) -> None:
    monkeypatch.setenv("VQCODEC_NATIVE", wanted)
    if not built:
        hide_extension(monkeypatch)
    assert (_extension.load_native.__wrapped__() is not None) == found
    use_extension(monkeypatch, None)
    x, codebook = randn(2, 30, 4, seed=1), randn(2, 9, 4, seed=2)
    reference = nearest_codeword(x, codebook, backend="torch")
    assert torch.equal(nearest_codeword(x, codebook), reference)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="backend='torch'"):
        nearest_codeword(x, codebook, backend="native")


def test_required_extension_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_extension(monkeypatch)
    monkeypatch.setenv("VQCODEC_NATIVE", "1")
    with pytest.raises(RuntimeError, match="not built"):
        _extension.load_native.__wrapped__()
    monkeypatch.setenv("VQCODEC_NATIVE", "yes")
    with pytest.raises(RuntimeError, match="expected auto, 0 or 1"):
        _extension.load_native.__wrapped__()


def hide_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("vqcodec_kernels._native", raising=False)
    monkeypatch.setitem(sys.modules, "vqcodec_kernels._native", None)


def use_extension(monkeypatch: pytest.MonkeyPatch, extension: object | None) -> None:
    # By import_module: in the package, the function hides the module of its name.
    module = importlib.import_module("vqcodec_kernels.nearest_codeword")
    monkeypatch.setattr(module, "load_native", lambda: extension)


# --- errors --------------------------------------------------------------------------------

X, CODES = torch.zeros(2, 5, 4), torch.zeros(2, 9, 4)
TABLES, TABLE = torch.zeros(2, 3, 9), torch.zeros(2, 5, dtype=torch.int64)


def filled(value: int) -> Tensor:
    """TABLE with one entry changed."""
    table = TABLE.clone()
    table[1, 4] = value
    return table


ERRORS: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("dimension", ValueError, "does not match codebook", {"codebook": CODES[..., :3]}),
    ("groups", ValueError, "does not match codebook", {"codebook": CODES[:1]}),
    ("K=0", ValueError, "empty", {"codebook": CODES[:, :0]}),
    ("D=0", ValueError, "empty", {"x": X[..., :0], "codebook": CODES[..., :0]}),
    ("x 1-D", ValueError, "expected x", {"x": X[0, 0], "codebook": CODES[0]}),
    ("x 2-D for groups", ValueError, "expected x", {"x": X[0]}),
    ("x 4-D for groups", ValueError, "expected x", {"x": X[None]}),
    ("codebook 1-D", ValueError, "expected x", {"codebook": CODES[0, 0]}),
    ("codebook 4-D", ValueError, "expected x", {"codebook": CODES[None]}),
    ("x integer", TypeError, "x must be floating", {"x": X.long()}),
    ("x complex", TypeError, "x must be floating", {"x": X.to(torch.complex64)}),
    ("codebook integer", TypeError, "codebook must be floating", {"codebook": CODES.int()}),
    ("bias integer", TypeError, "bias must be floating", {"bias": TABLES[:, 0].int()}),
    ("x 8-bit", TypeError, "x must be floating", {"x": X.to(torch.float8_e4m3fn)}),
    ("mixed dtypes", TypeError, "must agree", {"x": X.half()}),
    ("bias of another dtype", TypeError, "bias must be torch.float32", {"bias": TABLES[:, 0].half()}),
    ("precision", ValueError, "got 'exactly'", {"precision": "exactly"}),
    ("x array", TypeError, "codebook is not: Tensor", {"x": X.numpy()}),
    ("codebook array", TypeError, "codebook must be a torch.Tensor", {"codebook": CODES.numpy()}),
    ("x strings", TypeError, "x has dtype <U1", {"x": np.array([["a"]]), "codebook": CODES[0].numpy()}),
    ("x None", TypeError, "x must be a torch.Tensor", {"x": None}),
    ("codebook list", TypeError, "codebook must be a torch.Tensor", {"codebook": [[0.0]]}),
    ("bias float", TypeError, "bias must be a torch.Tensor", {"bias": 1.0}),
    ("bias shape", ValueError, "bias", {"bias": TABLES[:, 0, :8]}),
    ("bias shared by groups", ValueError, "bias", {"bias": TABLES[0, 0]}),
    ("bias groups", ValueError, "bias", {"bias": torch.zeros(3, 9)}),
    ("bias 0-D", ValueError, "bias", {"bias": torch.tensor(1.0)}),
    ("bias 4-D", ValueError, "bias", {"bias": torch.zeros(2, 9, 1, 1)}),
    ("no tables", ValueError, "bias", {"bias": TABLES[:, :0], "bias_table": TABLE}),
    ("bias without table", ValueError, "go together", {"bias": TABLES}),
    ("table without bias", ValueError, "go together", {"bias_table": TABLE}),
    ("table, one bias", ValueError, "go together", {"bias": TABLES[:, 0], "bias_table": TABLE}),
    ("table shape", ValueError, "must be", {"bias": TABLES, "bias_table": TABLE[:, :4]}),
    ("table 1-D", ValueError, "must be", {"bias": TABLES, "bias_table": TABLE[0]}),
    ("table float", TypeError, "integers", {"bias": TABLES, "bias_table": TABLE.float()}),
    ("table bool", TypeError, "integers", {"bias": TABLES, "bias_table": TABLE.bool()}),
    ("table list", TypeError, "bias_table must be", {"bias": TABLES, "bias_table": [[0] * 5] * 2}),
    ("table -1", ValueError, r"\[0, 3\)", {"bias": TABLES, "bias_table": filled(-1)}),
    ("table T", ValueError, r"\[0, 3\)", {"bias": TABLES, "bias_table": filled(3)}),
    ("table 2^32", ValueError, r"\[0, 3\)", {"bias": TABLES, "bias_table": filled(1 << 32)}),
    ("device", ValueError, "is on", {"codebook": CODES.to("meta")}),
    ("bias device", ValueError, "is on", {"bias": TABLES[:, 0].to("meta")}),
    ("table device", ValueError, "is on", {"bias": TABLES, "bias_table": TABLE.to("meta")}),
]


@each_backend
@pytest.mark.parametrize(
    ("error", "match", "change"), [pytest.param(*case[1:], id=case[0]) for case in ERRORS]
)
def test_errors(backend: Backend, error: type[Exception], match: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"x": X, "codebook": CODES} | change
    with pytest.raises(error, match=match):
        nearest_codeword(**arguments, backend=backend)


def test_backend_errors() -> None:
    with pytest.raises(ValueError, match="got 'gpu'"):
        nearest_codeword(X, CODES, backend="gpu")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="backend='torch'"):
        nearest_codeword(X.to("meta"), CODES.to("meta"), backend="native")
