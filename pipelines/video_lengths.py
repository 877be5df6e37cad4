r"""How many videos are generated, of how many latent frames and frames, and where given frames go."""

from __future__ import annotations

from typing import Any

import torch

from diffusers_vidvae.schedulers.scheduling_flow_match_gap import FlowMatchGapScheduler, GapPlan


DEFAULT_LATENT_FRAMES = 8


def resolve_frame_indices(frame_indices: int | list[int] | None, clips: list[list[torch.Tensor]]) -> list[int]:
    """Frame indices of the given frames, by default the first ones."""
    if not clips:
        if frame_indices is not None:
            raise ValueError("`frame_indices` needs the frames, as `video` or `image`.")
        return []
    num_given = len(clips[0])
    if frame_indices is None:
        frame_indices = list(range(num_given))
    indices = [frame_indices] if isinstance(frame_indices, int) else list(frame_indices)
    for clip in clips:
        if len(clip) != len(indices):
            raise ValueError(
                f"`frame_indices` must have an index for each given frame, got {len(indices)} for {len(clip)} frames."
            )
    return indices


def resolve_lengths(
    batch_size: int | None,
    num_latent_frames: int | list[int] | None,
    num_frames: int | list[int] | None,
    positions: list[int] | list[list[int]] | None,
    clips: list[list[torch.Tensor]],
    latents: torch.Tensor | None,
    num_prompts: int,
    most_latent_frames: int,
) -> tuple[list[int], list[int | None]]:
    r"""Numbers of latent frames and, where asked for, of frames of every video of the batch.

    Args:
        batch_size: Number of videos, if it is given.
        num_latent_frames: Latent frames, or of each video; by default as many as `positions` or `latents` have, or 8,
            or as many as the transformer takes.
        num_frames: Frames, or of each video.
        positions: Places of latent frames, or of those of each video.
        clips: Given frames of every video, or of one for all videos.
        latents: Given noise, `(batch, channels, kept, height, width)`.
        num_prompts: Number of prompts; one may be for all videos.
        most_latent_frames: Latent frames that the transformer takes.

    Raises:
        ValueError: These disagree with each other.
    """
    if positions is not None and clips:
        raise ValueError("Give `positions` or frames, whose places `frame_indices` says, not both.")
    if positions is not None:
        num_latent_frames = _count_positions(positions, num_latent_frames)
    elif num_latent_frames is None:
        default = min(DEFAULT_LATENT_FRAMES, most_latent_frames)
        num_latent_frames = default if latents is None else latents.shape[2]
    sizes = {"batch_size": batch_size, "latents": None if latents is None else len(latents)}
    sizes["prompt"] = num_prompts if num_prompts > 1 else None
    sizes["video"] = len(clips) if len(clips) > 1 else None
    for name, value in (("num_latent_frames", num_latent_frames), ("num_frames", num_frames)):
        sizes[name] = len(value) if isinstance(value, list) else None
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(set(known.values())) > 1:
        raise ValueError(f"Arguments disagree about the number of videos: {known}.")
    batch_size = next(iter(known.values()), 1)
    return _per_video(num_latent_frames, batch_size), _per_video(num_frames, batch_size)


def plan_positions(
    step: int,
    gaps: torch.Tensor,
    frame_mask: torch.Tensor,
    lengths: list[int | None],
    tail: torch.Tensor | None,
    fixed_positions: torch.Tensor | None,
) -> GapPlan:
    r"""Places of latent frames: multiples of `step` where all are free and there is room, and else any.

    For the other arguments see `FlowMatchGapScheduler.gaps_to_positions`.
    """
    counts = frame_mask.sum(dim=1).tolist()
    has_room = all(
        length is None or count <= _steps(length, step) for length, count in zip(lengths, counts, strict=True)
    )
    if step == 1 or fixed_positions is not None or not has_room:
        return FlowMatchGapScheduler.gaps_to_positions(gaps, frame_mask, lengths, tail, fixed_positions)
    asked = [None if length is None else _steps(length, step) for length in lengths]
    plan = FlowMatchGapScheduler.gaps_to_positions(
        gaps / step, frame_mask, asked, None if tail is None else tail / step
    )
    made = ((plan.num_frames - 1) * step + 1).tolist()
    num_frames = [length or own for length, own in zip(lengths, made, strict=True)]
    return GapPlan(plan.gaps * step, plan.positions * step, plan.num_frames.new_tensor(num_frames))


def _steps(length: int, step: int) -> int:
    """Multiples of `step` among the frames of a video."""
    return (length - 1) // step + 1


def _count_positions(
    positions: list[int] | list[list[int]], num_latent_frames: int | list[int] | None
) -> int | list[int]:
    """Number of latent frames that given positions make."""
    rows: list[Any] = positions if positions and isinstance(positions[0], list) else [positions]
    for row in rows:
        if not row or sorted(set(row)) != row or row[0] < 0:
            raise ValueError(f"`positions` must be frame indices that rise from 0 or more, got {row}.")
    counts = [len(row) for row in rows]
    found = counts if rows is positions else counts[0]
    if num_latent_frames is not None and num_latent_frames != found:
        raise ValueError(f"`positions` are of {found} latent frames, `num_latent_frames` is {num_latent_frames}.")
    return found


def position_rows(
    positions: list[int] | list[list[int]], frame_mask: torch.Tensor, num_frames: list[int | None]
) -> torch.Tensor:
    """Positions of every video as a tensor `(batch, kept)`, -1 for padding."""
    found = torch.full(frame_mask.shape, -1, device=frame_mask.device)
    for clip, length in enumerate(num_frames):
        row: Any = positions[clip] if isinstance(positions[0], list) else positions
        if length is not None and row[-1] >= length:
            raise ValueError(f"`positions` must be below the {length} frames of the video, got {row[-1]}.")
        found[clip, : len(row)] = found.new_tensor(row)
    return found


def _per_video(value: Any, batch_size: int) -> list[Any]:
    return list(value) if isinstance(value, list) else [value] * batch_size
