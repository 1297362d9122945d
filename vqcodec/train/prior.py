"""Training of the prior: a floating-point twin of `vqcodec.prior`, its export to integers, and the
counting of its tables.

The twin learns on cached indices, no pixels are needed. A position's loss for one symbol is the
expected code length sum_t softmax(score)_t * bits_t(symbol), which is linear in the selection and
so drives it to one table, as the integer prior will choose. After the export the tables are
counted anew under the integer network's own choices, which absorbs the rounding of its weights.

Activations live in [0, 255/32]; an integer activation is 32 times the float one.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vqcodec.bottleneck import SymbolPlane, VectorBottleneck
from vqcodec.errors import VqcError
from vqcodec.escapes import SYMBOLS, split_values
from vqcodec.prior import (
    PASSES,
    SHIFT,
    IntegerPrior,
    PriorConfig,
    spatial_pass_of,
    store_tables,
)
from vqcodec.quantizer import (
    LEVELS,
    QuantizerConfig,
    RatePoint,
    ResidualQuantizer,
    level_in,
    stage_price,
)
from vqcodec.train.checkpoint import random_state, set_random_state
from vqcodec.train.settings import TrainConfig
from vqcodec.uniform import UniformBottleneck, UniformConfig, UniformQuantizer, level_of

logger = logging.getLogger(__name__)

ACTIVATION_SCALE = 32
PRIOR_ROUNDS = 2
_CEILING = 255 / ACTIVATION_SCALE
# The largest weight of a group's scores when a twin begins from integers, which do not tell it; after
# a training of 1,400 steps it is 3 to 5.
_SHARPNESS = 4.0


@dataclass(frozen=True)
class CodedPhoto:
    """Symbols uint8 (stages coded, G, H, W) of one picture and its rate bucket, as stages and levels
    number them."""

    index: NDArray[np.uint8]
    bucket: int


def encode_static(
    quantizer: ResidualQuantizer, bits: Tensor, latent: Tensor, point: RatePoint
) -> CodedPhoto:
    """Indices of latent (C, H, W) when every position pays the static code lengths (S, G, K)."""
    config = quantizer.config
    channels, height, width = latent.shape
    target = latent.permute(1, 2, 0).reshape(1, -1, channels).contiguous()
    decoded = torch.zeros(target.shape, dtype=torch.int32)
    table = torch.zeros(config.groups, height * width, dtype=torch.int32)
    planes = []
    for stage in range(point.last_stage + 1):
        bias = stage_price(config, point, stage) * bits[stage][:, None]
        index, decoded = quantizer.encode_stage(stage, target, decoded, bias, table, (height, width))
        planes.append(index.reshape(config.groups, height, width).numpy())
    return CodedPhoto(np.stack(planes), point.bucket)


def vector_symbols(planes: Sequence[SymbolPlane], point: RatePoint) -> CodedPhoto:
    """The symbols that an encoder of vectors has chosen at a point of the rate axis."""
    return CodedPhoto(np.stack([plane.index.astype(np.uint8) for plane in planes]), point.bucket)


def encode_conditional(
    bottleneck: VectorBottleneck | UniformBottleneck, latent: Tensor, point: RatePoint
) -> CodedPhoto:
    """Symbols of latent (C, H, W) under the conditional prior, each assigned once."""
    planes = bottleneck.to_symbols(latent, point)
    if isinstance(bottleneck, UniformBottleneck):
        level = level_of(point.bucket, bottleneck.buckets)
        return CodedPhoto(split_values(planes[0].index)[None], level + 1)
    return vector_symbols(planes, point)


class StageNet(nn.Module):
    """The float twin of one stage. Names and shapes follow `IntegerPrior.tensor_specs`."""

    def __init__(
        self,
        config: PriorConfig,
        quantizer: QuantizerConfig | UniformConfig,
        stage: int,
        norms: Sequence[Tensor],
    ) -> None:
        super().__init__()
        self.config, self.stage, self.groups = config, stage, quantizer.groups
        self.chunks = config.chunk_slices(quantizer.groups)
        features = quantizer.groups * config.embedding
        self.kinds = ("same",) if stage == 0 else ("coarse", "same")
        # The first embedding starts as the codeword's log energy, the others as noise: what a
        # neighbour's symbol tells first is how much is going on there.
        self.embed_coarse = nn.ParameterList(
            nn.Parameter(_start_embedding(norms[i], config.embedding, 1 / max(1, stage)))
            for i in range(stage)
        )
        self.embed_same = nn.Parameter(_start_embedding(norms[stage], config.embedding, 1.0))
        side = config.window
        taps = torch.zeros(side, side, features)
        for dy, dx in window_offsets(side):
            taps[dy + side // 2, dx + side // 2] = 1 / len(window_offsets(side))
        self.taps = nn.ParameterDict({k: nn.Parameter(taps.clone()) for k in self.kinds})
        self.taps_bias = nn.ParameterDict({k: nn.Parameter(torch.zeros(features)) for k in self.kinds})
        first, second = config.hidden
        inputs, own = 2 * len(self.kinds) * features, 2 * len(self.kinds) * config.embedding
        hidden, tables = config.group_hidden, config.tables
        self.weights = nn.ParameterDict()
        for c, chunk in enumerate(self.chunks):
            inside = chunk.stop - chunk.start
            self.weights[f"{c}_linear1_weight"] = _uniform(first, inputs, fan=inputs)
            self.weights[f"{c}_linear1_bias"] = nn.Parameter(torch.zeros(LEVELS, PASSES, first))
            self.weights[f"{c}_linear2_weight"] = _uniform(second, first, fan=first)
            self.weights[f"{c}_linear2_bias"] = nn.Parameter(torch.zeros(second))
            fan = second + own
            self.weights[f"{c}_linear3_weight"] = _uniform(inside, hidden, fan, fan=fan)
            self.weights[f"{c}_linear3_bias"] = nn.Parameter(torch.full((inside, hidden), 0.1))
            # Tables start in order of activity: score_t = -(level - t)^2 / width, whose level is a
            # linear function of the last hidden layer.
            t = torch.linspace(-1, 1, tables)
            direction = torch.randn(inside, 1, hidden) / math.sqrt(hidden)
            self.weights[f"{c}_linear4_weight"] = nn.Parameter(
                8 * t[None, :, None] * direction
                + 0.05 * torch.randn(inside, tables, hidden) / math.sqrt(hidden)
            )
            self.weights[f"{c}_linear4_bias"] = nn.Parameter((-4 * t * t).repeat(inside, 1))
        self.tables = nn.Parameter(torch.zeros(quantizer.groups, tables, quantizer.codewords))

    def forward(self, index: Tensor, level: Tensor, spatial: int) -> Tensor:
        """Expected bits of every symbol of a spatial pass.

        index (N, stages, G, H, W) with this stage and all before it, level (N,) -> bits (P, G).
        """
        count, _, groups, height, width = index.shape
        rows, columns = np.indices((height, width)).reshape(2, -1)
        order = torch.from_numpy(spatial_pass_of(rows, columns))
        at = torch.nonzero(order == spatial).squeeze(1)
        same = _embed(self.embed_same.clamp(0, _CEILING), index[:, self.stage])
        earlier = same * (order < spatial).reshape(1, height, width, 1)
        full_around = self._window("same", same)
        earlier_around = self._window("same", earlier)
        nothing = F.relu(self.taps_bias["same"]).clamp(max=_CEILING)

        def pick(grid: Tensor) -> Tensor:
            return grid.flatten(1, 2)[:, at].reshape(-1, grid.shape[3])

        same_at, full_at, earlier_at = pick(same), pick(full_around), pick(earlier_around)
        before: list[Tensor] = []
        if self.stage:
            total = torch.stack(
                [
                    _embed(table.clamp(0, _CEILING), index[:, i])
                    for i, table in enumerate(self.embed_coarse)
                ]
            ).sum(0)
            coarse = total.clamp(max=_CEILING)
            before = [pick(coarse), pick(self._window("coarse", coarse))]
        symbols = index[:, self.stage].flatten(2)[:, :, at].permute(0, 2, 1).reshape(-1, groups)
        levels = level.repeat_interleave(len(at))
        lengths = -F.log_softmax(self.tables, -1) / math.log(2)
        embedding = self.config.embedding
        result = []
        for c, chunk in enumerate(self.chunks):
            low, high = chunk.start * embedding, chunk.stop * embedding
            rest = same_at.shape[1] - high
            same_known = torch.cat(
                [same_at[:, :low], same_at.new_zeros(len(same_at), high - low + rest)], 1
            )
            around_known = torch.cat(
                [
                    full_at[:, :low],
                    earlier_at[:, low:high],
                    nothing[high:].expand(len(full_at), -1),
                ],
                1,
            )
            parts = [*before, same_known, around_known]
            w = self.weights
            bias = w[f"{c}_linear1_bias"][levels, spatial]
            h = _activate(torch.cat(parts, 1) @ w[f"{c}_linear1_weight"].T + bias)
            h = _activate(F.linear(h, w[f"{c}_linear2_weight"], w[f"{c}_linear2_bias"]))
            own = torch.stack([p.reshape(len(p), groups, -1)[:, chunk] for p in parts], 2)
            own = own.flatten(2)
            # Layer 3 sees [h, own]; h is the same for every group, so its part is one product.
            third, shared = w[f"{c}_linear3_weight"], h.shape[1]
            inside, hidden = third.shape[:2]
            y = F.linear(h, third[:, :, :shared].flatten(0, 1), w[f"{c}_linear3_bias"].flatten())
            y = torch.baddbmm(
                y.reshape(-1, inside, hidden).transpose(0, 1),
                own.transpose(0, 1),
                third[:, :, shared:].transpose(1, 2),
            )
            score = torch.baddbmm(
                w[f"{c}_linear4_bias"][:, None],
                _activate(y),
                w[f"{c}_linear4_weight"].transpose(1, 2),
            )
            chosen = symbols[:, chunk].T[:, :, None].expand(-1, -1, self.config.tables)
            bits = torch.gather(lengths[chunk].transpose(1, 2), 1, chosen)
            result.append((score.softmax(-1) * bits).sum(-1))
        return torch.cat(result).T

    def _window(self, kind: str, grid: Tensor) -> Tensor:
        return (_Window.apply(grid, self.taps[kind]) + self.taps_bias[kind]).clamp(0, _CEILING)

    def export(self) -> dict[str, NDArray[np.generic]]:
        """Integer tensors of this stage (tables: those learnt, to be counted anew)."""
        s = self.stage
        out: dict[str, NDArray[np.generic]] = {}
        with torch.no_grad():
            for i, table in enumerate(self.embed_coarse):
                out[f"{s}.embed_coarse.{i}"] = _bytes(table)
            out[f"{s}.embed_same"] = _bytes(self.embed_same)
            for kind in self.kinds:
                taps = self.taps[kind]
                step = taps.abs().amax((0, 1)).clamp_min(1e-6) / 127
                weight = (taps / step).round()
                name = f"{s}.window_{kind}"
                out[f"{name}.taps"] = weight.contiguous().to(torch.int8).numpy()
                out[f"{name}.bias"] = _sums(self.taps_bias[kind], step)
                out[f"{name}.scale"] = _scale(step)
            for c in range(len(self.chunks)):
                for layer in (1, 2, 3, 4):
                    weight = self.weights[f"{c}_linear{layer}_weight"]
                    bias = self.weights[f"{c}_linear{layer}_bias"]
                    # Scores are compared across the tables of a group, so the last layer has one
                    # step a group; the others one an output.
                    dims = (-1, -2) if layer == 4 else (-1,)
                    step = weight.abs().amax(dims, keepdim=True).clamp_min(1e-6) / 127
                    integers = (weight / step).round().to(torch.int8)
                    step = step.squeeze(-1)
                    name = f"{s}.{c}.linear{layer}"
                    if layer <= 2:
                        integers = integers[None]
                        out[f"{name}.scale"] = _scale(step)[None]
                    elif layer == 3:
                        out[f"{name}.scale"] = _scale(step)
                    out[f"{name}.weight"] = integers.contiguous().numpy()
                    sums = _sums(bias, step.expand(bias.shape))
                    out[f"{name}.bias"] = sums[None] if layer == 2 else sums
            out[f"{s}.tables"] = store_tables(self.tables.double().softmax(-1).numpy())
        return out

    def load_integers(self, prior: IntegerPrior) -> None:
        """The inverse of `export`: begins where an integer prior is."""
        s = self.stage

        def part(name: str) -> Tensor:
            return torch.from_numpy(prior.tensors[f"{s}.{name}"]).float()

        def step_of(name: str) -> Tensor:
            return part(f"{name}.scale") / 2**SHIFT

        with torch.no_grad():
            for i, table in enumerate(self.embed_coarse):
                table.copy_(part(f"embed_coarse.{i}") / ACTIVATION_SCALE)
            self.embed_same.copy_(part("embed_same") / ACTIVATION_SCALE)
            for kind in self.kinds:
                name = f"window_{kind}"
                self.taps[kind].copy_(part(f"{name}.taps") * step_of(name))
                self.taps_bias[kind].copy_(part(f"{name}.bias") * step_of(name) / ACTIVATION_SCALE)
            for c in range(len(self.chunks)):
                for layer in (1, 2, 3, 4):
                    name = f"{c}.linear{layer}"
                    step = torch.tensor(_SHARPNESS / 127) if layer == 4 else step_of(name)
                    weight, bias = part(f"{name}.weight"), part(f"{name}.bias")
                    weights = weight * step[..., None], bias * step / ACTIVATION_SCALE
                    for kind, value in zip(("weight", "bias"), weights, strict=True):
                        target = self.weights[f"{c}_linear{layer}_{kind}"]
                        target.copy_(value.reshape(target.shape))
            # Of lengths that a byte holds, shares that are as good as nothing come back as that.
            self.tables.copy_(torch.from_numpy(prior.frequencies[s]).double().log().float())


class _Window(torch.autograd.Function):
    """Depthwise window over a grid (N, H, W, C) with taps (S, S, C), zero outside, the taps at
    `window_offsets` only. Written out because the general depthwise backward is many times slower."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(grid, taps)
        radius = taps.shape[0] // 2
        out = torch.zeros_like(grid)
        for dy, dx in window_offsets(taps.shape[0]):
            to, source = _shifted(grid.shape, dy, dx)
            out[to].addcmul_(grid[source], taps[dy + radius, dx + radius])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        grid, taps = ctx.saved_tensors
        radius = taps.shape[0] // 2
        gradient = gradients[0].contiguous()
        to_grid, to_taps = torch.zeros_like(grid), torch.zeros_like(taps)
        for dy, dx in window_offsets(taps.shape[0]):
            to, source = _shifted(grid.shape, dy, dx)
            to_grid[source].addcmul_(gradient[to], taps[dy + radius, dx + radius])
            to_taps[dy + radius, dx + radius] = (gradient[to] * grid[source]).sum((0, 1, 2))
        return to_grid, to_taps


