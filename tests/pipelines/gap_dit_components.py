"""Tiny pipelines for the tests of `GapDiTPipeline`."""

from __future__ import annotations

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

from diffusers_vidvae import FlowMatchGapScheduler, FrameSelectVAE, GapDiT, GapDiTPipeline


FLOW_SOLVER = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

SCHEDULERS = {
    "gap": lambda: FlowMatchGapScheduler(),
    "gap, shifted": lambda: FlowMatchGapScheduler(use_dynamic_shifting=True),
    "gap, stochastic": lambda: FlowMatchGapScheduler(stochastic_sampling=True),
    "euler": lambda: FlowMatchEulerDiscreteScheduler(),
    "heun": lambda: FlowMatchHeunDiscreteScheduler(),
    "lcm": lambda: FlowMatchLCMScheduler(),
    "unipc": lambda: UniPCMultistepScheduler(**FLOW_SOLVER),
    "dpm++": lambda: DPMSolverMultistepScheduler(**FLOW_SOLVER),
    "dpm++ sde": lambda: DPMSolverMultistepScheduler(**FLOW_SOLVER, algorithm_type="sde-dpmsolver++"),
}


def make_pipeline(gap_mode: str) -> GapDiTPipeline:
    """A pipeline of random weights: 16x16 frames of 4x4 patches, windows of 8 frames, up to 8 latent frames."""
    torch.manual_seed(0)
    options = {"gap_mode": "regression"}
    if gap_mode == "flow":
        options = {"gap_mode": "flow", "time_embedding": "adaptive", "gap_log_mean": 0.9, "gap_log_std": 0.6}
    transformer = GapDiT(
        sample_size=4,
        in_channels=6,
        hidden_size=32,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        ff_inner_dim=48,
        max_num_frames=8,
        **options,
    )
    vae = FrameSelectVAE(
        sample_size=16,
        patch_size=4,
        latent_channels=6,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        ff_inner_dim=32,
        max_num_frames=16,
        clip_num_frames=8,
        refiner_channels=4,
        refiner_levels=1,
        hidden_size=32,
        latents_mean=[0.1 * channel for channel in range(6)],
        latents_std=[1.0 + 0.2 * channel for channel in range(6)],
    )
    for model in (transformer, vae):
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)  # what starts at zero would hide its input
    pipe = GapDiTPipeline(transformer.eval(), vae.eval(), FlowMatchGapScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
