"""The golden files: the format, held by bytes that must not change.

Every file in tests/golden/ decodes to its stored symbols whatever the process has set, to its stored
picture but for rounding, and is coded again to the same bytes; no damage to it goes unnoticed. Every
file in tests/golden/bad/ is refused with its error. The second reader, docs/reader.py, agrees.
"""

import contextlib
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import list_pooled, list_predicted, list_uniform, list_vector
from golden_faults import list_coded_faults, list_container_faults
from golden_files import (
    BAD,
    FOLDER,
    MANIFEST,
    MODELS,
    BadFile,
    GoldenFile,
    ModelFile,
    code_symbols,
    decode_latent,
    load_latent,
    load_manifest,
    load_pixels,
    load_symbols,
    pictures_agree,
)
from make_golden import update_folder
from numpy.typing import NDArray

from vqcodec import errors
from vqcodec.bottleneck import VectorBottleneck
from vqcodec.cli import main
from vqcodec.codec import Codec, load_codec
from vqcodec.container import (
    MODE_NAMES,
    read_container,
    read_header,
    stage_payloads,
    stage_section,
    write_container,
)
from vqcodec.model import Model, read_model_header
from vqcodec.quantizer import ResidualQuantizer
from vqcodec.truncation import truncate
from vqcodec.uniform import UniformBottleneck

ROOT = Path(__file__).resolve().parents[1]
FILES = load_manifest()

each_file = pytest.mark.parametrize("entry", FILES.files, ids=lambda entry: entry.name)
each_bad_file = pytest.mark.parametrize("entry", FILES.bad, ids=lambda entry: Path(entry.file).stem)


# The latents of the other files are sums of codewords.
each_latent_file = pytest.mark.parametrize(
    "entry", [e for e in FILES.files if e.model in ("predicted", "pooled")], ids=lambda entry: entry.name
)


def data_of(entry: GoldenFile | BadFile) -> bytes:
    return (FOLDER / entry.file).read_bytes()


def symbols_of(entry: GoldenFile) -> list[NDArray[np.integer]]:
    return load_symbols(FOLDER / f"{entry.name}.npz")


def latent_of(entry: GoldenFile) -> NDArray[np.int32]:
    latent = load_latent(FOLDER / f"{entry.name}.npz")
    assert latent is not None and latent.dtype == np.int32
    return latent


def load_codecs() -> dict[str, Codec]:
    return {name: load_codec(FOLDER / f"{name}.safetensors", "cpu", precise=True) for name in MODELS}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks' threads: on pictures this small, several only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    """A codec for each of the models."""
    return load_codecs()


# --- the folder ----------------------------------------------------------------------------------


def test_the_manifest_and_the_folder_agree() -> None:
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    entries: list[ModelFile | GoldenFile | BadFile] = [*FILES.models, *FILES.files, *FILES.bad]
    named = [entry.file for entry in entries]
    assert len(set(named)) == len(named)
    beside = {f"{entry.name}.{kind}" for entry in FILES.files for kind in ("npz", "png")}
    assert there == {MANIFEST, *named, *beside}
    for entry in entries:
        data = (FOLDER / entry.file).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.bytes, entry.sha256), entry.file


def test_what_the_manifest_says(codecs: dict[str, Codec]) -> None:
    assert [entry.file for entry in FILES.models] == [f"{name}.safetensors" for name in MODELS]
    code_ids = {}
    for name, entry in zip(MODELS, FILES.models, strict=True):
        assert codecs[name].model.config.name == f"golden-{name}"
        code_ids[name] = int(entry.code_id, 16)
        assert code_ids[name] == codecs[name].model.code_id
        assert code_ids[name] == read_model_header(FOLDER / entry.file)["code_id"]
    for file in FILES.files:
        header = read_header(data_of(file))
        assert (header.width, header.height, header.grey) == (file.width, file.height, file.grey)
        assert (MODE_NAMES[header.mode], header.rate) == (file.mode, file.rate)
        assert header.code_id == code_ids[file.model]


