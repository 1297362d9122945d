"""Tests of bench/rd_checks.py, and of what rd.report says of curves made by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import rd
from bench.metrics import Curve
from bench.rd_checks import (
    Bars,
    BitCount,
    Check,
    check_bd_rate,
    check_bits,
    check_curve,
    check_overhead,
    check_rates,
    check_steps,
    compare_overlap,
    compare_rates,
)

CURVE = Curve((0.07, 0.2, 0.31, 0.8, 1.9), (25.0, 28.5, 29.4, 33.0, 37.5))


def changed(curve: Curve, *, rate: float = 1.0, decibels: float = 0.0, at: int | None = None) -> Curve:
    """`curve` with its rates times `rate` and `decibels` more, the latter only `at` a point if given."""
    points = enumerate(curve.decibels)
    return Curve(
        tuple(rate * bpp for bpp in curve.bpp),
        tuple(y + decibels if at in (None, point) else y for point, y in points),
        curve.measure,
    )


# --- comparisons ----------------------------------------------------------------------------------


def test_compare_overlap_takes_the_decibels_that_both_have() -> None:
    longer = Curve((0.01, *CURVE.bpp, 4.0), (12.0, *CURVE.decibels, 50.0))
    shorter = Curve(tuple(2 * bpp for bpp in CURVE.bpp[1:4]), CURVE.decibels[1:4])
    apart = changed(CURVE, decibels=12.5)
    falling = changed(CURVE, decibels=-3.0, at=2)
    others = {"longer": longer, "shorter": shorter, "apart": apart, "falling": falling}
    found = compare_overlap(changed(CURVE, rate=0.8), others)
    # Slopes at a curve's ends depend on what lies beyond them: these two are near, not equal.
    assert found["longer"]["percent"] == pytest.approx(-20.0, abs=3.0)
    assert found["longer"]["range_db"] == [25.0, 37.5]
    assert found["shorter"]["percent"] == pytest.approx(-60.0, abs=3.0)
    assert found["shorter"]["range_db"] == [28.5, 33.0]
    assert found["apart"]["percent"] is None and "in common" in found["apart"]["reason"]
    assert found["falling"]["percent"] is None
    assert found["falling"]["reason"].startswith("is not strictly monotone: PSNR")
    own = compare_overlap(falling, {"longer": longer})["longer"]
    assert own["percent"] is None and own["reason"].startswith("of vqcodec is not strictly monotone")


def test_compare_overlap_of_a_scaled_curve_is_the_factor() -> None:
    found = compare_overlap(changed(CURVE, rate=0.8), {"a": CURVE})
    assert found == {"a": {"percent": -20.0, "range_db": [25.0, 37.5]}}


@pytest.mark.parametrize(
    ("own", "equal", "at_every_rate_of_both"),
    [
        (changed(CURVE, decibels=0.2), "PASS", "PASS"),
        (CURVE, "PASS", "FAIL"),
        (changed(CURVE, decibels=-0.001), "FAIL", "FAIL"),
        # Lower at one point within the range, and at one beyond it.
        (changed(changed(CURVE, decibels=0.2), decibels=-0.3, at=2), "FAIL", "FAIL"),
        (changed(changed(CURVE, decibels=0.2), decibels=-0.3, at=0), "PASS", "FAIL"),
    ],
)
def test_checks_at_every_rate(own: Curve, equal: str, at_every_rate_of_both: str) -> None:
    found = compare_rates(own, CURVE, name="webp", overlap=False)
    assert found["range_bpp"] == [0.15, 1.2]
    assert check_rates("x", found, equal=True).status == equal
    found = compare_rates(own, CURVE, name="webp", overlap=True)
    assert found["range_bpp"] == [0.07, 1.9]
    assert check_rates("x", found, equal=False).status == at_every_rate_of_both


def test_the_least_margin_and_its_rate_are_said() -> None:
    own = changed(changed(CURVE, decibels=0.2), decibels=-0.3, at=2)
    found = compare_rates(own, CURVE, name="webp", overlap=False)
    # The dent leaves the curve another slope there: the least is a little further up.
    assert -0.2 < found["least_db"] <= -0.1 and 0.31 <= found["bpp"] < 0.4
    check = check_rates("x", {"least_db": -0.1, "bpp": 0.31, "range_bpp": [0.15, 1.2]}, equal=True)
    assert check.value == "least -0.100 dB, at 0.310 bpp of 0.150 to 1.200"


@pytest.mark.parametrize("overlap", [False, True])
def test_a_curve_that_does_not_cover_the_rates_is_no_pass(overlap: bool) -> None:
    above = changed(CURVE, decibels=5.0)
    for short in (slice(0, 4), slice(1, 5)):
        cut = Curve(above.bpp[short], above.decibels[short])
        check = check_rates("x", compare_rates(cut, CURVE, name="webp", overlap=overlap), equal=True)
        assert check.status == "FAIL" and check.value.startswith("the curve of vqcodec goes from")
        other = Curve(CURVE.bpp[short], CURVE.decibels[short])
        check = check_rates("x", compare_rates(above, other, name="webp", overlap=overlap), equal=True)
        assert check.status == "n/a" and check.value.startswith("the curve of webp goes from")


# --- code lengths ---------------------------------------------------------------------------------


def test_bit_count_keeps_codebooks_apart_and_pictures_together() -> None:
    count = BitCount()
    # Stage 0: group 0 sees 0, 0 then 3, 3 (1 bit each, known only over both pictures); group 1
    # sees only 5. Stage 1 sees nothing but zeros.
    for value in (0, 3):
        stage = np.array([[[value, value]], [[5, 5]]], dtype=np.int16)
        indices = [stage, np.zeros((2, 1, 2), dtype=np.int16)]
        count.add(
            SimpleNamespace(data=bytes(9), payload_bytes=1, estimated_bits=10.0, indices=indices)  # type: ignore[arg-type]
        )
    assert count.file_bytes == 18
    assert count.real == 16
    assert count.empirical == 4.0
    assert count.excess == pytest.approx(-20.0)
    assert count.saving == pytest.approx(-300.0)
    # 20 bits are 2.5 of 18 bytes.
    assert count.overhead == pytest.approx(100 * 15.5 / 18)
    assert BitCount().overhead == 0.0


# --- bars -----------------------------------------------------------------------------------------


def statuses(checks: list[Check]) -> list[str]:
    return [check.status for check in checks]


def test_checks_of_a_curve() -> None:
    assert statuses(check_curve(CURVE)) == ["PASS", "PASS", "PASS"]
    short = Curve((0.11, 0.5, 1.19), (27.0, 31.0, 34.9))
    assert statuses(check_curve(short)) == ["FAIL", "PASS", "FAIL"]
    falling = Curve((0.07, 0.2, 0.3, 1.9), (25.0, 29.0, 28.9, 37.0))
    assert statuses(check_curve(falling)) == ["FAIL", "FAIL", "PASS"]


@pytest.mark.parametrize(("step", "status"), [(1.004, "FAIL"), (1.03, "PASS"), (1.07, "FAIL")])
def test_checks_of_the_steps(step: float, status: str) -> None:
    sizes = np.asarray(5000 * 1.03 ** np.arange(100), dtype=np.float64)
    sizes[40:] *= step / 1.03
    check = check_steps(sizes)
    assert check.status == status
    assert ("40 to 41" in check.value) == (status == "FAIL")


def test_checks_of_the_bits_are_decided_by_the_worst_quality() -> None:
    def count(real: int, estimated: float, each: int) -> BitCount:
        return BitCount(0, real, estimated, {(0, 0): np.array([each, each])})

    good, loose, useless = count(80, 79.5, 50), count(80, 70.0, 50), count(95, 95.0, 50)
    assert statuses(check_bits({1: good}, saving_bar=10)) == ["PASS", "PASS"]
    assert statuses(check_bits({1: good, 2: loose}, saving_bar=10)) == ["FAIL", "PASS"]
    assert statuses(check_bits({1: good, 2: useless}, saving_bar=10)) == ["PASS", "FAIL"]
    assert statuses(check_bits({1: good, 2: useless}, saving_bar=4)) == ["PASS", "PASS"]
    strict = check_bits({1: good}, saving_bar=20.5)
    assert strict[1] == Check(
        "prior saves 20.5 % against empirical entropy", "least +20.0 % (quality 1)", False
    )


def test_check_of_the_overhead_is_taken_nearest_to_its_rate() -> None:
    # Of 1,000 bytes each 992, 991 and 990 are ideal: 0.8, 0.9 and 1 % overhead.
    bits = {quality: BitCount(1000, 0, 8.0 * ideal) for quality, ideal in ((1, 992), (9, 991), (17, 990))}
    for bpp, chosen, status in (
        ((0.1, 0.19, 0.22), "0.90 % (quality 9, 0.190 bpp)", "PASS"),
        ((0.1, 0.17, 0.22), "1.00 % (quality 17, 0.220 bpp)", "FAIL"),
        ((0.5, 0.6, 0.7), "0.80 % (quality 1, 0.500 bpp)", "PASS"),
    ):
        check = check_overhead(bits, dict(zip(bits, bpp, strict=True)))
        assert (check.value, check.status) == (chosen, status)


@pytest.mark.parametrize(
    ("found", "value", "status"),
    [
        ({"percent": 8.0}, "+8.00 %", "PASS"),
        ({"percent": 8.01}, "+8.01 %", "FAIL"),
        ({"percent": -3.0, "range_db": [27.5, 35.0]}, "-3.00 %  (from 27.5 to 35 dB)", "PASS"),
        ({"percent": -3.0, "range_db": [26.0, 35.0]}, "-3.00 %", "PASS"),
        ({"percent": None, "reason": "is short"}, "not measured", "n/a"),
        (None, "not measured", "n/a"),
    ],
)
def test_check_of_a_bd_rate(found: dict[str, Any] | None, value: str, status: str) -> None:
    check = check_bd_rate("X", found, 8)
    assert (check.name, check.value, check.status) == ("BD-rate against X at most 8 %", value, status)


# --- the report -----------------------------------------------------------------------------------


def result(curve: Curve, similar: Curve | None = None) -> rd.Measured:
    """A codec over one picture, with the MS-SSIM of `similar` (dB, the rates of `curve`) if given."""
    settings = tuple(float(point) for point in range(len(curve.bpp)))
    bpp, psnr = np.array(curve.bpp)[:, None], np.array(curve.decibels)[:, None]
    ms_ssim = np.zeros((len(settings), 0))
    if similar is not None:
        ms_ssim = 1 - 10 ** (-np.array(similar.decibels)[:, None] / 10)
    large = np.array([similar is not None])
    return rd.Measured(settings, np.ones_like(bpp, dtype=np.int64), bpp, psnr, large, ms_ssim)


def reported(
    results: dict[str, rd.Measured],
    *,
    published: dict[str, Curve] | None = None,
    left_out: list[str] | None = None,
    bars: Bars,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Body of the result file, and status by name of the check, those of vqcodec's own curve apart."""
    body, checks = rd.report(
        results, published=published or {}, bits=None, mean_bytes=None, left_out=left_out, bars=bars
    )
    return body, {check.name: check.status for check in checks[3:]}


