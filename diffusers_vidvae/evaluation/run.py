r"""Clips through all models and codecs, split over processes, and the report of what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from diffusers import ModelMixin

from diffusers_vidvae.fingerprints import model_fingerprint
from diffusers_vidvae.media import MediaError
from diffusers_vidvae.metrics import PerceptualMetric

from .clips import EvaluationClip, demo_clips, load_clip
from .measuring import Measured, Part, make_strip
from .methods import CODED, run_codecs, run_model
from .results import ResultsFolder
from .settings import EvaluationSettings


ORIGINAL, CODEC_PART = "original", "codecs"


def evaluate_models(
    models: dict[str, ModelMixin],
    paths: Sequence[Path],
    folder: Path,
    settings: EvaluationSettings | None = None,
    lpips: PerceptualMetric | None = None,
    advance: Callable[[], None] = lambda: None,
) -> ResultsFolder:
    r"""Measures models on clips, in the order that is left of them; what `folder` has is not measured again.

    With several processes (`accelerate launch`), each takes its share of the clips.

    Args:
        models: Autoencoders by the names that they get in the report.
        paths: Images and videos; none for procedural ones.
        folder: Where results go.
        settings: What is measured.
        lpips: Perceptual distance to measure, too.
        advance: Called after every clip.

    Raises:
        ValueError: There is no model, or the folder holds results of something else.
    """
    settings = settings or EvaluationSettings()
    if not models or {ORIGINAL, CODEC_PART} & models.keys():
        raise ValueError(f"Give at least one model, of another name than {ORIGINAL!r} and {CODEC_PART!r}.")
    state = PartialState(cpu=next(iter(models.values())).device.type == "cpu")
    header = {
        "settings": settings.to_json(),
        "lpips": lpips is not None,
        "models": {name: model_fingerprint(vae) for name, vae in models.items()},
        "classes": {name: type(vae).__name__ for name, vae in models.items()},
    }
    results = ResultsFolder(folder, header, state.process_index)
    known = results.load()
    names = unique_names(paths)
    jobs: list[tuple[str, Any]] = [(name, path) for name, path in zip(names, paths, strict=True)]
    jobs = jobs or [(clip.name, clip) for clip in demo_clips(settings)]
    for index, (name, source) in enumerate(jobs):
        if index % state.num_processes == state.process_index:
            evaluate_clip(name, source, models, settings, lpips, results, known)
            advance()
    state.wait_for_everyone()
    return results


def readable_clips(results: ResultsFolder, paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Names and files of the clips that could be read."""
    known = results.load()
    named = zip(unique_names(paths), paths, strict=True)
    return [(name, path) for name, path in named if "error" not in known.get((name, ORIGINAL), {"error": ""})]


def evaluate_clip(
    name: str,
    source: Path | EvaluationClip,
    models: dict[str, ModelMixin],
    settings: EvaluationSettings,
    lpips: PerceptualMetric | None,
    results: ResultsFolder,
    known: dict[tuple[str, str], dict[str, Any]],
) -> None:
    """Measures what is not known yet of one clip; one that cannot be read is remembered as that."""
    parts = [ORIGINAL, *models, CODEC_PART]
    if all((name, part) in known for part in parts):
        return
    try:
        clip = source if isinstance(source, EvaluationClip) else load_clip(source, name, settings)
    except MediaError as error:
        for part in parts:
            results.add_failure(name, part, str(error))
        return
    if (name, ORIGINAL) not in known:
        num_frames, height, width = clip.frames.shape[:3]
        row = {"num_frames": num_frames, "height": height, "width": width, "fps": float(clip.fps)}
        results.add(name, ORIGINAL, Part([Measured(row, make_strip(clip.frames))]), 0.0)
    for model, vae in models.items():
        if (name, model) not in known:
            start = time.perf_counter()
            measured = run_model(vae, clip, settings, lpips)
            results.add(name, model, measured, time.perf_counter() - start)
    if (name, CODEC_PART) not in known:
        start = time.perf_counter()
        measured = run_codecs(clip, codec_targets(results.load(), name, list(models), settings), settings, lpips)
        results.add(name, CODEC_PART, measured, time.perf_counter() - start)


def codec_targets(
    known: dict[tuple[str, str], dict[str, Any]], clip: str, models: list[str], settings: EvaluationSettings
) -> list[int]:
    """Sizes in bytes that the first model came to as coded files, and at its first mode and quantisation; sorted."""
    rows = known[clip, models[0]]["rows"]
    mode, quantize = settings.modes[0], settings.quantizations[0]
    sizes = {
        row["num_bytes"]
        for row in rows
        if row["method"] == "model" and row["mode"] in (mode, None) and row["quantize"] in (quantize, CODED)
    }
    return sorted(sizes)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """File names, with as much of their folders as it takes to tell them apart."""
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    return [str(path) for path in paths]
