"""The ablation script on a tiny preset: every variant trains, codes and is compared."""

import json
from pathlib import Path

import pytest

from bench import ablation, trained_models
from bench.metrics import Curve, lost


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "QUALITIES", (5, 95))
    monkeypatch.setattr(trained_models, "SIDE", 64)


def _run(pictures: Path, folder: Path, only: str) -> dict[str, object]:
    options = ["--data", str(pictures), "--out", str(folder / "models"), "--only", only]
    options += ["--steps", "2", "--preset", "tiny", "--json", str(folder / "found.json")]
    assert ablation.main(options) == 0
    found: dict[str, object] = json.loads((folder / "found.json").read_text())
    return found


def test_variants_are_trained_once_and_compared(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _run(pictures, tmp_path, "search,prior,joint")
    rows = {row["variant"]: row for row in found["variants"]}  # type: ignore[attr-defined]
    assert list(rows) == ["everything", "search", "prior", "joint"]
    assert rows["everything"]["percent"] == pytest.approx(0, abs=1e-9)
    models = {path.stem for path in (tmp_path / "models").glob("*.safetensors")}
    assert models == {"everything", "prior", "joint"}
    monkeypatch.setattr("vqcodec.train.train_model", None)
    assert _run(pictures, tmp_path, "search,prior,joint")["variants"] == found["variants"]
    for other in (["--steps", "3"], ["--seed", "1"]):
        options = ["--data", str(pictures), "--out", str(tmp_path / "models"), "--only", "prior"]
        options += ["--preset", "tiny", "--steps", "2"]
        with pytest.raises(SystemExit) as stop:
            ablation.main([*options, *other])
        assert stop.value.code == 2


@pytest.mark.parametrize("name", ablation.VARIANTS)
def test_every_variant_has_settings(name: str) -> None:
    full = ablation.settings(ablation.VARIANTS[ablation.EVERYTHING], "default")
    config = ablation.settings(ablation.VARIANTS[name], "default")
    assert config.quantizer.channels == config.transform.channels  # type: ignore[union-attr]
    differs = config != full or ablation.VARIANTS[name] != ablation.VARIANTS[ablation.EVERYTHING]
    assert differs == (name != ablation.EVERYTHING)


def test_what_is_lost_is_over_what_both_cover() -> None:
    best = Curve((0.1, 0.2, 0.4), (25.0, 28.0, 31.0))
    worse = Curve((0.22, 0.44, 0.88), (28.0, 31.0, 34.0))
    percent, low, high = lost(worse, best)
    assert (low, high) == (28.0, 31.0)
    assert percent == pytest.approx(10.0, abs=0.5)


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        ablation.main(["--data", str(tmp_path), "--out", str(tmp_path), "--only", "nothing"])
    assert stop.value.code == 2
