"""Settings of a training run: what is stored in a checkpoint and, as JSON, in the weights file."""

from dataclasses import dataclass, field

from vqcodec.prior import PriorConfig
from vqcodec.quantizer import QuantizerConfig
from vqcodec.transform import TransformConfig

PHASES = ("start", "synthesis", "prior")


@dataclass(frozen=True)
class TrainConfig:
    """One run. Sizes in pixels (prior_window in latent positions), rates of learning for Adam.

    smoothing: of the moving average of weights; prior_share: the prior's part of a budget of time.
    """

    transform: TransformConfig = field(default_factory=TransformConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    patches: int = 200_000
    codebook_vectors: int = 100_000
    codebook_iterations: int = 20
    crop: int = 256
    batch: int = 8
    learning_rate: float = 4e-4
    final_learning_rate: float = 1e-5
    warmup_steps: int = 100
    smoothing: float = 0.998
    prior_window: int = 32
    prior_batch: int = 4
    prior_learning_rate: float = 2e-3
    prior_share: float = 0.35
    validate_every: int = 500


def tiny_config() -> TrainConfig:
    """A model of a few hundred kilobytes that trains in seconds: for tests and first tries."""
    return TrainConfig(
        transform=TransformConfig(
            channels=20,
            synthesis_widths=(16, 12, 8),
            synthesis_depths=(1, 1, 1),
            analysis_widths=(8, 8, 8),
            rates=16,
        ),
        quantizer=QuantizerConfig(
            blocks=((2, 1), (1, 2), (4, 4)),
            codewords=32,
            mu=(1600.0, 200.0),
            first=(12000.0, 2000.0),
            last=(900.0, 150.0),
        ),
        prior=PriorConfig(
            tables=8, embedding=2, hidden=(16, 16), group_hidden=8, chunks=(2, 4), window=3
        ),
        patches=4000,
        codebook_vectors=2000,
        codebook_iterations=6,
        crop=64,
        batch=2,
        warmup_steps=2,
        smoothing=0.9,
        prior_window=8,
        prior_batch=2,
        validate_every=1000,
    )


PRESETS = {"default": TrainConfig, "tiny": tiny_config}
