"""Runs a test file's `probe` in one process for each instruction set of the native kernels."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence

import pytest

ISAS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")


def run_probes(file: str, isas: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What `probe` of a test file prints to each stream where VQCODEC_ISA is set; the processes
    run together."""
    code = (
        "import json, runpy, sys, vqcodec_kernels\n"
        "probe = runpy.run_path(sys.argv[1])['probe']\n"
        "print(json.dumps([vqcodec_kernels.native_isa(), probe()]))\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    running = {
        isa: subprocess.Popen(
            [sys.executable, "-c", code, file],
            env=os.environ | {"VQCODEC_ISA": isa, "VQCODEC_NATIVE": "1", "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for isa in isas
    }
    return {isa: process.communicate() for isa, process in running.items()}


def assert_probe(isa: str, streams: tuple[str, str], expected: object) -> None:
    """An instruction set gave what this process gives; skipped where the CPU lacks it."""
    output, errors = streams
    # "expected ...", for a name that is unknown, is a reason only where no x86 kernels are built.
    lacks = f"RuntimeError: VQCODEC_ISA={isa}, but this CPU" in errors
    foreign = platform.machine().lower() not in ("x86_64", "amd64")
    if isa != "portable" and (lacks or (foreign and f"VQCODEC_ISA={isa}: expected" in errors)):
        pytest.skip(f"this machine lacks {isa}")
    assert output, errors
    assert json.loads(output) == [isa, expected]
