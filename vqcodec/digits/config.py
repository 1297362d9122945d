"""The kinds of autoencoder for digits, and the settings of one: sizes, loss, training."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

SIDE = 8
PIXELS = SIDE * SIDE
LABELS = 10

_MOST = 4096

KINDS = ("ae", "dae", "vae", "wae", "cvae", "hvae")
"""In the order in which `vqcodec.digits.family` explains them."""


@dataclass(frozen=True)
class DigitsConfig:
    """One model and its training; `digits_config` gives what suits a kind.

    latent: numbers of the latent, which hvae splits into `groups` of equal size. hidden: widths of the
    encoder's layers, in the decoder the other way round; without any, both are one linear map. noise:
    standard deviation of the pixels, 0..1, around the decoded ones that reconstruction assumes. weight:
    C, of the penalty; annealing: over which share of the steps it rises from 0, on a line.
    start_log_variance: of the posterior before training. corruption: standard deviation of what dae adds
    to the pixels it reads. learning_rate: of Adam at the start; it falls to 0 along half a cosine. batch:
    pictures a step, all of them where there are fewer. ValueError for what cannot be trained.
    """

    latent: int = 8
    hidden: tuple[int, ...] = (128, 64)
    groups: int = 1
    noise: float = 0.3
    weight: float = 1.0
    annealing: float = 0.0
    start_log_variance: float = 0.0
    corruption: float = 0.0
    steps: int = 2000
    batch: int = 128
    learning_rate: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        whole = {"latent": self.latent, "groups": self.groups, "steps": self.steps, "batch": self.batch}
        for name, value in (*whole.items(), *(("hidden", width) for width in self.hidden)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
        if max(self.latent, *self.hidden, len(self.hidden)) > _MOST:
            raise ValueError(f"sizes and layers may be at most {_MOST}, got {self.latent}, {self.hidden}")
        if self.latent % self.groups:
            raise ValueError(f"a latent of {self.latent} cannot be split into {self.groups} groups")
        for name in ("noise", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and positive, got {getattr(self, name)!r}")
        for name in ("weight", "corruption"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)!r}")
        if not 0 <= self.annealing <= 1:
            raise ValueError(f"annealing must lie in 0..1, got {self.annealing!r}")
        if not math.isfinite(self.start_log_variance):
            raise ValueError(f"start_log_variance must be finite, got {self.start_log_variance!r}")
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number in 0..2^63 - 1, got {self.seed!r}")


_SUITING: dict[str, dict[str, Any]] = {
    "ae": {},
    "dae": {"latent": 32, "corruption": 0.3},
    "vae": {},
    # MMD^2 lies between 0 and some units, a divergence between 0 and dozens of nats.
    "wae": {"weight": 250.0},
    "cvae": {},
    # Nearly a point at first: no group can be given up before the decoder has learnt what to make of it.
    "hvae": {"groups": 2, "start_log_variance": -9.0},
}


def digits_config(kind: str, **changes: Any) -> DigitsConfig:
    """The settings that suit a kind, with changes. ValueError for an unknown kind."""
    check_kind(kind)
    return dataclasses.replace(DigitsConfig(**_SUITING[kind]), **changes)


def check_kind(kind: str) -> None:
    """ValueError unless there is such a kind."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
