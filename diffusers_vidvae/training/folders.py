"""Training clips from videos and images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from diffusers_vidvae.media import FrameBatch, MediaError, MediaWarning, VideoReader, load_image, resample_frames
from diffusers_vidvae.media.inputs import FileInput
from diffusers_vidvae.media.windows import read_window

from .columns import CAPTION
from .located_media import locate_unchanged
from .sources import index_sources


# A window is looked for in so many files before the folder is given up.
MAX_ATTEMPTS = 20


class ClipFolder:
    r"""Random clips from videos and images; images are clips of one frame.

    Every file is as likely as any other, and so is every window of consecutive frames in it; of that window a random
    square is cut out and resized. Files that cannot be read are skipped and listed in `skipped`.

    Args:
        paths: Folders, files, lists of files, tar shards, data sets or indexes; see `index_sources`.
        num_frames: Frames of a clip; shorter files give what they have.
        sample_size: Height and width of a clip, in pixels.
        fps: Frame rate to resample to, by the frames' times; None keeps every file's own.
        min_crop: Side of the smallest square as a fraction of a frame's shorter side. Squares are not smaller than
            `sample_size`, if the frame allows it.
        holdout: File names to leave out.
        cached_side: Keeps all files decoded in memory, with so many pixels on the shorter side at most.
        min_frames: Leaves shorter files out.
        index_file: Where to keep what was found out about the files; see `index_sources`.
        columns: Columns that are carried along with every clip.
        caption_column: The column of captions.

    Raises:
        ValueError: A path does not exist, or no file can be read or is long enough.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        num_frames: int,
        sample_size: int,
        fps: float | None = None,
        min_crop: float = 0.5,
        holdout: Sequence[str] = (),
        cached_side: int | None = None,
        min_frames: int = 1,
        index_file: str | Path | None = None,
        columns: Sequence[str] = (),
        caption_column: str = CAPTION,
    ):
        self.num_frames = num_frames
        self.sample_size = sample_size
        self.fps = fps
        self.min_crop = min_crop
        found = index_sources(paths, index_file, None, columns, caption_column).without(holdout)
        self.skipped: list[tuple[Path, str]] = [(found.path(place), error) for place, error in found.errors.items()]
        names = ", ".join(str(path) for path in paths)
        self.index = found.readable()
        self._check_files(names)
        lengths = self.index.num_frames(fps)
        self.index = self.index.take(np.flatnonzero(lengths >= min_frames))
        if not len(self.index):
            raise ValueError(f"{names}: no video with at least {min_frames} frames.")
        self.lengths = self.index.num_frames(fps)
        self._cached: list[np.ndarray] | None = None
        if cached_side is not None:
            self._cache_files(cached_side)

    def __len__(self) -> int:
        return len(self.index)

    def clip(self, rng: np.random.Generator) -> torch.Tensor:
        """A random clip, uint8 `(frames, sample_size, sample_size, 3)`, of at most `num_frames` frames.

        Raises:
            ValueError: File after file turns out to be damaged.
        """
        return self.clip_and_place(rng)[0]

    def clip_and_place(self, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        """A random clip as `clip` gives it, and the place of its file in the index."""
        for _ in range(MAX_ATTEMPTS):
            place = int(rng.integers(len(self.index)))
            start = int(rng.integers(0, max(int(self.lengths[place]) - self.num_frames, 0) + 1))
            try:
                return self._random_square(self._window(place, start), rng), place
            except MediaError as error:
                # Damage behind the first frame shows only now. Another file takes the place of this one.
                if all(path != self.index.path(place) for path, _ in self.skipped):
                    self.skipped.append((self.index.path(place), str(error)))
        raise ValueError(
            f"{MAX_ATTEMPTS} files in turn could not be read where a clip was to start; {self.skipped[-1][1]}"
        )

    def middle(self, place: int, start: int) -> torch.Tensor:
        """Frames from `start` on of a file, the largest square in the middle, as `clip` gives them.

        Raises:
            MediaError: The file is damaged there.
        """
        frames = self._window(place, start)
        height, width = frames.shape[1:3]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return resize_frames(frames[:, top : top + side, left : left + side], self.sample_size, self.sample_size)

    def _check_files(self, names: str) -> None:
        if not len(self.index):
            reason = f"; of {len(self.skipped)} files none can be read, {self.skipped[0][1]}" if self.skipped else "."
            raise ValueError(f"{names}: no video or image to train on{reason}")
        if self.skipped:
            warnings.warn(
                f"{names}: skipped {len(self.skipped)} of {len(self.skipped) + len(self.index)} files that cannot be"
                f" read, the first because {self.skipped[0][1]}",
                stacklevel=4,
            )

    def _cache_files(self, side: int) -> None:
        """Decodes all files; what they really hold counts from here on."""
        places, self._cached = [], []
        for place in range(len(self.index)):
            try:
                self._cached.append(self._decode_small(place, side))
                places.append(place)
            except MediaError as error:
                self.skipped.append((self.index.path(place), str(error)))
        self.index = self.index.take(np.array(places, dtype=np.int64))
        self.lengths = np.array([len(frames) for frames in self._cached], dtype=np.int64)

    def _decode_small(self, place: int, side: int) -> np.ndarray:
        """All frames of a file, with at most `side` pixels on the shorter side."""
        media = self._media(place)
        if self.index.rows["is_image"][place]:
            return shrink(np.asarray(load_image(media))[None], side)
        with quiet_media(), VideoReader(media) as reader:
            chunks = reader.iter_chunks(16, fps=self.fps)
            return np.concatenate([shrink(chunk.data, side) for chunk in chunks])

    def _media(self, place: int) -> FileInput:
        return locate_unchanged(self.index.paths[place], int(self.index.rows["size"][place]))

    def _window(self, place: int, start: int) -> np.ndarray:
        """Up to `num_frames` consecutive frames `(T, H, W, 3)` from frame `start` on."""
        if self._cached is not None:
            return self._cached[place][start : start + self.num_frames]
        media = self._media(place)
        if self.index.rows["is_image"][place]:
            return np.asarray(load_image(media))[None]
        row = self.index.rows[place]
        begins, own_fps = float(row["start"]), float(row["fps"])
        with quiet_media():
            if self.fps is None:
                # The middle of the frame's time, which rounding does not move into its neighbours.
                time = begins + (start + 0.5) / own_fps if start else begins
                return read_window(media, time, self.num_frames, begins=begins).data
            first = begins + start / self.fps
            # One frame more than needed: the first one shown may have begun before the window.
            batch = read_window(media, first, stop=first + (self.num_frames + 1) / self.fps, begins=begins)
            frames = resample_frames(batch, self.fps)
            return FrameBatch.from_frames(list(frames)).data[: self.num_frames]

    def _random_square(self, frames: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        height, width = frames.shape[1:3]
        shorter = min(height, width)
        side = round(shorter * rng.uniform(self.min_crop, 1))
        side = min(max(side, self.sample_size), shorter)
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        return resize_frames(frames[:, top : top + side, left : left + side], self.sample_size, self.sample_size)


def shrink(frames: np.ndarray, side: int) -> np.ndarray:
    """Scales frames down so that their shorter side has at most `side` pixels."""
    height, width = frames.shape[1:3]
    scale = side / min(height, width)
    return frames if scale >= 1 else resize_frames(frames, round(height * scale), round(width * scale)).numpy()


def resize_frames(frames: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Resizes uint8 frames `(T, H, W, 3)` with antialiasing."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    if pixels.shape[2:] != (height, width):
        pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return (pixels + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@contextmanager
def quiet_media() -> Iterator[None]:
    """Drops what files say about lost alpha or damaged frames: a training reads them over and over."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)
        yield
