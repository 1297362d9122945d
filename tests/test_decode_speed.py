"""The script that times decoding against another release, here against itself."""

import json
import sys
from pathlib import Path

import pytest

from bench import decode_speed


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_speed, "WIDTH", 48)
    monkeypatch.setattr(decode_speed, "HEIGHT", 32)
    monkeypatch.setattr(decode_speed, "QUALITIES", (10, 90))


def test_the_figures_and_their_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "speed.json"
    options = ["--against", sys.executable, "--rounds", "1", "--threads", "1", "--json", str(out)]
    assert decode_speed.main([*options, "--bar", "0.001"]) == 0
    result = json.loads(out.read_text())
    first, second = result["releases"]
    assert first == second and result["passed"]
    assert [row["quality"] for row in result["rows"]] == [10, 90]
    for row in result["rows"]:
        # One release, one model: the same files.
        assert row["bpp"][0] == row["bpp"][1] > 0 and row["mse"][0] == row["mse"][1]
        assert row["ratio"] == pytest.approx(row["mp_s"][0] / row["mp_s"][1], rel=0.1)
    # The same figures against a bar that they miss.
    measured = result["releases"], result["rows"]
    monkeypatch.setattr(decode_speed, "measure", lambda *_, **__: measured)
    assert decode_speed.main([*options[:-2], "--bar", "1e9"]) == 1
    assert "FAIL  at least 1e+09 times the rate" in capsys.readouterr().out


def test_a_process_that_fails_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    for python, said in ((str(broken), "ended with 3"), (str(tmp_path / "none"), "No such file")):
        with pytest.raises(SystemExit) as stopped:
            decode_speed.main(["--against", python, "--rounds", "1"])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
