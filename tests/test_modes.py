"""The modes on one codec: latents, round trips, draws, lines, collapse and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from synthetic import synthetic_picture

import vqcodec
from vqcodec.codec import Codec, load_codec
from vqcodec.collapse import codebook_health
from vqcodec.container import (
    MODE_AE,
    MODE_VAE,
    MODE_VQ,
    read_container,
    stage_payloads,
    tile_grid,
    unpack_tiles,
    write_container,
)
from vqcodec.errors import CorruptError, ImageError, ModeError, ModelFileError, VqcError
from vqcodec.image import as_picture
from vqcodec.model import MODES, find_model, load_model
from vqcodec.modes import DRAWN_MODES, POSTERIOR_MODES
from vqcodec.train import ObjectiveConfig, train_model, train_models
from vqcodec.train.checkpoint import checkpoint_path
from vqcodec.train.settings import preset_config
from vqcodec_kernels import gaussian_sample

ALL = tuple(MODES)
CONTINUOUS = ("ae", "vae", "dae", "wae", "hvae")
DRAWING = DRAWN_MODES


@pytest.fixture(scope="module")
def codecs(mode_models: Path) -> dict[str, Codec]:
    return {mode: load_codec(mode_models / f"{mode}.safetensors", "cpu") for mode in ALL}


def _decoded_symbols(codec: Codec, data: bytes) -> list[np.ndarray]:
    header, sections = read_container(data)
    grid = tile_grid(header.width, header.height)
    streams = {s: unpack_tiles(p, grid.count) for s, p in stage_payloads(sections).items()}
    return list(codec.model.bottleneck.read(streams, header.rate, grid.rows, grid.cols))


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 37), (33, 17), (70, 131)])
def test_symbols_come_back(codecs: dict[str, Codec], mode: str, height: int, width: int) -> None:
    codec = codecs[mode]
    picture = synthetic_picture(3, height, width)
    for quality in (1, 40, 100):
        data = codec.compress(picture, quality=quality)
        assert codec.decompress(data).size == (width, height)
        chosen = codec.analyse(picture, quality=quality).indices
        found = _decoded_symbols(codec, data)
        for stage, index in enumerate(chosen[: len(found)]):
            np.testing.assert_array_equal(found[stage], index)
        assert not any(index.any() for index in chosen[len(found) :]) or height == width == 1


@pytest.mark.parametrize("mode", ALL)
def test_a_file_is_the_same_twice_and_with_other_threads(codecs: dict[str, Codec], mode: str) -> None:
    picture = synthetic_picture(4)
    before = torch.get_num_threads()
    files = []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            data = codecs[mode].compress(picture, quality=70)
            files.append((data, [s.tobytes() for s in _decoded_symbols(codecs[mode], data)]))
    finally:
        torch.set_num_threads(before)
    assert files[0] == files[2]
    # Written with two threads, read with one.
    assert [s.tobytes() for s in _decoded_symbols(codecs[mode], files[1][0])] == files[1][1]


@pytest.mark.parametrize("mode", ["dvae", "vqvae", "vqvae2", "fsq", "rvq"])
@pytest.mark.parametrize("colour", [(255, 0, 255), (255, 255, 0), (0, 0, 0), (7, 200, 90)])
def test_a_pixel_keeps_all_its_symbols(
    codecs: dict[str, Codec], mode: str, colour: tuple[int, int, int]
) -> None:
    picture = np.array([[colour]], np.uint8)
    data = codecs[mode].compress(picture, quality=100)
    chosen = codecs[mode].analyse(picture, quality=100).indices
    for index, found in zip(chosen, _decoded_symbols(codecs[mode], data), strict=False):
        np.testing.assert_array_equal(found, index)


@pytest.mark.parametrize("mode", ALL)
def test_more_quality_is_more_of_the_picture(codecs: dict[str, Codec], mode: str) -> None:
    picture = synthetic_picture(6)
    errors = []
    for quality in (1, 100):
        decoded = codecs[mode].decompress(codecs[mode].compress(picture, quality=quality))
        errors.append(np.square(np.asarray(decoded, float) - picture).mean())
    assert errors[1] < 0.7 * errors[0] and errors[1] < 300


def test_nested_levels_code_the_first_groups_only(codecs: dict[str, Codec]) -> None:
    codec = codecs["vqvae"]
    groups = codec.model.config.quantizer.groups
    picture = synthetic_picture(6)
    for quality, point in enumerate(codec.model.config.points, start=1):
        if quality % 9 == 0:
            last = codec.analyse(picture, quality=quality).indices[point.last_stage]
            level = (point.bucket - 1) % 8
            assert not last[-(-groups * (level + 1) // 8) :].any()


@pytest.mark.parametrize("mode", ["vqvae", "vq"])
def test_only_vq_minds_the_rate(codecs: dict[str, Codec], mode: str) -> None:
    """The vqvae takes the nearest codewords, vq cheaper ones."""
    codec = codecs[mode]
    picture = as_picture(synthetic_picture(6))
    latent = codec._latent(picture)
    vectors = latent.flatten(1).T.contiguous()
    nearest = codec.model.quantizer.assign_nearest(0, vectors).numpy()
    chosen = codec.analyse(picture, quality=100).indices[0].reshape(len(nearest), -1)
    assert (chosen == nearest).all() == (mode == "vqvae")


def test_the_dvae_takes_the_likeliest_codewords(codecs: dict[str, Codec]) -> None:
    codec = codecs["dvae"]
    picture = as_picture(synthetic_picture(6))
    assert codec.model.posterior is not None
    vectors = codec._latent(picture).flatten(1).T / codec.analysis.scale
    logits = codec.model.posterior.logits(vectors)
    chosen = codec.analyse(picture, quality=100).indices[0].reshape(len(logits), -1)
    taken = torch.gather(logits, 2, torch.from_numpy(chosen.astype(np.int64))[..., None])[..., 0]
    assert (taken >= logits.max(-1).values - 1e-3).all()


@pytest.mark.parametrize("mode", ALL)
def test_divergence_belongs_to_posteriors(codecs: dict[str, Codec], mode: str) -> None:
    picture = synthetic_picture(6)
    found = [codecs[mode].analyse(picture, quality=q).divergence_bits for q in (10, 90)]
    if mode not in (*POSTERIOR_MODES, "dvae"):
        assert found == [None, None]
        return
    assert found[0] == found[1] and found[0] is not None and found[0] > 0
    if mode == "vae":
        mean, log_variance = codecs["vae"]._posterior(as_picture(picture))
        normal = torch.distributions.Normal(mean.double(), (log_variance.double() / 2).exp())
        wanted = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
        assert found[0] == pytest.approx(wanted.sum().item() / np.log(2), rel=1e-5)


def test_a_sample_is_the_posterior_drawn_with_its_seed(codecs: dict[str, Codec]) -> None:
    codec = codecs["vae"]
    picture = as_picture(synthetic_picture(6))
    mean, log_variance = codec._posterior(picture)
    drawn = gaussian_sample(mean, log_variance, seed=9).z * codec.analysis.scale[:, None, None]
    planes = codec.model.bottleneck.to_symbols(drawn, codec.model.config.points[89])
    found = codec.analyse(picture, quality=90, sample=9).indices
    np.testing.assert_array_equal(found[0], planes[0].index)
    assert codec.compress(picture, sample=9) != codec.compress(picture, sample=10)


@pytest.mark.parametrize("mode", ["ae", "dvae", "vqvae", "vq"])
def test_only_a_vae_can_be_sampled(codecs: dict[str, Codec], mode: str) -> None:
    with pytest.raises(ModeError, match=mode):
        codecs[mode].compress(synthetic_picture(6), sample=1)


@pytest.mark.parametrize("mode", DRAWING)
def test_draws_depend_on_the_seed_alone(codecs: dict[str, Codec], mode: str) -> None:
    codec = codecs[mode]
    first = codec.generate(3, seed=5, width=40, height=23)
    again = codec.generate(3, seed=5, width=40, height=23)
    other = codec.generate(3, seed=6, width=40, height=23)
    assert [p.size for p in first] == [(40, 23)] * 3
    as_bytes = [p.tobytes() for p in first]
    assert as_bytes == [p.tobytes() for p in again]
    assert len({*as_bytes, *(p.tobytes() for p in other)}) == 6


def test_index_draws_follow_the_tables(codecs: dict[str, Codec]) -> None:
    """A prior that always gives one table is drawn from with that table's frequencies."""
    bottleneck = codecs["vqvae"].model.bottleneck
    frequencies = bottleneck.prior.frequencies[0]  # type: ignore[union-attr]
    drawn = bottleneck.draw(40, 40, np.random.default_rng(0))[0]  # type: ignore[union-attr]
    tables = np.zeros_like(drawn)
    context = bottleneck.prior.context(40, 40)
    context.begin_stage(7)
    for step in context.passes:
        tables[step.groups, step.rows, step.columns] = context.select(step)
        context.update(step, drawn[step.groups, step.rows, step.columns])
    for group in range(len(drawn)):
        expected = frequencies[group][tables[group].ravel()].sum(0) / 2.0**24
        counts = np.bincount(drawn[group].ravel(), minlength=len(expected))
        often = expected > 10
        deviation = (counts[often] - expected[often]) / np.sqrt(expected[often])
        assert np.abs(deviation).max() < 5


