"""Tests of vqcodec.container and the worked examples of docs/format.md.

Files that the writer would refuse to make are put together by `raw_file` below, which shares no
code with the container module, so that writer and reader cannot be wrong in the same way.
"""

from __future__ import annotations

import array
import random
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqcodec import container, errors, escapes
from vqcodec.container import Header, Section

ROOT = Path(__file__).resolve().parents[1]
FORMAT_MD = ROOT / "docs" / "format.md"

HEADER = Header(mode=0, grey=False, rate=19, width=1100, height=700, code_id=0x1A2B3C4D)
UNIFORM_HEADER = replace(HEADER, mode=2, rate=100)
SECTIONS = [
    container.stage_section(0, b"\xa0\xa1\xa2\xb0"),
    Section(type=0x41, critical=False, payload=b"hi"),
    container.stage_section(2, bytes(range(130))),
    container.stage_section(15, b""),
]

fuzz = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def raw_file(
    sections: bytes | list[tuple[int, bytes]] = b"",
    *,
    magic: bytes = b"\x8eVQC",
    version: int = 1,
    mode_byte: int = 0,
    rate: int = 1,
    count: int | None = None,
    width: int = 1,
    height: int = 1,
    code_id: int = 0,
) -> bytes:
    """A file with any header fields and correct checksums; sections as bytes or (byte, payload)."""
    body = sections if isinstance(sections, bytes) else b"".join(raw_section(*s) for s in sections)
    if count is None:
        count = 0 if isinstance(sections, bytes) else len(sections)
    fields = magic + bytes([version, mode_byte, rate, count])
    fields += b"".join(n.to_bytes(4, "little") for n in (width, height, code_id))
    return fields + zlib.crc32(fields).to_bytes(4, "little") + body


def raw_section(type_byte: int, payload: bytes, length: bytes | None = None) -> bytes:
    if length is None:
        n = len(payload)
        length = bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7])
    covered = bytes([type_byte]) + length + payload
    return covered + zlib.crc32(covered).to_bytes(4, "little")


def outcome(data: bytes) -> type[Exception] | None:
    """Class of the error that reading gives, None if it succeeds; other errors propagate."""
    try:
        container.read_container(data)
    except errors.VqcError as error:
        assert str(error) and "\n" not in str(error)
        return type(error)
    return None


# --- round trips ---------------------------------------------------------------------------------


def headers_of(modes: list[int], highest_rate: int) -> st.SearchStrategy[Header]:
    return st.builds(
        Header,
        mode=st.sampled_from(modes),
        grey=st.booleans(),
        rate=st.integers(1, highest_rate),
        width=st.integers(1, 2**32 - 1),
        height=st.integers(1, 2**32 - 1),
        code_id=st.integers(0, 2**32 - 1),
    )


headers = headers_of([0, 3, 4], 255)
payloads = st.binary(max_size=300)
optional_types = st.integers(0, 127).filter(lambda t: not 0x10 <= t < 0x20)


@st.composite
def section_lists(draw: st.DrawFn, *, uniform: bool = False) -> list[Section]:
    if uniform:
        stages = list(range(draw(st.integers(0, 2))))
    else:
        stages = sorted(draw(st.sets(st.integers(0, 15), max_size=5)))
    sections = [container.stage_section(stage, draw(payloads)) for stage in stages]
    for _ in range(draw(st.integers(0, 3))):
        extra = Section(type=draw(optional_types), critical=False, payload=draw(payloads))
        sections.insert(draw(st.integers(0, len(sections))), extra)
    return sections


files_of_every_mode = st.one_of(
    st.tuples(headers, section_lists()),
    st.tuples(headers_of([1, 2], 100), section_lists(uniform=True)),
)


@fuzz
@given(files_of_every_mode)
def test_round_trip(file: tuple[Header, list[Section]]) -> None:
    header, sections = file
    data = container.write_container(header, sections)
    assert container.read_container(data) == (header, sections)
    assert container.read_header(data) == header
    overhead = len(data) - sum(len(s.payload) for s in sections)
    assert 24 + 6 * len(sections) <= overhead <= 24 + 10 * len(sections)


