"""Puts trained models together as the folder of the embedded demo models.

python -m diffusers_vidvae.training.export_demo --vae RUN/model --autoencoder RUN/model --output FOLDER
    [--pipeline RUN/pipeline]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin

from diffusers_vidvae.hub.push import config_without_path
from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE
from diffusers_vidvae.pipelines.pipeline_gap_dit import GapDiTPipeline
from diffusers_vidvae.pipelines.pipeline_video_compression import VideoCompressionPipeline


# Bytes of the weights of a FrameSelectVAE, an AutoencoderKL3D and a GapDiTPipeline.
MAX_VAE, MAX_AUTOENCODER, MAX_PIPELINE = 6_000_000, 4_000_000, 6_000_000


def export_demo(
    vae: str | Path, autoencoder: str | Path, output: str | Path, pipeline: str | Path | None = None
) -> int:
    r"""Writes all as float16 into one folder and returns the bytes of all weights.

    Args:
        vae: Folder of a `FrameSelectVAE`, which becomes a `VideoCompressionPipeline`.
        autoencoder: Folder of an `AutoencoderKL3D`, written to `autoencoder_kl_3d`.
        output: Folder to write.
        pipeline: Folder of a `GapDiTPipeline`, written to `generation`; None leaves that folder as it is.

    Raises:
        ValueError: Weights are too large to be embedded.
    """
    output = Path(output)
    parts: list[tuple[ModelMixin | DiffusionPipeline, Path, int]] = [
        (VideoCompressionPipeline(FrameSelectVAE.from_pretrained(vae, dtype=torch.float16)), output, MAX_VAE),
        (
            AutoencoderKL3D.from_pretrained(autoencoder, dtype=torch.float16),
            output / "autoencoder_kl_3d",
            MAX_AUTOENCODER,
        ),
    ]
    if pipeline is not None:
        generator = GapDiTPipeline.from_pretrained(pipeline, dtype=torch.float16)
        parts.append((generator, output / "generation", MAX_PIPELINE))
    for part, folder, limit in parts:
        models = [part] if isinstance(part, ModelMixin) else part.components.values()
        size = sum(2 * p.numel() for model in models if isinstance(model, ModelMixin) for p in model.parameters())
        if size > limit:
            raise ValueError(f"{folder}: the weights take {size} bytes, more than the {limit} that may be embedded.")
    for part, folder, _ in parts:
        part.save_pretrained(folder)
    for file in output.rglob("*.json"):
        text = config_without_path(file)
        if text is not None:
            file.write_text(text, encoding="utf-8")
    return sum(path.stat().st_size for path in output.rglob("*.safetensors"))


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
