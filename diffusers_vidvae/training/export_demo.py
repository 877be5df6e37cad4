"""Puts trained models together as the folder of the embedded demo model.

python -m diffusers_vidvae.training.export_demo --pipeline RUN/pipeline --autoencoder RUN/model --output FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D
from diffusers_vidvae.pipelines.pipeline_gap_dit import GapDiTPipeline


MAX_BYTES = 8_000_000


def export_demo(pipeline: str | Path, autoencoder: str | Path, output: str | Path) -> int:
    r"""Writes both as float16 into one folder and returns the bytes of all weights.

    Args:
        pipeline: Folder of a `GapDiTPipeline`.
        autoencoder: Folder of an `AutoencoderKL3D`.
        output: Folder to write.

    Raises:
        ValueError: The weights are too large to be embedded.
    """
    parts = GapDiTPipeline.from_pretrained(pipeline, dtype=torch.float16)
    model = AutoencoderKL3D.from_pretrained(autoencoder, dtype=torch.float16)
    size = sum(2 * sum(p.numel() for p in part.parameters()) for part in (parts.vae, parts.transformer, model))
    if size > MAX_BYTES:
        raise ValueError(f"The weights take {size} bytes, more than the {MAX_BYTES} that may be embedded.")
    parts.save_pretrained(output)
    model.save_pretrained(Path(output) / "autoencoder_kl_3d")
    _forget_paths(Path(output))
    return sum(path.stat().st_size for path in Path(output).rglob("*.safetensors"))


def _forget_paths(folder: Path):
    """Removes where the models were loaded from, which is nobody else's concern."""
    for file in folder.rglob("*.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--autoencoder", required=True)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    size = export_demo(options.pipeline, options.autoencoder, options.output)
    print(f"{options.output}: {size / 1e6:.2f} MB of weights")


if __name__ == "__main__":
    main()
