from __future__ import annotations

import os
import random

import pytest
import torch
from safetensors import safe_open

from diffusers_vidvae.codec import CompressedVideo, FsvError, read_original_pt


def original(num_frames=12, positions=(1, 4, 9), tokens=16, channels=6, dtype=torch.float32) -> dict:
    kept = len(positions)
    latents = torch.zeros(1, num_frames, tokens, channels, dtype=dtype)
    latents[0, :kept] = torch.randn(kept, tokens, channels)
    gaps = torch.zeros(1, num_frames, dtype=torch.long)
    gaps[0, :kept] = torch.tensor(positions).diff(prepend=torch.zeros(1, dtype=torch.long))
    mask = torch.arange(num_frames)[None] < kept
    return {
        "compressed": latents,
        "selection_indices": gaps,
        "compression_mask": mask,
        "original_num_frames": num_frames,
        "num_kept_frames": kept,
    }


def saved(tmp_path, content):
    path = tmp_path / "clip.pt"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kept_frames_come_out_in_raster_order(tmp_path, dtype):
    content = original(dtype=dtype)
    video = read_original_pt(saved(tmp_path, content), patch_size=8)
    assert video.header.num_frames == 12 and video.header.model_height == 32
    assert video.positions.tolist() == [1, 4, 9]
    latents = video.windows[0].latents
    assert latents.shape == (6, 3, 4, 4) and latents.dtype == dtype
    assert torch.equal(latents[:, 2, 1, 3], content["compressed"][0, 2, 1 * 4 + 3])


def test_an_original_clip_becomes_an_fsv_file_without_loss(tmp_path):
    video = read_original_pt(saved(tmp_path, original(dtype=torch.bfloat16)))
    loaded = CompressedVideo.load(video.save(tmp_path / "clip.fsv"))
    assert torch.equal(loaded.windows[0].latents, video.windows[0].latents)
    assert loaded.header.quantization == "bf16"


def test_the_originals_own_output_is_read(shared_parity, tmp_path):
    with safe_open(shared_parity / "tensors.safetensors", "pt") as file:
        names = ("vae.compress.latents", "vae.compress.gaps", "vae.compress.mask")
        latents, gaps, mask = (file.get_tensor(name)[:1] for name in names)
    content = {
        "compressed": latents,
        "selection_indices": gaps,
        "compression_mask": mask.bool(),
        "original_num_frames": 12,
        "num_kept_frames": 9,
    }
    video = read_original_pt(saved(tmp_path, content), patch_size=8)
    assert video.positions.tolist() == [0, 1, 2, 3, 5, 6, 7, 10, 11]
    assert video.windows[0].latents.shape == (24, 9, 4, 4)


def changed(**changes):
    return original() | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a dictionary with compressed, .*got list"),
        ({"compressed": 1}, "selection_indices: missing"),
        (changed(compressed=3), "compressed: expected a dense tensor"),
        (changed(compressed=torch.zeros(12, 16, 6)), r"compressed: expected a contiguous tensor of 4 dimensions, got"),
        (
            changed(compressed=torch.zeros(1, 1, 1, 1).expand(1, 12, 2**40, 6)),
            "compressed: expected a contiguous tensor",
        ),
        (changed(compressed=torch.zeros(1, 12, 16, 6, device="meta")), "compressed: expected a dense tensor"),
        (changed(compressed=torch.zeros(2, 12, 16, 6)), "compressed: 2 clips, expected 1"),
        (changed(compressed=torch.zeros(1, 12, 15, 6)), "compressed: 15 tokens do not form a square"),
        (changed(compressed=torch.zeros(1, 12, 0, 6)), "compressed: 0 tokens do not form a square"),
        (changed(compressed=torch.zeros(1, 12, 16, 6).long()), "compressed: torch.int64 is not float32"),
        (changed(compressed=torch.zeros(1, 12, 16, 0)), "latent_channels: 0"),
        (changed(compressed=torch.zeros(1, 12, 16, 6).to_sparse()), "compressed: expected a dense tensor"),
        (
            changed(selection_indices=torch.zeros(1, 11).long()),
            r"selection_indices: shape \(1, 11\), expected \(1, 12\)",
        ),
        (changed(selection_indices=torch.ones(1, 12)), "selection_indices: torch.float32"),
        (changed(selection_indices=torch.zeros(1, 12).long()), "gaps: the first must be >= 0 and the others >= 1"),
        (changed(selection_indices=torch.full((1, 12), 9)), "gaps: the last kept frame 27"),
        (changed(compression_mask=torch.zeros(1, 12).bool()), "compression_mask: not the first 3 of 12 slots"),
        (changed(num_kept_frames=0), "num_kept_frames: 0 of 12 frames"),
        (changed(num_kept_frames=2), "compression_mask: not the first 2 of 12 slots"),
        (changed(num_kept_frames=3.0), "num_kept_frames: expected a whole number, got float"),
        (changed(original_num_frames=-1), "num_kept_frames: 3 of -1 frames"),
        (changed(original_num_frames=2**40), "num_frames: 1099511627776"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, content, message):
    with pytest.raises(FsvError, match=f"clip.pt: .*{message}"):
        read_original_pt(saved(tmp_path, content))


class Malicious:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_code_in_a_pickle_is_not_run(tmp_path):
    with pytest.raises(FsvError, match="not a torch.save file of tensors and numbers only"):
        read_original_pt(saved(tmp_path, original() | {"more": Malicious()}))


def test_damaged_files_are_refused(tmp_path):
    path = saved(tmp_path, original())
    data = path.read_bytes()
    generator = random.Random(0)
    for length in range(0, len(data), len(data) // 60):
        path.write_bytes(data[:length])
        with pytest.raises(FsvError, match="clip.pt: "):
            read_original_pt(path)
    for position in generator.sample(range(len(data)), 100):
        flipped = bytearray(data)
        flipped[position] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            read_original_pt(path)
        except FsvError as error:
            assert "clip.pt: " in str(error)


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(FsvError, match="none.pt: no such file"):
        read_original_pt(tmp_path / "none.pt")
