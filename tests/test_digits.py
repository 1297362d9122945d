"""The autoencoders of digits: losses in closed form, gradients, training, files, the packaged cvae."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from vqcodec.digits import (
    KINDS,
    DigitsConfig,
    DigitsModel,
    digits_config,
    draw_digits,
    load_digits,
    save_digits,
    train_digits,
)
from vqcodec.digits.drawing import PACKAGED
from vqcodec.digits.family import DenoisingAutoencoder, VariationalAutoencoder, make_model
from vqcodec.digits.training import annealed_weight
from vqcodec.divergences import maximum_mean_discrepancy
from vqcodec.errors import ModelFileError, OutputExistsError
from vqcodec.model import find_model, load_model
from vqcodec_kernels import gaussian_sample

GAUSSIAN = ("vae", "cvae", "hvae")
TINY: dict[str, Any] = {"hidden": (12, 6), "latent": 4, "steps": 12, "batch": 16}


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Forty pictures, noisy copies of a pattern a label."""
    random = np.random.default_rng(0)
    patterns = random.random((10, 64)).repeat(4, axis=0)
    noisy = patterns + 0.1 * random.standard_normal(patterns.shape)
    return torch.from_numpy(noisy.clip(0, 1).astype(np.float32))


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(10).repeat_interleave(4)


def _model(kind: str, **changes: Any) -> Any:
    torch.manual_seed(1)
    return make_model(kind, digits_config(kind, **{**TINY, **changes}))


def _seed(random: int = 5) -> int:
    """The seed that a loss takes from a generator first."""
    return int(np.random.default_rng(random).integers(2**63))


# --- losses -------------------------------------------------------------------------------------


def _squares(model: DigitsModel, latent: Tensor, pixels: Tensor) -> float:
    difference = (model.decode(latent) - pixels).detach().double()
    return float(difference.square().sum()) / len(pixels) / (2 * model.config.noise**2)


def test_an_autoencoder_pays_for_reconstruction_alone(pixels: Tensor, labels: Tensor) -> None:
    model = _model("ae", noise=0.2)
    loss = model.loss(pixels, labels, np.random.default_rng(5))
    assert loss.reconstruction.item() == pytest.approx(
        _squares(model, model.encode(pixels), pixels), rel=1e-5
    )
    assert loss.penalty.item() == 0


def test_a_denoising_autoencoder_sees_noise_and_is_asked_for_none(pixels: Tensor, labels: Tensor) -> None:
    model = _model("dae", corruption=0.4)
    noisy = model.corrupt(pixels, seed=_seed())
    loss = model.loss(pixels, labels, np.random.default_rng(5))
    assert loss.reconstruction.item() == pytest.approx(
        _squares(model, model.encode(noisy), pixels), rel=1e-5
    )
    # 2560 numbers: the deviation of their deviation is 1.4 %.
    assert float((noisy - pixels).std()) == pytest.approx(0.4, rel=0.06)
    assert torch.equal(_model("dae", corruption=0.0).corrupt(pixels, seed=1), pixels)


def test_a_wae_pays_its_discrepancy(pixels: Tensor, labels: Tensor) -> None:
    model = _model("wae")
    loss = model.loss(pixels, labels, np.random.default_rng(5))
    latent = model.encode(pixels)
    zero = torch.zeros_like(latent)
    prior = gaussian_sample(zero, zero, seed=_seed()).z
    # 2 D is the mean squared distance of two draws from the prior.
    wanted = maximum_mean_discrepancy(latent, prior, scales=(1.6, 8.0, 40.0))
    assert loss.penalty.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert loss.reconstruction.item() == pytest.approx(_squares(model, latent, pixels), rel=1e-5)


@pytest.mark.parametrize("kind", ["vae", "cvae"])
def test_one_group_pays_its_divergence(kind: str, pixels: Tensor, labels: Tensor) -> None:
    model = _model(kind)
    posterior = model.posterior(pixels, labels)
    normal = torch.distributions.Normal(posterior.mean, (posterior.log_variance / 2).exp())
    centres = model.places(labels) if kind == "cvae" else torch.zeros(len(pixels), 4)
    prior = torch.distributions.Normal(centres, 1.0)
    wanted = torch.distributions.kl_divergence(normal, prior).sum(1).mean()
    loss = model.loss(pixels, labels, np.random.default_rng(5))
    assert loss.penalty.item() == pytest.approx(wanted.item(), rel=1e-4)
    torch.testing.assert_close(posterior.prior_mean, centres)
    assert (posterior.prior_log_variance == 0).all()


