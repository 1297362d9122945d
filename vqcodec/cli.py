"""The `vqcodec` command: a thin layer over the Python interface.

Purpose: files and streams in, files and streams out, one line for each; what is decided here is
only where results go, what is printed and what the exit code is.

Layout: `main`; the parser and the types of its options; one function for each command; where
outputs go (`_Outputs`); the loop over files and how errors are put into words.

Invariants
- Standard output carries results that were asked for (data with `-`, `info`, `--version`), and
  nothing else; everything said to a person goes to standard error. `--quiet` silences results and
  notes, never errors.
- Nothing that exists is replaced without `-f`, and never an input by its own output, nor one
  output of a run by another of the same run.
- One file that fails does not stop the others. No traceback is shown, except in Python's
  development mode (`python -X dev -m vqcodec`).
- Exit codes: those of `_EPILOG`; of several failures the highest.
- Starting is quick: NumPy, Pillow and torch are imported by the commands that need them, and
  `info`, `verify`, `--help` and `--version` need none of them.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vqcodec.container import (
    read_container,
    stage_payloads,
    tile_grid,
    unpack_tiles,
)
from vqcodec.errors import ImageError, OutputError, OutputExistsError, VqcError
from vqcodec.files import write_atomically
from vqcodec.inspection import FileInfo, info

if TYPE_CHECKING:
    from PIL import Image

    from vqcodec.codec import Codec

STREAM = "-"
INFO_SCHEMA = 1
"""Version of the objects that `info --json` prints; it rises when a key changes its meaning."""

_SUFFIX = ".vqc"
_PICTURE_SUFFIX = ".png"
# Lossless formats only: a second lossy coding of the decoded picture is never what is wanted.
_PICTURE_FORMATS: dict[str, tuple[str, dict[str, bool]]] = {
    ".png": ("PNG", {}),
    ".ppm": ("PPM", {}),
    ".pgm": ("PPM", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
    ".bmp": ("BMP", {}),
}
_VERSIONED = ("torch", "triton", "numpy", "constriction", "safetensors", "pillow")

_DESCRIPTION = "Compress pictures to .vqc files by vector quantisation, and back."
_EPILOG = """\
'vqcodec COMMAND -h' describes a command. FILE or OUT may be '-' for standard
input or output; after '--' nothing is taken for an option.

exit codes:
  0    everything was done
  1    some file failed (the others were done)
  2    wrong usage
  3    a model is missing or unusable
  130  interrupted
