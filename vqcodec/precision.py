"""The arithmetic of the networks, whatever the process around them has set.

Purpose: encoding must give the same bytes, and decoding at full precision the same pixels, inside
`torch.autocast`, with TF32 or bfloat16 allowed for float32 and with whatever cuDNN finds fastest. And
where bfloat16 is fast, decoding uses it unless told not to.

Layout: whether a device is fast in bfloat16; the two arithmetics as contexts.

Invariants: what was set before is set again afterwards. Settings that exist once a process are changed
by the first of several threads and restored by the last.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_saved: list[tuple[object, str, object]] = []


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 are faster there: a GPU that has it, or a CPU on which oneDNN
    uses it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 as IEEE 754 says, by algorithms that give the same bits every time."""
    _enter()
    try:
        # Symbols are chosen on the CPU, whatever the device of the networks.
        with torch.autocast("cpu", enabled=False), torch.autocast(device.type, enabled=False):
            yield
    finally:
        _leave()


@contextmanager
def short_precision(device: torch.device) -> Iterator[None]:
    """bfloat16 where autocast finds it harmless, `full_precision` elsewhere."""
    with full_precision(device), torch.autocast(device.type, dtype=torch.bfloat16):
        yield


def _wanted() -> list[tuple[object, str, object]]:
    backends: Any = torch.backends
    return [
        (backends.mkldnn.conv, "fp32_precision", "ieee"),
        (backends.mkldnn.matmul, "fp32_precision", "ieee"),
        (backends.cudnn.conv, "fp32_precision", "ieee"),
        (backends.cuda.matmul, "fp32_precision", "ieee"),
        (backends.cudnn, "benchmark", False),
        (backends.cudnn, "deterministic", True),
    ]


def _enter() -> None:
    global _inside
    with _lock:
        if _inside == 0:
            for owner, name, value in _wanted():
                _saved.append((owner, name, getattr(owner, name)))
                setattr(owner, name, value)
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            while _saved:
                owner, name, value = _saved.pop()
                setattr(owner, name, value)
