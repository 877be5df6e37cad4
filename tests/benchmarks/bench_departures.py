r"""What each departure of the demo models' configurations from the original's is worth: one training for each.

    python tests/benchmarks/bench_departures.py [--steps 500] [--seeds 0 1] [--output FOLDER] [--only NAME ...]
    python tests/benchmarks/bench_departures.py --models latents --steps 400

FrameSelectVAE: the first row is the demo's configuration (or `--vae-config`), every other row sets one option back to
the original's. Steps, data, seeds and initialisation are the same; half of the steps have random masks, half train the
selection, at 32x32 pixels. PSNR in dB on procedural clips of another seed, and its difference to the first row, with a
95 % interval by paired bootstrap over clips; it does not know of the spread between training seeds, which more
`--seeds` show. The last line decodes frames twice as high and wide as those of the training.

GapDiT: the same on latents of the embedded autoencoder (or `--vae`). Error of the velocity at fixed noise levels,
without that of the gaps; lengths are of sampled clips, whose training clips all had 16 frames.

Latents: the embedded AutoencoderKL3D trained on at 32x32 pixels, alike but for one of the options that ask something
of latents. PSNR on held-out procedural clips (what it costs), what transformed latents lose, and the error of the
probe of `vidvae evaluate --generation` (what it gains: 1 is that of white noise), each with its difference to the
first row; that of the probe over its seeds, with an interval by Student's t.

Trainings that are finished in the output folder are not repeated.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from bench_generation_probe import probe_models, settings_of
from bench_selection import Codec, decibels, equal_counts, interval, procedural, uniform_mask

from diffusers_vidvae import FlowMatchGapScheduler, FrameSelectVAE, GapDiT, GapDiTPipeline
from diffusers_vidvae.evaluation.statistics import Estimate, estimate_difference, estimate_over_seeds
from diffusers_vidvae.training import train_autoencoder_kl_3d, train_frame_select_vae, train_gap_dit
from diffusers_vidvae.training.config import load_config
from diffusers_vidvae.training.data import procedural_clips, stack_clips
from diffusers_vidvae.training.launch import config_path
from diffusers_vidvae.training.losses import flow_matching_loss
from diffusers_vidvae.training.pretrained import load_pretrained


VAE_ROWS = {
    "demo": [],
    "patch_norm": ["model.patch_norm=true"],
    "rope_type=raster": ["model.rope_type=raster"],
    "keep_head=latent": ["model.keep_head=latent"],
    "refiner_norm=clip": ["model.refiner_norm=clip"],
}
TRANSFORMER_ROWS = {
    "demo": [],
    "rope_type=raster": ["model.rope_type=raster"],
    "time_embedding=linear": ["model.time_embedding=linear"],
    "gap_mode=regression": ["model.gap_mode=regression", "loss.gap_weight=0.01"],
}
LATENT_ROWS = {
    "demo": [],
    "scale_equivariance": ["loss.scale_equivariance_weight=0.25"],
    "equivariance": ["loss.equivariance_share=0.5"],
    "latent_noise": ["loss.latent_noise=0.5"],
}
NOISE_LEVELS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
VAE_RECIPE = [
    "model.sample_size=32",
    "data.folders=[]",
    "data.procedural_share=1",
    "loss.random_phase=0.5",
    "loss.masks_per_clip=4",
    "loss.trained_masks=1",
    "loss.policy_weight=0.02",
    "loss.trunk_gradient_scale=1",
    "loss.initial_keep_price=0.0155",
]
LATENT_RECIPE = [
    "data.folders=[]",
    "data.holdout=[]",
    "data.validation_folders=[]",
    "data.procedural_share=1",
    "data.sample_size=32",
    "run.init=random",
    "run.pretrained_model=demo",
    "run.part_rates={}",
    "run.baseline_clips=0",
    "run.batch_size=4",
    "loss.image_weight=0",
    "loss.kl_weight=1.0e-5",
]


def common(options: argparse.Namespace, folder: Path, seed: int) -> list[str]:
    return [
        f"run.output_dir={folder}",
        f"run.seed={seed}",
        f"run.max_steps={options.steps}",
        "run.max_minutes=null",
        "run.validate_every=0",
        "run.validation_clips=5",
        "run.checkpoint_minutes=null",
        f"run.ema_decay={1 - 10 / options.steps}",
    ]


def finished(folder: Path) -> bool:
    return (folder / "model" / "config.json").is_file()


def changed(name: str, base: float, value: float, low: float, high: float) -> str:
    return f"{value - base:+7.3f} [{low:+.3f}, {high:+.3f}]" if name != "demo" else "      (reference)"


# FrameSelectVAE


def vae_errors(folder: Path, num_clips: int) -> dict[str, torch.Tensor]:
    """Errors of every held-out clip, in full and under selections of one keep rate."""
    model = FrameSelectVAE.from_pretrained(folder / "model").eval()
    codec = Codec(model, procedural(model, num_clips))
    num_frames = codec.probs.shape[1]
    systematic = codec.select("systematic")
    one_for_all = equal_counts(round(0.3 * num_clips * num_frames), num_clips)
    errors = {
        "full": codec.pixel_errors(codec.full),
        "systematic": codec.errors(systematic),
        "uniform, same K per clip": codec.errors(uniform_mask(systematic.sum(dim=1), num_frames)),
        "uniform, one K, rate .3": codec.errors(uniform_mask(one_for_all, num_frames)),
        "rate": systematic.float().mean(dim=1),
    }
    if model.config.keep_head == "pooled":  # the other one belongs to one size
        larger = FrameSelectVAE.from_pretrained(folder / "model", sample_size=64).eval()
        codec = Codec(larger, procedural(larger, num_clips), batch_size=10)
        errors["full, 64x64 as trained"] = codec.pixel_errors(codec.full)
    return errors


def vae_table(options: argparse.Namespace, seed: int):
    print(f"FrameSelectVAE, {options.steps} steps, seed {seed}: PSNR and its difference to the demo's configuration")
    reference: dict[str, torch.Tensor] = {}
    for name in [row for row in VAE_ROWS if row == "demo" or row in options.only]:
        folder = options.output / f"vae-{name}-{seed}"
        if not finished(folder):
            overrides = VAE_RECIPE + common(options, folder, seed) + VAE_ROWS[name]
            train_frame_select_vae.main(options.vae_config, overrides)
        with torch.no_grad():
            errors = vae_errors(folder, options.clips)
        reference = reference or errors
        print(f"  {name:20s} keep rate {float(errors.pop('rate').mean()):.3f}")
        for key, values in errors.items():
            value, base = (decibels(float(e.mean())) for e in (values, reference[key]))
            print(f"    {key:24s} {value:6.2f} {changed(name, base, value, *interval(values, reference[key]))}")


# GapDiT


def held_out_velocity(folder: Path, options: argparse.Namespace) -> torch.Tensor:
    """Error of the latents' velocity for each held-out clip, averaged over `NOISE_LEVELS`."""
    config, objective, batches = held_out_batches(folder, options)
    errors = []
    for batch in batches:
        packed = train_gap_dit.draw_packed_frames(objective.vae, batch, config)
        data, channels = objective.clean_state(packed), packed.latents.shape[1]
        noise, _ = objective.noise(data, batch["draw"], channels)
        for sigma in NOISE_LEVELS:
            velocity = objective.model(sigma * noise + (1 - sigma) * data, 1000 * sigma, packed.mask).sample
            parts = [x[:, :channels] for x in (velocity, noise, data)]
            errors.append(flow_matching_loss(*parts, packed.mask))
    return torch.stack(errors).view(len(batches), len(NOISE_LEVELS), -1).mean(dim=1).flatten()


