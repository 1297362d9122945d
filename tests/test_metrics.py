"""Tests of bench.metrics, and of the bars that bench/rd.py draws from it.

The expected figures are worked out by hand or from formulas that share no code with the module.
"""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import codec_speed, metrics, rd
from bench.metrics import Curve, CurveError
from vqcodec import container

# --- curves ---------------------------------------------------------------------------------------


def test_curve_of_means_averages_bpp_and_decibels() -> None:
    curve = metrics.curve_of_means([[0.1, 0.3], [1.0, 2.0]], [[20.0, 40.0], [30.0, 41.0]])
    assert curve.bpp == pytest.approx((0.2, 1.5))
    assert curve.psnr == pytest.approx((30.0, 35.5))


@pytest.mark.parametrize(("bpp", "psnr"), [([[1.0]], [[1.0, 2.0]]), ([1.0], [1.0]), ([[]], [[]])])
def test_curve_of_means_refuses_shapes_that_do_not_match(bpp: Any, psnr: Any) -> None:
    with pytest.raises(ValueError, match="expected two"):
        metrics.curve_of_means(bpp, psnr)


CURVE = Curve((0.07, 0.2, 0.31, 0.8, 1.9), (25.0, 28.5, 29.4, 33.0, 37.5))


def scaled(curve: Curve, factor: float) -> Curve:
    return Curve(tuple(factor * bpp for bpp in curve.bpp), curve.psnr)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.25])
def test_bd_rate_of_a_scaled_curve_is_the_factor(factor: float) -> None:
    percent = metrics.bd_rate(scaled(CURVE, factor), CURVE, low=26, high=35)
    assert percent == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_bd_rate_averages_the_log_of_the_rate_over_the_range() -> None:
    # log2(bpp) linear in PSNR: -4 + (p - 24) / 3 and -4 + (p - 24) / 4, which PCHIP keeps exactly.
    psnr = tuple(float(p) for p in range(24, 40, 3))
    anchor = Curve(tuple(2.0 ** (-4 + (p - 24) / 3) for p in psnr), psnr)
    curve = Curve(tuple(2.0 ** (-4 + (p - 24) / 4) for p in psnr), psnr)
    for low, high in ((26.0, 35.0), (24.0, 30.0)):
        middle = (low + high) / 2 - 24
        expected = 100 * (2 ** (middle / 4 - middle / 3) - 1)
        assert metrics.bd_rate(curve, anchor, low=low, high=high) == pytest.approx(expected)


def test_bd_rate_agrees_with_a_dense_sum() -> None:
    other = Curve((0.05, 0.15, 0.4, 0.9, 1.6, 2.4), (24.5, 27.0, 30.2, 33.3, 36.0, 38.0))
    grid = np.linspace(26, 35, 90001)
    rates = [np.log([metrics.bpp_at(each, p) for p in grid[::900]]) for each in (CURVE, other)]
    expected = 100 * math.expm1(np.trapezoid(rates[0] - rates[1], grid[::900]) / 9)
    percent = metrics.bd_rate(CURVE, other, low=26, high=35)
    assert percent == pytest.approx(expected, abs=0.01)
    back = metrics.bd_rate(other, CURVE, low=26, high=35)
    assert (1 + percent / 100) * (1 + back / 100) == pytest.approx(1.0)


def test_bd_rate_takes_a_curve_that_ends_exactly_at_the_range() -> None:
    assert metrics.bd_rate(CURVE, CURVE, low=25.0, high=37.5) == 0.0


@pytest.mark.parametrize(("low", "high"), [(24.99, 35.0), (26.0, 37.51)])
def test_bd_rate_extrapolates_neither_curve(low: float, high: float) -> None:
    long = Curve((0.01, 0.1, 3.0), (20.0, 27.0, 40.0))
    for curve, anchor in ((CURVE, long), (long, CURVE)):
        with pytest.raises(CurveError, match=r"from 25\.00 to 37\.50 dB and does not reach"):
            metrics.bd_rate(curve, anchor, low=low, high=high)


@pytest.mark.parametrize(
    ("bpp", "psnr", "message"),
    [
        ((0.1, 0.3, 0.3), (25.0, 30.0, 36.0), "bpp goes from 0.3000 to 0.3000"),
        ((0.1, 0.3, 0.2), (25.0, 30.0, 36.0), "bpp goes from 0.3000 to 0.2000"),
        ((0.1, 0.2, 0.3), (25.0, 25.0, 36.0), "PSNR goes from 25.0000 to 25.0000"),
        ((0.1, 0.2, 0.3), (25.0, 36.0, 35.5), "PSNR goes from 36.0000 to 35.5000"),
        ((0.1, 0.2, 0.3), (25.0, 30.0, math.inf), "without a finite value"),
        ((0.0, 0.2, 0.3), (25.0, 30.0, 36.0), "without bits"),
        ((0.1,), (25.0,), "fewer than two points"),
    ],
)
def test_a_curve_must_rise_strictly(
    bpp: tuple[float, ...], psnr: tuple[float, ...], message: str
) -> None:
    curve = Curve(bpp, psnr)
    for pair in ((curve, CURVE), (CURVE, curve)):
        with pytest.raises(CurveError, match=message):
            metrics.bd_rate(*pair, low=26, high=35)
    with pytest.raises(CurveError, match=message):
        metrics.psnr_at(curve, 0.2)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="low < high"):
        metrics.bd_rate(CURVE, CURVE, low=30, high=30)


