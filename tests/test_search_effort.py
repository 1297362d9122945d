"""The script that tables encoding efforts."""

import argparse
import json
from pathlib import Path

import pytest

from bench import search_effort


def test_efforts_are_ascending_and_have_the_least() -> None:
    assert search_effort.parse_efforts("9,4,4") == (1, 4, 9)
    for text in ("0", "10", "a", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            search_effort.parse_efforts(text)


def test_every_effort_has_its_row(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    options = ["--images", str(pictures), "--limit", "1", "--model", str(tiny_model), "--efforts", "4"]
    assert search_effort.main([*options, "--qualities", "30,95", "--json", str(out)]) == 0
    least, more = json.loads(out.read_text())["efforts"]
    assert (least["effort"], more["effort"]) == (1, 4)
    assert least["bd_rate_percent"] == 0 and least["times_least"] == 1
    assert more["times_least"] > 1 and more["bpp"] != least["bpp"]
    for wrong in (["--limit", "0"], ["--device", "tpu"], ["--images", str(tmp_path / "none")]):
        with pytest.raises(SystemExit) as stop:
            search_effort.main([*options, *wrong])
        assert stop.value.code == 2
    assert search_effort.main([*options, "--model", str(tmp_path / "none.safetensors")]) == 3
