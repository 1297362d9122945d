"""What `latents.py` measures of models of digits: draws, lines, scores, subspaces; and the judge of
draws.

Layout: pictures are rows of pixels in 0..1, float (N, 64). Everything but the judge is NumPy alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SURE = 0.9
"""A picture is accepted as a digit where the judge gives one label more than this."""

Pictures = NDArray[np.floating[Any]]


def train_judge(pixels: Pictures, labels: NDArray[np.int64]) -> Any:
    """An independent classifier: logistic regression on the kernel values to 300 of its own pictures.

    Far from all of them the features vanish, so that what is like no digit gets no sure label. Has
    scikit-learn's `predict_proba` and `score`.
    """
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    kernels = Nystroem(gamma=0.1, n_components=min(300, len(pixels)), random_state=0)
    return make_pipeline(kernels, LogisticRegression(C=100.0, max_iter=1000)).fit(pixels, labels)


def accepted_share(judge: Any, pixels: Pictures) -> float:
    """Share of the pictures that the judge is sure of; what lies outside 0..1 is clipped first."""
    return float((judge.predict_proba(np.clip(pixels, 0, 1)).max(1) > SURE).mean())


def label_perplexity(judge: Any, pixels: Pictures) -> float:
    """How many digits there are among the pictures, by the judge's labels: exp of their entropy, 1 to 10.

    A model that always draws one good picture is accepted every time; this is what it does not have.
    """
    shares = np.unique(judge.predict(np.clip(pixels, 0, 1)), return_counts=True)[1] / len(pixels)
    return math.exp(-float(np.sum(shares * np.log(shares))))


def right_share(judge: Any, pixels: Pictures, labels: NDArray[np.int64]) -> float:
    """Share of the pictures that the judge takes for the digit that was asked for."""
    return float((judge.predict(np.clip(pixels, 0, 1)) == labels).mean())


def largest_jump(path: Pictures) -> float:
    """The largest step of a path (T, 64), in units of an even step from its first picture to its last.

    1 for a cross-fade; T - 1 or more where all happens at once. ValueError for a path of one picture, or
    one that comes back to where it began.
    """
    if len(path) < 2:
        raise ValueError("a path needs two pictures or more")
    way = float(np.linalg.norm(path[-1] - path[0]))
    if way == 0:
        raise ValueError("the path ends where it began")
    return float(np.linalg.norm(np.diff(path, axis=0), axis=1).max()) * (len(path) - 1) / way


def psnr(pixels: Pictures, other: Pictures) -> float:
    """Peak signal to noise of all pictures together, dB, the peak being 1; infinite for equal ones."""
    error = float(np.square(pixels - other, dtype=np.float64).mean())
    return -10 * math.log10(error) if error else math.inf


def area_under_curve(low: NDArray[Any], high: NDArray[Any]) -> float:
    """Probability that a score of `high` is above one of `low`, ties counting half: the ROC's area."""
    if not low.size or not high.size:
        raise ValueError("there must be scores of both kinds")
    above = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
    return float(above)


def largest_angle(first: NDArray[Any], second: NDArray[Any]) -> float:
    """The largest principal angle between the spaces that the columns of two (D, K) span, radians.

    By the sine, which keeps small angles exact (Å. Björck, G. Golub, "Numerical methods for computing
    angles between linear subspaces", 1973).
    """
    basis, other = (np.linalg.qr(np.asarray(columns, np.float64))[0] for columns in (first, second))
    outside = other - basis @ (basis.T @ other)
    return math.asin(min(1.0, float(np.linalg.norm(outside, 2))))
