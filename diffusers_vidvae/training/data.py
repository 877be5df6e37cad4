"""Training clips by number: the procedural set and folders of media, mixed and augmented."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from diffusers_vidvae.media import MediaError

from .config import DataConfig
from .draws import ShuffledOrder, numpy_generator
from .folders import ClipFolder
from .procedural import ProceduralClips


# Counts up when draws of the same configuration become other clips.
RECIPE_VERSION = 1

# What does not change a draw, or is covered by the fingerprint of the files.
_BESIDE_DRAWS = ("folders", "holdout", "index", "columns", "caption_column", "validation_folders", "num_workers")


class ClipDataset(Dataset):
    r"""Clips for a training, by draw.

    An item is a dictionary: `"sample"`, float32 `(3, frames, height, width)` in [-1, 1]; `"frame_mask"`, bool
    `(frames,)`, False for the padding of clips that are too short; `"draw"`; and, if asked for, `"caption"` and the
    `"columns"`, as JSON.

    Args:
        config: What the clips are made of.
        seed: Seed of order, crops and flips.

    Raises:
        ValueError: A folder does not exist or holds nothing readable.
    """

    def __init__(self, config: DataConfig, seed: int = 0):
        self.config = config
        self.seed = seed
        self.procedural = procedural_clips(config)
        self.order = ShuffledOrder(len(self.procedural), seed)
        self.folder: ClipFolder | None = None
        if config.procedural_share < 1:
            self.folder = ClipFolder(
                config.folders,
                config.num_frames,
                config.sample_size,
                fps=config.fps,
                min_crop=config.min_crop,
                holdout=config.holdout,
                cached_side=config.cached_side,
                index_file=config.index,
                columns=config.columns,
                caption_column=config.caption_column,
            )

    def fingerprint(self) -> str:
        """Digest of all that decides what a draw gives: seed, content of the files, settings other than the usual."""
        usual = asdict(DataConfig())
        settings = {
            name: value
            for name, value in asdict(self.config).items()
            if name not in _BESIDE_DRAWS and value != usual[name]
        }
        settings |= {"seed": self.seed, "recipe": RECIPE_VERSION}
        settings["files"] = None if self.folder is None else self.folder.index.fingerprint()
        return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def __getitem__(self, draw: int) -> dict[str, Any]:
        rng = numpy_generator(self.seed, draw)
        if self.folder is None or rng.random() < self.config.procedural_share:
            pixels, caption = self.procedural.with_caption(self.order[draw])  # (T, H, W, 3)
            frames, columns = torch.from_numpy(pixels), ""
        else:
            frames, place = self.folder.clip_and_place(rng)
            caption, columns = self.folder.index.captions[place], self.folder.index.columns[place]
        frames = self._augment(frames, rng)
        sample, frame_mask = padded_and_masked(to_model_range(frames), self.config.num_frames)
        item: dict[str, Any] = {"sample": sample, "frame_mask": frame_mask, "draw": torch.tensor(draw)}
        item |= {"caption": caption} if self.config.captions else {}
        return item | ({"columns": columns} if self.config.columns else {})

    def _augment(self, frames: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        flip, reverse, channels = rng.random() < 0.5, rng.random() < 0.5, rng.permutation(3)
        if self.config.horizontal_flip and flip:
            frames = frames.flip(2)
        if self.config.time_reversal and reverse:
            frames = frames.flip(0)
        if self.config.channel_shuffle:
            frames = frames[..., torch.from_numpy(channels)]
        return frames


class EveryWindow(Dataset):
    r"""Every file once, cut into windows that follow each other; what is left at a file's end is a shorter clip.

    An item is as that of `ClipDataset`, of the middle square of the frames and not changed otherwise. A window that
    cannot be read has no real frame, and the reason under `"error"`.

    Args:
        config: Files, length, size and rate of the clips; the rest does not matter.

    Raises:
        ValueError: A folder does not exist or holds nothing readable.
    """

    def __init__(self, config: DataConfig):
        self.config = config
        self.folder = ClipFolder(
            config.folders,
            config.num_frames,
            config.sample_size,
            fps=config.fps,
            holdout=config.holdout,
            index_file=config.index,
            columns=config.columns,
            caption_column=config.caption_column,
        )
        windows = -(-self.folder.lengths // config.num_frames)
        self.ends = np.cumsum(windows)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, number: int) -> dict[str, Any]:
        config = self.config
        place = int(np.searchsorted(self.ends, number, side="right"))
        windows_before = int(self.ends[place - 1]) if place else 0
        item: dict[str, Any] = {"draw": torch.tensor(number)}
        try:
            frames = self.folder.middle(place, (number - windows_before) * config.num_frames)
        except MediaError as error:
            frames = torch.zeros(0, config.sample_size, config.sample_size, 3, dtype=torch.uint8)
            item["error"] = str(error)
        item["sample"], item["frame_mask"] = padded_and_masked(to_model_range(frames), config.num_frames)
        index = self.folder.index
        return item | {"caption": index.captions[place], "columns": index.columns[place]}

    def fingerprint(self) -> str:
        """Digest of all that decides what an item is."""
        settings = {name: getattr(self.config, name) for name in ("num_frames", "sample_size", "fps")}
        settings |= {"recipe": RECIPE_VERSION, "files": self.folder.index.fingerprint(), "windows": "every"}
        return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def procedural_clips(config: DataConfig, seed_offset: int = 0) -> ProceduralClips:
    """The procedural set of a configuration; another `seed_offset` gives clips that training never sees."""
    return ProceduralClips(
        config.num_procedural_clips,
        num_frames=config.num_frames,
        height=config.sample_size,
        width=config.sample_size,
        seed=config.procedural_seed + seed_offset,
        max_shapes=config.procedural_max_shapes,
        contrast=config.procedural_contrast,
        motions=tuple(config.procedural_motions),
        palette=config.procedural_palette,
        radii=tuple(config.procedural_radii),
        speeds=tuple(config.procedural_speeds),
        colours=tuple(config.procedural_colours),
        upright=config.procedural_upright,
        inside=config.procedural_inside,
    )


class HeldOutClips:
    r"""The clips of every validation: always the same ones.

    They are of `validation_folders`, or procedural ones that training never sees, the kinds of motion in turn.

    Raises:
        ValueError: No validation video is long enough.
    """

    def __init__(self, config: DataConfig):
        self.procedural = procedural_clips(config, seed_offset=1)
        self.folder: ClipFolder | None = None
        if config.validation_folders:
            self.folder = ClipFolder(
                config.validation_folders,
                config.num_frames,
                config.sample_size,
                fps=config.fps,
                min_crop=config.min_crop,
                min_frames=config.num_frames,
            )

    def first(self, count: int) -> torch.Tensor:
        """Float32 `(count, 3, frames, height, width)` in [-1, 1]."""
        if self.folder is None:
            return stack_clips(self.procedural, range(min(count, len(self.procedural))))
        return torch.stack([to_model_range(self.folder.clip(np.random.default_rng(i))) for i in range(count)])


def stack_clips(clips: ProceduralClips, indices: Iterable[int]) -> torch.Tensor:
    """Procedural clips as float32 `(clips, 3, frames, height, width)` in [-1, 1]."""
    return torch.stack([to_model_range(torch.from_numpy(clips[i])) for i in indices])


def to_model_range(frames: torch.Tensor) -> torch.Tensor:
    """uint8 `(frames, height, width, 3)` to float32 `(3, frames, height, width)` in [-1, 1]."""
    return frames.permute(3, 0, 1, 2).float() / 127.5 - 1


def padded_and_masked(sample: torch.Tensor, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`(channels, frames, height, width)` with zeros up to `num_frames`, and a mask of the frames before these."""
    length = sample.shape[1]
    padded = sample.new_zeros(sample.shape[0], num_frames, *sample.shape[2:])
    padded[:, :length] = sample
    return padded, torch.arange(num_frames) < length


def repeat_last_frame(sample: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
    """Replaces the padding of clips by their last real frame, as the model itself pads."""
    last = frame_mask.sum(dim=1, keepdim=True) - 1
    index = torch.minimum(torch.arange(sample.shape[2], device=sample.device)[None], last)  # (B, T)
    return sample.gather(2, index[:, None, :, None, None].expand_as(sample))


def whole_clips(dataset: ClipDataset, count: int) -> list[torch.Tensor]:
    """Those of the first draws that fill all frames, `(3, frames, height, width)` in [-1, 1]."""
    items = (dataset[draw] for draw in range(count))
    return [item["sample"] for item in items if item["frame_mask"].all()]
