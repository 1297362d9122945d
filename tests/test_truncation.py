"""Files with fewer stages: the same bytes as the encoder's, whole, and as small as asked for."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import synthetic_picture

import vqcodec
from vqcodec.codec import load_codec
from vqcodec.container import MODE_AE, Header, Section, read_container, stage_section, write_container
from vqcodec.errors import ModeError, RateError, TruncatedError

HEADER = Header(mode=0, grey=False, rate=25, width=100, height=70, code_id=7)
STAGES = [stage_section(n, bytes(100 << n)) for n in range(3)]
NOTE = Section(type=0x41, critical=False, payload=b"note")


def test_stages_are_left_out_and_all_else_stays() -> None:
    data = write_container(HEADER, [STAGES[0], NOTE, STAGES[1], STAGES[2], NOTE])
    assert vqcodec.truncate(data, stages=3) == data == vqcodec.truncate(data, stages=16)
    kept = read_container(vqcodec.truncate(bytearray(data), stages=2))
    assert kept == (HEADER, [STAGES[0], NOTE, STAGES[1], NOTE])
    assert vqcodec.truncate(vqcodec.truncate(data, stages=2), stages=1) == vqcodec.truncate(
        data, stages=1
    )


def test_a_stage_that_is_zero_counts() -> None:
    data = write_container(HEADER, [STAGES[0], STAGES[2]])
    assert read_container(vqcodec.truncate(data, stages=2))[1] == [STAGES[0]]
    assert vqcodec.truncate(write_container(HEADER, []), stages=1) == write_container(HEADER, [])


def test_as_many_stages_as_a_rate_allows() -> None:
    data = write_container(HEADER, STAGES)
    sizes = [len(vqcodec.truncate(data, stages=n)) for n in (1, 2, 3)]
    for size in range(sizes[0], sizes[2] + 50):
        got = vqcodec.truncate(data, bpp=8 * size / 7000)
        assert len(got) == max(s for s in sizes if s <= size)
    with pytest.raises(RateError, match=r"0\.1 bpp cannot be reached: .* 0\.149 to 0\.850 bpp"):
        vqcodec.truncate(data, bpp=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stages": 1, "bpp": 1.0},
        {"stages": 0},
        {"stages": 17},
        {"stages": 1.5},
        {"stages": True},
        {"bpp": 0.0},
        {"bpp": float("nan")},
    ],
)
def test_wrong_arguments(options: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        vqcodec.truncate(write_container(HEADER, STAGES), **options)  # type: ignore[arg-type]


def test_files_that_cannot_be_truncated() -> None:
    header = Header(**{**HEADER.__dict__, "mode": MODE_AE})
    with pytest.raises(ModeError, match="mode ae have no stages"):
        vqcodec.truncate(write_container(header, STAGES[:2]), stages=1)
    with pytest.raises(TruncatedError):
        vqcodec.truncate(write_container(HEADER, STAGES)[:-1], stages=1)


@pytest.mark.parametrize("mode", ["vq", "dvae", "vqvae", "vqvae2", "fsq", "rvq"])
@pytest.mark.parametrize("size", [(1, 1), (17, 31), (64, 96)])
def test_the_encoder_stops_at_the_same_bytes(mode_models: Path, mode: str, size: tuple[int, int]) -> None:
    codec = load_codec(mode_models / f"{mode}.safetensors", "cpu")
    picture = synthetic_picture(3, *size)
    lengths = set()
    for quality in (1, 60, 100):
        whole = codec.compress(picture, quality=quality)
        for stages in (1, 2, 3):
            file = codec.compress(picture, quality=quality, stages=stages)
            assert file == vqcodec.truncate(whole, stages=stages)
            assert np.asarray(codec.decompress(file)).shape[:2] == picture.shape[:2]
            lengths.add(len(file))
    assert len(lengths) > 2 or size == (1, 1)


def test_modes_without_stages_to_stop_after(mode_models: Path) -> None:
    codec = load_codec(mode_models / "vae.safetensors", "cpu")
    with pytest.raises(ModeError, match="no stages to stop after"):
        codec.compress(synthetic_picture(3, 20, 20), stages=1)
    for stages in (0, 17, 1.5):
        with pytest.raises(ValueError, match="stages must be 1..16"):
            load_codec(mode_models / "vq.safetensors", "cpu").compress(
                synthetic_picture(3, 20, 20),
                stages=stages,  # type: ignore[arg-type]
            )


def test_no_torch_is_needed() -> None:
    code = "import sys, vqcodec; vqcodec.truncate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
