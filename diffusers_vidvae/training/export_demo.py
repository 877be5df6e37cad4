"""Puts trained models together as the folder of the embedded demo models.

python -m diffusers_vidvae.training.export_demo --vae RUN/model --autoencoder RUN/model --output FOLDER
    [--pipeline RUN/pipeline]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin

from diffusers_vidvae.hub.push import config_without_path
from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE
from diffusers_vidvae.pipelines.pipeline_gap_dit import GapDiTPipeline
from diffusers_vidvae.pipelines.pipeline_video_compression import VideoCompressionPipeline


# Bytes of the weights of a FrameSelectVAE, an AutoencoderKL3D, and a GapDiT with its text encoder.
MAX_VAE, MAX_AUTOENCODER, MAX_GENERATOR = 6_000_000, 4_000_000, 6_000_000


def export_demo(
    vae: str | Path, autoencoder: str | Path, output: str | Path, pipeline: str | Path | None = None
) -> int:
    r"""Writes all as float16 into one folder and returns the bytes of all weights.

    Args:
        vae: Folder of a `FrameSelectVAE`.
        autoencoder: Folder of an `AutoencoderKL3D`, written to `autoencoder_kl_3d`.
        output: Folder to write.
        pipeline: Folder of a `GapDiTPipeline` that was trained on latents of `vae`, which makes `output` one; without
            it, `output` is a `VideoCompressionPipeline`, or stays the pipeline that it is.

    Raises:
        ValueError: Weights are too large to be embedded, or the generator's autoencoder has another encoder.
    """
    output = Path(output)
    parts: dict[Path, ModelMixin | DiffusionPipeline] = {
        output / "vae": FrameSelectVAE.from_pretrained(vae, dtype=torch.float16),
        output / "autoencoder_kl_3d": AutoencoderKL3D.from_pretrained(autoencoder, dtype=torch.float16),
    }
    _check_size(output / "vae", MAX_VAE, parts[output / "vae"])
    _check_size(output / "autoencoder_kl_3d", MAX_AUTOENCODER, parts[output / "autoencoder_kl_3d"])
    if pipeline is not None:
        generator = GapDiTPipeline.from_pretrained(pipeline, dtype=torch.float16)
        _check_encoder(pipeline, generator.vae, parts[output / "vae"])
        _check_size(output / "transformer", MAX_GENERATOR, generator.transformer, generator.text_encoder)
        generator.register_modules(vae=parts[output / "vae"])
        parts[output] = generator
    elif not (output / "model_index.json").exists():
        parts[output] = VideoCompressionPipeline(parts[output / "vae"])
    for folder, part in parts.items():
        part.save_pretrained(folder)
    for file in output.rglob("*.json"):
        text = config_without_path(file)
        if text is not None:
            file.write_text(text, encoding="utf-8")
    return sum(path.stat().st_size for path in output.rglob("*.safetensors"))


def _check_size(folder: Path, limit: int, *models: Any) -> None:
    size = sum(2 * p.numel() for model in models if model is not None for p in model.parameters())
    if size > limit:
        raise ValueError(f"{folder}: the weights take {size} bytes, more than the {limit} that may be embedded.")


def _check_encoder(pipeline: str | Path, trained_on: FrameSelectVAE, vae: Any) -> None:
    """Refuses an autoencoder with other latents than those that a generator was trained on."""
    expected, found = trained_on.encoder.state_dict(), vae.encoder.state_dict()
    same = expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    if not same:
        raise ValueError(f"{pipeline}: was trained on latents of another autoencoder than the one given.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", required=True)
    parser.add_argument("--autoencoder", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--pipeline")
    options = parser.parse_args()
    size = export_demo(options.vae, options.autoencoder, options.output, options.pipeline)
    print(f"{options.output}: {size / 1e6:.2f} MB of weights")


if __name__ == "__main__":
    main()
