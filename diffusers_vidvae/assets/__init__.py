"""The embedded demo model."""

from __future__ import annotations

from pathlib import Path


def demo_model() -> str:
    """Folder of the embedded model: a `GapDiTPipeline` (`vae`, `transformer`, `scheduler`) and an `autoencoder_kl_3d`.

    Small models for trying things out, trained on 16-frame clips of 64x64 pixels; README.md in the folder says how
    well they do.
    """
    return str(Path(__file__).parent / "demo")
