r"""What is compared: models that select frames, other autoencoders, and video codecs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from numpy.typing import NDArray

from diffusers_vidvae.autoencoders import class_names
from diffusers_vidvae.media.transforms import to_frames
from diffusers_vidvae.metrics import PerceptualMetric
from diffusers_vidvae.metrics.rate import values_per_pixel
from diffusers_vidvae.pipelines.pipeline_video_compression import VideoCompressionPipeline
from diffusers_vidvae.pipelines.pipeline_video_reconstruction import VideoReconstructionPipeline

from .clips import EvaluationClip
from .codecs import CODECS, ClipCodec
from .measuring import Measured, Part, measure
from .selection import FILLS, describe_probabilities, fill_frames, random_mask
from .settings import RANDOM_MODE, UNCOUNTED_MODES, EvaluationSettings


LATENT_BITS = 16
CODED = "coded"


def run_model(
    vae: ModelMixin, clip: EvaluationClip, settings: EvaluationSettings, lpips: PerceptualMetric | None = None
) -> Part:
    r"""A clip through an autoencoder, at every setting that it knows."""
    if "FrameSelectVAE" in class_names(vae):
        part = FrameSelectSweep(vae, clip, settings, lpips).run()
    else:
        part = run_autoencoder(vae, clip, settings, lpips)
    coded, failures = run_coded(vae, clip, settings, lpips)
    return Part(part.measured + coded, part.facts, part.failures | failures)


def run_coded(
    vae: ModelMixin, clip: EvaluationClip, settings: EvaluationSettings, lpips: PerceptualMetric | None = None
) -> tuple[list[Measured], dict[str, str]]:
    r"""A clip as coded `.fsv` files of all its frames, whose bytes count, and what could not be coded."""
    pipeline = VideoCompressionPipeline(vae)
    pipeline.set_progress_bar_config(disable=True)
    size_mode = settings.size_mode if pipeline.selects_frames else "auto"
    measured, failures = [], {}
    for quality in settings.qualities:
        try:
            compressed = pipeline.compress(clip.pixels, quality=quality, size_mode=size_mode, fps=clip.fps)
        except ValueError as error:
            failures[f".fsv at quality {quality:g}"] = str(error)
            continue
        frames = np.concatenate([as_uint8(piece) for piece in pipeline.decompress_frames(compressed)])
        options: dict[str, Any] = {
            "boundaries": [window.start for window in compressed.selections[1:]],
            "lpips": lpips,
            "shown": quality == settings.qualities[0],
            "mode": None,
            "rate": 1.0,
            "quantize": CODED,
            "quality": quality,
            "values_per_pixel": compressed.values_per_pixel,
        }
        measured.append(measure(clip, frames, 8 * compressed.num_bytes, method="model", **options))
    return measured, failures


def run_autoencoder(
    vae: ModelMixin, clip: EvaluationClip, settings: EvaluationSettings, lpips: PerceptualMetric | None = None
) -> Part:
    r"""A clip through an autoencoder that keeps all frames; its latents count 16 bits each, for want of a file."""
    pipeline = VideoReconstructionPipeline(vae)
    pipeline.set_progress_bar_config(disable=True)
    num_values, starts = 0, []

    def count(pipe: Any, index: int, start: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal num_values
        num_values += tensors["latents"].numel()
        starts.append(start)
        return {}

    output = pipeline(clip.pixels, chunk_frames=settings.chunk_frames, output_type="pt", callback_on_step_end=count)
    assert isinstance(output.frames, torch.Tensor)
    frames = (output.frames[0] * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    return Part(
        [
            measure(
                clip,
                frames,
                num_values * LATENT_BITS,
                boundaries=starts[1:],
                lpips=lpips,
                shown=True,
                method="model",
                mode=None,
                rate=1.0,
                quantize="bf16",
                values_per_pixel=values_per_pixel(num_values, *clip.frames.shape[:3]),
            )
        ]
    )


class FrameSelectSweep:
    """`FrameSelectVAE` on a clip: budgets, modes, quantisations, and kept frames repeated or blended instead."""

    def __init__(
        self, vae: ModelMixin, clip: EvaluationClip, settings: EvaluationSettings, lpips: PerceptualMetric | None
    ) -> None:
        self.clip, self.settings, self.lpips = clip, settings, lpips
        self.window = vae.config.clip_num_frames
        self.pipeline = VideoCompressionPipeline(vae)
        self.pipeline.set_progress_bar_config(disable=True)
        self.probs: list[torch.Tensor] = []

    def run(self) -> Part:
        measured, failures = [], {}
        for quantize, mode, rate in self._sweep():
            try:
                measured += self._measure(quantize, mode, rate=rate)
            except ValueError as error:
                failures[f"{mode} {rate} {quantize}"] = str(error)
        for count in self.settings.top_k:
            if count < min(self.window, len(self.clip.frames)):
                measured += self._measure(self.settings.quantizations[0], "top_k", top_k=count)
        return Part(measured, self._facts(measured), failures)

    def _sweep(self) -> list[tuple[str, str, float | None]]:
        """Quantisation, mode and rate of every run; where all frames are kept, modes do not differ."""
        settings = self.settings
        runs: list[tuple[str, str, float | None]] = []
        for quantize in settings.quantizations:
            for mode in settings.modes:
                rates = [None] if mode in UNCOUNTED_MODES else settings.rates
                runs += [(quantize, mode, rate) for rate in rates if rate != 1 or mode == settings.modes[0]]
        bernoulli = (settings.quantizations[0], "bernoulli", None)
        return runs if bernoulli in runs else [*runs, bernoulli]

    def _measure(
        self, quantize: str, mode: str, rate: float | None = None, top_k: int | None = None
    ) -> list[Measured]:
        num_windows = -(-len(self.clip.frames) // self.window)
        generator = torch.Generator().manual_seed(self.settings.seed)
        self.probs = []

        def choose(pipe: Any, index: int, start: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            self.probs.append(tensors["keep_probs"].float().cpu())
            mask = tensors["keep_mask"]
            return {"keep_mask": random_mask(mask, generator).to(mask.device)} if mode == RANDOM_MODE else {}

        compressed = self.pipeline.compress(
            self.clip.pixels,
            mode="uniform" if mode == RANDOM_MODE else mode,
            rate=rate,
            num_frames=None if top_k is None else top_k * num_windows,
            generator=generator if mode == "bernoulli" else None,
            quantize=quantize,
            size_mode=self.settings.size_mode,
            fps=self.clip.fps,
            callback_on_step_end=choose,
            callback_on_step_end_tensor_inputs=["keep_probs", "keep_mask"],
        )
        frames = np.concatenate([as_uint8(piece) for piece in self.pipeline.decompress_frames(compressed)])
        is_first = (quantize, mode) == (self.settings.quantizations[0], self.settings.modes[0])
        options: dict[str, Any] = {
            "keep_mask": compressed.keep_mask,
            "boundaries": [window.start for window in compressed.selections[1:]],
            "lpips": self.lpips,
            "shown": is_first or mode == "top_k",
            "mode": mode,
            "rate": rate,
            "top_k": top_k,
            "num_kept": compressed.kept_frames,
            "quantize": quantize,
            "values_per_pixel": compressed.values_per_pixel,
            "kept": compressed.positions.tolist(),
        }
        num_bits = 8 * compressed.num_bytes
        results = [measure(self.clip, frames, num_bits, method="model", **options)]
        if is_first and rate != 1:
            for fill in FILLS:
                filled = fill_frames(frames, compressed.keep_mask.numpy(), fill)
                results.append(measure(self.clip, filled, num_bits, method=fill, **options))
        return results

    def _facts(self, measured: list[Measured]) -> dict[str, Any]:
        probs = torch.cat(self.probs, dim=1)[0].double().numpy()
        return {
            "window": self.window,
            "keep_probs": probs.tolist(),
            "probabilities": describe_probabilities(probs, self.settings.num_draws, self.settings.seed),
        }


def run_codecs(
    clip: EvaluationClip, targets: list[int], settings: EvaluationSettings, lpips: PerceptualMetric | None = None
) -> Part:
    r"""A clip through every codec, at most as large as each of the targets, in bytes."""
    measured, failures = [], {}
    for name in settings.codecs:
        try:
            codec = ClipCodec(name, clip.frames, clip.fps)
            for index, target in enumerate(targets):
                encoded = codec.at_most(target)
                options: dict[str, Any] = {"quality": encoded.quality, "target_bytes": target, "target": index}
                measured.append(
                    measure(
                        clip, encoded.frames, 8 * encoded.num_bytes, lpips=lpips, shown=True, method=name, **options
                    )
                )
        except (ValueError, OSError) as error:
            failures[CODECS[name].label] = str(error)
    return Part(measured, {"targets": targets}, failures)


def as_uint8(frames: torch.Tensor | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames `(T, H, W, 3)` of whatever the compression pipeline yields."""
    return to_frames(frames) if isinstance(frames, torch.Tensor) else frames
