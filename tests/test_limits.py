"""What is too large: refused from the header, before a model or memory is taken."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vqcodec
from vqcodec import limits
from vqcodec.codec import Codec, load_codec
from vqcodec.container import Header, stage_section, tile_grid, write_container
from vqcodec.errors import TooLargeError
from vqcodec.limits import DEFAULT_MAX_PIXELS, DEFAULT_MAX_SIDE, Limits

HUGE = 1 << 31


def header(width: int, height: int) -> Header:
    return Header(mode=0, grey=False, rate=1, width=width, height=height, code_id=1)


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [
        (1, 1, True),
        (10_000, 10_000, True),
        (10_000, 10_001, False),
        (DEFAULT_MAX_SIDE, 1, True),
        (DEFAULT_MAX_SIDE + 1, 1, False),
        (1, DEFAULT_MAX_SIDE + 1, False),
        (HUGE, HUGE, False),
        (2**32 - 1, 2**32 - 1, False),
    ],
)
def test_default_limits(width: int, height: int, fits: bool) -> None:
    assert DEFAULT_MAX_PIXELS == 100_000_000
    if fits:
        Limits().check(header(width, height))
        return
    with pytest.raises(TooLargeError, match=f"{width} x {height} pixels, more than the limit of"):
        Limits().check(header(width, height))


def test_limits_of_ones_own() -> None:
    Limits(max_pixels=12).check(header(4, 3))
    with pytest.raises(TooLargeError):
        Limits(max_pixels=11).check(header(4, 3))
    Limits(max_side=4).check(header(4, 3))
    with pytest.raises(TooLargeError, match="limit of 3 a side"):
        Limits(max_side=3).check(header(4, 3))
    # A row of pixels takes the memory of sixteen.
    with pytest.raises(TooLargeError, match="pixels take the memory of 640000, more"):
        Limits(max_pixels=40_000).check(header(40_000, 1))
    Limits(max_pixels=287_232).check(header(40_000, 1))
    with pytest.raises(TooLargeError):
        Limits(max_pixels=287_231).check(header(40_000, 1))
    for bad in ({"max_pixels": 0}, {"max_side": -1}, {"max_memory": 0}, {"max_pixels": None}):
        with pytest.raises(ValueError, match="must be a whole number of at least 1"):
            Limits(**bad)  # type: ignore[arg-type]


def test_memory_is_compared_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    available = limits.available_memory()
    assert available is None or available > 1 << 20
    Limits(max_memory=1000).check_memory(1000)
    with pytest.raises(TooLargeError, match="takes about 5,000 MB, 1 MB are allowed"):
        Limits(max_memory=1_000_000).check_memory(5_000_000_000)
    monkeypatch.setattr(limits, "available_memory", lambda: 2_000_000)
    with pytest.raises(TooLargeError, match="2 MB are available"):
        Limits().check_memory(2_000_001)
    monkeypatch.setattr(limits, "available_memory", lambda: None)
    Limits().check_memory(1 << 60)


def test_a_container_may_have_less_than_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_MEMORY_GROUP", str(tmp_path))
    machine = limits.available_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert (limits.available_memory() is None) is (machine is None)
    (tmp_path / "memory.max").write_text("1000\n")
    assert limits.available_memory() == 700
    (tmp_path / "memory.current").write_text("2000\n")
    assert limits.available_memory() == 0


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    return load_codec(tiny_model, "cpu")


def test_decoding_that_would_take_too_much_is_refused(codec: Codec) -> None:
    data = codec.compress(np.zeros((300, 200, 3), np.uint8))
    needed = codec._memory(tile_grid(200, 300))
    codec.decompress(data, limits=Limits(max_memory=needed))
    for decode in (codec.decompress, codec.salvage, codec.read_indices):
        with pytest.raises(TooLargeError, match="are allowed"):
            decode(data, limits=Limits(max_memory=needed - 1))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_memory_of_a_decode_is_estimated(tmp_path: Path) -> None:
    # In a process of its own, that the peak is that of this decode alone.
    code = """
import sys
import numpy as np
from vqcodec.codec import load_codec
from vqcodec.container import tile_grid
codec = load_codec("vq-small", "cpu", precise=True)
random = np.random.default_rng(0)
def picture(side):
    coarse = random.integers(0, 255, (side // 8, side // 8, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))
def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
if sys.argv[1] == "write":
    open(sys.argv[2], "wb").write(codec.compress(picture(1024), quality=100))
else:
    codec.decompress(codec.compress(picture(64)))
    data = open(sys.argv[2], "rb").read()
    before = memory("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    codec.decompress(data)
    print(memory("VmHWM") - before, codec._memory(tile_grid(1024, 1024)))
"""
    file = str(tmp_path / "picture.vqc")
    subprocess.run([sys.executable, "-c", code, "write", file], check=True)
    result = subprocess.run(
        [sys.executable, "-c", code, "read", file], check=True, capture_output=True, text=True
    )
    taken, estimate = map(int, result.stdout.split())
    assert taken / 2 < estimate < 3 * taken


def test_a_small_file_that_claims_much_is_refused_at_once() -> None:
    data = write_container(header(HUGE, HUGE), [stage_section(0, bytes(20))])
    assert len(data) == 50
    with pytest.raises(TooLargeError):
        vqcodec.decompress(data)
    with pytest.raises(TooLargeError):
        vqcodec.salvage(data)
    # Neither torch nor NumPy has been needed to say so.
    code = (
        "import sys, vqcodec.cli as cli; code = cli.main(['decompress', '-']); "
        "sys.exit(code if {'torch', 'numpy', 'PIL'}.isdisjoint(sys.modules) else 9)"
    )
    result = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"more than the limit of" in result.stderr
