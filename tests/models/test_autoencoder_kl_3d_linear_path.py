r"""AutoencoderKL3D: the linear path beside the convolutions, which can start as a codec of principal components."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D


TINY = {"block_out_channels": (8, 16, 16, 16), "latent_channels": 6, "layers_per_block": 1, "mid_block_layers": 1}
BLOCKS = "b c (t s) (h y) (w x) -> (b t h w) (c s y x)"
BLOCK = {"s": 4, "y": 8, "x": 8}


def clip(num_frames: int = 8) -> torch.Tensor:
    """A smooth moving pattern of pixels in [-1, 1]."""
    t, y, x = torch.meshgrid(*(torch.linspace(0, 3, size) for size in (num_frames, 24, 32)), indexing="ij")
    return torch.stack([torch.sin(x + t), torch.cos(y - t), torch.sin(x * y)])[None] * 0.6 + 0.2


@pytest.fixture(scope="module")
def codec() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Principal components `(6, 3, 4, 8, 8)`, mean of every channel, and deviations of the coefficients."""
    blocks = rearrange(clip() - clip().mean(dim=(0, 2, 3, 4), keepdim=True), BLOCKS, **BLOCK)
    _, singular_values, components = torch.linalg.svd(blocks, full_matrices=False)
    return components[:6].unflatten(1, (3, 4, 8, 8)), clip().mean(dim=(0, 2, 3, 4)), singular_values[:6] / 3


@pytest.mark.parametrize("pixel_range", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize(("scaled", "context"), [(False, 0), (True, 0), (True, 1)])
def test_the_linear_path_starts_as_the_codec_of_the_components(codec, pixel_range, scaled, context):
    components, mean, scales = codec
    vae = AutoencoderKL3D(**TINY, linear_path=True, linear_path_context=context, pixel_range=pixel_range).eval()
    vae.set_linear_path(components, mean, scales if scaled else None)
    x = clip()
    basis = components.flatten(1)
    blocks = rearrange(x - mean[:, None, None, None], BLOCKS, **BLOCK)
    expected = blocks @ basis.T @ basis
    latents = vae.encode(x).latent_dist.mean
    coefficients = (blocks @ basis.T / (scales if scaled else 1)).view(2, 3, 4, 6).permute(3, 0, 1, 2)[None]
    torch.testing.assert_close(latents, coefficients, rtol=0, atol=1e-4)
    sizes = {"b": 1, "t": 2, "h": 3, "w": 4}
    expected = rearrange(expected, f"{BLOCKS.split(' -> ')[1]} -> {BLOCKS.split(' -> ')[0]}", **BLOCK, **sizes)
    torch.testing.assert_close(vae.decode(latents).sample, expected + mean[:, None, None, None], rtol=0, atol=1e-4)


def test_training_goes_on_from_the_codec(codec):
    components, mean, _ = codec
    vae = AutoencoderKL3D(**TINY, linear_path=True)
    vae.set_linear_path(components[:, :, :, :, torch.randperm(8)], mean)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = (vae(clip()).sample - clip()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_only_a_model_with_a_linear_path_and_fitting_shapes_is_set(codec):
    components, mean, scales = codec
    with pytest.raises(ValueError, match="Only a model with `linear_path=True` has"):
        AutoencoderKL3D(**TINY).set_linear_path(components, mean)
    vae = AutoencoderKL3D(**TINY, linear_path=True)
    with pytest.raises(ValueError, match=r"`components` must have shape \(6, 3, 4, 8, 8\), got \(5, 3, 4, 8, 8\)"):
        vae.set_linear_path(components[:5], mean)
    with pytest.raises(ValueError, match=r"`scales` must have shape \(6,\), got \(5,\)"):
        vae.set_linear_path(components, mean, scales[:5])


def test_context_needs_a_linear_path():
    with pytest.raises(ValueError, match="0 without `linear_path`, got 1"):
        AutoencoderKL3D(**TINY, linear_path_context=1)
