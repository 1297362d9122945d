"""docs/reader.py, the reader written from docs/format.md alone, against the package.

The two share no code, so that where they agree, and on what they refuse, the document was enough.
Files that the package would not write are made here with the reader's own choice of tables and the
range encoder below, the inverse of the decoder in the document.
"""

import ast
import dataclasses
import importlib.util
import json
import random
import re
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic import synthetic_picture

from vqcodec import container, errors
from vqcodec.codec import Codec, load_codec
from vqcodec.model import load_model
from vqcodec.uniform import UniformBottleneck

ROOT = Path(__file__).resolve().parents[1]
READER_PY = ROOT / "docs" / "reader.py"
FORMAT_MD = ROOT / "docs" / "format.md"
WEIGHTS = ROOT / "vqcodec" / "weights"


def _import_reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("format_reader", READER_PY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reader = _import_reader()

MODES = reader.MODES
VECTOR = ("vq", "dvae", "vqvae", "vqvae2", "fsq", "rvq")
UNIFORM = tuple(mode for mode in MODES if mode not in VECTOR)
# Height, width and channels; the last but one has two prior tiles.
SHAPES = [(1, 1, 3), (31, 17, 3), (40, 56, 1), (24, 1040, 3), (100, 100, 3)]


@pytest.fixture(scope="module")
def codecs(mode_models: Path) -> dict[str, Codec]:
    return {mode: load_codec(mode_models / f"{mode}.safetensors", "cpu") for mode in MODES}


@pytest.fixture(scope="module")
def models(mode_models: Path) -> dict[str, Any]:
    return {mode: reader.read_model((mode_models / f"{mode}.safetensors").read_bytes()) for mode in MODES}


def _picture(height: int, width: int, channels: int) -> np.ndarray:
    picture = synthetic_picture(2, height, width)
    return picture if channels == 3 else picture[..., 0]


def _outcome(read: Callable[[], Any]) -> tuple[str, Any]:
    """The name of the error, or "" and what was read; any other exception is a failure."""
    try:
        return "", read()
    except (reader.ReaderError, errors.VqcError) as error:
        assert "\n" not in str(error)
        return type(error).__name__, None


def _agree(data: bytes, codec: Codec, model: Any) -> tuple[str, list[np.ndarray]]:
    """Outcome of reading the indices, the same of both readers."""
    expected, wanted = _outcome(lambda: codec.read_indices(data))
    got, indices = _outcome(lambda: reader.read_indices(data, model))
    assert got == expected, data.hex()
    if got:
        return got, []
    assert len(indices) == len(wanted)
    for mine, theirs in zip(indices, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    return "", indices


# Putting files together.


def _varint(value: int) -> bytes:
    groups = []
    while True:
        groups.append(value & 0x7F)
        value >>= 7
        if not value:
            return bytes(group | 0x80 for group in groups[:-1]) + bytes(groups[-1:])


def _section(type_byte: int, payload: bytes) -> bytes:
    stored = bytes([type_byte]) + _varint(len(payload)) + payload
    return stored + struct.pack("<I", zlib.crc32(stored))


def _file(
    sections: Sequence[bytes] = (),
    *,
    mode_byte: int = 0,
    rate: int = 1,
    size: tuple[int, int] = (16, 16),
    code_id: int = 0,
    version: int = 1,
    count: int | None = None,
) -> bytes:
    """A file with right checksums; size is height and width."""
    count = len(sections) if count is None else count
    fields = (b"\x8eVQC", version, mode_byte, rate, count, size[1], size[0], code_id)
    header = struct.pack("<4sBBBBIII", *fields)
    return header + struct.pack("<I", zlib.crc32(header)) + b"".join(sections)


def _payload(streams: Sequence[bytes]) -> bytes:
    return b"".join(_varint(len(stream)) for stream in streams[:-1]) + b"".join(streams)


class RangeEncoder:
    """The inverse of the range decoder: low may grow without bound, so that it never carries."""

    def __init__(self) -> None:
        self.low = 0
        self.width = (1 << 64) - 1
        self.words = 2

    def put(self, cumulative: Sequence[int], symbol: int) -> None:
        unit = self.width >> 24
        self.low += unit * cumulative[symbol]
        self.width = unit * (cumulative[symbol + 1] - cumulative[symbol])
        if self.width < 1 << 32:
            self.low <<= 32
            self.width <<= 32
            self.words += 1

    def stream(self, *, beyond: int | None = None) -> bytes:
        """All words, of a point so far beyond low; by default all but the last word, which can be
        zero, as the width is at least 2^32."""
        left_out = 1 if beyond is None else 0
        point = -(-self.low >> 32) if beyond is None else self.low + beyond
        words = [point >> 32 * n & 0xFFFFFFFF for n in reversed(range(self.words - left_out))]
        stream = struct.pack(f"<{len(words)}I", *words)
        return stream[:-4] + stream[-4:].rstrip(b"\0")


class StageEncoder(reader.StageDecoder):
    """Writes given symbols where the decoder reads them."""

    def encode(self, symbols: np.ndarray, coarser: Sequence[np.ndarray]) -> bytes:
        streams = []
        for rows, cols in reader.Grid(*symbols.shape[1:]).tiles:
            encoder = RangeEncoder()
            self.symbols = symbols[:, rows, cols]
            of_tile = [indices[:, rows, cols] for indices in coarser]
            self.decode_tile(encoder, np.zeros_like(self.symbols), of_tile)
            streams.append(encoder.stream())
        return _payload(streams)

    def decode_group(
        self,
        encoder: RangeEncoder,
        group: int,
        chosen: np.ndarray,
        positions: np.ndarray,
        indices: np.ndarray,
    ) -> None:
        for table in np.unique(chosen):
            cumulative = self.cumulative[group, table].tolist()
            for row, col in positions[chosen == table]:
                symbol = int(self.symbols[group, row, col])
                encoder.put(cumulative, symbol)
                indices[group, row, col] = symbol


# The program and the document.


def test_it_shares_no_code_with_the_codec() -> None:
    imported = set()
    for node in ast.walk(ast.parse(READER_PY.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None
            imported.add(node.module.split(".")[0])
    assert imported <= set(sys.stdlib_module_names) | {"numpy"}
    assert "importlib" not in imported


def test_its_errors_are_those_of_the_document() -> None:
    named = set(re.findall(r"`(\w+Error)`", FORMAT_MD.read_text(encoding="utf-8")))
    own = {error.__name__ for error in reader.ReaderError.__subclasses__()}
    assert own == named
    assert all(issubclass(getattr(errors, name), errors.VqcError) for name in own)


def test_worked_examples() -> None:
    blocks = re.findall(r"```hex \w+\n(.*?)```", FORMAT_MD.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        data = bytes.fromhex(" ".join(line.split("  ")[0] for line in block.splitlines()))
        header, sections = reader.read_container(data)
        expected, wanted = container.read_container(data)
        assert [(s.type, s.critical, s.payload) for s in sections] == [
            (s.type, s.critical, s.payload) for s in wanted
        ]
        assert (header.width, header.height, header.rate, header.code_id, header.grey) == (
            expected.width,
            expected.height,
            expected.rate,
            expected.code_id,
            expected.grey,
        )
        for cut in range(len(data)):
            with pytest.raises(reader.TruncatedError):
                reader.read_container(data[:cut])


# Files that the package writes.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_same_indices(
    codecs: dict[str, Codec], models: dict[str, Any], mode: str, shape: tuple[int, int, int]
) -> None:
    codec, model = codecs[mode], models[mode]
    for quality in (1, 50, 100):
        data = codec.compress(_picture(*shape), quality=quality)
        header, _ = reader.read_container(data)
        assert (header.mode, header.height, header.width) == (mode, *shape[:2])
        assert header.grey == (shape[2] == 1)
        error, indices = _agree(data, codec, model)
        assert not error
        unit = 2.0**-24 if mode in UNIFORM else 0.25
        bottleneck = codec.model.bottleneck
        # What the mean of an hvae's lower level adds is floating point, and no matter of the format.
        if isinstance(bottleneck, UniformBottleneck):
            expected = UniformBottleneck.from_symbols(bottleneck, indices, header.rate).numpy()
        else:
            expected = bottleneck.from_symbols(indices, header.rate).numpy()
        latent = reader.latent(header, indices, model)
        assert latent.dtype == np.int64
        np.testing.assert_array_equal((latent * unit).astype(np.float32), expected.reshape(latent.shape))


def test_same_indices_of_pictures(
    codecs: dict[str, Codec], models: dict[str, Any], pictures: Path
) -> None:
    for path in sorted(pictures.iterdir()):
        for mode in MODES:
            data = codecs[mode].compress(Image.open(path), quality=80)
            assert _agree(data, codecs[mode], models[mode])[0] == ""


@pytest.mark.parametrize("path", sorted(WEIGHTS.glob("*.safetensors")), ids=lambda path: path.stem)
def test_packaged_models(path: Path) -> None:
    model = reader.read_model(path.read_bytes())
    codec = load_codec(path, "cpu")
    assert model.code_id == codec.model.code_id
    data = codec.compress(_picture(100, 100, 3), quality=70)
    assert _agree(data, codec, model)[0] == ""


# Files with any symbols.


def _vector_file(
    model: Any, mode: str, rate: int, size: tuple[int, int], symbols: dict[int, np.ndarray]
) -> bytes:
    """symbols: (G, rows, cols) by stage; the stages that are missing are left out."""
    last_stage, level = divmod(rate - 1, 8)
    coarser: list[np.ndarray] = []
    sections = []
    shape = (model.groups, -(-size[0] // 16), -(-size[1] // 16))
    for s in range(max(symbols, default=-1) + 1):
        if s in symbols:
            encoder = StageEncoder(model, s, level if s == last_stage else 7)
            sections.append(_section(0x90 + s, encoder.encode(symbols[s], coarser)))
        coarser.append(symbols.get(s, np.zeros(shape, dtype=np.uint8)))
    mode_byte = MODES.index(mode)
    return _file(sections, mode_byte=mode_byte, rate=rate, size=size, code_id=model.code_id)


# The other modes differ from vqvae in their codebooks alone.
@pytest.mark.parametrize("mode", ["vq", "dvae", "vqvae", "vqvae2"])
@pytest.mark.parametrize("size", [(1, 1), (20, 50), (17, 1041), (1030, 20)])
def test_any_indices(
    codecs: dict[str, Codec], models: dict[str, Any], mode: str, size: tuple[int, int]
) -> None:
    model = models[mode]
    numbers = np.random.default_rng(5)
    shape = (model.groups, -(-size[0] // 16), -(-size[1] // 16))
    uniform = numbers.integers(0, model.codewords, shape).astype(np.uint8)
    sparse = np.where(numbers.random(shape) < 0.9, 0, uniform).astype(np.uint8)
    highest = np.full(shape, model.codewords - 1, dtype=np.uint8)
    for rate in (1, 8 * model.stages - 3, 8 * model.stages):
        stages = (rate - 1) // 8 + 1
        for kind in (uniform, sparse, highest):
            for left_out in range(-1, stages):
                symbols = {s: kind for s in range(stages) if s != left_out}
                data = _vector_file(model, mode, rate, size, symbols)
                error, indices = _agree(data, codecs[mode], model)
                assert not error
                assert len(indices) == max(symbols, default=0) + 1
                for s, of_stage in enumerate(indices):
                    np.testing.assert_array_equal(of_stage, symbols.get(s, np.zeros_like(kind)))


def test_end_of_a_stream(codecs: dict[str, Codec], models: dict[str, Any]) -> None:
    """How far beyond low the point may be."""
    codec, model = codecs["vq"], models["vq"]
    symbols = np.zeros((model.groups, 1, 1), dtype=np.uint8)
    stage = StageEncoder(model, 0, 0)
    stage.symbols = symbols
    encoder = RangeEncoder()
    stage.decode_tile(encoder, np.zeros_like(symbols), [])
    assert encoder.width > 2**33
    for beyond, error in [(0, ""), (2**33 - 2, ""), (2**33 - 1, "CorruptError"), (2**33, "CorruptError")]:
        data = _file([_section(0x90, encoder.stream(beyond=beyond))], code_id=model.code_id)
        assert _agree(data, codec, model)[0] == error, beyond


def _uniform_parts(model: Any, rate: int, values: np.ndarray) -> tuple[bytes, list[bytes]]:
    """Payload of stage 0 and streams of stage 1 of values (C, rows, cols)."""
    coded = np.where(values > 0, 2 * values - 1, -2 * values)
    symbols = np.where(abs(values) > 127, 255, coded).astype(np.uint8)
    streams = []
    for rows, cols in reader.Grid(*values.shape[1:]).tiles:
        of_tile = values[:, rows, cols]
        escapes = of_tile[abs(of_tile) > 127].tolist()
        streams.append(b"".join(_varint(2 * (abs(n) - 128) + (n < 0)) for n in escapes))
    return StageEncoder(model, 0, (rate - 1) * 8 // 100).encode(symbols, []), streams


def _uniform_file(model: Any, mode: str, size: tuple[int, int], rate: int, *payloads: bytes) -> bytes:
    sections = [_section(0x90 + s, payload) for s, payload in enumerate(payloads)]
    mode_byte = MODES.index(mode)
    return _file(sections, mode_byte=mode_byte, rate=rate, size=size, code_id=model.code_id)


@pytest.mark.parametrize("mode", UNIFORM)
@pytest.mark.parametrize("size", [(1, 1), (20, 50), (17, 1041), (1030, 20)])
def test_any_values(
    codecs: dict[str, Codec], models: dict[str, Any], mode: str, size: tuple[int, int]
) -> None:
    model = models[mode]
    numbers = np.random.default_rng(6)
    shape = (model.groups, -(-size[0] // 16), -(-size[1] // 16))
    for rate in (1, 13, 14, 100):
        values = numbers.integers(-130, 131, shape)
        values.flat[::7] = numbers.integers(-32768, 32768, values.flat[::7].shape)
        values.flat[:4] = (32767, -32768, 128, -128)
        payload, escapes = _uniform_parts(model, rate, values)
        data = _uniform_file(model, mode, size, rate, payload, _payload(escapes))
        error, indices = _agree(data, codecs[mode], model)
        assert not error
        np.testing.assert_array_equal(indices[0], values)


# Bad files.

BAD_FILES: list[tuple[str, bytes]] = [
    ("TruncatedError", b""),
    ("TruncatedError", b"\x8eVQ"),
    ("NotVqcError", b"\x8eVX"),
    ("NotVqcError", b"\x8eVQD" + bytes(30)),
    ("TruncatedError", _file(version=2)[:23]),
    ("UnsupportedVersionError", _file(version=2)[:23] + b"!"),
    ("ChecksumError", _file(mode_byte=0xFF, rate=0)[:23] + b"!"),
    ("CorruptError", _file(mode_byte=0x2F, rate=0)),
    ("UnsupportedFeatureError", _file(mode_byte=len(MODES), rate=0)),
    ("CorruptError", _file(rate=0)),
    ("CorruptError", _file(size=(0, 1))),
    ("CorruptError", _file(size=(1, 0))),
    ("CorruptError", _file(mode_byte=1, rate=101)),
    ("CorruptError", _file(mode_byte=2, rate=255)),
    ("TruncatedError", _file(count=1)),
    ("TruncatedError", _file([b"\x90"])),
    ("TruncatedError", _file([b"\x90\x80\x80\x80\x80"])),
    ("CorruptError", _file([b"\x90\x80\x00"])),
    ("CorruptError", _file([b"\x90\x80\x80\x80\x80\x08"])),
    ("CorruptError", _file([b"\x90\x80\x80\x80\x80\x80"])),
    ("TruncatedError", _file([b"\x90\xff\xff\xff\xff\x07"])),
    ("TruncatedError", _file([_section(0x90, b"x")[:-1]])),
    ("ChecksumError", _file([_section(0xC0, b"x")[:-1] + b"!"])),
    ("CorruptError", _file() + b"\0"),
    ("CorruptError", _file([_section(0xC0, b"")]) + b"\0"),
    ("UnsupportedFeatureError", _file([_section(0xC0, b""), _section(0x10, b"")])),
    ("CorruptError", _file([_section(0x10, b""), _section(0xC0, b"")])),
    ("UnsupportedFeatureError", _file([_section(0xA0, b"")])),
    ("UnsupportedFeatureError", _file([_section(0x8F, b"")])),
    ("CorruptError", _file([_section(0x91, b""), _section(0x90, b"")])),
    ("CorruptError", _file([_section(0x91, b""), _section(0x41, b""), _section(0x91, b"")])),
    ("CorruptError", _file([_section(0x91, b"")], mode_byte=1)),
    ("CorruptError", _file([_section(0x90, b""), _section(0x92, b"")], mode_byte=2)),
    ("CorruptError", _file([_section(0x90 + s, b"") for s in range(3)], mode_byte=2)),
    ("", _file([_section(0x40, b""), _section(0x9F, b""), _section(0x40, b"")], rate=255)),
    ("", _file([_section(0x90, b""), _section(0x91, b"")], mode_byte=0x12, rate=100)),
]


@pytest.mark.parametrize(("error", "data"), BAD_FILES)
def test_errors_of_the_container(error: str, data: bytes) -> None:
    assert _outcome(lambda: reader.read_container(data))[0] == error
    assert _outcome(lambda: container.read_container(data))[0] == error


def test_errors_of_the_mode(codecs: dict[str, Codec], models: dict[str, Any]) -> None:
    codec, model = codecs["vqvae"], models["vqvae"]
    two_tiles = {"mode_byte": 4, "size": (16, 1040), "code_id": model.code_id}
    wide = {**two_tiles, "size": (16, 16 * 64 * 16)}
    for error, data in [
        ("UnknownModelError", _file(mode_byte=1, code_id=model.code_id ^ 1)),
        ("CorruptError", _file(mode_byte=1, code_id=model.code_id)),
        ("TooLargeError", _file(size=(2**32 - 1, 2**32 - 1), mode_byte=1)),
        ("", _file(rate=8 * model.stages, **two_tiles)),
        ("CorruptError", _file(rate=8 * model.stages + 1, **two_tiles)),
        ("CorruptError", _file([_section(0x91, b"\0")], rate=8, **two_tiles)),
        ("TruncatedError", _file([_section(0x91, b"")], rate=8, **two_tiles)),
        ("", _file([_section(0x90, b"\0")], **two_tiles)),
        ("TruncatedError", _file([_section(0x90, b"")], **two_tiles)),
        ("TruncatedError", _file([_section(0x90, b"\x80")], **two_tiles)),
        ("TruncatedError", _file([_section(0x90, b"\2x")], **two_tiles)),
        ("CorruptError", _file([_section(0x90, b"\x80\x00")], **two_tiles)),
        ("TruncatedError", _file([_section(0x90, b"\x80\x00" + bytes(12))], **wide)),
        ("CorruptError", _file([_section(0x90, b"\x80\x00" + bytes(13))], **wide)),
        ("CorruptError", _file([_section(0x90, b"\0" + bytes(40_000))], **two_tiles)),
    ]:
        assert _agree(data, codec, model)[0] == error, data.hex()


def test_errors_of_escapes(codecs: dict[str, Codec], models: dict[str, Any]) -> None:
    codec, model = codecs["ae"], models["ae"]
    size = (16, 1040)
    values = np.zeros((model.groups, 1, 65), dtype=np.int64)
    values[1, 0, [3, 64]] = (-200, 300)
    payload, escapes = _uniform_parts(model, 40, values)
    assert [len(stream) for stream in escapes] == [2, 2]
    empty, _ = _uniform_parts(model, 40, np.zeros_like(values))
    good = _varint(144)
    for error, payloads in [
        ("", (payload, _payload(escapes))),
        ("CorruptError", (payload,)),
        ("CorruptError", (payload, _payload([b"", b""]))),
        ("CorruptError", (payload, _payload([escapes[0] + b"\0", escapes[1]]))),
        ("TruncatedError", (payload, _payload([escapes[0], b"\x80"]))),
        ("CorruptError", (payload, _payload([b"", b"\x80"]))),
        ("TruncatedError", (payload, _payload([b"\x80\x00\x80", good]))),
        ("CorruptError", (payload, _payload([good, b"\x80\x00"]))),
        ("", (payload, _payload([good, _varint(65278)]))),
        ("CorruptError", (payload, _payload([good, _varint(65280)]))),
        ("", (payload, _payload([good, _varint(65281)]))),
        ("CorruptError", (payload, _payload([good, _varint(65283)]))),
        ("CorruptError", (payload, _payload([good, b"\xff\xff\xff\xff\x0f"]))),
        ("TruncatedError", (b"\x01\xff", b"")),
        ("", (empty, _payload([b"", b""]))),
        ("CorruptError", (empty, _payload([b"", b"\0"]))),
    ]:
        data = _uniform_file(model, "ae", size, 40, *payloads)
        assert _agree(data, codec, model)[0] == error, payloads[1:]


def _mutated(data: bytes, numbers: random.Random) -> bytes:
    """data with one to three bytes changed, removed or added."""
    result = bytearray(data)
    for _ in range(numbers.choice((1, 1, 2, 3))):
        place = numbers.randrange(len(result) + 1)
        value = numbers.choice((0x00, 0x7F, 0x80, 0xFF, numbers.randrange(256)))
        kind = numbers.randrange(5)
        if kind == 0:
            result.insert(place, value)
        elif kind == 1:
            del result[place:]
        elif kind == 2:
            del result[place : place + 1]
        elif place < len(result):
            result[place] = value if kind == 3 else result[place] ^ (1 << numbers.randrange(8))
    return bytes(result)


@pytest.mark.parametrize("mode", MODES)
def test_mutated_files(codecs: dict[str, Codec], models: dict[str, Any], mode: str) -> None:
    """Damage with wrong checksums, and damage of every part with right ones."""
    codec, model = codecs[mode], models[mode]
    numbers = random.Random(MODES.index(mode))
    files = [codec.compress(_picture(*shape), quality=60) for shape in SHAPES]
    seen = set()
    for _ in range(150):
        data = numbers.choice(files)
        header, sections = reader.read_container(data)
        stored = [(0x80 * s.critical + s.type, s.payload) for s in sections]
        fields = {
            "mode_byte": data[5],
            "rate": header.rate,
            "size": (header.height, header.width),
            "code_id": header.code_id,
        }
        kind = numbers.randrange(4)
        if kind == 0:
            mutated = _mutated(data, numbers)
        elif kind == 1:
            stored = [(type_byte, _mutated(payload, numbers)) for type_byte, payload in stored]
            mutated = _file([_section(*section) for section in stored], **fields)
        elif kind == 2:
            name, value = numbers.choice(
                [
                    ("mode_byte", numbers.randrange(6)),
                    ("rate", numbers.randrange(256)),
                    ("size", (numbers.randrange(1200), numbers.randrange(40))),
                    ("code_id", numbers.randrange(2**32)),
                ]
            )
            mutated = _file([_section(*section) for section in stored], **{**fields, name: value})
        else:
            type_byte = numbers.choice((0x10, 0x41, 0x90, 0x91, 0x92, 0xC1))
            stored.insert(numbers.randrange(len(stored) + 1), (type_byte, numbers.randbytes(5)))
            mutated = _file([_section(*section) for section in stored], **fields)
        expected = _outcome(lambda data=mutated: container.read_container(data))[0]
        assert _outcome(lambda data=mutated: reader.read_container(data))[0] == expected
        seen.add(_agree(mutated, codec, model)[0])
    assert {"", "ChecksumError", "CorruptError", "TruncatedError"} <= seen


# Bad models.

Metadata = dict[str, Any]
Tensors = dict[str, np.ndarray]
TYPES = {"I8": "<i1", "U8": "<u1", "I16": "<i2", "I32": "<i4", "F16": "<f2"}


def _unpack_model(data: bytes) -> tuple[Metadata, Tensors]:
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = json.loads(header.pop("__metadata__")["vqcodec"])
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data[start + begin : start + end], dtype=TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"]).copy()
    return metadata, tensors


def _pack_model(metadata: Metadata, tensors: Tensors) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"vqcodec": json.dumps(metadata)}}
    body = b""
    for name, tensor in tensors.items():
        kind = next(kind for kind, code in TYPES.items() if tensor.dtype == np.dtype(code))
        offsets = [len(body), len(body) + tensor.nbytes]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        body += tensor.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def _rehashed(metadata: Metadata, tensors: Tensors) -> bytes:
    """A model file whose code_id is right."""
    model = reader.read_layout(metadata)
    model.tensors.update({name: tensors[name] for name in reader.tensor_table(model)})
    return _pack_model({**metadata, "code_id": reader.model_hash(model)}, tensors)


def _with(name: str, place: Any, value: int) -> Callable[[Metadata, Tensors], bytes]:
    """A change of values of one tensor."""

    def change(metadata: Metadata, tensors: Tensors) -> bytes:
        tensors[name][place] = value
        return _rehashed(metadata, tensors)

    return change


def _without(name: str) -> Callable[[Metadata, Tensors], bytes]:
    return lambda metadata, tensors: _pack_model(
        metadata, {key: tensor for key, tensor in tensors.items() if key != name}
    )


def _as_type(name: str, kind: str) -> Callable[[Metadata, Tensors], bytes]:
    return lambda metadata, tensors: _pack_model(metadata, {**tensors, name: tensors[name].view(kind)})


def _wrong_code_id(metadata: Metadata, tensors: Tensors) -> bytes:
    return _pack_model({**metadata, "code_id": metadata["code_id"] ^ 1}, tensors)


def _largest_sum(sum_is: int, scale: int) -> Callable[[Metadata, Tensors], bytes]:
    """A bias by which the largest sum of one output of linear2 is sum_is, and a scale for it."""

    def change(metadata: Metadata, tensors: Tensors) -> bytes:
        weight = tensors["prior.0.0.linear2.weight"]
        bias = sum_is - 255 * int(abs(weight[0, 0].astype(np.int64)).sum())
        tensors["prior.0.0.linear2.bias"][0, 0] = bias
        tensors["prior.0.0.linear2.scale"][0, 0] = scale
        return _rehashed(metadata, tensors)

    return change


def _product(step: int, gain: int) -> Callable[[Metadata, Tensors], bytes]:
    def change(metadata: Metadata, tensors: Tensors) -> bytes:
        tensors["step"][:] = 1
        tensors["gain"][:] = 1
        tensors["step"][-1] = step
        tensors["gain"][-1] = gain
        return _rehashed(metadata, tensors)

    return change


def _even_window(metadata: Metadata, tensors: Tensors) -> bytes:
    """Right in all but the rule that a window has a middle."""
    layout = reader.read_layout(metadata)
    metadata["prior"]["window"] = layout.window - 1
    even = dataclasses.replace(layout, window=layout.window - 1)
    for s in range(layout.stages):
        for x in reader.windows_of(s):
            name = f"prior.{s}.window_{x}.taps"
            tensors[name] = np.ascontiguousarray(tensors[name][1:, 1:])
    even.tensors.update({name: tensors[name] for name in reader.tensor_table(even)})
    return _pack_model({**metadata, "code_id": reader.model_hash(even)}, tensors)


def _predicting(predicted: list[int] | None) -> Callable[[Metadata, Tensors], bytes]:
    """Right in all but, perhaps, the rules for predicted blocks; None for no such key."""

    def change(metadata: Metadata, tensors: Tensors) -> bytes:
        metadata["quantizer"].pop("predicted", None)
        layout = reader.read_layout(metadata)
        changed = dataclasses.replace(layout, predicted=tuple(predicted or ()))
        if predicted is not None:
            metadata["quantizer"]["predicted"] = predicted
        for name, (_, shape) in reader.tensor_table(changed).items():
            if name.startswith("predict."):
                tensors[name] = np.ones(shape, dtype=np.int16)
        changed.tensors.update({name: tensors[name] for name in reader.tensor_table(changed)})
        return _pack_model({**metadata, "code_id": reader.model_hash(changed)}, tensors)

    return change


MODEL_FILES: list[tuple[str, str, Callable[[Metadata, Tensors], bytes]]] = [
    ("vq", "", _rehashed),
    ("ae", "", _rehashed),
    ("vq", "ModelFileError", _wrong_code_id),
    ("vq", "ModelFileError", _even_window),
    ("vq", "ModelFileError", _without("prior.0.tables")),
    ("vq", "ModelFileError", _without("codebook.0.0")),
    ("ae", "ModelFileError", _without("gain")),
    ("vq", "ModelFileError", _as_type("prior.0.tables", "i1")),
    ("vq", "ModelFileError", _with("codebook.0.0", (0, 0, 0), 1)),
    ("vq", "ModelFileError", _with("prior.0.tables", (0, 0), 255)),
    ("vq", "", _with("prior.0.tables", (0, 0, slice(1, None)), 255)),
    ("vq", "ModelFileError", _with("prior.0.0.linear1.weight", (0, 0, 0), -128)),
    ("vq", "ModelFileError", _with("prior.0.window_same.taps", (0, 0, 0), -128)),
    ("vq", "ModelFileError", _with("prior.0.0.linear4.bias", (0, 0), 2**31 - 1)),
    ("vq", "ModelFileError", _with("prior.0.window_same.bias", 0, -(2**31))),
    ("vq", "", _largest_sum(2**31 - 1, 2**30)),
    ("vq", "ModelFileError", _largest_sum(2**31, 1)),
    ("vq", "ModelFileError", _largest_sum(2**31 - 1, 2**30 + 1)),
    ("vq", "ModelFileError", _largest_sum(2**31 - 1, -(2**30) - 1)),
    ("ae", "ModelFileError", _with("step", 0, 0)),
    ("ae", "ModelFileError", _with("gain", 99, -1)),
    ("ae", "", _product(2**20, 2**17 - 1)),
    ("ae", "ModelFileError", _product(2**20, 2**17)),
    ("vq", "", _predicting(None)),
    ("vq", "", _predicting([])),
    ("vq", "", _predicting([2])),
    ("vq", "", _predicting([2, 6])),
    ("vq", "ModelFileError", _predicting([1])),
    ("vq", "ModelFileError", _predicting([1, 7])),
    ("vq", "ModelFileError", _predicting([3, 5])),
    ("vq", "ModelFileError", _predicting([8])),
    ("vq", "ModelFileError", _predicting([2, 6, 4])),
    ("vq", "ModelFileError", _predicting([2, 6, 12])),
    ("vq", "ModelFileError", _predicting([2, 6, 12, 4])),
    ("dvae", "", _predicting([])),
    ("dvae", "ModelFileError", _predicting([2])),
    ("vqvae", "", _predicting(None)),
    ("vqvae", "ModelFileError", _predicting([2, 6])),
    ("ae", "ModelFileError", _predicting([])),
    ("vae", "ModelFileError", _predicting([1])),
    ("vq", "", _with("predict.1", (0, 0, 0), -(1 << 15))),
    ("vq", "ModelFileError", _without("predict.0")),
    ("vq", "ModelFileError", _as_type("predict.1", "<f2")),
    ("vq", "ModelFileError", lambda metadata, tensors: b""),
    ("vq", "ModelFileError", lambda metadata, tensors: b"\xff" * 20),
    ("vq", "ModelFileError", lambda metadata, tensors: (2).to_bytes(8, "little") + b"{}"),
    ("vq", "ModelFileError", lambda metadata, tensors: _pack_model(metadata, tensors)[:-1]),
    ("vq", "ModelFileError", lambda metadata, tensors: _pack_model({**metadata, "format": 2}, tensors)),
    ("vq", "ModelFileError", lambda metadata, tensors: _pack_model({**metadata, "mode": "vp"}, tensors)),
    ("vq", "ModelFileError", lambda metadata, tensors: _pack_model({**metadata, "mode": "ae"}, tensors)),
]


@pytest.mark.parametrize(("mode", "error", "change"), MODEL_FILES)
def test_model_files(
    mode_models: Path,
    tmp_path: Path,
    mode: str,
    error: str,
    change: Callable[[Metadata, Tensors], bytes],
) -> None:
    data = change(*_unpack_model((mode_models / f"{mode}.safetensors").read_bytes()))
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    assert _outcome(lambda: reader.read_model(data))[0] == error
    assert _outcome(lambda: load_model(path))[0] == error


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("quantizer", "codewords", 1),
        ("quantizer", "codewords", 257),
        ("quantizer", "codewords", 255),
        ("quantizer", "blocks", []),
        ("quantizer", "blocks", [[1]]),
        ("quantizer", "mu", []),
        ("quantizer", "predicted", [2, 0]),
        ("quantizer", "predicted", [2, -6]),
        ("quantizer", "predicted", [2.0, 6.0]),
        ("quantizer", "predicted", [True, 7]),
        ("quantizer", "predicted", [[2], [6]]),
        ("quantizer", "predicted", ["2", "6"]),
        ("quantizer", "predicted", 2),
        ("quantizer", "predicted", None),
        ("prior", "chunks", [0]),
        ("prior", "chunks", [3, 3]),
        ("prior", "chunks", [10**6]),
        ("prior", "window", 4),
        ("prior", "window", 10**9 + 1),
        ("prior", "hidden", [8]),
        ("prior", "tables", 0),
        ("prior", "tables", True),
        ("prior", "embedding", 2.0),
        ("prior", "group_hidden", -1),
    ],
)
def test_layouts_that_break_a_rule(
    mode_models: Path, tmp_path: Path, part: str, key: str, value: object
) -> None:
    metadata, tensors = _unpack_model((mode_models / "vq.safetensors").read_bytes())
    metadata[part][key] = value
    data = _pack_model(metadata, tensors)
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    assert _outcome(lambda: reader.read_model(data))[0] == "ModelFileError"
    assert _outcome(lambda: load_model(path))[0] == "ModelFileError"


def test_coarse_features_are_clamped(tmp_path: Path) -> None:
    """A model of more than two stages, with embeddings whose sums leave the range."""
    numbers = np.random.default_rng(7)
    metadata, tensors = _unpack_model((WEIGHTS / "default.safetensors").read_bytes())
    for name, tensor in tensors.items():
        if ".embed_coarse." in name:
            tensor[:] = numbers.integers(0, 256, tensor.shape)
    data = _rehashed(metadata, tensors)
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    model = reader.read_model(data)
    symbols = numbers.integers(0, model.codewords, (4, model.groups, 2, 3)).astype(np.uint8)
    file = _vector_file(model, "vq", 32, (20, 33), dict(enumerate(symbols)))
    error, indices = _agree(file, load_codec(path, "cpu"), model)
    assert not error
    np.testing.assert_array_equal(indices, symbols)


# Prediction.


@pytest.fixture(scope="module")
def predicting(mode_models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Codec, Any]:
    """A model with weights of all sizes, two thirds of them small enough not to be clamped."""
    numbers = np.random.default_rng(8)
    metadata, tensors = _unpack_model((mode_models / "vq.safetensors").read_bytes())
    assert metadata["quantizer"]["predicted"] == [2, 6]
    for name, tensor in tensors.items():
        if name.startswith("predict."):
            small = numbers.integers(-3000, 3000, tensor.shape)
            any_size = numbers.integers(-32768, 32768, tensor.shape)
            column = numbers.random((tensor.shape[0], 1, tensor.shape[2])) < 2 / 3
            tensor[:] = np.where(column, small, any_size)
    data = _rehashed(metadata, tensors)
    path = tmp_path_factory.mktemp("predicting") / "model.safetensors"
    path.write_bytes(data)
    return load_codec(path, "cpu"), reader.read_model(data)


def _check_latent(codec: Codec, model: Any, header: Any, indices: list[np.ndarray]) -> np.ndarray:
    """The latent that both readers find, in quarters of a grey level."""
    latent = reader.latent(header, indices, model)
    assert latent.dtype == np.int64
    expected = codec.model.bottleneck.from_symbols(indices, header.rate).numpy()
    np.testing.assert_array_equal(latent, expected * 4)
    return latent


# The last but one has two prior tiles, which prediction does not see.
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (150, 16), (40, 24), (17, 1041), (272, 144)])
def test_any_prediction(predicting: tuple[Codec, Any], size: tuple[int, int]) -> None:
    codec, model = predicting
    numbers = np.random.default_rng(9)
    shape = (model.groups, -(-size[0] // 16), -(-size[1] // 16))
    drawn = numbers.integers(0, model.codewords, (2, *shape)).astype(np.uint8)
    drawn[0][numbers.random(shape) < 0.5] = 0
    latents = []
    for mode, rate, symbols in [
        ("vq", 16, {0: drawn[0], 1: drawn[1]}),
        ("vqvae", 16, {0: drawn[0]}),
        ("dvae", 3, {0: drawn[0]}),
        ("vq", 16, {1: drawn[1]}),
        ("vq", 16, {}),
    ]:
        data = _vector_file(model, mode, rate, size, symbols)
        error, indices = _agree(data, codec, model)
        assert not error
        header = reader.read_header(data)
        latents.append(_check_latent(codec, model, header, indices))
    whole, cut, again, second, none = latents
    np.testing.assert_array_equal(cut, again)
    np.testing.assert_array_equal(whole, cut + second)
    assert not none.any()


def test_prediction_of_pictures(predicting: tuple[Codec, Any]) -> None:
    codec, model = predicting
    for quality in (1, 100):
        data = codec.compress(_picture(150, 281, 3), quality=quality)
        error, indices = _agree(data, codec, model)
        assert not error
        _check_latent(codec, model, reader.read_header(data), indices)


# The command line.


def test_command_line(
    codecs: dict[str, Codec], mode_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = codecs["vqvae"].compress(_picture(31, 17, 3), quality=90)
    file, output = tmp_path / "a.vqc", tmp_path / "a.npz"
    file.write_bytes(data)
    model = str(mode_models / "vqvae.safetensors")
    assert reader.main([model, str(file), "-o", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "mode vqvae" in lines and "width 17" in lines and "height 31" in lines
    wanted = codecs["vqvae"].read_indices(data)
    assert sum(line.startswith("stage ") for line in lines) == len(wanted)
    with np.load(output) as arrays:
        assert list(arrays) == [f"stage{s}" for s in range(len(wanted))]
        for s, indices in enumerate(wanted):
            np.testing.assert_array_equal(arrays[f"stage{s}"], indices)

    file.write_bytes(data[:-1])
    for arguments in ([model, str(file)], [model, str(tmp_path / "none.vqc")], [str(file), str(file)]):
        assert reader.main(arguments) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and len(printed.err.splitlines()) == 1
