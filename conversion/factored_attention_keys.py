r"""Keys of the space-time blocks in checkpoints of floatingtrees/dynamic-frame-compression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checkpoints import KeyPlan, PlannedTensor, Shape, plan_layer


# Rotary tables are recomputed.
IGNORED_KEYS = r"\.ROPE\.(cos|sin)_cached$"

_BRANCHES = {"Temporal": "temporal", "Spatial": "spatial"}


def block_key_plan(source: str, target: str, dim: int, config: Mapping[str, Any]) -> KeyPlan:
    r"""Plan of one `FactoredAttention` layer: renames, and one split of the joint q|k|v projection."""
    head_dim, ff_inner_dim = config["attention_head_dim"], config["ff_inner_dim"]
    inner_dim = config["num_attention_heads"] * head_dim
    plan: KeyPlan = {}
    for old, new in _BRANCHES.items():
        attention, mlp = f"{source}.{old}Attention", f"{source}.{old}MLP"
        new_attention, new_mlp = f"{target}.{new}_attn", f"{target}.{new}_ff"
        for kind, shape in (("weight", (inner_dim, dim)), ("bias", (inner_dim,))):
            plan[f"{attention}.qkv_projection.{kind}"] = PlannedTensor(
                (3 * shape[0], *shape[1:]), {f"{new_attention}.to_{name}.{kind}": shape for name in "qkv"}
            )
        for name in "qk":
            plan[f"{attention}.{name}_norm.weight"] = PlannedTensor(
                (head_dim,), {f"{new_attention}.norm_{name}.weight": (head_dim,)}
            )
        plan_layer(plan, f"{attention}.input_norm", f"{new_attention}_norm", (dim,))
        plan_layer(plan, f"{attention}.out_projection", f"{new_attention}.to_out.0", (dim, inner_dim))
        plan_layer(plan, f"{mlp}.norm", f"{new_mlp}_norm", (dim,))
        plan_layer(plan, f"{mlp}.linear1", f"{new_mlp}.linear_1", (ff_inner_dim, dim))
        plan_layer(plan, f"{mlp}.linear2", f"{new_mlp}.linear_2", (dim, ff_inner_dim))
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
