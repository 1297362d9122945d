"""Makes the golden files in tests/golden/.

    python tests/make_golden.py                      the files, with the committed models
    python tests/make_golden.py --models PICTURES    before that, models are trained on a folder of
                                                     pictures: those not there yet, or all with --replace
    python tests/make_golden.py --keep               whatever has changed stays as it is there
    python tests/make_golden.py --replace            whatever has changed replaces what was there

Purpose: golden files pin the format. Files that exist must come out as they are; new ones are added.
Unless told --keep or --replace, nothing is written if any of them differs: a changed file is a changed
format, or another encoder's choice, and somebody has to decide which. Encoders choose by floating point,
so on another machine a file of a picture may differ that is as good; and later encoders choose otherwise.

Layout: the models; what goes into the folder; writing it.

Invariants: the same machine, models and source give the same bytes. Every file was decoded to the
symbols that went into it, and every bad file refused as the manifest says, before anything is written.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from golden_cases import (
    Case,
    list_coded,
    list_pooled,
    list_pooled_coded,
    list_predicted,
    list_predicted_coded,
    list_uniform,
    list_vector,
)
from golden_faults import Fault, list_coded_faults, list_container_faults
from golden_files import (
    BAD,
    FOLDER,
    MANIFEST,
    MODELS,
    BadFile,
    GoldenFile,
    Manifest,
    ModelFile,
    decode_latent,
    load_pixels,
    pictures_agree,
)
from PIL import Image

from vqcodec import errors
from vqcodec.codec import Codec, load_codec
from vqcodec.container import MODE_NAMES, read_container, read_header
from vqcodec.files import write_atomically
from vqcodec.quantizer import QuantizerConfig
from vqcodec.train import train_model
from vqcodec.train.settings import PRESETS, TrainConfig, tiny_config

_MODES = {"vector": "vq", "uniform": "ae", "predicted": "vq", "pooled": "vqvae2"}
_STEPS = 3000
_SEED = 7


# --- models --------------------------------------------------------------------------------------


def vector_config() -> TrainConfig:
    """Three stages of groups of one, two and four channels in two chunks."""
    tiny = tiny_config()
    return dataclasses.replace(
        tiny,
        transform=dataclasses.replace(tiny.transform, channels=12, synthesis_widths=(8, 8, 4), rates=24),
        quantizer=QuantizerConfig(
            blocks=((2, 1), (1, 2), (2, 4)),
            codewords=24,
            mu=(1600.0, 300.0, 60.0),
            first=(12000.0, 2400.0, 400.0),
            last=(930.0, 200.0, 40.0),
        ),
        prior=dataclasses.replace(tiny.prior, tables=6, chunks=(2,)),
        batch=4,
        smoothing=0.99,
        warmup_steps=20,
    )


def uniform_config() -> TrainConfig:
    """Twelve channels in three chunks, three tables each: see `preset_config`."""
    tiny = tiny_config()
    return dataclasses.replace(
        tiny,
        transform=dataclasses.replace(
            tiny.transform, channels=12, analysis_widths=(8, 8, 4), synthesis_widths=(8, 8, 4)
        ),
        quantizer=QuantizerConfig(blocks=((12, 1),)),
        prior=dataclasses.replace(tiny.prior, tables=6),
        batch=4,
        smoothing=0.99,
        warmup_steps=20,
    )


def predicted_config() -> TrainConfig:
    """Two stages, and three predicted blocks: a group of one channel, one of one and one of two, one of
    four. The last group is not predicted. Its networks are linear: they add nothing to the format."""
    vector = vector_config()
    linear = (0, 0, 0)
    return dataclasses.replace(
        vector,
        transform=dataclasses.replace(
            vector.transform, analysis_depths=linear, synthesis_depths=linear, rates=0
        ),
        quantizer=QuantizerConfig(
            blocks=((2, 1), (1, 2), (2, 4)),
            codewords=16,
            mu=(1600.0, 200.0),
            first=(12000.0, 2000.0),
            last=(900.0, 150.0),
            predicted=(1, 3, 4),
        ),
        prior=dataclasses.replace(vector.prior, tables=4, hidden=(8, 8), chunks=(1, 3, 4)),
        # Eight positions a side, so that a crop has positions of every class.
        crop=128,
        batch=2,
    )


def pooled_config() -> TrainConfig:
    """Two stages, the first of them pooled, of groups of one, two and four channels; linear networks."""
    predicted = predicted_config()
    return dataclasses.replace(
        predicted,
        quantizer=dataclasses.replace(predicted.quantizer, predicted=()),
        prior=dataclasses.replace(predicted.prior, chunks=(2,)),
        crop=64,
    )


def train_models(pictures: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The weights files of some of the models, by their names in `MODELS`."""
    # A sum in parts depends on their number.
    torch.set_num_threads(1)
    configs = {
        "vector": vector_config,
        "uniform": uniform_config,
        "predicted": predicted_config,
        "pooled": pooled_config,
    }
    trained = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            title = f"golden-{name}"
            PRESETS[title] = configs[name]
            out = train_model(
                data=pictures,
                out=Path(folder) / f"{title}.safetensors",
                steps=_STEPS,
                preset=title,
                mode=_MODES[name],
                seed=_SEED,
            )
            trained[name] = out.read_bytes()
    return trained


