r"""Real weights through the reconstruction pipeline: tiny autoencoders of the TAESD family, on one's own clips.

    git clone https://github.com/madebyollin/taesd
    python tests/benchmarks/bench_tiny_autoencoder.py --encoder taesd/taef2_encoder.pth \
        --decoder taesd/taef2_decoder.pth [--side 256] [--frames 24] CLIP...

The class below is none that the package knows, so the pipeline finds out by itself which sizes it takes. Beside its
PSNR stands that of a direct computation, frame by frame on frames cut to a multiple of 8. The two must agree, and
`max difference`, of pixels in [0, 1], be rounding.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from diffusers_vidvae import VideoReconstructionPipeline  # noqa: E402
from diffusers_vidvae.media import VideoReader  # noqa: E402
from diffusers_vidvae.media.clips import to_pixels  # noqa: E402
from diffusers_vidvae.media.transforms import resize  # noqa: E402
from diffusers_vidvae.metrics import clip_psnr  # noqa: E402


WIDTH = 64
POOL_GROUPS = 4


class ResidualBlock(nn.Module):
    """Three convolutions beside a shortcut; TAEF2 adds a normalised mixture of channels before the narrow ones."""

    def __init__(self, pools: bool):
        super().__init__()
        layers = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        if pools:
            wide = WIDTH * POOL_GROUPS
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(POOL_GROUPS, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.pool(x) if hasattr(self, "pool") else x
        return (self.conv(x) + x).relu()


class SoftClamp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * (x / 3).tanh()


def conv(in_channels: int, out_channels: int, **options) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, **options)


class TinyAutoencoder(ModelMixin, ConfigMixin):
    """Encoder and decoder of https://github.com/madebyollin/taesd, whose pixels are in [0, 1]."""

    @register_to_config
    def __init__(self, latent_channels: int, pools: bool):
        super().__init__()
        narrow = [ResidualBlock(pools) for _ in range(6)]
        down = [conv(WIDTH, WIDTH, stride=2, bias=False) for _ in range(3)]
        up = [[nn.Upsample(scale_factor=2), conv(WIDTH, WIDTH, bias=False)] for _ in range(3)]
        wide = [ResidualBlock(False) for _ in range(14)]
        self.encoder = nn.Sequential(
            *(conv(3, WIDTH), wide[0], down[0], *wide[1:4], down[1], *wide[4:7], down[2], *narrow[:3]),
            conv(WIDTH, latent_channels),
        )
        self.decoder = nn.Sequential(
            *(SoftClamp(), conv(latent_channels, WIDTH), nn.ReLU(), *narrow[3:], *up[0], *wide[7:10], *up[1]),
            *(*wide[10:13], *up[2], wide[13], conv(WIDTH, 3)),
        )

    @classmethod
    def load(cls, encoder: Path, decoder: Path) -> TinyAutoencoder:
        weights = [torch.load(path, map_location="cpu", weights_only=True) for path in (encoder, decoder)]
        latent_channels = list(weights[0].values())[-1].shape[0]
        model = cls(latent_channels, pools=any(".pool." in name for name in weights[0]))
        model.encoder.load_state_dict(weights[0])
        model.decoder.load_state_dict(weights[1])
        return model.eval()

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x / 2 + 0.5)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(z) * 2 - 1


def read_clip(path: Path, side: int, max_frames: int) -> torch.Tensor:
    """The first frames `(1, 3, T, H, W)`, scaled so that the shorter side has `side` pixels, both multiples of 8."""
    with VideoReader(path) as reader:
        pixels = torch.cat([to_pixels(frame.data) for frame, _ in zip(reader, range(max_frames), strict=False)], dim=2)
    scale = side / min(pixels.shape[3:])
    height, width = (round(length * scale) // 8 * 8 for length in pixels.shape[3:])
    return resize(pixels, height, width)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", type=Path, help="videos")
    parser.add_argument("--encoder", type=Path, required=True, help="weights of the encoder (.pth)")
    parser.add_argument("--decoder", type=Path, required=True, help="weights of the decoder (.pth)")
    parser.add_argument("--side", type=int, default=256, help="shorter side in pixels")
    parser.add_argument("--frames", type=int, default=24, help="frames to read of every clip")
    options = parser.parse_args()

    vae = TinyAutoencoder.load(options.encoder, options.decoder)
    pipe = VideoReconstructionPipeline(vae)
    pipe.set_progress_bar_config(disable=True)
    print(f"{'clip':<32} {'frames':>6} {'size':>9} {'pipeline':>9} {'direct':>9}  max difference")
    totals = []
    for path in options.clips:
        clip = read_clip(path, options.side, options.frames)
        output = pipe(clip, output_type="pt", compute_metrics=True)
        direct = torch.stack([vae.decode(vae.encode(frame[None]))[0] for frame in clip[0].unbind(1)], dim=1)[None]
        difference = (output.frames.transpose(1, 2) * 2 - 1 - direct.clamp(-1, 1)).abs().max() / 2
        psnrs = output.metrics[0]["psnr"], clip_psnr(clip, direct)
        totals.append(psnrs)
        size = f"{clip.shape[4]}x{clip.shape[3]}"
        print(f"{path.name:<32} {clip.shape[2]:>6} {size:>9} {psnrs[0]:>9.3f} {psnrs[1]:>9.3f}  {difference:.1e}")
    means = torch.tensor(totals).mean(dim=0).tolist()
    print(f"{'mean':<32} {'':>6} {'':>9} {means[0]:>9.3f} {means[1]:>9.3f}")


if __name__ == "__main__":
    main()
