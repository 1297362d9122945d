"""The optional native extension: whether it is there, and which instruction set it runs.

`VQCODEC_NATIVE` decides at run time: `auto` (default) uses the extension if it was built, `0`
never, `1` raises if it is missing, so that a test run cannot pass on the fallback by accident.
`VQCODEC_ISA` (portable, avx2, avx512) forces one instruction set.
"""

import os
from functools import cache
from types import ModuleType
from typing import Any


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