"""


class _Stop(Exception):
    """Ends the command at once, for a reason that no further file would change."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return the exit code.

    As argparse does, wrong usage and `--help` leave by SystemExit (code 2 and 0) instead.
    """
    # A file name that the terminal cannot show must not keep the rest from being printed.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(argv)
        finally:
            # Here and not at the interpreter's end, where a closed pipe could not be caught.
            sys.stdout.flush()
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        _discard_stdout()
        return 1
    except _Stop as stop:
        _complain(str(stop))
        return stop.exit_code
    except Exception as error:
        message, code = _explain(error)
        _complain(message)
        return code


def _run(argv: Sequence[str] | None) -> int:
    parser = _build_parser()
    args = parser.parse_args(argv)
    if args.version:
        _print_version(verbose=args.verbose)
        return 0
    if args.command is None:
        parser.error("a command is needed (see --help)")
    code: int = args.run(args)
    return code


# --- the parser ----------------------------------------------------------------------------


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vqcodec",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="with --version: the parts it runs on too"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, details: str = ""
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {details}".rstrip(),
            allow_abbrev=False,
        )
        sub.set_defaults(run=run, parser=sub)
        return sub

    sub = command(
        "compress",
        _compress,
        "compress pictures to .vqc files",
        "photo.png becomes photo.vqc beside it.",
    )
    _add_files(sub, "picture to compress")
    _add_output(sub, "output file, or an existing directory (default: FILE with suffix .vqc)")
    sub.add_argument(
        "-q",
        "--quality",
        type=_quality,
        default=50,
        metavar="1..100",
        help="from 1 (smallest file) to 100 (best picture), default 50",
    )
    _add_coding(sub)

    sub = command(
        "decompress",
        _decompress,
        "turn .vqc files back into pictures",
        "photo.vqc becomes photo.png beside it, or photo.vqc.png where photo.png exists.",
    )
    _add_files(sub, ".vqc file")
    _add_output(
        sub,
        "output file, or an existing directory; the suffix selects a lossless format: "
        f"{', '.join(_PICTURE_FORMATS)}",
    )
    sub.add_argument(
        "--max-pixels", type=_at_least_one, metavar="N", help="refuse pictures of more pixels"
    )
    _add_coding(sub)

    sub = command("info", _info, "print what .vqc files say about themselves")
    _add_files(sub, ".vqc file")
    sub.add_argument(
        "--json", action="store_true", help="one JSON object a file, each on a line of its own"
    )

    sub = command(
        "verify",
        _verify,
        "check that .vqc files are whole and undamaged",
        "Structure and checksums are checked; nothing is decoded and no model is needed.",
    )
    _add_files(sub, ".vqc file")
    _add_quiet(sub)

    sub = command("train", _train, "train a model on a folder of pictures")
    sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of pictures")
    sub.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="MODEL",
        help="weights file to write (.safetensors); checkpoints are kept beside it",
    )
    length = sub.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_minutes, metavar="N", help="stop after N minutes (default 60)")
    length.add_argument("--steps", type=_at_least_one, metavar="N", help="stop after N steps")
    sub.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    sub.add_argument("--init", metavar="MODEL", help="start from a model, by name or file")
    sub.add_argument("--phases", type=_names, metavar="LIST", help="phases to run, separated by commas")
    sub.add_argument("--preset", default="default", metavar="NAME", help="size of the model")
    sub.add_argument("--seed", type=_seed, default=0, metavar="N", help="random seed, default 0")
    _add_device(sub)
    return parser


def _add_files(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=f"{what}, or - for standard input")


def _add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", metavar="OUT", help=f"{what}; - for standard output")
    parser.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="replace files that exist, write data to a terminal",
    )


def _add_coding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME|PATH", help="model, by name or weights file")
    _add_device(parser)
    _add_quiet(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        type=_device,
        default="auto",
        metavar="DEVICE",
        help="where to compute: auto (the default), cpu, cuda or cuda:N",
    )


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def _integer(text: str, low: int, high: int | None = None) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise argparse.ArgumentTypeError(f"must be {limits}, got {value}")
    return value


def _quality(text: str) -> int:
    return _integer(text, 1, 100)


def _at_least_one(text: str) -> int:
    return _integer(text, 1)


def _seed(text: str) -> int:
    return _integer(text, 0, 2**63 - 1)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names separated by commas")
    return names


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:i, got {text!r}")
    return text


# --- the commands --------------------------------------------------------------------------


def _compress(args: argparse.Namespace) -> int:
    outputs = _Outputs(args)
    codec = _LazyCodec(args)

    def compress_one(source: str) -> None:
        from vqcodec.image import load_picture

        picture = load_picture(_read(source))
        if not args.quiet:
            for note in picture.notes:
                _say(f"note: {source}: {note}")
        target = outputs.target(source, [Path(source).stem + _SUFFIX])
        coder = codec.get()
        started = time.perf_counter()
        pixels = picture.pixels[:, :, 0] if picture.grey else picture.pixels
        data = coder.compress(pixels, quality=args.quality)
        outputs.write(source, target, data)
        if not args.quiet:
            seconds = time.perf_counter() - started
            height, width = pixels.shape[:2]
            _say(
                f"{source} -> {target or STREAM}  {len(data):,} bytes  "
                f"{_bpp(data, width, height):.3f} bpp  {seconds:.2f} s"
            )

    return _each_file(args.files, compress_one)


def _decompress(args: argparse.Namespace) -> int:
    outputs = _Outputs(args)
    if outputs.file is not None and outputs.file.suffix.lower() not in _PICTURE_FORMATS:
        args.parser.error(
            f"the suffix of {outputs.file} names no lossless picture format "
            f"(allowed: {', '.join(_PICTURE_FORMATS)})"
        )
    codec = _LazyCodec(args)
    limits = {} if args.max_pixels is None else {"max_pixels": args.max_pixels}

    def decompress_one(source: str) -> None:
        data = _read(source)
        # A damaged file is told before seconds go into loading a model.
        header, _ = read_container(data)
        name = Path(source).name
        stem = Path(name).stem if name.lower().endswith(_SUFFIX) else name
        target = outputs.target(source, [stem + _PICTURE_SUFFIX, name + _PICTURE_SUFFIX])
        coder = codec.get(header.code_id)
        started = time.perf_counter()
        image = coder.decompress(data, **limits)
        outputs.write(source, target, _encoded(image, target))
        if not args.quiet:
            seconds = time.perf_counter() - started
            _say(f"{source} -> {target or STREAM}  {image.width} x {image.height}  {seconds:.2f} s")

    return _each_file(args.files, decompress_one)


def _info(args: argparse.Namespace) -> int:
    def info_one(source: str) -> None:
        data = _read(source)
        found = info(data)
        if args.json:
            import json
            from dataclasses import asdict

            print(json.dumps({"schema": INFO_SCHEMA, "file": source, **asdict(found)}))
        else:
            print(_info_text(source, found))

    return _each_file(args.files, info_one)


def _verify(args: argparse.Namespace) -> int:
    def verify_one(source: str) -> None:
        data = _read(source)
        header, sections = read_container(data)
        tiles = tile_grid(header.width, header.height).count
        stages = stage_payloads(sections)
        for payload in stages.values():
            unpack_tiles(payload, tiles)
        if not args.quiet:
            _say(f"{source}: undamaged  {len(stages)} stages  {len(data):,} bytes")

    return _each_file(args.files, verify_one)


def _train(args: argparse.Namespace) -> int:
    if not args.data.is_dir():
        raise _Stop(f"{args.data}: not a directory", 1)
    import logging

    from vqcodec.train import train_model

    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        train_model(
            data=args.data,
            out=args.out,
            minutes=args.minutes,
            steps=args.steps,
            resume=args.resume,
            init=args.init,
            phases=args.phases,
            device=args.device,
            seed=args.seed,
            preset=args.preset,
        )
    except ValueError as error:  # an option that only training can judge, such as a phase's name
        raise _Stop(str(error), 2) from error
    return 0


def _print_version(*, verbose: bool) -> None:
    from vqcodec import __version__

    print(f"vqcodec {__version__}")
    if not verbose:
        return
    from importlib import metadata

    print(f"native kernels: {_native_kernels()}")
    print(f"python {sys.version.split()[0]}")
    for name in _VERSIONED:
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name} not installed")


def _native_kernels() -> str:
    try:
        from vqcodec_kernels import native_isa

        isa = native_isa()
    except (ImportError, RuntimeError) as error:  # required by VQCODEC_NATIVE=1, but not there
        return f"no ({error})"
    return "no" if isa is None else f"yes ({isa})"


# --- input and output ----------------------------------------------------------------------


class _LazyCodec:
    """The codecs of a run, each loaded when the first file needs it and then kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._model: str | None = args.model
        self._device: str | None = None if args.device == "auto" else args.device
        self._codecs: dict[int | None, Codec] = {}

    def get(self, code_id: int | None = None) -> Codec:
        """The codec, loaded at the first call: the model asked for, else the installed one with a
        file's code id. Raises _Stop where no file can be coded, VqcError where this one cannot."""
        key = None if self._model is not None else code_id
        if key not in self._codecs:
            from vqcodec.codec import load_codec

            try:
                self._codecs[key] = load_codec(model=self._model, device=self._device, code_id=key)
            except VqcError as error:
                if key is not None:
                    raise
                raise _Stop(str(error), error.exit_code) from error
            except ValueError as error:  # a device that this machine does not have
                raise _Stop(str(error), 2) from error
        return self._codecs[key]


