"""The seam between latent and symbols.

Every kind of latent offers the same four steps, so one codec and one container serve all:

    latent --to_symbols--> planes --write--> streams --(file)--> streams --read--> indices
           --from_symbols--> latent

A `SymbolPlane` is one typed plane of symbols with the probability table of each; streams are the
bytes of each plane's prior tiles. Only integers pass between `write` and `read`.

Layout: the protocol; planes and the prior's order of coding, shared by all; the vector bottleneck
and how its relatives choose indices, those of mode dvae and those of the others. `vqcodec.uniform`
has the bottleneck of continuous latents, `vqcodec.hierarchy` that of two levels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.entropy import StreamDecoder, StreamEncoder, TableModels, ideal_bits
from vqcodec.errors import CorruptError
from vqcodec.posterior import CategoricalPosterior
from vqcodec.prediction import PASS_CLASSES, Neighbours
from vqcodec.prior import PROBABILITY_BITS, IntegerPrior, Pass, PriorConfig, PriorContext, list_passes
from vqcodec.pyramid import kept_positions, pool_positions, spread_positions
from vqcodec.quantizer import LEVELS, RatePoint, ResidualQuantizer, level_in, stage_price, to_latent


@dataclass(frozen=True)
class SymbolPlane:
    """Symbols of one stage: index and table (G, H, W); bits: their ideal code length.

    Indices are uint8, values of a continuous latent int32 (those outside the alphabet escape).
    """

    stage: int
    index: NDArray[np.integer]
    tables: NDArray[np.uint8]
    bits: float


class Bottleneck(Protocol):
    """What the codec asks of a kind of latent."""

    @property
    def buckets(self) -> int:
        """Number of rate buckets; a file's lies in 1..buckets."""

    def to_symbols(
        self, latent: Tensor, point: RatePoint, *, stages: int | None = None
    ) -> list[SymbolPlane]:
        """Symbols of latent (C, H, W) at a point of the rate axis, at most `stages` planes of them."""

    def write(self, planes: Sequence[SymbolPlane]) -> dict[int, list[bytes]]:
        """Streams of each section by stage, one a prior tile; what needs none is left out."""

    def read(
        self, streams: Mapping[int, Sequence[bytes]], bucket: int, height: int, width: int
    ) -> Sequence[NDArray[np.integer]]:
        """Symbols (G, H, W) of every stage up to the last that has streams, at least the first."""

    def from_symbols(self, indices: Sequence[NDArray[np.integer]], bucket: int) -> Tensor:
        """Latent (C, H, W) of the symbols of each stage."""

    def shown_bucket(self, indices: Sequence[NDArray[np.integer]], bucket: int) -> int:
        """The rate bucket that the synthesis is told."""


