r"""What diffusers' optimisations cost and gain on every model of this package.

    python tests/benchmarks/bench_optimizations.py [--width 512] [--threads 2] [--repeats 5] [--models NAME ...]
        [--rows NAME ...]

For models of random weights: the change of the output (norm of the difference over the norm), the seconds of the first
run, which are mostly those of compilation where there is some, and as ratios to the plain model the seconds of a run,
the bytes of the weights that the model holds between runs and the peak of memory that loading and running (compilation
included) add to the process. `compiled` is what `--compile` and `enable_compile` do. Each row is a process of its own,
which times the plain model too, in turn with the optimised one.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import torch
from diffusers import ModelMixin
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.utils import logging

from diffusers_vidvae import AutoencoderKL3D, FrameSelectVAE, GapDiT
from diffusers_vidvae.pipelines.compilation import compile_model


MODELS = {"FrameSelectVAE": FrameSelectVAE, "AutoencoderKL3D": AutoencoderKL3D, "GapDiT": GapDiT}
ATTENTION_ROWS = ("attention _native_math", "attention flex", "fused q, k, v", "torchao int8", "quanto int8")
ROWS = (
    "plain",
    *ATTENTION_ROWS,
    "bfloat16",
    "layerwise float8",
    "group offload to disk",
    "sequential offload",
    "compiled",
    "compiled blocks",
    "compiled whole",
)
SECONDS_OF_A_ROW = 600


def make_model(name: str, width: int) -> ModelMixin:
    heads = {"num_attention_heads": width // 64, "attention_head_dim": 64, "ff_inner_dim": 2 * width}
    torch.manual_seed(0)
    if name == "FrameSelectVAE":
        layers = {"num_encoder_layers": 6, "num_decoder_layers": 6, "refiner_levels": 2}
        model = FrameSelectVAE(sample_size=64, patch_size=8, latent_channels=24, hidden_size=width, **layers, **heads)
    elif name == "AutoencoderKL3D":
        channels = tuple(width // factor for factor in (16, 8, 4, 4))
        model = AutoencoderKL3D(block_out_channels=channels, layers_per_block=(1, 1, 1, 1), mid_block_layers=1)
    else:
        model = GapDiT(sample_size=8, in_channels=24, hidden_size=width, num_layers=12, **heads)
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


def run(model: ModelMixin) -> torch.Tensor:
    """A clip of 16 frames of 64x64 pixels there and back, or a step of denoising 8 latent frames of two clips."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, GapDiT):
        latents = torch.randn(2, 24, 8, 8, 8, generator=generator)
        return model(latents.to(model.dtype), torch.tensor([700.0, 100.0]), return_dict=False)[0]
    sample = torch.rand(1, 3, 16, 64, 64, generator=generator) * 2 - 1
    return model.decode(model.encode(sample.to(model.dtype)).latent_dist.mode()).sample


def optimised(folder: str, model_class: type[ModelMixin], name: str) -> ModelMixin:
    if name == "torchao int8":
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig())
        return model_class.from_pretrained(folder, quantization_config=config, torch_dtype=torch.float32)
    if name == "quanto int8":
        from diffusers import QuantoConfig

        return model_class.from_pretrained(folder, quantization_config=QuantoConfig(weights_dtype="int8"))
    model = model_class.from_pretrained(folder, torch_dtype=torch.bfloat16 if name == "bfloat16" else torch.float32)
    apply(model.eval(), name, folder)
    return model


