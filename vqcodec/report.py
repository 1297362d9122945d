"""A comparison as one HTML page that needs nothing else: no network, no fonts, no scripts.

Purpose: `render_report` turns the figures of `vqcodec.comparison` into something to look at.

Layout: the page and its style sheet; plots; the table of figures; crops; the health of each latent.

Invariants
- The page fetches nothing: style, plots and pictures are inside, and its content security policy
  allows nothing else.
- Whatever comes from outside (names of pictures, labels, models) is escaped by `_text`.
- Each row of a comparison has one colour and one marker, in every report the same; no two rows are
  told apart by colour alone.
- Equal comparisons give equal bytes.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vqcodec.collapse import COLLAPSED, HEALTHY, PARTIAL, POINT
from vqcodec.comparison import (
    CROP_BPP,
    DEFAULT_LABEL,
    MODES,
    Comparison,
    Crop,
    CropSet,
    Figures,
    ModelResult,
)
from vqcodec.similarity import MS_SSIM_SIDE, ms_ssim_decibels

# Every row that there can be; a row's place here is that of its colour and of its marker, which it keeps.
_LABELS = (*MODES[:5], DEFAULT_LABEL, *MODES[5:])
# Colour on light and on dark ground of each row; after Okabe and Ito's palette, which the colour
# blind can tell apart, made darker or lighter until text in it can be read.
_COLOURS = (
    ("#0068a8", "#5db5ef"),
    ("#c24e00", "#ff9a4d"),
    ("#00805c", "#45d6a6"),
    ("#a04090", "#e79bd6"),
    ("#876700", "#e8c547"),
    ("#4b5563", "#cbd2da"),
    ("#a3201a", "#ff9f97"),
    ("#3d5a00", "#b5d96c"),
    ("#5b3fb8", "#b9a6ff"),
    ("#0b6473", "#6fd3e3"),
    ("#8c3b62", "#f0a3c2"),
    ("#6b4a2b", "#d9b38c"),
)
# Markers of the rows around the origin, drawn with a radius of about 5.
_MARKERS = (
    '<circle r="4.6"/>',
    '<rect x="-4.2" y="-4.2" width="8.4" height="8.4"/>',
    '<path d="M0-5.6 5.4 4H-5.4Z"/>',
    '<path d="M0-6 6 0 0 6-6 0Z"/>',
    '<path d="M0 5.6 5.4-4H-5.4Z"/>',
    '<path d="M-1.8-5.4H1.8V-1.8H5.4V1.8H1.8V5.4H-1.8V1.8H-5.4V-1.8H-1.8Z"/>',
    '<path d="M-5.2 0-2.6-4.5H2.6L5.2 0 2.6 4.5H-2.6Z"/>',
    '<rect x="-2.2" y="-6" width="4.4" height="12"/>',
    '<rect x="-6" y="-2.2" width="12" height="4.4"/>',
    '<path d="M-5-2-2-5 0-3 2-5 5-2 3 0 5 2 2 5 0 3-2 5-5 2-3 0Z"/>',
    '<path d="M-5.6 0 4-5.4V5.4Z"/>',
    '<path d="M5.6 0-4 5.4V-5.4Z"/>',
)
_STATE_WORDS = {
    HEALTHY: "healthy",
    PARTIAL: "partly idle",
    COLLAPSED: "collapsed",
    POINT: "no width",
}

# A plot's drawing area inside its view box, which leaves room for labels in larger type on phones.
_PLOT_WIDTH, _PLOT_HEIGHT = 540, 372
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 526, 16, 316
_SPARK_WIDTH, _SPARK_HEIGHT = 300, 56

_STYLE = """\
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1b2028; --soft: #566070;
  --line: #d9dee5; --grid: #e8ebf0; --good: #0a6b3d; --good-ground: #ddf3e6; --fair: #7a5200;
  --fair-ground: #fdf0d0; --bad: #a3201a; --bad-ground: #fde3e0; --mute-ground: #e8ebf0; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1a2029; --text: #e6eaf0;
  --soft: #9fabbb; --line: #333c49; --grid: #29313c; --good: #7ce0a8; --good-ground: #12382a;
  --fair: #f2cf7d; --fair-ground: #3d3116; --bad: #ff9f97; --bad-ground: #481f1d;
  --mute-ground: #29313c; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1160px; padding: 28px 20px 56px; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 1.2rem; margin: 40px 0 4px; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: 6px 0 12px; max-width: 76ch; }
