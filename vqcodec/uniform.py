"""Uniform quantisation of continuous latents, and its bottleneck (modes ae, vae, dae, wae, hvae).

A value n of channel c stands for n * step[c] * gain[bucket]: the steps of the channels keep their
proportions, the rate bucket scales them all. Values are coded as symbols of a byte by the same
integer prior as codebook indices; the few that no symbol can say escape (`vqcodec.escapes`).

Layout: latent (C, H, W); values int32 (C, H, W). step is int32 (C,) in 1/STEP_UNITS grey level, gain
int32 (buckets,) in 1/GAIN_UNITS, so a decoded latent is exact up to one rounding to float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.bottleneck import SymbolPlane, choose_plane, read_plane, write_plane
from vqcodec.container import UNIFORM_BUCKETS, TileGrid
from vqcodec.entropy import TableModels, ideal_bits
from vqcodec.errors import CorruptError, ModelFileError
from vqcodec.escapes import (
    ESCAPE,
    SYMBOLS,
    VALUE_MAX,
    VALUE_MIN,
    merge_values,
    pack_escapes,
    split_values,
)
from vqcodec.prior import IntegerPrior, Pass, PriorContext
from vqcodec.quantizer import LEVELS, RatePoint

STEP_UNITS = 1 << 8
GAIN_UNITS = 1 << 16
# A value of 16 bits times step times gain is an integer below 2^53: exact in float64.
_PRODUCT_BITS = 37
# What a bit costs at high rate, in squared steps: dD/dR of D = step^2 / 12 at R = h - log2(step).
PRICE = 2 * np.log(2) / 12
# An escape's symbol is followed by about two bytes.
_ESCAPE_BITS = 16.0


@dataclass(frozen=True)
class UniformConfig:
    """Sizes; the names that a quantiser of vectors shares say the same of it."""

    channels: int = 96
    buckets: int = UNIFORM_BUCKETS

    @property
    def groups(self) -> int:
        return self.channels

    @property
    def codewords(self) -> int:
        return SYMBOLS

    @property
    def stages(self) -> int:
        return 1


class UniformQuantizer:
    """Steps of the channels and gains of the rate buckets, int32 and positive."""

    def __init__(self, config: UniformConfig, step: NDArray[np.int32], gain: NDArray[np.int32]) -> None:
        self.config, self.step, self.gain = config, step, gain
        for name, array, size in (("step", step, config.channels), ("gain", gain, config.buckets)):
            if array.dtype != np.int32 or array.shape != (size,) or not (array > 0).all():
                raise ModelFileError(f"{name} is not {size} positive int32")
        if int(step.max()) * int(gain.max()) >= 1 << _PRODUCT_BITS:
            raise ModelFileError("step times gain may leave the numbers that are exact")

    def steps(self, bucket: int) -> NDArray[np.float64]:
        """Step of each channel (C,) in a bucket, in grey levels."""
        units = self.step.astype(np.int64) * int(self.gain[bucket - 1])
        return units / (STEP_UNITS * GAIN_UNITS)

    def dequantise(self, values: NDArray[np.int32], bucket: int) -> Tensor:
        """The latent float32 (C, H, W) that values (C, H, W) stand for."""
        latent = np.empty(values.shape, np.float32)
        # Channel by channel: the products in float64 would take twice the latent's memory.
        for plane, channel, step in zip(latent, values, self.steps(bucket), strict=True):
            plane[:] = channel * step
        return torch.from_numpy(latent)


def level_of(bucket: int, buckets: int = UNIFORM_BUCKETS) -> int:
    """The prior's level of a rate bucket 1..buckets."""
    return (bucket - 1) * LEVELS // buckets


