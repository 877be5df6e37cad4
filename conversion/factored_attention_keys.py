r"""Keys of the space-time blocks in checkpoints of floatingtrees/dynamic-frame-compression."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .checkpoints import KeyPlan, PlannedTensor, Shape


# Rotary tables are recomputed.
IGNORED_KEYS = r"\.ROPE\.(cos|sin)_cached$"

_BRANCHES = {"Temporal": "temporal", "Spatial": "spatial"}


def block_key_plan(
    source: str, target: str, dim: int, num_attention_heads: int, attention_head_dim: int, ff_inner_dim: int
) -> KeyPlan:
    r"""Plan of one `FactoredAttention` layer: renames, and one split of the joint q|k|v projection."""
    inner_dim = num_attention_heads * attention_head_dim
    plan: KeyPlan = {}

    def rename(old: str, new: str, *shape: int):
        plan[f"{source}.{old}"] = PlannedTensor(shape, {f"{target}.{new}": shape})

    for old, new in _BRANCHES.items():
        attention, mlp = f"{old}Attention", f"{old}MLP"
        for kind, shape in (("weight", (inner_dim, dim)), ("bias", (inner_dim,))):
            plan[f"{source}.{attention}.qkv_projection.{kind}"] = PlannedTensor(
                (3 * shape[0], *shape[1:]),
                {f"{target}.{new}_attn.to_{name}.{kind}": shape for name in "qkv"},
            )
        rename(f"{attention}.input_norm.weight", f"{new}_attn_norm.weight", dim)
        rename(f"{attention}.input_norm.bias", f"{new}_attn_norm.bias", dim)
        rename(f"{attention}.q_norm.weight", f"{new}_attn.norm_q.weight", attention_head_dim)
        rename(f"{attention}.k_norm.weight", f"{new}_attn.norm_k.weight", attention_head_dim)
        rename(f"{attention}.out_projection.weight", f"{new}_attn.to_out.0.weight", dim, inner_dim)
        rename(f"{attention}.out_projection.bias", f"{new}_attn.to_out.0.bias", dim)
        rename(f"{mlp}.norm.weight", f"{new}_ff_norm.weight", dim)
        rename(f"{mlp}.norm.bias", f"{new}_ff_norm.bias", dim)
        rename(f"{mlp}.linear1.weight", f"{new}_ff.linear_1.weight", ff_inner_dim, dim)
        rename(f"{mlp}.linear1.bias", f"{new}_ff.linear_1.bias", ff_inner_dim)
        rename(f"{mlp}.linear2.weight", f"{new}_ff.linear_2.weight", dim, ff_inner_dim)
        rename(f"{mlp}.linear2.bias", f"{new}_ff.linear_2.bias", dim)
    return plan


def block_config(shapes: Mapping[str, Shape], prefix: str) -> dict[str, int]:
    r"""Sizes of a block, read off the shapes of the layer whose keys begin with `prefix`."""
    inner_dim = shapes[f"{prefix}.TemporalAttention.out_projection.weight"][1]
    attention_head_dim = shapes[f"{prefix}.TemporalAttention.q_norm.weight"][0]
    return {
        "num_attention_heads": inner_dim // attention_head_dim,
        "attention_head_dim": attention_head_dim,
        "ff_inner_dim": shapes[f"{prefix}.TemporalMLP.linear1.weight"][0],
    }


def table_length(shapes: Mapping[str, Shape], prefix: str, default: int) -> int:
    r"""Longest clip of a checkpoint that carries its temporal rotary tables, `default` for one that does not."""
    return shapes.get(f"{prefix}.TemporalAttention.ROPE.cos_cached", (1, default))[1]


def convert_planned_key(key: str, tensor: torch.Tensor, planned: PlannedTensor) -> dict[str, torch.Tensor]:
    r"""Splits a tensor over its targets along the first axis; with one target, renames and reshapes it."""
    if len(planned.targets) > 1:
        return dict(zip(planned.targets, tensor.chunk(len(planned.targets)), strict=True))
    ((name, shape),) = planned.targets.items()
    return {name: tensor.reshape(shape)}
