r"""Encoding a data set once, for trainings that read latents instead of pixels.

Clips are decoded ahead by loading processes while the autoencoder encodes. Every shard is written whole or not at all,
and holds the same bytes whichever process wrote it and however many there were; a run that was killed goes on with the
shards that are missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_vidvae.autoencoders import open_autoencoder
from diffusers_vidvae.autoencoders.latents_basis import axes_cycle
from diffusers_vidvae.codec import LatentsBasis
from diffusers_vidvae.files import write_file
from diffusers_vidvae.fingerprints import model_fingerprint

from .coded_latents import coded_quality
from .config import check_range
from .data import repeat_last_frame
from .latent_shards import INDEX_FILE, LATENT_TYPES, ClipSource, channel_statistics, read_json, write_shard


LOCK_FILE = ".encoding"


@dataclass
class EncodingReport:
    """What a process, or all of them together, encoded.

    Args:
        folder: The shards.
        num_clips: Clips in them.
        damaged: Number and error of every clip that could not be read.
        waited: Share of its time that the autoencoder of this process waited for clips; None if all was there.
        seconds: How long this process took.
    """

    folder: Path
    num_clips: int
    damaged: list[dict[str, Any]]
    waited: float | None = None
    seconds: float = 0.0


@torch.no_grad()
def encode_dataset(
    vae: ModelMixin,
    dataset: ClipSource,
    output_dir: str | Path,
    num_clips: int,
    shard_size: int = 512,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    num_workers: int = 0,
    latent_type: str = "fp16",
    max_damaged: float = 0.1,
) -> EncodingReport:
    r"""Encodes items 0 to `num_clips` of a data set into shards; see `latent_shards` for what these hold.

    Args:
        vae: A `FrameSelectVAE`, an `AutoencoderKL3D` or any autoencoder of diffusers.
        dataset: A `ClipDataset`, an `EveryWindow`, or another map from numbers to `"sample"` and `"frame_mask"` that
            has a `fingerprint()`.
        output_dir: Folder of the shards; may hold shards of this autoencoder, these settings and this data only.
        num_clips: Number of clips.
        shard_size: Clips of a shard.
        batch_size: Clips encoded at once.
        accelerator: Splits the shards over its processes.
        num_workers: Loading processes of each of them, which decode ahead; 0 decodes and encodes in turn.
        latent_type: `"fp16"`, `"bf16"`, `"fp32"`, `"int8"`, or `"coded:QUALITY"` with a quality from 0 to 100 for the
            coder of `.fsv` files; `"coded"` has quality 50. Coded clips have one deviation for each channel.
        max_damaged: Share of the clips that may be damaged.

    Raises:
        ValueError: A count is below 1, the model does not take such clips, too many clips are damaged, the folder
            holds other latents, or somebody else is encoding into it.
    """
    _check_counts(num_clips, shard_size, batch_size, num_workers, latent_type)
    accelerator = accelerator or Accelerator(cpu=not torch.accelerator.is_available())
    output_dir = Path(output_dir)
    description: dict[str, Any] = {
        "vae": model_fingerprint(vae),
        "data": dataset.fingerprint(),
        "latent_type": latent_type,
        "num_clips": num_clips,
        "shard_size": shard_size,
    }
    index = _matching_index(output_dir, description)
    if index["complete"]:
        return EncodingReport(output_dir, sum(index["counts"]), index["damaged"])
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        _write_json(output_dir / INDEX_FILE, index)
    accelerator.wait_for_everyone()

    with only_encoder(output_dir, accelerator):
        started = time.monotonic()
        shards = _shards(num_clips, shard_size)
        missing = [name for name in shards if not (output_dir / name).exists()]
        accelerator.wait_for_everyone()  # everyone has looked before anyone writes
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        device = accelerator.device if accelerator.num_processes > 1 else vae.device
        encoder = _Encoder(vae.to(device).eval(), latent_type)
        waited = encoder.encode_shards(
            dataset, output_dir, {name: shards[name] for name in mine}, batch_size, num_workers, max_damaged
        )
        seconds = time.monotonic() - started
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _finish(output_dir, description, list(shards), max_damaged)
        accelerator.wait_for_everyone()
    index = _matching_index(output_dir, description)
    share = waited / seconds if mine else None
    return EncodingReport(output_dir, sum(index["counts"]), index["damaged"], share, seconds)


class _Encoder:
    """Puts clips through an autoencoder and writes what comes out."""

    def __init__(self, vae: ModelMixin, latent_type: str):
        self.model = open_autoencoder(vae)
        self.latent_type = latent_type
        self.basis, self.cycle = LatentsBasis.from_config(vae.config), axes_cycle(vae)

    def encode_shards(
        self,
        dataset: ClipSource,
        output_dir: Path,
        shards: dict[str, range],
        batch_size: int,
        num_workers: int,
        max_damaged: float,
    ) -> float:
        """Encodes and writes shards; returns the seconds that were spent waiting for clips."""
        total, num_damaged = sum(map(len, shards.values())), 0
        batches = [
            list(numbers[start : start + batch_size])
            for numbers in shards.values()
            for start in range(0, len(numbers), batch_size)
        ]
        loader: DataLoader = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=batches,
            num_workers=num_workers,
            prefetch_factor=4 if num_workers else None,
            collate_fn=list,
        )
        clips, waited = iter(loader), 0.0
        for name, numbers in tqdm(shards.items(), desc="Encoding shards", delay=2):
            encoded: list[dict[str, Any]] = []
            damaged: list[dict[str, Any]] = []
            for _ in range(-(-len(numbers) // batch_size)):
                before = time.monotonic()
                batch = next(clips)
                waited += time.monotonic() - before
                real = [clip for clip in batch if clip["frame_mask"].any()]
                damaged += [{"number": int(clip["draw"]), "error": clip["error"]} for clip in batch if "error" in clip]
                if real:
                    captions = [clip.get("caption", "") for clip in real]
                    columns = [clip.get("columns", "") for clip in real]
                    encoded.append(self._encode(real) | {"captions": captions, "columns": columns})
            num_damaged += len(damaged)
            _check_damaged(num_damaged, total, max_damaged, damaged)
            write_shard(output_dir / name, encoded, damaged, self.latent_type, self.basis, self.cycle)
        return waited

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


def _check_counts(num_clips: int, shard_size: int, batch_size: int, num_workers: int, latent_type: str) -> None:
    if num_clips < 1 or shard_size < 1 or batch_size < 1:
        raise ValueError(
            f"`num_clips`, `shard_size` and `batch_size` must be at least 1, got {num_clips}, {shard_size} and"
            f" {batch_size}."
        )
    check_range("num_workers", num_workers, 0)
    if latent_type not in LATENT_TYPES and coded_quality(latent_type) is None:
        raise ValueError(
            f"`latent_type` must be one of {', '.join(LATENT_TYPES)}, coded or coded:QUALITY, got {latent_type!r}."
        )


def _shards(num_clips: int, shard_size: int) -> dict[str, range]:
    """Name of every shard and the numbers of its clips."""
    return {
        f"latents-{number:05d}.safetensors": range(start, min(start + shard_size, num_clips))
        for number, start in enumerate(range(0, num_clips, shard_size))
    }


# What the fields of a description are called in sentences.
_FIELDS = {
    "vae": "another autoencoder",
    "data": "other data or settings of clips",
    "latent_type": "another type",
    "num_clips": "another number of clips",
    "shard_size": "another shard size",
}


def _matching_index(output_dir: Path, description: dict[str, Any]) -> dict[str, Any]:
    """What a folder's index says, or what that of a new one would.

    Raises:
        ValueError: The folder holds something else.
    """
    path = output_dir / INDEX_FILE
    if not path.is_file():
        return description | {"complete": False}
    found = read_json(path)
    for name, value in description.items():
        if found.get(name, "fp16" if name == "latent_type" else None) != value:
            raise ValueError(
                f"{output_dir}: holds latents of {_FIELDS[name]} ({name} is {found.get(name)}, not {value}); give"
                " another folder, or the settings it was encoded with."
            )
    if found["complete"]:
        found.setdefault("counts", [len(numbers) for numbers in _shards(**_counts(description)).values()])
        found.setdefault("damaged", [])
    return found


def _counts(description: dict[str, Any]) -> dict[str, int]:
    return {name: description[name] for name in ("num_clips", "shard_size")}


def _finish(output_dir: Path, description: dict[str, Any], shards: list[str], max_damaged: float) -> None:
    """Writes the index of a folder whose shards are all there."""
    summary = channel_statistics([output_dir / name for name in shards])
    damaged, num_clips = summary["damaged"], description["num_clips"]
    _check_damaged(len(damaged), num_clips, max_damaged, damaged)
    _write_json(output_dir / INDEX_FILE, description | {"complete": True, "shards": shards} | summary)


def _check_damaged(count: int, total: int, allowed: float, damaged: list[dict[str, Any]]) -> None:
    if count > allowed * total:
        raise ValueError(
            f"{count} of {total} clips cannot be read, more than the {allowed:.0%} that may be; one of them because"
            f" {damaged[-1]['error']}"
        )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_file(path, json.dumps(values, indent=2), overwrite=True)


@contextmanager
def only_encoder(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Keeps others from encoding into a folder for a while. A lock of a killed run ends with it.

    Raises:
        ValueError: Somebody else is at it.
    """
    try:
        import fcntl
    except ImportError:  # where the system has no such locks
        yield
        return
    if not accelerator.is_main_process:
        yield
        return
    with open(folder / LOCK_FILE, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another run is encoding into this folder.") from error
        yield
