"""Models: configuration, model file, look-up by name, path or code id.

A model file is safetensors (`vqcodec.model_file`). Its JSON holds format, code id, name, mode, the
configurations of transform, quantiser and prior, the point on the rate axis of each quality, and notes
of the training. Tensors: `analysis.*` and `synthesis.*`, in mode dvae `posterior.*`, in mode hvae
`conditional.*` (`vqcodec.network_weights`); `prior.*` integers; of a vector quantiser
`codebook.<stage>.<block>` and, if it predicts, `predict.<block>`, int16; of a uniform one `step` and
`gain` int32.

The code id is the first four bytes of a SHA-256 over what indices depend on (codebooks, prior,
layout); a file names the code id that it needs. The synthesis network may change without it.

Look-up: a path that exists; else `<name>.safetensors` in the package's `weights/`, then in the
folders of $VQCODEC_MODELS (separated as in $PATH).

Invariants
- Whatever a model file holds, loading it raises ModelFileError or gives a model: every number of the
  configuration is in range, and every tensor is there with the type, shape and values that it must
  have, or nothing is built.
- A loaded model, its tables expanded, takes at most 24 times the bytes of its file, and loading never
  takes more at a time.
- A model's code id is computed from its tensors. What a file says of it only serves to find the file.
"""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from vqcodec.bottleneck import NestedBottleneck, VectorBottleneck
from vqcodec.container import MODE_NAMES, TILE, UNIFORM_BUCKETS, UNIFORM_MODES
from vqcodec.errors import ModeError, ModelFileError, UnknownModelError
from vqcodec.hierarchy import ConditionalPrior, HierarchicalBottleneck
from vqcodec.model_file import (
    FORMAT,
    METADATA_KEY,
    describe,
    printable,
    read_model_file,
    read_model_header,
)
from vqcodec.modes import POSTERIOR_MODES
from vqcodec.network_weights import load_weights, store_weights
from vqcodec.posterior import CategoricalPosterior
from vqcodec.prediction import Predictor, weight_shapes
from vqcodec.prior import IntegerPrior, PriorConfig, expand_tables
from vqcodec.quantizer import LEVELS, QuantizerConfig, RatePoint, ResidualQuantizer
from vqcodec.transform import Analysis, Synthesis, TransformConfig
from vqcodec.uniform import UniformBottleneck, UniformConfig, UniformQuantizer
from vqcodec_kernels.integer_layers import MAX_CHANNELS, MAX_INPUTS

DEFAULT_MODEL = "default"
QUALITIES = 100
SUFFIX = ".safetensors"
_MAX_SIZE = 1 << 16
_MAX_GROUPS = 4096
_MAX_CHUNKS = 64
# A wider window would reach out of the prior tile wherever it stands.
_MAX_WINDOW = 2 * TILE - 1
# In squared grey levels a bit: of any picture, beyond it nothing is worth a bit.
_MAX_PRICE = 1e9
_NAME_LENGTH = 100

