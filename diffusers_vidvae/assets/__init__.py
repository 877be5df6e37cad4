"""The embedded demo models."""

from __future__ import annotations

from pathlib import Path


PURPOSES = ("compression", "generation")


def demo_model(purpose: str = "compression") -> str:
    """Folder of embedded models, small ones for trying things out; README.md in the first says how well they do.

    Args:
        purpose: "compression" for a `VideoCompressionPipeline` (`vae`) and an `autoencoder_kl_3d`; "generation" for a
            `GapDiTPipeline` (`transformer`, `scheduler`, and the `vae` that it was trained on, an older one).

    Raises:
        ValueError: Another purpose.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"`purpose` must be one of {PURPOSES}, got {purpose!r}.")
    folder = Path(__file__).parent / "demo"
    return str(folder if purpose == "compression" else folder / "generation")
