r"""What the latents of a clip carry from frame to frame, and what stands for those of dropped frames."""

from __future__ import annotations

import torch
from torch import nn


class ChannelCycle(nn.Module):
    r"""Takes turns in what the last latent channels of a frame carry.

    Of the channels of a token, the first are sent with every frame. The rest form `length` groups of `channels`, and
    frame t sends group `t % length` in the last channels of its latent: what changes slowly needs no place in every
    frame, so that detail gets more numbers where frames resemble each other.

    Args:
        latent_channels: Channels of a frame's latent.
        channels: Last channels of the latent that the groups share; 0 for none.
        length: Number of groups, in frames.
    """

    def __init__(self, latent_channels: int, channels: int, length: int):
        super().__init__()
        self.latent_channels = latent_channels
        self.channels = channels
        self.length = length if channels else 0
        self.constant_channels = latent_channels - channels
        self.num_channels = self.constant_channels + self.length * channels
        self.num_fill_features = 2 * self.num_channels + 2 * (1 + self.length)

    def send(self, values: torch.Tensor, first_frame: int) -> torch.Tensor:
        """Picks of all channels `(B, T, N, num_channels)` those that every frame sends, `(B, T, N, C)`."""
        if not self.channels:
            return values
        constant, cycled = values.split([self.constant_channels, self.length * self.channels], dim=-1)
        turns = self.turns(values.shape[1], first_frame, values.device)
        groups = cycled.unflatten(-1, (self.length, self.channels))  # (B, T, N, length, channels)
        sent = groups[:, torch.arange(values.shape[1], device=values.device), :, turns]  # (T, B, N, channels)
        return torch.cat([constant, sent.transpose(0, 1)], dim=-1)

    def turns(self, num_frames: int, first_frame: int, device: torch.device) -> torch.Tensor:
        """The group that each frame sends, int64 `(T,)`."""
        return (first_frame + torch.arange(num_frames, device=device)) % self.length


class FillToken(nn.Module):
    r"""Puts one learned token in the place of every latent of a dropped frame."""

    def __init__(self, latent_channels: int):
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(latent_channels))

    def forward(self, latents: torch.Tensor, keep_mask: torch.Tensor, first_frame: int = 0) -> torch.Tensor:
        token = self.weight.to(latents.dtype)[:, None, None, None]
        return torch.where(keep_mask[:, None, :, None, None], latents, token)  # (B, C, T, h, w)


class InterpolatedFill(nn.Module):
    r"""Puts the blend of the neighbouring kept latents in the place of what a frame does not send.

    Every group of channels is blended between the frames that send it, weighted by distance, and held beyond the first
    and the last of them. The result also has the change from the frame before to the frame after, and the nearness
    `1 / (1 + frames)` of both, 0 where there is none.
    """

    def __init__(self, cycle: ChannelCycle):
        super().__init__()
        self.cycle = cycle

    def forward(self, latents: torch.Tensor, keep_mask: torch.Tensor, first_frame: int = 0) -> torch.Tensor:
        constant, cycled = latents.split([self.cycle.constant_channels, self.cycle.channels], dim=1)
        groups = [self._interpolate(constant, keep_mask)]
        if self.cycle.channels:
            turns = self.cycle.turns(latents.shape[2], first_frame, latents.device)
            groups += [self._interpolate(cycled, keep_mask & (turns == turn)) for turn in range(self.cycle.length)]
        blends, changes, nearness = zip(*groups, strict=True)
        distances = torch.cat(nearness, dim=1)[..., None, None].expand(-1, -1, -1, *latents.shape[3:])
        return torch.cat([*blends, *changes, distances.to(latents.dtype)], dim=1)  # (B, num_fill_features, T, h, w)

    def _interpolate(
        self, latents: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Blend and change of latents `(B, C, T, h, w)` that are known where `(B, T)` says; nearness `(B, 2, T)`."""
        num_frames = known.shape[1]
        time = torch.arange(num_frames, device=known.device)
        before = torch.where(known, time, -1).cummax(dim=1).values  # (B, T)
        after = torch.where(known, time, num_frames).flip(1).cummin(dim=1).values.flip(1)
        nearness = torch.stack([(before >= 0) / (1 + time - before), (after < num_frames) / (1 + after - time)], dim=1)
        before, after = torch.where(before < 0, after, before), torch.where(after == num_frames, before, after)
        weight = (time - before) / (after - before).clamp(min=1)
        # Zeros stand for channels that no frame of the window sends.
        latents = torch.where(known[:, None, :, None, None], latents, 0)
        earlier, later = (self._frames(latents, index.clamp(0, num_frames - 1)) for index in (before, after))
        change = later - earlier
        return earlier + weight.to(latents.dtype)[:, None, :, None, None] * change, change, nearness

    @staticmethod
    def _frames(latents: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return latents.gather(2, index[:, None, :, None, None].expand_as(latents))
