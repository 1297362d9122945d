"""A training run from a folder of pictures to a weights file, in phases.

start      principal components and codebooks, in closed form; a usable linear model
synthesis  gradient training of the synthesis on quantised latents (mode vq)
joint      gradient training of analysis, synthesis and bottleneck
prior      training of the conditional prior on cached symbols; tables; calibration of quality

A model is written after each phase, a checkpoint every minute; `resume` continues a run from its
checkpoint, with a given number of steps exactly as if it had never stopped.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.bottleneck import VectorBottleneck
from vqcodec.codec import Codec, resolve_device
from vqcodec.collapse import describe
from vqcodec.effort import GREEDY_EFFORT
from vqcodec.errors import ModelFileError, OutputExistsError
from vqcodec.files import write_atomically
from vqcodec.hierarchy import ConditionalPrior
from vqcodec.model import (
    MODE_MODELS,
    QUALITIES,
    Model,
    ModelConfig,
    find_model,
    load_model,
)
from vqcodec.modes import POSTERIOR_MODES
from vqcodec.posterior import CategoricalPosterior
from vqcodec.prediction import Predictor
from vqcodec.prior import IntegerPrior
from vqcodec.quantizer import LEVELS, QuantizerConfig, RatePoint, ResidualQuantizer, point_at
from vqcodec.search import search_symbols
from vqcodec.train.calibration import calibrate_points
from vqcodec.train.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from vqcodec.train.joint import JointTrainer
from vqcodec.train.lattice import lattice_quantizer
from vqcodec.train.objectives import (
    AutoencoderObjective,
    CategoricalObjective,
    CodebookObjective,
    DenoisingObjective,
    GaussianObjective,
    HierarchicalObjective,
    NearestObjective,
    Objective,
    WassersteinObjective,
    start_posterior,
)
from vqcodec.train.photos import PhotoSet, load_photos, random_crops
from vqcodec.train.prior import (
    PRIOR_ROUNDS,
    CodedPhoto,
    PriorTrainer,
    count_tables,
    encode_conditional,
    encode_static,
    is_conditional,
    static_prior,
    vector_symbols,
)
from vqcodec.train.settings import (
    ObjectiveConfig,
    TrainConfig,
    config_to_json,
    mode_objective,
    preset_config,
    train_config_from_json,
)
from vqcodec.train.start import GRID, fit_codebooks, principal_components, sample_patches, static_bits
from vqcodec.train.steps import fit_steps, start_uniform
from vqcodec.train.synthesis import SynthesisTrainer
from vqcodec.train.vector import VectorTrainer
from vqcodec.transform import (
    LOG_VARIANCE_MIN,
    PIXEL_MEAN,
    STRIDE,
    Analysis,
    Synthesis,
    TransformConfig,
    pad_pixels,
)
from vqcodec.uniform import UniformBottleneck, UniformConfig, UniformQuantizer

logger = logging.getLogger(__name__)

_CHECKPOINT_SECONDS = 60
# Larger pictures are cut to this side when the prior's indices are cached.
_CACHE_SIDE = 1024
_CALIBRATION_SIDE = 384
# Log-variance that the levels of an hvae begin with, and its spread.
_NARROW, _NARROW_SPREAD = -9.0, 0.1
_SIMPLE_OBJECTIVES: dict[str, type[Objective]] = {
    "ae": AutoencoderObjective,
    "dae": DenoisingObjective,
    "vae": GaussianObjective,
    "wae": WassersteinObjective,
}
# Rates that each photo is coded at for the prior's first round.
_COPIES = 3


@dataclass
class _Run:
    """The state of a run: what is decided and learnt so far."""

    config: TrainConfig
    seed: int
    device: str
    out: Path
    analysis: Analysis
    synthesis: Synthesis
    quantizer: ResidualQuantizer | UniformQuantizer
    bits: Tensor
    prior: IntegerPrior
    points: tuple[RatePoint, ...]
    phases: tuple[str, ...]
    done: list[str]
    notes: dict[str, Any]
    posterior: CategoricalPosterior | None = None
    conditional: ConditionalPrior | None = None
    # The prior that the run began with, if it had learnt to choose.
    learnt: IntegerPrior | None = None

    @property
    def vector_quantizer(self) -> ResidualQuantizer:
        assert isinstance(self.quantizer, ResidualQuantizer)
        return self.quantizer

    def model(self) -> Model:
        config = ModelConfig(
            name=self.out.stem,
            transform=self.config.transform,
            quantizer=self.config.quantizer,
            prior=self.config.prior,
            points=self.points,
            training={"config": dataclasses.asdict(self.config), "seed": self.seed, **self.notes},
            mode=self.config.mode,
        )
        return Model(
            config,
            self.analysis,
            self.synthesis,
            self.quantizer,
            self.prior,
            self.posterior,
            self.conditional,
        )

    def write(self) -> None:
        write_atomically(self.out, self.model().to_bytes(), overwrite=True)

    def state(self, phase: str | None = None, inner: dict[str, Any] | None = None) -> dict[str, Any]:
        return {
            "config": config_to_json(self.config),
            "seed": self.seed,
            "analysis": self.analysis.state_dict(),
            "synthesis": self.synthesis.state_dict(),
            "quantizer": _quantizer_state(self.quantizer),
            "posterior": None if self.posterior is None else self.posterior.state_dict(),
            "conditional": None if self.conditional is None else self.conditional.state_dict(),
            "bits": self.bits,
            "prior": _prior_state(self.prior),
            "learnt": None if self.learnt is None else _prior_state(self.learnt),
            "points": [list(point) for point in self.points],
            "phases": list(self.phases),
            "done": list(self.done),
            "notes": json.dumps(self.notes),
            "phase": phase,
            "inner": inner,
        }


def train_model(
    *,
    data: Path,
    out: Path,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
    init: str | None = None,
    phases: tuple[str, ...] | None = None,
    device: str | None = None,
    seed: int = 0,
    preset: str = "default",
    mode: str | None = None,
    objective: ObjectiveConfig | None = None,
    config: TrainConfig | None = None,
) -> Path:
    """Trains a model on the pictures below `data` and writes it to `out`; returns `out`.

    minutes or steps: the budget (steps of the networks; the prior takes half as many); neither: 60
    minutes. init: a model of the same mode to start from instead of the closed-form start. phases: a
    part of ("start", "synthesis", "joint", "prior"), in other modes than vq without "synthesis".
    mode: vq unless given; objective: losses of the others; config: settings in place of those that
    preset, mode and objective say, for a run that begins. resume: the checkpoint has settings,
    phases and seed, and goes on with them; a mode, phases or losses that differ are refused. Raises
    VqcError subclasses for unusable data, models and checkpoints or a diverging loss, ValueError for
    arguments that do not fit.
    """
    if minutes is not None and steps is not None:
        raise ValueError("give a budget in minutes or in steps, not both")
    target = str(resolve_device(device))
    pending: dict[str, Any] | None = None
    run: _Run | None = None
    if resume:
        run, pending = _resumed(load_checkpoint(checkpoint_path(out)), out, target)
        _check_resumed(run, mode, phases, objective)
    else:
        asked = config or preset_config(preset, mode or "vq", objective)
        chosen = _plan(out, asked, phases, init)
    seconds = None if steps is not None else 60 * (60.0 if minutes is None else minutes)
    photos = load_photos(data)
    logger.info("%d pictures to train on, %d to validate", len(photos.train), len(photos.validation))
    if run is None:
        if init is not None:
            model = load_model(find_model(init, mode=asked.mode))
            run = _from_model(model, photos, out, target, seed, chosen, asked)
        else:
            run = _start(asked, photos, out, target, seed, chosen)
        run.write()
        save_checkpoint(checkpoint_path(out), run.state())
    prior, joint = run.config.prior_share, run.config.joint_share
    shares = {"synthesis": 1 - prior - joint, "joint": joint, "prior": prior}
    if run.config.mode != "vq":
        shares["joint"] = 1 - prior
    left = [p for p in run.phases if p not in run.done]
    total = sum(shares[p] for p in left)
    for phase in left:
        inner = pending if pending and pending.get("phase") == phase else None
        part = None if seconds is None else seconds * shares[phase] / total
        if phase == "synthesis":
            _train_synthesis(run, photos, steps, part, inner)
        elif phase == "joint" and run.config.mode == "vq":
            _train_vector(run, photos, steps, part, inner)
        elif phase == "joint":
            _train_joint(run, photos, steps, part, inner)
        else:
            prior_steps = None if steps is None else max(PRIOR_ROUNDS, steps // 2)
            _train_prior(run, photos, prior_steps, part, inner)
        run.done.append(phase)
        run.write()
        save_checkpoint(checkpoint_path(out), run.state())
    return out


def train_models(
    *,
    data: Path,
    out: Path,
    modes: Sequence[str],
    resume: bool = False,
    phases: tuple[str, ...] | None = None,
    preset: str = "default",
    objective: ObjectiveConfig | None = None,
    **options: Any,
) -> list[Path]:
    """Trains a model of each mode, one after the other, into the folder `out`, by their packaged names.

    Arguments are those of `train_model`, less init; they are checked for every mode before the first
    one is trained. resume: modes that have a checkpoint go on from it, the others begin.
    """
    if len(set(modes)) < len(modes):
        raise ValueError("a mode is named twice")
    targets = [out / f"{MODE_MODELS[mode]}.safetensors" for mode in modes]
    going_on = [resume and checkpoint_path(target).exists() for target in targets]
    for mode, target, goes_on in zip(modes, targets, going_on, strict=True):
        if not goes_on:
            _plan(target, preset_config(preset, mode, objective), phases, None)
    out.mkdir(parents=True, exist_ok=True)
    return [
        train_model(
            data=data,
            out=target,
            resume=goes_on,
            phases=phases,
            preset=preset,
            mode=mode,
            objective=objective,
            **options,
        )
        for mode, target, goes_on in zip(modes, targets, going_on, strict=True)
    ]


def _plan(
    out: Path, config: TrainConfig, phases: tuple[str, ...] | None, init: str | None
) -> tuple[str, ...]:
    """Phases of a new run. ValueError and OutputExistsError for what cannot be."""
    chosen = phases or (config.phases if init is None else config.phases[1:])
    for phase in chosen:
        if phase not in config.phases:
            raise ValueError(
                f"phases of mode {config.mode} are {', '.join(config.phases)}, got {phase!r}"
            )
    if (init is None) != ("start" in chosen):
        raise ValueError("a run begins with the phase 'start' or with a model given as init")
    if out.exists() or checkpoint_path(out).exists():
        raise OutputExistsError(
            f"{out} or its checkpoint exists: resume that run, or choose another name"
        )
    return chosen


def _check_resumed(
    run: _Run,
    mode: str | None,
    phases: tuple[str, ...] | None,
    objective: ObjectiveConfig | None,
) -> None:
    """ValueError where something was asked for that the checkpoint does not go on with."""
    if mode is not None and mode != run.config.mode:
        raise ValueError(f"the checkpoint is of mode {run.config.mode}, not {mode}")
    if phases is not None and phases != run.phases:
        raise ValueError(f"the checkpoint has the phases {', '.join(run.phases)}")
    if objective is not None and mode_objective(run.config.mode, objective) != run.config.objective:
        raise ValueError("the checkpoint was made with other losses")


def _start(
    config: TrainConfig,
    photos: PhotoSet,
    out: Path,
    device: str,
    seed: int,
    phases: tuple[str, ...],
) -> _Run:
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    channels = config.transform.channels
    weight, deviation = principal_components(
        sample_patches(photos.train, config.patches, random), channels
    )
    quantizer: ResidualQuantizer | UniformQuantizer
    if isinstance(config.quantizer, UniformConfig):
        quantizer, bits = start_uniform(config.quantizer)
    else:
        vectors = sample_patches(photos.train, config.codebook_vectors, random)
        latents = vectors @ weight.reshape(channels, -1).T
        if config.mode == "fsq":
            layout = config.quantizer
            quantizer = lattice_quantizer(layout, deviation)
            equal = torch.full(
                (layout.stages, layout.groups, layout.codewords), math.log2(layout.codewords)
            )
            bits = static_bits(latents, quantizer, equal, iterations=1)
        else:
            reach = PIXEL_MEAN * weight.flatten(1).abs().sum(1)
            quantizer, bits = fit_codebooks(
                latents, config.quantizer, reach, iterations=config.codebook_iterations, random=random
            )
    posterior = conditional = None
    if config.mode == "dvae" and isinstance(quantizer, ResidualQuantizer):
        posterior = start_posterior(quantizer, bits[0], deviation, config.objective.noise)
    if config.transform.top:
        conditional = ConditionalPrior(channels, config.transform.top).requires_grad_(False)
    analysis, synthesis = Analysis(config.transform), Synthesis(config.transform)
    analysis.linear.weight.data.copy_(weight)
    analysis.scale.copy_(deviation)
    synthesis.linear.weight.data.copy_(weight)
    synthesis.scale.copy_(deviation)
    if conditional is not None and analysis.log_variance is not None:
        # Levels that begin narrow are both used; a wide one lets the other do all the work.
        start = torch.randn(channels, generator=torch.Generator().manual_seed(seed))
        analysis.log_variance.data.copy_(_NARROW + _NARROW_SPREAD * start)
    elif analysis.log_variance is not None:
        # What the best linear code leaves of a channel: noise, and at most all of it.
        spread = 2 * (config.objective.noise / deviation).log()
        analysis.log_variance.data.copy_(spread.clamp(LOG_VARIANCE_MIN, 0))
    return _Run(
        config=config,
        seed=seed,
        device=device,
        out=out,
        analysis=analysis.requires_grad_(False),
        synthesis=synthesis,
        quantizer=quantizer,
        bits=bits,
        prior=static_prior(config.prior, config.quantizer, bits),
        points=_start_points(config),
        phases=phases,
        done=["start"],
        notes={"pictures": len(photos.train)},
        posterior=posterior,
        conditional=conditional,
    )


def _start_points(config: TrainConfig) -> tuple[RatePoint, ...]:
    """Qualities spread evenly over the rate axis. Only mode vq calibrates them in the end: in the
    others a bucket is a step, or a number of groups, and its price means nothing."""
    quantizer = config.quantizer
    if isinstance(quantizer, UniformConfig):
        return tuple(RatePoint(q * quantizer.buckets // QUALITIES, 1.0) for q in range(1, QUALITIES + 1))
    if config.mode == "vq":
        places = np.linspace(0.02, quantizer.stages, QUALITIES)
        return tuple(point_at(quantizer, float(place)) for place in places)
    buckets = quantizer.stages * LEVELS
    return tuple(RatePoint(-(-q * buckets // QUALITIES), 1.0) for q in range(1, QUALITIES + 1))


def _from_model(
    model: Model,
    photos: PhotoSet,
    out: Path,
    device: str,
    seed: int,
    phases: tuple[str, ...],
    preset: TrainConfig,
) -> _Run:
    config = dataclasses.replace(
        preset,
        transform=model.config.transform,
        quantizer=model.config.quantizer,
        prior=model.config.prior,
    )
    if isinstance(model.quantizer, UniformQuantizer):
        bits = start_uniform(model.quantizer.config)[1]
    else:
        bits = _measure_bits(model, model.quantizer, photos, config, seed)
    return _Run(
        config=config,
        seed=seed,
        device=device,
        out=out,
        analysis=model.analysis,
        synthesis=model.synthesis,
        quantizer=model.quantizer,
        bits=bits,
        prior=model.prior,
        points=model.config.points,
        phases=phases,
        done=[],
        notes={"pictures": len(photos.train), "init": f"{model.code_id:08x}"},
        posterior=model.posterior,
        conditional=model.conditional,
        learnt=model.prior if is_conditional(model.prior) else None,
    )


def _measure_bits(
    model: Model, quantizer: ResidualQuantizer, photos: PhotoSet, config: TrainConfig, seed: int
) -> Tensor:
    """Static code lengths (S, G, K) of a model's codebooks on the training pictures."""
    crops = random_crops(
        photos.train,
        max(1, config.codebook_vectors // GRID**2),
        GRID * STRIDE,
        np.random.default_rng(seed),
    )
    with torch.no_grad():
        latents = torch.cat([model.analysis(part) for part in crops.split(16)])
    tables = [torch.from_numpy(stage) for stage in model.prior.bits]
    known = torch.stack([-(torch.exp2(-stage).mean(1)).log2() for stage in tables])
    return static_bits(latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]), quantizer, known)