def test_size_of_the_overhead() -> None:
    assert len(container.write_container(HEADER, [])) == container.HEADER_SIZE == 24
    for size, overhead in ((0, 6), (127, 6), (128, 7), (16383, 7), (16384, 8)):
        data = container.write_container(HEADER, [container.stage_section(0, bytes(size))])
        assert len(data) == 24 + overhead + size


def test_the_independent_writer_agrees() -> None:
    expected = raw_file(
        [(s.type | s.critical << 7, s.payload) for s in SECTIONS],
        rate=19, width=1100, height=700, code_id=0x1A2B3C4D,
    )  # fmt: skip
    assert container.write_container(HEADER, SECTIONS) == expected
    assert container.write_container(replace(HEADER, grey=True), [])[5] == 0x10


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_bytes_like_input(wrap: type) -> None:
    data = container.write_container(HEADER, SECTIONS)
    header, sections = container.read_container(wrap(data))
    assert (header, sections) == (HEADER, SECTIONS)
    assert all(type(s.payload) is bytes for s in sections)
    assert container.read_header(wrap(data)) == HEADER
    assert container.unpack_tiles(wrap(b"\x01ab"), 2) == [b"a", b"b"]
    assert container.pack_tiles([wrap(b"a"), wrap(b"b")]) == b"\x01ab"
    assert container.stage_section(3, wrap(b"ab")) == Section(0x13, True, b"ab")
    assert container.decode_varint(wrap(b"\xac\x02")) == (300, 2)


def test_unusual_memoryviews_and_wrong_types() -> None:
    data = container.write_container(HEADER, [])
    assert container.read_header(memoryview(array.array("I", data))) == HEADER
    spread = bytes(b for byte in data for b in (byte, 0))
    assert container.read_header(memoryview(spread)[::2]) == HEADER
    for wrong in ("text", 24, None, [1, 2]):
        with pytest.raises(TypeError, match="expected bytes"):
            container.read_container(wrong)  # type: ignore[arg-type]


def test_a_bytearray_is_not_kept() -> None:
    data = bytearray(container.write_container(HEADER, SECTIONS))
    _, sections = container.read_container(data)
    data.clear()
    assert sections == SECTIONS


def test_writing_refuses_what_reading_would() -> None:
    bad_headers: list[dict[str, Any]] = [
        {"version": 2}, {"version": 0}, {"mode": 11}, {"mode": 16}, {"mode": -1}, {"rate": 0},
        {"rate": 256}, {"rate": 101, "mode": 1}, {"rate": 101, "mode": 2}, {"rate": 0, "mode": 1},
        {"width": 0}, {"width": 2**32}, {"height": 0}, {"height": -1}, {"code_id": -1},
        {"code_id": 2**32},
    ]  # fmt: skip
    for change in bad_headers:
        with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
            container.write_container(replace(HEADER, **change), [])
    stage = container.stage_section
    bad_sections = [
        [Section(0x41, True, b"")],
        [Section(0x10, False, b"")],
        [stage(1, b""), stage(0, b"")],
        [stage(1, b""), stage(1, b"")],
        [Section(128, False, b"")],
        [Section(-1, False, b"")],
        [Section(0x41, False, b"")] * 256,
    ]
    for sections in bad_sections:
        with pytest.raises(ValueError):
            container.write_container(HEADER, sections)
    for stages in ([1], [0, 2], [0, 1, 2], [2], [0, 15], [1, 2]):
        sections = [stage(number, b"") for number in stages]
        assert container.write_container(HEADER, sections)
        for mode in container.UNIFORM_MODES:
            with pytest.raises(ValueError, match="a reader would refuse this file"):
                container.write_container(replace(UNIFORM_HEADER, mode=mode), sections)
    with pytest.raises(TypeError):
        container.write_container(replace(HEADER, width=2.0), [])  # type: ignore[arg-type]
    for number in (-1, 16):
        with pytest.raises(ValueError, match="stage must be"):
            stage(number, b"")
    most = [Section(0x41, False, b"")] * 255
    assert container.read_container(container.write_container(HEADER, most)) == (HEADER, most)


