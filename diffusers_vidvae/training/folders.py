"""Training clips from folders of videos and images."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F


VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif")


class ClipFolder:
    def __init__(self, folders, num_frames, sample_size, fps=None, min_crop=0.5, holdout=(), cached_side=128):
        self.num_frames, self.sample_size, self.min_crop = num_frames, sample_size, min_crop
        self.videos = []
        for folder in folders:
            root = Path(folder)
            for path in sorted(root.iterdir()) if root.is_dir() else [root]:
                if path.suffix in VIDEO_SUFFIXES and path.name not in holdout:
                    frames = decode(path, cached_side)
                    if len(frames) >= num_frames:
                        self.videos.append(frames)

    def clip(self, rng: np.random.Generator) -> torch.Tensor:
        video = self.videos[int(rng.integers(len(self.videos)))]
        start = int(rng.integers(0, len(video) - self.num_frames + 1))
        window = video[start : start + self.num_frames]
        height, width = window.shape[1:3]
        side = round(min(height, width) * rng.uniform(self.min_crop, 1))
        side = max(side, min(self.sample_size, height, width))
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        crop = torch.from_numpy(window[:, top : top + side, left : left + side]).permute(0, 3, 1, 2)
        size = (self.sample_size, self.sample_size)
        crop = F.interpolate(crop.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return (crop + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def decode(path: Path, side: int) -> np.ndarray:
    frames = []
    with av.open(str(path)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i >= 400:
                break
            scale = side / min(frame.width, frame.height)
            width, height = round(frame.width * scale), round(frame.height * scale)
            frames.append(frame.reformat(width, height, format="rgb24", interpolation="AREA").to_ndarray())
    return np.stack(frames)
