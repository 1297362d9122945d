"""A reader of .vqc files written from docs/format.md alone, to show that the document suffices.

    python docs/reader.py MODEL.safetensors FILE.vqc [-o INDICES.npz]

It goes from the bytes of a file and of a model to the indices and to the exact latent, and makes
every check that the document asks of a reader. It stops there: what turns the latent into pixels is
not normative. It needs Python and NumPy, and shares no code with the codec. The parts of this file
have the names and the order of the chapters of the document.

Readability comes before speed: a picture of 512x512 pixels takes a few seconds.

Invariants: all arithmetic is on integers, in int64 or in Python's own; no array grows with a number
that a file only claims, until that number was checked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import struct
import sys
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# --- Checks and errors: the classes ---------------------------------------------------------------


class ReaderError(Exception):
    """Base of the errors that the document names. Its text is one line."""


class TruncatedError(ReaderError):
    """The file, or a part of it, ends too early."""


class NotVqcError(ReaderError):
    """The file does not begin with the magic bytes."""


class UnsupportedVersionError(ReaderError):
    """A version of the container other than 1."""


class ChecksumError(ReaderError):
    """A CRC32 does not match."""


class CorruptError(ReaderError):
    """The file breaks a rule of the format."""


class UnsupportedFeatureError(ReaderError):
    """An unknown mode, or an unknown section that is critical."""


class TooLargeError(ReaderError):
    """The picture is over this reader's limits."""


class UnknownModelError(ReaderError):
    """The file needs a model other than the one given."""


class ModelFileError(ReaderError):
    """The model file breaks a rule."""


# --- Conventions ----------------------------------------------------------------------------------

VARINT_END = 1 << 31