.soft, figcaption, .note { color: var(--soft); }
.note { font-size: .875rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; }
.plots, .cards { display: grid; gap: 16px; }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); margin-top: 12px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; margin: 12px 0; padding: 0; }
.key { white-space: nowrap; }
.mark { width: 30px; height: 14px; vertical-align: -2px; margin-right: 6px; overflow: visible; }
svg { display: block; width: 100%; height: auto; }
svg.mark { display: inline-block; width: 30px; height: 14px; }
svg text { fill: var(--soft); font-size: 13px; }
svg .title { fill: var(--text); font-weight: 600; }
.gridline { stroke: var(--grid); }
.axis { stroke: var(--soft); }
.row-line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.dashed { stroke-dasharray: 7 4; }
.row-mark { fill: var(--c); stroke: var(--card); stroke-width: 1; }
.area { fill: var(--c); opacity: .22; }
.scroll { overflow-x: auto; padding: 0; margin-top: 12px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; text-align: right; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line);
  padding-top: 12px; vertical-align: bottom; }
tbody th { text-align: left; font-weight: 600; vertical-align: top; }
tbody + tbody th { border-top: 1px solid var(--line); }
tbody th { padding-top: 11px; }
tbody tr:last-child td { padding-bottom: 11px; }
.shots { display: grid; gap: 14px; margin-top: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 256px), 1fr)); }
figure { margin: 0; font-size: .875rem; line-height: 1.4; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 4px; margin-bottom: 6px; }
figcaption b { color: var(--text); }
.card + .card { margin-top: 16px; }
.plots .card, .cards .card { margin-top: 0; }
.top { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 4px 12px; }
.badge { border-radius: 99px; padding: 1px 10px; font-size: .8rem; font-weight: 600;
  color: var(--soft); background: var(--mute-ground); }
.badge.healthy { color: var(--good); background: var(--good-ground); }
.badge.partial, .badge.point { color: var(--fair); background: var(--fair-ground); }
.badge.collapsed { color: var(--bad); background: var(--bad-ground); }
dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 14px; margin: 10px 0; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.card ul { margin: 8px 0 0; padding-left: 1.1em; font-size: .9rem; }
.spark { margin-top: 6px; }
.spark svg { height: 56px; }
@media (max-width: 560px) { body { padding: 18px 12px 40px; } .card { padding: 12px; }
  .scroll { padding: 0; } svg text { font-size: 16px; } th, td { padding: 5px 9px; }
  .shots { justify-items: center; } }