def apply(model: ModelMixin, name: str, folder: str):
    cpu = torch.device("cpu")
    if name.startswith("attention "):
        model.set_attention_backend(name.removeprefix("attention "))
    elif name == "fused q, k, v":
        model.fuse_qkv_projections()
    elif name == "layerwise float8":
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    elif name == "group offload to disk":
        model.enable_group_offload(cpu, cpu, offload_type="leaf_level", offload_to_disk_path=f"{folder}/offload")
    elif name == "sequential offload":
        import accelerate

        accelerate.cpu_offload(model, execution_device="cpu")
    elif name == "compiled":
        compile_model(model)
    elif name == "compiled blocks":
        torch._dynamo.config.recompile_limit = 64
        model.compile_repeated_blocks(fullgraph=True, dynamic=False)
    elif name == "compiled whole":
        parts = [model] if isinstance(model, GapDiT) else [model.encoder, model.decoder]
        for part in parts:
            part.compile(fullgraph=True, dynamic=False)


def stored_bytes(model: ModelMixin) -> int:
    def size(tensor: torch.Tensor) -> int:
        if tensor.is_meta:
            return 0
        # Quantised tensors are wrappers around the ones they store.
        parts = [getattr(tensor, name, None) for name in ("qdata", "_data", "scale", "_scale")]
        parts = [part for part in parts if isinstance(part, torch.Tensor)]
        return sum(map(size, parts)) if parts else tensor.numel() * tensor.element_size()

    return sum(size(parameter.data) for parameter in model.parameters())


def peak_bytes() -> int:
    """Peak of this process (Linux); `getrusage` would begin with that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def timed(model: ModelMixin) -> float:
    start = time.perf_counter()
    run(model)
    return time.perf_counter() - start


@torch.no_grad()
def measure(model_name: str, row: str, folder: str, repeats: int) -> dict[str, float]:
    before = peak_bytes()
    model = optimised(folder, MODELS[model_name], row)
    start = time.perf_counter()
    output = run(model)
    first = time.perf_counter() - start
    peak, weights = peak_bytes() - before, stored_bytes(model)
    # diffusers makes a model's backend that of all models that have chosen none.
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    plain = MODELS[model_name].from_pretrained(folder).eval()
    plain_output = run(plain)
    pairs = [(timed(model), timed(plain)) for _ in range(repeats)]
    return {
        "change": float((output.float() - plain_output).norm() / plain_output.norm()),
        "first": first,
        "time": median(mine for mine, _ in pairs) / median(other for _, other in pairs),
        "weights": weights / stored_bytes(plain),
        "peak": peak,
    }


def measure_in_a_process(model_name: str, row: str, folder: str, options: argparse.Namespace) -> dict[str, float]:
    """Runs `measure` in a fresh process; raises RuntimeError with the reason where there is no result."""
    settings = ["--threads", str(options.threads), "--repeats", str(options.repeats)]
    command = [sys.executable, __file__, "--row", model_name, row, folder, *settings]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_OF_A_ROW)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"no result in {SECONDS_OF_A_ROW} s") from error
    if process.returncode:
        raise RuntimeError(process.stderr.strip().splitlines()[-1][:90])
    return json.loads(process.stdout.strip().splitlines()[-1])


def table(model_name: str, options: argparse.Namespace):
    model = make_model(model_name, options.width)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"\n{model_name}, {parameters / 1e6:.1f} M parameters, {options.threads} threads", flush=True)
    print(f"  {'':24s} {'change':>8s} {'first':>8s} {'time':>6s} {'weights':>8s} {'peak':>6s}")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        plain_peak = None
        for row in options.rows:
            if row in ATTENTION_ROWS and isinstance(model, AutoencoderKL3D):
                continue
            try:
                result = measure_in_a_process(model_name, row, folder, options)
            except RuntimeError as error:
                print(f"  {row:24s} {error}", flush=True)
                continue
            plain_peak = plain_peak or result["peak"]
            ratios = f"{result['time']:6.2f} {result['weights']:8.2f} {result['peak'] / plain_peak:6.2f}"
            print(f"  {row:24s} {result['change']:8.1e} {result['first']:6.1f} s {ratios}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    if options.row:
        print(json.dumps(measure(*options.row, options.repeats)))
        return
    for name in options.models:
        table(name, options)


if __name__ == "__main__":
    main()
