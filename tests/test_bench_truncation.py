"""Tests of bench/truncation.py: what it compares, and its bar."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from synthetic import synthetic_picture

from bench import truncation as bench


class Ladder:
    """A codec whose file of quality q has 10 q bytes; its pictures are told by their size alone."""

    def compress(self, picture: Image.Image, *, quality: int) -> bytes:
        return bytes(10 * quality)

    def decompress(self, data: bytes) -> Image.Image:
        return Image.new("RGB", (len(data), 1))


def test_equal_bytes_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "psnr_of_file", lambda _, decoded, what: decoded.width / 100)
    ladder: Any = Ladder()
    direct = bench.Direct(ladder, Image.new("RGB", (8, 8)))
    assert direct.psnr_at(9) is None
    assert direct.psnr_at(10) == 0.1
    assert direct.psnr_at(500) == 5.0
    between = direct.psnr_at(505)
    assert between is not None and 5.0 < between < 5.1
    assert direct.psnr_at(5000) == 10.0


def test_the_command(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "QUALITIES", (100,))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(2):
        Image.fromarray(synthetic_picture(n, 64, 48)).save(folder / f"{n}.png")
    argv = ["--images", str(folder), "--model", str(tiny_model), "--json", str(tmp_path / "out.json")]
    code = bench.main(argv)
    result = json.loads((tmp_path / "out.json").read_text())
    assert code == (0 if result["passed"] else 1)
    assert result["script"] == "truncation" and len(result["rows"]) == 2
    for row in result["rows"]:
        assert (row["kept"], row["stages"]) == (1, 2)
        assert row["loss"] is None or row["loss"] == row["direct_psnr"] - row["psnr"]
    assert result["passed"] is (result["largest_loss"] <= 1)
    assert "truncated files of 2 pictures" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.main(["--images", str(tmp_path / "none")])
    assert bench.main(["--images", str(folder), "--model", "nowhere"]) == 3
