"""The golden files that decode: pictures by formula, coded, and files put together from symbols.

Purpose: every size, mode, rate and freedom of the format that a reader may meet, once.

Layout: `Case`; pictures; files that the codec writes; files of chosen symbols, of the vector modes
and of the uniform ones; files of a model that predicts.

Invariants: no picture comes from a photograph. The symbols of a case are what went into its file, not
what was read out of it.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from golden_files import code_symbols
from numpy.typing import NDArray
from synthetic import synthetic_picture

from vqcodec.codec import Codec
from vqcodec.container import (
    UNIFORM_MODES,
    Header,
    Section,
    pack_tiles,
    read_container,
    stage_payloads,
    stage_section,
    tile_grid,
    unpack_tiles,
    write_container,
)
from vqcodec.escapes import VALUE_MAX, VALUE_MIN
from vqcodec.model import MODES, Model
from vqcodec.quantizer import LEVELS


@dataclass(frozen=True)
class Case:
    """A file, the model's part of its name, and the symbols (G, H, W) of each stage up to its last.

    feature, as_written: as in `golden_files.GoldenFile`.
    """

    name: str
    model: str
    feature: str
    data: bytes
    symbols: Sequence[NDArray[np.integer]]
    as_written: bool = True


def model_key(codec: Codec) -> str:
    """The name of a golden model among `golden_files.MODELS`."""
    return codec.model.config.name.removeprefix("golden-")


# --- pictures ------------------------------------------------------------------------------------


def ramp(height: int, width: int) -> NDArray[np.uint8]:
    """Grey from the upper left corner to the lower right one."""
    rows, columns = np.mgrid[0:height, 0:width]
    return (255 * (rows + columns) // max(1, height + width - 2)).astype(np.uint8)


def disc(height: int, width: int) -> NDArray[np.uint8]:
    """A light disc on a dark ground, grey."""
    rows, columns = np.mgrid[0:height, 0:width]
    inside = (rows - height // 2) ** 2 + (columns - width // 3) ** 2 < (min(height, width) // 3) ** 2
    return np.where(inside, 214, 96).astype(np.uint8)


def extreme(height: int, width: int) -> NDArray[np.uint8]:
    """Fields of 16x16 pixels in turn black and white, every third one with its blue inverted."""
    rows, columns = np.mgrid[0:height, 0:width] // 16
    picture = np.where((rows + columns) % 2 == 1, 255, 0).astype(np.uint8)[..., None].repeat(3, 2)
    coloured = (rows + columns) % 3 == 0
    picture[..., 2][coloured] = 255 - picture[..., 2][coloured]
    return picture


def flat_with_marks(height: int, width: int) -> NDArray[np.uint8]:
    """Mid-grey with a dark square in the upper left corner and a light one in the lower right."""
    picture = np.full((height, width), 128, np.uint8)
    picture[:40, :48] = 20
    picture[height - 30 :, width - 30 :] = 236
    return picture


# --- files that the codec writes -----------------------------------------------------------------


def list_coded(vector: Codec, uniform: Codec) -> Iterator[Case]:
    """Sizes, grey and colour, qualities and modes."""
    dvae, vqvae = _in_mode(vector, "dvae"), _in_mode(vector, "vqvae")
    red = np.array([[[255, 0, 40]]], np.uint8)
    grey = np.full((1, 1), 77, np.uint8)

    def waves(seed: int, width: int, height: int) -> NDArray[np.uint8]:
        return synthetic_picture(seed, height, width)

    yield _coded(vector, "vq-1x1-rgb-q100", "one saturated pixel", red, 100)
    yield _coded(vector, "vq-1x1-grey-q1", "one grey pixel", grey, 1)
    yield _coded(vector, "vq-1x40-rgb-q50", "one column of pixels", waves(1, 1, 40), 50)
    yield _coded(vector, "vq-33x1-grey-q75", "one row of pixels", ramp(1, 33), 75)
    yield _coded(vector, "vq-16x16-rgb-q25", "one whole latent position", waves(2, 16, 16), 25)
    yield _coded(vector, "vq-17x31-grey-q100", "latent positions used in part", disc(31, 17), 100)
    yield _coded(vector, "vq-64x48-rgb-q50", "whole latent positions", waves(3, 64, 48), 50)
    yield _coded(vector, "vq-97x61-rgb-q100", "odd sides, the best quality", waves(4, 97, 61), 100)
    yield _coded(vector, "vq-97x61-grey-q1", "the lowest quality", disc(61, 97), 1)
    yield _coded(vector, "vq-1040x24-rgb-q75", "two prior tiles", waves(5, 1040, 24), 75)
    marks = flat_with_marks(1030, 1030)
    yield _coded(vector, "vq-1030x1030-grey-q50", "prior tiles in two rows", marks, 50)
    yield _coded(dvae, "dvae-64x48-rgb-q25", "mode 3", waves(6, 64, 48), 25)
    yield _coded(vqvae, "vqvae-48x33-grey-q75", "mode 4, grey", disc(33, 48), 75)
    yield _coded(vqvae, "vqvae-64x48-rgb-q100", "mode 4", waves(7, 64, 48), 100)
    yield _coded(uniform, "ae-1x1-rgb-q50", "mode 1, one pixel", red, 50)
    yield _coded(uniform, "ae-33x1-grey-q25", "mode 1, one row of pixels", ramp(1, 33), 25)
    yield _coded(uniform, "ae-97x61-rgb-q1", "mode 1, the lowest quality", waves(8, 97, 61), 1)
    yield _coded(uniform, "ae-97x61-rgb-q75", "mode 1, odd sides", waves(4, 97, 61), 75)
    yield _coded(uniform, "ae-1040x24-grey-q50", "mode 1, two prior tiles", ramp(24, 1040), 50)
    yield _coded(uniform, "ae-64x48-rgb-q100", "mode 1, escapes", extreme(48, 64), 100)
    yield _coded(uniform, "vae-64x48-rgb-q50", "mode 2", waves(6, 64, 48), 50, "vae")
    yield _coded(uniform, "vae-17x31-grey-q100", "mode 2, grey", extreme(31, 17)[..., 0], 100, "vae")
    for mode in ("dae", "wae", "hvae"):
        yield _coded(uniform, f"{mode}-31x17-rgb-q40", f"mode {MODES[mode]}", waves(9, 31, 17), 40, mode)
    for mode in ("fsq", "rvq"):
        coder = _in_mode(vector, mode)
        yield _coded(coder, f"{mode}-31x17-rgb-q90", f"mode {MODES[mode]}", waves(9, 31, 17), 90)


def _in_mode(codec: Codec, mode: str) -> Codec:
    """A codec with the same tensors that chooses indices as another vector mode does."""
    model = codec.model
    config = dataclasses.replace(model.config, mode=mode)
    parts = (model.analysis, model.synthesis, model.quantizer, model.prior)
    return Codec(Model(config, *parts), torch.device("cpu"))


def _coded(
    codec: Codec,
    name: str,
    feature: str,
    picture: NDArray[np.uint8],
    quality: int,
    mode: str | None = None,
) -> Case:
    """The codec's own file of a picture; mode: the number that its header has instead."""
    data = codec.compress(picture, quality=quality)
    header, sections = read_container(data)
    if mode is not None:
        data = write_container(dataclasses.replace(header, mode=MODES[mode]), sections)
    # Behind the last stage in the file all is zero, and escapes are no stage of symbols.
    last = max(stage_payloads(sections), default=0)
    symbols = codec.analyse(picture, quality=quality).indices[: last + 1]
    return Case(name, model_key(codec), feature, data, symbols)