MODES = {name: number for number, name in MODE_NAMES.items()}
MODE_MODELS = {
    "ae": "ae",
    "vae": "vae",
    "dvae": "dvae",
    "vqvae": "vqvae",
    "vq": "vq-small",
    **{mode: mode for mode in ("dae", "wae", "hvae", "vqvae2", "fsq", "rvq")},
}
"""The packaged small model of each mode; vq has the default model too. The first five had one budget, the
others another, and half the size."""

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
    conditional: ConditionalPrior | None = None

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
            if quantizer.predicted:
                layout["predicted"] = quantizer.predicted
            if quantizer.pooled:
                layout["pooled"] = True
        digest = hashlib.sha256(json.dumps(layout, sort_keys=True).encode())
        for name, array in sorted(self._coding_tensors().items()):
            shape = ",".join(str(side) for side in array.shape)
            digest.update(f"{name} {array.dtype.name} {shape}\n".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return int.from_bytes(digest.digest()[:4], "little")

    @cached_property
    def bottleneck(self) -> VectorBottleneck | UniformBottleneck:
        """The seam between this model's latent and symbols."""
        scale = self.analysis.scale.cpu()
        if isinstance(self.quantizer, UniformQuantizer):
            if self.conditional is None:
                return UniformBottleneck(self.quantizer, self.prior)
            return HierarchicalBottleneck(
                self.quantizer, self.prior, conditional=self.conditional, scale=scale
            )
        if self.config.mode == "vq":
            return VectorBottleneck(self.quantizer, self.prior)
        return NestedBottleneck(self.quantizer, self.prior, posterior=self.posterior, scale=scale)

    def _coding_tensors(self) -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {
            f"prior.{name}": array for name, array in self.prior.tensors.items()
        }
        if isinstance(self.quantizer, UniformQuantizer):
            return {**tensors, "step": self.quantizer.step, "gain": self.quantizer.gain}
        for s, stage in enumerate(self.quantizer.codebooks):
            for b, book in enumerate(stage):
                tensors[f"codebook.{s}.{b}"] = book
        if self.quantizer.predictor is not None:
            for b, weight in enumerate(self.quantizer.predictor.weights):
                tensors[f"predict.{b}"] = weight
        return tensors

    def to_bytes(self) -> bytes:
        """The weights file."""
        networks = {
            "analysis": self.analysis,
            "synthesis": self.synthesis,
            "posterior": self.posterior,
            "conditional": self.conditional,
        }
        tensors = {
            f"{part}.{name}": value
            for part, network in networks.items()
            if network is not None
            for name, value in store_weights(network).items()
        }
        for name, array in self._coding_tensors().items():
            tensors[name] = torch.from_numpy(np.ascontiguousarray(array))
        header = {"format": FORMAT, "code_id": self.code_id, **dataclasses.asdict(self.config)}
        return save(tensors, {METADATA_KEY: json.dumps(header)})


def load_model(path: Path) -> Model:
    """Reads a model file. ModelFileError, which names it, if it is not one or not a sound one."""
    header, tensors = read_model_file(path)
    try:
        # The encoder takes gradients through the synthesis, wherever it was loaded.
        with torch.inference_mode(False):
            model = _build(_parse_config(header), tensors)
        _check_code_id(header, model.code_id)
    # What a hand-made file can provoke: wrong types in the JSON, dtypes without a NumPy twin.
    except (
        ModelFileError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ModelFileError(
            f"{path}: not a usable model ({describe(error)}); get the file again from where it came"
        ) from error
    return model


def _check_code_id(header: Mapping[str, Any], found: int) -> None:
    """ModelFileError unless the file says the code id that its tensors have."""
    said = header["code_id"]
    if not _is_int(said) or said != found:
        name = f"{said:08x}" if _is_int(said) and 0 <= said < 1 << 32 else "another"
        raise ModelFileError(f"it says code id {name}, but its tensors are those of {found:08x}")


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
            said = found if isinstance(found, str) and found in MODES else "unknown to this release"
            raise ModeError(
                f"the model {name or path.stem} is of mode {said}, not {mode}: "
                "ask for that mode, or for another model"
            )
    return path


def _find_model(name: str | None, otherwise: str) -> Path:
    # Only a model that was asked for may come from the current directory.
    if name is not None and os.path.isfile(name):
        return Path(name)
    wanted = name or otherwise
    folders = list(_model_folders())
    for folder in folders:
        candidate = folder / f"{wanted}{SUFFIX}"
        if os.path.isfile(candidate):
            return candidate
    if name is not None and (os.path.lexists(name) or os.path.dirname(name) or name.endswith(SUFFIX)):
        raise UnknownModelError(f"no model {name!r}: {_why_no_file(name)}")
    installed = sorted({path.stem for folder in folders for path in folder.glob(f"*{SUFFIX}")})
    raise UnknownModelError(
        f"no model {wanted!r}: name a model file or one of {', '.join(installed)} "
        f"(looked in {', '.join(map(str, folders))}; $VQCODEC_MODELS can name more folders)"
    )


def _why_no_file(name: str) -> str:
    """Why a path does not lead to a file."""
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError) as error:
        return f"{getattr(error, 'strerror', None) or error}; check the path"
    if stat.S_ISDIR(mode):
        return f"that is a directory; name a {SUFFIX} file in it"
    return f"that is not a regular file; name a {SUFFIX} file"


def find_model_by_code(code_id: int, *, mode: str | None = None) -> Path:
    """Path of the model whose files carry this code id, by what the model files say.

    mode: that of the file. Where several models have the code id, one of this mode comes first: models
    of uniform modes whose prior has learnt nothing yet have all the same. UnknownModelError if none
    has it. A file that says it wrongly is refused by `load_model`.
    """
    unusable: list[str] = []
    another: Path | None = None
    for folder in _model_folders():
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                header = read_model_header(path)
            except ModelFileError as error:
                unusable.append(str(error))
                continue
            if header.get("code_id") == code_id:
                if mode in (None, header.get("mode", "vq")):
                    return path
                another = another or path
    if another is not None:
        return another
    known = json.loads((_package_weights() / "known.json").read_text())
    version = known.get(f"{code_id:08x}")
    hint = (
        f"it is the default model of vqcodec {version}; install that version"
        if version
        else "put its model file into a folder of $VQCODEC_MODELS or pass it with --model"
    )
    skipped = f" ({len(unusable)} files there are not usable, such as {unusable[0]})" if unusable else ""
    raise UnknownModelError(f"the file needs the model with code id {code_id:08x}: {hint}{skipped}")


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
        name=printable(str(header["name"]), _NAME_LENGTH),
        transform=config_from_json(TransformConfig, header["transform"]),
        quantizer=_complete_config(quantizer_kind, header["quantizer"], optional=("predicted", "pooled")),
        prior=_complete_config(PriorConfig, header["prior"]),
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
    if transform.posterior is not (mode in POSTERIOR_MODES):
        raise ValueError(f"a posterior belongs to the modes {' and '.join(POSTERIOR_MODES)}")
    if not _is_int(transform.top) or not 0 <= transform.top < transform.channels:
        raise ValueError("the upper level has fewer channels than the latent")
    if (mode == "hvae") != (transform.top > 0) or (transform.top and transform.top not in prior.chunks):
        raise ValueError("two levels belong to mode hvae, and the lower begins with a chunk of the prior")
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
    if len(prior.chunks) >= _MAX_CHUNKS:
        raise ValueError(f"more than {_MAX_CHUNKS} chunks")
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
    if isinstance(quantizer, QuantizerConfig) and quantizer.pooled is not (mode == "vqvae2"):
        raise ValueError("a pooled stage belongs to mode vqvae2")
    if isinstance(quantizer, QuantizerConfig) and quantizer.predicted:
        ends = [groups.stop for groups in quantizer.predicted_groups]
        if mode != "vq" or tuple(ends) != prior.chunks[: len(ends)]:
            raise ValueError("predicted blocks are the prior's first chunks, in mode vq")
    if prior.window > _MAX_WINDOW:
        raise ValueError(f"a window is at most {_MAX_WINDOW} positions wide")
    if len(config.points) != QUALITIES or not all(
        _is_int(p.bucket) and 1 <= p.bucket <= buckets and 0 < p.price <= _MAX_PRICE
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
    predicted = quantizer.predicted
    if not isinstance(predicted, tuple) or not all(
        _is_int(size) and 1 <= size < _MAX_SIZE for size in predicted
    ):
        raise ValueError("a size of the prediction is out of range")
    prices = (quantizer.mu, quantizer.first, quantizer.last)
    if not 1 <= quantizer.stages <= 16 or any(len(part) != quantizer.stages for part in prices):
        raise ValueError("1 to 16 stages, each with three prices")
    if not all(isinstance(p, float | int) and 0 < p <= _MAX_PRICE for part in prices for p in part):
        raise ValueError(f"prices must lie within 0 and {_MAX_PRICE:g}")
    return quantizer.stages * LEVELS


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _complete_config(
    kind: type[_Config], values: Mapping[str, Any], *, optional: tuple[str, ...] = ()
) -> _Config:
    """As `config_from_json`; symbols depend on it, so a default may fill a gap only where the format
    says so. ValueError for others."""
    for setting in dataclasses.fields(kind):  # type: ignore[arg-type]
        if setting.name not in values and setting.name not in optional:
            raise ValueError(f"{setting.name} is missing")
    return config_from_json(kind, values)


def config_from_json(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    """A configuration from parsed JSON, lists becoming tuples. TypeError for unknown names."""

    def tuples(value: Any) -> Any:
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return kind(**{name: tuples(value) for name, value in values.items()})


def _build(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> Model:
    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    with torch.device("meta"):
        analysis, synthesis = Analysis(config.transform), Synthesis(config.transform)
        posterior = None
        if config.mode == "dvae" and isinstance(config.quantizer, QuantizerConfig):
            posterior = CategoricalPosterior(config.quantizer)
        conditional = None
        if config.transform.top:
            conditional = ConditionalPrior(config.transform.channels, config.transform.top)
    networks = {
        "analysis": analysis,
        "synthesis": synthesis,
        "posterior": posterior,
        "conditional": conditional,
    }
    for name, network in networks.items():
        if network is not None:
            load_weights(network, part(f"{name}."))
    prior = IntegerPrior(
        config.prior,
        stages=config.quantizer.stages,
        groups=config.quantizer.groups,
        codewords=config.quantizer.codewords,
        levels=LEVELS,
        tensors={name: value.numpy() for name, value in part("prior.").items()},
    )
    for s in range(prior.stages):
        # A table is empty if its shortest code is too long: found here, not with the first picture.
        expand_tables(prior.tensors[f"{s}.tables"].min(-1, keepdims=True))
    quantizer = _build_quantizer(config.quantizer, tensors)
    return Model(config, analysis, synthesis, quantizer, prior, posterior, conditional)


def _build_quantizer(
    config: QuantizerConfig | UniformConfig, tensors: dict[str, torch.Tensor]
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
                raise ModelFileError(f"codebook.{s}.{b} is not int16 {shape}")
            if book[:, 0].any():
                raise ModelFileError(f"codeword 0 of codebook.{s}.{b} is not zero")
            stage.append(book.numpy())
        books.append(stage)
    return ResidualQuantizer(config, books, _build_predictor(config, tensors))


def _build_predictor(config: QuantizerConfig, tensors: dict[str, torch.Tensor]) -> Predictor | None:
    if not config.predicted:
        return None
    weights = []
    for b, shape in enumerate(weight_shapes(config.predicted)):
        weight = tensors.get(f"predict.{b}")
        if weight is None or weight.dtype != torch.int16 or tuple(weight.shape) != shape:
            raise ModelFileError(f"predict.{b} is not int16 {shape}")
        weights.append(weight.numpy())
    return Predictor(config.predicted, weights)
