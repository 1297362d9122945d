"""The categorical posterior: logits, divergence and the choice of an index against their formulas."""

import numpy as np
import pytest
import torch

from vqcodec.posterior import CategoricalPosterior
from vqcodec.quantizer import QuantizerConfig, ResidualQuantizer
from vqcodec.train.objectives import start_posterior

CONFIG = QuantizerConfig(
    blocks=((3, 1), (2, 2), (1, 4)), codewords=11, mu=(1.0,), first=(1.0,), last=(1.0,)
)


@pytest.fixture
def posterior() -> CategoricalPosterior:
    torch.manual_seed(4)
    made = CategoricalPosterior(CONFIG).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made.requires_grad_(False)


def _formula(posterior: CategoricalPosterior, latent: torch.Tensor) -> torch.Tensor:
    """Logits with every term written out: (G, N, K)."""
    rows = []
    channel = 0
    for block, (count, dim) in enumerate(CONFIG.blocks):
        for inside in range(count):
            here = slice(channel, channel + dim)
            channel += dim
            sharpness = posterior.log_sharpness[here].exp()
            difference = latent[:, None, here] - posterior.centre[block][inside]
            rows.append(-0.5 * (sharpness * difference.square()).sum(-1))
    return torch.stack(rows) + posterior.bias[:, None]


def test_probabilities_are_those_of_the_formula(posterior: CategoricalPosterior) -> None:
    latent = torch.randn(23, CONFIG.channels, dtype=torch.float64)
    wanted = _formula(posterior, latent).softmax(-1)
    torch.testing.assert_close(posterior.logits(latent).softmax(-1), wanted)


def test_the_most_likely_index_has_the_largest_logit(posterior: CategoricalPosterior) -> None:
    posterior.float()
    latent = torch.randn(301, CONFIG.channels)
    torch.testing.assert_close(
        posterior.most_likely(latent), posterior.logits(latent).argmax(-1), rtol=0, atol=0
    )


def test_divergence_is_that_of_torch(posterior: CategoricalPosterior) -> None:
    logits = torch.randn(CONFIG.groups, 5, CONFIG.codewords, dtype=torch.float64) * 3
    q = torch.distributions.Categorical(logits=logits)
    p = torch.distributions.Categorical(logits=posterior.log_prior[:, None].expand_as(logits))
    torch.testing.assert_close(posterior.divergence(logits), torch.distributions.kl_divergence(q, p))
    at_prior = posterior.log_prior[:, None] + 2.5
    assert posterior.divergence(at_prior).abs().max() < 1e-12


def test_the_start_is_a_gaussian_around_each_codeword() -> None:
    random = np.random.default_rng(0)
    books = [random.integers(-400, 400, (c, 11, d)).astype(np.int16) for c, d in CONFIG.blocks]
    for book in books:
        book[:, 0] = 0
    quantizer = ResidualQuantizer(CONFIG, [books])
    bits = torch.rand(CONFIG.groups, 11) * 8
    scale = torch.rand(CONFIG.channels) * 50 + 1
    posterior = start_posterior(quantizer, bits, scale, noise=6.0)
    latent = 60 * torch.randn(40, CONFIG.channels)
    squared = (
        torch.cdist(latent[None, :, 3:5].double(), quantizer.float_codebooks[0][1][:1].double()) ** 2
    )
    wanted = (-squared[0] / 72 - bits[3].double() * np.log(2)).softmax(-1)
    found = posterior.logits(latent / scale)[3].softmax(-1)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-3, atol=1e-6)
