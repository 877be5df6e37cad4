"""Puts trained models together as the folder of the embedded demo model.

python -m diffusers_vidvae.training.export_demo --pipeline RUN/pipeline --autoencoder RUN/model [--vae RUN/model]
    --output FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diffusers_vidvae.hub.push import config_without_path
from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE
from diffusers_vidvae.pipelines.pipeline_gap_dit import GapDiTPipeline


MAX_BYTES = 8_000_000


def export_demo(
    pipeline: str | Path, autoencoder: str | Path, output: str | Path, vae: str | Path | None = None
) -> int:
    r"""Writes all as float16 into one folder and returns the bytes of all weights.

    Args:
        pipeline: Folder of a `GapDiTPipeline`.
        autoencoder: Folder of an `AutoencoderKL3D`.
        output: Folder to write.
        vae: Folder of a `FrameSelectVAE` that takes the place of the pipeline's, because its decoder or keep head was
            trained on (`run.trained_parts`).

    Raises:
        ValueError: The weights are too large to be embedded, or `vae` has other latents than the pipeline's.
    """
    parts = GapDiTPipeline.from_pretrained(pipeline, dtype=torch.float16)
    if vae is not None:
        _replace_vae(parts, FrameSelectVAE.from_pretrained(vae, dtype=torch.float16), vae)
    model = AutoencoderKL3D.from_pretrained(autoencoder, dtype=torch.float16)
    size = sum(2 * sum(p.numel() for p in part.parameters()) for part in (parts.vae, parts.transformer, model))
    if size > MAX_BYTES:
        raise ValueError(f"The weights take {size} bytes, more than the {MAX_BYTES} that may be embedded.")
    parts.save_pretrained(output)
    model.save_pretrained(Path(output) / "autoencoder_kl_3d")
    for file in Path(output).rglob("*.json"):
        text = config_without_path(file)
        if text is not None:
            file.write_text(text, encoding="utf-8")
    return sum(path.stat().st_size for path in Path(output).rglob("*.safetensors"))


def _replace_vae(parts: GapDiTPipeline, vae: FrameSelectVAE, name: str | Path) -> None:
    before, after = (
        {key: value for key, value in model.encoder.state_dict().items() if not key.startswith("keep_head.")}
        for model in (parts.vae, vae)
    )
    if any(not torch.equal(value, after[key]) for key, value in before.items()):
        raise ValueError(
            f"{name}: its encoder is not that of the pipeline, so the transformer does not fit its latents."
        )
    vae.register_to_config(
        latents_mean=parts.vae.config.latents_mean,
        latents_std=parts.vae.config.latents_std,
    )
    parts.register_modules(vae=vae)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--autoencoder", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--vae")
    options = parser.parse_args()
    size = export_demo(options.pipeline, options.autoencoder, options.output, options.vae)
    print(f"{options.output}: {size / 1e6:.2f} MB of weights")


if __name__ == "__main__":
    main()
