r"""Latents of every model looked at, and a probe trained on them for every seed, split over processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import ModelMixin

from diffusers_vidvae.evaluation.clips import load_clip
from diffusers_vidvae.evaluation.results import ResultsFolder
from diffusers_vidvae.evaluation.settings import EvaluationSettings
from diffusers_vidvae.fingerprints import model_fingerprint

from .frechet import Features, RandomFeatures, feature_moments, frechet_distance
from .latents import BATCH_SIZE, LatentSpace, channel_moments, pixel_batches, windows_to_pixels
from .probe import held_out_errors, sample_latents, token_patch, train_probe
from .settings import GenerationSettings
from .untrained import describe_latents
from .windows import WindowSplit, cut_windows, procedural_windows


LATENTS = "latents"
STEM = "generation"


def evaluate_generation(
    models: dict[str, ModelMixin],
    clips: Sequence[tuple[str, Path]],
    folder: Path,
    settings: GenerationSettings | None = None,
    reading: EvaluationSettings | None = None,
    features: Features | None = None,
    advance: Callable[[], None] = lambda: None,
) -> ResultsFolder:
    r"""Measures how easily the latents of models are learned; what `folder` has is not measured again.

    With several processes (`accelerate launch`), each takes its share of the models and seeds.

    Args:
        models: Autoencoders by the names that they get in the report.
        clips: Names and files of the clips that windows are cut from, all of them readable; none for procedural ones.
        folder: Where results go.
        settings: Windows, and the probe's training.
        reading: Size, rate and frames that clips are read with.
        features: What the Fréchet distance is measured in; fixed random convolutions by default.
        advance: Called after the latents of a model, and after every probe.

    Raises:
        ValueError: Clips are too few or short, `features` do not fit, or the folder holds results of something else.
    """
    settings, reading = settings or GenerationSettings(), reading or EvaluationSettings()
    device = next(iter(models.values())).device
    state = PartialState(cpu=device.type == "cpu")
    features = features or RandomFeatures(device)
    header = {
        "settings": settings.to_json(),
        "clips": [name for name, _ in clips],
        "features": features.name,
        "models": {name: model_fingerprint(vae) for name, vae in models.items()},
    }
    results = ResultsFolder(folder, header, state.process_index, STEM)
    known = results.load()
    jobs = [(name, part) for name in models for part in (LATENTS, *map(_seed_part, settings.seeds))]
    mine = [job for index, job in enumerate(jobs) if index % state.num_processes == state.process_index]
    measurement: GenerationMeasurement | None = None
    for name, part in mine:
        if (name, part) not in known:
            measurement = measurement or GenerationMeasurement(models, clips, settings, reading, features)
            results.add_facts(name, part, measurement.measure(name, part))
        advance()
    state.wait_for_everyone()
    return results


def _seed_part(seed: int) -> str:
    return f"seed {seed}"


class GenerationMeasurement:
    """Windows that all models share, and latents of the one that is measured, each made once."""

    def __init__(
        self,
        models: dict[str, ModelMixin],
        clips: Sequence[tuple[str, Path]],
        settings: GenerationSettings,
        reading: EvaluationSettings,
        features: Features,
    ):
        self.models, self.settings, self.features = models, settings, features
        fixed = [LatentSpace(vae).geometry.untiled_side or 0 for vae in models.values()]
        self.side = max(settings.side, *fixed)
        self.split = self._split(clips, reading)
        self.held_out = windows_to_pixels(self.split.held_out.frames)
        self.real = feature_moments(features, pixel_batches(self.split.train.frames))
        self._encoded: tuple[str, EncodedWindows] | None = None

    def _split(self, clips: Sequence[tuple[str, Path]], reading: EvaluationSettings) -> WindowSplit:
        if not clips:
            return procedural_windows(self.settings, self.side)
        loaded = (load_clip(path, name, reading) for name, path in clips)
        return cut_windows(loaded, len(clips), self.settings, self.side)

    def measure(self, name: str, part: str) -> dict[str, Any]:
        """What is known of a model's latents, or what the probe with one of the seeds made of them."""
        start = time.perf_counter()
        if self._encoded is None or self._encoded[0] != name:
            self._encoded = name, EncodedWindows(self.models[name], self.split)
        encoded = self._encoded[1]
        if part == LATENTS:
            facts = describe_latents(encoded.space, self.split.held_out, encoded.held_out) | self._data_facts(encoded)
        else:
            seed = next(seed for seed in self.settings.seeds if _seed_part(seed) == part)
            facts = self._train(encoded, seed)
        return facts | {"seconds": time.perf_counter() - start}

    def _data_facts(self, encoded: EncodedWindows) -> dict[str, Any]:
        restored = encoded.space.decode(encoded.held_out, self.held_out.shape[2:])
        return {
            "frechet_restored": self._distance(restored),
            "frechet_real": self._distance(self.held_out),
            "window": list(self.held_out.shape[2:]),
            "train_windows": len(self.split.train),
            "held_out_windows": len(self.split.held_out),
            "parted": self.split.parted,
            "data_notes": self.split.notes,
        }

    def _train(self, encoded: EncodedWindows, seed: int) -> dict[str, Any]:
        settings, device = self.settings, encoded.space.device
        train, held_out = encoded.normalized(encoded.train).to(device), encoded.normalized(encoded.held_out).to(device)
        patch = token_patch(train.shape[2:], self.held_out.shape[2:])
        probe = train_probe(train, patch, settings, seed)
        samples = sample_latents(probe, held_out, settings.sampling_steps, settings.batch_size, seed).cpu()
        made = encoded.space.decode(samples * encoded.deviation + encoded.mean, self.held_out.shape[2:])
        return {
            "errors": held_out_errors(probe, held_out, settings.batch_size),
            "frechet": self._distance(made),
            "patch": list(patch),
            "tokens": probe.num_tokens,
            "parameters": sum(weight.numel() for weight in probe.parameters()),
        }

    def _distance(self, sample: torch.Tensor) -> float:
        return frechet_distance(feature_moments(self.features, sample.split(BATCH_SIZE)), self.real)


class EncodedWindows:
    """Latents of all windows by one model, and the moments of those that are learned."""

    def __init__(self, vae: ModelMixin, split: WindowSplit):
        self.space = LatentSpace(vae)
        self.train = self.space.encode_frames(split.train.frames)
        self.held_out = self.space.encode_frames(split.held_out.frames)
        self.mean, self.deviation = channel_moments(self.train)

    def normalized(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - self.mean) / self.deviation
