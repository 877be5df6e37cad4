r"""What a pipeline asks the flow-matching schedulers of diffusers."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler


FLOW_SCHEDULERS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler)


def is_flow_matching(scheduler: Any) -> bool:
    """Whether a scheduler integrates noise - data from sigma 1 to 0."""
    if isinstance(scheduler, FLOW_SCHEDULERS):
        return not scheduler.config.get("invert_sigmas")
    config = scheduler.config
    return bool(config.get("use_flow_sigmas")) and config.get("prediction_type") == "flow_prediction"


def takes_generator(scheduler: Any) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters


def dynamic_shift(config: Any, num_tokens: int) -> float:
    """Shift of a schedule with `use_dynamic_shifting`: linear in the number of tokens between two known lengths."""
    base_tokens, max_tokens = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base_shift, max_shift = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return base_shift + (max_shift - base_shift) * (num_tokens - base_tokens) / (max_tokens - base_tokens)
