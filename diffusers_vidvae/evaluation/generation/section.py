r"""The generation half of the report: figures, tables, and what they can and cannot tell."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from diffusers_vidvae.evaluation.charts import COLOURS, Series, draw_png, draw_svg
from diffusers_vidvae.evaluation.tables import (
    csv_text,
    difference_cell,
    estimate_cell,
    number_cell,
    render_table,
    text_cell,
)
from diffusers_vidvae.files import write_file

from .equivariance import TRANSFORMS
from .summary import GenerationSummary, ModelGeneration
from .untrained import NOISE_SIZES


NOT_MEASURED = "<p>Not measured; <code>--generation</code> does.</p>"
FIGURE_NAMES = {"error": "error of the probe", "frechet": "Fréchet distance"}
# Name of a chart's file: title, label of its numbers, label of its axis.
CHARTS = {
    "spectrum": (
        "Energy by frequency, beside the pixels'",
        "energy of a coefficient, dB of the mean's",
        "frequency, as a share of the highest",
    ),
    "latent_noise": (
        "What the decoder makes of noisy latents",
        "PSNR, dB",
        "noise, in deviations of each channel",
    ),
    "probe_error": (
        "Error of the probe on held-out latents, by noise level",
        "error, 1 for white noise",
        "share of noise",
    ),
}


def write_generation(summary: GenerationSummary, folder: Path) -> str:
    """Writes the figures as PNG and CSV into a folder, and returns the section of the page."""
    charts = {"spectrum": _spectra(summary), "latent_noise": _noise(summary), "probe_error": _errors(summary)}
    charts = {name: series for name, series in charts.items() if series}
    for name, series in charts.items():
        _, y_label, x_label = CHARTS[name]
        draw_png(series, y_label, folder / f"{name}.png", x_label)
    write_file(folder / "generation.csv", generation_csv(summary), overwrite=True)
    parts = ["<h3>The probe</h3>", _probe_text(summary), _probe_table(summary), _differences(summary)]
    parts += [_chart("probe_error", charts), "<h3>Latents by themselves</h3>", _latents_text(summary)]
    parts += [_latents_table(summary), _chart("spectrum", charts), _chart("latent_noise", charts)]
    return "".join(parts)


def _chart(name: str, charts: dict[str, list[Series]]) -> str:
    if name not in charts:
        return ""
    title, y_label, x_label = CHARTS[name]
    return f"<h4>{escape(title)}</h4><figure>{draw_svg(charts[name], y_label, x_label)}</figure>"


# Curves


def _spectra(summary: GenerationSummary) -> list[Series]:
    spectra = {name: model.latents["spectrum"]["latents"] for name, model in summary.models.items()}
    spectra["pixels"] = summary.models[summary.first].latents["spectrum"]["pixels"]
    curves = {
        name: [(k / (len(energies) - 1), 10 * math.log10(max(energy, 1e-12))) for k, energy in enumerate(energies)]
        for name, energies in spectra.items()
        if len(energies) > 1
    }
    return [Series(name, points, *_style(name, index)) for index, (name, points) in enumerate(curves.items())]


def _style(name: str, index: int) -> tuple[int, int]:
    return (len(COLOURS) - 1, 1) if name == "pixels" else (index % len(COLOURS), 0)


def _noise(summary: GenerationSummary) -> list[Series]:
    series = []
    for index, (name, model) in enumerate(summary.models.items()):
        points = [(0.0, model.figures["psnr"].mean)]
        points += [(size, model.figures[f"noise_{size:g}"].mean) for size in NOISE_SIZES]
        series.append(Series(name, points, index % len(COLOURS)))
    return series


def _errors(summary: GenerationSummary) -> list[Series]:
    return [
        Series(name, [(float(level), estimate.mean) for level, estimate in model.errors.items()], index % len(COLOURS))
        for index, (name, model) in enumerate(summary.models.items())
    ]


# Tables


def _probe_table(summary: GenerationSummary) -> str:
    headings = [
        *("model", "error", *(f"at {level}" for level in summary.models[summary.first].errors)),
        *("Fréchet distance of samples", "of restored clips", "of real clips"),
        *("latent values per pixel", "tokens", "weights"),
    ]
    rows = []
    for name, model in summary.models.items():
        cells = [text_cell(name), estimate_cell(model.error, 4)]
        cells += [number_cell(estimate.mean, 4) for estimate in model.errors.values()]
        cells += [estimate_cell(model.frechet, 3), number_cell(model.latents["frechet_restored"], 3)]
        cells += [number_cell(model.latents["frechet_real"], 3), number_cell(model.latents["values_per_pixel"], 4)]
        cells += [number_cell(model.probe[key], 0) for key in ("tokens", "parameters")]
        rows.append(cells)
    return render_table(headings, rows, "probe")


def _differences(summary: GenerationSummary) -> str:
    if not summary.differences:
        return ""
    rows = [
        [*map(text_cell, (summary.first, other, FIGURE_NAMES[figure])), difference_cell(estimate, 4, "", "one seed")]
        for other, figure, estimate in summary.differences
    ]
    table = render_table(["of", "against", "figure", "mean difference and its interval"], rows, "probe-differences")
    return f"<h4>Differences, seed by seed</h4>{table}"


def _latents_table(summary: GenerationSummary) -> str:
    headings = [
        *("model", "channels", "effective dimension", "participation ratio"),
        *("energy at high frequencies", "of pixels", *(f"lost by {name}, dB" for name in TRANSFORMS)),
        *("PSNR, dB", *(f"with noise of {size:g}" for size in NOISE_SIZES)),
    ]
    rows = []
    for name, model in summary.models.items():
        dimension, spectrum = model.latents["dimension"], model.latents["spectrum"]
        cells = [text_cell(name), number_cell(dimension["channels"], 0)]
        cells += [number_cell(dimension[key], 2) for key in ("entropy", "participation")]
        cells += [number_cell(spectrum[f"{key}_high_share"], 4) for key in ("latents", "pixels")]
        cells += [estimate_cell(model.figures.get(f"gap_{transform}"), 2) for transform in TRANSFORMS]
        cells += [estimate_cell(model.figures[key], 2) for key in ("psnr", *(f"noise_{n:g}" for n in NOISE_SIZES))]
        rows.append(cells)
    return render_table(headings, rows, "latents")


def generation_csv(summary: GenerationSummary) -> str:
    r"""A line for every model and figure: mean, interval, and the number of clips or seeds."""
    lines = [
        [name, figure, *estimate]
        for name, model in summary.models.items()
        for figure, estimate in _estimates(model).items()
    ]
    for name, model in summary.models.items():
        lines += [[name, figure, value, None, None, None] for figure, value in _numbers(model).items()]
    return csv_text(["model", "figure", "mean", "low", "high", "clips or seeds"], lines)


def _estimates(model: ModelGeneration) -> dict:
    errors = {f"probe_error_{level}": estimate for level, estimate in model.errors.items()}
    return {**model.figures, **errors, "probe_error": model.error, "frechet": model.frechet}


def _numbers(model: ModelGeneration) -> dict[str, float]:
    latents = model.latents
    numbers = {name: latents[name] for name in ("values_per_pixel", "frechet_restored", "frechet_real")}
    numbers |= {f"dimension_{name}": value for name, value in latents["dimension"].items()}
    for of in ("latents", "pixels"):
        numbers[f"{of}_high_share"] = latents["spectrum"][f"{of}_high_share"]
        numbers |= {f"{of}_energy_{k}": value for k, value in enumerate(latents["spectrum"][of])}
    return numbers


# Words


def _probe_text(summary: GenerationSummary) -> str:
    settings = summary.header["settings"]
    latents = summary.models[summary.first].latents
    frames, height, width = latents["window"]
    return f"""