def held_out_batches(folder: Path, options: argparse.Namespace):
    config = load_config(
        train_gap_dit.TrainGapDiTConfig,
        config_path("demo_gap_dit.yaml"),
        [f"latents.vae={options.vae}", "run.seed=4242"],
    )
    vae = load_pretrained(FrameSelectVAE, options.vae).eval()
    model = GapDiT.from_pretrained(folder / "model").eval()
    objective = train_gap_dit.GapDiTObjective(model, vae, config)
    clips = procedural_clips(config.data, seed_offset=4242)
    batches = []
    for start in range(0, options.clips, 10):
        sample = stack_clips(clips, range(start, start + 10))
        posterior, probs, _ = vae.encode(sample, return_dict=False)
        batches.append(
            {
                "mean": posterior.mean,
                "std": posterior.std,
                "keep_probs": probs,
                "frame_mask": torch.ones_like(probs, dtype=torch.bool),
                "draw": torch.arange(start, start + 10),
            }
        )
    return config, objective, batches


def sampled_lengths(folder: Path, options: argparse.Namespace) -> torch.Tensor:
    """Frames of 32 clips that were sampled without asking for a length."""
    vae = load_pretrained(FrameSelectVAE, options.vae).eval()
    pipeline = GapDiTPipeline(GapDiT.from_pretrained(folder / "model"), vae, FlowMatchGapScheduler())
    pipeline.set_progress_bar_config(disable=True)
    kept = [1 + i % 8 for i in range(32)]
    generators = [torch.Generator().manual_seed(i) for i in range(32)]
    return pipeline(kept, num_inference_steps=25, generator=generators, output_type="latent").num_frames.float()


