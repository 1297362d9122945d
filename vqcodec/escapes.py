"""Quantised values <-> symbols of a byte, and the escapes for values that no symbol can say.

Purpose: the alphabet of docs/format.md, chapter "The uniform modes". Nearly every value is small and
becomes one of 255 symbols, which the prior codes; the few others become the symbol `ESCAPE`, and their
value stands in the escape data, one varint each.

Layout: the alphabet; values to symbols and streams; symbols and streams to values; the varints,
many at a time.

Invariants
- `merge_values(split_values(v), pack_escapes(v, grid), grid) == v` for every legal v.
- Each array of values has one spelling: whatever `merge_values` accepts, `pack_escapes` gives back
  byte by byte (except that empty streams may stand for none at all).
- Reading raises only `VqcError` subclasses for whatever symbols and bytes it is given, and takes
  time and memory in proportion to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vqcodec.container import TileGrid
from vqcodec.errors import CorruptError, TruncatedError

VALUE_MIN = -(1 << 15)
VALUE_MAX = (1 << 15) - 1
"""Quantised values lie in VALUE_MIN..VALUE_MAX; an encoder clips to that."""
SYMBOLS = 256
ESCAPE = 255
"""The symbol of every value outside -127..127."""

_LARGEST_PLAIN = 127
_VARINT_BYTES = 3  # of the largest legal varint, 2 * (32768 - 128) + 1


def split_values(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Symbols uint8 of `values`, any integers of any shape: 0, 1, -1, 2, ... are 0, 1, 2, 3, ...

    Values outside -127..127 become `ESCAPE`. Raises TypeError for what is not an integer array and
    ValueError for a value outside VALUE_MIN..VALUE_MAX.
    """
    _check_values(values)
    size = np.abs(values.astype(np.int32))
    return np.where(size > _LARGEST_PLAIN, ESCAPE, 2 * size - (values > 0)).astype(np.uint8)


def pack_escapes(values: NDArray[np.integer], grid: TileGrid) -> list[bytes] | None:
    """The escape data of `values` (C, rows, cols): one stream a tile, None if nothing escapes.

    Errors as for `split_values`, and ValueError for a shape that does not fit the grid.
    """
    _check_values(values)
    _check_shape(values, grid)
    escaping = np.abs(values.astype(np.int32)) > _LARGEST_PLAIN
    if not escaping.any():
        return None
    streams = []
    for tile in range(grid.count):
        top, bottom, left, right = grid.box(tile)
        # Boolean indexing goes through channels, then rows, then columns: the order of the format.
        found = values[:, top:bottom, left:right][escaping[:, top:bottom, left:right]].astype(np.int64)
        streams.append(_to_varints(2 * (np.abs(found) - _LARGEST_PLAIN - 1) + (found < 0)))
    return streams


def merge_values(
    symbols: NDArray[np.uint8], streams: Sequence[bytes] | None, grid: TileGrid
) -> NDArray[np.int32]:
    """The values int32 (C, rows, cols) of symbols of that shape and the escape data of each tile.

    streams: one for each tile of the grid, None for a file without escape data.

    Raises TruncatedError if a stream ends inside a varint; CorruptError if the escapes of a tile
    are more or fewer than its stream holds, or one is not written in the fewest bytes or out of
    range. TypeError for symbols that are not uint8, ValueError for a shape or a number of streams
    that does not fit the grid.
    """
    if symbols.dtype != np.uint8:
        raise TypeError(f"symbols must be uint8, got {symbols.dtype}")
    _check_shape(symbols, grid)
    if streams is not None and len(streams) != grid.count:
        raise ValueError(f"expected {grid.count} streams, got {len(streams)}")
    values = _VALUE_OF_SYMBOL[symbols]
    escaping = symbols == ESCAPE
    if streams is None:
        if escaping.any():
            raise CorruptError("symbols announce escapes, but the file has none")
        return values
    for tile, stream in enumerate(streams):
        top, bottom, left, right = grid.box(tile)
        here = escaping[:, top:bottom, left:right]
        coded = _from_varints(stream, int(np.count_nonzero(here)))
        size = _LARGEST_PLAIN + 1 + (coded >> 1)
        found = np.where(coded & 1, -size, size)
        if np.any((found < VALUE_MIN) | (found > VALUE_MAX)):
            raise CorruptError(f"an escape is not within {VALUE_MIN}..{VALUE_MAX}")
        values[:, top:bottom, left:right][here] = found
    return values


def _value_of_symbol() -> NDArray[np.int32]:
    symbol = np.arange(SYMBOLS, dtype=np.int32)
    return np.where(symbol % 2 == 1, (symbol + 1) // 2, -(symbol // 2)).astype(np.int32)


_VALUE_OF_SYMBOL = _value_of_symbol()


def _to_varints(numbers: NDArray[np.int64]) -> bytes:
    """Numbers from 0 to 2**21 - 1, each as unsigned LEB128 in the fewest bytes."""
    groups = numbers[:, None] >> np.arange(0, 7 * _VARINT_BYTES, 7)
    used = groups > 0
    used[:, 0] = True
    more = np.zeros_like(used)
    more[:, :-1] = used[:, 1:]
    return ((groups & 0x7F) | (more << np.int64(7))).astype(np.uint8)[used].tobytes()


def _from_varints(stream: bytes, count: int) -> NDArray[np.int64]:
    """The `count` numbers that make up a stream, the inverse of `_to_varints`."""
    data = np.frombuffer(stream, np.uint8)
    if data.size and data[-1] & 0x80:
        raise TruncatedError("a tile ends inside an escape")
    ends = np.flatnonzero(data < 0x80) + 1
    if len(ends) != count:
        raise CorruptError(f"a tile announces {count} escapes and holds {len(ends)}")
    starts = np.concatenate([[0], ends[:-1]]) if count else ends
    lengths = ends - starts
    if np.any((lengths > 1) & (data[ends - 1] == 0)):
        raise CorruptError("an escape is written in more bytes than it needs")
    if np.any(lengths > _VARINT_BYTES):
        raise CorruptError(f"an escape is not within {VALUE_MIN}..{VALUE_MAX}")
    numbers = np.zeros(count, np.int64)
    for place in range(_VARINT_BYTES):
        longer = np.flatnonzero(lengths > place)
        numbers[longer] |= (data[starts[longer] + place].astype(np.int64) & 0x7F) << (7 * place)
    return numbers


def _check_values(values: NDArray[np.integer]) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"values must be integers, got {values.dtype}")
    if values.size and (values.min() < VALUE_MIN or values.max() > VALUE_MAX):
        raise ValueError(f"values must be within {VALUE_MIN}..{VALUE_MAX}")


def _check_shape(array: NDArray[np.generic], grid: TileGrid) -> None:
    if array.ndim != 3 or array.shape[1:] != (grid.rows, grid.cols):
        raise ValueError(f"expected an array (C, {grid.rows}, {grid.cols}), got {array.shape}")
