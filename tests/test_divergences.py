"""Divergences: closed forms, estimates against sums by hand, gradients, bad input."""

import math

import pytest
import torch

from vqcodec.divergences import gaussian_divergence, maximum_mean_discrepancy
from vqcodec_kernels import gaussian_sample


def _normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(), (1,), (5, 3), (2, 3, 4, 1)])
def test_gaussian_divergence_is_that_of_torch(shape: tuple[int, ...]) -> None:
    mean, log_variance, prior_mean, prior_log_variance = (_normals(*shape, seed=s) for s in range(4))
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(prior_mean, (prior_log_variance / 2).exp())
    wanted = torch.distributions.kl_divergence(posterior, prior)
    found = gaussian_divergence(mean, log_variance, prior_mean, prior_log_variance)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    wanted = torch.distributions.kl_divergence(posterior, standard)
    torch.testing.assert_close(gaussian_divergence(mean, log_variance), wanted, rtol=1e-12, atol=1e-12)


def test_gaussian_divergence_sums_to_what_sampling_gives() -> None:
    mean, log_variance = _normals(7, 4), _normals(7, 4, seed=1)
    prior_mean, prior_log_variance = _normals(4, seed=2), _normals(7, 1, seed=3)
    fused = gaussian_sample(
        mean, log_variance, prior_mu=prior_mean, prior_logvar=prior_log_variance, seed=0
    ).kl
    found = gaussian_divergence(mean, log_variance, prior_mean, prior_log_variance)
    torch.testing.assert_close(found.sum(1), fused, rtol=1e-12, atol=1e-12)


def test_gaussian_divergence_is_zero_at_the_prior_and_never_negative() -> None:
    mean, log_variance = (6 * _normals(1000, seed=s).float() for s in (0, 1))
    assert (gaussian_divergence(mean, log_variance, mean, log_variance) == 0).all()
    assert (gaussian_divergence(torch.zeros(3), torch.zeros(3)) == 0).all()
    assert (gaussian_divergence(mean, log_variance) > 0).all()
    # Near the prior, where one minus the variance would cancel: r^2 / 4 of a ratio 1 + r.
    close = torch.logspace(-6, -2, 50)
    found = gaussian_divergence(torch.zeros(50), close)
    assert (found > -1e-12).all()
    torch.testing.assert_close(found[25:], close[25:].square() / 4, rtol=2e-2, atol=1e-9)


def test_gaussian_divergence_has_gradients_in_all_four() -> None:
    arguments = [_normals(3, 2, seed=s).requires_grad_() for s in range(4)]
    assert torch.autograd.gradcheck(gaussian_divergence, arguments)


def test_gaussian_divergence_of_nothing() -> None:
    assert gaussian_divergence(torch.zeros(0, 8), torch.zeros(0, 8)).shape == (0, 8)


@pytest.mark.parametrize(
    "shapes", [[(3,), (4,)], [(3, 2), (2,)], [(3,), (3,), (2, 3)], [(3,), (3,), (2,)]]
)
def test_gaussian_divergence_refuses_shapes(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        gaussian_divergence(*(torch.zeros(shape) for shape in shapes))


def _by_hand(x: torch.Tensor, y: torch.Tensor, scales: tuple[float, ...]) -> float:
    """The definition, pair by pair."""

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return sum(scale / (scale + float((a - b).square().sum())) for scale in scales)

    total = 0.0
    for rows in (x, y):
        others = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        total += math.fsum(others) / len(others)
    across = [kernel(a, b) for a in x for b in y]
    return total - 2 * math.fsum(across) / len(across)


@pytest.mark.parametrize(("rows", "others", "columns"), [(2, 2, 1), (5, 3, 4), (2, 9, 2)])
def test_discrepancy_is_its_definition(rows: int, others: int, columns: int) -> None:
    x, y = _normals(rows, columns), 0.5 + _normals(others, columns, seed=1)
    for scales in ((1.0,), (0.1, 2.0, 30.0)):
        found = maximum_mean_discrepancy(x, y, scales=scales)
        assert found.shape == () and float(found) == pytest.approx(_by_hand(x, y, scales), abs=1e-12)
        swapped = maximum_mean_discrepancy(y, x, scales=scales)
        assert float(swapped) == pytest.approx(float(found), abs=1e-12)


def test_discrepancy_is_near_zero_for_equal_distributions_and_positive_for_others() -> None:
    scales = (0.8, 4.0, 20.0)
    x, same = _normals(600, 4), _normals(600, 4, seed=1)
    # Its deviation under equal distributions is of the order of K / N.
    nothing = float(maximum_mean_discrepancy(x, same, scales=scales))
    assert abs(nothing) < 0.02
    for other in (same + 0.5, 1.5 * same, same.abs()):
        assert float(maximum_mean_discrepancy(x, other, scales=scales)) > 0.04
    far = maximum_mean_discrepancy(torch.zeros(9, 2), torch.full((9, 2), 1e6), scales=scales)
    assert float(far) == pytest.approx(2 * len(scales), abs=1e-6)


def test_discrepancy_is_unbiased() -> None:
    """Over every way to split eight vectors in two halves, the mean of an unbiased estimate vanishes
    but for what the vectors themselves are not independent by; the biased one would stay above 0."""
    vectors = _normals(200, 2)
    splits = [torch.randperm(200, generator=torch.Generator().manual_seed(s)) for s in range(200)]
    found = [maximum_mean_discrepancy(vectors[s[:100]], vectors[s[100:]], scales=(2.0,)) for s in splits]
    # The diagonal that it leaves out would add (1 - mean kernel) / 100 twice, about 0.01.
    assert abs(float(torch.stack(found).mean())) < 0.002


def test_discrepancy_has_gradients() -> None:
    x, y = _normals(4, 3).requires_grad_(), _normals(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: maximum_mean_discrepancy(a, b, scales=(1.0, 6.0)), (x, y)
    )
    # Equal rows, whose distance has no slope.
    equal = torch.ones(3, 2, requires_grad=True)
    maximum_mean_discrepancy(equal, torch.ones(3, 2), scales=(1.0,)).backward()
    assert equal.grad is not None and equal.grad.isfinite().all()


@pytest.mark.parametrize(
    ("x", "y", "scales"),
    [
        ((1, 3), (4, 3), (1.0,)),
        ((4, 3), (0, 3), (1.0,)),
        ((4, 3), (4, 2), (1.0,)),
        ((4, 0), (4, 0), (1.0,)),
        ((4,), (4,), (1.0,)),
        ((4, 3), (4, 3), ()),
        ((4, 3), (4, 3), (1.0, 0.0)),
        ((4, 3), (4, 3), (-1.0,)),
        ((4, 3), (4, 3), (math.nan,)),
        ((4, 3), (4, 3), (math.inf,)),
    ],
)
def test_discrepancy_refuses(x: tuple[int, ...], y: tuple[int, ...], scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError):
        maximum_mean_discrepancy(torch.zeros(x), torch.zeros(y), scales=scales)
