"""Autoencoders of diffusers and of this package, real classes at the smallest size that runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLCosmos,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanImageRefiner,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    AutoencoderKLQwenImage,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    AutoencoderRAE,
    AutoencoderTiny,
    AutoencoderVidTok,
    ConsistencyDecoderVAE,
    ModelMixin,
    VQModel,
)
from diffusers.models.autoencoders import (
    AutoencoderKLKVAE,
    AutoencoderKLKVAEVideo,
    AutoencoderKLMiniMaxH3,
    AutoencoderKLQwenImage21,
    Kandinsky6SRVAE,
)

from diffusers_vidvae import AutoencoderKL3D, FrameSelectVAE


WIDTHS = (8, 8, 8, 8)
IDENTITY_STATISTICS = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}


def kl_3d(**options) -> ModelMixin:
    return AutoencoderKL3D(
        latent_channels=4, block_out_channels=WIDTHS, layers_per_block=1, mid_block_layers=1, **options
    )


def kl_3d_first_frame_alone() -> ModelMixin:
    return kl_3d(first_frame_alone=True)


def frame_select(**options) -> ModelMixin:
    return FrameSelectVAE(
        sample_size=16,
        patch_size=8,
        latent_channels=6,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        ff_inner_dim=24,
        max_num_frames=8,
        clip_num_frames=4,
        refiner_channels=8,
        refiner_levels=2,
        **options,
    )


def frame_select_any_size() -> ModelMixin:
    return frame_select(hidden_size=24, patch_norm=False, rope_type="axial", keep_head="pooled", refiner_norm="frame")


def wan(**options) -> ModelMixin:
    return AutoencoderKLWan(
        **{"base_dim": 3, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, **IDENTITY_STATISTICS, **options}
    )


def wan_22() -> ModelMixin:
    return wan(
        base_dim=4,
        decoder_base_dim=4,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


def ltx(**options) -> ModelMixin:
    return AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=WIDTHS,
        decoder_block_out_channels=WIDTHS,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        **options,
    )


def ltx_timestep_conditioned() -> ModelMixin:
    return ltx(timestep_conditioning=True)


def ltx_2() -> ModelMixin:
    return AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=WIDTHS,
        decoder_block_out_channels=(16, 32, 64),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 4,
        patch_size=1,
    )


def hunyuan_video() -> ModelMixin:
    return AutoencoderKLHunyuanVideo(
        block_out_channels=WIDTHS, layers_per_block=1, norm_num_groups=4, latent_channels=4
    )


def hunyuan_video_15() -> ModelMixin:
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16, 16), layers_per_block=1, spatial_compression_ratio=4
    )


def cogvideox() -> ModelMixin:
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=WIDTHS,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )


def mochi() -> ModelMixin:
    return AutoencoderKLMochi(
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
        latent_channels=4,
        **IDENTITY_STATISTICS,
    )


def magvit() -> ModelMixin:
    return AutoencoderKLMagvit(latent_channels=4, block_out_channels=WIDTHS, layers_per_block=1, norm_num_groups=4)


def vidtok(**options) -> ModelMixin:
    return AutoencoderVidTok(ch=32, ch_mult=[1, 1, 1, 1], num_res_blocks=1, **options)


def vidtok_fsq() -> ModelMixin:
    return vidtok(z_channels=4, double_z=False, regularizer="fsq", codebook_size=8**4)


def vidtok_noncausal() -> ModelMixin:
    return vidtok(is_causal=False)


def cosmos() -> ModelMixin:
    return AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=WIDTHS,
        decode_block_out_channels=WIDTHS,
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
    )


def kvae_video() -> ModelMixin:
    return AutoencoderKLKVAEVideo(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4)


def minimax_h3() -> ModelMixin:
    return AutoencoderKLMiniMaxH3(
        latent_channels=4,
        block_out_channels=(8,) * 5,
        layers_per_block=1,
        norm_num_groups=4,
        decoder_num_layers=1,
        decoder_num_attention_heads=1,
        decoder_attention_head_dim=32,
        **IDENTITY_STATISTICS,
    )


def qwen_image_rgba() -> ModelMixin:
    return AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, input_channels=4, **IDENTITY_STATISTICS
    )


def allegro() -> ModelMixin:
    return AutoencoderKLAllegro(
        block_out_channels=WIDTHS, layers_per_block=1, norm_num_groups=2, latent_channels=4, sample_size=160
    )


IMAGE_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "layers_per_block": 1,
    "latent_channels": 4,
}


def kl() -> ModelMixin:
    return AutoencoderKL(
        block_out_channels=(8, 8), up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, **IMAGE_BLOCKS
    )


def temporal_decoder() -> ModelMixin:
    return AutoencoderKLTemporalDecoder(block_out_channels=(32, 32), **IMAGE_BLOCKS)


def asymmetric_kl() -> ModelMixin:
    return AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(8, 8),
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(8, 8),
        norm_num_groups=2,
    )


def vq() -> ModelMixin:
    return VQModel(
        block_out_channels=(8, 8), up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, **IMAGE_BLOCKS
    )


def tiny() -> ModelMixin:
    return AutoencoderTiny(
        encoder_block_out_channels=WIDTHS,
        decoder_block_out_channels=WIDTHS,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )


def dc() -> ModelMixin:
    halves = {"block_out_channels": (8, 8), "layers_per_block": (1, 1), "qkv_multiscales": ((), (5,))}
    kinds = {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in halves.items()}
    blocks = ("ResBlock", "EfficientViTBlock")
    return AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=blocks, decoder_block_types=blocks, **kinds
    )


def flux_2() -> ModelMixin:
    return AutoencoderKLFlux2(
        block_out_channels=(8, 8), up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, **IMAGE_BLOCKS
    )


def hunyuan_image() -> ModelMixin:
    return AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=4,
        sample_size=32,
        scaling_factor=1.0,
    )


def hunyuan_image_refiner() -> ModelMixin:
    return AutoencoderKLHunyuanImageRefiner(
        latent_channels=4, block_out_channels=(16, 16, 16), layers_per_block=1, spatial_compression_ratio=4
    )


def kvae() -> ModelMixin:
    return AutoencoderKLKVAE(
        channels=32, num_enc_blocks=1, num_dec_blocks=1, z_channels=4, ch_mult=(1, 1), sample_size=32
    )


def qwen_image_21() -> ModelMixin:
    return AutoencoderKLQwenImage21(
        base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1] * 5, num_res_blocks=1, **IDENTITY_STATISTICS
    )


def rae() -> ModelMixin:
    return AutoencoderRAE(
        encoder_type="mae",
        encoder_hidden_size=64,
        encoder_patch_size=8,
        encoder_num_hidden_layers=1,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        patch_size=8,
        encoder_input_size=32,
    )


def consistency_decoder() -> ModelMixin:
    return ConsistencyDecoderVAE(
        encoder_block_out_channels=(8, 8),
        encoder_down_block_types=("DownEncoderBlock2D",) * 2,
        encoder_layers_per_block=1,
        encoder_norm_num_groups=2,
        decoder_block_out_channels=(8, 8),
        decoder_layers_per_block=1,
        decoder_norm_num_groups=2,
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
    )


def kandinsky_6_sr() -> ModelMixin:
    return Kandinsky6SRVAE(
        latent_channels=4,
        encoder_block_out_channels=(8, 32, 32),
        decoder_block_out_channels=(8, 32, 32),
        layers_per_block=1,
    )


# Other classes that diffusers keeps among its autoencoders, and why no clip runs through them.
NO_VIDEO_AUTOENCODERS = {
    "AutoencoderKLKVAEAudio": "sound",
    "AutoencoderKLLTX2Audio": "sound",
    "AutoencoderKLMiniMaxH3Audio": "sound",
    "AutoencoderOobleck": "sound",
    "AutoencoderSAME": "sound",
    "Cosmos3AVAEAudioTokenizer": "sound",
    "LongCatAudioDiTVae": "sound",
    "MMAudioVAE": "sound",
    "MMAudioVocoder": "sound",
    "MiniMaxMusic3Vocoder": "sound",
    "LTX2VideoDiffusionDecoderModel": "a decoder without an encoder",
    "RFD4ProteinaAutoencoder": "proteins",
}

# A clip of 6 frames runs in each of these within a second or so.
AUTOENCODERS: dict[str, Callable[[], ModelMixin]] = {
    make.__name__: make
    for make in (
        kl_3d,
        kl_3d_first_frame_alone,
        frame_select,
        frame_select_any_size,
        wan,
        wan_22,
        ltx,
        ltx_timestep_conditioned,
        ltx_2,
        hunyuan_video,
        hunyuan_video_15,
        cogvideox,
        mochi,
        magvit,
        vidtok,
        vidtok_fsq,
        vidtok_noncausal,
        cosmos,
        kvae_video,
        minimax_h3,
        qwen_image_rgba,
        kl,
        temporal_decoder,
        asymmetric_kl,
        vq,
        tiny,
        dc,
        flux_2,
        hunyuan_image,
        hunyuan_image_refiner,
        kvae,
        qwen_image_21,
        consistency_decoder,
        kandinsky_6_sr,
    )
}


def make_autoencoder(name: str) -> ModelMixin:
    torch.manual_seed(0)
    return AUTOENCODERS[name]().eval()
