"""Spatial prediction: its geometry against the definition, its arithmetic against Python's integers.

Purpose: what decoders must agree on bit by bit, and what a model file may say of it.

Layout: the definition in plain Python; geometry; arithmetic; coding; the model file.

Invariants: weights and values are drawn anew where a trained model's would be too tame.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import FOLDER
from model_bytes import ModelParts, make_model
from numpy.typing import NDArray
from torch import Tensor

from vqcodec import prediction
from vqcodec.bottleneck import VectorBottleneck
from vqcodec.errors import ModelFileError
from vqcodec.model import Model, load_model
from vqcodec.prediction import CLASSES, PASS_CLASSES, Neighbours, Predictor, class_of, neighbours
from vqcodec.prior import PriorConfig, spatial_pass_of
from vqcodec.quantizer import SCALE, QuantizerConfig, RatePoint, ResidualQuantizer, to_latent

SIZES = [(1, 1), (1, 13), (13, 1), (2, 3), (5, 7), (17, 9), (33, 8)]
LOW, HIGH = -32768, 32767

each_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


# --- the definition ------------------------------------------------------------------------------


def defined_class(y: int, x: int) -> int:
    """Every eighth position; then, at half the distance each time, the middles and what is between."""
    if y % 8 == x % 8 == 0:
        return 0
    for level, d in enumerate((4, 2, 1)):
        if y % d == x % d == 0:
            return 1 + 2 * level if (y // d) % 2 == (x // d) % 2 == 1 else 2 + 2 * level
    raise AssertionError


def mirrored(place: int, step: int, size: int) -> int | None:
    if 0 <= place + step < size:
        return place + step
    return place - step if 0 <= place - step < size else None


def defined_known(y: int, x: int, height: int, width: int) -> list[tuple[int, int]]:
    """The four known neighbours, none in class 0."""
    kind = defined_class(y, x)
    if kind == 0:
        return []
    d = (4, 2, 1)[(kind - 1) // 2]
    up, down = mirrored(y, -d, height), mirrored(y, d, height)
    left, right = mirrored(x, -d, width), mirrored(x, d, width)
    if kind in (1, 3, 5):
        assert None not in (up, down, left, right)
        return [(v, h) for v in (up, down) for h in (left, right)]  # type: ignore[misc]
    tall = None if up is None or down is None else [(up, x), (down, x)]
    broad = None if left is None or right is None else [(y, left), (y, right)]
    return [*(tall or broad or []), *(broad or tall or [])]


def defined_around(y: int, x: int, height: int, width: int) -> list[tuple[int, int]]:
    """The 3x3 positions, mirrored, or the middle where there is nothing to mirror."""
    places = []
    for step_y, step_x in itertools.product((-1, 0, 1), repeat=2):
        row, column = mirrored(y, step_y, height), mirrored(x, step_x, width)
        places.append((y if row is None else row, x if column is None else column))
    return places


def defined_decode(
    channels: tuple[int, ...], weights: list[NDArray[np.int16]], codewords: NDArray[np.integer]
) -> tuple[list[int], NDArray[np.int64]]:
    """Every prediction, and what is decoded of codewords (H, W, C), in Python's integers."""
    height, width, _ = codewords.shape
    decoded: dict[tuple[int, int, int], int] = {}
    predictions = []
    first = 0
    for own, weight in zip(channels, weights, strict=True):
        for kind in range(CLASSES):
            for y, x in itertools.product(range(height), range(width)):
                if defined_class(y, x) != kind:
                    continue
                known = defined_known(y, x, height, width)
                inputs = [decoded[v, h, first + c] for v, h in known for c in range(own)]
                inputs = inputs or [0] * (4 * own)
                for v, h in defined_around(y, x, height, width):
                    inputs += [decoded[v, h, c] for c in range(first)]
                for c in range(own):
                    column = weight[kind, :, c].tolist()
                    total = sum(a * b for a, b in zip(column, inputs, strict=True))
                    predictions.append(min(HIGH, max(LOW, (total + 2**13) // 2**14)))
                    decoded[y, x, first + c] = predictions[-1] + int(codewords[y, x, first + c])
        first += own
    result = codewords.astype(np.int64)
    for (y, x, c), value in decoded.items():
        result[y, x, c] = value
    return predictions, result


# --- geometry ------------------------------------------------------------------------------------


def grid_of(height: int, width: int) -> NDArray[np.int64]:
    return class_of(*np.indices((height, width)))


@each_size
def test_classes(size: tuple[int, int]) -> None:
    found = grid_of(*size)
    assert found.shape == size
    for y, x in np.ndindex(*size):
        assert found[y, x] == defined_class(y, x), (y, x)


@each_size
def test_neighbours(size: tuple[int, int]) -> None:
    height, width = size
    seen = []
    for kind in range(CLASSES):
        at = neighbours(kind, height, width)
        assert at.known.shape == (len(at.here), 4 if kind else 0)
        assert at.around.shape == (len(at.here), 9)
        seen += at.here.tolist()
        assert at.here.tolist() == sorted(at.here.tolist())
        for here, known, around in zip(
            at.here.tolist(), at.known.tolist(), at.around.tolist(), strict=True
        ):
            y, x = divmod(here, width)
            assert defined_class(y, x) == kind
            assert [divmod(n, width) for n in known] == defined_known(y, x, height, width), (y, x)
            assert [divmod(n, width) for n in around] == defined_around(y, x, height, width), (y, x)
    assert sorted(seen) == list(range(height * width))


@each_size
def test_known_neighbours_come_first(size: tuple[int, int]) -> None:
    kinds = grid_of(*size).ravel()
    for kind in range(CLASSES):
        at = neighbours(kind, *size)
        assert (kinds[at.known.numpy()] < kind).all()


def test_coding_order_is_that_of_the_spatial_passes() -> None:
    assert [kind for part in PASS_CLASSES for kind in part] == list(range(CLASSES))
    rows, columns = np.indices((33, 40))
    passes, kinds = spatial_pass_of(rows, columns), class_of(rows, columns)
    for spatial, part in enumerate(PASS_CLASSES):
        assert np.array_equal(passes == spatial, np.isin(kinds, part))


# --- arithmetic ----------------------------------------------------------------------------------


def draw_weights(
    channels: tuple[int, ...], random: np.random.Generator, *, extreme: float = 0.5
) -> list[NDArray[np.int16]]:
    """Weights, a share of which is the least or the greatest number."""
    drawn = []
    for shape in prediction.weight_shapes(channels):
        weight = random.integers(-9000, 9000, shape)
        ends = random.choice([LOW, HIGH], shape)
        drawn.append(np.where(random.random(shape) < extreme, ends, weight).astype(np.int16))
    return drawn


def run_decoder(
    predictor: Predictor, codewords: NDArray[np.integer], start: Tensor | None = None
) -> tuple[list[Tensor], NDArray[np.int64]]:
    """Every prediction, and what is decoded of codewords (N, H, W, C), on top of `start`."""
    count, height, width, channels = codewords.shape
    added = torch.from_numpy(codewords.reshape(count, -1, channels).astype(np.int32))
    decoded = added.clone() if start is None else start.clone()
    predictions = []

    def add(block: int, kind: int, at: Neighbours, predicted: Tensor) -> Tensor:
        assert predicted.dtype == torch.int32
        predictions.append(predicted)
        return predicted + added[:, at.here, predictor.blocks[block]]

    predictor.decode(height, width, decoded, add)
    return predictions, decoded.numpy().reshape(codewords.shape).astype(np.int64)


@each_size
@pytest.mark.parametrize("channels", [(1,), (1, 3, 4), (4, 1)], ids=str)
def test_prediction_in_integers(size: tuple[int, int], channels: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    weights = draw_weights(channels, random)
    predictor = Predictor(channels, weights)
    # One channel more than is predicted; a part of the codewords is zero, so that predictions count.
    codewords = random.choice([LOW, -700, 0, 0, 1, 900, HIGH], (2, *size, sum(channels) + 1))
    predictions, decoded = run_decoder(predictor, codewords)
    for n in range(len(codewords)):
        expected, whole = defined_decode(channels, weights, codewords[n])
        assert [v for part in predictions for v in part[n].flatten().tolist()] == expected
        np.testing.assert_array_equal(decoded[n], whole)


def test_predictions_are_clamped() -> None:
    """Both ends are met, and passed by what is decoded, which is not clamped."""
    random = np.random.default_rng(2)
    weights = draw_weights((2, 2), random, extreme=1.0)
    codewords = random.choice([LOW, HIGH], (1, 9, 9, 4))
    predictions, decoded = run_decoder(Predictor((2, 2), weights), codewords)
    values = torch.cat([part.flatten() for part in predictions])
    assert (values.min(), values.max()) == (LOW, HIGH)
    assert (decoded.min(), decoded.max()) == (2 * LOW, 2 * HIGH)
    np.testing.assert_array_equal(decoded[0], defined_decode((2, 2), weights, codewords[0])[1])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(8191, 0), (8192, 1), (24575, 1), (24576, 2), (-8192, 0), (-8193, -1), (-24576, -1), (-24577, -2)],
)
def test_halves_are_rounded_up(value: int, expected: int) -> None:
    """Two positions: the second is predicted from the first, four times the same neighbour."""
    for place in range(4):
        weights = np.zeros((CLASSES, 4, 1), np.int16)
        weights[6, place] = 1
        codewords = np.array([value, 0]).reshape(1, 1, 2, 1)
        _, decoded = run_decoder(Predictor((1,), [weights]), codewords)
        assert decoded.ravel().tolist() == [value, expected]


@pytest.mark.parametrize("rest", [-8193, -8192, -1, 0, 8191, 8192])
def test_sums_beyond_single_precision(rest: int) -> None:
    """Terms that add up to 2^42 and are taken away again, but for `rest`."""
    random = np.random.default_rng(3)
    decoded = random.integers(60000, 65536, 2001)
    decoded[0] = rest
    # The only position of the grid is its own surroundings, nine times.
    weights = [np.zeros(shape, np.int16) for shape in prediction.weight_shapes((2000, 1))]
    here = weights[1][0, 4:, 0].reshape(9, 2000)
    here[0] = random.integers(32000, 32768, 2000)
    here[7] = -here[0]
    here[4, 0] = 1
    inputs = torch.from_numpy(decoded.astype(np.int32))[None, None]
    found = Predictor((2000, 1), weights).predict(1, 0, inputs, neighbours(0, 1, 1))
    assert found.flatten().tolist() == [(rest + 8192) // 16384]


def test_only_what_is_decoded_is_read() -> None:
    """Whatever stands where nothing is decoded yet leaves no trace."""
    random = np.random.default_rng(4)
    channels = (1, 3, 4)
    predictor = Predictor(channels, draw_weights(channels, random, extreme=0))
    codewords = random.integers(-900, 900, (2, 17, 9, 8))
    _, expected = run_decoder(predictor, codewords)
    noise = torch.from_numpy(random.integers(-(1 << 16), 1 << 16, (2, 17 * 9, 8)).astype(np.int32))
    np.testing.assert_array_equal(run_decoder(predictor, codewords, noise)[1], expected)


def test_parts_of_a_decoding_go_on_where_the_last_ended() -> None:
    """Block by block and spatial pass by spatial pass, as the encoder does it."""
    random = np.random.default_rng(5)
    channels = (1, 3)
    predictor = Predictor(channels, draw_weights(channels, random))
    codewords = random.integers(-900, 900, (1, 7, 12, 4))
    added = torch.from_numpy(codewords.reshape(1, -1, 4).astype(np.int32))
    decoded = torch.zeros_like(added)

    def add(block: int, kind: int, at: Neighbours, predicted: Tensor) -> Tensor:
        return predicted + added[:, at.here, predictor.blocks[block]]

    for block, kinds in itertools.product(range(2), PASS_CLASSES):
        predictor.decode(7, 12, decoded, add, blocks=[block], kinds=kinds)
    np.testing.assert_array_equal(
        decoded.numpy().reshape(7, 12, 4), run_decoder(predictor, codewords)[1][0]
    )


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(6)
    predictor = Predictor((2, 2), draw_weights((2, 2), random))
    codewords = random.integers(-900, 900, (2, 11, 13, 4))
    _, expected = run_decoder(predictor, codewords)
    monkeypatch.setattr(prediction, "_SLAB", 7)
    np.testing.assert_array_equal(run_decoder(predictor, codewords)[1], expected)


def test_weights_must_fit() -> None:
    weights = draw_weights((2, 3), np.random.default_rng(7))
    assert [weight.shape for weight in weights] == [(7, 8, 2), (7, 30, 3)]
    for wrong in (
        weights[:1],
        [*weights, weights[1]],
        [weights[1], weights[0]],
        [weights[0].astype(np.int32), weights[1]],
        [weights[0].astype(np.float64), weights[1]],
        [weights[0][:6], weights[1]],
    ):
        with pytest.raises(ValueError):
            Predictor((2, 3), wrong)


# --- coding --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    """The tiny model with weights drawn at random: a few steps of training leave classes without."""
    trained = load_model(tiny_model)
    quantizer = trained.quantizer
    assert isinstance(quantizer, ResidualQuantizer) and quantizer.config.predicted == (2, 6)
    weights = draw_weights((2, 6), np.random.default_rng(8), extreme=0)
    drawn = ResidualQuantizer(
        quantizer.config, quantizer.codebooks, Predictor((2, 6), [w // 4 for w in weights])
    )
    return dataclasses.replace(trained, quantizer=drawn)


@pytest.fixture(scope="module")
def quantizer(model: Model) -> ResidualQuantizer:
    assert isinstance(model.quantizer, ResidualQuantizer)
    return model.quantizer


def latents_of(quantizer: ResidualQuantizer, count: int, size: tuple[int, int], seed: int) -> Tensor:
    """Latents float32 (N, P, C) in quarters of a grey level, as wide as the codebooks."""
    random = np.random.default_rng(seed)
    shape = (count, size[0] * size[1], quantizer.config.channels)
    return torch.from_numpy(random.normal(0, 400, shape).round(2)).float()


def no_price(quantizer: ResidualQuantizer, places: int) -> tuple[Tensor, Tensor]:
    config = quantizer.config
    return (
        torch.zeros(config.groups, 1, config.codewords),
        torch.zeros(config.groups, places, dtype=torch.int32),
    )


def in_planes(index: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    return index.numpy().reshape(-1, *size)


@each_size
def test_encoder_and_decoder_agree(
    model: Model, quantizer: ResidualQuantizer, size: tuple[int, int]
) -> None:
    """Both stages of two grids at once, with prices: what is decoded is what the indices alone say."""
    config, places = quantizer.config, size[0] * size[1]
    target = latents_of(quantizer, 2, size, seed=9)
    random = np.random.default_rng(10)
    bias = torch.from_numpy(random.uniform(0, 5000, (config.groups, 3, config.codewords))).float()
    table = torch.from_numpy(random.integers(0, 3, (config.groups, 2 * places)).astype(np.int32))
    decoded = torch.zeros(target.shape, dtype=torch.int32)
    indices = []
    for stage in range(config.stages):
        index, decoded = quantizer.encode_stage(stage, target, decoded, bias, table, size)
        assert index.dtype == torch.uint8 and decoded.dtype == torch.int32
        indices.append(index.reshape(config.groups, 2, places))
        for n in range(2):
            planes = [in_planes(part[:, n], size) for part in indices]
            latent = model.bottleneck.from_symbols(planes, 16)
            found = latent.permute(1, 2, 0).reshape(places, -1)
            assert torch.equal(found, to_latent(decoded[n]))


def test_decoded_is_the_definition(model: Model, quantizer: ResidualQuantizer) -> None:
    size = (7, 10)
    random = np.random.default_rng(11)
    config = quantizer.config
    planes = random.integers(0, config.codewords, (2, config.groups, *size)).astype(np.uint8)
    codewords = [
        quantizer.look_up(stage, torch.from_numpy(planes[stage].reshape(config.groups, -1)))
        .numpy()
        .reshape(*size, -1)
        for stage in range(2)
    ]
    assert quantizer.predictor is not None
    _, first = defined_decode((2, 6), quantizer.predictor.weights, codewords[0])
    for count, expected in ((1, first), (2, first + codewords[1])):
        latent = model.bottleneck.from_symbols(list(planes[:count]), 16) * SCALE
        np.testing.assert_array_equal(latent.permute(1, 2, 0).numpy(), expected)


def test_zero_symbols_predict_zero(model: Model, quantizer: ResidualQuantizer) -> None:
    """A file without its first stage: what is decoded is the later stages alone."""
    random = np.random.default_rng(12)
    config = quantizer.config
    zero = np.zeros((config.groups, 9, 5), np.uint8)
    assert not model.bottleneck.from_symbols([zero], 8).any()
    second = random.integers(0, config.codewords, zero.shape).astype(np.uint8)
    latent = model.bottleneck.from_symbols([zero, second], 16)
    codewords = to_latent(quantizer.look_up(1, torch.from_numpy(second.reshape(config.groups, -1))))
    assert torch.equal(latent.permute(1, 2, 0).reshape(45, -1), codewords)


def test_each_index_is_the_nearest_to_what_prediction_leaves(quantizer: ResidualQuantizer) -> None:
    size = (9, 11)
    target = latents_of(quantizer, 1, size, seed=13)
    start = torch.zeros(target.shape, dtype=torch.int32)
    index, decoded = quantizer.encode_stage(0, target, start, *no_price(quantizer, 99), size)
    predicted = decoded[0] - quantizer.look_up(0, index)
    assert predicted[:, :8].any() and not predicted[:, 8:].any()
    assert torch.equal(quantizer.assign_nearest(0, target[0] - to_latent(predicted)), index)


@pytest.mark.parametrize("price", [0.0, 3000.0])
def test_passes_of_the_prior_choose_what_whole_blocks_do(
    model: Model, quantizer: ResidualQuantizer, price: float
) -> None:
    """Pass by pass as the tables become known, or block by block with the same tables."""
    size = (10, 13)
    target = latents_of(quantizer, 1, size, seed=14)
    bottleneck = model.bottleneck
    assert isinstance(bottleneck, VectorBottleneck)
    latent = target[0].reshape(*size, -1).permute(2, 0, 1)
    for last in range(2):
        planes = bottleneck.to_symbols(latent, RatePoint(8 * last + 8, price))
        decoded = torch.zeros(target.shape, dtype=torch.int32)
        for plane in planes[:-1]:
            before = bottleneck.from_symbols([plane.index], 8) * SCALE
            decoded[0] = before.permute(1, 2, 0).reshape(130, -1).int()
        bias = price * torch.from_numpy(model.prior.bits[last])
        tables = torch.from_numpy(planes[-1].tables.reshape(-1, 130).astype(np.int32))
        index, _ = quantizer.encode_stage(last, target, decoded, bias, tables, size)
        np.testing.assert_array_equal(planes[-1].index, in_planes(index, size))


# --- the model file ------------------------------------------------------------------------------


def test_predicted_groups() -> None:
    config = QuantizerConfig(blocks=((2, 1), (1, 2), (4, 4)))
    assert config.predicted_groups == []
    for predicted, expected in (
        ((2, 6), [slice(0, 2), slice(2, 4)]),
        ((1, 3, 8), [slice(0, 1), slice(1, 3), slice(3, 5)]),
        ((20,), [slice(0, 7)]),
    ):
        assert dataclasses.replace(config, predicted=predicted).predicted_groups == expected
    for wrong in ((3,), (2, 1), (2, 6, 2), (2, 22)):
        with pytest.raises(ValueError, match="ends inside a group"):
            _ = dataclasses.replace(config, predicted=wrong).predicted_groups


def load_bytes(data: bytes, folder: Path) -> Model:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    return load_model(path)


def test_round_trip(model: Model, quantizer: ResidualQuantizer, tmp_path: Path) -> None:
    again = load_bytes(model.to_bytes(), tmp_path)
    assert again.code_id == model.code_id
    assert again.config.quantizer == quantizer.config
    assert isinstance(again.quantizer, ResidualQuantizer) and again.quantizer.predictor is not None
    assert quantizer.predictor is not None
    for found, weight in zip(again.quantizer.predictor.weights, quantizer.predictor.weights, strict=True):
        assert found.dtype == np.int16
        np.testing.assert_array_equal(found, weight)
    assert again.to_bytes() == model.to_bytes()


def test_code_id_depends_on_every_weight(model: Model, quantizer: ResidualQuantizer) -> None:
    assert quantizer.predictor is not None
    seen = {model.code_id}
    for block, place in ((0, (0, 0, 0)), (0, (6, 7, 1)), (1, (0, 0, 0)), (1, (6, 41, 5))):
        weights = [weight.copy() for weight in quantizer.predictor.weights]
        weights[block][place] += 1
        changed = ResidualQuantizer(quantizer.config, quantizer.codebooks, Predictor((2, 6), weights))
        seen.add(dataclasses.replace(model, quantizer=changed).code_id)
    assert len(seen) == 5


def test_no_key_is_an_empty_list(tmp_path: Path) -> None:
    """A model from before there was prediction, and the same with an empty list."""
    file = (FOLDER / "vector.safetensors").read_bytes()
    parts = ModelParts.of(file)
    assert "predicted" not in parts.config["quantizer"]
    parts.config["quantizer"]["predicted"] = []
    for data in (file, parts.to_bytes()):
        model = load_bytes(data, tmp_path)
        assert model.code_id == 0xBC114E7A
        assert isinstance(model.quantizer, ResidualQuantizer) and model.quantizer.predictor is None


def refused(data: bytes, message: str, folder: Path) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        load_bytes(data, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        ([3, 5], "ends inside a group"),
        ([2, 7], "ends inside a group"),
        ([2, 6, 99], "ends inside a group"),
        ([1, 7], "first chunks"),
        ([8], "first chunks"),
        ([2, 2], "first chunks"),
        ([2, 6, 4], "first chunks"),
        # The last chunk is never predicted.
        ([2, 6, 12], "first chunks"),
        ([2, 0], "out of range"),
        ([2, -6], "out of range"),
        ([2.0, 6.0], "out of range"),
        ([True, True], "out of range"),
        (["2"], "out of range"),
        ([[2, 6]], "out of range"),
        ([1 << 16], "out of range"),
        ([None], "out of range"),
        (None, "not a usable model"),
        (2, "not a usable model"),
        # The tensors are there, and hashed only with the key.
        ([], "code id"),
        ([2], "code id"),
    ],
    ids=str,
)
def test_blocks_that_are_refused(model: Model, tmp_path: Path, predicted: Any, message: str) -> None:
    parts = ModelParts.of(model.to_bytes())
    parts.config["quantizer"]["predicted"] = predicted
    refused(parts.to_bytes(), message, tmp_path)


def test_tensors_that_are_refused(model: Model, tmp_path: Path) -> None:
    whole = ModelParts.of(model.to_bytes())
    assert whole.tensors["predict.0"]["dtype"] == "I16"
    assert whole.tensors["predict.1"]["shape"] == [7, 42, 6]
    changes: list[tuple[str, str, Any]] = [
        ("predict.0", "dtype", "F16"),
        ("predict.1", "dtype", "F16"),
        ("predict.0", "shape", [7, 2, 8]),
        ("predict.0", "shape", [112]),
        ("predict.0", "shape", [1, 7, 8, 2]),
        ("predict.1", "shape", [7, 6, 42]),
    ]
    for name, key, value in changes:
        parts = whole.copy()
        parts.tensors[name][key] = value
        refused(parts.to_bytes(), f"{name} is not int16", tmp_path)
    for name in ("predict.0", "predict.1"):
        parts = whole.copy()
        parts.tensors[f"other.{name}"] = parts.tensors.pop(name)
        refused(parts.to_bytes(), f"{name} is not int16", tmp_path)
    parts = whole.copy()
    place = parts.tensors["predict.1"]["data_offsets"][0]
    parts.data[place] ^= 1
    refused(parts.to_bytes(), "code id", tmp_path)


@pytest.mark.parametrize(
    ("mode", "message"),
    [("dvae", "in mode vq"), ("vqvae", "in mode vq"), ("ae", "predicted"), ("vae", "predicted")],
)
def test_other_modes_do_not_predict(mode: str, message: str, tmp_path: Path) -> None:
    chunked = PriorConfig(tables=1, embedding=1, hidden=(1, 1), group_hidden=1, chunks=(1,), window=1)
    parts = ModelParts.of(make_model(mode, blocks=((2, 1),), prior=chunked).to_bytes())
    parts.config["quantizer"]["predicted"] = [1]
    refused(parts.to_bytes(), message, tmp_path)
