"""Tests of the command line: argv in; exit code, streams and files out.

The first part runs `main` in this process on a stand-in codec that keeps pixels exactly; the
second part runs `python -m vqcodec` as users do, with the default model.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import types
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqcodec import Salvage, cli_modes, container
from vqcodec.cli import main
from vqcodec.container import (
    MODE_NAMES,
    Header,
    Section,
    read_container,
    stage_payloads,
    stage_section,
    write_container,
)
from vqcodec.digits import draw_digits
from vqcodec.errors import ModeError, ModelFileError, UnknownModelError
from vqcodec.image import Picture
from vqcodec.limits import Limits
from vqcodec.modes import DRAWN_MODES
from vqcodec.recovery import read_cut, read_damaged
from vqcodec.truncation import truncate

COLOURS = np.random.default_rng(11).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREYS = COLOURS[:, :, 1].copy()
MODES = list(MODE_NAMES.values())
FOREIGN_CODE_ID = 0x0BADF00D


@dataclass
class Result:
    """What a run left behind; `out` is bytes because it may be data."""

    code: int
    out: bytes
    err: str


@dataclass
class FakeCodec:
    """Stands in for vqcodec.codec.Codec: stores pixels without loss, in real containers."""

    mode: str
    calls: list[dict[str, object]]

    def compress(
        self,
        image: np.ndarray,
        *,
        quality: int = 50,
        sample: int | None = None,
        stages: int | None = None,
        effort: int = 4,
    ) -> bytes:
        self.calls.append({"quality": quality, "sample": sample, "stages": stages})
        if quality == 99:
            raise RuntimeError("kernel on fire")
        if quality == 98:
            raise KeyboardInterrupt
        header = Header(
            mode=MODES.index(self.mode),
            grey=image.ndim == 2,
            rate=quality,
            width=image.shape[1],
            height=image.shape[0],
            code_id=0x12345678,
        )
        return write_container(header, [stage_section(0, zlib.compress(image.tobytes()))])

    def generate(
        self, count: int, *, seed: int, width: int = 256, height: int = 256
    ) -> list[Image.Image]:
        self.calls.append({"count": count, "seed": seed, "width": width, "height": height})
        return [Image.new("RGB", (width, height), (seed % 100, n % 256, 9)) for n in range(count)]

    def interpolate(self, first: Picture, second: Picture, *, count: int) -> list[Image.Image]:
        self.calls.append({"count": count})
        start, end = first.pixels.astype(float), second.pixels.astype(float)
        blends = [start + (end - start) * n / (count - 1) for n in range(count)]
        grey = first.grey and second.grey
        return [Image.fromarray((b[:, :, 0] if grey else b).astype(np.uint8)) for b in blends]

    def decompress(self, data: bytes, *, limits: Limits | None = None) -> Image.Image:
        header, sections = read_container(data)
        if header.code_id == FOREIGN_CODE_ID:
            raise UnknownModelError("the file needs another model")
        shape = (header.height, header.width) if header.grey else (header.height, header.width, 3)
        pixels = zlib.decompress(stage_payloads(sections)[0])
        return Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(shape))

    def salvage(self, data: bytes, *, cut_only: bool = False, limits: Limits | None = None) -> Salvage:
        found = read_cut(data) if cut_only else read_damaged(data)
        return Salvage(Image.new("RGB", (found.header.width, found.header.height)), found.losses)


@pytest.fixture
def used() -> list[dict[str, object]]:
    """What the stand-in codec was asked for, in order."""
    return []


@pytest.fixture
def loads(monkeypatch, used) -> list[dict[str, object]]:
    """Put the stand-in codec in place; the list receives the arguments of every load."""
    calls: list[dict[str, object]] = []

    def resolve_device(name: str | None) -> str:
        if name == "cuda:7":
            raise ValueError("there is no device cuda:7")
        return "cpu" if name in (None, "auto") else str(name)

    def load_codec(
        model: str | None = None,
        device: str | None = None,
        *,
        code_id: int | None = None,
        mode: str | None = None,
        precise: bool = False,
    ) -> FakeCodec:
        calls.append({"model": model, "device": device, "mode": mode})
        if model == "missing":
            raise UnknownModelError("there is no model named missing")
        if model == "broken":
            raise ModelFileError("broken is not a weights file")
        if model == "plain" and mode not in (None, "vq"):
            raise ModeError(f"the model plain is of mode vq, not {mode}")
        resolve_device(device)
        return FakeCodec(mode or "vq", used)

    # Imported while the real codec is in place, which it keeps.
    import vqcodec.train  # noqa: F401

    module = types.ModuleType("vqcodec.codec")
    module.load_codec = load_codec  # type: ignore[attr-defined]
    module.resolve_device = resolve_device  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vqcodec.codec", module)
    monkeypatch.setattr(cli_modes, "DEFAULT_MAX_PIXELS", 1 << 20)
    return calls


@pytest.fixture
def cli(tmp_path, monkeypatch, capsysbinary, loads) -> Callable[..., Result]:
    """Run the command line in an empty folder, with some pictures and the stand-in codec."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(COLOURS).save("photo.png")
    Image.fromarray(GREYS).save("grey.png")
    Path("text.txt").write_text("no picture")

    def run(*argv: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(stdin)))
        try:
            code = main(list(argv))
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsysbinary.readouterr()
        return Result(code, out, err.decode())

    return run


