"""How far a distribution over latents is from another: in closed form, and from samples alone.

    Gaussians   KL(N(m, s^2) || N(p, t^2)) = 1/2 (ln t^2 - ln s^2 + s^2 / t^2 + (m - p)^2 / t^2 - 1)
    samples     MMD^2(x, y) = mean k(x_i, x_j) + mean k(y_i, y_j) - 2 mean k(x_i, y_j)
                k(a, b) = sum over scales c of c / (c + |a - b|^2);  i != j within x and within y

Purpose: what training penalises and what studies report, differentiable. A loss that samples as well
takes `vqcodec_kernels.gaussian_sample`, which gives the sample and the sum of the first formula in one
pass; this module has it element by element, for the share of each unit.

Layout: vectors are rows (N, D); a divergence of elements has their shape.

Invariants
- The Gaussian divergence is taken without cancellation near the prior: 0 there, and never below 0 by more
  than a rounding.
- MMD^2 is the unbiased estimate (a U-statistic): its mean is 0 for equal distributions, so it may be
  negative.

Sources: D. Kingma, M. Welling, "Auto-encoding variational Bayes", ICLR 2014, appendix B; A. Gretton et
al., "A kernel two-sample test", JMLR 13, 2012, lemma 6; I. Tolstikhin, O. Bousquet, S. Gelly, B.
Schölkopf, "Wasserstein auto-encoders", ICLR 2018, section 4, for the inverse multiquadratic kernel.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def gaussian_divergence(
    mean: Tensor,
    log_variance: Tensor,
    prior_mean: Tensor | None = None,
    prior_log_variance: Tensor | None = None,
) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(prior_mean, exp(prior_log_variance))) of each element, in nats.

    mean, log_variance: floating point of one shape. The prior's: of shapes that broadcast to it; 0 where
    they are left out, so that without either the prior is N(0, 1). ValueError for shapes that do not go
    together.
    """
    if mean.shape != log_variance.shape:
        raise ValueError(f"mean is {tuple(mean.shape)}, log_variance {tuple(log_variance.shape)}")
    for name, given in (("prior_mean", prior_mean), ("prior_log_variance", prior_log_variance)):
        if given is not None and torch.broadcast_shapes(given.shape, mean.shape) != mean.shape:
            raise ValueError(f"{name} {tuple(given.shape)} does not match mean {tuple(mean.shape)}")
    square = (mean if prior_mean is None else mean - prior_mean).square()
    if prior_log_variance is not None:
        square = square * (-prior_log_variance).exp()
        log_variance = log_variance - prior_log_variance
    return 0.5 * (torch.expm1(log_variance) - log_variance + square)


def standardise_gaussian(
    mean: Tensor, log_variance: Tensor, prior_mean: Tensor, prior_log_variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and log-variance in units of the prior, under which it is N(0, 1): KL stays what it is.

    All of one shape, or the prior's of shapes that broadcast to it.
    """
    shift = (mean - prior_mean) * (-0.5 * prior_log_variance).exp()
    return shift, log_variance - prior_log_variance


def maximum_mean_discrepancy(x: Tensor, y: Tensor, *, scales: Sequence[float]) -> Tensor:
    """MMD^2 between the distributions that x (N, D) and y (M, D) were drawn from, a scalar without unit.

    scales: the c of each kernel, squared distances; with K of them the result is at most 2 K. Takes
    memory for N N + M M + N M distances. ValueError for other shapes, fewer than two rows in either, or
    scales that are not finite and positive.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.shape[1] == 0:
        raise ValueError(f"expected (N, D) and (M, D), got {tuple(x.shape)} and {tuple(y.shape)}")
    if len(x) < 2 or len(y) < 2:
        raise ValueError(
            f"an unbiased estimate needs two rows or more of each, got {len(x)} and {len(y)}"
        )
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(f"scales must be finite and positive, at least one, got {tuple(scales)}")
    within = _mean_of_others(_kernel(x, x, scales)) + _mean_of_others(_kernel(y, y, scales))
    return within - 2 * _kernel(x, y, scales).mean()


def _kernel(x: Tensor, y: Tensor, scales: Sequence[float]) -> Tensor:
    """The sum of the kernels, (N, M)."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    # Rounding may leave a little less than nothing between equal vectors.
    squares = squares.clamp_min(0)
    total = torch.zeros_like(squares)
    for scale in scales:
        total = total + 1 / (1 + squares / scale)
    return total


def _mean_of_others(kernel: Tensor) -> Tensor:
    """Mean of a square matrix without its diagonal."""
    count = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1))
