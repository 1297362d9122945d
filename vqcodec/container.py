"""The .vqc container, version 1: header and typed sections <-> bytes.

Purpose: everything about a file that can be known without a model. docs/format.md is the
normative text; this module follows it chapter by chapter and needs only the standard library.

Layout: constants, the types, variable-length integers, writing, reading, the stages and their
tiles. All integers are little endian.

    header, 24 bytes      magic 4 | version 1 | mode 1 | rate 1 | sections 1
                          | width 4 | height 4 | code_id 4 | CRC32 4
    section, repeated     type 1 | payload length 1..5 | payload | CRC32 4

Invariants
- `read_container(write_container(h, s)) == (h, s)`; what the writer would produce and the reader
  would refuse is a ValueError when writing.
- Reading raises only `VqcError` subclasses for whatever bytes it is given. Every length is
  compared with the bytes that are there before anything of that length is taken.
- Damage is reported before meaning: all lengths and checksums are checked before any section
  type is looked at, so a damaged file is never called "too new".
"""

from __future__ import annotations

import operator
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vqcodec.errors import (
    ChecksumError,
    CorruptError,
    NotVqcError,
    TruncatedError,
    UnsupportedFeatureError,
    UnsupportedVersionError,
    VqcError,
)

MAGIC = b"\x8eVQC"
VERSION = 1
HEADER_SIZE = 24
MAX_SECTIONS = 255

MODE_VQ = 0
MODE_AE = 1
MODE_VAE = 2
MODE_DVAE = 3
MODE_VQVAE = 4
MODE_DAE = 5
MODE_WAE = 6
MODE_HVAE = 7
MODE_VQVAE2 = 8
MODE_FSQ = 9
MODE_RVQ = 10
MODE_NAMES = {
    MODE_VQ: "vq",
    MODE_AE: "ae",
    MODE_VAE: "vae",
    MODE_DVAE: "dvae",
    MODE_VQVAE: "vqvae",
    MODE_DAE: "dae",
    MODE_WAE: "wae",
    MODE_HVAE: "hvae",
    MODE_VQVAE2: "vqvae2",
    MODE_FSQ: "fsq",
    MODE_RVQ: "rvq",
}
"""Every mode of the format and the name by which people know it."""
UNIFORM_MODES = frozenset({MODE_AE, MODE_VAE, MODE_DAE, MODE_WAE, MODE_HVAE})
"""Modes whose latent is quantised uniformly; that of all others is a sum of codewords."""
UNIFORM_BUCKETS = 100
"""Rate buckets of the uniform modes."""

STAGE_TYPE_BASE = 0x10
MAX_STAGES = 16
STAGE_SYMBOLS = 0
"""In the uniform modes: the stage that holds the symbols."""
STAGE_ESCAPES = 1
"""In the uniform modes: the stage that holds the values which no symbol can say."""

STRIDE = 16
"""Pixels of the picture per latent position, in each direction."""
TILE = 64
"""Latent positions of a prior tile, in each direction."""

VARINT_LIMIT = 1 << 31
"""Variable-length integers are below this, so that they fit a signed 32-bit integer."""

BytesLike: TypeAlias = bytes | bytearray | memoryview

_HEADER_FIELDS = struct.Struct("<4sBBBBIII")
_CRC = struct.Struct("<I")
_MODE_MASK = 0x0F
_GREY_BIT = 0x10
_RESERVED_BITS = 0xE0
_CRITICAL_BIT = 0x80
_TYPE_MASK = 0x7F
_VARINT_MAX_BYTES = 5
_U32_MAX = 0xFFFFFFFF


@dataclass(frozen=True)
class Header:
    """What the fixed header says.

    mode: how the sections are to be understood, a key of `MODE_NAMES`.
    grey: the picture has one channel; otherwise it is RGB.
    rate: rate bucket 1..255, 1..100 in the uniform modes, an input of the mode's decoder.
    width, height: pixels of the picture, each 1..2**32 - 1.
    code_id: fingerprint (u32) of the codebooks, prior and layout that the symbols belong to.
    """

    mode: int
    grey: bool
    rate: int
    width: int
    height: int
    code_id: int
    version: int = VERSION