# --- damage --------------------------------------------------------------------------------------


def test_every_cut_is_truncated() -> None:
    data = container.write_container(HEADER, SECTIONS)
    for length in range(len(data)):
        assert outcome(data[:length]) is errors.TruncatedError, length
    for length in range(24):
        with pytest.raises(errors.TruncatedError):
            container.read_header(data[:length])
    with pytest.raises(errors.TruncatedError, match="before section 1 of 4"):
        container.read_container(data[:24])
    with pytest.raises(errors.TruncatedError, match="in section 4 of 4"):
        container.read_container(data[:-1])
    assert container.read_header(data[:24]) == HEADER


def test_every_single_bit_flip_is_found() -> None:
    data = container.write_container(HEADER, SECTIONS)
    in_header = {**dict.fromkeys(range(4), errors.NotVqcError), 4: errors.UnsupportedVersionError}
    in_sections = {errors.ChecksumError, errors.TruncatedError, errors.CorruptError}
    seen = set()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        error = outcome(bytes(flipped))
        if bit < 8 * 24:
            assert error is in_header.get(bit // 8, errors.ChecksumError), bit
        else:
            assert error in in_sections, bit
            seen.add(error)
    assert errors.ChecksumError in seen and errors.TruncatedError in seen


def test_every_byte_removed_or_doubled_is_found() -> None:
    data = container.write_container(HEADER, SECTIONS)
    for i in range(len(data)):
        for changed in (data[:i] + data[i + 1 :], data[:i] + data[i : i + 1] + data[i:]):
            assert outcome(changed) is not None, i


@pytest.mark.parametrize("extra", [b"\0", b"\n", b"more", raw_section(0x41, b"")])
def test_trailing_bytes(extra: bytes) -> None:
    for sections in ([], SECTIONS):
        data = container.write_container(HEADER, sections) + extra
        assert outcome(data) is errors.CorruptError
        assert container.read_header(data) == HEADER


def test_not_our_file() -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(40)
    for data in (
        b"\x89",
        png,
        b"VQC\x8e" * 8,
        b"\x8eVQX" + bytes(40),
        b"\x8eVX",
        b" " + raw_file(),
    ):
        assert outcome(data) is errors.NotVqcError
    for data in (b"", b"\x8e", b"\x8eV", b"\x8eVQ", b"\x8eVQC", b"\x8eVQC\x01"):
        assert outcome(data) is errors.TruncatedError


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"version": 0}, errors.UnsupportedVersionError),
        ({"version": 2, "mode_byte": 0xFF, "rate": 0}, errors.UnsupportedVersionError),
        ({"mode_byte": 0x20}, errors.CorruptError),
        ({"mode_byte": 0x40}, errors.CorruptError),
        ({"mode_byte": 0x8F}, errors.CorruptError),
        ({"mode_byte": 0x0B}, errors.UnsupportedFeatureError),
        ({"mode_byte": 0x1F, "width": 0}, errors.UnsupportedFeatureError),
        ({"mode_byte": 0x01, "rate": 0}, errors.CorruptError),
        ({"mode_byte": 0x01, "rate": 101}, errors.CorruptError),
        ({"mode_byte": 0x12, "rate": 255}, errors.CorruptError),
        ({"mode_byte": 0x01, "rate": 100}, None),
        ({"mode_byte": 0x12, "rate": 100}, None),
        ({"mode_byte": 0x03, "rate": 255}, None),
        ({"mode_byte": 0x14, "rate": 255}, None),
        ({"width": 0}, errors.CorruptError),
        ({"height": 0}, errors.CorruptError),
        ({"rate": 0}, errors.CorruptError),
        ({"count": 1}, errors.TruncatedError),
        ({"count": 255}, errors.TruncatedError),
    ],
)
def test_header_with_good_checksum(fields: dict[str, Any], error: type[errors.VqcError] | None) -> None:
    assert outcome(raw_file(**fields)) is error