def test_the_folder_is_small_and_shows_every_mode() -> None:
    assert sum(entry.bytes for entry in FILES.models) <= 330_000
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 750_000
    assert {entry.mode for entry in FILES.files} == set(MODE_NAMES.values())
    assert {entry.grey for entry in FILES.files} == {False, True}


# --- symbols and pictures ------------------------------------------------------------------------


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


SURROUNDINGS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "plain": contextlib.nullcontext,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "highest": lambda: matmul_precision("highest"),
    "high": lambda: matmul_precision("high"),
    "medium": lambda: matmul_precision("medium"),
    "no-mkldnn": lambda: torch.backends.mkldnn.flags(enabled=False),
}


def check_symbols(codecs: dict[str, Codec]) -> None:
    for entry in FILES.files:
        found, expected = codecs[entry.model].read_indices(data_of(entry)), symbols_of(entry)
        assert [(a.dtype, a.shape) for a in found] == [(a.dtype, a.shape) for a in expected], entry.file
        assert all(map(np.array_equal, found, expected)), entry.file


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("native", [None, False], ids=["native", "numpy"])
def test_symbols(native: bool | None, threads: int) -> None:
    codecs = load_codecs()
    for codec in codecs.values():
        set_bottleneck(codec.model, native=native, threads=threads)
    check_symbols(codecs)


def set_bottleneck(model: Model, *, native: bool | None, threads: int) -> None:
    """Gives a model a bottleneck that computes in another way; None is the native one, if built."""
    if isinstance(model.quantizer, ResidualQuantizer):
        model.bottleneck = VectorBottleneck(model.quantizer, model.prior, native=native, threads=threads)
    else:
        model.bottleneck = UniformBottleneck(model.quantizer, model.prior, native=native, threads=threads)


# torch says so itself when oneDNN is switched off.
@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("around", SURROUNDINGS)
def test_symbols_whatever_is_set(codecs: dict[str, Codec], around: str) -> None:
    with SURROUNDINGS[around]():
        check_symbols(codecs)


# torch says so itself when oneDNN is switched off.
@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("around", SURROUNDINGS)
def test_pictures(codecs: dict[str, Codec], around: str) -> None:
    for entry in FILES.files:
        # Where tiles meet in two directions, once is enough: it takes longer than all others.
        if entry.width * entry.height > 1_000_000 and around not in ("plain", "autocast"):
            continue
        with SURROUNDINGS[around]():
            image = codecs[entry.model].decompress(data_of(entry))
        assert image.size == (entry.width, entry.height)
        assert image.mode == ("L" if entry.grey else "RGB")
        assert pictures_agree(np.asarray(image), load_pixels(FOLDER / f"{entry.name}.png")), entry.file


# torch says so itself when oneDNN is switched off.
@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("around", SURROUNDINGS)
@each_latent_file
def test_latents(codecs: dict[str, Codec], entry: GoldenFile, around: str) -> None:
    bottleneck = codecs[entry.model].model.bottleneck
    with SURROUNDINGS[around]():
        found = decode_latent(bottleneck, symbols_of(entry), entry.rate)
    assert np.array_equal(found, latent_of(entry))


def test_a_pooled_stage_holds_for_whole_blocks(codecs: dict[str, Codec]) -> None:
    """Of the file whose indices are drawn at every position, those that begin a block count alone."""
    (entry,) = [e for e in FILES.files if e.name == "pooled-stray-indices"]
    bottleneck = codecs["pooled"].model.bottleneck
    first, second = symbols_of(entry)
    stray = first.copy()
    stray[:, ::2, ::2] = 0
    assert stray.any()
    alone = latent_of(entry) - decode_latent(bottleneck, [np.zeros_like(first), second], entry.rate)
    assert alone.any()
    for rows, columns in ((0, 1), (1, 0), (1, 1)):
        moved = alone[:, rows::2, columns::2]
        assert np.array_equal(moved, alone[:, ::2, ::2][:, : moved.shape[1], : moved.shape[2]])
    assert np.array_equal(
        decode_latent(bottleneck, [first - stray, second], entry.rate), latent_of(entry)
    )


