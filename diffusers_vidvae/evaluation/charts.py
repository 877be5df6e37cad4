r"""Curves of quality over bits, as SVG that follows the page's colours, and as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path


WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 44

# Okabe and Ito's colours, which colour-blind people can tell apart; those of the page's style sheet.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
# Solid, and for codecs, kept frames that are repeated or blended, and further quantisations.
DASHES = ("", "6 3", "2 3", "14 3 2 3")
_MARKER = 4

BITS_PER_PIXEL = "bits per pixel"


@dataclass(frozen=True)
class Series:
    """A curve: its name, points (bits per pixel, quality) in the order of their bits, and how it is drawn."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dash: int = 0


class Axes:
    """Where values lie on a chart that has room for all of them; bits per pixel on a logarithmic axis."""

    def __init__(self, series: Sequence[Series], is_logarithmic: bool) -> None:
        self.is_logarithmic = is_logarithmic
        self.x_low, self.x_high = _padded([self._along(x) for line in series for x, _ in line.points])
        self.y_low, self.y_high = _padded([y for line in series for _, y in line.points])

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels from the left and from the top."""
        return self.left(x), self.top(y)

    def left(self, x: float) -> float:
        return LEFT + (self._along(x) - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def top(self, y: float) -> float:
        return HEIGHT - BOTTOM - (y - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def draw(self, x_label: str) -> list[str]:
        """The grid and its numbers."""
        parts = []
        for y in _ticks(self.y_low, self.y_high):
            top = self.top(y)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top:.1f}" y2="{top:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{top + 4:.1f}" text-anchor="end">{y:g}</text>')
        for x in (_log_ticks if self.is_logarithmic else _ticks)(self.x_low, self.x_high):
            left = self.left(x)
            parts.append(f'<line class="grid" x1="{left:.1f}" x2="{left:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text x="{left:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
        return [*parts, f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>']

    def _along(self, x: float) -> float:
        return math.log10(x) if self.is_logarithmic else x


def draw_svg(series: Sequence[Series], y_label: str, x_label: str = BITS_PER_PIXEL) -> str:
    r"""Curves over a logarithmic axis of bits per pixel, or an even one of something else, with a legend below."""
    axes = Axes(series, is_logarithmic=x_label == BITS_PER_PIXEL)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">']
    parts += axes.draw(x_label)
    for line in series:
        places = [axes.place(x, y) for x, y in line.points]
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
        style = f'stroke="var(--c{line.colour})" stroke-dasharray="{DASHES[line.dash]}"'
        parts.append(f'<polyline class="curve" points="{path}" {style}/>')
        for (x, y), (left, top) in zip(line.points, places, strict=True):
            title = f"{escape(line.label)}: {y:.4g} at {x:.4g} {escape(x_label)}"
            circle = f'cx="{left:.1f}" cy="{top:.1f}" r="{_MARKER}" fill="var(--c{line.colour})"'
            parts.append(f"<circle {circle}><title>{title}</title></circle>")
    parts.append("</svg>")
    return "".join(parts) + _legend(series)


def _legend(series: Sequence[Series]) -> str:
    items = []
    for line in series:
        style = f'stroke="var(--c{line.colour})" stroke-dasharray="{DASHES[line.dash]}"'
        swatch = f'<svg viewBox="0 0 26 10" width="26" height="10"><line x1="0" x2="26" y1="5" y2="5" {style}/></svg>'
        items.append(f"<li>{swatch}{escape(line.label)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def draw_png(series: Sequence[Series], y_label: str, path: Path, x_label: str = BITS_PER_PIXEL) -> None:
    """The same curves as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for line in series:
        style = ("-", "--", ":", "-.")[line.dash]
        xs, ys = zip(*line.points, strict=True)
        axes.plot(xs, ys, style, marker="o", markersize=4, color=COLOURS[line.colour], label=line.label)
    axes.set_xscale("log" if x_label == BITS_PER_PIXEL else "linear")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=130)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """About six round numbers between two others."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 7)
    first = math.ceil(low / step)
    return [round(tick * step, 10) for tick in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, or the powers alone over more than three of them."""
    factors = (1, 2, 5) if high - low < 3 else (1,)
    candidates = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    return [tick for tick in candidates if low <= math.log10(tick) <= high]
