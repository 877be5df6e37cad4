"""Whether a trained autoencoder is better than a codec without a network that stores as many numbers.

    python tests/benchmarks/bench_linear_codec.py [--model FOLDER] [--films ../shared/open_video] [--clips 2]
    python tests/benchmarks/bench_linear_codec.py --blocks [--model FOLDER] [--media ../shared/media/clips]

The linear codec keeps the first principal components of every patch, those of the training films, and blends dropped
frames between the kept ones before and after. PSNR in dB of the mean squared error over windows of the validation
films, which no training saw; in brackets a 95 % interval by bootstrap over films. With `--blocks`, an AutoencoderKL3D
against the first principal components of blocks of 4x8x8 pixels, on 256x256 squares of films kept out of training, 8
frames and single ones.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch

from diffusers_vidvae import AutoencoderKL3D, FrameSelectVAE, demo_model
from diffusers_vidvae.training.block_codec import BlockCodec, block_components, block_layout
from diffusers_vidvae.training.data import to_model_range
from diffusers_vidvae.training.folders import ClipFolder
from diffusers_vidvae.training.linear_codec import LinearCodec
from diffusers_vidvae.training.losses import mse_loss
from diffusers_vidvae.training.principal_components import ComponentsEstimator, frame_patches


SEED = 4242
HELD_OUT = ("crystal.webm", "bear_odd_161x121.webm", "roadtrip_10bit.webm", "london_pan_60fps.mp4")
COUNTS = (16, 8, 4, 2)
CACHED_SIDE = 160
BATCH = 11


def film_paths(films: Path, split: str) -> list[Path]:
    """Films of one split of an open_video folder."""
    with open(films / "manifest.tsv") as manifest:
        rows = csv.DictReader(manifest, delimiter="\t")
        return [films / "clips" / row["file"] for row in rows if row["split"] == split]


def film_clips(films: Path, split: str, num_frames: int, size: int, per_film: int) -> torch.Tensor:
    """Random squares of random windows, the same number of every film in turn, `(clips, 3, T, size, size)`."""
    clips = []
    for path in film_paths(films, split):
        folder = ClipFolder([path], num_frames, size, cached_side=CACHED_SIDE)
        rng = np.random.default_rng([SEED, int(path.name[:3]), len(path.name)])
        found = [folder.clip(rng) for _ in range(per_film)]
        clips += [to_model_range(clip) for clip in found if len(clip) == num_frames]
    return torch.stack(clips)


def even_mask(count: int, num_clips: int, num_frames: int) -> torch.Tensor:
    mask = torch.zeros(num_clips, num_frames, dtype=torch.bool)
    mask[:, ((torch.arange(count) + 0.5) / count * num_frames).long()] = True
    return mask


def shared_count_mask(total: int, num_clips: int, num_frames: int) -> torch.Tensor:
    """`total` frames over all clips, evenly spaced, the counts as equal as whole frames allow."""
    extra = torch.randperm(num_clips, generator=torch.Generator().manual_seed(SEED))[: total % num_clips]
    counts = torch.full((num_clips,), total // num_clips)
    counts[extra] += 1
    return torch.cat([even_mask(max(count, 1), 1, num_frames) for count in counts.tolist()])


def decibels(errors: torch.Tensor) -> float:
    return float(-10 * torch.log10(errors.mean()))


def interval(errors: torch.Tensor, baseline: torch.Tensor, draws: int = 1000) -> str:
    """Difference of two PSNRs with its 95 % interval."""
    index = np.random.default_rng(SEED).integers(0, len(errors), (draws, len(errors)))
    ratio = baseline.numpy()[index].mean(axis=1) / errors.numpy()[index].mean(axis=1)
    low, high = np.percentile(10 * np.log10(ratio), [2.5, 97.5])
    return f"{decibels(errors) - decibels(baseline):+.2f} [{low:+.2f}, {high:+.2f}]"


class Codec:
    """Validation clips in a model's or the linear codec's latents."""

    def __init__(self, encode, decode, clips: torch.Tensor):
        self.decode, self.clips = decode, clips
        self.latents = torch.cat([encode(batch) for batch in clips.split(BATCH)])

    def errors(self, mask: torch.Tensor) -> torch.Tensor:
        parts = zip(self.latents.split(BATCH), mask.split(BATCH), self.clips.split(BATCH), strict=True)
        return torch.cat([mse_loss(self.decode(z, m).clamp(-1, 1), x) for z, m, x in parts])


def block_table(options: argparse.Namespace) -> None:
    """AutoencoderKL3D and the linear codec of blocks."""
    folder = {"subfolder": "autoencoder_kl_3d"} if options.model is None else {}
    model = AutoencoderKL3D.from_pretrained(options.model or demo_model(), **folder).eval()
    numbers = model.config.latent_channels
    layout = block_layout(model)
    components = block_components(film_clips(options.films, "train", 8, 64, per_film=8), *layout)
    codec = BlockCodec(components, layout[0], numbers, layout[1])

    rng = np.random.default_rng(SEED)
    source = ClipFolder([options.media / name for name in HELD_OUT], 8, 256, cached_side=512, min_frames=8)
    clips = torch.stack([to_model_range(source.clip(rng)) for _ in range(16)])
    print(f"{len(clips)} clips of {', '.join(HELD_OUT)}; {numbers} numbers a block of {layout[0]}")
    for name, sample in (("8 frames", clips), ("images", clips[:, :, :1])):
        errors = torch.cat([mse_loss(model(clip).sample.clamp(-1, 1), clip) for clip in sample.split(1)])
        baseline = mse_loss(codec.reconstruct(sample).clamp(-1, 1), sample)
        print(f"{name}: linear {decibels(baseline):.2f}, model {decibels(errors):.2f}, {interval(errors, baseline)}")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model; the embedded one by default")
    parser.add_argument("--clips", type=int, default=2, help="windows of every film")
    shared = Path(__file__).resolve().parents[3] / "shared" / "open_video"
    parser.add_argument("--films", type=Path, default=shared)
    parser.add_argument("--blocks", action="store_true", help="AutoencoderKL3D instead of FrameSelectVAE")
    parser.add_argument("--media", type=Path, default=shared.parent / "media" / "clips")
    options = parser.parse_args()
    if options.blocks:
        block_table(options)
        return

    if options.model:
        vae = FrameSelectVAE.from_pretrained(options.model).eval()
    else:
        vae = FrameSelectVAE.from_pretrained(demo_model(), subfolder="vae").eval()
    patch, frames, size = vae.config.patch_size, vae.config.clip_num_frames, vae.config.sample_size
    estimator = ComponentsEstimator(3 * patch**2)
    for clip in film_clips(options.films, "train", frames, size, per_film=4):
        estimator.update(frame_patches(clip[None], patch))
    linear = LinearCodec(estimator.components(), patch, vae.config.latent_channels)
    clips = film_clips(options.films, "validation", frames, size, options.clips)
    print(f"{len(clips)} clips of {frames}x{size}x{size}, {vae.config.latent_channels} numbers a patch")

    baseline = Codec(linear.encode, linear.decode, clips)
    model = Codec(lambda x: vae.encode(x).latent_dist.mode(), lambda z, m: vae.decode(z, m).sample, clips)
    probs = torch.cat([vae.encode(batch).keep_probs for batch in clips.split(BATCH)])
    print("kept  linear  even   less linear             systematic")
    for count in COUNTS:
        mask = even_mask(count, len(clips), frames)
        linear_errors, errors = baseline.errors(mask), model.errors(mask)
        chosen = model.errors(vae.select_frames(probs, num_frames=count))
        print(
            f"{count:4d}  {decibels(linear_errors):6.2f}  {decibels(errors):5.2f}  {interval(errors, linear_errors)}"
            f"  {decibels(chosen):5.2f}"
        )

    systematic = vae.select_frames(probs)
    generator = torch.Generator().manual_seed(SEED)
    bernoulli = vae.select_frames(probs, mode="bernoulli", generator=generator)
    even = shared_count_mask(int(systematic.sum()), len(clips), frames)
    errors = model.errors(systematic)
    print(f"systematic, counts by content: {decibels(errors):.2f} at a keep rate of {systematic.float().mean():.3f}")
    print(
        f"  less evenly spaced at that mean rate ({even.float().mean():.3f}): {interval(errors, model.errors(even))}"
    )
    print(f"  less Bernoulli ({bernoulli.float().mean():.3f}): {interval(errors, model.errors(bernoulli))}")


if __name__ == "__main__":
    main()