def test_hierarchical_divergence_is_that_of_samples(pixels: Tensor, labels: Tensor) -> None:
    """E over q(z) of ln q(z | x) - ln p(z), from draws of plain torch."""
    model = _model("hvae", latent=6, groups=3, start_log_variance=-1.0)
    copies = pixels[:1].expand(20_000, -1)
    with torch.no_grad():
        loss = model.loss(copies, labels[:1].expand(20_000), np.random.default_rng(5))
        hidden = model.activation(model.trunk(copies))
        generator = torch.Generator().manual_seed(3)
        latent, ratio = copies[:, :0], torch.zeros(len(copies))
        for group, head in enumerate(model.posteriors):
            mean, log_variance = head(torch.cat((hidden, latent), 1))
            above = model.priors[group - 1](latent) if group else (torch.zeros(2), torch.zeros(2))
            posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
            prior = torch.distributions.Normal(above[0], (above[1] / 2).exp())
            noise = torch.randn(mean.shape, generator=generator)
            drawn = posterior.mean + posterior.stddev * noise
            ratio += (posterior.log_prob(drawn) - prior.log_prob(drawn)).sum(1)
            latent = torch.cat((latent, drawn), 1)
    deviation = float(ratio.std()) / math.sqrt(len(ratio))
    assert loss.penalty.item() > 0.5
    assert abs(loss.penalty.item() - float(ratio.mean())) < 5 * deviation


@pytest.mark.parametrize("kind", GAUSSIAN)
def test_divergence_is_zero_at_the_prior_and_never_negative(
    kind: str, pixels: Tensor, labels: Tensor
) -> None:
    model = _model(kind)
    posterior = model.posterior(pixels, labels)
    assert (posterior.divergence() >= 0).all() and posterior.divergence().shape == (40, 4)
    standard = posterior.relative()
    same = posterior._replace(
        mean=standard[0],
        log_variance=standard[1],
        prior_mean=torch.zeros(40, 4),
        prior_log_variance=torch.zeros(40, 4),
    )
    torch.testing.assert_close(same.divergence(), posterior.divergence(), rtol=1e-3, atol=1e-5)
    for part in (*model.posteriors, *model.priors):
        for parameter in part.parameters():
            nn.init.zeros_(parameter)
    if kind == "cvae":
        nn.init.zeros_(model.places.weight)
    assert model.loss(pixels, labels, np.random.default_rng(5)).penalty.item() == 0


def test_hierarchical_posteriors_start_narrow(pixels: Tensor) -> None:
    posterior = _model("hvae").posterior(pixels)
    assert (posterior.log_variance + 9).abs().max().item() < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_part(kind: str, pixels: Tensor, labels: Tensor) -> None:
    model = _model(kind)
    loss = model.loss(pixels, labels, np.random.default_rng(5))
    (loss.reconstruction + loss.penalty).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_elbo_is_the_likelihood_where_the_posterior_is_exact() -> None:
    """A linear decoder with orthogonal columns W: p(x) = N(b, W W' + s^2), and the posterior of each
    number of the latent is N(w' (x - b) / (|w|^2 + s^2), s^2 / (|w|^2 + s^2))."""
    model = _model("vae", hidden=(), latent=2, noise=0.5)
    pixels = torch.rand(3, 64, generator=torch.Generator().manual_seed(4))
    square, noise = 4.0, 0.25
    weight = torch.linalg.qr(torch.randn(64, 2, generator=torch.Generator().manual_seed(5)))[0] * 2
    head, decoder = model.posteriors[0], model.decoder[0]
    with torch.no_grad():
        decoder.weight.copy_(weight)
        head.mean[0].weight.copy_(weight.T / (square + noise))
        head.mean[0].bias.copy_(-(weight.T @ decoder.bias) / (square + noise))
        head.log_variance[0].weight.zero_()
        head.log_variance[0].bias.fill_(math.log(noise / (square + noise)))
    covariance = weight @ weight.T + noise * torch.eye(64)
    density = torch.distributions.MultivariateNormal(decoder.bias.detach(), covariance)
    exact = density.log_prob(pixels)
    draws = 1000
    found = model.elbo(pixels, seed=1, draws=draws)
    # Of one draw, |z|^2 / 2 and the error vary by some units; the mean of the draws by a thirtieth.
    assert (found - exact).abs().max() < 0.15
    with torch.no_grad():
        head.mean[0].bias.add_(0.5)
    # A posterior beside the true one loses its divergence from that: 2 numbers, 0.25 * 17 / 2 nats each.
    lost = exact - model.elbo(pixels, seed=1, draws=draws)
    torch.testing.assert_close(lost, torch.full((3,), 4.25), rtol=0, atol=0.3)


