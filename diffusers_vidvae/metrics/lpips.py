"""LPIPS, a learned perceptual distance, where its packages and weights are there."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor


Backbone = Literal["squeeze", "alex", "vgg"]


class LPIPS:
    """Learned perceptual distance of images (Zhang et al., 2018), through torchmetrics and torchvision.

    The linear heads come with torchmetrics. The backbone comes from torchvision, which keeps its weights in
    `$TORCH_HOME/hub/checkpoints` and downloads them (squeeze 5 MB, alex 233 MB, vgg 528 MB) when they are not there.

    Args:
        backbone: `"squeeze"`, `"alex"` (the paper's choice for comparisons) or `"vgg"`.
        device: Where the network runs.

    Raises:
        ValueError: The backbone is unknown, a package is missing, or the weights are neither in the cache nor within
            reach.
    """

    def __init__(self, backbone: Backbone = "alex", device: str | torch.device = "cpu") -> None:
        if backbone not in get_args(Backbone):
            raise ValueError(f"LPIPS backbone {backbone!r} is not one of {', '.join(get_args(Backbone))}.")
        try:
            import torchvision  # noqa: F401
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        except (ImportError, RuntimeError) as error:
            raise ValueError(
                f"LPIPS needs torchmetrics and torchvision: pip install torchmetrics torchvision ({error})."
            ) from error
        try:
            self.network = LearnedPerceptualImagePatchSimilarity(backbone).net.to(device)
        except OSError as error:
            raise ValueError(
                f"LPIPS needs the weights of {backbone}: they are not in {torch.hub.get_dir()}/checkpoints "
                f"and cannot be downloaded ({error})."
            ) from error
        self.device = device

    @torch.no_grad()
    def __call__(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each pair of `(batch, 3, height, width)` images in [0, 1], `(batch,)`; 0 is identical.

        Raises:
            ValueError: The images do not have three channels.
        """
        if reference.shape[1] != 3:
            raise ValueError(f"LPIPS compares RGB images, got {reference.shape[1]} channels.")
        pair = (images.to(self.device) * 2 - 1 for images in (reference, reconstruction))
        return self.network(*pair).flatten()
