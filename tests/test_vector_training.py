"""Joint training of mode vq: its rate, its moving averages, its prediction, and that it resumes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vqcodec.prediction import CLASSES, Predictor, neighbours, weight_shapes
from vqcodec.quantizer import SCALE, QuantizerConfig, ResidualQuantizer, point_at
from vqcodec.train.checkpoint import checkpoint_path, load_checkpoint
from vqcodec.train.coding import code_latent
from vqcodec.train.photos import load_photos
from vqcodec.train.predictor import NormalEquations
from vqcodec.train.prior import encode_static
from vqcodec.train.run import _resumed
from vqcodec.train.vector import CodebookAverages, VectorTrainer, expected_bits
from vqcodec.transform import Analysis, Synthesis

LAYOUT = QuantizerConfig(blocks=((2, 1), (2, 2)), codewords=8, mu=(400.0,), first=(900.0,), last=(100.0,))


def _quantizer(seed: int = 0) -> ResidualQuantizer:
    random = np.random.default_rng(seed)
    books = [random.integers(-400, 400, (n, 8, d)).astype(np.int16) for n, d in LAYOUT.blocks]
    for book in books:
        book[:, 0] = 0
    return ResidualQuantizer(LAYOUT, [books])


def _bits(seed: int = 1) -> torch.Tensor:
    share = torch.rand(1, 4, 8, generator=torch.Generator().manual_seed(seed)) + 0.05
    return -(share / share.sum(-1, keepdim=True)).log2()


def test_a_hard_choice_spends_what_the_assignment_does() -> None:
    quantizer, bits = _quantizer(), _bits()
    residual = 60 * torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    prices = torch.linspace(50, 900, 50)
    table = torch.arange(50, dtype=torch.int32).expand(4, -1).contiguous()
    index = quantizer.assign(0, residual, prices[None, :, None] * bits[0][:, None], table)
    spent = torch.gather(bits[0], 1, index.long()).sum(0)
    found = expected_bits(quantizer, 0, bits[0], residual, prices, 1e-4)
    assert torch.allclose(found, spent, rtol=1e-4)


def test_a_soft_choice_is_the_expectation_that_it_says() -> None:
    quantizer, bits = _quantizer(), _bits()
    residual = 60 * torch.randn(7, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float32)
    prices, temperature = torch.full((7,), 300.0), 0.7
    expected = np.zeros(7)
    for n, vector in enumerate(residual.double().numpy()):
        books = [book.astype(float) / SCALE for book in quantizer.codebooks[0]]
        parts = [vector[0:1], vector[1:2], vector[2:4], vector[4:6]]
        for g, part in enumerate(parts):
            cost = ((part - books[g // 2][g % 2]) ** 2).sum(-1) / 300 + bits[0, g].numpy()
            weight = np.exp(-(cost - cost.min()) / temperature)
            expected[n] += (weight / weight.sum() * bits[0, g].numpy()).sum()
    found = expected_bits(quantizer, 0, bits[0], residual, prices, temperature)
    assert found.numpy() == pytest.approx(expected, rel=1e-4)


def test_averages_follow_means_and_counts() -> None:
    quantizer, bits = _quantizer(), _bits()
    averages = CodebookAverages(quantizer, bits)
    share = averages.counts[0].clone()
    vectors = torch.randn(64, 6, generator=torch.Generator().manual_seed(4)) * 50
    index = torch.zeros(4, 64, dtype=torch.uint8)
    index[:, :16] = 3
    averages.add(0, vectors, index)
    expected = 0.995 * share[1, 3] + 0.005 * 16 / 64
    assert averages.counts[0][1, 3] == pytest.approx(float(expected), rel=1e-5)
    before = quantizer.float_codebooks[0][1][0, 3]
    averages.follow()
    mean = (0.995 * share[2, 3] * before + 0.005 * vectors[:16, 2:4].sum(0) / 64) / averages.counts[0][
        2, 3
    ]
    assert torch.allclose(averages.books[0][1][0, 3], mean, rtol=1e-4)
    assert all((book[:, 0] == 0).all() for book in averages.books[0])
    lengths = averages.code_lengths()
    assert torch.exp2(-lengths).sum(-1).allclose(torch.ones(1, 4), atol=1e-3)


def test_a_codeword_that_is_never_chosen_stays() -> None:
    quantizer, bits = _quantizer(), _bits()
    bits[0, 1, 5] = 40.0
    averages = CodebookAverages(quantizer, bits)
    averages.add(0, torch.ones(10, 6), torch.zeros(4, 10, dtype=torch.uint8))
    averages.follow()
    assert averages.codebooks()[0][0][1, 5] == quantizer.codebooks[0][0][1, 5]


def test_normal_equations_find_the_prediction_that_made_the_data() -> None:
    channels, grid = (2, 3), (16, 16)
    random = np.random.default_rng(5)
    weights = [random.integers(-4000, 4000, shape).astype(np.int16) for shape in weight_shapes(channels)]
    truth = Predictor(channels, weights)
    decoded = torch.from_numpy(random.integers(-3000, 3000, (40, 256, 5)).astype(np.int32))
    target = torch.zeros(40, 256, 5)
    for block, part in enumerate(truth.blocks):
        for kind in range(CLASSES):
            at = neighbours(kind, *grid)
            target[:, at.here, part] = truth.predict(block, kind, decoded, at).float() / SCALE
    equations = NormalEquations(channels)
    equations.add(target, decoded, grid)
    found = equations.solve()
    for kind in range(CLASSES):
        # The first class has four positions a grid: few for its 18 inputs, and none of its own kind.
        near = 0 if kind else 4 * channels[1]
        difference = found.weights[1][kind][near:].astype(int) - weights[1][kind][near:]
        assert np.abs(difference).max() < 80, kind


def test_mirror_images_are_not_learnt_from() -> None:
    """Where a grid has positions with four different neighbours, others do not count."""
    random = np.random.default_rng(9)
    decoded = torch.from_numpy(random.integers(-300, 300, (60, 256, 1)).astype(np.int32))
    known = neighbours(1, 16, 16).known
    assert [len(set(row)) for row in known.tolist()] == [4, 2, 2, 1]
    target = torch.zeros(60, 256, 1)
    for place, near in zip(neighbours(1, 16, 16).here, known, strict=True):
        whole = len(set(near.tolist())) == 4
        target[:, place] = decoded[:, near].float().mean(1) / SCALE if whole else 1000.0
    equations = NormalEquations((1,))
    equations.add(target, decoded, (16, 16))
    assert np.abs(equations.solve().weights[0][1, :, 0] - 4096).max() < 100


def test_a_class_that_no_grid_has_keeps_its_weights() -> None:
    random = np.random.default_rng(8)
    shapes = weight_shapes((2,))
    before = Predictor((2,), [random.integers(-9000, 9000, shapes[0]).astype(np.int16)])
    equations = NormalEquations((2,))
    decoded = torch.from_numpy(random.integers(-300, 300, (5, 16, 2)).astype(np.int32))
    equations.add(decoded / SCALE, decoded, (4, 4))
    after = equations.solve(before)
    # Four by four positions have no middle of a step of 4, and nothing between.
    for kind in range(CLASSES):
        same = np.array_equal(after.weights[0][kind], before.weights[0][kind])
        assert same == (kind in (1, 2)), kind


def test_a_batch_is_coded_as_its_crops_are(tiny_model: Path) -> None:
    run, _ = _resumed(load_checkpoint(checkpoint_path(tiny_model)), tiny_model, "cpu")
    quantizer = run.vector_quantizer
    latent = 80 * torch.randn(3, 20, 6, 9, generator=torch.Generator().manual_seed(6))
    points = [point_at(quantizer.config, place) for place in (0.4, 1.3, 2.0)]
    coded = code_latent(quantizer, run.bits, latent, points)
    assert [stage.active for stage in coded.stages] == [[0, 1, 2], [1, 2]]
    for n, point in enumerate(points):
        alone = encode_static(quantizer, run.bits, latent[n], point)
        assert alone.bucket == coded.buckets[n]
        for stage, coding in enumerate(coded.stages[: point.last_stage + 1]):
            index = coding.index.reshape(len(coding.index), len(coding.active), -1)
            place = coding.active.index(n)
            assert np.array_equal(index[:, place].numpy(), alone.index[stage].reshape(len(index), -1))


def _trainer(run, steps: int, photos: list[np.ndarray]) -> VectorTrainer:  # type: ignore[no-untyped-def]
    analysis, synthesis = Analysis(run.config.transform), Synthesis(run.config.transform)
    analysis.load_state_dict(run.analysis.state_dict())
    synthesis.load_state_dict(run.synthesis.state_dict())
    trainer = VectorTrainer(run.config, analysis, synthesis, run.quantizer, run.bits, seed=7)
    for step in range(steps):
        trainer.step(photos, step / 6)
    return trainer


def test_a_resumed_trainer_goes_on_bit_exactly(
    pictures: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqcodec.train.vector._SETTLE", 2)
    monkeypatch.setattr("vqcodec.train.vector._SOLVE", 4)
    run, _ = _resumed(load_checkpoint(checkpoint_path(tiny_model)), tiny_model, "cpu")
    photos = load_photos(pictures).train
    straight, first = _trainer(run, 6, photos), _trainer(run, 3, photos)
    torch.save(first.state(), tmp_path / "half")
    second = _trainer(run, 0, photos)
    second.load_state(torch.load(tmp_path / "half", weights_only=True))
    for step in range(3, 6):
        second.step(photos, step / 6)
    for name, value in straight.average.items():
        assert torch.equal(value, second.average[name]), name
    assert torch.equal(straight.bits, second.bits)
    for stage, other in zip(straight.quantizer.codebooks, second.quantizer.codebooks, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(stage, other, strict=True))
    assert straight.quantizer.predictor is not None and second.quantizer.predictor is not None
    for a, b in zip(
        straight.quantizer.predictor.weights, second.quantizer.predictor.weights, strict=True
    ):
        assert np.array_equal(a, b)
    changed = zip(straight.quantizer.codebooks, run.vector_quantizer.codebooks, strict=True)
    assert any(not np.array_equal(a, b) for stages in changed for a, b in zip(*stages, strict=True))


def test_every_network_is_trained(pictures: Path, tiny_model: Path) -> None:
    run, _ = _resumed(load_checkpoint(checkpoint_path(tiny_model)), tiny_model, "cpu")
    trainer = _trainer(run, 0, [])
    before = {name: value.clone() for name, value in trainer.networks.state_dict().items()}
    for step in range(3):
        trainer.step(load_photos(pictures).train, step / 3)
    moved = {
        name.split(".")[0] + "." + name.split(".")[1]
        for name, value in trainer.networks.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert {"analysis.linear", "analysis.branch", "synthesis.linear", "synthesis.leave"} <= moved
    assert not any("scale" in name for name in moved)
