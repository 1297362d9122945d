"""Vector quantisation as a layer of a network: nearest codewords, straight-through, two losses.

    x_q[n]          = codebook[index[n]],   index as `nearest_codeword` finds it
    codebook_loss   = mean (sg(x) - x_q)^2      moves the codewords to the vectors
    commitment_loss = mean (x - sg(x_q))^2      keeps the vectors near the codewords

sg stops gradients; means are over all elements. x_q is exactly the codeword, and its gradient
goes to x unchanged, as if nothing had been quantised; the codebook learns from its loss alone.

Source: A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural discrete representation learning",
NeurIPS 2017, equation (3): loss = task(x_q) + codebook_loss + beta * commitment_loss.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqcodec_kernels.nearest_codeword import Backend, Precision, nearest_codeword


class Quantized(NamedTuple):
    """Result of `quantize`: x_q as x, index int64 (..., N), and two scalars, float64 for float64
    vectors, else float32. The gradient of codebook_loss goes to the codebook only, those of x_q
    and commitment_loss to x only."""

    x_q: Tensor
    index: Any  # hides tuple.index
    codebook_loss: Tensor
    commitment_loss: Tensor


def quantize(
    x: Tensor,
    codebook: Tensor,
    bias: Tensor | None = None,
    *,
    bias_table: Tensor | None = None,
    precision: Precision = "exact",
    backend: Backend = "auto",
) -> Quantized:
    """Replaces every vector by its nearest codeword, with gradients to train both.

    The arguments are those of `nearest_codeword`, torch tensors only: x (..., N, D) with codebook
    (K, D), or (G, N, D) with (G, K, D). The bias moves the choice, and is not part of the losses,
    which are 0 where there are no vectors. A vector that gets index -1 (an invalid entry of
    bias_table on a GPU) gets NaN. Raises as `nearest_codeword` does.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    index = nearest_codeword(
        x, codebook, bias, bias_table=bias_table, precision=precision, backend=backend
    )
    # Wide before the look-up, so that its gradient, too, is summed wide and rounded once.
    wide = torch.promote_types(x.dtype, torch.float32)
    codewords = _look_up(codebook.to(wide), index)
    if bias_table is not None:
        codewords = torch.where(index.unsqueeze(-1) >= 0, codewords, torch.nan)
    vectors = x.to(wide)
    return Quantized(
        _StraightThrough.apply(x, codewords.detach()),
        index,
        _mean_square(vectors.detach() - codewords),
        _mean_square(vectors - codewords.detach()),
    )


class _StraightThrough(torch.autograd.Function):
    """Value of the codewords, gradient of x. As x + (codewords - x).detach() it would round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codewords: Tensor) -> Tensor:
        return codewords.to(x.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _look_up(codebook: Tensor, index: Tensor) -> Tensor:
    """codebook[index] for every group; -1 reads the first codeword."""
    row = index.clamp_min(0)
    if codebook.ndim == 3:
        groups, size, _ = codebook.shape
        row = row + torch.arange(groups, device=index.device).unsqueeze(1) * size
    flat = codebook.reshape(codebook.shape[:-1].numel(), codebook.shape[-1])
    return flat.index_select(0, row.reshape(row.numel())).reshape(*index.shape, codebook.shape[-1])


def _mean_square(difference: Tensor) -> Tensor:
    return difference.square().sum() / max(1, difference.numel())
