r"""From results of every clip to what a report says: means with intervals, differences, savings, worst clips first."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

from .codecs import CODECS
from .methods import CODED
from .run import CODEC_PART, ORIGINAL
from .statistics import Estimate, estimate_difference, estimate_mean, saved_bits


Record = dict[str, Any]
Row = dict[str, Any]

# Figures: their name for people, decimals, and whether more is better.
FIGURES: dict[str, tuple[str, int, bool]] = {
    "psnr": ("PSNR, dB", 2, True),
    "ssim": ("SSIM", 4, True),
    "ms_ssim": ("MS-SSIM", 4, True),
    "lpips": ("LPIPS", 4, False),
    "temporal_psnr": ("PSNR of changes, dB", 2, True),
    "still_flicker": ("flicker, levels", 3, False),
    "psnr_worst": ("worst frame, dB", 2, True),
    "psnr_kept": ("kept frames, dB", 2, True),
    "psnr_dropped": ("dropped frames, dB", 2, True),
    "boundary_ratio": ("window joints", 2, False),
    "mse": ("squared error", 6, False),
}
CHARTED = ("psnr", "ssim", "ms_ssim", "lpips", "temporal_psnr", "psnr_dropped")


class Quality(float):
    """Budget of a coded file: its quality from 0 to 100."""


class Method(NamedTuple):
    """A way to bring clips back. Fields that do not apply are None."""

    part: str
    method: str
    mode: str | None
    quantize: str | None

    @property
    def label(self) -> str:
        if self.method in CODECS:
            return CODECS[self.method].label
        if self.quantize == CODED:
            return f"{self.part}: .fsv file"
        if self.mode is None:
            return self.part
        if self.method != "model":
            return f"{self.part}: {self.mode}, {self.quantize}, kept frames {self.method}ed"
        return f"{self.part}: {self.mode}, {self.quantize}"


class Point(NamedTuple):
    """A method at one budget, over clips: estimates of its bits per pixel and of every figure it has."""

    method: Method
    budget: float | str | None
    figures: dict[str, Estimate]


@dataclass(frozen=True)
class Summary:
    """What a report shows.

    Args:
        models: Their names, the one that others are compared with first.
        clips: Names of the clips, the worst first.
        points: Every method at every budget.
        differences: Paired differences in PSNR: of what, against what, at which budget.
        savings: BD-rate of the first model's first mode and of every other method against a codec.
        records: Everything measured, by clip and part.
        notes: What is missing, and why.
    """

    models: list[str]
    clips: list[str]
    points: list[Point]
    differences: list[tuple[str, str, str, Estimate]]
    savings: list[tuple[str, str, Estimate | None, int]]
    records: dict[tuple[str, str], Record]
    notes: list[str]


def summarize(records: dict[tuple[str, str], Record], header: Record) -> Summary:
    r"""Means over clips of all that was measured.

    Raises:
        ValueError: No clip could be measured.
    """
    models = list(header["models"])
    names = [clip for clip, part in records if part == ORIGINAL]
    readable = [name for name in names if "error" not in records[name, ORIGINAL]]
    if not readable:
        raise ValueError(f"None of the {len(names)} clips could be read, so there is nothing to report.")
    by_point: dict[tuple[Method, Any], dict[str, Row]] = defaultdict(dict)
    for clip in readable:
        for part in (*models, CODEC_PART):
            for row in records.get((clip, part), {}).get("rows", []):
                by_point[method_of(part, row), budget_of(row)][clip] = row
    points = [Point(method, budget, _estimates(rows)) for (method, budget), rows in by_point.items()]
    worst_first = sorted(readable, key=lambda clip: main_row(records, clip, models[0], header)["psnr"])
    return Summary(
        models,
        worst_first,
        points,
        _differences(by_point, models, header),
        _savings(by_point, models, header),
        records,
        _notes(records, readable, names, models, points),
    )


def method_of(part: str, row: Row) -> Method:
    return Method(part, row["method"], row.get("mode"), row.get("quantize"))


def budget_of(row: Row) -> float | str | None:
    """What rows of different clips have in common: rate, quality, frames of a window, or the codec's target."""
    if row.get("quantize") == CODED:
        return Quality(row["quality"])
    if row.get("mode") == "top_k" and row.get("rate") is None:
        return f"top {row['top_k']}"
    return row["target"] if "target" in row else row["rate"]


