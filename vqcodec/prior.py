"""The integer conditional prior: chooses, for every symbol, one of T stored probability tables.

It sees decoded indices only, through small constant embeddings, and computes with uint8
activations, int8 weights and int32 sums (`vqcodec_kernels.integer_layers`), so every machine
chooses the same table: nothing of the pixels' floating-point path enters.

Order of coding, by stages: stage s, then chunks of groups, then three spatial passes (even-even,
odd-odd, the other positions). A symbol's context is
  * every coarser stage, at its position and in the window around it;
  * of its own stage: lower chunks at its position and around, its own chunk in earlier passes;
  * the level of the rate bucket and the pass (they choose a bias vector).
Contexts never leave the prior tile of 64x64 positions.

For stage s with G groups and embedding width E, per position:
    coarse = min(255, sum over i < s of embed_coarse[s, i][g, index_i])        (absent for s = 0)
    same   = embed_same[s][g, index_s] where decoded, otherwise 0
    x      = [coarse, window(coarse), same, window(same)]                      (2 or 4) G E values
    h      = linear2(linear1(x))
    y[g]   = linear3[g]([h, the values of x that belong to g])
    table  = argmax linear4[g](y[g])
All requantised layers use the shift SHIFT. Probability tables are stored as one byte a codeword,
a code length in tenths of a bit; `expand_tables` turns them into 24-bit frequencies by integer
arithmetic alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqcodec.container import TILE
from vqcodec.errors import ModelFileError
from vqcodec_kernels.integer_layers import integer_argmax, integer_linear, integer_window

SHIFT = 30
PASSES = 3
PROBABILITY_BITS = 24
STEPS_PER_BIT = 10
# round(2^(24 - j / STEPS_PER_BIT)) for j = 0..9.
_MANTISSAS = np.array(
    [
        16777216,
        15653696,
        14605415,
        13627334,
        12714752,
        11863283,
        11068835,
        10327588,
        9635980,
        8990687,
    ],
    dtype=np.int64,
)


@dataclass(frozen=True)
class PriorConfig:
    """Sizes. chunks: the groups at which a new chunk begins (beside 0); window: side, odd."""

    tables: int = 32
    embedding: int = 2
    hidden: tuple[int, int] = (96, 64)
    group_hidden: int = 24
    chunks: tuple[int, ...] = (12, 28, 50)
    window: int = 5

    def chunk_slices(self, groups: int) -> list[slice]:
        """The groups of each chunk, in coding order."""
        edges = (0, *self.chunks, groups)
        return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


@dataclass(frozen=True)
class Pass:
    """One parallel step: a range of groups at the positions int32 (P, 2) of one spatial pass.

    Positions are ordered by tile, then by row and column; tile i has tiles[i]:tiles[i + 1].
    """

    chunk: int
    groups: slice
    spatial: int
    positions: NDArray[np.int32]
    tiles: NDArray[np.int64]

    @property
    def rows(self) -> NDArray[np.int32]:
        return self.positions[:, 0]

    @property
    def columns(self) -> NDArray[np.int32]:
        return self.positions[:, 1]


def expand_tables(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Stored code lengths (..., K), tenths of a bit, to integer frequencies that sum to 2^24.

    w = MANTISSA[code % 10] >> (code // 10);  f = w (2^24 - K) // sum(w);  what is missing to
    2^24 - K goes to the largest f (the lowest index among equals); then 1 is added to every f, so
    no symbol is impossible.
    """
    size = codes.shape[-1]
    weight = _MANTISSAS[codes % STEPS_PER_BIT] >> (codes // STEPS_PER_BIT).astype(np.int64)
    total = weight.sum(-1, keepdims=True)
    if (total == 0).any():
        raise ModelFileError("a probability table of the model is empty")
    free = (1 << PROBABILITY_BITS) - size
    frequency = weight * free // total
    largest = frequency.argmax(-1)[..., None]
    missing = free - frequency.sum(-1, keepdims=True)
    np.put_along_axis(frequency, largest, np.take_along_axis(frequency, largest, -1) + missing, -1)
    return frequency + 1


def store_tables(probability: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The inverse for training: probabilities (..., K) to code lengths in tenths of a bit."""
    lengths = -np.log2(np.maximum(probability, 1e-30))
    codes = np.round((lengths - lengths.min(-1, keepdims=True)) * STEPS_PER_BIT)
    return codes.clip(0, 255).astype(np.uint8)


class IntegerPrior:
    """Weights and tables of the prior. `tensors` holds them by the names of `tensor_specs`."""

    def __init__(
        self,
        config: PriorConfig,
        *,
        stages: int,
        groups: int,
        codewords: int,
        levels: int,
        tensors: Mapping[str, NDArray[Any]],
    ) -> None:
        self.config = config
        self.stages, self.groups, self.codewords, self.levels = stages, groups, codewords, levels
        self.tensors: dict[str, NDArray[Any]] = {}
        for name, (dtype, shape) in self.tensor_specs(
            config, stages=stages, groups=groups, codewords=codewords, levels=levels
        ).items():
            array = tensors.get(name)
            if array is None or array.dtype != dtype or array.shape != shape:
                found = "missing" if array is None else f"{array.dtype} {array.shape}"
                raise ModelFileError(f"prior tensor {name}: expected {dtype} {shape}, {found}")
            self.tensors[name] = array
        self._check_ranges()

    @staticmethod
    def tensor_specs(
        config: PriorConfig, *, stages: int, groups: int, codewords: int, levels: int
    ) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Name -> (dtype, shape) of every tensor, all integers."""
        byte, weight, sums = np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.int32)
        features = groups * config.embedding
        first, second = config.hidden
        specs: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for s in range(stages):
            kinds = ("same",) if s == 0 else ("coarse", "same")
            own = 2 * config.embedding * len(kinds)
            for i in range(s):
                specs[f"{s}.embed_coarse.{i}"] = (byte, (groups, codewords, config.embedding))
            specs[f"{s}.embed_same"] = (byte, (groups, codewords, config.embedding))
            for kind in kinds:
                specs[f"{s}.window_{kind}.taps"] = (weight, (config.window,) * 2 + (features,))
                specs[f"{s}.window_{kind}.bias"] = (sums, (features,))
                specs[f"{s}.window_{kind}.scale"] = (sums, (features,))
            for c, chunk in enumerate(config.chunk_slices(groups)):
                inside = chunk.stop - chunk.start
                name = f"{s}.{c}"
                specs[f"{name}.linear1.weight"] = (weight, (1, first, 2 * len(kinds) * features))
                specs[f"{name}.linear1.bias"] = (sums, (levels, PASSES, first))
                specs[f"{name}.linear1.scale"] = (sums, (1, first))
                specs[f"{name}.linear2.weight"] = (weight, (1, second, first))
                specs[f"{name}.linear2.bias"] = (sums, (1, second))
                specs[f"{name}.linear2.scale"] = (sums, (1, second))
                specs[f"{name}.linear3.weight"] = (
                    weight,
                    (inside, config.group_hidden, second + own),
                )
                specs[f"{name}.linear3.bias"] = (sums, (inside, config.group_hidden))
                specs[f"{name}.linear3.scale"] = (sums, (inside, config.group_hidden))
                specs[f"{name}.linear4.weight"] = (
                    weight,
                    (inside, config.tables, config.group_hidden),
                )
                specs[f"{name}.linear4.bias"] = (sums, (inside, config.tables))
            specs[f"{s}.tables"] = (byte, (groups, config.tables, codewords))
        return specs

    def _check_ranges(self) -> None:
        """Sums must fit int32 and scaled sums int64, whatever the activations: proven from the
        weights, so that a foreign model file cannot make machines disagree."""
        for name, weight in self.tensors.items():
            if not name.endswith((".weight", ".taps")):
                continue
            base = name.rsplit(".", 1)[0]
            bias = np.abs(self.tensors[f"{base}.bias"].astype(np.int64))
            if (weight == -128).any():
                raise ModelFileError(f"prior tensor {name}: -128 is not allowed")
            size = np.abs(weight)
            axes = (0, 1) if name.endswith(".taps") else -1
            reach = 255 * size.sum(axes, dtype=np.int64) + bias
            if reach.max(initial=0) >= 1 << 31:
                raise ModelFileError(f"prior tensor {name}: sums may leave 32 bits")
            scale = self.tensors.get(f"{base}.scale")
            if scale is not None and (reach * np.abs(scale.astype(np.float64))).max() >= 2.0**61:
                raise ModelFileError(f"prior tensor {name}: scaled sums may leave 62 bits")

    def replace(self, tensors: Mapping[str, NDArray[Any]]) -> "IntegerPrior":
        """The same prior with some tensors exchanged."""
        return IntegerPrior(
            self.config,
            stages=self.stages,
            groups=self.groups,
            codewords=self.codewords,
            levels=self.levels,
            tensors={**self.tensors, **tensors},
        )

    @cached_property
    def frequencies(self) -> list[NDArray[np.int64]]:
        """Integer frequencies (G, T, K) of each stage, sum 2^24 over K."""
        return [self._expand(f"{s}.tables") for s in range(self.stages)]

    @cached_property
    def bits(self) -> list[NDArray[np.float32]]:
        """Code lengths (G, T, K) of each stage in bits, for the encoder's choice only."""
        return [
            np.stack([(PROBABILITY_BITS - np.log2(group)).astype(np.float32) for group in stage])
            for stage in self.frequencies
        ]

    def _expand(self, name: str) -> NDArray[np.int64]:
        codes = self.tensors[name]
        frequencies = np.empty(codes.shape, np.int64)
        # Group by group: what is computed on the way takes several times the result.
        for group, expanded in zip(codes, frequencies, strict=True):
            expanded[:] = expand_tables(group)
        return frequencies

    def context(
        self, height: int, width: int, *, native: bool | None = None, threads: int | None = None
    ) -> "PriorContext":
        """The state of coding one grid of height x width positions."""
        return PriorContext(self, height, width, native=native, threads=threads)


class PriorContext:
    """What is decoded so far of one picture, and the choice of tables that follows from it.

    For each stage in order: `begin_stage`, then for every pass of `passes`: `select` the tables,
    code the symbols, `update` with them; then `end_stage`. A stage that the file omits is
    `skip_stage`.
    """

    def __init__(
        self,
        prior: IntegerPrior,
        height: int,
        width: int,
        *,
        native: bool | None = None,
        threads: int | None = None,
    ) -> None:
        self.prior = prior
        self.shape = (height, width)
        self.native, self.threads = native, threads
        self.passes = list_passes(prior.config, prior.groups, height, width)
        self.decoded: list[NDArray[np.uint8]] = []
        self._stage = -1
        self._level = 0

    def begin_stage(self, level: int) -> None:
        """Starts the next stage at a level 0..levels-1 of its rate bucket."""
        prior, (height, width) = self.prior, self.shape
        self._stage, self._level = len(self.decoded), level
        features = prior.groups * prior.config.embedding
        self._index = np.zeros((prior.groups, height, width), np.uint8)
        self._same = np.zeros((height, width, features), np.uint8)
        self._coarse = self._coarse_around = None
        if self._stage:
            total = np.zeros((height, width, features), np.int32)
            for i, index in enumerate(self.decoded):
                table = prior.tensors[f"{self._stage}.embed_coarse.{i}"]
                total += _embed(table, index.reshape(prior.groups, -1)).reshape(total.shape)
            self._coarse = np.minimum(total, 255).astype(np.uint8)
            everywhere = np.indices(self.shape, dtype=np.int32).reshape(2, -1).T
            around = self._window("coarse", self._coarse, np.ascontiguousarray(everywhere))
            self._coarse_around = around.reshape(self._coarse.shape)

    def select(self, step: Pass) -> NDArray[np.uint8]:
        """Table of each symbol of a pass: uint8 (groups of the chunk, P)."""
        prior, t = self.prior, self.prior.tensors
        rows, columns = step.rows, step.columns
        parts = [self._same[rows, columns], self._window("same", self._same, step.positions)]
        if self._coarse is not None and self._coarse_around is not None:
            parts = [self._coarse[rows, columns], self._coarse_around[rows, columns], *parts]
        count = len(rows)
        x = np.concatenate(parts, 1)
        name = f"{self._stage}.{step.chunk}"
        bias = t[f"{name}.linear1.bias"][self._level, step.spatial][None]
        h = self._linear(f"{name}.linear1", x[:, None], bias)
        h = self._linear(f"{name}.linear2", h)
        # For each group what is shared, then the values of x that belong to it, kind by kind.
        item = _item(prior.config.embedding)
        own = x.view(item).reshape(count, len(parts), prior.groups)[:, :, step.groups].transpose(0, 2, 1)
        z = np.empty((*own.shape[:2], h.shape[2] + own.shape[2] * item.itemsize), np.uint8)
        z[:, :, : h.shape[2]] = h
        z[:, :, h.shape[2] :].view(item)[:] = own
        y = self._linear(f"{name}.linear3", z)
        return np.ascontiguousarray(
            integer_argmax(
                y,
                t[f"{name}.linear4.weight"],
                t[f"{name}.linear4.bias"],
                native=self.native,
                threads=self.threads,
            ).T
        )

    def update(self, step: Pass, index: NDArray[np.uint8]) -> None:
        """Takes the symbols (groups of the chunk, P) of a pass as decoded."""
        prior = self.prior
        self._index[step.groups, step.rows, step.columns] = index
        table = prior.tensors[f"{self._stage}.embed_same"][step.groups]
        width = prior.config.embedding
        features = slice(step.groups.start * width, step.groups.stop * width)
        self._same[step.rows, step.columns, features] = _embed(table, index)

    def end_stage(self) -> NDArray[np.uint8]:
        """Closes the stage; its indices (G, H, W)."""
        self.decoded.append(self._index)
        return self._index

    def skip_stage(self) -> None:
        """Takes the next stage as all zero."""
        self.decoded.append(np.zeros((self.prior.groups, *self.shape), np.uint8))

    def _window(
        self, kind: str, grid: NDArray[np.uint8], positions: NDArray[np.int32]
    ) -> NDArray[np.uint8]:
        t, name = self.prior.tensors, f"{self._stage}.window_{kind}"
        return integer_window(
            grid,
            positions,
            t[f"{name}.taps"],
            t[f"{name}.bias"],
            t[f"{name}.scale"],
            SHIFT,
            tile=TILE,
            native=self.native,
            threads=self.threads,
        )

    def _linear(
        self, name: str, x: NDArray[np.uint8], bias: NDArray[np.int32] | None = None
    ) -> NDArray[np.uint8]:
        t = self.prior.tensors
        return integer_linear(
            x,
            t[f"{name}.weight"],
            t[f"{name}.bias"] if bias is None else bias,
            t[f"{name}.scale"],
            SHIFT,
            native=self.native,
            threads=self.threads,
        )


def list_passes(config: PriorConfig, groups: int, height: int, width: int) -> list[Pass]:
    """All passes of a stage, in coding order: chunks outside, spatial passes inside. Spatial passes
    that a small grid has no positions for are left out."""
    spatial = [spatial_positions(p, height, width) for p in range(PASSES)]
    return [
        Pass(c, chunk, p, *spatial[p])
        for c, chunk in enumerate(config.chunk_slices(groups))
        for p in range(PASSES)
        if len(spatial[p][0])
    ]


def spatial_pass_of(rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.int64]:
    """0 where row and column are even, 1 where both are odd, 2 elsewhere."""
    mixed = (rows + columns) % 2 == 1
    return np.where(mixed, 2, rows % 2).astype(np.int64)


def spatial_positions(
    spatial: int, height: int, width: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Positions int32 (P, 2) of a spatial pass, by tile, row and column; and the tiles' bounds."""
    rows, columns = np.indices((height, width)).reshape(2, -1)
    chosen = spatial_pass_of(rows, columns) == spatial
    rows, columns = rows[chosen], columns[chosen]
    across = -(-width // TILE)
    tile = rows // TILE * across + columns // TILE
    order = np.argsort(tile, kind="stable")
    count = -(-height // TILE) * across
    bounds = np.searchsorted(tile[order], np.arange(count + 1))
    positions = np.stack([rows[order], columns[order]], 1).astype(np.int32)
    return np.ascontiguousarray(positions), bounds


def _item(size: int) -> np.dtype[Any]:
    """That many bytes as one value, which NumPy moves in one go."""
    return np.dtype(f"V{size}")


def _embed(table: NDArray[np.uint8], index: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """table (g, K, E), index (g, P) -> (P, g E)."""
    items = np.ascontiguousarray(table).view(_item(table.shape[2]))[:, :, 0]
    picked = [items[group][chosen] for group, chosen in enumerate(index)]
    return np.stack(picked, 1).view(np.uint8)