def _resumed(state: dict[str, Any], out: Path, device: str) -> tuple[_Run, dict[str, Any] | None]:
    try:
        config = train_config_from_json(state["config"])
        analysis, synthesis = Analysis(config.transform), Synthesis(config.transform)
        analysis.load_state_dict(state["analysis"])
        synthesis.load_state_dict(state["synthesis"])
        prior = static_prior(config.prior, config.quantizer, state["bits"])
        # Checkpoints of before twins went on have none.
        learnt = state.get("learnt")
        run = _Run(
            config=config,
            seed=int(state["seed"]),
            device=device,
            out=out,
            analysis=analysis.requires_grad_(False),
            synthesis=synthesis,
            quantizer=_quantizer_from_state(config.quantizer, state["quantizer"]),
            bits=state["bits"],
            prior=prior.replace({k: v.numpy() for k, v in state["prior"].items()}),
            points=tuple(RatePoint(*point) for point in state["points"]),
            phases=tuple(state["phases"]),
            done=list(state["done"]),
            notes=json.loads(state["notes"]),
            posterior=_posterior_from_state(config.quantizer, state["posterior"]),
            conditional=_conditional_from_state(config.transform, state.get("conditional")),
            learnt=learnt and prior.replace({k: v.numpy() for k, v in learnt.items()}),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"the checkpoint does not fit this version ({error})") from error
    inner = {"phase": state["phase"], **state["inner"]} if state["phase"] else None
    return run, inner


