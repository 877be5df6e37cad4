r"""Which autoencoder, at which rate: models, budgets and codecs on the same clips, and a report to look at.

`evaluate_models` measures and `write_report` draws; `vidvae evaluate --report` does both.
"""

from __future__ import annotations

from .clips import DEMO_MOTIONS
from .report import write_report
from .run import evaluate_models
from .settings import EvaluationSettings
from .summary import summarize


__all__ = ["DEMO_MOTIONS", "EvaluationSettings", "evaluate_models", "summarize", "write_report"]