# --- the folder ----------------------------------------------------------------------------------


def make_files(codecs: dict[str, Codec], models: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Every file of the folder, by its path in it, the manifest last. AssertionError for a file that
    does not decode, or is refused, as it should."""
    vector, uniform, predicted, pooled = (codecs[name] for name in MODELS)
    model_entries: list[ModelFile] = []
    entries: list[GoldenFile] = []
    bad_entries: list[BadFile] = []
    for name, data in models.items():
        path, code_id = f"{name}.safetensors", f"{codecs[name].model.code_id:08x}"
        model_entries.append(ModelFile(path, len(data), _sha256(data), code_id))
        yield path, data
    cases = (*list_coded(vector, uniform), *list_vector(vector), *list_uniform(uniform))
    cases += (*list_predicted_coded(predicted), *list_predicted(predicted))
    cases += (*list_pooled_coded(pooled), *list_pooled(pooled))
    for case in cases:
        entry = _describe(case, codecs[case.model])
        entries.append(entry)
        yield entry.file, case.data
        yield f"{case.name}.npz", _pack_symbols(case, codecs[case.model])
        yield f"{case.name}.png", _pack_picture(codecs[case.model].decompress(case.data))
    for container, list_faults in ((True, list_container_faults), (False, list_coded_faults)):
        for fault in list_faults(vector, uniform):
            bad = _describe_bad(fault, codecs[fault.model], container=container)
            bad_entries.append(bad)
            yield bad.file, fault.data
    manifest = dataclasses.asdict(Manifest(model_entries, entries, bad_entries))
    yield MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode()


def _describe(case: Case, codec: Codec) -> GoldenFile:
    found = codec.read_indices(case.data)
    assert len(found) == len(case.symbols), case.name
    assert all(map(np.array_equal, found, case.symbols)), case.name
    header = read_header(case.data)
    return GoldenFile(
        file=f"{case.name}.vqc",
        bytes=len(case.data),
        sha256=_sha256(case.data),
        feature=case.feature,
        model=case.model,
        mode=MODE_NAMES[header.mode],
        width=header.width,
        height=header.height,
        grey=header.grey,
        rate=header.rate,
        as_written=case.as_written,
    )


def _describe_bad(fault: Fault, codec: Codec, *, container: bool) -> BadFile:
    error: type[errors.VqcError] = getattr(errors, fault.error)
    try:
        if container:
            read_container(fault.data)
        else:
            codec.read_indices(fault.data)
    except errors.VqcError as caught:
        assert type(caught) is error and fault.message in str(caught), f"{fault.name}: {caught!r}"
    else:
        raise AssertionError(f"{fault.name} is not refused")
    return BadFile(
        file=f"{BAD}/{fault.name}.vqc",
        bytes=len(fault.data),
        sha256=_sha256(fault.data),
        fault=fault.fault,
        model=fault.model,
        error=fault.error,
        message=fault.message,
        container=container,
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _pack_symbols(case: Case, codec: Codec) -> bytes:
    buffer = io.BytesIO()
    arrays = {f"stage{stage}": index for stage, index in enumerate(case.symbols)}
    quantizer = codec.model.config.quantizer
    if isinstance(quantizer, QuantizerConfig) and (quantizer.predicted or quantizer.pooled):
        # A picture would not show that a prediction was rounded otherwise.
        rate = read_header(case.data).rate
        arrays["latent"] = decode_latent(codec.model.bottleneck, case.symbols, rate)
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _pack_picture(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# --- writing -------------------------------------------------------------------------------------


def is_same(path: Path, data: bytes) -> bool:
    """Whether a file holds what `data` does: symbols and pictures by content, for other releases of
    the libraries that pack them pack them otherwise."""
    if path.suffix == ".npz":
        with np.load(path) as old, np.load(io.BytesIO(data)) as new:
            return old.files == new.files and all(
                old[name].dtype == new[name].dtype and np.array_equal(old[name], new[name])
                for name in new.files
            )
    if path.suffix == ".png":
        return pictures_agree(load_pixels(path), load_pixels(io.BytesIO(data)))
    return path.read_bytes() == data


def keep_entries(old: bytes, new: bytes) -> bytes:
    """The new manifest, with the old one's entries of the files that both have."""
    kept = {entry["file"]: entry for entries in json.loads(old).values() for entry in entries}
    merged = {
        kind: [kept.get(entry["file"], entry) for entry in entries]
        for kind, entries in json.loads(new).items()
    }
    return (json.dumps(merged, indent=1) + "\n").encode()


def update_folder(
    folder: Path, files: dict[str, bytes], *, replace: bool = False, keep: bool = False
) -> int:
    """Writes what is new; what differs or has gone only with `replace`. With `keep`, what differs stays
    as it is and is no obstacle. The exit code."""
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    new = [name for name in files if name not in there]
    differ = [n for n in files if n in there and n != MANIFEST and not is_same(folder / n, files[n])]
    gone = sorted(there - files.keys())
    for what, names in (("new", new), ("differs", differ), ("no longer made", gone)):
        for name in names:
            print(f"{what}: {name}")
    if keep and not gone:
        old = (folder / MANIFEST).read_bytes()
        files, differ = {**files, MANIFEST: keep_entries(old, files[MANIFEST])}, []
    if (differ or gone) and not replace:
        print("nothing was written; --replace accepts what differs", file=sys.stderr)
        return 1
    for name in gone:
        (folder / name).unlink()
    for name in (*new, *differ, MANIFEST):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, files[name], overwrite=True)
    print(f"{len(files)} files, {sum(map(len, files.values())):,} bytes")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the golden files in tests/golden/.")
    parser.add_argument("--models", type=Path, metavar="PICTURES", help="train models first")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--keep", action="store_true", help="leave files that differ as they are")
    choice.add_argument("--replace", action="store_true", help="accept files that differ")
    args = parser.parse_args()
    trained = {}
    if args.models is not None:
        logging.basicConfig(format="%(message)s", level=logging.INFO)
        names = [n for n in MODELS if args.replace or not (FOLDER / f"{n}.safetensors").exists()]
        trained = train_models(args.models, names)
    models = {n: trained.get(n) or (FOLDER / f"{n}.safetensors").read_bytes() for n in MODELS}
    with tempfile.TemporaryDirectory() as folder:
        codecs = {}
        for name, data in models.items():
            path = Path(folder) / f"{name}.safetensors"
            path.write_bytes(data)
            codecs[name] = load_codec(path, "cpu", precise=True)
        files = dict(make_files(codecs, models))
    return update_folder(FOLDER, files, replace=args.replace, keep=args.keep)


if __name__ == "__main__":
    sys.exit(main())
