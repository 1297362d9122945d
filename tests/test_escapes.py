"""Tests of vqcodec.escapes: the alphabet of the uniform modes and the escape data.

The reference below goes value by value and shares only the container's varints with the module.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqcodec import errors
from vqcodec.container import TileGrid, decode_varint, encode_varint, pack_tiles, unpack_tiles
from vqcodec.escapes import ESCAPE, VALUE_MAX, VALUE_MIN, merge_values, pack_escapes, split_values

ROOT = Path(__file__).resolve().parents[1]
ONE = TileGrid(rows=1, cols=1)

fuzz = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def symbol_of(value: int) -> int:
    if abs(value) > 127:
        return 255
    return 2 * abs(value) - (1 if value > 0 else 0)


def streams_of(values: np.ndarray, grid: TileGrid) -> list[bytes]:
    """Escape data of values (C, rows, cols), by the sentences of docs/format.md."""
    streams = []
    for tile in range(grid.count):
        top, bottom, left, right = grid.box(tile)
        stream = b""
        for channel in values:
            for row in range(top, bottom):
                for col in range(left, right):
                    value = int(channel[row, col])
                    if abs(value) > 127:
                        stream += encode_varint(2 * (abs(value) - 128) + (value < 0))
        streams.append(stream)
    return streams


def varint(value: int, extra: int = 0) -> bytes:
    """A varint, in `extra` bytes more than it needs."""
    data = bytearray(encode_varint(value))
    for _ in range(extra):
        data[-1] |= 0x80
        data.append(0)
    return bytes(data)


def merged(streams: list[bytes] | None, escapes: int, grid: TileGrid | None = None) -> list[int]:
    """The values of `escapes` escape symbols, one channel each, at the first position of a grid."""
    grid = grid or ONE
    symbols = np.zeros((escapes, grid.rows, grid.cols), np.uint8)
    symbols[:, 0, 0] = ESCAPE
    return merge_values(symbols, streams, grid)[:, 0, 0].tolist()


# --- the alphabet --------------------------------------------------------------------------------


def test_every_value_alone() -> None:
    values = np.arange(VALUE_MIN, VALUE_MAX + 1)[:, None, None]
    symbols = split_values(values)
    assert symbols.dtype == np.uint8
    assert symbols.ravel().tolist() == [symbol_of(v) for v in range(VALUE_MIN, VALUE_MAX + 1)]
    streams = pack_escapes(values, ONE)
    assert streams == streams_of(values, ONE)
    back = merge_values(symbols, streams, ONE)
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, values)


def test_symbols_exactly() -> None:
    values = [0, 1, -1, 2, -2, 126, -126, 127, -127, 128, -128]
    assert split_values(np.array(values)).tolist() == [0, 1, 2, 3, 4, 251, 252, 253, 254, 255, 255]


def test_escapes_exactly() -> None:
    for value, stream in (
        (128, "00"), (-128, "01"), (191, "7e"), (-191, "7f"), (192, "8001"), (-192, "8101"),
        (8319, "fe7f"), (-8319, "ff7f"), (8320, "808001"), (32767, "fefd03"),
        (-32767, "fffd03"), (-32768, "81fe03"),
    ):  # fmt: skip
        expected = bytes.fromhex(stream)
        assert pack_escapes(np.full((1, 1, 1), value), ONE) == [expected], value
        assert merged([expected], 1) == [value]


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_any_integers(dtype: type) -> None:
    values = np.array([VALUE_MIN, -300, -1, 0, 5, VALUE_MAX], dtype).reshape(2, 1, 3)
    grid = TileGrid(1, 3)
    before = values.copy()
    for layout in (values, np.asfortranarray(values), np.repeat(values, 2, axis=2)[:, :, ::2]):
        streams = pack_escapes(layout, grid)
        assert streams == streams_of(values, grid)
        np.testing.assert_array_equal(merge_values(split_values(layout), streams, grid), values)
    np.testing.assert_array_equal(values, before)
    small = np.array([[[-128, 127, 0]]], np.int8)
    assert split_values(small).tolist() == [[[255, 253, 0]]]
    assert pack_escapes(small, grid) == [b"\x01"]


def test_values_out_of_range_are_not_written() -> None:
    for value in (VALUE_MIN - 1, VALUE_MAX + 1, 2**31, -(2**31)):
        values = np.array([[[0, value]]], np.int64)
        with pytest.raises(ValueError, match="within -32768..32767"):
            split_values(values)
        with pytest.raises(ValueError, match="within -32768..32767"):
            pack_escapes(values, TileGrid(1, 2))
    with pytest.raises(TypeError, match="integers"):
        split_values(np.zeros((1, 1, 1)))
    with pytest.raises(TypeError, match="integers"):
        pack_escapes(np.zeros((1, 1, 1)), ONE)


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "rows", "cols"),
    [(1, 1, 1), (3, 1, 1), (2, 64, 64), (2, 65, 64), (3, 67, 130), (1, 1, 129), (0, 3, 3)],
)
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_round_trip_of_tiles(channels: int, rows: int, cols: int, share: float) -> None:
    random = np.random.default_rng(rows * cols)
    grid = TileGrid(rows, cols)
    values = random.integers(-127, 128, (channels, rows, cols))
    wild = random.integers(VALUE_MIN, VALUE_MAX + 1, values.shape)
    values = np.where(random.random(values.shape) < share, wild, values)
    streams = pack_escapes(values, grid)
    expected = streams_of(values, grid)
    assert streams == (expected if any(expected) else None)
    np.testing.assert_array_equal(merge_values(split_values(values), streams, grid), values)
    if streams is not None:
        assert unpack_tiles(pack_tiles(streams), grid.count) == streams


interesting = st.one_of(
    st.integers(-3, 3), st.integers(120, 200), st.integers(-200, -120), st.integers(VALUE_MIN, VALUE_MAX)
)


@fuzz
@given(st.data(), st.integers(0, 3), st.sampled_from([(1, 1), (2, 3), (1, 66), (65, 1)]))
def test_round_trip(data: st.DataObject, channels: int, size: tuple[int, int]) -> None:
    grid = TileGrid(*size)
    count = channels * grid.rows * grid.cols
    drawn = data.draw(st.lists(interesting, min_size=count, max_size=count))
    values = np.array(drawn, np.int64).reshape(channels, grid.rows, grid.cols)
    streams = pack_escapes(values, grid)
    assert (streams is None) == (np.abs(values) <= 127).all()
    np.testing.assert_array_equal(merge_values(split_values(values), streams, grid), values)
    if streams is not None:
        assert streams == streams_of(values, grid)


# --- hostile streams -----------------------------------------------------------------------------

HOSTILE = [
    ("cut", [b"\x80"], 1, errors.TruncatedError),
    ("cut behind a whole one", [b"\x05\xff"], 1, errors.TruncatedError),
    ("cut in the second", [b"\x05\xff\xff"], 2, errors.TruncatedError),
    ("nothing at all", [b""], 1, errors.CorruptError),
    ("one missing", [b"\x05"], 2, errors.CorruptError),
    ("one too many", [b"\x05\x05"], 1, errors.CorruptError),
    ("escapes without symbols", [b"\x05"], 0, errors.CorruptError),
    ("zero in two bytes", [varint(0, 1)], 1, errors.CorruptError),
    ("five in three bytes", [varint(5, 2)], 1, errors.CorruptError),
    ("five in five bytes", [varint(5, 4)], 1, errors.CorruptError),
    ("three bytes in four", [varint(65278, 1)], 1, errors.CorruptError),
    ("32768", [varint(65280)], 1, errors.CorruptError),
    ("32769", [varint(65282)], 1, errors.CorruptError),
    ("-32769", [varint(65283)], 1, errors.CorruptError),
    ("three bytes, the largest", [varint(2**21 - 1)], 1, errors.CorruptError),
    ("four bytes", [varint(2**21)], 1, errors.CorruptError),
    ("five bytes, the largest", [varint(2**31 - 1)], 1, errors.CorruptError),
    ("longer than any varint", [b"\xff" * 99 + b"\x01"], 1, errors.CorruptError),
    ("no streams", None, 1, errors.CorruptError),
]


@pytest.mark.parametrize(
    ("streams", "escapes", "error"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE]
)
def test_hostile_streams(streams: list[bytes] | None, escapes: int, error: type[errors.VqcError]) -> None:
    with pytest.raises(error) as caught:
        merged(streams, escapes)
    assert type(caught.value) is error


def test_the_limits_are_accepted() -> None:
    assert merged([varint(65278) + varint(65279) + varint(65281)], 3) == [32767, -32767, -32768]


def test_escapes_belong_to_their_tile() -> None:
    grid = TileGrid(1, 65)
    assert merged([b"\x04", b""], 1, grid) == [130]
    for streams in ([b"", b"\x04"], [b"\x04", b"\x04"], [b"", b""]):
        with pytest.raises(errors.CorruptError):
            merged(streams, 1, grid)


def test_empty_streams_stand_for_none() -> None:
    symbols = np.array([[[0, 3, 254]]], np.uint8)
    grid = TileGrid(1, 3)
    for streams in (None, [b""]):
        assert merge_values(symbols, streams, grid).tolist() == [[[0, 2, -127]]]


def test_every_cut_of_a_stream_is_found() -> None:
    values = np.array([[[128, -40, 9000, -32768, 200]]])
    grid = TileGrid(1, 5)
    (stream,) = pack_escapes(values, grid) or [b""]
    symbols = split_values(values)
    for length in range(len(stream)):
        with pytest.raises((errors.TruncatedError, errors.CorruptError)) as caught:
            merge_values(symbols, [stream[:length]], grid)
        cut = length > 0 and stream[length - 1] >= 0x80
        assert type(caught.value) is (errors.TruncatedError if cut else errors.CorruptError)


@fuzz
@given(st.binary(max_size=12), st.integers(0, 6), st.randoms(use_true_random=False))
def test_random_streams(stream: bytes, escapes: int, rng: random.Random) -> None:
    if rng.random() < 0.5:  # few random bytes are small enough to be legal
        stream = bytes(byte & (0x83 if i % 2 else 0xFF) for i, byte in enumerate(stream))
    numbers: list[int] = []
    position = 0
    legal = True
    try:
        while position < len(stream):
            number, position = decode_varint(stream, position)
            numbers.append(number)
    except errors.VqcError:
        legal = False
    legal = legal and len(numbers) == escapes and all(n <= 65281 and n != 65280 for n in numbers)
    try:
        values = merged([stream], escapes)
    except (errors.TruncatedError, errors.CorruptError):
        assert not legal
        return
    assert legal
    assert values == [-(128 + n // 2) if n % 2 else 128 + n // 2 for n in numbers]
    array = np.array(values, np.int64).reshape(-1, 1, 1)
    assert (pack_escapes(array, ONE) or [b""]) == [stream]


# --- arguments -----------------------------------------------------------------------------------


def test_wrong_arguments() -> None:
    grid = TileGrid(2, 3)
    good = np.zeros((1, 2, 3), np.uint8)
    for shape in ((2, 3), (1, 3, 2), (1, 2, 3, 1)):
        with pytest.raises(ValueError, match=r"expected an array \(C, 2, 3\)"):
            merge_values(np.zeros(shape, np.uint8), None, grid)
        with pytest.raises(ValueError, match=r"expected an array \(C, 2, 3\)"):
            pack_escapes(np.zeros(shape, np.int32), grid)
    with pytest.raises(TypeError, match="uint8"):
        merge_values(good.astype(np.int32), None, grid)  # type: ignore[arg-type]
    for streams in ([], [b"", b""]):
        with pytest.raises(ValueError, match="expected 1 streams"):
            merge_values(good, streams, grid)


def test_escapes_know_no_torch() -> None:
    code = "import sys, vqcodec.escapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
