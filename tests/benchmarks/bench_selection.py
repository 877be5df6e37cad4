"""What frame selection is worth: reconstruction under every way to choose frames, on clips that training never saw.

    python tests/benchmarks/bench_selection.py [--model FOLDER] [--clips 200] [--media ../shared/media/clips]

PSNR in dB of the mean squared error over all clips; in brackets a 95 % interval by paired bootstrap over clips, of a
difference where the row names one. Procedural clips are of a seed of their own, 40 of each kind of motion. Real clips
are crops of a few films that were kept out of training: they overlap, so their intervals are too narrow.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from diffusers_vidvae import FrameSelectVAE, demo_model
from diffusers_vidvae.training.data import stack_clips, to_model_range
from diffusers_vidvae.training.folders import ClipFolder
from diffusers_vidvae.training.losses import mse_loss
from diffusers_vidvae.training.procedural import MOTIONS, ProceduralClips


SEED = 4242
HELD_OUT = ("crystal.webm", "crystal_vfr.mp4", "bear_odd_161x121.webm", "roadtrip_10bit.webm", "london_pan_60fps.mp4")
FIXED_COUNTS = (8, 4, 2)


class Codec:
    """Clips with their latents and keep probabilities, and the error of decoding them under a mask."""

    def __init__(self, model: FrameSelectVAE, clips: torch.Tensor, batch_size: int = 20):
        self.model, self.clips, self.batch_size = model, clips, batch_size
        encoded = [model.encode(batch, return_dict=False) for batch in clips.split(batch_size)]
        self.latents = torch.cat([posterior.mode() for posterior, _, _ in encoded])
        self.probs = torch.cat([probs for _, probs, _ in encoded])
        self.full = self.decode(torch.ones_like(self.probs, dtype=torch.bool))

    def select(self, mode: str, **options) -> torch.Tensor:
        if mode == "bernoulli":
            options["generator"] = torch.Generator().manual_seed(SEED)
        return self.model.select_frames(self.probs, mode=mode, **options)

    def decode(self, keep_mask: torch.Tensor) -> torch.Tensor:
        parts = zip(self.latents.split(self.batch_size), keep_mask.split(self.batch_size), strict=True)
        return torch.cat([self.model.decode(latents, mask).sample for latents, mask in parts])

    def errors(self, keep_mask: torch.Tensor) -> torch.Tensor:
        """Mean squared error of every clip, `(clips,)`."""
        return self.pixel_errors(self.decode(keep_mask))

    def pixel_errors(self, frames: torch.Tensor) -> torch.Tensor:
        return mse_loss(frames.clamp(-1, 1), self.clips)


def uniform_mask(counts: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Evenly spaced frames, a number of them for every clip."""
    mask = torch.zeros(len(counts), num_frames, dtype=torch.bool)
    for clip, count in enumerate(counts.tolist()):
        mask[clip, ((torch.arange(count) + 0.5) / count * num_frames).long()] = True
    return mask


def random_mask(counts: torch.Tensor, num_frames: int) -> torch.Tensor:
    order = torch.rand(len(counts), num_frames, generator=torch.Generator().manual_seed(SEED)).argsort(dim=1)
    return torch.zeros(len(counts), num_frames, dtype=torch.bool).scatter(
        1, order, torch.arange(num_frames) < counts[:, None]
    )