@dataclass(frozen=True)
class Section:
    """One section: `type` 0..127, whether a reader must understand it, and its payload."""

    type: int
    critical: bool
    payload: bytes

    @property
    def stage(self) -> int | None:
        """Number of the stage that this section holds, or None for other types."""
        stage = self.type - STAGE_TYPE_BASE
        return stage if 0 <= stage < MAX_STAGES else None


@dataclass(frozen=True)
class TileGrid:
    """Latent positions of a picture (`rows` x `cols`) and their division into prior tiles."""

    rows: int
    cols: int

    @property
    def tile_rows(self) -> int:
        """Number of rows of tiles."""
        return -(-self.rows // TILE)

    @property
    def tile_cols(self) -> int:
        """Number of columns of tiles."""
        return -(-self.cols // TILE)

    @property
    def count(self) -> int:
        """Number of tiles, at least 1."""
        return self.tile_rows * self.tile_cols

    def box(self, index: int) -> tuple[int, int, int, int]:
        """(top, bottom, left, right): the tile covers latent rows top:bottom, columns left:right.

        Tiles are numbered in raster order; those at the right and lower edge may be smaller.
        Raises ValueError for an index outside 0..count - 1.
        """
        _require("tile index", index, 0, self.count - 1)
        tile_row, tile_col = divmod(index, self.tile_cols)
        top, left = tile_row * TILE, tile_col * TILE
        return top, min(top + TILE, self.rows), left, min(left + TILE, self.cols)


def tile_grid(width: int, height: int) -> TileGrid:
    """Grid of latent positions and tiles for a picture of `width` x `height` pixels.

    Pure arithmetic, so safe for any header. Raises ValueError for a size outside 1..2**32 - 1.
    """
    _require("width", width, 1, _U32_MAX)
    _require("height", height, 1, _U32_MAX)
    return TileGrid(rows=-(-height // STRIDE), cols=-(-width // STRIDE))


def encode_varint(value: int) -> bytes:
    """`value` as unsigned LEB128 in the fewest bytes (1..5).

    Raises ValueError outside 0..2**31 - 1.
    """
    _require("value", value, 0, VARINT_LIMIT - 1)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: BytesLike, offset: int = 0) -> tuple[int, int]:
    """Read the LEB128 integer at `offset`; return it and the offset of the byte after it.

    Raises TruncatedError if the data ends first and CorruptError for an encoding that is longer
    than needed or a value of 2**31 or more. ValueError for a negative offset.
    """
    if offset < 0:
        raise ValueError(f"offset must not be negative, got {offset}")
    raw = as_bytes(data)
    value = 0
    for count in range(_VARINT_MAX_BYTES):
        if offset >= len(raw):
            raise TruncatedError("the data ends inside a length")
        byte = raw[offset]
        offset += 1
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            # A last byte of zero adds nothing: one number would have several spellings.
            if byte == 0 and count > 0:
                raise CorruptError("a length is written in more bytes than it needs")
            if value >= VARINT_LIMIT:
                break
            return value, offset
    raise CorruptError(f"a length is not below {VARINT_LIMIT}")


def write_container(header: Header, sections: Iterable[Section]) -> bytes:
    """The bytes of a file with this header and these sections, in this order.

    Raises ValueError if a field is out of range, if a section is one that a reader of this
    version would refuse, or if there are more than 255 sections.
    """
    sections = list(sections)
    _require("version", header.version, VERSION, VERSION)
    _require("mode", header.mode, min(MODE_NAMES), max(MODE_NAMES))
    _require("rate", header.rate, 1, _highest_rate(header.mode))
    _require("width", header.width, 1, _U32_MAX)
    _require("height", header.height, 1, _U32_MAX)
    _require("code_id", header.code_id, 0, _U32_MAX)
    _require("number of sections", len(sections), 0, MAX_SECTIONS)
    for section in sections:
        _require("section type", section.type, 0, _TYPE_MASK)
    try:
        check_meaning(header.mode, sections)
    except VqcError as error:
        raise ValueError(f"a reader would refuse this file: {error}") from error

    fields = _HEADER_FIELDS.pack(
        MAGIC,
        header.version,
        header.mode | (_GREY_BIT if header.grey else 0),
        header.rate,
        len(sections),
        header.width,
        header.height,
        header.code_id,
    )
    parts = [fields, _CRC.pack(zlib.crc32(fields))]
    for section in sections:
        payload = as_bytes(section.payload)
        if len(payload) >= VARINT_LIMIT:
            raise ValueError(f"a payload must be below {VARINT_LIMIT} bytes, got {len(payload)}")
        head = bytes([_type_byte(section)]) + encode_varint(len(payload))
        parts += [head, payload, _CRC.pack(zlib.crc32(payload, zlib.crc32(head)))]
    return b"".join(parts)


def read_header(data: BytesLike) -> Header:
    """Check and return the fixed header; what follows its 24 bytes is not looked at.

    Raises NotVqcError, TruncatedError, UnsupportedVersionError, ChecksumError, CorruptError or
    UnsupportedFeatureError, checked in the order that docs/format.md gives.
    """
    return parse_header(as_bytes(data))[0]


def read_container(data: BytesLike) -> tuple[Header, list[Section]]:
    """Check the whole file and return its header and all its sections in file order.

    Optional sections of unknown type are kept, so that they can be named. The stages among the
    sections are critical, ascend and occur once each; in the uniform modes there are at most
    symbols, and escapes behind them. Raises as `read_header` does, for the sections too; never
    anything else, whatever the bytes.
    """
    raw = as_bytes(data)
    header, count = parse_header(raw)
    sections = _parse_sections(raw, count)
    check_meaning(header.mode, sections)
    return header, sections


def stage_section(stage: int, payload: BytesLike) -> Section:
    """The section that holds stage `stage`, 0..15 (else ValueError)."""
    _require("stage", stage, 0, MAX_STAGES - 1)
    return Section(type=STAGE_TYPE_BASE + stage, critical=True, payload=as_bytes(payload))


def stage_payloads(sections: Iterable[Section]) -> dict[int, bytes]:
    """Payload of each stage among sections that `read_container` returned, in ascending order.

    A stage that is missing from the result is all zero.
    """
    return {s.stage: s.payload for s in sections if s.stage is not None}


def pack_tiles(streams: Sequence[BytesLike]) -> bytes:
    """A stage's payload from the byte streams of its tiles in raster order.

    The lengths of all streams but the last come first, then the streams. Raises ValueError
    without streams.
    """
    if not streams:
        raise ValueError("a stage has at least one tile")
    parts = [as_bytes(stream) for stream in streams]
    return b"".join([encode_varint(len(part)) for part in parts[:-1]] + parts)


def unpack_tiles(payload: BytesLike, count: int) -> list[bytes]:
    """The byte streams of the `count` tiles of a stage; the inverse of `pack_tiles`.

    `count` comes from `tile_grid`. Raises TruncatedError if the payload is too short for the
    lengths or for what they announce, CorruptError for a malformed length, and ValueError for a
    count below 1.
    """
    if count < 1:
        raise ValueError(f"a stage has at least one tile, got {count}")
    raw = as_bytes(payload)
    # Each length takes at least a byte, so this is known, and can be said, before any is read.
    if count - 1 > len(raw):
        raise TruncatedError(f"a stage of {len(raw)} bytes cannot hold {count} tiles")
    lengths = []
    position = 0
    for _ in range(count - 1):
        length, position = decode_varint(raw, position)
        lengths.append(length)
    if sum(lengths) > len(raw) - position:
        raise TruncatedError("the tiles of a stage are longer than the stage")
    streams = []
    for length in lengths:
        streams.append(raw[position : position + length])
        position += length
    streams.append(raw[position:])
    return streams


def parse_header(raw: bytes) -> tuple[Header, int]:
    """The header and the number of sections that it announces."""
    start = raw[: len(MAGIC)]
    if start != MAGIC:
        if MAGIC.startswith(start):
            raise TruncatedError("the file is empty" if not raw else "the file ends in its header")
        raise NotVqcError("not a .vqc file")
    if len(raw) < HEADER_SIZE:
        raise TruncatedError("the file ends in its header")
    fields = raw[: _HEADER_FIELDS.size]
    _, version, mode_byte, rate, count, width, height, code_id = _HEADER_FIELDS.unpack(fields)
    if version != VERSION:
        raise UnsupportedVersionError(
            f"the file has container version {version}, this release reads version {VERSION}"
        )
    if _CRC.unpack_from(raw, _HEADER_FIELDS.size)[0] != zlib.crc32(fields):
        raise ChecksumError("the header is damaged (its checksum does not match)")
    if mode_byte & _RESERVED_BITS:
        raise CorruptError("reserved bits of the mode byte are set")
    mode = mode_byte & _MODE_MASK
    if mode not in MODE_NAMES:
        raise UnsupportedFeatureError(f"the file has mode {mode}, unknown to this release")
    if width == 0 or height == 0:
        raise CorruptError(f"a picture cannot have {width} x {height} pixels")
    if rate == 0:
        raise CorruptError("the rate is 0")
    if rate > _highest_rate(mode):
        raise CorruptError(f"the rate is {rate}, in mode {mode} it is at most {_highest_rate(mode)}")
    header = Header(
        mode=mode,
        grey=bool(mode_byte & _GREY_BIT),
        rate=rate,
        width=width,
        height=height,
        code_id=code_id,
        version=version,
    )
    return header, count


def _parse_sections(raw: bytes, count: int) -> list[Section]:
    """Cut `count` sections out of the file; checks lengths and checksums, not meaning."""
    sections = []
    position = HEADER_SIZE
    for number in range(1, count + 1):
        section, position = parse_section(raw, position, number=number, count=count)
        sections.append(section)
    if position != len(raw):
        raise CorruptError(f"{len(raw) - position} bytes follow the last section")
    return sections


def parse_section(raw: bytes, start: int, *, number: int, count: int) -> tuple[Section, int]:
    """The section at `start`, and where it ends; checks its length and checksum, not its meaning.

    It is section `number` of `count`, for the words of an error: TruncatedError, ChecksumError, or
    CorruptError for a malformed length.
    """
    if start >= len(raw):
        raise TruncatedError(f"the file ends before section {number} of {count}")
    try:
        length, payload_start = decode_varint(raw, start + 1)
    except VqcError as error:
        raise type(error)(f"section {number} of {count}: {error}") from error
    payload_end = payload_start + length
    end = payload_end + _CRC.size
    if end > len(raw):
        raise TruncatedError(f"the file ends in section {number} of {count}")
    payload = raw[payload_start:payload_end]
    crc = zlib.crc32(payload, zlib.crc32(raw[start:payload_start]))
    if _CRC.unpack_from(raw, payload_end)[0] != crc:
        raise ChecksumError(f"section {number} of {count} is damaged (its checksum does not match)")
    kind = raw[start]
    return Section(kind & _TYPE_MASK, bool(kind & _CRITICAL_BIT), payload), end


def _highest_rate(mode: int) -> int:
    return UNIFORM_BUCKETS if mode in UNIFORM_MODES else 0xFF


def check_meaning(mode: int, sections: Iterable[Section]) -> None:
    """Refuse unknown critical sections and stages that are optional, repeated or out of order.

    In the uniform modes also a stage beyond the escapes, and escapes without symbols before them.
    """
    previous = -1
    for section in sections:
        stage = section.stage
        if stage is None:
            if section.critical:
                raise UnsupportedFeatureError(
                    f"the file needs section type 0x{section.type:02x}, unknown to this release"
                )
            continue
        if not section.critical:
            raise CorruptError(f"stage {stage} is not marked as critical")
        if stage <= previous:
            raise CorruptError(f"stage {stage} follows stage {previous}")
        if mode in UNIFORM_MODES:
            if stage > STAGE_ESCAPES:
                raise CorruptError(f"there is a stage {stage}, which mode {mode} does not have")
            if stage == STAGE_ESCAPES and previous != STAGE_SYMBOLS:
                raise CorruptError("there are escapes, but no symbols before them")
        previous = stage


def _type_byte(section: Section) -> int:
    return section.type | (_CRITICAL_BIT if section.critical else 0)


def as_bytes(data: BytesLike) -> bytes:
    """`data` as bytes; only what is not bytes already is copied."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"expected bytes, bytearray or memoryview, got {type(data).__name__}")


def _require(name: str, value: int, low: int, high: int) -> None:
    if not low <= operator.index(value) <= high:
        allowed = str(low) if low == high else f"{low}..{high}"
        raise ValueError(f"{name} must be {allowed}, got {value}")
