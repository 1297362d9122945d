"""The script that asks what one model for all rates costs, on a tiny model."""

import json
import math
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from bench import single_rate, trained_models
from bench.metrics import Curve, CurveError
from vqcodec.model import load_model
from vqcodec.quantizer import QuantizerConfig, point_at


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_models, "SIDE", 64)
    monkeypatch.setattr(single_rate, "SPREAD", 39)


def test_a_place_on_the_axis_is_that_of_the_quality(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    layout = model.config.quantizer
    assert isinstance(layout, QuantizerConfig)
    refused = 0
    for quality in range(1, 101):
        point = model.config.points[quality - 1]
        try:
            found = point_at(layout, single_rate.axis_place(model, quality) * layout.stages)
        except ValueError as error:
            assert "between two rate buckets" in str(error)
            refused += 1
            continue
        assert found.bucket == point.bucket
        # A calibrated price may lie beyond the range that training covers.
        reach = layout.last[point.last_stage], layout.first[point.last_stage]
        assert math.isclose(found.price, min(max(point.price, reach[0]), reach[1]), rel_tol=1e-6)
    assert refused < 30


@pytest.fixture
def quality(tiny_model: Path) -> int:
    """One near the middle that is not between two buckets: which ones are, differs between machines."""
    model = load_model(tiny_model)
    for quality in range(40, 60):
        with suppress(ValueError):
            single_rate.axis_place(model, quality)
            return quality
    raise AssertionError("every quality lies between two buckets")


def test_training_covers_the_asked_rates_only(tiny_model: Path, quality: int) -> None:
    model = load_model(tiny_model)
    assert single_rate.settings(model, None, crop=32, preset="tiny").rates == (0.0, 1.0)
    low, high = single_rate.settings(model, quality, crop=32, preset="tiny").rates
    assert low == high == single_rate.axis_place(model, quality)


def test_every_model_is_trained_once_and_compared(
    pictures: Path, tiny_model: Path, quality: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tmp_path / "found.json"
    options = ["--data", str(pictures), "--out", str(tmp_path / "models"), "--model", str(tiny_model)]
    options += ["--qualities", str(quality), "--steps", "2", "--crop", "32", "--preset", "tiny"]
    assert single_rate.main([*options, "--bar", "90", "--json", str(found)]) == 0
    models = {path.stem for path in (tmp_path / "models").glob("*.safetensors")}
    assert models == {"all", f"quality{quality}"}
    (row,) = json.loads(found.read_text())["rows"]
    saving = row["saving_percent"]
    assert saving == pytest.approx(100 * (1 - row["bpp"] / row["bpp_all_rates"]), abs=0.05)
    monkeypatch.setattr("vqcodec.train.train_model", None)
    assert single_rate.main([*options, "--bar", f"{saving - 1}"]) == 1
    for other in (
        ["--seed", "5"],
        ["--crop", "48"],
        ["--steps", "3"],
        ["--preset", "default"],
        ["--qualities", "0"],
        ["--crop", "20"],
    ):
        with pytest.raises(SystemExit) as stop:
            single_rate.main([*options, *other])
        assert stop.value.code == 2
    assert single_rate.main([*options, "--model", str(tmp_path / "none.safetensors")]) == 3


def test_what_is_saved_is_at_equal_psnr(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = {"all": Curve((0.2, 0.4, 0.8), (28.0, 31.0, 34.0)), "one": Curve((0.36,), (31.0,))}

    def measure(model: Path, pictures: object, *, effort: int, qualities: list[int]) -> Curve:
        assert qualities == ([1, 40, 79] if model.stem == "all" else [40])
        return curves[model.stem]

    monkeypatch.setattr(single_rate, "measure", measure)
    pictures = [np.zeros((8, 8, 3), np.uint8)]
    row = single_rate.compare(Path("one"), Path("all"), 40, pictures)
    assert row["saving_percent"] == pytest.approx(10.0)
    curves["one"] = Curve((0.9,), (35.0,))
    with pytest.raises(CurveError):
        single_rate.compare(Path("one"), Path("all"), 40, pictures)


def test_a_quality_without_a_figure_does_not_meet_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    good = {"quality": 20, "psnr": 30.0, "bpp": 0.2, "bpp_all_rates": 0.204, "saving_percent": 1.96}
    assert single_rate.report([good], 3.0)
    assert not single_rate.report([good, {"quality": 100, "why": "has no point"}], 3.0)
    assert single_rate.report([{"quality": 100, "why": "has no point"}], None)
    assert "n/a: has no point" in capsys.readouterr().out