class _Outputs:
    """Where the results of one run go, by FILE..., `-o` and `-f`.

    file: the one file named by `-o`; None if there is none, or `-o` is a directory or `-`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._force: bool = args.force
        self._directory: Path | None = None
        self._stream = args.output == STREAM
        self._written: dict[Path, str] = {}
        self.file: Path | None = None
        if args.output is not None and not self._stream:
            if os.path.isdir(args.output):
                self._directory = Path(args.output)
            else:
                self.file = Path(args.output)
        self._check_usage(args.files, args.output, args.parser.error)

    def _check_usage(
        self, files: Sequence[str], output: str | None, error: Callable[[str], NoReturn]
    ) -> None:
        if files.count(STREAM) > 1:
            error("standard input can be read only once")
        if self._stream and len(files) > 1:
            error("several files cannot go to standard output")
        if self.file is not None and len(files) > 1:
            error(f"for several files OUT must be an existing directory, {output} is not")
        if self.file is not None and output is not None and output.endswith(("/", os.sep)):
            error(f"there is no directory {output}")
        if self._directory is not None and STREAM in files:
            error("the result of standard input needs a file name, not a directory")
        to_stream = self._stream or (output is None and STREAM in files)
        if to_stream and not self._force and sys.stdout.isatty():
            error("data is not written to a terminal; redirect it, or use -f or -o OUT")

    def target(self, source: str, names: Sequence[str]) -> Path | None:
        """The path for the result of `source`, None for standard output.

        `names` are the default file names, best first: the first that is free is taken, and the
        last if none is. Raises OutputExistsError if the path may not be written.
        """
        if self._stream or (source == STREAM and self.file is None):
            return None
        if self.file is not None:
            path = self.file
        else:
            directory = self._directory or Path(source).parent
            paths = [directory / name for name in names]
            path = next((path for path in paths if not os.path.lexists(path)), paths[-1])
        if not os.path.lexists(path):
            return path
        # `-f` is meant for results of earlier runs, not for these two.
        if source != STREAM and os.path.exists(path) and os.path.samefile(source, path):
            raise OutputExistsError(f"the output {path} would replace the input")
        if path.resolve() in self._written:
            other = self._written[path.resolve()]
            raise OutputExistsError(f"{path} was written for {other} just before")
        if not self._force:
            raise OutputExistsError(f"{path} exists already; -f replaces it")
        return path

    def write(self, source: str, target: Path | None, data: bytes) -> None:
        """Write the result of `source` where `target` said; a file appears whole or not at all."""
        if target is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        write_atomically(target, data, overwrite=self._force)
        self._written[target.resolve()] = source


def _read(source: str) -> bytes:
    return sys.stdin.buffer.read() if source == STREAM else Path(source).read_bytes()


def _encoded(image: Image.Image, target: Path | None) -> bytes:
    """The bytes of a picture file in the format that the suffix of `target` says."""
    import io

    suffix = _PICTURE_SUFFIX if target is None else target.suffix.lower()
    name, options = _PICTURE_FORMATS[suffix]
    if suffix == ".pgm" and image.mode != "L":
        raise ImageError("a colour picture does not fit a .pgm file; use .ppm")
    if suffix == ".ppm":
        image = image.convert("RGB")
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=name, **options)
    except (OSError, ValueError) as error:  # such as a side too long for WebP
        raise OutputError(f"the picture cannot be written as {name}: {error}") from error
    return buffer.getvalue()


def _bpp(data: bytes, width: int, height: int) -> float:
    """Bits per pixel of a whole file."""
    return 8 * len(data) / (width * height)


def _info_text(source: str, found: FileInfo) -> str:
    colours = "grey" if found.grey else "RGB"
    lines = [
        source,
        f"  {found.width} x {found.height} {colours}, {found.bytes:,} bytes, {found.bpp:.3f} bpp",
        f"  container version {found.version}, mode {found.mode}, rate {found.rate}, "
        f"code_id {found.code_id}",
    ]
    for section in found.sections:
        name = f"section 0x{section.type:02x}, unknown and optional"
        if section.stage is not None:
            name = f"stage {section.stage}"
        lines.append(f"  {name}: {section.bytes:,} bytes")
    return "\n".join(lines)


# --- errors --------------------------------------------------------------------------------


def _each_file(files: Sequence[str], work: Callable[[str], None]) -> int:
    """Do `work` for every file, report those that fail, and return the exit code."""
    code = 0
    for source in files:
        try:
            work(source)
        except (BrokenPipeError, _Stop):
            raise
        except Exception as error:
            message, failure = _explain(error, source)
            _complain(f"{source}: {message}")
            code = max(code, failure)
    return code


def _explain(error: Exception, source: str = "") -> tuple[str, int]:
    """What to say about an error that concerns the file `source`, and its exit code."""
    if isinstance(error, VqcError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        elsewhere = error.filename not in (None, source)
        return f"{error.filename}: {reason}" if elsewhere else reason, 1
    if isinstance(error, MemoryError):
        return "not enough memory", 1
    if sys.flags.dev_mode:
        raise error
    return f"unexpected {type(error).__name__}: {error}", 1


def _complain(message: str) -> None:
    _say(f"vqcodec: {message}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _discard_stdout() -> None:
    """Let the interpreter's last flush go nowhere, since the reader of the pipe is gone."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
