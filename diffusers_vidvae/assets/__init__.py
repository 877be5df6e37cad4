"""The embedded demo models, and a film to try them on."""

from __future__ import annotations

from pathlib import Path


PURPOSES = ("compression", "generation")


def demo_model(purpose: str = "compression") -> str:
    """Folder of embedded models, small ones for trying things out; its README.md says how well they do.

    It is a `GapDiTPipeline`, whose `vae` is a `VideoCompressionPipeline`, too, and holds an `autoencoder_kl_3d`.

    Args:
        purpose: "compression" or "generation"; one folder serves both.

    Raises:
        ValueError: Another purpose.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"`purpose` must be one of {PURPOSES}, got {purpose!r}.")
    return str(Path(__file__).parent / "demo")


def demo_film() -> str:
    """File of two seconds of film: a flower opens, 48 frames of 256x144 pixels.

    From `flower.mp4` of https://github.com/mdn/shared-assets at af39d46, by the contributors of MDN Web Docs, CC0.
    """
    return str(Path(__file__).parent / "flower.mp4")
