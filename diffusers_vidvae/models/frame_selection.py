r"""Which frames of a clip are kept, and the kept ones moved together and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput

from .clip_windows import clip_windows


SELECTION_MODES = ("systematic", "threshold", "bernoulli", "top_k", "uniform")

Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class PackedFrames(BaseOutput):
    r"""The kept latent frames of each clip, moved to the front.

    Args:
        latents: `(batch, latent_channels, kept, height, width)`; 0 in slots beyond a clip's own count.
        gaps: int64 `(batch, kept)`: the first kept frame's index, then the distance to the previous kept frame.
        mask: bool `(batch, kept)`; True where a slot holds a frame.
        num_frames: Length of each clip, int64 `(batch,)`.
    """

    latents: torch.Tensor
    gaps: torch.Tensor
    mask: torch.Tensor
    num_frames: torch.Tensor


class FrameSelector:
    r"""Chooses frames window by window, at least one of each, so that the clip as a whole gets what was asked for.

    Args:
        clip_num_frames: Length of the windows.
        mode: One of `SELECTION_MODES`, see `FrameSelectVAE.select_frames`.
        num_frames: Frames to keep of the whole clip, shared out among its windows by their lengths.
        rate: Share of the frames to keep, in (0, 1], true of the clip as closely as whole frames allow.
        threshold: Probability above which mode `"threshold"` keeps a frame.
        generator: Source of randomness; a list has one for every clip of the batch.
        total_frames: Length of the clip, which `num_frames` needs.
    """

    def __init__(
        self,
        clip_num_frames: int,
        mode: str = "systematic",
        num_frames: int | None = None,
        rate: float | None = None,
        threshold: float = 0.5,
        generator: Generators = None,
        total_frames: int | None = None,
    ):
        check_selection(mode, num_frames, rate, threshold)
        self.mode, self.rate, self.threshold, self.generator = mode, rate, threshold, generator
        self.total_frames = total_frames
        self.num_seen = self.num_kept = 0
        self.counts: Iterator[int] | None = None
        if num_frames is not None:
            if total_frames is None:
                raise ValueError(f"`num_frames` {num_frames} needs `total_frames`, the clip's length, got None.")
            windows = clip_windows(total_frames, clip_num_frames)
            self.counts = iter(distribute_frames(num_frames, [window.stop - window.first_new for window in windows]))

    def select(self, keep_probs: torch.Tensor) -> torch.Tensor:
        r"""Keep mask of the next window's new frames, bool `(batch, frames)`, from their `keep_probs`."""
        num_new = keep_probs.shape[1]
        count = self._count(num_new)
        self.num_seen += num_new
        self.num_kept += count or 0
        mask = torch.ones_like(keep_probs, dtype=torch.bool)
        return select_frames(keep_probs, mask, self.mode, count, None, self.threshold, self.generator)

    def _count(self, num_new: int) -> int | None:
        if self.counts is not None:
            # A clip that turns out longer than `total_frames` is refused at its end.
            return min(next(self.counts, 1), num_new)
        if self.rate is None:
            return None
        # Rounding the clip's total, not every window's share of it, keeps the rate true over many windows.
        return min(max(round(self.rate * (self.num_seen + num_new)) - self.num_kept, 1), num_new)

    def check_length(self) -> None:
        r"""Makes sure, at the end, that the clip had the frames that `num_frames` were shared out for."""
        if self.counts is not None and self.num_seen != self.total_frames:
            raise ValueError(
                f"`num_frames` were shared out among {self.total_frames} frames, but the clip has {self.num_seen};"
                " `rate` needs no count."
            )


def check_selection(mode: str, num_frames: int | None, rate: float | None, threshold: float) -> None:
    r"""Raises `ValueError` where these do not go together for a clip of any length."""
    if mode not in SELECTION_MODES:
        raise ValueError(f"`mode` must be one of {SELECTION_MODES}, got {mode!r}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` must be in [0, 1], got {threshold}.")
    if mode in ("threshold", "bernoulli") and (num_frames is not None or rate is not None):
        raise ValueError(f"`num_frames` and `rate` do not apply to mode {mode!r}, which sets its own count.")
    if num_frames is not None and rate is not None:
        raise ValueError(f"Give `num_frames` or `rate`, not both, got {num_frames} and {rate}.")
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"`num_frames` must be from 1 to the clip's number of frames, got {num_frames}.")
    if rate is not None and not 0 < rate <= 1:
        raise ValueError(f"`rate` must be in (0, 1], got {rate}.")


