"""The golden files in tests/golden/: what they are, and how they are read and coded again.

Purpose: what `make_golden.py` writes and `test_golden.py` holds against the package.

Layout: the folder; one entry of the manifest for each file and each bad file; reading; coding of
given symbols.

    vector.safetensors, uniform.safetensors, predicted.safetensors, pooled.safetensors   the models
    NAME.vqc, NAME.npz, NAME.png   a file, its symbols (stage0, stage1, ...) and its picture; where its
                                   model predicts or pools, the archive of symbols has the latent as well
    bad/NAME.vqc                   a file that a reader must refuse
    manifest.json                  {"models": [...], "files": [...], "bad": [...]}

Invariants: nothing here is pickled, and the manifest names every other file of the folder.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqcodec.bottleneck import SymbolPlane, VectorBottleneck, choose_plane
from vqcodec.container import pack_tiles
from vqcodec.escapes import split_values
from vqcodec.prior import Pass
from vqcodec.quantizer import SCALE, level_in
from vqcodec.uniform import UniformBottleneck, level_of

FOLDER = Path(__file__).with_name("golden")
MANIFEST = "manifest.json"
BAD = "bad"
MODELS = ("vector", "uniform", "predicted", "pooled")


@dataclass(frozen=True)
class ModelFile:
    """A model of the golden files; its tensors' code_id as eight hexadecimal digits."""

    file: str
    bytes: int
    sha256: str
    code_id: str


@dataclass(frozen=True)
class GoldenFile:
    """A file that decodes, and what it shows.

    model: a name of MODELS. as_written: false where a reader must take the file, but a writer would
    have spelt it otherwise.
    """

    file: str
    bytes: int
    sha256: str
    feature: str
    model: str
    mode: str
    width: int
    height: int
    grey: bool
    rate: int
    as_written: bool

    @property
    def name(self) -> str:
        return Path(self.file).stem


@dataclass(frozen=True)
class BadFile:
    """A file that must be refused.

    model: what to try it with. error: name of the class; message: what its words contain. container:
    whether the container alone shows the fault.
    """

    file: str
    bytes: int
    sha256: str
    fault: str
    model: str
    error: str
    message: str
    container: bool


@dataclass(frozen=True)
class Manifest:
    """What the folder holds."""

    models: list[ModelFile]
    files: list[GoldenFile]
    bad: list[BadFile]


def load_manifest(folder: Path = FOLDER) -> Manifest:
    """The manifest of the committed files."""
    values: dict[str, list[dict[str, Any]]] = json.loads((folder / MANIFEST).read_text("utf-8"))
    return Manifest(
        models=[ModelFile(**entry) for entry in values["models"]],
        files=[GoldenFile(**entry) for entry in values["files"]],
        bad=[BadFile(**entry) for entry in values["bad"]],
    )


def load_symbols(path: Path | BinaryIO) -> list[NDArray[np.integer]]:
    """The symbols (G, H, W) of each stage, from an archive or its bytes as a file."""
    with np.load(path, allow_pickle=False) as archive:
        stages = sum(name.startswith("stage") for name in archive.files)
        return [archive[f"stage{stage}"] for stage in range(stages)]


def load_latent(path: Path | BinaryIO) -> NDArray[np.int32] | None:
    """The latent (C, H, W) in quarters of a grey level, if the archive has it."""
    with np.load(path, allow_pickle=False) as archive:
        return archive["latent"] if "latent" in archive.files else None


def decode_latent(
    bottleneck: VectorBottleneck | UniformBottleneck, symbols: Sequence[NDArray[np.integer]], bucket: int
) -> NDArray[np.int32]:
    """The latent (C, H, W) of a vector mode, in quarters of a grey level."""
    return (bottleneck.from_symbols(symbols, bucket) * SCALE).int().numpy()


def load_pixels(path: Path | BinaryIO) -> NDArray[np.uint8]:
    """The samples of a stored picture, (H, W) or (H, W, 3), from a file."""
    with Image.open(path) as image:
        return np.asarray(image)


def pictures_agree(pixels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> bool:
    """Whether two decoded pictures differ by rounding only: by one level, in at most 0.1 % of the
    samples. Below a thousand samples, one may."""
    if pixels.shape != expected.shape:
        return False
    difference = np.abs(pixels.astype(np.int16) - expected)
    return int(difference.max()) <= 1 and np.count_nonzero(difference) <= max(1, difference.size // 1000)


def code_symbols(
    bottleneck: VectorBottleneck | UniformBottleneck,
    symbols: Sequence[NDArray[np.integer]],
    bucket: int,
) -> dict[int, bytes]:
    """The payload of each stage that the writer makes of given symbols."""
    context = bottleneck.prior.context(*symbols[0].shape[1:])
    planes = []
    for stage, index in enumerate(symbols):
        if isinstance(bottleneck, UniformBottleneck):
            level: int | None = level_of(bucket, bottleneck.buckets)
            coded = split_values(index)
        else:
            level = level_in(bucket, stage)
            coded = index.astype(np.uint8)
        assert level is not None
        context.begin_stage(level)

        def given(step: Pass, tables: NDArray[np.uint8], coded: NDArray = coded) -> NDArray[np.uint8]:
            assert tables.shape == (step.groups.stop - step.groups.start, len(step.positions))
            return coded[step.groups, step.rows, step.columns]

        _, tables = choose_plane(context, given)
        planes.append(SymbolPlane(stage, index, tables, 0.0))
    streams = bottleneck.write(planes)
    return {stage: pack_tiles(parts) for stage, parts in sorted(streams.items())}
