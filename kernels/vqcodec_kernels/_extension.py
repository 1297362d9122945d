"""The optional backends: whether the native extension and Triton are there, and what they run on.

`VQCODEC_NATIVE` decides at run time: `auto` (default) uses the extension if it was built, `0`
never, `1` raises if it is missing, so that a test run cannot pass on the fallback by accident.
`VQCODEC_ISA` (portable, avx2, avx512, avx512_bf16, amx) forces one instruction set. Triton
kernels run on CUDA devices; with `TRITON_INTERPRET=1`, which is slow and meant for tests, on the CPU too.
"""

import importlib.util
import os
from functools import cache
from types import ModuleType
from typing import Any

import torch


@cache
def load_native() -> Any | None:
    """The extension module, or None. RuntimeError if VQCODEC_NATIVE=1 and it is missing."""
    wanted = os.environ.get("VQCODEC_NATIVE", "auto")
    if wanted not in ("auto", "0", "1"):
        raise RuntimeError(f"VQCODEC_NATIVE={wanted}: expected auto, 0 or 1")
    if wanted == "0":
        return None
    try:
        from vqcodec_kernels import _native  # type: ignore[attr-defined]
    except ImportError as error:
        if wanted == "1":
            raise RuntimeError(
                "VQCODEC_NATIVE=1, but the native extension is not built; install a C++ compiler "
                "and run `pip install .` again"
            ) from error
        return None
    module: ModuleType = _native
    return module


def native_isa() -> str | None:
    """Name of the instruction set that the native kernels use, or None without them."""
    native = load_native()
    return None if native is None else str(native.isa())


def can_run_triton(device: torch.device) -> bool:
    """Whether Triton kernels can run on a device."""
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1" and _has_triton()
    return device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
