"""Uniform quantisation of continuous latents: steps, choice of values, round trips, escapes."""

import numpy as np
import pytest
import torch

from vqcodec.container import UNIFORM_BUCKETS as BUCKETS
from vqcodec.errors import CorruptError, ModelFileError, VqcError
from vqcodec.escapes import ESCAPE, VALUE_MAX, VALUE_MIN, split_values
from vqcodec.prior import PriorConfig
from vqcodec.quantizer import LEVELS, RatePoint
from vqcodec.train.prior import static_prior
from vqcodec.train.steps import start_uniform
from vqcodec.uniform import (
    GAIN_UNITS,
    STEP_UNITS,
    UniformBottleneck,
    UniformConfig,
    UniformQuantizer,
    level_of,
)

CONFIG = UniformConfig(channels=7)
PRIOR = PriorConfig(tables=3, hidden=(8, 8), group_hidden=4, chunks=(2, 5), window=3)


@pytest.fixture(scope="module")
def bottleneck() -> UniformBottleneck:
    quantizer, bits = start_uniform(CONFIG)
    return UniformBottleneck(quantizer, static_prior(PRIOR, CONFIG, bits))


def _latent(height: int, width: int, spread: float = 60.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(7, height, width, generator=generator)


def test_levels_divide_the_buckets_evenly() -> None:
    levels = [level_of(bucket) for bucket in range(1, BUCKETS + 1)]
    assert levels == [(bucket - 1) * 8 // 100 for bucket in range(1, 101)]
    assert levels[0] == 0 and levels[-1] == LEVELS - 1
    assert set(np.bincount(levels)) <= {12, 13}


def test_steps_are_products_in_fixed_point() -> None:
    step = np.arange(1, 8, dtype=np.int32) * STEP_UNITS
    gain = np.full(BUCKETS, 3 * GAIN_UNITS // 2, np.int32)
    quantizer = UniformQuantizer(CONFIG, step, gain)
    assert quantizer.steps(17).tolist() == [1.5 * c for c in range(1, 8)]
    values = np.full((7, 1, 2), VALUE_MIN, np.int32)
    assert quantizer.dequantise(values, 1)[6, 0, 0] == -32768 * 10.5


def test_gains_fall_by_equal_ratios() -> None:
    quantizer, _ = start_uniform(CONFIG)
    steps = np.array([quantizer.steps(bucket)[0] for bucket in range(1, BUCKETS + 1)])
    ratios = steps[1:] / steps[:-1]
    np.testing.assert_allclose(ratios, ratios.mean(), rtol=1e-5)
    assert steps[0] == pytest.approx(320, rel=1e-5) and steps[-1] == pytest.approx(14, rel=1e-5)


@pytest.mark.parametrize("name", ["step", "gain"])
@pytest.mark.parametrize("fault", ["dtype", "shape", "zero"])
def test_unusable_steps_are_refused(name: str, fault: str) -> None:
    arrays = {"step": np.ones(7, np.int32), "gain": np.ones(BUCKETS, np.int32)}
    if fault == "dtype":
        arrays[name] = arrays[name].astype(np.int64)
    elif fault == "shape":
        arrays[name] = arrays[name][1:]
    else:
        arrays[name][3] = 0
    with pytest.raises(ModelFileError, match=name):
        UniformQuantizer(CONFIG, **arrays)


def test_steps_that_float64_cannot_multiply_exactly_are_refused() -> None:
    step, gain = np.ones(7, np.int32), np.ones(BUCKETS, np.int32)
    step[2], gain[5] = 1 << 18, 1 << 19
    with pytest.raises(ModelFileError, match="exact"):
        UniformQuantizer(CONFIG, step, gain)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (13, 7), (65, 3), (3, 130)])
@pytest.mark.parametrize("bucket", [1, 50, 100])
def test_values_come_back(bottleneck: UniformBottleneck, shape: tuple[int, int], bucket: int) -> None:
    planes = bottleneck.to_symbols(_latent(*shape), RatePoint(bucket, 1.0))
    streams = bottleneck.write(planes)
    (values,) = bottleneck.read(streams, bucket, *shape)
    np.testing.assert_array_equal(values, planes[0].index)
    tiles = -(-shape[0] // 64) * -(-shape[1] // 64)
    assert all(len(parts) == tiles for parts in streams.values())


def test_large_values_escape_and_come_back(bottleneck: UniformBottleneck) -> None:
    latent = _latent(66, 5)
    latent[2, 0, 0], latent[3, 65, 4], latent[6, 1, 1] = 1e9, -1e9, 4000.0
    planes = bottleneck.to_symbols(latent, RatePoint(100, 1.0))
    values = planes[0].index
    assert values[2, 0, 0] == VALUE_MAX and values[3, 65, 4] == VALUE_MIN
    assert values[6, 1, 1] == round(4000 / bottleneck.quantizer.steps(100)[6])
    streams = bottleneck.write(planes)
    assert set(streams) == {0, 1}
    np.testing.assert_array_equal(bottleneck.read(streams, 100, 66, 5)[0], values)


def test_a_flat_latent_takes_no_bytes(bottleneck: UniformBottleneck) -> None:
    planes = bottleneck.to_symbols(torch.zeros(7, 4, 4), RatePoint(60, 1.0))
    assert bottleneck.write(planes) == {}
    (values,) = bottleneck.read({}, 60, 4, 4)
    assert values.shape == (7, 4, 4) and not values.any()


def test_the_choice_is_the_cheapest_of_all_values(bottleneck: UniformBottleneck) -> None:
    """Against every value near by; what escapes lies outside this latent."""
    bucket = 80
    latent = _latent(9, 8, spread=40.0)
    planes = bottleneck.to_symbols(latent, RatePoint(bucket, 1.0))
    scaled = latent.double().numpy() / bottleneck.quantizer.steps(bucket)[:, None, None]
    candidates = np.arange(-40, 41)
    assert np.abs(scaled).max() < 39
    symbols = split_values(candidates)
    groups = np.arange(7)[:, None, None, None]
    bits = bottleneck.prior.bits[0][groups, planes[0].tables[..., None], symbols]
    cost = (scaled[..., None] - candidates) ** 2 + 2 * np.log(2) / 12 * bits
    chosen = np.take_along_axis(cost, (planes[0].index + 40)[..., None], -1)[..., 0]
    assert (chosen <= cost.min(-1) + 1e-12).all()
    assert (planes[0].index != np.rint(scaled)).any()


def test_the_error_is_within_the_step(bottleneck: UniformBottleneck) -> None:
    latent = _latent(8, 8)
    planes = bottleneck.to_symbols(latent, RatePoint(100, 1.0))
    decoded = bottleneck.from_symbols([planes[0].index], 100)
    step = torch.from_numpy(bottleneck.quantizer.steps(100)).float()[:, None, None]
    assert ((decoded - latent).abs() <= 1.5 * step).all()
    assert ((decoded - latent) / step).square().mean() < 0.2


def test_damaged_streams_are_refused(bottleneck: UniformBottleneck) -> None:
    latent = _latent(6, 6, spread=4000.0)
    streams = bottleneck.write(bottleneck.to_symbols(latent, RatePoint(100, 1.0)))
    assert (split_values(bottleneck.read(streams, 100, 6, 6)[0]) == ESCAPE).any()
    with pytest.raises(CorruptError):
        bottleneck.read({1: streams[1]}, 100, 6, 6)
    with pytest.raises(VqcError):
        bottleneck.read({0: streams[0]}, 100, 6, 6)
    with pytest.raises(VqcError):
        bottleneck.read({0: streams[0], 1: [streams[1][0][:-1]]}, 100, 6, 6)
    with pytest.raises(CorruptError):
        bottleneck.read({0: streams[0], 1: [streams[1][0] + b"\0"]}, 100, 6, 6)
