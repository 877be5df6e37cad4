r"""AutoencoderKL3D as the autoencoder of pipelines that come with diffusers, which run unchanged to pixels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from diffusers_vidvae import AutoencoderKL3D, FlowMatchGapScheduler, demo_model
from diffusers_vidvae.models.autoencoder_kl_3d import DERIVED_ENTRIES


SIZE = {"height": 32, "width": 32}
ONE_LAYER = {"num_attention_heads": 2, "num_layers": 1}
TEXT = {"prompt_embeds": torch.randn(1, 6, 16), "guidance_scale": 1.0}


def make_vae(**options) -> AutoencoderKL3D:
    torch.manual_seed(0)
    widths = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "mid_block_layers": 1}
    return AutoencoderKL3D(**{**widths, "latent_channels": 4, "first_frame_alone": True, **options}).eval()


def embedded_vae() -> AutoencoderKL3D:
    return AutoencoderKL3D.from_pretrained(demo_model(), subfolder="autoencoder_kl_3d", dtype=torch.float32)


def make_text_encoder() -> dict:
    """A tokenizer of six words and a T5 encoder of random weights."""
    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "ball"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = T5Config(vocab_size=6, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "tokenizer": PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names),
        "text_encoder": T5EncoderModel(config).eval(),
    }


def channels_of(vae: AutoencoderKL3D) -> dict[str, int]:
    """Of a transformer that generates the autoencoder's latents."""
    return {"in_channels": vae.config.latent_channels, "out_channels": vae.config.latent_channels}


