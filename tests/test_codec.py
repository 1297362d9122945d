"""The codec end to end with a tiny model: round trips, determinism of decoding, damaged files."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import synthetic_picture

import vqcodec
from vqcodec.bottleneck import VectorBottleneck
from vqcodec.codec import Codec, load_codec
from vqcodec.container import read_container, stage_payloads, unpack_tiles, write_container
from vqcodec.errors import (
    CorruptError,
    ModelFileError,
    TooLargeError,
    UnknownModelError,
    VqcError,
)
from vqcodec.model import find_model_by_code, load_model
from vqcodec.quantizer import LEVELS, RatePoint
from vqcodec.train.prior import CodedPhoto, select_tables

SIZES = [(1, 1), (1, 17), (16, 16), (17, 33), (97, 61), (64, 1), (130, 3)]


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    return load_codec(tiny_model, "cpu")


def _indices(codec: Codec, data: bytes, **options: object) -> list[np.ndarray]:
    header, sections = read_container(data)
    bottleneck = VectorBottleneck(codec.model.quantizer, codec.model.prior, **options)  # type: ignore[arg-type]
    rows, columns = -(-header.height // 16), -(-header.width // 16)
    tiles = -(-rows // 64) * -(-columns // 64)
    streams = {s: unpack_tiles(p, tiles) for s, p in stage_payloads(sections).items()}
    return bottleneck.read(streams, header.rate, rows, columns)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("grey", [False, True])
def test_any_size_comes_back(codec: Codec, height: int, width: int, grey: bool) -> None:
    picture = synthetic_picture(5, height, width)
    source = picture[:, :, 0] if grey else picture
    decoded = codec.decompress(codec.compress(source, quality=90))
    assert decoded.size == (width, height)
    assert decoded.mode == ("L" if grey else "RGB")


def test_the_picture_resembles_the_source(codec: Codec) -> None:
    picture = synthetic_picture(6)
    error = np.asarray(codec.decompress(codec.compress(picture, quality=100)), float) - picture
    worse = np.asarray(codec.decompress(codec.compress(picture, quality=1)), float) - picture
    assert np.mean(error**2) < 0.5 * np.mean(worse**2)
    assert np.mean(error**2) < 300


@pytest.mark.parametrize("mode", ["P", "CMYK", "1", "I;16", "YCbCr"])
def test_other_modes_are_converted(codec: Codec, mode: str) -> None:
    base = Image.fromarray(synthetic_picture(1, 40, 30))
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 30), 40000, np.uint16))
    else:
        image = base.convert(mode)
    decoded = codec.decompress(codec.compress(image))
    assert decoded.mode == ("L" if mode in ("1", "I;16") else "RGB")
    assert decoded.size == (30, 40)


def test_decoded_indices_are_those_encoded(codec: Codec) -> None:
    picture = synthetic_picture(7, 75, 121)
    for quality in (1, 30, 60, 100):
        stats = codec.analyse(picture, quality=quality)
        decoded = _indices(codec, codec.compress(picture, quality=quality))
        for stage, index in enumerate(stats.indices):
            if stage < len(decoded):
                assert np.array_equal(index, decoded[stage])
            else:
                assert not index.any()


def test_decoding_does_not_depend_on_the_surroundings(codec: Codec) -> None:
    data = codec.compress(synthetic_picture(8, 200, 180), quality=80)
    expected = _indices(codec, data, threads=1, native=False)
    variants = {
        "native, 1 thread": lambda: _indices(codec, data, threads=1),
        "native, 2 threads": lambda: _indices(codec, data, threads=2),
        "native, 5 threads": lambda: _indices(codec, data, threads=5),
    }
    threads = torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("medium")
        torch.set_default_dtype(torch.float64)
        for name, variant in variants.items():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                for a, b in zip(expected, variant(), strict=True):
                    assert np.array_equal(a, b), name
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_decodes_to_the_same_indices(codec: Codec, tiny_model: Path) -> None:
    other = load_codec(tiny_model, "cuda")
    picture = synthetic_picture(8, 200, 180)
    for source in (codec, other):
        data = source.compress(picture, quality=80)
        for a, b in zip(_indices(codec, data), _indices(other, data), strict=True):
            assert np.array_equal(a, b)
        here = np.asarray(codec.decompress(data), int)
        there = np.asarray(other.decompress(data), int)
        assert (np.abs(here - there) > 1).mean() < 0.001


def test_encoding_again_gives_the_same_bytes(codec: Codec) -> None:
    picture = synthetic_picture(9, 90, 50)
    first = codec.compress(picture, quality=70)
    strided = np.asfortranarray(picture)
    assert codec.compress(picture, quality=70) == first
    assert codec.compress(strided, quality=70) == first
    assert codec.compress(Image.fromarray(picture), quality=70) == first


def test_tiles_are_coded_apart(codec: Codec) -> None:
    """More than 64 latent positions a side: several tiles, whose contexts never mix."""
    picture = synthetic_picture(4, 40, 1100)
    data = codec.compress(picture, quality=100)
    header, sections = read_container(data)
    for payload in stage_payloads(sections).values():
        assert len(unpack_tiles(payload, 2)) == 2
    coded = CodedPhoto(np.stack(_indices(codec, data)), header.rate)
    left = CodedPhoto(coded.index[:, :, :, :64], header.rate)
    prior = codec.model.prior
    for whole, part in zip(select_tables(prior, coded), select_tables(prior, left), strict=True):
        assert np.array_equal(whole[:, :, :64], part)


def test_real_bytes_are_within_one_percent_of_the_estimate(codec: Codec) -> None:
    stats = codec.analyse(synthetic_picture(2, 512, 512), quality=100)
    assert stats.data == codec.compress(synthetic_picture(2, 512, 512), quality=100)
    assert stats.estimated_bits / 8 == pytest.approx(stats.payload_bytes, rel=0.01)


def test_dropping_the_last_stages_leaves_a_decodable_file(codec: Codec) -> None:
    picture = synthetic_picture(3, 80, 80)
    header, sections = read_container(codec.compress(picture, quality=100))
    assert len(sections) == 2
    errors = []
    for count in (0, 1, 2):
        cut = codec.decompress(write_container(header, sections[:count]))
        errors.append(float(np.mean((np.asarray(cut, float) - picture) ** 2)))
    assert errors[0] > errors[1] > errors[2]


def test_every_cut_is_an_error(codec: Codec) -> None:
    data = codec.compress(synthetic_picture(1, 20, 20), quality=60)
    for size in range(len(data)):
        with pytest.raises(VqcError):
            codec.decompress(data[:size])


def test_every_flipped_bit_is_an_error(codec: Codec) -> None:
    data = codec.compress(synthetic_picture(1, 20, 20), quality=60)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VqcError):
            codec.decompress(bytes(damaged))


def test_streams_that_only_the_checksum_would_reveal(codec: Codec) -> None:
    """With the CRC made right again, damage may decode to other symbols, but never raises others."""
    random = np.random.default_rng(0)
    header, sections = read_container(codec.compress(synthetic_picture(1, 64, 64), quality=90))
    for _ in range(60):
        payload = bytearray(sections[1].payload)
        for _ in range(random.integers(1, 6)):
            payload[random.integers(len(payload))] = random.integers(256)
        payload = payload[: random.integers(1, len(payload) + 1)]
        changed = [sections[0], type(sections[1])(sections[1].type, True, bytes(payload))]
        try:
            codec.decompress(write_container(header, changed))
        except VqcError:
            pass


def test_a_rate_beyond_the_model_is_corrupt(codec: Codec) -> None:
    header, sections = read_container(codec.compress(synthetic_picture(1, 20, 20)))
    beyond = type(header)(**{**header.__dict__, "rate": 2 * LEVELS + 1})
    with pytest.raises(CorruptError, match="rate bucket"):
        codec.decompress(write_container(beyond, sections))
    early = type(header)(**{**header.__dict__, "rate": 1})
    full = read_container(codec.compress(synthetic_picture(1, 64, 64), quality=100))[1]
    with pytest.raises(CorruptError, match="beyond its rate bucket"):
        codec.decompress(write_container(early, full))


def test_too_many_pixels_are_refused_before_any_work(codec: Codec) -> None:
    header, _ = read_container(codec.compress(synthetic_picture(1, 20, 20)))
    huge = type(header)(**{**header.__dict__, "width": 2**31, "height": 2**31})
    with pytest.raises(TooLargeError):
        codec.decompress(write_container(huge, []))
    with pytest.raises(TooLargeError):
        codec.decompress(
            codec.compress(synthetic_picture(1, 20, 20)), limits=vqcodec.Limits(max_pixels=399)
        )


@pytest.mark.parametrize("quality", [0, 101, -3, 50.0, True, "50"])
def test_a_bad_quality_is_refused(codec: Codec, quality: object) -> None:
    with pytest.raises(ValueError, match="quality must be"):
        codec.compress(synthetic_picture(1, 20, 20), quality=quality)  # type: ignore[arg-type]


def test_another_model_is_refused_by_its_code_id(
    codec: Codec, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = codec.compress(synthetic_picture(1, 20, 20))
    header, sections = read_container(data)
    other = type(header)(**{**header.__dict__, "code_id": header.code_id ^ 1})
    with pytest.raises(UnknownModelError, match=f"{header.code_id ^ 1:08x}"):
        codec.decompress(write_container(other, sections))
    with pytest.raises(UnknownModelError):
        vqcodec.decompress(data)
    monkeypatch.setenv("VQCODEC_MODELS", str(tiny_model.parent))
    assert find_model_by_code(header.code_id) == tiny_model
    assert vqcodec.decompress(data).size == (20, 20)


def test_info_reads_what_was_written(codec: Codec) -> None:
    data = codec.compress(synthetic_picture(1, 20, 30)[:, :, 0], quality=100)
    found = vqcodec.info(data)
    assert (found.width, found.height, found.grey, found.mode) == (30, 20, True, "vq")
    assert found.bytes == len(data)
    assert found.bpp == 8 * len(data) / 600
    assert [section.stage for section in found.sections] == [0, 1]


def test_a_model_file_comes_back_whole(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    assert model.to_bytes() == tiny_model.read_bytes()


@pytest.mark.parametrize("damage", ["empty", "short", "noise", "header", "foreign", "tensor"])
def test_damaged_models_are_refused(tiny_model: Path, tmp_path: Path, damage: str) -> None:
    data = tiny_model.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    path = tmp_path / "bad.safetensors"
    content = {
        "empty": b"",
        "short": data[: len(data) // 2],
        "noise": np.random.default_rng(0).bytes(5000),
        "header": struct.pack("<Q", 1 << 60) + data[8:],
        "foreign": struct.pack("<Q", 2) + b"{}",
        "tensor": data[:8] + data[8 : 8 + size].replace(b"enter16", b"enter17") + data[8 + size :],
    }[damage]
    path.write_bytes(content)
    with pytest.raises(ModelFileError):
        load_model(path)


def _with_metadata(data: bytes, change: object) -> bytes:
    """The same weights file with its JSON configuration changed by a function."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    inner = json.loads(header["__metadata__"]["vqcodec"])
    change(inner)  # type: ignore[operator]
    header["__metadata__"]["vqcodec"] = json.dumps(inner)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("", "transform", None),
        ("", "prior", [1, 2]),
        ("", "points", [[1, 100.0]]),
        ("", "points", [[17, 100.0]] * 100),
        ("", "points", [[1, -1.0]] * 100),
        ("", "points", [[1.5, 10.0]] * 100),
        ("", "points", [7] * 100),
        ("", "name", {}),
        ("transform", "synthesis_widths", [16, 12]),
        ("transform", "synthesis_depths", [1, 1, 10**9]),
        ("transform", "synthesis_depths", [1.5, 1, 1]),
        ("transform", "rates", -5),
        ("transform", "rates", 2),
        ("transform", "channels", 10**12),
        ("transform", "unknown", 1),
        ("quantizer", "codewords", 257),
        ("quantizer", "mu", [1.0]),
        ("quantizer", "first", [float("nan"), 1.0]),
        ("quantizer", "blocks", [[1, 1]]),
        ("quantizer", "blocks", 7),
        ("prior", "hidden", [16, 16, 16]),
        ("prior", "group_hidden", 5000),
        ("prior", "chunks", [4, 2]),
        ("prior", "chunks", [2.0, 4.0]),
        ("prior", "window", 4),
        ("prior", "tables", True),
    ],
)
def test_models_with_an_impossible_configuration_are_refused(
    tiny_model: Path, tmp_path: Path, part: str, key: str, value: object
) -> None:
    def change(header: dict) -> None:
        (header[part] if part else header)[key] = value

    path = tmp_path / "bad.safetensors"
    path.write_bytes(_with_metadata(tiny_model.read_bytes(), change))
    if key == "name":
        assert load_model(path).config.name == "{}"
        return
    with pytest.raises(ModelFileError):
        load_model(path)


