r"""Which autoencoder, at which rate: models, budgets and codecs on the same clips, and a report to look at.

`evaluate_models` measures and `write_report` draws; `vidvae evaluate --report` does both. `evaluate_generation` tells
how easily latents are learned.
"""

from __future__ import annotations

from .clips import DEMO_MOTIONS
from .generation import GenerationSettings, evaluate_generation, summarize_generation
from .report import write_report
from .run import evaluate_models
from .settings import EvaluationSettings
from .summary import summarize


__all__ = [
    "DEMO_MOTIONS",
    "EvaluationSettings",
    "GenerationSettings",
    "evaluate_generation",
    "evaluate_models",
    "summarize",
    "summarize_generation",
    "write_report",
]
