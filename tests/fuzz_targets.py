"""Fuzz targets: functions of bytes that are content with success and with errors of the package.

Purpose: `fuzz.py` runs campaigns of them, `test_fuzz.py` a few thousand inputs.

Layout: `TARGETS`; what all share; `container`; `decompress`; `model`, each with how it makes of arbitrary
bytes files that are nearly right.

Invariants
- A target returns labels of what happened, which are counted. Whatever it raises is a finding: an error
  that is no VqcError, or an AssertionError where a promise of the package was broken.
- The same bytes do the same, whatever ran before.
"""

import copy
import dataclasses
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vqcodec.container import (
    HEADER_SIZE,
    MAGIC,
    MODE_NAMES,
    UNIFORM_MODES,
    VERSION,
    Header,
    Section,
    decode_varint,
    pack_tiles,
    read_container,
    read_header,
    stage_payloads,
    stage_section,
    tile_grid,
    unpack_tiles,
    write_container,
)
from vqcodec.errors import ModeError, RateError, TruncatedError, VqcError
from vqcodec.inspection import info
from vqcodec.limits import Limits
from vqcodec.recovery import Recovered, read_cut, read_damaged
from vqcodec.truncation import truncate

if TYPE_CHECKING:
    from vqcodec.codec import Codec

_T = TypeVar("_T")
Target = Callable[[bytes], list[str]]
GOLDEN = Path(__file__).with_name("golden")
_LONGEST_MESSAGE = 600
_CRC_BYTES = 4