def test_predicted_latents_are_more_than_codewords(codecs: dict[str, Codec]) -> None:
    """Every predicted channel of some file has something in it that no codeword put there."""
    quantizer = codecs["predicted"].model.quantizer
    assert isinstance(quantizer, ResidualQuantizer)
    plain = VectorBottleneck(
        ResidualQuantizer(quantizer.config, quantizer.codebooks), codecs["predicted"].model.prior
    )
    predicted = {}
    for entry in FILES.files:
        if entry.model == "predicted":
            symbols = symbols_of(entry)
            predicted[entry.name] = latent_of(entry) - decode_latent(plain, symbols, entry.rate)
    assert np.any([part[:8].any(axis=(1, 2)) for part in predicted.values()], axis=0).all()
    assert not any(part[8:].any() for part in predicted.values())
    nothing = {name for name, part in predicted.items() if not part.any()}
    assert nothing == {"predicted-first-stage-missing"}


def test_pictures_that_do_not_agree() -> None:
    stored = np.full((40, 50), 100, np.uint8)
    changed = stored.copy()
    changed[0, :2] = 101, 99
    assert pictures_agree(changed, stored)
    changed[1, 1] = 101
    assert not pictures_agree(changed, stored)
    changed = stored.copy()
    changed[0, 0] = 102
    assert not pictures_agree(changed, stored)
    assert not pictures_agree(stored[:, :49], stored)


# --- coding --------------------------------------------------------------------------------------


@each_file
def test_coded_again(codecs: dict[str, Codec], entry: GoldenFile) -> None:
    data, symbols = data_of(entry), symbols_of(entry)
    header, sections = read_container(data)
    codec = codecs[entry.model]
    payloads = code_symbols(codec.model.bottleneck, symbols, header.rate)
    optional = [section for section in sections if section.stage is None]
    if entry.as_written:
        assert payloads == stage_payloads(sections)
        again = [
            section if section.stage is None else stage_section(section.stage, payloads[section.stage])
            for section in sections
        ]
        assert write_container(header, again) == data
        return
    # Spelt as no writer does: what the writer makes of the symbols says the same in other bytes.
    assert payloads != stage_payloads(sections) and not optional
    written = write_container(header, [stage_section(s, p) for s, p in payloads.items()])
    found = codec.read_indices(written)
    assert len(found) == len(symbols) and all(map(np.array_equal, found, symbols))


def test_cut_files_are_made_by_truncate() -> None:
    cut = {keep: (FOLDER / f"vq-cut-to-{keep}.vqc").read_bytes() for keep in (1, 2)}
    whole = (FOLDER / "vq-whole.vqc").read_bytes()
    assert {keep: truncate(whole, stages=keep) for keep in (1, 2)} == cut
    whole, cut_once = (
        (FOLDER / f"predicted-{name}.vqc").read_bytes() for name in ("any-indices", "cut-to-1")
    )
    assert truncate(whole, stages=1) == cut_once


def test_chosen_symbols_and_bad_files_are_made_again(codecs: dict[str, Codec]) -> None:
    vector, uniform, predicted, pooled = (codecs[name] for name in MODELS)
    chosen = (*list_vector(vector), *list_uniform(uniform), *list_predicted(predicted))
    chosen += tuple(list_pooled(pooled))
    cases = {case.name: case.data for case in chosen}
    committed = {entry.name: data_of(entry) for entry in FILES.files}
    assert {name: committed.get(name) for name in cases} == cases
    faults = [*list_container_faults(vector, uniform), *list_coded_faults(vector, uniform)]
    made = {f"{BAD}/{fault.name}.vqc": fault.data for fault in faults}
    assert len(made) == len(faults)
    assert made == {entry.file: data_of(entry) for entry in FILES.bad}


# --- damage --------------------------------------------------------------------------------------