def pixels_of(source: str | bytes) -> np.ndarray:
    """The array of a picture, with its mode told by its shape."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with Image.open(file) as image:
        return np.asarray(image)


# --- usage ---------------------------------------------------------------------------------

USAGE = [
    ("", "a command is needed"),
    ("shrink photo.png", "invalid choice: 'shrink'"),
    ("compress", "required: FILE"),
    ("compress photo.png -q 0", "must be from 1 to 100, got 0"),
    ("compress photo.png -q 101", "must be from 1 to 100, got 101"),
    ("compress photo.png -q high", "'high' is not a whole number"),
    ("compress photo.png -q 50.5", "'50.5' is not a whole number"),
    ("compress photo.png --qual 3", "unrecognized arguments: --qual"),
    ("compress photo.png --device gpu", "must be auto, cpu, cuda or cuda:i"),
    ("compress photo.png --device cuda:", "must be auto, cpu, cuda or cuda:i"),
    ("compress photo.png --device cuda:7", "there is no device cuda:7"),
    ("compress photo.png grey.png -o out.vqc", "OUT must be an existing directory"),
    ("compress photo.png grey.png -o -", "several files cannot go to standard output"),
    ("compress photo.png -o nowhere/", "there is no directory nowhere/"),
    ("compress - -", "standard input can be read only once"),
    ("compress - -o .", "needs a file name"),
    ("decompress a.vqc -o a.jpg", r"a\.jpg names no lossless picture format .*\.png"),
    ("decompress a.vqc -o a", "names no lossless picture format"),
    ("decompress a.vqc --max-pixels 0", "must be at least 1"),
    ("info --quality 3 a.vqc", "unrecognized arguments"),
    ("compress none.png --mode gan", "invalid choice: 'gan'"),
    ("compress none.png --sample 1", "--sample needs --mode vae"),
    ("compress none.png --sample 1 --mode vq", "--sample needs --mode vae"),
    ("compress none.png --sample 1 --mode ae", "--sample needs --mode vae"),
    ("compress none.png --sample 0 --mode dvae --model m", "--sample needs --mode vae"),
    ("compress none.png --sample 1 --mode vqvae", "--sample needs --mode vae"),
    ("compress none.png --sample -1 --mode vae", "must be from 0 to 9223372036854775807"),
    (f"compress none.png --sample {2**63} --mode vae", "must be from 0 to 9223372036854775807"),
    ("compress photo.png --sample 1 --mode vae --model plain", "model plain is of mode vq, not vae"),
    ("compress photo.png --mode ae --model plain", "model plain is of mode vq, not ae"),
    ("generate", "required: --mode"),
    ("generate --mode gan", "invalid choice: 'gan'"),
    ("generate --mode cvae", "--mode cvae and --label belong together"),
    ("generate --mode vae --label 3", "--mode cvae and --label belong together"),
    ("generate --mode cvae --label 10", "invalid choice: 10"),
    ("generate --mode cvae --label 3 --model m", "mode cvae has a model of its own"),
    ("generate --mode cvae --label 3 --device cuda:1", "mode cvae draws on the CPU"),
    ("generate --mode cvae --label 3 --precise", "mode cvae draws on the CPU"),
    ("compress photo.png --mode cvae", "mode cvae draws digits and has no files"),
    ("interpolate photo.png grey.png --mode cvae", "mode cvae draws digits and has no files"),
    ("compare photo.png --modes ae,cvae", "mode cvae draws digits and has no files"),
    ("train --data d --out m.safetensors --mode cvae", "mode cvae draws digits and has no files"),
    ("generate --mode ae", "an autoencoder has no prior to draw from; use vae, dvae, vqvae, wae"),
    ("generate --mode vq", "does not draw them; use vae, dvae, vqvae, wae"),
    ("generate --mode vae extra", "unrecognized arguments: extra"),
    ("generate --mode vae -n 0", "must be from 1 to 1000, got 0"),
    ("generate --mode vae -n 1001", "must be from 1 to 1000, got 1001"),
    ("generate --mode vae --seed -1", "must be from 0 to 9223372036854775807"),
    (f"generate --mode vae --seed {2**63}", "must be from 0 to 9223372036854775807"),
    ("generate --mode vae --size 256", "must be WIDTHxHEIGHT in pixels, got '256'"),
    ("generate --mode vae --size 0x256", "must be WIDTHxHEIGHT"),
    ("generate --mode vae --size 256x0", "must be WIDTHxHEIGHT"),
    ("generate --mode vae --size=-1x5", "must be WIDTHxHEIGHT"),
    ("generate --mode vae --size 5x5x5", "must be WIDTHxHEIGHT"),
    ("generate --mode vae --size 9999999999x1", "must be WIDTHxHEIGHT"),
    ("generate --mode vae --size 999999999x999999999", "more than the limit of 1,048,576 pixels"),
    ("generate --mode vae -n 1000 --size 40x20", "1000 pictures of 40 x 20 are more than the limit"),
    ("generate --mode vae -n 65 --size 1x1010", "65 pictures of 1 x 1010 are more than the limit"),
    ("generate --mode vae -o a.jpg", r"a\.jpg names no lossless picture format"),
    ("generate --mode vae -o nowhere/", "there is no directory nowhere/"),
    ("generate --mode vae --model plain", "model plain is of mode vq, not vae"),
    ("generate --mode vae --device cuda:7", "there is no device cuda:7"),
    ("interpolate photo.png grey.png", "required: --mode"),
    ("interpolate photo.png --mode vae", "required: B"),
    ("interpolate none.png none.png --mode vae -n 1", "must be from 2 to 1000, got 1"),
    ("interpolate none.png none.png --mode vae -o a.gif", "names no lossless picture format"),
    ("interpolate - - --mode vae", "standard input can be read only once"),
    ("interpolate - none.png --mode vae -o .", "needs a file name, not a directory"),
    ("interpolate photo.png grey.png --mode ae --model plain", "model plain is of mode vq, not ae"),
    ("compare", "required: FILE"),
    ("compare none.png --modes vae,gan", "there is no mode 'gan', only vq, ae, vae, dvae, vqvae"),
    ("compare none.png --modes vae,,ae", "not a list of names"),
    ("compare none.png --qualities 10,0", "must be from 1 to 100, got 0"),
    ("compare none.png --qualities 10,high", "'high' is not a whole number"),
    ("compare none.png -o -", "the report needs a file name"),
    ("compare none.png -o nowhere/", "there is no directory nowhere/"),
    ("train --out m.safetensors", "required: --data"),
    ("train --data . --out m --minutes 1 --steps 2", "not allowed with"),
    ("train --data . --out m --minutes 0", "must be a number above 0"),
    ("train --data . --out m --minutes nan", "must be a number above 0"),
    ("train --data . --out m --steps 0", "must be at least 1"),
    ("train --data . --out m --phases a,,b", "not a list of names"),
    ("train --data . --out m --seed -1", "must be from 0"),
    ("train --data . --out m --mode gan", "there is no mode 'gan', only vq, ae,"),
    ("train --data . --out m --mode ae,vae --init x", "--init is for one mode"),
]


@pytest.mark.parametrize(("line", "message"), USAGE, ids=[line or "none" for line, _ in USAGE])
def test_wrong_usage(cli, line: str, message: str) -> None:
    before = sorted(os.listdir())
    result = cli(*line.split())
    assert result.code == 2
    assert re.search(message, result.err)
    assert result.out == b""
    assert sorted(os.listdir()) == before


COMMANDS = ["compress", "decompress", "info", "verify", "generate", "interpolate", "compare", "train"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(cli, command: str) -> None:
    result = cli(*command.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(b"usage: vqcodec")


def test_help_tells_exit_codes_and_the_range_of_quality(cli) -> None:
    text = cli("-h").out.decode()
    codes = re.search(r"exit codes:\n((?:  .*\n)+)", text)
    assert codes is not None
    assert re.findall(r"^  (\d+)", codes[1], re.M) == ["0", "1", "2", "3", "130"]
    text = " ".join(cli("compress", "-h").out.decode().split())
    assert "-q 1..100" in text
    assert "from 1 (smallest file) to 100 (best picture), default 50" in text


def test_help_tells_the_defaults_of_the_comparison(cli) -> None:
    listed = re.search(r"default: ([0-9,]+)\)", " ".join(cli("compare", "-h").out.decode().split()))
    assert listed is not None
    # Read and not imported: the codec of these tests is a stand-in.
    source = Path(container.__file__).with_name("comparison.py").read_text("utf-8")
    defaults = re.search(r"^DEFAULT_QUALITIES = \((.*)\)$", source, re.M)
    assert defaults is not None
    assert defaults[1].replace(" ", "") == listed[1]


# --- compress and decompress ---------------------------------------------------------------


def test_compress_and_decompress_beside_the_input(cli, loads) -> None:
    result = cli("compress", "photo.png")
    size = os.path.getsize("photo.vqc")
    assert (result.code, result.out) == (0, b"")
    assert re.fullmatch(
        rf"photo\.png -> photo\.vqc  {size} bytes  {size * 8 / 48:.3f} bpp  \d+\.\d\d s\n",
        result.err,
    )
    os.remove("photo.png")
    result = cli("decompress", "photo.vqc")
    assert (result.code, result.out) == (0, b"")
    assert re.fullmatch(r"photo\.vqc -> photo\.png  8 x 6  \d+\.\d\d s\n", result.err)
    np.testing.assert_array_equal(pixels_of("photo.png"), COLOURS)
    expected = {"model": None, "device": None}
    assert loads == [{**expected, "mode": None}, {**expected, "mode": "vq"}]


def test_large_numbers_are_grouped(cli) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save("noise.png")
    assert re.search(r"  4,\d\d\d bytes  ", cli("compress", "noise.png").err)


def test_grey_comes_back_grey(cli) -> None:
    assert cli("compress", "grey.png").code == 0
    assert cli("decompress", "grey.vqc").code == 0
    np.testing.assert_array_equal(pixels_of("grey.vqc.png"), GREYS)


def test_second_name_where_the_first_is_taken(cli) -> None:
    cli("compress", "photo.png")
    original = Path("photo.png").read_bytes()
    result = cli("decompress", "photo.vqc")
    assert result.code == 0
    assert "photo.vqc -> photo.vqc.png" in result.err
    assert Path("photo.png").read_bytes() == original
    result = cli("decompress", "photo.vqc")
    assert result.code == 1
    assert "vqcodec: photo.vqc: photo.vqc.png exists already; -f replaces it" in result.err
    # With -f the original is still not taken for the result of an earlier run.
    Path("photo.vqc.png").write_bytes(b"old")
    assert cli("decompress", "photo.vqc", "-f").code == 0
    assert Path("photo.png").read_bytes() == original
    np.testing.assert_array_equal(pixels_of("photo.vqc.png"), COLOURS)


def test_names_without_our_suffix(cli) -> None:
    cli("compress", "photo.png", "-o", "archive.bin")
    assert "archive.bin -> archive.bin.png" in cli("decompress", "archive.bin").err
    os.rename("archive.bin", "UPPER.VQC")
    assert "UPPER.VQC -> UPPER.png" in cli("decompress", "UPPER.VQC").err


def test_existing_output_is_replaced_only_with_force(cli) -> None:
    Path("photo.vqc").write_bytes(b"precious")
    result = cli("compress", "photo.png")
    assert result.code == 1
    assert result.err == "vqcodec: photo.png: photo.vqc exists already; -f replaces it\n"
    assert Path("photo.vqc").read_bytes() == b"precious"
    assert cli("compress", "photo.png", "-f").code == 0
    assert Path("photo.vqc").read_bytes() != b"precious"


def test_input_is_never_replaced(cli) -> None:
    before = Path("photo.png").read_bytes()
    os.symlink("photo.png", "link.png")
    for output in ("photo.png", "./photo.png", "link.png"):
        result = cli("compress", "photo.png", "-f", "-o", output)
        assert result.code == 1
        assert "would replace the input" in result.err
    assert Path("photo.png").read_bytes() == before


def test_two_inputs_of_one_name_do_not_replace_each_other(cli) -> None:
    Image.fromarray(GREYS).save("photo.bmp")
    result = cli("compress", "photo.png", "photo.bmp", "-f")
    assert result.code == 1
    assert "vqcodec: photo.bmp: photo.vqc was written for photo.png just before" in result.err
    assert not read_container(Path("photo.vqc").read_bytes())[0].grey


def test_output_file_and_directory(cli) -> None:
    os.mkdir("out")
    assert cli("compress", "photo.png", "-o", "out/a.dat").code == 0
    assert cli("compress", "photo.png", "grey.png", "-o", "out").code == 0
    assert cli("decompress", "out/photo.vqc", "out/grey.vqc", "-o", "out/").code == 0
    assert sorted(os.listdir("out")) == ["a.dat", "grey.png", "grey.vqc", "photo.png", "photo.vqc"]


@pytest.mark.parametrize("suffix", [".png", ".ppm", ".webp", ".tif", ".tiff", ".bmp", ".PNG"])
def test_output_formats_are_lossless(cli, suffix: str) -> None:
    cli("compress", "photo.png")
    assert cli("decompress", "photo.vqc", "-o", f"back{suffix}").code == 0
    np.testing.assert_array_equal(pixels_of(f"back{suffix}"), COLOURS)


def test_netpbm_files_match_their_suffix(cli) -> None:
    cli("compress", "photo.png", "grey.png", "-o", ".")
    assert cli("decompress", "grey.vqc", "-o", "grey.pgm").code == 0
    assert Path("grey.pgm").read_bytes().startswith(b"P5")
    assert cli("decompress", "grey.vqc", "-o", "grey.ppm").code == 0
    assert Path("grey.ppm").read_bytes().startswith(b"P6")
    result = cli("decompress", "photo.vqc", "-o", "photo.pgm")
    assert result.code == 1
    assert "does not fit a .pgm file" in result.err
    assert not os.path.exists("photo.pgm")


def test_streams(cli) -> None:
    picture = Path("photo.png").read_bytes()
    packed = cli("compress", "-", stdin=picture)
    assert packed.code == 0
    assert re.match(rf"- -> -  {len(packed.out)} bytes  ", packed.err)
    unpacked = cli("decompress", "-", stdin=packed.out)
    np.testing.assert_array_equal(pixels_of(unpacked.out), COLOURS)
    assert cli("compress", "photo.png", "-o", "-").out == packed.out
    assert cli("compress", "-", "-o", "file.vqc", stdin=picture).out == b""
    assert Path("file.vqc").read_bytes() == packed.out
    assert not os.path.exists("-")


def test_double_dash_ends_the_options(cli) -> None:
    os.rename("photo.png", "-q.png")
    assert cli("compress", "-q", "10", "--", "-q.png").code == 0
    assert os.path.exists("-q.vqc")


def test_options_reach_the_codec(cli, loads) -> None:
    cli("compress", "photo.png", "-q", "73", "--model", "small", "--device", "cuda:1")
    assert loads == [{"model": "small", "device": "cuda:1", "mode": None}]
    assert read_container(Path("photo.vqc").read_bytes())[0].rate == 73
    result = cli("decompress", "photo.vqc", "--max-pixels", "47")
    assert result.code == 1
    assert result.err == "vqcodec: photo.vqc: 8 x 6 pixels, more than the limit of 47\n"
    assert cli("decompress", "photo.vqc", "--max-pixels", "48").code == 0


def test_limits(cli, loads) -> None:
    cli("compress", "photo.png")
    for option, message in (
        ("--max-pixels 47", "8 x 6 pixels, more than the limit of 47"),
        ("--max-side 7", "8 x 6 pixels, more than the limit of 7 a side"),
    ):
        result = cli("decompress", "photo.vqc", "-o", "back.png", *option.split())
        assert (result.code, result.err) == (1, f"vqcodec: photo.vqc: {message}\n")
    assert len(loads) == 1
    assert cli("decompress", "photo.vqc", "--max-side", "8", "--max-memory", "999999").code == 0


# --- less than the whole file --------------------------------------------------------------


@pytest.fixture
def staged() -> bytes:
    """A file of three stages."""
    header = Header(mode=0, grey=False, rate=20, width=100, height=50, code_id=0x12345678)
    data = write_container(header, [stage_section(n, bytes([n]) * (50 << n)) for n in range(3)])
    Path("staged.vqc").write_bytes(data)
    return data


def test_truncate(cli, loads, staged: bytes) -> None:
    result = cli("truncate", "staged.vqc", "--stages", "2")
    expected = truncate(staged, stages=2)
    assert Path("staged.truncated.vqc").read_bytes() == expected
    sizes = f"{len(staged)} -> {len(expected)} bytes"
    assert (result.code, result.out) == (0, b"")
    assert result.err == f"staged.vqc -> staged.truncated.vqc  {sizes}  0.298 bpp\n"
    assert cli("truncate", "staged.vqc", "--bpp", "0.2", "-o", "-").out == truncate(staged, stages=1)
    assert cli("verify", "staged.truncated.vqc").code == 0
    result = cli("truncate", "staged.vqc", "--stages", "1")
    assert (result.code, result.err) == (
        1,
        "vqcodec: staged.vqc: staged.truncated.vqc exists already; -f replaces it\n",
    )
    assert cli("truncate", "staged.vqc", "--stages", "1", "-o", "staged.vqc", "-f").code == 1
    assert Path("staged.vqc").read_bytes() == staged
    assert cli("truncate", "staged.vqc", "--stages", "1", "-f", "--quiet").err == ""
    result = cli("truncate", "staged.vqc", "--bpp", "0.01", "-o", "-")
    assert result.code == 1 and "0.01 bpp cannot be reached: this file has from 0.1" in result.err
    assert loads == []


def test_truncate_knows_modes(cli) -> None:
    cli("compress", "photo.png", "--mode", "ae")
    result = cli("truncate", "photo.vqc", "--stages", "1")
    assert result.code == 2 and "mode ae have no stages that can be left out" in result.err


def test_compress_some_stages(cli, used) -> None:
    assert cli("compress", "photo.png", "--stages", "2").code == 0
    assert used == [{"quality": 50, "sample": None, "stages": 2}]
    result = cli("compress", "photo.png", "--mode", "ae", "--stages", "2")
    assert result.code == 2 and "files of mode ae have no stages" in result.err


def test_a_cut_file_is_decoded_on_request(cli, staged: bytes) -> None:
    Path("cut.vqc").write_bytes(staged[:-1])
    result = cli("decompress", "cut.vqc")
    assert (result.code, result.err) == (1, "vqcodec: cut.vqc: the file ends in section 3 of 3\n")
    result = cli("decompress", "cut.vqc", "--allow-truncated", "--precise")
    assert result.code == 0
    assert result.err.endswith("vqcodec: cut.vqc: the file ends in section 3 of 3\n")
    # That something is missing is never silent.
    quiet = cli("decompress", "cut.vqc", "--allow-truncated", "--quiet", "-f")
    assert quiet == Result(0, b"", "vqcodec: cut.vqc: the file ends in section 3 of 3\n")
    whole = cli("decompress", "staged.vqc", "--allow-truncated", "--quiet", "-f")
    assert whole == Result(0, b"", "")


def test_salvage_tells_what_is_lost(cli, staged: bytes) -> None:
    damaged = bytearray(staged)
    damaged[-9] ^= 1
    Path("bad.vqc").write_bytes(damaged)
    assert cli("decompress", "bad.vqc").code == 1
    result = cli("decompress", "bad.vqc", "--allow-truncated")
    assert result.code == 1 and "checksum does not match" in result.err
    result = cli("decompress", "bad.vqc", "--salvage", "--quiet")
    assert result.code == 1
    assert result.err == ("vqcodec: bad.vqc: section 3 of 3 is damaged (its checksum does not match)\n")
    assert pixels_of("bad.png").shape == (50, 100, 3)
    assert cli("decompress", "staged.vqc", "--salvage", "--quiet") == Result(0, b"", "")
    result = cli("decompress", "bad.vqc", "--salvage", "--allow-truncated")
    assert result.code == 2 and "not allowed with" in result.err


def test_notes_are_printed_and_silenced(cli) -> None:
    Image.new("CMYK", (4, 4)).save("print.tif")
    result = cli("compress", "print.tif")
    assert result.err.startswith("note: print.tif: CMYK colours were converted to RGB\nprint.tif")
    assert cli("compress", "print.tif", "-f", "--quiet").err == ""


def test_quiet_still_prints_errors(cli) -> None:
    result = cli("compress", "--quiet", "photo.png", "text.txt")
    assert result.code == 1
    assert re.fullmatch(r"vqcodec: text\.txt: not a picture .*\n", result.err)


def test_failures_do_not_stop_the_others_and_the_model_is_loaded_once(cli, loads) -> None:
    Image.new("RGBA", (3, 3)).save("alpha.png")
    result = cli("compress", "none.png", "photo.png", "text.txt", ".", "alpha.png", "grey.png")
    assert result.code == 1
    lines = result.err.splitlines()
    assert lines[0] == "vqcodec: none.png: No such file or directory"
    assert lines[1].startswith("photo.png -> photo.vqc")
    assert lines[2].startswith("vqcodec: text.txt: not a picture that can be read")
    assert lines[3] == "vqcodec: .: Is a directory"
    assert lines[4].startswith("vqcodec: alpha.png: the picture has transparency")
    assert lines[5].startswith("grey.png -> grey.vqc")
    assert len(lines) == 6
    assert len(loads) == 1


def test_nothing_is_loaded_for_files_that_cannot_be_read(cli, loads) -> None:
    Path("broken.vqc").write_bytes(b"\x8eVQC\x01")
    assert cli("compress", "none.png", "text.txt").code == 1
    assert cli("decompress", "none.vqc", "text.txt", "broken.vqc").code == 1
    assert loads == []


@pytest.mark.parametrize("model", ["missing", "broken"])
def test_model_that_cannot_be_loaded_ends_the_run(cli, loads, model: str) -> None:
    result = cli("compress", "photo.png", "grey.png", "--model", model)
    assert result.code == 3
    assert re.fullmatch(rf"vqcodec: .*{model}.*\n", result.err)
    assert len(loads) == 1


def test_file_of_an_unknown_model(cli) -> None:
    header = Header(mode=0, grey=False, rate=9, width=4, height=4, code_id=FOREIGN_CODE_ID)
    Path("foreign.vqc").write_bytes(write_container(header, []))
    cli("compress", "photo.png")
    result = cli("decompress", "none.vqc", "foreign.vqc", "photo.vqc")
    assert result.code == 3
    assert "vqcodec: foreign.vqc: the file needs another model\n" in result.err
    assert os.path.exists("photo.vqc.png")


def test_unexpected_errors_are_one_line(cli) -> None:
    result = cli("compress", "photo.png", "-q", "99")
    assert result.code == 1
    assert result.err == "vqcodec: photo.png: unexpected RuntimeError: kernel on fire\n"
    assert not os.path.exists("photo.vqc")


def test_interrupt(cli) -> None:
    result = cli("compress", "photo.png", "grey.png", "-q", "98")
    assert (result.code, result.err) == (130, "vqcodec: interrupted\n")
    assert not list(Path().glob("*.vqc"))


def test_output_that_cannot_be_written(cli) -> None:
    result = cli("compress", "photo.png", "-o", "nowhere/photo.vqc")
    assert result.code == 1
    assert re.fullmatch(r"vqcodec: photo\.png: cannot write nowhere/photo\.vqc: .*\n", result.err)
    cli("compress", "photo.png")
    Image.new("L", (20000, 1)).save("wide.png")
    cli("compress", "wide.png")
    result = cli("decompress", "wide.vqc", "-o", "wide.webp")
    assert result.code == 1
    assert "vqcodec: wide.vqc: the picture cannot be written as WEBP" in result.err
    assert not os.path.exists("wide.webp")


# --- modes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_through_compress_and_decompress(cli, loads, used, mode: str) -> None:
    result = cli("compress", "photo.png", "--mode", mode)
    assert (result.code, result.out) == (0, b"")
    assert re.fullmatch(r"photo\.png -> photo\.vqc  \d+ bytes  \d+\.\d{3} bpp  \d+\.\d\d s\n", result.err)
    assert MODE_NAMES[read_container(Path("photo.vqc").read_bytes())[0].mode] == mode
    assert cli("decompress", "photo.vqc").code == 0
    np.testing.assert_array_equal(pixels_of("photo.vqc.png"), COLOURS)
    # The file says by its code id and mode which model it needs, and nothing else decides.
    assert [load["mode"] for load in loads] == [mode, mode]
    assert used == [{"quality": 50, "sample": None, "stages": None}]


def test_sample_reaches_the_codec(cli, loads, used) -> None:
    assert cli("compress", "photo.png", "--mode", "vae", "--sample", "0").code == 0
    assert cli("compress", "-f", "photo.png", "--model", "m", "--sample", str(2**63 - 1)).code == 0
    assert [call["sample"] for call in used] == [0, 2**63 - 1]
    # Where only a model is named, it must turn out to have a posterior.
    assert [load["mode"] for load in loads] == ["vae", None]


def generated(seed: int, count: int, size: tuple[int, int]) -> list[np.ndarray]:
    """What the stand-in codec generates."""
    return [
        np.asarray(image)
        for image in FakeCodec("vae", []).generate(count, seed=seed, width=size[0], height=size[1])
    ]


def test_generate_digits(cli, loads) -> None:
    result = cli(
        "generate", "--mode", "cvae", "--label", "3", "-n", "2", "--size", "16x24", "--seed", "5"
    )
    assert result.code == 0 and not loads
    sheet = pixels_of("generated-cvae-3-5.png")
    drawn = draw_digits(3, 2, seed=5)
    enlarged = drawn.repeat(3, axis=1).repeat(2, axis=2)
    assert sheet.shape[:2] == (24, 2 * 16 + 4)
    for number, digit in enumerate(enlarged):
        part = sheet[:, 20 * number : 20 * number + 16].reshape(24, 16, -1)
        np.testing.assert_array_equal(part, np.broadcast_to(digit[..., None], part.shape))
    other = ("generate", "--mode", "cvae", "--label", "4", "-n", "2", "--size", "16x24", "--seed", "5")
    assert cli(*other).code == 0
    assert not np.array_equal(pixels_of("generated-cvae-4-5.png"), sheet)


@pytest.mark.parametrize("mode", DRAWN_MODES)
def test_generate_a_sheet(cli, loads, used, mode: str) -> None:
    result = cli("generate", "--mode", mode)
    assert (result.code, result.out) == (0, b"")
    name = f"generated-{mode}-0.png"
    pattern = rf"{mode}, seed 0 -> {name}  16 pictures of 256 x 256  \d+\.\d\d s\n"
    assert re.fullmatch(pattern, result.err)
    assert loads == [{"model": None, "device": None, "mode": mode}]
    assert used == [{"count": 16, "seed": 0, "width": 256, "height": 256}]
    sheet = pixels_of(name)
    assert sheet.shape == (4 * 256 + 3 * 4, 4 * 256 + 3 * 4, 3)
    for n, picture in enumerate(generated(0, 16, (256, 256))):
        top, left = (260 * i for i in divmod(n, 4))
        np.testing.assert_array_equal(sheet[top : top + 256, left : left + 256], picture)


def test_generate_options(cli, loads, used) -> None:
    line = "--mode vae -n 5 --seed 7 --size 30x20 --model m --device cuda:1 -o a.webp --quiet"
    assert cli("generate", *line.split()) == Result(0, b"", "")
    assert loads == [{"model": "m", "device": "cuda:1", "mode": "vae"}]
    assert used == [{"count": 5, "seed": 7, "width": 30, "height": 20}]
    assert pixels_of("a.webp").shape == (44, 98, 3)
    # Nothing is computed for a file that may not be written.
    result = cli("generate", *line.split())
    assert (result.code, result.err) == (1, "vqcodec: a.webp exists already; -f replaces it\n")
    assert len(used) == 1
    assert cli("generate", *line.split(), "-f").code == 0


def test_generate_into_a_directory(cli, used) -> None:
    os.mkdir("out")
    result = cli("generate", *"--mode vae -n 3 --seed 12 --size 2x3 -o out".split())
    assert result.code == 0
    assert re.fullmatch(r"vae, seed 12 -> out  3 pictures of 2 x 3  \d+\.\d\d s\n", result.err)
    assert sorted(os.listdir("out")) == ["vae-12-00.png", "vae-12-01.png", "vae-12-02.png"]
    for n, picture in enumerate(generated(12, 3, (2, 3))):
        np.testing.assert_array_equal(pixels_of(f"out/vae-12-0{n}.png"), picture)
    result = cli("generate", *"--mode vae -n 4 --seed 12 --size 2x3 -o out".split())
    assert result.err == "vqcodec: out/vae-12-00.png exists already; -f replaces it\n"
    assert len(os.listdir("out")) == 3 and len(used) == 1
    assert cli("generate", *"--mode vae -n 101 --seed 12 --size 2x3 -o out".split()).code == 0
    assert {"vae-12-000.png", "vae-12-100.png"} <= set(os.listdir("out"))


def test_generate_to_standard_output(cli) -> None:
    result = cli("generate", *"--mode dvae -n 1 --size 9x5 -o -".split())
    np.testing.assert_array_equal(pixels_of(result.out), generated(0, 1, (9, 5))[0])
    assert re.match(r"dvae, seed 0 -> -  1 picture of 9 x 5  ", result.err)


def test_the_largest_that_may_be_generated(cli) -> None:
    # 64 x 64 x 16 x 16 pixels, once padded: the limit of the stand-in. 65 are too many (see USAGE).
    assert cli("generate", *"--mode vae -n 64 --size 1x1010".split()).code == 0


def test_interpolate_to_a_strip(cli, loads, used) -> None:
    Image.fromarray(255 - COLOURS).save("other.png")
    os.mkdir("sub")
    os.rename("photo.png", "sub/photo.png")
    result = cli("interpolate", "sub/photo.png", "other.png", "--mode", "ae", "-n", "3")
    assert (result.code, result.out) == (0, b"")
    pattern = r"sub/photo\.png, other\.png -> sub/photo-other\.png  3 pictures of 8 x 6  \d+\.\d\d s\n"
    assert re.fullmatch(pattern, result.err)
    assert loads == [{"model": None, "device": None, "mode": "ae"}]
    strip = pixels_of("sub/photo-other.png")
    assert strip.shape == (6, 3 * 8 + 2 * 4, 3)
    np.testing.assert_array_equal(strip[:, :8], COLOURS)
    np.testing.assert_array_equal(strip[:, 12:20], np.full_like(COLOURS, 127))
    np.testing.assert_array_equal(strip[:, 24:], 255 - COLOURS)
    assert (strip[:, 8:12] == 255).all()


def test_interpolate_default_count_and_grey(cli, used) -> None:
    Image.fromarray(255 - GREYS).save("other.png")
    assert cli("interpolate", "grey.png", "other.png", "--mode", "vq").code == 0
    assert used == [{"count": 9}]
    assert pixels_of("grey-other.png").shape == (6, 9 * 8 + 8 * 4)
    assert cli("interpolate", "grey.png", "photo.png", "--mode", "vq").code == 0
    assert pixels_of("grey-photo.png").ndim == 3


def test_interpolate_into_a_directory(cli) -> None:
    os.mkdir("out")
    result = cli("interpolate", *"photo.png grey.png --mode vae -n 2 -o out --quiet".split())
    assert result == Result(0, b"", "")
    assert sorted(os.listdir("out")) == ["photo-grey-00.png", "photo-grey-01.png"]
    np.testing.assert_array_equal(pixels_of("out/photo-grey-00.png"), COLOURS)


def test_interpolate_streams(cli) -> None:
    picture = Path("photo.png").read_bytes()
    result = cli("interpolate", "-", "grey.png", "--mode", "vae", "-n", "2", stdin=picture)
    np.testing.assert_array_equal(pixels_of(result.out)[:, :8], COLOURS)
    assert cli("interpolate", "grey.png", "photo.png", "--mode", "vae", "-o", "-").out[:4] == b"\x89PNG"


def test_interpolate_does_not_replace_its_inputs(cli, used) -> None:
    before = {name: Path(name).read_bytes() for name in ("photo.png", "grey.png")}
    for output in before:
        result = cli("interpolate", "photo.png", "grey.png", "--mode", "vae", "-f", "-o", output)
        assert (result.code, result.err) == (1, f"vqcodec: the output {output} would replace the input\n")
        assert Path(output).read_bytes() == before[output]
    assert used == []


def test_interpolate_between_unequal_pictures(cli, loads) -> None:
    Image.new("RGB", (6, 8)).save("tall.png")
    result = cli("interpolate", "photo.png", "tall.png", "--mode", "vae")
    assert result.code == 1
    assert result.err == (
        "vqcodec: the pictures must have one size, but photo.png has 8 x 6 and tall.png 6 x 8\n"
    )
    assert loads == []


def test_interpolate_names_each_file_that_fails(cli, loads) -> None:
    result = cli("interpolate", "none.png", "text.txt", "--mode", "vae")
    assert result.code == 1
    first, second = result.err.splitlines()
    assert first == "vqcodec: none.png: No such file or directory"
    assert second.startswith("vqcodec: text.txt: not a picture that can be read")
    assert cli("interpolate", "photo.png", "none.png", "--mode", "vae").code == 1
    assert loads == []


def test_interpolate_at_most_so_many_pixels(cli) -> None:
    Image.new("L", (500, 500)).save("large.png")
    result = cli("interpolate", "large.png", "large.png", "--mode", "vae", "-n", "5")
    assert (result.code, result.out) == (1, b"")
    assert "5 pictures of 500 x 500 are more than the limit of 1,048,576 pixels" in result.err
    assert cli("interpolate", "large.png", "large.png", "--mode", "vae", "-n", "4").code == 0


# --- compare -------------------------------------------------------------------------------


@pytest.fixture
def compared(monkeypatch) -> list[dict[str, object]]:
    """Put a stand-in for the comparison in place; the list receives its arguments."""
    calls: list[dict[str, object]] = []

    def compare_pictures(pictures, *, progress=None, **options: object) -> str:
        calls.append({"pictures": [(name, p.pixels.shape) for name, p in pictures], **options})
        if progress is not None:
            progress("vae: loading")
        return "comparison"

    comparison = types.ModuleType("vqcodec.comparison")
    comparison.compare_pictures = compare_pictures  # type: ignore[attr-defined]
    comparison.format_table = lambda found: f"table of the {found}\n\u03bc"  # type: ignore[attr-defined]
    comparison.to_json = lambda found: {"schema": 1, "of": found}  # type: ignore[attr-defined]
    report = types.ModuleType("vqcodec.report")
    report.render_report = lambda found: f"<p>{found} \u03bc</p>"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vqcodec.comparison", comparison)
    monkeypatch.setitem(sys.modules, "vqcodec.report", report)
    return calls


def test_compare_prints_a_table(cli, compared) -> None:
    result = cli("compare", "photo.png", "grey.png")
    assert result.code == 0
    assert result.out.decode() == "table of the comparison\n\u03bc\n"
    assert result.err == "vae: loading\n"
    shapes = [("photo.png", (6, 8, 3)), ("grey.png", (6, 8, 3))]
    assert compared == [{"pictures": shapes, "device": "cpu"}]
    assert sorted(os.listdir()) == ["grey.png", "photo.png", "text.txt"]


def test_compare_options(cli, compared) -> None:
    line = "photo.png --modes vae,ae --qualities 90,10 --device cuda:1 --json --quiet"
    result = cli("compare", *line.split())
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == {"schema": 1, "of": "comparison"}
    (call,) = compared
    assert (call["modes"], call["qualities"], call["device"]) == (("vae", "ae"), (90, 10), "cuda:1")


def test_compare_writes_a_report(cli, compared) -> None:
    result = cli("compare", "photo.png", "-o", "r.html")
    assert result.code == 0
    assert result.out.startswith(b"table of")
    assert re.search(r"^photo\.png -> r\.html  20 bytes  \d+\.\d\d s$", result.err, re.M)
    assert Path("r.html").read_text("utf-8") == "<p>comparison \u03bc</p>"
    result = cli("compare", "photo.png", "-o", "r.html")
    assert (result.code, result.out) == (1, b"")
    assert result.err == "vqcodec: r.html exists already; -f replaces it\n"
    assert len(compared) == 1
    assert cli("compare", "photo.png", "-o", "r.html", "-f").code == 0
    assert cli("compare", "photo.png", "-o", ".", "--quiet").err == ""
    assert os.path.exists("report.html")


def test_compare_does_not_replace_its_inputs(cli, compared) -> None:
    before = Path("grey.png").read_bytes()
    result = cli("compare", "photo.png", "grey.png", "-f", "-o", "grey.png")
    assert (result.code, compared) == (1, [])
    assert "would replace the input" in result.err
    assert Path("grey.png").read_bytes() == before


def test_compare_goes_on_without_a_file_that_fails(cli, compared) -> None:
    result = cli("compare", "none.png", "photo.png")
    assert result.code == 1
    assert result.err.startswith("vqcodec: none.png: No such file or directory\n")
    assert result.out.startswith(b"table of")
    assert [name for name, _ in compared[0]["pictures"]] == ["photo.png"]
    assert cli("compare", "none.png", "text.txt").out == b""
    assert len(compared) == 1


def test_compare_on_a_device_that_is_not_there(cli, compared) -> None:
    result = cli("compare", "photo.png", "--device", "cuda:7")
    assert result == Result(2, b"", "vqcodec: there is no device cuda:7\n")
    assert compared == []


def test_compare_takes_standard_input(cli, compared) -> None:
    result = cli("compare", "-", stdin=Path("photo.png").read_bytes())
    assert result.code == 0
    assert compared[0]["pictures"] == [("-", (6, 8, 3))]


# --- info and verify -----------------------------------------------------------------------


def sample_file() -> bytes:
    """A file with two stages and an optional section of a type unknown so far."""
    header = Header(mode=0, grey=True, rate=40, width=300, height=200, code_id=0xAB)
    sections = [stage_section(0, b"x" * 2000), stage_section(3, b""), Section(0x05, False, b"abc")]
    return write_container(header, sections)


def test_info_text(cli) -> None:
    Path("a.vqc").write_bytes(sample_file())
    result = cli("info", "a.vqc", "-", stdin=sample_file())
    assert (result.code, result.err) == (0, "")
    text = (
        "  300 x 200 grey, 2,046 bytes, 0.273 bpp\n"
        "  container version 1, mode vq, rate 40, code_id 000000ab\n"
        "  stage 0: 2,000 bytes\n"
        "  stage 3: 0 bytes\n"
        "  section 0x05, unknown and optional: 3 bytes\n"
    )
    assert result.out.decode() == f"a.vqc\n{text}-\n{text}"


def test_info_names_the_sections_of_the_uniform_modes(cli) -> None:
    header = Header(mode=2, grey=False, rate=40, width=10, height=10, code_id=1)
    sections = [stage_section(0, b"x" * 9), Section(0x05, False, b""), stage_section(1, b"y")]
    Path("a.vqc").write_bytes(write_container(header, sections))
    lines = cli("info", "a.vqc").out.decode().splitlines()
    assert lines[2] == "  container version 1, mode vae, rate 40, code_id 00000001"
    assert lines[3:] == [
        "  symbols: 9 bytes",
        "  section 0x05, unknown and optional: 0 bytes",
        "  escapes: 1 bytes",
    ]
    found = json.loads(cli("info", "--json", "a.vqc").out)
    assert (found["schema"], found["mode"]) == (1, "vae")
    assert [(s["stage"], s["name"]) for s in found["sections"]] == [
        (0, "symbols"), (None, None), (1, "escapes"),
    ]  # fmt: skip


def test_info_json(cli) -> None:
    Path("a.vqc").write_bytes(sample_file())
    result = cli("info", "--json", "a.vqc", "none.vqc", "a.vqc")
    assert result.code == 1
    assert result.err == "vqcodec: none.vqc: No such file or directory\n"
    first, second = result.out.decode().splitlines()
    assert first == second
    assert json.loads(first) == {
        "schema": 1,
        "file": "a.vqc",
        "bytes": 2046,
        "version": 1,
        "mode": "vq",
        "width": 300,
        "height": 200,
        "grey": True,
        "rate": 40,
        "code_id": "000000ab",
        "bpp": 2046 * 8 / 60000,
        "sections": [
            {"type": 16, "stage": 0, "name": "stage 0", "critical": True, "bytes": 2000},
            {"type": 19, "stage": 3, "name": "stage 3", "critical": True, "bytes": 0},
            {"type": 5, "stage": None, "name": None, "critical": False, "bytes": 3},
        ],
    }


def test_verify(cli) -> None:
    Path("good.vqc").write_bytes(sample_file())
    damaged = bytearray(sample_file())
    damaged[100] ^= 1
    Path("damaged.vqc").write_bytes(damaged)
    Path("short.vqc").write_bytes(sample_file()[:-1])
    # 40 x 1 tiles need 39 lengths, which this stage has not.
    header = Header(mode=0, grey=True, rate=40, width=40 * 1024, height=1, code_id=0xAB)
    Path("tiles.vqc").write_bytes(write_container(header, [stage_section(0, b"abc")]))
    assert cli("verify", "--quiet", "good.vqc") == Result(0, b"", "")
    result = cli("verify", "damaged.vqc", "short.vqc", "tiles.vqc", "text.txt", "good.vqc")
    assert (result.code, result.out) == (1, b"")
    for line, pattern in zip(
        result.err.splitlines(),
        [
            r"vqcodec: damaged\.vqc: .*checksum",
            r"vqcodec: short\.vqc: the file ends",
            r"vqcodec: tiles\.vqc: .*cannot hold 40 tiles",
            r"vqcodec: text\.txt: not a \.vqc file",
            r"good\.vqc: undamaged  2 stages  2,046 bytes",
        ],
        strict=True,
    ):
        assert re.match(pattern, line)


# --- train ---------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch) -> list[dict[str, object]]:
    """Put a stand-in for training in place; the list receives its arguments."""
    calls: list[dict[str, object]] = []

    def train_model(**options: object) -> None:
        calls.append(options)
        if options["preset"] == "huge":
            raise ValueError("there is no preset huge")
        if options["init"] == "missing":
            raise UnknownModelError("there is no model missing")

    module = types.ModuleType("vqcodec.train")
    module.train_model = train_model  # type: ignore[attr-defined]
    module.train_models = lambda **options: calls.append(options)  # type: ignore[attr-defined]
    module.ObjectiveConfig = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vqcodec.train", module)
    return calls


def test_train_defaults(cli, trained) -> None:
    assert cli("train", "--data", ".", "--out", "m.safetensors").code == 0
    assert trained == [
        {
            "data": Path("."),
            "out": Path("m.safetensors"),
            "minutes": None,
            "steps": None,
            "resume": False,
            "init": None,
            "phases": None,
            "device": "auto",
            "seed": 0,
            "preset": "default",
            "mode": None,
            "objective": None,
        }
    ]


def test_train_options(cli, trained) -> None:
    line = (
        "--minutes 2.5 --resume --init a --phases one,two --device cpu --seed 4 --preset tiny --mode vae"
    )
    assert cli("train", "--data", ".", "--out", "m", *line.split()).code == 0
    assert cli("train", "--data", ".", "--out", "m", "--steps", "7").code == 0
    assert trained[0]["minutes"] == 2.5
    assert trained[0]["resume"] is True
    assert trained[0]["init"] == "a"
    assert trained[0]["phases"] == ("one", "two")
    assert trained[0]["device"] == "cpu"
    assert trained[0]["seed"] == 4
    assert trained[0]["preset"] == "tiny"
    assert trained[0]["mode"] == "vae"
    assert trained[1]["steps"] == 7


def test_train_losses_and_several_modes(cli, trained) -> None:
    losses = "--weight 4 --noise 2.5 --reconstruction mae --codebook gradient"
    assert cli("train", "--data", ".", "--out", "d", "--mode", "ae,vae", *losses.split()).code == 0
    (options,) = trained
    assert options["modes"] == ("ae", "vae") and options["out"] == Path("d")
    assert options["objective"] == {
        "weight": 4.0,
        "noise": 2.5,
        "reconstruction": "mae",
        "codebook": "gradient",
    }


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--data none", 1, "vqcodec: none: not a directory\n"),
        ("--data . --preset huge", 2, "vqcodec: there is no preset huge\n"),
        ("--data . --init missing", 3, "vqcodec: there is no model missing\n"),
    ],
)
def test_train_errors(cli, trained, options: str, code: int, message: str) -> None:
    assert cli("train", "--out", "m", *options.split()) == Result(code, b"", message)


# --- with real models ----------------------------------------------------------------------


@pytest.fixture
def real_cli(tmp_path, monkeypatch, capsysbinary, mode_models: Path) -> Callable[..., Result]:
    """Run the command line in an empty folder with two pictures, with no stand-in at all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VQCODEC_MODELS", str(mode_models))
    Image.fromarray(smooth_picture(37, 50)).save("photo.png")
    Image.fromarray(smooth_picture(37, 50)[:, :, 0]).save("grey.png")

    def run(line: str) -> Result:
        try:
            code = main(line.split())
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsysbinary.readouterr()
        return Result(code, out, err.decode())

    return run