def test_encoding_leaves_the_latent_alone(codec: Codec) -> None:
    latent = 50 * torch.randn(20, 3, 5, generator=torch.Generator().manual_seed(0))
    strided = latent.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    planes = [
        codec.model.bottleneck.to_symbols(view, RatePoint(16, 150.0))
        for view in (latent, strided, strided)
    ]
    assert torch.equal(latent, strided)
    for first, second in zip(planes[0], planes[2], strict=True):
        assert np.array_equal(first.index, second.index)


def test_a_thin_picture_is_limited_by_what_it_takes(codec: Codec) -> None:
    header, _ = read_container(codec.compress(synthetic_picture(1, 20, 20)))
    thin = type(header)(**{**header.__dict__, "width": 50_000_000, "height": 1})
    with pytest.raises(TooLargeError):
        codec.decompress(write_container(thin, []))


def test_blocks_of_the_synthesis_do_not_show(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    from vqcodec import codec as module

    data = codec.compress(synthetic_picture(2, 300, 340), quality=100)
    whole = np.asarray(codec.decompress(data), int)
    monkeypatch.setattr(module, "_BLOCK", 7)
    blocks = np.asarray(codec.decompress(data), int)
    assert np.abs(whole - blocks).max() <= 1


def test_a_model_whose_sums_could_overflow_is_refused(tiny_model: Path) -> None:
    prior = load_model(tiny_model).prior
    bias = prior.tensors["1.0.linear2.bias"].copy()
    bias[0, 0] = 2**31 - 1
    with pytest.raises(ModelFileError, match="32 bits"):
        prior.replace({"1.0.linear2.bias": bias})


def test_an_absent_device_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="device"):
        load_codec(tiny_model, "cuda:99")
    with pytest.raises(ValueError, match="device"):
        load_codec(tiny_model, "tpu")
