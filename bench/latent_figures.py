"""The figures of docs/latents.md, drawn from what `latents.py` measured: small PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIDE = 8
_DPI = 80


def sheet(pixels: NDArray[Any], columns: int) -> NDArray[Any]:
    """Pictures (N, 64) in rows of `columns`, a pixel of white between: (H, W) in 0..1."""
    rows = -(-len(pixels) // columns)
    page = np.ones((rows * (_SIDE + 1) - 1, columns * (_SIDE + 1) - 1))
    for number, picture in enumerate(np.clip(pixels, 0, 1)):
        top, left = (_SIDE + 1) * (number // columns), (_SIDE + 1) * (number % columns)
        page[top : top + _SIDE, left : left + _SIDE] = picture.reshape(_SIDE, _SIDE)
    return page


def draw_planes(path: Path, planes: Mapping[str, Mapping[str, Any]]) -> None:
    """For each kind, the latents (N, 2) by label beside the decoded grid (R * R, 64), row by row."""
    figure, axes = _subplots(len(planes), 2, (9, 4.3 * len(planes)))
    for (scatter, grid), (title, plane) in zip(axes, planes.items(), strict=True):
        points = plane["latents"]
        shown = scatter.scatter(*points.T, c=plane["labels"], cmap="tab10", s=6)
        scatter.set(title=f"{title}: latents of test pictures")
        handles, names = shown.legend_elements(num=10)
        scatter.legend(handles, names, fontsize=7, ncols=2, loc="upper right")
        low, high = plane["low"], plane["high"]
        frame = [low[0], high[0], high[0], low[0], low[0]], [low[1], low[1], high[1], high[1], low[1]]
        scatter.plot(*frame, color="black", linewidth=0.8)
        columns = round(len(plane["grid"]) ** 0.5)
        page = sheet(plane["grid"], columns)
        grid.imshow(
            page,
            cmap="gray",
            interpolation="nearest",
            extent=(low[0], high[0], low[1], high[1]),
            aspect="auto",
        )
        grid.set(title=f"{title}: the frame, decoded")
    _save(figure, path)


def draw_rows(path: Path, rows: Mapping[str, NDArray[Any]], *, note: str) -> None:
    """A row of pictures (N, 64) under each title."""
    figure, axes = _subplots(len(rows), 1, (9, 0.62 * len(rows) + 0.5))
    for (axis,), (title, pixels) in zip(axes, rows.items(), strict=True):
        axis.imshow(sheet(pixels, len(pixels)), cmap="gray", interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(title, rotation=0, ha="right", va="center")
    figure.suptitle(note, fontsize=10)
    _save(figure, path)


def draw_sweep(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Reconstruction against KL along the sweep of C, and beside it how many draws are digits."""
    figure, ((curve, share),) = _subplots(1, 2, (9, 3.8))
    curve.plot([row["kl"] for row in rows], [row["reconstruction"] for row in rows], marker="o")
    for row in rows:
        place = (row["kl"], row["reconstruction"])
        text = f"C = {row['weight']:g}"
        curve.annotate(text, place, xytext=(5, 5), textcoords="offset points", fontsize=8)
    curve.set(xscale="symlog", xlabel="KL, nats a picture", ylabel="reconstruction, nats a picture")
    curve.margins(x=0.15)
    share.plot(range(len(rows)), [100 * row["accepted"] for row in rows], marker="o")
    share.set_xticks(range(len(rows)), [f"{row['weight']:g}" for row in rows])
    share.set(xlabel="C", ylabel="draws accepted as digits, %", ylim=(0, 100))
    for axis in (curve, share):
        axis.grid(alpha=0.3)
    _save(figure, path)


def draw_bars(path: Path, heights: Mapping[str, float], *, label: str, chance: float) -> None:
    """A bar for each name, and the height that chance would give."""
    figure, ((axis,),) = _subplots(1, 1, (6, 3))
    axis.bar(list(heights), list(heights.values()), color="tab:blue")
    axis.axhline(chance, color="black", linestyle="--", linewidth=0.8)
    axis.set(ylabel=label, xlabel="digit held out of training", ylim=(0, 1))
    _save(figure, path)


def _subplots(rows: int, columns: int, size: tuple[float, float]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    # Without the version the same figure is the same file.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    pyplot.close(figure)
