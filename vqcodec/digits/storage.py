"""Models of digits in files: safetensors with float16 weights, kind and settings in the header as JSON.

A file is read with all the care of `vqcodec.model_file`; it is no model of the codec, and each of the two
refuses the other's. Weights are rounded once: what was loaded is stored as the same bytes again.
"""

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save

from vqcodec.digits.config import KINDS, DigitsConfig
from vqcodec.digits.family import DigitsModel, make_model
from vqcodec.errors import ModelFileError
from vqcodec.files import write_atomically
from vqcodec.model import config_from_json
from vqcodec.model_file import FORMAT, METADATA_KEY, describe, read_model_file
from vqcodec.network_weights import load_weights, store_weights


def save_digits(model: DigitsModel, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a model whole or not at all. OutputError or OutputExistsError where it cannot."""
    digits = {"kind": model.kind, "config": dataclasses.asdict(model.config)}
    header = json.dumps({"format": FORMAT, "digits": digits}, sort_keys=True)
    write_atomically(path, save(store_weights(model), {METADATA_KEY: header}), overwrite=overwrite)


def load_digits(path: str | os.PathLike[str]) -> DigitsModel:
    """A stored model, in evaluation mode on the CPU. ModelFileError, naming the file, if it is none."""
    header, tensors = read_model_file(Path(path))
    if "digits" not in header:
        raise ModelFileError(f"{path}: a model of vqcodec, but not one of digits")
    try:
        kind = header["digits"]["kind"]
        if kind not in KINDS:
            raise ValueError(f"there is no kind {kind!r}")
        config = config_from_json(DigitsConfig, header["digits"]["config"])
        with torch.device("meta"):
            model = make_model(kind, config)
        load_weights(model, tensors)
    # What a hand-made file can provoke: wrong types in the JSON among them.
    except (ModelFileError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: not a sound model of digits ({describe(error)})") from error
    return model