"""

_READING = """\
<p><b>bpp</b> is bits a pixel of the whole file, headers included. <b>PSNR</b> is taken over the RGB
channels together; <b>MS-SSIM</b>, which follows the eye more closely, is plotted in decibels,
&minus;10&thinsp;log<sub>10</sub>(1&nbsp;&minus;&nbsp;x). Of two curves, the upper one is better at
that rate. Times are wall clock with the model loaded, one run each.</p>
<p><b>KL</b> is the divergence of the encoder's posterior from its prior: the bits that a picture
would take if a sample of the latent were all that had to arrive, and were coded ideally under that
prior. It does not depend on the quality. The file beside it holds the latent in another way, values
or indices rounded to the chosen rate under a prior that knows their surroundings, so it may take more
bits than KL or fewer. Only the modes vae, hvae and dvae have a posterior that is not a point.</p>
<p>A <b>unit</b> is a channel of a continuous latent or a codebook of a discrete one. It is idle where
it says the same whatever the picture shows. A latent that has <b>collapsed</b> has nearly nothing but
idle units; the opposite failure of a VAE is a posterior so narrow that it is a plain autoencoder
again. These verdicts are of the pictures above: few or flat pictures leave units idle too.</p>
"""


def render_report(comparison: Comparison) -> str:
    """The page, a whole HTML document; to be written as UTF-8."""
    results = comparison.results
    body = "\n".join(
        [
            "<h1>Kinds of latent, compared</h1>",
            _summary(comparison),
            "<h2>Rate and distortion</h2>",
            _legend(results),
            _plots(comparison),
            "<h2>Figures</h2>",
            _table(comparison),
            "<h2>Crops at about the same rate</h2>",
            '<p class="note">The window with most detail of each picture, each model at the quality that '
            f"comes nearest to one rate: {CROP_BPP:g} bits a pixel, or the nearest that all reach. Bits "
            "a pixel and PSNR are of the whole picture.</p>",
            *(_crop_set(crops) for crops in comparison.crops),
            "<h2>Health of the latents</h2>",
            '<p class="note">Measured over all positions of all pictures.</p>',
            '<div class="cards">',
            *(_health(result) for result in results),
            "</div>",
            "<h2>How to read this</h2>",
            _READING,
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        "<title>vqcodec: kinds of latent, compared</title>\n"
        f"<style>\n{_STYLE}{_row_colours()}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _text(value: str) -> str:
    """`value` as text of the page; what UTF-8 cannot hold, as in odd file names, as '?'."""
    return html.escape(value.encode("utf-8", "replace").decode())


def _row_colours() -> str:
    """Rules that give the colour of row n to what has the class r<n>."""
    light = "\n".join(f".r{n} {{ --c: {pair[0]}; }}" for n, pair in enumerate(_COLOURS))
    dark = " ".join(f".r{n} {{ --c: {pair[1]}; }}" for n, pair in enumerate(_COLOURS))
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n"


def _row_class(label: str) -> str:
    return f"r{_LABELS.index(label)}"


def _marker(label: str) -> str:
    return _MARKERS[_LABELS.index(label)]


def _line_class(label: str) -> str:
    """The default model is there for reference: its line is dashed."""
    return "row-line dashed" if label == DEFAULT_LABEL else "row-line"


def _key(label: str) -> str:
    """Marker and label of a row, as the legend and all headings show it."""
    return (
        f'<span class="key"><svg class="mark {_row_class(label)}" viewBox="-15 -7 30 14" '
        f'aria-hidden="true"><path class="{_line_class(label)}" d="M-15 0H15"/>'
        f'<g class="row-mark">{_marker(label)}</g></svg>{_text(label)}</span>'
    )


def _legend(results: Sequence[ModelResult]) -> str:
    entries = "".join(f"<li>{_key(result.label)}</li>" for result in results)
    return f'<ul class="legend">{entries}</ul>'


def _summary(comparison: Comparison) -> str:
    """What was compared, in a sentence or two."""
    pictures = comparison.pictures
    shown = [f"{_text(p.name)} ({p.width}&nbsp;&times;&nbsp;{p.height})" for p in pictures[:6]]
    if len(pictures) > len(shown):
        shown.append(f"and {len(pictures) - len(shown)} more")
    models = ", ".join(
        f"{_text(result.label)}: {_text(result.model)} ({result.code_id})"
        for result in comparison.results
    )
    qualities = ", ".join(str(quality) for quality in comparison.qualities)
    mean = "" if len(pictures) == 1 else " Figures are means over the pictures."
    threads = "1 thread" if comparison.threads == 1 else f"{comparison.threads} threads"
    return (
        f'<p class="soft">{", ".join(shown)}.{mean} Qualities {qualities}; '
        f"{_text(comparison.device)}, {threads}.</p>"
        f'<p class="note">Models and their code ids: {models}.</p>'
    )


# --- plots ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """Where values lie along one side of a plot: from `low` at `start` to `high` at `end`, pixels."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _plots(comparison: Comparison) -> str:
    psnr = _plot(comparison.results, "PSNR, dB", lambda mean: mean.psnr)
    ssim = _plot(comparison.results, "MS-SSIM, dB", _ms_ssim_decibels)
    counted = sum(min(p.width, p.height) >= MS_SSIM_SIDE for p in comparison.pictures)
    note = ""
    if counted < len(comparison.pictures):
        note = (
            f'<p class="note">MS-SSIM needs {MS_SSIM_SIDE} pixels a side; of '
            f"{len(comparison.pictures)} pictures, {counted} took part.</p>"
        )
    return f'<div class="plots">{psnr}{ssim}</div>{note}'


def _ms_ssim_decibels(mean: Figures) -> float | None:
    return None if mean.ms_ssim is None else ms_ssim_decibels(mean.ms_ssim)


