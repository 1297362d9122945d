"""Gradient training of mode vq as a whole: analysis and synthesis by gradient, codebooks, code lengths
and prediction by moving averages.

A crop's loss is J = D + price * bits, its squared error and the bits of its symbols at the point of the
rate axis that it is coded at, in units of what its D is now, so that easy and hard crops, low and high
rates weigh alike, as they do in a mean of PSNRs. The chosen codewords have no gradient; instead
  * D goes straight through the quantiser (Y. Bengio, N. Leonard, A. Courville, arXiv:1308.3432);
  * the bits are those expected under a soft choice among the codewords of a stage,
    p_k ~ exp(-(||r - c_k||^2 + mu bits_k) / (temperature mu)), at a random part of the positions.
The points of a batch are spread over the whole axis, so that every step tells every stage's codebooks
where their vectors are now.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqcodec.precision import fast_precision
from vqcodec.prediction import Predictor
from vqcodec.quantizer import SCALE, QuantizerConfig, ResidualQuantizer, point_at
from vqcodec.train.checkpoint import random_state, set_random_state
from vqcodec.train.coding import CodedLatent, code_latent, validate_transform
from vqcodec.train.photos import random_crops
from vqcodec.train.predictor import NormalEquations
from vqcodec.train.schedule import channels_last, check_loss, follow_weights, learning_rate
from vqcodec.train.settings import TrainConfig
from vqcodec.train.synthesis import ERROR_FLOOR
from vqcodec.transform import Analysis, Synthesis
from vqcodec_kernels import codebook_stats

# As in joint training: the linear paths are principal components and must stay near them.
_LINEAR_SHARE = 0.05
# Decay of the codebooks' averages in a step, of the prediction's whenever it is gathered.
_DECAY, _PREDICTION_DECAY = 0.995, 0.998
# Steps between gathering and solving the equations of the prediction.
_GATHER, _SOLVE = 4, 200
# Steps that the averages are gathered for before anything follows them.
_SETTLE = 100
# Share of vectors below which a codeword stays where it is: nothing is known of it.
_RARE = 2e-5


class CodebookAverages:
    """Moving averages of how often each codeword is chosen and of the sum of what it stands for."""

    def __init__(self, quantizer: ResidualQuantizer, bits: Tensor) -> None:
        self.config: QuantizerConfig = quantizer.config
        self.books = [[book.clone() for book in stage] for stage in quantizer.float_codebooks]
        self.counts: list[Tensor] = []
        self.sums: list[list[Tensor]] = []
        for stage, lengths in zip(self.books, bits, strict=True):
            share = torch.exp2(-lengths)
            self.counts.append(share)
            parts = share.split([count for count, _ in self.config.blocks])
            self.sums.append([b * part[:, :, None] for b, part in zip(stage, parts, strict=True)])

    def add(self, stage: int, residual: Tensor, index: Tensor) -> None:
        """Takes the vectors float32 (N, C) of a stage and their indices uint8 (G, N)."""
        group = first = 0
        for block, (count, dim) in enumerate(self.config.blocks):
            groups, channels = slice(group, group + count), slice(first, first + count * dim)
            vectors = residual[:, channels].reshape(len(residual), count, dim).transpose(0, 1)
            counts, sums = codebook_stats(vectors, index[groups].long(), self.config.codewords)
            self.counts[stage][groups].lerp_(counts.float() / len(residual), 1 - _DECAY)
            self.sums[stage][block].lerp_(sums.float() / len(residual), 1 - _DECAY)
            group, first = groups.stop, channels.stop

    def follow(self) -> None:
        """Moves every codeword that is chosen at all to the mean of its vectors; codeword 0 stays."""
        for books, counts, sums in zip(self.books, self.counts, self.sums, strict=True):
            group = 0
            for block, (count, _) in enumerate(self.config.blocks):
                share = counts[group : group + count, :, None]
                mean = sums[block] / share.clamp_min(1e-9)
                books[block] = torch.where(share > _RARE, mean, books[block])
                books[block][:, 0] = 0
                group += count

    def codebooks(self) -> list[list[NDArray[np.int16]]]:
        """All codebooks in fixed point."""
        return [
            [(book * SCALE).round().clamp(-32768, 32767).short().numpy() for book in stage]
            for stage in self.books
        ]

    def code_lengths(self) -> Tensor:
        """Static code lengths (S, G, K)."""
        share = torch.stack(self.counts) + 1e-6
        return -(share / share.sum(-1, keepdim=True)).log2()

    def state(self) -> dict[str, Any]:
        """Everything that later averages depend on."""
        return {"books": self.books, "counts": self.counts, "sums": self.sums}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to where `state` was taken."""
        self.books = [[part.clone() for part in stage] for stage in state["books"]]
        self.sums = [[part.clone() for part in stage] for stage in state["sums"]]
        self.counts = [part.clone() for part in state["counts"]]


