"""What the tests of the Triton backends share: interpreter, ahead-of-time compiler, machine code.

Tests marked `interpreted` need TRITON_INTERPRET=1 before triton is imported, so a test file runs
itself once more in a process of its own (`run_interpreted`). Those marked `compiled` look at what
the compiler makes of a kernel for a GPU that need not be there. Those marked `gpu` need one.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
compiled = pytest.mark.skipif(INTERPRETED, reason="needs the compiler, not the interpreter")
gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU")


def run_interpreted(file: str) -> None:
    """Runs the tests of a file in a process that has TRITON_INTERPRET=1; they must pass."""

    def release(version: str) -> tuple[int, int]:
        major, minor = version.split(".")[:2]
        return int(major), int(minor)

    if release(triton.__version__) < (3, 7) and release(numpy.__version__) >= (2, 4):
        pytest.skip("the interpreter of this triton needs numpy < 2.4")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


class Launch(NamedTuple):
    """A kernel and all its arguments by name, num_warps included where it was given."""

    kernel: Any
    arguments: dict[str, Any]

    def compile(self) -> Any:
        """The kernel for compute capability 9.0, as a GPU would specialise it."""
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        signature, constants, attributes = {}, {}, {}
        for number, parameter in enumerate(self.kernel.params):
            name, value = parameter.name, self.arguments[parameter.name]
            aligned = not parameter.do_not_specialize
            if parameter.is_constexpr:
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, Tensor):
                signature[name] = (
                    "*"
                    + triton.runtime.jit.type_canonicalisation_dict[
                        str(value.dtype).removeprefix("torch.")
                    ]
                )
            else:
                signature[name], aligned = "i32", aligned and value % 16 == 0
            if aligned and not parameter.is_constexpr:
                attributes[(number,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        options = {"num_warps": self.arguments.get("num_warps", 4)}
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def record_launches(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What `call` would launch; nothing runs."""
    found: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = [parameter.name for parameter in kernel.params]
        found.append(Launch(kernel, dict(zip(names, args, strict=False)) | kwargs))

    with monkeypatch.context() as patch:
        patch.setattr(triton.runtime.jit.JITFunction, "run", record)
        call()
    return found


class MachineCode(NamedTuple):
    """registers a thread; stack in bytes, which spills take; lines with their addresses."""

    registers: int
    stack: int
    lines: list[tuple[int, str]]

    @property
    def opcodes(self) -> list[str]:
        """What each line does, modifiers included, predicates not."""
        return [opcode(text) for _, text in self.lines]


def opcode(text: str) -> str:
    """The opcode of a line of machine code."""
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]


def machine_code(kernel: Any, folder: Path) -> MachineCode:
    """The machine code of a compiled kernel; skips the test where triton ships no cuobjdump."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this triton ships no cuobjdump")
    file = folder / "kernel.cubin"
    file.write_bytes(kernel.asm["cubin"])

    def dump(option: str) -> str:
        command = [str(tool), option, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    usage = re.search(r"REG:(\d+) STACK:(\d+)", dump("-res-usage"))
    assert usage
    lines = [
        (int(match[1], 16), match[2])
        for match in re.finditer(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", dump("-sass"), re.M)
    ]
    return MachineCode(int(usage[1]), int(usage[2]), lines)
