r"""AutoencoderKL3D: gradients, checkpointing, learning and compilation."""

from __future__ import annotations

import pytest
import torch

from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D, kl_per_element


@pytest.fixture
def vae() -> AutoencoderKL3D:
    torch.manual_seed(0)
    return AutoencoderKL3D(
        block_out_channels=(8, 16, 16, 16), latent_channels=4, layers_per_block=1, mid_block_layers=1
    )


def clip(num_frames: int = 5, height: int = 16, width: int = 24) -> torch.Tensor:
    return 2 * torch.rand(1, 3, num_frames, height, width) - 1


def gradients(vae: AutoencoderKL3D, x: torch.Tensor) -> list[torch.Tensor]:
    vae.zero_grad()
    output = vae(x, sample_posterior=True, generator=torch.Generator().manual_seed(0), return_posterior=True)
    loss = (output.sample - x).square().mean() + 0.1 * kl_per_element(output.latent_dist).mean()
    loss.backward()
    return [parameter.grad.clone() for parameter in vae.parameters()]


@pytest.mark.parametrize("num_frames", [1, 5])
def test_every_parameter_gets_a_gradient(vae, num_frames):
    assert all(gradient.abs().max() > 0 for gradient in gradients(vae, clip(num_frames)))


@pytest.mark.parametrize("chunk_frames", [None, 4])
@pytest.mark.parametrize("config", [{}, {"norm_type": "group", "norm_num_groups": 4, "mid_block_attention": True}])
def test_checkpointing_gives_the_same_gradients(chunk_frames, config):
    vae = AutoencoderKL3D(
        block_out_channels=(8, 16, 16, 16), latent_channels=4, layers_per_block=1, mid_block_layers=1, **config
    )
    if chunk_frames:
        vae.enable_temporal_chunking(chunk_frames, full_resolution_frames=1)
    x = clip()
    expected = gradients(vae, x)
    vae.enable_gradient_checkpointing()
    assert vae.encoder.gradient_checkpointing and vae.decoder.gradient_checkpointing
    for gradient, plain in zip(gradients(vae, x), expected, strict=True):
        torch.testing.assert_close(gradient, plain)


def test_chunks_give_the_gradients_of_the_whole(vae):
    x = clip(9)
    expected = gradients(vae, x)
    vae.enable_temporal_chunking(4)
    for gradient, whole in zip(gradients(vae, x), expected, strict=True):
        torch.testing.assert_close(gradient, whole, rtol=1e-3, atol=1e-4)


def test_model_learns_a_clip(vae):
    x = torch.linspace(-0.8, 0.8, 24).expand(1, 3, 4, 16, 24)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = (vae(x).sample - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("num_frames", [1, 8])
def test_compiled_halves_give_the_same_output(vae, num_frames):
    vae.eval().requires_grad_(False)
    x = clip(num_frames)
    expected = vae(x).sample
    vae.encoder.compile(fullgraph=True, dynamic=False)
    vae.decoder.compile(fullgraph=True, dynamic=False)
    torch.testing.assert_close(vae(x).sample, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_decoder_streams(vae):
    vae.eval().requires_grad_(False)
    latents = torch.randn(1, 4, 4, 2, 3)
    expected = vae.decode(latents).sample
    vae.decoder.compile(fullgraph=True, dynamic=False)
    pieces = list(vae.decode_stream(latents.split(1, dim=2)))
    torch.testing.assert_close(torch.cat(pieces, dim=2), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_repeated_blocks_give_the_same_output(vae):
    vae.eval().requires_grad_(False)
    x = clip(4)
    expected = vae(x).sample
    # Widths and sizes differ between the blocks, each of which is a variant of the compiled code.
    with torch._dynamo.config.patch(recompile_limit=64):
        vae.compile_repeated_blocks(fullgraph=True, dynamic=False)
        torch.testing.assert_close(vae(x).sample, expected, rtol=0, atol=1e-4)
