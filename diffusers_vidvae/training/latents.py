"""Latents of a data set, encoded once and stored in shards, for training GapDiT.

A shard is a safetensors file with the posterior's `mean` and `std`, `(clips, channels, frames, height, width)` in
float16, the `keep_probs` `(clips, frames)` in float32 and the clips' `num_frames`; if clips have captions, also these.
Posterior noise and the choice of
frames are drawn anew whenever a clip is visited. `index.json` describes the set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset, Sampler
from tqdm.auto import tqdm

from diffusers_vidvae.files import atomic_path, write_file
from diffusers_vidvae.fingerprints import model_fingerprint
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE

from .draws import BucketSampler, DrawSampler, ShuffledOrder


INDEX_FILE = "index.json"


class ClipSource(Protocol):
    """A map from draws to clips that can say which clips these are."""

    def __getitem__(self, draw: int) -> dict[str, Any]: ...

    def fingerprint(self) -> str: ...


@torch.no_grad()
def encode_dataset(
    vae: FrameSelectVAE,
    dataset: ClipSource,
    output_dir: str | Path,
    num_clips: int,
    shard_size: int = 512,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
) -> Path:
    r"""Encodes draws 0 to `num_clips` of a data set into shards.

    Processes share the shards, whose contents do not depend on how many there are. Shards that exist are not encoded
    again, so an interrupted run continues where it was.

    Args:
        vae: The autoencoder.
        dataset: A `ClipDataset`, or another map from draws to `"sample"` and `"frame_mask"` that has a
            `fingerprint()`.
        output_dir: Folder of the shards; may hold shards of this autoencoder and this data set only.
        num_clips: Number of clips.
        shard_size: Clips of a shard.
        batch_size: Clips encoded at once.
        accelerator: Splits the work over its processes.

    Returns:
        The folder.

    Raises:
        ValueError: A count is below 1, or the folder holds latents of another autoencoder, of other data or of other
            counts.
    """
    if num_clips < 1 or shard_size < 1 or batch_size < 1:
        raise ValueError(
            f"`num_clips`, `shard_size` and `batch_size` must be at least 1, got {num_clips}, {shard_size} and"
            f" {batch_size}."
        )
    accelerator = accelerator or Accelerator()
    output_dir = Path(output_dir)
    description = {"vae": model_fingerprint(vae), "data": dataset.fingerprint()}
    description |= {"num_clips": num_clips, "shard_size": shard_size}
    if _is_complete(output_dir, description):
        return output_dir
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        _write_json(output_dir / INDEX_FILE, description | {"complete": False})
    accelerator.wait_for_everyone()

    vae = vae.to(accelerator.device).eval()
    starts = range(0, num_clips, shard_size)
    mine = list(enumerate(starts))[accelerator.process_index :: accelerator.num_processes]
    for number, start in tqdm(mine, desc="Encoding shards", disable=not accelerator.is_main_process):
        path = output_dir / f"latents-{number:05d}.safetensors"
        if not path.exists():
            _encode_shard(vae, dataset, path, range(start, min(start + shard_size, num_clips)), batch_size)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shards = [f"latents-{number:05d}.safetensors" for number in range(len(starts))]
        mean, std = _channel_statistics([output_dir / name for name in shards])
        index = description | {"complete": True, "shards": shards, "latents_mean": mean, "latents_std": std}
        _write_json(output_dir / INDEX_FILE, index)
    accelerator.wait_for_everyone()
    return output_dir


def _encode_shard(vae: FrameSelectVAE, dataset: ClipSource, path: Path, draws: range, batch_size: int) -> None:
    parts: dict[str, list[torch.Tensor]] = {"mean": [], "std": [], "keep_probs": [], "num_frames": []}
    captions: list[str] = []
    for start in range(draws.start, draws.stop, batch_size):
        clips = [dataset[draw] for draw in range(start, min(start + batch_size, draws.stop))]
        sample = torch.stack([clip["sample"] for clip in clips]).to(vae.device)
        frame_mask = torch.stack([clip["frame_mask"] for clip in clips]).to(vae.device)
        posterior, keep_probs, _ = vae.encode(sample, frame_mask, return_dict=False)
        parts["mean"].append(posterior.mean.half().cpu())
        parts["std"].append(posterior.std.half().cpu())
        parts["keep_probs"].append(keep_probs.float().cpu())
        parts["num_frames"].append(frame_mask.sum(dim=1).cpu())
        captions += [clip.get("caption", "") for clip in clips]
    with atomic_path(path) as temporary:
        tensors = {name: torch.cat(values).contiguous() for name, values in parts.items()}
        save_file(tensors | (pack_captions(captions) if any(captions) else {}), temporary)


def pack_captions(captions: Sequence[str]) -> dict[str, torch.Tensor]:
    """Strings as tensors: their UTF-8 bytes one after the other, and where each ends."""
    encoded = [caption.encode() for caption in captions]
    ends = torch.tensor([len(caption) for caption in encoded], dtype=torch.int64).cumsum(0)
    return {"captions": torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8), "caption_ends": ends}


def _channel_statistics(paths: list[Path]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of latents drawn from the posteriors, per channel, over real frames."""
    total, squares, count = torch.zeros(1), torch.zeros(1), 0
    for path in paths:
        with safe_open(path, framework="pt") as shard:
            mean, std = shard.get_tensor("mean").double(), shard.get_tensor("std").double()
            real = torch.arange(mean.shape[2]) < shard.get_tensor("num_frames")[:, None]  # (B, T)
        real = real[:, None, :, None, None]
        total = total + (mean * real).sum(dim=(0, 2, 3, 4))
        squares = squares + ((mean.square() + std.square()) * real).sum(dim=(0, 2, 3, 4))
        count += int(real.sum()) * mean.shape[3] * mean.shape[4]
    average = total / count
    deviation = (squares / count - average.square()).clamp(min=1e-12).sqrt()
    return average.tolist(), deviation.tolist()