def refusal(data: bytes) -> type[errors.VqcError] | None:
    """How the container is refused, None if it is not."""
    try:
        read_container(data)
    except errors.VqcError as error:
        return type(error)
    return None


@each_file
def test_every_bit_flip_is_refused(entry: GoldenFile) -> None:
    data = data_of(entry)
    assert refusal(data) is None
    changed = bytearray(data)
    for place in range(len(data)):
        for bit in range(8):
            changed[place] ^= 1 << bit
            assert refusal(bytes(changed)) is not None, (place, bit)
            changed[place] ^= 1 << bit
    assert changed == data


@each_file
def test_every_cut_is_refused(entry: GoldenFile) -> None:
    data = data_of(entry)
    assert {refusal(data[:size]) for size in range(len(data))} == {errors.TruncatedError}


# --- bad files -----------------------------------------------------------------------------------


@each_bad_file
def test_bad_file(codecs: dict[str, Codec], entry: BadFile) -> None:
    data = data_of(entry)
    expected: type[errors.VqcError] = getattr(errors, entry.error)
    if entry.container:
        with pytest.raises(errors.VqcError) as caught:
            read_container(data)
        assert type(caught.value) is expected and entry.message in str(caught.value)
    else:
        read_container(data)
    for decode in (codecs[entry.model].decompress, codecs[entry.model].read_indices):
        with pytest.raises(errors.VqcError) as caught:
            decode(data)
        assert type(caught.value) is expected and entry.message in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted({entry.error for entry in FILES.bad}))
def test_bad_files_on_the_command_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in MODELS:
        entries = [entry for entry in FILES.bad if (entry.error, entry.model) == (name, model)]
        if not entries:
            continue
        paths = [str(FOLDER / entry.file) for entry in entries]
        weights = str(FOLDER / f"{model}.safetensors")
        code = main(["decompress", "--model", weights, "-o", str(tmp_path), *paths])
        assert code == getattr(errors, name).exit_code != 0
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert out == "" and len(lines) == len(paths)
        for line, path, entry in zip(lines, paths, entries, strict=True):
            assert line.startswith(f"vqcodec: {path}: ") and entry.message in line
    assert not list(tmp_path.iterdir())


