"""What each mode makes of a latent in training, and what it pays for it: all modes but vq.

Every objective turns the latent of a batch into the one that the synthesis sees and adds a penalty to
the reconstruction, which all share. Losses are in nats for each sample of a picture:

    reconstruction   mse: |x - x'|^2 / (2 s^2),   mae: sqrt(2) |x - x'| / s      (s: noise)
    ae, dae          nothing; the dae sees pixels with noise
    vae              C KL(N(mu, sigma^2) || N(0, 1))
    hvae             C (KL(q(z1 | x) || N(0, 1)) + KL(q(z2 | x) || p(z2 | z1)))
    wae              C MMD(z, N(0, 1)), of a position's values together
    vqvae and kin    (beta |y - sg(e)|^2 + sum over stages of |sg(r) - e_r|^2) / (2 s^2)
    dvae             C KL(q(k | y) || p(k))

r is what the stages before leave of y; the sum is left out where codewords are moving averages, or stay
where they are (fsq).

Layout: latent (N, C, h, w) in grey levels; `scale` (C,) is its unit where a prior is N(0, 1).
Sources: D. Kingma, M. Welling 2014 (vae); A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural
discrete representation learning", 2017 (vqvae); E. Jang, S. Gu, B. Poole, "Categorical
reparameterization with Gumbel-softmax", 2017 and A. Ramesh et al. 2021 (dvae); P. Vincent et al.,
"Extracting and composing robust features with denoising autoencoders", 2008 (dae); I. Tolstikhin et al.,
"Wasserstein auto-encoders", 2018 (wae); F. Mentzer et al., "Finite scalar quantization", 2024 (fsq).
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vqcodec.bottleneck import count_nested
from vqcodec.divergences import maximum_mean_discrepancy
from vqcodec.hierarchy import ConditionalPrior
from vqcodec.posterior import CategoricalPosterior
from vqcodec.precision import fast_precision
from vqcodec.pyramid import kept_positions, pool_positions, spread_positions
from vqcodec.quantizer import LEVELS, SCALE, QuantizerConfig, ResidualQuantizer
from vqcodec.train.settings import ObjectiveConfig
from vqcodec.transform import Analysis
from vqcodec_kernels import codebook_stats, gaussian_sample, quantize

_SAMPLES = 3 * 16 * 16
# A codeword that wins less often than one vector in so many is moved onto a live vector.
_RARE = 1 / 20_000
# Positions of a batch that the wae compares with draws: the work grows with the square.
_COMPARED = 512
# Part of the batch in which everything is coded; the rest learns to do with less.
_COMPLETE_SHARE = 0.5


class Relaxed(NamedTuple):
    """What the synthesis sees, latent (N, C, h, w), and the penalty, a scalar."""

    latent: Tensor
    penalty: Tensor


def reconstruction_loss(config: ObjectiveConfig, picture: Tensor, pixels: Tensor) -> Tensor:
    """Mean nats of a sample: the negative log-likelihood of pixels but for its constant."""
    if config.reconstruction == "mae":
        return (picture - pixels).abs().mean() * math.sqrt(2) / config.noise
    return (picture - pixels).square().mean() / (2 * config.noise**2)


class Objective(nn.Module, ABC):
    """The trained part of a bottleneck."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(
        self, analysis: Analysis, pixels: Tensor, random: np.random.Generator, progress: float
    ) -> Relaxed:
        """pixels (N, 3, H, W); random: all chance comes from here; progress in 0..1 of the run.

        Convolutions may run in bfloat16; distances and likelihoods need their bits.
        """

    def after_step(self) -> None:
        """What has to be brought in order after a step of the optimiser; most need nothing."""


class AutoencoderObjective(Objective):
    """The latent as it is."""

    def forward(
        self, analysis: Analysis, pixels: Tensor, random: np.random.Generator, progress: float
    ) -> Relaxed:
        with fast_precision(pixels.device):
            latent = analysis(pixels)
        return Relaxed(latent, latent.new_zeros(()))


class DenoisingObjective(AutoencoderObjective):
    """The latent of pixels with noise; what is reconstructed are the pixels."""

    def forward(
        self, analysis: Analysis, pixels: Tensor, random: np.random.Generator, progress: float
    ) -> Relaxed:
        noise = _standard_normal(pixels.shape, random, pixels.device)
        return super().forward(analysis, pixels + self.config.input_noise * noise, random, progress)


