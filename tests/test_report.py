"""The report: a page that parses, holds every figure, fetches nothing, and shows in a browser."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqcodec.collapse import LatentHealth, codebook_health, deterministic_health, gaussian_health
from vqcodec.comparison import (
    DEFAULT_LABEL,
    MODES,
    Comparison,
    Crop,
    CropSet,
    Figures,
    ModelResult,
    PictureInfo,
    QualityPoint,
)
from vqcodec.report import render_report

NASTY = '<script>alert("1")</script>&\'.png'
QUALITIES = (10, 50, 90)
# What no style of the page has, so that its pixels are found in a picture of the page.
SHOCKING = (255, 0, 200)
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags balance, and collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert "svg" in self.open, "only foreign elements close themselves"

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


ROWS = len(MODES) + 1


def png(colour: tuple[int, int, int], size: tuple[int, int] = (256, 256)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def health_of(mode: str) -> LatentHealth:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4096, 12, generator=generator)
    if mode == "ae":
        return deterministic_health(values, 1.0)
    if mode == "vae":
        return gaussian_health(values * 0, values * 0)
    index = torch.randint(0, 256, (6, 4096), generator=generator)
    if mode == "dvae":
        return codebook_health(index, 256, mode=mode, kl=torch.rand(6, 4096, generator=generator))
    return codebook_health([index, index % 40], 256, mode=mode)


def figures(bpp: float, psnr: float, mode: str) -> Figures:
    return Figures(
        bytes=bpp * 24576,
        bpp=bpp,
        psnr=psnr,
        ms_ssim=1 - 10 ** (-psnr / 20),
        encode_seconds=0.123,
        decode_seconds=0.045,
        divergence_bpp=0.777 if mode in ("vae", "dvae") else None,
    )


def comparison_of(labels: tuple[str, ...] = (*MODES, DEFAULT_LABEL)) -> Comparison:
    results = []
    for n, label in enumerate(labels):
        mode = label.split()[0]
        points = []
        for place, quality in enumerate(QUALITIES):
            mean = figures(0.1 * 3**place * (1 + 0.1 * n), 25 + 4 * place - n / 3, mode)
            points.append(QualityPoint(quality, mean, (mean, mean)))
        results.append(ModelResult(label, mode, f"model-{n}", f"{n:08x}", tuple(points), health_of(mode)))
    crops = tuple(
        Crop(label, 40 + n, 0.5 + n / 100, 30 + n, png((n, 9, 9))) for n, label in enumerate(labels)
    )
    return Comparison(
        pictures=(PictureInfo(NASTY, 512, 384, False), PictureInfo("small.png", 100, 90, True)),
        qualities=QUALITIES,
        results=tuple(results),
        crops=(
            CropSet(NASTY, 16, 32, 256, 256, 0.5, png(SHOCKING), crops),
            CropSet("small.png", 0, 0, 100, 90, 0.5, png((1, 2, 3), (100, 90)), crops[:1]),
        ),
        device="cpu",
        threads=2,
    )


@pytest.fixture(scope="module")
def text() -> str:
    return render_report(comparison_of())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_page_is_one_balanced_document(text: str, page: Page) -> None:
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    for tag in ("html", "head", "body", "style", "h1"):
        assert len(page.all(tag)) == 1, tag
    assert text.count("<title>vqcodec") == 1
    assert render_report(comparison_of()) == text


def test_every_picture_is_inside(page: Page) -> None:
    comparison = comparison_of()
    expected = [p for s in comparison.crops for p in (s.original_png, *(c.png for c in s.crops))]
    found = []
    for image in page.all("img"):
        source = image["src"]
        assert source is not None and source.startswith("data:image/png;base64,")
        found.append(base64.b64decode(source.partition(",")[2], validate=True))
        size = Image.open(io.BytesIO(found[-1])).size
        assert image["alt"]
        if image["alt"].endswith("original"):
            assert (image["width"], image["height"]) == (str(size[0]), str(size[1]))
    assert found == expected


def test_nothing_is_fetched(text: str, page: Page) -> None:
    assert "://" not in text and "@import" not in text and "url(" not in text
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in page.tags)
    for tag, attributes in page.tags:
        assert {"href", "xlink:href", "srcset", "action"}.isdisjoint(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
        assert "src" not in attributes or tag == "img"
    (policy,) = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_names_are_escaped(text: str, page: Page) -> None:
    assert "<script" not in text
    assert NASTY in page.words()
    assert f"{NASTY}, original" in [image["alt"] for image in page.all("img")]


def test_a_name_that_utf_8_cannot_hold_is_shown_anyway() -> None:
    comparison = dataclasses.replace(
        comparison_of(), pictures=(PictureInfo("caf\udce9.png", 300, 200, False),)
    )
    text = render_report(comparison)
    assert "caf?.png" in text
    text.encode("utf-8")


def test_the_table_shows_every_mean(page: Page) -> None:
    words = page.words()
    for result in comparison_of().results:
        for point in result.points:
            mean = point.mean
            divergence = "–" if mean.divergence_bpp is None else "0.777"
            row = (
                f"{point.quality} {mean.bytes:,.0f} {mean.bpp:.3f} {divergence} {mean.psnr:.2f} "
                f"{mean.ms_ssim:.4f} 0.123 0.045"
            )
            assert row in words
    assert len(page.all("tbody")) == ROWS


def test_crops_have_rate_and_psnr_under_them(page: Page) -> None:
    words = page.words()
    for crop in comparison_of().crops[0].crops:
        assert f"{crop.label} {crop.bpp:.3f} bpp, {crop.psnr:.2f} dB, quality {crop.quality}" in words
    assert "target 0.50 bpp; 256 × 256 pixels from (16, 32)" in words


def test_verdicts_and_states_are_shown(page: Page) -> None:
    words = page.words()
    for result in comparison_of().results:
        for verdict in result.health.verdicts:
            assert verdict in words
    badges = [a["class"] for a in page.all("span") if (a.get("class") or "").startswith("badge")]
    assert badges == [
        "badge healthy",
        "badge collapsed",
        *["badge healthy"] * (ROWS - 2),
    ]


def plots(text: str) -> list[str]:
    return re.findall(r'<svg viewBox="0 0 540 372".*?</svg>(?=</div>)', text)


def markers(plot: str) -> list[tuple[float, float]]:
    places = re.findall(r'class="row-mark" transform="translate\((\S+) (\S+)\)"', plot)
    return [(float(x), float(y)) for x, y in places]


def test_plots_show_every_point_inside_their_axes(text: str) -> None:
    drawn = plots(text)
    assert len(drawn) == 2
    for plot in drawn:
        places = markers(plot)
        assert len(places) == ROWS * 3 == plot.count("<title>")
        assert all(68 < x < 526 and 16 < y < 316 for x, y in places)
        for start in range(0, 18, 3):  # a model's rate and quality rise together
            xs, ys = zip(*places[start : start + 3], strict=True)
            assert xs[0] < xs[1] < xs[2] and ys[0] > ys[1] > ys[2]
            # Rates are in the proportion 1 : 3 : 9, evenly spaced on a logarithmic axis.
            assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
        assert plot.count("<polyline") == ROWS and plot.count("dashed") == 1


def test_places_agree_with_the_labels_of_the_axes(text: str) -> None:
    plot = plots(text)[0]
    across = re.findall(r'<text x="(\S+)" y="336" text-anchor="middle">([\d.]+)<', plot)
    up = re.findall(r'<text x="60" y="(\S+)" text-anchor="end">([\d.-]+)<', plot)
    assert len(across) >= 2 and 4 <= len(up) <= 9
    x_fit = np.polyfit([math.log10(float(v)) for _, v in across], [float(x) for x, _ in across], 1)
    y_fit = np.polyfit([float(v) for _, v in up], [float(y) - 4.5 for y, _ in up], 1)
    points = [p.mean for result in comparison_of().results for p in result.points]
    for (x, y), mean in zip(markers(plot), points, strict=True):
        # Places are printed with one decimal.
        assert x == pytest.approx(np.polyval(x_fit, math.log10(mean.bpp)), abs=0.2)
        assert y == pytest.approx(np.polyval(y_fit, mean.psnr), abs=0.2)


def test_ms_ssim_is_plotted_in_decibels(text: str) -> None:
    titles = re.findall(r"<title>(.*?)</title>", plots(text)[1])
    assert titles[0] == "ae, quality 10: 0.100 bpp, 12.50 dB"  # 10^(-25 / 20) is 12.5 dB down


@pytest.mark.parametrize("bpp", [0.007, 0.149, 0.7, 480.0])
def test_a_single_point_still_has_labelled_axes(bpp: float) -> None:
    comparison = comparison_of(("vae",))
    point = QualityPoint(50, dataclasses.replace(figures(bpp, 30, "vae"), ms_ssim=None), ())
    results = (dataclasses.replace(comparison.results[0], points=(point,)),)
    text = render_report(dataclasses.replace(comparison, results=results))
    Page(text)
    (plot,) = plots(text)
    assert len(markers(plot)) == 1 and "<polyline" not in plot
    assert plot.count('text-anchor="middle">') >= 3 and plot.count('text-anchor="end">') >= 2
    assert "MS-SSIM, dB: there is nothing to plot." in text


def test_a_picture_without_loss_is_left_out_of_the_plot_and_said() -> None:
    comparison = comparison_of(("ae",))
    first = comparison.results[0].points[0]
    lossless = QualityPoint(100, dataclasses.replace(first.mean, psnr=math.inf, ms_ssim=1.0), ())
    results = (dataclasses.replace(comparison.results[0], points=(first, lossless)),)
    crop = dataclasses.replace(comparison.crops[0].crops[0], psnr=math.inf)
    sets = (dataclasses.replace(comparison.crops[0], crops=(crop,)),)
    text = render_report(dataclasses.replace(comparison, results=results, crops=sets))
    words = Page(text).words()
    assert [len(markers(plot)) for plot in plots(text)] == [1, 1]
    assert "no loss 1.0000" in words and "bpp, no loss, quality" in words
    assert "inf" not in words.replace("inform", "")


def test_a_row_looks_the_same_in_every_report() -> None:
    both = [plots(render_report(comparison_of(labels)))[0] for labels in (MODES, ("vqvae",))]
    classes = [re.findall(r'<g class="(r\d+)">', plot) for plot in both]
    # The default model has had its place since there were five modes.
    assert classes == [[f"r{n}" for n in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11)], ["r3"]]


# --- in a browser ---------------------------------------------------------------------------


def browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def run_browser(folder: Path, page: Path, width: int, height: int, *options: str) -> str:
    command = [
        browser() or "",
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"),
        f"--window-size={width},{height}",
        *options,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    shutil.rmtree(folder / "profile", ignore_errors=True)
    return done.stdout


@pytest.mark.skipif(browser() is None, reason="there is no Chromium or Chrome")
def test_a_browser_shows_it_on_a_phone_and_on_a_desk(text: str, tmp_path: Path) -> None:
    path, shot = tmp_path / "report.html", tmp_path / "shot.png"
    path.write_text("<p>anything", encoding="utf-8")
    run_browser(tmp_path, path, 200, 200, f"--screenshot={shot}")
    if not shot.exists():  # confined to other folders, or without what it needs to start
        pytest.skip("the browser here cannot take pictures of pages")

    path.write_text(text, encoding="utf-8")
    dom = Page(run_browser(tmp_path, path, 1200, 800, "--dump-dom"))
    source = Page(text)
    for tag in ("svg", "img", "tr", "td", "li", "figure", "polyline", "circle"):
        assert len(dom.all(tag)) == len(source.all(tag)), tag
    assert dom.words() == source.words()

    for width, height in ((1200, 4500), (400, 9000)):
        shot.unlink()
        run_browser(tmp_path, path, width, height, f"--screenshot={shot}")
        pixels = np.asarray(Image.open(shot).convert("RGB"))
        assert pixels.shape == (height, width, 3)
        # The original of the first crop set, 256 pixels a side at its own size but for its corners.
        loud = (pixels == SHOCKING).all(2)
        assert 0.98 * 256**2 < loud.sum() <= 256**2
        # Nothing reaches into the margin at the right: nothing is wider than the window.
        assert len(np.unique(pixels[:, -8:].reshape(-1, 3), axis=0)) == 1