def read_varint(data: bytes, offset: int) -> tuple[int, int]:
    """The varint at offset and the offset after it.

    Raises TruncatedError if the data end within it, CorruptError if it is 2^31 or more or has more
    bytes than it needs.
    """
    value = 0
    for count in range(5):
        if offset + count >= len(data):
            raise TruncatedError("the data end within a varint")
        byte = data[offset + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte & 0x80:
            continue
        if count > 0 and byte == 0:
            raise CorruptError("a varint has more bytes than it needs")
        if value >= VARINT_END:
            break
        return value, offset + count + 1
    raise CorruptError("a varint is 2^31 or more")


# --- Header ---------------------------------------------------------------------------------------

MAGIC = b"\x8eVQC"
HEADER = struct.Struct("<4sBBBBIIII")
MODES = ("vq", "ae", "vae", "dvae", "vqvae", "dae", "wae", "hvae", "vqvae2", "fsq", "rvq")
UNIFORM_MODES = ("ae", "vae", "dae", "wae", "hvae")
BUCKETS = 100


@dataclass(frozen=True)
class Header:
    """The fields of the header. width and height are in pixels, mode is a name out of MODES."""

    version: int
    mode: str
    grey: bool
    rate: int
    section_count: int
    width: int
    height: int
    code_id: int

    @property
    def uniform(self) -> bool:
        return self.mode in UNIFORM_MODES


def read_header(data: bytes) -> Header:
    """Checks 1 to 8 of *Checks and errors*, in that order."""
    if len(data) < len(MAGIC) and MAGIC.startswith(data):
        raise TruncatedError("the file ends within the magic bytes")
    if not data.startswith(MAGIC):
        raise NotVqcError("not a .vqc file")
    if len(data) < HEADER.size:
        raise TruncatedError("the file ends within the header")
    _, version, mode_byte, rate, section_count, width, height, code_id, crc = HEADER.unpack_from(data)
    if version != 1:
        raise UnsupportedVersionError(f"container version {version}")
    if crc != zlib.crc32(data[: HEADER.size - 4]):
        raise ChecksumError("the checksum of the header is wrong")
    if mode_byte & 0xE0:
        raise CorruptError("reserved bits of mode_byte are set")
    if mode_byte & 0x0F >= len(MODES):
        raise UnsupportedFeatureError(f"unknown mode {mode_byte & 0x0F}")
    mode = MODES[mode_byte & 0x0F]
    if width == 0 or height == 0 or rate == 0:
        raise CorruptError("width, height or rate is 0")
    if mode in UNIFORM_MODES and rate > BUCKETS:
        raise CorruptError(f"rate {rate} in a uniform mode")
    grey = bool(mode_byte & 0x10)
    return Header(version, mode, grey, rate, section_count, width, height, code_id)


# --- Sections -------------------------------------------------------------------------------------

FIRST_STAGE = 0x10
MAX_STAGES = 16


@dataclass(frozen=True)
class Section:
    """One section; its checksum was right."""

    type: int
    critical: bool
    payload: bytes

    @property
    def stage(self) -> int | None:
        """Number of the stage, None for a type that this version does not know."""
        number = self.type - FIRST_STAGE
        return number if 0 <= number < MAX_STAGES else None


def read_section(data: bytes, offset: int) -> tuple[Section, int]:
    """Check 9: the section at offset and the offset after it."""
    if offset >= len(data):
        raise TruncatedError("the file ends before a section")
    length, start = read_varint(data, offset + 1)
    end = start + length
    if end + 4 > len(data):
        raise TruncatedError("the file ends within a section")
    (crc,) = struct.unpack_from("<I", data, end)
    if crc != zlib.crc32(data[offset:end]):
        raise ChecksumError("the checksum of a section is wrong")
    return Section(data[offset] & 0x7F, bool(data[offset] & 0x80), data[start:end]), end + 4


def check_sections(header: Header, sections: Sequence[Section]) -> None:
    """Check 11."""
    last = -1
    for section in sections:
        stage = section.stage
        if stage is None:
            if section.critical:
                raise UnsupportedFeatureError(f"unknown critical section 0x{section.type:02X}")
            continue
        if not section.critical:
            raise CorruptError(f"stage {stage} is not critical")
        if stage <= last:
            raise CorruptError(f"stage {stage} comes after stage {last}")
        if header.uniform and stage != last + 1:
            raise CorruptError(f"stage {stage} without stage 0 in a uniform mode")
        if header.uniform and stage > 1:
            raise CorruptError(f"stage {stage} in a uniform mode")
        last = stage


def read_container(data: bytes) -> tuple[Header, list[Section]]:
    """Header and sections of a whole file, optional sections included, by checks 1 to 11."""
    header = read_header(data)
    sections = []
    offset = HEADER.size
    for _ in range(header.section_count):
        section, offset = read_section(data, offset)
        sections.append(section)
    if offset != len(data):
        raise CorruptError("bytes follow the last section")
    check_sections(header, sections)
    return header, sections


# --- Limits ---------------------------------------------------------------------------------------

MAX_PIXELS = 1 << 24
MAX_SIDE = 16384


def check_limits(header: Header) -> None:
    """Raises TooLargeError for a picture of more than the document asks a reader to accept."""
    if max(header.width, header.height) > MAX_SIDE or header.width * header.height > MAX_PIXELS:
        raise TooLargeError(f"a picture of {header.width}x{header.height} pixels")


# --- Mode 0: latent grid and prior tiles ----------------------------------------------------------

PIXELS = 16
TILE = 64


@dataclass(frozen=True)
class Grid:
    """The latent positions of a picture."""

    rows: int
    cols: int

    @property
    def tiles(self) -> list[tuple[slice, slice]]:
        """Rows and columns of each prior tile, in raster order."""
        return [
            (slice(y, min(y + TILE, self.rows)), slice(x, min(x + TILE, self.cols)))
            for y in range(0, self.rows, TILE)
            for x in range(0, self.cols, TILE)
        ]


def grid_of(header: Header) -> Grid:
    return Grid(-(-header.height // PIXELS), -(-header.width // PIXELS))


# --- Mode 0: stage payload ------------------------------------------------------------------------


def split_payload(payload: bytes, tile_count: int) -> list[bytes]:
    """The streams of a stage's payload, one for each tile."""
    if len(payload) < tile_count - 1:
        raise TruncatedError("a stage ends within its stream lengths")
    lengths = []
    offset = 0
    for _ in range(tile_count - 1):
        length, offset = read_varint(payload, offset)
        lengths.append(length)
    if sum(lengths) > len(payload) - offset:
        raise TruncatedError("a stage ends within its streams")
    streams = []
    for length in lengths:
        streams.append(payload[offset : offset + length])
        offset += length
    return [*streams, payload[offset:]]


# --- All modes: model -----------------------------------------------------------------------------

LEVELS = 8
PASSES = 3
CLASSES = 7
TYPES: dict[str, np.dtype[Any]] = {
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
}


@dataclass(frozen=True)
class Model:
    """A model that passed every check.

    blocks: pairs (groups, dimension), in channel order; in a uniform mode one block of dimension 1.
    predicted: channels of each predicted block. pooled: whether the first stage is.
    chunks: pairs (first group, group past the last).
    tensors: the normative ones, by the names of the document.
    """

    mode: str
    code_id: int
    blocks: tuple[tuple[int, int], ...]
    predicted: tuple[int, ...]
    pooled: bool
    codewords: int
    stages: int
    tables: int
    embedding: int
    hidden: tuple[int, int]
    group_hidden: int
    chunks: tuple[tuple[int, int], ...]
    window: int
    tensors: dict[str, Array]

    @property
    def uniform(self) -> bool:
        return self.mode in UNIFORM_MODES

    @property
    def groups(self) -> int:
        return sum(groups for groups, _ in self.blocks)

    @property
    def channels(self) -> int:
        return sum(groups * dimension for groups, dimension in self.blocks)


def tensor_table(model: Model) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each normative tensor by name: the tables of the two chapters *Model*."""
    table: dict[str, tuple[str, tuple[int, ...]]] = {}
    groups, codewords, tables, side = model.groups, model.codewords, model.tables, model.window
    width = model.embedding
    hidden1, hidden2 = model.hidden
    hidden3 = model.group_hidden
    features = groups * width
    if model.uniform:
        table["step"] = ("I32", (groups,))
        table["gain"] = ("I32", (BUCKETS,))
    for b, own in enumerate(model.predicted):
        table[f"predict.{b}"] = ("I16", (CLASSES, 4 * own + 9 * sum(model.predicted[:b]), own))
    for s in range(model.stages):
        if not model.uniform:
            for b, (count, dimension) in enumerate(model.blocks):
                table[f"codebook.{s}.{b}"] = ("I16", (count, codewords, dimension))
        for i in range(s):
            table[f"prior.{s}.embed_coarse.{i}"] = ("U8", (groups, codewords, width))
        table[f"prior.{s}.embed_same"] = ("U8", (groups, codewords, width))
        for x in windows_of(s):
            table[f"prior.{s}.window_{x}.taps"] = ("I8", (side, side, features))
            table[f"prior.{s}.window_{x}.bias"] = ("I32", (features,))
            table[f"prior.{s}.window_{x}.scale"] = ("I32", (features,))
        parts = 2 * len(windows_of(s))
        for c, (first, end) in enumerate(model.chunks):
            g = end - first
            linear = f"prior.{s}.{c}.linear"
            table[linear + "1.weight"] = ("I8", (1, hidden1, parts * features))
            table[linear + "1.bias"] = ("I32", (LEVELS, PASSES, hidden1))
            table[linear + "1.scale"] = ("I32", (1, hidden1))
            table[linear + "2.weight"] = ("I8", (1, hidden2, hidden1))
            table[linear + "2.bias"] = ("I32", (1, hidden2))
            table[linear + "2.scale"] = ("I32", (1, hidden2))
            table[linear + "3.weight"] = ("I8", (g, hidden3, hidden2 + parts * width))
            table[linear + "3.bias"] = ("I32", (g, hidden3))
            table[linear + "3.scale"] = ("I32", (g, hidden3))
            table[linear + "4.weight"] = ("I8", (g, tables, hidden3))
            table[linear + "4.bias"] = ("I32", (g, tables))
        table[f"prior.{s}.tables"] = ("U8", (groups, tables, codewords))
    return table


def windows_of(stage: int) -> tuple[str, ...]:
    return ("coarse", "same") if stage > 0 else ("same",)


# --- All modes: hash of the model -----------------------------------------------------------------


def model_hash(model: Model) -> int:
    """The code_id of a model, from its layout and its tensors."""
    prior = {
        "chunks": [end for _, end in model.chunks[:-1]],
        "embedding": model.embedding,
        "group_hidden": model.group_hidden,
        "hidden": list(model.hidden),
        "tables": model.tables,
        "window": model.window,
    }
    layout: dict[str, Any] = {"codewords": model.codewords, "levels": LEVELS, "prior": prior}
    if model.uniform:
        layout |= {"buckets": BUCKETS, "channels": model.groups, "mode": "uniform"}
    else:
        layout |= {"blocks": [list(block) for block in model.blocks], "stages": model.stages}
        if model.predicted:
            layout["predicted"] = list(model.predicted)
        if model.pooled:
            layout["pooled"] = True
    digest = hashlib.sha256(json.dumps(layout, sort_keys=True).encode("ascii"))
    for name in sorted(model.tensors):
        tensor = model.tensors[name]
        shape = ",".join(str(size) for size in tensor.shape)
        digest.update(f"{name} {tensor.dtype.name} {shape}\n".encode("ascii"))
        digest.update(tensor.tobytes())
    return int.from_bytes(digest.digest()[:4], "little")


# --- Mode 0: rate bucket --------------------------------------------------------------------------


def read_vector_indices(header: Header, payloads: dict[int, bytes], model: Model) -> list[Array]:
    """Indices (G, rows, cols), uint8, of the stages up to the last in the file, at least one."""
    bucket_stage, bucket_level = divmod(header.rate - 1, LEVELS)
    if bucket_stage >= model.stages:
        raise CorruptError(f"rate {header.rate} is beyond the model's {model.stages} stages")
    grid = grid_of(header)
    streams = {s: split_payload(payload, len(grid.tiles)) for s, payload in payloads.items()}
    last = max(payloads, default=0)
    if last > bucket_stage:
        raise CorruptError(f"stage {last} is beyond rate {header.rate}")
    indices: list[Array] = []
    for s in range(last + 1):
        if s in streams:
            level = bucket_level if s == bucket_stage else LEVELS - 1
            indices.append(StageDecoder(model, s, level).decode(streams[s], grid, indices))
        else:
            indices.append(np.zeros((model.groups, grid.rows, grid.cols), dtype=np.uint8))
    return indices


# --- Mode 0: order of coding ----------------------------------------------------------------------


def pass_positions(h: int, w: int, spatial_pass: int) -> Array:
    """Row and column, (P, 2), of the positions of a pass in a tile of h by w, in raster order."""
    y, x = np.indices((h, w))
    both_even = (y % 2 == 0) & (x % 2 == 0)
    both_odd = (y % 2 == 1) & (x % 2 == 1)
    return np.argwhere((both_even, both_odd, ~(both_even | both_odd))[spatial_pass])


class StageDecoder:
    """The symbols of one stage, tile by tile.

    A tile needs no symbol from outside, and one stream runs through all passes of the stage, so it
    is as well to decode a tile through all passes before the next as all tiles in each pass.
    """

    def __init__(self, model: Model, stage: int, level: int) -> None:
        self.model = model
        self.stage = stage
        self.level = level
        counts = frequencies(model.tensors[f"prior.{stage}.tables"])
        self.cumulative = np.pad(counts.cumsum(axis=-1), ((0, 0), (0, 0), (1, 0)))

    def decode(self, streams: Sequence[bytes], grid: Grid, coarser: Sequence[Array]) -> Array:
        """Indices (G, rows, cols), uint8, of the whole grid; coarser: those of the stages before."""
        result = np.zeros((self.model.groups, grid.rows, grid.cols), dtype=np.uint8)
        for (rows, cols), stream in zip(grid.tiles, streams, strict=True):
            of_tile = [indices[:, rows, cols] for indices in coarser]
            decoder = RangeDecoder(stream)
            self.decode_tile(decoder, result[:, rows, cols], of_tile)
            decoder.finish()
        return result

    def decode_tile(self, decoder: RangeDecoder, indices: Array, coarser: Sequence[Array]) -> None:
        """Fills indices, (G, h, w), in all passes."""
        network = ContextNetwork(self.model, self.stage, self.level, coarser)
        decoded = np.zeros(indices.shape, dtype=bool)
        for c, (first, end) in enumerate(self.model.chunks):
            for p in range(PASSES):
                positions = pass_positions(indices.shape[1], indices.shape[2], p)
                chosen = network.choose(c, p, positions, indices, decoded)
                for g in range(first, end):
                    self.decode_group(decoder, g, chosen[g - first], positions, indices)
                rows, cols = positions.T
                decoded[first:end, rows, cols] = True

    def decode_group(
        self, decoder: RangeDecoder, group: int, chosen: Array, positions: Array, indices: Array
    ) -> None:
        """The symbols of one group in one pass: by table, then by position in raster order."""
        for table in np.unique(chosen):
            rows, cols = positions[chosen == table].T
            cumulative = self.cumulative[group, table].tolist()
            indices[group, rows, cols] = [decoder.symbol(cumulative) for _ in rows]


# --- Mode 0: choice of the table ------------------------------------------------------------------


def requantise(a: Array, scale: Array) -> Array:
    return np.clip((a * scale + (1 << 29)) >> 30, 0, 255)


def around(features: Array, taps: Array, bias: Array, scale: Array) -> Array:
    """Features (h, w, F) of a tile to the sums over the window, (h, w, F); outside counts as zero."""
    side = taps.shape[0]
    half = side // 2
    h, w, _ = features.shape
    padded = np.pad(features, ((half, half), (half, half), (0, 0)))
    total = np.broadcast_to(bias, features.shape).copy()
    for dy in range(side):
        for dx in range(side):
            total += padded[dy : dy + h, dx : dx + w] * taps[dy, dx]
    return requantise(total, scale)


class ContextNetwork:
    """The choice of the tables for one stage in one tile.

    coarser: the indices of the stages before, each (G, h, w). All arithmetic is in int64.
    """

    def __init__(self, model: Model, stage: int, level: int, coarser: Sequence[Array]) -> None:
        self.model = model
        self.stage = stage
        self.level = level
        self.embed_same = self.tensor("embed_same")
        self.coarse: list[Array] = []
        if stage > 0:
            embedded = [embed(self.tensor(f"embed_coarse.{i}"), x) for i, x in enumerate(coarser)]
            coarse = np.minimum(sum(embedded), 255)
            self.coarse = [coarse, self.around("coarse", coarse)]

    def tensor(self, name: str) -> Array:
        return self.model.tensors[f"prior.{self.stage}.{name}"].astype(np.int64)

    def layer(self, chunk: int, number: int) -> tuple[Array, Array, Array]:
        name = f"{chunk}.linear{number}."
        return self.tensor(name + "weight"), self.tensor(name + "bias"), self.tensor(name + "scale")

    def around(self, name: str, features: Array) -> Array:
        name = f"window_{name}."
        bias, scale = self.tensor(name + "bias"), self.tensor(name + "scale")
        return around(features, self.tensor(name + "taps"), bias, scale)

    def choose(
        self, chunk: int, spatial_pass: int, positions: Array, indices: Array, decoded: Array
    ) -> Array:
        """Numbers of the tables, (groups of the chunk, P), at positions (P, 2) of row and column.

        indices and decoded, both (G, h, w): the symbols of this stage, and whether they are known.
        """
        known = np.repeat(np.moveaxis(decoded, 0, -1), self.model.embedding, axis=-1)
        same = embed(self.embed_same, indices) * known
        rows, cols = positions.T
        parts = [part[rows, cols] for part in (*self.coarse, same, self.around("same", same))]
        x = np.concatenate(parts, axis=1)
        weight, bias, scale = self.layer(chunk, 1)
        a = requantise(bias[self.level, spatial_pass] + x @ weight[0].T, scale)
        weight, bias, scale = self.layer(chunk, 2)
        b = requantise(bias + a @ weight[0].T, scale)
        weight, bias, scale = self.layer(chunk, 3)
        last_weight = self.tensor(f"{chunk}.linear4.weight")
        last_bias = self.tensor(f"{chunk}.linear4.bias")
        first, end = self.model.chunks[chunk]
        chosen = np.empty((end - first, len(positions)), dtype=np.int64)
        for g in range(end - first):
            features = slice((first + g) * self.model.embedding, (first + g + 1) * self.model.embedding)
            inputs = np.concatenate([b, *(part[:, features] for part in parts)], axis=1)
            y = requantise(bias[g] + inputs @ weight[g].T, scale[g])
            # argmax gives the lowest of equals.
            chosen[g] = (last_bias[g] + y @ last_weight[g].T).argmax(axis=1)
        return chosen


def embed(embedding: Array, indices: Array) -> Array:
    """Embedding (G, K, E) of indices (G, h, w): (h, w, G*E), features numbered g*E + e."""
    groups, h, w = indices.shape
    values = embedding[np.arange(groups)[:, None, None], indices]
    return values.transpose(1, 2, 0, 3).reshape(h, w, -1)


def check_sums(name: str, weight: Array, bias: Array, scale: Array | None) -> None:
    """Raises ModelFileError unless every sum and product stays in its bounds, in any order of adding.

    weight (..., outputs, inputs), bias and scale (..., outputs).
    """
    wide = weight.astype(np.int64)
    if wide.min() == -128:
        raise ModelFileError(f"{name} has a weight of -128")
    largest = abs(bias.astype(np.int64)) + 255 * abs(wide).sum(axis=-1)
    if largest.max() >= 1 << 31:
        raise ModelFileError(f"a sum of {name} may be 2^31 or more")
    # Below 2^31 times at most 2^31: no overflow in int64.
    if scale is not None and (largest * abs(scale.astype(np.int64))).max() >= 1 << 61:
        raise ModelFileError(f"a product of {name} with a scale may be 2^61 or more")


def check_network(model: Model) -> None:
    tensors = model.tensors
    for s in range(model.stages):
        for x in windows_of(s):
            name = f"prior.{s}.window_{x}."
            taps = tensors[name + "taps"].reshape(-1, model.groups * model.embedding).T
            check_sums(name + "taps", taps, tensors[name + "bias"], tensors[name + "scale"])
        for c in range(len(model.chunks)):
            for layer in range(1, 5):
                name = f"prior.{s}.{c}.linear{layer}."
                scale = tensors.get(name + "scale")
                check_sums(name + "weight", tensors[name + "weight"], tensors[name + "bias"], scale)


# --- Mode 0: probability tables -------------------------------------------------------------------

PRECISION = 24
POWERS = np.array(
    [16777216, 15653696, 14605415, 13627334, 12714752, 11863283, 11068835, 10327588, 9635980, 8990687]
)


def frequencies(lengths: Array) -> Array:
    """Code lengths (..., K) in tenths of a bit to frequencies (..., K) that sum to 2^24."""
    tenths = lengths.astype(np.int64)
    codewords = lengths.shape[-1]
    weights = POWERS[tenths % 10] >> (tenths // 10)
    total = weights.sum(axis=-1, keepdims=True)
    if (total == 0).any():
        raise ModelFileError("all weights of a probability table are zero")
    space = (1 << PRECISION) - codewords
    result = weights * space // total
    # argmax gives the lowest of equals.
    largest = result.argmax(axis=-1)[..., None]
    lack = space - result.sum(axis=-1, keepdims=True)
    np.put_along_axis(result, largest, np.take_along_axis(result, largest, -1) + lack, -1)
    return result + 1


# --- Mode 0: streams ------------------------------------------------------------------------------

MASK = (1 << 64) - 1


class RangeDecoder:
    """The symbols of one stream."""

    def __init__(self, stream: bytes) -> None:
        padded = stream + bytes(-len(stream) % 4)
        self.words: tuple[int, ...] = struct.unpack(f"<{len(padded) // 4}I", padded)
        self.read = 0
        self.low = 0
        self.width = MASK
        self.point = self.word() << 32
        self.point |= self.word()

    def word(self) -> int:
        self.read += 1
        return self.words[self.read - 1] if self.read <= len(self.words) else 0

    def symbol(self, cumulative: Sequence[int]) -> int:
        """The next symbol; cumulative has the sums of the frequencies before each k, and 2^24."""
        unit = self.width >> PRECISION
        quantile = ((self.point - self.low) & MASK) // unit
        if quantile >> PRECISION:
            raise CorruptError("a stream has an impossible quantile")
        symbol = bisect_right(cumulative, quantile) - 1
        self.low = (self.low + unit * cumulative[symbol]) & MASK
        self.width = unit * (cumulative[symbol + 1] - cumulative[symbol])
        if self.width < 1 << 32:
            self.low = (self.low << 32) & MASK
            self.width <<= 32
            self.point = ((self.point << 32) & MASK) | self.word()
        return symbol

    def finish(self) -> None:
        """The checks after the last symbol."""
        if self.read < len(self.words):
            raise CorruptError("a stream has words after its last symbol")
        if (self.point - self.low) & MASK >= (1 << 33) - 1:
            raise CorruptError("a stream does not end as its symbols do")


# --- Mode 0: prediction ---------------------------------------------------------------------------

WEIGHT_BITS = 14
MAX_PREDICTED = 1 << 16


def class_at(y: int, x: int) -> int:
    """The class of a position."""
    # The largest power of two, up to 8, that divides both coordinates; all of them divide zero.
    step = math.gcd(y, x, 8)
    if step == 8:
        return 0
    both_odd = y // step % 2 == 1 and x // step % 2 == 1
    return {4: 1, 2: 3, 1: 5}[step] + (not both_odd)


def mirror(v: int, e: int, n: int) -> int | None:
    for moved in (v + e, v - e):
        if 0 <= moved < n:
            return moved
    return None


def known_neighbours(y: int, x: int, grid: Grid) -> list[tuple[int, int]]:
    """The positions in lower classes from which (y, x) is predicted: four, in class 0 none."""
    kind = class_at(y, x)
    if kind == 0:
        return []
    d = (4, 2, 1)[(kind - 1) // 2]
    ys = [mirror(y, e, grid.rows) for e in (-d, d)]
    xs = [mirror(x, f, grid.cols) for f in (-d, d)]
    if kind % 2 == 1:
        return [(v, h) for v in ys for h in xs if v is not None and h is not None]
    vertical = [(v, x) for v in ys if v is not None]
    horizontal = [(y, h) for h in xs if h is not None]
    return (vertical or horizontal) + (horizontal or vertical)


def surrounding(y: int, x: int, grid: Grid) -> list[tuple[int, int]]:
    """The 3x3 positions around (y, x), in raster order but for those that are mirrored."""
    ys = [mirror(y, e, grid.rows) for e in (-1, 0, 1)]
    xs = [mirror(x, f, grid.cols) for f in (-1, 0, 1)]
    return [(y if v is None else v, x if h is None else h) for v in ys for h in xs]


def predict(q: Array, model: Model) -> None:
    """Adds the prediction to the codewords of stage 0, q int64 (C, rows, cols), in place."""
    grid = Grid(*q.shape[1:])
    by_class: list[list[tuple[int, int]]] = [[] for _ in range(CLASSES)]
    for y in range(grid.rows):
        for x in range(grid.cols):
            by_class[class_at(y, x)].append((y, x))
    first = 0
    for b, own in enumerate(model.predicted):
        weights = model.tensors[f"predict.{b}"].astype(np.int64)
        block = slice(first, first + own)
        for kind, positions in enumerate(by_class):
            for y, x in positions:
                known = [q[block, v, h] for v, h in known_neighbours(y, x, grid)]
                known = known or 4 * [np.zeros(own, dtype=np.int64)]
                before = [q[:first, v, h] for v, h in surrounding(y, x, grid)]
                total = np.concatenate([*known, *before]) @ weights[kind]
                q[block, y, x] += np.clip((total + (1 << WEIGHT_BITS - 1)) >> WEIGHT_BITS, -32768, 32767)
        first += own


# --- Mode 0: latent -------------------------------------------------------------------------------


def vector_latent(indices: Sequence[Array], model: Model) -> Array:
    """Prediction and codewords, int64 (C, rows, cols), in units of 1/4 grey level."""
    result = codewords_of(0, indices[0], model)
    if model.pooled:
        result = pooled(result)
    predict(result, model)
    for s, of_stage in enumerate(indices[1:], start=1):
        result += codewords_of(s, of_stage, model)
    return result


def pooled(q: Array) -> Array:
    """What q (C, rows, cols) has where row and column are even, at all positions of the 2x2."""
    _, rows, cols = q.shape
    upper = q[:, ::2, ::2]
    return upper.repeat(2, axis=1).repeat(2, axis=2)[:, :rows, :cols]


def codewords_of(stage: int, indices: Array, model: Model) -> Array:
    """The codewords of one stage, int64 (C, rows, cols)."""
    result = np.empty((model.channels, *indices.shape[1:]), dtype=np.int64)
    group = channel = 0
    for b, (_, dimension) in enumerate(model.blocks):
        for codebook in model.tensors[f"codebook.{stage}.{b}"]:
            result[channel : channel + dimension] = np.moveaxis(codebook[indices[group]], -1, 0)
            group += 1
            channel += dimension
    return result


# --- The uniform modes: symbols and escapes -------------------------------------------------------

ESCAPE = 255
FIRST_ESCAPE = 128
MIN_VALUE, MAX_VALUE = -32768, 32767
MAX_PRODUCT = 1 << 37


def read_escapes(stream: bytes, count: int) -> list[int]:
    """The values of the escapes of one tile."""
    if stream and stream[-1] & 0x80:
        raise TruncatedError("the escapes end within a varint")
    values: list[int] = []
    offset = 0
    while offset < len(stream):
        if len(values) == count:
            raise CorruptError("there are more escapes than symbols for them")
        v, offset = read_varint(stream, offset)
        value = FIRST_ESCAPE + v // 2
        if v % 2:
            value = -value
        if not MIN_VALUE <= value <= MAX_VALUE:
            raise CorruptError(f"an escape stands for {value}")
        values.append(value)
    if len(values) < count:
        raise CorruptError("there are fewer escapes than symbols for them")
    return values


def read_uniform_values(header: Header, payloads: dict[int, bytes], model: Model) -> Array:
    """Values (C, rows, cols), int32."""
    grid = grid_of(header)
    streams = {s: split_payload(payload, len(grid.tiles)) for s, payload in payloads.items()}
    if 0 in streams:
        level = (header.rate - 1) * LEVELS // BUCKETS
        symbols = StageDecoder(model, 0, level).decode(streams[0], grid, []).astype(np.int32)
    else:
        symbols = np.zeros((model.groups, grid.rows, grid.cols), dtype=np.int32)
    values = np.where(symbols % 2 == 1, (symbols + 1) // 2, -(symbols // 2))
    if 1 not in streams:
        if (symbols == ESCAPE).any():
            raise CorruptError("there are escapes but no stage 1")
        return values
    for (rows, cols), stream in zip(grid.tiles, streams[1], strict=True):
        # By channel and then in raster order, which is the order of the axes.
        escaped = symbols[:, rows, cols] == ESCAPE
        values[:, rows, cols][escaped] = read_escapes(stream, int(escaped.sum()))
    return values


# --- The uniform modes: latent --------------------------------------------------------------------


def uniform_latent(values: Array, rate: int, model: Model) -> Array:
    """The exact products, int64 (C, rows, cols), in units of 2^-24 grey level."""
    step = model.tensors["step"].astype(np.int64)[:, None, None]
    return values * step * int(model.tensors["gain"][rate - 1])


# --- Model file -----------------------------------------------------------------------------------


def parse_json(text: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError):
        raise ModelFileError("the model file has no JSON object where it should") from None
    if not isinstance(value, dict):
        raise ModelFileError("the model file has no JSON object where it should")
    return value


def is_count(value: Any, lowest: int = 1) -> bool:
    """Whether a value of JSON is an integer from lowest on that fits 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value < 1 << 64


def field(table: dict[str, Any], key: str) -> Any:
    if key not in table:
        raise ModelFileError(f"the model file has no {key}")
    return table[key]


def count(table: dict[str, Any], key: str) -> int:
    """A positive integer."""
    value = field(table, key)
    if not is_count(value):
        raise ModelFileError(f"{key} of the model file is not a positive integer")
    return value


def listing(table: dict[str, Any], key: str) -> list[Any]:
    value = field(table, key)
    if not isinstance(value, list):
        raise ModelFileError(f"{key} of the model file is not a list")
    return value


def mapping(table: dict[str, Any], key: str) -> dict[str, Any]:
    value = field(table, key)
    if not isinstance(value, dict):
        raise ModelFileError(f"{key} of the model file is not an object")
    return value


def read_layout(metadata: dict[str, Any]) -> Model:
    """A model without its tensors."""
    if field(metadata, "format") != 1:
        raise ModelFileError("the model file has an unknown format")
    mode = metadata.get("mode", "vq")
    if mode not in MODES:
        raise ModelFileError("the model file has an unknown mode")
    code_id = field(metadata, "code_id")
    if not is_count(code_id, 0):
        raise ModelFileError("code_id of the model file is not a number")
    quantizer = mapping(metadata, "quantizer")
    if mode in UNIFORM_MODES:
        if count(quantizer, "buckets") != BUCKETS:
            raise ModelFileError(f"the model file has not {BUCKETS} buckets")
        blocks: tuple[tuple[int, int], ...] = ((count(quantizer, "channels"), 1),)
        codewords, stages = 256, 1
        if "predicted" in quantizer or "pooled" in quantizer:
            raise ModelFileError("the model file has predicted blocks or pools in a uniform mode")
    else:
        pairs = listing(quantizer, "blocks")
        if not pairs or not all(
            isinstance(pair, list) and len(pair) == 2 and all(map(is_count, pair)) for pair in pairs
        ):
            raise ModelFileError("blocks of the model file are not pairs of positive integers")
        blocks = tuple((groups, dimension) for groups, dimension in pairs)
        codewords, stages = count(quantizer, "codewords"), len(listing(quantizer, "mu"))
        if not 2 <= codewords <= 256:
            raise ModelFileError(f"the model file has {codewords} codewords")
        if not 1 <= stages <= MAX_STAGES:
            raise ModelFileError(f"the model file has {stages} stages")
        if quantizer.get("pooled", False) is not (mode == "vqvae2"):
            raise ModelFileError("a first stage is pooled in mode vqvae2 and in no other")
    prior = mapping(metadata, "prior")
    hidden = listing(prior, "hidden")
    if len(hidden) != 2 or not all(map(is_count, hidden)):
        raise ModelFileError("hidden of the model file is not a pair of positive integers")
    inner = listing(prior, "chunks")
    borders = [0, *inner, sum(groups for groups, _ in blocks)]
    if not all(map(is_count, inner)) or any(a >= b for a, b in zip(borders, borders[1:], strict=False)):
        raise ModelFileError("the chunk borders of the model file do not ascend")
    if count(prior, "window") % 2 == 0:
        raise ModelFileError("the window of the model file is even")
    chunks = tuple(zip(borders, borders[1:], strict=False))
    return Model(
        mode=mode,
        code_id=code_id,
        blocks=blocks,
        predicted=read_predicted(quantizer, mode, blocks, chunks),
        pooled=mode == "vqvae2",
        codewords=codewords,
        stages=stages,
        tables=count(prior, "tables"),
        embedding=count(prior, "embedding"),
        hidden=(hidden[0], hidden[1]),
        group_hidden=count(prior, "group_hidden"),
        chunks=chunks,
        window=prior["window"],
        tensors={},
    )


def read_predicted(
    quantizer: dict[str, Any],
    mode: str,
    blocks: Sequence[tuple[int, int]],
    chunks: Sequence[tuple[int, int]],
) -> tuple[int, ...]:
    """The channels of each predicted block."""
    predicted = listing(quantizer, "predicted") if "predicted" in quantizer else []
    if not predicted:
        return ()
    if mode != "vq":
        raise ModelFileError(f"the model file has predicted blocks in the mode {mode}")
    if not all(map(is_count, predicted)):
        raise ModelFileError("predicted of the model file has not positive integers only")
    if sum(groups * dimension for groups, dimension in blocks) >= MAX_PREDICTED:
        raise ModelFileError("the model file has too many channels for prediction")
    # Not the last chunk.
    if len(predicted) >= len(chunks):
        raise ModelFileError("the model file has as many predicted blocks as chunks")
    dimensions = [dimension for groups, dimension in blocks for _ in range(groups)]
    for channels, (first, end) in zip(predicted, chunks, strict=False):
        if channels != sum(dimensions[first:end]):
            raise ModelFileError("a predicted block does not have the channels of its chunk")
    return tuple(predicted)


def read_tensor(header: dict[str, Any], body: bytes, name: str, kind: str, shape: Sequence[int]) -> Array:
    entry = mapping(header, name)
    if entry.get("dtype") != kind or entry.get("shape") != list(shape):
        raise ModelFileError(f"{name} is not of type {kind} and shape {list(shape)}")
    offsets = listing(entry, "data_offsets")
    if len(offsets) != 2 or not all(is_count(offset, 0) for offset in offsets):
        raise ModelFileError(f"{name} has no legal offsets")
    begin, end = offsets
    if end > len(body) or end - begin != math.prod(shape) * TYPES[kind].itemsize:
        raise ModelFileError(f"{name} has not the bytes of its shape")
    return np.frombuffer(body[begin:end], dtype=TYPES[kind]).reshape(shape)


def check_values(model: Model) -> None:
    """The rules of the chapters *Model* and *Probability tables* on values of tensors."""
    for name, tensor in model.tensors.items():
        if name in ("step", "gain") and tensor.min() <= 0:
            raise ModelFileError(f"{name} is not above 0")
        if name.startswith("codebook.") and tensor[:, 0].any():
            raise ModelFileError(f"codeword 0 of {name} is not zero")
        if name.endswith(".tables"):
            frequencies(tensor)
    if model.uniform:
        largest = int(model.tensors["step"].max()) * int(model.tensors["gain"].max())
        if largest >= MAX_PRODUCT:
            raise ModelFileError("step times gain may be 2^37 or more")


def read_model(data: bytes) -> Model:
    """A model from the bytes of its file; raises ModelFileError."""
    if len(data) < 8:
        raise ModelFileError("the model file is too short")
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8:
        raise ModelFileError("the model file ends within its header")
    header = parse_json(data[8 : 8 + size])
    text = field(mapping(header, "__metadata__"), "vqcodec")
    if not isinstance(text, str):
        raise ModelFileError("the metadata of the model file are not text")
    model = read_layout(parse_json(text))
    body = data[8 + size :]
    for name, (kind, shape) in tensor_table(model).items():
        model.tensors[name] = read_tensor(header, body, name, kind, shape)
    check_values(model)
    check_network(model)
    code_id = model_hash(model)
    if code_id != model.code_id:
        raise ModelFileError(f"the model's code_id is 0x{code_id:08X}, not 0x{model.code_id:08X}")
    return model


# --- All modes: from a file to the latent ---------------------------------------------------------


def read_indices(data: bytes, model: Model) -> list[Array]:
    """What a file says of the latent, as arrays of (G, rows, cols).

    In a vector mode the indices, uint8, of the stages 0 up to the last in the file, at least one; in
    a uniform mode one array with the values, int32. Raises a ReaderError for a file that is not whole
    and right, or that needs another model.
    """
    header, sections = read_container(data)
    check_limits(header)
    if header.code_id != model.code_id:
        raise UnknownModelError(f"the file needs the model 0x{header.code_id:08X}")
    if header.uniform != model.uniform:
        raise CorruptError(f"a file of the mode {header.mode} names a model of the mode {model.mode}")
    payloads = {section.stage: section.payload for section in sections if section.stage is not None}
    if header.uniform:
        return [read_uniform_values(header, payloads, model)]
    return read_vector_indices(header, payloads, model)


def latent(header: Header, indices: Sequence[Array], model: Model) -> Array:
    """The exact latent, int64 (C, rows, cols), from what read_indices returned.

    The unit is 1/4 grey level in a vector mode and 2^-24 grey level in a uniform one.
    """
    if model.uniform:
        return uniform_latent(indices[0], header.rate, model)
    return vector_latent(indices, model)


# --- Command line ---------------------------------------------------------------------------------


def report(header: Header, sections: Sequence[Section], indices: Sequence[Array]) -> Iterator[str]:
    yield f"version {header.version}"
    yield f"mode {header.mode}"
    yield f"grey {int(header.grey)}"
    yield f"rate {header.rate}"
    yield f"section_count {header.section_count}"
    yield f"width {header.width}"
    yield f"height {header.height}"
    yield f"code_id 0x{header.code_id:08X}"
    for section in sections:
        if section.stage is None:
            yield f"ignored section 0x{section.type:02X}, {len(section.payload)} bytes"
    for s, of_stage in enumerate(indices):
        shape = "x".join(str(size) for size in of_stage.shape)
        yield f"stage {s} {shape} {of_stage.dtype} {hashlib.sha256(of_stage.tobytes()).hexdigest()}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print header and indices of a .vqc file.")
    parser.add_argument("model", type=Path, help="model, a .safetensors file")
    parser.add_argument("file", type=Path, help=".vqc file")
    parser.add_argument("-o", "--output", type=Path, help="write the indices to this .npz file")
    options = parser.parse_args(arguments)
    try:
        model = read_model(options.model.read_bytes())
        data = options.file.read_bytes()
        header, sections = read_container(data)
        indices = read_indices(data, model)
        if options.output is not None:
            arrays: dict[str, Any] = {f"stage{s}": of_stage for s, of_stage in enumerate(indices)}
            with options.output.open("wb") as file:
                np.savez(file, **arrays)
    except ReaderError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    for line in report(header, sections, indices):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