@pytest.mark.parametrize("mode", MODES)
def test_round_trip_of_every_mode(real_cli, mode_models: Path, mode: str) -> None:
    model = mode_models / f"{mode}.safetensors"
    assert real_cli(f"compress photo.png grey.png --model {model} --mode {mode} -q 100").code == 0
    assert f"mode {mode}," in real_cli("info photo.vqc").out.decode()
    assert "photo.vqc: undamaged" in real_cli("verify photo.vqc").err
    os.mkdir("back")
    # Without --model: the code id in the file finds it.
    assert real_cli("decompress photo.vqc grey.vqc -o back").code == 0
    colour = smooth_picture(37, 50)
    # These models have seen a few steps only; that is enough for more than noise or a flat grey.
    assert np.mean((pixels_of("back/photo.png").astype(float) - colour) ** 2) < 0.5 * colour.var()
    assert pixels_of("back/grey.png").shape == (37, 50)
    assert real_cli(f"decompress photo.vqc -f -o again.png --model {model}").code == 0
    np.testing.assert_array_equal(pixels_of("again.png"), pixels_of("back/photo.png"))


def test_sample_changes_the_file_and_a_seed_fixes_it(real_cli) -> None:
    command = "compress photo.png --quiet -q 100 --model vae"
    for options in ("-o mean.vqc", "--sample 1 -o a.vqc", "--sample 1 -o b.vqc", "--sample 2 -o c.vqc"):
        assert real_cli(f"{command} {options}") == Result(0, b"", "")
    mean, a, b, c = (Path(f"{name}.vqc").read_bytes() for name in ("mean", "a", "b", "c"))
    assert a == b and len({mean, a, c}) == 3
    result = real_cli("compress photo.png --sample 1 --model ae")
    assert (result.code, os.path.exists("photo.vqc")) == (2, False)
    assert "only vae and hvae have a posterior" in result.err


