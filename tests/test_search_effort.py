"""The script that tables encoding efforts."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench import search_effort


def test_efforts_are_ascending_and_have_the_least() -> None:
    assert search_effort.parse_efforts("9,4,4") == (1, 4, 9)
    for text in ("0", "10", "a", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            search_effort.parse_efforts(text)


class FakeCodec:
    """Files of 100 bytes a step of quality, a tenth less at effort 4; errors fall with the quality."""

    def compress(self, picture: Image.Image, *, quality: int, effort: int) -> bytes:
        return bytes([quality]) * (quality * (90 if effort == 4 else 100))

    def decompress(self, file: bytes) -> Image.Image:
        return Image.new("RGB", (20, 10), (100 + 60 - file[0],) * 3)


def test_a_tenth_less_is_ten_per_cent() -> None:
    codec: Any = FakeCodec()
    picture = Image.new("RGB", (20, 10), (100, 100, 100))
    rows = search_effort.measure(codec, [picture, picture], efforts=(1, 4), qualities=(10, 20, 40))
    assert [row["bd_rate_percent"] for row in rows] == [0.0, pytest.approx(-10.0)]
    assert rows[0]["bpp"] == [40.0, 80.0, 160.0] and rows[0]["times_least"] == 1
    # Errors of 50, 40 and 20 grey levels.
    expected = [20 * math.log10(255 / error) for error in (50, 40, 20)]
    assert rows[0]["psnr"] == rows[1]["psnr"] == pytest.approx(expected, abs=1e-3)


def test_a_curve_that_does_not_rise_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    codec: Any = FakeCodec()
    monkeypatch.setattr(FakeCodec, "decompress", lambda *_: Image.new("RGB", (20, 10)))
    picture = Image.new("RGB", (20, 10), (100, 100, 100))
    (row,) = search_effort.measure(codec, [picture], efforts=(1,), qualities=(10, 20))
    assert row["bd_rate_percent"] is None and "curve" in row["why"]


def test_every_effort_has_its_row(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    options = ["--images", str(pictures), "--limit", "1", "--model", str(tiny_model), "--efforts", "4"]
    assert search_effort.main([*options, "--qualities", "30,95", "--json", str(out)]) == 0
    least, more = json.loads(out.read_text())["efforts"]
    assert (least["effort"], more["effort"]) == (1, 4)
    assert least["times_least"] == 1
    assert all(len(row[name]) == 2 for row in (least, more) for name in ("bpp", "psnr"))
    for wrong in (["--limit", "0"], ["--device", "tpu"], ["--images", str(tmp_path / "none")]):
        with pytest.raises(SystemExit) as stop:
            search_effort.main([*options, *wrong])
        assert stop.value.code == 2
    assert search_effort.main([*options, "--model", str(tmp_path / "none.safetensors")]) == 3
