"""Model files from anyone: they run no code, take memory in proportion to their size, and are refused
with a message that names them and says what to do."""

import ast
import dataclasses
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from model_bytes import SMALLEST, ModelParts, join_model, make_model
from safetensors.torch import save_file
from synthetic import synthetic_picture

import vqcodec
import vqcodec_kernels
from vqcodec.cli import main
from vqcodec.codec import Codec, load_codec
from vqcodec.container import UNIFORM_MODES
from vqcodec.errors import ModelFileError, UnknownModelError
from vqcodec.model import (
    MODES,
    config_from_json,
    find_model,
    find_model_by_code,
    load_model,
    read_model_file,
    read_model_header,
)
from vqcodec.model_file import MAX_FILE_BYTES, MAX_HEADER_BYTES, printable
from vqcodec.prior import PriorConfig
from vqcodec.train.checkpoint import checkpoint_path, load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
PRIOR = PriorConfig(tables=3, embedding=2, hidden=(5, 4), group_hidden=3, chunks=(1,), window=3)
# What vqcodec/model.py promises: bytes that a model takes for each byte of its file.
MEMORY_FACTOR = 24


@pytest.fixture(scope="module")
def good() -> bytes:
    """A small model of mode vq."""
    blocks = ((2, 1), (1, 2))
    return make_model("vq", blocks=blocks, codewords=7, stages=2, prior=PRIOR, seed=1).to_bytes()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write_bytes(data: bytes, name: str = "m.safetensors") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write_bytes


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """A picture for the command line; the test runs in its folder."""
    from PIL import Image

    Image.fromarray(synthetic_picture(0, 24, 24)).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


