"""The golden files that must be refused: one for each fault that docs/format.md names.

Purpose: what a reader has to notice, and which of several faults it has to tell first.

Layout: `Fault`; files put together byte by byte; faults of the container, in the order of the table in
docs/format.md, *Checks and errors*; faults that need the model.

Invariants: all checksums are right unless the fault is a wrong checksum.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from golden_files import code_symbols

from vqcodec.codec import Codec
from vqcodec.container import encode_varint, pack_tiles, tile_grid, unpack_tiles

MAGIC = b"\x8eVQC"


@dataclass(frozen=True)
class Fault:
    """A file and how it fails; the fields are those of `golden_files.BadFile`."""

    name: str
    fault: str
    data: bytes
    error: str
    message: str
    model: str = "vector"


# --- files byte by byte --------------------------------------------------------------------------


@dataclass(frozen=True)
class Fields:
    """The header before its checksum. count: of sections; None for as many as there are."""

    code_id: int
    mode_byte: int = 0
    rate: int = 24
    width: int = 20
    height: int = 20
    version: int = 1
    count: int | None = None

    def file(self, *sections: bytes) -> bytes:
        """The file with these sections behind the header."""
        count = len(sections) if self.count is None else self.count
        fields = MAGIC + bytes([self.version, self.mode_byte, self.rate, count])
        fields += b"".join(n.to_bytes(4, "little") for n in (self.width, self.height, self.code_id))
        return fields + _crc(fields) + b"".join(sections)


def frame(type_byte: int, payload: bytes, *, length: bytes | None = None) -> bytes:
    """A section; length: its spelling, if it is not the right one."""
    covered = bytes([type_byte]) + (length or encode_varint(len(payload))) + payload
    return covered + _crc(covered)


def damaged(data: bytes, offset: int) -> bytes:
    """The data with the lowest bit at an offset turned over."""
    changed = bytearray(data)
    changed[offset] ^= 1
    return bytes(changed)


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


# --- faults that the container shows -------------------------------------------------------------


def list_container_faults(vector: Codec, uniform: Codec) -> Iterator[Fault]:
    """In the order of the table. Where a file has two faults, the earlier check decides."""
    fields = Fields(vector.model.code_id)
    first, second = (frame(0x90 + stage, payload) for stage, payload in _vector_stages(vector).items())
    yield from _list_header(fields, fields.file(first, second))
    yield from _list_frames(fields, first, second)
    yield from _list_meaning(fields, first, second)
    fields = Fields(uniform.model.code_id, mode_byte=1, rate=100)
    stages = _uniform_stages(uniform)
    for fault in _list_uniform_meaning(fields, frame(0x90, stages[0]), frame(0x91, stages[1])):
        yield replace(fault, model="uniform")


def _each(error: str, message: str, *files: tuple[str, str, bytes]) -> Iterator[Fault]:
    """Faults (name, description, data) of one error."""
    for name, fault, data in files:
        yield Fault(name, fault, data, error, message)


def _list_header(fields: Fields, whole: bytes) -> Iterator[Fault]:
    """Steps 1 to 8."""

    def header(**changes: int) -> bytes:
        return replace(fields, **changes).file()

    yield from _each("TruncatedError", "empty", ("empty", "no bytes", b""))
    yield from _each(
        "TruncatedError",
        "header",
        ("cut-in-magic", "three bytes", whole[:3]),
        ("cut-after-magic", "four bytes", whole[:4]),
        ("cut-in-header", "23 bytes", whole[:23]),
        ("cut-in-later-version", "ten bytes of version 9", header(version=9)[:10]),
    )
    yield from _each(
        "NotVqcError",
        "not a .vqc file",
        ("text", "a text", b"This is a text and no picture.\n"),
        ("seven-bits", "a transfer cleared the highest bits", bytes(b & 0x7F for b in whole)),
        ("magic-end", "the last byte of magic", damaged(whole, 3)),
        ("magic-short", "two bytes that begin no magic", b"\x8eW"),
    )
    yield from _each(
        "UnsupportedVersionError",
        "version",
        ("version-0", "version 0", header(version=0)),
        ("version-2", "version 2", header(version=2)),
        ("version-255-damaged", "version 255 and a wrong checksum", damaged(header(version=255), 20)),
    )
    yield from _each(
        "ChecksumError",
        "header",
        ("header-crc", "the checksum of the header", damaged(header(), 23)),
        ("header-damaged", "one bit of the width", damaged(header(), 8)),
        ("header-crc-first", "a wrong checksum and reserved bits", damaged(header(mode_byte=0xE0), 20)),
    )
    yield from _each(
        "CorruptError",
        "reserved",
        *(
            (f"reserved-bit-{bit}", f"bit {bit} of mode_byte", header(mode_byte=1 << bit))
            for bit in (5, 6, 7)
        ),
        ("reserved-first", "a reserved bit and an unknown mode", header(mode_byte=0x2F)),
    )
    yield from _each(
        "UnsupportedFeatureError",
        "mode",
        ("mode-11", "mode 11", header(mode_byte=11)),
        ("mode-15-grey", "mode 15, grey", header(mode_byte=0x1F)),
        ("mode-first", "mode 12 and a width of 0", header(mode_byte=12, width=0)),
        ("mode-before-sections", "mode 13 and no section of 3", header(mode_byte=13, count=3)),
    )
    yield from _each(
        "CorruptError",
        "pixels",
        ("width-0", "no width", header(width=0)),
        ("height-0", "no height", header(height=0)),
    )
    yield from _each(
        "CorruptError",
        "rate",
        ("rate-0", "rate 0", header(rate=0)),
        ("rate-0-uniform", "rate 0 in mode 2", header(rate=0, mode_byte=2)),
        ("rate-101-ae", "rate 101 in mode 1", header(rate=101, mode_byte=1)),
        ("rate-255-vae", "rate 255 in mode 2", header(rate=255, mode_byte=2)),
        ("rate-before-sections", "rate 0 and no section of 1", header(rate=0, count=1)),
    )


def _list_frames(fields: Fields, first: bytes, second: bytes) -> Iterator[Fault]:
    """Steps 9 and 10."""

    def counted(count: int, *sections: bytes) -> bytes:
        return replace(fields, count=count).file(*sections)

    payload = first[2:-4]
    yield from _each(
        "TruncatedError",
        "ends",
        ("no-section", "no section of 1", counted(1)),
        ("count-too-large", "two sections of 3", counted(3, first, second)),
        ("count-255", "no section of 255", counted(255)),
        ("cut-after-type", "a type without a length", counted(1, b"\x90")),
        ("cut-in-length", "the length goes on behind the end", counted(1, b"\x90\x80")),
        ("cut-in-payload", "half a payload", counted(1, first[: len(first) // 2])),
        ("cut-in-crc", "the last byte is missing", counted(2, first, second[:-1])),
        ("length-huge", "2^31 - 1 bytes announced", counted(1, b"\x90\xff\xff\xff\xff\x07" + payload)),
        ("length-past-end", "one byte more than there are", counted(1, b"\x90\x05" + bytes(8))),
    )
    yield from _each(
        "CorruptError",
        "length",
        (
            "length-two-spellings",
            "length 0 in two bytes",
            counted(1, frame(0x90, b"", length=b"\x80\x00")),
        ),
        ("length-2-31", "a length of 2^31", counted(1, b"\x90\x80\x80\x80\x80\x08")),
        ("length-six-bytes", "a length of six bytes", counted(1, b"\x90" + b"\xff" * 5 + b"\x01")),
    )
    longer = bytes([first[0], first[1] + 6]) + first[2:]
    optional = frame(0x41, b"note")
    yield from _each(
        "ChecksumError",
        "section",
        ("section-crc", "the checksum of a section", counted(1, damaged(first, len(first) - 1))),
        ("payload-damaged", "one bit of a payload", counted(2, damaged(first, 3), second)),
        ("type-damaged", "one bit of a type", counted(2, first, damaged(second, 0))),
        ("length-overlaps", "a length that reaches into the next section", counted(2, longer, second)),
        ("optional-damaged", "one bit of an optional section", counted(2, damaged(optional, 4), first)),
        (
            "damage-first",
            "damage behind an unknown critical section",
            counted(2, frame(0x80, b""), damaged(first, 3)),
        ),
        ("damage-before-rest", "damage, and a byte too many", counted(1, damaged(first, 3) + b"\0")),
    )
    yield from _each(
        "CorruptError",
        "follow",
        ("trailing-byte", "a byte behind the last section", counted(2, first, second, b"\0")),
        ("trailing-header", "a byte behind a file without sections", counted(0, b"\n")),
        ("count-too-small", "two sections of 1", counted(1, first, second)),
        ("count-0", "a section of none", counted(0, first)),
        (
            "trailing-first",
            "an unknown critical section and a byte too many",
            counted(1, frame(0x80, b""), b"\0"),
        ),
    )


def _list_meaning(fields: Fields, first: bytes, second: bytes) -> Iterator[Fault]:
    """Step 11, vector modes."""
    yield from _each(
        "UnsupportedFeatureError",
        "section type",
        *(
            (
                f"critical-{kind:02x}",
                f"critical section 0x{kind:02x}",
                fields.file(frame(0x80 | kind, b"?"), first),
            )
            for kind in (0x00, 0x0F, 0x20, 0x7F)
        ),
        (
            "critical-last",
            "an unknown critical section behind the stages",
            fields.file(first, second, frame(0xC1, b"")),
        ),
        (
            "critical-before-order",
            "an unknown critical section, then a stage twice",
            fields.file(frame(0xC1, b""), first, first),
        ),
    )
    yield from _each(
        "CorruptError",
        "stage",
        ("stage-optional", "stage 0 is not critical", fields.file(frame(0x10, first[2:-4]))),
        ("stage-15-optional", "stage 15 is not critical", fields.file(first, frame(0x1F, b""))),
        ("stage-twice", "stage 0 twice", fields.file(first, first)),
        ("stage-descends", "stage 1 before 0", fields.file(second, first)),
        (
            "stage-twice-apart",
            "stage 0 twice, an optional section between",
            fields.file(first, frame(0x41, b""), first),
        ),
        (
            "order-before-critical",
            "a stage twice, then an unknown critical section",
            fields.file(first, first, frame(0xC1, b"")),
        ),
    )


def _list_uniform_meaning(fields: Fields, symbols: bytes, escapes: bytes) -> Iterator[Fault]:
    """Step 11, uniform modes."""
    vae = replace(fields, mode_byte=2)
    yield from _each(
        "CorruptError",
        "stage",
        ("ae-stage-2", "stage 2 in mode 1", fields.file(symbols, escapes, frame(0x92, b""))),
        ("vae-stage-15", "stage 15 alone in mode 2", vae.file(frame(0x9F, b""))),
        ("ae-escapes-twice", "stage 1 twice", fields.file(symbols, escapes, escapes)),
    )
    yield from _each(
        "CorruptError",
        "escapes",
        ("ae-escapes-alone", "stage 1 without 0", fields.file(escapes)),
        ("vae-escapes-before-symbols", "stage 1 before 0 in mode 2", vae.file(escapes, symbols)),
    )


# --- faults that need the model ------------------------------------------------------------------


def _vector_stages(codec: Codec, width: int = 20, height: int = 20) -> dict[int, bytes]:
    """Payloads of two stages of drawn indices at the best rate, by stage."""
    random = np.random.default_rng(30)
    grid = tile_grid(width, height)
    quantizer = codec.model.config.quantizer
    shape = (2, quantizer.groups, grid.rows, grid.cols)
    drawn = random.integers(0, quantizer.codewords, shape).astype(np.uint8)
    return code_symbols(codec.model.bottleneck, list(drawn), codec.model.bottleneck.buckets)


def _uniform_stages(codec: Codec, width: int = 20, height: int = 20) -> dict[int, bytes]:
    """Payloads of symbols and escapes at rate 100: three escapes, two of them in the last tile."""
    grid = tile_grid(width, height)
    values = np.zeros((codec.model.config.quantizer.groups, grid.rows, grid.cols), np.int32)
    values[0, 0, 0], values[1, -1, -1], values[2, -1, -1] = 128, -300, 500
    return code_symbols(codec.model.bottleneck, [values], 100)


def list_coded_faults(vector: Codec, uniform: Codec) -> Iterator[Fault]:
    """Size, model, mode, rate bucket; payloads and streams; escapes."""
    yield from _list_sizes(Fields(vector.model.code_id))
    yield from _list_models(vector, uniform)
    yield from _list_buckets(vector)
    yield from _list_payloads(vector)
    yield from _list_streams(vector)
    for fault in (*_list_uniform_streams(uniform), *_list_escapes(uniform)):
        yield replace(fault, model="uniform")


def _list_sizes(fields: Fields) -> Iterator[Fault]:
    """More pixels than any reader is prepared for."""
    stage, top = frame(0x90, bytes(20)), 2**32 - 1

    def sized(width: int, height: int, **changes: int) -> bytes:
        return replace(fields, width=width, height=height, **changes).file(stage)

    yield from _each(
        "TooLargeError",
        "limit",
        ("size-2-31", "2^31 x 2^31 pixels in 50 bytes", sized(2**31, 2**31)),
        ("size-largest", "2^32 - 1 pixels a side", sized(top, top)),
        ("size-widest", "one row of 2^32 - 1 pixels", sized(top, 1)),
        ("size-tallest", "one column of 2^32 - 1 pixels", sized(1, top)),
        ("size-before-model", "too large, and of an unknown model", sized(top, top, code_id=1)),
    )


def _list_models(vector: Codec, uniform: Codec) -> Iterator[Fault]:
    """Files of another model than the one at hand, or of the wrong mode for it."""
    fields, foreign = Fields(vector.model.code_id), Fields(uniform.model.code_id, rate=20)
    stages = [frame(0x90 + stage, payload) for stage, payload in _vector_stages(vector).items()]
    swapped = int.from_bytes(fields.code_id.to_bytes(4, "little"), "big")
    yield from _each(
        "UnknownModelError",
        "code id",
        ("model-unknown", "code_id of no model", replace(fields, code_id=0xDEADBEEF).file(*stages)),
        (
            "model-swapped",
            "code_id in the wrong byte order",
            replace(fields, code_id=swapped).file(*stages),
        ),
        ("model-other", "code_id of the other model", foreign.file(*stages)),
        (
            "model-before-rate",
            "an unknown model, and rate 255",
            replace(fields, code_id=1, rate=255).file(),
        ),
    )
    yield from _each(
        "CorruptError",
        "mode",
        (
            "mode-ae-of-vector",
            "mode 1 with a model of vectors",
            replace(fields, mode_byte=1).file(stages[0]),
        ),
        ("mode-vae-of-vector", "mode 2 with a model of vectors", replace(fields, mode_byte=2).file()),
    )
    for mode in (0, 3, 4):
        name, data = f"mode-{mode}-of-uniform", replace(foreign, mode_byte=mode).file()
        yield Fault(name, f"mode {mode} with a uniform model", data, "CorruptError", "mode", "uniform")


def _list_buckets(vector: Codec) -> Iterator[Fault]:
    """Rate buckets and stages that the model or the rate does not have."""
    fields, last = Fields(vector.model.code_id), vector.model.bottleneck.buckets
    first, second = (frame(0x90 + stage, payload) for stage, payload in _vector_stages(vector).items())
    yield from _each(
        "CorruptError",
        "rate bucket",
        (
            "bucket-beyond",
            "one bucket more than the model has",
            replace(fields, rate=last + 1).file(first),
        ),
        ("bucket-255", "rate 255, no sections", replace(fields, rate=255).file()),
        ("stage-beyond-rate", "stage 1 at rate 8", replace(fields, rate=8).file(first, second)),
        ("stage-beyond-model", "a stage more than the model has", fields.file(first, frame(0x93, b""))),
        ("stage-15", "stage 15 at the best rate", fields.file(frame(0x9F, b""))),
    )


def _list_payloads(vector: Codec) -> Iterator[Fault]:
    """Lengths of tiles."""
    fields = replace(Fields(vector.model.code_id), width=1040, height=1030)

    def tiles(payload: bytes) -> bytes:
        return fields.file(frame(0x90, payload))

    many = replace(fields, width=4096)
    yield from _each(
        "TruncatedError",
        "tiles",
        ("tiles-empty", "no byte for four tiles", tiles(b"")),
        ("tiles-two-lengths", "two bytes for four tiles", tiles(b"\0\0")),
        ("tiles-many", "six bytes for eight tiles", many.file(frame(0x90, bytes(6)))),
        ("tiles-too-long", "tiles of 15 bytes, and 14 there", tiles(b"\x05\x05\x05" + bytes(14))),
        ("tiles-huge", "a tile of 2^31 - 1 bytes", tiles(b"\xff\xff\xff\xff\x07\0\0")),
        ("tiles-huge-sum", "three of them", tiles(b"\xff\xff\xff\xff\x07" * 3)),
    )
    yield from _each(
        "TruncatedError",
        "length",
        ("tiles-cut-length", "the payload ends in a length", tiles(b"\x01\x01\x80")),
    )
    yield from _each(
        "CorruptError",
        "length",
        ("tiles-two-spellings", "length 0 in two bytes", tiles(b"\x80\0\0\0")),
        ("tiles-2-31", "a tile of 2^31 bytes", tiles(b"\x80\x80\x80\x80\x08\0\0")),
        ("tiles-six-bytes", "a length of six bytes", tiles(b"\xff" * 5 + b"\x01\0\0")),
    )


def _list_streams(vector: Codec) -> Iterator[Fault]:
    """Streams that say something else than the symbols of their tile."""
    fields = Fields(vector.model.code_id)
    stages = _vector_stages(vector)
    first, second = stages.values()
    words = first + bytes(-len(first) % 4)

    def stage0(payload: bytes) -> bytes:
        return fields.file(frame(0x90, payload))

    yield from _each(
        "CorruptError",
        "stream",
        ("stream-quantile", "a quantile of 2^24 or more at once", stage0(b"\xff" * 8)),
        (
            "stream-quantile-later",
            "a quantile of 2^24 or more in stage 1",
            fields.file(frame(0x90, first), frame(0x91, b"\xff" * 8)),
        ),
        ("stream-noise", "bytes that no encoder wrote", stage0(bytes(range(7, 47)))),
        # An encoder leaves the last word, and one before it that is zero, to the zeros behind the end:
        # with three more there is one too many.
        ("stream-zero-words", "a word of zero that is not read", stage0(words + bytes(12))),
        ("stream-words", "words that are not read", stage0(words + b"\x01\x02\x03\x04" * 3)),
        ("stream-byte", "a byte that is not read", stage0(words + bytes(8) + b"\x01")),
        ("stream-cut", "the last word is missing", stage0(words[:-4])),
        ("stream-other-stage", "the stream of stage 1 as stage 0", stage0(second)),
        ("stream-far", "all words read, but the point lies too far from low", stage0(b"\0\x01")),
        (
            "stream-second-stage",
            "words that are not read in stage 1",
            fields.file(frame(0x90, first), frame(0x91, second + bytes(12))),
        ),
    )
    wide = replace(fields, width=1040)
    streams = unpack_tiles(_vector_stages(vector, 1040)[0], 2)
    yield from _each(
        "CorruptError",
        "stream",
        (
            "stream-swapped",
            "the streams of two tiles exchanged",
            wide.file(frame(0x90, pack_tiles(streams[::-1]))),
        ),
        (
            "stream-joined",
            "both tiles in the stream of the first",
            wide.file(frame(0x90, pack_tiles([b"".join(streams), b""]))),
        ),
        (
            "stream-of-larger-tile",
            "the second tile has the stream of a larger one",
            wide.file(frame(0x90, pack_tiles([streams[0], first]))),
        ),
    )


def _list_uniform_streams(uniform: Codec) -> Iterator[Fault]:
    """The same of symbols."""
    fields = Fields(uniform.model.code_id, mode_byte=1, rate=100)
    stages = _uniform_stages(uniform)
    symbols, escapes = stages[0], frame(0x91, stages[1])
    words = symbols + bytes(-len(symbols) % 4)
    yield from _each(
        "CorruptError",
        "stream",
        ("ae-stream-quantile", "a quantile of 2^24 or more", fields.file(frame(0x90, b"\xff" * 8))),
        (
            "ae-stream-zero-words",
            "a word of zero that is not read",
            fields.file(frame(0x90, words + bytes(12)), escapes),
        ),
        ("ae-stream-noise", "bytes that no encoder wrote", fields.file(frame(0x90, bytes(range(5, 45))))),
    )


def _list_escapes(uniform: Codec) -> Iterator[Fault]:
    """Escapes that are not those of the symbols, or not within their limits."""
    fields = Fields(uniform.model.code_id, mode_byte=1, rate=100)
    one_tile, two_tiles = _uniform_stages(uniform), _uniform_stages(uniform, 1040)
    assert len(one_tile[1]) == 5  # 128, -300 and 500: one byte, two and two
    symbols = frame(0x90, one_tile[0])
    silent = code_symbols(
        uniform.model.bottleneck,
        [np.ones((uniform.model.config.quantizer.groups, 2, 2), np.int32)],
        100,
    )

    def escapes(payload: bytes, *, mode_byte: int = 1) -> bytes:
        return replace(fields, mode_byte=mode_byte).file(symbols, frame(0x91, payload))

    yield from _each(
        "TruncatedError",
        "escape",
        ("escapes-cut", "the last of them is cut", escapes(one_tile[1][:-1])),
        ("escapes-cut-more", "one too many, and cut", escapes(one_tile[1] + b"\x80")),
    )
    wide = replace(fields, width=1040)
    wide_symbols = frame(0x90, two_tiles[0])
    tiles = unpack_tiles(two_tiles[1], 2)
    yield from _each(
        "CorruptError",
        "escape",
        ("escapes-missing", "no stage 1", fields.file(symbols)),
        ("escapes-missing-vae", "no stage 1 in mode 2", replace(fields, mode_byte=2).file(symbols)),
        ("escapes-empty", "an empty stage 1", escapes(b"")),
        ("escapes-too-few", "two of three", escapes(b"\x00\x01")),
        ("escapes-too-many", "four of three", escapes(one_tile[1] + b"\x00")),
        (
            "escapes-without-symbols",
            "one, though no symbol announces it",
            fields.file(frame(0x90, silent[0]), frame(0x91, b"\x00")),
        ),
        ("escapes-two-spellings", "0 in two bytes", escapes(b"\x80\x00\x00\x00")),
        ("escapes-above", "32768", escapes(b"\x00\x00\x80\xfe\x03")),
        ("escapes-below", "-32769", escapes(b"\x00\x00\x83\xfe\x03", mode_byte=2)),
        ("escapes-four-bytes", "2^21", escapes(b"\x00\x00\x80\x80\x80\x01")),
        ("escapes-ten-bytes", "2^63", escapes(b"\x00\x00" + b"\x80" * 9 + b"\x01")),
        (
            "escapes-other-tile",
            "those of both tiles in the first",
            wide.file(wide_symbols, frame(0x91, pack_tiles([b"".join(tiles), b""]))),
        ),
        (
            "escapes-swapped",
            "those of two tiles exchanged",
            wide.file(wide_symbols, frame(0x91, pack_tiles(tiles[::-1]))),
        ),
    )
    yield from _each(
        "TruncatedError",
        "tile",
        (
            "escapes-no-lengths",
            "an empty stage 1 for two tiles",
            wide.file(wide_symbols, frame(0x91, b"")),
        ),
    )