# --- files of chosen symbols, vector modes -------------------------------------------------------


def list_vector(codec: Codec) -> Iterator[Case]:
    """What only chosen indices, or changed files, show of the vector modes."""
    header = _header(codec, 24, 20, 5, grey=True)
    feature = "no sections: all symbols are zero"
    yield _chosen(codec, "vq-no-sections", feature, header, _zeros(codec, header))
    yield from _list_gaps(codec)
    yield from _list_words(codec)
    yield from _list_indices(codec)
    yield from _list_optional(codec)
    yield from _list_cut(codec)
    yield from _list_empty_streams(codec)


def _list_gaps(codec: Codec) -> Iterator[Case]:
    """Stages that are zero."""
    header = _header(codec, 40, 56, codec.model.bottleneck.buckets)
    first, second, third = _draw_indices(codec, header, 3, seed=1)
    zero = np.zeros_like(first)
    gap = _chosen(codec, "vq-stage-missing", "stages 0 and 2 without 1", header, [first, zero, third])
    yield gap
    feature = "a stage in the file though all its symbols are zero"
    yield _respelt(gap, 1, b"", name="vq-zero-stage", feature=feature)
    yield _chosen(codec, "vq-first-stage-missing", "stage 1 without 0", header, [zero, second])


def _list_words(codec: Codec) -> Iterator[Case]:
    """The end of a stream."""
    header = _header(codec, 16, 32, 8)
    for seed in itertools.count():
        indices = _draw_indices(codec, header, 1, seed=seed)
        feature = "a stream less the zero bytes of its last word"
        short = _chosen(codec, "vq-short-word", feature, header, indices)
        payload = stage_payloads(read_container(short.data)[1])[0]
        if len(payload) % 4:
            break
    yield short
    feature = "a stream with the zero bytes of its last word"
    padded = payload + bytes(-len(payload) % 4)
    yield _respelt(short, 0, padded, name="vq-whole-word", feature=feature)
    feature = "a stream with one more word, of zeros, which the decoder reads"
    yield _respelt(short, 0, padded + bytes(4), name="vq-word-more", feature=feature)


