"""Training of a model of digits: on one machine, the same settings and pictures give the same model."""

import math

import numpy as np
import torch
from torch import Tensor

from vqcodec.digits.config import LABELS, PIXELS, DigitsConfig, check_kind, digits_config
from vqcodec.digits.family import DigitsModel, make_model


def train_digits(
    kind: str, pixels: Tensor, labels: Tensor, config: DigitsConfig | None = None
) -> DigitsModel:
    """A model of this kind, in evaluation mode; without `config`, by the settings that suit it.

    pixels: floating point (N, 64), 0..1, labels: int64 (N,), 0..9; N at least 2. Threads of torch and
    its default generator are left as they are. ValueError for an unknown kind or for other pictures.
    """
    check_kind(kind)
    _check(pixels, labels)
    config = digits_config(kind) if config is None else config
    pixels = pixels.to(torch.float32)
    random = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.integers(2**63)))
        model = make_model(kind, config)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    order = np.empty(0, np.int64)
    batch = min(config.batch, len(pixels))
    for step in range(config.steps):
        progress = step / config.steps
        if len(order) < batch:
            order = random.permutation(len(pixels))
        chosen, order = torch.from_numpy(order[:batch]), order[batch:]
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        loss = model.loss(pixels[chosen], labels[chosen], random)
        total = loss.reconstruction + annealed_weight(config, progress) * loss.penalty
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    model.fit_prior(pixels)
    return model


def annealed_weight(config: DigitsConfig, progress: float) -> float:
    """C at a place 0..1 of the training."""
    if progress >= config.annealing:
        return config.weight
    return config.weight * progress / config.annealing


def _check(pixels: Tensor, labels: Tensor) -> None:
    if pixels.ndim != 2 or pixels.shape[1] != PIXELS or len(pixels) < 2:
        raise ValueError(f"expected two pictures or more of {PIXELS} pixels, got {tuple(pixels.shape)}")
    if not pixels.is_floating_point() or not ((pixels >= 0) & (pixels <= 1)).all():
        raise ValueError("pixels must be floating point in 0..1")
    if labels.dtype != torch.int64 or labels.shape != pixels.shape[:1]:
        raise ValueError(
            f"expected int64 labels ({len(pixels)},), got {labels.dtype} {tuple(labels.shape)}"
        )
    if not ((labels >= 0) & (labels < LABELS)).all():
        raise ValueError(f"labels must lie in 0..{LABELS - 1}")
