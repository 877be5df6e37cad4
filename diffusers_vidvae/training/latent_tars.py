r"""Shards of latents as tar files that `webdataset` reads: a sample for every clip, each a shard of one row.

    latents-00000-00003.safetensors  the tensors of the row, as `latent_shards` describes them
    latents-00000-00003.txt          its caption, if there is one
    latents-00000-00003.json         "num_frames", and the other columns

Example:

    >>> import webdataset
    >>> data = webdataset.WebDataset("latents/latents-{00000..00001}.tar", shardshuffle=False)
    >>> data = data.decode(webdataset.handle_extension("safetensors", decode_latents))
    >>> latents = next(iter(data))["safetensors"]["mean"]
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from diffusers_vidvae.files import write_file

from .latent_shards import TEXTS, num_clips, open_shard, read_latents, read_text


# Bytes of the rows of coded latents, and where each ends.
_STREAMS = {"coded": "coded_ends"}


def tar_of(name: str) -> str:
    """Name of the tar file of a shard."""
    return name.removesuffix(".safetensors") + ".tar"


def write_tar(shard_path: Path) -> None:
    """Writes a shard's tar file beside it, whole or not at all; the same bytes for the same shard."""
    target = shard_path.with_name(tar_of(shard_path.name))
    if target.exists():
        return
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        shard = open_shard(shard_path)
        for row in range(num_clips(shard)):
            for suffix, content in _sample(shard, row).items():
                member = tarfile.TarInfo(f"{shard_path.stem}-{row:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    write_file(target, buffer.getbuffer())


def _sample(shard: Any, row: int) -> dict[str, bytes]:
    beside = {*TEXTS, *TEXTS.values(), *_STREAMS, *_STREAMS.values()}
    tensors = {name: shard.get_slice(name)[row : row + 1] for name in shard.keys() if name not in beside}  # noqa: SIM118
    for name, ends in _STREAMS.items():
        if name in shard.keys():  # noqa: SIM118
            *before, stop = shard.get_slice(ends)[max(row - 1, 0) : row + 1].tolist()
            start = before[0] if before else 0
            tensors |= {name: shard.get_slice(name)[start:stop], ends: torch.tensor([stop - start])}
    # What the shard says of itself, without the clips that are not in it.
    about = json.loads(shard.metadata()["about"]) | {"damaged": []}
    columns = json.loads(read_text(shard, row, "columns") or "{}")
    columns["num_frames"] = int(tensors["num_frames"][0])
    sample = {"safetensors": save(tensors, {"about": json.dumps(about)})}
    caption = read_text(shard, row, "captions")
    return sample | ({"txt": caption.encode()} if caption else {}) | {"json": json.dumps(columns).encode()}


def decode_latents(data: bytes) -> dict[str, torch.Tensor]:
    """Tensors of a sample: float32 `"mean"` and `"std"`, `(channels, frames, height, width)`, and what else it has."""
    row = _OneRow(data)
    values = {name: read_latents(row, name, 0) for name in ("mean", "std")}
    return values | {name: row.tensors[name][0] for name in ("keep_probs", "num_frames") if name in row.tensors}


class _OneRow:
    """A shard of one row in memory, read as one that lies in a file."""

    def __init__(self, data: bytes):
        self.tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        self._metadata = json.loads(data[8 : 8 + length])["__metadata__"]

    def keys(self) -> list[str]:
        return list(self.tensors)

    def metadata(self) -> dict[str, str]:
        return self._metadata

    def get_slice(self, name: str) -> torch.Tensor:
        return self.tensors[name]
