"""Whether a latent has collapsed: what each of its units still says about the pictures.

A latent has P positions and a number of units at each: channels of a continuous latent, codebooks
of a discrete one. A unit is active if it varies with the picture, by the measure that its kind has:

    Gaussian, deterministic   variance over positions of the posterior mean > ACTIVE_VARIANCE
                              (Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted
                              autoencoders", ICLR 2016: A_u = Cov_x(E[u | x]) > 0.01)
    discrete                  perplexity exp(-sum_k f_k ln f_k) of the frequencies f of its
                              codewords, against LEAST_PERPLEXITY of what it could be

Layout: the thresholds; `LatentHealth`; one function for each kind of latent; `describe`.

Invariants
- Every threshold of every verdict is a constant at the top of this file.
- Sums are taken in float64 on the CPU, whatever comes in, and no input is changed.
- A figure is of the positions given, so a verdict is of the pictures as much as of the model: over
  a flat picture every unit is inactive. With fewer than FEW_POSITIONS positions there is none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ACTIVE_VARIANCE = 0.01
"""A continuous unit is active above this variance, in units of its prior's or of its scale."""
LEAST_KL = 0.01
"""Nats a position: where no unit has more, the posterior is the prior."""
FEW_ACTIVE = 0.02
"""Share of active units up to which a latent counts as collapsed."""
MANY_ACTIVE = 0.9
"""Share of active units from which a latent counts as healthy."""
SMALL_SIGMA = 0.01
"""Standard deviation of the posterior, relative to that of its means, below which it is a point."""
LEAST_PERPLEXITY = 0.05
"""Share of min(codewords, positions) below which the perplexity of a codebook has collapsed."""
CONSTANT_PERPLEXITY = 1.1
"""Perplexity up to which a codebook says the same everywhere, however small it is."""
MANY_UNUSED = 0.5
"""Share of unused codewords from which a codebook that is otherwise in use is worth a remark."""
POSITIONS_PER_CODEWORD = 10
"""With fewer positions, a codeword that was not used may just not have come up."""
FEW_POSITIONS = 64
"""With fewer positions nothing is judged."""

HEALTHY, PARTIAL, COLLAPSED, POINT, UNKNOWN = "healthy", "partial", "collapsed", "point", "unknown"
"""States: in order; some units carry nothing; (nearly) all; a posterior without width; not judged."""

# What units do, of one and of several.
_VARY = "varies with the picture", "vary with the picture"
_IDLE = "carries nothing", "carry nothing"
_SPREAD = "makes use of its codewords", "make use of their codewords"
_NARROW = "keeps to a few codewords", "keep to a few codewords"

Values: TypeAlias = Tensor | NDArray[np.generic]


@dataclass(frozen=True)
class LatentHealth:
    """What the units of a latent carry, over `positions` positions.

    state: one of the constants above. mean_sigma: of the posterior, over all units and positions,
    None if it has no width. kl_per_unit: nats a position, empty where there is no prior to differ
    from. perplexity: of each codebook, those of stage 0 first, with the number of its codewords
    that were not used (`unused`); both empty for a continuous latent, which has no codewords either.
    verdicts: sentences for a person, at least one, the weightiest first.
    """

    mode: str
    state: str
    positions: int
    units: int
    active_units: int
    mean_sigma: float | None
    kl_per_unit: tuple[float, ...]
    perplexity: tuple[float, ...]
    unused: tuple[int, ...]
    codewords: int | None
    verdicts: tuple[str, ...]

    @property
    def kl(self) -> float | None:
        """Nats a position of all units that have a prior; None if none has."""
        return math.fsum(self.kl_per_unit) if self.kl_per_unit else None

    @property
    def median_perplexity(self) -> float | None:
        """The lower median over the codebooks; None without codebooks."""
        return statistics.median_low(self.perplexity) if self.perplexity else None