def _prior_state(prior: IntegerPrior) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in prior.tensors.items()}


def _quantizer_state(quantizer: ResidualQuantizer | UniformQuantizer) -> list[Any]:
    if isinstance(quantizer, UniformQuantizer):
        return [torch.from_numpy(quantizer.step), torch.from_numpy(quantizer.gain)]
    state: list[Any] = [[torch.from_numpy(book) for book in stage] for stage in quantizer.codebooks]
    if quantizer.predictor is not None:
        state.append([torch.from_numpy(weight) for weight in quantizer.predictor.weights])
    return state


def _quantizer_from_state(
    config: QuantizerConfig | UniformConfig, state: list[Any]
) -> ResidualQuantizer | UniformQuantizer:
    if isinstance(config, UniformConfig):
        step, gain = (part.numpy() for part in state)
        return UniformQuantizer(config, step, gain)
    parts = [[part.numpy() for part in stage] for stage in state]
    predictor = Predictor(config.predicted, parts.pop()) if config.predicted else None
    return ResidualQuantizer(config, parts, predictor)


def _posterior_from_state(
    config: QuantizerConfig | UniformConfig, state: dict[str, Tensor] | None
) -> CategoricalPosterior | None:
    if state is None or isinstance(config, UniformConfig):
        return None
    posterior = CategoricalPosterior(config)
    posterior.load_state_dict(state)
    return posterior.requires_grad_(False)


