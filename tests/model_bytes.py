"""Model files made without training, and model files taken apart and put together again.

Purpose: tests of what a model file may do need files of any layout, and wrong ones.

Layout: `make_model`; `ModelParts`.

    u64 length of the header | JSON: {"__metadata__": {"vqcodec": JSON text}, tensor: ...} | data
"""

import dataclasses
import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vqcodec.container import UNIFORM_MODES
from vqcodec.hierarchy import ConditionalPrior
from vqcodec.model import MODES, Model, ModelConfig
from vqcodec.modes import POSTERIOR_MODES
from vqcodec.posterior import CategoricalPosterior
from vqcodec.prior import IntegerPrior, PriorConfig
from vqcodec.quantizer import LEVELS, QuantizerConfig, RatePoint, ResidualQuantizer
from vqcodec.transform import Analysis, Synthesis, TransformConfig
from vqcodec.uniform import UniformConfig, UniformQuantizer

SMALLEST = PriorConfig(tables=1, embedding=1, hidden=(1, 1), group_hidden=1, chunks=(), window=1)


def make_model(
    mode: str = "vq",
    *,
    blocks: tuple[tuple[int, int], ...] = ((1, 1),),
    codewords: int = 2,
    stages: int = 1,
    prior: PriorConfig = SMALLEST,
    depth: int = 0,
    width: int = 1,
    rates: bool = False,
    seed: int | None = None,
) -> Model:
    """A model of any layout; its networks have `depth` blocks of `width` channels, and are untrained.

    blocks: in the uniform modes, one block of (channels, 1). seed: of integer tensors and codebooks
    drawn at random; without it they are zero.
    """
    quantizer_config: QuantizerConfig | UniformConfig
    if MODES[mode] in UNIFORM_MODES:
        ((channels, _),) = blocks
        quantizer_config = UniformConfig(channels=channels)
    else:
        price = (100.0,) * stages
        quantizer_config = QuantizerConfig(
            blocks, codewords, mu=price, first=price, last=price, pooled=mode == "vqvae2"
        )
    buckets = 100 if isinstance(quantizer_config, UniformConfig) else stages * LEVELS
    transform = TransformConfig(
        channels=quantizer_config.channels,
        analysis_widths=(width,) * 3,
        analysis_depths=(depth,) * 3,
        synthesis_widths=(width,) * 3,
        synthesis_depths=(depth,) * 3,
        rates=buckets if rates else 0,
        posterior=mode in POSTERIOR_MODES,
        top=prior.chunks[0] if mode == "hvae" else 0,
    )
    points = tuple(RatePoint(1 + n * (buckets - 1) // 99, 100.0) for n in range(100))
    config = ModelConfig(f"made-{mode}", transform, quantizer_config, prior, points, mode=mode)
    sizes = {
        "stages": quantizer_config.stages,
        "groups": quantizer_config.groups,
        "codewords": quantizer_config.codewords,
        "levels": LEVELS,
    }
    random = None if seed is None else np.random.default_rng(seed)
    integers = {
        name: _draw(random, shape, dtype)
        for name, (dtype, shape) in IntegerPrior.tensor_specs(prior, **sizes).items()
    }
    quantizer: ResidualQuantizer | UniformQuantizer
    posterior = None
    if isinstance(quantizer_config, UniformConfig):
        steps = np.full(quantizer_config.channels, 1 << 12, np.int32)
        gains = np.linspace(1 << 18, 1 << 14, 100).astype(np.int32)
        quantizer = UniformQuantizer(quantizer_config, steps, gains)
    else:
        shapes = [(count, codewords, dim) for count, dim in blocks]
        books = [[_draw(random, shape, np.dtype(np.int16)) for shape in shapes] for _ in range(stages)]
        for book in (book for stage in books for book in stage):
            book[:, 0] = 0
        quantizer = ResidualQuantizer(quantizer_config, books)
        posterior = CategoricalPosterior(quantizer_config) if mode == "dvae" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = Analysis(transform), Synthesis(transform)
        conditional = ConditionalPrior(transform.channels, transform.top) if transform.top else None
        # As it is made its mean is zero.
        for parameter in conditional.parameters() if conditional else ():
            torch.nn.init.normal_(parameter, std=0.3)
    prior_part = IntegerPrior(prior, **sizes, tensors=integers)
    return Model(config, *networks, quantizer, prior_part, posterior, conditional)


def _draw(random: np.random.Generator | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Zeros, or numbers of both signs where the type has them, below a hundred in magnitude."""
    if random is None:
        return np.zeros(shape, dtype)
    return random.integers(0 if dtype == np.uint8 else -99, 100, shape).astype(dtype)


@dataclass(frozen=True)
class ModelParts:
    """The parts of a model file; `tensors` are the entries of the header.

    Changing the dicts or the data changes the file that `to_bytes` gives, and only there.
    """

    config: dict[str, Any]
    tensors: dict[str, dict[str, Any]]
    data: bytearray

    @staticmethod
    def of(file: bytes) -> "ModelParts":
        (length,) = struct.unpack_from("<Q", file)
        outer = json.loads(file[8 : 8 + length])
        config = json.loads(outer.pop("__metadata__")["vqcodec"])
        return ModelParts(config, outer, bytearray(file[8 + length :]))

    def to_bytes(self) -> bytes:
        outer = {"__metadata__": {"vqcodec": json.dumps(self.config)}, **self.tensors}
        return join_model(json.dumps(outer).encode(), self.data)

    def copy(self) -> "ModelParts":
        return dataclasses.replace(
            self,
            config=json.loads(json.dumps(self.config)),
            tensors=json.loads(json.dumps(self.tensors)),
            data=bytearray(self.data),
        )


def join_model(header: bytes, data: bytes | bytearray) -> bytes:
    """A model file with this header."""
    return struct.pack("<Q", len(header)) + header + data
