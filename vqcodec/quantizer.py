"""Residual grouped vector quantiser with entropy-constrained assignment.

The latent's C channels are cut, in order, into G groups of a few channels ("blocks" of groups
of equal dimension). Stage s quantises in every group what stages 0..s-1 left, with its own
codebook of K codewords; codeword 0 is the zero vector. An index is chosen by

    argmin_k  ||r - c_k||^2 + mu * bits_k

where bits_k is the code length that the position's own probability table gives, and mu, in squared
grey levels a bit, is the price of a bit. Codewords are fixed point, int16 in units of
2^-FRACTION_BITS, so the decoded latent is an exact integer tensor. With a predictor, the first
stage's codewords are added to what `vqcodec.prediction` says of the leading channels; a pooled first
stage is the upper level of a pyramid.

Layout: latent vectors (N, C); indices uint8 (G, N), one array a stage.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.prediction import Neighbours, Predictor
from vqcodec.pyramid import kept_positions, pool_positions, spread_positions
from vqcodec_kernels import nearest_codeword

FRACTION_BITS = 2
SCALE = 1 << FRACTION_BITS
# Steps of the rate inside one stage: the resolution of the header's rate bucket.
LEVELS = 8


@dataclass(frozen=True)
class QuantizerConfig:
    """Layout, and the prices mu at which the stages are used, in squared grey levels a bit.

    blocks: (number of groups, dimension) in channel order. mu: for each stage the price that its
    codebook is made for, which it pays when finer stages follow. first, last: for each stage the
    range of prices over which it is the last one. Prices are the encoder's own: files do not
    depend on them. The ranges of neighbouring stages overlap so that the rate goes on smoothly
    where a stage sets in: a new stage costs about a third more bits at an equal price. predicted:
    channels of each block of the spatial prediction, whole groups; without any there is none. pooled:
    the first stage has one vector for each 2x2 positions (`vqcodec.pyramid`); without prediction.
    """

    blocks: tuple[tuple[int, int], ...] = ((8, 1), (4, 2), (68, 4))
    codewords: int = 256
    mu: tuple[float, ...] = (1600.0, 400.0, 105.0, 28.0)
    first: tuple[float, ...] = (12000.0, 2400.0, 400.0, 95.0)
    last: tuple[float, ...] = (930.0, 225.0, 58.0, 25.0)
    predicted: tuple[int, ...] = ()
    pooled: bool = False

    @property
    def groups(self) -> int:
        return sum(count for count, _ in self.blocks)

    @property
    def channels(self) -> int:
        return sum(count * dim for count, dim in self.blocks)

    @property
    def stages(self) -> int:
        return len(self.mu)

    @property
    def predicted_groups(self) -> list[slice]:
        """The groups of each predicted block. ValueError if a block ends inside a group."""
        ends = np.cumsum([dim for count, dim in self.blocks for _ in range(count)]).tolist()
        edges = [0]
        for channel in np.cumsum(self.predicted).tolist():
            if channel not in ends:
                raise ValueError(f"a predicted block ends inside a group, at channel {channel}")
            edges.append(ends.index(channel) + 1)
        return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


class ResidualQuantizer:
    """Codebooks of all stages, and the search and look-up over them.

    codebooks[s][b]: int16 (groups of block b, K, dimension of block b).
    """

    def __init__(
        self,
        config: QuantizerConfig,
        codebooks: Sequence[Sequence[NDArray[np.int16]]],
        predictor: Predictor | None = None,
    ) -> None:
        self.config, self.predictor = config, predictor
        self.codebooks = [list(stage) for stage in codebooks]
        self.float_codebooks = [
            [torch.from_numpy(book.astype(np.float32) / SCALE) for book in stage]
            for stage in self.codebooks
        ]

    def spans(self, groups: slice) -> list[tuple[int, slice, slice, slice]]:
        """Blocks cut to a range of groups: (block, groups inside it, its groups inside the range,
        channels of the latent)."""
        spans = []
        first_group = first_channel = 0
        for b, (count, dim) in enumerate(self.config.blocks):
            start = max(groups.start, first_group)
            stop = min(groups.stop, first_group + count)
            if start < stop:
                channel = first_channel + (start - first_group) * dim
                spans.append(
                    (
                        b,
                        slice(start - first_group, stop - first_group),
                        slice(start - groups.start, stop - groups.start),
                        slice(channel, channel + (stop - start) * dim),
                    )
                )
            first_group += count
            first_channel += count * dim
        return spans

    def channels_of(self, groups: slice) -> slice:
        """The channels of the latent that a range of groups covers."""
        spans = self.spans(groups)
        return slice(spans[0][3].start, spans[-1][3].stop)

    def assign(
        self,
        stage: int,
        residual: Tensor,
        bias: Tensor,
        bias_table: Tensor,
        *,
        groups: slice | None = None,
    ) -> Tensor:
        """Indices of one stage for a range of groups (default all).

        residual float32 (N, channels of the groups); bias (g, T, K) = mu * bits; bias_table (g, N)
        -> uint8 (g, N).
        """
        groups = groups or slice(0, self.config.groups)
        first = self.channels_of(groups).start
        index = torch.empty(
            groups.stop - groups.start, len(residual), dtype=torch.uint8, device=residual.device
        )
        for b, inside, rows, channels in self.spans(groups):
            dim = self.config.blocks[b][1]
            part = residual[:, channels.start - first : channels.stop - first]
            vectors = part.reshape(len(residual), -1, dim).transpose(0, 1)
            found = nearest_codeword(
                vectors,
                self.float_codebooks[stage][b][inside],
                bias[rows],
                bias_table=bias_table[rows],
            )
            assert isinstance(found, Tensor)
            index[rows] = found.to(torch.uint8)
        return index

    def encode_stage(
        self,
        stage: int,
        target: Tensor,
        decoded: Tensor,
        bias: Tensor,
        bias_table: Tensor,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """One stage of whole grids of latents, with prediction where there is one.

        target float32 (N, P, C) with P positions of `grid`, (height, width), in raster order; decoded
        int32, the same shape: the stages before; bias (G, T, K), bias_table (G, N P) as for `assign`.
        Returns indices uint8 (G, N P) and what is decoded with them.
        """
        count, places, channels = target.shape
        if self.config.pooled and not stage:
            means = pool_positions(target - to_latent(decoded), grid)
            index = self.assign(stage, means.reshape(-1, channels), bias, bias_table)
            index = index.reshape(-1, count, places) * kept_positions(grid).to(index.device)
            codewords = self.look_up(stage, index.flatten(1)).reshape(decoded.shape)
            return index.flatten(1), decoded + spread_positions(codewords, grid)
        if stage or self.predictor is None:
            residual = (target - to_latent(decoded)).reshape(-1, channels)
            index = self.assign(stage, residual, bias, bias_table)
            return index, decoded + self.look_up(stage, index).reshape(decoded.shape)
        predictor, parts = self.predictor, self.config.predicted_groups
        index = torch.empty(self.config.groups, count, places, dtype=torch.uint8, device=target.device)
        tables = bias_table.reshape(-1, count, places)
        decoded = torch.zeros_like(decoded)

        def choose(groups: slice, residual: Tensor, here: Tensor | slice) -> Tensor:
            table = tables[groups][:, :, here].flatten(1).contiguous()
            found = self.assign(stage, residual.flatten(0, 1), bias[groups], table, groups=groups)
            index[groups, :, here] = found.reshape(len(found), count, -1)
            return self.look_up(stage, found, groups=groups).reshape(residual.shape)

        def add(block: int, kind: int, at: Neighbours, predicted: Tensor) -> Tensor:
            wanted = target[:, at.here, predictor.blocks[block]]
            return predicted + choose(parts[block], wanted - to_latent(predicted), at.here)

        predictor.decode(*grid, decoded, add)
        first = predictor.blocks[-1].stop
        rest = slice(parts[-1].stop, self.config.groups)
        decoded[:, :, first:] = choose(rest, target[:, :, first:], slice(None))
        return index.flatten(1), decoded

    def assign_nearest(self, stage: int, residual: Tensor) -> Tensor:
        """Indices of one stage by distance alone: residual float32 (N, C) -> uint8 (G, N)."""
        config = self.config
        bias = torch.zeros(
            config.groups, 1, config.codewords, dtype=torch.float32, device=residual.device
        )
        table = torch.zeros(config.groups, len(residual), dtype=torch.int32, device=residual.device)
        return self.assign(stage, residual, bias, table)

    def nearest_stages(self, vectors: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """Indices (G, P) of every stage, each by distance alone, of latent vectors float32 (P, C) at the
        positions of a grid (height, width) in raster order."""
        config = self.config
        bias = torch.zeros(config.groups, 1, config.codewords, device=vectors.device)
        table = torch.zeros(config.groups, len(vectors), dtype=torch.int32, device=vectors.device)
        indices = []
        decoded = torch.zeros(1, *vectors.shape, dtype=torch.int32, device=vectors.device)
        for stage in range(config.stages):
            index, decoded = self.encode_stage(stage, vectors[None], decoded, bias, table, grid)
            indices.append(index)
        return indices

    def look_up(self, stage: int, index: Tensor, *, groups: slice | None = None) -> Tensor:
        """Codewords of one stage in fixed point: index (g, N) -> int32 (N, channels of groups)."""
        groups = groups or slice(0, self.config.groups)
        parts = []
        for b, inside, rows, _ in self.spans(groups):
            book = torch.from_numpy(self.codebooks[stage][b][inside]).to(index.device)
            codes = index[rows].long()
            picked = torch.gather(book, 1, codes[:, :, None].expand(-1, -1, book.shape[2]))
            parts.append(picked.transpose(0, 1).reshape(index.shape[1], -1))
        return torch.cat(parts, 1).int()


def to_latent(fixed: Tensor) -> Tensor:
    """Fixed-point sum of codewords (int32) to the latent's units (float32, exact)."""
    return fixed.float() / SCALE


