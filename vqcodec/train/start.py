"""Closed-form start of a model: principal components of patches, then codebooks by Lloyd's algorithm.

The codebooks are entropy-constrained (Chou, Lookabaugh, Gray 1989): every stage alternates the
assignment argmin ||r - c||^2 + mu * bits with centroids and empirical code lengths, on the
residual that the stages before it leave at their own prices. Where the first stage is predicted,
prediction and codebooks are fitted in turn.

Patches and their latents come in grids of GRID x GRID positions, as crops have them.
"""

import logging
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.prediction import CLASSES, Predictor, neighbours
from vqcodec.pyramid import kept_positions, pool_positions
from vqcodec.quantizer import SCALE, QuantizerConfig, ResidualQuantizer, to_latent
from vqcodec.train.photos import random_crops
from vqcodec.train.predictor import NormalEquations
from vqcodec.transform import PIXEL_MEAN, STRIDE
from vqcodec_kernels import codebook_stats, nearest_codeword

logger = logging.getLogger(__name__)

# Static code length from which a codeword counts as unused: no vector in a hundred thousand.
UNUSED_BITS = 20.0
# Positions of a crop a side.
GRID = 16
# Rounds of fitting the prediction to what was decoded, and codebooks to what it leaves.
_PREDICTION_ROUNDS = 2
# Grids of latents that are coded at once.
_BATCH = 64


