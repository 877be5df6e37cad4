"""The generation half of `vidvae evaluate`: how easily latents are learned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import console, models
from .console import CommandError


if TYPE_CHECKING:
    from diffusers import ModelMixin

    from diffusers_vidvae.evaluation import EvaluationSettings
    from diffusers_vidvae.evaluation.generation.summary import GenerationSummary
    from diffusers_vidvae.evaluation.results import ResultsFolder
    from diffusers_vidvae.evaluation.statistics import Estimate


def check_generation(generation: bool, report: Path | None, probe: dict[str, Any]) -> None:
    """Refuses options of the generation half without it, and it without a report."""
    if generation and report is None:
        raise CommandError("--generation: needs --report.")
    given = [name for name, value in probe.items() if value is not None]
    if given and not generation:
        option = given[0] if given[0] == "features" else f"probe-{given[0]}"
        raise CommandError(f"--{option}: needs --generation.")


def measure_generation(
    loaded: dict[str, ModelMixin],
    paths: list[Path],
    results: ResultsFolder,
    plan: EvaluationSettings,
    probe: dict[str, Any],
    target: models.Device,
) -> GenerationSummary:
    """Looks at the latents of all models and trains the probes, or goes on with what is there."""
    from diffusers_vidvae import evaluation
    from diffusers_vidvae.evaluation.generation.frechet import FileFeatures
    from diffusers_vidvae.evaluation.run import readable_clips

    given = {name: value for name, value in probe.items() if name != "features" and value is not None}
    if "seeds" in given:
        given["seeds"] = tuple(range(given["seeds"]))
    settings = evaluation.GenerationSettings(**given, seed=plan.seed)
    features = None if probe["features"] is None else FileFeatures(probe["features"], target.device)
    with console.progress_of("Learning latents", len(loaded) * (1 + len(settings.seeds))) as advance:
        found = evaluation.evaluate_generation(
            loaded, readable_clips(results, paths), results.folder, settings, plan, features, advance
        )
    return evaluation.summarize_generation(found.load(), found.header)


def print_generation(summary: GenerationSummary) -> None:
    """A line for every model: what its latents are like, and how well the probe learned them."""
    lines = []
    for name, model in summary.models.items():
        dimension, spectrum = model.latents["dimension"], model.latents["spectrum"]
        lines.append(
            [
                name,
                f"{model.error.mean:.4f} ±{_half_width(model.error):.4f}",
                f"{model.frechet.mean:.3f} ±{_half_width(model.frechet):.3f}",
                f"{model.latents['frechet_real']:.3f}",
                f"{dimension['entropy']:.1f} of {dimension['channels']:.0f}",
                f"{100 * spectrum['latents_high_share']:.1f} % ({100 * spectrum['pixels_high_share']:.1f} %)",
            ]
        )
    headings = ["model", "probe's error", "Fréchet", "of real clips", "dimension", "high frequencies (of pixels)"]
    console.print_table(headings, lines)


def _half_width(estimate: Estimate) -> float:
    return 0.0 if estimate.high is None else estimate.high - estimate.mean
