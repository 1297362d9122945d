"""Philox4x32-10, a random generator that is a function of a counter, and standard normals from it.

    words(i)  = philox(counter = (low32(i // 4), high32(i // 4), 0, 0), key = (low32(seed), high32(seed)))
    u(w)      = ((w >> 8) + 1) * 2^-24        in (0, 1]
    angle(w)  = 2 pi * (w >> 8) * 2^-24
    normal(i) = sqrt(-2 ln u(w0)) * cos angle(w1), the same with sin, and both of (w2, w3), by i % 4

Normal number i depends on the seed and on i alone: not on the device, nor on how many are drawn at
once. The words are the same everywhere, the normals equal to rounding. |normal| <= 5.77, since u is
2^-24 at least; of true normals, one in 10^8 is farther out.

Sources: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC 2011; G. E. P. Box, M. E. Muller, "A note on the generation of random normal deviates",
Ann. Math. Statist. 29(2), 1958.
"""

import math

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
# What the key grows by from round to round: the golden ratio and sqrt(3) - 1.
_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox_4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Ten rounds of Philox: counter int64 (..., 4) and key int64 (..., 2) -> int64 (..., 4).

    Every word lies in [0, 2^32). The leading dimensions broadcast.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(_ROUNDS):
        # Products wrap modulo 2^64, which leaves all their bits right but for the sign's meaning.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32 & _LOW) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> 32 & _LOW) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _STEPS[0]) & _LOW, (k1 + _STEPS[1]) & _LOW
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The seed as int64 (1,) on the device; None draws one from that device's default generator.

    A tensor is one int64, of any shape. TypeError or ValueError for anything else.
    """
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed must be int64, got {seed.dtype}")
        if seed.numel() != 1:
            raise ValueError(f"seed must be one number, got a tensor of shape {tuple(seed.shape)}")
        return seed.reshape(1).to(device)
    if isinstance(seed, bool) or not isinstance(seed, (int, torch.SymInt)):
        raise TypeError(f"seed must be an integer or a tensor, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must lie in [-2^63, 2^63), got {seed}")
    return torch.tensor([seed], dtype=torch.int64, device=device)


@torch.no_grad()
def philox_normal(
    seed: int | Tensor,
    count: int,
    *,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Normals number start to start + count of a seed, (count,), computed in float64 and rounded once.

    seed: integer in [-2^63, 2^63), or an int64 tensor of one element. device: by default the
    seed's, or the CPU. Raises ValueError or TypeError for numbers out of range.
    """
    if count < 0 or start < 0 or start + count > 2**63 - 1:
        raise ValueError(f"there is no range of {count} numbers from {start}")
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else "cpu"
    seed = seed_tensor(seed, torch.device(device))
    first = start // 4
    index = torch.arange(first, (start + count + 3) // 4, device=device)
    zero = torch.zeros_like(index)
    counter = torch.stack((index & _LOW, index >> 32, zero, zero), -1)
    words = philox_4x32(counter, torch.stack((seed & _LOW, seed >> 32 & _LOW), -1))
    fraction = (words >> 8).double() * 2.0**-24
    radius = torch.sqrt(-2.0 * torch.log(fraction[:, 0::2] + 2.0**-24))
    angle = 2.0 * math.pi * fraction[:, 1::2]
    normals = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), -1)
    return normals.flatten()[start - 4 * first :][:count].to(dtype)