def gaussian_health(mu: Values, logvar: Values, *, mode: str = "vae") -> LatentHealth:
    """Health of a Gaussian posterior N(mu, exp(logvar)), for a prior N(0, 1).

    mu, logvar: (P, C) floating point, positions of a fixed set of pictures. ValueError for other
    shapes, no position, or values that are not finite.
    """
    means, log_variances = _matrix("mu", mu), _matrix("logvar", logvar)
    if means.shape != log_variances.shape:
        raise ValueError(f"mu is {tuple(means.shape)}, logvar {tuple(log_variances.shape)}")
    sigma = (0.5 * log_variances).exp()
    kl = 0.5 * (means.square() + sigma.square() - log_variances - 1).mean(0)
    if not (sigma.isfinite().all() and kl.isfinite().all()):
        raise ValueError("logvar is too large for a variance")
    variance = means.var(0, correction=0)
    active = variance > ACTIVE_VARIANCE
    total = float(kl.sum())

    positions, units = means.shape
    count = int(active.sum())
    state, verdicts = _judge_units(count, units, _VARY, _IDLE)
    if count > FEW_ACTIVE * units and float(kl.max()) < LEAST_KL:
        state = COLLAPSED
    if state == COLLAPSED:
        verdicts = [
            f"posterior collapse: {_share(count, units, _VARY)}, KL {total:.3g} nats a position; "
            "what is drawn from the posterior says next to nothing"
        ]
    elif count:
        width = float((sigma.mean(0)[active] / variance[active].sqrt()).median())
        if width < SMALL_SIGMA:
            state = POINT
            verdicts.insert(
                0,
                "sigma -> 0: the VAE has become an autoencoder (of an active unit, sigma is "
                f"{100 * width:.2g} % of the standard deviation of its means)",
            )
    return _health(
        mode,
        state,
        verdicts,
        positions=positions,
        units=units,
        active_units=count,
        mean_sigma=float(sigma.mean()),
        kl_per_unit=tuple(kl.tolist()),
    )


def deterministic_health(latent: Values, scale: Values | float, *, mode: str = "ae") -> LatentHealth:
    """Health of a continuous latent without noise, whose units have a size of their own.

    latent: (P, C) floating point; scale: positive, one number or (C,), what counts as 1 in each
    unit. ValueError for other shapes, no position, or values that are not finite.
    """
    values = _matrix("latent", latent)
    sizes = torch.as_tensor(scale).detach().to("cpu", torch.float64)
    positions, units = values.shape
    if sizes.shape not in ((), (units,)) or not (sizes.isfinite() & (sizes > 0)).all():
        raise ValueError(f"scale must be positive, one number or ({units},), got {tuple(sizes.shape)}")
    active = (values / sizes).var(0, correction=0) > ACTIVE_VARIANCE
    count = int(active.sum())
    state, verdicts = _judge_units(count, units, _VARY, _IDLE)
    if state == COLLAPSED:
        verdicts.insert(0, "the latent has collapsed: it is nearly the same everywhere")
    return _health(mode, state, verdicts, positions=positions, units=units, active_units=count)


def codebook_health(
    indices: Values | Sequence[Values], codewords: int, *, mode: str = "vq", kl: Values | None = None
) -> LatentHealth:
    """Health of codebooks of `codewords` codewords, from the indices that were chosen.

    indices: integers (G, P), or one such array for each residual stage; every row is a codebook.
    They are to be the nearest codewords (or the likeliest): an encoder that pays for bits leaves
    most groups at codeword 0 at a low rate, which is thrift and not collapse. kl: (G, P), nats of
    the posterior over the codewords to its prior, where indices are drawn from one (mode dvae).
    ValueError for other shapes, no position, an index outside 0..codewords - 1, or a kl that is
    not finite; TypeError for indices that are not integers.
    """
    if codewords < 1:
        raise ValueError(f"codewords must be positive, got {codewords}")
    stages = [indices] if isinstance(indices, Tensor | np.ndarray) else list(indices)
    if not stages:
        raise ValueError("there is no stage of indices")
    counts = torch.cat([_counts(stage, codewords) for stage in stages]).double()
    of_each = counts.sum(1, keepdim=True)
    perplexity = torch.special.entr(counts / of_each).sum(1).exp()
    unused = (counts == 0).sum(1)

    positions, units = int(of_each.min()), len(counts)
    possible = min(codewords, positions)
    least = max(CONSTANT_PERPLEXITY, LEAST_PERPLEXITY * possible)
    active = perplexity > least
    count = int(active.sum())
    median = float(perplexity.median())
    state, verdicts = _judge_units(count, units, _SPREAD, _NARROW)
    if median <= least:
        state = COLLAPSED
        verdicts = [
            f"codebook collapse: half of the {units} codebooks have a perplexity of {median:.3g} or "
            f"less, where {possible} is possible"
        ]
    share = float(unused.double().median()) / codewords
    if state != COLLAPSED and positions >= POSITIONS_PER_CODEWORD * codewords and share > MANY_UNUSED:
        state = PARTIAL
        verdicts.insert(
            0, f"dead codewords: half of the codebooks leave {100 * share:.0f} % or more unused"
        )
    divergence: Tensor | None = None
    if kl is not None:
        divergence = _matrix("kl", kl).mean(1)
        if len(divergence) != len(stages[0]):
            raise ValueError(f"kl has {len(divergence)} groups, the indices {len(stages[0])}")
        if float(divergence.max()) < LEAST_KL:
            state = COLLAPSED
            verdicts.insert(
                0,
                f"posterior collapse: KL {float(divergence.sum()):.3g} nats a position; the "
                "choice of codewords says nothing about the picture",
            )
    return _health(
        mode,
        state,
        verdicts,
        positions=positions,
        units=units,
        active_units=count,
        kl_per_unit=() if divergence is None else tuple(divergence.tolist()),
        perplexity=tuple(perplexity.tolist()),
        unused=tuple(unused.tolist()),
        codewords=codewords,
    )