class Recipe:
    """Numbers read off bytes; past their end all are zero."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def below(self, count: int) -> int:
        """A number below `count`, which is at most 65536."""
        size = 1 if count <= 256 else 2
        return int.from_bytes(self.take(size), "little") % count

    def take(self, size: int) -> bytes:
        taken = self._data[self._place : self._place + size]
        self._place += size
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))

    @property
    def ended(self) -> bool:
        return self._place >= len(self._data)


def attempt(call: Callable[[], _T]) -> tuple[_T | None, VqcError | None]:
    """What a call returns, or the error of the package that it raises, once its message is checked."""
    try:
        return call(), None
    except VqcError as error:
        message = str(error)
        assert message and message.isprintable(), f"not one line of text: {message!r}"
        assert len(message) <= _LONGEST_MESSAGE, f"a message of {len(message)} characters"
        return None, error


def _name(error: VqcError | None, success: str) -> str:
    return success if error is None else type(error).__name__


def list_seeds(*patterns: str) -> list[bytes]:
    """The golden files of these names."""
    return [path.read_bytes() for pattern in patterns for path in sorted(GOLDEN.glob(pattern))]


# --- container -----------------------------------------------------------------------------------


def prepare_container(folder: Path) -> Target:
    """All that reads files without a model: of the bytes, and of the same with checksums made right."""

    def container(data: bytes) -> list[str]:
        labels = [f"as is: {check_container(data)}"]
        repaired = repair(data)
        if repaired != data:
            labels.append(f"repaired: {check_container(repaired)}")
        return labels

    return container


def container_seeds() -> list[bytes]:
    sections = [
        stage_section(0, bytes(range(9))),
        Section(0x41, False, b""),
        stage_section(2, b"\xff" * 130),
    ]
    header = Header(mode=0, grey=True, rate=19, width=1100, height=700, code_id=0)
    made = [
        write_container(header, sections),
        write_container(dataclasses.replace(header, mode=1, width=1 << 31), sections[:2]),
        write_container(header, []),
    ]
    return made + list_seeds("*.vqc", "bad/*.vqc")


def repair(data: bytes, *, code_id: int | None = None) -> bytes:
    """The bytes with a start as files have it, another code id, and every checksum right that can be
    found; for half of all inputs, also with the right number of sections."""
    fixed = bytearray(data)
    if len(fixed) < HEADER_SIZE:
        return data
    fixed[:5] = MAGIC + bytes([VERSION])
    if code_id is not None:
        fixed[16:20] = code_id.to_bytes(4, "little")
    place, count = HEADER_SIZE, 0
    while place < len(fixed):
        try:
            length, payload = decode_varint(bytes(fixed[place : place + 6]), 1)
        except VqcError:
            break
        end = place + payload + length
        if end + _CRC_BYTES > len(fixed):
            break
        fixed[end : end + _CRC_BYTES] = zlib.crc32(fixed[place:end]).to_bytes(_CRC_BYTES, "little")
        place, count = end + _CRC_BYTES, count + 1
    if zlib.crc32(data) % 2 and count <= 255:
        fixed[7] = count
    fixed[20:24] = zlib.crc32(fixed[:20]).to_bytes(_CRC_BYTES, "little")
    return bytes(fixed)


def check_container(data: bytes) -> str:
    """Reads a file in every way that needs no model; the name of its error, or what it is."""
    found, error = attempt(lambda: read_container(data))
    described, same_error = attempt(lambda: info(data))
    assert type(same_error) is type(error)
    left = [attempt(lambda: read_cut(data))[0], attempt(lambda: read_damaged(data))[0]]
    if found is None or described is None:
        for recovered in left:
            if recovered is not None:
                assert recovered.losses, "a file that is refused was read without losses"
                _check_sound(recovered)
        return _name(error, "")
    header, sections = found
    assert write_container(header, sections) == data, "another file has the same meaning"
    assert read_header(data) == header
    assert left == [Recovered(header, sections, ())] * 2, "recovery differs from reading"
    assert described.bytes == len(data)
    assert [s.bytes for s in described.sections] == [len(s.payload) for s in sections]
    attempt(lambda: Limits().check(header))
    choice = zlib.crc32(data)
    _check_prefix(data[: choice % len(data)], header, sections)
    _check_truncation(data, header, sections, choice)
    count = tile_grid(header.width, header.height).count
    for payload in stage_payloads(sections).values():
        streams, _ = attempt(lambda payload=payload: unpack_tiles(payload, count))  # type: ignore[misc]
        assert streams is None or (len(streams), pack_tiles(streams)) == (count, payload)
    return "read"


def _check_sound(recovered: Recovered) -> None:
    """What was recovered makes a whole file."""
    data = write_container(recovered.header, recovered.sections)
    assert read_container(data) == (recovered.header, recovered.sections)


def _check_prefix(start: bytes, header: Header, sections: list[Section]) -> None:
    """Of a file that is cut short, the sections before the cut are read and no others."""
    for read in (read_cut, read_damaged):
        recovered, error = attempt(lambda read=read: read(start))  # type: ignore[misc]
        if recovered is None:
            continue
        assert recovered.header == header and recovered.losses
        kept = recovered.sections
        ahead = iter(sections)
        assert len(kept) < len(sections) and all(section in ahead for section in kept)
        stages = [section.stage for section in kept if section.stage is not None]
        assert stages == list(range(len(stages))), "a stage was used without one before it"
    refused = attempt(lambda: read_container(start))[1]
    assert isinstance(refused, TruncatedError)


def _check_truncation(data: bytes, header: Header, sections: list[Section], choice: int) -> None:
    """Files with fewer stages are whole, and have the sections that they should have."""
    if header.mode in UNIFORM_MODES:
        assert isinstance(attempt(lambda: truncate(data, stages=1))[1], ModeError)
        return
    versions = []
    for stages in (1, 1 + choice % 16, 16):
        smaller = truncate(data, stages=stages)
        kept = [s for s in sections if s.stage is None or s.stage < stages]
        assert read_container(smaller) == (header, kept)
        versions.append(smaller)
    assert versions[2] == data
    pixels = header.width * header.height
    budget = 8 * len(data) / pixels * (1 + choice // 16 % 8) / 8
    smaller, error = attempt(lambda: truncate(data, bpp=budget))  # type: ignore[assignment]
    if error is not None:
        assert isinstance(error, RateError) and 8 * len(versions[0]) > budget * pixels
        return
    assert 8 * len(smaller) <= budget * pixels
    for version in versions:
        assert len(version) <= len(smaller) or 8 * len(version) > budget * pixels


# --- decompress ----------------------------------------------------------------------------------

_LIMITS = Limits(max_pixels=1 << 15, max_memory=1 << 28)
_SIZES = [(1, 1), (16, 16), (17, 31), (33, 20), (48, 16), (16, 40), (50, 50), (64, 64)]
_LONG_SIZES = [(1040, 16), (16, 1030)]
_EDITS = 10


def prepare_decompress(folder: Path) -> Target:
    """Decoding with one model of each kind: of bytes as they are; with checksums and code id made right;
    of files built with any payloads, of golden files changed, and of chosen symbols."""
    import torch

    from vqcodec.codec import Codec
    from vqcodec.model import load_model

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    codecs = {
        kind: Codec(load_model(GOLDEN / f"{kind}.safetensors"), cpu) for kind in ("vector", "uniform")
    }
    files = [read_container(data) for data in list_seeds("*.vqc")]
    small = [file for file in files if file[0].width * file[0].height <= 1 << 13]

    def codec_of(mode: int) -> "Codec":
        return codecs["uniform" if mode in UNIFORM_MODES else "vector"]

    def as_is(recipe: Recipe) -> str:
        data = recipe.rest()
        header, _ = attempt(lambda: read_header(data))
        return check_decoding(codec_of(header.mode if header else 0), data)

    def repaired(recipe: Recipe) -> str:
        codec = codecs["vector" if recipe.below(2) else "uniform"]
        return check_decoding(codec, repair(recipe.rest(), code_id=codec.model.code_id))

    def built(recipe: Recipe) -> str:
        header, codec = draw_header(recipe)
        count = tile_grid(header.width, header.height).count
        sections = []
        stages = (0, 1) if header.mode in UNIFORM_MODES else range(4)
        for stage in stages:
            if recipe.below(4) == 0 and stage == 0 or recipe.ended:
                continue
            tiles = [recipe.take(recipe.below(256)) for _ in range(count)]
            sections.append(stage_section(stage, pack_tiles(tiles) if recipe.below(8) else tiles[0]))
        return check_decoding(codec, _write(header, sections))

    def changed(recipe: Recipe) -> str:
        header, sections = small[recipe.below(len(small))]
        codec = codec_of(header.mode)
        for _ in range(1 + recipe.below(3)):
            header, sections = _edit(recipe, header, sections)
        return check_decoding(codec, _write(header, sections))

    def coded(recipe: Recipe) -> str:
        header, codec = draw_header(recipe)
        return check_symbols(codec, header, recipe)

    def draw_header(recipe: Recipe) -> tuple[Header, "Codec"]:
        mode = recipe.below(len(MODE_NAMES))
        codec = codec_of(mode)
        long = recipe.below(16) == 0
        width, height = (_LONG_SIZES if long else _SIZES)[recipe.below(2 if long else len(_SIZES))]
        rate = 1 + recipe.below(256) % codec.model.bottleneck.buckets
        grey = bool(recipe.below(2))
        return Header(mode, grey, rate, width, height, codec.model.code_id), codec

    kinds = (as_is, repaired, built, built, changed, changed, coded, coded)

    def decompress(data: bytes) -> list[str]:
        recipe = Recipe(data)
        kind = kinds[recipe.below(len(kinds))]
        return [f"{kind.__name__}: {kind(recipe)}"]

    return decompress


def decompress_seeds() -> list[bytes]:
    kinds = [b"\2", b"\4", b"\6"]
    numbers = [bytes((5 * n + k) % 256 for k in range(40)) for n in range(24)]
    return (
        [b"\0" + data for data in list_seeds("bad/*.vqc")[::4]]
        + [b"\1\1" + data for data in list_seeds("vq*.vqc")]
        + [b"\1\0" + data for data in list_seeds("ae*.vqc")]
        + [kind + number for kind in kinds for number in numbers]
    )


def check_decoding(codec: "Codec", data: bytes) -> str:
    """Decodes a file in every way; the name of its error, or that it decoded."""
    header = attempt(lambda: read_header(data))[0]
    indices, first_error = attempt(lambda: codec.read_indices(data, limits=_LIMITS))
    image, error = attempt(lambda: codec.decompress(data, limits=_LIMITS))
    saved, saved_error = attempt(lambda: codec.salvage(data, limits=_LIMITS))
    assert type(first_error) is type(error), "symbols and pixels are refused differently"
    cut = None
    if image is None or zlib.crc32(data) % 4 == 0:
        cut, _ = attempt(lambda: codec.salvage(data, limits=_LIMITS, cut_only=True))
    for picture in (image, saved and saved.image, cut and cut.image):
        if picture is not None and header is not None:
            assert picture.size == (header.width, header.height)
            assert picture.mode == ("L" if header.grey else "RGB")
    if image is None or indices is None:
        for part in (saved, cut):
            assert part is None or part.losses, "a file that does not decode was salvaged without losses"
        if saved is not None:
            return f"{_name(error, '')}, salvaged"
        return f"{_name(error, '')}, cut" if cut is not None else _name(error, "")
    assert saved is not None and not saved.losses, f"decodes, but is not salvaged: {saved_error}"
    pixels = image.tobytes()
    assert saved.image.tobytes() == pixels
    assert cut is None or (cut.image.tobytes(), cut.losses) == (pixels, ())
    return "decoded"


def check_symbols(codec: "Codec", header: Header, recipe: Recipe) -> str:
    """Codes symbols of the recipe, which must come back; then perhaps with a byte of them changed."""
    import numpy as np
    from golden_files import code_symbols

    from vqcodec.quantizer import LEVELS

    grid = tile_grid(header.width, header.height)
    quantizer = codec.model.config.quantizer
    uniform = header.mode in UNIFORM_MODES
    stages = 1 if uniform else 1 + (header.rate - 1) // LEVELS
    change = recipe.below(256)
    # A few symbols, repeated: what matters is that there are runs, jumps and zeros.
    drawn = np.frombuffer(recipe.rest() or b"\0", np.uint8).astype(np.int32)
    shape = (stages, quantizer.groups, grid.rows, grid.cols)
    symbols = np.resize(drawn, shape)
    symbols = (symbols - 128) ** 3 >> 6 if uniform else (symbols % quantizer.codewords).astype(np.uint8)
    payloads = code_symbols(codec.model.bottleneck, list(symbols), header.rate)
    sections = [stage_section(stage, payload) for stage, payload in payloads.items()]
    if change % 2 and sections and sections[-1].payload:
        payload = bytearray(sections[-1].payload)
        payload[change % len(payload)] ^= change
        sections[-1] = dataclasses.replace(sections[-1], payload=bytes(payload))
        return check_decoding(codec, _write(header, sections))
    data = _write(header, sections)
    read = codec.read_indices(data, limits=_LIMITS)
    assert all(np.array_equal(a, b) for a, b in zip(read, symbols, strict=False)), "other symbols"
    assert not symbols[len(read) :].any()
    return check_decoding(codec, data)


def _edit(recipe: Recipe, header: Header, sections: list[Section]) -> tuple[Header, list[Section]]:
    """A file with one change that leaves its container legal."""
    edit, place = recipe.below(_EDITS), recipe.below(1 << 16)
    if edit == 0:
        highest = 100 if header.mode in UNIFORM_MODES else 255
        return dataclasses.replace(header, rate=1 + place % highest), sections
    if edit == 1:
        width, height = _SIZES[place % len(_SIZES)]
        return dataclasses.replace(header, width=width, height=height), sections
    if edit == 2:
        modes = [m for m in MODE_NAMES if (m in UNIFORM_MODES) == (header.mode in UNIFORM_MODES)]
        return dataclasses.replace(header, mode=modes[place % len(modes)], grey=not header.grey), sections
    if edit == 3:
        return dataclasses.replace(header, code_id=header.code_id ^ place), sections
    if not sections:
        return header, [Section(0x21, False, recipe.take(9))]
    number = place % len(sections)
    if edit == 4:
        # In the uniform modes, escapes do not stand alone.
        return header, sections[:number]
    before, section, after = sections[:number], sections[number], sections[number + 1 :]
    payload = bytearray(section.payload)
    at = recipe.below(1 << 16) % (len(payload) + 1)
    if edit == 5:
        del payload[at:]
    elif edit == 6:
        payload[at:at] = recipe.take(1 + recipe.below(8))
    elif edit == 7:
        del payload[at : at + 1 + recipe.below(8)]
    elif edit == 8:
        payload[:] = sections[recipe.below(len(sections))].payload
    else:
        new = recipe.take(1 + recipe.below(4))
        payload[at : at + len(new)] = new
    return header, [*before, dataclasses.replace(section, payload=bytes(payload)), *after]


def _write(header: Header, sections: list[Section]) -> bytes:
    """The file; escapes without symbols, which no writer writes, are left out."""
    stages = {section.stage for section in sections}
    if header.mode in UNIFORM_MODES and 0 not in stages:
        sections = [section for section in sections if section.stage is None]
    return write_container(header, sections)


# --- model ---------------------------------------------------------------------------------------

_CHANGES = 12
_EXTREMES: list[Any] = [
    0, 1, -1, 2, 3, 7, 255, 256, 257, 4095, 4096, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**63, 10**30,
    10**400, 0.0, -0.0, 0.5, 1e-320, 1e30, 1e308, float("nan"), float("inf"), float("-inf"), True, False,
    None, "", "vq", "vae", "F32", "x" * 5000, "\x1b[31m\n\0", "\ud800", [], {}, [[]], [1], [1, 1, 1],
    [[1, 1]], [[1, 100.0] for _ in range(100)], {"": 0}, {"channels": 1},
]  # fmt: skip
_BYTE_FILLS = b"\0\1\x7f\x80\x81\xff"
# Stands for lists in lists, deeper than json writes them.
_DEEP = "@deep@"
_DEEP_VALUE = re.compile(rb'\\?"@deep@\\?"')
_KEY = re.compile(rb'\\?"\w+\\?": ')
_ACTUAL_CODE_ID = re.compile(r"its tensors are those of ([0-9a-f]{8})")


def prepare_model(folder: Path) -> Target:
    """Loading of model files: any bytes, and good files changed; what loads must code a picture."""
    import torch
    from model_bytes import ModelParts, join_model

    from vqcodec.codec import Codec
    from vqcodec.model import load_model

    torch.set_num_threads(1)
    bases = [(data, ModelParts.of(data)) for data in _model_bases()]
    path = folder / "model.safetensors"

    def as_is(recipe: Recipe) -> bytes:
        return recipe.rest()

    def headed(recipe: Recipe) -> bytes:
        size = recipe.below(1 << 16)
        return join_model(recipe.take(size), recipe.rest())

    def overwritten(recipe: Recipe) -> bytes:
        data = bytearray(bases[recipe.below(len(bases))][0])
        # The header is a small part of the file, and the more fragile one.
        reach = len(data) if recipe.below(4) == 0 else int.from_bytes(data[:8], "little") + 8
        for _ in range(1 + recipe.below(4)):
            at = recipe.below(1 << 16) * reach >> 16
            new = recipe.take(1 + recipe.below(8))
            data[at : at + len(new)] = new
        return bytes(data[: recipe.below(1 << 16) or len(data)] if recipe.below(8) == 1 else data)

    def changed(recipe: Recipe) -> bytes:
        parts = bases[recipe.below(len(bases))][1].copy()
        for _ in range(1 + recipe.below(3)):
            _change(recipe, parts.config, parts.tensors, parts.data)
        return _rework_header(recipe, parts.to_bytes())

    kinds = (as_is, headed, overwritten, changed, changed, changed, changed, changed)

    def model(data: bytes) -> list[str]:
        recipe = Recipe(data)
        kind = kinds[recipe.below(len(kinds))]
        path.write_bytes(kind(recipe))
        loaded, error = attempt(lambda: load_model(path))
        found = _ACTUAL_CODE_ID.search(str(error))
        if found is not None:
            # Only its name for itself is wrong: with that made right, there is more to see.
            parts = ModelParts.of(path.read_bytes())
            parts.config["code_id"] = int(found[1], 16)
            path.write_bytes(parts.to_bytes())
            loaded, error = attempt(lambda: load_model(path))
        if loaded is None:
            return [f"{kind.__name__}: {_reason(error)}"]
        return [f"{kind.__name__}: {check_model(Codec(loaded, torch.device('cpu')), zlib.crc32(data))}"]

    return model


def check_model(codec: "Codec", choice: int) -> str:
    """Codes a picture with a model that loaded; what is decoded must be what was coded."""
    import numpy as np

    picture = np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    quality = 1 + choice % 100
    sample = 5 if codec.model.config.mode == "vae" and choice % 2 else None
    data, error = attempt(lambda: codec.compress(picture, quality=quality, sample=sample))
    if data is None:
        return f"loaded, {_reason(error)}"
    decoded = codec.decompress(data, limits=_LIMITS)
    assert (decoded.size, decoded.mode) == ((17, 31), "RGB")
    way = choice // 2 % 8
    if way == 0 and sample is None:
        coded = codec.analyse(picture, quality=quality).indices
        for found, index in zip(codec.read_indices(data), coded, strict=False):
            assert np.array_equal(found, index), "the symbols are not those that were coded"
    elif way == 1:
        # The sums of any model are the same in C++ and in NumPy.
        bottleneck, (header, sections) = codec.model.bottleneck, read_container(data)
        grid = tile_grid(header.width, header.height)
        streams = {stage: [payload] for stage, payload in stage_payloads(sections).items()}
        slow = type(bottleneck)(bottleneck.quantizer, bottleneck.prior, native=False)  # type: ignore[arg-type]
        found = slow.read(streams, header.rate, grid.rows, grid.cols)
        for index, expected in zip(found, codec.read_indices(data), strict=True):
            assert np.array_equal(index, expected), "native kernels and NumPy decode differently"
    elif way == 2:
        drawn, _ = attempt(lambda: codec.generate(1, seed=1, width=17, height=31))
        assert drawn is None or drawn[0].size == (17, 31)
    return "coded"


def model_seeds() -> list[bytes]:
    numbers = [bytes((7 * n + k * (n + 1)) % 256 for k in range(24)) for n in range(64)]
    return [bytes([n % 8]) + number for n, number in enumerate(numbers)]


def _reason(error: VqcError | None) -> str:
    """The error, and of a model that is refused the words that say why, without names and numbers."""
    found = re.search(r"\((.*)\)|: ([^:;]*)", re.sub(r"^[^:]*", "", str(error)))
    words = (found[1] or found[2]) if found else ""
    return f"{type(error).__name__}, {re.sub('[^a-z ]+', '.', words.lower())[:40].strip(' .')}"


def _model_bases() -> Iterator[bytes]:
    """Model files to change: small ones of every mode, and the golden ones."""
    from model_bytes import make_model

    from vqcodec.prior import PriorConfig

    prior = PriorConfig(tables=3, embedding=2, hidden=(5, 4), group_hidden=3, chunks=(1,), window=3)
    blocks = ((2, 1), (1, 2))
    yield make_model("vq").to_bytes()
    yield make_model("vq", blocks=blocks, codewords=7, stages=2, prior=prior, seed=1).to_bytes()
    networks = {"depth": 1, "width": 2}
    yield make_model("vq", blocks=blocks, prior=prior, rates=True, seed=2, **networks).to_bytes()
    yield make_model("vqvae", blocks=blocks, codewords=256, prior=prior, seed=3).to_bytes()
    yield make_model("dvae", blocks=blocks, codewords=9, prior=prior, seed=4, **networks).to_bytes()
    yield make_model("ae", blocks=((3, 1),), prior=prior, seed=5).to_bytes()
    yield make_model("vae", blocks=((3, 1),), prior=prior, seed=6, **networks).to_bytes()
    yield make_model("hvae", blocks=((3, 1),), prior=prior, seed=7, **networks).to_bytes()
    yield make_model("vqvae2", blocks=blocks, codewords=9, prior=prior, seed=8).to_bytes()
    yield from list_seeds("*.safetensors")


def _change(
    recipe: Recipe, config: dict[str, Any], tensors: dict[str, dict[str, Any]], data: bytearray
) -> None:
    """One change to the parts of a model file."""
    change = recipe.below(_CHANGES)
    if change <= 4:
        _replace_leaf(recipe, config)
        return
    names = list(tensors)
    if not names:
        return
    name = names[recipe.below(1 << 16) % len(names)]
    if change == 5:
        # An earlier change may have left something else in the place of the entry.
        inside = isinstance(tensors[name], dict) and recipe.below(4)
        _replace_leaf(recipe, tensors[name] if inside else tensors)
        return
    if change == 6:
        other = names[recipe.below(1 << 16) % len(names)]
        tensors[name], tensors[other] = tensors[other], tensors[name]
        return
    if change == 7:
        tensors[other_name(name)] = tensors.pop(name)
        return
    span = tensors[name].get("data_offsets") if isinstance(tensors[name], dict) else None
    if not (isinstance(span, list) and len(span) == 2 and all(type(at) is int for at in span)):
        return
    start, stop = (min(max(0, at), len(data)) for at in span)
    if change == 8:
        data[start:stop] = bytes([_BYTE_FILLS[recipe.below(len(_BYTE_FILLS))]]) * (stop - start)
    elif change == 9:
        pattern = recipe.take(1 + recipe.below(16)) or b"\0"
        data[start:stop] = (pattern * (stop - start))[: stop - start]
    elif stop > start:
        for _ in range(1 + recipe.below(8)):
            data[start + recipe.below(1 << 16) % (stop - start)] = recipe.below(256)


def other_name(name: str) -> str:
    """A name with its last letter changed."""
    return name[:-1] + ("x" if name[-1:] != "x" else "y")


def _replace_leaf(recipe: Recipe, values: Any) -> None:
    """Somewhere below, a value becomes another, goes, or comes."""
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        if not keys:
            return
        key = keys[recipe.below(1 << 16) % len(keys)]
        inner = values[key]
        if not isinstance(inner, dict | list) or not inner or recipe.below(8) == 0:
            break
        values = inner
    edit = recipe.below(16)
    if edit == 0:
        del values[key]
    elif edit == 1:
        values[key] = _DEEP
    elif edit == 2 and isinstance(values, list):
        values.append(values[key])
    elif edit <= 6 and type(inner) in (int, float):
        values[key] = (inner + 1, inner - 1, 2 * inner, -inner)[edit - 3]
    else:
        values[key] = copy.deepcopy(_EXTREMES[recipe.below(len(_EXTREMES))])


def _rework_header(recipe: Recipe, data: bytes) -> bytes:
    """A model file in whose header `_DEEP` became lists in lists, and a key may occur twice."""
    from model_bytes import join_model

    length = int.from_bytes(data[:8], "little")
    header, tensors = data[8 : 8 + length], data[8 + length :]
    if _DEEP.encode() in header:
        depth = 1 << recipe.below(17)
        header = _DEEP_VALUE.sub(b"[" * depth + b"]" * depth, header, count=2)
    keys = list(_KEY.finditer(header)) if recipe.below(16) == 1 else []
    if keys:
        key = keys[recipe.below(1 << 16) % len(keys)]
        header = header[: key.start()] + key[0] + b"7, " + header[key.start() :]
    return join_model(header, tensors)


# --- all -----------------------------------------------------------------------------------------

TARGETS: dict[str, tuple[Callable[[Path], Target], Callable[[], list[bytes]]]] = {
    "container": (prepare_container, container_seeds),
    "decompress": (prepare_decompress, decompress_seeds),
    "model": (prepare_model, model_seeds),
}
"""By name: what makes the target ready, given a folder that it may write to; and inputs to begin with."""
