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

from diffusers_vidvae.files import write_file
from diffusers_vidvae.fingerprints import model_fingerprint

from .coded_latents import coded_quality
from .config import check_range
from .latent_shards import INDEX_FILE, LATENT_TYPES, ClipSource, channel_statistics, read_json
from .shard_encoder import ShardEncoder, ShardSettings, check_damaged


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
    webdataset: bool = False,
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
        webdataset: Writes every shard as a tar file, too, which `webdataset` reads; see `latent_tars`.

    Raises:
        ValueError: A count is below 1, the model does not take such clips, too many clips are damaged, the folder
            holds other latents, or somebody else is encoding into it.
    """
    settings = ShardSettings(Path(output_dir), batch_size, num_workers, latent_type, max_damaged, webdataset)
    job = EncodingJob(vae, dataset, num_clips, shard_size, settings)
    accelerator = accelerator or Accelerator(cpu=not torch.accelerator.is_available())
    if job.is_finished():
        return job.report()
    if accelerator.is_main_process:
        job.begin()
    accelerator.wait_for_everyone()

    with only_encoder(settings.output_dir, accelerator):
        started = time.monotonic()
        missing = list(job.missing().items())
        accelerator.wait_for_everyone()  # everyone has looked before anyone writes
        mine = dict(missing[accelerator.process_index :: accelerator.num_processes])
        device = accelerator.device if accelerator.num_processes > 1 else vae.device
        work = ShardEncoder(vae.to(device).eval(), settings).encode_shards(dataset, mine)
        seconds = time.monotonic() - started
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            job.finish()
        accelerator.wait_for_everyone()
    return job.report(work.waited / seconds if mine else None, seconds)


class EncodingJob:
    """A folder of shards that is to be written, or finished.

    Args:
        vae, dataset, num_clips, shard_size: See `encode_dataset`.
        settings: How the shards are written.

    Raises:
        ValueError: A count is below 1, or the folder holds other latents.
    """

    def __init__(self, vae: ModelMixin, dataset: ClipSource, num_clips: int, shard_size: int, settings: ShardSettings):
        _check_counts(num_clips, shard_size, settings)
        self.settings = settings
        self.shards = _shards(num_clips, shard_size)
        self.description: dict[str, Any] = {
            "vae": model_fingerprint(vae),
            "data": dataset.fingerprint(),
            "latent_type": settings.latent_type,
            "num_clips": num_clips,
            "shard_size": shard_size,
        }
        self._index()

    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self._index()["complete"] and not (self.settings.webdataset and self.missing())

    def begin(self) -> None:
        """Makes the folder, with an index that says whose shards it is for."""
        self.settings.output_dir.mkdir(parents=True, exist_ok=True)
        _write_json(self.settings.output_dir / INDEX_FILE, self._index())

    def missing(self) -> dict[str, range]:
        """Shards that have to be written, and the numbers of their clips."""
        return self.settings.missing(self.shards)

    def finish(self) -> None:
        """Completes the index of a folder whose shards are all there.

        Raises:
            ValueError: A shard is not whole, or too many clips are damaged.
        """
        folder = self.settings.output_dir
        for half in folder.glob(".*.tmp.*"):  # left by what was killed
            half.unlink()
        summary = channel_statistics([folder / name for name in self.shards])
        check_damaged(summary["damaged"], self.description["num_clips"], self.settings.max_damaged)
        index = self.description | {"complete": True, "shards": list(self.shards)} | summary
        _write_json(folder / INDEX_FILE, index)

    def report(self, waited: float | None = None, seconds: float = 0.0) -> EncodingReport:
        """What is in a finished folder."""
        index = self._index()
        return EncodingReport(self.settings.output_dir, sum(index["counts"]), index["damaged"], waited, seconds)

    def _index(self) -> dict[str, Any]:
        return _matching_index(self.settings.output_dir, self.description)


def _check_counts(num_clips: int, shard_size: int, settings: ShardSettings) -> None:
    if num_clips < 1 or shard_size < 1 or settings.batch_size < 1:
        raise ValueError(
            f"`num_clips`, `shard_size` and `batch_size` must be at least 1, got {num_clips}, {shard_size} and"
            f" {settings.batch_size}."
        )
    check_range("num_workers", settings.num_workers, 0)
    latent_type = settings.latent_type
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
