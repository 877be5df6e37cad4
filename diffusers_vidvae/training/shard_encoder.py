"""Encodes clips into shards, whole or not at all, with a model that one process or actor holds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_vidvae.autoencoders import open_autoencoder
from diffusers_vidvae.autoencoders.latents_basis import axes_cycle
from diffusers_vidvae.codec import LatentsBasis

from .data import repeat_last_frame
from .latent_shards import ClipSource, write_shard
from .latent_tars import tar_of, write_tar


@dataclass(frozen=True)
class ShardSettings:
    """How shards are written; see `encode_dataset`."""

    output_dir: Path
    batch_size: int = 8
    num_workers: int = 0
    latent_type: str = "fp16"
    max_damaged: float = 0.1
    webdataset: bool = False

    def missing(self, shards: Mapping[str, range]) -> dict[str, range]:
        """Those of the named shards that have to be written."""
        there = {path.name for path in self.output_dir.iterdir()}
        return {
            name: numbers
            for name, numbers in shards.items()
            if name not in there or self.webdataset and tar_of(name) not in there
        }


@dataclass(frozen=True)
class Work:
    """What came of some shards: their damaged clips, by number and error, and seconds of waiting for clips."""

    damaged: list[dict[str, Any]]
    waited: float = 0.0


class ShardEncoder:
    """Puts clips through an autoencoder and writes what comes out."""

    def __init__(self, vae: ModelMixin, settings: ShardSettings):
        self.model = open_autoencoder(vae)
        self.settings = settings
        self.basis, self.cycle = LatentsBasis.from_config(vae.config), axes_cycle(vae)

    @torch.no_grad()
    def encode_shards(self, dataset: ClipSource, shards: Mapping[str, range]) -> Work:
        """Encodes and writes shards that are missing.

        Raises:
            ValueError: More of their clips are damaged than may be, the model does not take them, or the disk is full.
        """
        folder, allowed = self.settings.output_dir, self.settings.max_damaged
        encoded = {name: numbers for name, numbers in shards.items() if not (folder / name).exists()}
        total, work = sum(map(len, encoded.values())), Work([])
        batches = self._batches(dataset, encoded)
        for name in tqdm(shards, desc="Encoding shards", delay=2):
            if name in encoded:
                work = self._encode_shard(name, len(encoded[name]), batches, work)
                check_damaged(work.damaged, total, allowed)
            if self.settings.webdataset:
                write_tar(folder / name)
        return work

    def _batches(self, dataset: ClipSource, shards: Mapping[str, range]) -> Iterator[list[dict[str, Any]]]:
        """Clips of the shards in batches, none of which is of two shards, decoded ahead by loading processes."""
        size, num_workers = self.settings.batch_size, self.settings.num_workers
        numbers = [
            list(shard[start : start + size]) for shard in shards.values() for start in range(0, len(shard), size)
        ]
        loader: DataLoader = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=numbers,
            num_workers=num_workers,
            prefetch_factor=4 if num_workers else None,
            collate_fn=list,
        )
        return iter(loader)

    def _encode_shard(self, name: str, length: int, batches: Iterator[list[dict[str, Any]]], work: Work) -> Work:
        encoded: list[dict[str, Any]] = []
        damaged: list[dict[str, Any]] = []
        waited = 0.0
        for _ in range(-(-length // self.settings.batch_size)):
            before = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - before
            damaged += [{"number": int(clip["draw"]), "error": clip["error"]} for clip in batch if "error" in clip]
            real = [clip for clip in batch if clip["frame_mask"].any()]
            if real:
                captions = [clip.get("caption", "") for clip in real]
                columns = [clip.get("columns", "") for clip in real]
                encoded.append(self._encode(real) | {"captions": captions, "columns": columns})
        path = self.settings.output_dir / name
        write_shard(path, encoded, damaged, self.settings.latent_type, self.basis, self.cycle)
        return replace(work, damaged=work.damaged + damaged, waited=work.waited + waited)

    def _encode(self, clips: list[dict[str, Any]]) -> dict[str, Any]:
        """Posterior of a batch of clips, with a row for each."""
        device = self.model.vae.device
        sample = torch.stack([clip["sample"] for clip in clips]).to(device)
        frame_mask = torch.stack([clip["frame_mask"] for clip in clips]).to(device)
        if self.model.is_a("FrameSelectVAE"):
            posterior, keep_probs, _ = self.model.vae.encode(sample, frame_mask, return_dict=False)
        else:
            self._check_size(sample.shape[2:])
            posterior, keep_probs = self.model.encode(repeat_last_frame(sample, frame_mask))
        # An autoencoder without a posterior has latents without a spread.
        encoded = {"mean": posterior.mode()}
        if hasattr(posterior, "std"):
            encoded["std"] = posterior.std
        if keep_probs is not None:
            encoded["keep_probs"] = keep_probs
        return encoded | {"num_frames": frame_mask.sum(dim=1), "clip_frames": frame_mask.shape[1]}

    def _check_size(self, size: torch.Size) -> None:
        accepted = self.model.geometry.padded_size(*size)
        if accepted != tuple(size):
            raise ValueError(
                f"{self.model.name} takes no clips of {size[0]} frames and {size[1]}x{size[2]} pixels; the next that"
                f" it takes are of {accepted[0]} frames and {accepted[1]}x{accepted[2]} pixels."
            )


def check_damaged(damaged: list[dict[str, Any]], total: int, allowed: float) -> None:
    """Refuses more damaged clips than a share of all."""
    if len(damaged) > allowed * total:
        raise ValueError(
            f"{len(damaged)} of {total} clips cannot be read, more than the {allowed:.0%} that may be; one of them"
            f" because {damaged[-1]['error']}"
        )
