"""The seam between latent and symbols.

Every kind of latent offers the same four steps, so one codec and one container serve all:

    latent --to_symbols--> planes --write--> streams --(file)--> streams --read--> indices
           --from_symbols--> latent

A `SymbolPlane` is one typed plane of symbols with the probability table of each; streams are the
bytes of each plane's prior tiles. Only integers pass between `write` and `read`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.entropy import StreamDecoder, StreamEncoder, TableModels, ideal_bits
from vqcodec.errors import CorruptError
from vqcodec.prior import IntegerPrior, PriorContext, list_passes
from vqcodec.quantizer import RatePoint, ResidualQuantizer, level_in, stage_price, to_latent


@dataclass(frozen=True)
class SymbolPlane:
    """Symbols of one stage: index and table uint8 (G, H, W); bits: their ideal code length."""

    stage: int
    index: NDArray[np.uint8]
    tables: NDArray[np.uint8]
    bits: float


class Bottleneck(Protocol):
    """What the codec asks of a kind of latent."""

    def to_symbols(self, latent: Tensor, point: RatePoint) -> list[SymbolPlane]:
        """Symbols of latent (C, H, W) at a point of the rate axis."""

    def write(self, planes: Sequence[SymbolPlane]) -> dict[int, list[bytes]]:
        """Streams of each plane, one a prior tile; planes that need none are left out."""

    def read(
        self, streams: Mapping[int, Sequence[bytes]], bucket: int, height: int, width: int
    ) -> list[NDArray[np.uint8]]:
        """Indices (G, H, W) of every stage up to the last that has streams, at least the first."""

    def from_symbols(self, indices: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Latent (C, H, W) of the indices of each stage."""


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

    def to_symbols(self, latent: Tensor, point: RatePoint) -> list[SymbolPlane]:
        """Entropy-constrained assignment: each index pays what its own table will charge."""
        config = self.quantizer.config
        _, height, width = latent.shape
        context = self._context(height, width)
        residual = latent.permute(1, 2, 0).reshape(height * width, -1).float().cpu().contiguous()
        planes = []
        for stage in range(point.last_stage + 1):
            level = level_in(point.bucket, stage)
            assert level is not None
            price = stage_price(config, point, stage)
            context.begin_stage(level)
            tables = np.zeros((config.groups, height, width), np.uint8)
            for step in context.passes:
                chosen = context.select(step)
                flat = torch.from_numpy(step.rows.astype(np.int64) * width + step.columns)
                index = self.quantizer.assign(
                    stage,
                    residual[flat],
                    price * self._bits[stage][step.groups],
                    torch.from_numpy(chosen.astype(np.int32)),
                    groups=step.groups,
                ).numpy()
                context.update(step, index)
                tables[step.groups, step.rows, step.columns] = chosen
            index = context.end_stage()
            flat_index = torch.from_numpy(index.reshape(config.groups, -1))
            residual = residual - to_latent(self.quantizer.look_up(stage, flat_index))
            bits = ideal_bits(self.prior.frequencies[stage], index, tables)
            planes.append(SymbolPlane(stage, index, tables, bits))
        return planes

    def write(self, planes: Sequence[SymbolPlane]) -> dict[int, list[bytes]]:
        """One stream a tile and stage; a stage that is all zero is left out."""
        streams: dict[int, list[bytes]] = {}
        for plane in planes:
            if not plane.index.any():
                continue
            groups, height, width = plane.index.shape
            passes = list_passes(self.prior.config, groups, height, width)
            coded = []
            for tile in range(len(passes[0].tiles) - 1):
                encoder = StreamEncoder(self._models[plane.stage])
                for step in passes:
                    here = slice(step.tiles[tile], step.tiles[tile + 1])
                    rows, columns = step.rows[here], step.columns[here]
                    encoder.encode(
                        step.groups.start,
                        plane.index[step.groups, rows, columns],
                        plane.tables[step.groups, rows, columns],
                    )
                coded.append(encoder.finish())
            streams[plane.stage] = coded
        return streams

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
            decoders = [StreamDecoder(self._models[stage], data) for data in streams[stage]]
            for step in context.passes:
                tables = context.select(step)
                index = np.empty_like(tables)
                for tile, decoder in enumerate(decoders):
                    here = slice(step.tiles[tile], step.tiles[tile + 1])
                    index[:, here] = decoder.decode(step.groups.start, tables[:, here])
                context.update(step, index)
            for decoder in decoders:
                decoder.check_end()
            context.end_stage()
        return context.decoded

    def from_symbols(self, indices: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Sum of the codewords of all stages, exact in fixed point."""
        config = self.quantizer.config
        if not indices:
            raise ValueError("at least one stage is needed to give the latent its shape")
        _, height, width = indices[0].shape
        total = torch.zeros(height * width, config.channels, dtype=torch.int32, device="cpu")
        for stage, index in enumerate(indices):
            flat = torch.from_numpy(index.reshape(config.groups, -1))
            total += self.quantizer.look_up(stage, flat)
        return to_latent(total).reshape(height, width, -1).permute(2, 0, 1)

    def _context(self, height: int, width: int) -> PriorContext:
        return self.prior.context(
            height, width, native=self.native, threads=self.threads or torch.get_num_threads()
        )
