r"""The report: one HTML file that needs nothing else, and the same figures as PNG and CSV."""

from __future__ import annotations

import platform
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diffusers_vidvae.files import write_file

from .charts import COLOURS, Series, draw_png, draw_svg
from .codecs import CODECS
from .generation.section import NOT_MEASURED, write_generation
from .generation.summary import GenerationSummary
from .measuring import STRIP_FRAMES
from .methods import CODED
from .pages import View, data_uri, render_page, render_player
from .results import ResultsFolder
from .run import CODEC_PART, ORIGINAL
from .selection import FILLS
from .selection_section import write_selection
from .statistics import Estimate
from .summary import CHARTED, FIGURES, Point, Quality, Record, Summary, main_row, summarize
from .tables import (
    NOTHING,
    Cell,
    csv_text,
    difference_cell,
    estimate_cell,
    render_table,
    text_cell,
)


PLAYED_CLIPS = 6
TABLE_FIGURES = (
    *("bits_per_pixel", "values_per_pixel", "keep_rate", "psnr", "ssim", "ms_ssim", "lpips", "temporal_psnr"),
    *("still_flicker", "psnr_worst", "psnr_kept", "psnr_dropped", "mse"),
)
HEADINGS = {
    **{name: title for name, (title, _, _) in FIGURES.items()},
    "bits_per_pixel": "bits per pixel",
    "values_per_pixel": "latent values per pixel",
    "keep_rate": "kept",
}
PACKAGES = ("diffusers-vidvae", "torch", "diffusers", "av", "numpy")


def write_report(
    results: ResultsFolder, command: str | None = None, generation: GenerationSummary | None = None
) -> Path:
    r"""Writes `report.html`, tables as CSV (`points`, `clips`, `selection`) and every chart beside the results.

    Args:
        results: What was measured.
        command: How, for the reader.
        generation: What was measured of latents; adds its section, pictures and `generation.csv`.

    Raises:
        ValueError: No clip could be measured.
    """
    summary = summarize(results.load(), results.header)
    charts = {name: chart_series(summary, name) for name in CHARTED}
    charts = {name: series for name, series in charts.items() if series}
    for name, series in charts.items():
        draw_png(series, FIGURES[name][0], results.folder / f"{name}.png")
    write_file(results.folder / "points.csv", points_csv(summary), overwrite=True)
    write_file(results.folder / "clips.csv", clips_csv(summary), overwrite=True)
    notes = [*summary.notes, *(generation.notes if generation else [])]
    page = render_page(
        "page.html",
        title=escape(" and ".join(summary.models)),
        overview=_overview(summary, results.header),
        charts=_charts(charts),
        points=_points_table(summary.points),
        comparisons=_comparisons(summary),
        generation=NOT_MEASURED if generation is None else write_generation(generation, results.folder),
        selection=write_selection(summary, results.folder),
        clips="".join(_clip(summary, results, clip, index) for index, clip in enumerate(summary.clips)),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes) or "<li>Nothing is missing.</li>",
        run=_run_details(summary, results.header, command),
    )
    path = results.folder / "report.html"
    write_file(path, page, overwrite=True)
    return path


# Charts


def chart_series(summary: Summary, figure: str) -> list[Series]:
    r"""Curves of a figure: one for each way that a model was run, and one for each codec."""
    curves: dict[Any, list[Point]] = {}
    for point in summary.points:
        if figure in point.figures and not isinstance(point.budget, str) and point.budget is not None:
            curves.setdefault(point.method, []).append(point)
    series = []
    colours: dict[Any, int] = {}
    quantizations = list(dict.fromkeys(method.quantize for method in curves))
    for method, points in curves.items():
        places = sorted((point.figures["bits_per_pixel"].mean, point.figures[figure].mean) for point in points)
        if method.method in CODECS:
            colour, dash = len(COLOURS) - 1 - list(CODECS).index(method.method), 1
        else:
            # Quantisations of one way share its colour, and coded files that of their model.
            key = method._replace(quantize=None)
            if method.quantize == CODED:
                key = next((known for known in colours if known.part == method.part), key)
            colour = colours.setdefault(key, len(colours) % len(COLOURS))
            dash = 2 if method.method in FILLS else 3 * (method.quantize != quantizations[0])
        series.append(Series(method.label, places, colour, dash))
    return series


def _charts(charts: dict[str, list[Series]]) -> str:
    buttons = "".join(
        f'<button type="button" data-chart="{name}" aria-pressed="{str(index == 0).lower()}">'
        f"{escape(FIGURES[name][0])}</button>"
        for index, name in enumerate(charts)
    )
    figures = "".join(
        f'<figure id="chart-{name}"{" hidden" if index else ""}>{draw_svg(series, FIGURES[name][0])}</figure>'
        for index, (name, series) in enumerate(charts.items())
    )
    return f'<div class="buttons">{buttons}</div>{figures}'


# Tables


