r"""Placing given frames among generated ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from diffusers_vidvae.media.transforms import resize
from diffusers_vidvae.models.gap_dit import GapDiT
from diffusers_vidvae.schedulers.scheduling_flow_match_gap import FlowMatchGapScheduler


class GivenFrames(NamedTuple):
    r"""What is known of the state at the end of the flow.

    Args:
        latents: The known values, float32 `(batch, channels, kept, height, width)`, gap channels last.
        mask: True where they are known, bool `(batch, channels, kept, 1, 1)`.
        positions: Frame index of a latent frame, int64 `(batch, kept)`, -1 where it is free.
    """

    latents: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor

    def put_on_path(self, latents: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        r"""Replaces what is known in a state by its place on the straight path from noise to data."""
        return torch.where(self.mask, sigma * noise + (1 - sigma) * self.latents, latents)


def fill_frame(frame: torch.Tensor, height: int, width: int) -> torch.Tensor:
    r"""Scales pixels `(1, C, H, W)` until they cover `height` x `width`, and cuts that out of their middle."""
    scale = max(height / frame.shape[2], width / frame.shape[3])
    covering = max(round(frame.shape[2] * scale), height), max(round(frame.shape[3] * scale), width)
    frame = resize(frame[:, :, None], covering[0], covering[1])[:, :, 0]
    top, left = (frame.shape[2] - height) // 2, (frame.shape[3] - width) // 2
    return frame[:, :, top : top + height, left : left + width]


def allot_slots(frame_indices: Sequence[int], num_slots: int, num_frames: int | None = None) -> list[int]:
    r"""Chooses the latent frame that each given frame becomes.

    The latent frames that are left go before, between and after the given ones in proportion to the room there.
    Without `num_frames` the room after the last given frame has no bound, and gets what does not fit elsewhere.

    Args:
        frame_indices: Frame indices of the given frames, rising.
        num_slots: Number of latent frames, at least that of given frames.
        num_frames: Length of the video, at least `num_slots`.
    """
    rooms = [index - previous - 1 for previous, index in zip([-1, *frame_indices], frame_indices, strict=False)]
    num_free = num_slots - len(frame_indices)
    if num_frames is not None:
        counts = _apportion([*rooms, num_frames - 1 - frame_indices[-1]], num_free)
    else:
        counts = _apportion(rooms, min(num_free, sum(rooms)))
    return [given + sum(counts[: given + 1]) for given in range(len(frame_indices))]


def _apportion(rooms: list[int], total: int) -> list[int]:
    """Integers proportional to `rooms` by largest remainder; none exceeds its room if `total` fits in them."""
    if total == 0:
        return [0] * len(rooms)
    shares = [total * room / sum(rooms) for room in rooms]
    counts = [math.floor(share) for share in shares]
    for i in sorted(range(len(rooms)), key=lambda i: counts[i] - shares[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts


def consecutive_runs(frame_indices: Sequence[int]) -> list[slice]:
    r"""Cuts rising indices into runs without holes, as slices of the list."""
    starts = [i for i, index in enumerate(frame_indices) if i == 0 or index != frame_indices[i - 1] + 1]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(frame_indices)], strict=True)]


def place_given_frames(
    given_latents: torch.Tensor,
    frame_indices: Sequence[int],
    frame_mask: torch.Tensor,
    num_frames: Sequence[int | None],
    transformer: GapDiT,
) -> GivenFrames:
    r"""Puts given frames' latents into the latent frames allotted to them.

    A model that denoises gaps is also given the gaps that are known: those between given frames that are neighbours,
    before a given first frame, and after a given last one of a video of known length.

    Args:
        given_latents: Normalised latents, float32 `(batch, channels, given, height, width)`.
        frame_indices: Their frame indices, rising.
        frame_mask: Bool `(batch, kept)`; False for padding.
        num_frames: Length of each video, where it is asked for.
        transformer: The model to generate with.
    """
    batch_size, num_slots = frame_mask.shape
    positions = torch.full((batch_size, num_slots), -1, device=frame_mask.device)
    for clip, count in enumerate(frame_mask.sum(dim=1).tolist()):
        slots = allot_slots(frame_indices, count, num_frames[clip])
        positions[clip, slots] = positions.new_tensor(frame_indices)

    is_given = positions >= 0
    index = is_given[:, None, :, None, None].expand(-1, given_latents.shape[1], -1, *given_latents.shape[3:])
    latents = given_latents.new_zeros(index.shape).masked_scatter(index, given_latents)
    mask = is_given[:, None].expand(-1, given_latents.shape[1], -1)
    if transformer.num_gap_channels:
        channels, known = _known_gap_channels(positions, frame_mask, num_frames, transformer)
        latents = torch.cat([latents, channels[..., None, None].expand(-1, -1, -1, *latents.shape[3:])], dim=1)
        mask = torch.cat([mask, known], dim=1)
    return GivenFrames(latents, mask[..., None, None], positions)


def place_at(
    positions: torch.Tensor,
    frame_mask: torch.Tensor,
    num_frames: Sequence[int | None],
    transformer: GapDiT,
    size: tuple,
) -> GivenFrames:
    r"""What is known when only the places of all latent frames are given: their gaps.

    Args:
        positions: Frame indices, rising, int64 `(batch, kept)`; -1 for padding.
        frame_mask: Bool `(batch, kept)`; False for padding.
        num_frames: Length of each video, where it is asked for.
        transformer: The model to generate with.
        size: Height and width of the latents.
    """
    channels = transformer.config.in_channels
    latents = torch.zeros(len(positions), channels, positions.shape[1], *size, device=positions.device)
    mask = torch.zeros(len(positions), channels, positions.shape[1], dtype=torch.bool, device=positions.device)
    if transformer.num_gap_channels:
        gap_channels, known = _known_gap_channels(positions, frame_mask, num_frames, transformer)
        latents = torch.cat([latents, gap_channels[..., None, None].expand(-1, -1, -1, *size)], dim=1)
        mask = torch.cat([mask, known], dim=1)
    return GivenFrames(latents, mask[..., None, None], positions)


def known_gaps(given: GivenFrames | None, transformer: GapDiT) -> dict[str, torch.Tensor]:
    """Arguments that tell a model which gaps are known, if it can be told."""
    if given is None or not transformer.config.condition_on_gaps or not transformer.num_gap_channels:
        return {}
    channels = transformer.config.in_channels
    return {
        "known_gaps": given.latents[:, channels:, :, 0, 0],
        "known_gaps_mask": given.mask[:, channels:, :, 0, 0],
    }


def _known_gap_channels(
    positions: torch.Tensor, frame_mask: torch.Tensor, num_frames: Sequence[int | None], transformer: GapDiT
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gap channels `(batch, 2, kept)` of given frames, and which of them are certain."""
    channels, known = [], []
    for row, mask, length in zip(positions, frame_mask, num_frames, strict=True):
        count = int(mask.sum())
        padding = (0, len(mask) - count)
        row = row[None, :count]
        # Where free frames will lie does not matter: only distances between neighbours that are given are used.
        plan = FlowMatchGapScheduler.gaps_to_positions(torch.ones_like(row), None, length, fixed_positions=row)
        channels.append(torch.nn.functional.pad(transformer.encode_gaps(plan.gaps, plan.num_frames), padding))

        is_given = row >= 0
        ends_are_known = is_given.new_full((1, 1), True), is_given.new_full((1, 1), length is not None)
        previous = torch.cat([ends_are_known[0], is_given[:, :-1]], dim=1)
        following = torch.cat([is_given[:, 1:], ends_are_known[1]], dim=1)
        pair = torch.stack([is_given & previous, is_given & following], dim=1)  # (1, 2, count)
        known.append(torch.nn.functional.pad(pair, padding))
    return torch.cat(channels), torch.cat(known)