def equal_counts(total: int, num_clips: int) -> torch.Tensor:
    """`total` frames over all clips, as evenly as whole frames allow."""
    counts = torch.full((num_clips,), total // num_clips)
    extra = torch.randperm(num_clips, generator=torch.Generator().manual_seed(SEED))[: total % num_clips]
    counts[extra] += 1
    return counts.clamp(min=1)


def global_budget_mask(probs: torch.Tensor, mean_count: int) -> torch.Tensor:
    """The most probable frame of every clip, then the most probable frames of the whole set."""
    mask = F.one_hot(probs.argmax(dim=1), probs.shape[1]).bool()
    remaining = mean_count * len(probs) - len(probs)
    best = probs.masked_fill(mask, -1).flatten().topk(remaining).indices
    return mask.flatten().index_fill(0, best, True).view_as(mask)


def decibels(error: float) -> float:
    return -10 * np.log10(max(error, 1e-10))


def interval(errors: torch.Tensor, baseline: torch.Tensor | None = None, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of the PSNR, or of its difference to a baseline's."""
    rng = np.random.default_rng(SEED)
    index = rng.integers(0, len(errors), (draws, len(errors)))
    values = -10 * np.log10(errors.numpy()[index].mean(axis=1))
    if baseline is not None:
        values = values + 10 * np.log10(baseline.numpy()[index].mean(axis=1))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def line(name: str, errors: torch.Tensor, note: str = ""):
    low, high = interval(errors)
    print(f"  {name:44s} {decibels(float(errors.mean())):6.2f} [{low:5.2f}, {high:5.2f}] {note}")


def difference(name: str, errors: torch.Tensor, baseline: torch.Tensor):
    low, high = interval(errors, baseline)
    value = decibels(float(errors.mean())) - decibels(float(baseline.mean()))
    print(f"  {name:44s} {value:+6.2f} [{low:+5.2f}, {high:+5.2f}]{'' if low * high > 0 else ' n.s.'}")


def adaptive_table(codec: Codec):
    """Every mode with a count per clip by its probabilities, and its baselines at the same number of frames."""
    num_clips, num_frames = codec.probs.shape
    systematic = codec.select("systematic")
    counts = systematic.sum(dim=1)
    one_for_all = equal_counts(int(counts.sum()), num_clips)
    shuffled = counts[torch.randperm(num_clips, generator=torch.Generator().manual_seed(SEED))]
    masks = {
        "systematic": systematic,
        "threshold 0.5": codec.select("threshold"),
        "Bernoulli": codec.select("bernoulli"),
        "top-k, same K per clip": torch.stack(
            [
                F.one_hot(p.topk(int(k)).indices, num_frames).sum(0).bool()
                for p, k in zip(codec.probs, counts, strict=True)
            ]
        ),
        "uniform, same K per clip": uniform_mask(counts, num_frames),
        "uniform, K shuffled over clips": uniform_mask(shuffled, num_frames),
        "uniform, one K for all": uniform_mask(one_for_all, num_frames),
        "random, one K for all": random_mask(one_for_all, num_frames),
    }
    errors = {name: codec.errors(mask) for name, mask in masks.items()}
    print(" adaptive counts (keep rate)")
    line("full keep", codec.pixel_errors(codec.full))
    patches = F.interpolate(F.avg_pool3d(codec.clips, (1, 8, 8)), codec.clips.shape[2:])
    line("trivial: mean colour of every 8x8 patch", codec.pixel_errors(patches))
    line("trivial: mean image of the clip", codec.pixel_errors(codec.clips.mean(dim=2, keepdim=True)))
    for name, values in errors.items():
        line(name, values, f"({float(masks[name].float().mean()):.3f})")
    for name in ("uniform, one K for all", "threshold 0.5", "Bernoulli", "top-k, same K per clip"):
        difference(f"systematic - {name}", errors["systematic"], errors[name])


def fixed_table(codec: Codec):
    """The same number of frames for every clip, or on average."""
    num_clips, num_frames = codec.probs.shape
    for count in FIXED_COUNTS:
        counts = torch.full((num_clips,), count)
        masks = {
            "random": random_mask(counts, num_frames),
            "uniform": uniform_mask(counts, num_frames),
            "top-k": codec.select("top_k", num_frames=count),
            "systematic": codec.select("systematic", num_frames=count),
            "global budget": global_budget_mask(codec.probs, count),
        }
        errors = {name: codec.errors(mask) for name, mask in masks.items()}
        print(f" {count} of {num_frames} frames")
        for name, values in errors.items():
            line(name, values)
        for name in ("top-k", "systematic", "global budget"):
            difference(f"{name} - uniform", errors[name], errors["uniform"])
        for source, frames in (("lossless", codec.clips), ("the codec's own", codec.full)):
            line(f"nearest of {source} frames", codec.pixel_errors(hold_nearest(frames, masks["uniform"][0])))
            line(f"linear blend of {source} frames", codec.pixel_errors(blend_linear(frames, masks["uniform"][0])))


def hold_nearest(frames: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    positions = kept.nonzero()[:, 0]
    nearest = (torch.arange(len(kept))[:, None] - positions).abs().argmin(dim=1)
    return frames[:, :, positions[nearest]]


def blend_linear(frames: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    positions = kept.nonzero()[:, 0]
    time = torch.arange(len(kept))
    after = torch.searchsorted(positions, time).clamp(max=len(positions) - 1)
    before = torch.where(positions[after] > time, after - 1, after).clamp(min=0)
    span = (positions[after] - positions[before]).clamp(min=1)
    weight = ((time - positions[before]) / span).clamp(0, 1)[None, None, :, None, None]
    return frames[:, :, positions[before]] * (1 - weight) + frames[:, :, positions[after]] * weight


def class_table(codec: Codec):
    """What the selector learned of each kind of motion."""
    bernoulli, systematic = codec.select("bernoulli"), codec.select("systematic")
    budget = global_budget_mask(codec.probs, 4)
    errors = {
        "full": codec.pixel_errors(codec.full),
        "syst.": codec.errors(systematic),
        "Bern.": codec.errors(bernoulli),
    }
    print(" by motion: mean p, kept by systematic and Bernoulli selection, by a budget of 4 a clip; PSNR")
    for index, motion in enumerate(MOTIONS):
        rows = slice(index, None, len(MOTIONS))
        kept = [float(mask[rows].sum(dim=1).float().mean()) for mask in (systematic, bernoulli, budget)]
        values = "  ".join(f"{name} {decibels(float(error[rows].mean())):5.2f}" for name, error in errors.items())
        print(
            f"  {motion:8s} p {float(codec.probs[rows].mean()):.3f}  kept {kept[0]:5.2f} {kept[1]:5.2f} {kept[2]:5.2f}"
            f"  {values}"
        )


def procedural(model: FrameSelectVAE, count: int) -> torch.Tensor:
    size = model.config.sample_size
    clips = ProceduralClips(count, model.config.clip_num_frames, size, size, seed=SEED)
    return stack_clips(clips, range(count))


def real(model: FrameSelectVAE, folder: Path, count: int) -> torch.Tensor | None:
    paths = [folder / name for name in HELD_OUT if (folder / name).is_file()]
    if not paths:
        return None
    source = ClipFolder(paths, model.config.clip_num_frames, model.config.sample_size, cached_side=128)
    rng = np.random.default_rng(SEED)
    return torch.stack([to_model_range(source.clip(rng)) for _ in range(count)])


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="folder of a FrameSelectVAE; the embedded one by default")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument(
        "--media", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "media" / "clips"
    )
    options = parser.parse_args()
    if options.model:
        model = FrameSelectVAE.from_pretrained(options.model).eval()
    else:
        model = FrameSelectVAE.from_pretrained(demo_model(), subfolder="vae").eval()

    print(f"procedural clips, seed {SEED}, {options.clips} clips")
    codec = Codec(model, procedural(model, options.clips))
    adaptive_table(codec)
    class_table(codec)
    fixed_table(codec)
    clips = real(model, options.media, options.clips)
    if clips is None:
        print(f"no real clips: {options.media} holds none of {', '.join(HELD_OUT)}")
        return
    print(f"\nreal clips kept out of training ({', '.join(HELD_OUT)}), {len(clips)} crops")
    codec = Codec(model, clips)
    adaptive_table(codec)
    fixed_table(codec)


if __name__ == "__main__":
    main()