def _kept_counts(path: Path) -> torch.Tensor:
    """Expected number of kept frames of every clip of a shard."""
    with safe_open(path, framework="pt") as shard:
        probs, num_frames = shard.get_tensor("keep_probs"), shard.get_tensor("num_frames")
    real = torch.arange(probs.shape[1]) < num_frames[:, None]
    return (probs * real).sum(dim=1).round().clamp(min=1).to(torch.int32)


# What the fields of a description are called in sentences.
_FIELDS = {
    "vae": "another autoencoder",
    "data": "other data or settings of clips",
    "num_clips": "another number of clips",
    "shard_size": "another shard size",
}


def _is_complete(output_dir: Path, description: dict[str, Any]) -> bool:
    """Whether a folder holds just what is described, from first to last.

    Raises:
        ValueError: It holds something else.
    """
    path = output_dir / INDEX_FILE
    if not path.is_file():
        return False
    found = json.loads(path.read_text())
    for name, value in description.items():
        if found.get(name) != value:
            raise ValueError(
                f"{output_dir}: holds latents of {_FIELDS[name]} ({name} is {found.get(name)}, not {value}); give"
                " another folder, or the settings it was encoded with."
            )
    return bool(found["complete"])


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_file(path, json.dumps(values, indent=2), overwrite=True)


class LatentDataset(Dataset):
    r"""Encoded clips, by draw: `"mean"` and `"std"` of the posterior, `"keep_probs"`, `"frame_mask"` and `"draw"`.

    `latents_mean` and `latents_std` are the statistics of each channel over the whole set.

    Args:
        folder: What `encode_dataset` wrote.
        seed: Seed of the order.
        vae: If given, must be the autoencoder that encoded the set.
        sorted_batches: Batches that are sorted together by the number of kept frames; 1 leaves draws in their order.

    Raises:
        ValueError: There is no index, or the set is incomplete or was encoded by another autoencoder.
    """

    def __init__(self, folder: str | Path, seed: int = 0, vae: FrameSelectVAE | None = None, sorted_batches: int = 1):
        self.folder = Path(folder)
        path = self.folder / INDEX_FILE
        if not path.is_file():
            raise ValueError(f"{self.folder}: holds no {INDEX_FILE}; write it with `vidvae encode-dataset`.")
        index = json.loads(path.read_text())
        if not index["complete"]:
            raise ValueError(f"{self.folder}: is incomplete; run `vidvae encode-dataset` again to finish it.")
        if vae is not None and index["vae"] != model_fingerprint(vae):
            raise ValueError(f"{self.folder}: was encoded by another autoencoder than the one given.")
        self.latents_mean: list[float] = index["latents_mean"]
        self.latents_std: list[float] = index["latents_std"]
        self.shard_size = index["shard_size"]
        self.shards = [self.folder / name for name in index["shards"]]
        self.seed = seed
        self.order = ShuffledOrder(index["num_clips"], seed)
        self.sorted_batches = sorted_batches
        self._kept_counts: torch.Tensor | None = None
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.order.length

    def __getitem__(self, draw: int) -> dict[str, torch.Tensor]:
        return self.clip(self.order[draw]) | {"draw": torch.tensor(draw)}

    def sampler(self, batch_size: int, rank: int, num_processes: int, first_batch: int) -> Sampler[int]:
        """The draws of a process; see `DrawSampler`."""
        place = {"rank": rank, "num_processes": num_processes, "first_batch": first_batch}
        if self.sorted_batches == 1:
            return DrawSampler(batch_size, **place)
        return BucketSampler(self.expected_kept, self.sorted_batches, self.seed, batch_size, **place)

    def expected_kept(self, draw: int) -> int:
        """Frames of a draw that systematic selection keeps, and others about as many."""
        if self._kept_counts is None:
            self._kept_counts = torch.cat([_kept_counts(path) for path in self.shards])
        return int(self._kept_counts[self.order[draw]])

    def clip(self, index: int) -> dict[str, Any]:
        """An encoded clip by its place in the set."""
        number, row = divmod(index, self.shard_size)
        shard = self._shard(number)
        values = {name: shard.get_slice(name)[row] for name in ("mean", "std", "keep_probs", "num_frames")}
        frame_mask = torch.arange(len(values["keep_probs"])) < values.pop("num_frames")
        return {name: value.float() for name, value in values.items()} | {"frame_mask": frame_mask}

    def caption(self, index: int) -> str:
        """Caption of a clip by its place in the set; empty where there is none."""
        number, row = divmod(index, self.shard_size)
        shard = self._shard(number)
        if "captions" not in shard.keys():  # noqa: SIM118
            return ""
        ends = shard.get_slice("caption_ends")
        start, stop = (int(ends[row - 1]) if row else 0), int(ends[row])
        return bytes(shard.get_slice("captions")[start:stop].numpy()).decode()

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            self._open[number] = safe_open(self.shards[number], framework="pt")
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        """Open files do not travel to loading workers."""
        return self.__dict__ | {"_open": {}}
