r"""The 3D U-Net at full resolution that ends the decoder of `FrameSelectVAE`, as in
https://github.com/floatingtrees/dynamic-frame-compression/blob/2150c20/unet.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


# Asked once: torch.compile does not trace the question.
HAS_ONEDNN = torch.backends.mkldnn.is_available()


class RefinerConv3d(nn.Conv3d):
    """Convolution of oneDNN on a CPU: PyTorch leaves small clips to a kernel of its own, nine times as slow."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        is_plain = hidden_states.device.type == "cpu" and hidden_states.dtype == self.weight.dtype == torch.float32
        if not (HAS_ONEDNN and is_plain) or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(hidden_states)
        settings = self.padding, self.stride, self.dilation, self.groups
        return torch.ops.aten.mkldnn_convolution(hidden_states, self.weight, self.bias, *settings)


class ConvNormAct(nn.Module):
    r"""3x3x3 convolution, group norm over a clip (or over each frame) and SiLU."""

    def __init__(self, in_channels: int, out_channels: int, norm_per_frame: bool):
        super().__init__()
        self.conv = RefinerConv3d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(min(8, out_channels), out_channels, eps=1e-6)
        self.norm_per_frame = norm_per_frame

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv(hidden_states)  # (B, C, T, H, W)
        if self.norm_per_frame:
            frames = hidden_states.transpose(1, 2)
            hidden_states = self.norm(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)
        else:
            hidden_states = self.norm(hidden_states)
        return F.silu(hidden_states, inplace=not torch.is_grad_enabled())


class RefinerDownBlock(nn.Module):
    r"""Two convolutions, whose result is both handed across and halved in height and width."""

    def __init__(self, in_channels: int, out_channels: int, norm_per_frame: bool):
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, out_channels, norm_per_frame)
        self.conv2 = ConvNormAct(out_channels, out_channels, norm_per_frame)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        skip = self.conv2(self.conv1(hidden_states))  # (B, C, T, H, W)
        return F.max_pool3d(skip, kernel_size=(1, 2, 2)), skip


class RefinerUpBlock(nn.Module):
    r"""Doubles height and width and joins what the down block handed across."""

    def __init__(self, in_channels: int, out_channels: int, norm_per_frame: bool):
        super().__init__()
        self.upsample = nn.ConvTranspose3d(in_channels, out_channels, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.conv1 = ConvNormAct(2 * out_channels, out_channels, norm_per_frame)
        self.conv2 = ConvNormAct(out_channels, out_channels, norm_per_frame)

    def forward(self, hidden_states: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        hidden_states = torch.cat([self.upsample(hidden_states), skip], dim=1)  # (B, 2 * C, T, 2 * H, 2 * W)
        return self.conv2(self.conv1(hidden_states))


class Refiner(nn.Module):
    r"""3D U-Net at full resolution that adds what patches cannot show: seams, motion, fine detail."""

    def __init__(self, in_channels: int, out_channels: int, base_channels: int, levels: int, norm_per_frame: bool):
        super().__init__()
        widths = [base_channels * 2**level for level in range(levels + 1)]
        self.patch_mixer = RefinerConv3d(in_channels, in_channels, kernel_size=(3, 7, 7), padding=(1, 3, 3))
        self.down_blocks = nn.ModuleList(
            RefinerDownBlock(width_in, width_out, norm_per_frame)
            for width_in, width_out in zip([in_channels, *widths], widths[:-1], strict=False)
        )
        self.mid_conv1 = ConvNormAct(widths[-2], widths[-1], norm_per_frame)
        self.mid_conv2 = ConvNormAct(widths[-1], widths[-1], norm_per_frame)
        self.up_blocks = nn.ModuleList(
            RefinerUpBlock(width_in, width_out, norm_per_frame)
            for width_in, width_out in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.conv_out = nn.Conv3d(base_channels, out_channels, kernel_size=1)
        # A fresh refiner adds nothing.
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # Few channels at full resolution: convolutions run faster with the channels innermost.
        features = features.contiguous(memory_format=torch.channels_last_3d)
        hidden_states = self.patch_mixer(features)  # (B, C, T, H, W)
        skips = []
        for block in self.down_blocks:
            hidden_states, skip = block(hidden_states)
            skips.append(skip)
        hidden_states = self.mid_conv2(self.mid_conv1(hidden_states))
        for block in self.up_blocks:
            hidden_states = block(hidden_states, skips.pop())
        return self.conv_out(hidden_states)
