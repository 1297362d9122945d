"""Tests of vqcodec_kernels.quantize: values against the search, gradients against the formula."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vqcodec_kernels import codebook_stats, nearest_codeword, quantization, quantize

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# (shape of x, shape of the codebook)
SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((1, 1), (1, 1)),
    ((101, 3), (7, 3)),
    ((2, 3, 5, 4), (13, 4)),
    ((3, 17, 5), (3, 11, 5)),
    ((1, 1, 1), (1, 1, 1)),
]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chosen(codebook: Tensor, index: Tensor) -> Tensor:
    """codebook[index], group for group."""
    if codebook.ndim == 2:
        return codebook[index]
    return torch.stack([codebook[g, index[g]] for g in range(len(codebook))])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", SHAPES)
def test_values(shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: torch.dtype) -> None:
    x, codebook = randn(*shapes[0], seed=1).to(dtype), randn(*shapes[1], seed=2).to(dtype)
    found = quantize(x.requires_grad_(), codebook.requires_grad_())
    assert torch.equal(found.index, nearest_codeword(x, codebook))
    assert torch.equal(found.x_q, chosen(codebook, found.index))
    assert found.x_q.dtype == dtype and found.x_q.shape == x.shape
    expected = (x.double() - chosen(codebook.double(), found.index)).square().mean().item()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for loss in (found.codebook_loss, found.commitment_loss):
        assert loss.dtype == wide and loss.shape == ()
        assert loss.item() == pytest.approx(expected, rel=1e-12 if wide == torch.float64 else 1e-6)


def test_bias_and_tables_move_the_choice_only() -> None:
    x, codebook = randn(2, 50, 3, seed=1), randn(2, 9, 3, seed=2)
    bias = 5 * randn(2, 4, 9, seed=3)
    table = torch.arange(100).reshape(2, 50) % 4
    for options in ({"bias": bias[:, 0]}, {"bias": bias, "bias_table": table}):
        found = quantize(x, codebook, **options)
        assert torch.equal(found.index, nearest_codeword(x, codebook, **options))
        assert not torch.equal(found.index, nearest_codeword(x, codebook))
        assert torch.equal(found.x_q, chosen(codebook, found.index))
        torch.testing.assert_close(found.codebook_loss, (x - found.x_q).square().mean())


def test_the_value_is_the_codeword_where_a_sum_would_round() -> None:
    x, codebook = 1e6 * randn(50, 4, seed=1), randn(9, 4, seed=2)
    found = quantize(x.requires_grad_(), codebook)
    expected = codebook[found.index]
    assert torch.equal(found.x_q, expected)
    # What the usual x + (c - x) gives differs, so that this data can tell.
    assert not torch.equal(x + (expected - x), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", SHAPES)
def test_straight_through(shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: torch.dtype) -> None:
    x = randn(*shapes[0], seed=1).to(dtype).requires_grad_()
    codebook = randn(*shapes[1], seed=2).to(dtype).requires_grad_()
    weight = randn(*shapes[0], seed=3).to(dtype)
    gradients = torch.autograd.grad(
        (quantize(x, codebook).x_q * weight).sum(), (x, codebook), allow_unused=True
    )
    assert torch.equal(gradients[0], weight)
    assert gradients[1] is None


@pytest.mark.parametrize("shapes", SHAPES)
def test_each_loss_trains_one_side(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x = randn(*shapes[0], seed=1).double().requires_grad_()
    codebook = randn(*shapes[1], seed=2).double().requires_grad_()

    # Small steps of the check change no index: the data is random.
    assert torch.autograd.gradcheck(lambda x: quantize(x, codebook.detach()).commitment_loss, (x,))
    assert torch.autograd.gradcheck(lambda c: quantize(x.detach(), c).codebook_loss, (codebook,))

    found = quantize(x, codebook)
    for loss, other in ((found.codebook_loss, x), (found.commitment_loss, codebook)):
        (gradient,) = torch.autograd.grad(loss, (other,), allow_unused=True, retain_graph=True)
        assert gradient is None
    found = quantize(x.detach(), codebook)
    assert not found.commitment_loss.requires_grad and not found.x_q.requires_grad


def test_a_step_on_the_codebook_leads_to_the_means() -> None:
    x, codebook = randn(3, 200, 4, seed=1), randn(3, 5, 4, seed=2).requires_grad_()
    found = quantize(x, codebook)
    (gradient,) = torch.autograd.grad(found.codebook_loss, (codebook,))
    counts, sums = codebook_stats(x, found.index, 5)
    assert counts.all()
    step = x.numel() / (2 * counts[:, :, None])
    torch.testing.assert_close(codebook - step * gradient, sums / counts[:, :, None], check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_accumulate_wide(dtype: torch.dtype) -> None:
    # A sum of these squares overflows float16, and stalls at 256 in bfloat16.
    x = torch.full((4096, 8), 3.0, dtype=dtype, requires_grad=True)
    codebook = torch.zeros(1, 8, dtype=dtype, requires_grad=True)
    found = quantize(x, codebook)
    assert found.codebook_loss.item() == found.commitment_loss.item() == 9.0
    gradients = torch.autograd.grad(
        found.codebook_loss + found.commitment_loss, (codebook, x), retain_graph=True
    )
    assert [g.dtype for g in gradients] == [dtype, dtype]
    assert gradients[0].tolist() == [[-0.75] * 8]  # of 4096 parts, 2 / 32768 * 3 each
    torch.testing.assert_close(gradients[1], torch.full_like(x, 6 / 32768))


@pytest.mark.parametrize(
    ("shape", "codes"), [((0, 3), (5, 3)), ((2, 0, 3), (2, 5, 3)), ((4, 0, 2, 3), (5, 3))]
)
def test_no_vectors(shape: tuple[int, ...], codes: tuple[int, ...]) -> None:
    x, codebook = torch.zeros(shape, requires_grad=True), randn(*codes, seed=1).requires_grad_()
    found = quantize(x, codebook)
    assert found.x_q.shape == shape and found.index.shape == shape[:-1]
    assert found.codebook_loss.item() == found.commitment_loss.item() == 0.0
    gradients = torch.autograd.grad(
        found.codebook_loss + found.commitment_loss + found.x_q.sum(), (x, codebook)
    )
    assert gradients[0].shape == shape and not gradients[1].any()


def test_memory_layouts() -> None:
    x, codebook = randn(3, 40, 4, seed=1), randn(3, 20, 4, seed=2)
    expected = quantize(x, codebook)
    found = quantize(
        x.permute(2, 1, 0).contiguous().permute(2, 1, 0), codebook.mT.contiguous().mT.requires_grad_()
    )
    assert torch.equal(found.x_q, expected.x_q) and torch.equal(found.index, expected.index)
    assert found.codebook_loss.item() == pytest.approx(expected.codebook_loss.item(), rel=1e-6)
    one = quantize(x[:1, :1].expand(3, 40, 4), codebook[:1].expand(3, 20, 4))
    assert (one.index == expected.index[0, 0]).all()


def test_results_share_no_memory_with_the_arguments() -> None:
    x, codebook = randn(10, 4, seed=1), randn(1, 4, seed=2)
    before = x.clone(), codebook.clone()
    quantize(x, codebook).x_q.zero_()
    quantize(codebook, codebook).x_q.zero_()
    assert torch.equal(x, before[0]) and torch.equal(codebook, before[1])


def test_what_follows_may_work_in_place() -> None:
    x, codebook = randn(10, 4, seed=1).requires_grad_(), randn(3, 4, seed=2).requires_grad_()
    expected, found = quantize(x, codebook), quantize(x, codebook)
    positive = found.x_q.relu_()
    assert torch.equal(positive, expected.x_q.relu())
    loss = positive.sum() + found.codebook_loss + found.commitment_loss
    same = expected.x_q.relu().sum() + expected.codebook_loss + expected.commitment_loss
    for a, b in zip(
        torch.autograd.grad(loss, (x, codebook)), torch.autograd.grad(same, (x, codebook)), strict=True
    ):
        assert torch.equal(a, b)


def test_vectors_without_a_table_get_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    # Only a GPU's search gives -1.
    x, codebook = randn(2, 3, 4, seed=1).requires_grad_(), randn(2, 5, 4, seed=2)
    index = torch.tensor([[0, -1, 4], [2, 2, -1]])
    monkeypatch.setattr(quantization, "nearest_codeword", lambda *args, **options: index)
    found = quantize(x, codebook, torch.zeros(2, 3, 5), bias_table=torch.zeros(2, 3).long())
    assert torch.equal(found.x_q.isnan(), (index < 0)[:, :, None].expand(2, 3, 4))
    assert torch.equal(found.x_q[index >= 0], chosen(codebook, index.clamp_min(0))[index >= 0])
    assert found.codebook_loss.isnan() and found.commitment_loss.isnan()


ERRORS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "x must be a torch.Tensor, got ndarray", {"x": randn(5, 4, seed=1).numpy()}),
    (TypeError, "x must be a torch.Tensor, got list", {"x": [[1.0, 2.0]]}),
    (TypeError, "codebook must be a torch.Tensor", {"codebook": randn(5, 4, seed=1).numpy()}),
    (TypeError, "bias must be a torch.Tensor", {"bias": 0.5}),
    (TypeError, "x must be floating", {"x": torch.zeros(5, 4, dtype=torch.int64)}),
    (TypeError, "must agree", {"x": torch.zeros(5, 4, dtype=torch.float64)}),
    (ValueError, "does not match", {"codebook": torch.zeros(6, 3)}),
    (ValueError, "go together", {"bias_table": torch.zeros(1, 5, dtype=torch.int64)}),
    (ValueError, "precision", {"precision": "best"}),
    (ValueError, "backend", {"backend": "gpu"}),
]


@pytest.mark.parametrize(("error", "match", "change"), ERRORS)
def test_errors(error: type[Exception], match: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"x": randn(5, 4, seed=1), "codebook": randn(6, 4, seed=2)} | change
    with pytest.raises(error, match=match):
        quantize(**arguments)
