"""LoRAs of the transformer and of the text encoder of a `GapDiTPipeline`, saved and loaded."""

from __future__ import annotations

import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict

from tests.pipelines.test_pipeline_gap_dit_prompts import CAPTIONS, generate, make_pipeline, tokenizer


__all__ = ["tokenizer"]

TARGETS = {"clip": ["q_proj", "v_proj"], "t5": ["SelfAttention.q", "SelfAttention.v"]}


def add_loras(pipeline, family: str) -> None:
    """Adapters of the transformer and the text encoder that change what they do."""
    options = {"lora_alpha": 6, "init_lora_weights": False}
    torch.manual_seed(3)
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], **options))
    pipeline.text_encoder.add_adapter(LoraConfig(r=3, target_modules=TARGETS[family], **options))


def lora_layers(pipeline) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "transformer_lora_layers": get_peft_model_state_dict(pipeline.transformer),
        "text_encoder_lora_layers": get_peft_model_state_dict(pipeline.text_encoder, adapter_name="default"),
    }


@pytest.mark.parametrize("family", ["clip", "t5"])
def test_loras_of_both_are_saved_and_loaded(tokenizer, tmp_path, family):
    pipeline = make_pipeline(tokenizer, family)
    plain = generate(pipeline, prompt=CAPTIONS[0])
    add_loras(pipeline, family)
    adapted = generate(pipeline, prompt=CAPTIONS[0])
    metadata = _collate_lora_metadata({name: getattr(pipeline, name) for name in ("transformer", "text_encoder")})
    pipeline.save_lora_weights(tmp_path, **lora_layers(pipeline), **metadata)

    other = make_pipeline(tokenizer, family)
    other.load_lora_weights(tmp_path)
    torch.testing.assert_close(generate(other, prompt=CAPTIONS[0]), adapted)
    off = generate(other, prompt=CAPTIONS[0], attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(off, plain)
    torch.testing.assert_close(generate(other, prompt=CAPTIONS[0]), adapted)
    other.unload_lora_weights()
    torch.testing.assert_close(generate(other, prompt=CAPTIONS[0]), plain)


@pytest.mark.parametrize("family", ["clip", "t5"])
def test_ranks_are_found_where_no_configuration_is_saved(tokenizer, tmp_path, family):
    pipeline = make_pipeline(tokenizer, family)
    add_loras(pipeline, family)
    pipeline.save_lora_weights(tmp_path, **lora_layers(pipeline))
    other = make_pipeline(tokenizer, family)
    other.load_lora_weights(tmp_path)
    # Without a configuration the weight of a LoRA is 1.
    for name, scale in (("transformer", 3.0), ("text_encoder", 2.0)):
        pairs = zip(getattr(pipeline, name).modules(), getattr(other, name).modules(), strict=True)
        scales = [(mine.scaling, theirs.scaling) for mine, theirs in pairs if hasattr(mine, "lora_A")]
        assert scales
        assert all(mine["default"] == scale and set(theirs.values()) == {1.0} for mine, theirs in scales)


def test_weights_of_adapters_survive_a_scale_of_zero(tokenizer):
    pipeline = make_pipeline(tokenizer)
    add_loras(pipeline, "clip")
    pipeline.set_adapters("default", 0.5)
    weighed = generate(pipeline, prompt=CAPTIONS[0])
    generate(pipeline, prompt=CAPTIONS[0], attention_kwargs={"scale": 0.0})
    text_only = [layer.scaling["default"] for layer in pipeline.text_encoder.modules() if hasattr(layer, "lora_A")]
    assert set(text_only) == {1.0}  # half of alpha / r = 6 / 3
    pipeline.set_adapters("default", 0.5)
    torch.testing.assert_close(generate(pipeline, prompt=CAPTIONS[0]), weighed)


def test_fusing_merges_both_and_unfusing_brings_them_back(tokenizer):
    pipeline = make_pipeline(tokenizer)
    add_loras(pipeline, "clip")
    adapted = generate(pipeline, prompt=CAPTIONS[0])
    pipeline.fuse_lora()
    assert pipeline.num_fused_loras == 1
    torch.testing.assert_close(generate(pipeline, prompt=CAPTIONS[0]), adapted, rtol=1e-3, atol=1e-4)
    pipeline.unfuse_lora()
    assert pipeline.num_fused_loras == 0
    torch.testing.assert_close(generate(pipeline, prompt=CAPTIONS[0]), adapted, rtol=1e-3, atol=1e-4)


def test_weights_that_fit_nothing_are_refused(tokenizer, tmp_path):
    pipeline = make_pipeline(tokenizer)
    with pytest.raises(ValueError, match=r"must be named transformer\..*, got \['unet.to_q.lora_A.weight'\]"):
        pipeline.load_lora_weights({"unet.to_q.lora_A.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="Options must be among .*, got .'weight_nam'"):
        pipeline.load_lora_weights(tmp_path, weight_nam="lora.safetensors")
    with pytest.raises(ValueError, match="Give `transformer_lora_layers` or `text_encoder_lora_layers`"):
        pipeline.save_lora_weights(tmp_path)
    add_loras(pipeline, "clip")
    pipeline.save_lora_weights(tmp_path, text_encoder_lora_layers=lora_layers(pipeline)["text_encoder_lora_layers"])
    pipeline.text_encoder = None
    with pytest.raises(ValueError, match="weights for the `text_encoder`, which this pipeline does not have"):
        pipeline.load_lora_weights(tmp_path)
