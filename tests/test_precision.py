"""The arithmetic of the networks does not follow what the process around them has set."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import synthetic_picture

from vqcodec import precision
from vqcodec.codec import Codec, load_codec
from vqcodec.model import MODES
from vqcodec.precision import full_precision, has_fast_bfloat16, short_precision

CPU = torch.device("cpu")
BACKENDS: Any = torch.backends
OWNERS = (BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul, BACKENDS.cudnn.conv, BACKENDS.cuda.matmul)
USED = 4 if torch.cuda.is_available() else 2
"""So many of them are looked after: those of devices that are not there are left alone."""


def settings() -> list[object]:
    found: list[object] = [owner.fp32_precision for owner in OWNERS]
    return [*found, BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic]


@contextmanager
def loosened() -> Iterator[list[object]]:
    """A process that allows all that is fast; the list is what it has set."""
    before = settings()
    try:
        torch.set_float32_matmul_precision("medium")
        BACKENDS.mkldnn.conv.fp32_precision = "bf16"
        BACKENDS.cudnn.benchmark = True
        yield settings()
    finally:
        torch.set_float32_matmul_precision("highest")
        for owner, value in zip(OWNERS, before, strict=False):
            owner.fp32_precision = value
        BACKENDS.cudnn.benchmark = False


@pytest.fixture
def loose() -> Iterator[list[object]]:
    with loosened() as found:
        yield found


def test_settings_are_forced_and_restored(loose: list[object]) -> None:
    assert "ieee" not in loose[:USED]
    for _ in range(2):
        with full_precision(CPU):
            assert settings()[:USED] == ["ieee"] * USED
            with full_precision(CPU):
                assert settings()[:USED] == ["ieee"] * USED
            assert settings()[:USED] == ["ieee"] * USED
        assert settings() == loose
    with pytest.raises(ZeroDivisionError), full_precision(CPU):
        raise ZeroDivisionError
    assert settings() == loose


def test_strict_settings_are_left_alone() -> None:
    before = settings()
    assert all(value in ("none", "ieee") for value in before[:2])
    with full_precision(CPU):
        assert settings()[:2] == before[:2]
    assert settings() == before


def test_a_setting_that_cannot_be_changed(loose: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail_second(owner: object, name: str, value: object) -> None:
        calls.append(name)
        if len(calls) == 2:
            raise RuntimeError("frozen")
        original(owner, name, value)

    original = precision._set
    monkeypatch.setattr(precision, "_set", fail_second)
    with pytest.raises(RuntimeError, match="frozen"), full_precision(CPU):
        pytest.fail("must not be entered")
    assert settings() == loose
    monkeypatch.undo()
    with full_precision(CPU):
        assert settings()[:USED] == ["ieee"] * USED
    assert settings() == loose


def test_several_threads_leave_the_settings_as_they_were(loose: list[object]) -> None:
    barrier = threading.Barrier(4)
    seen = []

    def work() -> None:
        for _ in range(50):
            barrier.wait()
            with full_precision(CPU):
                seen.append(settings()[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["ieee"] * 200
    assert settings() == loose


def test_autocast() -> None:
    def product() -> torch.dtype:
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision(CPU):
            assert product() == torch.float32
        assert product() == torch.bfloat16
    with short_precision(CPU):
        assert product() == torch.bfloat16
    assert product() == torch.float32


def codec_of(path: Path, *, precise: bool) -> Codec:
    codec = load_codec(path, "cpu", precise=precise)
    # Also where this machine is not fast in bfloat16.
    codec.precise = precise
    return codec


@pytest.mark.parametrize("mode", MODES)
def test_bytes_and_pixels_do_not_follow_the_process(mode_models: Path, mode: str) -> None:
    codec = codec_of(mode_models / f"{mode}.safetensors", precise=True)
    picture = synthetic_picture(4, 70, 90)

    def results() -> tuple[bytes, bytes, object]:
        stats = codec.analyse(picture, quality=80)
        data = codec.compress(picture, quality=80)
        return data, codec.decompress(data).tobytes(), stats.divergence_bits

    expected = results()
    with loosened(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert results() == expected
    torch.set_default_dtype(torch.float64)
    try:
        assert results() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_fast_path_is_near_the_precise_one() -> None:
    picture = synthetic_picture(5, 256, 256)
    precise, fast = codec_of(Path("default"), precise=True), codec_of(Path("default"), precise=False)
    for quality in (10, 50, 100):
        data = precise.compress(picture, quality=quality)
        assert fast.compress(picture, quality=quality) == data
        decoded = [np.asarray(codec.decompress(data)).astype(int) for codec in (precise, fast)]
        assert np.abs(decoded[0] - decoded[1]).max() <= 2
        assert (decoded[0] != decoded[1]).any()
        psnr = [10 * np.log10(255**2 / np.square(d - picture).mean()) for d in decoded]
        assert abs(psnr[0] - psnr[1]) < 0.02


def test_where_bfloat16_is_fast(tiny_model: Path) -> None:
    codec = load_codec(tiny_model, "cpu")
    assert codec.precise is not has_fast_bfloat16(CPU)
    assert load_codec(tiny_model, "cpu", precise=True).precise
