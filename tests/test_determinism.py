"""Encoding is repeatable: a machine with the same settings gives the same bytes, whatever else is set.

Other machines may give other bytes (bench/determinism.py measures how often); they decode every file
to the same symbols, which is what the golden files are for. The models are those of the package: the
networks of a model that was hardly trained are too near to linear to show a difference.

Layout: what a process may have set; the same bytes twice, in a new process and under loose arithmetic;
`probe`, which a new process runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import synthetic_picture

from vqcodec.codec import Codec, load_codec
from vqcodec.model import MODES
from vqcodec_kernels import native_isa

# What torch says whenever oneDNN is switched off or on again.
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")

ALL = tuple(MODES)
BACKENDS: Any = torch.backends

# --- what a process may have set -----------------------------------------------------------------


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def matmul(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def convolutions(name: str) -> Iterator[None]:
    before = BACKENDS.mkldnn.conv.fp32_precision
    BACKENDS.mkldnn.conv.fp32_precision = name
    try:
        yield
    finally:
        BACKENDS.mkldnn.conv.fp32_precision = before


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


# The process decides: each has bytes of its own, which stay the same.
OWN = {
    "1 thread": lambda: threads(1),
    "2 threads": lambda: threads(2),
    "3 threads": lambda: threads(3),
    "oneDNN off": lambda: BACKENDS.mkldnn.flags(enabled=False),
}
# The codec decides: the bytes are those of the plain process.
FORCED = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "medium matmul": lambda: matmul("medium"),
    "bfloat16 convolutions": lambda: convolutions("bf16"),
    "gradients": torch.enable_grad,
    "inference mode": torch.inference_mode,
    "another default device": lambda: torch.device("meta"),
    "no denormal numbers": flushed,
    "errors of NumPy": lambda: np.errstate(all="raise"),
}


def load_all() -> dict[str, Codec]:
    """A codec for each mode."""
    return {mode: load_codec(None, "cpu", mode=mode) for mode in ALL}


def digests(codec: Codec) -> list[str]:
    """SHA-256 of the files of a picture in colour and one in grey."""
    files = [
        codec.compress(synthetic_picture(1, 70, 131), quality=90),
        codec.compress(synthetic_picture(2, 33, 49)[:, :, 1], quality=40),
    ]
    return [hashlib.sha256(data).hexdigest() for data in files]


# --- the same bytes --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Where a test does not say otherwise: on a busy machine, threads mostly wait for each other."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    return load_all()


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("setting", OWN)
def test_twice_in_one_process(codecs: dict[str, Codec], mode: str, setting: str) -> None:
    with OWN[setting]():
        assert digests(codecs[mode]) == digests(codecs[mode])


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("setting", FORCED)
def test_whatever_the_process_allows(codecs: dict[str, Codec], mode: str, setting: str) -> None:
    plain = digests(codecs[mode])
    with FORCED[setting]():
        assert digests(codecs[mode]) == plain


def test_loose_arithmetic_would_change_the_bytes(
    codecs: dict[str, Codec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the test above says something: without the codec's guard it fails."""
    plain = digests(codecs["vqvae"])
    monkeypatch.setattr("vqcodec.codec.full_precision", lambda device: contextlib.nullcontext())
    assert digests(codecs["vqvae"]) == plain
    with FORCED["autocast to bfloat16"]():
        assert digests(codecs["vqvae"]) != plain


@pytest.mark.parametrize("mode", ALL)
def test_the_way_of_decoding_has_no_say(codecs: dict[str, Codec], mode: str) -> None:
    plain = digests(codecs[mode])
    for precise in (False, True):
        codec = load_codec(None, "cpu", mode=mode, precise=precise)
        data = codec.compress(synthetic_picture(1, 70, 131), quality=90)
        codec.decompress(data)
        assert hashlib.sha256(data).hexdigest() == plain[0]
        assert digests(codec) == plain


# --- new processes ---------------------------------------------------------------------------------


def probe() -> dict[str, dict[str, list[str]]]:
    """Digests of every mode under every setting of OWN."""
    found: dict[str, dict[str, list[str]]] = {}
    for mode, codec in load_all().items():
        found[mode] = {}
        for name, setting in OWN.items():
            with setting():
                found[mode][name] = digests(codec)
    return found


@pytest.fixture(scope="module")
def probes() -> dict[str, Any]:
    """What `probe` gives in new processes, with native kernels if there are any and without."""
    code = "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1])['probe']()))"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    running = {
        native: subprocess.Popen(
            [sys.executable, "-c", code, __file__],
            env=os.environ | {"VQCODEC_NATIVE": native, "PYTHONPATH": path, "OMP_WAIT_POLICY": "passive"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for native in ("auto", "0")
    }
    outputs = {native: process.communicate()[0] for native, process in running.items()}
    return {native: json.loads(output) for native, output in outputs.items()}


def test_a_new_process(probes: dict[str, Any]) -> None:
    assert probe() == probes["0" if native_isa() is None else "auto"]


def test_native_kernels_have_no_say(probes: dict[str, Any]) -> None:
    assert probes["auto"] == probes["0"]
