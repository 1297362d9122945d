"""Tests of vqcodec_kernels.integer_layers: every result equals the int64 reference, to the bit.

The references themselves are compared with the loops over Python's integers below, which cannot
overflow; the native kernels with the references, on shapes too large for such loops.
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from isa_probes import ISAS, assert_probe, run_probes
from numpy.typing import NDArray

from vqcodec_kernels import (
    integer_argmax,
    integer_layers,
    integer_linear,
    integer_window,
    native_isa,
)

Array = NDArray[Any]

needs_native = pytest.mark.skipif(native_isa() is None, reason="the native extension is not built")
each_backend = pytest.mark.parametrize(
    "native", [pytest.param(False, id="numpy"), pytest.param(True, id="native", marks=needs_native)]
)
INT32 = np.iinfo(np.int32)


def naive_requantise(total: int, multiplier: int, shift: int) -> int:
    return min(255, max(0, (total * multiplier + 2 ** (shift - 1)) // 2**shift))


def naive_sums(x: Array, weight: Array, bias: Array) -> list[list[list[int]]]:
    """Sums [n][g][o]."""
    return [
        [
            [
                start + sum(a * w for a, w in zip(values, row, strict=True))
                for start, row in zip(starts, rows, strict=True)
            ]
            for values, rows, starts in zip(vector, weight.tolist(), bias.tolist(), strict=True)
        ]
        for vector in x.tolist()
    ]


def naive_linear(x: Array, weight: Array, bias: Array, multiplier: Array, shift: int) -> Array:
    y = np.zeros((len(x), *weight.shape[:2]), np.uint8)
    for n, vector in enumerate(naive_sums(x, weight, bias)):
        for g, sums in enumerate(vector):
            for o, total in enumerate(sums):
                y[n, g, o] = naive_requantise(total, int(multiplier[g, o]), shift)
    return y


def naive_argmax(x: Array, weight: Array, bias: Array) -> Array:
    best = [[sums.index(max(sums)) for sums in vector] for vector in naive_sums(x, weight, bias)]
    return np.array(best, np.uint8).reshape(x.shape[:2])


def naive_window(
    grid: Array,
    positions: Array,
    taps: Array,
    bias: Array,
    multiplier: Array,
    shift: int,
    tile: int,
) -> Array:
    height, width, channels = grid.shape
    side = len(taps)
    y = np.zeros((len(positions), channels), np.uint8)
    for p, (row, column) in enumerate(positions.tolist()):
        for c in range(channels):
            total = int(bias[c])
            for i in range(side):
                for j in range(side):
                    r, k = row + i - side // 2, column + j - side // 2
                    inside = 0 <= r < height and 0 <= k < width
                    if inside and r // tile == row // tile and k // tile == column // tile:
                        total += int(grid[r, k, c]) * int(taps[i, j, c])
            y[p, c] = naive_requantise(total, int(multiplier[c]), shift)
    return y


def random_layer(
    count: int, groups: int, outputs: int, inputs: int, *, seed: int
) -> tuple[Array, Array, Array, Array]:
    """x, weight, bias, multiplier; with shift 24 most results lie inside 0..255."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (count, groups, inputs), np.uint8)
    weight = rng.integers(-128, 128, (groups, outputs, inputs), np.int8)
    bias = rng.integers(-20_000, 60_000, (groups, outputs), np.int32)
    largest = 2**24 * 120 // (20_000 + 9_500 * int(inputs**0.5))
    multiplier = rng.integers(largest // 2, largest, (groups, outputs), np.int32)
    return x, weight, bias, multiplier


def random_window(
    shape: tuple[int, int, int], side: int, count: int, *, seed: int
) -> tuple[Array, Array, Array, Array, Array]:
    """grid, positions, taps, bias, multiplier, for shift 24."""
    rng = np.random.default_rng(seed)
    grid = rng.integers(0, 256, shape, np.uint8)
    positions = rng.integers(0, shape[:2], (count, 2)).astype(np.int32)
    taps = rng.integers(-128, 128, (side, side, shape[2]), np.int8)
    bias = rng.integers(-20_000, 60_000, shape[2], np.int32)
    largest = 2**24 * 120 // (20_000 + 9_500 * side)
    multiplier = rng.integers(largest // 2, largest, shape[2], np.int32)
    return grid, positions, taps, bias, multiplier


def everywhere(height: int, width: int) -> Array:
    return np.ascontiguousarray(np.indices((height, width), np.int32).reshape(2, -1).T)


def assert_same(result: Array, expected: Array) -> None:
    assert result.dtype == np.uint8 and result.shape == expected.shape
    np.testing.assert_array_equal(result, expected)


# --- linear and argmax ---------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("inputs", [1, 3, 4, 6])
@pytest.mark.parametrize("outputs", [1, 5, 16, 18])
def test_small_layers(native: bool, outputs: int, inputs: int) -> None:
    for count, groups in ((0, 2), (1, 1), (7, 3)):
        x, weight, bias, multiplier = random_layer(count, groups, outputs, inputs, seed=inputs)
        y = integer_linear(x, weight, bias, multiplier, 24, native=native)
        assert_same(y, naive_linear(x, weight, bias, multiplier, 24))
        assert count < 7 or 0 < y.mean() < 255
        assert_same(integer_argmax(x, weight, bias, native=native), naive_argmax(x, weight, bias))


@needs_native
@pytest.mark.parametrize("inputs", [1, 2, 5, 15, 16, 17, 63, 130, 256])
@pytest.mark.parametrize("outputs", [1, 15, 17, 32, 33, 100])
def test_native_layers_equal_the_reference(outputs: int, inputs: int) -> None:
    for count, groups in ((1, 3), (33, 1), (20, 2)):
        x, weight, bias, multiplier = random_layer(count, groups, outputs, inputs, seed=count)
        y = integer_linear(x, weight, bias, multiplier, 24, native=True)
        expected = integer_layers.integer_linear_ref(x, weight, bias, multiplier, 24)
        assert_same(y, expected)
        best = integer_argmax(x, weight, bias, native=True)
        assert_same(best, integer_layers.integer_argmax_ref(x, weight, bias))


@each_backend
@pytest.mark.parametrize("inputs", [2, 3, 64, 333, 4095, 4096])
def test_extreme_values(native: bool, inputs: int) -> None:
    """Everything that saturates or overflows in 16 bits or in a byte product, at full length."""
    signs = np.resize(np.array([1, -1], np.int16), inputs)
    rows = [
        np.full(inputs, 127),
        np.full(inputs, -127),
        np.full(inputs, -128),
        127 * signs,
        -128 * (signs > 0),
        np.zeros(inputs),
    ]
    weight = np.stack(rows).astype(np.int8)[None]
    x = np.stack([np.full(inputs, 255), np.full(inputs, 128), 255 * (signs > 0)])
    x = x.astype(np.uint8)[:, None]
    room = 255 * 128 * inputs
    for start in (0, INT32.max - room, INT32.min + room):
        bias = np.full((1, len(rows)), start, np.int32)
        expected = naive_sums(x, weight, bias)
        # The bytes of the sums, from the top one down to the low one, by the rounding shift.
        for shift in (24, 16, 8, 1):
            for sign in (1, -1):
                multiplier = np.full_like(bias, sign)
                y = integer_linear(x, weight, bias, multiplier, shift, native=native)
                assert_same(y, naive_linear(x, weight, bias, multiplier, shift))
        best = [[sums.index(max(sums)) for sums in vector] for vector in expected]
        assert integer_argmax(x, weight, bias, native=native).tolist() == best


@each_backend
@pytest.mark.parametrize("shift", [1, 2, 7, 24, 31, 32, 33, 61, 62])
def test_requantisation(native: bool, shift: int) -> None:
    """Sums and multipliers over all of int32: products up to 2^62, halves, both clamps."""
    edges = [0, 1, -1, 2, 3, -3, 255, 256, 510, 511, 2**16, INT32.max, INT32.max - 1, INT32.min]
    rng = np.random.default_rng(shift)
    near = [int(round(2.0 ** rng.uniform(0, 31))) - 1 for _ in range(40)]
    sums = edges + near + [-value for value in near]
    multipliers = edges + [min(INT32.max, 2**e) for e in range(32)] + near
    total, multiplier = (a.ravel() for a in np.meshgrid(sums, multipliers))
    # Around results of 0.5 and 255.5, where the two clamps and the rounding meet.
    for target in (1, 509, 511):
        for value in (1, 3, 1000, 2**20 + 1, INT32.max):
            centre = (target << shift) // (2 * value)
            if centre + 2 <= INT32.max:
                near_target = centre + np.arange(-2, 3)
                total = np.append(total, np.concatenate([near_target, -near_target]))
                multiplier = np.append(multiplier, np.repeat([value, -value], 5))
    expected = [
        naive_requantise(t, m, shift) for t, m in zip(total.tolist(), multiplier.tolist(), strict=True)
    ]
    assert (min(expected), max(expected)) == (0, min(255, 2 ** (62 - shift)))

    bias, scale = total.astype(np.int32), multiplier.astype(np.int32)
    zeros = np.zeros((1, 1, 1), np.uint8), np.zeros((1, len(bias), 1), np.int8)
    y = integer_linear(*zeros, bias[None], scale[None], shift, native=native)
    assert y.ravel().tolist() == expected
    grid, taps = np.zeros((1, 1, 1000), np.uint8), np.zeros((1, 1, 1000), np.int8)
    for start in range(0, len(bias) - 1000, 1000):
        part = slice(start, start + 1000)
        w = integer_window(
            grid, everywhere(1, 1), taps, bias[part], scale[part], shift, tile=1, native=native
        )
        assert w.ravel().tolist() == expected[part]


@each_backend
@pytest.mark.parametrize("outputs", [2, 16, 17, 40, 255, 256])
def test_argmax_ties_go_to_the_lowest_output(native: bool, outputs: int) -> None:
    rng = np.random.default_rng(outputs)
    # Equal outputs at each pair of places, within a block of 16 and across blocks.
    x = np.full((1, 1, 5), 7, np.uint8)
    for first in (0, outputs // 2, outputs - 1):
        weight = rng.integers(-9, 9, (1, outputs, 5), np.int8)
        bias = np.full((1, outputs), -1000, np.int32)
        bias[0, first:] = 5000
        weight[0, first:] = weight[0, first]
        assert integer_argmax(x, weight, bias, native=native).tolist() == [[first]]
    # Few values, so that most of the largest sums occur more than once.
    x = rng.integers(0, 2, (50, 2, 3), np.uint8)
    weight = rng.integers(-1, 2, (2, outputs, 3), np.int8)
    bias = np.zeros((2, outputs), np.int32)
    best = integer_argmax(x, weight, bias, native=native)
    assert_same(best, naive_argmax(x, weight, bias))


@each_backend
def test_argmax_of_negative_and_extreme_sums(native: bool) -> None:
    x, weight = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 20, 3), np.int8)
    for low, high in ((INT32.min, INT32.min + 1), (-5, -4), (INT32.min, INT32.max)):
        for place in (0, 1, 15, 16, 19):
            bias = np.full((1, 20), low, np.int32)
            bias[0, place] = high
            assert integer_argmax(x, weight, bias, native=native).tolist() == [[place]]
        bias = np.full((1, 20), low, np.int32)
        assert integer_argmax(x, weight, bias, native=native).tolist() == [[0]]
    # What is added to fill a block is no larger than the least sum there can be.
    least = np.full((1, 20), INT32.min, np.int32)
    assert integer_argmax(x, weight, least, native=native).tolist() == [[0]]


@each_backend
def test_no_groups_and_no_rows(native: bool) -> None:
    for count, groups in ((0, 3), (5, 0), (0, 0)):
        x, weight, bias, multiplier = random_layer(count, groups, 7, 5, seed=1)
        y = integer_linear(x, weight, bias, multiplier, 24, native=native)
        assert y.shape == (count, groups, 7) and y.dtype == np.uint8
        assert integer_argmax(x, weight, bias, native=native).shape == (count, groups)


# --- window --------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("tile", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("side", [1, 3, 5])
def test_windows_and_tiles(native: bool, side: int, tile: int) -> None:
    """At every position of grids whose last tiles are cut off."""
    for shape in ((1, 1, 3), (7, 5, 2), (1, 9, 1), (11, 2, 17)):
        grid, _, taps, bias, multiplier = random_window(shape, side, 0, seed=tile)
        arguments = (grid, everywhere(*shape[:2]), taps, bias, multiplier, 24)
        y = integer_window(*arguments, tile=tile, native=native)
        assert_same(y, naive_window(*arguments, tile))
    assert_same(integer_window(*arguments, tile=10**6, native=native), naive_window(*arguments, 11))


@each_backend
def test_window_is_larger_than_the_grid(native: bool) -> None:
    grid, _, taps, bias, multiplier = random_window((3, 4, 5), 11, 0, seed=1)
    arguments = (grid, everywhere(3, 4), taps, bias, multiplier, 24)
    y = integer_window(*arguments, tile=64, native=native)
    assert_same(y, naive_window(*arguments, 64))


@each_backend
def test_window_does_not_see_the_next_tile(native: bool) -> None:
    """With tiles of 64, both sides of the borders at 64 and 128, and the corner between them."""
    _, _, taps, bias, multiplier = random_window((1, 1, 4), 5, 0, seed=1)
    grid = np.random.default_rng(2).integers(0, 256, (130, 131, 4), np.uint8)
    near = [0, 1, 62, 63, 64, 65, 126, 127, 128, 129]
    positions = np.array([(r, c) for r in near for c in [*near, 130]], np.int32)
    arguments = (positions, taps, bias, multiplier, 24)
    y = integer_window(grid, *arguments, tile=64, native=native)
    assert_same(y, naive_window(grid, *arguments, 64))
    # Changing every other tile changes nothing for the middle one.
    other = 255 - grid
    other[64:128, 64:128] = grid[64:128, 64:128]
    middle = ((positions >= 64) & (positions < 128)).all(1)
    changed = integer_window(other, *arguments, tile=64, native=native)
    assert_same(changed[middle], y[middle])
    assert (changed[~middle] != y[~middle]).any()


@needs_native
@pytest.mark.parametrize("channels", [1, 15, 16, 33, 500, 1024])
def test_native_window_equals_the_reference(channels: int) -> None:
    for side, tile in ((3, 64), (5, 8)):
        arguments = random_window((70, 67, channels), side, 60, seed=channels)
        y = integer_window(*arguments, 24, tile=tile, native=True)
        assert_same(y, integer_layers.integer_window_ref(*arguments, 24, tile=tile))
        assert 0 < y.mean() < 255


@each_backend
@pytest.mark.parametrize("weight", [127, -127, -128])
def test_window_of_extreme_values(native: bool, weight: int) -> None:
    grid, taps = np.full((9, 9, 3), 255, np.uint8), np.full((7, 7, 3), weight, np.int8)
    sign = 1 if weight > 0 else -1
    bias = np.array([0, INT32.max - 255 * 128 * 49, INT32.min + 255 * 128 * 49], np.int32)
    for shift in (1, 13, 16, 24):
        multiplier = np.full(3, sign, np.int32)
        arguments = (grid, everywhere(9, 9), taps, bias, multiplier, shift)
        y = integer_window(*arguments, tile=64, native=native)
        assert_same(y, naive_window(*arguments, 64))


@each_backend
def test_window_positions_in_any_order(native: bool) -> None:
    grid, none, taps, bias, multiplier = random_window((6, 7, 3), 3, 0, seed=1)
    rest = (taps, bias, multiplier, 24)
    assert integer_window(grid, none, *rest, tile=4, native=native).shape == (0, 3)
    whole = integer_window(grid, everywhere(6, 7), *rest, tile=4, native=native)
    order = np.random.default_rng(1).integers(0, 42, 100)
    shuffled = integer_window(grid, everywhere(6, 7)[order], *rest, tile=4, native=native)
    assert_same(shuffled, whole[order])
    assert integer_window(grid[:, :0], none, *rest, tile=4, native=native).shape == (0, 3)


# --- memory layouts, threads, instruction sets ---------------------------------------------


def strided(array: Array) -> Array:
    """The same values in memory with gaps, the last dimension outermost."""
    wide = np.zeros([2 * n for n in reversed(array.shape)], array.dtype)
    view = wide.transpose()[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    assert not view.flags.c_contiguous
    return view


@each_backend
def test_memory_layouts(native: bool) -> None:
    layer = random_layer(30, 3, 20, 10, seed=1)
    window = random_window((9, 8, 5), 3, 40, seed=2)
    calls: list[tuple[Callable[..., Array], tuple[Array, ...], dict[str, Any]]] = [
        (integer_linear, layer, {"shift": 24}),
        (integer_argmax, layer[:3], {}),
        (integer_window, window, {"shift": 24, "tile": 4}),
    ]
    for function, arrays, options in calls:
        expected = function(*arrays, **options, native=native)
        copies = [array.copy() for array in arrays]
        assert_same(function(*map(strided, arrays), **options, native=native), expected)
        for array in arrays:
            array.flags.writeable = False
        assert_same(function(*arrays, **options, native=native), expected)
        for array, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(array, copy)
    x, weight, bias, multiplier = layer
    shared = np.broadcast_to(x[:, :1], x.shape)
    y = integer_linear(shared, weight, bias, multiplier, 24, native=native)
    dense = integer_linear(shared.copy(), weight, bias, multiplier, 24, native=native)
    assert_same(y, dense)


@needs_native
def test_thread_counts_agree() -> None:
    """Enough rows for the kernels to use several threads, and not a multiple of their number."""
    layer = random_layer(1001, 3, 60, 70, seed=1)
    window = random_window((70, 90, 32), 5, 2003, seed=2)
    linear = integer_layers.integer_linear_ref(*layer, 24)
    argmax = integer_layers.integer_argmax_ref(*layer[:3])
    around = integer_layers.integer_window_ref(*window, 24, tile=64)
    for threads in (1, 2, 3, 8, 5000, None):
        options: dict[str, Any] = {"native": True, "threads": threads}
        assert_same(integer_linear(*layer, 24, **options), linear)
        assert_same(integer_argmax(*layer[:3], **options), argmax)
        assert_same(integer_window(*window, 24, tile=64, **options), around)


@needs_native
def test_one_thread_of_torch_leaves_a_process_that_can_be_forked() -> None:
    code = """
import os, signal, sys
import numpy as np, torch
from vqcodec_kernels.integer_layers import integer_linear
torch.set_num_threads(1)
x = np.ones((200_000, 1, 64), np.uint8)
layer = np.ones((1, 32, 64), np.int8), np.zeros((1, 32), np.int32), np.ones((1, 32), np.int32)
call = lambda: integer_linear(x, *layer, 24, native=True)
call()
child = os.fork()
if not child:
    signal.alarm(20)
    call()
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 7


def probe() -> dict[str, str]:
    """Digests of native results over odd shapes, the same on every instruction set."""
    digests = {}

    def record(name: str, *results: Array) -> None:
        data = b"".join(result.tobytes() for result in results)
        digests[name] = hashlib.sha256(data).hexdigest()

    for outputs, inputs in ((1, 1), (16, 4), (17, 7), (33, 64), (100, 333), (256, 4095)):
        layer = random_layer(40, 2, outputs, inputs, seed=inputs)
        full = (np.full_like(layer[0], 255), np.full_like(layer[1], 127), *layer[2:])
        for name, arrays in (("random", layer), ("full", full)):
            y = integer_linear(*arrays, 24, native=True)
            best = integer_argmax(*arrays[:3], native=True)
            record(f"{name} {outputs} x {inputs}", y, best)
    for side, channels in ((1, 1), (3, 17), (5, 64)):
        window = random_window((20, 30, channels), side, 200, seed=side)
        record(f"window {side}", integer_window(*window, 24, tile=8, native=True))
    return digests


@pytest.fixture(scope="module")
def probes() -> dict[str, tuple[str, str]]:
    """What `probe` prints under each instruction set."""
    return run_probes(__file__, ISAS)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets_agree(isa: str, probes: dict[str, tuple[str, str]]) -> None:
    assert_probe(isa, probes[isa], probe())


def test_choice_of_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_layers, "load_native", lambda: None)
    layer = random_layer(5, 2, 9, 6, seed=1)
    window = random_window((9, 8, 5), 3, 40, seed=2)
    assert_same(integer_linear(*layer, 24), naive_linear(*layer, 24))
    assert_same(integer_argmax(*layer[:3]), naive_argmax(*layer[:3]))
    assert_same(integer_window(*window, 24, tile=4), naive_window(*window, 24, 4))
    calls: list[Callable[[], Array]] = [
        lambda: integer_linear(*layer, 24, native=True),
        lambda: integer_argmax(*layer[:3], native=True),
        lambda: integer_window(*window, 24, tile=4, native=True),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="native extension"):
            call()


# --- errors --------------------------------------------------------------------------------

X, WEIGHT = np.zeros((4, 2, 6), np.uint8), np.zeros((2, 3, 6), np.int8)
BIAS, GRID = np.zeros((2, 3), np.int32), np.zeros((5, 7, 3), np.uint8)
POSITIONS, TAPS = np.zeros((4, 2), np.int32), np.zeros((3, 3, 3), np.int8)
CHANNEL = np.zeros(3, np.int32)


def at(row: int, column: int) -> Array:
    return np.array([[0, 0], [row, column]], np.int32)


SUM_ERRORS: list[tuple[str, type[Exception], dict[str, Any]]] = [
    ("x int8", TypeError, {"x": X.astype(np.int8)}),
    ("x float", TypeError, {"x": X.astype(np.float32)}),
    ("x list", TypeError, {"x": X.tolist()}),
    ("x 2-D", ValueError, {"x": X[0]}),
    ("x 4-D", ValueError, {"x": X[None]}),
    ("weight uint8", TypeError, {"weight": WEIGHT.view(np.uint8)}),
    ("weight 2-D", ValueError, {"weight": WEIGHT[0]}),
    ("inputs", ValueError, {"weight": WEIGHT[:, :, :5]}),
    ("groups", ValueError, {"weight": WEIGHT[:1]}),
    ("bias int64", TypeError, {"bias": BIAS.astype(np.int64)}),
    ("bias None", TypeError, {"bias": None}),
    ("bias shape", ValueError, {"bias": BIAS[:, :2]}),
    ("bias transposed", ValueError, {"bias": BIAS.T}),
    ("bias 1-D", ValueError, {"bias": BIAS[0]}),
    ("big-endian bias", TypeError, {"bias": BIAS.astype(">i4")}),
    ("no inputs", ValueError, {"x": X[:, :, :0], "weight": WEIGHT[:, :, :0]}),
    ("no outputs", ValueError, {"weight": WEIGHT[:, :0], "bias": BIAS[:, :0]}),
    (
        "4097 inputs",
        ValueError,
        {"x": np.zeros((4, 2, 4097), np.uint8), "weight": np.zeros((2, 3, 4097), np.int8)},
    ),
]
LINEAR_ERRORS: list[tuple[str, type[Exception], dict[str, Any]]] = [
    ("multiplier int64", TypeError, {"multiplier": BIAS.astype(np.int64)}),
    ("multiplier float", TypeError, {"multiplier": 0.5}),
    ("multiplier shape", ValueError, {"multiplier": BIAS[:, :1]}),
    ("multiplier 1-D", ValueError, {"multiplier": BIAS[0]}),
    ("shift 0", ValueError, {"shift": 0}),
    ("shift -1", ValueError, {"shift": -1}),
    ("shift 63", ValueError, {"shift": 63}),
]
WINDOW_ERRORS: list[tuple[str, type[Exception], dict[str, Any]]] = [
    ("grid int8", TypeError, {"grid": GRID.view(np.int8)}),
    ("grid list", TypeError, {"grid": GRID.tolist()}),
    ("grid 2-D", ValueError, {"grid": GRID[0]}),
    ("positions int64", TypeError, {"positions": POSITIONS.astype(np.int64)}),
    ("positions 1-D", ValueError, {"positions": POSITIONS[0]}),
    ("positions (P, 3)", ValueError, {"positions": np.zeros((4, 3), np.int32)}),
    ("row -1", ValueError, {"positions": at(-1, 0)}),
    ("row H", ValueError, {"positions": at(5, 0)}),
    ("column -1", ValueError, {"positions": at(0, -1)}),
    ("column W", ValueError, {"positions": at(0, 7)}),
    ("position in no grid", ValueError, {"grid": GRID[:0]}),
    ("taps uint8", TypeError, {"taps": TAPS.view(np.uint8)}),
    ("taps 0-D", ValueError, {"taps": np.zeros((), np.int8)}),
    ("taps even", ValueError, {"taps": TAPS[:2, :2]}),
    ("taps not square", ValueError, {"taps": TAPS[:, :1]}),
    ("taps none", ValueError, {"taps": TAPS[:0, :0]}),
    ("taps channels", ValueError, {"taps": TAPS[:, :, :2]}),
    ("bias channels", ValueError, {"bias": CHANNEL[:1], "multiplier": CHANNEL[:1]}),
    ("bias 2-D", ValueError, {"bias": CHANNEL[None], "multiplier": CHANNEL[None]}),
    ("bias int64", TypeError, {"bias": CHANNEL.astype(np.int64)}),
    ("multiplier channels", ValueError, {"multiplier": CHANNEL[:2]}),
    ("tile 0", ValueError, {"tile": 0}),
    ("tile -4", ValueError, {"tile": -4}),
    ("shift 63", ValueError, {"shift": 63}),
    (
        "no channels",
        ValueError,
        {
            "grid": GRID[:, :, :0],
            "taps": TAPS[:, :, :0],
            "bias": CHANNEL[:0],
            "multiplier": CHANNEL[:0],
        },
    ),
    (
        "1025 channels",
        ValueError,
        {
            "grid": np.zeros((5, 7, 1025), np.uint8),
            "taps": np.zeros((3, 3, 1025), np.int8),
            "bias": np.zeros(1025, np.int32),
            "multiplier": np.zeros(1025, np.int32),
        },
    ),
]


def cases(table: list[tuple[str, type[Exception], dict[str, Any]]]) -> pytest.MarkDecorator:
    parameters = [pytest.param(error, change, id=name) for name, error, change in table]
    return pytest.mark.parametrize(("error", "change"), parameters)


@each_backend
@cases(SUM_ERRORS + LINEAR_ERRORS)
def test_linear_errors(native: bool, error: type[Exception], change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"x": X, "weight": WEIGHT, "bias": BIAS}
    arguments |= {"multiplier": BIAS, "shift": 24} | change
    if "bias" in change and "multiplier" not in change:
        arguments["multiplier"] = change["bias"]
    with pytest.raises(error):
        integer_linear(**arguments, native=native)


@each_backend
@cases(SUM_ERRORS)
def test_argmax_errors(native: bool, error: type[Exception], change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"x": X, "weight": WEIGHT, "bias": BIAS}
    with pytest.raises(error):
        integer_argmax(**arguments | change, native=native)


@each_backend
def test_argmax_takes_256_outputs_at_most(native: bool) -> None:
    weight, bias = np.zeros((2, 257, 6), np.int8), np.zeros((2, 257), np.int32)
    with pytest.raises(ValueError, match="256"):
        integer_argmax(X, weight, bias, native=native)
    bias[:, 255] = 1
    best = integer_argmax(X, weight[:, :256], bias[:, :256], native=native)
    assert (best == 255).all()


@each_backend
@cases(WINDOW_ERRORS)
def test_window_errors(native: bool, error: type[Exception], change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"grid": GRID, "positions": POSITIONS, "taps": TAPS}
    arguments |= {"bias": CHANNEL, "multiplier": CHANNEL, "shift": 24, "tile": 64} | change
    with pytest.raises(error):
        integer_window(**arguments, native=native)
