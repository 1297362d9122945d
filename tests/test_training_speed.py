"""The script that times training, on a tiny model: its check, its bars, its record."""

import json
from pathlib import Path

import pytest
import torch

from bench import training_speed
from vqcodec.model import load_model
from vqcodec.train.settings import tiny_config

OPTIONS = ["--preset", "tiny", "--settle", "1", "--rounds", "1"]


def test_the_figures_and_their_record(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    options = [*OPTIONS, "--model", str(tiny_model), "--json", str(out)]
    assert training_speed.main([*options, "--share-bar", "0.001", "--crops-bar", "0.001"]) == 0
    result = json.loads(out.read_text())
    rates = result["crops_per_second"]
    assert result["passed"] and result["batch"] == tiny_config().batch
    assert result["share_percent"] == pytest.approx(100 * rates["step"] / rates["networks"], rel=0.02)
    assert capsys.readouterr().out.count("PASS") == 2


def test_a_bar_that_is_not_met(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*OPTIONS, "--model", str(tiny_model), "--share-bar", "0.001", "--crops-bar", "1e9"]
    assert training_speed.main(options) == 1
    out = capsys.readouterr().out
    assert "FAIL  crops a second" in out and "PASS  share" in out


def test_networks_that_do_not_learn_are_found(tiny_model: Path) -> None:
    trainer = training_speed.make_trainer(load_model(tiny_model), tiny_config(), "cpu")
    networks = training_speed.Networks(trainer, torch.rand(2, 3, 64, 64) * 255)
    networks.check()
    trainer.analysis.requires_grad_(False)
    with pytest.raises(AssertionError):
        networks.check()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--rounds", "0"], 2),
        (["--preset", "huge"], 2),
        (["--model", "vae"], 2),
        (["--model", "no such model"], 3),
    ],
)
def test_what_cannot_be_timed(options: list[str], code: int) -> None:
    try:
        assert training_speed.main(options) == code
    except SystemExit as stop:
        assert stop.code == code
