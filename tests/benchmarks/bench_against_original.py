r"""FrameSelectVAE and GapDiT against the original project, and against the arithmetic that both must do.

    python tests/benchmarks/bench_against_original.py --original CHECKOUT [--dtypes float32 bfloat16] [--repeats 5]
        [--jobs encode decode step generate] [--frames 32] [--size 256] [--layers N] [--profile]

CHECKOUT is one of https://github.com/floatingtrees/dynamic-frame-compression. Models have random weights and their
published sizes; fewer frames, smaller ones and fewer layers make a quick run. The original, ours and the floor take
turns in one process, and medians of the turns are printed. The floor is the time of our matrix products and
convolutions alone, at the same shapes, in the same dtype and into memory that is there already. `--cpu-time` counts
processor time in place of time by the clock, for machines that others use, too.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffusers.utils import logging  # noqa: E402

from diffusers_vidvae import FlowMatchGapScheduler, FrameSelectVAE, GapDiT, GapDiTPipeline  # noqa: E402
from diffusers_vidvae.models.factored_attention import FactoredAttention  # noqa: E402


ORIGINAL_CLASSES = {"autoencoder.py": "VideoVAE", "diffusion_model.py": "VideoDiT", "layers.py": "FactoredAttention"}
JOBS = ("encode", "decode", "step", "generate")
PATCH_SIZE, LATENT_CHANNELS, LATENT_FRAMES = 16, 96, 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", type=Path, required=True, help="checkout of the original project")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--jobs", nargs="+", default=JOBS, choices=JOBS)
    parser.add_argument("--frames", type=int, default=32, help="frames of the clip")
    parser.add_argument("--size", type=int, default=256, help="height and width of the clip")
    parser.add_argument("--layers", type=int, help="blocks of every stack; by default the published numbers")
    parser.add_argument("--steps", type=int, default=4, help="sampling steps of the job 'generate'")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print the ten operations that take longest")
    options = parser.parse_args()
    check_original(options.original)
    if "bfloat16" in options.dtypes and DEVICE.type == "cuda" and not torch.cuda.is_bf16_supported():
        sys.exit(f"{torch.cuda.get_device_name()} computes no bfloat16: run with --dtypes float32.")
    sys.path.insert(0, str(options.original))

    print(f"{options.frames} frames of {options.size}x{options.size}, {torch.get_num_threads()} threads, {DEVICE}")
    print(f"{'':20} {'original':>10} {'ours':>10} {'floor':>10} {'original/ours':>14} {'ours/floor':>11}")
    for dtype in options.dtypes:
        for job in options.jobs:
            measure(job, getattr(torch, dtype), options)


def check_original(folder: Path) -> None:
    for file, name in ORIGINAL_CLASSES.items():
        path = folder / file
        if not path.is_file() or f"class {name}" not in path.read_text(encoding="utf-8", errors="replace"):
            sys.exit(f"{folder} is no checkout of floatingtrees/dynamic-frame-compression: {file} has no {name}.")


@torch.inference_mode()
def measure(job: str, dtype: torch.dtype, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    original, ours = MAKE_JOB[job](dtype, options)
    with recorded_products() as products:
        ours()
    turns: dict[str, list[float]] = {"original": [], "ours": [], "floor": []}
    clock = time.process_time if options.cpu_time else time.perf_counter
    original()
    for _ in range(options.repeats):
        turns["original"].append(seconds(original, clock))
        turns["ours"].append(seconds(ours, clock))
        turns["floor"].append(sum(count * product_seconds(key, dtype, clock) for key, count in products.items()))
    times = {name: statistics.median(values) for name, values in turns.items()}
    row = " ".join(f"{value:8.2f} s" for value in times.values())
    ratios = f"{times['original'] / times['ours']:14.2f} {times['ours'] / times['floor']:11.2f}"
    print(f"{job:9} {str(dtype).removeprefix('torch.'):10} {row} {ratios}", flush=True)
    if options.profile:
        for name, function in (("original", original), ("ours", ours)):
            print(f"\n{name}:\n{top_operations(function)}")


def seconds(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    synchronize()
    start = clock()
    function()
    synchronize()
    return clock() - start


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def top_operations(function: Callable[[], Any]) -> str:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        function()
    order = f"self_{DEVICE.type}_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=48)


# The two sides of every job


def make_vaes(dtype: torch.dtype, options: argparse.Namespace) -> tuple[nn.Module, FrameSelectVAE]:
    depth = {} if options.layers is None else {"encoder_depth": options.layers, "decoder_depth": options.layers}
    original = importlib.import_module("autoencoder").VideoVAE(options.size, options.size, **depth)
    layers = (
        {} if options.layers is None else dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), options.layers)
    )
    ours = FrameSelectVAE(sample_size=options.size, **layers)
    return prepare(original, dtype), prepare(ours, dtype)


def make_transformers(dtype: torch.dtype, options: argparse.Namespace) -> tuple[nn.Module, GapDiT]:
    side, layers = options.size // PATCH_SIZE, options.layers or 30
    original = importlib.import_module("diffusion_model").VideoDiT(side**2, depth=layers)
    return prepare(original, dtype), prepare(GapDiT(sample_size=side, num_layers=layers), dtype)


def prepare(model: Any, dtype: torch.dtype) -> Any:
    logging.set_verbosity_error()  # `to` warns of layers that it casts as asked
    return model.to(DEVICE, dtype).eval()


def encode_job(dtype: torch.dtype, options: argparse.Namespace) -> tuple[Callable, Callable]:
    original, ours = make_vaes(dtype, options)
    pixels = torch.rand(1, 3, options.frames, options.size, options.size, device=DEVICE)
    frames = pixels.permute(0, 2, 3, 4, 1).contiguous().to(dtype)
    mask = torch.ones(1, 1, 1, options.frames, dtype=torch.bool, device=DEVICE)
    return lambda: original.encoder(frames, mask, train=False), lambda: ours.encode(2 * pixels - 1)


def decode_job(dtype: torch.dtype, options: argparse.Namespace) -> tuple[Callable, Callable]:
    original, ours = make_vaes(dtype, options)
    tokens, gaps, slots = kept_latents(dtype, options)
    latents, keep_mask = spread_latents(tokens, gaps, options)
    return (
        lambda: original.decompress(tokens, None, gaps, slots, output_length=options.frames),
        lambda: ours.decode(latents, keep_mask),
    )


def step_job(dtype: torch.dtype, options: argparse.Namespace) -> tuple[Callable, Callable]:
    original, ours = make_transformers(dtype, options)
    tokens, _, slots = kept_latents(dtype, options)
    side = options.size // PATCH_SIZE
    latents = tokens.permute(0, 3, 1, 2).unflatten(3, (side, side)).contiguous()
    moment = torch.full((1, 1), 0.5, device=DEVICE, dtype=dtype)
    return lambda: original(tokens, slots, moment), lambda: ours(latents, 500.0)


def generate_job(dtype: torch.dtype, options: argparse.Namespace) -> tuple[Callable, Callable]:
    sample = importlib.import_module("diffusion_model").sample
    (original_vae, vae), (original, transformer) = make_vaes(dtype, options), make_transformers(dtype, options)
    noise, gaps, slots = kept_latents(dtype, options)
    pipe = GapDiTPipeline(transformer, vae, FlowMatchGapScheduler())
    pipe.set_progress_bar_config(disable=True)

    def generate_originally() -> Any:
        latents, _ = sample(original, noise, slots, num_steps=options.steps)
        frames = original_vae.decompress(latents, None, gaps, slots, output_length=options.frames)
        return frames[0].cpu().float().numpy()

    def generate() -> Any:
        lengths = {"num_latent_frames": noise.shape[1], "num_frames": options.frames}
        return pipe(**lengths, num_inference_steps=options.steps, output_type="np").frames

    return generate_originally, generate


MAKE_JOB = {"encode": encode_job, "decode": decode_job, "step": step_job, "generate": generate_job}


def kept_latents(dtype: torch.dtype, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens of kept frames as the original has them, the gaps between them, and which slots hold one."""
    num_kept = min(LATENT_FRAMES, options.frames)
    tokens = torch.randn(1, num_kept, (options.size // PATCH_SIZE) ** 2, LATENT_CHANNELS, device=DEVICE, dtype=dtype)
    gaps = torch.full((1, num_kept), options.frames // num_kept, device=DEVICE)
    gaps[:, 0] = 0
    return tokens, gaps, torch.ones(1, num_kept, dtype=torch.bool, device=DEVICE)


def spread_latents(
    tokens: torch.Tensor, gaps: torch.Tensor, options: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    side, positions = options.size // PATCH_SIZE, gaps[0].cumsum(0)
    latents = tokens.new_zeros(1, LATENT_CHANNELS, options.frames, side, side)
    latents[:, :, positions] = tokens.permute(0, 3, 1, 2).unflatten(3, (side, side))
    keep_mask = torch.zeros(1, options.frames, dtype=torch.bool, device=DEVICE)
    keep_mask[:, positions] = True
    return latents, keep_mask


# The floor


@contextmanager
def recorded_products():
    """Counts the matrix products and convolutions of our modules by their shapes."""
    products: Counter[tuple] = Counter()

    def linear(module: nn.Linear, inputs: tuple) -> None:
        products[("linear", inputs[0].numel() // module.in_features, *module.weight.shape)] += 1

    def convolution(module: nn.Conv3d, inputs: tuple) -> None:
        kind = "transposed" if isinstance(module, nn.ConvTranspose3d) else "convolution"
        settings = tuple(module.weight.shape), module.stride, module.padding
        products[(kind, tuple(inputs[0].shape), *settings)] += 1

    def attention(module: FactoredAttention, inputs: tuple) -> None:
        batch_size, num_frames, num_tokens, _ = inputs[0].shape
        lengths = (num_tokens, num_frames) if module.over_frames else (num_frames, num_tokens)
        products[("attention", batch_size * lengths[0] * module.heads, lengths[1], module.dim_head)] += 1

    def hook(module: nn.Module, inputs: tuple) -> None:
        if isinstance(module, nn.Linear):
            linear(module, inputs)
        elif isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            convolution(module, inputs)
        elif isinstance(module, FactoredAttention):
            attention(module, inputs)

    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield products
    finally:
        handle.remove()


def product_seconds(key: tuple, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Time of one product or convolution of some shapes, alone and into memory that is there already."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE, dtype=dtype)

    kind, *shapes = key
    if kind == "linear":
        rows, out_features, in_features = shapes
        inputs, weight, output = (
            random(rows, in_features),
            random(out_features, in_features),
            random(rows, out_features),
        )
        return seconds(lambda: torch.mm(inputs, weight.T, out=output), clock)
    if kind == "attention":
        sequences, length, channels = shapes
        states, scores = random(sequences, length, channels), random(sequences, length, length)
        output = torch.empty_like(states)

        def attend() -> None:
            torch.bmm(states, states.transpose(1, 2), out=scores)
            torch.bmm(scores, states, out=output)

        return seconds(attend, clock)
    shape, weight_shape, stride, padding = shapes
    inputs, weight = random(*shape).contiguous(memory_format=torch.channels_last_3d), random(*weight_shape)
    function = F.conv_transpose3d if kind == "transposed" else F.conv3d
    return seconds(lambda: function(inputs, weight, stride=stride, padding=padding), clock)


if __name__ == "__main__":
    main()
