r"""A clip that the model has encoded, to be coded again and again at other budgets."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch

from diffusers_vidvae.codec import CompressedVideo
from diffusers_vidvae.media.clips import ClipInput, open_clips

from .any_latents import EncodedWindow
from .compression_budget import Budget


if TYPE_CHECKING:
    from .pipeline_video_compression import VideoCompressionPipeline


class EncodedClip:
    r"""All latents of a clip: the model runs once, and `compress` as often as a budget changes.

    Args:
        pipeline: The pipeline whose model encodes the clip.
        video: One clip, see `diffusers_vidvae.media.open_clips`.
        size_mode: How frames are brought to a size that the model takes, see `VideoCompressionPipeline.compress`.
        fps: Frame rate, likewise.
        on_window: Called after every window with the number of frames encoded so far; what it raises ends the work.

    Attributes:
        num_frames: Frames of the clip.
        keep_probs: Keep probability of every frame, `(num_frames,)`; None for models that do not select frames.

    Raises:
        ValueError: `video` is a batch, or the model does not take it.
    """

    @torch.no_grad()
    def __init__(
        self,
        pipeline: VideoCompressionPipeline,
        video: ClipInput,
        size_mode: str = "auto",
        fps: float | Fraction | None = None,
        on_window: Callable[[int], None] = lambda num_frames: None,
    ) -> None:
        pipeline.check_inputs(None, None, None, 0.5, None, size_mode, [])
        channels = pipeline.vae.config.in_channels if pipeline.selects_frames else 3
        clips = open_clips(video, fps, channels=channels)
        if len(clips) != 1:
            raise ValueError(f"`video` must be one clip, got a batch of {len(clips)}.")
        self.pipeline, self.clip = pipeline, clips[0]
        self.header, encoded = pipeline._encode(self.clip, size_mode, Budget())
        self.windows: list[EncodedWindow] = []
        self.num_frames = 0
        for window in encoded:
            self.windows.append(window.cpu())
            self.num_frames += window.num_frames
            on_window(self.num_frames)
        pipeline.maybe_free_model_hooks()

    @property
    def keep_probs(self) -> torch.Tensor | None:
        parts = [window.keep_probs[0] for window in self.windows if window.keep_probs is not None]
        return torch.cat(parts) if parts else None

    def compress(
        self,
        mode: str | None = None,
        num_frames: int | None = None,
        rate: float | None = None,
        threshold: float = 0.5,
        generator: torch.Generator | None = None,
        quality: float | None = None,
        quantize: str | None = None,
    ) -> CompressedVideo:
        r"""The clip in memory, as `VideoCompressionPipeline.compress` with the same arguments makes it.

        Raises:
            ValueError: An argument is not as described there.
        """
        pipeline = self.pipeline
        pipeline.check_inputs(mode, num_frames, rate, threshold, quantize, "auto", [])
        header = pipeline._with_budget(self.header, Budget(quantize=quantize, quality=quality))
        selection = selection_options(mode, num_frames, rate, threshold, generator)
        selection["total_frames"] = self.num_frames
        return pipeline._write(header, pipeline._select_windows(self.clip, self.windows, selection), None, False)


def selection_options(
    mode: str | None, num_frames: int | None, rate: float | None, threshold: float, generator: torch.Generator | None
) -> dict[str, Any]:
    r"""Arguments of `FrameSelectVAE.select_stream`: all frames are kept where neither a mode nor a count is given."""
    keeps_all = mode is None and num_frames is None and rate is None
    return {
        "mode": mode or "systematic",
        "num_frames": num_frames,
        "rate": 1.0 if keeps_all else rate,
        "threshold": threshold,
        "generator": generator,
    }
