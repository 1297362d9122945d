"""Coding of latents by static code lengths while networks are trained: no prior, no files.

Every crop of a batch has its own point of the rate axis, so that one pass covers all rates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec.quantizer import RatePoint, ResidualQuantizer, point_at, stage_price, to_latent
from vqcodec.transform import STRIDE, Analysis, Synthesis


@dataclass(frozen=True)
class StageCoding:
    """One stage of a batch: which crops have it, what it pays a bit for in each (n,), what was decoded
    or predicted before it, float32 (n, P, C), and its indices uint8 (G, n P)."""

    active: list[int]
    prices: Tensor
    before: Tensor
    index: Tensor


@dataclass(frozen=True)
class CodedLatent:
    """Decoded latent float32 (N, C, h, w), rate buckets int64 (N,), the stages, and the bits of each
    crop (N,) by the static code lengths; all on the CPU."""

    latent: Tensor
    buckets: Tensor
    stages: list[StageCoding]
    spent: Tensor


@torch.no_grad()
def code_latent(
    quantizer: ResidualQuantizer, bits: Tensor, latent: Tensor, points: Sequence[RatePoint]
) -> CodedLatent:
    """Codes latent (N, C, h, w), each of N at its own point, with code lengths bits (S, G, K)."""
    config = quantizer.config
    count, channels, height, width = latent.shape
    area = height * width
    target = latent.detach().permute(0, 2, 3, 1).reshape(count, area, channels).float().cpu()
    decoded = torch.zeros(target.shape, dtype=torch.int32)
    last = [point.last_stage for point in points]
    spent = torch.zeros(count)
    stages = []
    for stage in range(max(last) + 1):
        active = [n for n in range(count) if last[n] >= stage]
        prices = torch.tensor([stage_price(config, points[n], stage) for n in active])
        bias = prices[None, :, None] * bits[stage][:, None, :]
        table = torch.arange(len(active), dtype=torch.int32).repeat_interleave(area)
        tables = table.expand(config.groups, -1).contiguous()
        index, after = quantizer.encode_stage(
            stage, target[active], decoded[active], bias, tables, (height, width)
        )
        before = to_latent(after - quantizer.look_up(stage, index).reshape(after.shape))
        decoded[active] = after
        stages.append(StageCoding(active, prices, before, index))
        lengths = torch.gather(bits[stage], 1, index.long()).sum(0)
        spent[active] += lengths.reshape(-1, area).sum(1)
    result = to_latent(decoded).reshape(count, height, width, channels).permute(0, 3, 1, 2)
    buckets = torch.tensor([point.bucket for point in points])
    return CodedLatent(result, buckets, stages, spent)


@torch.no_grad()
def validate_transform(
    analysis: Analysis,
    synthesis: Synthesis,
    quantizer: ResidualQuantizer,
    bits: Tensor,
    photos: Sequence[NDArray[np.uint8]],
    *,
    size: int,
) -> list[tuple[float, float]]:
    """(bpp by static code lengths, PSNR) at every complete stage, over centre crops of at most `size`
    pixels a side. The networks are on one device."""
    device = synthesis.scale.device
    stages = quantizer.config.stages
    totals = np.zeros((stages, 2))
    for photo in photos:
        height, width = (min(size, side) // STRIDE * STRIDE for side in photo.shape[:2])
        top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
        crop = torch.from_numpy(photo[top : top + height, left : left + width].copy())
        pixels = crop.permute(2, 0, 1)[None].float().to(device)
        latent = analysis(pixels)
        for stage in range(stages):
            coded = code_latent(quantizer, bits, latent, [point_at(quantizer.config, stage + 1.0)])
            picture = synthesis(coded.latent.to(device), coded.buckets.to(device)).clamp(0, 255).round()
            error = (picture - pixels).square().mean().item()
            spent = coded.spent.sum().item() / (height * width)
            totals[stage] += spent, 10 * math.log10(255**2 / max(error, 1e-10))
    return [(float(bpp), float(psnr)) for bpp, psnr in totals / len(photos)]