class VectorTrainer:
    """Networks, codebooks and prediction of mode vq with their optimiser and random state; `step` is a
    pure function of them."""

    def __init__(
        self,
        config: TrainConfig,
        analysis: Analysis,
        synthesis: Synthesis,
        quantizer: ResidualQuantizer,
        bits: Tensor,
        *,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.config, self.device = config, device
        self.analysis = analysis.requires_grad_(True)
        self.synthesis = synthesis.requires_grad_(True)
        self.networks = nn.ModuleDict({"analysis": analysis, "synthesis": synthesis})
        channels_last(self.networks.to(device)).train()
        linear = [p for name, p in self.networks.named_parameters() if ".linear." in name]
        others = [p for name, p in self.networks.named_parameters() if ".linear." not in name]
        self.parameters = [*linear, *others]
        self.optimizer = torch.optim.Adam([{"params": linear}, {"params": others}])
        self.average = {k: v.detach().clone() for k, v in self.networks.state_dict().items()}
        self.quantizer, self.bits = quantizer, bits
        self.averages = CodebookAverages(quantizer, bits)
        predicted = quantizer.config.predicted
        self.equations = NormalEquations(predicted) if predicted else None
        self.random = np.random.default_rng(seed)
        self.steps_done = 0

    def step(self, photos: list[NDArray[np.uint8]], progress: float) -> float:
        """One optimiser step; progress in 0..1 places it in the learning-rate plan. Loss."""
        config = self.config
        rate = learning_rate(config, self.steps_done, progress)
        for group, share in zip(self.optimizer.param_groups, (_LINEAR_SHARE, 1.0), strict=True):
            group["lr"] = rate * share
        crops = random_crops(photos, config.batch, config.crop, self.random)
        crops = crops.to(self.device).contiguous(memory_format=torch.channels_last)
        places = (np.arange(config.batch) + 1 - self.random.random(config.batch)) / config.batch
        low, high = config.rates
        layout = self.quantizer.config
        places = (low + (high - low) * places) * layout.stages
        points = [point_at(layout, place) for place in places.tolist()]
        with fast_precision(crops.device):
            latent = self.analysis(crops)
        latent = latent.float()
        coded = code_latent(self.quantizer, self.bits, latent, points)
        decoded = coded.latent.to(self.device)
        with fast_precision(crops.device):
            picture = self.synthesis(latent + (decoded - latent).detach(), coded.buckets.to(self.device))
        error = (picture - crops).square().mean((1, 2, 3)) + ERROR_FLOOR
        prices = torch.tensor([point.price for point in points], device=self.device)
        cost = prices * self._expected_bits(latent, coded) / crops[0].numel()
        # Of log D the gradient is that of D in units of itself, and the value still says something.
        loss = (error.log() + cost / error.detach()).mean()
        check_loss(loss, self.steps_done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self._follow_latents(latent.detach().cpu(), coded)
        self.steps_done += 1
        follow_weights(self.average, self.networks.state_dict(), config.smoothing, self.steps_done)
        return float(loss.item())

    def _expected_bits(self, latent: Tensor, coded: CodedLatent) -> Tensor:
        """Bits (N,) of latent (N, C, h, w) under soft choices, from a random part of the positions."""
        count, channels, height, width = latent.shape
        total = latent.new_zeros(count)
        if not self.config.rate_share:
            return total
        vectors = latent.permute(0, 2, 3, 1).reshape(count, -1, channels)
        area = height * width
        size = max(1, round(self.config.rate_share * area))
        chosen = torch.from_numpy(self.random.choice(area, size, replace=False)).to(latent.device)
        for stage, coding in enumerate(coded.stages):
            before = coding.before.to(latent.device)[:, chosen]
            residual = (vectors[coding.active][:, chosen] - before).flatten(0, 1)
            prices = coding.prices.to(latent.device).repeat_interleave(size)
            spent = expected_bits(
                self.quantizer, stage, self.bits[stage], residual, prices, self.config.temperature
            )
            share = spent.reshape(-1, size).mean(1) * area
            total = total.index_add(0, torch.tensor(coding.active, device=latent.device), share)
        return total

    def _follow_latents(self, latent: Tensor, coded: CodedLatent) -> None:
        """Codebooks, code lengths and prediction after a step on latent (N, C, h, w)."""
        grid = (latent.shape[2], latent.shape[3])
        target = latent.permute(0, 2, 3, 1).flatten(1, 2)
        for stage, coding in enumerate(coded.stages):
            residual = (target[coding.active] - coding.before).flatten(0, 1)
            self.averages.add(stage, residual, coding.index)
        predictor = self.quantizer.predictor
        first = coded.stages[0]
        # Where the first stage is the last one, it is coarser than what most predictions are made from.
        refined = coded.stages[min(1, len(coded.stages) - 1)].active
        if self.equations is not None and self.steps_done % _GATHER == 0:
            codewords = self.quantizer.look_up(0, first.index).reshape(target.shape)
            decoded = (first.before * SCALE).round().int() + codewords
            self.equations.add(target[refined], decoded[refined], grid, decay=_PREDICTION_DECAY)
        if self.steps_done < _SETTLE:
            return
        self.averages.follow()
        self.bits = self.averages.code_lengths()
        if self.equations is not None and self.steps_done % _SOLVE == _SOLVE - 1:
            predictor = self.equations.solve(predictor)
        books = self.averages.codebooks()
        self.quantizer = ResidualQuantizer(self.quantizer.config, books, predictor)

    def validate(self, photos: list[NDArray[np.uint8]], size: int = 512) -> list[tuple[float, float]]:
        """(bpp by static code lengths, PSNR) at every complete stage, over centre crops."""
        networks = self.averaged_networks()
        return validate_transform(*networks, self.quantizer, self.bits, photos, size=size)

    def averaged_networks(self) -> tuple[Analysis, Synthesis]:
        """Copies with the moving averages of the weights, in evaluation mode and in the layout of memory
        that a checkpoint restores, so that a run goes on from either alike."""
        copies = nn.ModuleDict(
            {"analysis": Analysis(self.config.transform), "synthesis": Synthesis(self.config.transform)}
        )
        copies.to(self.device)
        copies.load_state_dict(self.average)
        copies.eval().requires_grad_(False)
        analysis, synthesis = copies["analysis"], copies["synthesis"]
        assert isinstance(analysis, Analysis) and isinstance(synthesis, Synthesis)
        return analysis, synthesis

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        predictor, equations = self.quantizer.predictor, self.equations
        return {
            "networks": self.networks.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages.state(),
            "bits": self.bits,
            "predictor": predictor and [torch.from_numpy(weight) for weight in predictor.weights],
            "equations": equations and equations.state(),
            "random": random_state(self.random),
            "steps": self.steps_done,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to where `state` was taken."""
        self.networks.load_state_dict(state["networks"])
        self.average = {k: v.to(self.device, copy=True) for k, v in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.averages.load_state(state["averages"])
        self.bits = state["bits"].clone()
        layout, predictor = self.quantizer.config, None
        if self.equations is not None:
            self.equations.load_state(state["equations"])
            weights = [weight.numpy() for weight in state["predictor"]]
            predictor = Predictor(layout.predicted, weights)
        self.quantizer = ResidualQuantizer(layout, self.averages.codebooks(), predictor)
        set_random_state(self.random, state["random"])
        self.steps_done = int(state["steps"])


def expected_bits(
    quantizer: ResidualQuantizer,
    stage: int,
    bits: Tensor,
    residual: Tensor,
    prices: Tensor,
    temperature: float,
) -> Tensor:
    """Code lengths (M,) expected under the soft choice, of vectors residual (M, C) that pay prices (M,)
    for static bits (G, K)."""
    total = residual.new_zeros(len(residual))
    group = first = 0
    for books, (count, dim) in zip(
        quantizer.float_codebooks[stage], quantizer.config.blocks, strict=True
    ):
        channels = slice(first, first + count * dim)
        vectors = residual[:, channels].reshape(-1, count, dim).transpose(0, 1)
        book = books.to(residual.device)
        lengths = bits[group : group + count, None].to(residual.device)
        # Up to ||r||^2, which is the same for every codeword.
        distance = torch.baddbmm(book.square().sum(-1)[:, None], vectors, book.transpose(1, 2), alpha=-2)
        cost = distance / prices[None, :, None] + lengths
        total = total + ((-cost / temperature).softmax(-1) * lengths).sum((0, 2))
        group, first = group + count, channels.stop
    return total
