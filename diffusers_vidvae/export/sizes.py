r"""Numbers of frames, heights and widths that an exported graph takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.export import Dim

from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D
from diffusers_vidvae.models.causal_coders import divide_up
from diffusers_vidvae.models.frame_select_vae import FrameSelectVAE


# What a size is: one for all inputs, or the least and the largest.
SizeOption = int | tuple[int, int] | None

MOST_FRAMES = 1024
MOST_PIXELS = 2048


@dataclass(frozen=True)
class SizeRange:
    r"""Sizes of an axis: `low`, `low + step`, ..., `high`.

    Args:
        name: `"frames"`, `"height"` or `"width"`.
        low: Least size, in frames or pixels.
        high: Largest size.
        step: Frames or pixels that a latent stands for.
        missing: Frames that the first latent lacks.
    """

    name: str
    low: int
    high: int
    step: int = 1
    missing: int = 0

    def __contains__(self, size: int) -> bool:
        return self.low <= size <= self.high and (size - self.low) % self.step == 0

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.name} {self.low}"
        return f"{self.name} from {self.low} to {self.high}" + (f" in steps of {self.step}" if self.step > 1 else "")

    def num_latents(self, size: int) -> int:
        r"""Latents that stand for `size`."""
        return divide_up(size + self.missing, self.step)

    def latents(self) -> SizeRange:
        r"""The same of latents."""
        return SizeRange(f"latent {self.name}", self.num_latents(self.low), self.num_latents(self.high))

    def examples(self) -> tuple[int, int]:
        r"""Two sizes, different ones if there are."""
        return self.low, min(self.low + self.step, self.high)

    def dimension(self) -> Any:
        r"""The axis of latents, as `torch.export` wants it."""
        if self.low == self.high:
            return Dim.STATIC
        return Dim(f"latent_{self.name}", min=self.num_latents(self.low), max=self.num_latents(self.high))

    def pixel_dimension(self, dimension: Any) -> Any:
        r"""The axis of pixels for that of latents."""
        if self.low == self.high or self.step == 1:
            return dimension
        return self.step * dimension - self.missing if self.missing else self.step * dimension


def size_ranges(vae: Any, **options: SizeOption) -> tuple[SizeRange, SizeRange, SizeRange]:
    r"""Ranges of frames, height and width, by default all that a model takes, up to 1024 frames and 2048 pixels.

    A range begins at two latents, since one alone runs through other layers: a single image, say.

    Args:
        vae: The autoencoder.
        options: `frames`, `height` and `width`, each a number, a pair of least and largest, or None for the default.

    Raises:
        ValueError: A size is none that the model takes.
    """
    widest = (_widest_range(vae, "frames"), _widest_range(vae, "height"), _widest_range(vae, "width"))
    frames, height, width = (_chosen(vae, axis, options.get(axis.name)) for axis in widest)
    return frames, height, width


def _widest_range(vae: Any, name: str) -> SizeRange:
    if isinstance(vae, AutoencoderKL3D):
        if name == "frames":
            ratio, missing = vae.temporal_compression_ratio, vae.num_missing_frames
            return SizeRange(name, 2 * ratio - missing, MOST_FRAMES - missing, ratio, missing)
        ratio = vae.spatial_compression_ratio
        return SizeRange(name, 2 * ratio, MOST_PIXELS, ratio)
    if not isinstance(vae, FrameSelectVAE):
        raise ValueError(f"AutoencoderKL3D and FrameSelectVAE can be exported, got {type(vae).__name__}.")
    config = vae.config
    if name == "frames":
        return SizeRange(name, min(2, config.clip_num_frames), config.clip_num_frames)
    if config.keep_head == "latent":
        return SizeRange(name, config.sample_size, config.sample_size, config.patch_size)
    return SizeRange(name, 2 * config.patch_size, MOST_PIXELS, config.patch_size)


def _chosen(vae: Any, widest: SizeRange, option: SizeOption) -> SizeRange:
    """What was asked for, which need not be in `widest` if it is one size."""
    if option is None:
        return widest
    low, high = (option, option) if isinstance(option, int) else option
    least = widest.low if low < high or widest.low == widest.high else widest.step - widest.missing
    is_image = widest.name == "frames" and low == high == 1
    allowed = SizeRange(widest.name, least, widest.high, widest.step, widest.missing)
    if not is_image and not (low <= high and low in allowed and high in allowed):
        raise ValueError(f"{type(vae).__name__} can be exported for {allowed}, got {low} to {high}.")
    return SizeRange(widest.name, low, high, widest.step, widest.missing)
