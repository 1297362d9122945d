"""The losses of the modes: closed forms, gradients that reach every part, a linear autoencoder."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from vqcodec.posterior import CategoricalPosterior
from vqcodec.precision import fast_precision
from vqcodec.pyramid import spread_positions
from vqcodec.quantizer import QuantizerConfig, ResidualQuantizer, to_latent
from vqcodec.train.objectives import (
    AutoencoderObjective,
    CategoricalObjective,
    DenoisingObjective,
    GaussianObjective,
    NearestObjective,
    WassersteinObjective,
    reconstruction_loss,
    start_posterior,
)
from vqcodec.train.settings import ObjectiveConfig, mode_objective
from vqcodec.train.start import principal_components
from vqcodec.transform import PIXEL_MEAN, Analysis, Synthesis, TransformConfig
from vqcodec_kernels import gaussian_sample

TRANSFORM = TransformConfig(
    channels=12,
    analysis_widths=(8, 8, 8),
    analysis_depths=(1, 1, 1),
    synthesis_widths=(8, 8, 8),
    synthesis_depths=(1, 1, 1),
    rates=0,
    posterior=True,
)
LAYOUT = QuantizerConfig(
    blocks=((2, 1), (1, 2), (2, 4)), codewords=16, mu=(1.0, 1.0), first=(1.0, 1.0), last=(1.0, 1.0)
)


@pytest.fixture
def analysis() -> Analysis:
    torch.manual_seed(0)
    network = Analysis(TRANSFORM)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    network.scale.copy_(torch.linspace(8, 2, 12))
    return network


@pytest.fixture
def pixels() -> torch.Tensor:
    return 255 * torch.rand(3, 3, 48, 32, generator=torch.Generator().manual_seed(1))


def _quantizer(stages: int = 2) -> ResidualQuantizer:
    random = np.random.default_rng(2)
    layout = dataclasses.replace(LAYOUT, mu=(1.0,) * stages, first=(1.0,) * stages, last=(1.0,) * stages)
    books = [
        [random.integers(-80 >> s, 80 >> s, (c, 16, d)).astype(np.int16) for c, d in layout.blocks]
        for s in range(stages)
    ]
    for stage in books:
        for book in stage:
            book[:, 0] = 0
    return ResidualQuantizer(layout, books)


def _pooled(quantizer: ResidualQuantizer) -> ResidualQuantizer:
    return ResidualQuantizer(dataclasses.replace(quantizer.config, pooled=True), quantizer.codebooks)


@pytest.mark.parametrize(("kind", "wanted"), [("mse", 9 / (2 * 36)), ("mae", 3 * np.sqrt(2) / 6)])
def test_reconstruction_is_the_likelihood_of_a_sample(kind: str, wanted: float) -> None:
    config = ObjectiveConfig(reconstruction=kind, noise=6.0)  # type: ignore[arg-type]
    loss = reconstruction_loss(config, torch.full((1, 3, 4, 4), 7.0), torch.full((1, 3, 4, 4), 10.0))
    assert float(loss) == pytest.approx(wanted, rel=1e-6)


def test_an_autoencoder_pays_nothing(analysis: Analysis, pixels: torch.Tensor) -> None:
    objective = AutoencoderObjective(ObjectiveConfig())
    relaxed = objective(analysis, pixels, np.random.default_rng(0), 0.0)
    assert relaxed.latent.shape == (3, 12, 3, 2) and float(relaxed.penalty) == 0


def test_a_dae_sees_noise_and_pays_nothing(analysis: Analysis, pixels: torch.Tensor) -> None:
    latents = []
    for noise, seed in ((0.0, 4), (20.0, 4), (20.0, 4), (20.0, 5), (40.0, 4)):
        objective = DenoisingObjective(ObjectiveConfig(input_noise=noise))
        relaxed = objective(analysis, pixels, np.random.default_rng(seed), 0.0)
        assert float(relaxed.penalty) == 0
        latents.append(relaxed.latent.detach())
    plain = AutoencoderObjective(ObjectiveConfig())(analysis, pixels, np.random.default_rng(0), 0.0)
    assert torch.equal(latents[0], plain.latent)
    assert torch.equal(latents[1], latents[2]) and not torch.equal(latents[1], latents[3])
    # Noise of the pixels goes through the linear path as it is; the branch is small here.
    moved = [(latent - latents[0]).square().mean().sqrt() for latent in latents]
    assert moved[4] / moved[1] == pytest.approx(2, rel=0.1)


def test_a_wae_pays_for_the_distance_of_all_positions_from_draws(analysis: Analysis) -> None:
    """Next to nothing for latents that are standard normal together, much for a constant."""
    pixels = torch.zeros(8, 3, 128, 128)
    objective = WassersteinObjective(ObjectiveConfig(weight=2.0))
    generator = torch.Generator().manual_seed(5)
    normal = torch.randn(8, 12, 8, 8, generator=generator) * analysis.scale[:, None, None]

    class Fixed(torch.nn.Module):
        def __init__(self, latent: torch.Tensor) -> None:
            super().__init__()
            self.latent, self.scale = latent, analysis.scale

        def forward(self, _: torch.Tensor) -> torch.Tensor:
            return self.latent

    paid = [
        objective(Fixed(latent), pixels, np.random.default_rng(1), 0.0).penalty  # type: ignore[arg-type]
        for latent in (normal, 0.3 * normal, torch.zeros_like(normal))
    ]
    assert abs(paid[0]) < 0.05 * paid[1] and paid[1] < paid[2]
    cheaper = WassersteinObjective(ObjectiveConfig(weight=1.0))
    again = cheaper(Fixed(0.3 * normal), pixels, np.random.default_rng(1), 0.0).penalty  # type: ignore[arg-type]
    assert paid[1] == pytest.approx(2 * float(again), rel=1e-5)


def test_a_lattice_does_not_move(analysis: Analysis, pixels: torch.Tensor) -> None:
    config = mode_objective("fsq", ObjectiveConfig())
    objective = NearestObjective(config, _quantizer(), analysis.scale)
    before = [book.clone() for book in objective.books]
    objective(analysis, pixels, np.random.default_rng(1), 0.3)
    assert all(map(torch.equal, before, objective.books))
    assert not any(p.requires_grad for p in objective.parameters())


def test_a_pooled_stage_has_one_vector_a_block(analysis: Analysis, pixels: torch.Tensor) -> None:
    """A batch of 3 x 2 positions: the second row of blocks is cut."""
    quantizer = _pooled(_quantizer())
    objective = NearestObjective(ObjectiveConfig(), quantizer, analysis.scale).eval()
    seed = next(s for s in range(99) if (np.random.default_rng(s).random(3) < 0.5).all())
    with torch.no_grad():
        relaxed = objective(analysis, pixels, np.random.default_rng(seed), 0.0)
        with fast_precision(pixels.device):
            latent = analysis(pixels)
    for picture, decoded in zip(latent, relaxed.latent, strict=True):
        vectors = picture.flatten(1).T.contiguous()
        first, second = quantizer.nearest_stages(vectors, (3, 2))
        upper = spread_positions(quantizer.look_up(0, first), (3, 2))
        wanted = to_latent(upper + quantizer.look_up(1, second))
        torch.testing.assert_close(decoded.flatten(1).T, wanted, atol=1e-3, rtol=1e-4)


def test_a_vae_pays_its_divergence(analysis: Analysis, pixels: torch.Tensor) -> None:
    objective = GaussianObjective(ObjectiveConfig(weight=0.5))
    random = np.random.default_rng(7)
    seed = int(np.random.default_rng(7).integers(2**63, dtype=np.uint64))
    with torch.autocast("cpu", enabled=False):
        relaxed = objective(analysis, pixels, random, 0.0)
    mean, log_variance = analysis.posterior(pixels)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    divergence = torch.distributions.kl_divergence(normal, prior).sum()
    # The convolutions of the objective may run in bfloat16.
    wanted = 0.5 * divergence.item() / pixels.numel()
    assert relaxed.penalty.item() == pytest.approx(wanted, rel=0.02)
    drawn = gaussian_sample(mean, log_variance, seed=seed).z * analysis.scale[:, None, None]
    assert (relaxed.latent - drawn).abs().max() < 0.05 * drawn.abs().max()


@pytest.mark.parametrize(
    "mode", ["vae", "dae", "wae", "dvae", "ema", "gradient", "pooled ema", "pooled gradient"]
)
def test_gradients_reach_every_part(mode: str, analysis: Analysis, pixels: torch.Tensor) -> None:
    config = ObjectiveConfig(codebook="gradient" if mode.endswith("gradient") else "ema")
    quantizer = _quantizer(1 if mode == "dvae" else 2)
    if mode.startswith("pooled"):
        quantizer = _pooled(quantizer)
    objective: torch.nn.Module
    simple = {"vae": GaussianObjective, "dae": DenoisingObjective, "wae": WassersteinObjective}
    if mode in simple:
        objective = simple[mode](config)
    elif mode == "dvae":
        bits = torch.full((5, 16), 4.0)
        posterior = start_posterior(quantizer, bits, analysis.scale, config.noise)
        objective = CategoricalObjective(config, quantizer, analysis.scale, posterior)
    else:
        objective = NearestObjective(config, quantizer, analysis.scale)
    before = [p.detach().clone() for p in objective.parameters()]
    relaxed = objective(analysis, pixels, np.random.default_rng(1), 0.3)
    (relaxed.latent.square().mean() + relaxed.penalty).backward()
    idle = {"spread.weight", "spread.bias", "log_variance"} if mode != "vae" else set()
    for name, parameter in analysis.named_parameters():
        if name not in idle:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    if mode.endswith("ema"):
        changed = [not torch.equal(a, b) for a, b in zip(before, objective.parameters(), strict=True)]
        assert all(changed)


def test_straight_through_gives_the_codewords_value(analysis: Analysis, pixels: torch.Tensor) -> None:
    """The value is a sum of codewords, the gradient that of the latent itself."""
    objective = NearestObjective(ObjectiveConfig(codebook="gradient"), _quantizer(), analysis.scale)
    # A seed under which no picture of the batch drops groups.
    seed = next(s for s in range(99) if (np.random.default_rng(s).random(3) < 0.5).all())
    random = np.random.default_rng(seed)
    relaxed = objective(analysis, pixels, random, 0.0)
    flat = relaxed.latent.detach().permute(0, 2, 3, 1).reshape(-1, 12)
    with torch.no_grad():
        latent = analysis(pixels).permute(0, 2, 3, 1).reshape(-1, 12)
    unit = analysis.scale[0]
    book = [objective.books[i][0, :, 0].detach() * unit for i in (0, 3)]
    sums = (book[0][:, None] + book[1][None, :]).flatten()
    nearest = (flat[:, :1] - sums).abs().min(1).values
    assert nearest.max() < 1e-4
    assert (flat - latent).square().mean() < latent.square().mean()
    (gradient,) = torch.autograd.grad(relaxed.latent.sum(), analysis.linear.weight)
    (wanted,) = torch.autograd.grad(analysis(pixels).sum(), analysis.linear.weight)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("rule", ["ema", "gradient"])
def test_codewords_find_the_centres_of_clusters(rule: str) -> None:
    """Codewords end on the means of what they win; moving averages put a dead one to work."""
    random = np.random.default_rng(3)
    layout = QuantizerConfig(blocks=((1, 1),), codewords=3, mu=(1.0,), first=(1.0,), last=(1.0,))
    dead = 4000 if rule == "ema" else -60
    quantizer = ResidualQuantizer(layout, [[np.array([[[0], [40], [dead]]], np.int16)]])
    config = ObjectiveConfig(decay=0.9, codebook=rule)  # type: ignore[arg-type]
    objective = NearestObjective(config, quantizer, torch.tensor([30.0]))
    values = torch.from_numpy(random.choice([0.0, 20.0, -30.0], 600)).float()[:, None]
    values = values + 0.01 * torch.from_numpy(random.standard_normal((600, 1))).float()
    # The rate of learning of the trainer: five times that of the networks.
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=5 * 4e-4) if trained else None
    for _ in range(900):
        _, loss = objective._quantise_stage(0, values, random)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            objective.after_step()
    found = sorted((objective.books[0].detach().flatten() * 30).tolist())
    assert found == pytest.approx([-30, 0, 20], abs=0.1)


@pytest.mark.parametrize("rule", ["ema", "gradient", "fixed"])
def test_a_vqvae_pays_for_distance(rule: str, analysis: Analysis, pixels: torch.Tensor) -> None:
    """Both terms against the formula of docs/modes.md, in a batch that codes everything."""
    config = ObjectiveConfig(codebook=rule, commitment=0.3, noise=5.0)  # type: ignore[arg-type]
    quantizer = _quantizer()
    objective = NearestObjective(config, quantizer, analysis.scale).eval()
    seed = next(s for s in range(99) if (np.random.default_rng(s).random(3) < 0.5).all())
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        relaxed = objective(analysis, pixels, np.random.default_rng(seed), 0.0)
    decoded = relaxed.latent.permute(0, 2, 3, 1).reshape(-1, 12)
    with fast_precision(pixels.device), torch.no_grad():
        latent = analysis(pixels).permute(0, 2, 3, 1).reshape(-1, 12)
    wanted = 0.3 * (latent - decoded).square().sum()
    if rule == "gradient":
        residual = latent
        for stage, index in enumerate(quantizer.nearest_stages(latent, (len(latent), 1))):
            residual = residual - to_latent(quantizer.look_up(stage, index))
            wanted = wanted + residual.square().sum()
    wanted = wanted / (2 * 25) / pixels.numel()
    assert relaxed.penalty.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_a_dvae_pays_its_divergence_for_what_it_codes(analysis: Analysis, pixels: torch.Tensor) -> None:
    config = ObjectiveConfig(weight=0.7)
    quantizer = _quantizer(1)
    posterior = start_posterior(quantizer, torch.rand(5, 16) * 6, analysis.scale, config.noise)
    objective = CategoricalObjective(config, quantizer, analysis.scale, posterior)
    draws = [np.random.default_rng(s).random(3) < 0.5 for s in range(99)]
    whole, part = (next(s for s, d in enumerate(draws) if d.all() == all_of) for all_of in (True, False))
    with torch.no_grad():
        penalties = [
            objective(analysis, pixels, np.random.default_rng(s), 0.0).penalty for s in (whole, part)
        ]
        with fast_precision(pixels.device):
            latent = analysis(pixels).permute(0, 2, 3, 1).reshape(-1, 12)
        divergence = posterior.divergence(posterior.logits(latent / analysis.scale)).sum()
    wanted = 0.7 * divergence / pixels.numel()
    assert penalties[0].item() == pytest.approx(wanted.item(), rel=1e-4)
    assert 0 < penalties[1] < penalties[0]


def test_a_cold_sample_is_one_codeword(analysis: Analysis, pixels: torch.Tensor) -> None:
    config = ObjectiveConfig(temperature=(1.0, 1e-4))
    quantizer = _quantizer(1)
    posterior = start_posterior(quantizer, torch.full((5, 16), 4.0), analysis.scale, config.noise)
    objective = CategoricalObjective(config, quantizer, analysis.scale, posterior)
    relaxed = objective(analysis, pixels, np.random.default_rng(1), 1.0)
    values = relaxed.latent.detach()[:, 0].flatten()
    distance = (values[:, None] - quantizer.float_codebooks[0][0][0, :, 0]).abs().min(1).values
    assert (distance < 0.05).float().mean() > 0.95
    warm = objective(analysis, pixels, np.random.default_rng(1), 0.0).latent.detach()[:, 0].flatten()
    assert ((warm[:, None] - quantizer.float_codebooks[0][0][0, :, 0]).abs().min(1).values > 0.05).any()


def test_fixed_point_codebooks_round_trip() -> None:
    quantizer = _quantizer()
    scale = torch.linspace(9, 3, 12)
    objective = NearestObjective(ObjectiveConfig(), quantizer, scale)
    for stage, again in zip(quantizer.codebooks, objective.quantizer().codebooks, strict=True):
        for book, copy in zip(stage, again, strict=True):
            np.testing.assert_array_equal(book, copy)
    single = _quantizer(1)
    posterior = CategoricalPosterior(single.config)
    categorical = CategoricalObjective(ObjectiveConfig(), single, scale, posterior)
    for book, copy in zip(single.codebooks[0], categorical.quantizer().codebooks[0], strict=True):
        np.testing.assert_array_equal(book, copy)


def test_a_linear_autoencoder_is_principal_component_analysis() -> None:
    """P. Baldi, K. Hornik 1989: from random weights, descent ends in the leading components."""
    torch.manual_seed(0)
    channels, patches = 5, 100
    config = TransformConfig(
        channels=channels, analysis_depths=(0, 0, 0), synthesis_depths=(0, 0, 0), rates=0
    )
    basis = torch.linalg.qr(torch.randn(768, 12))[0]
    spread = torch.tensor([90.0, 70, 55, 42, 30, 6, 5, 4, 3, 2, 1, 1])
    flat = (torch.randn(patches, 12) * spread) @ basis.T
    pixels = flat.reshape(patches, 3, 16, 16) + PIXEL_MEAN
    weight, _ = principal_components(flat, channels)
    components = weight.reshape(channels, -1).double().numpy().T
    reconstruction = flat.double().numpy() @ components @ components.T

    analysis, synthesis = Analysis(config), Synthesis(config)
    objective = AutoencoderObjective(ObjectiveConfig(noise=0.1))
    parameters = [*analysis.parameters(), *synthesis.parameters()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=50,
        history_size=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        relaxed = objective(analysis, pixels, np.random.default_rng(0), 0.0)
        picture = synthesis(relaxed.latent, torch.zeros(patches, dtype=torch.int64))
        value = reconstruction_loss(objective.config, picture, pixels)
        value.backward()
        return value

    for _ in range(4):
        optimizer.step(loss)  # type: ignore[arg-type]
    encoder = analysis.linear.weight.detach().double().reshape(channels, -1).numpy().T
    decoder = synthesis.linear.weight.detach().double().reshape(channels, -1).numpy().T
    assert subspace_angles(decoder, components).max() < 1e-3
    found = flat.double().numpy() @ encoder @ decoder.T
    error = np.square(found - flat.double().numpy()).mean()
    least = np.square(reconstruction - flat.double().numpy()).mean()
    assert error == pytest.approx(least, rel=1e-4)
    assert np.abs(found - reconstruction).max() < 2e-3 * np.abs(reconstruction).max()
