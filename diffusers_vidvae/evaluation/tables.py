r"""Tables of a page, and files of comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from .statistics import Estimate


# What a cell shows, and what it is sorted by; "" stays at the end.
Cell = tuple[str, Any]
NOTHING: Cell = ("–", "")


def render_table(headings: Sequence[str], rows: Iterable[Sequence[Cell]], name: str) -> str:
    """A table that sorts by a click on a heading."""
    head = "".join(f'<th scope="col"><button type="button">{escape(heading)}</button></th>' for heading in headings)
    body = []
    for row in rows:
        cells = "".join(f'<td data-value="{escape(str(value))}">{escape(text)}</td>' for text, value in row)
        body.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll"><table id="{name}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def text_cell(text: str) -> Cell:
    return text, text


def number_cell(value: float | None, decimals: int) -> Cell:
    return NOTHING if value is None else (f"{value:.{decimals}f}", value)


def estimate_cell(estimate: Estimate | None, decimals: int) -> Cell:
    """A mean, with its interval where there is one."""
    if estimate is None:
        return NOTHING
    text = f"{estimate.mean:.{decimals}f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:.{decimals}f}, {estimate.high:.{decimals}f}]"
    return text, estimate.mean


def difference_cell(estimate: Estimate, decimals: int, unit: str, single: str) -> Cell:
    """A difference with its sign and interval, and an asterisk where that does not hold 0."""
    text = f"{estimate.mean:+.{decimals}f}{unit}"
    if estimate.low is None or estimate.high is None:
        return f"{text} ({single})", estimate.mean
    sure = "" if estimate.low <= 0 <= estimate.high else " *"
    return f"{text} [{estimate.low:+.{decimals}f}, {estimate.high:+.{decimals}f}]{sure}", estimate.mean


def csv_text(headings: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(lines)
    return text.getvalue()
