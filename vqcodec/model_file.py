"""Model files on disk, whoever wrote them -> the configuration and the tensors in them.

Purpose: a model may come from anyone. A safetensors file holds JSON and numbers, no code; nothing else
is ever opened as a model. What the numbers mean is for `vqcodec.model` to judge.

Layout: the limits; the two readers; the parts of a file.

    u64 length of the header | header, JSON: {"__metadata__": {"vqcodec": JSON text}, tensor: ...} | data

Invariants
- Only ModelFileError is raised, whatever the path leads to. Its text names the path and what to do.
- No memory is taken in proportion to a number that the file only claims: a file is at most
  MAX_FILE_BYTES, its header at most MAX_HEADER_BYTES, and the tensors are as large as their data.
- The file is read once: what was checked is what is used, whatever happens to the file meanwhile.
- A key that occurs twice is refused, as parsers disagree on which of the two counts.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from vqcodec.errors import ModelFileError

FORMAT = 1
METADATA_KEY = "vqcodec"
MAX_FILE_BYTES = 1 << 26
MAX_HEADER_BYTES = 1 << 20

_DTYPES = frozenset({"F16", "U8", "I8", "I16", "I32"})
_LENGTH_BYTES = 8
_NO_MODEL = "a model is a .safetensors file that vqcodec wrote, and files of no other kind are opened"
_AGAIN = "copy or download it again"


def read_model_header(path: Path) -> dict[str, Any]:
    """The configuration in a model file; its tensors are not looked at."""
    return _read(path, whole=False)[0]


def read_model_file(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration and the tensors of a model file, by name, of any shapes."""
    header, data = _read(path, whole=True)
    try:
        return header, load(data)
    # What the library raises for a header that contradicts itself.
    except (SafetensorError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: damaged ({describe(error)}); {_AGAIN}") from error


def describe(error: Exception) -> str:
    """The text of an error that a file provoked, as one short line that a terminal can show."""
    text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return printable(text, 200)


def printable(text: str, length: int) -> str:
    """The first line's worth of a text from a file: what cannot be printed becomes a question mark."""
    kept = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 4 * length].split()))
    return kept if len(kept) <= length else f"{kept[: length - 3]}..."


def _read(path: Path, *, whole: bool) -> tuple[dict[str, Any], bytes]:
    """The configuration, and the bytes of the file, or of its header at least."""
    try:
        # Opening a pipe would wait for somebody to write to it.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelFileError(f"{path}: a directory; name a .safetensors file in it")
        if not stat.S_ISREG(mode):
            raise ModelFileError(f"{path}: not a regular file; {_NO_MODEL}")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise ModelFileError(
                    f"{path}: {size} bytes, but a model has at most {MAX_FILE_BYTES >> 20} MiB"
                )
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            file.seek(0)
            data = file.read(size if whole else _LENGTH_BYTES + min(length, MAX_HEADER_BYTES))
    except (OSError, ValueError) as error:  # a null byte in a path is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"{path}: cannot be read ({reason}); check path and permissions") from error
    return _parse_header(path, data, len(data) if whole else size), data


def _parse_header(path: Path, data: bytes, size: int) -> dict[str, Any]:
    """The configuration in a file of `size` bytes, of which `data` has the header at least."""
    if size == 0:
        raise ModelFileError(f"{path}: the file is empty; {_AGAIN}")
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if data[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        raise ModelFileError(f"{path}: not a safetensors file; {_NO_MODEL}")
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{path}: a header of {length} bytes, but a model's has at most {MAX_HEADER_BYTES}"
        )
    if _LENGTH_BYTES + length > size:
        raise ModelFileError(f"{path}: cut short, the file ends in its header; {_AGAIN}")
    try:
        outer = _parse_json(data[_LENGTH_BYTES : _LENGTH_BYTES + length].decode("utf-8"))
        metadata = outer.pop("__metadata__", None)
        if not isinstance(metadata, dict) or METADATA_KEY not in metadata:
            raise ModelFileError(f"{path}: safetensors, but not a model of vqcodec; {_NO_MODEL}")
        end = _LENGTH_BYTES + length + _data_bytes(outer)
        header = _parse_json(metadata[METADATA_KEY])
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: its header is damaged ({describe(error)}); {_AGAIN}") from error
    if size < end:
        raise ModelFileError(f"{path}: cut short, {size} of {end} bytes are there; {_AGAIN}")
    number = header.get("format")
    if type(number) is not int or number != FORMAT:
        newer = type(number) is int and number > FORMAT
        raise ModelFileError(
            f"{path}: a model of another format than {FORMAT}; "
            f"{'use a newer vqcodec' if newer else _AGAIN}"
        )
    return header


def _data_bytes(entries: dict[str, Any]) -> int:
    """How many bytes of data the tensors announce."""
    end = 0
    for entry in entries.values():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"a tensor has dtype {entry['dtype']!r}")
        _, stop = entry["data_offsets"]
        if type(stop) is not int:
            raise TypeError("an offset is not a whole number")
        end = max(end, stop)
    return end


def _parse_json(text: str) -> dict[str, Any]:
    """A JSON object. ValueError, TypeError or RecursionError for what is none."""
    if not isinstance(text, str):
        raise TypeError("the configuration is not a text")
    found = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(found, dict):
        raise TypeError("it is not a JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found
