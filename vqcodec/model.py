"""Models: configuration, weights file, look-up by name, path or code id.

A weights file is safetensors. Its metadata entry "vqcodec" is JSON: format, name, mode, the
configurations of transform, quantiser and prior, the point on the rate axis of each quality, and notes
of the training. Tensors: `analysis.*` and `synthesis.*` float16, `prior.*` integers; of a
vector quantiser `codebook.<stage>.<block>` int16 and in mode dvae `posterior.*` float16; of a uniform
one `step` and `gain` int32.

The code id is the first four bytes of a SHA-256 over what indices depend on (codebooks, prior,
layout); a file names the code id that it needs. The synthesis network may change without it.

Look-up: a path that exists; else `<name>.safetensors` in the package's `weights/`, then in the
folders of $VQCODEC_MODELS (separated as in $PATH).
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from vqcodec.bottleneck import NestedBottleneck, VectorBottleneck
from vqcodec.container import MODE_NAMES, UNIFORM_BUCKETS, UNIFORM_MODES
from vqcodec.errors import ModeError, ModelFileError, UnknownModelError
from vqcodec.posterior import CategoricalPosterior
from vqcodec.prior import IntegerPrior, PriorConfig
from vqcodec.quantizer import LEVELS, QuantizerConfig, RatePoint, ResidualQuantizer
from vqcodec.transform import Analysis, Synthesis, TransformConfig
from vqcodec.uniform import UniformBottleneck, UniformConfig, UniformQuantizer
from vqcodec_kernels.integer_layers import MAX_CHANNELS, MAX_INPUTS

FORMAT = 1
DEFAULT_MODEL = "default"
QUALITIES = 100
SUFFIX = ".safetensors"
_MAX_FILE_BYTES = 1 << 28
_MAX_SIZE = 1 << 16
_MAX_GROUPS = 4096

MODES = {name: number for number, name in MODE_NAMES.items()}
MODE_MODELS = {"ae": "ae", "vae": "vae", "dvae": "dvae", "vqvae": "vqvae", "vq": "vq-small"}
"""The packaged small model of each mode, all trained with one budget; vq has the default model too."""

_Config = TypeVar("_Config")


@dataclass(frozen=True)
class ModelConfig:
    """Everything about a model but its tensors.

    points: where on the rate axis quality 1..100 lies; training: free notes for the card.
    """

    name: str
    transform: TransformConfig
    quantizer: QuantizerConfig | UniformConfig
    prior: PriorConfig
    points: tuple[RatePoint, ...]
    training: dict[str, Any] = field(default_factory=dict)
    mode: str = "vq"


@dataclass
class Model:
    """A loaded model. Networks are in evaluation mode on the CPU until moved."""

    config: ModelConfig
    analysis: Analysis
    synthesis: Synthesis
    quantizer: ResidualQuantizer | UniformQuantizer
    prior: IntegerPrior
    posterior: CategoricalPosterior | None = None

    @cached_property
    def code_id(self) -> int:
        """What a file must name to be decoded with this model."""
        quantizer = self.config.quantizer
        layout: dict[str, Any] = {
            "codewords": quantizer.codewords,
            "levels": LEVELS,
            "prior": dataclasses.asdict(self.config.prior),
        }
        if isinstance(quantizer, UniformConfig):
            layout |= {
                "mode": "uniform",
                "channels": quantizer.channels,
                "buckets": quantizer.buckets,
            }
        else:
            layout |= {"blocks": quantizer.blocks, "stages": quantizer.stages}
        digest = hashlib.sha256(json.dumps(layout, sort_keys=True).encode())
        for name, array in sorted(self._coding_tensors().items()):
            shape = ",".join(str(side) for side in array.shape)
            digest.update(f"{name} {array.dtype.name} {shape}\n".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return int.from_bytes(digest.digest()[:4], "little")

    @cached_property
    def bottleneck(self) -> VectorBottleneck | UniformBottleneck:
        """The seam between this model's latent and symbols."""
        return make_bottleneck(
            self.config.mode, self.quantizer, self.prior, self.posterior, self.analysis.scale
        )

    def _coding_tensors(self) -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {
            f"prior.{name}": array for name, array in self.prior.tensors.items()
        }
        if isinstance(self.quantizer, UniformQuantizer):
            return {**tensors, "step": self.quantizer.step, "gain": self.quantizer.gain}
        for s, stage in enumerate(self.quantizer.codebooks):
            for b, book in enumerate(stage):
                tensors[f"codebook.{s}.{b}"] = book
        return tensors

    def to_bytes(self) -> bytes:
        """The weights file."""
        networks = {"analysis": self.analysis, "synthesis": self.synthesis, "posterior": self.posterior}
        tensors = {
            f"{part}.{name}": value.detach().cpu().to(torch.float16).contiguous()
            for part, network in networks.items()
            if network is not None
            for name, value in network.state_dict().items()
        }
        for name, array in self._coding_tensors().items():
            tensors[name] = torch.from_numpy(np.ascontiguousarray(array))
        header = {"format": FORMAT, "code_id": self.code_id, **dataclasses.asdict(self.config)}
        return save(tensors, {"vqcodec": json.dumps(header)})


