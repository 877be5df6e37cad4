r"""The page's work on a clip from nothing: a prompt, a seed, a length, and pictures to begin and end with."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from diffusers_vidvae.media import VideoWriter
from diffusers_vidvae.pipelines.pipeline_gap_dit import GapDiTPipeline
from diffusers_vidvae.pipelines.video_lengths import DEFAULT_LATENT_FRAMES

from .compressing import Advance, shown_scale
from .settings import Limits


DEFAULT_STEPS = 50
_SHOWN_SIDE = 256


@dataclass(frozen=True)
class Wish:
    r"""What a visitor wants to see.

    Args:
        prompt: In words; nothing for models without text.
        seed: Seed of the noise.
        num_frames: Length.
        fps: Frames per second that it is written at.
        steps: Steps of the scheduler.
        guidance_scale: How closely to follow the prompt.
        first: Picture to begin with.
        last: Picture to end with.
    """

    prompt: str = ""
    seed: int = 0
    num_frames: int = 16
    fps: int = 8
    steps: int = DEFAULT_STEPS
    guidance_scale: float = 4.0
    first: str | None = None
    last: str | None = None

    @property
    def pictures(self) -> dict[int, str]:
        """The given pictures by their frame."""
        given = {0: self.first, self.num_frames - 1: self.last}
        return {index: picture for index, picture in given.items() if picture is not None}


def has_text(pipeline: GapDiTPipeline) -> bool:
    r"""Whether a generator follows prompts."""
    return pipeline.transformer.config.text_dim is not None


def longest_clip(pipeline: GapDiTPipeline, limits: Limits) -> int:
    r"""Frames that a generator's kept frames reach over as it was trained to place them, within the limit."""
    config = pipeline.transformer.config
    reach = (config.max_num_frames - 1) * config.frame_step + 1
    return min(reach, limits.max_frames)


def generate(pipeline: GapDiTPipeline, wish: Wish, video: Path, advance: Advance) -> list[int]:
    r"""Generates a clip into a file.

    Args:
        pipeline: The generator.
        wish: What it shall show.
        video: The file to write; pixels of small models are repeated until it can be looked at.
        advance: Called with the share of the steps that is done.

    Returns:
        Frame indices of the frames that were generated, between which the others are filled in.

    Raises:
        ValueError: The wish does not fit the model, or a picture cannot be read.
    """
    config = pipeline.transformer.config
    num_places = (wish.num_frames - 1) // config.frame_step + 1
    pictures = wish.pictures

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        advance((step + 1) / pipe.num_timesteps)
        return {}

    result = pipeline(
        prompt=wish.prompt if has_text(pipeline) else None,
        num_frames=wish.num_frames,
        num_latent_frames=max(min(DEFAULT_LATENT_FRAMES, config.max_num_frames, num_places), len(pictures)),
        num_inference_steps=wish.steps,
        guidance_scale=wish.guidance_scale,
        image=list(pictures.values()) or None,
        frame_indices=list(pictures) or None,
        generator=torch.Generator().manual_seed(wish.seed),
        callback_on_step_end=after_step,
        output_type="np",
    )
    frames = (result.frames[0] * 255).round().astype("uint8")
    with VideoWriter(video, Fraction(wish.fps)) as writer:
        writer.write(shown_scale(frames, _SHOWN_SIDE))
    return result.positions[0].tolist()
