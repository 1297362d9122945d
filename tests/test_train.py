"""Training lowers the loss, resumes bit-exactly, writes a model that codes; refuses bad input."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqcodec.bottleneck import SymbolPlane
from vqcodec.codec import load_codec
from vqcodec.effort import GREEDY_EFFORT
from vqcodec.errors import ModelFileError, OutputExistsError, VqcError
from vqcodec.model import load_model
from vqcodec.quantizer import ResidualQuantizer
from vqcodec.search import search_symbols
from vqcodec.train import train_model
from vqcodec.train.checkpoint import checkpoint_path, load_checkpoint
from vqcodec.train.photos import load_photos
from vqcodec.train.prior import PriorTrainer, StageNet, symbol_energies
from vqcodec.train.run import _cache_indices, _measure_bits, _resumed
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


def test_the_prior_learns_from_what_the_search_chooses(
    pictures: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = _resumed(load_checkpoint(checkpoint_path(tiny_model)), tiny_model, "cpu")
    photos, efforts = load_photos(pictures), []

    def search(*arguments: Any, effort: int) -> list[SymbolPlane]:
        efforts.append(effort)
        return search_symbols(*arguments, effort=effort)

    monkeypatch.setattr("vqcodec.train.run.search_symbols", search)
    for seconds, expected in ((None, run.config.prior_effort), (0.0, GREEDY_EFFORT)):
        efforts.clear()
        random = np.random.default_rng(1)
        coded = _cache_indices(run, photos, True, random, copies=2, seconds=seconds)
        assert efforts == [expected] * len(coded) == [expected] * 2 * len(photos.train)


def test_a_model_goes_on_with_the_popular_codewords_that_it_has(tiny_model: Path, pictures: Path) -> None:
    """Codewords 3 and 7 are alike, and the prior knows the latter: so does what is measured anew."""
    model = load_model(tiny_model)
    assert isinstance(model.quantizer, ResidualQuantizer)
    for book in model.quantizer.float_codebooks[0]:
        book[:, 3] = book[:, 7]
    tables = model.prior.tensors["0.tables"].copy()
    tables[:, :, 3], tables[:, :, 7] = 200, 0
    model.prior = model.prior.replace({"0.tables": tables})
    bits = _measure_bits(model, model.quantizer, load_photos(pictures), tiny_config(), 0)
    assert (bits[0, :, 7] <= bits[0, :, 3]).all() and (bits[0, :, 7] < bits[0, :, 3]).any()


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


def test_a_twin_begins_where_an_integer_prior_is(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    prior = model.bottleneck.prior
    norms = symbol_energies(model.quantizer)
    for stage in range(model.config.quantizer.stages):
        net = StageNet(model.config.prior, model.config.quantizer, stage, norms)
        net.load_integers(prior)
        for name, array in net.export().items():
            before = prior.tensors[name]
            if name.endswith(".tables"):
                # Of what has next to no probability, frequencies in 24 bits tell less than the lengths.
                likely = before < 150
                assert likely.any() and np.abs(array.astype(int) - before)[likely].max() <= 1
            else:
                np.testing.assert_array_equal(array, before, name)


def test_a_prior_goes_on_from_what_it_has_learnt(tiny_model: Path, pictures: Path) -> None:
    run, _ = _resumed(load_checkpoint(checkpoint_path(tiny_model)), tiny_model, "cpu")
    photos = _cache_indices(run, load_photos(pictures), False, np.random.default_rng(1), copies=1)
    first = PriorTrainer(run.config, run.quantizer, photos, seed=1)
    for step in range(80):
        first.step(step / 80)
    start = first.export()
    spent = []
    for known in (None, start):
        trainer = PriorTrainer(run.config, run.quantizer, photos, seed=2, start=known)
        spent.append(np.sum([trainer.step(1.0) for _ in range(8)]))
    assert spent[1] < 0.97 * spent[0]


def test_an_interrupted_run_from_a_model_resumes_to_the_same_file(
    pictures: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqcodec.train import run as module

    original, calls = module.PriorTrainer.step, 0

    def stop_at_the_second(self, progress):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(self, progress)

    options: dict[str, Any] = {"data": pictures, "steps": 4, "preset": "tiny", "seed": 5}
    start = {"init": str(tiny_model), "phases": ("joint", "prior")}
    # A model is named after its file.
    out, other = tmp_path / "more.safetensors", tmp_path / "straight"
    other.mkdir()
    straight = train_model(out=other / out.name, **options, **start)
    fresh = train_model(out=tmp_path / "fresh.safetensors", **options)
    monkeypatch.setattr(module, "_CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(module.PriorTrainer, "step", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train_model(out=out, **options, **start)
    assert load_checkpoint(checkpoint_path(out))["learnt"] is not None
    assert load_checkpoint(checkpoint_path(fresh))["learnt"] is None
    monkeypatch.setattr(module.PriorTrainer, "step", original)
    train_model(out=out, **options, resume=True)
    assert out.read_bytes() == straight.read_bytes()


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
