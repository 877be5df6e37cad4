r"""AutoencoderKL3D with what others bring: LoRA, fused projections, `torch.export`, empty batches."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch.export import Dim

from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D


OPTIONS = {
    "plain": {},
    "first frame alone, linear path": {"first_frame_alone": True, "linear_path": True},
    "attention": {"mid_block_attention": True},
}


@pytest.fixture(params=OPTIONS)
def vae(request) -> AutoencoderKL3D:
    torch.manual_seed(0)
    config = {
        "block_out_channels": (8, 16, 16, 16),
        "latent_channels": 4,
        "layers_per_block": 1,
        "mid_block_layers": 1,
    }
    return AutoencoderKL3D(**config, **OPTIONS[request.param]).eval().requires_grad_(False)


def clip(num_frames: int = 5, height: int = 16, width: int = 24, batch_size: int = 1) -> torch.Tensor:
    return 2 * torch.rand(batch_size, 3, num_frames, height, width) - 1


def test_lora_on_convolutions_survives_saving_and_chunks(vae, tmp_path):
    x = clip(9)
    plain = vae(x).sample
    # The 1x1x1 convolutions of shortcuts among them.
    vae.add_adapter(LoraConfig(r=2, target_modules=["conv", "conv1", "conv2"]))
    assert any("shortcut" in name and "lora_B" in name for name, _ in vae.named_parameters())
    assert torch.equal(vae(x).sample, plain)
    for name, parameter in vae.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = vae(x).sample
    assert (adapted - plain).abs().max() > 1e-2
    vae.save_lora_adapter(tmp_path, weight_name="lora.safetensors")
    vae.enable_temporal_chunking(4, full_resolution_frames=1)
    torch.testing.assert_close(vae(x).sample, adapted, rtol=0, atol=1e-4)
    vae.disable_temporal_chunking()
    image = vae(x[:, :, :1]).sample
    vae.fuse_lora()
    torch.testing.assert_close(vae(x).sample, adapted, rtol=0, atol=1e-4)
    torch.testing.assert_close(vae(x[:, :, :1]).sample, image, rtol=0, atol=1e-4)
    vae.unfuse_lora()
    vae.unload_lora()
    torch.testing.assert_close(vae(x).sample, plain, rtol=0, atol=1e-4)
    vae.load_lora_adapter(tmp_path, prefix=None, weight_name="lora.safetensors")
    torch.testing.assert_close(vae(x).sample, adapted, rtol=0, atol=1e-4)


def test_lora_trains(vae):
    vae.add_adapter(LoraConfig(r=2, target_modules=["conv1"]))
    vae(clip()).sample.square().mean().backward()
    trained = {name for name, parameter in vae.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in vae.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("vae", ["attention"], indirect=True)
def test_projections_of_the_attention_can_be_fused(vae):
    x = clip()
    expected = vae(x).sample
    vae.fuse_qkv_projections()
    assert vae.encoder.mid_block.attention.fused_projections and vae.decoder.mid_block.attention.fused_projections
    torch.testing.assert_close(vae(x).sample, expected, rtol=0, atol=1e-5)
    vae.unfuse_qkv_projections()
    assert torch.equal(vae(x).sample, expected)
    vae.set_attention_backend("_native_math")
    torch.testing.assert_close(vae(x).sample, expected, rtol=0, atol=1e-5)


class Encode(torch.nn.Module):
    def __init__(self, vae: AutoencoderKL3D):
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(x).latent_dist.parameters


class Decode(Encode):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(x).sample


@pytest.mark.slow
def test_exported_halves_take_every_number_of_frames_and_size(vae):
    first = int(vae.config.first_frame_alone)
    groups, rows, columns = Dim("groups", min=2), Dim("rows", min=2), Dim("columns", min=2)
    dimensions = {2: 4 * groups + first, 3: 8 * rows, 4: 8 * columns}
    encode = torch.export.export(Encode(vae), (clip(12 + first, 32, 40),), dynamic_shapes=(dimensions,)).module()
    for size in ((8 + first, 16, 40), (20 + first, 24, 32)):
        x = clip(*size)
        torch.testing.assert_close(encode(x), Encode(vae)(x), rtol=0, atol=1e-5)
    dimensions = {2: Dim("frames", min=2), 3: rows, 4: columns}
    decode = torch.export.export(Decode(vae), (torch.randn(1, 4, 3, 4, 5),), dynamic_shapes=(dimensions,)).module()
    for size in ((2, 3, 4), (6, 5, 2)):
        z = torch.randn(1, 4, *size)
        torch.testing.assert_close(decode(z), Decode(vae)(z), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_frames", [1, 5])
def test_an_empty_batch_gives_an_empty_result(vae, num_frames):
    x = clip(num_frames, batch_size=0)
    for slicing in (False, True):
        vae.use_slicing = slicing
        latents = vae.encode(x).latent_dist.mode()
        assert latents.shape == (0, *vae.latent_shape(*x.shape[2:]))
        assert vae(x).sample.shape == x.shape
