"""The arithmetic of the networks, whatever the process around them has set.

Purpose: encoding must give the same bytes, and decoding at full precision the same pixels, inside
`torch.autocast`, with TF32 or bfloat16 allowed for float32 and with whatever cuDNN finds fastest. And
where bfloat16 is fast, decoding uses it unless told not to, and the encoder's search does.

Layout: whether a device is fast in bfloat16; the arithmetics as contexts: two for encoding and decoding,
one for training.

Invariants: what was set before is set again afterwards. Settings that exist once a process are changed
by the first of several threads and restored by the last, and only where they are loose; meanwhile other
threads see them too. A process that froze its settings in a loose state cannot encode: torch's
RuntimeError says so.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_saved: list[tuple[Any, str, object]] = []


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 are faster there: a GPU that has it, or a CPU on which oneDNN
    uses it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 as IEEE 754 says, by algorithms that give the same bits every time.

    Symbols are chosen on the CPU, whatever the device of the networks, so both follow.
    """
    with _strict_settings(), torch.autocast("cpu", enabled=False):
        with torch.autocast(device.type, enabled=False):
            yield


@contextmanager
def short_precision(device: torch.device) -> Iterator[None]:
    """bfloat16 where autocast finds it harmless, `full_precision` elsewhere."""
    with full_precision(device), torch.autocast(device.type, dtype=torch.bfloat16):
        yield


def fast_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where that is fast, and whatever is set elsewhere: for training."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_fast_bfloat16(device))


@contextmanager
def _strict_settings() -> Iterator[None]:
    global _inside
    try:
        with _lock:
            _inside += 1
            if _inside == 1:
                _change_settings()
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _restore_settings()


def _change_settings() -> None:
    backends: Any = torch.backends
    floats = [backends.mkldnn.conv, backends.mkldnn.matmul]
    if torch.cuda.is_available():
        floats += [backends.cudnn.conv, backends.cuda.matmul]
        for name, value in (("benchmark", False), ("deterministic", True)):
            _set(backends.cudnn, name, value)
    for owner in floats:
        # What is not set at all is strict, and stays a matter of the settings above it.
        if owner.fp32_precision not in ("ieee", "none"):
            _set(owner, "fp32_precision", "ieee")


def _set(owner: Any, name: str, value: object) -> None:
    before = getattr(owner, name)
    setattr(owner, name, value)
    _saved.append((owner, name, before))


def _restore_settings() -> None:
    while _saved:
        owner, name, value = _saved.pop()
        setattr(owner, name, value)
