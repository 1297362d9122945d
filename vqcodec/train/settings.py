"""Settings of a training run: what is stored in a checkpoint and, as JSON, in the weights file."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from vqcodec.container import UNIFORM_MODES
from vqcodec.model import MODES, config_from_json
from vqcodec.modes import POSTERIOR_MODES
from vqcodec.prior import PriorConfig
from vqcodec.quantizer import QuantizerConfig
from vqcodec.transform import TransformConfig
from vqcodec.uniform import UniformConfig

Reconstruction = Literal["mse", "mae"]
CodebookRule = Literal["ema", "gradient", "fixed"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the modes but vq minimise (docs/modes.md has the losses).

    weight: C, of the divergence from the prior (vae, hvae, dvae, wae). noise: standard deviation of the
    pixels around the decoded ones that reconstruction assumes, in grey levels. input_noise: that of what
    the dae is shown in place of the pixels. commitment: beta of the vqvae and its kin. codebook, decay:
    how their codewords follow, by a moving average with this decay, by gradient or not at all (fsq).
    temperature: of the dvae's relaxed samples, at the start and at the end.
    """

    weight: float = 1.0
    reconstruction: Reconstruction = "mse"
    noise: float = 8.0
    input_noise: float = 20.0
    commitment: float = 0.25
    codebook: CodebookRule = "ema"
    decay: float = 0.99
    temperature: tuple[float, float] = (1.0, 1 / 16)