def _conditional_from_state(
    config: TransformConfig, state: dict[str, Tensor] | None
) -> ConditionalPrior | None:
    if state is None:
        return None
    conditional = ConditionalPrior(config.channels, config.top)
    conditional.load_state_dict(state)
    return conditional.requires_grad_(False)


def _train_synthesis(
    run: _Run,
    photos: PhotoSet,
    steps: int | None,
    seconds: float | None,
    inner: dict[str, Any] | None,
) -> None:
    if not run.synthesis.nonlinear:
        return
    trainer = SynthesisTrainer(
        run.config,
        run.analysis,
        run.synthesis,
        run.vector_quantizer,
        run.bits,
        seed=run.seed + 1,
        device=run.device,
    )
    if inner is not None:
        trainer.load_state(inner["trainer"])

    _loop(
        run,
        "synthesis",
        trainer,
        lambda progress: trainer.step(photos.train, progress),
        lambda losses: _report_losses(run, trainer, photos, losses),
        steps,
        seconds,
        inner,
    )
    run.synthesis = trainer.averaged_synthesis().cpu().requires_grad_(False)
    run.notes["synthesis_steps"] = trainer.steps_done


def _train_vector(
    run: _Run,
    photos: PhotoSet,
    steps: int | None,
    seconds: float | None,
    inner: dict[str, Any] | None,
) -> None:
    trainer = VectorTrainer(
        run.config,
        run.analysis,
        run.synthesis,
        run.vector_quantizer,
        run.bits,
        seed=run.seed + 2,
        device=run.device,
    )
    if inner is not None:
        trainer.load_state(inner["trainer"])
    _loop(
        run,
        "joint",
        trainer,
        lambda progress: trainer.step(photos.train, progress),
        lambda losses: _report_losses(run, trainer, photos, losses),
        steps,
        seconds,
        inner,
    )
    analysis, synthesis = trainer.averaged_networks()
    run.analysis, run.synthesis = analysis.cpu(), synthesis.cpu()
    run.quantizer, run.bits = trainer.quantizer, trainer.bits
    run.prior = static_prior(run.config.prior, run.config.quantizer, run.bits)
    run.notes["joint_steps"] = trainer.steps_done


