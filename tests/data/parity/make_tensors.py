r"""Writes the other files of this folder with the original code of floatingtrees/dynamic-frame-compression.

python tests/data/parity/make_tensors.py CHECKOUT   # a checkout at commit 2150c20
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from parity_data import draw_inputs, draw_state_dict  # noqa: E402


VAE = {
    "height": 32,
    "width": 32,
    "channels": 3,
    "patch_size": 8,
    "encoder_depth": 2,
    "decoder_depth": 2,
    "mlp_dim": 96,
    "num_heads": 2,
    "qkv_features": 64,
    "max_temporal_len": 16,
    "spatial_compression_rate": 8,
    "unembedding_upsample_rate": 4,
}
DIT = {
    "hw": 16,
    "residual_dim": 64,
    "compressed_channel_dim": 24,
    "depth": 3,
    "mlp_dim": 96,
    "num_heads": 2,
    "qkv_features": 64,
    "max_temporal_len": 16,
}


def main(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    from autoencoder import VideoVAE
    from diffusion_model import VideoDiT

    vae, dit = VideoVAE(**VAE).eval(), VideoDiT(**DIT).eval()
    keys = {"vae": shapes_of(vae.state_dict()), "dit": shapes_of(without_tables(dit.state_dict()))}
    write_json("tiny_keys.json", keys)
    with torch.device("meta"):
        full_size = {"vae": VideoVAE(max_temporal_len=64), "dit": VideoDiT(depth=30)}
    write_json("full_size_keys.json", {name: shapes_of(model.state_dict()) for name, model in full_size.items()})
    tables = [(key.rsplit(".", 1)[-1], value) for key, value in vae.state_dict().items() if "ROPE" in key]
    ropes = {f"rope.{kind}": table for kind, table in tables}
    assert all(torch.equal(ropes[f"rope.{kind}"], table) for kind, table in tables)
    save_file(ropes, FOLDER / "tensors.safetensors")

    vae.load_state_dict(draw_state_dict("vae"))
    dit.load_state_dict(draw_state_dict("dit"), strict=False)
    inputs = draw_inputs()
    tensors = {**ropes, **run_vae(vae, inputs["vae.input"]), **run_dit(dit, inputs["dit.noise"])}
    tensors = {key: value.to(torch.uint8) if value.dtype == torch.bool else value for key, value in tensors.items()}
    metadata = {"vae_config": json.dumps(VAE), "dit_config": json.dumps(DIT)}
    save_file({key: value.contiguous() for key, value in tensors.items()}, FOLDER / "tensors.safetensors", metadata)


@torch.no_grad()
def run_vae(vae: torch.nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of the autoencoder, in the original's layouts."""
    everything = torch.ones(pixels.shape[:2], dtype=torch.bool)
    shorter = everything.clone()
    shorter[1, 9:] = False
    tensors = {"vae.frame_mask": shorter}
    for prefix, mask in (("vae", everything), ("vae.masked", shorter)):
        mean, variance, keep = vae.encoder(pixels, mask[:, None, None], train=False)
        tensors |= {f"{prefix}.mean": mean, f"{prefix}.variance": variance, f"{prefix}.keep_prob": keep[..., 0]}
    attended = everything[:, None, None]
    tensors["vae.decode_all"] = vae.decoder(tensors["vae.mean"], attended, train=False)
    latents, gaps, mask = vae.compress(pixels, attended)
    tensors |= {"vae.compress.latents": latents, "vae.compress.gaps": gaps, "vae.compress.mask": mask}
    tensors["vae.decompress"] = vae.decompress(latents, attended, gaps, mask, output_length=pixels.shape[1])
    return tensors


@torch.no_grad()
def run_dit(dit: torch.nn.Module, noise: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of the transformer, in the original's layouts."""
    from diffusion_model import gaps_to_positions, sample

    frame_mask = torch.ones(noise.shape[:2], dtype=torch.bool)
    frame_mask[1, 4:] = False
    time = torch.tensor([[0.0], [0.37]])
    velocity, gaps = dit(noise, frame_mask, time)
    latents, last_gaps = sample(dit, noise, frame_mask, num_steps=10)
    positions, total_frames = gaps_to_positions(last_gaps, frame_mask)
    return {
        "dit.frame_mask": frame_mask,
        "dit.time": time,
        "dit.velocity": velocity,
        "dit.gaps": gaps,
        "dit.sample10.latents": latents,
        "dit.sample10.gaps": last_gaps,
        "dit.sample10.positions": positions,
        "dit.sample10.total_frames": total_frames,
    }


def write_json(name: str, content: dict) -> None:
    (FOLDER / name).write_text(json.dumps(content, separators=(",", ":")) + "\n")


def shapes_of(state_dict: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in state_dict.items()}


def without_tables(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published files occur with and without rotary tables; the autoencoder's has them, the transformer's not."""
    return {key: value for key, value in state_dict.items() if "ROPE" not in key}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
