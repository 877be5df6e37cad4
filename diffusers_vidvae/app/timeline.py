r"""Which frames are kept, as a picture of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any


_HEIGHT = 60
_MARK = 8


def draw_timeline(keep_probs: Sequence[float] | None, kept: Sequence[bool]) -> str:
    r"""A column for every frame, as high as its keep probability, and a mark below those that are kept, as HTML.

    Args:
        keep_probs: From 0 to 1, of every frame; None for models that keep all.
        kept: Whether each frame is.
    """
    heights = [1.0] * len(kept) if keep_probs is None else keep_probs
    columns = []
    for index, (height, is_kept) in enumerate(zip(heights, kept, strict=True)):
        name = f"frame {index}, {'kept' if is_kept else 'filled in'}"
        name += "" if keep_probs is None else f", keep probability {height:.2f}"
        top = _HEIGHT * (1 - height)
        column = f'<rect x="{index + 0.1:.1f}" y="{top:.2f}" width="0.8" height="{_HEIGHT - top:.2f}"/>'
        mark = f'<rect class="mark" x="{index}" y="{_HEIGHT + 3}" width="1" height="{_MARK}"/>' if is_kept else ""
        columns.append(f'<g class="{"kept" if is_kept else "filled"}"><title>{name}</title>{column}{mark}</g>')
    total = _HEIGHT + 3 + _MARK
    return (
        f'<svg class="timeline" viewBox="0 0 {len(kept)} {total}" preserveAspectRatio="none" role="img"'
        f' aria-label="{sum(kept)} of {len(kept)} frames are kept">{"".join(columns)}</svg>{_caption(keep_probs)}'
    )


def _caption(keep_probs: Sequence[float] | None) -> str:
    if keep_probs is None:
        return '<p class="caption">Every frame is kept.</p>'
    return '<p class="caption">How probable it is that the model keeps each frame; those that it keeps are orange.</p>'


def draw_figures(figures: dict[str, Any]) -> str:
    r"""Names and values as HTML; values that are None are still to come."""
    items = [
        f"<div><dt>{escape(name)}</dt><dd>{'…' if value is None else escape(str(value))}</dd></div>"
        for name, value in figures.items()
    ]
    return f'<dl class="figures">{"".join(items)}</dl>'