@pytest.mark.parametrize("mode", ["ae", "vq"])
def test_modes_without_a_prior_do_not_draw(codecs: dict[str, Codec], mode: str) -> None:
    with pytest.raises(ModeError, match="dvae"):
        codecs[mode].generate(1, seed=0)


@pytest.mark.parametrize("mode", ALL)
def test_a_line_begins_and_ends_at_its_pictures(codecs: dict[str, Codec], mode: str) -> None:
    codec = codecs[mode]
    first, second = synthetic_picture(1, 40, 56), synthetic_picture(2, 40, 56)
    line = codec.interpolate(first, second, count=4)
    assert len(line) == 4
    for end, picture in ((line[0], first), (line[-1], second)):
        assert end.tobytes() == codec.decompress(codec.compress(picture, quality=100, effort=1)).tobytes()
    assert len({p.tobytes() for p in line}) == 4
    with pytest.raises(ImageError, match="differ in size: 56 x 40 and 40 x 56"):
        codec.interpolate(first, synthetic_picture(2, 56, 40), count=3)


@pytest.mark.parametrize("mode", ALL)
def test_health_is_measured(codecs: dict[str, Codec], mode: str) -> None:
    health = codecs[mode].inspect_latent([synthetic_picture(n) for n in range(2)])
    assert health.mode == mode and health.units > 0 and health.verdicts
    assert (health.mean_sigma is not None) == (mode in POSTERIOR_MODES)
    assert bool(health.perplexity) == (mode not in CONTINUOUS)
    assert bool(health.kl_per_unit) == (mode in (*POSTERIOR_MODES, "dvae"))


