"""The packaged models: their size, their identity, and that they code as their cards say."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vqcodec
from vqcodec.codec import load_codec
from vqcodec.collapse import HEALTHY, PARTIAL
from vqcodec.model import DEFAULT_MODEL, MODE_MODELS, find_model, load_model

# The small models had one budget, the mini ones, of the rest of the family, another.
SMALL = ("ae", "vae", "dvae", "vqvae", "vq")
MINI = ("dae", "wae", "hvae", "vqvae2", "fsq", "rvq")

EXAMPLE = Path(__file__).parents[1] / "examples" / "picture.png"


@pytest.fixture(scope="module")
def default() -> Path:
    return find_model(DEFAULT_MODEL)


def test_the_default_model_is_small(default: Path) -> None:
    assert default.stat().st_size <= 12_000_000


def test_the_default_model_is_known_by_its_code_id(default: Path) -> None:
    known = json.loads((default.parent / "known.json").read_text())
    assert f"{load_model(default).code_id:08x}" in known


def test_quality_orders_size_and_error() -> None:
    picture = Image.open(EXAMPLE).convert("RGB").crop((200, 100, 456, 356))
    source = np.asarray(picture, float)
    sizes, errors = [], []
    for quality in (1, 20, 40, 60, 80, 100):
        data = vqcodec.compress(picture, quality=quality, device="cpu")
        decoded = np.asarray(vqcodec.decompress(data, device="cpu"), float)
        sizes.append(len(data))
        errors.append(float(np.mean((decoded - source) ** 2)))
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("quality", [1, 25, 50, 75, 87, 100])
def test_a_single_pixel_takes_at_most_64_bytes(quality: int) -> None:
    random = np.random.default_rng(quality)
    colours = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (30, 221, 21)]
    colours += [tuple(c) for c in random.integers(0, 256, (6, 3)).tolist()]
    for colour in colours:
        pixel = np.array(colour, np.uint8).reshape(1, 1, 3)
        data = vqcodec.compress(pixel, quality=quality, device="cpu")
        assert len(data) <= 64, colour
        decoded = np.asarray(vqcodec.decompress(data, device="cpu"), int)
        assert decoded.shape == (1, 1, 3)
        if quality >= 75:
            assert np.abs(decoded - pixel).max() <= 12, colour


@pytest.mark.parametrize(("modes", "most"), [(SMALL, 5_000_000), (MINI, 3_000_000)])
def test_the_other_models_are_small(modes: tuple[str, ...], most: int) -> None:
    assert sum(find_model(MODE_MODELS[mode]).stat().st_size for mode in modes) <= most


def test_every_mode_has_a_budget() -> None:
    assert {*SMALL, *MINI} == set(MODE_MODELS)


@pytest.mark.parametrize("mode", MODE_MODELS)
def test_every_mode_has_a_model_that_codes(mode: str) -> None:
    codec = load_codec(MODE_MODELS[mode], "cpu", mode=mode)
    picture = Image.open(EXAMPLE).convert("RGB").crop((200, 100, 456, 356))
    source = np.asarray(picture, float)
    sizes, errors = [], []
    for quality in (1, 50, 100):
        data = codec.compress(picture, quality=quality)
        assert vqcodec.info(data).mode == mode
        decoded = np.asarray(vqcodec.decompress(data, device="cpu"), float)
        sizes.append(len(data))
        errors.append(float(np.mean((decoded - source) ** 2)))
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
    assert errors[-1] < 130


@pytest.mark.parametrize("modes", [SMALL, MINI])
def test_models_of_a_size_had_one_budget(modes: tuple[str, ...]) -> None:
    """The same steps of networks and prior, with the same photographs."""
    notes = [load_model(find_model(MODE_MODELS[mode])).config.training for mode in modes]
    assert len({n["pictures"] for n in notes}) == 1
    assert len({n.get("joint_steps", n.get("synthesis_steps")) for n in notes}) == 1
    assert len({n["prior_steps"] for n in notes}) == 1


@pytest.mark.parametrize("mode", [mode for mode in MODE_MODELS if mode != "vq"])
def test_the_small_models_have_not_collapsed(mode: str) -> None:
    # Of fsq, the second stages of single channels have more points than there is left to say.
    states = (HEALTHY, PARTIAL) if mode == "fsq" else (HEALTHY,)
    assert load_model(find_model(mode=mode)).config.training["health"]["state"] in states