def test_modes() -> None:
    names = ("vq", "ae", "vae", "dvae", "vqvae", "dae", "wae", "hvae", "vqvae2", "fsq", "rvq")
    assert container.MODE_NAMES == dict(enumerate(names))
    for mode in container.MODE_NAMES:
        for grey in (0, 0x10):
            header = container.read_header(raw_file(mode_byte=mode | grey))
            assert (header.mode, header.grey) == (mode, bool(grey))


def test_every_reserved_mode_is_refused() -> None:
    for mode in range(11, 16):
        for grey in (0, 0x10):
            with pytest.raises(errors.UnsupportedFeatureError, match=f"mode {mode},"):
                container.read_header(raw_file(mode_byte=mode | grey))


def test_version_is_checked_before_the_checksum() -> None:
    data = bytearray(raw_file(version=9))
    data[20] ^= 1
    assert outcome(bytes(data)) is errors.UnsupportedVersionError


def test_read_header_ignores_the_sections() -> None:
    assert container.read_header(raw_file(b"junk", count=3, width=5)).width == 5


# --- sections ------------------------------------------------------------------------------------


def test_unknown_sections() -> None:
    for type_ in (0x00, 0x0F, 0x20, 0x7F):
        optional = raw_file([(type_, b"x"), (0x90, b"a"), (type_, b"y")])
        _, sections = container.read_container(optional)
        assert [s.type for s in sections] == [type_, 0x10, type_]
        assert [s.stage for s in sections] == [None, 0, None]
        assert container.stage_payloads(sections) == {0: b"a"}
        critical = raw_file([(0x90, b"a"), (type_ | 0x80, b"x")])
        with pytest.raises(errors.UnsupportedFeatureError, match=f"0x{type_:02x}"):
            container.read_container(critical)


def test_an_optional_section_is_checked_too() -> None:
    data = bytearray(raw_file([(0x41, b"x")]))
    data[-1] ^= 1
    assert outcome(bytes(data)) is errors.ChecksumError


def test_damage_is_reported_before_unknown_types() -> None:
    data = bytearray(raw_file([(0xC1, b"x"), (0x90, b"a")]))
    assert outcome(bytes(data)) is errors.UnsupportedFeatureError
    data[-1] ^= 1
    assert outcome(bytes(data)) is errors.ChecksumError
    assert outcome(bytes(data[:-1])) is errors.TruncatedError


def test_stages_ascend_and_are_critical() -> None:
    every = [(0x90 + s, bytes([s])) for s in range(16)]
    _, sections = container.read_container(raw_file(every))
    payloads = container.stage_payloads(sections)
    assert payloads == {s: bytes([s]) for s in range(16)} and list(payloads) == list(range(16))
    for bad in (
        [(0x91, b""), (0x90, b"")],
        [(0x90, b""), (0x90, b"")],
        [(0x95, b""), (0x41, b""), (0x94, b"")],
        [(0x10, b"")],
        [(0x90, b""), (0x1F, b"")],
    ):
        for mode in range(5):
            assert outcome(raw_file(bad, mode_byte=mode)) is errors.CorruptError


@pytest.mark.parametrize("mode", [1, 2])
def test_stages_of_the_uniform_modes(mode: int) -> None:
    symbols, escaped, other = (0x90, b"s"), (0x91, b"e"), (0x41, b"x")
    for good in ([], [symbols], [symbols, escaped], [other, symbols, other, escaped, other]):
        _, sections = container.read_container(raw_file(good, mode_byte=mode))
        stages = [(type_ & 15, payload) for type_, payload in good if type_ & 0x80]
        assert list(container.stage_payloads(sections).items()) == stages
    for bad in (
        [escaped],
        [other, escaped],
        [escaped, symbols],
        [(0x92, b"")],
        [symbols, (0x92, b"")],
        [symbols, escaped, (0x92, b"")],
        [symbols, (0x9F, b"")],
    ):
        assert outcome(raw_file(bad, mode_byte=mode)) is errors.CorruptError
    # What the others may lack or have is no concern of the vector modes.
    for vector in (0, 3, 4):
        assert outcome(raw_file([escaped, (0x9F, b"")], mode_byte=vector)) is None
    # Unknown critical types come first or not, as the sections do.
    unknown = (0xC1, b"")
    assert outcome(raw_file([unknown, escaped], mode_byte=mode)) is errors.UnsupportedFeatureError
    assert outcome(raw_file([escaped, unknown], mode_byte=mode)) is errors.CorruptError


