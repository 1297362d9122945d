"""Closed-form start of a model: principal components of patches, then codebooks by Lloyd's algorithm.

The codebooks are entropy-constrained (Chou, Lookabaugh, Gray 1989): every stage alternates the
assignment argmin ||r - c||^2 + mu * bits with centroids and empirical code lengths, on the
residual that the stages before it leave at their own prices.
"""

import logging
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.quantizer import SCALE, QuantizerConfig, ResidualQuantizer, to_latent
from vqcodec.train.photos import random_crops
from vqcodec.transform import PIXEL_MEAN, STRIDE
from vqcodec_kernels import codebook_stats, nearest_codeword

logger = logging.getLogger(__name__)

# Static code length from which a codeword counts as unused: no vector in a hundred thousand.
UNUSED_BITS = 20.0


def sample_patches(photos: list[NDArray[np.uint8]], count: int, random: np.random.Generator) -> Tensor:
    """About `count` 16x16 patches, centred, float32 (N, 768) in the order of a conv weight."""
    side = 16 * STRIDE
    crops = random_crops(photos, max(1, count // 256), side, random) - PIXEL_MEAN
    grid = crops.unfold(2, STRIDE, STRIDE).unfold(3, STRIDE, STRIDE)
    return grid.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * STRIDE * STRIDE)


def principal_components(patches: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Leading components of patches (N, 768): weight (channels, 3, 16, 16), deviation (channels,)."""
    covariance = patches.double().T @ patches.double() / len(patches)
    values, vectors = torch.linalg.eigh(covariance)
    leading = vectors.flip(1)[:, :channels].T
    # An eigenvector's sign is arbitrary; fix it, so that a start is reproducible.
    leading = leading * torch.sign(leading.sum(1, keepdim=True) + 1e-12)
    deviation = values.flip(0)[:channels].clamp_min(1e-6).sqrt()
    return leading.reshape(channels, 3, STRIDE, STRIDE).float(), deviation.float()


def fit_codebooks(
    latents: Tensor,
    config: QuantizerConfig,
    reach: Tensor,
    *,
    iterations: int = 24,
    random: np.random.Generator,
    progress: Callable[[str], None] = logger.info,
) -> tuple[ResidualQuantizer, Tensor]:
    """Codebooks and static code lengths for latents (N, C) that pixels can drive up to +-reach (C,).

    Returns the quantiser and bits float32 (S, G, K): the empirical code length of each codeword.
    """
    books: list[list[NDArray[np.int16]]] = []
    bits = torch.empty(config.stages, config.groups, config.codewords)
    residual = latents.clone()
    for stage in range(config.stages):
        stage_books = []
        rows = first = 0
        for count, dim in config.blocks:
            channels = slice(first, first + count * dim)
            vectors = residual[:, channels].reshape(len(residual), count, dim).transpose(0, 1)
            book, lengths = _fit_stage(vectors.contiguous(), config, config.mu[stage], iterations, random)
            stage_books.append((book * SCALE).round().clamp(-32768, 32767).short().numpy())
            bits[stage, rows : rows + count] = lengths
            rows, first = rows + count, channels.stop
        if stage == 0:
            spread_unused(stage_books, bits[0], config, reach)
        books.append(stage_books)
        quantizer = ResidualQuantizer(config, books)
        bias = config.mu[stage] * bits[stage, :, None]
        table = torch.zeros(config.groups, len(residual), dtype=torch.int32)
        index = quantizer.assign(stage, residual, bias, table)
        residual -= to_latent(quantizer.look_up(stage, index))
        spent = torch.gather(bits[stage], 1, index.long()).sum(0).mean() / STRIDE**2
        error = residual.square().sum(1).mean() / (3 * STRIDE**2)
        progress(f"stage {stage}: {spent:.3f} bpp, squared error {error:.1f} inside the latent")
    return quantizer, bits


def spread_unused(
    books: list[NDArray[np.int16]], bits: Tensor, config: QuantizerConfig, reach: Tensor
) -> None:
    """Spreads the scalar codewords that training never used over all that pixels can give.

    Photographs hold few saturated colours, so what Lloyd's algorithm leaves would cut them off.
    books: the first stage's, changed in place; bits (G, K); reach (C,).
    """
    group = 0
    for book, (count, dim) in zip(books, config.blocks, strict=True):
        for inside in range(count if dim == 1 else 0):
            # Scalar groups come first, so a group's number is its channel's.
            unused = torch.nonzero(bits[group + inside] > UNUSED_BITS).flatten().numpy()
            unused = unused[unused > 0]
            limit = float(reach[group + inside]) * SCALE
            places = np.linspace(-limit, limit, len(unused)).round().clip(-32768, 32767)
            book[inside, unused, 0] = places.astype(np.int16)
        group += count


def static_bits(latents: Tensor, quantizer: ResidualQuantizer, *, iterations: int = 6) -> Tensor:
    """Code lengths (S, G, K) of given codebooks on latents (N, C), each stage at its own price."""
    config = quantizer.config
    bits = torch.full((config.stages, config.groups, config.codewords), math.log2(config.codewords))
    residual = latents.clone()
    table = torch.zeros(config.groups, len(residual), dtype=torch.int32)
    for stage in range(config.stages):
        for _ in range(iterations):
            bias = config.mu[stage] * bits[stage, :, None]
            index = quantizer.assign(stage, residual, bias, table)
            offset = torch.arange(config.groups)[:, None] * config.codewords
            counts = torch.bincount((index.long() + offset).flatten(), minlength=bits[stage].numel())
            bits[stage] = _code_lengths(counts.reshape(bits[stage].shape).double())
        residual -= to_latent(quantizer.look_up(stage, index))
    return bits


def _code_lengths(counts: Tensor) -> Tensor:
    """Bits of each codeword by its frequency, counts (G, K); unseen ones stay possible."""
    smoothed = counts + 0.01
    return -(smoothed / smoothed.sum(1, keepdim=True)).log2().float()


def _fit_stage(
    vectors: Tensor,
    config: QuantizerConfig,
    mu: float,
    iterations: int,
    random: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Entropy-constrained Lloyd on vectors (G, N, D): codebook (G, K, D), bits (G, K)."""
    groups, count, _ = vectors.shape
    size = config.codewords
    picks = torch.from_numpy(random.integers(0, count, (groups, size)))
    book = torch.gather(vectors, 1, picks[:, :, None].expand(-1, -1, vectors.shape[2])).clone()
    book[:, 0] = 0
    bits = torch.full((groups, size), float(np.log2(size)))
    for step in range(iterations):
        # The price rises to its value over the first half: starting at it would kill codewords
        # before they have found their places.
        price = mu * min(1.0, 2 * (step + 1) / iterations)
        index = nearest_codeword(vectors, book, price * bits)
        assert isinstance(index, Tensor)
        counts, sums = codebook_stats(vectors, index, size)
        used = counts > 0
        book = torch.where(used[:, :, None], (sums / counts.clamp_min(1)[:, :, None]).float(), book)
        book[:, 0] = 0
        bits = _code_lengths(counts)
    return book, bits