<p>The same small transformer learned the flow from noise to the latents of each model, with means and deviations of
channels taken out: {settings["steps"]} steps of {settings["batch_size"]} windows, {len(settings["seeds"])} seeds,
{latents["train_windows"]} windows of {frames} frames of {height}x{width} to learn and {latents["held_out_windows"]}
held out ({escape(latents["parted"])}), the same windows in the same order for every model. Latents are modes of
posteriors, and of models that select frames those of all frames. An error of 1 is that of the best guess at white
noise, with which every probe starts; less is easier to learn, more is worse than that guess. Intervals of 95 % are
over seeds, and so are differences, seed by seed; an asterisk marks those that do not hold 0.</p>
<p><b>It can tell</b> which of these latents a small generator learns sooner from equal data and compute, by more than
chance of its training. <b>It cannot tell</b> how good a large generator ends, or how its clips look. Errors are those
of a latent value: models with other numbers of values are not compared by them alone, and latents that hold little
are easily learned, so look at PSNR and at the distance of samples, too.</p>
<p>Fréchet distances (in {escape(summary.header["features"])}) are those of decoded samples to the windows that were
learned; of restored clips, what the decoder alone costs; of real clips, what perfect samples would have. They compare
within this report only{_kind_of_features(summary)}.</p>"""


def _kind_of_features(summary: GenerationSummary) -> str:
    is_random = summary.header["features"].startswith("fixed random")
    return ", and see textures, colours and motion rather than what a clip shows" if is_random else ""


def _latents_text(summary: GenerationSummary) -> str:
    sides = sorted({model.latents["spectrum"]["side"] for model in summary.models.values()})
    blocks = " and ".join(f"{side}x{side}" for side in sides)
    return f"""
<p>Effective dimension: exponential of the entropy of the eigenvalues of the channels' covariance. High frequencies:
the upper half, of a cosine transform of blocks of {blocks} latents, or pixels; noise has three quarters of its
energy there (arXiv:2502.14831). Lost: PSNR of decoding scaled, shifted (by half a
latent) and turned latents, less that of encoding and decoding the scaled, shifted and turned clip (arXiv:2502.09509);
0 is equivariant. Noise: in deviations of each channel, on latents that are decoded.</p>"""
