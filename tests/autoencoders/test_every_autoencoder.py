r"""The list of diffusers' autoencoders that the tests run is complete."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from diffusers import ModelMixin
from diffusers.models import autoencoders
from tiny_autoencoders import AUTOENCODERS, NO_VIDEO_AUTOENCODERS, allegro, rae

from diffusers_vidvae import VideoReconstructionPipeline


def test_every_autoencoder_of_diffusers_is_run_or_known_to_take_no_pictures():
    classes = {
        name for name, value in vars(autoencoders).items() if inspect.isclass(value) and issubclass(value, ModelMixin)
    }
    run = {type(make()).__name__ for make in (*AUTOENCODERS.values(), allegro, rae)}
    assert classes - run == NO_VIDEO_AUTOENCODERS.keys()


def test_an_autoencoder_of_one_size_takes_frames_up_to_that():
    pipe = VideoReconstructionPipeline(rae().eval())
    clip = np.random.default_rng(0).integers(0, 255, (3, 20, 36, 3), dtype=np.uint8)
    assert pipe(clip[:, :, :28], output_type="pt").frames.shape == (1, 3, 3, 20, 28)
    with pytest.raises(
        ValueError, match=r"AutoencoderRAE was given .* \(3, 32, 40\) and returned one of \(3, 32, 32\)"
    ):
        pipe(clip)
