"""Search for a better encoding at a given price: iterated assignment through the synthesis.

The encoder's assignment takes squared error in the latent for squared error of the pixels, which it is
for the linear part of the synthesis alone. Each round linearises the whole synthesis S around what is
decoded now, q, and assigns anew what that asks for,

    target = q - grad_q ||S(q) - x||^2 / 2

at the same price of a bit (the step of a majorise-minimise scheme, "iterative thresholding":
I. Daubechies, M. Defrise, C. De Mol, Comm. Pure Appl. Math. 57, 2004, with codewords and the
conditional prior's code lengths in place of a threshold). For a linear orthonormal S the target is the
latent itself. The dearer a bit, the farther apart are the codewords that compete, and the farther a
round would jump: there the new target is averaged with the one before. A symbol also makes later ones
dearer, which its own code length does not tell, so rounds after the first charge more than the price
(`stage_price`), and more with every round up to a limit. Of all rounds the one with the least
J = squared error + price * bits is kept, so that a search never ends behind where it began, but for the
rounding of bfloat16, in which S is computed where that is fast. Decoding knows nothing of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqcodec.blocks import cut_blocks, pad_latent
from vqcodec.bottleneck import SymbolPlane, VectorBottleneck
from vqcodec.effort import rounds_of
from vqcodec.precision import full_precision, has_fast_bfloat16, short_precision
from vqcodec.quantizer import RatePoint
from vqcodec.transform import Synthesis

# Side in latents of the blocks that gradients are taken of: activations are kept, so they are small.
_BLOCK = 40
# Share of the target before in a new one: the price over this, at most a half.
_PRICE_OF_INERTIA = 3333.0
# By how much the surcharge grows in each round after the first, and how far.
_SURCHARGE, _LARGEST_SURCHARGE = 0.2, 0.4


@dataclass
class _Found:
    planes: list[SymbolPlane]
    cost: float


def search_symbols(
    latent: Tensor,
    pixels: Tensor,
    point: RatePoint,
    bottleneck: VectorBottleneck,
    synthesis: Synthesis,
    *,
    effort: int,
) -> list[SymbolPlane]:
    """The best symbols found for latent (C, h, w), on the CPU, and pixels float32 (3, H, W), on the
    device of the synthesis.

    effort: 1..9; 1 assigns once. ValueError for others. Deterministic where the synthesis is.
    """
    planes = bottleneck.to_symbols(latent, point)
    rounds = rounds_of(effort)
    inertia = min(0.5, point.price / _PRICE_OF_INERTIA)
    target = latent
    best: _Found | None = None
    for number in range(rounds + 1 if rounds else 0):
        last = number == rounds
        error, wanted = _descend(planes, pixels, point, bottleneck, synthesis, only_error=last)
        # A stage that is all zero is left out of the file.
        cost = error + point.price * sum(plane.bits for plane in planes if plane.index.any())
        if best is None or cost < best.cost:
            best = _Found(planes, cost)
        if not last:
            target = torch.lerp(wanted, target, inertia)
            surcharge = min(_SURCHARGE * number, _LARGEST_SURCHARGE)
            planes = bottleneck.to_symbols(target, point, surcharge=surcharge)
    return planes if best is None else best.planes


def _descend(
    planes: list[SymbolPlane],
    pixels: Tensor,
    point: RatePoint,
    bottleneck: VectorBottleneck,
    synthesis: Synthesis,
    *,
    only_error: bool,
) -> tuple[float, Tensor]:
    """Squared error of what symbols decode to, and the latent (C, h, w) to aim at from there."""
    coded = max((n + 1 for n, plane in enumerate(planes) if plane.index.any()), default=1)
    indices = [plane.index for plane in planes[:coded]]
    bucket = bottleneck.shown_bucket(indices, point.bucket)
    decoded = bottleneck.from_symbols(indices, point.bucket)
    height, width = decoded.shape[1:]
    padded = pad_latent(decoded)
    gradient = torch.zeros_like(padded)
    error = 0.0
    arithmetic = short_precision if has_fast_bfloat16(pixels.device) else full_precision
    for block in cut_blocks(pixels.shape[1], pixels.shape[2], _BLOCK):
        # Inside inference mode tensors could not take part in a gradient.
        with (
            arithmetic(pixels.device),
            torch.inference_mode(False),
            torch.set_grad_enabled(not only_error),
        ):
            part = padded[None, :, *block.latents].clone().to(pixels.device)
            part = part.contiguous(memory_format=torch.channels_last).requires_grad_(not only_error)
            wanted = pixels[:, *block.pixels].clone()
            rate = torch.tensor([bucket], device=pixels.device)
            picture = synthesis(part, rate)[0, :, *block.inside].clamp(0, 255)
            missed = (picture - wanted).square().sum()
            slope = None if only_error else torch.autograd.grad(missed, part)[0][0].cpu()
        error += missed.item()
        if slope is not None:
            gradient[:, *block.latents] += slope
    # What a small latent was continued by is its last row and column.
    gradient[:, height - 1] = gradient[:, height - 1 :].sum(1)
    gradient[:, :, width - 1] = gradient[:, :, width - 1 :].sum(2)
    return error, decoded - gradient[:, :height, :width] / 2
