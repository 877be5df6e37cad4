r"""What the generation half found, over clips and over seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from diffusers_vidvae.evaluation.statistics import Estimate, estimate_mean, estimate_over_seeds

from .run import LATENTS


Record = dict[str, Any]


@dataclass(frozen=True)
class ModelGeneration:
    """What is known of one model's latents.

    Args:
        latents: Figures of the latents without a training, as `describe_latents` and the measurement of data give.
        figures: Estimates over clips: "psnr", "gap_...", "noise_...".
        errors: Error of the probe by its noise level, over seeds; 1 for latents that are as hard as noise.
        error: Its mean over noise levels.
        error_by_seed: The same for every seed.
        frechet: Fréchet distance of what the probe makes, over seeds.
        probe: Tokens, latents of a token, and parameters of the probe.
    """

    latents: Record
    figures: dict[str, Estimate]
    errors: dict[str, Estimate]
    error: Estimate
    error_by_seed: list[float]
    frechet: Estimate
    frechet_by_seed: list[float]
    probe: Record


@dataclass(frozen=True)
class GenerationSummary:
    """All models, and what tells the first one from the others.

    Args:
        models: By their names.
        differences: Of the first model against another: name, "error" or "frechet", and the difference over seeds.
        header: What was measured, and how.
        notes: What is missing, and why.
    """

    models: dict[str, ModelGeneration]
    differences: list[tuple[str, str, Estimate]]
    header: Record
    notes: list[str]

    @property
    def first(self) -> str:
        return next(iter(self.models))

    def to_json(self) -> Record:
        """As plain values."""
        models = {name: asdict(model) | {"latents": _without_clips(model)} for name, model in self.models.items()}
        differences = [
            {"of": self.first, "against": other, "figure": figure, **estimate._asdict()}
            for other, figure, estimate in self.differences
        ]
        return {"settings": self.header["settings"], "models": models, "differences": differences}


def summarize_generation(records: dict[tuple[str, str], Record], header: Record) -> GenerationSummary:
    r"""Means over clips and seeds of all that was measured of latents."""
    models = {name: _summarize_model(records, name, header) for name in header["models"]}
    first, *others = models
    differences = []
    for other in others:
        for figure in ("error", "frechet"):
            pairs = zip(*(getattr(models[name], f"{figure}_by_seed") for name in (first, other)), strict=True)
            differences.append((other, figure, estimate_over_seeds([one - two for one, two in pairs])))
    notes = [f"{name}: {note}" for name, model in models.items() for note in model.latents["notes"]]
    return GenerationSummary(models, differences, header, models[first].latents["data_notes"] + notes)


def _summarize_model(records: dict[tuple[str, str], Record], name: str, header: Record) -> ModelGeneration:
    latents = records[name, LATENTS]
    trainings = [records[name, f"seed {seed}"] for seed in header["settings"]["seeds"]]
    levels = list(trainings[0]["errors"])
    by_seed = [sum(training["errors"].values()) / len(levels) for training in trainings]
    by_clip = list(latents["clips"].values())
    distances = [training["frechet"] for training in trainings]
    return ModelGeneration(
        latents=latents,
        figures={figure: estimate_mean([clip[figure] for clip in by_clip]) for figure in by_clip[0]},
        errors={level: estimate_over_seeds([training["errors"][level] for training in trainings]) for level in levels},
        error=estimate_over_seeds(by_seed),
        error_by_seed=by_seed,
        frechet=estimate_over_seeds(distances),
        frechet_by_seed=distances,
        probe={key: trainings[0][key] for key in ("tokens", "patch", "parameters")},
    )


def _without_clips(model: ModelGeneration) -> Record:
    return {name: value for name, value in model.latents.items() if name not in ("clips", "key")}