def test_elbo_refuses(pixels: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="draws"):
        _model("vae").elbo(pixels, seed=1, draws=0)
    cvae = _model("cvae")
    for call in (lambda: cvae.elbo(pixels, seed=1), lambda: cvae.posterior(pixels)):
        with pytest.raises(ValueError, match="labels"):
            call()
    assert cvae.elbo(pixels, labels, seed=1).shape == (40,)
    assert _model("vae").elbo(pixels[:0], seed=1).shape == (0,)


# --- one interface ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_encodes_decodes_and_draws(kind: str, pixels: Tensor) -> None:
    model = _model(kind)
    with torch.no_grad():
        for count in (0, 1, 40):
            latent = model.encode(pixels[:count])
            assert latent.shape == (count, 4)
            decoded = model.decode(latent)
            assert decoded.shape == (count, 64)
            assert ((decoded >= 0) & (decoded <= 1)).all()
        drawn = model.draw(5, seed=3)
        assert drawn.shape == (5, 64) and torch.equal(drawn, model.draw(5, seed=3))
        assert not torch.equal(drawn, model.draw(5, seed=4))
        # The first draws are the same, whatever the count.
        torch.testing.assert_close(model.draw_latents(2, seed=3), model.draw_latents(5, seed=3)[:2])


def test_a_cvae_draws_around_the_places_of_its_labels() -> None:
    model = _model("cvae")
    with torch.no_grad():
        alone = model.draw_latents(4000, seed=1, label=7)
        torch.testing.assert_close(alone.mean(0), model.places.weight[7], rtol=0, atol=0.08)
        torch.testing.assert_close(alone.std(0), torch.ones(4), rtol=0, atol=0.06)
        turns = model.draw_latents(20, seed=1)
        noise = _model("vae").draw_latents(20, seed=1)
        torch.testing.assert_close(turns - noise, model.places.weight.repeat(2, 1))


def test_an_hvae_draws_group_after_group() -> None:
    model = _model("hvae")
    nn.init.normal_(model.priors[0].log_variance[-1].weight)
    with torch.no_grad():
        latents = model.draw_latents(4000, seed=1)
        mean, log_variance = model.priors[0](latents[:, :2])
        lower = (latents[:, 2:] - mean) * (-log_variance / 2).exp()
    for standard in (latents[:, :2], lower):
        # 4000 draws: deviations of 0.016 of a mean, of 0.011 of a deviation.
        torch.testing.assert_close(standard.mean(0), torch.zeros(2), rtol=0, atol=0.08)
        torch.testing.assert_close(standard.std(0), torch.ones(2), rtol=0, atol=0.06)
    assert log_variance.std() > 0.1


def test_what_cannot_be_drawn() -> None:
    for label in (-1, 10):
        with pytest.raises(ValueError, match="label"):
            _model("cvae").draw(1, seed=0, label=label)
    with pytest.raises(ValueError, match="labels"):
        _model("vae").draw(1, seed=0, label=3)
    with pytest.raises(ValueError, match="count"):
        _model("vae").draw(0, seed=0)


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_the_same_model_again(kind: str, pixels: Tensor, labels: Tensor) -> None:
    torch.manual_seed(9)
    state = torch.get_rng_state()
    config = digits_config(kind, **TINY)
    first = train_digits(kind, pixels, labels, config)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(10)
    second = train_digits(kind, pixels, labels, config)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not first.training and not any(p.requires_grad for p in first.parameters())
    other = train_digits(kind, pixels, labels, dataclasses.replace(config, seed=1))
    assert not torch.equal(first.decoder[0].weight, other.decoder[0].weight)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind: str, pixels: Tensor, labels: Tensor) -> None:
    config = digits_config(kind, **{**TINY, "noise": 0.1, "corruption": 0.1})
    before, after = (
        train_digits(kind, pixels, labels, dataclasses.replace(config, steps=steps)) for steps in (1, 300)
    )
    losses = []
    for model in (before, after):
        loss = model.loss(pixels, labels, np.random.default_rng(2))
        losses.append((loss.reconstruction + config.weight * loss.penalty).item())
    assert losses[1] < 0.9 * losses[0]


