"""Fixtures that several test files share: synthetic pictures and tiny models trained on them."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from synthetic import synthetic_picture


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four synthetic pictures."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    folder.mkdir()
    for n in range(4):
        Image.fromarray(synthetic_picture(n)).save(folder / f"picture{n}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_model(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the tiny preset after eight steps; its checkpoint lies beside it."""
    from vqcodec.train import train_model

    out = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return train_model(data=pictures, out=out, steps=8, preset="tiny", seed=3)


@pytest.fixture(scope="session")
def mode_models(pictures: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of each mode after a few steps: vq.safetensors and so on."""
    from vqcodec.model import MODES
    from vqcodec.train import train_model

    folder = tmp_path_factory.mktemp("modes")
    shutil.copy(tiny_model, folder / "vq.safetensors")
    for mode in sorted(set(MODES) - {"vq"}):
        out = folder / f"{mode}.safetensors"
        train_model(data=pictures, out=out, steps=4, preset="tiny", seed=3, mode=mode)
    return folder
