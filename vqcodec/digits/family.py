"""Six autoencoders of digits with one interface: what each makes of a latent, and what it pays for it.

Losses are in nats a picture, x the pixels, x' the decoded ones, s the noise, z the latent:

    reconstruction   |x - x'|^2 / (2 s^2)
    ae               z = e(x)                            nothing
    dae              z = e(x + noise)                    nothing
    wae              z = e(x)                            C MMD^2(z, N(0, 1)), over the batch
    vae              z ~ N(m(x), v(x))                   C KL(N(m, v) || N(0, 1))
    cvae             as vae, y the label                 C KL(N(m, v) || N(mu_y, 1)), mu learnt
    hvae             z_l ~ N(m_l(x, z_<l), v_l(x, z_<l)) C sum_l KL(N(m_l, v_l) || p(z_l | z_<l))

    p(z_1) = N(0, 1),   p(z_l | z_<l) = N(a_l(z_<l), b_l(z_<l)), learnt

vae and cvae are the case of one group. The label of a cvae stands in the prior alone: neither encoder nor
decoder sees it. ae and dae have no prior: what they are drawn from is a Gaussian with mean and standard
deviation of each number of the latent, as training left them.

Layout: pixels (N, 64) in 0..1, row by row; labels int64 (N,); latents (N, D), groups side by side.

Invariants: all chance comes from the seeds given. Pixels that no hidden layer made are not bounded, all
others lie in 0..1.

Sources: P. Vincent et al., "Extracting and composing robust features with denoising autoencoders", 2008
(dae); D. Kingma, M. Welling 2014 (vae); I. Tolstikhin et al. 2018 (wae); K. Sohn, H. Lee, X. Yan,
"Learning structured output representation using deep conditional generative models", 2015 (cvae, with the
label in the networks); C. Sønderby et al., "Ladder variational autoencoders", 2016 and R. Child, "Very
deep VAEs generalize autoregressive models", 2021 (hvae).
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vqcodec.digits.config import LABELS, PIXELS, DigitsConfig
from vqcodec.digits.networks import GaussianHead, make_layers
from vqcodec.divergences import gaussian_divergence, maximum_mean_discrepancy, standardise_gaussian
from vqcodec_kernels import gaussian_sample
from vqcodec_kernels.philox import philox_normal

# Scales of the kernels about 2 D, the mean squared distance of two draws from N(0, 1) in D dimensions.
_KERNEL_SCALES = (0.2, 1.0, 5.0)
_SEEDS = 2**63
# Spread of the labels' places before training: those that begin within each other's reach hardly part.
_APART = 3.0


class Loss(NamedTuple):
    """Means over a batch, in nats a picture; the penalty is without its weight."""

    reconstruction: Tensor
    penalty: Tensor


class Posterior(NamedTuple):
    """q(z | x) and the prior that it is held to: means and log-variances, (N, D) each."""

    mean: Tensor
    log_variance: Tensor
    prior_mean: Tensor
    prior_log_variance: Tensor

    def divergence(self) -> Tensor:
        """KL of each number of the latent, nats (N, D)."""
        return gaussian_divergence(*self)

    def relative(self) -> tuple[Tensor, Tensor]:
        """Mean and log-variance in units of the prior, under which it is N(0, 1): KL stays what it is."""
        return standardise_gaussian(*self)


class DigitsModel(nn.Module, ABC):
    """What all kinds share: networks, decoding, reconstruction, drawing."""

    centre: Tensor
    spread: Tensor
    labelled = False

    def __init__(self, kind: str, config: DigitsConfig) -> None:
        super().__init__()
        self.kind, self.config = kind, config
        widths = config.hidden
        self.decoder = make_layers((config.latent, *reversed(widths), PIXELS), bounded=bool(widths))
        # Of the Gaussian that draws begin with.
        self.register_buffer("centre", torch.zeros(config.latent))
        self.register_buffer("spread", torch.ones(config.latent))

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """The latent of each picture, (N, D): the mean where the posterior has a width."""

    @abstractmethod
    def loss(self, pixels: Tensor, labels: Tensor, random: np.random.Generator) -> Loss:
        """What training minimises over a batch."""

    def decode(self, latent: Tensor) -> Tensor:
        """(N, D) -> pixels (N, 64)."""
        pixels: Tensor = self.decoder(latent)
        return pixels

    def fit_prior(self, pixels: Tensor) -> None:
        """Called once after training, with what was trained on; only who has no prior needs it."""

    def draw_latents(self, count: int, *, seed: int, label: int | None = None) -> Tensor:
        """Latents from the prior, (count, D); of one label, or of every label in turn, where it has
        labels.

        ValueError for a count below 1, or for a label that there is not.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if label is not None:
            if not self.labelled:
                raise ValueError(f"{self.kind} knows no labels")
            if not 0 <= label < LABELS:
                raise ValueError(f"label must lie in 0..{LABELS - 1}, got {label}")
        noise = philox_normal(seed, count * self.config.latent).reshape(count, self.config.latent)
        labels = torch.arange(count) % LABELS if label is None else torch.full((count,), label)
        return self._from_noise(noise, labels)

    def draw(self, count: int, *, seed: int, label: int | None = None) -> Tensor:
        """Pictures from the prior, pixels (count, 64), without the noise that reconstruction assumes."""
        return self.decode(self.draw_latents(count, seed=seed, label=label))

    def reconstruction(self, decoded: Tensor, pixels: Tensor) -> Tensor:
        """Nats of each picture (N,): its negative log-likelihood but for the constant."""
        return (decoded - pixels).square().sum(1) / (2 * self.config.noise**2)

    def _from_noise(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Normals (N, D), labels (N,) -> latents (N, D)."""
        return self.centre + self.spread * noise


class Autoencoder(DigitsModel):
    """ae: a point for every picture."""

    def __init__(self, kind: str, config: DigitsConfig) -> None:
        super().__init__(kind, config)
        self.encoder = make_layers((PIXELS, *config.hidden, config.latent))

    def encode(self, pixels: Tensor) -> Tensor:
        latent: Tensor = self.encoder(pixels)
        return latent

    def loss(self, pixels: Tensor, labels: Tensor, random: np.random.Generator) -> Loss:
        latent = self.encode(pixels)
        return Loss(self.reconstruction(self.decode(latent), pixels).mean(), latent.new_zeros(()))

    @torch.no_grad()
    def fit_prior(self, pixels: Tensor) -> None:
        latent = self.encode(pixels)
        self.centre.copy_(latent.mean(0))
        self.spread.copy_(latent.std(0, correction=0))


class DenoisingAutoencoder(Autoencoder):
    """dae: reads a picture with noise, and is asked for the one without."""

    def loss(self, pixels: Tensor, labels: Tensor, random: np.random.Generator) -> Loss:
        latent = self.encode(self.corrupt(pixels, seed=int(random.integers(_SEEDS))))
        return Loss(self.reconstruction(self.decode(latent), pixels).mean(), latent.new_zeros(()))

    def corrupt(self, pixels: Tensor, *, seed: int) -> Tensor:
        """The pictures with Gaussian noise, which may leave 0..1."""
        if not self.config.corruption:
            return pixels
        log_variance = torch.full_like(pixels, 2 * math.log(self.config.corruption))
        return gaussian_sample(pixels, log_variance, seed=seed, kl=False).z


class WassersteinAutoencoder(Autoencoder):
    """wae: points that together lie as draws from N(0, 1) would."""

    def loss(self, pixels: Tensor, labels: Tensor, random: np.random.Generator) -> Loss:
        latent = self.encode(pixels)
        zero = torch.zeros_like(latent)
        prior = gaussian_sample(zero, zero, seed=int(random.integers(_SEEDS)), kl=False).z
        scales = [2 * self.config.latent * scale for scale in _KERNEL_SCALES]
        penalty = maximum_mean_discrepancy(latent, prior, scales=scales)
        return Loss(self.reconstruction(self.decode(latent), pixels).mean(), penalty)

    def fit_prior(self, pixels: Tensor) -> None:
        """It has one."""


class VariationalAutoencoder(DigitsModel):
    """vae, and with more than one group hvae."""

    def __init__(self, kind: str, config: DigitsConfig) -> None:
        super().__init__(kind, config)
        size, widths = config.latent // config.groups, config.hidden
        self.trunk = make_layers((PIXELS, *widths)) if widths else nn.Identity()
        seen = widths[-1] if widths else PIXELS
        self.activation = nn.SiLU() if widths else nn.Identity()
        starts = [group * size for group in range(config.groups)]
        self.posteriors = nn.ModuleList(
            # The first group sees the picture alone; later ones need a layer for what came before.
            GaussianHead(
                (seen + start, *((seen,) if start else ()), size), start=config.start_log_variance
            )
            for start in starts
        )
        self.priors = nn.ModuleList(
            GaussianHead((start, *widths[-1:], size), start=0.0) for start in starts[1:]
        )

    def encode(self, pixels: Tensor) -> Tensor:
        return self._descend(pixels, None, None)[0]

    def posterior(self, pixels: Tensor, labels: Tensor | None = None) -> Posterior:
        """With every group above at its mean. ValueError if labels are missing."""
        self._require(labels)
        return self._descend(pixels, labels, None)[2]

    def loss(self, pixels: Tensor, labels: Tensor, random: np.random.Generator) -> Loss:
        latent, divergence, _ = self._descend(pixels, labels, int(random.integers(_SEEDS)))
        return Loss(self.reconstruction(self.decode(latent), pixels).mean(), divergence.mean())

    @torch.no_grad()
    def elbo(self, pixels: Tensor, labels: Tensor | None = None, *, seed: int, draws: int = 1) -> Tensor:
        """A lower bound of ln p(x), for a cvae of ln p(x | y), in nats (N,), from the mean of some draws.

        Pixels count as continuous, so it is a density's and may be positive. ValueError for draws below
        1, or if labels are missing.
        """
        self._require(labels)
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        constant = 0.5 * PIXELS * math.log(2 * math.pi * self.config.noise**2)
        total = torch.zeros(len(pixels))
        for each in np.random.default_rng(seed).integers(_SEEDS, size=draws):
            latent, divergence, _ = self._descend(pixels, labels, int(each))
            total -= self.reconstruction(self.decode(latent), pixels) + divergence + constant
        return total / draws

    def _require(self, labels: Tensor | None) -> None:
        if self.labelled and labels is None:
            raise ValueError(f"the prior of {self.kind} is one of labels: give them")

    def _descend(
        self, pixels: Tensor, labels: Tensor | None, seed: int | None
    ) -> tuple[Tensor, Tensor, Posterior]:
        """Latents (N, D) group by group, drawn or without a seed the means; KL (N,); what they are of."""
        hidden = self.activation(self.trunk(pixels))
        seeds = np.random.default_rng(seed).integers(_SEEDS, size=self.config.groups)
        latent, total = pixels[:, :0], pixels.new_zeros(len(pixels))
        parts: list[Posterior] = []
        for group, head in enumerate(self.posteriors):
            mean, log_variance = head(torch.cat((hidden, latent), 1))
            prior_mean, prior_log_variance = self._prior(group, latent, labels, mean)
            part = Posterior(mean, log_variance, prior_mean, prior_log_variance)
            parts.append(part)
            if seed is None:
                drawn, divergence = mean, part.divergence().sum(1)
            else:
                sample = gaussian_sample(
                    mean,
                    log_variance,
                    prior_mu=prior_mean,
                    prior_logvar=prior_log_variance,
                    seed=int(seeds[group]),
                )
                assert sample.kl is not None
                drawn, divergence = sample.z, sample.kl
            latent, total = torch.cat((latent, drawn), 1), total + divergence
        return latent, total, Posterior(*(torch.cat(each, 1) for each in zip(*parts, strict=True)))

    def _prior(
        self, group: int, above: Tensor, labels: Tensor | None, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of a group, as `like`, given the latents of those above it."""
        if group:
            mean, log_variance = self.priors[group - 1](above)
            return mean, log_variance
        return torch.zeros_like(like), torch.zeros_like(like)

    def _from_noise(self, noise: Tensor, labels: Tensor) -> Tensor:
        latent = noise[:, :0]
        for group, part in enumerate(noise.chunk(self.config.groups, 1)):
            mean, log_variance = self._prior(group, latent, labels, part)
            latent = torch.cat((latent, mean + (0.5 * log_variance).exp() * part), 1)
        return latent


class ConditionalAutoencoder(VariationalAutoencoder):
    """cvae: every label has a place of its own in the latent."""

    labelled = True

    def __init__(self, kind: str, config: DigitsConfig) -> None:
        super().__init__(kind, config)
        self.places = nn.Embedding(LABELS, config.latent)
        nn.init.normal_(self.places.weight, std=_APART)

    def _prior(
        self, group: int, above: Tensor, labels: Tensor | None, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Without labels nobody asks for the prior, only for the latents.
        mean = torch.zeros_like(like) if labels is None else self.places(labels)
        return mean, torch.zeros_like(like)


_CLASSES: dict[str, type[DigitsModel]] = {
    "ae": Autoencoder,
    "dae": DenoisingAutoencoder,
    "vae": VariationalAutoencoder,
    "wae": WassersteinAutoencoder,
    "cvae": ConditionalAutoencoder,
    "hvae": VariationalAutoencoder,
}


def make_model(kind: str, config: DigitsConfig) -> DigitsModel:
    """A model with the weights that torch's default generator gives.

    KeyError for an unknown kind; ValueError for an hvae of one group, or another kind of more.
    """
    if (config.groups > 1) != (kind == "hvae"):
        raise ValueError(
            f"hvae has two groups or more, the others one: {kind} cannot have {config.groups}"
        )
    return _CLASSES[kind](kind, config)
