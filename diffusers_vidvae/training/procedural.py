"""Procedural clips: moving shapes on smooth backgrounds, in five kinds of motion, with captions.

A clip and its caption are functions of its index and the seed, so the set needs no storage and is the same in every
process. A caption names size, colour and kind of every shape, how and where it moves at first, and the background:
"a large red disc moves fast to the left on a blue background". Scenes of a clip with cuts are joined by ", then".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .draws import numpy_generator


MOTIONS = ("static", "slow", "fast", "bursts", "cuts")
SHAPES = ("disc", "ring", "triangle", "square", "bar")

# RGB in [0, 1]. A colour is called by the nearest of these.
COLOURS = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.95, 0.88, 0.20),
    "green": (0.15, 0.65, 0.20),
    "turquoise": (0.15, 0.80, 0.80),
    "blue": (0.15, 0.25, 0.85),
    "purple": (0.50, 0.15, 0.70),
    "pink": (0.95, 0.55, 0.75),
    "brown": (0.45, 0.28, 0.12),
    "black": (0.06, 0.06, 0.06),
    "grey": (0.50, 0.50, 0.50),
    "white": (0.94, 0.94, 0.94),
}
# How far colours of a palette stray from their names.
PALETTE_JITTER = 0.04

# Radii, as fractions of a frame's shorter side, below which a shape is small and medium.
SIZES = (("small", 0.16), ("medium", 0.205), ("large", np.inf))

# Speeds are given in pixels a frame for frames of this size and scale with the frame.
REFERENCE_SIZE = 32


@dataclass(frozen=True)
class ProceduralClips:
    """A set of clips; index i has motion `MOTIONS[i % 5]`.

    `"static"` nothing moves; `"slow"` background and shapes drift by at most half a pixel a frame (at 32x32);
    `"fast"` shapes move 2 to 4 pixels a frame, or at other `speeds`, and bounce; `"bursts"` a still clip with a
    stretch of fast motion; `"cuts"` one or two scene cuts between still or slow scenes.

    Args:
        length: Number of clips.
        num_frames: Frames of a clip.
        height: Height in pixels.
        width: Width in pixels.
        seed: Seed of the set.
        max_shapes: Most shapes of a scene; there is at least one.
        contrast: Contrast of the backgrounds, in [0, 1].
        motions: Kinds of motion, which clips have in turn.
        palette: Draws colours near the `COLOURS`, shapes in other ones than their background, instead of any colours.
        radii: Smallest and largest radius of a shape, in pixels at 32x32.
        speeds: Lowest and highest speed of fast motion, in pixels a frame at 32x32. Shapes turn the faster, too.
        colours: Names of the `COLOURS` of a palette, at least two.
        upright: Leaves shapes unturned.
        inside: Keeps whole shapes in the frame, and starts them where they come far before they bounce. Otherwise
            it is their centres that stay inside.

    Raises:
        ValueError: There is no such kind of motion, none is given, or a range is empty or not positive.
    """

    length: int
    num_frames: int = 16
    height: int = 64
    width: int = 64
    seed: int = 0
    max_shapes: int = 3
    contrast: float = 0.3
    motions: tuple[str, ...] = MOTIONS
    palette: bool = False
    radii: tuple[float, ...] = (3.5, 8.0)
    speeds: tuple[float, ...] = (2.0, 4.0)
    colours: tuple[str, ...] = tuple(COLOURS)
    upright: bool = False
    inside: bool = False

    def __post_init__(self) -> None:
        if not self.motions or set(self.motions) - set(MOTIONS):
            raise ValueError(f"`motions` must be some of {MOTIONS}, got {self.motions}.")
        if len(self.colours) < 2 or set(self.colours) - set(COLOURS):
            raise ValueError(f"`colours` must be two or more of {tuple(COLOURS)}, got {self.colours}.")
        for name, limits in (("radii", self.radii), ("speeds", self.speeds)):
            if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
                raise ValueError(f"`{name}` must be two positive numbers that do not fall, got {limits}.")

    def __len__(self) -> int:
        return self.length

    def motion(self, index: int) -> str:
        """Kind of motion of a clip."""
        return self.motions[index % len(self.motions)]

    def __getitem__(self, index: int) -> np.ndarray:
        """A clip, uint8 `(frames, height, width, 3)`."""
        return self.with_caption(index)[0]

    def with_caption(self, index: int) -> tuple[np.ndarray, str]:
        """A clip, uint8 `(frames, height, width, 3)`, and what it shows."""
        if not 0 <= index < self.length:
            raise IndexError(f"Clip {index} of a procedural set of {self.length} clips.")
        rng = numpy_generator(self.seed, index)
        motion = self.motion(index)
        if motion != "cuts":
            return self._scene(rng, motion, self.num_frames)
        cuts = self._cut_positions(rng)
        lengths = np.diff([0, *cuts, self.num_frames])
        scenes = [self._scene(rng, rng.choice(["static", "slow"]), int(length)) for length in lengths]
        return np.concatenate([frames for frames, _ in scenes]), ", then ".join(caption for _, caption in scenes)

    def _cut_positions(self, rng: np.random.Generator) -> list[int]:
        if self.num_frames < 2:
            return []
        count = min(int(rng.integers(1, 3)), self.num_frames - 1)
        return sorted(int(cut) for cut in rng.choice(np.arange(1, self.num_frames), size=count, replace=False))

    def _scene(self, rng: np.random.Generator, motion: str, num_frames: int) -> tuple[np.ndarray, str]:
        scale = min(self.height, self.width) / REFERENCE_SIZE
        elapsed = np.concatenate([[0.0], np.cumsum(_activity(rng, motion, num_frames))])[:num_frames]  # (T,)
        pan = rng.uniform(-0.35, 0.35, 2) * scale if motion == "slow" else np.zeros(2)
        frames, background = self._background(rng, elapsed[:, None] * pan)
        shapes = []
        for _ in range(int(rng.integers(1, self.max_shapes + 1))):
            alpha, colour, words = self._shape(rng, motion, elapsed, scale, background)
            frames += alpha[..., None] * (colour - frames)
            shapes.append(words)
        caption = f"{' and '.join(shapes)} on a {background} background"
        return (frames * 255 + 0.5).clip(0, 255).astype(np.uint8), caption

    def _background(self, rng: np.random.Generator, offset: np.ndarray, num_waves: int = 4) -> tuple[np.ndarray, str]:
        """A colour and a few long waves, shifted by `offset` (T, 2); float32 `(T, H, W, 3)`, and the colour's name."""
        rows = np.arange(self.height) + offset[:, :1]  # (T, H)
        columns = np.arange(self.width) + offset[:, 1:]  # (T, W)
        colour = self._palette_colour(rng) if self.palette else rng.uniform(0.15, 0.85, 3).astype(np.float32)
        frames = np.broadcast_to(colour, (len(offset), self.height, self.width, 3)).copy()
        for _ in range(num_waves):
            frequency = rng.uniform(-1.5, 1.5, 2) * 2 * np.pi / np.array([self.height, self.width])
            phase = rng.uniform(0, 2 * np.pi)
            amplitude = (rng.normal(0, self.contrast / num_waves, 3) * 1.4).astype(np.float32)
            row_wave = np.exp(1j * (frequency[0] * rows + phase)).astype(np.complex64)
            column_wave = np.exp(1j * frequency[1] * columns).astype(np.complex64)
            wave = (row_wave[:, :, None] * column_wave[:, None]).real  # (T, H, W)
            frames += wave[..., None] * amplitude
        return frames, colour_name(colour)

    def _shape(
        self, rng: np.random.Generator, motion: str, elapsed: np.ndarray, scale: float, background: str
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """Coverage `(T, H, W)` in [0, 1] and colour of one shape, and what it is."""
        kind = SHAPES[int(rng.integers(len(SHAPES)))]
        radius = rng.uniform(self.radii[0], self.radii[1]) * scale
        size = np.array([self.height, self.width], dtype=np.float64)
        place = rng.uniform(0.15, 0.85, 2)
        direction = rng.uniform(0, 2 * np.pi)
        speed = {"static": 0.0, "slow": rng.uniform(0.1, 0.5)}.get(
            motion, rng.uniform(self.speeds[0], self.speeds[1])
        ) * scale
        spin = {"static": 0.0, "slow": rng.uniform(-0.03, 0.03)}.get(motion, rng.uniform(-0.05, 0.05) * self.speeds[1])
        colour = self._palette_colour(rng, background) if self.palette else rng.uniform(0, 1, 3).astype(np.float32)

        velocity = speed * np.array([np.sin(direction), np.cos(direction)])
        if self.inside:
            centres = radius + _bounce(*_far_travel(place, size - 2 * radius, elapsed, velocity))  # (T, 2)
        else:
            centres = _bounce(place * size + elapsed[:, None] * velocity, size)
        angles = (rng.uniform(0, 2 * np.pi) + elapsed * spin) * (not self.upright)
        rows = (np.arange(self.height) - centres[:, :1]).astype(np.float32)[:, :, None]  # (T, H, 1)
        columns = (np.arange(self.width) - centres[:, 1:]).astype(np.float32)[:, None]  # (T, 1, W)
        distance = signed_distance(kind, rows, columns, angles.astype(np.float32)[:, None, None], radius)
        size_name = next(name for name, limit in SIZES if radius / min(self.height, self.width) < limit)
        words = f"a {size_name} {colour_name(colour)} {kind} {_motion_words(motion, velocity)}"
        return np.clip(0.5 - distance, 0, 1), colour, words

    def _palette_colour(self, rng: np.random.Generator, without: str | None = None) -> np.ndarray:
        """A colour near one of the palette's, of another name than `without`."""
        names = [name for name in self.colours if name != without]
        colour = COLOURS[names[int(rng.integers(len(names)))]] + rng.uniform(-PALETTE_JITTER, PALETTE_JITTER, 3)
        return colour.clip(0, 1).astype(np.float32)


def signed_distance(
    kind: str, rows: np.ndarray, columns: np.ndarray, angles: np.ndarray, radius: np.ndarray | float
) -> np.ndarray:
    """Distance to the edge of a shape around the origin, negative inside, of points that are turned by its angle."""
    if kind in ("disc", "ring"):
        distance = np.sqrt(rows**2 + columns**2)
        return distance - radius if kind == "disc" else np.abs(distance - 0.75 * radius) - 0.3 * radius
    cos, sin = np.cos(angles), np.sin(angles)
    y, x = cos * rows + sin * columns, cos * columns - sin * rows
    if kind == "triangle":
        side = np.float32(np.sqrt(3) / 2)
        return np.maximum(y, np.maximum(side * x - y / 2, -side * x - y / 2)) - radius / 2
    aspect = 0.85 if kind == "square" else 0.35
    return np.maximum(np.abs(x) - 0.85 * radius, np.abs(y) - aspect * radius)


def colour_name(colour: np.ndarray) -> str:
    """The name of the nearest of the `COLOURS` to an RGB colour in [0, 1]."""
    return min(COLOURS, key=lambda name: float(np.square(np.asarray(colour) - COLOURS[name]).sum()))


def _motion_words(motion: str, velocity: np.ndarray) -> str:
    if motion == "static":
        return "stands still"
    rows, columns = velocity
    if abs(columns) >= abs(rows):
        direction = "to the right" if columns > 0 else "to the left"
    else:
        direction = "down" if rows > 0 else "up"
    manner = {"slow": "moves slowly", "fast": "moves fast", "bursts": "stands still and then moves fast"}[motion]
    return f"{manner} {direction}"


def _activity(rng: np.random.Generator, motion: str, num_frames: int) -> np.ndarray:
    """How much of a frame's motion happens after each frame, `(T,)`."""
    if motion != "bursts":
        return np.ones(num_frames)
    length = min(max(1, round(num_frames * rng.uniform(0.25, 0.4))), num_frames)
    start = int(rng.integers(0, num_frames - length + 1))
    activity = np.zeros(num_frames)
    activity[start : start + length] = 1
    return activity


def _far_travel(
    place: np.ndarray, size: np.ndarray, elapsed: np.ndarray, velocity: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions `(T, 2)` in a frame of `size`, started where they reach a border late or never, and `size`."""
    travel = elapsed[-1] * velocity
    first = np.clip(-travel, 0, size)
    last = np.clip(size - travel, 0, size)
    start = first + (last - first) * (place - 0.15) / 0.7
    return start + elapsed[:, None] * velocity, size


def _bounce(positions: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Reflects positions at the borders 0 and `size`."""
    folded = np.mod(positions, 2 * size)
    return size - np.abs(folded - size)