class _Rows(torch.autograd.Function):
    """Rows (..., E) of a table (R, E) by number. Written out because the general backward is ten times
    slower for rows of two values."""

    @staticmethod
    def forward(ctx: Any, number: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(number)
        ctx.shape = table.shape
        return F.embedding(number, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (number,) = ctx.saved_tensors
        gradient = gradients[0].new_zeros(ctx.shape)
        return None, gradient.index_add_(0, number.flatten(), gradients[0].reshape(-1, ctx.shape[1]))


def window_offsets(side: int) -> list[tuple[int, int]]:
    """The taps that are trained: those within `side // 2` steps of the centre, which is not one."""
    radius = side // 2
    reach = range(-radius, radius + 1)
    return [(y, x) for y in reach for x in reach if 0 < abs(y) + abs(x) <= radius]


def _shifted(shape: torch.Size, dy: int, dx: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices (target, source) of a grid (N, H, W, C) with source = target + (dy, dx)."""

    def one(size: int, d: int) -> tuple[slice, slice]:
        return slice(max(0, -d), size - max(0, d)), slice(max(0, d), size + min(0, d))

    (to_y, from_y), (to_x, from_x) = one(shape[1], dy), one(shape[2], dx)
    return (slice(None), to_y, to_x), (slice(None), from_y, from_x)


def start_tables(net: StageNet, photos: Sequence[CodedPhoto], norms: Sequence[Tensor]) -> None:
    """First tables: symbols counted by quantiles of the energy around them, in ascending order."""
    stage, tables = net.stage, net.config.tables
    size = net.tables.shape[2]
    energies, symbols = [], []
    kernel = torch.ones(1, 1, 3, 3)
    for photo in photos:
        if len(photo.index) <= stage:
            continue
        energy = torch.zeros(photo.index.shape[1:])
        for i in range(stage + 1):
            index = torch.from_numpy(photo.index[i]).long()
            here = torch.gather(norms[i], 1, index.flatten(1)).reshape(index.shape)
            around = F.conv2d(here[:, None], kernel, padding=1)[:, 0] - here
            energy += around / 8 if i == stage else here + around / 8
        # Neighbouring groups have neighbouring frequencies.
        smooth = F.avg_pool1d(energy.flatten(1).T[:, None], 5, 1, 2, count_include_pad=False)
        energies.append(smooth[:, 0].T)
        symbols.append(torch.from_numpy(photo.index[stage].astype(np.int64)).flatten(1))
    energy, symbol = torch.cat(energies, 1), torch.cat(symbols, 1)
    rank = energy.argsort(1).argsort(1)
    bins = rank * tables // rank.shape[1]
    groups = torch.arange(net.groups)[:, None]
    flat = ((groups * tables + bins) * size + symbol).flatten()
    counts = torch.bincount(flat, minlength=net.groups * tables * size).reshape(net.tables.shape)
    overall = counts.sum(1, keepdim=True).double()
    smooth_prior = (overall + 0.05) / (overall + 0.05).sum(-1, keepdim=True)
    net.tables.data.copy_((counts + 8 * smooth_prior).log())


class PriorTrainer:
    """The float twins of all stages, their optimiser and random state, over cached indices."""

    def __init__(
        self,
        config: TrainConfig,
        quantizer: ResidualQuantizer | UniformQuantizer,
        photos: Sequence[CodedPhoto],
        *,
        seed: int,
        start: IntegerPrior | None = None,
    ) -> None:
        """start: the prior to go on from; without it, from noise and counted tables."""
        self.config, self.photos = config, photos
        torch.manual_seed(seed)
        norms = symbol_energies(quantizer)
        self.nets = [
            StageNet(config.prior, config.quantizer, stage, norms)
            for stage in range(config.quantizer.stages)
        ]
        for net in self.nets:
            if start is None:
                start_tables(net, photos, norms)
            else:
                net.load_integers(start)
        parameters = [p for net in self.nets for p in net.parameters()]
        self.optimizer = torch.optim.Adam(
            parameters, lr=config.prior_learning_rate, betas=(0.9, 0.98), eps=1e-10
        )
        self.random = np.random.default_rng(seed)
        self.steps_done = 0
        self.round = 0

    def begin_round(self, number: int, photos: Sequence[CodedPhoto]) -> None:
        """Goes on with other cached indices; later rounds learn more slowly."""
        self.round, self.photos = number, photos

    def step(self, progress: float) -> list[float]:
        """One step on random windows, progress in 0..1 of the round; bits a position by stage."""
        config = self.config
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        rate = config.prior_learning_rate * 0.6**self.round * (0.02 + 0.98 * cosine)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.steps_done + 1) / 50)
        spent = []
        for stage, net in enumerate(self.nets):
            index, level = _windows(
                self.photos,
                stage,
                config.prior_batch,
                config.prior_window,
                self.random,
                pooled=isinstance(config.quantizer, QuantizerConfig) and config.quantizer.pooled,
            )
            spatial = int(self.random.choice(PASSES, p=[0.25, 0.25, 0.5]))
            bits = net(index, level, spatial)
            loss = bits.sum(1).mean()
            if not torch.isfinite(loss):
                raise VqcError(
                    f"training of the prior diverged at step {self.steps_done}, stage {stage}; "
                    "resume from the last checkpoint with a lower learning rate"
                )
            spent.append(float(loss.item()))
            (loss / net.groups).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return spent

    def export(self) -> IntegerPrior:
        """The integer prior of the current weights, its tables counted on the cached indices."""
        tensors = {name: array for net in self.nets for name, array in net.export().items()}
        prior = integer_prior(self.config.prior, self.config.quantizer, tensors)
        return count_tables(prior, self.photos)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, beside the cached indices."""
        return {
            "nets": [net.state_dict() for net in self.nets],
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(self.random),
            "steps": self.steps_done,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to where `state` was taken."""
        for net, values in zip(self.nets, state["nets"], strict=True):
            net.load_state_dict(values)
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_state(self.random, state["random"])
        self.steps_done = int(state["steps"])


def _windows(
    photos: Sequence[CodedPhoto],
    stage: int,
    batch: int,
    side: int,
    random: np.random.Generator,
    *,
    pooled: bool,
) -> tuple[Tensor, Tensor]:
    """Random windows (N, stage + 1, G, side, side) and their levels, of photos that have the stage.

    pooled: the blocks of a pooled stage begin at even rows and columns, in a window as in a grid.
    """
    able = [p for p in photos if len(p.index) > stage]
    area = np.array([p.index.shape[2] * p.index.shape[3] for p in able], np.float64)
    windows, levels = [], []
    for pick in random.choice(len(able), batch, p=area / area.sum()):
        photo = able[pick]
        height, width = photo.index.shape[2:]
        top = random.integers(0, max(1, height - side + 1))
        left = random.integers(0, max(1, width - side + 1))
        if pooled:
            top, left = top - top % 2, left - left % 2
        cut = photo.index[: stage + 1, :, top : top + side, left : left + side]
        missing = (side - cut.shape[2], side - cut.shape[3])
        if any(missing):
            cut = np.pad(cut, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])), mode="reflect")
        windows.append(cut)
        level = level_in(photo.bucket, stage)
        assert level is not None
        levels.append(level)
    return torch.from_numpy(np.stack(windows).astype(np.int64)), torch.tensor(levels)


def integer_prior(
    config: PriorConfig,
    quantizer: QuantizerConfig | UniformConfig,
    tensors: dict[str, NDArray[np.generic]],
) -> IntegerPrior:
    """An `IntegerPrior` with the sizes of a quantiser."""
    return IntegerPrior(
        config,
        stages=quantizer.stages,
        groups=quantizer.groups,
        codewords=quantizer.codewords,
        levels=LEVELS,
        tensors=tensors,
    )


def count_tables(prior: IntegerPrior, photos: Sequence[CodedPhoto]) -> IntegerPrior:
    """The same network with tables counted under its own choices on `photos`.

    A table's counts are blended with what the network learnt, worth 4 symbols, so that rare
    codewords keep a sensible length.
    """
    shape = (prior.groups, prior.config.tables, prior.codewords)
    counts = [np.zeros(shape) for _ in range(prior.stages)]
    groups = np.arange(prior.groups)[:, None, None]
    for photo in photos:
        for stage, tables in enumerate(select_tables(prior, photo)):
            np.add.at(counts[stage], (groups, tables, photo.index[stage]), 1)
    counted: dict[str, NDArray[Any]] = {
        f"{stage}.tables": store_tables(count + 4 * prior.frequencies[stage] / 2.0**24)
        for stage, count in enumerate(counts)
    }
    return prior.replace(counted)


def static_prior(
    config: PriorConfig, quantizer: QuantizerConfig | UniformConfig, bits: Tensor
) -> IntegerPrior:
    """A prior that always chooses the same table: static code lengths bits (S, G, K)."""
    specs = IntegerPrior.tensor_specs(
        config,
        stages=quantizer.stages,
        groups=quantizer.groups,
        codewords=quantizer.codewords,
        levels=LEVELS,
    )
    tensors = {name: np.zeros(shape, dtype) for name, (dtype, shape) in specs.items()}
    for stage in range(quantizer.stages):
        lengths = store_tables(np.exp2(-bits[stage].double().numpy()))
        tensors[f"{stage}.tables"][:] = lengths[:, None]
    return integer_prior(config, quantizer, tensors)


def is_conditional(prior: IntegerPrior) -> bool:
    """Whether a prior has learnt to choose: that of `static_prior` has not."""
    return any(weight.any() for name, weight in prior.tensors.items() if name.endswith("linear4.weight"))


def select_tables(prior: IntegerPrior, photo: CodedPhoto) -> list[NDArray[np.uint8]]:
    """Tables (G, H, W) that the integer prior chooses for each stage of a coded photo."""
    _, groups, height, width = photo.index.shape
    context = prior.context(height, width)
    chosen = []
    for stage, index in enumerate(photo.index):
        level = level_in(photo.bucket, stage)
        assert level is not None
        context.begin_stage(level)
        tables = np.zeros((groups, height, width), np.uint8)
        for step in context.passes:
            tables[step.groups, step.rows, step.columns] = context.select(step)
            context.update(step, index[step.groups, step.rows, step.columns])
        context.end_stage()
        chosen.append(tables)
    return chosen


def symbol_energies(quantizer: ResidualQuantizer | UniformQuantizer) -> list[Tensor]:
    """What a symbol says of the activity around it: float32 (G, K) for each stage.

    The squared norm of a codeword; of a uniform value one that grows alike, and levels off, since the
    largest of 256 values is far from typical.
    """
    if isinstance(quantizer, UniformQuantizer):
        size = (torch.arange(SYMBOLS) + 1) // 2
        energy = ((1.0 + size).square() - 1).clamp(max=48)
        return [energy.expand(quantizer.config.groups, SYMBOLS)]
    return [torch.cat([book.square().sum(2) for book in stage]) for stage in quantizer.float_codebooks]


def _start_embedding(energy: Tensor, width: int, share: float) -> Tensor:
    typical = energy.mean(1, keepdim=True).clamp_min(1e-3)
    first = torch.log2(1 + 8 * energy / typical) * share
    noise = torch.rand(*energy.shape, width - 1) * 0.5 + 0.5 * first[:, :, None] * torch.rand(width - 1)
    return torch.cat([first[:, :, None], noise], 2)


def _embed(table: Tensor, index: Tensor) -> Tensor:
    """table (G, K, E), index (N, G, H, W) -> (N, H, W, G E)."""
    groups, size, width = table.shape
    offset = torch.arange(groups) * size
    picked: Tensor = _Rows.apply(index.permute(0, 2, 3, 1) + offset, table.reshape(-1, width))
    return picked.flatten(3)


def _activate(x: Tensor) -> Tensor:
    return x.clamp(0, _CEILING)


def _uniform(*shape: int, fan: int) -> nn.Parameter:
    bound = math.sqrt(3 / fan)
    return nn.Parameter((torch.rand(*shape) * 2 - 1) * bound)


def _bytes(table: Tensor) -> NDArray[np.generic]:
    return (table.clamp(0, _CEILING) * ACTIVATION_SCALE).round().to(torch.uint8).numpy()


def _sums(bias: Tensor, step: Tensor) -> NDArray[np.generic]:
    return (bias * ACTIVATION_SCALE / step).round().clamp(-(2**29), 2**29).to(torch.int32).numpy()


def _scale(step: Tensor) -> NDArray[np.generic]:
    return (step.double() * 2**SHIFT).round().clamp(max=2**31 - 1).to(torch.int32).numpy()