def make_bottleneck(
    mode: str,
    quantizer: ResidualQuantizer | UniformQuantizer,
    prior: IntegerPrior,
    posterior: CategoricalPosterior | None,
    scale: torch.Tensor,
) -> VectorBottleneck | UniformBottleneck:
    """The bottleneck of a mode; posterior and scale are for the dvae."""
    if isinstance(quantizer, UniformQuantizer):
        return UniformBottleneck(quantizer, prior)
    if mode == "vq":
        return VectorBottleneck(quantizer, prior)
    return NestedBottleneck(quantizer, prior, posterior=posterior, scale=scale.cpu())


def load_model(path: Path) -> Model:
    """Reads a weights file. ModelFileError if it is not one, or does not fit its configuration."""
    header = read_model_header(path)
    try:
        config = _parse_config(header)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        return _build(path, config, tensors)
    except ModelFileError:
        raise
    # What a hand-made file can provoke: wrong types in the JSON, dtypes without a NumPy twin.
    except (
        SafetensorError,
        OSError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ModelFileError(f"{path}: not a usable weights file ({error})") from error


def read_model_header(path: Path) -> dict[str, Any]:
    """The JSON metadata of a weights file, without its tensors."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ModelFileError(f"{path}: larger than {_MAX_FILE_BYTES >> 20} MiB")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        header = json.loads(metadata["vqcodec"])
    except KeyError as error:
        raise ModelFileError(f"{path}: safetensors, but not weights of vqcodec") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not a weights file ({error})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ModelFileError(f"{path}: weights of another format than {FORMAT}")
    return header


def find_model(name: str | None = None, *, mode: str | None = None) -> Path:
    """Path of a model by name or path; without one, of a mode's packaged model (for vq the default).

    Raises UnknownModelError if there is none, ModeError if it is of another mode.
    """
    if mode is not None and mode not in MODES:
        raise ModeError(f"modes are {', '.join(MODES)}, got {mode!r}")
    path = _find_model(name, DEFAULT_MODEL if mode in (None, "vq") else MODE_MODELS[str(mode)])
    if mode is not None:
        found = read_model_header(path).get("mode", "vq")
        if found != mode:
            raise ModeError(f"the model {name or path.stem} is of mode {found}, not {mode}")
    return path


def _find_model(name: str | None, otherwise: str) -> Path:
    # Only a model that was asked for may come from the current directory.
    if name is not None and Path(name).is_file():
        return Path(name)
    wanted = name or otherwise
    for folder in _model_folders():
        candidate = folder / f"{wanted}{SUFFIX}"
        if candidate.is_file():
            return candidate
    raise UnknownModelError(
        f"no model {wanted!r}: not a file, not in the package, not in $VQCODEC_MODELS"
    )


def find_model_by_code(code_id: int) -> Path:
    """Path of the model whose files carry this code id. UnknownModelError if none is installed."""
    for folder in _model_folders():
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                if read_model_header(path).get("code_id") == code_id:
                    return path
            except ModelFileError:
                continue
    known = json.loads((_package_weights() / "known.json").read_text())
    version = known.get(f"{code_id:08x}")
    hint = (
        f"it is the default model of vqcodec {version}; install that version"
        if version
        else "put its weights file into a folder of $VQCODEC_MODELS or pass it with --model"
    )
    raise UnknownModelError(f"the file needs the model with code id {code_id:08x}: {hint}")


def _package_weights() -> Path:
    return Path(__file__).with_name("weights")


def _model_folders() -> Iterator[Path]:
    yield _package_weights()
    for folder in os.environ.get("VQCODEC_MODELS", "").split(os.pathsep):
        if folder:
            yield Path(folder)


def _parse_config(header: Mapping[str, Any]) -> ModelConfig:
    mode = header.get("mode", "vq")
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown to this release")
    quantizer_kind: type[QuantizerConfig | UniformConfig] = (
        UniformConfig if MODES[mode] in UNIFORM_MODES else QuantizerConfig
    )
    config = ModelConfig(
        name=str(header["name"]),
        transform=config_from_json(TransformConfig, header["transform"]),
        quantizer=config_from_json(quantizer_kind, header["quantizer"]),
        prior=config_from_json(PriorConfig, header["prior"]),
        points=tuple(RatePoint(bucket, float(price)) for bucket, price in header["points"]),
        training=dict(header.get("training", {})),
        mode=mode,
    )
    quantizer, prior = config.quantizer, config.prior
    transform = config.transform
    if any(len(w) != 3 for w in (transform.analysis_widths, transform.synthesis_widths)):
        raise ValueError("a transform has three widths")
    depths = (*transform.analysis_depths, *transform.synthesis_depths)
    if len(depths) != 6 or not all(_is_int(depth) and 0 <= depth <= 16 for depth in depths):
        raise ValueError("a transform has three depths of 0..16 blocks")
    if transform.posterior is not (mode == "vae"):
        raise ValueError("a posterior belongs to mode vae")
    if mode == "dvae" and quantizer.stages != 1:
        raise ValueError("mode dvae has one stage")
    buckets = _check_quantizer(quantizer)
    if not _is_int(transform.rates) or transform.rates not in (0, buckets):
        raise ValueError("the synthesis is told of other rates than the quantiser has")
    if len(prior.hidden) != 2:
        raise ValueError("the prior has two hidden layers")
    sizes = [
        transform.channels,
        *transform.analysis_widths,
        *transform.synthesis_widths,
        prior.tables,
        prior.embedding,
        *prior.hidden,
        prior.group_hidden,
        prior.window,
    ]
    if not all(_is_int(size) and 1 <= size < _MAX_SIZE for size in (*sizes, *prior.chunks)):
        raise ValueError("a size is out of range")
    if not 1 <= prior.tables <= 256:
        raise ValueError("tables must be 1..256")
    if quantizer.channels != config.transform.channels:
        raise ValueError("the quantiser has other channels than the transform")
    features = quantizer.groups * prior.embedding
    widest = max(4 * features, max(prior.hidden) + 4 * prior.embedding, prior.group_hidden)
    if widest > MAX_INPUTS:
        raise ValueError("the prior's layers are wider than the kernels take")
    if features > MAX_CHANNELS:
        raise ValueError("the prior has more features than the kernels take")
    edges = (0, *prior.chunks, quantizer.groups)
    if any(a >= b for a, b in zip(edges, edges[1:], strict=False)) or prior.window % 2 == 0:
        raise ValueError("chunks must ascend, the window must be odd")
    if len(config.points) != QUALITIES or not all(
        _is_int(p.bucket) and 1 <= p.bucket <= buckets and math.isfinite(p.price) and p.price > 0
        for p in config.points
    ):
        raise ValueError("points must be 100 pairs of a bucket and a positive price")
    return config


def _check_quantizer(quantizer: QuantizerConfig | UniformConfig) -> int:
    """Number of rate buckets of a quantiser's configuration. ValueError for one that cannot be."""
    if isinstance(quantizer, UniformConfig):
        if quantizer.buckets != UNIFORM_BUCKETS or not _is_int(quantizer.channels):
            raise ValueError(f"a uniform quantiser has {UNIFORM_BUCKETS} buckets")
        if not 1 <= quantizer.channels <= _MAX_GROUPS:
            raise ValueError("the number of channels is out of range")
        return quantizer.buckets
    sizes = [quantizer.codewords, *(number for block in quantizer.blocks for number in block)]
    if not all(_is_int(size) and 1 <= size < _MAX_SIZE for size in sizes):
        raise ValueError("a size of the quantiser is out of range")
    if not 2 <= quantizer.codewords <= 256 or quantizer.groups > _MAX_GROUPS:
        raise ValueError(f"codewords must be 2..256, groups at most {_MAX_GROUPS}")
    prices = (*quantizer.mu, *quantizer.first, *quantizer.last)
    if not 1 <= quantizer.stages <= 16 or len(prices) != 3 * quantizer.stages:
        raise ValueError("1 to 16 stages, each with three prices")
    if not all(isinstance(p, float | int) and math.isfinite(p) and p > 0 for p in prices):
        raise ValueError("prices must be positive")
    return quantizer.stages * LEVELS


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def config_from_json(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    """A configuration from parsed JSON, lists becoming tuples. TypeError for unknown names."""

    def tuples(value: Any) -> Any:
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return kind(**{name: tuples(value) for name, value in values.items()})


def _build(path: Path, config: ModelConfig, tensors: dict[str, torch.Tensor]) -> Model:
    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    with torch.device("meta"):
        analysis, synthesis = Analysis(config.transform), Synthesis(config.transform)
        posterior = None
        if config.mode == "dvae" and isinstance(config.quantizer, QuantizerConfig):
            posterior = CategoricalPosterior(config.quantizer)
    networks = {"analysis": analysis, "synthesis": synthesis, "posterior": posterior}
    for name, network in networks.items():
        if network is not None:
            _load_network(path, network, part(f"{name}."))
    prior = IntegerPrior(
        config.prior,
        stages=config.quantizer.stages,
        groups=config.quantizer.groups,
        codewords=config.quantizer.codewords,
        levels=LEVELS,
        tensors={name: value.numpy() for name, value in part("prior.").items()},
    )
    quantizer = _build_quantizer(path, config.quantizer, tensors)
    return Model(config, analysis, synthesis, quantizer, prior, posterior)


def _load_network(path: Path, network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Fills a network on the meta device with checked float16 weights."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if expected != {name: tuple(value.shape) for name, value in weights.items()}:
        raise ModelFileError(f"{path}: the network's tensors do not fit the configuration")
    if not all(v.dtype == torch.float16 and v.isfinite().all() for v in weights.values()):
        raise ModelFileError(f"{path}: a weight is not a finite float16")
    if "scale" in weights and not (weights["scale"] > 0).all():
        raise ModelFileError(f"{path}: the scale of a channel is not positive")
    network.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
    network.eval().requires_grad_(False)


def _build_quantizer(
    path: Path, config: QuantizerConfig | UniformConfig, tensors: dict[str, torch.Tensor]
) -> ResidualQuantizer | UniformQuantizer:
    if isinstance(config, UniformConfig):
        return UniformQuantizer(config, tensors["step"].numpy(), tensors["gain"].numpy())
    books = []
    for s in range(config.stages):
        stage = []
        for b, (count, dim) in enumerate(config.blocks):
            book = tensors.get(f"codebook.{s}.{b}")
            shape = (count, config.codewords, dim)
            if book is None or book.dtype != torch.int16 or tuple(book.shape) != shape:
                raise ModelFileError(f"{path}: codebook.{s}.{b} is not int16 {shape}")
            if book[:, 0].any():
                raise ModelFileError(f"{path}: codeword 0 of codebook.{s}.{b} is not zero")
            stage.append(book.numpy())
        books.append(stage)
    return ResidualQuantizer(config, books)
