"""Sampling from a diagonal Gaussian and its divergence from a prior: the latent of a VAE.

    z[n, i] = mu + exp(logvar / 2) * eps,    eps = normal number n * M + i of the seed
    kl[n]   = sum_i KL(N(mu, exp(logvar)) || N(pm, exp(pl)))
            = sum_i 1/2 (pl - logvar + exp(logvar - pl) + (mu - pm)^2 exp(-pl) - 1)      nats

Layout: mu and logvar (N, ...), M elements a sample; the prior's mean pm and log-variance pl are 0
unless given. Arithmetic is in float32 (float64 for float64), and results are rounded once.

- The noise is Philox's (`philox` has the formula): z depends on seed and flat index alone, not on
  strides, backend, block sizes or threads but for float rounding.
- Nothing but the arguments and the seed is kept for the backward pass, which draws the noise again.
- kl is the same from run to run and, on the CPU, for every number of threads and for a sample alone
  or in any batch. Its terms are taken without cancellation near the prior.

Gradients, for dz and dkl, with v = exp(logvar - pl) and r = (mu - pm) exp(-pl):

    dmu = dz + dkl r                    dlogvar = dz exp(logvar / 2) eps / 2 + dkl (v - 1) / 2
    dpm = -dkl r                        dpl = dkl (1 - v - (mu - pm) r) / 2

Source: D. P. Kingma, M. Welling, "Auto-encoding variational Bayes", ICLR 2014, section 2.4 and
appendix B.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqcodec_kernels._extension import can_run_triton, load_native
from vqcodec_kernels.philox import philox_normal, seed_tensor

Backend = Literal["auto", "reference", "native", "triton"]

_BACKENDS = ("auto", "reference", "native", "triton")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Sample(NamedTuple):
    """Result of `gaussian_sample`: z as mu, contiguous; kl (N,), float64 for float64, else float32,
    or None."""

    z: Tensor
    kl: Tensor | None


def gaussian_sample(
    mu: Tensor,
    logvar: Tensor,
    *,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    seed: int | Tensor | None = None,
    kl: bool = True,
    backend: Backend = "auto",
) -> Sample:
    """Draws one z for every element, and each sample's divergence from the prior in nats.

    mu, logvar: the same shape (N, ...) and dtype, float32, float16, bfloat16 or float64, any
    strides. prior_mu, prior_logvar: that dtype, broadcast to that shape; the prior is N(0, 1)
    without them, and read for kl only. All four get gradients, once: what needs second
    derivatives takes `gaussian_sample_ref`.

    seed: an integer in [-2^63, 2^63) or one int64 as a tensor; None draws one from the default
    generator of mu's device, so that `torch.manual_seed` governs. In a CUDA graph give a tensor: a
    number would be part of the graph. kl=False leaves out the divergence and its cost.

    backend: "reference" is PyTorch; "native" the C++ kernel, for the CPU; "triton" the GPU kernel;
    neither takes float64. "auto" takes the fastest that can run.
    Raises ValueError or TypeError for shapes, dtypes, devices or seeds that do not fit, RuntimeError
    if an explicitly chosen backend cannot run.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    _check(mu, logvar, prior_mu, prior_logvar)
    z, divergence = torch.ops.vqcodec.gaussian_sample(
        mu,
        logvar,
        # Expanded here, so that autograd sums their gradients over what was broadcast.
        prior_mu.expand(mu.shape) if kl and prior_mu is not None else None,
        prior_logvar.expand(mu.shape) if kl and prior_logvar is not None else None,
        seed_tensor(seed, mu.device),
        bool(kl),
        backend,
    )
    return Sample(z, divergence if kl else None)


def gaussian_sample_ref(
    mu: Tensor,
    logvar: Tensor,
    *,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    seed: int | Tensor,
    kl: bool = True,
) -> Sample:
    """The formula in PyTorch, differentiable any number of times; arguments as `gaussian_sample`."""
    wide = torch.promote_types(mu.dtype, torch.float32)
    mean, log_variance = mu.to(wide), logvar.to(wide)
    eps = philox_normal(seed, mu.numel(), dtype=wide, device=mu.device).reshape(mu.shape)
    z = (mean + torch.exp(log_variance / 2) * eps).to(mu.dtype)
    if not kl:
        return Sample(z, None)
    if prior_mu is not None:
        mean = mean - prior_mu.to(wide)
    square = mean.square()
    if prior_logvar is not None:
        log_variance = log_variance - prior_logvar.to(wide)
        square = square * torch.exp(-prior_logvar.to(wide))
    divergence = 0.5 * (torch.expm1(log_variance) - log_variance + square)
    return Sample(z, divergence.reshape(mu.shape[0], _size(mu)).sum(1))