def test_points_between_stay_between_and_ends_are_hit() -> None:
    for bpp, psnr in zip(CURVE.bpp, CURVE.psnr, strict=True):
        assert metrics.psnr_at(CURVE, bpp) == pytest.approx(psnr)
    for bpp, psnr in list(zip(CURVE.bpp, CURVE.psnr, strict=True))[1:-1]:
        assert metrics.bpp_at(CURVE, psnr) == pytest.approx(bpp)
    assert 29.4 < metrics.psnr_at(CURVE, 0.5) < 33.0
    assert 0.31 < metrics.bpp_at(CURVE, 31.0) < 0.8
    for bpp in (0.069, 1.91):
        with pytest.raises(CurveError, match="no point at"):
            metrics.psnr_at(CURVE, bpp)
    for psnr in (24.9, 37.6):
        with pytest.raises(CurveError, match="no point at"):
            metrics.bpp_at(CURVE, psnr)


# --- code lengths ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "bits"),
    [([1, 1], 2.0), ([2, 1, 1], 6.0), ([4, 0, 0], 0.0), ([0, 8, 0, 8], 16.0), ([], 0.0)],
)
def test_empirical_bits(counts: list[int], bits: float) -> None:
    assert metrics.empirical_bits(counts) == bits


def test_bit_count_keeps_codebooks_apart_and_pictures_together() -> None:
    count = rd.BitCount()
    # Stage 0: group 0 sees 0, 0 then 3, 3 (1 bit each, known only over both pictures); group 1
    # sees only 5. Stage 1 sees nothing but zeros.
    for value in (0, 3):
        stage = np.array([[[value, value]], [[5, 5]]], dtype=np.int16)
        indices = [stage, np.zeros((2, 1, 2), dtype=np.int16)]
        count.add(
            SimpleNamespace(bytes=9, payload_bytes=1, estimated_bits=10.0, indices=indices)  # type: ignore[arg-type]
        )
    assert count.real == 16
    assert count.empirical == 4.0
    assert count.excess == pytest.approx(-20.0)
    assert count.saving == pytest.approx(-300.0)


# --- the record -----------------------------------------------------------------------------------


def test_command_line_keeps_no_folder() -> None:
    argv = ["--images", "/home/me/kodak/", "--json=/data/a=b/x.json", "--qualities", "1,5", "../m"]
    shown = metrics.command_line(argv)
    assert shown == "--images kodak --json=x.json --qualities 1,5 m"


def test_record_can_be_published() -> None:
    head = metrics.record("rd", ["--images", str(Path.cwd())], "cpu")
    assert head["script"] == "rd"
    assert head["command"] == f"python bench/rd.py --images {Path.cwd().name}"
    assert set(head["machine"]["instruction_sets"]) <= set(metrics.INSTRUCTION_SETS)
    assert {"torch", "pillow", "vqcodec"} <= set(head["versions"])
    assert "/" not in json.dumps({**head, "command": ""})


def test_write_json_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    metrics.write_json(tmp_path / "a.json", {"psnr": 30.25})
    assert json.loads((tmp_path / "a.json").read_text()) == {"psnr": 30.25}
    with pytest.raises(ValueError, match="Out of range"):
        metrics.write_json(tmp_path / "b.json", {"psnr": math.inf})
    assert not (tmp_path / "b.json").exists()


# --- the bars of rd.py ----------------------------------------------------------------------------


def statuses(checks: list[rd.Check]) -> list[str]:
    return [check.status for check in checks]


def test_checks_of_a_curve() -> None:
    assert statuses(rd.check_curve(CURVE)) == ["PASS", "PASS", "PASS"]
    short = Curve((0.11, 0.5, 1.19), (27.0, 31.0, 34.9))
    assert statuses(rd.check_curve(short)) == ["FAIL", "PASS", "FAIL"]
    falling = Curve((0.07, 0.2, 0.3, 1.9), (25.0, 29.0, 28.9, 37.0))
    assert statuses(rd.check_curve(falling)) == ["FAIL", "FAIL", "PASS"]


@pytest.mark.parametrize(("step", "status"), [(1.004, "FAIL"), (1.03, "PASS"), (1.07, "FAIL")])
def test_checks_of_the_steps(step: float, status: str) -> None:
    sizes = np.asarray(5000 * 1.03 ** np.arange(100), dtype=np.float64)
    sizes[40:] *= step / 1.03
    check = rd.check_steps(sizes)
    assert check.status == status
    assert ("40 to 41" in check.value) == (status == "FAIL")


