from __future__ import annotations

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.training_utils import _collate_lora_metadata
from gap_dit_components import make_pipeline, seeded
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from diffusers_vidvae import FlowMatchGapScheduler


NUM_STEPS = 12

CACHES = {
    "first block": lambda pipe: FirstBlockCacheConfig(threshold=0.5),
    "magnitudes": lambda pipe: MagCacheConfig(
        threshold=0.2, num_inference_steps=NUM_STEPS, mag_ratios=torch.ones(NUM_STEPS), retention_ratio=0.3
    ),
    "taylor": lambda pipe: TaylorSeerCacheConfig(
        cache_interval=3, disable_cache_before_step=3, taylor_factors_dtype=torch.float32
    ),
    "taylor, lite": lambda pipe: TaylorSeerCacheConfig(
        cache_interval=3, disable_cache_before_step=3, taylor_factors_dtype=torch.float32, use_lite_mode=True
    ),
    "broadcast": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        temporal_attention_block_skip_range=3,
        spatial_attention_block_identifiers=("spatial_attn",),
        temporal_attention_block_identifiers=("temporal_attn",),
        current_timestep_callback=lambda: pipe.current_timestep,
    ),
    "faster": lambda pipe: FasterCacheConfig(
        spatial_attention_block_identifiers=("spatial_attn",),
        temporal_attention_block_identifiers=("temporal_attn",),
        temporal_attention_block_skip_range=2,
        attention_weight_callback=lambda module: 0.3,
        is_guidance_distilled=True,
        current_timestep_callback=lambda: pipe.current_timestep,
    ),
}


@pytest.fixture(params=["regression", "flow"])
def pipe(request):
    return make_pipeline(request.param)


def generate(pipe, **arguments):
    arguments = {"num_latent_frames": [3, 4], "num_frames": 9, "num_inference_steps": NUM_STEPS, **arguments}
    return pipe(**arguments, generator=seeded(0, 1), output_type="latent").frames


class CallCounter:
    """Counts how often attention and MLPs of the blocks compute."""

    def __init__(self, transformer):
        self.calls = 0
        for name, module in transformer.named_modules():
            if name.endswith(("to_v", "linear_2")) and name.startswith("transformer_blocks"):
                module.register_forward_hook(self.count)

    def count(self, *_):
        self.calls += 1


@pytest.mark.parametrize("name", CACHES)
def test_caches_save_computation_and_stay_close(pipe, name):
    counter = CallCounter(pipe.transformer)
    plain = generate(pipe)
    plain_calls, counter.calls = counter.calls, 0
    pipe.transformer.enable_cache(CACHES[name](pipe))
    cached = generate(pipe)
    assert 0 < counter.calls < 0.95 * plain_calls
    assert not torch.equal(cached, plain)
    assert (cached - plain).norm() < 0.3 * plain.norm()
    assert torch.equal(generate(pipe), cached)  # nothing is left over from the run before
    pipe.transformer.disable_cache()
    assert torch.equal(generate(pipe), plain)


def test_given_frames_stay_exact_with_a_cache(pipe):
    frames = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    plain = generate(pipe, video=frames)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    assert torch.equal(generate(pipe, video=frames)[:, :, 0], plain[:, :, 0])


def add_random_lora(transformer, seed: int, adapter_name: str = "default"):
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, target_modules=["to_q", "to_v", "to_out.0"])
    transformer.add_adapter(config, adapter_name)


def test_loras_are_saved_and_loaded_by_the_pipeline(pipe, tmp_path):
    plain = generate(pipe)
    add_random_lora(pipe.transformer, seed=1)
    adapted = generate(pipe)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    pipe.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(pipe.transformer),
        **_collate_lora_metadata({"transformer": pipe.transformer}),
    )
    other = make_pipeline("flow" if pipe.transformer.num_gap_channels else "regression")
    other.load_lora_weights(tmp_path)
    torch.testing.assert_close(generate(other), adapted)
    assert torch.equal(generate(other, attention_kwargs={"scale": 0.0}), plain)
    other.unload_lora_weights()
    assert torch.equal(generate(other), plain)


def test_fused_loras_change_nothing(pipe):
    plain = generate(pipe)
    add_random_lora(pipe.transformer, seed=1)
    adapted = generate(pipe)
    pipe.fuse_lora(components=["transformer"])
    torch.testing.assert_close(generate(pipe), adapted, rtol=1e-3, atol=1e-4)
    pipe.unfuse_lora(components=["transformer"])
    torch.testing.assert_close(generate(pipe), adapted, rtol=1e-3, atol=1e-4)
    pipe.unload_lora_weights()
    torch.testing.assert_close(generate(pipe), plain, rtol=1e-3, atol=1e-4)


def test_loras_are_weighed_against_each_other(pipe):
    add_random_lora(pipe.transformer, 1, "first")
    first = generate(pipe)
    add_random_lora(pipe.transformer, 2, "second")
    pipe.set_adapters(["first", "second"], [1.0, 0.0])
    torch.testing.assert_close(generate(pipe), first)
    pipe.set_adapters(["first", "second"], [0.5, 0.8])
    assert not torch.allclose(generate(pipe), first, atol=1e-3)


@torch.no_grad()
def test_our_scheduler_drives_a_pipeline_of_diffusers():
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=8,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    pipe = LTXPipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, transformer)
    pipe.set_progress_bar_config(disable=True)
    arguments = {
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "prompt_embeds": torch.randn(1, 5, 8),
        "prompt_attention_mask": torch.ones(1, 5, dtype=torch.int64),
        "output_type": "latent",
        "return_dict": False,
    }
    (expected,) = pipe(**arguments, generator=seeded(0)[0])
    pipe.scheduler = FlowMatchGapScheduler.from_config(pipe.scheduler.config)
    (frames,) = pipe(**arguments, generator=seeded(0)[0])
    assert torch.equal(frames, expected)
