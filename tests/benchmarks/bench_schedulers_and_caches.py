"""What schedulers and caches of diffusers make of a `GapDiTPipeline`: cost, and distance to 1000 Euler steps.

python tests/benchmarks/bench_schedulers_and_caches.py              # the demo model
python tests/benchmarks/bench_schedulers_and_caches.py FOLDER       # any pipeline folder
python tests/benchmarks/bench_schedulers_and_caches.py --random     # a small model of random weights

A row is one way to sample the same noise. "runs" are calls of the transformer, "blocks" the share of their attentions
and MLPs that a cache left to compute, "latents" the relative distance of the latent frames to 1000 Euler steps, "gaps"
the mean difference of gaps in frames, "time" the time of sampling (processor time on a CPU, so that other jobs do not
matter much) as a fraction of that of 50 Euler steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SchedulerMixin,
    TaylorSeerCacheConfig,
    UniPCMultistepScheduler,
)


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusers_vidvae import FlowMatchGapScheduler, FrameSelectVAE, GapDiT, GapDiTPipeline, demo_model  # noqa: E402


REFERENCE_STEPS = 1000
CACHE_STEPS = 50
FLOW_SOLVER = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

SCHEDULERS: dict[str, Callable[[], SchedulerMixin]] = {
    "FlowMatchGap (Euler)": lambda: FlowMatchGapScheduler(),
    "FlowMatchGap, shift 3": lambda: FlowMatchGapScheduler(shift=3.0),
    "FlowMatchEuler": lambda: FlowMatchEulerDiscreteScheduler(),
    "FlowMatchHeun": lambda: FlowMatchHeunDiscreteScheduler(),
    "UniPC, order 2": lambda: UniPCMultistepScheduler(**FLOW_SOLVER),
    "DPM++, order 2": lambda: DPMSolverMultistepScheduler(**FLOW_SOLVER),
    "DPM++, order 3": lambda: DPMSolverMultistepScheduler(**FLOW_SOLVER, solver_order=3),
}


class Sampled(NamedTuple):
    latents: torch.Tensor
    gaps: torch.Tensor
    seconds: float
    runs: int
    computed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="pipeline folder, by default that of the demo model")
    parser.add_argument("--random", action="store_true", help="a small model of random weights instead")
    parser.add_argument("--videos", type=int, default=8, help="videos sampled at once (default: 8)")
    parser.add_argument("--num-latent-frames", type=int, default=4, help="latent frames of each (default: 4)")
    parser.add_argument("--repetitions", type=int, default=3, help="timed repetitions, of which the fastest counts")
    parser.add_argument("--device", default="cpu", help="where to run (default: cpu)")
    arguments = parser.parse_args()

    pipe = (
        make_random_pipeline()
        if arguments.random
        else GapDiTPipeline.from_pretrained(arguments.folder or demo_model())
    )
    pipe.to(arguments.device)
    pipe.set_progress_bar_config(disable=True)
    bench = Bench(pipe, arguments.videos, arguments.num_latent_frames, arguments.repetitions)
    print(f"{'':34}{'steps':>6}{'runs':>6}{'blocks':>8}{'latents':>9}{'gaps':>7}{'time':>7}")
    for steps in (CACHE_STEPS, 20, 10, 5):
        for name, make_scheduler in SCHEDULERS.items():
            pipe.scheduler = make_scheduler()
            bench.show(name, steps)
    pipe.scheduler = FlowMatchGapScheduler()
    for name, config in caches(pipe):
        with cached(pipe.transformer, config):
            bench.show(name, CACHE_STEPS)


def caches(pipe: GapDiTPipeline) -> Iterator[tuple[str, object]]:
    """Caches at settings from careful to bold, all for 50 Euler steps."""
    for threshold in (0.02, 0.05, 0.1):
        yield f"First block, threshold {threshold}", FirstBlockCacheConfig(threshold=threshold)
    ratios = measure_magnitudes(pipe)
    for threshold in (0.03, 0.1):
        yield (
            f"Mag, threshold {threshold}",
            MagCacheConfig(threshold=threshold, num_inference_steps=CACHE_STEPS, mag_ratios=ratios),
        )
    for order in (0, 1, 2):
        yield (
            f"TaylorSeer, interval 3, order {order}",
            TaylorSeerCacheConfig(cache_interval=3, max_order=order, taylor_factors_dtype=torch.float32),
        )
    yield (
        "TaylorSeer lite, interval 3",
        TaylorSeerCacheConfig(cache_interval=3, taylor_factors_dtype=torch.float32, use_lite_mode=True),
    )
    for spatial, temporal in ((2, 2), (2, 4), (4, 4)):
        yield (
            f"PAB, spatial {spatial}, temporal {temporal}",
            PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=spatial,
                temporal_attention_block_skip_range=temporal,
                spatial_attention_block_identifiers=("spatial_attn",),
                temporal_attention_block_identifiers=("temporal_attn",),
                current_timestep_callback=lambda: pipe.current_timestep,
            ),
        )
    yield (
        "FasterCache, attention only",
        FasterCacheConfig(
            spatial_attention_block_identifiers=("spatial_attn",),
            temporal_attention_block_identifiers=("temporal_attn",),
            temporal_attention_block_skip_range=2,
            attention_weight_callback=lambda module: 0.5,
            is_guidance_distilled=True,
            current_timestep_callback=lambda: pipe.current_timestep,
        ),
    )


@contextmanager
def cached(transformer: GapDiT, config: object) -> Iterator[None]:
    transformer.enable_cache(config)
    try:
        yield
    finally:
        transformer.disable_cache()


def measure_magnitudes(pipe: GapDiTPipeline) -> torch.Tensor:
    """How the residual of all blocks grows from step to step, which MagCache wants to know."""
    residuals: list[torch.Tensor] = []
    ratios: list[float] = []

    def enter(module, args, kwargs):
        residuals.append(args[0])

    def leave(module, args, output):
        residual = (output - residuals.pop()).float().norm(dim=-1)
        if residuals:
            ratios.append((residual / residuals.pop().clamp(min=1e-8)).mean().item())
        residuals.append(residual)

    blocks = pipe.transformer.transformer_blocks
    hooks = [
        blocks[0].register_forward_pre_hook(enter, with_kwargs=True),
        blocks[-1].register_forward_hook(leave),
    ]
    pipe(num_latent_frames=4, num_inference_steps=CACHE_STEPS, output_type="latent")
    for hook in hooks:
        hook.remove()
    return torch.tensor([1.0, *ratios])


class Bench:
    """Samples one set of noise in many ways and prints how each compares."""

    def __init__(self, pipe: GapDiTPipeline, videos: int, num_latent_frames: int, repetitions: int):
        self.pipe = pipe
        self.videos = videos
        self.num_latent_frames = num_latent_frames
        self.repetitions = repetitions
        self.clock = time.process_time if pipe.device.type == "cpu" else time.perf_counter
        self.runs = self.computed = 0
        pipe.transformer.proj_in.register_forward_hook(self.count_run)
        for name, module in pipe.transformer.named_modules():
            if name.startswith("transformer_blocks") and name.endswith(("to_v", "linear_2")):
                module.register_forward_hook(self.count_computed)
        pipe.scheduler = FlowMatchEulerDiscreteScheduler()
        self.reference = self.sample(REFERENCE_STEPS)
        pipe.scheduler = FlowMatchGapScheduler()
        self.baseline = self.timed(CACHE_STEPS)

    def count_run(self, *_) -> None:
        self.runs += 1

    def count_computed(self, *_) -> None:
        self.computed += 1

    def sample(self, steps: int) -> Sampled:
        self.runs = self.computed = 0
        generators = [torch.Generator().manual_seed(seed) for seed in range(self.videos)]
        start = self.clock()
        output = self.pipe(
            self.num_latent_frames,
            num_inference_steps=steps,
            generator=generators,
            output_type="latent",
            batch_size=self.videos,
        )
        latents = output.frames.cpu()  # waits for the device
        return Sampled(latents, output.gaps.cpu(), self.clock() - start, self.runs, self.computed)

    def timed(self, steps: int) -> Sampled:
        return min((self.sample(steps) for _ in range(self.repetitions)), key=lambda sampled: sampled.seconds)

    def show(self, name: str, steps: int) -> None:
        sampled = self.timed(steps)
        per_run = self.reference.computed / self.reference.runs
        blocks = sampled.computed / (sampled.runs * per_run)
        latents = (sampled.latents - self.reference.latents).norm() / self.reference.latents.norm()
        gaps = (sampled.gaps - self.reference.gaps).abs().float().mean()
        seconds = sampled.seconds / self.baseline.seconds
        print(
            f"{name:34}{steps:6}{sampled.runs:6}{blocks:8.0%}{latents:9.4f}{gaps:7.2f}{seconds:7.2f}",
            flush=True,
        )


def make_random_pipeline() -> GapDiTPipeline:
    """Weights that were never trained, scaled so that blocks and time matter; the flow is smooth in time."""
    torch.manual_seed(0)
    transformer = GapDiT(
        sample_size=8,
        in_channels=16,
        hidden_size=128,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=32,
        ff_inner_dim=256,
        max_num_frames=16,
        rope_type="axial",
        gap_mode="flow",
    )
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    vae = FrameSelectVAE(sample_size=64, patch_size=8, latent_channels=16, num_encoder_layers=1, num_decoder_layers=1)
    return GapDiTPipeline(transformer.eval(), vae.eval(), FlowMatchGapScheduler())


if __name__ == "__main__":
    main()
