"""Training clips from folders of videos and images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from diffusers_vidvae.media import (
    FrameBatch,
    MediaError,
    MediaWarning,
    VideoReader,
    load_image,
    media_kind,
    read_video,
    resample_frames,
)


# A window is looked for in so many files before the folder is given up.
MAX_ATTEMPTS = 20


@dataclass
class Source:
    """A readable file: its length in frames at the rate of training, and its frames if they are kept in memory."""

    path: Path
    num_frames: int
    frames: np.ndarray | None = None


class ClipFolder:
    r"""Random clips from videos and images; images are clips of one frame.

    Every file is as likely as any other, and so is every window of consecutive frames in it; of that window a random
    square is cut out and resized. Files that cannot be read are skipped and listed in `skipped`.

    Args:
        paths: Folders, searched with their subfolders, or files.
        num_frames: Frames of a clip; shorter files give what they have.
        sample_size: Height and width of a clip, in pixels.
        fps: Frame rate to resample to, by the frames' times; None keeps every file's own.
        min_crop: Side of the smallest square as a fraction of a frame's shorter side. Squares are not smaller than
            `sample_size`, if the frame allows it.
        holdout: File names to leave out.
        cached_side: Keeps all files decoded in memory, with so many pixels on the shorter side at most.

    Raises:
        ValueError: A path does not exist, or no file can be read.
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
    ):
        self.num_frames = num_frames
        self.sample_size = sample_size
        self.fps = fps
        self.min_crop = min_crop
        self.cached_side = cached_side
        self.sources: list[Source] = []
        self.skipped: list[tuple[Path, str]] = []
        for path in media_paths(paths, holdout):
            try:
                self.sources.append(self._open(path))
            except MediaError as error:
                self.skipped.append((path, str(error)))
        names = ", ".join(str(path) for path in paths)
        if not self.sources:
            reason = f"; of {len(self.skipped)} files none can be read, {self.skipped[0][1]}" if self.skipped else ""
            raise ValueError(f"{names}: no video or image to train on{reason}.")
        if self.skipped:
            warnings.warn(
                f"{names}: skipped {len(self.skipped)} of {len(self.skipped) + len(self.sources)} files that cannot be"
                f" read, the first because {self.skipped[0][1]}",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self.sources)

    def clip(self, rng: np.random.Generator) -> torch.Tensor:
        """A random clip, uint8 `(frames, sample_size, sample_size, 3)`, of at most `num_frames` frames.

        Raises:
            ValueError: File after file turns out to be damaged.
        """
        for _ in range(MAX_ATTEMPTS):
            source = self.sources[int(rng.integers(len(self.sources)))]
            start = int(rng.integers(0, max(source.num_frames - self.num_frames, 0) + 1))
            try:
                return self._random_square(self._window(source, start), rng)
            except MediaError as error:
                # Damage behind the first frame shows only now. Another file takes the place of this one.
                if all(path != source.path for path, _ in self.skipped):
                    self.skipped.append((source.path, str(error)))
        raise ValueError(
            f"{MAX_ATTEMPTS} files in turn could not be read where a clip was to start; {self.skipped[-1][1]}"
        )

    def _open(self, path: Path) -> Source:
        if self.cached_side is not None:
            small = self._decode_small(path, self.cached_side)
            return Source(path, len(small), small)
        if media_kind(path) == "image":
            return Source(path, 1)
        with quiet_media(), VideoReader(path) as reader:
            info = reader.info
            if self.fps is not None and info.duration_seconds is not None:
                return Source(path, max(int(info.duration_seconds * self.fps), 1))
            if self.fps is None and info.num_frames is not None:
                return Source(path, info.num_frames)
            frames = iter(reader) if self.fps is None else resample_frames(reader, self.fps)
            return Source(path, sum(1 for _ in frames))

    def _decode_small(self, path: Path, side: int) -> np.ndarray:
        """All frames of a file, with at most `side` pixels on the shorter side."""
        if media_kind(path) == "image":
            return shrink(np.asarray(load_image(path))[None], side)
        with quiet_media(), VideoReader(path) as reader:
            chunks = reader.iter_chunks(16, fps=self.fps)
            return np.concatenate([shrink(chunk.data, side) for chunk in chunks])

    def _window(self, source: Source, start: int) -> np.ndarray:
        """Up to `num_frames` consecutive frames `(T, H, W, 3)` from frame `start` on."""
        if source.frames is not None:
            return source.frames[start : start + self.num_frames]
        if media_kind(source.path) == "image":
            return np.asarray(load_image(source.path))[None]
        with quiet_media():
            if self.fps is None:
                with VideoReader(source.path) as reader:
                    return reader.read(start, start + self.num_frames).data
            return self._resampled_window(source.path, start, self.fps).data[: self.num_frames]

    def _resampled_window(self, path: Path, start: int, fps: float) -> FrameBatch:
        with VideoReader(path) as reader:
            first = reader.info.start_seconds + start / fps
        # One frame more than needed: the first one shown may have begun before the window.
        stop = first + (self.num_frames + 1) / fps
        return read_video(path, fps=fps, start_seconds=first, stop_seconds=stop)[0]

    def _random_square(self, frames: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        height, width = frames.shape[1:3]
        shorter = min(height, width)
        side = round(shorter * rng.uniform(self.min_crop, 1))
        side = min(max(side, self.sample_size), shorter)
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        return resize_frames(frames[:, top : top + side, left : left + side], self.sample_size, self.sample_size)


def media_paths(paths: Sequence[str | Path], holdout: Sequence[str] = ()) -> list[Path]:
    """Files in folders and subfolders, sorted, hidden ones and those named in `holdout` left out."""
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path}: there is no such file or folder.")
        files = _visible_files(path) if path.is_dir() else [path]
        found.extend(file for file in files if file.name not in holdout)
    return found


def _visible_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


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
