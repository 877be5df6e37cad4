from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState, PartialState


TINY_VAE = {
    "sample_size": 16,
    "patch_size": 8,
    "latent_channels": 4,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "ff_inner_dim": 32,
    "hidden_size": 16,
    "max_num_frames": 8,
    "clip_num_frames": 4,
    "unpatch_channels": 1,
    "refiner_channels": 2,
    "refiner_levels": 1,
    "patch_norm": False,
    "rope_type": "axial",
    "keep_head": "pooled",
    "refiner_norm": "frame",
}
TINY_KL = {"latent_channels": 2, "block_out_channels": [4, 4, 8, 8], "layers_per_block": 1, "mid_block_layers": 1}
TINY_DIT = {
    "sample_size": 2,
    "hidden_size": 16,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "ff_inner_dim": 32,
    "max_num_frames": 4,
    "rope_type": "axial",
    "time_embedding": "adaptive",
    "gap_mode": "flow",
}
DATA = {"num_frames": 4, "sample_size": 16, "num_procedural_clips": 50}
RUN = {
    "max_steps": 4,
    "batch_size": 2,
    "mixed_precision": "fp32",
    "cpu": True,
    "learning_rate": 1e-3,
    "warmup_steps": 1,
    "ema_decay": 0.9,
    "log_every": 1,
    "validate_every": 0,
    "validation_clips": 5,
    "baseline_clips": 0,
    "checkpoint_every": 2,
}


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def write_config(tmp_path):
    """Writes a tiny configuration with changes to its sections; returns the file."""

    def write(model: dict, output: str = "run", **sections: dict) -> Path:
        config = {"model": model, "data": dict(DATA), "run": dict(RUN, output_dir=str(tmp_path / output))}
        for name, values in sections.items():
            config[name] = {**config.get(name, {}), **values}
        path = tmp_path / f"{output}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def logged_losses(folder: Path) -> dict[int, float]:
    """Training loss by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}