EVERYWHERE = "PSNR at least WebP's at every rate in 0.15 to 1.2 bpp"


def test_webp_is_a_bar_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    results = {"vqcodec": result(changed(CURVE, rate=0.9)), "webp": result(CURVE)}
    body, checks = reported(results, bars=Bars())
    assert checks == {}
    assert "PSNR of vqcodec minus WebP's: least +0." in capsys.readouterr().out
    assert 0.1 < body["psnr_over_webp"]["least_db"] < 0.7
    assert body["bd_rate"]["against"] == {"webp": {"percent": -10.0}}
    assert reported(results, bars=Bars(webp=-10.0))[1] == {
        "BD-rate against WebP at most -10 %": "PASS",
        EVERYWHERE: "PASS",
    }
    # The very curve of WebP is no lower.
    results["vqcodec"] = result(CURVE)
    assert reported(results, bars=Bars(webp=0.0))[1][EVERYWHERE] == "PASS"
    results["vqcodec"] = result(changed(changed(CURVE, rate=0.9), decibels=-1.0, at=1))
    assert reported(results, bars=Bars(webp=-11.0))[1] == {
        "BD-rate against WebP at most -11 %": "FAIL",
        EVERYWHERE: "FAIL",
    }


def test_the_bars_of_jpeg_and_of_published_curves() -> None:
    results = {"vqcodec": result(CURVE), "jpeg": result(changed(CURVE, rate=1.25))}
    published = {"good": changed(CURVE, rate=0.95), "bad": changed(CURVE, rate=0.8)}
    published |= {"short": Curve(CURVE.bpp[2:4], CURVE.decibels[2:4])}
    bars = Bars(published={"good": 8.0, "bad": 8.0, "short": 8.0})
    body, checks = reported(results, published=published, bars=bars)
    assert checks == {
        "BD-rate against JPEG at most -20 %": "PASS",
        "BD-rate against published good at most 8 %": "PASS",
        "BD-rate against published bad at most 8 %": "FAIL",
        "BD-rate against published short at most 8 %": "n/a",
    }
    assert {name: entry["percent"] for name, entry in body["published_bd_rate"].items()} == {
        "good": 5.26,
        "bad": 25.0,
    }


