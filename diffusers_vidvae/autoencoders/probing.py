r"""Which sizes a model takes: by the rule of its class, or, for models of other classes, by trying."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from diffusers import ModelMixin

from .geometry import Lengths, VideoGeometry
from .geometry_rules import GEOMETRIES, class_names
from .video_autoencoder import VideoAutoencoder


PROBE_SIDES = (32, 64, 128, 256)
PROBE_FRAMES = 33


def open_autoencoder(vae: ModelMixin) -> VideoAutoencoder:
    r"""An image or video autoencoder behind one way to call it, whatever its class.

    Raises:
        ValueError: Its class is unknown, and no small clip comes back whole.
    """
    return VideoAutoencoder(vae, geometry_of(vae))


def geometry_of(vae: ModelMixin) -> VideoGeometry:
    r"""Sizes that an autoencoder takes."""
    for name in class_names(vae):
        if name in GEOMETRIES:
            return GEOMETRIES[name](vae) or probe_geometry(vae)
    return probe_geometry(vae)


_PROBED: WeakKeyDictionary[ModelMixin, VideoGeometry] = WeakKeyDictionary()


@torch.no_grad()
def probe_geometry(vae: ModelMixin) -> VideoGeometry:
    """Sends small clips of growing length through a model until the sizes it takes are known.

    Raises:
        ValueError: Fewer than two clips of up to 33 frames and 256 pixels a side come back with their own size.
    """
    if vae not in _PROBED:
        for side in PROBE_SIDES:
            for per_frame in (False, True):
                geometry = _probe_side(vae, side, per_frame)
                if geometry is not None:
                    _PROBED[vae] = geometry
                    return geometry
        raise ValueError(
            f"Cannot tell which sizes {type(vae).__name__} takes: of clips of 1 to {PROBE_FRAMES} frames and"
            f" {PROBE_SIDES} pixels a side, fewer than two came back with their own size."
        )
    return _PROBED[vae]


def _probe_side(vae: ModelMixin, side: int, per_frame: bool) -> VideoGeometry | None:
    trial = VideoGeometry((Lengths(1),), Lengths(side), Lengths(side), per_frame=per_frame)
    accepted = []
    for num_frames in range(1, 2 if per_frame else PROBE_FRAMES + 1):
        step = _probe_clip(vae, trial, num_frames, side)
        if step:
            accepted.append((num_frames, step))
        if _progression([num_frames for num_frames, _ in accepted], length=3):
            break
    frames = Lengths(1) if per_frame else _progression([num_frames for num_frames, _ in accepted])
    if not accepted or frames is None:
        return None
    step = accepted[0][1]
    smallest = step if _probe_clip(vae, trial, accepted[0][0], step) == step else side
    return VideoGeometry((frames,), Lengths(smallest, step), Lengths(smallest, step), per_frame=per_frame)


def _probe_clip(vae: ModelMixin, geometry: VideoGeometry, num_frames: int, side: int) -> int:
    """Pixels per latent of a clip that comes back whole, 0 for one that does not."""
    model = VideoAutoencoder(vae, geometry)
    clip = torch.linspace(-1, 1, side * side, device=vae.device).view(1, 1, 1, side, side)
    clip = clip.expand(1, 3, num_frames, side, side)
    try:
        latents = model.encode(clip).posterior.mode()
        model.decode(latents, clip.shape[2:])
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError):
        # A failed call leaves the state of its frames in some models.
        for name in ("_clear_conv_cache", "clear_cache"):
            getattr(vae, name, lambda: None)()
        return 0
    return side // latents.shape[-1] if latents.ndim == 5 and latents.shape[-1] else 0


def _progression(accepted: list[int], length: int = 2) -> Lengths | None:
    """The densest progression of `length` accepted numbers or more, and of no others, from the first one on."""
    for step in range(1, PROBE_FRAMES):
        candidates = range(accepted[0], accepted[-1] + 1, step) if accepted else ()
        if len(candidates) >= length and set(candidates) <= set(accepted):
            return Lengths(accepted[0], step)
    return None
