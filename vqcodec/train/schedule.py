"""What the gradient trainings of networks share: the layout of memory, the plan of the rate of learning,
the moving average of the weights, and the watch over the loss."""

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from vqcodec.errors import VqcError
from vqcodec.train.settings import TrainConfig

_Network = TypeVar("_Network", bound=nn.Module)


def channels_last(network: _Network) -> _Network:
    """The same network with its weights in the layout that convolutions are fastest in."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def learning_rate(config: TrainConfig, steps_done: int, progress: float) -> float:
    """Rate of the next step: a linear warm-up, then half a cosine over progress 0..1."""
    warmup = min(1.0, (steps_done + 1) / config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    rate = config.final_learning_rate + cosine * (config.learning_rate - config.final_learning_rate)
    return rate * warmup


def follow_weights(
    average: Mapping[str, Tensor], weights: Mapping[str, Tensor], smoothing: float, steps_done: int
) -> None:
    """Moves the average, in place, towards the weights after a step; early steps count more."""
    decay = min(smoothing, steps_done / (steps_done + 10))
    for name, value in weights.items():
        average[name].lerp_(value, 1 - decay)


def check_loss(loss: Tensor, steps_done: int) -> None:
    """VqcError if the loss is no number any more."""
    if not loss.isfinite():
        raise VqcError(
            f"training diverged: the loss is {loss.item()} at step {steps_done}; "
            "resume from the last checkpoint with a lower learning rate"
        )
