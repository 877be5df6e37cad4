r"""Which autoencoder, at which rate: models, budgets and codecs on the same clips, and a report to look at.

`evaluate_models` measures and `write_report` draws; `vidvae evaluate --report` does both.
"""

from __future__ import annotations

from .report import write_report
from .run import evaluate_models
from .settings import EvaluationSettings


__all__ = ["EvaluationSettings", "evaluate_models", "write_report"]
