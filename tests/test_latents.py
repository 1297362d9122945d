"""The digits study: its measures on known cases, its bars, and the whole of it in a reduced size."""

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import latent_measures as measures
from bench import latents


def test_the_largest_jump_of_a_path() -> None:
    ends = np.zeros((2, 64))
    ends[1, :4] = 1
    fade = ends[0] + np.linspace(0, 1, 9)[:, None] * (ends[1] - ends[0])
    assert measures.largest_jump(fade) == pytest.approx(1)
    assert measures.largest_jump(ends) == pytest.approx(1)
    leap = np.repeat(ends, (4, 5), axis=0)
    assert measures.largest_jump(leap) == pytest.approx(8)
    with pytest.raises(ValueError, match="two pictures"):
        measures.largest_jump(ends[:1])
    with pytest.raises(ValueError, match="began"):
        measures.largest_jump(ends[[0, 1, 0]])


def test_psnr_of_pictures_with_peak_one() -> None:
    zero = np.zeros((3, 64), np.float32)
    assert measures.psnr(zero + 0.1, zero) == pytest.approx(20, abs=1e-4)
    assert measures.psnr(zero, zero) == math.inf


def test_area_under_the_curve() -> None:
    low, high = np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0])
    # Of six pairs, four are above and one ties.
    assert measures.area_under_curve(low, high) == pytest.approx(4.5 / 6)
    assert measures.area_under_curve(high, low) == pytest.approx(1.5 / 6)
    assert measures.area_under_curve(low, low) == pytest.approx(0.5)
    with pytest.raises(ValueError):
        measures.area_under_curve(low, high[:0])


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.3, math.pi / 2])
def test_largest_angle_between_spaces(angle: float) -> None:
    first = np.eye(5)[:, :2]
    second = np.stack((first[:, 0], math.cos(angle) * first[:, 1] + math.sin(angle) * np.eye(5)[:, 3]), 1)
    mixed = second @ np.array([[2.0, 1.0], [0.5, -3.0]])
    assert measures.largest_angle(first, mixed) == pytest.approx(
        angle,
        # By the sine, which is flat at a right angle.
        abs=1e-9 if angle < 1 else 1e-7,
    )


class Judge:
    """Sure of the label that the first pixel names by tenths, in so far as the second one says."""

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        return (10 * pixels[:, 0] + 0.5).astype(int)

    def predict_proba(self, pixels: np.ndarray) -> np.ndarray:
        found = np.tile((1 - pixels[:, 1:2]) / 9, 10)
        found[np.arange(len(pixels)), self.predict(pixels)] = pixels[:, 1]
        return found


def test_what_the_judge_says() -> None:
    pixels = np.zeros((4, 64))
    pixels[:, 0], pixels[:, 1] = (0.3, 0.3, 0.5, 0.5), (1.7, 0.95, 0.9, 0.2)
    assert measures.accepted_share(Judge(), pixels) == 0.5
    assert measures.right_share(Judge(), pixels, np.array([3, 4, 5, 5])) == 0.75
    assert measures.label_perplexity(Judge(), pixels) == pytest.approx(2)
    assert measures.label_perplexity(Judge(), pixels[:2]) == pytest.approx(1)


def _body() -> dict[str, Any]:
    """Figures that meet every bar."""
    collapsed = {"seed": 0, "state": "collapsed", "kl": 0.0, "elbo": -8.0}
    return {
        "family": {
            "ae": {"accepted": 0.3},
            "vae": {"accepted": 0.5},
            "wae": {"accepted": 0.45},
            "cvae": {"right_labels": 0.99},
        },
        "sweep": [
            {"weight": 0.0, "state": "point", "kl": 100.0},
            {"weight": 10.0, "state": "collapsed", "kl": 0.0},
        ],
        "cure": {
            "constant": [collapsed],
            "annealed": [{"seed": 0, "state": "healthy", "kl": 2.0, "elbo": 0.0}],
        },
        "linear": {"largest_angle": 1e-4},
        "denoising": {"gain": 6.0},
        "anomaly": {"0": {"elbo": 0.9}, "1": {"elbo": 0.8}},
    }


def test_figures_that_meet_every_bar() -> None:
    checks = latents.make_checks(_body())
    assert len(checks) == 9 and all(check.passed for check in checks)


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        (("family", "vae", "accepted"), 0.39, "vae"),
        (("family", "wae", "accepted"), 0.39, "wae"),
        (("family", "cvae", "right_labels"), 0.94, "cvae"),
        (("sweep", 0, "state"), "healthy", "C = 0"),
        (("sweep", 1, "state"), "partial", "C = 10"),
        (("cure", "constant", 0, "state"), "partial", "annealing"),
        (("cure", "annealed", 0, "state"), "collapsed", "annealing"),
        (("cure", "annealed", 0, "kl"), 0.5, "annealing"),
        (("cure", "annealed", 0, "elbo"), -9.0, "annealing"),
        (("linear", "largest_angle"), 0.02, "linear"),
        (("denoising", "gain"), -0.1, "dae"),
        (("anomaly", "0", "elbo"), 0.6, "anomalies"),
    ],
)
def test_every_bar_can_fail(place: tuple[Any, ...], value: Any, word: str) -> None:
    body = copy.deepcopy(_body())
    where: Any = body
    for key in place[:-1]:
        where = where[key]
    where[place[-1]] = value
    failed = [check for check in latents.make_checks(body) if not check.passed]
    assert len(failed) == 1 and word in failed[0].name


def test_the_judge_knows_digits_and_splits_are_disjoint() -> None:
    pytest.importorskip("sklearn")
    data = latents.load_data()
    assert (len(data.train), len(data.test)) == (900, 297)
    assert data.judge_accuracy > 0.95
    pictures = {tuple(row) for row in data.train.tolist()}
    assert not any(tuple(row) in pictures for row in data.test.tolist())


def test_the_study_in_a_reduced_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    out, found, model = tmp_path / "figures", tmp_path / "found.json", tmp_path / "cvae.safetensors"
    options = ["--quick", "--out", str(out), "--json", str(found), "--model", str(model)]
    # So little training meets no bar, or some of them by luck.
    assert latents.main(options) in (0, 1)
    result = json.loads(found.read_text())
    names = {"planes", "draws", "lines", "sweep", "anomaly", "denoising"}
    assert {path.stem for path in out.glob("*.png")} == names
    assert all(0 < path.stat().st_size < 200_000 for path in out.iterdir())
    assert set(result["family"]) == set(latents.FAMILY) and len(result["sweep"]) == len(latents.WEIGHTS)
    assert all(0 <= row["accepted"] <= 1 for row in result["family"].values())
    # What twenty steps cannot change: the divergence weighs on what is learnt.
    assert result["sweep"][0]["kl"] > result["sweep"][-1]["kl"]
    assert model.stat().st_size < 100_000
    said = capsys.readouterr().out
    assert said.count("PASS") + said.count("FAIL") == len(result["checks"]) == 9
    assert str(tmp_path) not in found.read_text()


@pytest.mark.parametrize(
    "options", [[], ["--out"], ["--out", "x", "--steps", "3"], ["--out", "x", "--seed", "-1"]]
)
def test_command_lines_that_are_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        latents.main(options)
    assert stop.value.code == 2


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as stop:
        latents.main(["--out", str(tmp_path)])
    assert stop.value.code == 2
