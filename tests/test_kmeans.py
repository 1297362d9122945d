"""Tests of vqcodec_kernels.kmeans: against Lloyd's algorithm in NumPy, by what defines its result,
and, where it is installed, against scikit-learn."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqcodec_kernels import KMeans, kmeans, nearest_codeword

Floats = NDArray[np.float64]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(count: int, dim: int, centres: int, seed: int) -> Tensor:
    """Clusters of spread 1, centres of spread 20."""
    middle = 20 * randn(centres, dim, seed=seed)
    return middle[torch.arange(count) % centres] + randn(count, dim, seed=seed + 1)


def inertia_of(x: Tensor, codebook: Tensor, index: Tensor) -> float:
    return (x.double() - codebook.double()[index]).square().sum().item()


def assert_consistent(x: Tensor, found: KMeans, size: int) -> None:
    """Shapes, the index that belongs to the codebook, the inertia that belongs to both."""
    assert found.codebook.shape == (*x.shape[:-2], size, x.shape[-1])
    assert found.codebook.dtype == x.dtype and found.inertia.dtype == torch.float64
    assert torch.equal(found.index, nearest_codeword(x, found.codebook, backend="torch"))
    if x.ndim == 2:
        x, found = x[None], KMeans(*(tensor[None] for tensor in found[:3]), found.iterations)
    for g in range(len(x)):
        expected = inertia_of(x[g], found.codebook[g], found.index[g])
        assert found.inertia[g].item() == pytest.approx(expected, rel=1e-12, abs=1e-300)


def nearest_and_distance(x: Floats, codebook: Floats) -> tuple[NDArray[np.int64], Floats]:
    cost = ((x[:, None] - codebook) ** 2).sum(-1)
    return cost.argmin(1), cost.min(1)


def lloyd(x: Floats, codebook: Floats, iterations: int) -> tuple[Floats, NDArray[np.int64]]:
    """Lloyd's algorithm as it is told: the empty codewords, in order, get the farthest vectors."""
    for _ in range(iterations):
        index, distance = nearest_and_distance(x, codebook)
        farthest = iter(np.argsort(-distance, kind="stable"))
        codebook = np.stack(
            [
                x[index == k].mean(0) if (index == k).any() else x[next(farthest)]
                for k in range(len(codebook))
            ]
        )
    return codebook, nearest_and_distance(x, codebook)[0]