def _report_losses(
    run: _Run, trainer: SynthesisTrainer | VectorTrainer, photos: PhotoSet, losses: list[float]
) -> str:
    """The mean of the last losses, and now and then what validation says."""
    text = f"loss {np.mean(losses[-50:]):.4f}"
    if trainer.steps_done % run.config.validate_every == 0:
        rates = trainer.validate(photos.validation)
        text += "  " + "  ".join(f"{bpp:.3f} bpp {psnr:.2f} dB" for bpp, psnr in rates)
    return text


def _train_joint(
    run: _Run,
    photos: PhotoSet,
    steps: int | None,
    seconds: float | None,
    inner: dict[str, Any] | None,
) -> None:
    objective = _objective(run)
    trainer = JointTrainer(
        run.config, run.analysis, run.synthesis, objective, seed=run.seed + 1, device=run.device
    )
    if inner is not None:
        trainer.load_state(inner["trainer"])
    _loop(
        run,
        "joint",
        trainer,
        lambda progress: trainer.step(photos.train, progress),
        lambda losses: f"loss {np.mean(losses[-50:]):.4f}",
        steps,
        seconds,
        inner,
    )
    trainer.load_average()
    run.notes["joint_steps"] = trainer.steps_done
    if isinstance(objective, CodebookObjective):
        run.quantizer = objective.quantizer()
    centre = [_centre(photo, _CALIBRATION_SIDE) for photo in photos.validation]
    if run.config.mode in POSTERIOR_MODES:
        run.quantizer = fit_steps(run.analysis, centre)
    health = Codec(run.model(), torch.device("cpu")).inspect_latent(centre)
    run.notes["health"] = dataclasses.asdict(health)
    logger.info("%s", describe(health))


