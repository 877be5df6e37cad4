r"""Draws the picture of the README: a clip, what comes back of all its frames, and what comes back of some of them.

    python tests/benchmarks/draw_kept_frames.py CLIP PICTURE.jpg [--model FOLDER] [--start S] [--frames T] [--rate R]

Frames that were stored have an orange border, and an orange mark on the line of all frames below, whose curve is the
probability to keep each. Bytes are of whole `.fsv` files, PSNR is over all frames.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont


sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from diffusers_vidvae import CompressedVideo, VideoCompressionPipeline, demo_model  # noqa: E402
from diffusers_vidvae.media import VideoReader, save_image, to_pixels  # noqa: E402
from diffusers_vidvae.metrics import clip_psnr  # noqa: E402


COLUMNS = 6
FRAME_WIDTH, GAP, BORDER = 196, 8, 4
TEXT_HEIGHT, LINE_HEIGHT = 26, 72
PAPER, INK, KEPT, QUIET = (255, 255, 255), (30, 30, 34), (230, 126, 0), (196, 196, 200)


def compress(
    pipe: VideoCompressionPipeline, frames: NDArray[np.uint8], rate: float
) -> tuple[CompressedVideo, NDArray[np.uint8], list[float]]:
    """The compressed clip, what it decodes to, and the probability to keep each frame."""
    probabilities: list[float] = []

    def remember(pipe: Any, index: int, start: int, tensors: dict[str, Any]) -> dict[str, Any]:
        probabilities.extend(tensors["keep_probs"][0].tolist())
        return {}

    compressed = pipe.compress(
        frames, rate=rate, callback_on_step_end=remember, callback_on_step_end_tensor_inputs=["keep_probs"]
    )
    return compressed, np.concatenate(list(pipe.decompress_frames(compressed))), probabilities


def draw_row(sheet: Image.Image, top: int, title: str, frames: NDArray[np.uint8], kept: set[int]) -> int:
    """Frames at equal steps below a line of text; returns where the next row begins."""
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, top + 4), title, INK, ImageFont.load_default(16))
    height = round(FRAME_WIDTH * frames.shape[1] / frames.shape[2])
    for column, index in enumerate(np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)):
        left = GAP + column * (FRAME_WIDTH + GAP)
        picture = Image.fromarray(frames[index]).resize((FRAME_WIDTH, height), Image.Resampling.LANCZOS)
        sheet.paste(picture, (left, top + TEXT_HEIGHT))
        if index in kept:
            box = (left, top + TEXT_HEIGHT, left + FRAME_WIDTH - 1, top + TEXT_HEIGHT + height - 1)
            draw.rectangle(box, outline=KEPT, width=BORDER)
    return top + TEXT_HEIGHT + height + GAP


def draw_timeline(sheet: Image.Image, top: int, probabilities: list[float], kept: set[int]) -> None:
    """A mark for every frame, orange where it is stored, below the curve of probabilities."""
    draw = ImageDraw.Draw(sheet)
    step = (sheet.width - 2 * GAP) / len(probabilities)
    middles = [GAP + step * (index + 0.5) for index in range(len(probabilities))]
    room = LINE_HEIGHT - 28
    heights = [top + room * (1 - probability) for probability in probabilities]
    draw.line(list(zip(middles, heights, strict=True)), INK, 2)
    for index, middle in enumerate(middles):
        box = (middle - step / 2 + 1, top + room + 6, middle + step / 2 - 1, top + room + 20)
        draw.rectangle(box, fill=KEPT if index in kept else QUIET)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path, help="video")
    parser.add_argument("picture", type=Path, help="image to write")
    parser.add_argument("--model", default=demo_model(), help="folder or Hub id; default: the model in the package")
    parser.add_argument("--start", type=int, default=0, help="first frame")
    parser.add_argument("--frames", type=int, default=48, help="number of frames")
    parser.add_argument("--rate", type=float, default=0.25, help="share of the frames to keep")
    options = parser.parse_args()

    with VideoReader(options.clip) as reader:
        frames = reader.read(options.start, options.start + options.frames).data
    pipe = VideoCompressionPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    height = round(FRAME_WIDTH * frames.shape[1] / frames.shape[2])
    size = (COLUMNS * (FRAME_WIDTH + GAP) + GAP, 3 * (TEXT_HEIGHT + height + GAP) + LINE_HEIGHT)
    sheet = Image.new("RGB", size, PAPER)
    top = draw_row(sheet, 0, f"The clip: {len(frames)} frames", frames, set())
    for rate in (1.0, options.rate):
        compressed, decoded, probabilities = compress(pipe, frames, rate)
        kept = set(compressed.positions.tolist())
        psnr = clip_psnr(to_pixels(frames), to_pixels(decoded))
        stored = "all" if len(kept) == len(frames) else f"{len(kept)} of {len(frames)}"
        num_bytes = compressed.statistics()["num_bytes"]
        title = f"What comes back of {stored} frames: {num_bytes / 1000:.0f} KB, PSNR {psnr:.1f} dB"
        print(title)
        top = draw_row(sheet, top, title, decoded, kept)
    draw_timeline(sheet, top, probabilities, kept)
    save_image(sheet, options.picture, overwrite=True)


if __name__ == "__main__":
    main()