def _points_table(points: list[Point]) -> str:
    columns = [name for name in TABLE_FIGURES if any(name in point.figures for point in points)]
    rows = []
    for point in points:
        cells = [text_cell(point.method.label), (_budget_text(point.budget), _budget_order(point.budget))]
        cells += [_figure_cell(name, point.figures.get(name)) for name in columns]
        rows.append(cells)
    return render_table(["method", "budget", *(HEADINGS[name] for name in columns)], rows, "points")


def _figure_cell(name: str, estimate: Estimate | None) -> Cell:
    if estimate is None or name not in FIGURES:
        return NOTHING if estimate is None else (figure_text(name, estimate.mean), estimate.mean)
    return estimate_cell(estimate, FIGURES[name][1])


def figure_text(name: str, value: float) -> str:
    """A figure as people read it."""
    if name == "keep_rate":
        return f"{100 * value:.1f} %"
    return f"{value:.{FIGURES[name][1] if name in FIGURES else 4}f}"


def _budget_text(budget: float | str | None) -> str:
    if isinstance(budget, str):
        return f"{budget} of a window"
    if budget is None:
        return "its own"
    if isinstance(budget, Quality):
        return f"quality {budget:g}"
    return f"size {budget + 1}" if isinstance(budget, int) else f"{100 * budget:g} %"


def _budget_order(budget: float | str | None) -> float:
    return float(budget) if isinstance(budget, (int, float)) else -1.0


def _comparisons(summary: Summary) -> str:
    rows = [
        [*map(text_cell, (one, other, budget)), difference_cell(estimate, 2, " dB", "one clip")]
        for one, other, budget, estimate in summary.differences
    ]
    parts = []
    if rows:
        parts.append("<h3>Differences in PSNR on the same clips</h3>")
        parts.append(
            render_table(["of", "against", "budget", "mean difference and its interval"], rows, "differences")
        )
    rows = []
    for label, anchor, estimate, count in summary.savings:
        cell: Cell = ("no quality in common", "")
        if estimate is not None:
            cell = difference_cell(estimate, 1, " %", "one clip")
        rows.append([text_cell(label), text_cell(anchor), cell, (str(count), count)])
    if rows:
        parts.append("<h3>Bits for the same PSNR (BD-rate; less than 0 needs fewer)</h3>")
        parts.append(render_table(["of", "against", "mean and its interval", "clips"], rows, "savings"))
    return "".join(parts) or "<p>There is one method only.</p>"


# Clips


def _clip(summary: Summary, results: ResultsFolder, clip: str, index: int) -> str:
    original = summary.records[clip, ORIGINAL]["rows"][0]
    size = f"{original['num_frames']} frames, {original['width']}x{original['height']}, {original['fps']:.4g} fps"
    parts = [f'<section class="clip"><h3>{escape(clip)}</h3><p>{size}</p>']
    for model in summary.models:
        record = summary.records.get((clip, model), {})
        if "keep_probs" in record:
            parts.append(_timeline(results, original, model, record))
    if index < PLAYED_CLIPS:
        parts.append(_players(summary, results, clip, original))
    else:
        parts.append(f"<p>Only the {PLAYED_CLIPS} worst clips have players, to keep the report small.</p>")
    return "".join(parts) + "</section>"


CELL = 56
CURVE = 60


def _timeline(results: ResultsFolder, original: Record, model: str, record: Record) -> str:
    """Keep probabilities over the frames, below them a line of marks for every budget, and the frames themselves."""
    probs = record["keep_probs"][:STRIP_FRAMES]
    width = CELL * len(probs)
    height = max(1, round(CELL * original["height"] / original["width"]))
    curve = " ".join(f"{CELL * (i + 0.5):.1f},{4 + CURVE * (1 - p):.1f}" for i, p in enumerate(probs))
    first = record["rows"][0]
    budgets = [
        row
        for row in record["rows"]
        if row["method"] == "model" and (row["mode"], row["quantize"]) == (first["mode"], first["quantize"])
    ]
    marks = []
    for line, row in enumerate(budgets):
        top = CURVE + 16 + 12 * line
        for frame in row["kept"]:
            if frame < len(probs):
                marks.append(
                    f'<rect class="kept" x="{CELL * frame + 2}" y="{top}" width="{CELL - 4}" height="8" rx="2"/>'
                )
    total = CURVE + 20 + 12 * len(budgets)
    picture = data_uri((results.folder / original["strip"]).read_bytes())
    labels = ", ".join(f"{100 * row['keep_rate']:.3g} %" for row in budgets)
    return (
        f"<h4>{escape(model)}: probability to keep each frame</h4>"
        f'<div class="scroll timeline" tabindex="0"><svg width="{width}" height="{total}" '
        f'viewBox="0 0 {width} {total}"><line class="grid" x1="0" x2="{width}" y1="4" y2="4"/>'
        f'<line class="grid" x1="0" x2="{width}" y1="{CURVE + 4}" y2="{CURVE + 4}"/>'
        f'<polyline class="curve" stroke="var(--c0)" points="{curve}"/>{"".join(marks)}</svg>'
        f'<img alt="frames of the clip" src="{picture}" width="{width}" height="{height}"></div>'
        f'<p class="caption">Curve: from 0 to 1. Marks: frames kept at {labels}, line by line.</p>'
    )