def _objective(run: _Run) -> Objective:
    """The trained part of a run's bottleneck."""
    settings, mode = run.config.objective, run.config.mode
    if mode in _SIMPLE_OBJECTIVES:
        return _SIMPLE_OBJECTIVES[mode](settings)
    if mode == "hvae":
        assert run.conditional is not None
        return HierarchicalObjective(settings, run.conditional.requires_grad_(True))
    if mode != "dvae":
        return NearestObjective(settings, run.vector_quantizer, run.analysis.scale)
    assert run.posterior is not None
    run.posterior.requires_grad_(True)
    return CategoricalObjective(settings, run.vector_quantizer, run.analysis.scale, run.posterior)


def _train_prior(
    run: _Run,
    photos: PhotoSet,
    steps: int | None,
    seconds: float | None,
    inner: dict[str, Any] | None,
) -> None:
    """Two rounds: on indices chosen by static code lengths, if the run's prior has no others, then on
    those that the encoder chooses once it pays what the first round's prior charges. What the start's
    prior has learnt is gone on from."""
    run.analysis.cpu()
    trainer: PriorTrainer | None = None
    # How long photos are searched whenever they are coded anew.
    patience = None if seconds is None else seconds / (4 * PRIOR_ROUNDS)
    conditional = is_conditional(run.prior)
    for number in range(PRIOR_ROUNDS):
        if inner is not None and number < inner["round"]:
            continue
        began = time.monotonic()
        random = np.random.default_rng([run.seed, number])
        # By static code lengths every photo is coded quickly, so at several rates.
        cached = _cache_indices(
            run,
            photos,
            conditional or number > 0,
            random,
            copies=1 if conditional or number else _COPIES,
            seconds=patience,
        )
        if trainer is None:
            start = None if run.learnt is None else count_tables(run.learnt, cached)
            trainer = PriorTrainer(run.config, run.quantizer, cached, seed=run.seed + 3, start=start)
        if inner is not None:
            trainer.load_state(inner["trainer"])
        trainer.begin_round(number, cached)
        # Encoding again for the next round or for the tables takes about as long as caching did.
        left = None
        if seconds is not None:
            share = seconds / PRIOR_ROUNDS
            left = max(share / 4, share - 2 * (time.monotonic() - began))

        def report(spent: list[list[float]]) -> str:
            mean = np.mean(spent[-50:], 0) / STRIDE**2
            return "  ".join(f"{bpp:.4f}" for bpp in mean) + " bpp by stage"

        first = None if steps is None else steps * number // PRIOR_ROUNDS
        last = None if steps is None else steps * (number + 1) // PRIOR_ROUNDS
        _loop(run, "prior", trainer, trainer.step, report, last, left, inner, first=first or 0)
        run.prior = trainer.export()
        inner = None
    assert trainer is not None
    # A table of the last stage is met by a fourth of the photos, in one of 32 contexts: counts of
    # one coding each would leave it noisy.
    random = np.random.default_rng([run.seed, PRIOR_ROUNDS])
    recoded = _cache_indices(run, photos, True, random, copies=1, seconds=patience)
    run.prior = count_tables(run.prior, [*trainer.photos, *recoded])
    if run.config.mode == "vq":
        bottleneck = VectorBottleneck(run.vector_quantizer, run.prior)
        centre = [_centre(photo, _CALIBRATION_SIDE) for photo in photos.validation]
        run.points = calibrate_points(bottleneck, [_latent(run, p) for p in centre])
    run.notes["prior_steps"] = trainer.steps_done