@pytest.mark.parametrize(
    ("length", "error"),
    [
        (b"\x83\x00", errors.CorruptError),
        (b"\x80\x80\x80\x80\x00", errors.CorruptError),
        (b"\x80\x80\x80\x80\x08", errors.CorruptError),
        (b"\xff\xff\xff\xff\xff\x01", errors.CorruptError),
        (b"\xff\xff\xff\xff\x07", errors.TruncatedError),
        (b"\x04", errors.TruncatedError),
        (b"\x02", errors.ChecksumError),
    ],
)
def test_bad_section_length(length: bytes, error: type[errors.VqcError]) -> None:
    good = raw_section(0x90, b"abc")
    data = raw_file(good[:1] + length + good[2:], count=1)
    assert outcome(data) is error


# --- varint --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02"), (16383, "ff7f"),
        (16384, "808001"), (2**21 - 1, "ffff7f"), (2**21, "80808001"), (2**28, "8080808001"),
        (2**31 - 1, "ffffffff07"),
    ],
)  # fmt: skip
def test_varint_values(value: int, text: str) -> None:
    assert container.encode_varint(value).hex() == text
    assert container.decode_varint(bytes.fromhex("ee" + text + "ff"), 1) == (
        value,
        1 + len(text) // 2,
    )
    for cut in range(len(text) // 2):
        with pytest.raises(errors.TruncatedError):
            container.decode_varint(bytes.fromhex(text)[:cut])


@fuzz
@given(st.integers(0, 2**31 - 1))
def test_varint_round_trip(value: int) -> None:
    data = container.encode_varint(value)
    assert container.decode_varint(data) == (value, len(data))


@fuzz
@given(st.binary(max_size=7))
def test_varint_has_one_spelling(data: bytes) -> None:
    try:
        value, end = container.decode_varint(data)
    except (errors.TruncatedError, errors.CorruptError):
        return
    assert container.encode_varint(value) == data[:end]


def test_varint_limits() -> None:
    for text in (
        "8000",
        "ff00",
        "80808000",
        "8080808008",
        "ffffffff0f",
        "ffffffff7f",
        "8080808080",
    ):
        with pytest.raises(errors.CorruptError):
            container.decode_varint(bytes.fromhex(text))
    for value in (-1, 2**31, 2**64):
        with pytest.raises(ValueError):
            container.encode_varint(value)
    with pytest.raises(ValueError):
        container.decode_varint(b"\0", -1)
    with pytest.raises(errors.TruncatedError):
        container.decode_varint(b"\0", 5)


# --- tiles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "rows", "cols", "count"),
    [
        (1, 1, 1, 1, 1), (16, 17, 2, 1, 1), (1024, 1024, 64, 64, 1), (1025, 1024, 64, 65, 2),
        (1024, 1025, 65, 64, 2), (1100, 700, 44, 69, 2), (2049, 3073, 193, 129, 12),
        (2**32 - 1, 2**32 - 1, 2**28, 2**28, 2**44),
    ],
)  # fmt: skip
def test_tile_grid(width: int, height: int, rows: int, cols: int, count: int) -> None:
    grid = container.tile_grid(width, height)
    assert (grid.rows, grid.cols, grid.count) == (rows, cols, count)
    assert grid.tile_rows * grid.tile_cols == count
    assert grid.box(count - 1)[1::2] == (rows, cols)
    for index in (-1, count):
        with pytest.raises(ValueError):
            grid.box(index)


def test_tiles_cover_the_grid_once_in_raster_order() -> None:
    grid = container.tile_grid(16 * 130, 16 * 65)
    boxes = [grid.box(i) for i in range(grid.count)]
    assert boxes == [
        (0, 64, 0, 64), (0, 64, 64, 128), (0, 64, 128, 130),
        (64, 65, 0, 64), (64, 65, 64, 128), (64, 65, 128, 130),
    ]  # fmt: skip


