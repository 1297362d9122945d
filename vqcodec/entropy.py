"""Entropy coding: symbols to bytes and back, by stored integer tables, with a range coder.

One stream a stage and prior tile. Within it, the passes follow each other in coding order; within
a pass, symbols are grouped by (group, table), both ascending, and keep the order of positions
inside a group. The coder is the range coder of `constriction` (32-bit words, 24-bit
probabilities); a stream is its words in little-endian order, less the zero bytes that end the
last word.
"""

from collections.abc import Iterator

import constriction
import numpy as np
from numpy.typing import NDArray

from vqcodec.errors import CorruptError

_Model = constriction.stream.model.Categorical
# Of one stage. No sound model has as many tables in use; one made to fill the memory may.
_KEPT_MODELS = 1 << 13


class TableModels:
    """Models of one stage's tables, frequencies int64 (G, T, K) that sum to 2^24; made on demand."""

    def __init__(self, frequencies: NDArray[np.int64]) -> None:
        self.frequencies = frequencies
        self._models: dict[tuple[int, int], object] = {}

    def model(self, group: int, table: int) -> object:
        """The model of one table."""
        key = (group, table)
        found = self._models.get(key)
        if found is None:
            if len(self._models) >= _KEPT_MODELS:
                self._models.clear()
            # With a total of 2^24 - K the library scales by exactly 1 and adds 1 to each, which
            # restores the frequencies; every value is an integer below 2^24, exact in float32.
            weights = (self.frequencies[group, table] - 1).astype(np.float32)
            found = self._models[key] = _Model(weights, perfect=False)
        return found


class StreamEncoder:
    """Writes one stream."""

    def __init__(self, models: TableModels) -> None:
        self._models = models
        self._coder = constriction.stream.queue.RangeEncoder()

    def encode(self, first_group: int, index: NDArray[np.uint8], tables: NDArray[np.uint8]) -> None:
        """Appends one pass: index and tables (g, P), groups counted from first_group."""
        order, runs = _runs(tables)
        symbols = index.reshape(-1)[order].astype(np.int32)
        for group, table, start, stop in runs:
            self._coder.encode(symbols[start:stop], self._models.model(first_group + group, table))

    def finish(self) -> bytes:
        """The stream's bytes."""
        words = self._coder.get_compressed().astype("<u4").tobytes()
        last = words[-4:].rstrip(b"\0")
        return words[:-4] + last


class StreamDecoder:
    """Reads one stream."""

    def __init__(self, models: TableModels, data: bytes) -> None:
        self._models = models
        padded = data + bytes(-len(data) % 4)
        words = np.frombuffer(padded, "<u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def decode(self, first_group: int, tables: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The symbols (g, P) of the next pass, given its tables (g, P)."""
        order, runs = _runs(tables)
        index = np.empty(tables.size, np.uint8)
        try:
            for group, table, start, stop in runs:
                model = self._models.model(first_group + group, table)
                index[order[start:stop]] = self._coder.decode(model, stop - start)
        except (AssertionError, ValueError) as error:
            raise CorruptError(f"an entropy-coded stream does not decode: {error}") from error
        return index.reshape(tables.shape)

    def check_end(self) -> None:
        """CorruptError if data is left over: what was decoded cannot be what was written."""
        if not self._coder.maybe_exhausted():
            raise CorruptError("an entropy-coded stream is longer than its symbols")


def ideal_bits(
    frequencies: NDArray[np.int64], index: NDArray[np.uint8], tables: NDArray[np.uint8]
) -> float:
    """Sum of code lengths in bits of index (G, ...) coded by tables (G, ...)."""
    groups = np.arange(len(index)).reshape(-1, *[1] * (index.ndim - 1))
    return float((24 - np.log2(frequencies[groups, tables, index].astype(np.float64))).sum())


def _runs(
    tables: NDArray[np.uint8],
) -> tuple[NDArray[np.int64], Iterator[tuple[int, int, int, int]]]:
    """Order that groups flat symbols by (group, table), and the runs (group, table, start, stop)."""
    groups, count = tables.shape
    key = (np.arange(groups, dtype=np.int32)[:, None] * 256 + tables).reshape(-1)
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1)) if count else np.zeros(0, np.int64)
    stops = np.append(starts[1:], len(ordered))[: len(starts)]

    def walk() -> Iterator[tuple[int, int, int, int]]:
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            group, table = divmod(int(ordered[start]), 256)
            yield group, table, start, stop

    return order, walk()
