r"""Whether the probe of `vidvae evaluate --generation` tells models apart, beyond what its seeds do.

    python tests/benchmarks/bench_generation_probe.py --models A B [--steps 300] [--seeds 3] [--output FOLDER]

Models that differ in one option of their training, such as those that `bench_departures.py --models latents` leaves in
its output folder. For each: error of the probe for every seed, and what is known of its latents without one; then the
difference of each to the first, seed by seed, with its interval of 95 % (Student's t), and how many times the largest
difference between two seeds of one model it is. Windows are procedural, of 8 frames of 32x32 pixels, the size that
these models were trained on. What is measured already is not measured again.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from diffusers import AutoModel

from diffusers_vidvae.evaluation import GenerationSettings, evaluate_generation, summarize_generation
from diffusers_vidvae.evaluation.generation.summary import GenerationSummary


def settings_of(steps: int, seeds: int) -> GenerationSettings:
    return GenerationSettings(
        num_frames=8,
        side=32,
        train_windows=256,
        held_out_windows=96,
        steps=steps,
        batch_size=8,
        seeds=tuple(range(seeds)),
        sampling_steps=16,
    )


def probe_models(folders: list[Path], output: Path, settings: GenerationSettings) -> GenerationSummary:
    """Measures models by their folders, each in one of its own, so that further ones may come later."""
    records, fingerprints, header = {}, {}, {}
    for folder in folders:
        name = folder.parent.name if folder.name == "model" else folder.name
        model = AutoModel.from_pretrained(str(folder)).eval()
        results = evaluate_generation({name: model}, [], output / f"probe-{name}", settings)
        records |= results.load()
        header, fingerprints = results.header, fingerprints | results.header["models"]
    return summarize_generation(records, header | {"models": fingerprints})


def print_summary(summary: GenerationSummary) -> None:
    headings = " ".join(f"{name:>6s}" for name in ("PSNR", "dim.", "high %", "scale", "shift", "turn"))
    print(f"{'model':32s} {headings}  error by seed")
    for name, model in summary.models.items():
        figures = [model.figures["psnr"].mean, model.latents["dimension"]["entropy"]]
        figures += [100 * model.latents["spectrum"]["latents_high_share"]]
        figures += [model.figures[f"gap_{transform}"].mean for transform in ("scale", "shift", "turn")]
        errors = " ".join(f"{error:.4f}" for error in model.error_by_seed)
        distances = " ".join(f"{distance:.3f}" for distance in model.frechet_by_seed)
        line = " ".join(f"{figure:6.2f}" for figure in figures)
        print(f"{name:32s} {line}  {errors}  Fréchet {distances} (real {model.latents['frechet_real']:.3f})")
    for figure in ("error", "frechet"):
        by_seed = [getattr(model, f"{figure}_by_seed") for model in summary.models.values()]
        spread = max(max(values) - min(values) for values in by_seed)
        for other, of, estimate in summary.differences:
            if of == figure:
                bounds = "" if estimate.low is None else f" [{estimate.low:+.4f}, {estimate.high:+.4f}]"
                ratio = f"{abs(estimate.mean) / max(spread, 1e-12):.1f} spreads of seeds"
                print(f"{figure}: {summary.first} - {other} = {estimate.mean:+.4f}{bounds}, {ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="folders of models")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "vidvae_departures")
    options = parser.parse_args()
    print_summary(probe_models(options.models, options.output, settings_of(options.steps, options.seeds)))


if __name__ == "__main__":
    main()
