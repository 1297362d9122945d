"""Weights of the networks in a model file: float16, those of convolutions in the branches one byte.

A kernel of a branch is stored as int8 `name` and float16 `name.step`, one step an output channel:
weight = int8 * step. That is half the bytes, and rounds by 1/254 of the largest weight of the channel.
All else, the linear paths above all, is float16. A reader takes either for any tensor with outputs.

Invariants: what is loaded is finite and fits the network, or ModelFileError. Symbols do not depend on
these weights, so a file of the same code id may hold them either way.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vqcodec.errors import ModelFileError

STEP = ".step"
_LEVELS = 127


def store_weights(network: nn.Module) -> dict[str, Tensor]:
    """The tensors to write, by name."""
    stored: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        weight = value.detach().cpu().float()
        if weight.ndim < 4 or name.startswith("linear."):
            stored[name] = weight.to(torch.float16).contiguous()
            continue
        largest = weight.abs().amax(tuple(range(1, weight.ndim)))
        # A channel of zeros needs some step. Rounding it to float16 moves the largest weight by less than
        # half a level, so it always becomes 127, and storing what was loaded gives the same again.
        step = (largest / _LEVELS).clamp_min(2.0**-14).to(torch.float16)
        levels = (weight / step.float().reshape((-1,) + (1,) * (weight.ndim - 1))).round()
        stored[name] = levels.clamp(-_LEVELS, _LEVELS).to(torch.int8).contiguous()
        stored[name + STEP] = step
    return stored


def load_weights(network: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Fills a network on the meta device, and puts it in evaluation mode. ModelFileError for tensors that
    do not fit it."""
    weights: dict[str, Tensor] = {}
    steps = {name[: -len(STEP)]: value for name, value in stored.items() if name.endswith(STEP)}
    for name, value in stored.items():
        if name.endswith(STEP):
            continue
        step = steps.pop(name, None)
        if value.dtype == torch.int8 and step is not None and value.ndim:
            _check_float16(step)
            if step.shape != value.shape[:1]:
                raise ModelFileError("a weight has not one step an output")
            weights[name] = value.float() * step.float().reshape((-1,) + (1,) * (value.ndim - 1))
        elif step is not None:
            raise ModelFileError("a weight that is not int8 has a step")
        else:
            _check_float16(value)
            weights[name] = value.float()
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if steps or expected != {name: tuple(value.shape) for name, value in weights.items()}:
        raise ModelFileError("the network's tensors do not fit the configuration")
    if "scale" in weights and not (weights["scale"] > 0).all():
        raise ModelFileError("the scale of a channel is not positive")
    network.load_state_dict(weights, assign=True)
    network.eval().requires_grad_(False)


def _check_float16(value: Tensor) -> None:
    if value.dtype != torch.float16 or not value.isfinite().all():
        raise ModelFileError("a weight is not a finite float16")
