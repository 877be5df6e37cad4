r"""Latents of a data set in shards, as `encode_dataset` writes them and trainings read them.

A shard is a safetensors file with a row for every clip: the posterior's `mean` and `std`, `(clips, channels, frames,
height, width)`, in float16, bfloat16 or float32; the number of real frames, `num_frames`; of models that select
frames the `keep_probs`, `(clips, frames)`; and captions and other columns of the data set, if there are some. Of type
int8, `mean` and `std` are uint8 codes with `mean_scales` and `std_scales`, `(clips, channels, 2)`, so that
`value = offset + scale * code`, as in a `.fsv` file. Of type coded, `coded` holds the bytes that the coder of `.fsv`
files makes of each clip's mean, and `std` one value for every clip and channel. Posterior noise and the choice of
frames are drawn anew whenever a clip is visited. `index.json` describes the set.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils.data import Dataset, Sampler

from diffusers_vidvae.codec import AxesCycle, LatentsBasis
from diffusers_vidvae.codec.quantization import quantize
from diffusers_vidvae.files import write_file
from diffusers_vidvae.fingerprints import model_fingerprint

from .coded_latents import code_clips, coded_quality, decode_clip, read_coding
from .draws import BucketSampler, DrawSampler, ShuffledOrder


INDEX_FILE = "index.json"

# Beside these there are "coded" and "coded:QUALITY".
LATENT_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.uint8}

# Strings of clips, and where each of them ends.
TEXTS = {"captions": "caption_ends", "columns": "column_ends"}


class ClipSource(Protocol):
    """A map from numbers to clips that can say which clips these are."""

    def __getitem__(self, number: int) -> dict[str, Any]: ...

    def fingerprint(self) -> str: ...


# Writing


def write_shard(
    path: Path,
    batches: list[dict[str, Any]],
    damaged: list[dict[str, Any]],
    latent_type: str,
    basis: LatentsBasis | None = None,
    cycle: AxesCycle | None = None,
) -> None:
    """Writes encoded batches as one file, whole or not at all; a shard of damaged clips alone has no tensors.

    Coded latents take the axes of the model's `basis`, or its channels as they are with the turns of `cycle`.
    """
    tensors: dict[str, torch.Tensor] = {}
    quality = coded_quality(latent_type)
    about: dict[str, Any] = {"clip_frames": batches[0]["clip_frames"] if batches else 0, "damaged": damaged}
    beside = ("captions", "columns", "clip_frames")
    for name in [name for name in (batches[0] if batches else {}) if name not in beside]:
        values = torch.cat([batch[name].cpu() for batch in batches])
        if quality is not None and name == "mean":
            coded, about["coding"] = code_clips(values, quality, basis, cycle)
            tensors |= coded
        elif quality is not None and name == "std":
            tensors[name] = values.float().mean(dim=(2, 3, 4), keepdim=True)
        else:
            tensors |= _stored(name, values, latent_type) if name in ("mean", "std") else {name: values}
    if "keep_probs" in tensors:
        tensors["keep_probs"] = tensors["keep_probs"].float()
    for name, ends in TEXTS.items():
        texts = [text for batch in batches for text in batch[name]]
        tensors |= pack_texts(texts, name, ends) if any(texts) else {}
    contiguous = {name: values.contiguous() for name, values in tensors.items()}
    # One entry, since safetensors writes several in any order.
    write_file(path, save(contiguous, {"about": json.dumps(about)}))


def _stored(name: str, values: torch.Tensor, latent_type: str) -> dict[str, torch.Tensor]:
    if latent_type != "int8":
        return {name: values.to(LATENT_TYPES[latent_type])}
    coded = [quantize(clip, "int8") for clip in values]
    codes = torch.stack([clip.codes.transpose(0, 1) for clip in coded])
    return {name: codes, f"{name}_scales": torch.stack([clip.scales for clip in coded if clip.scales is not None])}


def _restored(values: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """Float32 values of stored ones, `(..., channels, frames, height, width)`."""
    if scales is None:
        return values.float()
    scale, offset = scales[..., None, None, None, :].unbind(-1)
    return offset + scale * values


def pack_texts(texts: Sequence[str], name: str, ends_name: str) -> dict[str, torch.Tensor]:
    """Strings as tensors: their UTF-8 bytes one after the other, and where each ends."""
    encoded = [text.encode() for text in texts]
    ends = torch.tensor([len(text) for text in encoded], dtype=torch.int64).cumsum(0)
    return {name: torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8), ends_name: ends}


def read_text(shard: Any, row: int, name: str) -> str:
    """A string of a shard; empty where there are none."""
    if name not in shard.keys():  # noqa: SIM118
        return ""
    *before, stop = shard.get_slice(TEXTS[name])[max(row - 1, 0) : row + 1].tolist()
    start = before[0] if before else 0
    return bytes(shard.get_slice(name)[start:stop].numpy()).decode()


def channel_statistics(paths: list[Path]) -> dict[str, Any]:
    """Clips of every shard, damaged clips, and mean and deviation of each channel over posteriors of real frames."""
    total, squares, count = torch.zeros(1), torch.zeros(1), 0
    counts: list[int] = []
    damaged: list[dict[str, Any]] = []
    for path in paths:
        shard = open_shard(path)
        about = json.loads((shard.metadata() or {}).get("about", "{}"))
        damaged += about.get("damaged", [])
        counts.append(num_clips(shard))
        if not counts[-1]:
            continue
        mean, std = read_latents(shard, "mean").double(), read_latents(shard, "std").double()
        # A latent frame is real if it holds a real frame.
        frames = shard.get_tensor("num_frames")[:, None]
        step = about.get("clip_frames", mean.shape[2]) / mean.shape[2]
        real = torch.arange(mean.shape[2]) * step < frames  # (B, t)
        real = real[:, None, :, None, None]
        total = total + (mean * real).sum(dim=(0, 2, 3, 4))
        squares = squares + ((mean.square() + std.square()) * real).sum(dim=(0, 2, 3, 4))
        count += int(real.sum()) * mean.shape[3] * mean.shape[4]
    average = total / max(count, 1)
    deviation = (squares / max(count, 1) - average.square()).clamp(min=1e-12).sqrt()
    return {
        "counts": counts,
        "damaged": damaged,
        "latents_mean": average.tolist(),
        "latents_std": deviation.tolist(),
    }


def open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is no whole shard of latents ({error}); remove it and encode again.") from error


def num_clips(shard: Any) -> int:
    return shard.get_slice("num_frames").get_shape()[0] if "num_frames" in shard.keys() else 0  # noqa: SIM118


def read_latents(shard: Any, name: str, rows: slice | int = slice(None)) -> torch.Tensor:
    names = set(shard.keys())
    if "coded" in names:
        return _codedread_latents(shard, name, rows)
    if name not in names:  # latents that are points
        return torch.zeros_like(read_latents(shard, "mean", rows))
    scales = shard.get_slice(f"{name}_scales")[rows] if f"{name}_scales" in names else None
    return _restored(shard.get_slice(name)[rows], scales)


def _codedread_latents(shard: Any, name: str, rows: slice | int) -> torch.Tensor:
    coding = read_coding(shard.metadata()["about"])
    if name == "std" and "std" in shard.keys():  # noqa: SIM118
        std = shard.get_slice("std")[rows]
        return std.expand(*std.shape[:-4], *coding.shape)
    if isinstance(rows, int):
        return torch.zeros(coding.shape) if name == "std" else decode_clip(shard, rows, coding)
    clips = [_codedread_latents(shard, name, row) for row in range(num_clips(shard))[rows]]
    return torch.stack(clips)


def read_json(path: Path) -> dict[str, Any]:
    """An index of latents.

    Raises:
        ValueError: It is none.
    """
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is no index of latents ({error}).") from error
    if not isinstance(values, dict) or "complete" not in values:
        raise ValueError(f"{path}: is no index of latents.")
    return values


# Reading


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

    def __init__(self, folder: str | Path, seed: int = 0, vae: ModelMixin | None = None, sorted_batches: int = 1):
        self.folder = Path(folder)
        path = self.folder / INDEX_FILE
        if not path.is_file():
            raise ValueError(f"{self.folder}: holds no {INDEX_FILE}; write it with `vidvae encode-dataset`.")
        index = read_json(path)
        if not index["complete"]:
            raise ValueError(f"{self.folder}: is incomplete; run `vidvae encode-dataset` again to finish it.")
        if vae is not None and index["vae"] != model_fingerprint(vae):
            raise ValueError(f"{self.folder}: was encoded by another autoencoder than the one given.")
        self.latents_mean: list[float] = index["latents_mean"]
        self.latents_std: list[float] = index["latents_std"]
        self.shards = [self.folder / name for name in index["shards"]]
        self.ends = list(accumulate(index.get("counts") or _full_counts(index)))
        self.seed = seed
        self.order = ShuffledOrder(self.ends[-1], seed)
        self.sorted_batches = sorted_batches
        self._kept_counts: torch.Tensor | None = None
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.order.length

    def __getitem__(self, draw: int) -> dict[str, Any]:
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
            self._kept_counts = torch.cat([_kept_counts(self._shard(number)) for number in range(len(self.shards))])
        return int(self._kept_counts[self.order[draw]])

    def clip(self, index: int) -> dict[str, Any]:
        """An encoded clip by its place in the set."""
        shard, row = self._find(index)
        item = {name: read_latents(shard, name, row) for name in ("mean", "std")}
        num_frames = shard.get_slice("num_frames")[row]
        if "keep_probs" not in shard.keys():  # noqa: SIM118
            return item | {"num_frames": num_frames}
        keep_probs = shard.get_slice("keep_probs")[row].float()
        return item | {"keep_probs": keep_probs, "frame_mask": torch.arange(len(keep_probs)) < num_frames}

    def caption(self, index: int) -> str:
        """Caption of a clip by its place in the set; empty where there is none."""
        return read_text(*self._find(index), "captions")

    def columns(self, index: int) -> dict[str, Any]:
        """The columns that were carried along with a clip, by its place in the set."""
        return json.loads(read_text(*self._find(index), "columns") or "{}")

    def _find(self, index: int) -> tuple[Any, int]:
        """The shard of a clip, and its row there."""
        number = bisect_right(self.ends, index)
        return self._shard(number), index - (self.ends[number - 1] if number else 0)

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            self._open[number] = open_shard(self.shards[number])
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        """Open files do not travel to loading workers."""
        return self.__dict__ | {"_open": {}}


def _full_counts(index: dict[str, Any]) -> list[int]:
    """Clips of the shards of an index that does not name them, since none can be damaged."""
    size, total = index["shard_size"], index["num_clips"]
    return [min(size, total - start) for start in range(0, total, size)]


def _kept_counts(shard: Any) -> torch.Tensor:
    """Expected number of kept frames of every clip of a shard."""
    if not num_clips(shard):
        return torch.zeros(0, dtype=torch.int32)
    probs, num_frames = shard.get_tensor("keep_probs"), shard.get_tensor("num_frames")
    real = torch.arange(probs.shape[1]) < num_frames[:, None]
    return (probs * real).sum(dim=1).round().clamp(min=1).to(torch.int32)