def wan_transformer(in_channels: int, out_channels: int) -> WanTransformer3DModel:
    sizes = {"text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "rope_max_seq_len": 32}
    return WanTransformer3DModel(
        in_channels=in_channels, out_channels=out_channels, attention_head_dim=12, **sizes, **ONE_LAYER
    )


def wan(vae: AutoencoderKL3D, scheduler=FlowMatchEulerDiscreteScheduler) -> WanPipeline:
    return WanPipeline(None, None, vae, scheduler(), wan_transformer(**channels_of(vae)))


def wan_image_to_video(vae: AutoencoderKL3D, **options) -> WanImageToVideoPipeline:
    channels, ratio = vae.config.latent_channels, vae.temporal_compression_ratio
    in_channels = channels if options else 2 * channels + ratio
    transformer = wan_transformer(in_channels, channels)
    return WanImageToVideoPipeline(
        None, None, vae, FlowMatchEulerDiscreteScheduler(), None, None, transformer, **options
    )


def wan_video_to_video(vae: AutoencoderKL3D) -> WanVideoToVideoPipeline:
    scheduler = FlowMatchEulerDiscreteScheduler()
    return WanVideoToVideoPipeline(None, None, wan_transformer(**channels_of(vae)), vae, scheduler)


def ltx(vae: AutoencoderKL3D) -> LTXPipeline:
    sizes = {"attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16}
    transformer = LTXVideoTransformer3DModel(**channels_of(vae), **sizes, **ONE_LAYER)
    text = make_text_encoder()
    return LTXPipeline(FlowMatchEulerDiscreteScheduler(), vae, text["text_encoder"], text["tokenizer"], transformer)


def hunyuan_video(vae: AutoencoderKL3D) -> HunyuanVideoPipeline:
    sizes = {"attention_head_dim": 10, "text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4)}
    layers = {"num_single_layers": 1, "num_refiner_layers": 1, **ONE_LAYER}
    transformer = HunyuanVideoTransformer3DModel(**channels_of(vae), **sizes, **layers)
    return HunyuanVideoPipeline(None, None, transformer, vae, FlowMatchEulerDiscreteScheduler(), None, None)


def cogvideox(vae: AutoencoderKL3D) -> CogVideoXPipeline:
    sizes = {"attention_head_dim": 16, "time_embed_dim": 2, "text_embed_dim": 16, "max_text_seq_length": 8}
    sample = {"sample_width": 4, "sample_height": 4, "sample_frames": 9}
    transformer = CogVideoXTransformer3DModel(**channels_of(vae), **sizes, **sample, **ONE_LAYER)
    return CogVideoXPipeline(
        **make_text_encoder(), vae=vae, transformer=transformer, scheduler=CogVideoXDDIMScheduler()
    )


def dit(vae: AutoencoderKL3D) -> DiTPipeline:
    channels = vae.config.latent_channels
    transformer = DiTTransformer2DModel(
        sample_size=4,
        patch_size=2,
        attention_head_dim=8,
        in_channels=channels,
        out_channels=2 * channels,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=10,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        **ONE_LAYER,
    )
    return DiTPipeline(transformer, vae, DDIMScheduler())


PROMPT = {"prompt": "a red ball", "guidance_scale": 3.0, "max_sequence_length": 8}
POOLED = {"pooled_prompt_embeds": torch.randn(1, 8), "prompt_attention_mask": torch.ones(1, 6)}
# Each takes numbers of frames as its authors count them, 4 k + 1, and rounds others in its own way.
TEXT_TO_VIDEO: dict[str, tuple[Callable[[AutoencoderKL3D], DiffusionPipeline], dict]] = {
    "wan": (wan, TEXT),
    "ltx": (ltx, PROMPT),
    "hunyuan_video": (hunyuan_video, {**TEXT, **POOLED}),
    "cogvideox": (cogvideox, PROMPT),
}


def run(pipe: DiffusionPipeline, **arguments) -> torch.Tensor:
    """Two steps to pixels in [0, 1], `(T, C, H, W)`."""
    torch.manual_seed(0)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(num_inference_steps=2, output_type="pt", **arguments).frames[0]
    assert torch.isfinite(frames).all() and frames.std() > 0
    return frames


def frames_of(name: str, num_frames: int, vae: AutoencoderKL3D) -> int:
    """What a pipeline makes of a number of frames: Wan rounds to the nearest that it can, others down."""
    num_latents = (num_frames // 4 if name == "wan" else (num_frames - 1) // 4) + 1
    return 4 * num_latents - (3 if vae.config.first_frame_alone else 0)


@pytest.mark.parametrize("num_frames", [1, 9, 10, 12, 16])
@pytest.mark.parametrize("name", TEXT_TO_VIDEO)
def test_text_to_video_gives_the_frames_that_its_pipeline_counts(name, num_frames):
    make, arguments = TEXT_TO_VIDEO[name]
    vae = make_vae()
    frames = run(make(vae), num_frames=num_frames, **SIZE, **arguments)
    assert frames.shape == (frames_of(name, num_frames, vae), 3, 32, 32)


@pytest.mark.parametrize("name", TEXT_TO_VIDEO)
@pytest.mark.parametrize("make_other", [lambda: make_vae(first_frame_alone=False), embedded_vae], ids=["own", "demo"])
def test_text_to_video_takes_any_autoencoder_of_this_class(name, make_other):
    make, arguments = TEXT_TO_VIDEO[name]
    vae = make_other()
    assert len(run(make(vae), num_frames=9, **SIZE, **arguments)) == frames_of(name, 9, vae)


def test_any_flow_matching_scheduler_drives_a_pipeline():
    assert len(run(wan(make_vae(), FlowMatchGapScheduler), num_frames=5, **SIZE, **TEXT)) == 5


@pytest.mark.parametrize("given", ["video", "image"])
@pytest.mark.parametrize("make_other", [make_vae, embedded_vae], ids=["first alone", "demo"])
def test_video_from_pixels(make_other, given):
    vae = make_other()
    pictures = [Image.new("RGB", (32, 32), (20 * index, 90, 200)) for index in range(9)]
    if given == "video":
        frames = run(wan_video_to_video(vae), video=pictures, strength=0.9, **SIZE, **TEXT)
    else:
        frames = run(wan_image_to_video(vae), image=pictures[0], num_frames=9, **SIZE, **TEXT)
    assert len(frames) == (9 if vae.config.first_frame_alone else 12)


def test_image_to_video_starts_with_the_image_and_then_moves():
    vae = make_vae()
    image = Image.radial_gradient("L").resize((32, 32)).convert("RGB")
    frames = run(wan_image_to_video(vae, expand_timesteps=True), image=image, num_frames=9, **SIZE, **TEXT)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, 32, 32, 3).permute(0, 3, 1, 2)
    expected = (vae(pixels[:, :, None] / 127.5 - 1).sample[0, :, 0] / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(frames[0], expected, rtol=0, atol=1e-4)
    assert (frames[1] - frames[0]).abs().max() > 1e-3


def test_images_of_classes():
    pipe = dit(make_vae())
    pipe.set_progress_bar_config(disable=True)
    images = pipe([1, 2], num_inference_steps=2, guidance_scale=1.0, output_type="np").images
    assert images.shape == (2, 32, 32, 3)


def predict_wan(transformer: WanTransformer3DModel, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return transformer(noisy, timestep, TEXT["prompt_embeds"].expand(len(noisy), -1, -1), return_dict=False)[0]


def predict_ltx(transformer: LTXVideoTransformer3DModel, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    num_frames, height, width = noisy.shape[2:]
    packed = transformer(
        LTXPipeline._pack_latents(noisy),
        TEXT["prompt_embeds"].expand(len(noisy), -1, -1),
        timestep,
        torch.ones(len(noisy), 6),
        num_frames,
        height,
        width,
        return_dict=False,
    )[0]
    return LTXPipeline._unpack_latents(packed, num_frames, height, width)


def predict_dit(transformer: DiTTransformer2DModel, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    classes = torch.zeros(len(noisy), dtype=torch.long)
    predicted = transformer(noisy[:, :, 0], timestep, classes, return_dict=False)[0]
    return predicted[:, : noisy.shape[1], None]


@pytest.mark.parametrize(
    ("make", "predict", "num_frames"), [(wan, predict_wan, 9), (ltx, predict_ltx, 9), (dit, predict_dit, 1)]
)
def test_transformers_learn_its_latents_with_the_scheduler_of_this_package(make, predict, num_frames):
    vae, scheduler = make_vae(), FlowMatchGapScheduler()
    transformer = make(vae).transformer.train()
    with torch.no_grad():
        latents = vae.encode(torch.rand(2, 3, num_frames, 32, 32) * 2 - 1).latent_dist.mode()
    noise, timestep = torch.randn_like(latents), torch.tensor([300.0, 700.0])
    noisy = scheduler.scale_noise(latents, timestep, noise)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (predict(transformer, noisy, timestep) - (noise - latents)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_saved_pipeline_keeps_what_pipelines_ask_for(tmp_path):
    vae = make_vae(latents_mean=[0.5, 0.0, 0.0, 1.0], latents_std=[2.0, 1.0, 1.0, 3.0])
    pipe = wan(vae)
    expected = run(pipe, num_frames=5, **SIZE, **TEXT)
    pipe.save_pretrained(tmp_path)
    again = WanPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    for name in (*DERIVED_ENTRIES, "latents_mean", "latents_std", "first_frame_alone"):
        assert again.vae.config[name] == vae.config[name], name
    torch.testing.assert_close(run(again, num_frames=5, **SIZE, **TEXT), expected, rtol=0, atol=1e-4)


def test_latents_of_another_number_of_channels_are_refused_with_both_numbers():
    pipe = hunyuan_video(make_vae())
    pipe.register_modules(vae=make_vae(latent_channels=6))
    with pytest.raises(ValueError, match=r"\(batch, 6, frames, height, width\), got \(1, 4, 3, 4, 4\)"):
        run(pipe, num_frames=9, **SIZE, **TEXT, **POOLED)
