"""Two levels of a continuous latent: p(z) = p(z1) p(z2 | z1), and its bottleneck (mode hvae).

z1 is the first `top` channels, z2 the others, at the same positions. p(z1) is N(0, 1), and

    p(z2 | z1) = N(mean(z1), exp(log_variance(z1)))

is a small network that sees z1 at 3x3 positions (C. Sonderby et al., "Ladder variational autoencoders",
2016; A. Vahdat, J. Kautz, "NVAE", 2020, have many levels). A file holds z1 and what z2 is more than its
mean: the network runs on values that the decoder has too, in floating point, like the synthesis, so that
no symbol depends on it.

Layout: z1 (N, top, h, w), z2 (N, C - top, h, w), both in units of the latent's scale.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vqcodec.precision import full_precision
from vqcodec.prior import IntegerPrior, Pass
from vqcodec.transform import LOG_VARIANCE_MAX, LOG_VARIANCE_MIN
from vqcodec.uniform import UniformBottleneck, UniformQuantizer

_HIDDEN = 64


class ConditionalPrior(nn.Module):
    """p(z2 | z1); as it is made, N(0, 1)."""

    def __init__(self, channels: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.first = nn.Conv2d(top, _HIDDEN, 3, padding=1)
        self.last = nn.Conv2d(_HIDDEN, 2 * (channels - top), 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, upper: Tensor) -> tuple[Tensor, Tensor]:
        """z1 -> mean and log-variance of z2."""
        mean, log_variance = self.last(F.leaky_relu(self.first(upper), 0.1)).float().chunk(2, 1)
        return mean, log_variance.clamp(LOG_VARIANCE_MIN, LOG_VARIANCE_MAX)


class HierarchicalBottleneck(UniformBottleneck):
    """Uniform quantisation of z1, then of z2 less its mean. scale (C,): the unit of the latent."""

    def __init__(
        self,
        quantizer: UniformQuantizer,
        prior: IntegerPrior,
        *,
        conditional: ConditionalPrior,
        scale: Tensor,
        native: bool | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(quantizer, prior, native=native, threads=threads)
        self.conditional, self.scale = conditional, scale

    def from_symbols(self, indices: Sequence[NDArray[np.integer]], bucket: int) -> Tensor:
        """Latent (C, H, W) of values (C, H, W)."""
        latent = super().from_symbols(indices, bucket)
        top = self.conditional.top
        latent[top:] += self._mean(latent[:top])
        return latent

    def _expected(self, values: NDArray[np.int32], bucket: int, step: Pass) -> NDArray[np.float64] | None:
        top = self.conditional.top
        # z1 is complete: the chunks of the prior keep the levels apart.
        if step.groups.start != top or step.spatial:
            return None
        upper = self.quantizer.dequantise(values, bucket)[:top]
        expected = np.zeros(values.shape)
        expected[top:] = self._mean(upper).double().numpy()
        return expected

    def _mean(self, upper: Tensor) -> Tensor:
        """The mean of z2 (C - top, h, w) in grey levels, of z1 (top, h, w) in grey levels."""
        top = self.conditional.top
        with torch.inference_mode(), full_precision(upper.device):
            mean, _ = self.conditional((upper / self.scale[:top, None, None])[None])
        return mean[0] * self.scale[top:, None, None]