class UniformBottleneck:
    """Uniform quantisation with the integer conditional prior (the uniform modes).

    threads: of the integer layers; None follows `torch.get_num_threads()`.
    """

    def __init__(
        self,
        quantizer: UniformQuantizer,
        prior: IntegerPrior,
        *,
        native: bool | None = None,
        threads: int | None = None,
    ) -> None:
        self.quantizer, self.prior = quantizer, prior
        self.native, self.threads = native, threads
        self._models = TableModels(prior.frequencies[0])

    @property
    def buckets(self) -> int:
        return self.quantizer.config.buckets

    def to_symbols(
        self, latent: Tensor, point: RatePoint, *, stages: int | None = None
    ) -> list[SymbolPlane]:
        """One plane; of the nearest value, the next towards zero and zero, each takes the one with
        the least squared error plus price of its bits."""
        steps = self.quantizer.steps(point.bucket)[:, None, None]
        target = latent.double().cpu().numpy()
        scaled = target / steps
        context = self._context(*latent.shape[1:])
        context.begin_stage(level_of(point.bucket, self.buckets))
        values = np.zeros(latent.shape, np.int32)

        def choose(step: Pass, tables: NDArray[np.uint8]) -> NDArray[np.uint8]:
            expected = self._expected(values, point.bucket, step)
            if expected is not None:
                scaled[:] = (target - expected) / steps
            here = step.groups, step.rows, step.columns
            values[here] = self._choose_values(scaled[here], step.groups, tables)
            return split_values(values[here])

        symbols, tables = choose_plane(context, choose)
        bits = ideal_bits(self.prior.frequencies[0], symbols, tables)
        return [SymbolPlane(0, values, tables, bits)]

    def write(self, planes: Sequence[SymbolPlane]) -> dict[int, list[bytes]]:
        """Stage 0: symbols, stage 1: escapes; what is all zero or empty is left out."""
        (plane,) = planes
        if not plane.index.any():
            return {}
        symbols = split_values(plane.index)
        coded = SymbolPlane(0, symbols, plane.tables, plane.bits)
        streams = {0: write_plane(self._models, self.prior.config, coded)}
        _, rows, columns = plane.index.shape
        escapes = pack_escapes(plane.index, TileGrid(rows, columns))
        if escapes is not None:
            streams[1] = escapes
        return streams

    def read(
        self, streams: Mapping[int, Sequence[bytes]], bucket: int, height: int, width: int
    ) -> list[NDArray[np.int32]]:
        """The values of `write`. CorruptError for symbols and escapes that do not agree."""
        if 0 not in streams:
            if streams:
                raise CorruptError("the file holds escapes without symbols")
            return [np.zeros((self.prior.groups, height, width), np.int32)]
        context = self._context(height, width)
        context.begin_stage(level_of(bucket, self.buckets))
        symbols = read_plane(self._models, context, streams[0])
        return [merge_values(symbols, streams.get(1), TileGrid(height, width))]

    def from_symbols(self, indices: Sequence[NDArray[np.integer]], bucket: int) -> Tensor:
        """Latent (C, H, W) of values (C, H, W)."""
        return self.quantizer.dequantise(indices[0].astype(np.int32, copy=False), bucket)

    def shown_bucket(self, indices: Sequence[NDArray[np.integer]], bucket: int) -> int:
        """The bucket itself: these files have nothing to cut."""
        return bucket

    def _expected(self, values: NDArray[np.int32], bucket: int, step: Pass) -> NDArray[np.float64] | None:
        """What the values chosen so far (C, H, W) say of the latent before a pass, (C, H, W) in grey
        levels, if that is more than before: values say what the latent is beyond it."""
        return None

    @cached_property
    def _bits(self) -> NDArray[np.float32]:
        """Code lengths (C, T, 256), what follows an escape included."""
        bits = self.prior.bits[0].copy()
        bits[:, :, ESCAPE] += _ESCAPE_BITS
        return bits

    def _choose_values(
        self, scaled: NDArray[np.float64], groups: slice, tables: NDArray[np.uint8]
    ) -> NDArray[np.int32]:
        """Values (g, P) of latent values in steps (g, P) under their tables (g, P)."""
        group = np.arange(groups.start, groups.stop)[:, None]
        nearest = np.rint(scaled).clip(VALUE_MIN, VALUE_MAX).astype(np.int32)
        best, least = nearest, np.full(nearest.shape, np.inf)
        for candidate in (nearest, nearest - np.sign(nearest), np.zeros_like(nearest)):
            bits = self._bits[group, tables, split_values(candidate)]
            cost = (scaled - candidate) ** 2 + PRICE * bits
            best = np.where(cost < least, candidate, best)
            least = np.minimum(cost, least)
        return best

    def _context(self, height: int, width: int) -> PriorContext:
        return self.prior.context(
            height, width, native=self.native, threads=self.threads or torch.get_num_threads()
        )