def test_tile_grid_refuses_bad_sizes() -> None:
    for size in ((0, 1), (1, 0), (-5, 1), (2**32, 1)):
        with pytest.raises(ValueError):
            container.tile_grid(*size)


@fuzz
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=9))
def test_tiles_round_trip(streams: list[bytes]) -> None:
    assert container.unpack_tiles(container.pack_tiles(streams), len(streams)) == streams


def test_tile_payloads_exactly() -> None:
    assert container.pack_tiles([b"abc"]) == b"abc"
    assert container.pack_tiles([b""]) == b""
    assert container.pack_tiles([b"abc", b"", b"de"]) == b"\x03\x00abcde"
    with pytest.raises(ValueError):
        container.pack_tiles([])


def test_damaged_tile_tables() -> None:
    for payload, count in (
        (b"", 2),
        (b"\x01", 2),
        (b"\x02a", 2),
        (b"\x80", 2),
        (b"\x01\x01a", 3),
        (b"\xff\xff\xff\xff\x07a", 2),
        (b"\x00" * 10, 12),
        (b"\x00" * 10, 2**44),
    ):
        with pytest.raises(errors.TruncatedError):
            container.unpack_tiles(payload, count)
    with pytest.raises(errors.TruncatedError, match="10 bytes cannot hold 12 tiles"):
        container.unpack_tiles(bytes(10), 12)
    for payload in (b"\x80\x00a", b"\x80\x80\x80\x80\x08" + bytes(9)):
        with pytest.raises(errors.CorruptError):
            container.unpack_tiles(payload, 2)
    for count in (0, -1):
        with pytest.raises(ValueError):
            container.unpack_tiles(b"abc", count)


# --- fuzzing -------------------------------------------------------------------------------------


@fuzz
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    for candidate in (data, b"\x8eVQC\x01" + data, raw_file(data, count=min(len(data), 255))):
        outcome(candidate)


@fuzz
@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=6),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 7),
)
def test_random_sections_with_good_checksums(
    sections: list[tuple[int, bytes]], mode_byte: int, rate: int, count: int
) -> None:
    body = b"".join(raw_section(*s) for s in sections)
    data = raw_file(body, count=count, mode_byte=mode_byte, rate=rate)
    if outcome(data) is None:
        header, found = container.read_container(data)
        assert container.write_container(header, found) == data
        assert len(found) == count == len(sections)


@fuzz
@given(files_of_every_mode, st.randoms(use_true_random=False))
def test_mutated_files(file: tuple[Header, list[Section]], rng: random.Random) -> None:
    data = bytearray(container.write_container(*file))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[at:at] = rng.randbytes(rng.randint(1, 8))
        elif kind == 1:
            del data[at : at + rng.randint(1, 8)]
        elif kind == 2 and at < len(data):
            data[at] = rng.randrange(256)
        else:
            # The checksum of the header is made good again, so that what lies behind it is tried.
            data[20:24] = zlib.crc32(bytes(data[:20])).to_bytes(4, "little")
    if outcome(bytes(data)) is None:
        assert container.write_container(*container.read_container(data)) == data


@fuzz
@given(st.binary(max_size=60), st.integers(1, 70))
def test_random_tile_payloads(payload: bytes, count: int) -> None:
    try:
        streams = container.unpack_tiles(payload, count)
    except (errors.TruncatedError, errors.CorruptError):
        return
    assert len(streams) == count and container.pack_tiles(streams) == payload


# --- docs/format.md ------------------------------------------------------------------------------