def test_checks_of_the_bits_are_decided_by_the_worst_quality() -> None:
    def count(real: int, estimated: float, each: int) -> rd.BitCount:
        return rd.BitCount(real, estimated, {(0, 0): np.array([each, each])})

    good, loose, useless = count(80, 79.5, 50), count(80, 70.0, 50), count(95, 95.0, 50)
    assert statuses(rd.check_bits({1: good})) == ["PASS", "PASS"]
    assert statuses(rd.check_bits({1: good, 2: loose})) == ["FAIL", "PASS"]
    assert statuses(rd.check_bits({1: good, 2: useless})) == ["PASS", "FAIL"]


# --- the scripts as a whole -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small pictures, one of them grey."""
    pictures = tmp_path_factory.mktemp("bench") / "pictures"
    pictures.mkdir()
    for seed, mode in ((1, "RGB"), (2, "L")):
        array = codec_speed.synthetic_picture(96, 64, seed=seed)
        Image.fromarray(array).convert(mode).save(pictures / f"{seed}.png")
    return pictures


class FakeCodec:
    """Real .vqc containers around a WebP of the same quality."""

    def compress(self, image: Image.Image, *, quality: int) -> bytes:
        stream = io.BytesIO()
        image.save(stream, "WEBP", quality=quality)
        header = container.Header(0, False, quality, image.width, image.height, 0xC0DE)
        return container.write_container(header, [container.stage_section(0, stream.getvalue())])

    def decompress(self, data: bytes) -> Image.Image:
        _, sections = container.read_container(data)
        return Image.open(io.BytesIO(sections[0].payload))


def use_fake_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vqcodec.codec")
    module.__dict__["load_codec"] = lambda model, device: FakeCodec()
    monkeypatch.setitem(sys.modules, "vqcodec.codec", module)


def test_rd_writes_the_curves_of_the_classical_codecs(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rd.json"
    argv = ["--images", str(folder), "--codecs", "jpeg,jpeg2000", "--jobs", "1"]
    assert rd.main([*argv, "--json", str(out)]) == 0
    text = out.read_text()
    result = json.loads(text)
    assert result["images"] == {"folder": "pictures", "names": ["1.png", "2.png"]}
    assert str(tmp_path) not in text and str(folder) not in text
    for name in ("jpeg", "jpeg2000"):
        points = result["curves"][name]
        assert [point["setting"] for point in points] == list(rd.CLASSICAL[name].settings)
        # Both pictures have one size, so the mean bytes give the mean bpp.
        for point in points:
            assert point["bpp"] == pytest.approx(point["bytes"] * 8 / (96 * 64), abs=1e-4)


def test_rd_fails_when_the_curve_is_too_short(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_fake_codec(monkeypatch)
    out = tmp_path / "rd.json"
    argv = ["--images", str(folder), "--codecs", "vqcodec,jpeg", "--qualities", "80,90"]
    assert rd.main([*argv, "--jobs", "1", "--json", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  curve reaches 26 and 35 dB: vqcodec's curve goes from" in printed
    assert "n/a   BD-rate against JPEG" in printed
    result = json.loads(out.read_text())
    assert result["model"] == {"name": "default", "code_id": "0000c0de"}
    assert result["checks"][0]["status"] == "FAIL"


def test_rd_does_not_accept_a_file_that_decodes_to_another_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_codec(monkeypatch)
    monkeypatch.setattr(FakeCodec, "decompress", lambda self, data: Image.new("RGB", (96, 63)))
    with pytest.raises(RuntimeError, match=r"\(96, 64\) went in and \(96, 63\) came back"):
        rd.main(["--images", str(folder), "--codecs", "vqcodec", "--qualities", "50"])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--codecs", "gif"],
        ["--qualities", "0,50"],
        ["--codecs", "jpeg", "--bits"],
        ["--limit", "0"],
        ["--plot", "x.gif"],
    ],
)
def test_rd_refuses_a_wrong_command_line(folder: Path, argv: list[str]) -> None:
    images = ["--images", str(folder / "nothing") if not argv else str(folder)]
    with pytest.raises(SystemExit) as caught:
        rd.main([*images, *argv])
    assert caught.value.code == 2


def test_the_speed_picture_is_the_same_each_time() -> None:
    first = codec_speed.synthetic_picture(70, 50)
    assert first.shape == (50, 70, 3) and first.dtype == np.uint8
    assert np.array_equal(first, codec_speed.synthetic_picture(70, 50))
    assert not np.array_equal(first, codec_speed.synthetic_picture(70, 50, seed=1))


def test_speed_measures_refuse_a_codec_that_is_not_repeatable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = Image.fromarray(codec_speed.synthetic_picture(32, 32))
    codec: Any = FakeCodec()
    row = codec_speed.measure(codec, picture, 50, 2)
    assert row["bytes"] == len(codec.compress(picture, quality=50))
    assert 0 < row["compress_mp_s"]["min"] <= row["compress_mp_s"]["median"]

    shades = iter(range(256))
    fresh = lambda self, data: Image.new("RGB", (32, 32), (next(shades),) * 3)  # noqa: E731
    monkeypatch.setattr(FakeCodec, "decompress", fresh)
    with pytest.raises(RuntimeError, match="different pictures"):
        codec_speed.measure(codec, picture, 50, 2)
