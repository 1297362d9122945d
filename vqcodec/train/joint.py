"""Gradient training of analysis, synthesis and bottleneck together: every mode but vq
(`vqcodec.train.vector` has that).

The loss is reconstruction plus the penalty of the mode's objective (`vqcodec.train.objectives`). What
a mode is not trained for is left to the encoder: continuous latents are not quantised here.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vqcodec.precision import fast_precision
from vqcodec.train.checkpoint import random_state, set_random_state
from vqcodec.train.objectives import Objective, reconstruction_loss
from vqcodec.train.photos import random_crops
from vqcodec.train.schedule import channels_last, check_loss, follow_weights, learning_rate
from vqcodec.train.settings import TrainConfig
from vqcodec.transform import Analysis, Synthesis

# The linear paths begin as principal components, with weights hundreds of times as small as those of
# the branches' first layers are large: at the same rate of learning they would be lost at once.
_LINEAR_SHARE = 0.03
# Centres and codewords are in units of the scale and may move by hundredths of it in a step.
_OBJECTIVE_SHARE = 5.0


class JointTrainer:
    """All networks of a mode, their optimiser and random state; `step` is a pure function of them."""

    def __init__(
        self,
        config: TrainConfig,
        analysis: Analysis,
        synthesis: Synthesis,
        objective: Objective,
        *,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.config, self.device = config, device
        self.analysis = analysis.requires_grad_(True)
        self.synthesis = synthesis.requires_grad_(True)
        self.objective = objective
        self.networks = nn.ModuleDict(
            {"analysis": analysis, "synthesis": synthesis, "objective": objective}
        )
        channels_last(self.networks.to(device)).train()
        shares: dict[float, list[nn.Parameter]] = {1.0: [], _LINEAR_SHARE: [], _OBJECTIVE_SHARE: []}
        for name, parameter in self.networks.named_parameters():
            if not parameter.requires_grad:
                continue
            share = _LINEAR_SHARE if ".linear." in name else 1.0
            if name.startswith("objective.") and ".conditional." not in name:
                share = _OBJECTIVE_SHARE
            shares[share].append(parameter)
        self.shares = list(shares)
        self.parameters = [p for group in shares.values() for p in group]
        self.optimizer = torch.optim.Adam(
            [{"params": group} for group in shares.values()], lr=config.learning_rate
        )
        self.average = {k: v.detach().clone() for k, v in self.networks.state_dict().items()}
        self.random = np.random.default_rng(seed)
        self.steps_done = 0

    def step(self, photos: list[NDArray[np.uint8]], progress: float) -> float:
        """One optimiser step; progress in 0..1 places it in the plans of rate and temperature. Loss."""
        config = self.config
        rate = learning_rate(config, self.steps_done, progress)
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = rate * share
        crops = random_crops(photos, config.batch, config.crop, self.random)
        crops = crops.to(self.device).contiguous(memory_format=torch.channels_last)
        rates = torch.zeros(len(crops), dtype=torch.int64, device=self.device)
        relaxed = self.objective(self.analysis, crops, self.random, progress)
        with fast_precision(crops.device):
            picture = self.synthesis(relaxed.latent, rates)
        loss = reconstruction_loss(config.objective, picture, crops) + relaxed.penalty
        check_loss(loss, self.steps_done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.objective.after_step()
        self.steps_done += 1
        follow_weights(self.average, self.networks.state_dict(), config.smoothing, self.steps_done)
        return float(loss.item())

    def load_average(self) -> None:
        """Puts the moving averages of the weights into the networks; training ends with that."""
        self.networks.load_state_dict(self.average)
        self.objective.after_step()
        self.networks.cpu().eval().requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "networks": self.networks.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(self.random),
            "steps": self.steps_done,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to where `state` was taken."""
        self.networks.load_state_dict(state["networks"])
        self.average = {k: v.to(self.device, copy=True) for k, v in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_state(self.random, state["random"])
        self.steps_done = int(state["steps"])
