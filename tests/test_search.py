"""The encoder's search: it only ever gains, at every size, and keeps what it promises elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.synthetic import synthetic_picture
from vqcodec.blocks import cut_blocks, pad_latent
from vqcodec.bottleneck import SymbolPlane, VectorBottleneck
from vqcodec.cli import main
from vqcodec.codec import Codec, load_codec
from vqcodec.effort import EFFORTS, check_effort
from vqcodec.image import as_picture
from vqcodec.quantizer import LEVELS, QuantizerConfig, RatePoint, stage_price
from vqcodec.search import _descend, search_symbols
from vqcodec.truncation import truncate


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    return load_codec(str(tiny_model), "cpu")


def _cost(codec: Codec, picture: np.ndarray, planes: list[SymbolPlane], point: RatePoint) -> float:
    """J of symbols, by decoding them with no part of the search."""
    indices = [plane.index for plane in planes]
    while len(indices) > 1 and not indices[-1].any():
        indices.pop()
    latent = codec.model.bottleneck.from_symbols(indices, point.bucket)[None]
    bucket = codec.model.bottleneck.shown_bucket(indices, point.bucket)
    with torch.inference_mode():
        pixels = codec.synthesis(latent, torch.tensor([bucket]))[0]
    height, width = picture.shape[:2]
    difference = pixels[:, :height, :width].clamp(0, 255).permute(1, 2, 0).numpy() - picture
    return float((difference**2).sum()) + point.price * sum(
        plane.bits for plane in planes if plane.index.any()
    )


@pytest.mark.parametrize("size", [(128, 160), (131, 145)])
@pytest.mark.parametrize("quality", [20, 60, 95])
@pytest.mark.parametrize(("short", "tolerance"), [(False, 1e-5), (True, 1e-3)])
def test_more_effort_never_costs_more(
    codec: Codec,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    quality: int,
    short: bool,
    tolerance: float,
) -> None:
    monkeypatch.setattr("vqcodec.search.has_fast_bfloat16", lambda _device: short)
    picture = synthetic_picture(5, *size)
    point = codec.model.config.points[quality - 1]
    bottleneck = codec.model.bottleneck
    assert isinstance(bottleneck, VectorBottleneck)
    latent = codec._latent(as_picture(picture))
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float()
    costs = []
    for effort in (1, 3, 6):
        planes = search_symbols(latent, pixels, point, bottleneck, codec.synthesis, effort=effort)
        costs.append(_cost(codec, picture, planes, point))
    # The search sums in blocks, and in bfloat16 it rounds.
    for less, more in zip(costs, costs[1:], strict=False):
        assert more <= less * (1 + tolerance)


def test_a_search_finds_something(tiny_model: Path) -> None:
    """Where the synthesis is not what the analysis takes it for, there is much to find."""
    codec = load_codec(str(tiny_model), "cpu")
    with torch.no_grad():
        codec.synthesis.linear.weight.mul_(0.7)
    picture = synthetic_picture(5, 128, 160)
    point = codec.model.config.points[79]
    bottleneck = codec.model.bottleneck
    assert isinstance(bottleneck, VectorBottleneck)
    latent, pixels = codec._latent(as_picture(picture)), torch.from_numpy(picture).permute(2, 0, 1)
    costs = []
    for effort in (1, 2, 6):
        planes = search_symbols(latent, pixels.float(), point, bottleneck, codec.synthesis, effort=effort)
        costs.append(_cost(codec, picture, planes, point))
    assert costs[1] < 0.95 * costs[0] and costs[2] < costs[1]


def test_rounds_after_the_first_charge_more(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    bottleneck = codec.model.bottleneck
    assert isinstance(bottleneck, VectorBottleneck)
    assigned = bottleneck.to_symbols
    charged: list[float] = []

    def to_symbols(*args: Any, surcharge: float = 0.0, **options: Any) -> list[SymbolPlane]:
        charged.append(surcharge)
        return assigned(*args, surcharge=surcharge, **options)

    monkeypatch.setattr(bottleneck, "to_symbols", to_symbols)
    codec.compress(synthetic_picture(6, 40, 70), quality=60, effort=6)
    assert charged == pytest.approx([0, 0, 0.2, 0.4, 0.4, 0.4, 0.4])


def test_a_surcharge_saves_bits(codec: Codec) -> None:
    point = codec.model.config.points[79]
    bottleneck = codec.model.bottleneck
    assert isinstance(bottleneck, VectorBottleneck) and point.last_stage
    latent = codec._latent(as_picture(synthetic_picture(6, 90, 70)))
    plain = bottleneck.to_symbols(latent, point)
    dear = bottleneck.to_symbols(latent, point, surcharge=2.0)
    assert dear[0].bits < plain[0].bits


def test_who_pays_a_surcharge() -> None:
    config = QuantizerConfig(blocks=((1, 4),), mu=(1000.0, 300.0), first=(9.0, 9.0), last=(1.0, 1.0))
    two, one = RatePoint(LEVELS + 3, 500.0), RatePoint(3, 5000.0)
    assert [stage_price(config, two, s, surcharge=0.5) for s in (0, 1)] == [1500.0, 625.0]
    assert [stage_price(config, two, s) for s in (0, 1)] == [1000.0, 500.0]
    assert stage_price(config, one, 0, surcharge=0.5) == 5000.0
    # Never less than the last stage pays without it.
    assert stage_price(config, two._replace(price=2000.0), 0, surcharge=0.5) == 2000.0


def test_effort_one_assigns_once(codec: Codec) -> None:
    picture = synthetic_picture(6, 90, 70)
    point = codec.model.config.points[59]
    planes = codec.model.bottleneck.to_symbols(codec._latent(as_picture(picture)), point)
    found = codec.analyse(picture, quality=60, effort=1).indices
    for plane, index in zip(planes, found, strict=True):
        assert np.array_equal(plane.index, index)


def test_searching_again_gives_the_same_bytes_and_stages_cut_them(codec: Codec) -> None:
    picture = synthetic_picture(7, 75, 118)
    whole = codec.compress(picture, quality=90, effort=5)
    assert codec.compress(picture, quality=90, effort=5) == whole
    assert codec.compress(picture, quality=90, effort=5, stages=1) == truncate(whole, stages=1)


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (17, 3)])
def test_small_pictures(codec: Codec, shape: tuple[int, int]) -> None:
    picture = synthetic_picture(8, *shape)
    decoded = codec.decompress(codec.compress(picture, quality=80, effort=6))
    assert decoded.size == shape[::-1]


@pytest.mark.parametrize("effort", [0, EFFORTS[-1] + 1, True, 2.0, "4"])
def test_what_is_no_effort(codec: Codec, effort: object) -> None:
    with pytest.raises(ValueError, match=r"effort must be 1\.\.9"):
        check_effort(effort)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"effort must be 1\.\.9"):
        codec.compress(synthetic_picture(1, 20, 20), effort=effort)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1, 1), (16, 640), (250, 131), (33, 1000)])
@pytest.mark.parametrize("side", [1, 7, 40])
def test_blocks_cover_every_pixel_once(size: tuple[int, int], side: int) -> None:
    height, width = size
    seen = np.zeros(size, int)
    rows, columns = np.mgrid[:height, :width]
    for block in cut_blocks(height, width, side):
        seen[block.pixels] += 1
        tops, lefts = (part.start * 16 for part in block.latents)
        assert np.array_equal(rows[block.pixels][:, 0] - tops, np.arange(height + 16)[block.inside[0]])
        assert np.array_equal(columns[block.pixels][0] - lefts, np.arange(width + 16)[block.inside[1]])
    assert (seen == 1).all()


def test_a_small_latent_is_continued() -> None:
    latent = torch.arange(6.0).reshape(1, 2, 3)
    padded = pad_latent(latent)
    assert padded.shape == (1, 8, 8)
    assert torch.equal(padded[:, :2, :3], latent)
    assert (padded[0, 2:, 2:] == 5).all()
    assert pad_latent(torch.zeros(2, 9, 11)).shape == (2, 9, 11)


def test_the_command_takes_an_effort(codec: Codec, tiny_model: Path, tmp_path: Path) -> None:
    picture = synthetic_picture(5, 64, 80)
    source, out = tmp_path / "a.png", tmp_path / "a.vqc"
    Image.fromarray(picture).save(source)
    options = ["--model", str(tiny_model), "--device", "cpu", "-q", "60", "-f"]
    for effort in (1, 3):
        assert main(["compress", str(source), *options, "--effort", str(effort)]) == 0
        assert out.read_bytes() == codec.compress(picture, quality=60, effort=effort)
    with pytest.raises(SystemExit) as stop:
        main(["compress", str(source), *options, "--effort", "10"])
    assert stop.value.code == 2


def test_a_model_that_was_loaded_in_inference_mode_searches(tiny_model: Path) -> None:
    picture = synthetic_picture(5, 64, 80)
    with torch.inference_mode():
        inside = load_codec(str(tiny_model), "cpu").compress(picture, quality=60)
        codec = load_codec(str(tiny_model), "cpu")
    assert codec.compress(picture, quality=60) == inside


def test_the_gradient_is_that_of_the_whole_picture(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into blocks with margins, and with the continuation of small latents, it is the same."""
    monkeypatch.setattr("vqcodec.search.has_fast_bfloat16", lambda _device: False)
    for shape, side in (((20, 70), 40), ((400, 620), 9)):
        picture = synthetic_picture(3, *shape)
        point = codec.model.config.points[50]
        bottleneck = codec.model.bottleneck
        assert isinstance(bottleneck, VectorBottleneck)
        planes = bottleneck.to_symbols(codec._latent(as_picture(picture)), point)
        pixels = torch.from_numpy(picture).permute(2, 0, 1).float()
        monkeypatch.setattr("vqcodec.search._BLOCK", side)
        error, target = _descend(planes, pixels, point, bottleneck, codec.synthesis, only_error=False)
        decoded = bottleneck.from_symbols([plane.index for plane in planes], point.bucket)
        whole = decoded.clone().requires_grad_(True)
        bucket = bottleneck.shown_bucket([plane.index for plane in planes], point.bucket)
        shown = codec.synthesis(pad_latent(whole)[None], torch.tensor([bucket]))[0].clamp(0, 255)
        missed = (shown[:, : shape[0], : shape[1]] - pixels).square().sum()
        missed.backward()  # type: ignore[no-untyped-call]
        assert error == pytest.approx(missed.item(), rel=1e-5)
        assert whole.grad is not None
        expected = decoded - whole.grad / 2
        assert torch.allclose(target, expected, rtol=1e-4, atol=0.02 * float(whole.grad.abs().mean()))