def test_who_has_no_prior_is_drawn_from_its_moments(pixels: Tensor, labels: Tensor) -> None:
    for kind in KINDS:
        model = train_digits(kind, pixels, labels, digits_config(kind, **TINY))
        latent = model.encode(pixels)
        fitted = kind in ("ae", "dae")
        torch.testing.assert_close(model.centre, latent.mean(0) if fitted else torch.zeros(4))
        spread = latent.std(0, correction=0) if fitted else torch.ones(4)
        torch.testing.assert_close(model.spread, spread)


def test_the_weight_rises_on_a_line() -> None:
    config = digits_config("vae", weight=3.0, annealing=0.5)
    assert [annealed_weight(config, p) for p in (0.0, 0.25, 0.5, 0.9)] == [0.0, 1.5, 3.0, 3.0]
    assert annealed_weight(digits_config("vae", weight=3.0), 0.0) == 3.0


def test_two_pictures_are_enough(pixels: Tensor, labels: Tensor) -> None:
    for kind in KINDS:
        model = train_digits(kind, pixels[:2].double(), labels[:2], digits_config(kind, **TINY))
        assert all(value.isfinite().all() for value in model.state_dict().values())


def test_pictures_that_are_refused(pixels: Tensor, labels: Tensor) -> None:
    config = digits_config("ae", **TINY)
    cases = [
        (pixels[:1], labels[:1]),
        (pixels[:, :63], labels),
        (pixels.reshape(40, 8, 8), labels),
        (pixels * 16, labels),
        (pixels - 1, labels),
        (torch.full_like(pixels, math.nan), labels),
        ((pixels * 255).byte(), labels),
        (pixels, labels[:39]),
        (pixels, labels.float()),
        (pixels, labels + 1),
        (pixels, labels - 1),
    ]
    for pictures, names in cases:
        with pytest.raises(ValueError):
            train_digits("ae", pictures, names, config)
    with pytest.raises(ValueError, match="kind"):
        train_digits("gan", pixels, labels, config)


