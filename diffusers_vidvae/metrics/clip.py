"""Fidelity of whole clips, piece by piece in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .image import MS_SSIM_MIN_SIDE, SSIM_WINDOW, psnr_from_mse, ssim, ssim_and_ms_ssim
from .pixels import as_frame_pairs
from .temporal import (
    boundary_ratio,
    flicker_level,
    pixel_steps,
    seam_ratio,
    still_pixel_changes,
    temporal_difference_mse,
)


_CHUNK_FRAMES = 16

PerceptualMetric = Callable[[Tensor, Tensor], Tensor]


class ClipMetrics:
    """Fidelity of a reconstructed clip, measured piece by piece in constant memory.

    ```python
    metrics = ClipMetrics()
    for reference, reconstruction in pieces:
        metrics.update(reference, reconstruction)
    print(metrics.compute()["psnr"])
    ```

    Args:
        keep_mask: bool `(frames,)` or `(batch, frames)`, True where a frame's latents were kept; splits the PSNR.
        boundaries: First frames of the chunks (windows) after the first one, for `boundary_ratio`.
        seam_rows: Rows at which tiles begin or end, without 0, for `seam_ratio`.
        seam_columns: Columns at which tiles begin or end, without 0.
        lpips: Perceptual distance of image batches in [0, 1], such as `LPIPS()`; None leaves it out.
    """

    def __init__(
        self,
        keep_mask: Tensor | None = None,
        boundaries: Sequence[int] = (),
        seam_rows: Sequence[int] = (),
        seam_columns: Sequence[int] = (),
        lpips: PerceptualMetric | None = None,
    ) -> None:
        self.keep_mask = None if keep_mask is None else torch.as_tensor(keep_mask, dtype=torch.bool).cpu()
        self.boundaries = boundaries
        self.seam_rows, self.seam_columns = seam_rows, seam_columns
        self.lpips = lpips
        # Lists rather than tensors: small tensors that stay alive between large ones fragment the memory.
        self._frames: dict[str, list[list[float]]] = {}
        self._steps: dict[str, Tensor] = {}
        self._previous: tuple[Tensor, Tensor] | None = None

    @property
    def num_frames(self) -> int:
        """Frames measured so far."""
        return len(self._frames.get("mse", ()))

    @torch.no_grad()
    def update(self, reference: Tensor | np.ndarray, reconstruction: Tensor | np.ndarray) -> None:
        """Measures the next frames of the clip.

        Args:
            reference: Floats `(batch, channels, frames, height, width)` in [-1, 1] or uint8
                `(frames, height, width, channels)`, any number of frames.
            reconstruction: The same frames reconstructed, in either layout. Floats beyond [-1, 1] are clamped, as a
                player shows them.

        Raises:
            ValueError: Shapes differ from each other or from the pieces before, or a pixel is not finite.
        """
        reference, reconstruction = as_frame_pairs(reference, reconstruction)
        if self._previous is not None and self._previous[0].shape[2:] != reference.shape[2:]:
            raise ValueError(
                f"Frames of shape {tuple(reference.shape[2:])} follow frames of {tuple(self._previous[0].shape[2:])}."
            )
        for index in range(reference.shape[1]):
            pair = reference[:, index : index + 1], reconstruction[:, index : index + 1]
            self._measure_frame(*(frames[:, 0] for frames in pair))
            if self._previous is not None:
                self._measure_change(*(torch.cat(two, 1) for two in zip(self._previous, pair, strict=True)))
            self._measure_steps(*pair)
            # Copied, so that one frame does not hold on to all.
            self._previous = pair[0].clone(), pair[1].clone()

    def compute(self) -> dict[str, float | int | None]:
        """The clip's figures; for a batch, the mean over its clips.

        Returns:
            num_frames: frames measured.
            psnr: dB, from the mean squared error over the whole clip; at most 100.
            psnr_frame_mean: dB, mean of the frames' PSNR (never below `psnr`).
            psnr_worst, worst_frame: dB and index of the worst frame of all.
            psnr_kept, psnr_dropped, keep_rate: dB over the frames that were kept and over the others, and their share;
                None without a mask, or where there are no such frames.
            ssim: mean over frames; None below 11 pixels.
            ms_ssim: mean over frames; None below 176 pixels.
            temporal_psnr: dB, PSNR of the changes from frame to frame; None for one frame.
            still_flicker: deviation over time, in steps of 8 bits, where the source stands still; None where it never
                does.
            still_rate: share of pixels that stand still from one frame to the next; None for one frame.
            boundary_ratio: error of the changes into a chunk's first frame relative to others; 1 is invisible.
            seam_ratio, reference_seam_ratio: steps across the tiles' borders relative to those elsewhere, in the
                reconstruction and in the reference; None without borders, as above.
            lpips: perceptual distance, mean over frames; None unless asked for.

        Raises:
            ValueError: Nothing was measured, or mask, boundaries or borders do not fit the clip.
        """
        if not self.num_frames:
            raise ValueError("No frame was measured.")
        mse = self._stacked("mse")
        frame_psnr = psnr_from_mse(mse)
        worst = int(frame_psnr.amin(0).argmin())
        return {
            "num_frames": self.num_frames,
            "psnr": float(psnr_from_mse(mse.mean(1)).mean()),
            "psnr_frame_mean": float(frame_psnr.mean()),
            "psnr_worst": float(frame_psnr[:, worst].min()),
            "worst_frame": worst,
            **self._kept_and_dropped(mse),
            **{name: self._mean(name) for name in ("ssim", "ms_ssim", "lpips")},
            **self._temporal(),
            **self._seams(),
        }

    def per_frame(self) -> dict[str, list[float]]:
        """PSNR and, where they were measured, SSIM, MS-SSIM and LPIPS of each frame; for a batch, the mean."""
        names = [name for name in ("ssim", "ms_ssim", "lpips") if self._has(name)]
        psnrs = psnr_from_mse(self._stacked("mse"))
        return {"psnr": psnrs.mean(0).tolist()} | {name: self._stacked(name).mean(0).tolist() for name in names}

    def _measure_frame(self, reference: Tensor, reconstruction: Tensor) -> None:
        side = min(reference.shape[-2:])
        self._add("mse", (reference - reconstruction).square().flatten(1).mean(1))
        if side >= MS_SSIM_MIN_SIDE:
            for name, values in zip(("ssim", "ms_ssim"), ssim_and_ms_ssim(reference, reconstruction), strict=True):
                self._add(name, values)
        elif side >= SSIM_WINDOW:
            self._add("ssim", ssim(reference, reconstruction))
        if self.lpips is not None:
            self._add("lpips", self.lpips(reference, reconstruction))

    def _measure_change(self, reference: Tensor, reconstruction: Tensor) -> None:
        self._add("difference_mse", temporal_difference_mse(reference, reconstruction)[:, 0])
        still_change, still_rate = still_pixel_changes(reference, reconstruction)
        self._add("still_change", still_change[:, 0])
        self._add("still_rate", still_rate[:, 0])

    def _measure_steps(self, reference: Tensor, reconstruction: Tensor) -> None:
        if not len(self.seam_rows) and not len(self.seam_columns):
            return
        for name, frames in (("reference", reference), ("reconstruction", reconstruction)):
            for direction, steps in zip(("rows", "columns"), pixel_steps(frames), strict=True):
                key = f"{name}_{direction}"
                self._steps[key] = self._steps.get(key, 0) + steps.double().cpu()

    def _kept_and_dropped(self, mse: Tensor) -> dict[str, float | None]:
        if self.keep_mask is None:
            return {"psnr_kept": None, "psnr_dropped": None, "keep_rate": None}
        if self.keep_mask.shape not in (mse.shape, mse.shape[1:]):
            raise ValueError(f"`keep_mask` has shape {tuple(self.keep_mask.shape)}, the clip {tuple(mse.shape)}.")
        mask = self.keep_mask.expand(mse.shape)
        return {
            "psnr_kept": _masked_psnr(mse, mask),
            "psnr_dropped": _masked_psnr(mse, ~mask),
            "keep_rate": float(mask.double().mean()),
        }

    def _temporal(self) -> dict[str, float | None]:
        if self.num_frames < 2:
            return dict.fromkeys(("temporal_psnr", "still_flicker", "still_rate", "boundary_ratio"))
        difference_mse = self._stacked("difference_mse")
        still_change, still_rate = self._stacked("still_change"), self._stacked("still_rate")
        ratio = float(boundary_ratio(difference_mse, self.boundaries).mean()) if len(self.boundaries) else None
        return {
            "temporal_psnr": float(psnr_from_mse(difference_mse.mean(1)).mean()),
            "still_flicker": float(flicker_level(still_change.mean(), still_rate.mean()))
            if still_rate.any()
            else None,
            "still_rate": float(still_rate.mean()),
            "boundary_ratio": ratio,
        }

    def _seams(self) -> Mapping[str, float | None]:
        if not self._steps:
            return {"seam_ratio": None, "reference_seam_ratio": None}
        ratios = {}
        for key, name in (("seam_ratio", "reconstruction"), ("reference_seam_ratio", "reference")):
            steps = self._steps[f"{name}_rows"], self._steps[f"{name}_columns"]
            ratios[key] = float(seam_ratio(*steps, self.seam_rows, self.seam_columns).mean())
        return ratios

    def _add(self, name: str, values: Tensor) -> None:
        self._frames.setdefault(name, []).append(values.tolist())

    def _has(self, name: str) -> bool:
        return name in self._frames

    def _stacked(self, name: str) -> Tensor:
        """Values `(batch, frames)` of each frame, or of each change between frames."""
        return torch.tensor(self._frames[name], dtype=torch.float64).T

    def _mean(self, name: str) -> float | None:
        return float(self._stacked(name).mean()) if self._has(name) else None


def evaluate_clip(
    reference: Tensor | np.ndarray,
    reconstruction: Tensor | np.ndarray,
    keep_mask: Tensor | None = None,
    boundaries: Sequence[int] = (),
    seam_rows: Sequence[int] = (),
    seam_columns: Sequence[int] = (),
    lpips: PerceptualMetric | None = None,
) -> dict[str, Any]:
    """Fidelity of a reconstructed clip that is in memory; `ClipMetrics` measures longer ones piece by piece.

    Args:
        reference: Floats `(batch, channels, frames, height, width)` in [-1, 1] or uint8
            `(frames, height, width, channels)`.
        reconstruction: The same frames reconstructed, in either layout.
        keep_mask: As in `ClipMetrics`, like the arguments that follow.

    Returns:
        What `ClipMetrics.compute` does.

    Raises:
        ValueError: The shapes differ, a pixel is not finite, or mask, boundaries or borders do not fit the clip.
    """
    metrics = ClipMetrics(keep_mask, boundaries, seam_rows, seam_columns, lpips)
    num_frames = _num_frames(reference)
    if num_frames != _num_frames(reconstruction):
        raise ValueError(f"The reference has {num_frames} frames, the reconstruction {_num_frames(reconstruction)}.")
    for start in range(0, max(num_frames, 1), _CHUNK_FRAMES):
        metrics.update(*(_piece(video, start, start + _CHUNK_FRAMES) for video in (reference, reconstruction)))
    return metrics.compute()


def _masked_psnr(mse: Tensor, mask: Tensor) -> float | None:
    counts = mask.sum(1)
    if not counts.any():
        return None
    clips = counts > 0
    return float(psnr_from_mse((mse * mask).sum(1)[clips] / counts[clips]).mean())


def _time_dim(video: Tensor | np.ndarray) -> int:
    is_pixels = isinstance(video, Tensor) and video.is_floating_point()
    return video.ndim - 3 if is_pixels else video.ndim - 4


def _num_frames(video: Tensor | np.ndarray) -> int:
    if not isinstance(video, (Tensor, np.ndarray)) or video.ndim not in (4, 5):
        raise ValueError(f"Expected a clip of 4 or 5 dimensions, got {getattr(video, 'shape', type(video).__name__)}.")
    return video.shape[_time_dim(video)]


def _piece(video: Tensor | np.ndarray, start: int, stop: int) -> Tensor | np.ndarray:
    return video[(slice(None),) * _time_dim(video) + (slice(start, stop),)]
