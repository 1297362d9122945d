"""The integer prior: native against NumPy, causality of its passes, tables, the float twin."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vqcodec.entropy import StreamDecoder, StreamEncoder, TableModels, ideal_bits
from vqcodec.errors import CorruptError, ModelFileError
from vqcodec.model import Model, load_model
from vqcodec.prior import PASSES, expand_tables, list_passes, store_tables
from vqcodec.train.prior import CodedPhoto, StageNet, _windows, select_tables, symbol_energies


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


def _random_indices(model: Model, height: int, width: int, seed: int) -> np.ndarray:
    quantizer = model.config.quantizer
    random = np.random.default_rng(seed)
    shape = (quantizer.stages, quantizer.groups, height, width)
    index = random.integers(0, quantizer.codewords, shape)
    return np.where(random.random(shape) < 0.6, 0, index).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (17, 5), (66, 3), (7, 130)])
def test_passes_cover_every_symbol_once(model: Model, height: int, width: int) -> None:
    groups = model.config.quantizer.groups
    seen = np.zeros((groups, height, width), int)
    for step in list_passes(model.config.prior, groups, height, width):
        seen[step.groups, step.rows, step.columns] += 1
        assert step.tiles[0] == 0 and step.tiles[-1] == len(step.positions)
        for tile in range(len(step.tiles) - 1):
            inside = step.positions[step.tiles[tile] : step.tiles[tile + 1]] // 64
            assert len(np.unique(inside, axis=0)) <= 1
    assert (seen == 1).all()


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (33, 66)])
def test_native_and_numpy_choose_the_same_tables(model: Model, size: tuple[int, int]) -> None:
    index = _random_indices(model, *size, seed=1)
    results = []
    for native in (None, False):
        context = model.prior.context(*size, native=native)
        chosen = []
        for stage in range(len(index)):
            context.begin_stage(7)
            for step in context.passes:
                chosen.append(context.select(step))
                context.update(step, index[stage][step.groups, step.rows, step.columns])
            context.end_stage()
        results.append(chosen)
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)


def test_a_choice_depends_on_decoded_symbols_only(model: Model) -> None:
    """Changing what a pass has not decoded yet must not change its tables."""
    height, width = 9, 11
    index = _random_indices(model, height, width, seed=2)
    changed_any = False
    for target in range(3 * PASSES):
        other = index.copy()
        passes = list_passes(model.config.prior, model.config.quantizer.groups, height, width)
        for later in passes[target:]:
            part = other[1][later.groups, later.rows, later.columns]
            other[1][later.groups, later.rows, later.columns] = (part + 1) % 32
        chosen = []
        for variant in (index, other):
            context = model.prior.context(height, width)
            for stage in (0, 1):
                context.begin_stage(7)
                for number, step in enumerate(context.passes):
                    tables = context.select(step)
                    if stage == 1 and number == target:
                        chosen.append(tables)
                    values = variant[stage][step.groups, step.rows, step.columns]
                    context.update(step, values)
                context.end_stage()
        assert np.array_equal(*chosen)
    photo = CodedPhoto(index, 16)
    moved = CodedPhoto(np.where(index > 0, (index + 5) % 32, index).astype(np.uint8), 16)
    for a, b in zip(select_tables(model.prior, photo), select_tables(model.prior, moved), strict=True):
        changed_any |= not np.array_equal(a, b)
    assert changed_any, "the prior looks at nothing"


def test_expanded_tables_are_complete_and_monotone() -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (3, 4, 50)).astype(np.uint8)
    codes[..., 7] = 0
    frequency = expand_tables(codes)
    assert (frequency.sum(-1) == 2**24).all()
    assert frequency.min() >= 1
    order = np.argsort(codes, axis=-1, kind="stable")
    assert (np.diff(np.take_along_axis(frequency, order, -1), axis=-1) <= 1).all()


def test_expanded_tables_are_pinned() -> None:
    """The expansion is part of the format: these numbers never change."""
    codes = np.array([[0, 10, 15, 200, 255], [3, 3, 3, 3, 3]], np.uint8)
    assert expand_tables(codes).tolist() == [
        [9051375, 4525687, 3200144, 9, 1],
        [3355444, 3355443, 3355443, 3355443, 3355443],
    ]


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ModelFileError):
        expand_tables(np.full((1, 4), 255, np.uint8))


def test_stored_tables_lose_little() -> None:
    random = np.random.default_rng(1)
    probability = random.dirichlet(np.full(256, 0.1), 20)
    frequency = expand_tables(store_tables(probability)) / 2**24
    divergence = (probability * np.log2(np.maximum(probability, 1e-30) / frequency)).sum(-1)
    assert divergence.max() < 0.002


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (7, 1000)])
def test_streams_round_trip_near_the_ideal(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(2)
    codes = random.integers(0, 120, (shape[0], 5, 64)).astype(np.uint8)
    codes[..., 0] = 0
    frequencies = expand_tables(codes)
    models = TableModels(frequencies)
    tables = random.integers(0, 5, shape).astype(np.uint8)
    cumulative = frequencies.cumsum(-1) / 2**24
    draw = random.random(shape)
    index = (draw[..., None] > cumulative[np.arange(shape[0])[:, None], tables]).sum(-1)
    index = index.astype(np.uint8)
    encoder = StreamEncoder(models)
    encoder.encode(0, index[:, :20], tables[:, :20])
    encoder.encode(0, index[:, 20:], tables[:, 20:])
    data = encoder.finish()
    decoder = StreamDecoder(models, data)
    assert np.array_equal(decoder.decode(0, tables[:, :20]), index[:, :20])
    assert np.array_equal(decoder.decode(0, tables[:, 20:]), index[:, 20:])
    decoder.check_end()
    ideal = ideal_bits(frequencies, index, tables)
    assert ideal - 8 <= 8 * len(data) <= 1.005 * ideal + 40


def test_a_stream_is_pinned() -> None:
    """The entropy coder's output is part of the format: these bytes never change."""
    models = TableModels(expand_tables(np.array([[[0, 10, 20, 30]]], np.uint8)))
    encoder = StreamEncoder(models)
    encoder.encode(0, np.arange(24, dtype=np.uint8)[None] % 4, np.zeros((1, 24), np.uint8))
    assert encoder.finish().hex() == "794d9c6ac164b638"


