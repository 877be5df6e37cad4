"""Procedural clips: moving shapes on smooth backgrounds, in five kinds of motion.

A clip is a function of its index and the seed, so the set needs no storage and is the same in every process.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .draws import numpy_generator


MOTIONS = ("static", "slow", "fast", "bursts", "cuts")
SHAPES = ("disc", "ring", "triangle", "square", "bar")

# Speeds are given in pixels a frame for frames of this size and scale with the frame.
REFERENCE_SIZE = 32


@dataclass(frozen=True)
class ProceduralClips:
    """A set of clips; index i has motion `MOTIONS[i % 5]`.

    `"static"` nothing moves; `"slow"` background and shapes drift by at most half a pixel a frame (at 32x32);
    `"fast"` shapes move 2 to 4 pixels a frame and bounce; `"bursts"` a still clip with a stretch of fast motion;
    `"cuts"` one or two scene cuts between still or slow scenes.

    Args:
        length: Number of clips.
        num_frames: Frames of a clip.
        height: Height in pixels.
        width: Width in pixels.
        seed: Seed of the set.
        max_shapes: Most shapes of a scene; there is at least one.
        contrast: Contrast of the backgrounds, in [0, 1].
    """

    length: int
    num_frames: int = 16
    height: int = 64
    width: int = 64
    seed: int = 0
    max_shapes: int = 3
    contrast: float = 0.3

    def __len__(self) -> int:
        return self.length

    def motion(self, index: int) -> str:
        """Kind of motion of a clip."""
        return MOTIONS[index % len(MOTIONS)]

    def __getitem__(self, index: int) -> np.ndarray:
        """A clip, uint8 `(frames, height, width, 3)`."""
        if not 0 <= index < self.length:
            raise IndexError(f"Clip {index} of a procedural set of {self.length} clips.")
        rng = numpy_generator(self.seed, index)
        motion = self.motion(index)
        if motion != "cuts":
            return self._scene(rng, motion, self.num_frames)
        cuts = self._cut_positions(rng)
        lengths = np.diff([0, *cuts, self.num_frames])
        return np.concatenate([self._scene(rng, rng.choice(["static", "slow"]), int(length)) for length in lengths])

    def _cut_positions(self, rng: np.random.Generator) -> list[int]:
        if self.num_frames < 2:
            return []
        count = min(int(rng.integers(1, 3)), self.num_frames - 1)
        return sorted(int(cut) for cut in rng.choice(np.arange(1, self.num_frames), size=count, replace=False))

    def _scene(self, rng: np.random.Generator, motion: str, num_frames: int) -> np.ndarray:
        scale = min(self.height, self.width) / REFERENCE_SIZE
        elapsed = np.concatenate([[0.0], np.cumsum(_activity(rng, motion, num_frames))])[:num_frames]  # (T,)
        pan = rng.uniform(-0.35, 0.35, 2) * scale if motion == "slow" else np.zeros(2)
        frames = self._background(rng, elapsed[:, None] * pan)
        for _ in range(int(rng.integers(1, self.max_shapes + 1))):
            alpha, colour = self._shape(rng, motion, elapsed, scale)
            frames += alpha[..., None] * (colour - frames)
        return (frames * 255 + 0.5).clip(0, 255).astype(np.uint8)

    def _background(self, rng: np.random.Generator, offset: np.ndarray, num_waves: int = 4) -> np.ndarray:
        """A colour and a few long waves, shifted by `offset` (T, 2); float32 `(T, H, W, 3)`."""
        rows = np.arange(self.height) + offset[:, :1]  # (T, H)
        columns = np.arange(self.width) + offset[:, 1:]  # (T, W)
        frames = np.broadcast_to(
            rng.uniform(0.15, 0.85, 3).astype(np.float32), (len(offset), self.height, self.width, 3)
        ).copy()
        for _ in range(num_waves):
            frequency = rng.uniform(-1.5, 1.5, 2) * 2 * np.pi / np.array([self.height, self.width])
            phase = rng.uniform(0, 2 * np.pi)
            amplitude = (rng.normal(0, self.contrast / num_waves, 3) * 1.4).astype(np.float32)
            row_wave = np.exp(1j * (frequency[0] * rows + phase)).astype(np.complex64)
            column_wave = np.exp(1j * frequency[1] * columns).astype(np.complex64)
            wave = (row_wave[:, :, None] * column_wave[:, None]).real  # (T, H, W)
            frames += wave[..., None] * amplitude
        return frames

    def _shape(
        self, rng: np.random.Generator, motion: str, elapsed: np.ndarray, scale: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coverage `(T, H, W)` in [0, 1] and colour of one shape."""
        kind = SHAPES[int(rng.integers(len(SHAPES)))]
        radius = rng.uniform(3.5, 8.0) * scale
        size = np.array([self.height, self.width], dtype=np.float64)
        start = rng.uniform(0.15, 0.85, 2) * size
        direction = rng.uniform(0, 2 * np.pi)
        speed = {"static": 0.0, "slow": rng.uniform(0.1, 0.5)}.get(motion, rng.uniform(2.0, 4.0)) * scale
        spin = {"static": 0.0, "slow": rng.uniform(-0.03, 0.03)}.get(motion, rng.uniform(-0.2, 0.2))
        colour = rng.uniform(0, 1, 3).astype(np.float32)

        velocity = speed * np.array([np.sin(direction), np.cos(direction)])
        centres = _bounce(start + elapsed[:, None] * velocity, size)  # (T, 2)
        angles = rng.uniform(0, 2 * np.pi) + elapsed * spin
        distance = self._signed_distance(kind, centres, angles, radius)
        return np.clip(0.5 - distance, 0, 1), colour

    def _signed_distance(self, kind: str, centres: np.ndarray, angles: np.ndarray, radius: float) -> np.ndarray:
        """Distance of every pixel to a shape's edge, negative inside, `(T, H, W)`."""
        rows = (np.arange(self.height) - centres[:, :1]).astype(np.float32)[:, :, None]  # (T, H, 1)
        columns = (np.arange(self.width) - centres[:, 1:]).astype(np.float32)[:, None]  # (T, 1, W)
        if kind in ("disc", "ring"):
            distance = np.sqrt(rows**2 + columns**2)
            return distance - radius if kind == "disc" else np.abs(distance - 0.75 * radius) - 0.3 * radius
        cos, sin = (values.astype(np.float32)[:, None, None] for values in (np.cos(angles), np.sin(angles)))
        y, x = cos * rows + sin * columns, cos * columns - sin * rows
        if kind == "triangle":
            side = np.float32(np.sqrt(3) / 2)
            return np.maximum(y, np.maximum(side * x - y / 2, -side * x - y / 2)) - radius / 2
        aspect = 0.85 if kind == "square" else 0.35
        return np.maximum(np.abs(x) - 0.85 * radius, np.abs(y) - aspect * radius)


def _activity(rng: np.random.Generator, motion: str, num_frames: int) -> np.ndarray:
    """How much of a frame's motion happens after each frame, `(T,)`."""
    if motion != "bursts":
        return np.ones(num_frames)
    length = min(max(1, round(num_frames * rng.uniform(0.25, 0.4))), num_frames)
    start = int(rng.integers(0, num_frames - length + 1))
    activity = np.zeros(num_frames)
    activity[start : start + length] = 1
    return activity


def _bounce(positions: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Reflects positions at the borders 0 and `size`."""
    folded = np.mod(positions, 2 * size)
    return size - np.abs(folded - size)