class WassersteinObjective(Objective):
    """The latent as it is; what all positions together have is compared with N(0, 1)."""

    def forward(
        self, analysis: Analysis, pixels: Tensor, random: np.random.Generator, progress: float
    ) -> Relaxed:
        with fast_precision(pixels.device):
            latent = analysis(pixels)
        vectors = (latent / analysis.scale[:, None, None]).permute(0, 2, 3, 1).flatten(0, 2)
        count, channels = min(_COMPARED, len(vectors)), vectors.shape[1]
        chosen = torch.from_numpy(random.choice(len(vectors), count, replace=False))
        drawn = _standard_normal((count, channels), random, vectors.device)
        # The usual scales: those of the squared distance of two draws.
        scales = [share * 2 * channels for share in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
        distance = maximum_mean_discrepancy(vectors[chosen.to(vectors.device)], drawn, scales=scales)
        return Relaxed(latent, self.config.weight * distance)


class GaussianObjective(Objective):
    """A sample of the posterior, and its divergence from N(0, 1)."""

    def forward(
        self, analysis: Analysis, pixels: Tensor, random: np.random.Generator, progress: float
    ) -> Relaxed:
        with fast_precision(pixels.device):
            mean, log_variance = analysis.posterior(pixels)
        drawn, divergence = gaussian_sample(
            mean, log_variance, seed=int(random.integers(2**63, dtype=np.uint64))
        )
        assert divergence is not None
        penalty = self.config.weight * divergence.sum() / pixels.numel()
        return Relaxed(drawn * analysis.scale[:, None, None], penalty)


class HierarchicalObjective(Objective):
    """A sample of two levels, and their divergence from N(0, 1) and from p(z2 | z1)."""

    def __init__(self, config: ObjectiveConfig, conditional: ConditionalPrior) -> None:
        super().__init__(config)
        self.conditional = conditional

    def forward(
        self, analysis: Analysis, pixels: Tensor, random: np.random.Generator, progress: float
    ) -> Relaxed:
        with fast_precision(pixels.device):
            mean, log_variance = analysis.posterior(pixels)
        top, seeds = self.conditional.top, random.integers(2**63, size=2, dtype=np.uint64)
        upper, divergence = gaussian_sample(mean[:, :top], log_variance[:, :top], seed=int(seeds[0]))
        prior_mean, prior_log_variance = self.conditional(upper)
        lower, rest = gaussian_sample(
            mean[:, top:],
            log_variance[:, top:],
            seed=int(seeds[1]),
            prior_mu=prior_mean,
            prior_logvar=prior_log_variance,
        )
        assert divergence is not None and rest is not None
        penalty = self.config.weight * (divergence.sum() + rest.sum()) / pixels.numel()
        return Relaxed(torch.cat([upper, lower], 1) * analysis.scale[:, None, None], penalty)


class CodebookObjective(Objective):
    """An objective over codebooks (groups of a block, K, D), one a stage and block.

    They are kept in units of the scale, where one rate of learning fits all.
    """

    scale: Tensor

    def __init__(
        self, config: ObjectiveConfig, quantizer: ResidualQuantizer, scale: Tensor, *, trained: bool
    ) -> None:
        super().__init__(config)
        self.layout = quantizer.config
        self.register_buffer("scale", scale.clone())
        units = self._units()
        self.books = nn.ParameterList(
            nn.Parameter(book / unit, requires_grad=trained)
            for stage in quantizer.float_codebooks
            for book, unit in zip(stage, units, strict=True)
        )

    def after_step(self) -> None:
        """Codeword 0 stays the zero vector, which files leave out."""
        with torch.no_grad():
            for book in self.books:
                book[:, 0] = 0

    def quantizer(self) -> ResidualQuantizer:
        """The codebooks in fixed point."""
        units = self._units()
        books = [_fixed_point(book * units[i % len(units)]) for i, book in enumerate(self.books)]
        return ResidualQuantizer(
            self.layout, [books[i : i + len(units)] for i in range(0, len(books), len(units))]
        )

    def _units(self) -> list[Tensor]:
        """The scale of each block's vectors: (groups, 1, dimension)."""
        sizes = [count * dim for count, dim in self.layout.blocks]
        return [
            part.reshape(count, 1, dim)
            for part, (count, dim) in zip(self.scale.split(sizes), self.layout.blocks, strict=True)
        ]


class NearestObjective(CodebookObjective):
    """Residual nearest codewords, straight through."""

    def __init__(self, config: ObjectiveConfig, quantizer: ResidualQuantizer, scale: Tensor) -> None:
        super().__init__(config, quantizer, scale, trained=config.codebook == "gradient")
        # Moving averages of how often each codeword wins and of the sum of what it wins.
        self.counts = nn.ParameterList(
            nn.Parameter(torch.ones(book.shape[:2]), requires_grad=False) for book in self.books
        )
        self.sums = nn.ParameterList(
            nn.Parameter(book.clone(), requires_grad=False)
            for stage in quantizer.float_codebooks
            for book in stage
        )

    def forward(
        self, analysis: Analysis, pixels: Tensor, random: np.random.Generator, progress: float
    ) -> Relaxed:
        with fast_precision(pixels.device):
            latent = analysis(pixels)
        count, channels, height, width = latent.shape
        vectors = latent.permute(0, 2, 3, 1).reshape(-1, channels)
        kept = _kept_groups(count, self.layout, random, latent.device)
        dims = _group_dims(self.layout).to(latent.device)
        masks = [mask.repeat_interleave(height * width, 0).repeat_interleave(dims, 1) for mask in kept]
        # Later stages refine what the first ones left: to the encoder that is constant.
        residual, decoded = vectors.detach(), torch.zeros_like(vectors)
        penalty = latent.new_zeros(())
        for stage, mask in enumerate(masks):
            if self.layout.pooled and not stage:
                grids = residual.reshape(count, height * width, channels)
                means = pool_positions(grids, (height, width))
                first = kept_positions((height, width)).bool().to(means.device)
                found, loss = self._quantise_stage(stage, means[:, first].flatten(0, 1), random)
                upper = torch.zeros_like(grids)
                upper[:, first] = found.reshape(count, -1, channels)
                codewords = spread_positions(upper, (height, width)).flatten(0, 1)
            else:
                codewords, loss = self._quantise_stage(stage, residual, random)
            penalty = penalty + loss
            decoded += codewords * mask
            residual = residual - codewords
        coded = vectors * masks[0]
        penalty = penalty + self.config.commitment * (coded - decoded).square().sum()
        # Straight through: the value of the codewords, the gradient of what they stand for.
        seen = coded + (decoded - coded).detach()
        seen = seen.reshape(count, height, width, channels).permute(0, 3, 1, 2)
        return Relaxed(seen, penalty / (_SAMPLES * len(vectors) * 2 * self.config.noise**2))

    def _quantise_stage(
        self, stage: int, residual: Tensor, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """residual (N, C) -> its codewords (N, C), constant, and the codebook loss, summed."""
        parts, loss, first = [], residual.new_zeros(()), 0
        units = self._units()
        for block, (count, dim) in enumerate(self.layout.blocks):
            number = stage * len(self.layout.blocks) + block
            columns = slice(first, first + count * dim)
            first = columns.stop
            vectors = residual[:, columns].reshape(len(residual), count, dim).transpose(0, 1)
            found = quantize(vectors, self.books[number] * units[block])
            if self.config.codebook == "gradient":
                loss = loss + found.codebook_loss * vectors.numel()
            elif self.config.codebook == "ema" and self.training:
                self._follow(number, units[block], vectors, found.index, random)
            parts.append(found.x_q.detach().transpose(0, 1).reshape(len(residual), -1))
        return torch.cat(parts, 1), loss

    @torch.no_grad()
    def _follow(
        self, number: int, unit: Tensor, vectors: Tensor, index: Tensor, random: np.random.Generator
    ) -> None:
        """Moves the codewords to the moving mean of what they win; rare ones onto live vectors."""
        decay, seen, won = self.config.decay, self.counts[number], self.sums[number]
        counts, sums = codebook_stats(vectors, index, seen.shape[1])
        seen.lerp_(counts.float(), 1 - decay)
        won.lerp_(sums.float(), 1 - decay)
        rare = torch.nonzero(seen < _RARE * vectors.shape[1])
        if len(rare):
            group, codeword = rare.unbind(1)
            picks = torch.from_numpy(random.integers(0, vectors.shape[1], len(rare)))
            seen[group, codeword] = 1.0
            won[group, codeword] = vectors[group, picks.to(group.device)]
        self.books[number].copy_(won / seen[:, :, None] / unit)


class CategoricalObjective(CodebookObjective):
    """A Gumbel-softmax sample over one stage's codebook, at a temperature that falls."""

    def __init__(
        self,
        config: ObjectiveConfig,
        quantizer: ResidualQuantizer,
        scale: Tensor,
        posterior: CategoricalPosterior,
    ) -> None:
        super().__init__(config, quantizer, scale, trained=True)
        self.posterior = posterior

    def forward(
        self, analysis: Analysis, pixels: Tensor, random: np.random.Generator, progress: float
    ) -> Relaxed:
        with fast_precision(pixels.device):
            latent = analysis(pixels)
        count, channels, height, width = latent.shape
        vectors = latent.permute(0, 2, 3, 1).reshape(-1, channels) / self.scale
        logits = self.posterior.logits(vectors)
        kept = _kept_groups(count, self.layout, random, latent.device)[0]
        mask = kept.repeat_interleave(height * width, 0)
        divergence = (self.posterior.divergence(logits) * mask.T).sum()
        generator = torch.Generator(latent.device).manual_seed(int(random.integers(2**62)))
        uniform = torch.rand(logits.shape, generator=generator, device=latent.device)
        gumbel = -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()
        start, end = self.config.temperature
        temperature = start * (end / start) ** min(1.0, progress / 0.8)
        relaxed = ((logits + gumbel) / temperature).softmax(-1)
        parts, first = [], 0
        for book in self.books:
            chosen = torch.bmm(relaxed[first : first + len(book)], book)
            first += len(book)
            parts.append(chosen.transpose(0, 1).reshape(len(vectors), -1))
        dims = _group_dims(self.layout).to(mask.device)
        decoded = torch.cat(parts, 1) * mask.repeat_interleave(dims, 1) * self.scale
        decoded = decoded.reshape(count, height, width, channels).permute(0, 3, 1, 2)
        return Relaxed(decoded, self.config.weight * divergence / pixels.numel())


def start_posterior(
    quantizer: ResidualQuantizer, bits: Tensor, scale: Tensor, noise: float
) -> CategoricalPosterior:
    """The posterior that a Gaussian of this noise (grey levels) around each codeword has.

    bits (G, K): code lengths of the codewords, which become the prior.
    """
    posterior = CategoricalPosterior(quantizer.config)
    sizes = [count * dim for count, dim in quantizer.config.blocks]
    units = scale.split(sizes)
    with torch.no_grad():
        posterior.log_sharpness.copy_(2 * (scale / noise).log())
        for centre, book, unit in zip(posterior.centre, quantizer.float_codebooks[0], units, strict=True):
            centre.copy_(book / unit.reshape(len(book), 1, -1))
        posterior.log_prior.copy_(-bits * math.log(2))
        posterior.bias.copy_(posterior.log_prior)
    return posterior


def _standard_normal(shape: tuple[int, ...], random: np.random.Generator, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(int(random.integers(2**62)))
    return torch.randn(shape, generator=generator, device=device)


def _kept_groups(
    count: int, layout: QuantizerConfig, random: np.random.Generator, device: torch.device
) -> list[Tensor]:
    """Which groups of each stage are coded in each picture of a batch: 0 or 1, (N, G) a stage."""
    kept = np.ones((layout.stages, count, layout.groups), np.float32)
    for picture in range(count):
        if random.random() < _COMPLETE_SHARE:
            continue
        stage, level = divmod(int(random.integers(layout.stages * LEVELS)), LEVELS)
        kept[stage, picture, count_nested(layout.groups, level) :] = 0
        kept[stage + 1 :, picture] = 0
    return list(torch.from_numpy(kept).to(device))


def _group_dims(layout: QuantizerConfig) -> Tensor:
    """Number of channels of each group, int64 (G,)."""
    return torch.tensor([dim for count, dim in layout.blocks for _ in range(count)])


def _fixed_point(book: Tensor) -> np.ndarray:
    fixed = (book.detach().cpu() * SCALE).round().clamp(-32768, 32767).short()
    fixed[:, 0] = 0
    return fixed.numpy()
