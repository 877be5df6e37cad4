r"""What the latents of a clip carry from frame to frame, and what stands for those of dropped frames."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


FILLS = ("token", "interpolate", "wiener")


def clip_lengths(
    frame_mask: torch.Tensor | None, batch_size: int, num_frames: int, device: torch.device
) -> torch.Tensor:
    """Real frames of every clip, int64 `(batch,)`."""
    if frame_mask is None:
        return torch.full((batch_size,), num_frames, device=device)
    return frame_mask.sum(dim=1)


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

    def send(self, values: torch.Tensor, first_frame: int) -> torch.Tensor:
        """Picks of all channels `(B, T, N, num_channels)` those that every frame sends, `(B, T, N, C)`."""
        if not self.channels:
            return values
        constant, cycled = values.split([self.constant_channels, self.length * self.channels], dim=-1)
        turns = self.turns(values.shape[1], first_frame, values.device)
        groups = cycled.unflatten(-1, (self.length, self.channels))  # (B, T, N, length, channels)
        sent = groups[:, torch.arange(values.shape[1], device=values.device), :, turns]  # (T, B, N, channels)
        return torch.cat([constant, sent.transpose(0, 1)], dim=-1)

    def receive(
        self, latents: torch.Tensor, keep_mask: torch.Tensor, first_frame: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All channels `(B, num_channels, T, h, w)`, and which of them kept frames sent, `(B, num_channels, T)`.

        What was not sent is 0.
        """
        known = keep_mask[:, None].expand(-1, self.num_channels, -1)
        if self.channels:
            turns = self.turns(latents.shape[2], first_frame, latents.device)
            constant, cycled = latents.split([self.constant_channels, self.channels], dim=1)
            latents = torch.cat([constant, cycled.repeat(1, self.length, 1, 1, 1)], dim=1)
            groups = torch.arange(self.length, device=latents.device).repeat_interleave(self.channels)
            always = torch.ones(self.constant_channels, latents.shape[2], dtype=torch.bool, device=latents.device)
            known = known & torch.cat([always, groups[:, None] == turns])
        return torch.where(known[..., None, None], latents, 0), known

    def turns(self, num_frames: int, first_frame: int, device: torch.device) -> torch.Tensor:
        """The group that each frame sends, int64 `(T,)`."""
        return (first_frame + torch.arange(num_frames, device=device)) % self.length


