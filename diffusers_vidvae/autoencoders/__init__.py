r"""What the package knows of other people's autoencoders: sizes, signatures, and statistics of latents.

`open_autoencoder` brings any image or video autoencoder of diffusers, or of this package, behind one interface;
`VideoGeometry` says which sizes it takes. `autoencoders.latent_statistics` measures latents of files.
"""

from __future__ import annotations

from diffusers_vidvae.models.padding import crop_clip, pad_clip

from .geometry import Lengths, VideoGeometry
from .geometry_rules import AnyVideoAutoencoder, class_names, require_frame_select
from .probing import geometry_of, open_autoencoder, probe_geometry
from .video_autoencoder import EncodedClip, Posterior, VideoAutoencoder


__all__ = [
    "AnyVideoAutoencoder",
    "EncodedClip",
    "Lengths",
    "Posterior",
    "VideoAutoencoder",
    "VideoGeometry",
    "class_names",
    "crop_clip",
    "geometry_of",
    "open_autoencoder",
    "pad_clip",
    "probe_geometry",
    "require_frame_select",
]