def transformer_table(options: argparse.Namespace, seed: int):
    print(f"GapDiT, {options.steps} steps, seed {seed}: error of the velocity, and its difference to the demo's")
    reference = None
    for name in [row for row in TRANSFORMER_ROWS if row == "demo" or row in options.only]:
        folder = options.output / f"transformer-{name}-{seed}"
        if not finished(folder):
            latents = [
                f"latents.vae={options.vae}",
                f"latents.folder={options.output / 'latents'}",
                "latents.num_clips=1000",
            ]
            overrides = latents + common(options, folder, seed) + TRANSFORMER_ROWS[name]
            train_gap_dit.main("demo_gap_dit.yaml", overrides)
        with torch.no_grad():
            errors = held_out_velocity(folder, options)
            lengths = sampled_lengths(folder, options)
        reference = errors if reference is None else reference
        value, base = float(errors.mean()), float(reference.mean())
        spread = 1.96 * float((errors - reference).std()) / len(errors) ** 0.5
        bounds = value - base - spread, value - base + spread
        print(
            f"  {name:22s} {value:.4f} {changed(name, base, value, *bounds)}"
            f"  sampled length {float(lengths.mean()):.1f} +- {float(lengths.std()):.1f}"
        )


# Latents


def latents_table(options: argparse.Namespace, seed: int):
    print(f"Latents of AutoencoderKL3D, {options.steps} steps, seed {seed}: PSNR lost, and error of the probe gained")
    names = [row for row in LATENT_ROWS if row == "demo" or row in options.only]
    folders = {name: options.output / f"latents-{name}-{seed}" for name in names}
    for name, folder in folders.items():
        if not finished(folder):
            overrides = LATENT_RECIPE + common(options, folder, seed) + LATENT_ROWS[name]
            train_autoencoder_kl_3d.main("demo_autoencoder_kl_3d.yaml", overrides)
    settings = settings_of(options.probe_steps, options.probe_seeds)
    summary = probe_models([folder / "model" for folder in folders.values()], options.output, settings)
    reference = summary.models[folders["demo"].name]
    for name, folder in folders.items():
        model = summary.models[folder.name]
        print(f"  {name}")
        for key in ("psnr", "gap_scale", "gap_shift", "gap_turn"):
            values, base = (
                {clip: figures[key] for clip, figures in known.latents["clips"].items()}
                for known in (model, reference)
            )
            print(f"    {key:10s} {estimate_text(model.figures[key].mean, estimate_difference(values, base), name)}")
        for key in ("error", "frechet"):
            pairs = zip(getattr(model, f"{key}_by_seed"), getattr(reference, f"{key}_by_seed"), strict=True)
            change = estimate_over_seeds([value - base for value, base in pairs])
            print(f"    {key:10s} {estimate_text(getattr(model, key).mean, change, name)}")


def estimate_text(value: float, change: Estimate | None, name: str) -> str:
    if change is None or change.low is None or change.high is None:
        return f"{value:.4f}"
    return f"{value:8.4f} {changed(name, 0.0, change.mean, change.low, change.high)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = sorted({*VAE_ROWS, *TRANSFORMER_ROWS, *LATENT_ROWS})
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--clips", type=int, default=100, help="held-out clips, a multiple of 10")
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "vidvae_departures")
    tables = {"vae": vae_table, "transformer": transformer_table, "latents": latents_table}
    parser.add_argument("--models", nargs="+", default=list(tables), choices=list(tables))
    parser.add_argument("--probe-steps", type=int, default=300)
    parser.add_argument("--probe-seeds", type=int, default=3)
    parser.add_argument("--vae-config", default="demo_frame_select_vae_32.yaml", help="the first row's configuration")
    parser.add_argument("--vae", default="demo", help="folder of the FrameSelectVAE that GapDiT is trained on")
    parser.add_argument("--only", nargs="+", default=rows, choices=rows)
    options = parser.parse_args()
    for seed in options.seeds:
        for name in options.models:
            tables[name](options, seed)


if __name__ == "__main__":
    main()