class TemporalFilter(nn.Module):
    r"""Mixes a channel of a frame with the same channel of the frames around it; a new one leaves all as it is.

    What a frame has in common with its neighbours is worth more, once these are dropped, than what it has alone.
    Beyond the ends of a clip stand its first and its last frame.

    Args:
        channels: Number of channels.
        size: Frames that are mixed, an odd number.
    """

    def __init__(self, channels: int, size: int):
        super().__init__()
        weight = torch.zeros(channels, size)
        weight[:, size // 2] = 1
        self.weight = nn.Parameter(weight)

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Filters channels `(B, T, N, channels)` of clips with `lengths` `(B,)`."""
        matrix = self.matrix(lengths, values.shape[1]).to(values.dtype)
        return torch.einsum("bcts,bsnc->btnc", matrix, values)

    def matrix(self, lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
        """What takes the frames of a clip to its filtered frames, float32 `(B, channels, T, T)`."""
        channels, size = self.weight.shape
        time = torch.arange(num_frames, device=lengths.device)
        source = (time[:, None] + torch.arange(size, device=lengths.device) - size // 2).clamp(min=0)  # (T, size)
        source = torch.minimum(source, lengths[:, None, None] - 1)[:, None]  # (B, 1, T, size)
        weight = self.weight.float()[None, :, None]
        shape = (len(lengths), channels, num_frames, size)
        matrix = weight.new_zeros(*shape[:3], num_frames)
        return matrix.scatter_add(3, source.expand(shape), weight.expand(shape))


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
        return torch.cat([*blends, *changes, distances.to(latents.dtype)], dim=1)  # (B, num_features, T, h, w)

    @staticmethod
    def count_features(cycle: ChannelCycle) -> int:
        return 2 * cycle.num_channels + 2 * (1 + cycle.length)

    def _interpolate(
        self, latents: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Blend and change of latents `(B, C, T, h, w)` that are known where `(B, T)` says; nearness `(B, 2, T)`."""
        num_frames = known.shape[1]
        time = torch.arange(num_frames, device=known.device)
        # The last known frame up to each, and the first from it on; ONNX has no running maximum.
        is_earlier = known[:, None] & (time <= time[:, None])  # (B, T, T)
        before = torch.where(is_earlier, time, -1).amax(dim=2)  # (B, T)
        is_later = known[:, None] & (time >= time[:, None])
        after = torch.where(is_later, time, num_frames).amin(dim=2)
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


class WienerFill(nn.Module):
    r"""Puts the best linear estimate from all kept latents in the place of the channels of every frame.

    Every channel is taken for a stationary process of known autocorrelation, of which kept frames show values that a
    `TemporalFilter` has passed; its estimate at every frame is that of N. Wiener, "Extrapolation, Interpolation, and
    Smoothing of Stationary Time Series" (1949), for a finite clip. Near kept frames it resembles their blend, far from
    all of them it fades to zero, and with many kept frames it undoes the filter. The result also has the share of a
    channel's variance that stays unknown, the same for all tokens of a frame.

    Args:
        cycle: Which channels a frame sends.
        num_frames: Lags that have a correlation of their own; larger ones have that of the last.
    """

    # Of a channel's variance: what every latent lacks in precision, and what keeps the equations well-posed.
    noise = 1e-3

    # Exported graphs may lack LAPACK, see `solve_by_elimination`.
    solve: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = staticmethod(torch.linalg.solve)

    def __init__(self, cycle: ChannelCycle, num_frames: int):
        super().__init__()
        self.cycle = cycle
        self.num_lags = num_frames
        lags = torch.arange(num_frames).expand(cycle.num_channels, -1)
        self.correlation = nn.Parameter(0.9**lags)

    def forward(
        self, latents: torch.Tensor, keep_mask: torch.Tensor, first_frame: int, filter_matrix: torch.Tensor
    ) -> torch.Tensor:
        """`filter_matrix` is that of the clips' lengths, float32 `(B, num_channels, T, T)`."""
        values, known = self.cycle.receive(latents, keep_mask, first_frame)  # (B, K, T, h, w), (B, K, T)
        estimator, unknown = self.estimator(known.float(), filter_matrix)  # (B, K, T, T), (B, K, T)
        estimates = torch.einsum("bkts,bkshw->bkthw", estimator.to(values.dtype), values)
        unknown = unknown.to(values.dtype)[..., None, None].expand_as(estimates)
        return torch.cat([estimates, unknown], dim=1)  # (B, num_features, T, h, w)

    @staticmethod
    def count_features(cycle: ChannelCycle) -> int:
        return 2 * cycle.num_channels

    def estimator(self, known: torch.Tensor, filter_matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What takes known values to estimates of unfiltered ones, `(B, K, T, T)`, and variances left, `(B, K, T)`."""
        num_frames = known.shape[2]
        time = torch.arange(num_frames, device=known.device)
        lags = (time[:, None] - time).abs().clamp(max=self.correlation.shape[1] - 1)
        covariance = self.correlation.float()[:, lags]  # (K, T, T)
        shown = known[..., None] * (filter_matrix @ covariance)  # known values with unfiltered ones
        observed = shown @ filter_matrix.mT * known[:, :, None]  # known values with each other
        # Equations of what is not known read x = 0.
        system = observed + torch.diag_embed(1 - known + self.noise)
        estimator = self.solve(system, shown).mT
        return estimator, 1 - (estimator * shown.mT).sum(dim=-1)


def count_fill_features(fill: str, cycle: ChannelCycle) -> int:
    r"""Channels of what a fill of one of the kinds `FILLS` gives the decoder."""
    if fill == "token":
        return cycle.latent_channels
    return InterpolatedFill.count_features(cycle) if fill == "interpolate" else WienerFill.count_features(cycle)


def make_fill(fill: str, cycle: ChannelCycle, num_frames: int) -> FillToken | InterpolatedFill | WienerFill:
    r"""What puts something in the place of dropped frames: one of the kinds `FILLS`, for windows of `num_frames`."""
    if fill == "token":
        return FillToken(cycle.latent_channels)
    return InterpolatedFill(cycle) if fill == "interpolate" else WienerFill(cycle, num_frames)


def solve_by_elimination(system: torch.Tensor, right: torch.Tensor, size: int) -> torch.Tensor:
    r"""Solves linear equations as `torch.linalg.solve` does, of operators alone that every runtime of graphs has.

    Gauss-Jordan elimination in float64 and without pivots, which positive definite systems do not need.

    Args:
        system: `(..., n, n)`, positive definite.
        right: `(..., n, m)`.
        size: At least n; the number of steps, which graphs have to know.
    """
    num_rows = system.shape[-1]
    num_added = size - num_rows
    added = torch.arange(size, device=system.device) >= num_rows
    padded = F.pad(system.double(), (0, num_added, 0, num_added)) + torch.diag(added.double())
    rows = torch.cat([padded, F.pad(right.double(), (0, 0, 0, num_added))], dim=-1)
    identity = torch.eye(size, dtype=rows.dtype, device=rows.device)
    for step in range(size):
        pivot = rows[..., step : step + 1, :] / rows[..., step : step + 1, step : step + 1]
        rows = rows - (rows[..., step : step + 1] - identity[:, step : step + 1]) * pivot
    return rows[..., :num_rows, size:].to(right.dtype)