@pytest.fixture
def refuse(picture: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `compress --model` with a model that must be refused; what is said of it, one line."""

    def refuse_model(model: str | Path, *options: str, code: int = 3) -> str:
        assert main(["compress", picture, "--model", str(model), *options]) == code
        said = capsys.readouterr().err
        assert said.startswith("vqcodec: ") and said.endswith("\n") and said.count("\n") == 1
        return said.removeprefix("vqcodec: ").rstrip()

    return refuse_model


# --- no code -------------------------------------------------------------------------------------


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_the_bomb_works(tmp_path: Path) -> None:
    """Or the tests with it would show nothing."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["m.pkl", "m.pt", "m.pth", "m.npy", "m.ckpt", "m.safetensors", "m"])
def test_a_pickled_model_is_not_opened(name: str, tmp_path: Path, refuse: Callable[..., str]) -> None:
    bomb = Bomb(tmp_path / "mark")
    path = tmp_path / name
    if path.suffix in (".pt", ".ckpt"):
        torch.save({"weights": bomb}, path)
    elif path.suffix == ".npy":
        np.save(path, np.array([bomb], object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(bomb))
    said = refuse(path)
    assert said == (
        f"{path}: not a safetensors file; a model is a .safetensors file that vqcodec wrote, "
        "and files of no other kind are opened"
    )
    assert not (tmp_path / "mark").exists()


def test_a_pickled_checkpoint_is_not_run(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    torch.save({"format": 1, "state": Bomb(tmp_path / "mark")}, checkpoint_path(out))
    with pytest.raises(ModelFileError, match="not a readable checkpoint"):
        load_checkpoint(checkpoint_path(out))
    assert not (tmp_path / "mark").exists()


# What can run code that data brings with it.
_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "imp"}
_FUNCTIONS = {"eval", "exec", "compile", "__import__"}
_METHODS = {"torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"}


def _find_faults(source: str) -> list[str]:
    """Where source code reads data in a way that could run it."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
            faults += [name for name in names if name.split(".")[0] in _MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in _FUNCTIONS or called in _METHODS:
            faults.append(called)
        if called == "torch.load" and options.get("weights_only") != "True":
            faults.append("torch.load without weights_only=True")
        if options.get("allow_pickle", "False") != "False":
            faults.append(f"{called} with allow_pickle")
    return faults


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, marshal",
        "from yaml import load",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
    ],
)
def test_what_is_looked_for_is_found(source: str) -> None:
    assert len(_find_faults(source)) == 1


def test_the_package_never_runs_data() -> None:
    folders = [Path(module.__file__ or "").parent for module in (vqcodec, vqcodec_kernels)]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    assert len(files) > 40
    faults = {path.name: _find_faults(path.read_text("utf-8")) for path in files}
    assert {name: found for name, found in faults.items() if found} == {}
    # The rule does not pass only because nothing loads anything.
    assert any("torch.load(" in path.read_text("utf-8") for path in files)


# --- memory --------------------------------------------------------------------------------------

_MEASURE = """
import sys
from pathlib import Path
import numpy as np, torch
from vqcodec.codec import Codec
from vqcodec.model import load_model

torch.set_num_threads(1)
picture = np.random.default_rng(0).integers(0, 256, (17, 31, 3), np.uint8)

def code(path):
    codec = Codec(load_model(Path(path)), torch.device("cpu"))
    codec.decompress(codec.compress(picture, quality=100))

def peak():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024

code(sys.argv[1])
before = peak()
code(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("kind", ["tables", "uniform", "window"])
def test_memory_grows_with_the_file(kind: str, good: bytes, write: Callable[..., Path]) -> None:
    """A file with nearly all of its bytes in tensors of one kind, which grow when they are loaded."""
    tables, window = (
        dataclasses.replace(SMALLEST, **size) for size in ({"tables": 256}, {"window": 127})
    )
    if kind == "tables":
        model = make_model(blocks=((100, 1),), codewords=256, prior=tables)
    elif kind == "uniform":
        model = make_model("ae", blocks=((100, 1),), prior=tables)
    else:
        model = make_model(blocks=((300, 1),), prior=window)
    data = model.to_bytes()
    assert len(data) > 3_000_000
    paths = [str(write(good, "good.safetensors")), str(write(data))]
    child = subprocess.run(
        [sys.executable, "-c", _MEASURE, *paths], capture_output=True, text=True, check=True
    )
    assert int(child.stdout) <= MEMORY_FACTOR * len(data)


def test_a_file_that_is_too_large_is_refused_unread(
    tmp_path: Path, good: bytes, refuse: Callable[..., str]
) -> None:
    path = tmp_path / "large.safetensors"
    path.write_bytes(good)
    os.truncate(path, MAX_FILE_BYTES + 1)
    assert refuse(path) == f"{path}: 67108865 bytes, but a model has at most 64 MiB"
    os.truncate(path, MAX_FILE_BYTES)
    assert "damaged" in refuse(path)


def test_a_header_that_is_too_large_is_refused_unread(write: Callable[..., Path]) -> None:
    text = b"{" + b" " * MAX_HEADER_BYTES
    with pytest.raises(ModelFileError, match="a header of 1048577 bytes.*at most 1048576"):
        read_model_header(write(join_model(text, b"")))
    # Refused by the number alone, whether the bytes are there or not.
    with pytest.raises(ModelFileError, match="a header of"):
        read_model_header(write(struct.pack("<Q", 1 << 62) + b"{}"))
    text = b'{"a": ' + b"[" * (MAX_HEADER_BYTES - 7) + b"}"
    assert len(text) == MAX_HEADER_BYTES
    with pytest.raises(ModelFileError, match="header is damaged"):
        read_model_header(write(join_model(text, b"")))


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("prior", "chunks", list(range(1, 80)), "more than 64 chunks"),
        ("prior", "window", 129, "at most 127 positions"),
        ("quantizer", "mu", [1e10, 1.0], "prices must lie within 0 and 1e"),
        ("quantizer", "mu", [10**400, 1.0], "prices must lie within"),
        ("quantizer", "mu", [1.0, 1.0, 1.0], "each with three prices"),
        ("quantizer", "blocks", [[4000, 1], [97, 1]], "groups at most 4096"),
        ("", "points", [[1, 1e10]] * 100, "points must be 100 pairs"),
        ("", "points", [[1, 10**400]] * 100, "too large"),
    ],
)
def test_numbers_that_would_take_time_or_memory_are_refused(
    good: bytes, write: Callable[..., Path], part: str, key: str, value: object, said: str
) -> None:
    parts = ModelParts.of(good)
    if key == "chunks":
        parts.config["quantizer"]["blocks"] = [[100, 1]]
        parts.config["transform"]["channels"] = 100
    elif key == "blocks":
        parts.config["transform"]["channels"] = 4097
    (parts.config[part] if part else parts.config)[key] = value
    with pytest.raises(ModelFileError, match=said):
        load_model(write(parts.to_bytes()))


def test_tables_in_use_are_bounded(
    good: bytes, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coder keeps a model for each table that it used; a file may use as many as there are."""
    from vqcodec import entropy

    codec = Codec(load_model(write(good)), torch.device("cpu"))
    data = codec.compress(synthetic_picture(0, 100, 100), quality=100)
    expected = codec.read_indices(data)
    monkeypatch.setattr(entropy, "_KEPT_MODELS", 2)
    fresh = Codec(load_model(write(good)), torch.device("cpu"))
    for found, index in zip(fresh.read_indices(data), expected, strict=True):
        assert np.array_equal(found, index)
    models = [stage._models for stage in fresh.model.bottleneck._models]
    assert [len(kept) <= 2 for kept in models] == [True, True]
    assert max(len(kept._models) for kept in codec.model.bottleneck._models) > 2


# --- identity ------------------------------------------------------------------------------------


def _with_code_id(data: bytes, code_id: object) -> bytes:
    parts = ModelParts.of(data)
    parts.config["code_id"] = code_id
    return parts.to_bytes()


def test_the_code_id_is_that_of_the_tensors(good: bytes, write: Callable[..., Path]) -> None:
    code_id = load_model(write(good)).code_id
    assert ModelParts.of(good).config["code_id"] == code_id
    for wrong, name in ((0xABC, "00000abc"), (None, "another"), (True, "another"), (-1, "another")):
        said = f"it says code id {name}, but its tensors are those of {code_id:08x}"
        with pytest.raises(ModelFileError, match=f"not a usable model .{said}"):
            load_model(write(_with_code_id(good, wrong)))
    with pytest.raises(ModelFileError, match="its tensors are those of"):
        load_model(write(_with_code_id(good, float(code_id))))
    parts = ModelParts.of(good)
    del parts.config["code_id"]
    with pytest.raises(ModelFileError, match="'code_id' is missing"):
        load_model(write(parts.to_bytes()))


@pytest.mark.parametrize("name", ["prior.1.tables", "codebook.0.1", "prior.0.1.linear2.bias"])
def test_another_tensor_makes_another_model(good: bytes, write: Callable[..., Path], name: str) -> None:
    parts = ModelParts.of(good)
    parts.data[parts.tensors[name]["data_offsets"][1] - 1] ^= 1
    with pytest.raises(ModelFileError, match="its tensors are those of"):
        load_model(write(parts.to_bytes()))


def test_a_network_may_change_without_the_code_id(good: bytes, write: Callable[..., Path]) -> None:
    parts = ModelParts.of(good)
    parts.data[parts.tensors["synthesis.linear.weight"]["data_offsets"][0]] ^= 1
    load_model(write(parts.to_bytes()))


def test_a_model_under_a_false_code_id_is_refused(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file that needs a model is not decoded with one that only says that it is that."""
    other = make_model("vq", blocks=((4, 1),), codewords=9, prior=PRIOR, seed=9)
    data = Codec(other, torch.device("cpu")).compress(synthetic_picture(0, 20, 20))
    impostor = tmp_path / "a.safetensors"
    impostor.write_bytes(_with_code_id(good, other.code_id))
    monkeypatch.setenv("VQCODEC_MODELS", str(tmp_path))
    assert find_model_by_code(other.code_id) == impostor
    (tmp_path / "picture.vqc").write_bytes(data)
    assert main(["decompress", str(tmp_path / "picture.vqc")]) == 3
    said = capsys.readouterr().err
    assert f"{impostor}: not a usable model (it says code id {other.code_id:08x}, but its tensors" in said
    assert not (tmp_path / "picture.vqc.png").exists()
    # Before the folders of others come those of the package.
    default = find_model("default")
    name = int(read_model_header(default)["code_id"])
    impostor.write_bytes(_with_code_id(good, name))
    assert find_model_by_code(name) == default


def test_of_models_with_one_code_id_that_of_the_mode_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uniform modes have one code id before their priors have learnt anything."""
    models = {mode: make_model(mode, blocks=((3, 1),), prior=PRIOR) for mode in ("ae", "dae")}
    assert len({model.code_id for model in models.values()}) == 1
    for mode, model in models.items():
        (tmp_path / f"{mode}.safetensors").write_bytes(model.to_bytes())
    monkeypatch.setenv("VQCODEC_MODELS", str(tmp_path))
    code_id = models["ae"].code_id
    for mode in models:
        assert find_model_by_code(code_id, mode=mode) == tmp_path / f"{mode}.safetensors"
    assert find_model_by_code(code_id) == tmp_path / "ae.safetensors"
    # One of another mode has the same symbols, which is better than none.
    assert find_model_by_code(code_id, mode="wae") == tmp_path / "ae.safetensors"
    assert load_codec(None, "cpu", code_id=code_id, mode="dae").model.config.mode == "dae"


@pytest.mark.parametrize("where", ["outer", "tensor", "config"])
def test_a_key_may_occur_once_only(good: bytes, write: Callable[..., Path], where: str) -> None:
    size = int.from_bytes(good[:8], "little")
    text = good[8 : 8 + size]
    old, new = {
        "outer": (b'"prior.0.tables":', b'"prior.0.tables": {}, "prior.0.tables":'),
        "tensor": (b'"dtype":"U8"', b'"dtype":"U8","dtype":"I8"'),
        "config": (b'\\"code_id\\":', b'\\"code_id\\": 1, \\"code_id\\":'),
    }[where]
    assert old in text
    with pytest.raises(ModelFileError, match="a key occurs twice"):
        load_model(write(join_model(text.replace(old, new, 1), good[8 + size :])))


# --- messages ------------------------------------------------------------------------------------

AGAIN = "copy or download it again"
NO_MODEL = "a model is a .safetensors file that vqcodec wrote, and files of no other kind are opened"


def test_an_unknown_name_says_which_there_are(
    tmp_path: Path, good: bytes, refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "one", tmp_path / "none"]
    folders[0].mkdir()
    (folders[0] / "mine.safetensors").write_bytes(good)
    monkeypatch.setenv("VQCODEC_MODELS", os.pathsep.join(map(str, folders)))
    package = find_model("default").parent
    assert refuse("mime") == (
        "no model 'mime': name a model file or one of ae, dae, default, dvae, fsq, hvae, mine, rvq, vae, "
        "vq-small, vqvae, vqvae2, wae "
        f"(looked in {package}, {folders[0]}, {folders[1]}; $VQCODEC_MODELS can name more folders)"
    )
    assert find_model("mine") == folders[0] / "mine.safetensors"


def test_a_path_that_leads_nowhere(
    tmp_path: Path, refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone.safetensors"
    assert refuse(gone) == f"no model '{gone}': No such file or directory; check the path"
    folder = tmp_path / "models"
    folder.mkdir()
    directory = "that is a directory; name a .safetensors file in it"
    assert refuse(folder) == f"no model '{folder}': {directory}"
    monkeypatch.chdir(tmp_path)
    assert refuse("models") == f"no model 'models': {directory}"
    os.mkfifo(tmp_path / "pipe")
    regular = "that is not a regular file; name a .safetensors file"
    assert refuse(tmp_path / "pipe") == f"no model '{tmp_path / 'pipe'}': {regular}"
    long = "x" * 5000
    assert refuse(f"{long}/m") == f"no model '{long}/m': File name too long; check the path"
    with pytest.raises(UnknownModelError, match="null byte"):
        find_model("a\0.safetensors")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe would wait for its writer."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ModelFileError, match="not a regular file"):
        load_model(tmp_path / "pipe.safetensors")
    with pytest.raises(ModelFileError, match="a directory; name a .safetensors file in it"):
        load_model(tmp_path)
    with pytest.raises(ModelFileError, match="No such file or directory.; check path"):
        load_model(tmp_path / "gone.safetensors")
    with pytest.raises(ModelFileError, match="null byte"):
        load_model(Path("a\0b"))


def test_a_model_of_another_mode(write: Callable[..., Path], refuse: Callable[..., str]) -> None:
    path = write(make_model("ae", blocks=((3, 1),)).to_bytes())
    said = refuse(path, "--mode", "vae", code=2)
    assert said == f"the model {path} is of mode ae, not vae: ask for that mode, or for another model"
    parts = ModelParts.of(path.read_bytes())
    for mode in ("gan", ["\x1b[2J"], None):
        parts.config["mode"] = mode
        path.write_bytes(parts.to_bytes())
        assert "is of mode unknown to this release, not vae" in refuse(path, "--mode", "vae", code=2)
        assert f"{path}: not a usable model (" in refuse(path)


def test_a_model_of_another_project(tmp_path: Path, refuse: Callable[..., str]) -> None:
    path = tmp_path / "theirs.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"encoder.weight": torch.zeros(3, 4, dtype=torch.bfloat16)}, path, metadata)
        assert refuse(path) == f"{path}: safetensors, but not a model of vqcodec; {NO_MODEL}"


def test_a_model_of_a_later_format(good: bytes, write: Callable[..., Path]) -> None:
    parts = ModelParts.of(good)
    for number, advice in ((2, "use a newer vqcodec"), (0, AGAIN), ("1", AGAIN), (True, AGAIN)):
        parts.config["format"] = number
        with pytest.raises(ModelFileError, match=f"another format than 1; {advice}"):
            load_model(write(parts.to_bytes()))


def test_a_file_that_is_cut_short(good: bytes, tmp_path: Path, refuse: Callable[..., str]) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"")
    assert refuse(path) == f"{path}: the file is empty; {AGAIN}"
    path.write_bytes(good[:-1])
    assert refuse(path) == f"{path}: cut short, {len(good) - 1} of {len(good)} bytes are there; {AGAIN}"
    path.write_bytes(good[:100])
    assert refuse(path) == f"{path}: cut short, the file ends in its header; {AGAIN}"
    path.write_bytes(good + b"\0")
    assert refuse(path).startswith(f"{path}: damaged (") and refuse(path).endswith(AGAIN)


def test_every_cut_is_refused(good: bytes, write: Callable[..., Path]) -> None:
    header = 8 + int.from_bytes(good[:8], "little")
    for size in [*range(0, header, 97), *range(header, len(good), 1009), len(good) - 1]:
        path = write(good[:size])
        for read in (load_model, read_model_header):
            with pytest.raises(ModelFileError):
                read(path)


@pytest.fixture
def unreadable(good: bytes) -> Iterator[Path]:
    """A model that the user running the test may not read; root becomes another one meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "secret.safetensors"
        path.write_bytes(good)
        path.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield path
        finally:
            if root:
                os.seteuid(0)


def test_a_file_without_permission(unreadable: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        load_model(find_model(str(unreadable)))
    assert str(caught.value) == (
        f"{unreadable}: cannot be read (Permission denied); check path and permissions"
    )
    assert caught.value.exit_code == 3


def test_a_model_that_is_not_installed(
    tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model("vq", blocks=((4, 1),), codewords=9, prior=PRIOR, seed=9)
    path = tmp_path / "picture.vqc"
    path.write_bytes(Codec(model, torch.device("cpu")).compress(synthetic_picture(0, 20, 20)))
    asked = f"{path}: the file needs the model with code id {model.code_id:08x}: "
    advice = "put its model file into a folder of $VQCODEC_MODELS or pass it with --model"
    monkeypatch.delenv("VQCODEC_MODELS", raising=False)
    assert main(["decompress", str(path)]) == 3
    assert capsys.readouterr().err == f"vqcodec: {asked}{advice}\n"
    # It may be there and not be readable: that is said.
    bad = tmp_path / "models" / "half.safetensors"
    bad.parent.mkdir()
    bad.write_bytes(model.to_bytes()[:-10])
    monkeypatch.setenv("VQCODEC_MODELS", str(bad.parent))
    assert main(["decompress", str(path)]) == 3
    said = capsys.readouterr().err
    assert f"{asked}{advice} (1 files there are not usable, such as {bad}: cut short, " in said
    bad.write_bytes(model.to_bytes())
    assert main(["decompress", str(path)]) == 0


def test_a_model_of_an_earlier_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "known.json").write_text('{"0000abcd": "0.0.7"}')
    monkeypatch.setattr("vqcodec.model._package_weights", lambda: tmp_path)
    with pytest.raises(UnknownModelError, match="it is the default model of vqcodec 0.0.7; install that"):
        find_model_by_code(0xABCD)


def test_messages_show_no_text_of_the_file_raw(good: bytes, write: Callable[..., Path]) -> None:
    parts = ModelParts.of(good)
    parts.config["name"] = "\x1b[2Jname\nof two lines \ud800" + 500 * "x"
    model = load_model(write(parts.to_bytes()))
    assert model.config.name.isprintable() and len(model.config.name) == 100
    assert model.config.name.startswith("?[2Jname of two lines ?xxx")
    parts.config["mode"] = "\x1b[2J\n" + 500 * "x"
    with pytest.raises(ModelFileError) as caught:
        load_model(write(parts.to_bytes()))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    assert printable("a\tb\x00c", 5) == "a b?c"
    assert printable("abcdef", 5) == "ab..."


# --- contents ------------------------------------------------------------------------------------


def test_a_good_file_is_read_whole(good: bytes, write: Callable[..., Path]) -> None:
    header, tensors = read_model_file(write(good))
    parts = ModelParts.of(good)
    assert header == parts.config == read_model_header(write(good))
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        name: entry["shape"] for name, entry in parts.tensors.items()
    }
    assert load_model(write(good)).to_bytes() == good
    assert config_from_json(PriorConfig, header["prior"]) == PRIOR


def test_what_was_read_does_not_follow_the_file(good: bytes, write: Callable[..., Path]) -> None:
    """The tensors are not the file's pages in memory: who cuts the file later does not matter."""
    path = write(good)
    model = load_model(path)
    data = Codec(model, torch.device("cpu")).compress(synthetic_picture(0, 20, 20))
    with path.open("r+b") as file:
        file.write(bytes(len(good)))
        file.truncate(0)
    assert model.to_bytes() == good
    assert Codec(model, torch.device("cpu")).decompress(data).size == (20, 20)


@pytest.mark.parametrize(
    ("part", "key"), [("prior", "window"), ("prior", "embedding"), ("quantizer", "codewords")]
)
def test_no_default_fills_a_gap(good: bytes, write: Callable[..., Path], part: str, key: str) -> None:
    parts = ModelParts.of(good)
    del parts.config[part][key]
    with pytest.raises(ModelFileError, match=f"{key} is missing"):
        load_model(write(parts.to_bytes()))


@pytest.mark.parametrize("change", ["missing", "dtype", "shape", "overlap", "hole", "renamed"])
@pytest.mark.parametrize("name", ["prior.0.tables", "codebook.1.0", "synthesis.scale", "analysis.scale"])
def test_a_tensor_that_does_not_fit(
    good: bytes, write: Callable[..., Path], name: str, change: str
) -> None:
    parts = ModelParts.of(good)
    entry = parts.tensors[name]
    if change == "missing":
        del parts.tensors[name]
    elif change == "dtype":
        entry["dtype"] = {"U8": "I8", "I16": "F16", "F16": "I16"}[entry["dtype"]]
    elif change == "shape":
        entry["shape"] = [*entry["shape"], 1]
    elif change == "overlap":
        entry["data_offsets"] = [at - 2 for at in entry["data_offsets"]]
    elif change == "hole":
        entry["data_offsets"][0] += 2
    else:
        parts.tensors[f"{name}x"] = parts.tensors.pop(name)
    with pytest.raises(ModelFileError):
        load_model(write(parts.to_bytes()))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64", "F8_E4M3", "C64", "BOOL", "F4", ["U8"], None])
def test_other_types_of_numbers_are_refused(
    good: bytes, write: Callable[..., Path], dtype: object
) -> None:
    parts = ModelParts.of(good)
    parts.tensors["prior.0.tables"]["dtype"] = dtype
    with pytest.raises(ModelFileError, match="its header is damaged"):
        read_model_header(write(parts.to_bytes()))


def test_an_empty_table_is_refused_on_loading(good: bytes, write: Callable[..., Path]) -> None:
    parts = ModelParts.of(good)
    start = parts.tensors["prior.1.tables"]["data_offsets"][0]
    parts.data[start : start + 7] = b"\xff" * 7
    with pytest.raises(ModelFileError, match="a probability table of the model is empty"):
        load_model(write(parts.to_bytes()))
    parts.data[start + 3] = 240
    with pytest.raises(ModelFileError, match="its tensors are those of"):
        load_model(write(parts.to_bytes()))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_the_header_is_utf_8(good: bytes, write: Callable[..., Path], encoding: str) -> None:
    size = int.from_bytes(good[:8], "little")
    text = good[8 : 8 + size].decode().replace("made-vq", "möde")
    with pytest.raises(ModelFileError):
        read_model_header(write(join_model(text.encode(encoding), good[8 + size :])))
    assert read_model_header(write(join_model(text.encode(), good[8 + size :])))["name"] == "möde"


@pytest.mark.parametrize(
    "text", ["[]", "7", "null", '"x"', "{", "", "[" * 100_000, '{"format": 1' + "0" * 9000 + "}"]
)
def test_a_configuration_that_is_none(good: bytes, write: Callable[..., Path], text: str) -> None:
    size = int.from_bytes(good[:8], "little")
    outer = json.loads(good[8 : 8 + size])
    outer["__metadata__"]["vqcodec"] = text
    with pytest.raises(ModelFileError, match="its header is damaged"):
        read_model_header(write(join_model(json.dumps(outer).encode(), good[8 + size :])))


def test_a_model_of_every_mode_can_be_made(write: Callable[..., Path]) -> None:
    """What the fuzzer and these tests begin with is sound."""
    picture = synthetic_picture(1, 31, 17)
    for mode, number in MODES.items():
        blocks = ((3, 1),) if number in UNIFORM_MODES else ((2, 1), (1, 2))
        model = make_model(mode, blocks=blocks, codewords=9, prior=PRIOR, depth=1, width=2, seed=4)
        again = make_model(mode, blocks=blocks, codewords=9, prior=PRIOR, depth=1, width=2, seed=4)
        assert again.to_bytes() == model.to_bytes()
        codec = Codec(load_model(write(model.to_bytes())), torch.device("cpu"))
        data = codec.compress(picture, quality=100)
        assert vqcodec.info(data).mode == mode
        assert codec.decompress(data).size == (17, 31)