def _plot(results: Sequence[ModelResult], title: str, value: Callable[[Figures], float | None]) -> str:
    """Curves of `value` against bits a pixel, or a sentence if no point has a finite value."""
    curves = []
    for result in results:
        points = []
        for point in result.points:
            y = value(point.mean)
            if y is not None and math.isfinite(y):
                points.append((math.log10(point.mean.bpp), y, point.quality, point.mean.bpp))
        curves.append(points)
    every = [point for points in curves for point in points]
    if not every:
        return f'<div class="card note">{title}: there is nothing to plot.</div>'
    x_axis = _log_axis([point[0] for point in every])
    y_axis = _linear_axis([point[1] for point in every])
    shapes = [*_frame(x_axis, y_axis, title)]
    for result, points in zip(results, curves, strict=True):
        places = [(x_axis.place(x), y_axis.place(y)) for x, y, _, _ in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        shapes.append(f'<g class="{_row_class(result.label)}">')
        if len(places) > 1:
            shapes.append(f'<polyline class="{_line_class(result.label)}" points="{line}"/>')
        for (x, y), (_, figure, quality, bpp) in zip(places, points, strict=True):
            shapes.append(
                f'<g class="row-mark" transform="translate({x:.1f} {y:.1f})">'
                f"{_marker(result.label)}<title>{_text(result.label)}, quality {quality}: "
                f"{bpp:.3f} bpp, {figure:.2f} dB</title></g>"
            )
        shapes.append("</g>")
    return (
        f'<div class="card"><svg viewBox="0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT}" role="img" '
        f'aria-label="{title} against bits a pixel">{"".join(shapes)}</svg></div>'
    )


def _frame(x_axis: _Axis, y_axis: _Axis, title: str) -> list[str]:
    """Grid lines, axis and labels of a plot whose x values are decimal logarithms of bpp."""
    shapes = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        shapes.append(f'<path class="gridline" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        shapes.append(f'<text x="{_LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        shapes.append(f'<path class="gridline" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>')
        shapes.append(f'<text x="{x:.1f}" y="{_BOTTOM + 20}" text-anchor="middle">{10**tick:.6g}</text>')
    shapes.append(f'<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>')
    shapes.append(
        f'<text x="{(_LEFT + _RIGHT) / 2:.0f}" y="{_BOTTOM + 46}" text-anchor="middle">'
        "bits a pixel, logarithmic</text>"
    )
    middle = (_TOP + _BOTTOM) / 2
    shapes.append(
        f'<text class="title" transform="translate(16 {middle:.0f}) rotate(-90)" '
        f'text-anchor="middle">{title}</text>'
    )
    return shapes


def _log_axis(logs: Sequence[float]) -> _Axis:
    """The x axis for decimal logarithms, with ticks at 1, 2 and 5 times powers of ten."""
    # At least 0.4 wide, which no tick is away from the next.
    margin = max(0.04 * (max(logs) - min(logs)), 0.05, 0.2 - (max(logs) - min(logs)) / 2)
    low, high = min(logs) - margin, max(logs) + margin
    steps = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [
        math.log10(step) + power
        for power in range(math.floor(low) - 1, math.ceil(high) + 1)
        for step in steps
    ]
    return _Axis(low, high, _LEFT, _RIGHT, tuple(tick for tick in ticks if low <= tick <= high))


def _linear_axis(values: Sequence[float]) -> _Axis:
    """The y axis, upwards, with four to eight ticks at round steps."""
    margin = max(0.06 * (max(values) - min(values)), 0.25)
    low, high = min(values) - margin, max(values) + margin
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * power / rough)))
    ticks = [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return _Axis(low, high, _BOTTOM, _TOP, tuple(round(tick, 6) for tick in ticks))


# --- figures, crops, health ----------------------------------------------------------------


def _table(comparison: Comparison) -> str:
    head = (
        "quality",
        "bytes",
        "file, bpp",
        "KL, bpp",
        "PSNR, dB",
        "MS-SSIM",
        "encode, s",
        "decode, s",
    )
    groups = []
    for result in comparison.results:
        heading = f'<th scope="rowgroup" colspan="{len(head)}">{_key(result.label)}</th>'
        lines = [f"<tr>{heading}</tr>"]
        for point in result.points:
            mean = point.mean
            cells = (
                str(point.quality),
                f"{mean.bytes:,.0f}",
                f"{mean.bpp:.3f}",
                _number(mean.divergence_bpp, 3),
                _number(mean.psnr, 2),
                _number(mean.ms_ssim, 4),
                f"{mean.encode_seconds:.3f}",
                f"{mean.decode_seconds:.3f}",
            )
            lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        groups.append(f"<tbody>{''.join(lines)}</tbody>")
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    return (
        f'<div class="card scroll" tabindex="0"><table><thead><tr>{titles}</tr></thead>'
        f"{''.join(groups)}</table></div>"
    )


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "&ndash;"
    return f"{value:.{digits}f}" if math.isfinite(value) else "no loss"


def _crop_set(crops: CropSet) -> str:
    shots = [
        _shot(crops.original_png, crops, f"{crops.name}, original", "<b>original</b>"),
        *(_shot(crop.png, crops, f"{crops.name}, {crop.label}", _caption(crop)) for crop in crops.crops),
    ]
    return (
        f'<div class="card"><div class="top"><h3>{_text(crops.name)}</h3>'
        f'<span class="note">target {crops.target_bpp:.2f} bpp; {crops.width}&nbsp;&times;&nbsp;'
        f"{crops.height} pixels from ({crops.left}, {crops.top})</span></div>"
        f'<div class="shots">{"".join(shots)}</div></div>'
    )


def _caption(crop: Crop) -> str:
    return (
        f"<b>{_key(crop.label)}</b><br>{crop.bpp:.3f} bpp, "
        f"{_number(crop.psnr, 2)}{' dB' if math.isfinite(crop.psnr) else ''}, quality {crop.quality}"
    )


def _shot(png: bytes, crops: CropSet, alternative: str, caption: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{_text(alternative)}" '
        f'width="{crops.width}" height="{crops.height}"><figcaption>{caption}</figcaption></figure>'
    )


def _health(result: ModelResult) -> str:
    health = result.health
    word = _STATE_WORDS.get(health.state, "not judged")
    facts = [("active units", f"{health.active_units} of {health.units}")]
    if health.mean_sigma is not None:
        facts.append(("mean sigma", f"{health.mean_sigma:.3g}"))
    if health.kl is not None:
        facts.append(("KL", f"{health.kl:.4g} nats a position"))
    if health.median_perplexity is not None and health.codewords is not None:
        facts.append(("median perplexity", f"{health.median_perplexity:.3g} of {health.codewords}"))
        dead = sum(health.unused) / (len(health.unused) * health.codewords)
        facts.append(("unused codewords", f"{100 * dead:.0f} %"))
    facts.append(("positions", f"{health.positions:,}"))
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    verdicts = "".join(f"<li>{_text(verdict)}</li>" for verdict in health.verdicts)
    return (
        f'<div class="card"><div class="top"><h3>{_key(result.label)}</h3>'
        f'<span class="badge {_text(health.state)}">{word}</span></div>'
        f"<dl>{listed}</dl>{_spark(result)}<ul>{verdicts}</ul></div>"
    )


def _spark(result: ModelResult) -> str:
    """The units in descending order of what they carry, as a small filled curve."""
    health = result.health
    values, what = health.kl_per_unit, "KL of each unit, nats"
    if not values:
        values, what = health.perplexity, "perplexity of each codebook"
    ordered = sorted(values, reverse=True)
    if len(ordered) < 2 or ordered[0] <= 0:
        return ""
    across, up = _SPARK_WIDTH / (len(ordered) - 1), (_SPARK_HEIGHT - 2) / ordered[0]
    line = " ".join(
        f"{n * across:.1f},{_SPARK_HEIGHT - max(value, 0) * up:.1f}" for n, value in enumerate(ordered)
    )
    return (
        f'<div class="spark {_row_class(result.label)}"><span class="note">{what}, largest first: '
        f"{ordered[0]:.3g} to {ordered[-1]:.3g}</span>"
        f'<svg viewBox="0 0 {_SPARK_WIDTH} {_SPARK_HEIGHT}" preserveAspectRatio="none" '
        f'aria-hidden="true"><polygon class="area" points="0,{_SPARK_HEIGHT} {line} '
        f'{_SPARK_WIDTH},{_SPARK_HEIGHT}"/><polyline class="row-line" points="{line}" '
        'vector-effect="non-scaling-stroke"/></svg></div>'
    )