def describe(health: LatentHealth) -> str:
    """Mode, figures and the first verdict in one line, for a log."""
    figures = [f"{health.active_units}/{health.units} units active"]
    if health.mean_sigma is not None:
        figures.append(f"sigma {health.mean_sigma:.3g}")
    if health.kl is not None:
        figures.append(f"KL {health.kl:.4g} nats a position")
    if health.median_perplexity is not None:
        figures.append(f"median perplexity {health.median_perplexity:.4g} of {health.codewords}")
    return f"{health.mode}: {', '.join(figures)}; {health.verdicts[0]}"


def _judge_units(
    active: int, units: int, active_do: tuple[str, str], idle_do: tuple[str, str]
) -> tuple[str, list[str]]:
    """State by the share of active units, and a sentence on what those or the idle ones do."""
    if active >= MANY_ACTIVE * units:
        return HEALTHY, [_share(active, units, active_do)]
    state = COLLAPSED if active <= FEW_ACTIVE * units else PARTIAL
    return state, [_share(units - active, units, idle_do)]


def _share(count: int, units: int, do: tuple[str, str]) -> str:
    """How many units do something; `do` in the singular and in the plural."""
    return f"{count} of {units} units {do[0] if count == 1 else do[1]}"


def _health(
    mode: str,
    state: str,
    verdicts: Sequence[str],
    *,
    positions: int,
    units: int,
    active_units: int,
    mean_sigma: float | None = None,
    kl_per_unit: tuple[float, ...] = (),
    perplexity: tuple[float, ...] = (),
    unused: tuple[int, ...] = (),
    codewords: int | None = None,
) -> LatentHealth:
    """The record, with the verdict withdrawn where there was too little to see."""
    if state == HEALTHY:
        verdicts = [f"healthy: {verdicts[0]}"]
    if positions < FEW_POSITIONS:
        state = UNKNOWN
        verdicts = [
            f"too little to judge: {positions} of the {FEW_POSITIONS} positions that are needed; "
            "take larger pictures, or more of them"
        ]
    return LatentHealth(
        mode=mode,
        state=state,
        positions=positions,
        units=units,
        active_units=active_units,
        mean_sigma=mean_sigma,
        kl_per_unit=kl_per_unit,
        perplexity=perplexity,
        unused=unused,
        codewords=codewords,
        verdicts=tuple(verdicts),
    )


def _matrix(name: str, values: Values) -> Tensor:
    """Finite, contiguous float64 (rows, columns) on the CPU, without a gradient."""
    matrix = torch.as_tensor(values).detach().to("cpu", torch.float64).contiguous()
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must have two dimensions and no empty one, got {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise ValueError(f"{name} has values that are not finite")
    return matrix


def _counts(indices: Values, codewords: int) -> Tensor:
    """How often each codebook used each codeword: indices (G, P) -> int64 (G, codewords)."""
    index = torch.as_tensor(indices).detach().cpu()
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"indices must be integers, got {index.dtype}")
    if index.ndim != 2 or 0 in index.shape:
        raise ValueError(f"indices must be (G, P) and not empty, got {tuple(index.shape)}")
    index = index.long()
    if not 0 <= int(index.min()) <= int(index.max()) < codewords:
        raise ValueError(f"every index must lie in 0..{codewords - 1}")
    groups = len(index)
    flat = index + codewords * torch.arange(groups)[:, None]
    return torch.bincount(flat.flatten(), minlength=groups * codewords).reshape(groups, codewords)