def distribute_frames(num_frames: int, lengths: list[int]) -> list[int]:
    r"""Shares out a budget of frames among windows of some lengths, by largest remainder and at least one each."""
    total = sum(lengths)
    if not len(lengths) <= num_frames <= total:
        raise ValueError(
            f"`num_frames` must be from {len(lengths)}, one for each window, to the clip's {total} frames, got"
            f" {num_frames}."
        )
    shares = [num_frames * length / total for length in lengths]
    counts = [max(int(share), 1) for share in shares]
    by_remainder = sorted(range(len(lengths)), key=lambda window: counts[window] - shares[window])
    for window in by_remainder[: num_frames - sum(counts)]:
        counts[window] += 1
    return counts


def select_frames(
    keep_probs: torch.Tensor,
    frame_mask: torch.Tensor,
    mode: str,
    num_frames: int | None,
    rate: float | None,
    threshold: float,
    generator: Generators,
) -> torch.Tensor:
    r"""Chooses frames of clips of one window each; the arguments are those of `FrameSelectVAE.select_frames`."""
    if len(keep_probs) == 0:
        return torch.zeros_like(keep_probs, dtype=torch.bool)
    probs = keep_probs.float() * frame_mask
    if mode in ("threshold", "bernoulli"):
        is_bernoulli = mode == "bernoulli"
        level = uniform_noise(probs.shape, generator, probs.device) if is_bernoulli else threshold
        keep_mask = (probs > level) & frame_mask
        most_probable = F.one_hot(probs.masked_fill(~frame_mask, -1).argmax(dim=1), probs.shape[1]).bool()
        return torch.where(keep_mask.any(dim=1, keepdim=True), keep_mask, most_probable)

    counts = kept_counts(probs, frame_mask, num_frames, rate)
    if mode == "top_k":
        ranks = probs.masked_fill(~frame_mask, -1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return ranks < counts[:, None]
    if mode == "uniform":
        return systematic_mask(frame_mask.float(), frame_mask, counts)
    offsets = None if generator is None else uniform_noise((len(probs), 1), generator, probs.device)
    return systematic_mask(probs, frame_mask, counts, offsets)


def kept_counts(
    probs: torch.Tensor, frame_mask: torch.Tensor, num_frames: int | None, rate: float | None
) -> torch.Tensor:
    """Number of frames to keep of every clip, int64 `(batch,)`."""
    lengths = frame_mask.sum(dim=1)
    if num_frames is not None:
        if num_frames > int(lengths.min()):
            raise ValueError(
                f"`num_frames` must be from 1 to the shortest clip's {int(lengths.min())} frames, got {num_frames}."
            )
        return torch.full_like(lengths, num_frames)
    if rate is not None:
        return (rate * lengths).round().long().clamp(min=1)
    return torch.minimum(probs.sum(dim=1).round().long().clamp(min=1), lengths)


def systematic_mask(
    probs: torch.Tensor, frame_mask: torch.Tensor, counts: torch.Tensor, offsets: torch.Tensor | None = None
) -> torch.Tensor:
    """Keeps `counts` frames at equal steps of the cumulative probability, starting at `offsets` of a step."""
    batch_size, num_frames = probs.shape
    lengths = frame_mask.sum(dim=1, keepdim=True)
    has_mass = probs.sum(dim=1, keepdim=True) > 0
    cumulative = torch.where(has_mass, probs, frame_mask.float()).cumsum(dim=1)
    slots = torch.arange(int(counts.max()), device=probs.device).expand(batch_size, -1)  # (B, K)
    valid = slots < counts[:, None]

    quantiles = (slots + (0.5 if offsets is None else offsets)) / counts[:, None] * cumulative[:, -1:]
    positions = torch.searchsorted(cumulative, quantiles.contiguous(), right=True)
    positions = torch.minimum(positions, lengths - 1)

    # Frames asked for twice spread to both sides: halfway between pushing them only later and only earlier.
    later = (positions - slots).cummax(dim=1).values + slots
    later = torch.minimum(later, lengths - counts[:, None] + slots)
    earlier = (positions - slots).masked_fill(~valid, num_frames).flip(1).cummin(dim=1).values.flip(1) + slots
    earlier = torch.maximum(earlier, slots)
    positions = torch.div(later + earlier, 2, rounding_mode="floor")

    keep_mask = torch.zeros(batch_size, num_frames + 1, dtype=torch.bool, device=probs.device)
    return keep_mask.scatter(1, positions.masked_fill(~valid, num_frames), True)[:, :-1]


def uniform_noise(shape: tuple[int, ...], generator: Generators, device: torch.device) -> torch.Tensor:
    """Uniform numbers in [0, 1), drawn on the generator's device; a list of generators gives a row each."""
    if generator is None:
        return torch.rand(shape, device=device)
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, generator=generator, device=generator.device).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"A list of generators must have one for each of the {shape[0]} clips, got {len(generator)}.")
    return torch.cat([uniform_noise((1, *shape[1:]), row_generator, device) for row_generator in generator])