@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
@pytest.mark.parametrize("far", [0, 1, 3])
def test_steps(far: int, iterations: int) -> None:
    x, start = randn(211, 3, seed=1).double(), randn(11, 3, seed=2).double()
    start[11 - far :] += 1000  # codewords that are empty after the first search
    found = kmeans(x, 11, iterations=iterations, tolerance=0, init=start)
    codebook, index = lloyd(x.numpy(), start.numpy(), iterations)
    np.testing.assert_allclose(found.codebook.numpy(), codebook, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(found.index.numpy(), index)
    assert found.iterations == iterations
    assert_consistent(x, found, 11)


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 1), 1), ((13, 2), 13), ((101, 3), 1), ((307, 1), 7), ((3, 211, 5), 11), ((1, 97, 17), 5)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_point(shape: tuple[int, ...], size: int, init: Any, dtype: torch.dtype) -> None:
    x = randn(*shape, seed=1).to(dtype)
    found = kmeans(x, size, iterations=1000, tolerance=0, init=init)
    assert found.iterations < 1000
    assert_consistent(x, found, size)
    groups = shape[0] if len(shape) == 3 else 1
    x, codebook = x.reshape(groups, -1, shape[-1]), found.codebook.reshape(groups, size, -1)
    index = found.index.reshape(groups, -1)
    for g in range(groups):
        for k in range(size):
            mean = x[g, index[g] == k].double().mean(0)
            torch.testing.assert_close(codebook[g, k], mean.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_inertia_never_rises(dtype: torch.dtype, precision: Any) -> None:
    x = (randn(2, 400, 3, seed=1) + 10).to(dtype)
    runs = [kmeans(x, 20, iterations=n, tolerance=0, precision=precision) for n in range(12)]
    for before, after in zip(runs, runs[1:], strict=False):
        assert (after.inertia <= before.inertia).all()
    assert (runs[-1].inertia < 0.9 * runs[0].inertia).all()
    assert_consistent(x, runs[-1], 20)


def test_a_step_that_makes_things_worse_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("vqcodec_kernels.kmeans")
    x = randn(2, 400, 3, seed=1)
    expected = kmeans(x, 20, iterations=2)
    searches = 0

    def search(x: Tensor, codebook: Tensor, **options: Any) -> Any:
        nonlocal searches
        searches += 1
        index = nearest_codeword(x, codebook, **options)
        # The first search is for the start; of the third step, the second group's goes wrong.
        if searches == 4:
            index[1] = 0
        return index

    monkeypatch.setattr(module, "nearest_codeword", search)
    found = kmeans(x, 20, tolerance=0)
    assert torch.equal(found.codebook[1], expected.codebook[1])
    assert torch.equal(found.index[1], expected.index[1])
    assert found.inertia[1] == expected.inertia[1] and found.inertia[0] < expected.inertia[0]


def test_tolerance() -> None:
    x = randn(2000, 4, seed=1)
    history = [kmeans(x, 32, iterations=n, tolerance=0).inertia.item() for n in range(40)]
    for tolerance in (0.05, 0.01, 0.002):
        drops = [1 - b / a for a, b in zip(history, history[1:], strict=False)]
        last = next(n for n, drop in enumerate(drops, 1) if drop <= tolerance)
        found = kmeans(x, 32, tolerance=tolerance, iterations=1000)
        assert found.iterations == last and found.inertia.item() == history[last]


def test_a_group_gets_what_it_would_get_alone() -> None:
    # The third group is done after one step, long before the others.
    x = torch.stack([randn(500, 3, seed=1), blobs(500, 3, 10, seed=2), torch.ones(500, 3)])
    for init in ("k-means++", "random", randn(3, 10, 3, seed=4)):
        together = kmeans(x, 10, init=init)
        steps = []
        for g in range(3):
            alone = kmeans(x[g], 10, init=init if isinstance(init, str) else init[g])
            assert torch.equal(together.codebook[g], alone.codebook)
            assert torch.equal(together.index[g], alone.index)
            assert together.inertia[g].item() == pytest.approx(alone.inertia.item(), rel=1e-12)
            steps.append(alone.iterations)
        assert together.iterations == max(steps) > min(steps)


def test_seeds() -> None:
    x = randn(300, 4, seed=1)
    for init in ("k-means++", "random"):
        first, again, other = (kmeans(x, 20, init=init, seed=seed) for seed in (7, 7, 8))
        assert torch.equal(first.codebook, again.codebook) and torch.equal(first.index, again.index)
        assert not torch.equal(first.codebook, other.codebook)
    # The generator is its own.
    state = torch.get_rng_state()
    kmeans(x, 20)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_seeding_takes_different_vectors(init: Any) -> None:
    x = randn(60, 3, seed=1)
    for seed in range(20):
        codebook = kmeans(x, 59, iterations=0, init=init, seed=seed).codebook
        same = (codebook[:, None] == x).all(-1)
        assert same.any(1).all() and len(codebook.unique(dim=0)) == 59


def test_plus_plus_draws_by_squared_distance() -> None:
    x = np.array([[0.0], [1.0], [3.0]])
    # First uniform, then in proportion to the squared distance from it.
    expected = {(0, 1): 1 / 10 + 1 / 5, (0, 3): 9 / 10 + 9 / 13, (1, 3): 4 / 5 + 4 / 13}
    runs = 1500
    pairs = [tuple(np.sort(kmeans(x, 2, iterations=0, seed=seed).codebook[:, 0])) for seed in range(runs)]
    for pair, weight in expected.items():
        chance = weight / 3
        deviation = (chance * (1 - chance) / runs) ** 0.5
        assert abs(pairs.count(pair) / runs - chance) < 4 * deviation


def test_plus_plus_finds_clusters_that_lie_far_apart() -> None:
    x = blobs(900, 8, 30, seed=1)
    ideal = inertia_of(x, kmeans(x, 30, init=x[:30], tolerance=0).codebook, torch.arange(900) % 30)
    found = min(kmeans(x, 30, seed=seed).inertia.item() for seed in range(5))
    assert found < 1.5 * ideal
    # Starts at random vectors leave clusters without a codeword.
    assert min(kmeans(x, 30, seed=seed, init="random").inertia.item() for seed in range(5)) > 3 * ideal


def test_seeding_from_a_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("vqcodec_kernels.kmeans")
    x = torch.arange(1000.0)[:, None]
    monkeypatch.setattr(module, "_SEED_VECTORS", 1)
    monkeypatch.setattr(module, "_SEED_DISTANCES", 0)
    # As many vectors as codewords: all of them are taken, and they lie anywhere.
    seeds = kmeans(x, 20, iterations=0).codebook
    assert len(seeds.unique()) == 20 and seeds.min() < 200 and seeds.max() > 800
    assert_consistent(x, kmeans(x, 20), 20)


def test_empty_codewords_move() -> None:
    # A copy of a codeword is never the nearest: half of these start empty.
    x = blobs(500, 4, 10, seed=1)
    found = kmeans(x, 10, init=x[:5].repeat(2, 1), iterations=100)
    assert len(found.index.unique()) == 10
    assert found.inertia < kmeans(x, 5, init=x[:5], iterations=100).inertia


def test_fewer_distinct_vectors_than_codewords() -> None:
    x = randn(3, 2, seed=1)[torch.arange(30) % 3]
    for init in ("k-means++", "random"):
        found = kmeans(x, 5, init=init)
        assert found.inertia.item() == 0 and torch.equal(found.codebook[found.index], x)
        assert found.codebook.isfinite().all()


def test_many_dimensions_of_offset_data() -> None:
    # More vectors than the distances take at a time, on an offset that squares would cancel.
    x = blobs(5000, 300, 4, seed=1) + 1e4
    found = kmeans(x, 4)
    assert_consistent(x, found, 4)
    assert found.inertia.item() < 1.1 * 5000 * 300


def test_numpy() -> None:
    x = randn(2, 100, 3, seed=1)
    for vectors in (x, x[0]):
        expected = kmeans(vectors, 7)
        found = kmeans(vectors.numpy(), 7)
        assert isinstance(found.codebook, np.ndarray) and isinstance(found.index, np.ndarray)
        np.testing.assert_array_equal(found.codebook, expected.codebook.numpy())
        np.testing.assert_array_equal(found.index, expected.index.numpy())
        np.testing.assert_array_equal(found.inertia, expected.inertia.numpy())
        assert found.index.dtype == np.int64 and found.inertia.dtype == np.float64
        assert found.codebook.dtype == np.float32
    single = kmeans(x[0].numpy(), 7).inertia
    assert isinstance(single, np.float64)

    array = x[0].numpy()[::-1].copy()
    array.setflags(write=False)
    found = kmeans(array[::-1], 7, init=array[:7])
    np.testing.assert_array_equal(found.codebook, kmeans(x[0], 7, init=x[0].flip(0)[:7]).codebook)


def test_forms_of_the_arguments() -> None:
    x, start = randn(2, 100, 3, seed=1), randn(2, 7, 3, seed=2)
    before = x.clone(), start.clone()
    expected = kmeans(x, 7, init=start)
    scattered = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for found in (
        kmeans(scattered, 7, init=start.mT.contiguous().mT),
        kmeans(x, np.int64(7), init=start, iterations=np.int32(25)),  # type: ignore[arg-type]
        kmeans(x.clone().requires_grad_(), 7, init=start.clone().requires_grad_()),
    ):
        assert torch.equal(found.codebook, expected.codebook)
        assert torch.equal(found.index, expected.index)
        assert not found.codebook.requires_grad and not found.inertia.requires_grad
    assert torch.equal(x, before[0]) and torch.equal(start, before[1])
    # Results do not lie in the arguments' memory.
    kmeans(x, 7, init=start, iterations=0).codebook.zero_()
    kmeans(x, 7, iterations=0, init="random").codebook.zero_()
    assert torch.equal(x, before[0]) and torch.equal(start, before[1])


X, START = randn(2, 20, 3, seed=1), randn(2, 4, 3, seed=2)


def spoilt(value: float) -> Tensor:
    x = X.clone()
    x[1, 19, 2] = value
    return x


ERRORS: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("list", TypeError, "x must be a torch.Tensor or a NumPy array", {"x": [[1.0]]}),
    ("integers", TypeError, "x must be floating", {"x": X.long()}),
    ("integer array", TypeError, "x must be floating", {"x": X.long().numpy()}),
    ("array dtype", TypeError, "torch does not know", {"x": X.numpy().astype(np.longdouble)}),
    ("1-D", ValueError, "expected x", {"x": X[0, 0]}),
    ("4-D", ValueError, "expected x", {"x": X[None]}),
    ("D=0", ValueError, "empty", {"x": X[..., :0]}),
    ("G=0", ValueError, "empty", {"x": X[:0]}),
    ("N=0", ValueError, "empty", {"x": X[:, :0]}),
    ("N < size", ValueError, "4 codewords need", {"x": X[:, :3]}),
    ("NaN", ValueError, "x has NaN", {"x": spoilt(torch.nan)}),
    ("inf", ValueError, "x has NaN or inf", {"x": spoilt(-torch.inf)}),
    ("size 0", ValueError, "size must be positive", {"size": 0}),
    ("size float", TypeError, "integer", {"size": 4.0}),
    ("iterations", ValueError, "iterations", {"iterations": -1}),
    ("iterations float", TypeError, "integer", {"iterations": 2.5}),
    ("tolerance", ValueError, "tolerance", {"tolerance": -1e-9}),
    ("tolerance NaN", ValueError, "tolerance", {"tolerance": float("nan")}),
    ("init name", ValueError, "got 'kmeans'", {"init": "kmeans"}),
    ("init list", TypeError, "init must be", {"init": [[1.0]]}),
    ("init array", TypeError, "init must be", {"init": START.numpy()}),
    ("init for an array", TypeError, "init is not", {"x": X.numpy(), "init": START}),
    ("init size", ValueError, r"init must be \(2, 4, 3\)", {"init": START[:, :3]}),
    ("init groups", ValueError, r"init must be \(2, 4, 3\)", {"init": START[0]}),
    ("init group", ValueError, r"init must be \(4, 3\)", {"x": X[0], "init": START[:1]}),
    ("init dtype", TypeError, "must agree", {"init": START.double()}),
    ("init device", ValueError, "is on", {"init": START.to("meta")}),
    ("init NaN", ValueError, "init has NaN", {"init": START / 0 * 0}),
    ("precision", ValueError, "precision", {"precision": "best"}),
    ("backend", ValueError, "backend", {"backend": "gpu"}),
]


@pytest.mark.parametrize(
    ("error", "match", "change"), [pytest.param(*case[1:], id=case[0]) for case in ERRORS]
)
def test_errors(error: type[Exception], match: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"x": X, "size": 4} | change
    with pytest.raises(error, match=match):
        kmeans(**arguments)


@pytest.mark.parametrize("iterations", [1, 5, 30])
def test_against_scikit_learn(iterations: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = randn(2000, 6, seed=1).numpy()
    reference = cluster.KMeans(50, init=x[:50], n_init=1, max_iter=iterations, tol=0).fit(x)
    found = kmeans(x, 50, init=x[:50], iterations=iterations, tolerance=0)
    assert found.inertia == pytest.approx(reference.inertia_, rel=0.05)


def test_seeding_against_scikit_learn() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = blobs(2000, 6, 100, seed=1).numpy()
    reference = np.mean(
        [
            cluster.KMeans(50, n_init=1, max_iter=25, tol=0, random_state=seed).fit(x).inertia_
            for seed in range(5)
        ]
    )
    found = np.mean([kmeans(x, 50, tolerance=0, seed=seed).inertia for seed in range(5)])
    # Theirs tries several vectors for each seed, ours one.
    assert found < 1.3 * reference
