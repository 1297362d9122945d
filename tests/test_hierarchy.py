"""Two levels of a continuous latent: their prior, its divergence, and values less their mean."""

import numpy as np
import pytest
import torch

from vqcodec.hierarchy import ConditionalPrior, HierarchicalBottleneck
from vqcodec.prior import PriorConfig
from vqcodec.quantizer import RatePoint
from vqcodec.train.objectives import HierarchicalObjective
from vqcodec.train.prior import static_prior
from vqcodec.train.settings import ObjectiveConfig
from vqcodec.train.steps import start_uniform
from vqcodec.transform import Analysis, TransformConfig
from vqcodec.uniform import UniformBottleneck, UniformConfig

CHANNELS, TOP = 6, 2


@pytest.fixture
def conditional() -> ConditionalPrior:
    torch.manual_seed(3)
    network = ConditionalPrior(CHANNELS, TOP)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.requires_grad_(False)


@pytest.fixture
def bottlenecks(conditional: ConditionalPrior) -> tuple[UniformBottleneck, HierarchicalBottleneck]:
    """A plain one and one of two levels with the same steps and the same code lengths."""
    quantizer, bits = start_uniform(UniformConfig(channels=CHANNELS))
    config = PriorConfig(
        tables=1, embedding=1, hidden=(1, 1), group_hidden=1, chunks=(TOP, TOP + 1), window=1
    )
    prior = static_prior(config, quantizer.config, bits)
    scale = torch.linspace(60, 20, CHANNELS)
    levels = HierarchicalBottleneck(quantizer, prior, conditional=conditional, scale=scale)
    return UniformBottleneck(quantizer, prior), levels


def test_it_begins_as_a_standard_normal() -> None:
    mean, log_variance = ConditionalPrior(5, 2)(torch.randn(2, 2, 3, 4))
    assert mean.shape == log_variance.shape == (2, 3, 3, 4)
    assert not mean.any() and not log_variance.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 4)])
def test_values_are_what_the_latent_is_beyond_its_mean(
    bottlenecks: tuple[UniformBottleneck, HierarchicalBottleneck], shape: tuple[int, int]
) -> None:
    plain, levels = bottlenecks
    latent = torch.randn(CHANNELS, *shape, generator=torch.Generator().manual_seed(0)) * 60
    point = RatePoint(80, 1.0)
    (plane,) = levels.to_symbols(latent, point)
    # The upper level is coded as it is, the lower one less what the upper, as decoded, leads to.
    upper = plain.from_symbols([plane.index], point.bucket)[:TOP]
    with torch.no_grad():
        mean, _ = levels.conditional((upper / levels.scale[:TOP, None, None])[None])
    rest = latent.clone()
    rest[TOP:] -= mean[0] * levels.scale[TOP:, None, None]
    (expected,) = plain.to_symbols(rest, point)
    np.testing.assert_array_equal(plane.index, expected.index)
    assert mean.abs().max() > 0.1
    decoded = levels.from_symbols([plane.index], point.bucket)
    reach = torch.from_numpy(levels.quantizer.steps(point.bucket)).float()[:, None, None]
    # Zero and the next value towards it compete with the nearest.
    assert ((decoded - latent).abs() <= 1.6 * reach).float().mean() > 0.9
    streams = levels.write([plane])
    (found,) = levels.read(streams, point.bucket, *shape)
    np.testing.assert_array_equal(found, plane.index)


def test_the_divergence_of_two_levels_against_monte_carlo(conditional: ConditionalPrior) -> None:
    """E_q[log q(z1) q(z2) - log p(z1) p(z2 | z1)] over many draws of both levels."""
    torch.manual_seed(0)
    config = TransformConfig(
        channels=CHANNELS, analysis_depths=(0, 0, 0), synthesis_depths=(0, 0, 0), posterior=True
    )
    analysis = Analysis(config).requires_grad_(False)
    analysis.linear.weight.mul_(0.2)
    assert analysis.log_variance is not None
    analysis.log_variance.copy_(torch.linspace(-3, -1, CHANNELS))
    pixels = 255 * torch.rand(1, 3, 32, 32)
    objective = HierarchicalObjective(ObjectiveConfig(weight=1.0), conditional)
    found = [
        float(objective(analysis, pixels, np.random.default_rng(n), 0.0).penalty) * pixels.numel()
        for n in range(400)
    ]
    with torch.no_grad():
        mean, log_variance = (part.double() for part in analysis.posterior(pixels))
        draws = mean + (log_variance / 2).exp() * torch.randn(4000, *mean.shape[1:], dtype=torch.float64)
        prior_mean, prior_log_variance = (p.double() for p in conditional(draws[:, :TOP].float()))
        posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
        lower = torch.distributions.Normal(prior_mean, (prior_log_variance / 2).exp())
        upper = torch.distributions.Normal(0.0, 1.0)
        difference = posterior.log_prob(draws).sum((1, 2, 3))
        difference -= upper.log_prob(draws[:, :TOP]).sum((1, 2, 3))
        difference -= lower.log_prob(draws[:, TOP:]).sum((1, 2, 3))
    deviation = (difference.var() / len(difference)).sqrt() + np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - difference.mean()) < 5 * float(deviation)
    assert difference.mean() > 20 * float(deviation)


def test_gradients_reach_both_levels() -> None:
    torch.manual_seed(1)
    config = TransformConfig(
        channels=CHANNELS,
        analysis_widths=(8, 8, 8),
        analysis_depths=(1, 1, 1),
        synthesis_depths=(0, 0, 0),
        posterior=True,
    )
    analysis = Analysis(config)
    for parameter in analysis.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    objective = HierarchicalObjective(ObjectiveConfig(), ConditionalPrior(CHANNELS, TOP))
    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pixels = 255 * torch.rand(2, 3, 32, 48)
    relaxed = objective(analysis, pixels, np.random.default_rng(0), 0.0)
    (relaxed.latent.square().mean() + relaxed.penalty).backward()
    for network in (analysis, objective):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