def pack_frames(
    latents: torch.Tensor, keep_mask: torch.Tensor, frame_mask: torch.Tensor | None = None
) -> PackedFrames:
    r"""Moves the kept frames of `(batch, channels, frames, height, width)` to the front, see `PackedFrames`."""
    batch_size, channels, num_frames = latents.shape[:3]
    counts = keep_mask.sum(dim=1)
    num_kept = int(counts.max())
    positions = keep_mask.int().argsort(dim=1, descending=True, stable=True)[:, :num_kept]  # (B, K)
    mask = torch.arange(num_kept, device=latents.device) < counts[:, None]

    index = positions[:, None, :, None, None].expand(-1, channels, -1, *latents.shape[3:])
    packed = latents.gather(2, index) * mask[:, None, :, None, None].to(latents.dtype)
    gaps = positions.diff(dim=1, prepend=positions.new_zeros(batch_size, 1)) * mask
    lengths = positions.new_full((batch_size,), num_frames) if frame_mask is None else frame_mask.sum(dim=1)
    return PackedFrames(latents=packed, gaps=gaps, mask=mask, num_frames=lengths)


def unpack_frames(packed: PackedFrames) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Inverse of `pack_frames`: latents with zeros for dropped frames, keep mask and frame mask."""
    num_frames = int(packed.num_frames.max())
    positions = packed.gaps.cumsum(dim=1)
    out_of_range = packed.mask & (positions >= packed.num_frames[:, None])
    if out_of_range.any():
        raise ValueError(
            f"`gaps` lead to frame {int(positions[out_of_range].max())} of a clip of"
            f" {packed.num_frames.tolist()} frames."
        )
    # Empty slots are written behind the last frame and cut off.
    positions = positions.masked_fill(~packed.mask, num_frames)
    batch_size, channels, _, height, width = packed.latents.shape
    index = positions[:, None, :, None, None].expand(-1, channels, -1, height, width)
    latents = packed.latents.new_zeros(batch_size, channels, num_frames + 1, height, width)
    latents = latents.scatter(2, index, packed.latents)[:, :, :-1]
    keep_mask = packed.mask.new_zeros(batch_size, num_frames + 1).scatter(1, positions, True)[:, :-1]
    frame_mask = torch.arange(num_frames, device=positions.device) < packed.num_frames[:, None]
    return latents, keep_mask, frame_mask


# Checks of masks


def check_frame_mask(frame_mask: torch.Tensor | None, batch_size: int, num_frames: int) -> torch.Tensor | None:
    """Returns the mask, or None where it hides nothing."""
    if frame_mask is None:
        return None
    if frame_mask.shape != (batch_size, num_frames):
        raise ValueError(
            f"`frame_mask` must have shape (batch, frames) = {(batch_size, num_frames)}, got"
            f" {tuple(frame_mask.shape)}."
        )
    frame_mask = frame_mask.bool()
    if not frame_mask[:, 0].all() or (frame_mask.int().diff(dim=1) > 0).any():
        raise ValueError("`frame_mask` must start every row with at least one real frame and end it with padding.")
    return None if frame_mask.all() else frame_mask


def check_masks(
    keep_mask: torch.Tensor, frame_mask: torch.Tensor | None, batch_size: int, num_frames: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns both masks, padding never kept."""
    frame_mask = check_frame_mask(frame_mask, batch_size, num_frames)
    if keep_mask.shape != (batch_size, num_frames):
        raise ValueError(
            f"`keep_mask` must have shape (batch, frames) = {(batch_size, num_frames)}, got {tuple(keep_mask.shape)}."
        )
    keep_mask = keep_mask.bool() if frame_mask is None else keep_mask.bool() & frame_mask
    if not keep_mask.any(dim=1).all():
        empty = int((~keep_mask.any(dim=1)).nonzero()[0])
        raise ValueError(f"`keep_mask` must keep at least one real frame of every clip, clip {empty} keeps none.")
    return keep_mask, frame_mask