def test_bad_files_in_a_process(tmp_path: Path) -> None:
    names = ["text", "section-crc", "size-2-31", "stream-noise", "stage-beyond-rate"]
    paths = [str(FOLDER / BAD / f"{name}.vqc") for name in names]
    weights = str(FOLDER / "vector.safetensors")
    command = [sys.executable, "-m", "vqcodec", "decompress", "--model", weights, "-o", str(tmp_path)]
    run = subprocess.run([*command, *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and run.stdout == ""
    assert [line.split(": ")[1] for line in run.stderr.splitlines()] == paths
    assert not list(tmp_path.iterdir())


# --- the second reader ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> types.ModuleType:
    """docs/reader.py as a module."""
    spec = importlib.util.spec_from_file_location("format_reader", ROOT / "docs" / "reader.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reader_models(reader: types.ModuleType) -> dict[str, object]:
    """The models as docs/reader.py reads them."""
    return {name: reader.read_model((FOLDER / f"{name}.safetensors").read_bytes()) for name in MODELS}


@each_file
def test_second_reader(
    reader: types.ModuleType, reader_models: dict[str, object], entry: GoldenFile
) -> None:
    found = reader.read_indices(data_of(entry), reader_models[entry.model])
    expected = symbols_of(entry)
    assert [(a.dtype, a.shape) for a in found] == [(a.dtype, a.shape) for a in expected]
    assert all(map(np.array_equal, found, expected))


@each_latent_file
def test_second_reader_makes_latents(
    reader: types.ModuleType, reader_models: dict[str, object], entry: GoldenFile
) -> None:
    header = reader.read_header(data_of(entry))
    found = reader.latent(header, symbols_of(entry), reader_models[entry.model])
    assert np.array_equal(found, latent_of(entry))


@each_bad_file
def test_second_reader_refuses(
    reader: types.ModuleType, reader_models: dict[str, object], entry: BadFile
) -> None:
    with pytest.raises(reader.ReaderError) as caught:
        reader.read_indices(data_of(entry), reader_models[entry.model])
    assert type(caught.value).__name__ == entry.error


# --- the script ----------------------------------------------------------------------------------


def test_the_documented_file_decodes(codecs: dict[str, Codec]) -> None:
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    block = text.split("```hex decodes\n")[1].split("```")[0]
    data = bytes.fromhex(" ".join(line.split("  ")[0] for line in block.splitlines()))
    assert data == (FOLDER / "vq-16x16-rgb-q25.vqc").read_bytes()
    codec = codecs["vector"]
    (index,) = codec.read_indices(data)
    assert f"symbols are {', '.join(map(str, index.ravel()))}, and" in text
    latent = codec.model.bottleneck.from_symbols([index], 7).flatten() * 4
    assert [int(v) for v in latent] == [int(v) for v in re.search(r"    (3900 .*)", text)[1].split()]
    # Each row of the table follows from the one before.
    rows = re.findall(r"^\| (\d) \| (\d) \| (`.*) \|$", text.split("```hex decodes\n")[1], flags=re.M)
    assert len(rows) == 5
    low, span, point = 0, 2**64 - 1, 0x72A2EE6A << 32
    for (group, table, rest), symbol in zip(rows, index.ravel(), strict=True):
        frequencies = codec.model.prior.frequencies[0][int(group), int(table)]
        below, unit = int(frequencies[:symbol].sum()), span >> 24
        quantile = (point - low) // unit
        assert below <= quantile < below + frequencies[symbol]
        low, span = low + unit * below, unit * int(frequencies[symbol])
        found = [f"`{unit:010X}`", quantile, symbol, below, frequencies[symbol], f"`{low:016X}`"]
        assert rest == " | ".join(map(str, [*found, f"`{span:016X}`"]))
    assert f"point − low is {point - low}," in text


def test_nothing_is_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"a.vqc": b"a", f"{BAD}/b.vqc": b"b", MANIFEST: b"{}"}
    assert update_folder(tmp_path, files, replace=False) == 0
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    changed = {"a.vqc": b"A", "c.vqc": b"c", MANIFEST: b"[]"}
    capsys.readouterr()
    assert update_folder(tmp_path, changed, replace=False) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == ["new: c.vqc", "differs: a.vqc", f"no longer made: {BAD}/b.vqc"]
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    assert not (tmp_path / "c.vqc").exists()
    assert update_folder(tmp_path, changed, replace=True) == 0
    there = {p.relative_to(tmp_path).as_posix(): p for p in tmp_path.rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in there.items()} == changed


def test_what_differs_can_stay(tmp_path: Path) -> None:
    """With its entry; new files come beside it, and a file that is no longer made is still refused."""

    def manifest(*entries: tuple[str, int]) -> bytes:
        return json.dumps({"files": [{"file": name, "bytes": size} for name, size in entries]}).encode()

    files = {"a.vqc": b"a", MANIFEST: manifest(("a.vqc", 1))}
    assert update_folder(tmp_path, files) == 0
    changed = {"a.vqc": b"AA", "b.vqc": b"bbb", MANIFEST: manifest(("a.vqc", 2), ("b.vqc", 3))}
    assert update_folder(tmp_path, changed) == 1
    assert update_folder(tmp_path, changed, keep=True) == 0
    assert (tmp_path / "a.vqc").read_bytes() == b"a" and (tmp_path / "b.vqc").read_bytes() == b"bbb"
    kept = manifest(("a.vqc", 1), ("b.vqc", 3))
    assert json.loads((tmp_path / MANIFEST).read_bytes()) == json.loads(kept)
    assert update_folder(tmp_path, files, keep=True) == 1
    assert json.loads((tmp_path / MANIFEST).read_bytes()) == json.loads(kept)