def sample_patches(photos: list[NDArray[np.uint8]], count: int, random: np.random.Generator) -> Tensor:
    """About `count` 16x16 patches, centred, float32 (N, 768) in the order of a conv weight: whole grids
    of them, one after the other, in raster order."""
    crops = random_crops(photos, max(1, count // GRID**2), GRID * STRIDE, random) - PIXEL_MEAN
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
    bits = torch.empty(config.stages, config.groups, config.codewords)
    books, bits[0], predictor, residual = _fit_first(latents, config, reach, iterations, random)
    _report(progress, 0, latents, residual)
    for stage in range(1, config.stages):
        stage_books, bits[stage] = _fit_books(residual, config, config.mu[stage], iterations, random)
        books.append(stage_books)
        quantizer = ResidualQuantizer(config, books)
        bias = config.mu[stage] * bits[stage, :, None]
        table = torch.zeros(config.groups, len(residual), dtype=torch.int32)
        index = quantizer.assign(stage, residual, bias, table)
        residual -= to_latent(quantizer.look_up(stage, index))
        _report(progress, stage, latents, residual)
    return ResidualQuantizer(config, books, predictor), bits


def _fit_first(
    latents: Tensor,
    config: QuantizerConfig,
    reach: Tensor,
    iterations: int,
    random: np.random.Generator,
) -> tuple[list[list[NDArray[np.int16]]], Tensor, Predictor | None, Tensor]:
    """Codebooks, code lengths (G, K) and prediction of the first stage, and what it leaves (N, C)."""
    price = config.mu[0]
    if not config.predicted:
        fitted = _block_means(latents) if config.pooled else latents
        books, bits = _fit_books(fitted, config, price, iterations, random)
        spread_unused(books, bits, config, reach)
        quantizer = ResidualQuantizer(config, [books])
        return [books], bits, None, latents - to_latent(_decode_first(quantizer, latents, bits))
    # At first as if every channel were rounded to the step that its price stands for.
    step = math.sqrt(6.5 * price)
    decoded = (latents.sign() * (latents.abs() / step + 0.4).floor() * step * SCALE).round().int()
    for _ in range(_PREDICTION_ROUNDS):
        equations = NormalEquations(config.predicted)
        for some, known in _in_grids(latents, decoded):
            equations.add(some, known, (GRID, GRID))
        predictor = equations.solve()
        residual = latents - to_latent(_predict_all(predictor, decoded))
        books, bits = _fit_books(residual, config, price, iterations, random)
        # What is to be added to a prediction can be as far off as the prediction itself.
        spread_unused(books, bits, config, 1.5 * reach)
        quantizer = ResidualQuantizer(config, [books], predictor)
        decoded = _decode_first(quantizer, latents, bits)
    return [books], bits, predictor, latents - to_latent(decoded)


def _block_means(latents: Tensor) -> Tensor:
    """What a pooled stage codes of latents (N, C): one mean for each 2x2 positions, (N / 4, C)."""
    grid = (GRID, GRID)
    kept = kept_positions(grid).bool()
    return torch.cat(
        [pool_positions(some, grid)[:, kept].flatten(0, 1) for (some,) in _in_grids(latents)]
    )


def _predict_all(predictor: Predictor, decoded: Tensor) -> Tensor:
    """The prediction int32 (N, C) of every position from decoded neighbours, zero where there is none."""
    parts = []
    for (some,) in _in_grids(decoded):
        predicted = torch.zeros_like(some)
        for block, channels in enumerate(predictor.blocks):
            for kind in range(CLASSES):
                at = neighbours(kind, GRID, GRID)
                predicted[:, at.here, channels] = predictor.predict(block, kind, some, at)
        parts.append(predicted.flatten(0, 1))
    return torch.cat(parts)


def _decode_first(quantizer: ResidualQuantizer, latents: Tensor, bits: Tensor) -> Tensor:
    """What the first stage decodes of latents (N, C) at its own price, int32."""
    bias = quantizer.config.mu[0] * bits[:, None]
    return torch.cat([_encode_grids(quantizer, 0, some, None, bias)[1] for (some,) in _in_grids(latents)])


def _encode_grids(
    quantizer: ResidualQuantizer, stage: int, target: Tensor, decoded: Tensor | None, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Indices (G, N) and what is decoded (N, C) of grids of latents, all with the same code lengths."""
    before = torch.zeros(target.shape, dtype=torch.int32) if decoded is None else decoded
    table = torch.zeros(len(bias), target.shape[0] * target.shape[1], dtype=torch.int32)
    index, after = quantizer.encode_stage(stage, target, before, bias, table, (GRID, GRID))
    return index, after.flatten(0, 1)


def _in_grids(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Vectors (N, C) some grids at a time, (n, GRID^2, C)."""
    grids = [part.reshape(-1, GRID * GRID, part.shape[1]) for part in vectors]
    return zip(*(part.split(_BATCH) for part in grids), strict=True)


def _fit_books(
    residual: Tensor,
    config: QuantizerConfig,
    price: float,
    iterations: int,
    random: np.random.Generator,
) -> tuple[list[NDArray[np.int16]], Tensor]:
    """Codebooks of every block for vectors (N, C), and their code lengths (G, K)."""
    books, lengths = [], []
    first = 0
    for count, dim in config.blocks:
        channels = slice(first, first + count * dim)
        vectors = residual[:, channels].reshape(len(residual), count, dim).transpose(0, 1)
        book, bits = _fit_stage(vectors.contiguous(), config, price, iterations, random)
        books.append((book * SCALE).round().clamp(-32768, 32767).short().numpy())
        lengths.append(bits)
        first = channels.stop
    return books, torch.cat(lengths)


def _report(progress: Callable[[str], None], stage: int, latents: Tensor, residual: Tensor) -> None:
    error = residual.square().sum(1).mean() / (3 * STRIDE**2)
    progress(f"stage {stage}: squared error {error:.1f} inside the latent")


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


def static_bits(
    latents: Tensor, quantizer: ResidualQuantizer, bits: Tensor, *, iterations: int = 6
) -> Tensor:
    """Code lengths (S, G, K) of given codebooks on latents (N, C), each stage at its own price.

    bits: those to begin with. Which of several codewords that are alike is the popular one is a matter
    of history, and everything that is trained later has to agree on it.
    """
    config = quantizer.config
    bits = bits.clone()
    decoded = torch.zeros(latents.shape, dtype=torch.int32)
    offset = torch.arange(config.groups)[:, None] * config.codewords
    for stage in range(config.stages):
        for _ in range(iterations):
            bias = config.mu[stage] * bits[stage, :, None]
            found = [
                _encode_grids(quantizer, stage, some, known, bias)
                for some, known in _in_grids(latents, decoded)
            ]
            index = torch.cat([part for part, _ in found], 1)
            counts = torch.bincount((index.long() + offset).flatten(), minlength=bits[stage].numel())
            bits[stage] = _code_lengths(counts.reshape(bits[stage].shape).double())
        decoded = torch.cat([part for _, part in found])
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