def main_row(records: dict[tuple[str, str], Record], clip: str, model: str, header: Record) -> Row:
    """The row of a model that stands for it where one is shown: its first mode at about a quarter of the frames."""
    rows = [row for row in records[clip, model]["rows"] if row["method"] == "model"]
    main = [row for row in rows if row["mode"] in (None, header["settings"]["modes"][0])]
    main = [row for row in main if row["quantize"] == header["settings"]["quantizations"][0]]
    return min(main, key=lambda row: abs((row["rate"] or 1) - 0.25))


def _estimates(rows: dict[str, Row]) -> dict[str, Estimate]:
    estimates = {}
    for name in ("bits_per_pixel", "values_per_pixel", "keep_rate", *FIGURES):
        values = [row[name] for row in rows.values() if row.get(name) is not None]
        if values:
            estimates[name] = estimate_mean(values)
    return estimates


def _main_method(model: str, by_point: dict, header: Record) -> Method:
    settings = header["settings"]
    method = Method(model, "model", settings["modes"][0], settings["quantizations"][0])
    return method if any(known == method for known, _ in by_point) else Method(model, "model", None, "bf16")


def _differences(by_point: dict, models: list[str], header: Record) -> list[tuple[str, str, str, Estimate]]:
    """Of the first model against others where all frames are kept, and of its first mode against all others."""
    psnrs = {key: {clip: row["psnr"] for clip, row in rows.items()} for key, rows in by_point.items()}
    first = _main_method(models[0], by_point, header)
    found = []
    for model in models[1:]:
        other = _main_method(model, by_point, header)
        estimate = estimate_difference(psnrs.get((first, 1.0), {}), psnrs.get((other, 1.0), {}))
        found.append((first.label, other.label, "all frames", estimate))
    for (method, budget), values in psnrs.items():
        is_other_way = method.part == first.part and method != first and isinstance(budget, float) and budget < 1
        if is_other_way and method.quantize == first.quantize and (first, budget) in psnrs:
            estimate = estimate_difference(psnrs[first, budget], values)
            found.append((first.label, method.label, f"{100 * budget:g} % kept", estimate))
    return [(one, other, budget, estimate) for one, other, budget, estimate in found if estimate is not None]


def _savings(by_point: dict, models: list[str], header: Record) -> list[tuple[str, str, Estimate | None, int]]:
    """BD-rate clip by clip against the first codec, and the number of clips that could be compared."""
    curves: dict[Method, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for (method, budget), rows in by_point.items():
        if not isinstance(budget, str) and budget is not None:
            for clip, row in rows.items():
                curves[method][clip].append((row["bits_per_pixel"], row["psnr"]))
    anchors = [method for method in curves if method.method in CODECS]
    anchor = anchors[0] if anchors else _main_method(models[0], by_point, header)
    found = []
    for method, clips in curves.items():
        if method == anchor or max(map(len, clips.values())) < 2:
            continue
        savings = [saved_bits(curves[anchor][clip], points) for clip, points in clips.items()]
        known = [value for value in savings if value is not None]
        found.append((method.label, anchor.label, estimate_mean(known) if known else None, len(known)))
    return found


def _notes(
    records: dict[tuple[str, str], Record],
    readable: list[str],
    names: list[str],
    models: list[str],
    points: list[Point],
) -> list[str]:
    notes = [f"{records[name, ORIGINAL]['error']} Left out." for name in names if name not in readable]
    failures: dict[str, list[str]] = defaultdict(list)
    for clip in readable:
        for part in (*models, CODEC_PART):
            record = records.get((clip, part), {})
            for method, message in record.get("failures", {}).items():
                failures[f"{method}: {message}"].append(clip)
    notes += [f"{message} ({len(clips)} of {len(readable)} clips)" for message, clips in failures.items()]
    for model in models:
        windows = {clip: records.get((clip, model), {}).get("window", 0) for clip in readable}
        short = [clip for clip, window in windows.items() if records[clip, ORIGINAL]["rows"][0]["num_frames"] < window]
        if short:
            notes.append(f"{', '.join(short)}: shorter than the {windows[short[0]]} frames of a window of {model}.")
    for figure, least in (("ssim", 11), ("ms_ssim", 176)):
        sizes = [records[clip, ORIGINAL]["rows"][0] for clip in readable]
        small = sum(min(size["height"], size["width"]) < least for size in sizes)
        if small:
            notes.append(f"{FIGURES[figure][0]} needs {least} pixels a side, which {small} clips do not have.")
    if not any("lpips" in point.figures for point in points):
        notes.append("LPIPS was not measured; --lpips does where its weights are.")
    return notes