def _cache_indices(
    run: _Run,
    photos: PhotoSet,
    conditional: bool,
    random: np.random.Generator,
    *,
    copies: int,
    seconds: float | None = None,
) -> list[CodedPhoto]:
    """Every training photo coded at random rates, by the prior or by static code lengths.

    By the prior after a search of `prior_effort`; but photos whose turn comes after so many seconds,
    in an order that is drawn, are assigned once.
    """
    bottleneck = run.model().bottleneck
    coded = []
    stages = run.config.quantizer.stages
    began = time.monotonic()
    turns = [int(turn) for _ in range(copies) for turn in random.permutation(len(photos.train))]
    for number, turn in enumerate(turns):
        photo = photos.train[turn]
        picture = _cut(photo, _CACHE_SIDE, random)
        latent = _latent(run, picture)
        # The first is always complete, so that every stage has something to learn from.
        if run.config.mode != "vq" or isinstance(bottleneck, UniformBottleneck):
            bucket = int(random.integers(bottleneck.buckets)) + 1 if number else bottleneck.buckets
            coded.append(encode_conditional(bottleneck, latent, RatePoint(bucket, 1.0)))
            continue
        position = _training_position(stages, random) if number else float(stages)
        point = point_at(run.vector_quantizer.config, position)
        if conditional:
            late = seconds is not None and time.monotonic() - began > seconds
            effort = GREEDY_EFFORT if late else run.config.prior_effort
            pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float()
            planes = search_symbols(latent, pixels, point, bottleneck, run.synthesis, effort=effort)
            coded.append(vector_symbols(planes, point))
        else:
            coded.append(encode_static(run.vector_quantizer, run.bits, latent, point))
    return coded