def test_a_file_of_another_kind_is_refused(codecs: dict[str, Codec]) -> None:
    data = codecs["ae"].compress(synthetic_picture(1))
    header, sections = read_container(data)
    with pytest.raises(CorruptError, match="mode vq"):
        codecs["ae"].decompress(
            write_container(dataclasses.replace(header, mode=MODE_VQ, rate=9), sections)
        )
    # What the header calls the uniform kinds makes no difference to the picture.
    assert header.mode == MODE_AE
    renamed = write_container(dataclasses.replace(header, mode=MODE_VAE), sections)
    assert codecs["ae"].decompress(renamed).tobytes() == codecs["ae"].decompress(data).tobytes()


@pytest.mark.parametrize("mode", CONTINUOUS)
def test_damage_is_found_or_harmless(codecs: dict[str, Codec], mode: str) -> None:
    """Streams changed under a fresh checksum: an error of ours, or some picture."""
    codec = codecs[mode]
    header, sections = read_container(codec.compress(synthetic_picture(5), quality=100))
    random = np.random.default_rng(0)
    for _ in range(60):
        payload = bytearray(sections[0].payload)
        payload[random.integers(len(payload))] ^= 1 << random.integers(8)
        changed = [dataclasses.replace(sections[0], payload=bytes(payload)), *sections[1:]]
        try:
            codec.decompress(write_container(header, changed))
        except VqcError:
            continue


def test_a_mode_chooses_and_checks_the_model(mode_models: Path) -> None:
    path = str(mode_models / "vae.safetensors")
    assert load_codec(path, "cpu", mode="vae").model.config.mode == "vae"
    with pytest.raises(ModeError, match="of mode vae, not ae"):
        load_codec(path, "cpu", mode="ae")
    with pytest.raises(ModeError, match="modes are"):
        load_codec(None, "cpu", mode="gan")
    data = vqcodec.compress(synthetic_picture(1), model=path, mode="vae", device="cpu", sample=3)
    assert vqcodec.info(data).mode == "vae"


