"""GapDiT and its pipeline with prompts and with given positions."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from diffusers_vidvae import FlowMatchGapScheduler, FrameSelectVAE, GapDiT, GapDiTPipeline
from diffusers_vidvae.training.text import word_tokenizer
from tests.training.conftest import TINY_DIT, TINY_VAE


CAPTIONS = ["a red disc moves to the left", "a blue bar stands still"]
CALL = {"num_latent_frames": 2, "num_frames": 4, "num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(CAPTIONS, max_tokens=12)


def make_transformer(**changes: object) -> GapDiT:
    """A tiny model all of whose weights count."""
    torch.manual_seed(0)
    model = GapDiT(in_channels=4, **{**TINY_DIT, **changes}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def make_pipeline(tokenizer, family: str = "clip", **changes: object) -> GapDiTPipeline:
    size = {"vocab_size": len(tokenizer), "eos_token_id": 3, "pad_token_id": 0, "bos_token_id": 2}
    torch.manual_seed(1)
    if family == "clip":
        shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
        encoder = CLIPTextModel(CLIPTextConfig(**shape, **size, max_position_embeddings=12))
    else:
        encoder = T5EncoderModel(T5Config(d_model=8, d_kv=4, d_ff=8, num_heads=2, num_layers=1, **size))
    transformer = make_transformer(text_dim=8, **changes)
    vae = FrameSelectVAE(**TINY_VAE).eval()
    pipeline = GapDiTPipeline(transformer, vae, FlowMatchGapScheduler(), encoder.eval(), tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: GapDiTPipeline, **options: object) -> torch.Tensor:
    return pipeline(**{**CALL, "generator": torch.Generator().manual_seed(0), **options}).frames


# The model


@pytest.mark.parametrize("time_embedding", ["adaptive", "linear"])
def test_a_new_model_does_not_heed_its_conditions_yet_and_a_trained_one_does(time_embedding):
    inputs = {"hidden_states": torch.randn(2, 6, 3, 2, 2), "timestep": 500.0}
    conditions = {"encoder_hidden_states": torch.randn(2, 5, 8), "known_gaps": torch.randn(2, 2, 3)}
    other = {name: value + 1 for name, value in conditions.items()}
    options = {"text_dim": 8, "condition_on_gaps": True, "time_embedding": time_embedding}
    new = GapDiT(in_channels=4, **{**TINY_DIT, **options}).eval()
    trained = make_transformer(**options)
    with torch.no_grad():
        assert torch.equal(new(**inputs, **conditions).sample, new(**inputs, **other).sample)
        for name in conditions:
            changed = trained(**inputs, **{**conditions, name: other[name]}).sample
            assert (changed - trained(**inputs, **conditions).sample).abs().max() > 1e-3


def test_padding_of_texts_changes_nothing():
    model = make_transformer(text_dim=8)
    inputs = {"hidden_states": torch.randn(2, 6, 3, 2, 2), "timestep": 300.0}
    text = torch.randn(2, 3, 8)
    padded = torch.cat([text, 100 * torch.ones(2, 2, 8)], dim=1)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    with torch.no_grad():
        alone = model(**inputs, encoder_hidden_states=text).sample
        torch.testing.assert_close(
            model(**inputs, encoder_hidden_states=padded, encoder_attention_mask=mask).sample, alone
        )


def test_gaps_that_are_not_known_are_not_looked_at():
    model = make_transformer(condition_on_gaps=True)
    inputs = {"hidden_states": torch.randn(1, 6, 3, 2, 2), "timestep": 300.0}
    unknown = torch.zeros(1, 2, 3, dtype=torch.bool)
    with torch.no_grad():
        some, others = (
            model(**inputs, known_gaps=torch.randn(1, 2, 3), known_gaps_mask=unknown).sample for _ in range(2)
        )
        assert torch.equal(some, others) and torch.equal(some, model(**inputs).sample)


@pytest.mark.parametrize(
    ("options", "conditions", "message"),
    [
        ({}, {"encoder_hidden_states": torch.zeros(1, 2, 8)}, "This model takes no text, but `encoder_hidden_states`"),
        ({"text_dim": 8}, {}, "This model needs text embeddings of 8 channels, got none."),
        ({"text_dim": 8}, {"encoder_hidden_states": torch.zeros(1, 2, 7)}, r"\(1, any, 8\), got \(1, 2, 7\)."),
        ({}, {"known_gaps": torch.zeros(1, 2, 3)}, "This model cannot be told gaps, but `known_gaps` were given."),
        (
            {"text_dim": 8},
            {"encoder_hidden_states": torch.zeros(1, 2, 8), "encoder_attention_mask": torch.ones(1, 3).bool()},
            r"`encoder_attention_mask` must have shape \(1, 2\), got \(1, 3\).",
        ),
    ],
)
def test_conditions_that_do_not_fit_are_refused(options, conditions, message):
    model = make_transformer(**options)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 6, 3, 2, 2), 500.0, **conditions)


def test_gradient_checkpointing_and_lora_reach_the_text():
    model = make_transformer(text_dim=8).train()
    inputs = {"hidden_states": torch.randn(1, 6, 2, 2, 2), "timestep": 300.0}
    text = torch.randn(1, 3, 8, requires_grad=True)
    gradients = []
    for enabled in (False, True):
        if enabled:
            model.enable_gradient_checkpointing()
        (gradient,) = torch.autograd.grad(model(**inputs, encoder_hidden_states=text).sample.sum(), text)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["text_attn.to_q", "text_attn.to_v"]))
    assert any("text_attn.to_v.lora_A" in name for name, _ in model.named_parameters())


# The pipeline


@pytest.mark.parametrize("family", ["clip", "t5"])
def test_a_prompt_changes_the_video_and_comes_back_from_disk(tokenizer, tmp_path, family):
    pipeline = make_pipeline(tokenizer, family)
    frames = generate(pipeline, prompt=CAPTIONS[0])
    assert not torch.allclose(frames, generate(pipeline, prompt=CAPTIONS[1]), atol=1e-3)
    pipeline.save_pretrained(tmp_path)
    loaded = GapDiTPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(generate(loaded, prompt=CAPTIONS[0]), frames)
    components = GapDiTPipeline(**loaded.components)
    assert components.text_encoder is loaded.text_encoder


def test_guidance_goes_beyond_the_negative_prompt(tokenizer):
    pipeline = make_pipeline(tokenizer)
    options = {"prompt": CAPTIONS[0], "negative_prompt": CAPTIONS[1], "num_inference_steps": 1}
    plain, guided = (generate(pipeline, **options, guidance_scale=scale) for scale in (1.0, 3.0))
    negative = generate(pipeline, prompt=CAPTIONS[1], num_inference_steps=1, guidance_scale=1.0)
    torch.testing.assert_close(guided, negative + 3 * (plain - negative), atol=1e-4, rtol=1e-4)
    same = generate(pipeline, prompt=CAPTIONS[0], negative_prompt=CAPTIONS[0], guidance_scale=7.0)
    torch.testing.assert_close(same, generate(pipeline, prompt=CAPTIONS[0], guidance_scale=1.0), atol=1e-4, rtol=1e-4)


def test_embeddings_take_the_place_of_prompts_and_of_the_text_encoder(tokenizer):
    pipeline = make_pipeline(tokenizer)
    with torch.no_grad():
        embeds, mask, negative, negative_mask = pipeline.encode_prompt(CAPTIONS[0])
    expected = generate(pipeline, prompt=CAPTIONS[0])
    alone = GapDiTPipeline(pipeline.transformer, pipeline.vae, pipeline.scheduler)
    alone.set_progress_bar_config(disable=True)
    given = {"prompt_embeds": embeds, "prompt_attention_mask": mask}
    negatives = {"negative_prompt_embeds": negative, "negative_prompt_attention_mask": negative_mask}
    torch.testing.assert_close(generate(alone, **given, **negatives), expected)
    assert generate(alone, **given, guidance_scale=1.0).isfinite().all()
    with pytest.raises(ValueError, match="no text encoder and tokenizer; give `negative_prompt_embeds`"):
        generate(alone, **given)
    with pytest.raises(ValueError, match="Give `prompt` or `prompt_embeds`, not both."):
        generate(pipeline, prompt="a disc", **given)


def test_every_prompt_has_its_videos(tokenizer):
    pipeline = make_pipeline(tokenizer)
    latents = torch.randn(1, 6, 2, 2, 2)
    frames = generate(pipeline, prompt=CAPTIONS, num_videos_per_prompt=2, latents=latents.repeat(4, 1, 1, 1, 1))
    assert len(frames) == 4
    torch.testing.assert_close(frames[0], frames[1])
    assert not torch.allclose(frames[1], frames[2], atol=1e-3)
    torch.testing.assert_close(
        frames[2:3], generate(pipeline, prompt=CAPTIONS[1], latents=latents), atol=1e-4, rtol=1e-4
    )
    assert len(generate(pipeline, prompt=CAPTIONS[0], batch_size=3)) == 3
    assert len(generate(pipeline)) == 1  # without a prompt, an empty one
    with pytest.raises(ValueError, match="Arguments disagree about the number of videos: .*'prompt': 2"):
        generate(pipeline, prompt=CAPTIONS, batch_size=3)


def test_long_prompts_are_cut_with_a_warning(tokenizer, caplog):
    pipeline = make_pipeline(tokenizer)
    generate(pipeline, prompt="a red disc " * 10)
    assert "is longer than 12 tokens; this is left out:" in caplog.text
    with pytest.raises(ValueError, match="`max_sequence_length` must be from 1 to 12, got 13."):
        generate(pipeline, prompt="a", max_sequence_length=13)


def test_prompts_of_a_model_without_text_are_refused():
    pipeline = GapDiTPipeline(make_transformer(), FrameSelectVAE(**TINY_VAE), FlowMatchGapScheduler())
    for options in ({"prompt": "a disc"}, {"prompt_embeds": torch.zeros(1, 2, 8)}, {"negative_prompt": "a bar"}):
        with pytest.raises(ValueError, match="trained without text, so it takes no prompt."):
            generate(pipeline, **options)
    with pytest.raises(ValueError, match="`prompt` must be a text or a list of texts, got 3."):
        generate(pipeline, prompt=3)


@pytest.mark.parametrize("options", [{}, {"condition_on_gaps": True}, {"gap_mode": "regression"}])
def test_latent_frames_go_where_they_are_told(options):
    pipeline = GapDiTPipeline(make_transformer(**options), FrameSelectVAE(**TINY_VAE), FlowMatchGapScheduler())
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(positions=[[0, 2], [1, 3]], num_frames=6, num_inference_steps=2, output_type="latent")
    assert output.positions.tolist() == [[0, 2], [1, 3]] and output.num_frames.tolist() == [6, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": [2, 1]}, r"`positions` must be frame indices that rise from 0 or more, got \[2, 1\]."),
        ({"positions": []}, "`positions` must be frame indices"),
        ({"positions": [0, 6], "num_frames": 4}, "`positions` must be below the 4 frames of the video, got 6."),
        (
            {"positions": [0, 1], "num_latent_frames": 3},
            "`positions` are of 2 latent frames, `num_latent_frames` is 3.",
        ),
        ({"positions": [0], "image": torch.zeros(3, 16, 16)}, "Give `positions` or frames"),
    ],
)
def test_impossible_positions_are_refused(options, message):
    pipeline = GapDiTPipeline(make_transformer(), FrameSelectVAE(**TINY_VAE), FlowMatchGapScheduler())
    with pytest.raises(ValueError, match=message):
        pipeline(num_inference_steps=1, output_type="latent", **options)