def _loop(
    run: _Run,
    phase: str,
    trainer: SynthesisTrainer | VectorTrainer | JointTrainer | PriorTrainer,
    step: Callable[[float], Any],
    report: Callable[[list[Any]], str],
    steps: int | None,
    seconds: float | None,
    inner: dict[str, Any] | None,
    *,
    first: int = 0,
) -> None:
    """Steps until `steps` are done in all (of which `first` before this loop), or for `seconds`;
    progress on the terminal, checkpoints on the way."""
    spent_before = float(inner["seconds"]) if inner else 0.0
    began = saved = shown = time.monotonic()
    results: list[Any] = []

    def save() -> None:
        now = time.monotonic()
        state = {
            "trainer": trainer.state(),
            "seconds": spent_before + now - began,
            "round": getattr(trainer, "round", 0),
        }
        save_checkpoint(checkpoint_path(run.out), run.state(phase, state))

    while True:
        if steps is not None:
            progress = (trainer.steps_done - first) / (steps - first) if steps > first else 1.0
        else:
            assert seconds is not None
            elapsed = spent_before + time.monotonic() - began
            progress = elapsed / seconds if seconds > 0 else 1.0
        if progress >= 1:
            break
        results.append(step(progress))
        now = time.monotonic()
        if now - shown > 10 or trainer.steps_done % run.config.validate_every == 0:
            shown = now
            bar = "#" * int(20 * progress)
            logger.info("%s [%-20s] step %d  %s", phase, bar, trainer.steps_done, report(results))
            del results[:-50]
        if now - saved > _CHECKPOINT_SECONDS:
            saved = now
            save()
    save()


def _training_position(stages: int, random: np.random.Generator) -> float:
    """A random rate position; a third of them complete stages, which most symbols come from."""
    position = stages * (1 - random.random())
    return float(math.ceil(position)) if random.random() < 1 / 3 else position


def _latent(run: _Run, photo: NDArray[np.uint8]) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        return run.analysis(pad_pixels(pixels))[0]


def _cut(photo: NDArray[np.uint8], side: int, random: np.random.Generator) -> NDArray[np.uint8]:
    top, left = (int(random.integers(0, max(1, size - side + 1))) for size in photo.shape[:2])
    return photo[top : top + side, left : left + side]


def _centre(photo: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    top, left = (max(0, size - side) // 2 for size in photo.shape[:2])
    return photo[top : top + side, left : left + side]
