r"""Euler steps along a flow, for models that predict gaps between latent frames along with the velocity.

The default schedule is that of https://github.com/floatingtrees/dynamic-frame-compression/blob/2150c20/diffusion.py:
equal steps from noise to data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin as SchedulerMixin  # looked up here when loading
from diffusers.utils import BaseOutput


@dataclass
class FlowMatchGapSchedulerOutput(BaseOutput):
    r"""Output of `FlowMatchGapScheduler.step` when it is given gaps.

    Args:
        prev_sample: State at the next noise level, float32, of the shape of the sample.
        gaps: The gaps that were given, the latest prediction, float32 `(batch, kept)`.
    """

    prev_sample: torch.Tensor
    gaps: torch.Tensor


@dataclass
class GapPlan(BaseOutput):
    r"""Where latent frames go in a video.

    Args:
        gaps: int64 `(batch, kept)`: index of the first latent frame, then distances to the one before; 0 for padding.
        positions: Frame index of every latent frame, int64 `(batch, kept)`; padding repeats the last one.
        num_frames: Length of every video, int64 `(batch,)`.
    """

    gaps: torch.Tensor
    positions: torch.Tensor
    num_frames: torch.Tensor


class FlowMatchGapScheduler(FlowMatchEulerDiscreteScheduler):
    r"""`FlowMatchEulerDiscreteScheduler` with equal steps by default, which hands gaps through and rounds them.

    Takes the arguments of its parent, and gives what its parent gives at the same noise levels.
    """

    _compatibles = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
    init_noise_sigma = 1.0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        r"""Sets the noise levels, by default `1 - i / num_inference_steps`, which the config's shift is applied to.

        Args:
            num_inference_steps: Number of steps, at least 1.
            device: Where to put timesteps and noise levels.
            sigmas: Noise levels, falling, in (0, 1]; the last 0 is added.
            mu: Shift for `use_dynamic_shifting`.
            timesteps: What `timesteps` shall say where it is not 1000 times the noise level.
        """
        if sigmas is None and timesteps is None:
            if num_inference_steps is None or num_inference_steps < 1:
                raise ValueError(f"`num_inference_steps` must be at least 1, got {num_inference_steps}.")
            sigmas = [1 - i / num_inference_steps for i in range(num_inference_steps)]
        if sigmas is not None:
            check_sigmas(sigmas)
            sigmas = list(sigmas)
        super().set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu, timesteps=timesteps)

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        r"""Returns the sample: a flow's state is the model's input."""
        return sample

    def scale_noise(
        self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        r"""The flow's state between data and noise, `sigma * noise + (1 - sigma) * sample`.

        Takes every timestep, of the schedule or between its steps: the noise level is that of the schedule where it
        has the timestep, and else the timestep over `num_train_timesteps`, which is the same unless `set_timesteps`
        was told otherwise.

        Args:
            sample: Data, `(batch, ...)`.
            timestep: From 0, the data, to `num_train_timesteps`, the noise; one for all clips, or `(batch,)`.
            noise: Noise of the shape of `sample`.

        Raises:
            ValueError: There is no noise, or a timestep is not in the range.
        """
        if noise is None:
            raise ValueError("`noise` must be given.")
        sigma = self._noise_levels(torch.as_tensor(timestep, device=sample.device)).to(sample.dtype)
        sigma = sigma.reshape(-1, *[1] * (sample.ndim - 1))
        return sigma * noise + (1 - sigma) * sample

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        r"""`scale_noise` under the name and argument order of diffusion schedulers."""
        return self.scale_noise(original_samples, timesteps, noise)

    def _noise_levels(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Noise levels of timesteps, float32 `(num_timesteps,)`."""
        timesteps = timesteps.flatten().float()
        last = self.config.num_train_timesteps
        if not ((timesteps >= 0) & (timesteps <= last)).all():
            raise ValueError(f"`timestep` must lie between 0 and {last}, got {timesteps.tolist()}.")
        schedule = self.timesteps.to(timesteps)
        same = timesteps[:, None] == schedule
        scheduled = self.sigmas.to(timesteps)[same.int().argmax(dim=1)]
        return torch.where(same.any(dim=1), scheduled, timesteps / last)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
        *,
        gaps: torch.Tensor | None = None,
    ) -> FlowMatchGapSchedulerOutput | FlowMatchEulerDiscreteSchedulerOutput | tuple[torch.Tensor, ...]:
        r"""Moves the sample to the next noise level.

        Without `gaps` this is the parent's `step`. With them the state stays in float32 whatever the model's type,
        since a hundred small steps lose their sum to half precision.

        Args:
            model_output: Velocity, noise - data.
            timestep: One of `timesteps`.
            sample: State at this noise level.
            s_churn: Unused by the parent, as are `s_tmin`, `s_tmax` and `s_noise`.
            s_tmin: See `s_churn`.
            s_tmax: See `s_churn`.
            s_noise: See `s_churn`.
            generator: Source of noise for `stochastic_sampling`.
            per_token_timesteps: Noise levels of single tokens, see the parent.
            return_dict: Whether to return a dataclass instead of a tuple.
            gaps: The model's latest estimate of the gaps, `(batch, kept)`.
        """
        if gaps is not None:
            model_output = model_output.float()
        (prev_sample,) = super().step(
            model_output,
            timestep,
            sample,
            s_churn=s_churn,
            s_tmin=s_tmin,
            s_tmax=s_tmax,
            s_noise=s_noise,
            generator=generator,
            per_token_timesteps=per_token_timesteps,
            return_dict=False,
        )
        if gaps is None:
            return FlowMatchEulerDiscreteSchedulerOutput(prev_sample) if return_dict else (prev_sample,)
        gaps = gaps.float()
        return FlowMatchGapSchedulerOutput(prev_sample, gaps) if return_dict else (prev_sample, gaps)

    @staticmethod
    def gaps_to_positions(
        gaps: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        num_frames: int | Sequence[int | None] | torch.Tensor | None = None,
        tail: torch.Tensor | None = None,
        fixed_positions: torch.Tensor | None = None,
    ) -> GapPlan:
        r"""Turns estimated gaps into frame indices.

        Without `num_frames` and `fixed_positions` gaps are rounded; the first is at least 0, others at least 1.
        Where a length or a position is asked for, gaps between two places that are known are stretched by one factor,
        as far as the least gaps allow, and rounded by largest remainder, so that they sum to the distance exactly.

        Args:
            gaps: Estimates `(batch, kept)`, finite.
            frame_mask: Bool `(batch, kept)`, True for latent frames, which come first, False for padding.
            num_frames: Exact length of the videos, or of each; None leaves a video's length to its gaps.
            tail: Estimates of the number of frames after the last latent frame, `(batch,)`. Without them a video ends
                with its last latent frame, unless that one is fixed at an earlier place of a longer video.
            fixed_positions: Frame indices that latent frames must get, int64 `(batch, kept)`, -1 for free ones.

        Raises:
            ValueError: A length or position cannot be met; says how many latent frames and frames there are.
        """
        batch_size, num_slots = gaps.shape
        if frame_mask is None:
            frame_mask = torch.ones_like(gaps, dtype=torch.bool)
        if frame_mask.shape != gaps.shape:
            raise ValueError(
                f"`frame_mask` must have the shape {tuple(gaps.shape)} of `gaps`, got {tuple(frame_mask.shape)}."
            )
        lengths = _lengths_per_clip(num_frames, batch_size)
        tails = [None] * batch_size if tail is None else tail.tolist()
        fixed = [[-1] * num_slots] * batch_size if fixed_positions is None else fixed_positions.tolist()

        plan = torch.zeros(batch_size, num_slots, dtype=torch.int64)
        totals = torch.zeros(batch_size, dtype=torch.int64)
        for clip, (row, mask) in enumerate(zip(gaps.tolist(), frame_mask.tolist(), strict=True)):
            count = sum(mask)
            if count == 0:
                raise ValueError(f"Every clip needs at least one latent frame, clip {clip} has none.")
            clip_gaps, totals[clip] = _plan_clip(row[:count], tails[clip], lengths[clip], fixed[clip][:count], clip)
            plan[clip, :count] = torch.tensor(clip_gaps)
        plan, totals = plan.to(gaps.device), totals.to(gaps.device)
        return GapPlan(gaps=plan, positions=plan.cumsum(dim=1), num_frames=totals)