def _list_indices(codec: Codec) -> Iterator[Case]:
    """Indices and rate buckets that no picture leads to."""
    for bucket in (3, 13, 22):
        header = _header(codec, 50, 34, bucket)
        indices = _draw_indices(codec, header, -(-bucket // LEVELS), seed=bucket, zeros=0.8)
        feature = f"rate bucket {bucket}, indices as no picture has them"
        yield _chosen(codec, f"vq-bucket-{bucket}", feature, header, indices)
    quantizer = codec.model.config.quantizer
    header = _header(codec, 96, 80, codec.model.bottleneck.buckets)
    planes = np.resize(np.arange(quantizer.codewords, dtype=np.uint8), (3 * quantizer.groups, 30))
    assert all(len(np.unique(plane)) == quantizer.codewords for plane in planes)
    every = np.random.default_rng(2).permuted(planes, axis=1).reshape(3, quantizer.groups, 5, 6)
    feature = "every index of every group and stage"
    yield _chosen(codec, "vq-every-index", feature, header, list(every))


def _list_optional(codec: Codec) -> Iterator[Case]:
    """Optional sections of unknown type."""
    header = _header(codec, 33, 47, codec.model.bottleneck.buckets, mode="vqvae")
    whole = _chosen(codec, "vqvae-whole", "", header, _draw_indices(codec, header, 3, seed=3))
    yield _with_optional(whole, name="vqvae-optional-sections")
    header = _header(codec, 16, 16, 8)
    data = write_container(header, [Section(0x30, False, b"only this")])
    feature = "an optional section of unknown type and no stage"
    yield Case("vq-optional-alone", model_key(codec), feature, data, _zeros(codec, header))


def _list_cut(codec: Codec) -> Iterator[Case]:
    """A file, and the same less its last stages by the steps that docs/format.md names."""
    header = _header(codec, 33, 47, 21)
    indices = _draw_indices(codec, header, 3, seed=4)
    whole = _chosen(codec, "vq-whole", "the file that vq-cut-to-... are cut from", header, indices)
    yield whole
    _, sections = read_container(whole.data)
    for keep in (2, 1, 0):
        data = write_container(header, sections[:keep])
        # Without any stage there is still the first one, all zero.
        symbols = whole.symbols[:keep] or _zeros(codec, header)
        feature = f"cut to {keep} of {len(sections)} stages"
        yield Case(f"vq-cut-to-{keep}", whole.model, feature, data, symbols)


def _list_empty_streams(codec: Codec) -> Iterator[Case]:
    """Tiles that are zero in a stage that is not."""
    header = _header(codec, 1040, 20, 16)
    first, second = _draw_indices(codec, header, 2, seed=5, zeros=0.97)
    first[..., 64:], first[0, 0, 0] = 0, 1
    second[..., :64], second[0, 0, 64] = 0, 5
    tiles = _chosen(codec, "vq-two-tiles", "", header, [first, second])
    streams = {s: unpack_tiles(p, 2) for s, p in stage_payloads(read_container(tiles.data)[1]).items()}
    feature = "the empty stream of the first tile, in place of words of zero"
    shorter = pack_tiles([b"", streams[1][1]])
    yield _respelt(tiles, 1, shorter, name="vq-empty-first-stream", feature=feature)
    feature = "the empty stream of the last tile, in place of words of zero"
    shorter = pack_tiles([streams[0][0], b""])
    yield _respelt(tiles, 0, shorter, name="vq-empty-last-stream", feature=feature)


def _header(
    codec: Codec, width: int, height: int, rate: int, *, mode: str | None = None, grey: bool = False
) -> Header:
    """A header that names the codec's model."""
    number = MODES[mode or codec.model.config.mode]
    return Header(number, grey, rate, width, height, codec.model.code_id)


def _zeros(codec: Codec, header: Header) -> list[NDArray[np.integer]]:
    """The symbols of a file without stages."""
    grid = tile_grid(header.width, header.height)
    uniform = header.mode in UNIFORM_MODES
    shape = codec.model.config.quantizer.groups, grid.rows, grid.cols
    return [np.zeros(shape, np.int32 if uniform else np.uint8)]


def _draw_indices(
    codec: Codec, header: Header, stages: int, *, seed: int, zeros: float = 0.5
) -> list[NDArray[np.uint8]]:
    """Indices of the first stages, drawn evenly, but for a share that is zero."""
    random = np.random.default_rng(seed)
    grid = tile_grid(header.width, header.height)
    quantizer = codec.model.config.quantizer
    shape = (stages, quantizer.groups, grid.rows, grid.cols)
    drawn = random.integers(0, quantizer.codewords, shape) * (random.random(shape) >= zeros)
    return list(drawn.astype(np.uint8))


def _chosen(
    codec: Codec, name: str, feature: str, header: Header, symbols: Sequence[NDArray[np.integer]]
) -> Case:
    """The file of given symbols."""
    payloads = code_symbols(codec.model.bottleneck, symbols, header.rate)
    sections = [stage_section(stage, payload) for stage, payload in payloads.items()]
    return Case(name, model_key(codec), feature, write_container(header, sections), symbols)


def _respelt(case: Case, stage: int, payload: bytes, *, name: str, feature: str) -> Case:
    """The case with a stage's payload as no writer spells it, of the same meaning."""
    header, sections = read_container(case.data)
    sections = [section for section in sections if section.stage != stage]
    sections = sorted([*sections, stage_section(stage, payload)], key=lambda section: section.type)
    data = write_container(header, sections)
    return dataclasses.replace(case, name=name, feature=feature, data=data, as_written=False)


def _with_optional(case: Case, *, name: str) -> Case:
    """The case with sections of unknown type before, between and behind its stages."""
    header, sections = read_container(case.data)
    extras = [Section(0x00, False, b"first"), Section(0x41, False, b""), Section(0x0F, False, bytes(130))]
    mixed: list[Section] = []
    for number, section in enumerate(sections):
        mixed += [*extras[number : number + 1], section]
    mixed += [Section(0x20, False, b"\xff"), Section(0x7F, False, b"a"), Section(0x7F, False, b"b")]
    data = write_container(header, mixed)
    feature = "optional sections of unknown type before, between and behind the stages"
    return dataclasses.replace(case, name=name, feature=feature, data=data)


# --- files of chosen symbols, uniform modes ------------------------------------------------------


def list_uniform(codec: Codec) -> Iterator[Case]:
    """What only chosen values, or changed files, show of the uniform modes."""
    channels = codec.model.config.quantizer.groups

    header = _header(codec, 24, 20, 13, mode="vae", grey=True)
    feature = "no sections: all values are zero"
    yield _chosen(codec, "vae-no-sections", feature, header, _zeros(codec, header))

    header = _header(codec, 80, 90, 14)
    sizes = np.resize(np.arange(-127, 128, dtype=np.int32), channels * 30)
    values = np.random.default_rng(6).permuted(sizes).reshape(channels, 6, 5)
    plain = _chosen(codec, "ae-plain-values", "every value that needs no escape", header, [values])
    yield plain
    feature = "a stage of escapes that is empty"
    yield _respelt(plain, 1, b"", name="ae-empty-escapes", feature=feature)

    header = _header(codec, 1040, 16, 1)
    values = np.zeros((channels, 1, 65), np.int32)
    values[:, 0, 0:60:5] = np.random.default_rng(7).integers(-3, 4, (channels, 12))
    feature = "an empty stream, of a tile without symbols but zero"
    empty = _chosen(codec, "ae-empty-last-stream", feature, header, [values])
    assert not unpack_tiles(stage_payloads(read_container(empty.data)[1])[0], 2)[1]
    yield empty
    yield from _list_escapes(codec, channels)


def _list_escapes(codec: Codec, channels: int) -> Iterator[Case]:
    """Values beyond the alphabet, in two tiles."""
    header = _header(codec, 1040, 20, 88)
    values = np.zeros((channels, 2, 65), np.int32)
    values[0, 0, :8] = (127, 128, -127, -128, 191, 192, VALUE_MAX, VALUE_MIN)
    values[1, 1, 62:] = (-300, 128, 8319)
    values[3, 0, 60:] = (8320, -8320, 1, -1, 400)
    feature = "the least and greatest values, escapes in two tiles"
    limits = _chosen(codec, "ae-escape-limits", feature, header, [values])
    yield limits
    yield _with_optional(limits, name="ae-optional-sections")
    only = np.zeros_like(values)
    only[2, 1, 64] = -1000
    header = dataclasses.replace(header, mode=MODES["vae"])
    last = _chosen(codec, "vae-escape-last-tile", "an escape in the last tile alone", header, [only])
    assert not unpack_tiles(stage_payloads(read_container(last.data)[1])[1], 2)[0]
    yield last


# --- files of a model that predicts --------------------------------------------------------------


def list_predicted_coded(codec: Codec) -> Iterator[Case]:
    """Grids of every kind of edge, and rates."""
    red = np.array([[[255, 0, 40]]], np.uint8)
    yield _coded(
        codec, "predicted-1x1-rgb-q100", "one position, predicted by earlier blocks alone", red, 100
    )
    yield _coded(codec, "predicted-1x200-grey-q60", "one column of positions", ramp(200, 1), 60)
    waves = synthetic_picture(8, 61, 97)
    yield _coded(codec, "predicted-97x61-rgb-q25", "few positions a side, one stage", waves, 25)
    # 17 columns and 9 rows: whole steps of 8 on both axes, and nothing beyond.
    feature = "every class of positions"
    yield _coded(codec, "predicted-271x143-grey-q50", feature, disc(143, 271), 50)
    waves = synthetic_picture(9, 75, 127)
    yield _coded(codec, "predicted-127x75-rgb-q100", "the best quality, predicted", waves, 100)
    yield _coded(codec, "predicted-230x190-grey-q1", "the lowest quality, predicted", ramp(190, 230), 1)


def list_predicted(codec: Codec) -> Iterator[Case]:
    """What prediction makes of chosen or missing symbols."""
    header = _header(codec, 170, 104, codec.model.bottleneck.buckets, grey=True)
    first, second = _draw_indices(codec, header, 2, seed=9)
    feature = "predictions from indices as no picture has them"
    whole = _chosen(codec, "predicted-any-indices", feature, header, [first, second])
    yield whole
    data = write_container(header, read_container(whole.data)[1][:1])
    feature = "predicted-any-indices cut to 1 of 2 stages"
    yield Case("predicted-cut-to-1", whole.model, feature, data, whole.symbols[:1])
    feature = "stage 1 without 0: everything predicted is zero"
    zero = np.zeros_like(first)
    yield _chosen(codec, "predicted-first-stage-missing", feature, header, [zero, second])
    single = np.zeros_like(first)
    single[:4, 2, 5] = codec.model.config.quantizer.codewords - 1
    header = _header(codec, 170, 104, 3, mode="vqvae")
    feature = "one position that is not zero, in mode 4: the model predicts, whatever the mode"
    yield _chosen(codec, "predicted-single", feature, header, [single])


# --- files of a model that pools its first stage -------------------------------------------------


def list_pooled_coded(codec: Codec) -> Iterator[Case]:
    """Grids of even and of odd sides."""
    red = np.array([[[200, 30, 40]]], np.uint8)
    yield _coded(codec, "pooled-1x1-rgb-q100", "a pooled stage, one pixel", red, 100)
    yield _coded(codec, "pooled-64x96-rgb-q100", "a pooled stage", synthetic_picture(5, 96, 64), 100)
    yield _coded(codec, "pooled-75x110-grey-q60", "a pooled stage, odd sides", ramp(110, 75), 60)
    yield _coded(codec, "pooled-97x61-rgb-q20", "a pooled stage alone", synthetic_picture(3, 61, 97), 20)


def list_pooled(codec: Codec) -> Iterator[Case]:
    """Indices that no encoder chooses: they change the contexts of others, and nothing of the latent."""
    header = _header(codec, 80, 48, codec.model.bottleneck.buckets)
    drawn = _draw_indices(codec, header, 2, seed=3)
    feature = "indices of a pooled stage where no block begins: contexts, and nothing of the latent"
    yield _chosen(codec, "pooled-stray-indices", feature, header, drawn)