@pytest.mark.parametrize(
    "changes",
    [
        {"latent": 0},
        {"latent": 2.0},
        {"latent": 5, "groups": 2},
        {"latent": 10**9},
        {"hidden": (8, 0)},
        {"hidden": (10**9,)},
        {"hidden": (1,) * 5000},
        {"noise": 0.0},
        {"noise": math.inf},
        {"weight": -1.0},
        {"weight": math.nan},
        {"annealing": 1.5},
        {"start_log_variance": math.nan},
        {"corruption": -0.1},
        {"steps": 0},
        {"batch": True},
        {"learning_rate": 0.0},
        {"seed": -1},
        {"seed": 0.5},
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        digits_config("vae", **changes)


def test_groups_belong_to_the_hierarchy() -> None:
    for kind in KINDS:
        groups = 1 if kind == "hvae" else 2
        with pytest.raises(ValueError, match="groups"):
            make_model(kind, digits_config(kind, groups=groups))
    with pytest.raises(ValueError, match="kind"):
        digits_config("gan")
    with pytest.raises(TypeError):
        digits_config("vae", wieght=1.0)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_back_from_its_file(kind: str, tmp_path: Path) -> None:
    model = _model(kind)
    model.centre.fill_(0.5)
    path = tmp_path / "model.safetensors"
    save_digits(model, path)
    loaded = load_digits(path)
    assert loaded.kind == kind and loaded.config == model.config and type(loaded) is type(model)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    save_digits(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    with pytest.raises(OutputExistsError):
        save_digits(model, path)
    save_digits(model, path, overwrite=True)


def _change(path: Path, **changes: Any) -> None:
    """Rewrites a file with other entries of its header, or of the settings in it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["vqcodec"])
    for name, value in changes.items():
        where = header["digits"] if name in header["digits"] else header["digits"]["config"]
        where[name] = value
    path.write_bytes(save(load(data), {"vqcodec": json.dumps(header)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "gan"},
        {"kind": ["ae"]},
        {"kind": "vae"},
        {"config": None},
        {"config": {"depth": 3}},
        {"latent": 5},
        {"latent": "4"},
        {"hidden": [12]},
        {"hidden": 7},
        {"hidden": [[12, 6]]},
        {"groups": 2},
        {"noise": None},
    ],
)
def test_files_that_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_digits(_model("ae"), path)
    _change(path, **changes)
    with pytest.raises(ModelFileError, match="model.safetensors"):
        load_digits(path)


def test_the_codec_and_the_digits_refuse_each_other(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="digits"):
        load_digits(find_model("ae"))
    with pytest.raises(ModelFileError):
        load_model(PACKAGED)
    with pytest.raises(ModelFileError):
        load_digits(tmp_path / "none.safetensors")


# --- the packaged cvae --------------------------------------------------------------------------


def test_the_packaged_model_is_small() -> None:
    assert PACKAGED.stat().st_size <= 100_000
    assert load_digits(PACKAGED).kind == "cvae"


def test_drawn_digits() -> None:
    many = draw_digits(3, 16, seed=1)
    assert many.shape == (16, 8, 8) and many.dtype == np.uint8
    assert np.array_equal(many, draw_digits(3, 16, seed=1))
    first = draw_digits(3, 1, seed=1)
    assert first.shape == (1, 8, 8) and np.abs(first[0].astype(int) - many[0]).max() <= 1
    assert not np.array_equal(many, draw_digits(3, 16, seed=2))
    assert not np.array_equal(many, draw_digits(8, 16, seed=1))
    # White on black: corners are dark, something is bright.
    assert many[:, 0, 0].max() < 64 and many.reshape(16, -1).max(1).min() > 128


@pytest.mark.parametrize(
    ("label", "count", "seed"), [(-1, 1, 0), (10, 1, 0), (3, 0, 0), (3, -5, 0), (3, 1, 2**63)]
)
def test_digits_that_cannot_be_drawn(label: int, count: int, seed: int) -> None:
    with pytest.raises(ValueError):
        draw_digits(label, count, seed=seed)


@pytest.mark.parametrize(
    ("label", "count"), [("3", 1), (3.0, 1), (3, 1.0), (True, 1), (3, True), (None, 1)]
)
def test_what_is_no_label_or_count(label: Any, count: Any) -> None:
    with pytest.raises(TypeError):
        draw_digits(label, count, seed=0)


def test_the_packaged_model_draws_what_it_is_asked_for() -> None:
    """By a classifier of scikit-learn's own digits, as in the study."""
    datasets = pytest.importorskip("sklearn.datasets")
    from bench.latent_measures import right_share, train_judge

    data = datasets.load_digits()
    judge = train_judge(data.data / 16, data.target)
    shares = [
        right_share(judge, draw_digits(label, 200, seed=5).reshape(200, 64) / 255, np.full(200, label))
        for label in range(10)
    ]
    assert np.mean(shares) >= 0.95 and min(shares) >= 0.8, shares


def test_digits_need_neither_scikit_learn_nor_matplotlib() -> None:
    code = (
        "import sys, vqcodec.digits; "
        "sys.exit(any(name in sys.modules for name in ('sklearn', 'matplotlib', 'scipy')))"
    )
    # The package that is tested, wherever another one is installed.
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), str(root / "kernels"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "VQCODEC_NATIVE": "0"}
    run = subprocess.run([sys.executable, "-S", "-c", code], env=environment)
    assert run.returncode == 0


def test_kinds_and_classes_agree() -> None:
    assert isinstance(_model("dae"), DenoisingAutoencoder)
    assert all(isinstance(_model(kind), VariationalAutoencoder) == (kind in GAUSSIAN) for kind in KINDS)
    assert DigitsConfig() == digits_config("vae")
