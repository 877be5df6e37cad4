r"""What the pipelines' callbacks are given."""

from __future__ import annotations

from collections.abc import Sequence


def check_callback_inputs(names: Sequence[str], allowed: Sequence[str]) -> None:
    r"""Refuses names of tensors that a pipeline cannot give its callback."""
    unknown = sorted(set(names) - set(allowed))
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` must be among {list(allowed)}, got {unknown}.")
