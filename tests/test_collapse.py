"""Health of latents: figures against formulas, and every verdict from a latent made for it."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vqcodec import collapse
from vqcodec.collapse import (
    COLLAPSED,
    HEALTHY,
    PARTIAL,
    POINT,
    UNKNOWN,
    codebook_health,
    describe,
    deterministic_health,
    gaussian_health,
)


def normal(positions: int = 400, units: int = 10, seed: int = 0) -> Tensor:
    return torch.randn(positions, units, generator=torch.Generator().manual_seed(seed))


def indices(groups: int, positions: int, codewords: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, codewords, (groups, positions), generator=generator)


# --- Gaussian -------------------------------------------------------------------------------


def test_gaussian_figures_are_those_of_their_definitions() -> None:
    mu, logvar = normal().double(), normal(seed=1).double() - 2
    health = gaussian_health(mu, logvar)
    expected = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).mean(0)
    assert health.kl_per_unit == pytest.approx(expected.tolist(), rel=1e-12)
    assert health.kl == pytest.approx(float(expected.sum()), rel=1e-12)
    assert health.mean_sigma == pytest.approx(float((logvar / 2).exp().mean()), rel=1e-12)
    assert (health.mode, health.positions, health.units) == ("vae", 400, 10)
    assert health.perplexity == () and health.codewords is None and health.median_perplexity is None


def test_a_unit_is_active_above_a_variance_of_a_hundredth() -> None:
    # Of the positions themselves: as the estimate for more of them, 0.0999^2 * 64 / 63 is above.
    signs = torch.tensor([1.0, -1.0]).repeat(32)
    mu = torch.stack([0.0999 * signs, 0.1001 * signs, 5 + 0.0 * signs, 5 + signs], 1)
    health = gaussian_health(mu, torch.zeros(64, 4))
    assert health.active_units == 2
    assert health.state == PARTIAL
    assert health.verdicts == ("2 of 4 units carry nothing",)


def test_a_healthy_posterior() -> None:
    health = gaussian_health(normal(), torch.full((400, 10), -2.0))
    assert health.state == HEALTHY
    assert health.verdicts == ("healthy: 10 of 10 units vary with the picture",)


def test_the_prior_itself_is_posterior_collapse() -> None:
    health = gaussian_health(torch.zeros(400, 10), torch.zeros(400, 10))
    assert (health.state, health.active_units, health.kl) == (COLLAPSED, 0, 0.0)
    assert health.verdicts[0].startswith("posterior collapse: 0 of 10 units vary")


def test_means_that_never_move_are_posterior_collapse_whatever_their_divergence() -> None:
    health = gaussian_health(torch.full((400, 10), 3.0), torch.full((400, 10), -4.0))
    assert health.kl is not None and health.kl > 10
    assert health.state == COLLAPSED


def test_one_unit_of_a_hundred_is_nearly_none() -> None:
    mu = torch.zeros(400, 100)
    mu[:, 7] = normal(units=1)[:, 0]
    health = gaussian_health(mu, torch.zeros_like(mu))
    assert health.state == COLLAPSED
    assert "1 of 100 units varies with the picture" in health.verdicts[0]
    mu[:, :3] = normal(units=3, seed=1)
    assert gaussian_health(mu, torch.zeros_like(mu)).state == PARTIAL


def test_units_that_move_a_little_and_say_nothing_are_posterior_collapse() -> None:
    mu = 0.12 * normal().sign()
    health = gaussian_health(mu, torch.zeros_like(mu))
    assert health.active_units == 10 and max(health.kl_per_unit) < collapse.LEAST_KL
    assert health.state == COLLAPSED and health.verdicts[0].startswith("posterior collapse: 10 of 10")


def test_partial_collapse_says_how_many() -> None:
    mu = normal()
    mu[:, [1, 4, 5]] = 0.5
    health = gaussian_health(mu, torch.full_like(mu, -1.0))
    assert (health.state, health.active_units) == (PARTIAL, 7)
    assert health.verdicts == ("3 of 10 units carry nothing",)


@pytest.mark.parametrize(("sigma", "state"), [(0.005, POINT), (0.02, HEALTHY)])
def test_no_width_makes_an_autoencoder(sigma: float, state: str) -> None:
    mu = normal()
    mu = mu / mu.std(0, correction=0)
    for size in (1.0, 30.0):  # relative to the means
        health = gaussian_health(size * mu, torch.full_like(mu, 2 * math.log(size * sigma)))
        assert health.state == state
        assert health.verdicts[0].startswith("sigma -> 0") == (state == POINT)
    if state == POINT:
        assert "the VAE has become an autoencoder" in health.verdicts[0]
        assert "0.5 %" in health.verdicts[0]
        assert not any(verdict.startswith("healthy") for verdict in health.verdicts)


def test_idle_units_do_not_hide_that_the_width_is_gone() -> None:
    mu = normal()
    mu[:, 5:] = 0
    logvar = torch.full_like(mu, -14.0)
    logvar[:, 5:] = 0
    health = gaussian_health(mu, logvar)
    assert health.state == POINT
    assert health.verdicts[1:] == ("5 of 10 units carry nothing",)


@pytest.mark.parametrize("positions", [1, 63])
def test_few_positions_are_not_judged(positions: int) -> None:
    health = gaussian_health(torch.zeros(positions, 3), torch.zeros(positions, 3))
    assert health.state == UNKNOWN and len(health.verdicts) == 1
    assert f"{positions} of the 64 positions" in health.verdicts[0]
    assert gaussian_health(torch.zeros(64, 3), torch.zeros(64, 3)).state == COLLAPSED


def test_layout_dtype_and_gradient_do_not_matter() -> None:
    mu, logvar = normal(), normal(seed=1)
    expected = gaussian_health(mu, logvar)
    strided = mu.T.contiguous().T.requires_grad_()
    assert gaussian_health(strided, logvar.numpy()) == expected
    assert gaussian_health(mu.double(), logvar.double()) == expected
    coarse = gaussian_health(mu.bfloat16(), logvar.bfloat16())
    # A value errs by 2^-9 of itself, so the mean of each term of the KL by 2^-8 of at most 10.
    assert coarse.kl_per_unit == pytest.approx(expected.kl_per_unit, abs=10 * 2**-8)


@pytest.mark.parametrize(
    ("mu", "logvar", "message"),
    [
        (torch.zeros(100, 3), torch.zeros(100, 4), "logvar"),
        (torch.zeros(0, 3), torch.zeros(0, 3), "empty"),
        (torch.zeros(100, 0), torch.zeros(100, 0), "empty"),
        (torch.zeros(100), torch.zeros(100), "two dimensions"),
        (torch.full((100, 3), math.nan), torch.zeros(100, 3), "mu has values that are not finite"),
        (torch.zeros(100, 3), torch.full((100, 3), math.inf), "logvar has values"),
        (torch.zeros(100, 3), torch.full((100, 3), 1e5), "too large"),
    ],
)
def test_bad_posteriors_are_refused(mu: Tensor, logvar: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gaussian_health(mu, logvar)


# --- deterministic --------------------------------------------------------------------------


def test_activity_of_an_autoencoder_is_relative_to_its_scale() -> None:
    latent = normal() * torch.linspace(1, 10, 10)
    scale = torch.linspace(1, 10, 10)
    health = deterministic_health(latent, scale)
    assert (health.mode, health.state, health.active_units) == ("ae", HEALTHY, 10)
    assert health.mean_sigma is None and health.kl is None and health.kl_per_unit == ()
    scale[:4] = 1000
    assert deterministic_health(latent, scale.numpy()).active_units == 6
    assert deterministic_health(latent, scale).verdicts == ("4 of 10 units carry nothing",)
    assert deterministic_health(latent, 0.5) == deterministic_health(latent, torch.full((10,), 0.5))


def test_a_constant_latent_has_collapsed() -> None:
    health = deterministic_health(torch.full((100, 4), 7.0), 1.0)
    assert (health.state, health.active_units) == (COLLAPSED, 0)
    assert health.verdicts[0].startswith("the latent has collapsed")


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, torch.ones(3), torch.ones(1, 4)])
def test_a_bad_scale_is_refused(scale: Tensor | float) -> None:
    with pytest.raises(ValueError, match="scale must be positive"):
        deterministic_health(normal(units=4), scale)


# --- codebooks ------------------------------------------------------------------------------


def test_perplexity_counts_equally_likely_codewords() -> None:
    rows = [torch.arange(96) % n for n in (1, 2, 3, 8)]
    health = codebook_health(torch.stack(rows), 8, mode="vqvae")
    assert health.perplexity == pytest.approx((1, 2, 3, 8), rel=1e-12)
    assert health.unused == (7, 6, 5, 0)
    assert (health.units, health.active_units, health.codewords) == (4, 3, 8)
    assert (health.mode, health.median_perplexity) == ("vqvae", pytest.approx(2))
    assert health.state == PARTIAL and health.verdicts[-1] == "1 of 4 units keeps to a few codewords"


def test_perplexity_is_that_of_the_entropy() -> None:
    row = torch.tensor([0] * 90 + [1] * 9 + [2])
    share = np.array([0.9, 0.09, 0.01])
    expected = math.exp(-(share * np.log(share)).sum())
    assert codebook_health(row[None], 256).perplexity[0] == pytest.approx(expected, rel=1e-12)


def test_stages_follow_each_other() -> None:
    first, second = indices(3, 4096, 16), indices(3, 4096, 16, seed=1) % 4
    health = codebook_health([first.numpy().astype(np.uint8), second], 16)
    assert health.units == 6
    assert [round(p) for p in health.perplexity] == [16] * 3 + [4] * 3
    assert codebook_health([first], 16) == codebook_health(first, 16)


def test_healthy_codebooks() -> None:
    health = codebook_health(indices(8, 8192, 256), 256)
    assert health.state == HEALTHY
    assert health.verdicts == ("healthy: 8 of 8 units make use of their codewords",)


def test_half_of_the_codebooks_makes_a_collapse() -> None:
    index = indices(8, 8192, 256)
    index[:3] %= 5
    health = codebook_health(index, 256)
    assert (health.state, health.active_units) == (PARTIAL, 5)
    assert health.verdicts[0] == "3 of 8 units keep to a few codewords"
    index[:4] %= 5
    health = codebook_health(index, 256)
    assert health.state == COLLAPSED
    assert health.verdicts[0].startswith("codebook collapse: half of the 8 codebooks")
    assert "256 is possible" in health.verdicts[0]


def test_few_positions_cannot_use_many_codewords() -> None:
    """100 positions hold at most 100 codewords: 6 equally likely ones are above 5 % of that."""
    index = (torch.arange(96) % 6)[None]
    assert codebook_health(index, 256).state == HEALTHY
    assert codebook_health((torch.arange(8192) % 6)[None], 256).state == COLLAPSED


def test_dead_codewords_need_enough_positions_to_be_told() -> None:
    index = indices(4, 4096, 100)
    health = codebook_health(index, 256)
    assert health.state == PARTIAL
    assert health.verdicts[0] == "dead codewords: half of the codebooks leave 61 % or more unused"
    assert codebook_health(index[:, :2559], 256).state == HEALTHY
    assert codebook_health(index[:, :2560], 256).state == PARTIAL


def test_a_single_codeword_has_collapsed() -> None:
    health = codebook_health(torch.zeros(2, 100, dtype=torch.int64), 1)
    assert (health.state, health.perplexity) == (COLLAPSED, (1.0, 1.0))


def test_indices_that_ignore_the_picture_are_posterior_collapse() -> None:
    """As many codewords as one likes: drawn from the prior, they say nothing."""
    index = indices(4, 4096, 16)
    health = codebook_health(index, 16, mode="dvae", kl=torch.full((4, 4096), 1e-4))
    assert (health.state, health.active_units) == (COLLAPSED, 4)
    assert health.verdicts[0].startswith("posterior collapse: KL 0.0004 nats")
    speaking = torch.full((4, 4096), 1e-4)
    speaking[2] = 2.0
    health = codebook_health([index, index], 16, mode="dvae", kl=speaking)
    assert health.state == HEALTHY
    assert health.kl_per_unit == pytest.approx((1e-4, 1e-4, 2.0, 1e-4))
    with pytest.raises(ValueError, match="kl has 3 groups"):
        codebook_health(index, 16, kl=speaking[:3])


def test_indices_are_checked() -> None:
    good = indices(2, 100, 8)
    for bad in (good - 1, good + 1):
        with pytest.raises(ValueError, match=r"0\.\.7"):
            codebook_health(bad, 8)
    for shape in ((100,), (0, 100), (2, 0), (2, 10, 10)):
        with pytest.raises(ValueError, match="G, P"):
            codebook_health(torch.zeros(shape, dtype=torch.int64), 8)
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(TypeError, match="integers"):
            codebook_health(good.to(dtype), 8)
    with pytest.raises(ValueError, match="no stage"):
        codebook_health([], 8)
    with pytest.raises(ValueError, match="positive"):
        codebook_health(good, 0)


# --- one line -------------------------------------------------------------------------------


def test_describe_is_one_line_with_what_there_is() -> None:
    gaussian = describe(gaussian_health(normal(), torch.full((400, 10), -2.0)))
    assert gaussian.startswith("vae: 10/10 units active, sigma 0.368, KL ")
    assert gaussian.endswith("; healthy: 10 of 10 units vary with the picture")
    codebooks = describe(codebook_health(indices(4, 4096, 16), 16, kl=torch.ones(4, 4096)))
    assert "KL 4 nats a position, median perplexity 15.9" in codebooks and " of 16; " in codebooks
    plain = describe(deterministic_health(normal(), 1.0))
    assert plain == "ae: 10/10 units active; healthy: 10 of 10 units vary with the picture"
    assert not any("\n" in line for line in (gaussian, codebooks, plain))