def check_sigmas(sigmas: Sequence[float]) -> None:
    r"""Raises a `ValueError` unless noise levels lie in (0, 1] and fall."""
    values = [float(sigma) for sigma in sigmas]
    if not values or not all(0 < value <= 1 for value in values):
        raise ValueError(f"`sigmas` must be one or more numbers in (0, 1], got {values}.")
    for i in range(1, len(values)):
        if not values[i] < values[i - 1]:
            raise ValueError(f"`sigmas` must fall, but number {i} is {values[i]} after {values[i - 1]}.")


def _lengths_per_clip(
    num_frames: int | Sequence[int | None] | torch.Tensor | None, batch_size: int
) -> list[int | None]:
    if num_frames is None:
        return [None] * batch_size
    if isinstance(num_frames, torch.Tensor):
        num_frames = num_frames.tolist()
    lengths = [num_frames] * batch_size if isinstance(num_frames, int) else list(num_frames)
    if len(lengths) != batch_size:
        raise ValueError(f"`num_frames` must have one length for each of the {batch_size} clips, got {len(lengths)}.")
    return lengths


def _plan_clip(
    gaps: list[float], tail: float | None, num_frames: int | None, fixed: list[int], clip: int
) -> tuple[list[int], int]:
    """Gaps and length of one clip.

    The steps of a clip lead from its start to the first latent frame, from there to the next, and from the last one
    to the end of the video, which is one frame behind the last.
    """
    count = len(gaps)
    steps = [*gaps, (tail or 0.0) + 1]
    if not all(math.isfinite(step) for step in steps):
        raise ValueError(f"`gaps` and `tail` must be finite, those of clip {clip} are {gaps} and {tail}.")
    if num_frames is not None and num_frames < count:
        raise ValueError(f"{count} latent frames do not fit in a video of {num_frames} frames (clip {clip}).")

    minimums = [0] + [1] * count
    places = {slot: position for slot, position in enumerate(fixed) if position >= 0}
    if num_frames is not None:
        places[count] = num_frames
        if tail is None:
            places.setdefault(count - 1, num_frames - 1)

    planned: list[int] = []
    position = 0
    for slot, place in sorted(places.items()):
        stretch = slice(len(planned), slot + 1)
        distance = place - position
        if distance < sum(minimums[stretch]):
            raise ValueError(
                f"Latent frames {stretch.start} to {slot} of clip {clip} need at least {sum(minimums[stretch])} frames"
                f" between frame {position} and frame {place}, there are {distance}."
            )
        planned += _fit(steps[stretch], minimums[stretch], distance)
        position = place
    rounded = [*map(round, gaps), round(tail or 0.0) + 1]
    planned += [max(rounded[slot], minimums[slot]) for slot in range(len(planned), count + 1)]
    return planned[:count], sum(planned)


def _fit(steps: list[float], minimums: list[int], total: int) -> list[int]:
    """Integers of a given sum, proportional to `steps` but never below `minimums`."""
    if total == 0:
        return list(minimums)
    weights = [max(step, float(minimum)) for step, minimum in zip(steps, minimums, strict=True)]
    if sum(weights) == 0:
        weights = [1.0] * len(weights)
    held: set[int] = set()  # those that a common factor would bring below their minimum
    while True:
        free = [i for i in range(len(weights)) if i not in held]
        scale = (total - sum(minimums[i] for i in held)) / sum(weights[i] for i in free)
        too_small = {i for i in free if scale * weights[i] < minimums[i] - 1e-9}
        if not too_small:
            break
        held |= too_small

    shares = [float(minimums[i]) if i in held else scale * weights[i] for i in range(len(weights))]
    fitted = [max(math.floor(share), minimum) for share, minimum in zip(shares, minimums, strict=True)]
    by_remainder = sorted(free, key=lambda i: fitted[i] - shares[i])
    for i in by_remainder[: total - sum(fitted)]:
        fitted[i] += 1
    return fitted