def test_without_a_curve_of_its_own_nothing_is_compared() -> None:
    results = {"vqcodec": result(Curve((0.2, 0.4), (27.0, 30.0))), "webp": result(CURVE)}
    bars = Bars(webp=0.0, published={"a": 8.0})
    body, checks = reported(results, published={"a": CURVE}, bars=bars)
    assert checks == {
        "BD-rate against WebP at most 0 %": "n/a",
        EVERYWHERE: "FAIL",
        "BD-rate against published a at most 8 %": "n/a",
    }
    assert "bd_rate" not in body and "published_bd_rate" not in body


SIMILAR = Curve(CURVE.bpp, (9.0, 13.0, 15.0, 18.0, 22.0), "MS-SSIM")


@pytest.mark.parametrize(("decibels", "status"), [(0.1, "PASS"), (-0.1, "FAIL")])
def test_ms_ssim_is_compared_with_webp(
    decibels: float, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = changed(SIMILAR, decibels=decibels)
    results = {"vqcodec": result(CURVE, own), "webp": result(CURVE, SIMILAR), "jpeg": result(CURVE, own)}
    body, checks = reported(results, left_out=[], bars=Bars(jpeg=1.0))
    assert checks == {
        "BD-rate against JPEG at most 1 %": "PASS",
        "MS-SSIM above WebP's at every rate": status,
    }
    found = body["ms_ssim"]
    assert found["left_out"] == []
    assert found["over_webp"]["least_db"] == pytest.approx(decibels, abs=1e-5)
    assert found["over_webp"]["range_bpp"] == [0.07, 1.9]
    assert found["bd_rate"]["jpeg"]["percent"] == 0.0
    assert math.copysign(1, found["bd_rate"]["webp"]["percent"]) == -math.copysign(1, decibels)
    first = body["curves"]["webp"][0]
    assert first["ms_ssim_db"] == 9.0 and "ms_ssim_bpp" not in first
    assert first["ms_ssim"] == round(1 - 10**-0.9, 6)
    assert "left out" not in capsys.readouterr().out


def test_ms_ssim_that_falls_is_a_failure_of_vqcodec_alone() -> None:
    falling = changed(SIMILAR, decibels=-2.5, at=2)
    title = "MS-SSIM above WebP's at every rate"
    for own, webp, status in ((falling, SIMILAR, "FAIL"), (SIMILAR, falling, "n/a")):
        results = {"vqcodec": result(CURVE, own), "webp": result(CURVE, webp)}
        body, checks = reported(results, left_out=[], bars=Bars())
        assert checks == {title: status}
        assert body["ms_ssim"]["bd_rate"]["webp"]["percent"] is None
        assert body["ms_ssim"]["over_webp"]["least_db"] is None


def test_ms_ssim_of_one_is_infinite_and_left_to_the_reader() -> None:
    alike = result(CURVE, SIMILAR)
    alike.ms_ssim[-1] = 1.0
    body, _ = reported({"webp": alike}, left_out=[], bars=Bars())
    assert body["curves"]["webp"][-1]["ms_ssim"] == 1.0
    assert body["curves"]["webp"][-1]["ms_ssim_db"] is None
