r"""`torch.compile` by one switch, for what of a pipeline runs most."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from diffusers import ModelMixin
from torch.utils._pytree import tree_map_only


# Variants of one piece of code: sizes, first and last pieces of a clip, convolutions of several widths.
RECOMPILE_LIMIT = 64


class CompileMixin:
    r"""Gives a pipeline `enable_compile`."""

    def enable_compile(self) -> None:
        r"""Compiles the pipeline's models, see `compile_model`; once they are on their device.

        Raises:
            ValueError: There is no C++ compiler, which CPUs need.
        """
        for name in ("transformer", "vae"):
            model = getattr(self, name, None)
            if model is not None:
                compile_model(model)


def compile_model(model: ModelMixin) -> None:
    r"""Compiles what of a model runs most; its first run of every size takes longer for that.

    Blocks that repeat are compiled once for all (diffusers' regional compilation), an `AutoencoderKL3D` and other
    autoencoders by halves. A transformer on CUDA is compiled whole, and its launches are replayed as a CUDA graph, so
    that a sampling loop waits for the GPU alone.

    Args:
        model: The model, on the device that it will run on.

    Raises:
        ValueError: There is no C++ compiler, which CPUs need.
    """
    _check_compiler(model.device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    halves = [part for name in ("encoder", "decoder") if (part := getattr(model, name, None)) is not None]
    if model.device.type == "cuda" and not halves:
        replay_as_graph(model)
    elif _repeats_one_block(model):
        model.compile_repeated_blocks(dynamic=False)
    else:
        for part in halves or [model]:
            part.compile(dynamic=False)


def replay_as_graph(model: torch.nn.Module) -> None:
    r"""Compiles a model's `forward` with CUDA graphs where it runs on CUDA, and without anywhere else."""
    if not getattr(model.forward, "is_replayed", False):
        model.forward = _replayed(model.forward)


def _replayed(forward: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(forward, mode="reduce-overhead", dynamic=False)

    @wraps(forward)
    def run(*arguments: Any, **options: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        # The next run overwrites what a graph returns, and multistep schedulers keep it.
        return tree_map_only(torch.Tensor, torch.clone, compiled(*arguments, **options))

    run.is_replayed = True  # type: ignore[attr-defined]
    return run


def _repeats_one_block(model: ModelMixin) -> bool:
    """Whether a block of one size repeats; those of convolutional models differ from level to level."""
    names = getattr(model, "_repeated_blocks", None) or ()
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    return len({tuple(parameter.shape for parameter in block.parameters()) for block in blocks}) == 1


def _check_compiler(device: torch.device) -> None:
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    if device.type == "cpu" and not any(map(shutil.which, names)):
        raise ValueError(f"Compiling for a CPU needs a C++ compiler, none of {', '.join(names)} was found.")
