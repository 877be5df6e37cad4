"""How well a generator follows its prompts: clips of one shape on a plain background, scored by looking at them.

    python tests/benchmarks/bench_generation.py [--model FOLDER] [--samples 200] [--steps 30] [--guidance 4.0]
        [--sheet samples.png]

Prompts are captions of procedural clips of a seed of their own. The same score is taken of those clips themselves,
where it must be near 1 in every column (that tests the score), and of what the model's autoencoder makes of them from
the frames that the generator makes, which is the most that a generator can reach.

A frame's background is the median colour of its pixels, its shape's colour the median of the pixels farthest from
that; every pixel then covers the shape by a share, and the rest is error. "good" is a clip whose shape is one piece,
whose pixels are mixtures of the two colours, and whose outline is that of one of the five kinds; "drift" is how far
apart the backgrounds of a clip's frames are, in RGB of [0, 1]; the other columns are shares of clips in which the
background's and the shape's colour, kind and direction ("moves": of those that are to move) are what the prompt says.
The sheet shows twelve further prompts, none of them chosen by what came out.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import label

from diffusers_vidvae import GapDiTPipeline, demo_model
from diffusers_vidvae.training.procedural import COLOURS, SHAPES, ProceduralClips, colour_name, signed_distance


SEED = 4242
NUM_FRAMES = 16
KEPT_POSITIONS = list(range(0, NUM_FRAMES, 3))
CAPTION = re.compile(
    rf"a \w+ (?P<colour>{'|'.join(COLOURS)}) (?P<kind>{'|'.join(SHAPES)}) (?P<motion>.+) on a (?P<background>\w+) "
)

SHEET_PROMPTS = [
    "a large red disc moves fast to the left on a blue background",
    "a large yellow disc stands still on a black background",
    "a medium green disc moves slowly up on a white background",
    "a large blue ring moves fast to the right on a yellow background",
    "a large white ring stands still on a red background",
    "a medium black triangle moves fast down on a white background",
    "a large green triangle moves slowly to the left on a red background",
    "a large white square moves fast up on a blue background",
    "a medium red square stands still on a yellow background",
    "a large black square moves slowly to the right on a green background",
    "a large yellow bar moves fast down on a green background",
    "a medium blue bar moves slowly up on a black background",
]

# Areas of shapes of radius 1.
AREAS = {"disc": np.pi, "ring": 0.9 * np.pi, "triangle": 0.75 * np.sqrt(3), "square": 1.7**2, "bar": 1.7 * 0.7}

SHAPE_PIXELS = 0.015  # share of a frame's pixels whose median is the shape's colour
SMALLEST_AREA, LARGEST_AREA = 0.01, 0.35
LARGEST_PIECE = 0.95
MOST_RESIDUAL = 0.12  # of the distance of the two colours
EDGE_SHARPNESS = 2.0  # blurred edges and faint rings around them say nothing about an outline
LEAST_OVERLAP = 0.8
LEAST_TRAVEL = 1.0 / 32  # of the frame's side


@dataclass
class Score:
    """Means over clips; NaN where the prompts say nothing of it."""

    good: float
    drift: float
    background: float
    colour: float
    kind: float
    moves: float

    def row(self, name: str) -> str:
        values = (self.good, self.drift, self.background, self.colour, self.kind, self.moves)
        return f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |"


HEADER = "| | good | drift | background | colour | kind | moves |\n|---|---|---|---|---|---|---|"


def score_clips(clips: np.ndarray, captions: list[str]) -> Score:
    """Score of clips, float `(clips, frames, height, width, 3)` in [0, 1], against their captions."""
    looks = [Look(clip) for clip in clips]
    wanted = [CAPTION.match(caption) for caption in captions]
    moving = [(look, want) for look, want in zip(looks, wanted, strict=True) if "still" not in want["motion"]]
    return Score(
        good=float(np.mean([look.is_good for look in looks])),
        drift=float(np.mean([look.drift for look in looks])),
        background=_share(
            look.background_name == want["background"] for look, want in zip(looks, wanted, strict=True)
        ),
        colour=_share(look.shape_name == want["colour"] for look, want in zip(looks, wanted, strict=True)),
        kind=_share(look.kind == want["kind"] for look, want in zip(looks, wanted, strict=True)),
        moves=_share(want["motion"].endswith(look.direction) for look, want in moving),
    )


def _share(found: Iterator[bool]) -> float:
    return float(np.mean(list(found)))


class Look:
    """What can be seen of a clip, float `(frames, height, width, 3)`."""

    def __init__(self, clip: np.ndarray):
        pixels = clip.reshape(len(clip), -1, 3)  # (T, N, 3)
        backgrounds = np.median(pixels, axis=1)  # (T, 3)
        distances = np.linalg.norm(pixels - backgrounds[:, None], axis=2)
        farthest = np.argsort(distances, axis=1)[:, -max(1, round(SHAPE_PIXELS * pixels.shape[1])) :]
        colours = np.median(np.take_along_axis(pixels, farthest[..., None], axis=1), axis=1)  # (T, 3)
        contrast = colours - backgrounds
        squares = np.maximum(np.square(contrast).sum(axis=1), 1e-6)[:, None]
        shares = np.einsum("tnc,tc->tn", pixels - backgrounds[:, None], contrast) / squares
        shares = shares.clip(0, 1)
        residual = pixels - backgrounds[:, None] - shares[..., None] * contrast[:, None]
        self.residual = float(np.sqrt(np.square(residual).sum(axis=2).mean(axis=1) / squares[:, 0]).mean())
        self.coverage = shares.reshape(clip.shape[:3]).astype(np.float32)  # (T, H, W)
        self.drift = float(np.linalg.norm(np.ptp(backgrounds, axis=0)))
        self.background_name = colour_name(np.median(backgrounds, axis=0))
        self.shape_name = colour_name(np.median(colours, axis=0))
        self.kind, self.overlap = self._fit_kind()

    @property
    def is_good(self) -> bool:
        """Whether the clip shows one solid shape in two colours with the outline of some kind."""
        solid = np.mean([_is_solid(frame > 0.5) for frame in self.coverage])
        return bool(solid >= 0.9 and self.residual <= MOST_RESIDUAL and self.overlap >= LEAST_OVERLAP)

    @property
    def direction(self) -> str:
        """Where the shape moves between the first and the last quarter of the clip, or "still"."""
        centres = np.array([_centre(frame) for frame in self.coverage])
        quarter = max(1, len(centres) // 4)
        rows, columns = centres[-quarter:].mean(axis=0) - centres[:quarter].mean(axis=0)
        if max(abs(rows), abs(columns)) < LEAST_TRAVEL / np.sqrt(2) * self.coverage.shape[1]:
            return "still"
        if abs(columns) >= abs(rows):
            return "to the right" if columns > 0 else "to the left"
        return "down" if rows > 0 else "up"

    def _fit_kind(self) -> tuple[str, float]:
        """The kind whose outline fits best, and the overlap of both: intersection over union of what they cover."""
        frames = self.coverage[1::3]
        overlaps = {kind: float(np.mean([_overlap(frame, kind) for frame in frames])) for kind in SHAPES}
        best = max(overlaps, key=overlaps.__getitem__)
        return best, overlaps[best]


def _centre(coverage: np.ndarray) -> np.ndarray:
    """Centre of mass `(row, column)` of what is more than a little covered."""
    weights = np.where(coverage > 0.3, coverage, 0) + 1e-9
    rows, columns = np.indices(coverage.shape)
    return np.array([(weights * rows).sum(), (weights * columns).sum()]) / weights.sum()


def _is_solid(mask: np.ndarray) -> bool:
    pieces, count = label(mask, structure=np.ones((3, 3)))
    if not count or not SMALLEST_AREA <= mask.mean() <= LARGEST_AREA:
        return False
    return np.bincount(pieces[mask]).max() >= LARGEST_PIECE * mask.sum()


def _overlap(coverage: np.ndarray, kind: str, num_angles: int = 24) -> float:
    """Best overlap with a shape of some kind, of the same centre and area, turned by any angle."""
    rows, columns = (axis.astype(np.float32) for axis in np.indices(coverage.shape))
    row, column = _centre(coverage)
    solid = np.clip(EDGE_SHARPNESS * (coverage - 0.5) + 0.5, 0, 1)
    angles = np.arange(num_angles if kind not in ("disc", "ring") else 1, dtype=np.float32)[:, None, None]
    radius = np.sqrt(max(float(solid.sum()), 1.0) / AREAS[kind])
    distance = signed_distance(
        kind, (rows - row)[None], (columns - column)[None], angles * np.pi / num_angles * 2, radius
    )
    shape = np.clip(0.5 - distance, 0, 1)
    unions = np.maximum(shape, solid).sum(axis=(1, 2))
    return float((np.minimum(shape, solid).sum(axis=(1, 2)) / unions).max())


def prompted_clips(count: int, side: int) -> tuple[np.ndarray, list[str]]:
    """Clips that no training saw, float `(clips, frames, height, width, 3)`, and their captions."""
    clips = ProceduralClips(
        count,
        num_frames=NUM_FRAMES,
        height=side,
        width=side,
        seed=SEED,
        max_shapes=1,
        contrast=0.0,
        motions=("static", "slow", "fast"),
        palette=True,
        radii=(5.0, 9.0),
        speeds=(0.5, 0.9),
        colours=("red", "yellow", "green", "blue", "black", "white"),
        upright=True,
        inside=True,
    )
    pairs = [clips.with_caption(index) for index in range(count)]
    return np.stack([clip for clip, _ in pairs]) / np.float32(255), [caption for _, caption in pairs]


@torch.no_grad()
def reconstruct(pipe: GapDiTPipeline, clips: np.ndarray, batch_size: int = 20) -> np.ndarray:
    """The clips from the latents of the frames that the generator makes."""
    keep_mask = torch.zeros(1, NUM_FRAMES, dtype=torch.bool)
    keep_mask[:, KEPT_POSITIONS] = True
    parts = []
    for batch in torch.from_numpy(clips).permute(0, 4, 1, 2, 3).mul(2).sub(1).split(batch_size):
        latents = pipe.vae.encode(batch).latent_dist.mode()
        parts.append(pipe.vae.decode(latents, keep_mask.expand(len(batch), -1)).sample)
    return torch.cat(parts).clamp(-1, 1).add(1).div(2).permute(0, 2, 3, 4, 1).numpy()


def generate(
    pipe: GapDiTPipeline, captions: list[str], steps: int, guidance: float, batch_size: int = 25
) -> np.ndarray:
    """A clip of every caption, by seeds in turn."""
    pipe.set_progress_bar_config(disable=True)
    has_text = pipe.transformer.config.text_dim is not None
    count = min(len(KEPT_POSITIONS), pipe.transformer.config.max_num_frames)
    parts = []
    for start in range(0, len(captions), batch_size):
        some = captions[start : start + batch_size]
        generators = [torch.Generator().manual_seed(start + clip) for clip in range(len(some))]
        prompt = {"prompt": some, "guidance_scale": guidance} if has_text else {"batch_size": len(some)}
        parts.append(
            pipe(count, NUM_FRAMES, num_inference_steps=steps, generator=generators, output_type="np", **prompt).frames
        )
    return np.concatenate(parts)


def save_sheet(path: Path, clips: np.ndarray, captions: list[str], scale: int = 2) -> None:
    """Every second frame of each clip in a row, under its caption."""
    side, margin = clips.shape[2] * scale, 16
    shown = clips[:, ::2].repeat(scale, axis=2).repeat(scale, axis=3)
    sheet = Image.new("RGB", (shown.shape[1] * (side + 2), len(clips) * (side + margin)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (clip, caption) in enumerate(zip(shown, captions, strict=True)):
        draw.text((2, row * (side + margin) + 2), caption, fill="black")
        for column, frame in enumerate((clip * 255 + 0.5).clip(0, 255).astype(np.uint8)):
            sheet.paste(Image.fromarray(frame), (column * (side + 2), row * (side + margin) + margin - 2))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=demo_model(), help="folder of a GapDiTPipeline")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--sheet", type=Path, help="image file to write clips of twelve prompts to")
    options = parser.parse_args()

    pipe = GapDiTPipeline.from_pretrained(options.model, dtype=torch.float32)
    side = pipe.sample_size * pipe.vae_scale_factor
    clips, captions = prompted_clips(options.samples, side)
    print(HEADER)
    print(score_clips(clips, captions).row("the procedural clips"))
    print(score_clips(reconstruct(pipe, clips), captions).row("the autoencoder's reconstructions"), flush=True)
    generated = generate(pipe, captions, options.steps, options.guidance)
    print(score_clips(generated, captions).row("generated"))
    if options.sheet is not None:
        shown = generate(pipe, SHEET_PROMPTS, options.steps, options.guidance)
        save_sheet(options.sheet, shown, SHEET_PROMPTS)


if __name__ == "__main__":
    main()