class RatePoint(NamedTuple):
    """Where on the rate axis a picture is coded: the header's bucket, 1..S * LEVELS, which says
    how many stages there are and how the prior sees the last one, and the last stage's price."""

    bucket: int
    price: float

    @property
    def last_stage(self) -> int:
        """Index of the last stage that is coded."""
        return (self.bucket - 1) // LEVELS


def price_in(config: QuantizerConfig, stage: int, fraction: float) -> float:
    """Price at a fraction of a stage's range as the last one: geometric from first to last."""
    return config.first[stage] ** (1 - fraction) * config.last[stage] ** fraction


def point_at(config: QuantizerConfig, position: float) -> RatePoint:
    """The point of a position in (0, S]: stage s is the last one from s to s + 1."""
    if not 0 < position <= config.stages:
        raise ValueError(f"rate position must lie in (0, {config.stages}], got {position}")
    stage = min(config.stages - 1, math.ceil(position) - 1)
    fraction = position - stage
    bucket = stage * LEVELS + min(LEVELS - 1, int(fraction * LEVELS)) + 1
    return RatePoint(bucket, price_in(config, stage, fraction))


def stage_price(
    config: QuantizerConfig, point: RatePoint, stage: int, *, surcharge: float = 0.0
) -> float:
    """mu that a stage pays: the last one the point's, earlier ones their own, but never less.

    surcharge: the share that is added to it, on the last stage half of that. A stage that is the first
    and the last pays none.
    """
    if stage < point.last_stage:
        return max(point.price, config.mu[stage] * (1 + surcharge))
    return point.price * (1 + surcharge / 2 if stage else 1)


def level_in(bucket: int, stage: int) -> int | None:
    """How far a stage is refined in a rate bucket: 0..LEVELS-1, None if it is not coded at all."""
    last = (bucket - 1) // LEVELS
    if stage > last:
        return None
    return LEVELS - 1 if stage < last else (bucket - 1) % LEVELS
