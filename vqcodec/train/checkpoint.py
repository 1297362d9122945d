"""Checkpoints of a run: one file, written whole, from which training goes on exactly.

`torch.save` of tensors and plain values only, read back with `weights_only=True`: opening a
checkpoint cannot run code.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqcodec.errors import ModelFileError

FORMAT = 1


def checkpoint_path(out: Path) -> Path:
    """Where the checkpoint of a run that writes `out` lives."""
    return out.with_name(out.name + ".checkpoint")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint beside its final name, then renames it."""
    temporary = path.with_name(path.name + ".part")
    torch.save({"format": FORMAT, **state}, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved by `save_checkpoint`. ModelFileError if it is missing or unreadable."""
    if not path.is_file():
        raise ModelFileError(f"{path}: no checkpoint to resume from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports damage with many types
        raise ModelFileError(f"{path}: not a readable checkpoint ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ModelFileError(f"{path}: not a checkpoint of this version")
    return state


def random_state(random: np.random.Generator) -> dict[str, str]:
    """State of a PCG64 generator as plain text: its integers exceed what a checkpoint can hold."""
    inner = random.bit_generator.state
    return {
        **{k: str(v) for k, v in inner["state"].items()},
        "extra": str(inner["uinteger"]),
        "has_extra": str(inner["has_uint32"]),
    }


def set_random_state(random: np.random.Generator, state: dict[str, str]) -> None:
    """Brings a generator to a state saved by `random_state`."""
    random.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": int(state["state"]), "inc": int(state["inc"])},
        "has_uint32": int(state["has_extra"]),
        "uinteger": int(state["extra"]),
    }
