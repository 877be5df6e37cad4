r"""Largest differences between a converted FrameSelectVAE and the original's outputs, relative to the largest value.

python tests/benchmarks/parity_frame_select_vae.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from diffusers_vidvae.conversion.checkpoints import Checkpoint
from diffusers_vidvae.conversion.convert_frame_select_vae import convert


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity_data import DATA, draw_inputs, draw_state_dict  # noqa: E402


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def as_tokens(latents: torch.Tensor) -> torch.Tensor:
    return latents.flatten(3).permute(0, 2, 3, 1)


def as_pixels(sample: torch.Tensor) -> torch.Tensor:
    return (sample.permute(0, 2, 3, 4, 1) + 1) / 2


@torch.no_grad()
def main() -> None:
    expected = load_file(DATA / "tensors.safetensors") | draw_inputs()
    vae = convert(Checkpoint.from_state_dict(draw_state_dict("vae")))
    encoded = vae.encode(expected["vae.input"].permute(0, 4, 1, 2, 3) * 2 - 1)
    latents = encoded.latent_dist.mode()
    keep_mask = vae.select_frames(encoded.keep_probs, mode="threshold")
    packed = vae.pack_frames(latents, keep_mask)
    kept = packed.mask.shape[1]
    rows = {
        "mean": (as_tokens(latents), "vae.mean"),
        "variance": (as_tokens(encoded.latent_dist.var), "vae.variance"),
        "keep probability": (encoded.keep_probs, "vae.keep_prob"),
        "all frames decoded": (as_pixels(vae.decode(latents).sample), "vae.decode_all"),
        "kept frames decoded": (as_pixels(vae.decode(latents, keep_mask).sample), "vae.decompress"),
    }
    for name, (actual, key) in rows.items():
        print(f"{name:20} {relative_error(actual, expected[key]):.1e}")
    packed_error = relative_error(as_tokens(packed.latents), expected["vae.compress.latents"][:, :kept])
    print(f"{'packed latents':20} {packed_error:.1e}")
    print(f"{'gaps':20} {'equal' if torch.equal(packed.gaps, expected['vae.compress.gaps'][:, :kept]) else 'differ'}")


if __name__ == "__main__":
    main()
