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

from vqcodec.cli import main
from vqcodec.container import (
    Header,
    Section,
    read_container,
    stage_payloads,
    stage_section,
    write_container,
)
from vqcodec.errors import ModelFileError, TooLargeError, UnknownModelError

COLOURS = np.random.default_rng(11).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREYS = COLOURS[:, :, 1].copy()
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

    calls: list[object]

    def compress(self, image: np.ndarray, *, quality: int = 50) -> bytes:
        self.calls.append(quality)
        if quality == 99:
            raise RuntimeError("kernel on fire")
        if quality == 98:
            raise KeyboardInterrupt
        header = Header(
            mode=0,
            grey=image.ndim == 2,
            rate=quality,
            width=image.shape[1],
            height=image.shape[0],
            code_id=0x12345678,
        )
        return write_container(header, [stage_section(0, zlib.compress(image.tobytes()))])

    def decompress(self, data: bytes, *, max_pixels: int = 10**6) -> Image.Image:
        header, sections = read_container(data)
        if header.code_id == FOREIGN_CODE_ID:
            raise UnknownModelError("the file needs another model")
        if header.width * header.height > max_pixels:
            raise TooLargeError(f"more than {max_pixels} pixels")
        shape = (header.height, header.width) if header.grey else (header.height, header.width, 3)
        pixels = zlib.decompress(stage_payloads(sections)[0])
        return Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(shape))


@pytest.fixture
def loads(monkeypatch) -> list[dict[str, object]]:
    """Put the stand-in codec in place; the list receives the arguments of every load."""
    calls: list[dict[str, object]] = []

    def load_codec(
        model: str | None = None, device: str | None = None, *, code_id: int | None = None
    ) -> FakeCodec:
        calls.append({"model": model, "device": device})
        if model == "missing":
            raise UnknownModelError("there is no model named missing")
        if model == "broken":
            raise ModelFileError("broken is not a weights file")
        if device == "cuda:7":
            raise ValueError("there is no device cuda:7")
        return FakeCodec([])

    module = types.ModuleType("vqcodec.codec")
    module.load_codec = load_codec  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vqcodec.codec", module)
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
    ("train --out m.safetensors", "required: --data"),
    ("train --data . --out m --minutes 1 --steps 2", "not allowed with"),
    ("train --data . --out m --minutes 0", "must be a number above 0"),
    ("train --data . --out m --minutes nan", "must be a number above 0"),
    ("train --data . --out m --steps 0", "must be at least 1"),
    ("train --data . --out m --phases a,,b", "not a list of names"),
    ("train --data . --out m --seed -1", "must be from 0"),
]


@pytest.mark.parametrize(("line", "message"), USAGE, ids=[line or "none" for line, _ in USAGE])
def test_wrong_usage(cli, line: str, message: str) -> None:
    before = sorted(os.listdir())
    result = cli(*line.split())
    assert result.code == 2
    assert re.search(message, result.err)
    assert result.out == b""
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("command", ["", "compress", "decompress", "info", "verify", "train"])
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
    assert loads == [{"model": None, "device": None}] * 2


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
    assert loads == [{"model": "small", "device": "cuda:1"}]
    assert read_container(Path("photo.vqc").read_bytes())[0].rate == 73
    result = cli("decompress", "photo.vqc", "--max-pixels", "47")
    assert result.code == 1
    assert result.err == "vqcodec: photo.vqc: more than 47 pixels\n"
    assert cli("decompress", "photo.vqc", "--max-pixels", "48").code == 0


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
            {"type": 16, "stage": 0, "critical": True, "bytes": 2000},
            {"type": 19, "stage": 3, "critical": True, "bytes": 0},
            {"type": 5, "stage": None, "critical": False, "bytes": 3},
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
        }
    ]


def test_train_options(cli, trained) -> None:
    line = "--minutes 2.5 --resume --init a --phases one,two --device cpu --seed 4 --preset tiny"
    assert cli("train", "--data", ".", "--out", "m", *line.split()).code == 0
    assert cli("train", "--data", ".", "--out", "m", "--steps", "7").code == 0
    assert trained[0]["minutes"] == 2.5
    assert trained[0]["resume"] is True
    assert trained[0]["init"] == "a"
    assert trained[0]["phases"] == ("one", "two")
    assert trained[0]["device"] == "cpu"
    assert trained[0]["seed"] == 4
    assert trained[0]["preset"] == "tiny"
    assert trained[1]["steps"] == 7


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
for line in ["--help", "--version", "info a.vqc", "info --json a.vqc", "verify a.vqc"]:
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