def _players(summary: Summary, results: ResultsFolder, clip: str, original: Record) -> str:
    """Canvases that show one frame of every method, moved by one control."""
    shown = min(original["num_frames"], STRIP_FRAMES)
    views = [_view(results, original, "Original", "", [])]
    first = summary.models[0]
    main = main_row(summary.records, clip, first, results.header)
    coded = next((row for row in summary.records[clip, first]["rows"] if row["quantize"] == CODED), main)
    for part in (*summary.models, CODEC_PART):
        for row in summary.records.get((clip, part), {}).get("rows", []):
            if "strip" in row and _is_played(row, main, coded):
                label = CODECS[row["method"]].label if part == CODEC_PART else part
                views.append(_view(results, row, label, _describe(row), row.get("kept", [])))
    return render_player(views, shown, original["fps"])


def _is_played(row: Record, main: Record, coded: Record) -> bool:
    """Every budget of a model, other fills at the main one, and codecs at the size of the coded file."""
    if row["method"] in CODECS:
        return row["target_bytes"] == coded["num_bytes"]
    return row["method"] == "model" or row["num_bytes"] == main["num_bytes"]


def _describe(row: Record) -> str:
    figures = f"{row['psnr']:.2f} dB, {row['bits_per_pixel']:.3f} bit/px"
    if row.get("top_k"):
        return f"top {row['top_k']} of a window, {figures}"
    if row.get("quantize") == CODED:
        return f".fsv, quality {row['quality']:g}, {figures}"
    if row.get("keep_rate") is None:
        return figures
    fill = f", {row['method']}ed" if row["method"] in FILLS else ""
    return f"{100 * row['keep_rate']:.3g} % kept{fill}, {figures}"


def _view(results: ResultsFolder, row: Record, label: str, text: str, kept: list[int]) -> View:
    strip = (results.folder / row["strip"]).read_bytes()
    return View(label, text, strip, [frame for frame in kept if frame < STRIP_FRAMES])


# The rest


def _overview(summary: Summary, header: Record) -> str:
    """One line for every model, in words."""
    items = []
    for model in summary.models:
        rows = [main_row(summary.records, clip, model, header) for clip in summary.clips]
        psnr, bits = (sum(row[name] for row in rows) / len(rows) for name in ("psnr", "bits_per_pixel"))
        kept = [row["keep_rate"] for row in rows if row.get("keep_rate") is not None]
        of_frames = f" with {100 * sum(kept) / len(kept):.3g} % of the frames kept" if kept else ""
        items.append(
            f"<li><b>{escape(model)}</b> ({escape(header['classes'][model])}): {psnr:.2f} dB at {bits:.3f} bits per"
            f" pixel{of_frames}{_coded_text(summary, model)}, over {len(rows)} clips.</li>"
        )
    return f"<ul>{''.join(items)}</ul>"


def _coded_text(summary: Summary, model: str) -> str:
    """What coded files of the first quality take."""
    for point in summary.points:
        if point.method.part == model and point.method.quantize == CODED:
            bits, psnr = (point.figures[name].mean for name in ("bits_per_pixel", "psnr"))
            return f"; as .fsv files {psnr:.2f} dB at {bits:.3f}"
    return ""


def _run_details(summary: Summary, header: Record, command: str | None) -> str:
    versions = {name: _version(name) for name in PACKAGES} | {"Python": platform.python_version()}
    facts = {
        "command": command,
        "seconds for a clip": ", ".join(_seconds(summary, part) for part in (*summary.models, CODEC_PART)),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        **{f"weights of {name}": fingerprint[:16] for name, fingerprint in header["models"].items()},
        **header["settings"],
    }
    rows = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>"
        for name, value in facts.items()
        if value is not None
    )
    return f"<dl>{rows}</dl>"


def _seconds(summary: Summary, part: str) -> str:
    seconds = [summary.records[clip, part]["seconds"] for clip in summary.clips if (clip, part) in summary.records]
    return f"{part} {sum(seconds) / max(len(seconds), 1):.1f}"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


# CSV


def points_csv(summary: Summary) -> str:
    r"""A line for every method, budget and figure: mean, interval, clips."""
    lines = [
        [point.method.label, _budget_text(point.budget), name, *estimate]
        for point in summary.points
        for name, estimate in point.figures.items()
    ]
    return csv_text(["method", "budget", "figure", "mean", "low", "high", "clips"], lines)


def clips_csv(summary: Summary) -> str:
    r"""A line for every clip, method and budget, with every figure."""
    columns = ["method", "mode", "rate", "top_k", "quantize", "target_bytes", "quality", "num_bytes", "num_kept"]
    columns += [*TABLE_FIGURES, "psnr_frame_mean", "worst_frame", "still_rate", "boundary_ratio"]
    lines = [
        [clip, part, *(row.get(name) for name in columns)]
        for (clip, part), record in summary.records.items()
        if part != ORIGINAL
        for row in record.get("rows", [])
    ]
    return csv_text(["clip", "model", *columns], lines)