def _gradients_ref(
    dz: Tensor | None,
    dkl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> list[Tensor | None]:
    """The gradients as the module states them, None where there is no need for one."""
    wide = torch.promote_types(mu.dtype, torch.float32)
    results = [torch.zeros_like(mu, dtype=wide) if need else None for need in needs]
    dmu, dlogvar, dprior_mu, dprior_logvar = results
    if dz is not None:
        if dmu is not None:
            dmu += dz
        if dlogvar is not None:
            eps = philox_normal(seed, mu.numel(), dtype=wide).reshape(mu.shape)
            dlogvar += 0.5 * dz.to(wide) * torch.exp(logvar.to(wide) / 2) * eps
    if dkl is not None:
        dkl = dkl.reshape(-1, *[1] * (mu.ndim - 1))
        distance = mu.to(wide) if prior_mu is None else mu.to(wide) - prior_mu
        ratio = logvar.to(wide) if prior_logvar is None else logvar.to(wide) - prior_logvar
        slope = distance if prior_logvar is None else distance * torch.exp(-prior_logvar.to(wide))
        excess = torch.expm1(ratio)
        if dmu is not None:
            dmu += dkl * slope
        if dlogvar is not None:
            dlogvar += dkl * 0.5 * excess
        if dprior_mu is not None:
            dprior_mu -= dkl * slope
        if dprior_logvar is not None:
            dprior_logvar -= dkl * 0.5 * (excess + distance * slope)
    return [None if result is None else result.to(mu.dtype) for result in results]


def _sample(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    kl: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The operator: z as mu, kl (N,) or empty. Everything has mu's shape, and seed one element."""
    chosen = _choose(backend, mu)
    if chosen == "reference":
        z, divergence = gaussian_sample_ref(
            mu, logvar, prior_mu=prior_mu, prior_logvar=prior_logvar, seed=seed, kl=kl
        )
        return z.contiguous(), z.new_empty(0) if divergence is None else divergence
    launch: Callable[..., tuple[Tensor, Tensor]] = _sample_native
    if chosen == "triton":
        from vqcodec_kernels.gaussian_sample_triton import launch_forward

        launch = launch_forward
    rows = (_as_rows(tensor) for tensor in (mu, logvar, prior_mu, prior_logvar))
    z, divergence = launch(*rows, seed, kl=kl)
    return z.view(mu.shape), divergence


def _backward(
    dz: Tensor | None,
    dkl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    needs: list[bool],
    backend: str,
) -> list[Tensor]:
    """The operator of the gradients: as mu, of those of the four arguments that need one."""
    chosen = _choose(backend, mu)
    wanted = (needs[0], needs[1], needs[2], needs[3])
    if chosen == "reference":
        found = _gradients_ref(dz, dkl, mu, logvar, prior_mu, prior_logvar, seed, wanted)
        return [gradient.contiguous() for gradient in found if gradient is not None]
    launch: Callable[..., Sequence[Tensor | None]] = _backward_native
    if chosen == "triton":
        from vqcodec_kernels.gaussian_sample_triton import launch_backward

        launch = launch_backward
    rows = (_as_rows(tensor) for tensor in (mu, logvar, prior_mu, prior_logvar))
    gradients = launch(_as_rows(dz), dkl, *rows, seed, needs=wanted)
    return [gradient.view(mu.shape) for gradient in gradients if gradient is not None]


def _sample_native(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    *,
    kl: bool,
) -> tuple[Tensor, Tensor]:
    z = torch.empty(mu.shape, dtype=mu.dtype)
    divergence = torch.empty(mu.shape[0] if kl else 0, dtype=torch.float32)
    load_native().gaussian_sample(  # type: ignore[union-attr]
        mu,
        logvar,
        prior_mu,
        prior_logvar,
        int(seed),
        z,
        divergence if kl else None,
        torch.get_num_threads(),
    )
    return z, divergence


def _backward_native(
    dz: Tensor | None,
    dkl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    *,
    needs: tuple[bool, bool, bool, bool],
) -> list[Tensor | None]:
    gradients = [torch.empty(mu.shape, dtype=mu.dtype) if need else None for need in needs]
    load_native().gaussian_sample_backward(  # type: ignore[union-attr]
        dz,
        dkl,
        mu,
        logvar,
        prior_mu,
        prior_logvar,
        int(seed),
        *gradients,
        torch.get_num_threads(),
    )
    return gradients


def _sample_shapes(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    kl: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Shapes, dtypes and device of the operator's results, for tracing."""
    _choose(backend, mu)
    wide = torch.promote_types(mu.dtype, torch.float32)
    return mu.new_empty(mu.shape), mu.new_empty(mu.shape[0] if kl else 0, dtype=wide)


def _backward_shapes(
    dz: Tensor | None,
    dkl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    needs: list[bool],
    backend: str,
) -> list[Tensor]:
    """The same of the operator of the gradients."""
    return [mu.new_empty(mu.shape) for _ in range(sum(needs))]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keeps the arguments: references to memory that the caller has anyway."""
    *tensors, ctx.kl, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


@once_differentiable
def _differentiate(ctx: Any, dz: Tensor | None, dkl: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of the operator's arguments, from those of its results."""
    gradients: list[Tensor | None] = [None] * 7
    needs = ctx.needs_input_grad[:4]
    if dkl is None or not ctx.kl:
        # z has the slope 1 in mu, and knows no prior.
        dkl, gradients[0] = None, dz
        needs = (False, needs[1] and dz is not None, False, False)
    if any(needs):
        found = torch.ops.vqcodec.gaussian_sample_backward(
            dz, dkl, *ctx.saved_tensors, needs, ctx.backend
        )
        for argument, gradient in zip((i for i in range(4) if needs[i]), found, strict=True):
            gradients[argument] = gradient
    return tuple(gradients)


# Opaque to torch.compile, which would keep the noise for the backward pass.
_LIBRARY = torch.library.Library("vqcodec", "FRAGMENT")
_LIBRARY.define(
    "gaussian_sample(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor seed, "
    "bool kl, str backend) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "gaussian_sample_backward(Tensor? dz, Tensor? dkl, Tensor mu, Tensor logvar, Tensor? prior_mu, "
    "Tensor? prior_logvar, Tensor seed, bool[] needs, str backend) -> Tensor[]"
)
_LIBRARY.impl("gaussian_sample", _sample, "CompositeExplicitAutograd")
_LIBRARY.impl("gaussian_sample_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("vqcodec::gaussian_sample", _sample_shapes, lib=_LIBRARY)
torch.library.register_fake("vqcodec::gaussian_sample_backward", _backward_shapes, lib=_LIBRARY)
torch.library.register_autograd(
    "vqcodec::gaussian_sample", _differentiate, setup_context=_save, lib=_LIBRARY
)


def _choose(backend: str, mu: Tensor) -> str:
    """The backend that will run; RuntimeError or TypeError if the one asked for cannot."""
    native = load_native() is not None and mu.device.type == "cpu"
    if backend == "native" and not native:
        raise RuntimeError(
            f"backend='native' needs the native extension and CPU tensors, got {mu.device}; "
            "use backend='reference'"
        )
    if backend == "triton" and not can_run_triton(mu.device):
        raise RuntimeError(
            f"backend='triton' needs the package triton and CUDA tensors, got {mu.device}; "
            "use backend='reference'"
        )
    if backend in ("native", "triton") and mu.dtype == torch.float64:
        raise TypeError(f"backend={backend!r} does not take torch.float64; use backend='reference'")
    if backend != "auto":
        return backend
    if mu.dtype == torch.float64:
        return "reference"
    if mu.device.type == "cuda" and can_run_triton(mu.device):
        return "triton"
    return "native" if native else "reference"


def _check(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None) -> None:
    """Raises for arguments that are no tensors, or do not go together."""
    arguments = {"mu": mu, "logvar": logvar, "prior_mu": prior_mu, "prior_logvar": prior_logvar}
    for name, tensor in arguments.items():
        prior = name.startswith("prior")
        if tensor is None and prior:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} must be floating point of 16 to 64 bits, got {tensor.dtype}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got {tensor.layout}")
        if tensor.device != mu.device:
            raise ValueError(f"{name} is on {tensor.device}, mu on {mu.device}")
        if tensor.dtype != mu.dtype:
            raise TypeError(f"mu is {mu.dtype}, {name} {tensor.dtype}: they must agree")
        if mu.ndim < 1:
            raise ValueError("mu must have at least one dimension, that of the samples")
        sizes = zip(reversed(tensor.shape), reversed(mu.shape), strict=False)
        if not (
            tensor.ndim <= mu.ndim and all(own == size or own == 1 for own, size in sizes)
            if prior
            else tensor.shape == mu.shape
        ):
            raise ValueError(f"{name} {tuple(tensor.shape)} does not match mu {tuple(mu.shape)}")


def _size(tensor: Tensor) -> int:
    """Number of elements of a sample."""
    return math.prod(tensor.shape[1:])


def _as_rows(tensor: Tensor | None) -> Tensor | None:
    """(N, M) with a unit stride within rows: a view where there is one. Copies of one sample stay
    one sample, with a stride of 0 between rows."""
    if tensor is None:
        return None
    count, size = tensor.shape[0], _size(tensor)
    if count > 1 and tensor.stride(0) == 0:
        return tensor[:1].reshape(1, size).contiguous().expand(count, size)
    rows = tensor.reshape(count, size)
    return rows if size <= 1 or rows.stride(1) == 1 else rows.contiguous()
