r"""Videos in the forms that pipelines return, joined from windows and stacked to batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


def join_windows(windows: list[Any], output_type: str) -> Any:
    r"""Joins the windows of one video along time.

    Args:
        windows: What `VideoProcessor.postprocess_video` made of each, with a batch dimension of one.
        output_type: `"pil"`, `"np"` or `"pt"`.

    Returns:
        A list of PIL images, an array `(frames, height, width, channels)` or a tensor
        `(frames, channels, height, width)`.
    """
    videos = [video for (video,) in windows]
    if output_type == "pil":
        return [image for images in videos for image in images]
    return np.concatenate(videos) if output_type == "np" else torch.cat(videos)


def stack_videos(videos: list[Any]) -> Any:
    r"""Joins videos to a batch; arrays and tensors are padded with black frames at the end."""
    if isinstance(videos[0], list):
        return videos
    longest = max(map(len, videos))
    if isinstance(videos[0], np.ndarray):
        return np.stack([np.pad(video, [(0, longest - len(video)), (0, 0), (0, 0), (0, 0)]) for video in videos])
    return torch.stack([F.pad(video, [0, 0, 0, 0, 0, 0, 0, longest - len(video)]) for video in videos])
