r"""Trains a tiny Wan transformer on latents of AutoencoderKL3D, and runs it in diffusers' own WanPipeline.

    python tests/examples/train_wan_on_autoencoder_kl_3d.py [--steps 300] [--output wan] [--vae FOLDER]

The clips are procedural and there are no prompts, so that it runs anywhere; for text, give the encoded captions in
place of `NO_TEXT`. The same way trains other transformers of diffusers: each asks for latents with its normalisation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import WanPipeline, WanTransformer3DModel

from diffusers_vidvae import AutoencoderKL3D, FlowMatchGapScheduler, demo_model
from diffusers_vidvae.media import VideoWriter
from diffusers_vidvae.training.procedural import ProceduralClips


NO_TEXT = torch.zeros(1, 1, 16)
NUM_FRAMES = 9


def load_vae(folder: str | None) -> AutoencoderKL3D:
    if folder is not None:
        return AutoencoderKL3D.from_pretrained(folder).eval()
    vae = AutoencoderKL3D.from_pretrained(demo_model(), subfolder="autoencoder_kl_3d", dtype=torch.float32)
    return vae.eval()


@torch.no_grad()
def encode_clips(vae: AutoencoderKL3D, num_clips: int, size: int) -> torch.Tensor:
    """Latents of procedural clips, normalised as Wan's pipelines undo it; their statistics go into the config."""
    clips = ProceduralClips(num_clips, NUM_FRAMES, size, size, motions=("slow",), max_shapes=1)
    sample = torch.stack([torch.from_numpy(clip) for clip in clips]).permute(0, 4, 1, 2, 3) / 127.5 - 1
    latents = torch.cat([vae.encode(clip).latent_dist.mode() for clip in sample.split(4)])
    std, mean = torch.std_mean(latents, dim=(0, 2, 3, 4))
    # Wan's pipelines read the mean and the deviation, and no scaling factor.
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist(), scaling_factor=1.0)
    return vae.normalize_latents(latents)


def make_transformer(latent_channels: int) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=latent_channels,
        out_channels=latent_channels,
        text_dim=NO_TEXT.shape[-1],
        freq_dim=32,
        ffn_dim=96,
        num_layers=2,
        rope_max_seq_len=64,
    )


def train(
    transformer: WanTransformer3DModel, scheduler: FlowMatchGapScheduler, latents: torch.Tensor, num_steps: int
) -> list[float]:
    """Flow matching: from noisy latents, predicts noise less latents. Returns the loss of every step."""
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=2e-3)
    losses = []
    for _ in range(num_steps):
        clean = latents[torch.randint(len(latents), (8,))]
        noise = torch.randn_like(clean)
        timestep = 1000 * torch.rand(len(clean))
        noisy = scheduler.scale_noise(clean, timestep, noise)
        text = NO_TEXT.expand(len(clean), -1, -1)
        predicted = transformer(noisy, timestep, text, return_dict=False)[0]
        loss = (predicted - (noise - clean)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", help="folder or Hub id of an AutoencoderKL3D; by default the embedded one")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="height and width of clips in pixels")
    parser.add_argument("--output", type=Path, default=Path("wan"), help="folder of pipeline and sample")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    vae, scheduler = load_vae(options.vae), FlowMatchGapScheduler()
    latents = encode_clips(vae, options.clips, options.size)
    transformer = make_transformer(vae.config.latent_channels)
    losses = train(transformer, scheduler, latents, options.steps)
    print(f"loss {losses[0]:.3f} -> {sum(losses[-20:]) / len(losses[-20:]):.3f}")

    pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer)
    size = {"height": options.size, "width": options.size, "num_frames": NUM_FRAMES}
    frames = pipe(prompt_embeds=NO_TEXT, guidance_scale=1.0, num_inference_steps=20, **size).frames[0]
    pipe.save_pretrained(options.output)
    with VideoWriter(options.output / "sample.mp4", fps=8) as writer:
        for frame in frames:
            writer.write((frame * 255).round().astype("uint8"))
    print(f"{options.output}: the pipeline, and sample.mp4 of {len(frames)} frames")
    return losses


if __name__ == "__main__":
    main()