@pytest.mark.parametrize("mode", DRAWN_MODES)
def test_generate_from_a_model(real_cli, mode: str) -> None:
    command = f"generate --mode {mode} --model {mode} -n 3 --size 50x21 --quiet"
    for options in ("-o a.png", "-o b.png", "--seed 1 -o c.png"):
        assert real_cli(f"{command} {options}") == Result(0, b"", "")
    a, b, c = (pixels_of(f"{name}.png") for name in ("a", "b", "c"))
    assert a.shape == (2 * 21 + 4, 2 * 50 + 4, 3)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    result = real_cli(f"{command} --model vq")
    assert result.code == 2
    assert f"of mode vq, not {mode}" in result.err


@pytest.mark.parametrize("mode", MODES)
def test_interpolate_ends_with_what_decompress_gives(real_cli, mode: str) -> None:
    Image.fromarray(smooth_picture(37, 50)[::-1]).save("turned.png")
    os.mkdir("line")
    result = real_cli(f"interpolate photo.png turned.png --mode {mode} --model {mode} -n 4 -o line")
    assert result.code == 0
    frames = [pixels_of(f"line/photo-turned-0{n}.png") for n in range(4)]
    assert real_cli(f"compress photo.png turned.png --model {mode} -q 100 --effort 1").code == 0
    assert real_cli("decompress photo.vqc turned.vqc -o line").code == 0
    np.testing.assert_array_equal(frames[0], pixels_of("line/photo.png"))
    np.testing.assert_array_equal(frames[-1], pixels_of("line/turned.png"))


