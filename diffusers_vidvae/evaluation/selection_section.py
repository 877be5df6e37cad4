r"""What a report says of the choice of frames: clip by clip, and over all clips of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_vidvae.files import write_file

from .selection import describe_folder
from .summary import Record, Summary
from .tables import Cell, csv_text, number_cell, render_table, text_cell


# Titles of figures and their decimals; None for those of any size.
Columns = Mapping[str, tuple[str, int | None]]

ERRORS = {"mse_all": ("squared error, all frames", 6), "mse_drawn": ("squared error, drawn mask", 6)}
MASKS = {
    "keep_rate_mean": ("keep rate of drawn masks", 3),
    "keep_rate_std": ("its deviation", 3),
    "compression": ("frames for a kept one", 2),
    "agreement_mean": ("two masks agree in a frame", 3),
    "agreement_median": ("median", 3),
    "agreement_min": ("least", 3),
}
PROBABILITIES = {
    "entropy": ("bits of a frame", 3),
    "mask_entropy": ("bits of the mask", 1),
    "mean": ("mean probability", 3),
    "median": ("median", 3),
    "std": ("deviation", 3),
    "min": ("least", 3),
    "max": ("most", 3),
}
OF_A_CLIP = {**ERRORS, **MASKS, "log10_identical": ("in all, log10", 2), **PROBABILITIES}
OF_ALL_CLIPS = {
    "num_clips": ("clips", 0),
    "num_frames": ("frames", 0),
    **ERRORS,
    **MASKS,
    **{f"identical_{name}": (f"in all frames, {name}", None) for name in ("mean", "median", "std", "min", "max")},
    **PROBABILITIES,
}
TENTHS = "frames by tenths of probability"


def write_selection(summary: Summary, folder: Path) -> str:
    r"""The section as HTML, and its figures as `selection.csv` in a folder; none where no model selects frames."""
    models = {model: known for model in summary.models if (known := _described_clips(summary, model))}
    if not models:
        return "<p>None of these models selects frames.</p>"
    folders = {model: _described_folder(summary, model, list(clips.values())) for model, clips in models.items()}
    rows = [[text_cell(model), *_cells(known, OF_ALL_CLIPS)] for model, known in folders.items()]
    over_clips = render_table(["model", *_titles(OF_ALL_CLIPS), TENTHS], rows, "selection-of-all")
    rows = [
        [text_cell(clip), text_cell(model), *_cells(known, OF_A_CLIP)]
        for model, clips in models.items()
        for clip, known in clips.items()
    ]
    clip_by_clip = render_table(["clip", "model", *_titles(OF_A_CLIP), TENTHS], rows, "selection")
    write_file(folder / "selection.csv", _selection_csv(models, folders), overwrite=True)
    return f"<h3>All clips</h3>{over_clips}<h3>Clip by clip</h3>{clip_by_clip}"


def _described_clips(summary: Summary, model: str) -> dict[str, dict[str, Any]]:
    """What is known of the masks of every clip, in the report's order."""
    records = {clip: summary.records.get((clip, model), {}) for clip in summary.clips}
    return {
        clip: {**record["probabilities"], **_errors(record)}
        for clip, record in records.items()
        if "probabilities" in record
    }


def _errors(record: Record) -> dict[str, float | None]:
    rows = [row for row in record["rows"] if row["method"] == "model"]
    everything = [row["mse"] for row in rows if row.get("rate") == 1]
    drawn = [row["mse"] for row in rows if row["mode"] == "bernoulli"]
    return {"mse_all": everything[0] if everything else None, "mse_drawn": drawn[0] if drawn else None}


def _described_folder(summary: Summary, model: str, clips: list[dict[str, Any]]) -> dict[str, Any]:
    records = [summary.records.get((clip, model), {}) for clip in summary.clips]
    probs = [np.array(record["keep_probs"]) for record in records if "probabilities" in record]
    known: dict[str, Any] = dict(describe_folder(probs, clips))
    for name in ERRORS:
        errors = [clip[name] for clip in clips if clip[name] is not None]
        known[name] = float(np.mean(errors)) if errors else None
    return known


def _titles(columns: Columns) -> list[str]:
    return [title for title, _ in columns.values()]


def _cells(known: dict[str, Any], columns: Columns) -> list[Cell]:
    cells: list[Cell] = []
    for name, (_, decimals) in columns.items():
        value = known[name]
        cells.append((f"{value:.3g}", value) if decimals is None else number_cell(value, decimals))
    return [*cells, (" ".join(map(str, known["histogram"])), known["mean"])]


def _selection_csv(models: dict[str, dict[str, dict[str, Any]]], folders: dict[str, dict[str, Any]]) -> str:
    """A line for every figure of every clip, and of all clips, whose name is empty."""
    lines = [
        [model, clip, name, value]
        for model, clips in models.items()
        for clip, known in {"": folders[model], **clips}.items()
        for name, value in _flat(known).items()
    ]
    return csv_text(["model", "clip", "figure", "value"], lines)


def _flat(known: dict[str, Any]) -> dict[str, Any]:
    tenths = {f"histogram_{tenth}": count for tenth, count in enumerate(known["histogram"])}
    return {name: value for name, value in known.items() if name != "histogram"} | tenths
