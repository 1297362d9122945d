"""Tests of vqcodec_kernels.codebook_stats against NumPy's `add.at` in float64."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from vqcodec_kernels import codebook_stats, nearest_codeword

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# More elements than the sums take at a time on the CPU.
MANY, MANY_DIM = 3001, 97


def integers(*shape: int, seed: int, low: int = -100, high: int = 101) -> Tensor:
    """Whole numbers, whose sums in float64 are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator)


def expected_stats(x: Tensor, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The formula for x (G, N, D), index (G, N)."""
    groups, _, dim = x.shape
    counts, sums = np.zeros((groups, size)), np.zeros((groups, size, dim))
    for g in range(groups):
        np.add.at(counts[g], index[g].numpy(), 1)
        np.add.at(sums[g], index[g].numpy(), x[g].double().numpy())
    return torch.from_numpy(counts), torch.from_numpy(sums)


def assert_stats(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float64 and not a.requires_grad
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (3, 500, 4, 17),
        (2, 300, 1, 256),
        (2, 0, 3, 5),
        (0, 7, 3, 5),
        (2, 7, 0, 5),
        (7, 13, 11, 1),
        (2, MANY, MANY_DIM, 31),
    ],
)
def test_formula(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    groups, count, dim, size = shape
    # Half of these sums would not fit a 16-bit type.
    x = integers(groups, count, dim, seed=1).to(dtype)
    index = integers(groups, count, seed=2, low=0, high=size)
    assert_stats(codebook_stats(x, index, size), expected_stats(x, index, size))


def test_without_groups() -> None:
    x, index = integers(41, 3, seed=1).float(), integers(41, seed=2, low=0, high=5)
    counts, sums = expected_stats(x[None], index[None], 5)
    assert_stats(codebook_stats(x, index, 5), (counts[0], sums[0]))
    assert_stats(codebook_stats(x[:0], index[:0], 5), (torch.zeros(5), torch.zeros(5, 3)))


def test_forms_of_the_arguments() -> None:
    x, index = integers(2, 40, 3, seed=1).float(), integers(2, 40, seed=2, low=0, high=5)
    expected = expected_stats(x, index, 5)
    scattered = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert_stats(codebook_stats(scattered, index.T.contiguous().T, 5), expected)
    assert_stats(codebook_stats(x, index.int(), 5), expected)
    assert_stats(codebook_stats(x.clone().requires_grad_(), index, 5), expected)
    wide, wide_index = x.repeat_interleave(2, 1), index.repeat_interleave(2, 1)
    assert_stats(codebook_stats(wide[:, ::2], wide_index[:, ::2], 5), expected)
    # One vector, one index for all.
    one, same = x[:1, :1].expand(2, 40, 3), index[:1, :1].expand(2, 40)
    assert_stats(codebook_stats(one, same, 5), expected_stats(one, same, 5))


def test_sums_are_accurate() -> None:
    # 0.1 as float32 and its sum are exact in float64; sums in float32 err by 1e-4 of it.
    x, index = torch.full((1 << 16, 1), 0.1), torch.zeros(1 << 16, dtype=torch.int64)
    _, sums = codebook_stats(x, index, 3)
    assert sums[:, 0].tolist() == [float(np.float32(0.1)) * (1 << 16), 0.0, 0.0]


def test_values_that_are_not_finite_stay_with_their_codeword() -> None:
    x = torch.tensor([[1.0], [torch.nan], [2.0], [torch.inf]])
    counts, sums = codebook_stats(x, torch.tensor([0, 1, 0, 2]), 4)
    assert counts.tolist() == [2, 1, 1, 0]
    assert sums[0] == 3 and sums[1].isnan() and sums[2] == torch.inf and sums[3] == 0


@pytest.fixture
def restore_threads() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dim", [1, 3, 64])
def test_thread_counts_agree(dim: int) -> None:
    x = torch.randn(2, 20000, dim, generator=torch.Generator().manual_seed(1))
    index = integers(2, 20000, seed=2, low=0, high=37)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(codebook_stats(x, index, 37))
    assert_stats(results[1], results[0])
    assert_stats(results[2], results[0])


X, INDEX = torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.int64)


def filled(value: int) -> Tensor:
    """INDEX with one entry changed."""
    index = INDEX.clone()
    index[1, 4] = value
    return index


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        pytest.param(lambda: codebook_stats(X, INDEX[:, :4], 3), ValueError, "expected x", id="N"),
        pytest.param(lambda: codebook_stats(X, INDEX[0], 3), ValueError, "expected x", id="index 1-D"),
        pytest.param(lambda: codebook_stats(X[0], INDEX, 3), ValueError, "expected x", id="x 2-D"),
        pytest.param(lambda: codebook_stats(X[0, 0], INDEX, 3), ValueError, "expected", id="x 1-D"),
        pytest.param(lambda: codebook_stats(X[None], INDEX[None], 3), ValueError, "exp", id="x 4-D"),
        pytest.param(lambda: codebook_stats(X, filled(3), 3), ValueError, r"\[0, 3\)", id="index K"),
        # Without a check, the vector would be counted for the group before.
        pytest.param(lambda: codebook_stats(X, filled(-1), 3), ValueError, r"\[0, 3\)", id="index -1"),
        pytest.param(lambda: codebook_stats(X, INDEX, 0), ValueError, "size", id="K=0"),
        pytest.param(lambda: codebook_stats(X[:, :0], INDEX[:, :0], 0), ValueError, "size", id="N=K=0"),
        pytest.param(lambda: codebook_stats(X, INDEX.to("meta"), 3), ValueError, "is on", id="device"),
        pytest.param(lambda: codebook_stats(X, INDEX.float(), 3), TypeError, "index must", id="float"),
        pytest.param(lambda: codebook_stats(X, INDEX.bool(), 3), TypeError, "index must", id="bool"),
        pytest.param(lambda: codebook_stats(X.long(), INDEX, 3), TypeError, "x must", id="integer x"),
        pytest.param(lambda: codebook_stats(X.numpy(), INDEX, 3), TypeError, "x must", id="array"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


@needs_gpu
def test_gpu_leaves_out_what_has_no_codeword() -> None:
    x, index = integers(3, 500, 4, seed=1).float(), integers(3, 500, seed=2, low=-2, high=9)
    counts, sums = codebook_stats(x.cuda(), index.cuda(), 7)
    # As if there were a codeword for each value that the index takes.
    expected = expected_stats(x, index + 2, 11)
    assert_stats((counts, sums), (expected[0][:, 2:9], expected[1][:, 2:9]))


@needs_gpu
def test_gpu_does_not_wait() -> None:
    x, codebook = torch.randn(2, 3000, 8).cuda(), torch.randn(2, 64, 8).cuda()
    index = nearest_codeword(x, codebook)
    torch.cuda.set_sync_debug_mode("error")
    try:
        codebook_stats(x, index, 64)
    finally:
        torch.cuda.set_sync_debug_mode("default")
