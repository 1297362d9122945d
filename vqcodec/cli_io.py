"""What the commands of the command line share: codecs, inputs, outputs, and words for errors.

Purpose: a command says what it makes from which files; here is decided where that goes, what may be
replaced, and how a failure is told. Nothing is computed.

Layout: `LazyCodec`; `Outputs`; reading and encoding of files; the loop over files and errors.

Invariants
- No output replaces an input, nor another output of the same run; nothing that exists is replaced
  without `-f`.
- Wrong usage is told before any file is read.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vqcodec.errors import ImageError, OutputError, OutputExistsError, VqcError
from vqcodec.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

    from vqcodec.codec import Codec
    from vqcodec.image import Picture

STREAM = "-"
PICTURE_SUFFIX = ".png"
# Lossless formats only: a second lossy coding of the decoded picture is never what is wanted.
PICTURE_FORMATS: dict[str, tuple[str, dict[str, bool]]] = {
    ".png": ("PNG", {}),
    ".ppm": ("PPM", {}),
    ".pgm": ("PPM", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
    ".bmp": ("BMP", {}),
}


class Stop(Exception):
    """Ends the command at once, for a reason that no further file would change."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LazyCodec:
    """The codecs of a run, each loaded when the first file needs it and then kept."""

    def __init__(self, args: argparse.Namespace, *, mode: str | None = None) -> None:
        self._model: str | None = args.model
        self._mode = mode
        self._device: str | None = None if args.device == "auto" else args.device
        self._precise: bool = getattr(args, "precise", False)
        self._codecs: dict[tuple[int, str | None] | None, Codec] = {}

    def get(self, code_id: int | None = None, mode: str | None = None) -> Codec:
        """The codec, loaded at the first call: the model asked for, else the installed one with a
        file's code id and mode, else that of the mode. Raises Stop where no file can be coded, VqcError
        where this one cannot."""
        key = None if self._model is not None or code_id is None else (code_id, mode)
        if key not in self._codecs:
            from vqcodec.codec import load_codec

            try:
                code_id, mode = key or (None, self._mode)
                self._codecs[key] = load_codec(
                    self._model, self._device, code_id=code_id, mode=mode, precise=self._precise
                )
            except VqcError as error:
                if key is not None:
                    raise
                raise Stop(str(error), error.exit_code) from error
            except ValueError as error:  # a device that this machine does not have
                raise Stop(str(error), 2) from error
        return self._codecs[key]


class Outputs:
    """Where the results of one run go, by its inputs, `-o` and `-f`.

    inputs: the files that the run reads; joined: they make one result, not one each.
    file: the one file named by `-o`; None if there is none, or `-o` is a directory or `-`.
    directory: the existing directory named by `-o`, if it is one.
    """

    def __init__(self, args: argparse.Namespace, inputs: Sequence[str], *, joined: bool = False) -> None:
        self._force: bool = args.force
        self._error: Callable[[str], NoReturn] = args.parser.error
        self._stream = args.output == STREAM
        self._written: dict[Path, str] = {}
        self.directory: Path | None = None
        self.file: Path | None = None
        if args.output is not None and not self._stream:
            if os.path.isdir(args.output):
                self.directory = Path(args.output)
            else:
                self.file = Path(args.output)
        self._check_usage(inputs, args.output, several=len(inputs) > 1 and not joined)

    def _check_usage(self, inputs: Sequence[str], output: str | None, *, several: bool) -> None:
        if inputs.count(STREAM) > 1:
            self._error("standard input can be read only once")
        if self._stream and several:
            self._error("several files cannot go to standard output")
        if self.file is not None and several:
            self._error(f"for several files OUT must be an existing directory, {output} is not")
        if self.file is not None and output is not None and output.endswith(("/", os.sep)):
            self._error(f"there is no directory {output}")
        if self.directory is not None and STREAM in inputs:
            self._error("the result of standard input needs a file name, not a directory")
        to_stream = self._stream or (output is None and STREAM in inputs)
        if to_stream and sys.stdout is None:
            self._error("there is no standard output to write to")
        if to_stream and not self._force and sys.stdout.isatty():
            self._error("data is not written to a terminal; redirect it, or use -f or -o OUT")

    def require_picture_suffix(self) -> None:
        """Wrong usage, unless the suffix of `file` names a format that pictures can be written in."""
        if self.file is not None and self.file.suffix.lower() not in PICTURE_FORMATS:
            self._error(
                f"the suffix of {self.file} names no lossless picture format "
                f"(allowed: {', '.join(PICTURE_FORMATS)})"
            )

    def target(self, inputs: Sequence[str], names: Sequence[str]) -> Path | None:
        """The path for a result of `inputs`, None for standard output.

        `names` are the default file names, best first: the first that is free is taken, and the
        last if none is. They go beside the first input, or into the current directory without one.
        Raises OutputExistsError if the path may not be written.
        """
        if self._stream or (STREAM in inputs and self.file is None):
            return None
        if self.file is not None:
            path = self.file
        else:
            directory = self.directory or (Path(inputs[0]).parent if inputs else Path())
            paths = [directory / name for name in names]
            path = next((path for path in paths if not os.path.lexists(path)), paths[-1])
        if not os.path.lexists(path):
            return path
        # `-f` is meant for results of earlier runs, not for these two.
        for source in inputs:
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
            try:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            except OSError:
                discard_stdout()
                raise
            return
        write_atomically(target, data, overwrite=self._force)
        self._written[target.resolve()] = source


# --- files ---------------------------------------------------------------------------------


def read(source: str) -> bytes:
    """The bytes of a file, or of standard input."""
    return sys.stdin.buffer.read() if source == STREAM else Path(source).read_bytes()


def read_picture(source: str, *, quiet: bool) -> Picture:
    """The picture in a file or on standard input; what was converted is said, unless `quiet`."""
    from vqcodec.image import load_picture

    picture = load_picture(read(source))
    if not quiet:
        for note in picture.notes:
            say(f"note: {source}: {note}")
    return picture


def encode_picture(image: Image.Image, target: Path | None) -> bytes:
    """The bytes of a picture file in the format that the suffix of `target` says."""
    import io

    suffix = PICTURE_SUFFIX if target is None else target.suffix.lower()
    name, options = PICTURE_FORMATS[suffix]
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


# --- errors --------------------------------------------------------------------------------


def each_file(files: Sequence[str], work: Callable[[str], None]) -> int:
    """Do `work` for every file, report those that fail, and return the exit code."""
    code = 0
    for source in files:
        try:
            work(source)
        except (BrokenPipeError, Stop):
            raise
        except Exception as error:
            message, failure = explain(error, source)
            complain(f"{source}: {message}")
            code = max(code, failure)
    return code


def explain(error: Exception, source: str = "") -> tuple[str, int]:
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


def discard_stdout() -> None:
    """Let what standard output could not take go nowhere, or the interpreter's last flush fails too."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(message: str) -> None:
    """Say what went wrong."""
    say(f"vqcodec: {message}")


def say(text: str) -> None:
    """A line for a person."""
    print(text, file=sys.stderr, flush=True)