def test_left_over_data_is_corrupt() -> None:
    models = TableModels(expand_tables(np.zeros((1, 1, 4), np.uint8)))
    decoder = StreamDecoder(models, bytes(range(1, 41)))
    decoder.decode(0, np.zeros((1, 3), np.uint8))
    with pytest.raises(CorruptError):
        decoder.check_end()


def test_the_float_twin_agrees_with_its_export(model: Model) -> None:
    """Expected bits of the twin, hardened to its best table, are near those of the integers."""
    torch.manual_seed(0)
    config = model.config
    norms = symbol_energies(model.quantizer)
    tensors = dict(model.prior.tensors)
    index = _random_indices(model, 8, 8, seed=4)
    for stage in range(config.quantizer.stages):
        net = StageNet(config.prior, config.quantizer, stage, norms)
        with torch.no_grad():
            for name, weight in net.weights.items():
                if "linear4" in name:
                    weight.mul_(60)  # one table clearly wins, so softmax is a choice
            net.tables.normal_(0, 2)
        tensors.update(net.export())
        integer = model.prior.replace({k: v for k, v in tensors.items() if k in net.export()})
        photo = CodedPhoto(index[: stage + 1], 8 * (stage + 1))
        tables = select_tables(integer, photo)[stage]
        groups = np.arange(config.quantizer.groups)[:, None, None]
        exact = integer.bits[stage][groups, tables, index[stage]].sum()
        total = 0.0
        for spatial in range(PASSES):
            batch = torch.from_numpy(index[None, : stage + 1].astype(np.int64))
            with torch.no_grad():
                total += float(net(batch, torch.tensor([7]), spatial).sum())
        assert total == pytest.approx(exact, rel=0.02)


def test_a_stream_decodes_by_the_document() -> None:
    """The range decoder of docs/format.md, written from its text in plain integers."""
    random = np.random.default_rng(3)
    frequencies = expand_tables(random.integers(0, 150, (2, 3, 40)).astype(np.uint8))
    tables = random.integers(0, 3, (2, 400)).astype(np.uint8)
    index = random.integers(0, 40, (2, 400)).astype(np.uint8)
    encoder = StreamEncoder(TableModels(frequencies))
    encoder.encode(0, index, tables)
    data = encoder.finish()
    data += bytes(-len(data) % 4)
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    words.reverse()
    mask = 2**64 - 1

    def next_word() -> int:
        return words.pop() if words else 0

    low, width, point = 0, mask, next_word() << 32 | next_word()
    decoded = np.empty_like(index)
    for group in range(2):
        for table in range(3):
            cumulative = np.concatenate([[0], frequencies[group, table].cumsum()])
            for position in np.flatnonzero(tables[group] == table):
                scale = width >> 24
                quantile = ((point - low) & mask) // scale
                symbol = int(np.searchsorted(cumulative, quantile, side="right")) - 1
                decoded[group, position] = symbol
                low = (low + scale * int(cumulative[symbol])) & mask
                width = scale * int(frequencies[group, table, symbol])
                if width < 2**32:
                    low, width = low << 32 & mask, width << 32
                    point = (point << 32 | next_word()) & mask
    assert np.array_equal(decoded, index)
    assert not words


@pytest.mark.parametrize("pooled", [False, True])
def test_windows_of_a_pooled_stage_begin_where_blocks_do(pooled: bool) -> None:
    """As in a grid, everything of them is in the first of the passes."""
    index = np.zeros((1, 2, 40, 33), np.uint8)
    index[:, :, ::2, ::2] = 1
    photos = [CodedPhoto(index, 8)]
    windows, _ = _windows(photos, 0, 50, 8, np.random.default_rng(0), pooled=pooled)
    assert bool(windows[:, :, :, ::2, ::2].all()) is pooled
    assert bool(windows[:, :, :, 1::2].any() or windows[..., 1::2].any()) is not pooled
