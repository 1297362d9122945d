"""Training lowers the loss, resumes bit-exactly, writes a model that codes; refuses bad input."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vqcodec.codec import load_codec
from vqcodec.errors import ModelFileError, OutputExistsError, VqcError
from vqcodec.model import load_model
from vqcodec.train import train_model
from vqcodec.train.checkpoint import checkpoint_path, load_checkpoint
from vqcodec.train.photos import load_photos
from vqcodec.train.run import _resumed
from vqcodec.train.settings import tiny_config
from vqcodec.train.synthesis import SynthesisTrainer


def test_the_model_codes_pictures(tiny_model: Path) -> None:
    codec = load_codec(tiny_model, "cpu")
    picture = np.random.default_rng(1).integers(0, 256, (50, 37, 3), dtype=np.uint8)
    sizes = []
    for quality in (1, 50, 100):
        data = codec.compress(picture, quality=quality)
        assert codec.decompress(data).size == (37, 50)
        sizes.append(len(data))
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]


def test_training_again_gives_the_same_file(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    out = train_model(data=pictures, out=tmp_path / "tiny.safetensors", steps=8, preset="tiny", seed=3)
    assert out.read_bytes() == tiny_model.read_bytes()


def test_steps_lower_the_loss(pictures: Path, tiny_model: Path) -> None:
    run, _ = _resumed(load_checkpoint(checkpoint_path(tiny_model)), tiny_model, "cpu")
    photos = load_photos(pictures).train
    torch.manual_seed(0)
    fresh = type(run.synthesis)(run.config.transform)
    fresh.linear.weight.data.copy_(run.synthesis.linear.weight)
    fresh.scale.copy_(run.synthesis.scale)
    trainer = SynthesisTrainer(run.config, run.analysis, fresh, run.quantizer, run.bits, seed=0)
    losses = [trainer.step(photos, 0.0) for _ in range(60)]
    assert np.mean(losses[-15:]) < np.mean(losses[:15])


def test_a_resumed_trainer_goes_on_bit_exactly(pictures: Path, tiny_model: Path) -> None:
    run, _ = _resumed(load_checkpoint(checkpoint_path(tiny_model)), tiny_model, "cpu")
    photos = load_photos(pictures).train

    def trainer() -> SynthesisTrainer:
        network = type(run.synthesis)(run.config.transform)
        network.load_state_dict(run.synthesis.state_dict())
        return SynthesisTrainer(run.config, run.analysis, network, run.quantizer, run.bits, seed=5)

    straight = trainer()
    for step in range(6):
        straight.step(photos, step / 6)
    first = trainer()
    for step in range(3):
        first.step(photos, step / 6)
    path = tiny_model.with_name("half.checkpoint")
    torch.save(first.state(), path)
    second = trainer()
    second.load_state(torch.load(path, weights_only=True))
    for step in range(3, 6):
        second.step(photos, step / 6)
    for name, value in straight.synthesis.state_dict().items():
        assert torch.equal(value, second.synthesis.state_dict()[name]), name
        assert torch.equal(straight.average[name], second.average[name]), name


@pytest.mark.parametrize("phase", ["synthesis", "joint", "prior"])
def test_an_interrupted_run_resumes_to_the_same_file(
    phase: str, pictures: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqcodec.train import run as module

    trainer = {
        "synthesis": module.SynthesisTrainer,
        "joint": module.VectorTrainer,
        "prior": module.PriorTrainer,
    }[phase]
    original = trainer.step
    calls = 0

    def stop_at_the_second(self, *args):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(self, *args)

    out = tmp_path / "tiny.safetensors"
    monkeypatch.setattr(module, "_CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(trainer, "step", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train_model(data=pictures, out=out, steps=8, preset="tiny", seed=3)
    monkeypatch.setattr(trainer, "step", original)
    train_model(data=pictures, out=out, steps=8, preset="tiny", seed=3, resume=True)
    assert out.read_bytes() == tiny_model.read_bytes()


def test_a_model_can_be_the_start(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    out = train_model(
        data=pictures,
        out=tmp_path / "more.safetensors",
        steps=2,
        preset="tiny",
        init=str(tiny_model),
        phases=("synthesis",),
    )
    before, after = load_model(tiny_model), load_model(out)
    assert before.code_id == after.code_id
    assert not torch.equal(before.synthesis.leave.weight, after.synthesis.leave.weight)


def test_a_run_does_not_replace_a_model(pictures: Path, tiny_model: Path) -> None:
    before = tiny_model.read_bytes()
    with pytest.raises(OutputExistsError, match="resume"):
        train_model(data=pictures, out=tiny_model, steps=1, preset="tiny")
    assert tiny_model.read_bytes() == before


def test_one_picture_is_enough(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(pictures / "picture0.png", folder)
    for seed in range(2):
        out = tmp_path / f"m{seed}.safetensors"
        train_model(data=folder, out=out, steps=2, preset="tiny", seed=seed)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VqcError, match="no readable pictures"):
        train_model(data=tmp_path, out=tmp_path / "m.safetensors", steps=1, preset="tiny")


def test_a_corrupt_picture_is_skipped_and_named(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "some"
    shutil.copytree(pictures, folder)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    with caplog.at_level("WARNING"):
        photos = load_photos(folder)
    assert "broken.png" in caplog.text
    assert len(photos.train) >= 1


def test_a_nan_loss_stops_with_a_clear_error(pictures: Path, tiny_model: Path) -> None:
    run, _ = _resumed(load_checkpoint(checkpoint_path(tiny_model)), tiny_model, "cpu")
    trainer = SynthesisTrainer(
        tiny_config(), run.analysis, run.synthesis, run.quantizer, run.bits, seed=0
    )
    with torch.no_grad():
        trainer.synthesis.leave.bias.fill_(torch.nan)
    with pytest.raises(VqcError, match="diverged"):
        trainer.step(load_photos(pictures).train, 0.0)


def test_resume_without_a_checkpoint_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no checkpoint"):
        train_model(data=pictures, out=tmp_path / "m.safetensors", steps=1, resume=True)
