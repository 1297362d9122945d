"""Tests of bench.metrics, and of bench/rd.py and bench/codec_speed.py as a whole.

The expected figures are worked out by hand or from formulas that share no code with the module.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import codec_speed, metrics, rd
from bench.metrics import Curve, CurveError
from bench.rd_checks import Bars
from vqcodec import container
from vqcodec.codec import EncodeStats
from vqcodec.similarity import ms_ssim_rgb

# --- curves ---------------------------------------------------------------------------------------


def test_curve_of_means_averages_bpp_and_decibels() -> None:
    curve = metrics.curve_of_means([[0.1, 0.3], [1.0, 2.0]], [[20.0, 40.0], [30.0, 41.0]])
    assert curve.bpp == pytest.approx((0.2, 1.5))
    assert curve.decibels == pytest.approx((30.0, 35.5))


@pytest.mark.parametrize(("bpp", "psnr"), [([[1.0]], [[1.0, 2.0]]), ([1.0], [1.0]), ([[]], [[]])])
def test_curve_of_means_refuses_shapes_that_do_not_match(bpp: Any, psnr: Any) -> None:
    with pytest.raises(ValueError, match="expected two"):
        metrics.curve_of_means(bpp, psnr)


CURVE = Curve((0.07, 0.2, 0.31, 0.8, 1.9), (25.0, 28.5, 29.4, 33.0, 37.5))


def scaled(curve: Curve, factor: float) -> Curve:
    return Curve(tuple(factor * bpp for bpp in curve.bpp), curve.decibels)


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
        metrics.decibels_at(curve, 0.2)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="low < high"):
        metrics.bd_rate(CURVE, CURVE, low=30, high=30)


def test_points_between_stay_between_and_ends_are_hit() -> None:
    for bpp, psnr in zip(CURVE.bpp, CURVE.decibels, strict=True):
        assert metrics.decibels_at(CURVE, bpp) == pytest.approx(psnr)
    for bpp, psnr in list(zip(CURVE.bpp, CURVE.decibels, strict=True))[1:-1]:
        assert metrics.bpp_at(CURVE, psnr) == pytest.approx(bpp)
    assert 29.4 < metrics.decibels_at(CURVE, 0.5) < 33.0
    assert 0.31 < metrics.bpp_at(CURVE, 31.0) < 0.8
    for bpp in (0.069, 1.91):
        with pytest.raises(CurveError, match="no point at"):
            metrics.decibels_at(CURVE, bpp)
    for psnr in (24.9, 37.6):
        with pytest.raises(CurveError, match="no point at"):
            metrics.bpp_at(CURVE, psnr)


def test_a_curve_is_named_by_its_measure() -> None:
    falling = Curve((0.1, 0.2), (12.0, 11.0), "MS-SSIM")
    with pytest.raises(CurveError, match=r"MS-SSIM goes from 12\.0000 to 11\.0000"):
        metrics.bd_rate(falling, falling, low=11, high=12)


# log2(bpp) to decibels is a straight line, which PCHIP keeps: 30 dB at 0.5 bpp, 3 dB an octave.
RATES = tuple(2.0**octave for octave in (-4, -3, -2, -1, 0, 1))
LINE = Curve(RATES, tuple(33 + 3 * math.log2(bpp) for bpp in RATES))


def raised(curve: Curve, decibels: float, *, at: int | None = None) -> Curve:
    """`curve` higher by `decibels`, everywhere or only `at` one point."""
    points = enumerate(curve.decibels)
    return Curve(curve.bpp, tuple(y + decibels if at in (None, point) else y for point, y in points))


def test_least_margin_is_found_at_a_point_and_at_either_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for low, high in ((0.15, 1.2), (0.0625, 2.0), (0.5, 0.5)):
        margin, bpp = metrics.least_margin(raised(LINE, 0.4), LINE, low=low, high=high)
        assert margin == pytest.approx(0.4) and low <= bpp <= high
    assert metrics.least_margin(LINE, LINE, low=0.1, high=1.5)[0] == 0.0
    # 2 dB an octave against 3 from the same 27 dB at 0.125 bpp: the further up, the lower.
    flat = Curve(RATES, tuple(33 + 2 * math.log2(bpp) for bpp in RATES))
    margin, bpp = metrics.least_margin(flat, LINE, low=0.15, high=1.2)
    assert (margin, bpp) == pytest.approx((-math.log2(1.2), 1.2))
    margin, bpp = metrics.least_margin(LINE, flat, low=0.15, high=1.2)
    assert (margin, bpp) == pytest.approx((math.log2(0.15), 0.15))
    # A dent of one curve or a bump of the other at 0.5 bpp, where neither end nor grid is.
    monkeypatch.setattr(metrics, "MARGIN_GRID", 2)
    more = (*RATES[:3], 0.4, *RATES[3:])
    finer = Curve(more, tuple(33 + 3 * math.log2(bpp) for bpp in more))
    for curve, other in ((raised(LINE, -0.25, at=3), finer), (finer, raised(LINE, 0.25, at=3))):
        assert metrics.least_margin(curve, other, low=0.15, high=1.2) == pytest.approx((-0.25, 0.5))
    bump = raised(finer, 0.25, at=3)
    assert metrics.least_margin(LINE, bump, low=0.15, high=1.2) == pytest.approx((-0.25, 0.4))
    assert metrics.least_margin(raised(finer, -0.25, at=3), LINE, low=0.15, high=1.2)[1] == 0.4


def test_least_margin_looks_between_the_points() -> None:
    # Both curves meet at 0.25 and 1 bpp; between them one has a corner and the other none.
    straight = Curve((0.0625, 0.25, 1.0, 4.0), (20.0, 26.0, 32.0, 38.0))
    curved = Curve((0.0625, 0.25, 1.0, 4.0), (25.0, 26.0, 32.0, 38.0))
    grid = np.geomspace(0.15, 1.2, 501)
    gaps = [metrics.decibels_at(curved, x) - metrics.decibels_at(straight, x) for x in grid]
    margin, bpp = metrics.least_margin(curved, straight, low=0.25, high=1.0)
    assert margin < -0.05 and 0.26 < bpp < 0.99
    margin, bpp = metrics.least_margin(curved, straight, low=0.15, high=1.2)
    assert margin == pytest.approx(min(gaps), abs=1e-4)
    assert bpp == pytest.approx(grid[int(np.argmin(gaps))], rel=0.01)


@pytest.mark.parametrize(("low", "high"), [(0.0624, 1.0), (0.1, 2.01)])
def test_least_margin_extrapolates_neither_curve(low: float, high: float) -> None:
    long = Curve((0.01, 0.1, 3.0), (20.0, 27.0, 40.0))
    for curve, other in ((LINE, long), (long, LINE)):
        with pytest.raises(CurveError, match=r"from 0\.062 to 2\.000 bpp and does not reach both ends"):
            metrics.least_margin(curve, other, low=low, high=high)


def test_least_margin_refuses_what_is_no_range_and_no_rising_curve() -> None:
    with pytest.raises(ValueError, match="low <= high"):
        metrics.least_margin(LINE, LINE, low=1.0, high=0.5)
    with pytest.raises(CurveError, match="not strictly monotone"):
        metrics.least_margin(LINE, raised(LINE, -4.0, at=3), low=0.15, high=1.2)


# --- code lengths ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "bits"),
    [([1, 1], 2.0), ([2, 1, 1], 6.0), ([4, 0, 0], 0.0), ([0, 8, 0, 8], 16.0), ([], 0.0)],
)
def test_empirical_bits(counts: list[int], bits: float) -> None:
    assert metrics.empirical_bits(counts) == bits


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
    """Real .vqc containers around a WebP of the same quality, "ideal" in 63/64 of its bytes."""

    def compress(self, image: Image.Image, *, quality: int, effort: int = 4) -> bytes:
        stream = io.BytesIO()
        image.save(stream, "WEBP", quality=quality)
        header = container.Header(0, False, quality, image.width, image.height, 0xC0DE)
        return container.write_container(header, [container.stage_section(0, stream.getvalue())])

    def decompress(self, data: bytes) -> Image.Image:
        _, sections = container.read_container(data)
        return Image.open(io.BytesIO(sections[0].payload))

    def analyse(self, image: Image.Image, *, quality: int, effort: int = 4) -> EncodeStats:
        data = self.compress(image, quality=quality)
        payload = len(container.read_container(data)[1][0].payload)
        return EncodeStats(data, payload, 7.875 * payload, [np.zeros((1, 8, 8), dtype=np.int16)])


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


def test_rd_measures_ms_ssim_of_the_pictures_that_are_large_enough(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fake_codec(monkeypatch)
    few = dataclasses.replace(rd.CLASSICAL["webp"], settings=(5, 50))
    monkeypatch.setitem(rd.CLASSICAL, "webp", few)
    pictures, out = tmp_path / "mixed", tmp_path / "rd.json"
    pictures.mkdir()
    (pictures / "1.png").write_bytes((folder / "1.png").read_bytes())
    large = [Image.fromarray(codec_speed.synthetic_picture(176, 168, seed=seed)) for seed in (3, 4)]
    for seed, picture in zip((3, 4), large, strict=True):
        picture.save(pictures / f"{seed}.png")
    argv = ["--images", str(pictures), "--codecs", "vqcodec,webp", "--qualities", "20,80", "--ms-ssim"]
    assert rd.main([*argv, "--jobs", "1", "--json", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "left out: 1.png" in printed
    assert "FAIL  MS-SSIM above WebP's at every rate: the curve of vqcodec goes from" in printed

    result = json.loads(out.read_text())
    assert result["ms_ssim"]["left_out"] == ["1.png"]
    assert result["ms_ssim"]["over_webp"]["at_fault"] == "vqcodec"
    assert [point["setting"] for point in result["curves"]["webp"]] == [5, 50]
    codec = FakeCodec()
    for point in result["curves"]["vqcodec"]:
        files = [codec.compress(picture, quality=point["setting"]) for picture in large]
        decoded = [np.asarray(codec.decompress(data)) for data in files]
        values = [ms_ssim_rgb(np.asarray(a), b) for a, b in zip(large, decoded, strict=True)]
        mean = np.mean(np.array(values, dtype=np.float64))
        # The recorded figures are rounded to six and four digits.
        assert point["ms_ssim"] == pytest.approx(mean, abs=1e-6)
        assert point["ms_ssim_db"] == pytest.approx(-10 * math.log10(1 - mean), abs=1e-4)
        bpp = np.mean([8 * len(data) / (176 * 168) for data in files])
        assert point["ms_ssim_bpp"] == pytest.approx(bpp, abs=1e-6) and point["bpp"] != bpp
    for point in result["curves"]["webp"]:
        assert 0 < point["ms_ssim"] < 1


def test_rd_says_when_no_picture_is_large_enough(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fake_codec(monkeypatch)
    out = tmp_path / "rd.json"
    argv = ["--images", str(folder), "--codecs", "vqcodec,webp", "--qualities", "20,80", "--ms-ssim"]
    rd.main([*argv, "--jobs", "1", "--json", str(out)])
    assert (
        "n/a   MS-SSIM above WebP's at every rate: every picture is too small" in capsys.readouterr().out
    )
    result = json.loads(out.read_text())
    assert result["ms_ssim"] == {"left_out": ["1.png", "2.png"]}
    assert "ms_ssim" not in result["curves"]["webp"][0]


def test_rd_records_the_overhead(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fake_codec(monkeypatch)
    out = tmp_path / "rd.json"
    argv = ["--images", str(folder), "--codecs", "vqcodec", "--qualities", "20,80", "--bits"]
    assert rd.main([*argv, "--saving-bar=-1", "--json", str(out)]) == 1
    codec = FakeCodec()
    result = json.loads(out.read_text())
    for entry in result["bits"]:
        total = ideal = 0.0
        for path in rd.find_pictures(folder):
            stats = codec.analyse(rd.load_picture(path), quality=entry["quality"])
            total, ideal = total + len(stats.data), ideal + stats.payload_bytes * 63 / 64
        assert entry["file_bytes"] == total
        assert entry["overhead_percent"] == pytest.approx(100 * (total - ideal) / total, abs=1e-3)
    printed = capsys.readouterr().out
    assert "FAIL  overhead at 0.2 bpp under 1 %: " in printed and "(quality 20, " in printed
    assert "FAIL  real bits within 1 %" in printed and "PASS  prior saves -1 % against" in printed


def test_rd_names_the_package_that_ms_ssim_needs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    with pytest.raises(SystemExit) as caught:
        rd.main(["--images", str(folder), "--codecs", "jpeg", "--ms-ssim"])
    assert caught.value.code == 2
    assert "pytorch_msssim" in (error := capsys.readouterr().err) and "pip install" in error


def test_rd_knows_the_published_curves_before_it_measures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rd, "measure_vqcodec", None)
    anchors = tmp_path / "curves.json"
    anchors.write_text(json.dumps({"bpg444": {"bpp": [0.1, 2.0], "psnr": [26.0, 40.0]}}))
    argv = ["--images", str(folder), "--anchors", str(anchors), "--published-bar"]
    for bar, message in ((["bpg", "8"], "no curve 'bpg'"), (["bpg444", "x"], "could not convert")):
        with pytest.raises(SystemExit) as caught:
            rd.main([*argv, *bar])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_rd_takes_its_bars_from_the_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_codec(monkeypatch)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(rd, "report", lambda results, **options: seen.update(options) or ({}, []))
    monkeypatch.setattr(rd, "measure_classical", lambda *args, **options: None)
    argv = ["--images", str(folder), "--codecs", "vqcodec,webp", "--qualities", "50"]
    assert rd.main(argv) == 0
    assert (seen["bars"], seen["left_out"]) == (Bars(), None)
    assert Bars() == Bars(jpeg=-20.0, webp=None, published={}, saving=10.0)
    anchors = tmp_path / "curves.json"
    curve = {"bpp": [0.1, 2.0], "psnr": [26.0, 40.0]}
    anchors.write_text(json.dumps({"bpg444": curve, "hm": curve}))
    argv += ["--anchors", str(anchors), "--published-bar", "bpg444", "8", "--published-bar", "hm", "-5"]
    assert rd.main([*argv, "--jpeg-bar", "-30", "--webp-bar", "-1.5", "--saving-bar", "12"]) == 0
    assert seen["bars"] == Bars(jpeg=-30.0, webp=-1.5, published={"bpg444": 8.0, "hm": -5.0}, saving=12.0)


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
        ["--codecs", "vqcodec,jpeg", "--webp-bar", "0"],
        ["--codecs", "webp,jpeg", "--webp-bar", "0"],
        ["--published-bar", "bpg444", "8"],
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
    row = codec_speed.measure(codec, picture, 50, 2, effort=1)
    assert row["bytes"] == len(codec.compress(picture, quality=50))
    assert 0 < row["compress_mp_s"]["min"] <= row["compress_mp_s"]["median"]

    shades = iter(range(256))
    fresh = lambda self, data: Image.new("RGB", (32, 32), (next(shades),) * 3)  # noqa: E731
    monkeypatch.setattr(FakeCodec, "decompress", fresh)
    with pytest.raises(RuntimeError, match="different pictures"):
        codec_speed.measure(codec, picture, 50, 2, effort=1)


@pytest.mark.parametrize(("slow", "status"), [(4, "PASS"), (1, "FAIL")])
def test_the_bar_of_speed_is_for_the_least_effort(
    slow: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(codec: object, picture: object, quality: int, repeat: int, *, effort: int) -> Any:
        found = {way: {"median": 9.0, "min": 9.0, "max": 9.0} for way in ("slow", "fast")}
        found["slow"]["median"] = 0.1
        compress = found["slow" if effort == slow else "fast"]
        head = {"effort": effort, "quality": quality, "bpp": 1.0, "psnr": 40.0}
        return {**head, "compress_mp_s": compress, "decompress_mp_s": found["fast"]}

    use_fake_codec(monkeypatch)
    monkeypatch.setattr(codec_speed, "measure", measure)
    monkeypatch.setattr(codec_speed, "synthetic_picture", lambda *_: np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr(codec_speed, "start_up", lambda *_: 0.01)
    monkeypatch.setattr(codec_speed, "peak_memory", lambda: 10**6)
    out = tmp_path / "speed.json"
    assert codec_speed.main(["--json", str(out)]) == (status == "FAIL")
    result = json.loads(out.read_text())
    checks = {check["check"].split(" at ")[0]: check["status"] for check in result["checks"]}
    assert (checks["compress --effort 1"], checks["decompress"]) == (status, "PASS")
    assert [row["effort"] for row in result["speed"]] == [1, 1, 1, 4, 4, 4]
