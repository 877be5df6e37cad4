r"""The page's work on an uploaded clip: read, encode once, code at any budget, and bring back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusers_vidvae.codec import CompressedVideo
from diffusers_vidvae.media import MediaError, VideoWriter, open_clips
from diffusers_vidvae.media.clip import Clip
from diffusers_vidvae.media.transforms import resize, to_frames
from diffusers_vidvae.metrics import ClipMetrics
from diffusers_vidvae.pipelines.encoded_clip import EncodedClip
from diffusers_vidvae.pipelines.pipeline_video_compression import VideoCompressionPipeline

from .settings import Limits


# Called with the share of a job that is done; what it raises ends the job.
Advance = Callable[[float], None]

KEPT_COLOUR = (230, 126, 0)
DEFAULT_FPS = Fraction(24)
_BAR = 6
_PIECE_FRAMES = 16


@dataclass(frozen=True)
class Choice:
    r"""What a visitor sets: which share of the frames to keep and how they are chosen, and the quality of the rest.

    Args:
        rate: Share of the frames to keep, in (0, 1].
        quality: Quality of their latents, from 0 to 100.
        mode: How frames are chosen, see `FrameSelectVAE.select_frames`.
    """

    rate: float = 1.0
    quality: float = 50.0
    mode: str = "systematic"


@dataclass(frozen=True, eq=False)
class UploadedClip:
    r"""A clip as the page works on it, and what the model made of it.

    Args:
        name: Name of the file.
        frames: `(T, H, W, 3)` of uint8, scaled.
        fps: Frame rate.
        file_size: Size of the frames in the file, width and height.
        file_bytes: Size of the file.
        encoded: Its latents.
    """

    name: str
    frames: NDArray[np.uint8]
    fps: Fraction
    file_size: tuple[int, int]
    file_bytes: int
    encoded: EncodedClip

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the scaled frames."""
        return self.frames.shape[2], self.frames.shape[1]


def open_upload(
    path: Path, side: int, pipeline: VideoCompressionPipeline, limits: Limits, advance: Advance
) -> UploadedClip:
    r"""Reads a clip, scales it down and encodes it.

    Args:
        path: The file.
        side: Shorter side to scale to; smaller frames keep their size.
        pipeline: The model.
        limits: What is refused.
        advance: Called with the share of the frames that is encoded.

    Raises:
        MediaError: The file cannot be read, or exceeds a limit; the message has both numbers.
    """
    num_bytes = path.stat().st_size
    if num_bytes > limits.max_bytes:
        raise MediaError(f"{path.name} has {num_bytes / 1e6:.3g} MB, this page takes {limits.max_megabytes:g} MB.")
    (clip,) = open_clips(path)
    frames = _read_scaled(clip, path.name, side, limits.max_frames)
    fps = clip.fps or DEFAULT_FPS
    encoded = EncodedClip(pipeline, frames, fps=fps, on_window=lambda done: advance(done / len(frames)))
    return UploadedClip(path.name, frames, fps, (clip.width, clip.height), num_bytes, encoded)


def _read_scaled(clip: Clip, name: str, side: int, max_frames: int) -> NDArray[np.uint8]:
    scale = min(1.0, side / min(clip.height, clip.width))
    height, width = round(scale * clip.height), round(scale * clip.width)
    pieces: list[NDArray[np.uint8]] = []
    num_frames = 0
    for piece in clip.cut(_PIECE_FRAMES):
        num_frames += len(piece.frames)
        if num_frames > max_frames:
            raise MediaError(f"{name} has {clip.count_frames()} frames, this page takes {max_frames}; cut it shorter.")
        pieces.append(piece.to_images() if scale == 1 else to_frames(resize(piece.to_pixels(), height, width))[0])
    if not pieces:
        raise MediaError(f"{name} has no frame.")
    return np.concatenate(pieces)


def code(upload: UploadedClip, choice: Choice) -> CompressedVideo:
    r"""The clip at a budget; the model does not run.

    Raises:
        ValueError: A number is out of its range.
    """
    encoded = upload.encoded
    selection: dict[str, Any] = {"mode": choice.mode, "rate": choice.rate} if encoded.pipeline.selects_frames else {}
    return encoded.compress(quality=choice.quality, **selection)


def bring_back(upload: UploadedClip, compressed: CompressedVideo, video: Path, advance: Advance) -> dict[str, Any]:
    r"""Decodes a coded clip into a video of the original and what came back, beside each other.

    Args:
        upload: The original.
        compressed: What is decoded.
        video: The file to write; kept frames have an orange bar below them.
        advance: Called with the share of the frames that came back.

    Returns:
        The figures of `ClipMetrics`.
    """
    metrics = ClipMetrics(compressed.keep_mask, [window.start for window in compressed.selections[1:]])
    kept = compressed.keep_mask.numpy()
    with VideoWriter(video, upload.fps, pixel_format="yuv420p") as writer:
        for frames in upload.encoded.pipeline.decompress_frames(compressed):
            done = slice(metrics.num_frames, metrics.num_frames + len(frames))
            metrics.update(upload.frames[done], frames)
            writer.write(beside(upload.frames[done], frames, kept[done]))
            advance(done.stop / len(upload.frames))
    return metrics.compute()


def beside(one: NDArray[np.uint8], other: NDArray[np.uint8], kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    r"""Frames `(T, H, W, 3)` beside each other, with a bar below the second one where it was kept.

    The sides of the result are even, as every player wants them.
    """
    num_frames, height, width = one.shape[:3]
    even_height, even_width = height + _BAR + height % 2, 2 * width + _BAR
    frames = np.zeros((num_frames, even_height, even_width, 3), np.uint8)
    frames[:, :height, :width] = one
    frames[:, :height, width + _BAR :] = other
    frames[kept, even_height - _BAR + 1 :, width + _BAR :] = KEPT_COLOUR
    return frames


def shown_scale(frames: NDArray[np.uint8], least_side: int) -> NDArray[np.uint8]:
    r"""Frames whose pixels are repeated until the shorter side has at least so many, to look at small clips."""
    times = max(1, -(-least_side // min(frames.shape[1:3])))
    return frames.repeat(times, axis=1).repeat(times, axis=2)
