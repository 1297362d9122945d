"""Gradient training of the synthesis on the latents that the quantiser really gives.

The analysis and the codebooks stay as they are; every crop of a batch is quantised at its own
random place of the rate axis, so one network learns all rates. The loss of a crop is its squared error
divided by that of the linear path alone, so that easy and hard crops, low and high rates weigh
alike, as they do in a mean of PSNRs.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.precision import fast_precision
from vqcodec.quantizer import ResidualQuantizer, point_at
from vqcodec.train.checkpoint import random_state, set_random_state
from vqcodec.train.coding import code_latent, validate_transform
from vqcodec.train.photos import random_crops
from vqcodec.train.schedule import channels_last, check_loss, follow_weights, learning_rate
from vqcodec.train.settings import TrainConfig
from vqcodec.transform import PIXEL_MEAN, Analysis, Synthesis

# Squared grey levels added to an error that others are measured in: a flat crop has next to none.
ERROR_FLOOR = 3.0


class SynthesisTrainer:
    """The synthesis, its optimiser and its random state; `step` is a pure function of them."""

    def __init__(
        self,
        config: TrainConfig,
        analysis: Analysis,
        synthesis: Synthesis,
        quantizer: ResidualQuantizer,
        bits: Tensor,
        *,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.config = config
        self.device = device
        self.analysis = analysis.to(device).eval()
        self.synthesis = channels_last(synthesis.to(device)).train().requires_grad_(True)
        self.quantizer = quantizer
        self.bits = bits
        self.parameters = [
            p for name, p in self.synthesis.named_parameters() if not name.startswith("linear.")
        ]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate)
        self.average = {k: v.detach().clone() for k, v in self.synthesis.state_dict().items()}
        self.random = np.random.default_rng(seed)
        self.steps_done = 0

    def step(self, photos: list[NDArray[np.uint8]], progress: float) -> float:
        """One optimiser step; progress in 0..1 places it in the learning-rate plan. Loss."""
        config = self.config
        rate = learning_rate(config, self.steps_done, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        crops = random_crops(photos, config.batch, config.crop, self.random)
        positions = (1 - self.random.random(config.batch)) * self.quantizer.config.stages
        points = [point_at(self.quantizer.config, p) for p in positions.tolist()]
        crops = crops.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            coded = code_latent(self.quantizer, self.bits, self.analysis(crops), points)
        latent, buckets = coded.latent.to(self.device), coded.buckets.to(self.device)
        with torch.no_grad():
            linear = self.synthesis.linear_picture(latent) + PIXEL_MEAN
            reference = (linear - crops).square().mean((1, 2, 3)) + ERROR_FLOOR
        with fast_precision(crops.device):
            picture = self.synthesis(latent, buckets)
        loss = ((picture - crops).square().mean((1, 2, 3)) / reference).mean()
        check_loss(loss, self.steps_done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.steps_done += 1
        follow_weights(self.average, self.synthesis.state_dict(), config.smoothing, self.steps_done)
        return float(loss.item())

    def averaged_synthesis(self) -> Synthesis:
        """A copy of the network with the moving average of the weights, in evaluation mode."""
        copy = channels_last(Synthesis(self.config.transform).to(self.device))
        copy.load_state_dict(self.average)
        return copy.eval()

    def validate(self, photos: list[NDArray[np.uint8]], size: int = 512) -> list[tuple[float, float]]:
        """(bpp by static code lengths, PSNR) at every complete stage, over centre crops."""
        return validate_transform(
            self.analysis, self.averaged_synthesis(), self.quantizer, self.bits, photos, size=size
        )

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "synthesis": self.synthesis.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(self.random),
            "steps": self.steps_done,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to where `state` was taken."""
        self.synthesis.load_state_dict(state["synthesis"])
        self.average = {k: v.to(self.device, copy=True) for k, v in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_state(self.random, state["random"])
        self.steps_done = int(state["steps"])
