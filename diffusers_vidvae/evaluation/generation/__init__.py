r"""How easily a generator learns the latents of an autoencoder: what latents show by themselves, and a small probe.

`evaluate_generation` measures and `summarize_generation` sums up; `vidvae evaluate --report --generation` does both.
"""

from __future__ import annotations

from .run import evaluate_generation
from .settings import GenerationSettings
from .summary import summarize_generation


__all__ = ["GenerationSettings", "evaluate_generation", "summarize_generation"]
