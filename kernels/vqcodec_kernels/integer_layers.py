"""Exact integer layers of a small network: uint8 activations, int8 weights, int32 sums.

    linear:  y[n, g, o] = requantise(bias[g, o] + sum_i x[n, g, i] * weight[g, o, i])
    argmax:  y[n, g]    = argmax_o   bias[g, o] + sum_i x[n, g, i] * weight[g, o, i]
    window:  y[p, c]    = requantise(bias[c] + sum_taps map[row + dy, column + dx, c] * taps[dy, dx, c])
    requantise(a) = clamp((a * multiplier + 2^(shift - 1)) >> shift, 0, 255)     (>> rounds down)

All arithmetic is on integers, so the result is the same on every machine, instruction set and
thread count; the int64 NumPy references define it. Sums must fit int32: callers keep
|bias| + 255 * sum |weight| below 2^31, and |bias * multiplier| products below 2^62.
Ties of argmax go to the lowest output. Positions outside the map, or outside the tile (a square
of `tile` positions a side, aligned to multiples of `tile`) of the position asked for, read as zero.

NumPy arrays in, NumPy arrays out; C-contiguous. ValueError or TypeError for what does not fit.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqcodec_kernels._extension import load_native

ByteArray = NDArray[np.uint8]
WeightArray = NDArray[np.int8]
SumArray = NDArray[np.int32]

# Limits of the native kernels (kernels.h); the references refuse the same.
MAX_INPUTS = 4096
MAX_CHANNELS = 1024


def integer_linear(
    x: ByteArray,
    weight: WeightArray,
    bias: SumArray,
    multiplier: SumArray,
    shift: int,
    *,
    native: bool | None = None,
    threads: int | None = None,
) -> ByteArray:
    """Grouped linear layer with requantisation: x (N, G, I), weight (G, O, I) -> uint8 (N, G, O)."""
    _check(x, weight, bias)
    _check_scale(multiplier, bias, shift)
    extension = _extension(native)
    if extension is None:
        return integer_linear_ref(x, weight, bias, multiplier, shift)
    y = np.empty((x.shape[0], *weight.shape[:2]), np.uint8)
    extension.integer_linear(
        _dense(x), _dense(weight), _dense(bias), _dense(multiplier), shift, y, _threads(threads)
    )
    return y


def integer_linear_ref(
    x: ByteArray, weight: WeightArray, bias: SumArray, multiplier: SumArray, shift: int
) -> ByteArray:
    """`integer_linear` in int64, as the formula reads."""
    return _requantise(_sums(x, weight, bias), multiplier, shift)


def integer_argmax(
    x: ByteArray,
    weight: WeightArray,
    bias: SumArray,
    *,
    native: bool | None = None,
    threads: int | None = None,
) -> ByteArray:
    """Grouped selection: x (N, G, I), weight (G, O, I), O <= 256 -> uint8 (N, G), the best output."""
    _check(x, weight, bias)
    if weight.shape[1] > 256:
        raise ValueError(f"at most 256 outputs fit the result, got {weight.shape[1]}")
    extension = _extension(native)
    if extension is None:
        return integer_argmax_ref(x, weight, bias)
    y = np.empty(x.shape[:2], np.uint8)
    extension.integer_argmax(_dense(x), _dense(weight), _dense(bias), y, _threads(threads))
    return y


def integer_argmax_ref(x: ByteArray, weight: WeightArray, bias: SumArray) -> ByteArray:
    """`integer_argmax` in int64, as the formula reads."""
    return _sums(x, weight, bias).argmax(-1).astype(np.uint8)


def integer_window(
    grid: ByteArray,
    positions: SumArray,
    taps: WeightArray,
    bias: SumArray,
    multiplier: SumArray,
    shift: int,
    *,
    tile: int,
    native: bool | None = None,
    threads: int | None = None,
) -> ByteArray:
    """Depthwise window at chosen positions: grid (H, W, C), positions (P, 2), taps (S, S, C), S odd."""
    _check_array("grid", grid, np.uint8, 3)
    _check_array("positions", positions, np.int32, 2)
    _check_array("taps", taps, np.int8, 3)
    height, width, channels = grid.shape
    side = taps.shape[0]
    if taps.shape != (side, side, channels) or side % 2 == 0:
        raise ValueError(f"taps must be (S, S, {channels}) with odd S, got {taps.shape}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"between 1 and {MAX_CHANNELS} channels are supported, got {channels}")
    _check_array("bias", bias, np.int32, 1)
    if bias.shape != (channels,):
        raise ValueError(f"bias must be ({channels},), got {bias.shape}")
    _check_scale(multiplier, bias, shift)
    if tile < 1:
        raise ValueError(f"tile must be positive, got {tile}")
    if positions.shape[1] != 2:
        raise ValueError(f"positions must be (P, 2), got {positions.shape}")
    if positions.size and not ((positions >= 0).all() and (positions < (height, width)).all()):
        raise ValueError(f"a position lies outside the grid {grid.shape[:2]}")
    extension = _extension(native)
    if extension is None:
        return integer_window_ref(grid, positions, taps, bias, multiplier, shift, tile=tile)
    y = np.empty((len(positions), grid.shape[2]), np.uint8)
    extension.integer_window(
        _dense(grid),
        _dense(positions),
        tile,
        _dense(taps),
        _dense(bias),
        _dense(multiplier),
        shift,
        y,
        _threads(threads),
    )
    return y


def integer_window_ref(
    grid: ByteArray,
    positions: SumArray,
    taps: WeightArray,
    bias: SumArray,
    multiplier: SumArray,
    shift: int,
    *,
    tile: int,
) -> ByteArray:
    """`integer_window` in int64, one tap at a time."""
    height, width, channels = grid.shape
    radius = taps.shape[0] // 2
    rows, columns = positions[:, 0].astype(np.int64), positions[:, 1].astype(np.int64)
    sums = np.tile(bias.astype(np.int64), (len(positions), 1))
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            row, column = rows + dy, columns + dx
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            inside &= (row // tile == rows // tile) & (column // tile == columns // tile)
            values = grid[row[inside], column[inside]].astype(np.int64)
            sums[inside] += values * taps[dy + radius, dx + radius].astype(np.int64)
    return _requantise(sums, multiplier, shift)


def _sums(x: ByteArray, weight: WeightArray, bias: SumArray) -> NDArray[np.int64]:
    sums = np.einsum("ngi,goi->ngo", x.astype(np.int64), weight.astype(np.int64), optimize=True)
    return sums + bias.astype(np.int64)


def _requantise(sums: NDArray[np.int64], multiplier: SumArray, shift: int) -> ByteArray:
    scaled = (sums * multiplier.astype(np.int64) + (1 << (shift - 1))) >> shift
    return scaled.clip(0, 255).astype(np.uint8)


def _check(x: ByteArray, weight: WeightArray, bias: SumArray) -> None:
    _check_array("x", x, np.uint8, 3)
    _check_array("weight", weight, np.int8, 3)
    _check_array("bias", bias, np.int32, 2)
    groups, outputs, inputs = weight.shape
    if x.shape[1:] != (groups, inputs):
        raise ValueError(f"weight {weight.shape} does not match x {x.shape}")
    if bias.shape != (groups, outputs):
        raise ValueError(f"bias must be {(groups, outputs)}, got {bias.shape}")
    if not 1 <= inputs <= MAX_INPUTS or outputs < 1:
        raise ValueError(
            f"between 1 and {MAX_INPUTS} inputs and at least 1 output are supported, "
            f"got {inputs} and {outputs}"
        )


def _check_scale(multiplier: SumArray, bias: SumArray, shift: int) -> None:
    _check_array("multiplier", multiplier, np.int32, bias.ndim)
    if multiplier.shape != bias.shape:
        raise ValueError(f"multiplier must be {bias.shape}, got {multiplier.shape}")
    if not 1 <= shift <= 62:
        raise ValueError(f"shift must be 1..62, got {shift}")


def _check_array(name: str, array: NDArray[Any], dtype: type[np.generic], ndim: int) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        kind = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"{name} must be an array of {dtype.__name__}, got {kind}")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got {array.shape}")


def _extension(native: bool | None) -> Any | None:
    if native is False:
        return None
    extension = load_native()
    if native and extension is None:
        raise RuntimeError("native=True, but the native extension is not there")
    return extension


def _threads(threads: int | None) -> int:
    """As many as torch has: the kernels work on its threads, of which a team of another size would end
    some and start others."""
    return threads if threads is not None else torch.get_num_threads()


def _dense(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array)
