r"""Exactness, memory and speed of AutoencoderKL3D, beside HunyuanVideo's and Wan's autoencoders.

    python tests/benchmarks/bench_autoencoder_kl_3d.py [exactness memory image peers] [--width 32] [--size 64]

Memory is what torch allocates for tensors beyond weights and inputs; workspaces of convolution libraries come on top.
At full width and size it is counted on the meta device, which runs the same code without computing, and that count is
compared with a real run at a size that runs here. On the CPU float32 convolutions of few values unfold their input, up
to 27 times its size, which the measured figures contain. Peers are narrowed or widened to equal multiply-adds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial

import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D


GIB = 2**30


class AllocationTracker(TorchDispatchMode):
    """Bytes of the storages that operations make, and the most that are alive at once."""

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self.storages = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        outputs = function(*arguments, **(keywords or {}))
        inputs = {id(leaf.untyped_storage()) for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)}
        for output in tree_leaves(outputs):
            if isinstance(output, torch.Tensor) and id(output.untyped_storage()) not in inputs:
                self._add(output.untyped_storage())
        return outputs

    def _add(self, storage: torch.UntypedStorage):
        if storage in self.storages:
            return
        self.storages.add(storage)
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, num_bytes: int):
        self.held -= num_bytes


def counted_peak(function: Callable[[], object]) -> int:
    with AllocationTracker() as tracker:
        function()
    return tracker.peak


def measured_peak(function: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def seconds(function: Callable[[], object], repetitions: int = 3) -> float:
    function()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def multiply_adds(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2


def consume(pieces: Iterable[torch.Tensor]):
    for _ in pieces:
        pass


def make_vae(width: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> AutoencoderKL3D:
    torch.manual_seed(0)
    with torch.device(device):
        vae = AutoencoderKL3D(block_out_channels=(width, 2 * width, 4 * width, 4 * width))
    return vae.eval().requires_grad_(False).to(dtype)


def clip(num_frames: int, height: int, width: int, dtype=torch.float32, device: str = "cpu") -> torch.Tensor:
    return 2 * torch.rand(1, 3, num_frames, height, width, dtype=dtype, device=device) - 1


def show_exactness(width: int, size: int):
    torch.manual_seed(0)
    config = {"block_out_channels": (width // 2, width, width, width), "layers_per_block": 1, "mid_block_layers": 1}
    vae = AutoencoderKL3D(**config).eval().requires_grad_(False)
    num_frames = 25
    x = clip(num_frames, size // 2, size // 2)
    parameters = vae.encode(x).latent_dist.parameters
    latents = parameters[:, :16]
    sample = vae.decode(latents, num_frames).sample
    print(f"\nLargest difference to the whole clip, float32, {num_frames} frames, values up to", end=" ")
    print(f"{parameters.abs().max():.1f} and {sample.abs().max():.1f}")
    print(f"{'':36}{'encode':>12}{'decode':>12}")

    def row(name: str, other_parameters: torch.Tensor, other_sample: torch.Tensor):
        errors = (other_parameters - parameters).abs().max(), (other_sample - sample).abs().max()
        print(f"{name:36}{errors[0]:12.1e}{errors[1]:12.1e}")

    for chunk_frames, full_resolution_frames in ((4, None), (8, None), (24, None), (4, 1)):
        vae.enable_temporal_chunking(chunk_frames, full_resolution_frames)
        name = f"chunks of {chunk_frames}" + (", frame by frame on top" if full_resolution_frames else "")
        row(name, vae.encode(x).latent_dist.parameters, vae.decode(latents, num_frames).sample)
    vae.disable_temporal_chunking()
    pieces = torch.cat(list(vae.encode_stream(x.split((1, 9, 2, 13), dim=2))), dim=2)
    row("streams", pieces, torch.cat(list(vae.decode_stream(latents.split((1, 4, 2), dim=2), num_frames)), dim=2))
    x = x[:, :, :1].expand(-1, -1, 8, -1, -1)
    parameters = vae.encode(x).latent_dist.parameters
    latents = parameters[:, :16, :1]
    sample = vae.decode(parameters[:, :16]).sample
    image = vae.encode(x[:, :, :1]).latent_dist.parameters
    row("image, against a still clip", image.expand_as(parameters), vae.decode(latents).sample.repeat(1, 1, 2, 1, 1))
    x = clip(1, size, 8 * size)
    parameters = vae.encode(x).latent_dist.parameters
    latents = parameters[:, :16]
    sample = vae.decode(latents, 1).sample
    tile = vae.exact_tile_overlap + 64
    vae.enable_tiling(tile, "exact")
    name = f"tiles of {tile}, overlap {vae.exact_tile_overlap}"
    row(name, vae.encode(x).latent_dist.parameters, vae.decode(latents, 1).sample)


SETTINGS = {"whole": None, "24": (24, None), "4": (4, None), "4, by frame": (4, 1)}


def show_memory():
    vae = make_vae(128, torch.bfloat16, "meta")
    weights = sum(parameter.numel() * 2 for parameter in vae.decoder.parameters()) / GIB
    print(f"\nTensors of encode | decode, GiB, full width, bfloat16; a half's weights take {weights:.2f} GiB more")
    print(f"{'size':>10}{'frames':>8}" + "".join(f"{'chunk ' + name:>20}" for name in SETTINGS))
    for height, width in ((256, 256), (360, 640), (720, 1280)):
        for num_frames in (1, 24, 72):
            print(f"{width:>5}x{height:<4}{num_frames:>8}", end="")
            for settings in SETTINGS.values():
                encoded, decoded = memory_of(vae, num_frames, height, width, settings)
                print(f"{encoded / GIB:>12.2f} |{decoded / GIB:6.2f}", end="", flush=True)
            print()
    vae.enable_tiling((720, 704), 0.1)
    encoded, _ = memory_of(vae, 12, 720, 1280, (4, 1))
    print(f"  1280x720 in two tiles, chunk 4, by frame: encode {encoded / GIB:.2f}")
    vae.disable_tiling()
    check_counts()


def memory_of(
    vae: AutoencoderKL3D, num_frames: int, height: int, width: int, settings: tuple[int, int | None] | None
) -> tuple[int, int]:
    """Counted bytes of encoding and of decoding."""
    vae.disable_temporal_chunking()
    if settings:
        vae.enable_temporal_chunking(*settings)
    x = clip(num_frames, height, width, vae.dtype, vae.device)
    latents = torch.empty(1, *vae.latent_shape(num_frames, height, width), dtype=vae.dtype, device=vae.device)
    return counted_peak(lambda: vae.encode(x)), counted_peak(lambda: vae.decode(latents, num_frames))


def check_counts():
    """Compares counts with a real run, and short streams with long ones."""
    vae = make_vae(32)
    vae.enable_temporal_chunking(8)
    latents = torch.randn(1, 16, 4, 16, 16)
    counted, measured = (peak(lambda: vae.decode(latents)) / 2**20 for peak in (counted_peak, measured_peak))
    print("Width 32, float32, 128x128, 16 frames in chunks of 8, decode:", end=" ")
    print(f"counted {counted:.1f} MiB, measured {measured:.1f} MiB")

    def stream(num_frames: int):
        consume(vae.decode_stream(torch.randn(1, 16, 1, 4, 4) for _ in range(num_frames // 4)))

    stream(8)
    short, long = (measured_peak(partial(stream, num_frames)) for num_frames in (16, 128))
    print(f"decode_stream, measured, 128 over 16 frames: {long / short:.3f}")


def show_images(width: int, size: int):
    vae = make_vae(width)
    image, video = clip(1, 2 * size, 2 * size), clip(4, 2 * size, 2 * size)
    latents = vae.encode(image).latent_dist.mode()
    # A clip of two latents costs twice four frames, and unlike a single one is no still clip.
    latents2 = vae.encode(clip(8, 2 * size, 2 * size)).latent_dist.mode()
    print(f"\nOne image against four video frames, {2 * size}x{2 * size}, float32")
    for name, of_image, of_video in (
        ("encode", lambda: vae.encode(image), lambda: vae.encode(video)),
        ("decode", lambda: vae.decode(latents, 1), lambda: vae.decode(latents2)),
    ):
        share = 1 if name == "encode" else 0.5
        times = seconds(of_image), seconds(of_video) * share
        works = multiply_adds(of_image), multiply_adds(of_video) * share
        print(f"  {name}: {times[0]:.2f} s and {times[1]:.2f} s, ratio {times[0] / times[1]:.3f};", end=" ")
        print(f"multiply-adds ratio {works[0] / works[1]:.3f}")


def make_hunyuan(width: int) -> AutoencoderKLHunyuanVideo:
    widths = (width, 2 * width, 4 * width, 4 * width)
    return AutoencoderKLHunyuanVideo(block_out_channels=widths, norm_num_groups=8)


def make_wan(width: int) -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=width)


def work_of(vae, num_frames: int, size: int) -> tuple[int, int]:
    """Multiply-adds of encoding and decoding a clip."""
    x = clip(num_frames, size, size, device="meta")
    latents = torch.empty(1, 16, -(-num_frames // 4), size // 8, size // 8, device="meta")
    return multiply_adds(lambda: vae.encode(x)), multiply_adds(lambda: vae.decode(latents))


def match_work(make: Callable[[int], torch.nn.Module], target: int, num_frames: int, size: int) -> int:
    """Width, a multiple of 8, with the multiply-adds nearest to a target."""
    with torch.device("meta"):
        works = {
            width: sum(work_of(make(width).requires_grad_(False), num_frames, size)) for width in range(8, 129, 8)
        }
    return min(works, key=lambda width: abs(works[width] - target))


def show_peers(width: int, size: int):
    # The peers take 4k + 1 frames: 17 there, 16 here, of 5 and 4 latent frames; work is matched over the whole clip.
    ours = make_vae(width, device="meta")
    target = sum(work_of(ours, 16, size))
    rows: list[tuple[str, Callable[[int], torch.nn.Module], int, int]] = [("AutoencoderKL3D", make_vae, width, 16)]
    for name, make in (("HunyuanVideo", make_hunyuan), ("Wan", make_wan)):
        rows.append((name, make, match_work(make, target, 17, size), 17))
    print(f"\n{size}x{size}, about {target / 1e9:.0f} G multiply-adds for encode and decode together")
    print(f"{'':18}{'width':>6}{'dtype':>10}{'encode':>28}{'decode':>28}")
    print(f"{'':34}" + f"{'Gmadd':>8}{'s':>8}{'MiB':>12}" * 2)
    for name, make, peer_width, num_frames in rows:
        for dtype in (torch.float32, torch.bfloat16):
            vae = make(peer_width).eval().requires_grad_(False).to(dtype)
            x = clip(num_frames, size, size, dtype)
            latents = vae.encode(x).latent_dist.mode()
            print(f"{name:18}{peer_width:>6}{str(dtype)[6:]:>10}", end="")
            for function in (lambda: vae.encode(x), lambda: vae.decode(latents)):  # noqa: B023
                work, peak = multiply_adds(function), measured_peak(function)
                print(f"{work / 1e9:8.1f}{seconds(function, 2):8.2f}{peak / 2**20:12.1f}", end="", flush=True)
            print()


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("exactness", "memory", "image", "peers")
    parser.add_argument("parts", nargs="*", default=[], help=f"of {', '.join(parts)}; all by default")
    parser.add_argument("--width", type=int, default=32, help="width of the first level, a quarter of the default")
    parser.add_argument("--size", type=int, default=64, help="height and width of clips in pixels")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; one is steady on a busy machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    chosen = options.parts or parts
    if "exactness" in chosen:
        show_exactness(options.width, options.size)
    if "memory" in chosen:
        show_memory()
    if "image" in chosen:
        show_images(options.width, options.size)
    if "peers" in chosen:
        show_peers(options.width, options.size)


if __name__ == "__main__":
    main()
