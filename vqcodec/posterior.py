"""Categorical posterior of the discrete VAE: q(k | x) over a codebook, for every group.

    q(k | y) = softmax_k(b_k - 1/2 sum_d h_d (y_d - a_kd)^2)
    KL(q || p) = sum_k q_k (ln q_k - ln p_k)

y is the latent in units of its scale. The logits are linear in y but for a term that all k share; in
this form the centres a, unlike weights, fit float16. The prior p of each group is learnt and knows no
context (A. Ramesh et al., "Zero-shot text-to-image generation", 2021, have it uniform). Encoders need
all this, decoders do not: a file holds the index, and its codeword is the quantiser's.

Layout: the latent (N, C) is cut into groups of channels as `ResidualQuantizer` cuts it; logits and
probabilities are (G, N, K).
"""

import torch
from torch import Tensor, nn

from vqcodec.quantizer import QuantizerConfig
from vqcodec_kernels import nearest_codeword


class CategoricalPosterior(nn.Module):
    """Centres a (`centre.b`: groups of block b, K, dimension), ln h (C,), b and ln p (G, K)."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.centre = nn.ParameterList(
            nn.Parameter(torch.zeros(count, config.codewords, dim)) for count, dim in config.blocks
        )
        self.log_sharpness = nn.Parameter(torch.zeros(config.channels))
        self.bias = nn.Parameter(torch.zeros(config.groups, config.codewords))
        self.log_prior = nn.Parameter(torch.zeros(config.groups, config.codewords))

    def logits(self, latent: Tensor) -> Tensor:
        """latent (N, C) -> logits (G, N, K), less what all k share."""
        parts, first = [], 0
        for vectors, centres in self._sharpened(latent):
            bias = self.bias[first : first + len(centres)] - 0.5 * centres.square().sum(-1)
            first += len(centres)
            parts.append(torch.baddbmm(bias[:, None], vectors, centres.transpose(1, 2)))
        return torch.cat(parts)

    def divergence(self, logits: Tensor) -> Tensor:
        """KL(q || p) in nats, (G, N), of logits (G, N, K)."""
        log_q = logits.log_softmax(-1)
        log_p = self.log_prior.log_softmax(-1)[:, None]
        return (log_q.exp() * (log_q - log_p)).sum(-1)

    def most_likely(self, latent: Tensor) -> Tensor:
        """Index of the largest logit: latent (N, C) -> int64 (G, N)."""
        found, first = [], 0
        for vectors, centres in self._sharpened(latent):
            bias = -2 * self.bias[first : first + len(centres)]
            first += len(centres)
            index = nearest_codeword(vectors, centres, bias)
            assert isinstance(index, Tensor)
            found.append(index)
        return torch.cat(found)

    def _sharpened(self, latent: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Vectors (groups, N, D) and centres (groups, K, D) of each block, times the root of h."""
        root = (0.5 * self.log_sharpness).exp()
        sizes = [count * dim for count, dim in self.config.blocks]
        parts = []
        for centre, values, roots in zip(
            self.centre, (latent * root).split(sizes, 1), root.split(sizes), strict=True
        ):
            count, _, dim = centre.shape
            vectors = values.reshape(len(latent), count, dim).transpose(0, 1)
            parts.append((vectors, centre * roots.reshape(count, 1, dim)))
        return parts