def test_a_mode_s_model_is_not_looked_for_in_the_current_directory(
    mode_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vae").write_bytes(b"junk")
    assert find_model(mode="vae") != Path("vae")
    with pytest.raises(ModelFileError):
        find_model("vae", mode="vae")


def test_a_model_of_another_mode_under_a_mode_s_name_is_refused(
    mode_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(mode_models / "vq.safetensors", tmp_path / "vae.safetensors")
    monkeypatch.setattr("vqcodec.model._package_weights", lambda: tmp_path)
    with pytest.raises(ModeError, match="the model vae is of mode vq, not vae"):
        load_codec(None, "cpu", mode="vae")


@pytest.mark.parametrize("mode", ["ae", "vae", "dvae"])
def test_weights_that_overflow_are_refused_when_used(
    mode_models: Path, tmp_path: Path, mode: str
) -> None:
    with safe_open(mode_models / f"{mode}.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for name, tensor in tensors.items():
        if name.startswith("analysis.branch"):
            tensor.fill_(65504.0 if tensor.dtype.is_floating_point else 127)
    path = tmp_path / "huge.safetensors"
    save_file(tensors, path, metadata)
    codec = load_codec(path, "cpu")
    with pytest.raises(ModelFileError, match="not finite"):
        codec.compress(synthetic_picture(1))


def test_a_divergence_that_overflows_is_refused(mode_models: Path, tmp_path: Path) -> None:
    """Symbols are finite whatever the mean of the lower level is, what is said of it is not."""
    with safe_open(mode_models / "hvae.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for name, tensor in tensors.items():
        if name.startswith("conditional."):
            tensor.fill_(65504.0 if tensor.dtype.is_floating_point else 127)
    # The least variance: a divergence is counted in units of it.
    _, log_variance = tensors["conditional.last.weight"].chunk(2)
    log_variance.neg_()
    path = tmp_path / "huge.safetensors"
    save_file(tensors, path, metadata)
    codec = load_codec(path, "cpu")
    picture = synthetic_picture(1)
    with pytest.raises(ModelFileError, match="not finite"):
        codec.analyse(picture, quality=50)
    assert codec.decompress(codec.compress(picture, quality=50)).size == picture.shape[1::-1]


def test_the_health_of_a_pooled_stage_is_that_of_its_blocks(codecs: dict[str, Codec]) -> None:
    """Where no block begins its index is zero, which would look like a codebook that hardly speaks."""
    picture = synthetic_picture(2, 96, 64)
    codec = codecs["vqvae2"]
    latent = codec._latent(as_picture(picture))
    grid = (latent.shape[1], latent.shape[2])
    first, second = codec.model.quantizer.nearest_stages(latent.flatten(1).T, grid)
    blocks = first.reshape(-1, *grid)[:, ::2, ::2].flatten(1)
    health = codec.inspect_latent([picture])
    assert health == codebook_health([blocks, second], 32, mode="vqvae2")
    assert (health.positions, blocks.shape[1], second.shape[1]) == (6, 6, 24)


@pytest.mark.parametrize("mode", ALL)
def test_a_model_is_read_as_it_was_written(mode_models: Path, mode: str) -> None:
    path = mode_models / f"{mode}.safetensors"
    model = load_model(path)
    assert model.to_bytes() == path.read_bytes()
    assert model.config.mode == mode


@pytest.mark.parametrize(
    ("mode", "key", "value"),
    [
        ("ae", "mode", "gan"),
        ("ae", "mode", "vq"),
        ("vq", "mode", "vae"),
        ("vqvae", "mode", "dvae"),
        ("ae", "quantizer", {"channels": 19, "buckets": 100}),
        ("ae", "quantizer", {"channels": 20, "buckets": 101}),
        ("ae", "quantizer", {"channels": 20.0, "buckets": 100}),
        ("vae", "transform", {"channels": 20, "posterior": False}),
        ("dvae", "quantizer", {"mu": [1.0, 1.0], "first": [1.0, 1.0], "last": [1.0, 1.0]}),
        ("ae", "points", [[101, 1.0]] * 100),
    ],
)
def test_a_header_that_does_not_fit_is_refused(
    mode_models: Path, tmp_path: Path, mode: str, key: str, value: object
) -> None:
    with safe_open(mode_models / f"{mode}.safetensors", "pt") as file:
        header = json.loads(file.metadata()["vqcodec"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    header[key] = {**header[key], **value} if isinstance(value, dict) else value
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path, {"vqcodec": json.dumps(header)})
    with pytest.raises(ModelFileError):
        load_model(path)


@pytest.mark.parametrize("name", ["step", "gain", "analysis.log_variance", "analysis.spread.bias"])
def test_a_missing_tensor_is_named(mode_models: Path, tmp_path: Path, name: str) -> None:
    with safe_open(mode_models / "vae.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys() if key != name}
    path = tmp_path / "missing.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(ModelFileError):
        load_model(path)


@pytest.mark.parametrize("mode", [mode for mode in ALL if mode != "vq"])
def test_training_again_gives_the_same_file(
    mode: str, mode_models: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after its first step, too."""
    from vqcodec.train import run as module

    original = module.JointTrainer.step
    calls = 0

    def stop_at_the_second(self, *args):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(self, *args)

    options = {"data": pictures, "steps": 4, "preset": "tiny", "seed": 3, "mode": mode}
    out = tmp_path / f"{mode}.safetensors"
    monkeypatch.setattr(module, "_CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(module.JointTrainer, "step", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train_model(out=out, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(module.JointTrainer, "step", original)
    train_model(out=out, resume=True, **options)  # type: ignore[arg-type]
    assert out.read_bytes() == (mode_models / f"{mode}.safetensors").read_bytes()
    assert checkpoint_path(out).is_file()


def test_a_model_of_a_mode_can_be_the_start(mode_models: Path, pictures: Path, tmp_path: Path) -> None:
    for mode in (mode for mode in ALL if mode != "vq"):
        out = train_model(
            data=pictures,
            out=tmp_path / f"{mode}.safetensors",
            steps=2,
            preset="tiny",
            mode=mode,
            init=str(mode_models / f"{mode}.safetensors"),
            phases=("joint",),
        )
        before, after = load_model(mode_models / f"{mode}.safetensors"), load_model(out)
        assert not torch.equal(before.synthesis.leave.weight, after.synthesis.leave.weight)
    with pytest.raises(ModeError):
        train_model(
            data=pictures,
            out=tmp_path / "x.safetensors",
            steps=2,
            preset="tiny",
            mode="ae",
            init=str(mode_models / "vae.safetensors"),
        )


def test_several_modes_are_trained_and_resumed(pictures: Path, tmp_path: Path) -> None:
    options = {"data": pictures, "out": tmp_path / "all", "steps": 2, "preset": "tiny"}
    with pytest.raises(ValueError, match="mode vq has no losses"):
        train_models(modes=("vae", "vq"), objective=ObjectiveConfig(), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="twice"):
        train_models(modes=("ae", "ae"), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="phases of mode ae"):
        train_models(modes=("vq", "ae"), phases=("start", "synthesis"), **options)  # type: ignore[arg-type]
    assert not (tmp_path / "all").exists()
    made = train_models(modes=("ae", "vq"), **options)  # type: ignore[arg-type]
    assert [path.name for path in made] == ["ae.safetensors", "vq-small.safetensors"]
    before = [path.read_bytes() for path in made]
    checkpoint_path(made[1]).unlink()
    made[1].unlink()
    train_models(modes=("ae", "vq"), resume=True, **options)  # type: ignore[arg-type]
    assert [path.read_bytes() for path in made] == before


def test_a_resumed_run_keeps_its_settings(mode_models: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "ae.safetensors"
    for path in (out, checkpoint_path(out)):
        shutil.copy(mode_models / path.name, path)
    options = {"data": pictures, "out": out, "steps": 4, "resume": True}
    for wrong in (
        {"mode": "vqvae"},
        {"objective": ObjectiveConfig(weight=3)},
        {"phases": ("start", "joint")},
    ):
        with pytest.raises(ValueError, match="the checkpoint"):
            train_model(**options, **wrong)  # type: ignore[arg-type]
    before = out.read_bytes()
    train_model(**options)  # type: ignore[arg-type]
    assert out.read_bytes() == before


def test_losses_are_options_of_the_modes_but_vq(pictures: Path, tmp_path: Path) -> None:
    heavy = train_model(
        data=pictures,
        out=tmp_path / "heavy.safetensors",
        steps=60,
        preset="tiny",
        mode="vae",
        objective=ObjectiveConfig(weight=3000.0),
    )
    health = load_model(heavy).config.training["health"]
    light = train_model(
        data=pictures,
        out=tmp_path / "light.safetensors",
        steps=60,
        preset="tiny",
        mode="vae",
        objective=ObjectiveConfig(weight=1e-3, reconstruction="mae"),
    )
    assert sum(health["kl_per_unit"]) < sum(load_model(light).config.training["health"]["kl_per_unit"])
    with pytest.raises(ValueError, match="vq"):
        preset_config("tiny", "vq", ObjectiveConfig())
    with pytest.raises(ValueError, match="mode"):
        preset_config("tiny", "gan")
