"""What diffusers offers to run models faster or in less memory, on every model of the package.

Offloading to disk empties a module's weights between uses, so these tests fail wherever a forward pass reaches for
weights that no hook brings back; on a machine without an accelerator nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import accelerate
import pytest
import torch
from diffusers import ModelMixin
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.training_utils import EMAModel

from diffusers_vidvae import AutoencoderKL3D, FrameSelectVAE, GapDiT


@dataclass
class Case:
    model_class: type[ModelMixin]
    config: dict
    run: Callable[[ModelMixin], torch.Tensor]

    def make(self) -> ModelMixin:
        torch.manual_seed(0)
        model = self.model_class(**self.config).eval()
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        return model


def round_trip(vae: ModelMixin) -> torch.Tensor:
    """Encodes and decodes as pipelines do, without `forward`."""
    sample = torch.rand(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = vae.encode(sample.to(vae.dtype)).latent_dist.mode()
    if isinstance(vae, FrameSelectVAE):
        keep_mask = torch.tensor([[True, False, True, False, True]] * 2)
        return vae.decode(latents, keep_mask).sample
    return vae.decode(latents, num_frames=5).sample


def denoise(transformer: ModelMixin) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, transformer.config.in_channels, 3, 4, 4, generator=generator)
    if transformer.num_gap_channels:
        gaps = torch.randn(2, 2, 3, 1, 1, generator=generator).expand(-1, -1, -1, 4, 4)
        latents = torch.cat([latents, gaps], dim=1)
    frame_mask = torch.tensor([[True, True, True], [True, True, False]])
    # Offloading hooks of accelerate cannot rebuild dataclasses, so pipelines ask for tuples.
    timestep = torch.tensor([600.0, 200.0])
    return transformer(latents.to(transformer.dtype), timestep, frame_mask, return_dict=False)[0]


ATTENTION = {"num_attention_heads": 2, "attention_head_dim": 16, "ff_inner_dim": 64}
CASES = {
    "frame_select_vae": Case(
        FrameSelectVAE,
        {
            "sample_size": 16,
            "patch_size": 4,
            "latent_channels": 8,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "clip_num_frames": 4,
            "refiner_channels": 8,
            "refiner_levels": 1,
            **ATTENTION,
        },
        round_trip,
    ),
    "autoencoder_kl_3d": Case(
        AutoencoderKL3D,
        {
            "block_out_channels": (8, 16, 16, 16),
            "layers_per_block": (1, 1, 1, 1),
            "mid_block_layers": 1,
            "latent_channels": 4,
        },
        round_trip,
    ),
    "gap_dit": Case(
        GapDiT, {"sample_size": 4, "in_channels": 8, "hidden_size": 32, "num_layers": 2, **ATTENTION}, denoise
    ),
    "gap_dit_flow": Case(
        GapDiT,
        {
            "sample_size": 4,
            "in_channels": 8,
            "hidden_size": 32,
            "num_layers": 2,
            "rope_type": "axial",
            "time_embedding": "adaptive",
            "gap_mode": "flow",
            **ATTENTION,
        },
        denoise,
    ),
}
WITH_ATTENTION = ["frame_select_vae", "gap_dit", "gap_dit_flow"]


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(params=WITH_ATTENTION)
def attention_case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def relative_change(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
def test_attention_backends_agree(attention_case, backend):
    model = attention_case.make()
    expected = attention_case.run(model)
    model.set_attention_backend(backend)
    try:
        assert relative_change(attention_case.run(model), expected) < 1e-5
    finally:
        model.reset_attention_backend()
        # diffusers leaves the backend active for every other model.
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


def test_unknown_attention_backends_are_refused(attention_case):
    with pytest.raises(ValueError, match="must be one of the following.*native"):
        attention_case.make().set_attention_backend("fastest")


def test_fused_projections_change_nothing(attention_case):
    model = attention_case.make()
    expected = attention_case.run(model)
    model.fuse_qkv_projections()
    assert relative_change(attention_case.run(model), expected) < 1e-5
    model.unfuse_qkv_projections()
    assert torch.equal(attention_case.run(model), expected)


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offloading_to_disk_changes_nothing(case, offload_type, tmp_path):
    model = case.make()
    expected = case.run(model)
    blocks = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    cpu = torch.device("cpu")
    model.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type=offload_type, offload_to_disk_path=str(tmp_path), **blocks
    )
    assert any(tmp_path.iterdir())
    for _ in range(2):
        assert torch.equal(case.run(model), expected)


def test_sequential_offloading_changes_nothing(case):
    model = case.make()
    expected = case.run(model)
    accelerate.cpu_offload(model, execution_device="cpu")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert torch.equal(case.run(model), expected)


def test_model_offloading_hooks_every_entry_point(case):
    model = case.make()
    calls = []

    class Recorder(accelerate.hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(type(module).__name__)
            return args, kwargs

    accelerate.hooks.add_hook_to_module(model, Recorder())
    case.run(model)
    entry_points = 1 if case.run is denoise else 2  # `forward`, or `encode` and `decode`
    assert len(calls) == entry_points


@pytest.mark.parametrize("storage_dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_layerwise_casting_stays_close(case, storage_dtype):
    model = case.make()
    expected = case.run(model)
    model.enable_layerwise_casting(storage_dtype=storage_dtype, compute_dtype=torch.float32)
    stored = {parameter.dtype for parameter in model.parameters()}
    assert storage_dtype in stored
    assert relative_change(case.run(model), expected) < (0.15 if storage_dtype == torch.float8_e4m3fn else 0.3)


def test_device_map_places_the_model(case, tmp_path):
    model = case.make()
    model.save_pretrained(tmp_path)
    placed = case.model_class.from_pretrained(tmp_path, device_map="auto")
    assert placed.hf_device_map
    assert torch.equal(case.run(placed), case.run(model))


def test_moving_average_is_saved_and_loaded(case, tmp_path):
    model = case.make()
    ema = EMAModel(model.parameters(), decay=0.5, model_cls=case.model_class, model_config=model.config)
    start = [parameter.clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data += 1
    ema.step(model.parameters())
    for parameter in model.parameters():
        parameter.data += 1
    ema.step(model.parameters())
    ema.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, case.model_class)
    for saved, kept, first, last in zip(
        loaded.shadow_params, ema.shadow_params, start, model.parameters(), strict=True
    ):
        assert torch.equal(saved, kept)
        assert (first < kept).all() and (kept < last).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(case, dtype, tmp_path):
    model = case.make()
    model.save_pretrained(tmp_path)
    half = case.model_class.from_pretrained(tmp_path, torch_dtype=dtype)
    output = case.run(half)
    assert output.dtype == dtype
    assert relative_change(output, case.run(model)) < 0.1


@pytest.mark.slow
def test_torchao_weights_stay_close(attention_case, tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao")
    from diffusers import TorchAoConfig

    model = attention_case.make()
    model.save_pretrained(tmp_path)
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    quantized = attention_case.model_class.from_pretrained(
        tmp_path, quantization_config=config, torch_dtype=torch.float32
    )
    assert relative_change(attention_case.run(quantized), attention_case.run(model)) < 0.05


@pytest.mark.slow
def test_quanto_weights_stay_close(attention_case, tmp_path):
    pytest.importorskip("optimum.quanto", reason="needs optimum-quanto")
    from diffusers import QuantoConfig

    model = attention_case.make()
    model.save_pretrained(tmp_path)
    quantized = attention_case.model_class.from_pretrained(
        tmp_path, quantization_config=QuantoConfig(weights_dtype="int8")
    )
    assert relative_change(attention_case.run(quantized), attention_case.run(model)) < 0.05


@pytest.mark.slow
def test_compiled_blocks_change_nothing(case):
    model = case.make()
    expected = case.run(model)
    torch._dynamo.reset()
    # The convolution blocks of AutoencoderKL3D differ in width and size, each a variant of the compiled code.
    with torch._dynamo.config.patch(recompile_limit=64):
        model.compile_repeated_blocks(fullgraph=True, dynamic=False)
        assert relative_change(case.run(model), expected) < 1e-4


@pytest.mark.slow
def test_lora_on_every_attention_model_survives_saving(attention_case, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    model = attention_case.make()
    plain = attention_case.run(model)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    adapted = attention_case.run(model)
    assert relative_change(adapted, plain) > 1e-3
    weight_name = "lora.safetensors"
    model.save_lora_adapter(tmp_path, weight_name=weight_name)

    fresh = attention_case.make()
    fresh.load_lora_adapter(tmp_path, prefix=None, weight_name=weight_name)
    assert relative_change(attention_case.run(fresh), adapted) < 1e-5
    fresh.fuse_lora()
    assert relative_change(attention_case.run(fresh), adapted) < 1e-4
    fresh.unfuse_lora()
    fresh.unload_lora()
    assert relative_change(attention_case.run(fresh), plain) < 1e-5