@dataclass(frozen=True)
class TrainConfig:
    """One run. Sizes in pixels (prior_window in latent positions), rates of learning for Adam.

    smoothing: of the moving average of weights; prior_effort: of the encoder, where the prior learns from
    what it charges; prior_share, joint_share: the prior's part of a budget of time, and in mode vq the
    joint training's. rates: the part of mode vq's rate axis, 0..1, that joint training covers.
    rate_share, temperature: how the rate's gradient is estimated there, at which part of the positions
    (0: not at all) and under how soft a choice.
    """

    mode: str = "vq"
    transform: TransformConfig = field(default_factory=TransformConfig)
    quantizer: QuantizerConfig | UniformConfig = field(default_factory=QuantizerConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
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
    prior_effort: int = 3
    prior_share: float = 0.35
    joint_share: float = 0.4
    rates: tuple[float, float] = (0.0, 1.0)
    rate_share: float = 0.1
    temperature: float = 0.5
    validate_every: int = 500

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases of a run of this mode."""
        return ("start", *(("synthesis",) if self.mode == "vq" else ()), "joint", "prior")


def default_config() -> TrainConfig:
    """The model that `vqcodec compress` takes."""
    return TrainConfig(
        transform=TransformConfig(channels=416, analysis_depths=(3, 2, 1)),
        quantizer=QuantizerConfig(
            blocks=((8, 1), (4, 2), (68, 4), (16, 8)),
            # A stage more pays from where its range begins, on validation, and no earlier.
            first=(12000.0, 2400.0, 445.0, 117.0),
            last=(1900.0, 400.0, 110.0, 25.0),
            predicted=(3, 13, 64),
        ),
        # Fewer tables than before for more groups: the file has at most 12 MB.
        prior=PriorConfig(tables=28, chunks=(3, 12, 28, 50)),
    )


def tiny_config() -> TrainConfig:
    """A model of a few hundred kilobytes that trains in seconds: for tests and first tries."""
    return TrainConfig(
        transform=TransformConfig(
            channels=20,
            synthesis_widths=(16, 12, 8),
            synthesis_depths=(1, 1, 1),
            analysis_widths=(8, 8, 8),
            analysis_depths=(1, 1, 1),
            rates=16,
        ),
        quantizer=QuantizerConfig(
            blocks=((2, 1), (1, 2), (4, 4)),
            codewords=32,
            mu=(1600.0, 200.0),
            first=(12000.0, 2000.0),
            last=(900.0, 150.0),
            predicted=(2, 6),
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


def small_config() -> TrainConfig:
    """A model below one megabyte: the modes that `vqcodec compare` sets side by side."""
    return TrainConfig(
        transform=TransformConfig(
            channels=80,
            analysis_widths=(48, 36, 20),
            synthesis_widths=(48, 36, 20),
            synthesis_depths=(1, 1, 1),
            rates=0,
        ),
        quantizer=QuantizerConfig(
            blocks=((8, 1), (4, 2), (16, 4)),
            mu=(1200.0, 150.0),
            first=(12000.0, 1500.0),
            last=(520.0, 58.0),
        ),
        prior=PriorConfig(tables=12, hidden=(48, 32), group_hidden=16, chunks=(6, 14)),
        prior_share=0.25,
        smoothing=0.995,
    )


def mini_config() -> TrainConfig:
    """A model of half a megabyte: the rest of the family, for reference."""
    return TrainConfig(
        transform=TransformConfig(
            channels=64,
            analysis_widths=(32, 24, 16),
            synthesis_widths=(32, 24, 16),
            synthesis_depths=(1, 1, 1),
            rates=0,
        ),
        quantizer=QuantizerConfig(
            blocks=((8, 1), (4, 2), (12, 4)),
            codewords=128,
            mu=(1200.0, 150.0),
            first=(12000.0, 1500.0),
            last=(520.0, 58.0),
        ),
        prior=PriorConfig(tables=8, hidden=(24, 16), group_hidden=10, chunks=(6, 13)),
        prior_share=0.25,
        smoothing=0.995,
    )


PRESETS = {"default": default_config, "small": small_config, "mini": mini_config, "tiny": tiny_config}


def preset_config(preset: str, mode: str = "vq", objective: ObjectiveConfig | None = None) -> TrainConfig:
    """The settings of a preset for a mode. ValueError for unknown names.

    Modes differ in the bottleneck alone: the uniform ones quantise every channel by itself, the dvae has
    one stage, the rvq twice as many of a quarter of the codewords, only vq has a price of a bit and
    predicts. Where it is not vq, the analysis has the branch that the synthesis has.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if objective is not None and mode == "vq":
        raise ValueError("mode vq has no losses to choose: its rate is a price, not a weight")
    objective = mode_objective(mode, objective or ObjectiveConfig())
    config = dataclasses.replace(PRESETS[preset](), mode=mode, objective=objective)
    if mode == "vq":
        return config
    quantizer = config.quantizer
    assert isinstance(quantizer, QuantizerConfig)
    quantizer = dataclasses.replace(quantizer, predicted=())
    transform = dataclasses.replace(
        config.transform,
        analysis_depths=config.transform.synthesis_depths,
        rates=0,
        posterior=mode in POSTERIOR_MODES,
    )
    config = dataclasses.replace(config, transform=transform)
    if MODES[mode] in UNIFORM_MODES:
        chunks = (quantizer.channels // 12, quantizer.channels // 3)
        if mode == "hvae":
            # The upper level has the channels that most of a picture's energy is in.
            transform = dataclasses.replace(transform, top=chunks[0])
            config = dataclasses.replace(config, transform=transform)
        prior = dataclasses.replace(
            config.prior, tables=config.prior.tables // 2, group_hidden=12, chunks=chunks
        )
        uniform = UniformConfig(channels=quantizer.channels)
        return dataclasses.replace(config, quantizer=uniform, prior=prior)
    stages, codewords = quantizer.stages, quantizer.codewords
    if mode == "dvae":
        stages = 1
    if mode == "rvq":
        stages, codewords = 2 * stages, max(2, codewords // 4)
    free = (1.0,) * stages
    quantizer = dataclasses.replace(
        quantizer, codewords=codewords, mu=free, first=free, last=free, pooled=mode == "vqvae2"
    )
    # A step of the dvae weighs every codeword: half as many pictures are still twice the work.
    batch = config.batch // 2 if mode == "dvae" else config.batch
    return dataclasses.replace(config, quantizer=quantizer, batch=batch)


def mode_objective(mode: str, objective: ObjectiveConfig) -> ObjectiveConfig:
    """The losses that a mode can have of those that are asked for."""
    if mode == "fsq":
        # A lattice stays where it is, and it has an edge.
        return dataclasses.replace(objective, codebook="fixed")
    return objective


def config_to_json(config: TrainConfig) -> str:
    """The settings as text, for a checkpoint."""
    return json.dumps(dataclasses.asdict(config))


def train_config_from_json(text: str) -> TrainConfig:
    """The inverse of `config_to_json`. TypeError, KeyError or ValueError for what is none."""
    values: dict[str, Any] = json.loads(text)
    quantizer: type[QuantizerConfig | UniformConfig] = (
        UniformConfig if MODES[values["mode"]] in UNIFORM_MODES else QuantizerConfig
    )
    values["transform"] = config_from_json(TransformConfig, values["transform"])
    values["quantizer"] = config_from_json(quantizer, values["quantizer"])
    values["prior"] = config_from_json(PriorConfig, values["prior"])
    # Checkpoints of before there were parts of the axis cover it all.
    values["rates"] = tuple(values.get("rates", (0.0, 1.0)))
    values["objective"] = config_from_json(ObjectiveConfig, values["objective"])
    return TrainConfig(**values)