def test_compare_models(real_cli) -> None:
    command = "compare photo.png --modes vae,ae --qualities 90,10"
    result = real_cli(f"{command} -o report.html")
    assert result.code == 0
    assert re.search(r"^vae +90 ", result.out.decode(), re.M)
    assert "photo.png -> report.html  " in result.err
    assert Path("report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    result = real_cli(f"{command} --json --quiet")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert [r["mode"] for r in found["results"]] == ["ae", "vae"]
    assert [p["quality"] for p in found["results"][0]["points"]] == [10, 90]


# --- as a process --------------------------------------------------------------------------


def process_options(folder: Path) -> dict[str, object]:
    """A process that imports the same vqcodec as these tests, with `folder` as its own."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    # Buffered as a user's process is: a closed pipe is noticed when the buffer is written.
    return {"cwd": folder, "env": os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": ""}}


def vqcodec(folder: Path, *argv: str, stdin: bytes = b"") -> Result:
    """Run `python -m vqcodec` in `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "vqcodec", *argv],
        input=stdin,
        capture_output=True,
        timeout=120,
        **process_options(folder),
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())


def test_light_commands_import_nothing_heavy(tmp_path) -> None:
    (tmp_path / "a.vqc").write_bytes(sample_file())
    script = """
import contextlib, sys
from vqcodec.cli import main
for line in [
    "--help", "--version", "info a.vqc", "info --json a.vqc", "verify a.vqc", "compress --help",
    "generate --help", "interpolate --help", "compare --help", "generate --mode ae",
    "compress none.png --mode ae --sample 1", "compare none.png --modes gan",
]:
    with contextlib.suppress(SystemExit):
        assert main(line.split()) == 0, line
print(*sorted({"torch", "numpy", "PIL", "triton", "constriction"} & set(sys.modules)), "|")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, **process_options(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "|"


def test_version(tmp_path) -> None:
    result = vqcodec(tmp_path, "--version", "-v")
    assert (result.code, result.err) == (0, "")
    lines = result.out.decode().splitlines()
    assert re.fullmatch(r"vqcodec \d+\.\d+\S*", lines[0])
    assert re.fullmatch(r"native kernels: (no|no \(.*\)|yes \(.+\))", lines[1])
    names = ["python", "torch", "triton", "numpy", "constriction", "safetensors", "pillow"]
    assert [line.split()[0] for line in lines[2:]] == names
    assert re.search(r"^numpy \d", "\n".join(lines), re.M)


@pytest.mark.parametrize("argv", [["--help"], ["info", "a.vqc"]], ids=" ".join)
def test_closed_pipe_is_no_error_message(tmp_path, argv: list[str]) -> None:
    (tmp_path / "a.vqc").write_bytes(sample_file())
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "vqcodec", *argv],
            stdout=writer,
            stderr=subprocess.PIPE,
            **process_options(tmp_path),
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(os.name != "posix", reason="terminals and signals of POSIX")
def test_no_data_to_a_terminal(tmp_path) -> None:
    import pty

    terminal, end = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "vqcodec", "compress", "-"],
            input=b"",
            stdout=end,
            stderr=subprocess.PIPE,
            **process_options(tmp_path),
        )
    finally:
        os.close(end)
        os.close(terminal)
    assert done.returncode == 2
    assert b"data is not written to a terminal" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="terminals and signals of POSIX")
def test_interrupt_signal(tmp_path) -> None:
    (tmp_path / "a.vqc").write_bytes(sample_file())
    with subprocess.Popen(
        [sys.executable, "-m", "vqcodec", "verify", "a.vqc", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Tests that run in the background of a script have inherited that it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **process_options(tmp_path),
    ) as process:
        assert process.stderr is not None
        # The first file is done, so the process waits for standard input now.
        assert process.stderr.readline().startswith(b"a.vqc: undamaged")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"vqcodec: interrupted\n"
        assert process.wait() == 130


def smooth_picture(height: int, width: int) -> np.ndarray:
    """A colour picture with soft shades, which any codec should keep well."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    shades = [np.sin(3 * rows + phase) * np.cos(2 * columns - phase) for phase in (0, 1, 2)]
    return np.round(128 + 90 * np.stack(shades, axis=2)).astype(np.uint8)


def psnr(left: np.ndarray, right: np.ndarray) -> float:
    """PSNR in dB of two uint8 arrays of one shape."""
    error = np.mean((left.astype(float) - right) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def test_round_trip_with_the_default_model(tmp_path) -> None:
    colour = smooth_picture(75, 101)
    Image.fromarray(colour).save(tmp_path / "photo.png")
    Image.fromarray(colour[:, :, 0]).save(tmp_path / "grey.png")
    Image.new("RGBA", (3, 3)).save(tmp_path / "alpha.png")
    (tmp_path / "back").mkdir()

    result = vqcodec(tmp_path, "compress", "photo.png", "alpha.png", "grey.png")
    assert result.code == 1
    assert result.out == b""
    lines = result.err.splitlines()
    assert re.fullmatch(r"photo\.png -> photo\.vqc  [\d,]+ bytes  \d+\.\d{3} bpp  \d+\.\d\d s", lines[0])
    assert lines[1].startswith("vqcodec: alpha.png: the picture has transparency")
    assert lines[2].startswith("grey.png -> grey.vqc")
    assert len(lines) == 3

    source = (tmp_path / "photo.png").read_bytes()
    result = vqcodec(tmp_path, "compress", "-q", "50", "-", stdin=source)
    assert result.code == 0
    assert result.out == (tmp_path / "photo.vqc").read_bytes()

    damaged = bytearray(result.out)
    damaged[-1] ^= 0x55
    (tmp_path / "damaged.vqc").write_bytes(damaged)
    files = ["photo.vqc", "damaged.vqc", "grey.vqc"]
    result = vqcodec(tmp_path, "decompress", *files, "-o", "back")
    assert result.code == 1
    assert re.search(r"^vqcodec: damaged\.vqc: ", result.err, re.M)
    assert sorted(os.listdir(tmp_path / "back")) == ["grey.png", "photo.png"]
    back = pixels_of(str(tmp_path / "back/photo.png"))
    assert back.shape == colour.shape
    assert psnr(back, colour) > 28
    back = pixels_of(str(tmp_path / "back/grey.png"))
    assert back.shape == colour.shape[:2]
    assert psnr(back, colour[:, :, 0]) > 28


def test_missing_model_as_a_process(tmp_path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "photo.png")
    result = vqcodec(tmp_path, "compress", "photo.png", "--model", "no-such-model")
    assert result.code == 3
    assert re.fullmatch(r"vqcodec: .*no-such-model.*\n", result.err)
    assert os.listdir(tmp_path) == ["photo.png"]


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        ({}, {"GOMP_SPINCOUNT": "10000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_threads_do_not_spin_for_long_unless_told_to(
    chosen: dict[str, str], left: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        # Set first, so that what the command sets is taken back as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert main(["--version"]) == 0
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    assert {name: os.environ[name] for name in names if name in os.environ} == left