def documented(name: str) -> bytes:
    """The bytes of the worked example `name` of docs/format.md."""
    text = FORMAT_MD.read_text(encoding="utf-8")
    blocks = re.findall(rf"^```hex {name}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    return bytes.fromhex(" ".join(line.split("  ")[0] for line in blocks[0].splitlines()))


def test_documented_examples() -> None:
    smallest = Header(mode=0, grey=True, rate=1, width=1, height=1, code_id=0)
    assert documented("smallest") == container.write_container(smallest, [])

    streams = {
        0: [b"\xa0\xa1\xa2", b"\xb0\xb1"],
        2: [bytes((3 * i + 1) % 256 for i in range(129)), b""],
    }
    sections = [
        container.stage_section(0, container.pack_tiles(streams[0])),
        Section(type=0x41, critical=False, payload=b"hi"),
        container.stage_section(2, container.pack_tiles(streams[2])),
    ]
    data = documented("sections")
    assert data == container.write_container(HEADER, sections)
    header, found = container.read_container(data)
    assert (header, found) == (HEADER, sections)
    count = container.tile_grid(header.width, header.height).count
    unpacked = {
        stage: container.unpack_tiles(payload, count)
        for stage, payload in container.stage_payloads(found).items()
    }
    assert unpacked == streams


def test_documented_escapes() -> None:
    header = Header(mode=2, grey=False, rate=40, width=1030, height=20, code_id=0x00C0FFEE)
    grid = container.tile_grid(header.width, header.height)
    assert (grid.rows, grid.cols, grid.count) == (2, 65, 2)
    values = np.zeros((3, 2, 65), np.int32)
    values[1, 1, 63], values[2, 0, 5] = -300, 128
    streams = escapes.pack_escapes(values, grid)
    assert streams is not None
    sections = [
        container.stage_section(0, container.pack_tiles([b"\xa0\xa1\xa2", b"\xb0"])),
        container.stage_section(1, container.pack_tiles(streams)),
    ]
    data = documented("uniform")
    assert data == container.write_container(header, sections)
    assert container.read_container(data) == (header, sections)
    unpacked = container.unpack_tiles(container.stage_payloads(sections)[1], grid.count)
    merged = escapes.merge_values(escapes.split_values(values), unpacked, grid)
    np.testing.assert_array_equal(merged, values)


def test_documented_numbers() -> None:
    text = FORMAT_MD.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `((?:[0-9A-F]{2} ?)+)` \|$", text, flags=re.MULTILINE)
    assert len(rows) == 5
    for value, encoded in rows:
        assert container.encode_varint(int(value)) == bytes.fromhex(encoded)
    assert zlib.crc32(b"123456789") == 0xCBF43926
    rows = re.findall(r"^\| (\d+) \| (−?\d+) \| `((?:[0-9A-F]{2} ?)+)` \|$", text, flags=re.MULTILINE)
    assert len(rows) == 5
    for number, value, encoded in rows:
        array = np.full((1, 1, 1), int(value.replace("−", "-")))
        assert container.encode_varint(int(number)) == bytes.fromhex(encoded)
        assert escapes.pack_escapes(array, container.tile_grid(1, 1)) == [bytes.fromhex(encoded)]
    modes = re.findall(r"^\| (\d+) \| `(\w+)` \| (vector|uniform) \|", text, flags=re.MULTILINE)
    assert {int(mode): name for mode, name, _ in modes} == container.MODE_NAMES
    assert {int(m) for m, _, kind in modes if kind == "uniform"} == container.UNIFORM_MODES
    named = set(re.findall(r"`(\w+Error)`", text))
    assert named and all(issubclass(getattr(errors, name), errors.VqcError) for name in named)


# --- errors and imports --------------------------------------------------------------------------


def test_error_classes() -> None:
    classes: list[type[errors.VqcError]] = [c for c in vars(errors).values() if isinstance(c, type)]
    assert classes and all(issubclass(c, errors.VqcError) for c in classes)
    assert not any(issubclass(c, (ValueError, OSError, struct.error)) for c in classes)
    missing_model = {c for c in classes if c.exit_code == 3}
    assert missing_model == {errors.UnknownModelError, errors.ModelFileError}
    wrong_usage = {c for c in classes if c.exit_code == 2}
    assert wrong_usage == {errors.ModeError}
    assert all(c.exit_code == 1 for c in classes if c not in missing_model | wrong_usage)


def test_the_container_knows_no_torch() -> None:
    code = "import sys, vqcodec.container, vqcodec.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
