"""The comparison of modes: its figures against files made by hand, with stand-ins for the models.

The stand-ins are real codecs (JPEG inside), so rates rise with quality and pictures come back lossy;
one test runs a trained model through the whole of it.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import synthetic_picture

from vqcodec import comparison
from vqcodec.codec import load_codec
from vqcodec.collapse import UNKNOWN, deterministic_health
from vqcodec.comparison import (
    DEFAULT_LABEL,
    MODES,
    Comparison,
    CropSet,
    Figures,
    common_rate,
    compare_pictures,
    find_detail,
    format_table,
    ms_ssim_rgb,
    psnr_rgb,
    to_json,
)
from vqcodec.errors import CorruptError
from vqcodec.image import Picture, as_picture


class StandIn:
    """A codec of JPEG files, `padding` bytes longer than they need be."""

    device = torch.device("cpu")

    def __init__(self, mode: str, name: str, padding: int = 0) -> None:
        self.mode, self.padding = mode, padding
        self.model = SimpleNamespace(config=SimpleNamespace(name=name, mode=mode), code_id=0xAB + padding)
        self.calls: list[tuple[str, int]] = []
        self.inspected: list[Picture] = []

    def compress(self, picture: Picture, *, quality: int, effort: int = 1) -> bytes:
        self.calls.append(("compress", quality))
        pixels = picture.pixels[:, :, 0] if picture.grey else picture.pixels
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        return buffer.getvalue() + bytes(self.padding)

    def decompress(self, data: bytes) -> Image.Image:
        self.calls.append(("decompress", len(data)))
        image = Image.open(io.BytesIO(data))
        image.load()
        return image

    def analyse(self, picture: Picture, *, quality: int) -> Any:
        assert self.mode in ("vae", "hvae", "dvae")
        return SimpleNamespace(divergence_bits=100.0 * picture.pixels.shape[0])

    def inspect_latent(self, pictures: Sequence[Picture]) -> Any:
        self.inspected = list(pictures)
        return deterministic_health(np.ones((1, 2)), 1.0, mode=self.mode)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, StandIn]]:
    """Every load_codec call with the stand-in that it gave; time passes by one second a look."""
    calls: list[tuple[Any, StandIn]] = []

    def load(model: Any = None, device: Any = None, *, mode: str) -> StandIn:
        name = str(model or ("default" if mode == "vq" else mode))
        calls.append(((model, device, mode), StandIn(mode, name, padding=10 * len(calls))))
        return calls[-1][1]

    clock = itertools.count()
    monkeypatch.setattr(comparison, "load_codec", load)
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: float(next(clock)))
    return calls


def picture(seed: int, height: int = 96, width: int = 128, *, grey: bool = False) -> Picture:
    pixels = synthetic_picture(seed, height, width)
    return as_picture(pixels[:, :, 0] if grey else pixels)


def two_pictures() -> list[tuple[str, Picture]]:
    return [("a", picture(1)), ("b", picture(2, 170, 200, grey=True))]


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


# --- the comparison -------------------------------------------------------------------------


def test_figures_are_those_of_the_files(loaded: list[tuple[Any, StandIn]]) -> None:
    pictures = two_pictures()
    found = compare_pictures(pictures, modes=("ae", "vae"), qualities=(20, 80))
    assert [result.label for result in found.results] == ["ae", "vae"]
    for result, (_, codec) in zip(found.results, loaded, strict=True):
        for point in result.points:
            for (_, source), figures in zip(pictures, point.pictures, strict=True):
                height, width = source.pixels.shape[:2]
                data = codec.compress(source, quality=point.quality, effort=1)
                back = np.asarray(codec.decompress(data).convert("RGB"))
                error = np.mean((back.astype(float) - source.pixels) ** 2)
                assert figures.bytes == len(data)
                assert figures.bpp == 8 * len(data) / (width * height)
                assert figures.psnr == pytest.approx(10 * math.log10(255**2 / error))
                assert figures.ms_ssim == ms_ssim_rgb(source.pixels, back)
                assert (figures.encode_seconds, figures.decode_seconds) == (1.0, 1.0)
                divergence = 100 / width if result.mode == "vae" else None
                assert figures.divergence_bpp == divergence
    assert found.results[0].points[0].pictures[0].ms_ssim is None
    assert found.results[0].points[0].pictures[1].ms_ssim is not None


def test_means_are_over_the_pictures_that_have_the_figure(loaded: list[tuple[Any, StandIn]]) -> None:
    found = compare_pictures(two_pictures(), modes=("vae",), qualities=(50,))
    (point,) = found.results[0].points
    small, large = point.pictures
    for name in ("bytes", "bpp", "psnr", "divergence_bpp"):
        expected = (getattr(small, name) + getattr(large, name)) / 2
        assert getattr(point.mean, name) == pytest.approx(expected, rel=1e-12)
    assert point.mean.ms_ssim == large.ms_ssim
    alone = compare_pictures(two_pictures()[:1], modes=("vae",), qualities=(50,))
    assert alone.results[0].points[0].mean == alone.results[0].points[0].pictures[0]


def test_every_mode_and_the_default_model_get_a_row(loaded: list[tuple[Any, StandIn]]) -> None:
    lines: list[str] = []
    found = compare_pictures(
        two_pictures(),
        qualities=[90, 10, 90],
        device="cpu",
        models={"vae": Path("mine.safetensors")},
        progress=lines.append,
    )
    assert [call for call, _ in loaded] == [
        (None, "cpu", "ae"),
        (Path("mine.safetensors"), "cpu", "vae"),
        (None, "cpu", "dvae"),
        (None, "cpu", "vqvae"),
        ("vq-small", "cpu", "vq"),
        *((None, "cpu", mode) for mode in ("dae", "wae", "hvae", "vqvae2", "fsq", "rvq")),
        (None, "cpu", "vq"),
    ]
    assert [result.label for result in found.results] == [*MODES, DEFAULT_LABEL]
    assert [result.mode for result in found.results] == [*MODES, "vq"]
    assert found.results[-1].model == "default"
    assert found.results[0].code_id == "000000ab"
    assert found.qualities == (10, 90)
    assert [point.quality for point in found.results[2].points] == [10, 90]
    assert [(p.name, p.width, p.height, p.grey) for p in found.pictures] == [
        ("a", 128, 96, False),
        ("b", 200, 170, True),
    ]
    assert found.device == "cpu" and found.threads == torch.get_num_threads()
    assert found.results[0].health.state == UNKNOWN
    assert all(len(codec.inspected) == 2 for _, codec in loaded)
    assert "a: vae" in lines and f"b: {DEFAULT_LABEL}" in lines


def test_modes_come_in_one_order_and_the_default_model_with_vq_only(
    loaded: list[tuple[Any, StandIn]],
) -> None:
    found = compare_pictures([("a", picture(1))], modes=["vqvae", "ae", "vqvae"], qualities=[50])
    assert [result.label for result in found.results] == ["ae", "vqvae"]


def test_a_model_warms_up_before_it_is_timed(loaded: list[tuple[Any, StandIn]]) -> None:
    compare_pictures([("a", picture(1))], modes=["ae"], qualities=[30, 60])
    kinds = [kind for kind, _ in loaded[0][1].calls[:4]]
    assert kinds == ["compress", "decompress"] * 2
    qualities = [value for kind, value in loaded[0][1].calls if kind == "compress"]
    assert qualities[:3] == [30, 30, 60]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ("ae", "gan")}, "unknown mode 'gan'"),
        ({"models": {"best": "x"}}, "unknown mode 'best'"),
        ({"modes": ()}, "at least one"),
        ({"qualities": ()}, "at least one"),
        ({"pictures": []}, "at least one"),
        ({"qualities": (0,)}, "quality must be"),
        ({"qualities": (50, 101)}, "quality must be"),
        ({"qualities": (True,)}, "quality must be"),
        ({"qualities": (50.0,)}, "quality must be"),
    ],
)
def test_wrong_arguments_are_refused_before_a_model_is_loaded(
    loaded: list[tuple[Any, StandIn]], options: dict[str, Any], message: str
) -> None:
    arguments = {"pictures": [("a", picture(1))], **options}
    with pytest.raises(ValueError, match=message):
        compare_pictures(arguments.pop("pictures"), **arguments)
    assert not loaded


def test_a_picture_of_another_size_is_an_error(
    loaded: list[tuple[Any, StandIn]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "decompress", lambda self, data: Image.new("RGB", (128, 95)))
    with pytest.raises(CorruptError, match="a, ae, quality 50: 128 x 96 came back as 128 x 95"):
        compare_pictures([("a", picture(1))], modes=["ae"], qualities=[50])


# --- crops ----------------------------------------------------------------------------------


def crop_sets(
    loaded: list[tuple[Any, StandIn]], source: Picture, qualities: Sequence[int]
) -> tuple[Comparison, CropSet]:
    found = compare_pictures([("a", source)], modes=["ae", "vqvae"], qualities=qualities)
    (crops,) = found.crops
    return found, crops


def test_crops_are_windows_of_what_was_decoded(loaded: list[tuple[Any, StandIn]]) -> None:
    source = picture(5, 300, 280)
    found, crops = crop_sets(loaded, source, (5, 50, 95))
    assert (crops.width, crops.height) == (256, 256)
    window = np.s_[crops.top : crops.top + 256, crops.left : crops.left + 256]
    assert np.array_equal(decoded(crops.original_png), source.pixels[window])
    assert [crop.label for crop in crops.crops] == ["ae", "vqvae"]
    for crop, (_, codec) in zip(crops.crops, loaded, strict=True):
        data = codec.compress(source, quality=crop.quality, effort=1)
        back = np.asarray(codec.decompress(data).convert("RGB"))
        assert np.array_equal(decoded(crop.png), back[window])
        assert crop.bpp == 8 * len(data) / (300 * 280)
        assert crop.psnr == psnr_rgb(source.pixels, back)


def test_crops_come_near_to_one_rate(loaded: list[tuple[Any, StandIn]]) -> None:
    source = picture(5, 200, 220)
    found, crops = crop_sets(loaded, source, (5, 95))
    for crop, result, (_, codec) in zip(crops.crops, found.results, loaded, strict=True):
        assert 5 < crop.quality < 95
        every = [8 * len(codec.compress(source, quality=q, effort=1)) / (200 * 220) for q in range(5, 96)]
        best = min(abs(math.log(bpp / crops.target_bpp)) for bpp in every)
        off = abs(math.log(crop.bpp / crops.target_bpp))
        # JPEG's sizes do not rise smoothly: three looks come within 5 % of the best there is.
        assert off <= max(math.log(1.02), best + math.log(1.05))
        assert off < min(abs(math.log(p.mean.bpp / crops.target_bpp)) for p in result.points)


def test_one_quality_leaves_nothing_to_search(loaded: list[tuple[Any, StandIn]]) -> None:
    found, crops = crop_sets(loaded, picture(5, 20, 24), (50,))
    assert [crop.quality for crop in crops.crops] == [50, 50]
    rates = [result.points[0].mean.bpp for result in found.results]
    assert crops.target_bpp == pytest.approx(math.sqrt(rates[0] * rates[1]))
    assert (crops.left, crops.top, crops.width, crops.height) == (0, 0, 24, 20)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(0.1, 2.0), (0.2, 1.0)], 0.5),
        ([(0.1, 2.0), (0.8, 3.0)], 0.8),
        ([(0.1, 0.3), (0.05, 1.0)], 0.3),
        ([(0.1, 0.2), (0.8, 1.0)], 0.4),
    ],
)
def test_the_common_rate_is_one_that_all_reach(
    ranges: list[tuple[float, float]], expected: float
) -> None:
    reached = [{10: low, 50: math.sqrt(low * high), 90: high} for low, high in ranges]
    assert common_rate(reached) == pytest.approx(expected)


def brute_force_detail(pixels: np.ndarray, starts: Callable[[int, int], list[int]]) -> tuple[int, int]:
    grey = pixels.astype(int).sum(2)
    across = np.zeros_like(grey)
    across[:, 1:] = np.abs(grey[:, 1:] - grey[:, :-1])
    across[1:] += np.abs(grey[1:] - grey[:-1])
    height, width = min(256, grey.shape[0]), min(256, grey.shape[1])
    sums = {
        (left, top): -int(across[top : top + height, left : left + width].sum())
        for top in starts(grey.shape[0], height)
        for left in starts(grey.shape[1], width)
    }
    return min(sums, key=lambda place: (sums[place], place[1], place[0]))


@pytest.mark.parametrize(("height", "width"), [(300, 401), (256, 256), (100, 700), (513, 90), (1, 1)])
def test_the_window_has_most_detail(height: int, width: int) -> None:
    pixels = np.full((height, width, 3), 90, np.uint8)
    random = np.random.default_rng(height)
    top, left = height * 2 // 3, width // 2
    patch = pixels[top : top + 60, left : left + 60]
    patch[...] = random.integers(0, 256, patch.shape)
    found = find_detail(pixels)

    def starts(length: int, window: int) -> list[int]:
        return sorted({*range(0, length - window, 16), length - window})

    assert found[:2] == brute_force_detail(pixels, starts)
    assert found[2:] == (min(256, width), min(256, height))
    assert found[0] + found[2] <= width and found[1] + found[3] <= height


def test_the_first_of_equal_windows_is_taken() -> None:
    assert find_detail(np.zeros((600, 500, 3), np.uint8)) == (0, 0, 256, 256)


# --- table and JSON -------------------------------------------------------------------------


def test_the_table_has_a_line_for_every_point(loaded: list[tuple[Any, StandIn]]) -> None:
    found = compare_pictures(two_pictures(), qualities=(20, 80))
    lines = format_table(found).splitlines()
    assert lines[0] == "means over 2 pictures"
    assert lines[2].split() == [
        *("latent", "quality", "bytes", "bpp", "PSNR", "dB", "MS-SSIM"),
        *("encode", "s", "decode", "s", "KL", "bpp"),
    ]
    rows = len(MODES) + 1
    end = 3 + 2 * rows
    body = lines[3:end]
    assert len({len(line) for line in lines[2:end]}) == 1
    mean = found.results[1].points[1].mean
    assert body[3].split() == [
        "vae",
        "80",
        f"{mean.bytes:,.0f}",
        f"{mean.bpp:.4f}",
        f"{mean.psnr:.2f}",
        f"{mean.ms_ssim:.4f}",
        "1.000",
        "1.000",
        f"{mean.divergence_bpp:.4f}",
    ]
    assert body[0].split()[-1] == "-"
    assert body[-1].startswith(f"{DEFAULT_LABEL} ")
    assert len(lines) == end + 1 + rows
    assert lines[-1].startswith(f"{DEFAULT_LABEL}: 0/2 units active; too little to judge")
    one = format_table(compare_pictures(two_pictures()[:1], modes=["ae"], qualities=[5]))
    assert one.startswith("1 picture\n")


def test_json_holds_every_figure_and_no_pixels(loaded: list[tuple[Any, StandIn]]) -> None:
    found = compare_pictures(two_pictures(), modes=["vae"], qualities=(20, 80))
    parsed = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert parsed["schema"] == comparison.SCHEMA == 1
    assert parsed["qualities"] == [20, 80]
    (result,) = parsed["results"]
    assert (result["label"], result["model"], result["code_id"]) == ("vae", "vae", "000000ab")
    expected = found.results[0].points[1]
    assert Figures(**result["points"][1]["mean"]) == expected.mean
    assert [Figures(**f) for f in result["points"][1]["pictures"]] == list(expected.pictures)
    assert result["health"]["state"] == UNKNOWN and len(result["health"]["verdicts"]) == 1
    assert set(parsed["crops"][0]) == {*("name", "left", "top", "width", "height", "target_bpp", "crops")}
    assert set(parsed["crops"][0]["crops"][0]) == {"label", "quality", "bpp", "psnr"}
    assert found.crops[0].original_png and found.crops[0].crops[0].png


def test_json_has_null_where_nothing_was_lost(loaded: list[tuple[Any, StandIn]]) -> None:
    flat = as_picture(np.full((32, 32), 128, np.uint8))
    found = compare_pictures([("flat", flat)], modes=["ae"], qualities=[100])
    assert found.results[0].points[0].mean.psnr == math.inf
    parsed = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert parsed["results"][0]["points"][0]["mean"]["psnr"] is None
    assert parsed["crops"][0]["crops"][0]["psnr"] is None
    assert " inf " in format_table(found)


# --- a trained model ------------------------------------------------------------------------


def test_a_trained_model_goes_through(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = load_codec(tiny_model, "cpu")
    monkeypatch.setattr(comparison, "load_codec", lambda model, device, *, mode: codec)
    source = picture(3, 170, 180)
    found = compare_pictures(
        [("wide", source), ("one", picture(1, 1, 1))], modes=["vq"], qualities=(10, 90)
    )
    assert [result.label for result in found.results] == ["vq", DEFAULT_LABEL]
    result = found.results[0]
    assert result.model == codec.model.config.name
    for point in result.points:
        data = codec.compress(source, quality=point.quality, effort=1)
        assert point.pictures[0].bytes == len(data)
        assert point.pictures[0].divergence_bpp is None
    assert result.points[0].mean.bytes < result.points[1].mean.bytes
    assert result.health.mode == "vq" and result.health.positions == 11 * 12 + 1
    assert (found.crops[1].width, found.crops[1].height) == (1, 1)
    json.dumps(to_json(found), allow_nan=False)