def choose_plane(
    context: PriorContext, choose: Callable[[Pass, NDArray[np.uint8]], NDArray[np.uint8]]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Goes through the stage that was begun, in coding order, and closes it.

    choose: symbols (g, P) of a pass, given its tables (g, P). Symbols and tables (G, H, W).
    """
    tables = np.zeros((context.prior.groups, *context.shape), np.uint8)
    for step in context.passes:
        chosen = context.select(step)
        context.update(step, choose(step, chosen))
        tables[step.groups, step.rows, step.columns] = chosen
    return context.end_stage(), tables


def write_plane(models: TableModels, config: PriorConfig, plane: SymbolPlane) -> list[bytes]:
    """The streams of a plane of symbols uint8, one a prior tile."""
    passes = list_passes(config, *plane.index.shape)
    coded = []
    for tile in range(len(passes[0].tiles) - 1):
        encoder = StreamEncoder(models)
        for step in passes:
            here = slice(step.tiles[tile], step.tiles[tile + 1])
            rows, columns = step.rows[here], step.columns[here]
            encoder.encode(
                step.groups.start,
                plane.index[step.groups, rows, columns].astype(np.uint8, copy=False),
                plane.tables[step.groups, rows, columns],
            )
        coded.append(encoder.finish())
    return coded


def read_plane(models: TableModels, context: PriorContext, streams: Sequence[bytes]) -> NDArray[np.uint8]:
    """The inverse of `write_plane` in the stage that was begun, which it closes: symbols (G, H, W)."""
    decoders = [StreamDecoder(models, data) for data in streams]

    def decode(step: Pass, tables: NDArray[np.uint8]) -> NDArray[np.uint8]:
        index = np.empty_like(tables)
        for tile, decoder in enumerate(decoders):
            here = slice(step.tiles[tile], step.tiles[tile + 1])
            index[:, here] = decoder.decode(step.groups.start, tables[:, here])
        return index

    index, _ = choose_plane(context, decode)
    for decoder in decoders:
        decoder.check_end()
    return index


def draw_plane(
    frequencies: NDArray[np.int64], context: PriorContext, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Symbols (G, H, W) drawn from the tables (G, T, K) of the stage that was begun."""
    below = frequencies.cumsum(-1)

    def draw(step: Pass, tables: NDArray[np.uint8]) -> NDArray[np.uint8]:
        places = random.integers(0, 1 << PROBABILITY_BITS, tables.shape)
        index = np.empty_like(tables)
        for row, group in enumerate(range(step.groups.start, step.groups.stop)):
            index[row] = (below[group][tables[row]] <= places[row][:, None]).sum(-1)
        return index

    return choose_plane(context, draw)[0]


class VectorBottleneck:
    """Residual grouped vector quantisation with the integer conditional prior (mode 0).

    threads: of the integer layers; None follows `torch.get_num_threads()`.
    """

    def __init__(
        self,
        quantizer: ResidualQuantizer,
        prior: IntegerPrior,
        *,
        native: bool | None = None,
        threads: int | None = None,
    ) -> None:
        self.quantizer, self.prior = quantizer, prior
        self.native, self.threads = native, threads
        self._models = [TableModels(f) for f in prior.frequencies]
        self._bits = [torch.from_numpy(bits) for bits in prior.bits]

    @property
    def buckets(self) -> int:
        return self.quantizer.config.stages * LEVELS

    def to_symbols(
        self,
        latent: Tensor,
        point: RatePoint,
        *,
        stages: int | None = None,
        surcharge: float = 0.0,
    ) -> list[SymbolPlane]:
        """Entropy-constrained assignment: each index pays what its own table will charge.

        surcharge: on the price of a bit, see `stage_price`; modes without prices know none.
        """
        _, height, width = latent.shape
        context = self._context(height, width)
        target = latent.permute(1, 2, 0).reshape(height * width, -1).float().cpu().contiguous()
        decoded = torch.zeros(target.shape, dtype=torch.int32, device=target.device)
        planes: list[SymbolPlane] = []
        for stage in range(point.last_stage + 1)[:stages]:
            level = level_in(point.bucket, stage)
            assert level is not None
            context.begin_stage(level)
            price = stage_price(self.quantizer.config, point, stage, surcharge=surcharge)
            assign = self._assignment(stage, target, decoded, level, price, (height, width))
            index, tables = choose_plane(context, assign)
            decoded = self._add_stage(stage, index, decoded)
            bits = ideal_bits(self.prior.frequencies[stage], index, tables)
            planes.append(SymbolPlane(stage, index, tables, bits))
        return planes

    def write(self, planes: Sequence[SymbolPlane]) -> dict[int, list[bytes]]:
        """One stream a tile and stage; a stage that is all zero is left out."""
        return {
            plane.stage: write_plane(self._models[plane.stage], self.prior.config, plane)
            for plane in planes
            if plane.index.any()
        }

    def read(
        self, streams: Mapping[int, Sequence[bytes]], bucket: int, height: int, width: int
    ) -> list[NDArray[np.uint8]]:
        """The inverse of `write`: the same tables are chosen from what is decoded."""
        if any(level_in(bucket, stage) is None for stage in streams):
            raise CorruptError(f"the file holds stages beyond its rate bucket {bucket}")
        context = self._context(height, width)
        for stage in range(max(streams, default=0) + 1):
            level = level_in(bucket, stage)
            assert level is not None
            if stage not in streams:
                context.skip_stage()
                continue
            context.begin_stage(level)
            read_plane(self._models[stage], context, streams[stage])
        return context.decoded

    def from_symbols(self, indices: Sequence[NDArray[np.integer]], bucket: int) -> Tensor:
        """Sum of the prediction and the codewords of all stages, exact in fixed point."""
        if not indices:
            raise ValueError("at least one stage is needed to give the latent its shape")
        _, height, width = indices[0].shape
        channels = self.quantizer.config.channels
        total = torch.zeros(height * width, channels, dtype=torch.int32, device="cpu")
        for stage, index in enumerate(indices):
            total = self._add_stage(stage, index, total)
        return to_latent(total).reshape(height, width, -1).permute(2, 0, 1)

    def shown_bucket(self, indices: Sequence[NDArray[np.integer]], bucket: int) -> int:
        """A file cut to fewer stages is shown as what it is: complete up to its last stage."""
        return min(bucket, len(indices) * LEVELS)

    def draw(self, height: int, width: int, random: np.random.Generator) -> list[NDArray[np.uint8]]:
        """Indices (G, H, W) of every stage, drawn from the prior."""
        context = self._context(height, width)
        for frequencies in self.prior.frequencies:
            context.begin_stage(LEVELS - 1)
            draw_plane(frequencies, context, random)
        return context.decoded

    def _add_stage(self, stage: int, index: NDArray[np.integer], decoded: Tensor) -> Tensor:
        """What is decoded, int32 (P, C), with one more stage of indices (G, H, W)."""
        codewords = self.quantizer.look_up(stage, torch.from_numpy(index.reshape(len(index), -1)))
        if self.quantizer.config.pooled and not stage:
            codewords = spread_positions(codewords, (index.shape[1], index.shape[2]))
        predictor = self.quantizer.predictor
        if stage or predictor is None:
            return decoded + codewords
        total = codewords[None].clone()

        def add(block: int, kind: int, at: Neighbours, predicted: Tensor) -> Tensor:
            return predicted + codewords[None, at.here, predictor.blocks[block]]

        predictor.decode(index.shape[1], index.shape[2], total, add)
        return total[0]

    def _assignment(
        self,
        stage: int,
        target: Tensor,
        decoded: Tensor,
        level: int,
        price: float,
        grid: tuple[int, int],
    ) -> Callable[[Pass, NDArray[np.uint8]], NDArray[np.uint8]]:
        """How the indices of a pass are chosen, given their tables: target float32 and decoded, the
        stages before, int32, both (P, C) with the positions of `grid` in raster order."""
        quantizer = self.quantizer
        bias = price * self._bits[stage]
        residual = target - to_latent(decoded)

        def assign(step: Pass, tables: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return quantizer.assign(
                stage,
                residual[_flat(step, grid[1]), quantizer.channels_of(step.groups)],
                bias[step.groups],
                torch.from_numpy(tables.astype(np.int32)),
                groups=step.groups,
            ).numpy()

        predictor = quantizer.predictor
        if stage or predictor is None:
            return assign
        # Every codeword moves the predictions that follow, so they are chosen class by class.
        total = torch.zeros(1, *target.shape, dtype=torch.int32, device=target.device)

        def assign_predicted(step: Pass, tables: NDArray[np.uint8]) -> NDArray[np.uint8]:
            if step.chunk >= len(predictor.blocks):
                return assign(step, tables)
            places = _flat(step, grid[1])
            table = torch.zeros(len(tables), len(target), dtype=torch.int32, device=target.device)
            table[:, places] = torch.from_numpy(tables.astype(np.int32))
            index = torch.zeros(table.shape, dtype=torch.uint8, device=target.device)

            def add(block: int, kind: int, at: Neighbours, predicted: Tensor) -> Tensor:
                wanted = target[at.here, predictor.blocks[block]] - to_latent(predicted[0])
                found = quantizer.assign(
                    stage, wanted, bias[step.groups], table[:, at.here], groups=step.groups
                )
                index[:, at.here] = found
                return predicted + quantizer.look_up(stage, found, groups=step.groups)

            predictor.decode(*grid, total, add, blocks=[step.chunk], kinds=PASS_CLASSES[step.spatial])
            return index[:, places].numpy()

        return assign_predicted

    def _context(self, height: int, width: int) -> PriorContext:
        return self.prior.context(
            height, width, native=self.native, threads=self.threads or torch.get_num_threads()
        )


class NestedBottleneck(VectorBottleneck):
    """Nearest codewords, whatever they cost, or the likeliest (mode dvae): all vector modes but vq.

    The rate is set by how much is coded: in the last stage, at level l, only the first
    (l + 1) / LEVELS of the groups; the others are zero (O. Rippel, M. Gelbart, R. Adams, "Learning
    ordered representations with nested dropout", ICML 2014). posterior: chooses the indices of the
    first stage in place of distances; scale (C,) is the unit of its latent.
    """

    def __init__(
        self,
        quantizer: ResidualQuantizer,
        prior: IntegerPrior,
        *,
        posterior: CategoricalPosterior | None = None,
        scale: Tensor | None = None,
        native: bool | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(quantizer, prior, native=native, threads=threads)
        self.posterior, self.scale = posterior, scale

    def _assignment(
        self,
        stage: int,
        target: Tensor,
        decoded: Tensor,
        level: int,
        price: float,
        grid: tuple[int, int],
    ) -> Callable[[Pass, NDArray[np.uint8]], NDArray[np.uint8]]:
        residual = target - to_latent(decoded)
        upper = self.quantizer.config.pooled and not stage
        if upper:
            residual = pool_positions(residual, grid)
        if self.posterior is not None and self.scale is not None:
            with torch.no_grad():
                index = self.posterior.most_likely(residual / self.scale)
        else:
            index = self.quantizer.assign_nearest(stage, residual)
        chosen = (index * kept_positions(grid) if upper else index).to(torch.uint8).numpy()
        chosen[count_nested(self.quantizer.config.groups, level) :] = 0

        def assign(step: Pass, tables: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return chosen[step.groups][:, _flat(step, grid[1]).numpy()]

        return assign


def count_nested(groups: int, level: int) -> int:
    """Groups that a level 0..LEVELS-1 keeps."""
    return -(-groups * (level + 1) // LEVELS)


def _flat(step: Pass, width: int) -> Tensor:
    """Places of a pass's positions in raster order (int64)."""
    return torch.from_numpy(step.rows.astype(np.int64) * width + step.columns)
