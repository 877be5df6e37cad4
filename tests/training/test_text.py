"""Generators that are trained with captions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import CLIPTextModel

from diffusers_vidvae import FrameSelectVAE, GapDiTPipeline
from diffusers_vidvae.training import train_gap_dit
from diffusers_vidvae.training.checkpoint import checkpoint_folders
from diffusers_vidvae.training.config import DataConfig
from diffusers_vidvae.training.data import ClipDataset
from diffusers_vidvae.training.encoding import encode_dataset
from diffusers_vidvae.training.latent_shards import LatentDataset
from diffusers_vidvae.training.text import (
    CaptionedLatents,
    CaptionEmbeddings,
    TextConfig,
    captions_of,
    load_text_encoder,
    new_text_encoder,
    word_tokenizer,
)

from .conftest import DATA, TINY_DIT, TINY_VAE, logged_losses


CAPTIONED = {"captions": True, "horizontal_flip": False, "time_reversal": False}
TEXT = {"encoder": "new", "hidden_size": 8, "num_heads": 2, "num_layers": 1}


@pytest.fixture
def vae(tmp_path) -> FrameSelectVAE:
    torch.manual_seed(0)
    vae = FrameSelectVAE(**TINY_VAE).eval()
    vae.save_pretrained(tmp_path / "vae")
    return vae


@pytest.fixture
def latents(vae, tmp_path) -> LatentDataset:
    clips = ClipDataset(DataConfig(**DATA, **CAPTIONED))
    return LatentDataset(encode_dataset(vae, clips, tmp_path / "latents", num_clips=12).folder)


@pytest.fixture
def config(write_config, vae, tmp_path):
    """Writes the configuration of a generator with text."""

    def write(output: str = "run", text: dict | None = None, **sections: dict) -> Path:
        latents = {"vae": str(tmp_path / "vae"), "folder": str(tmp_path / "latents"), "num_clips": 12, "max_kept": 4}
        latents["shard_size"] = 512
        text = TEXT if text is None else text
        return write_config(TINY_DIT, output, latents=latents, text=text, data=CAPTIONED, **sections)

    return write


def test_a_word_tokenizer_knows_the_words_of_its_captions():
    tokenizer = word_tokenizer(["A red disc, then a blue one", "a green bar"], max_tokens=8)
    ids = tokenizer("A blue disc").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "a", "blue", "disc", "</s>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("a purple disc").input_ids)[2] == "<unk>"
    assert len(tokenizer("a " * 20, truncation=True).input_ids) == 8
    tokens = tokenizer(["a"], padding="max_length", max_length=8, return_tensors="pt")
    assert tokens.attention_mask.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]


def test_the_usual_new_text_encoder_has_160_thousand_parameters():
    captions = [ClipDataset(DataConfig(**DATA, **CAPTIONED))[draw]["caption"] for draw in range(40)]
    encoder = new_text_encoder(word_tokenizer(captions, 32), TextConfig(encoder="new"))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == pytest.approx(160_000, rel=0.05)


@torch.no_grad()
def test_a_new_text_encoder_starts_as_its_words():
    tokenizer = word_tokenizer(["a red disc on a blue background"], 16)
    encoder = new_text_encoder(tokenizer, TextConfig(encoder="new")).eval()
    texts = ["a red disc on a blue background", "a blue disc on a red background"]
    ids = tokenizer(texts, return_tensors="pt").input_ids
    first, second = encoder(ids)[0]
    same = ids[0] == ids[1]
    torch.testing.assert_close(first[same], second[same])
    distances = (first[~same] - second[~same]).square().mean(dim=1)
    assert (distances > 1).all()  # of embeddings of variance 1


def test_a_share_of_the_clips_goes_without_caption(latents):
    tokenizer = word_tokenizer(captions_of(latents), 32)
    dataset = CaptionedLatents(latents, tokenizer, TextConfig(dropout=0.5), seed=0)
    empty = [int(dataset[draw]["text_mask"].sum()) == 2 for draw in range(60)]  # begin and end alone
    assert 18 < sum(empty) < 42
    assert empty == [int(dataset[draw]["text_mask"].sum()) == 2 for draw in range(60)]
    told = CaptionedLatents(latents, tokenizer, TextConfig(dropout=0.0), seed=0)[5]
    words = tokenizer.decode(told["token_ids"], skip_special_tokens=True)
    assert words.replace(" ,", ",") == latents.caption(latents.order[5]).lower()


def test_a_text_encoder_is_trained_and_saved_with_the_generator(config, tmp_path):
    folder = train_gap_dit.main(config())
    pipeline = GapDiTPipeline.from_pretrained(folder)
    assert isinstance(pipeline.text_encoder, CLIPTextModel) and pipeline.transformer.config.text_dim == 8
    prompts = ["a large red disc stands still on a blue background", ""]
    output = pipeline(prompt=prompts, num_latent_frames=2, num_frames=4, num_inference_steps=2, output_type="np")
    assert output.frames.shape == (2, 4, 16, 16, 3)

    torch.manual_seed(0)
    new = new_text_encoder(pipeline.tokenizer, TextConfig(**TEXT))
    changed = [
        not torch.equal(weight, new.state_dict()[name]) for name, weight in pipeline.text_encoder.state_dict().items()
    ]
    assert any(changed)
    assert (tmp_path / "run" / "samples" / "step-00000004.png").is_file()


def test_a_training_with_text_continues_bit_for_bit(config, tmp_path):
    train_gap_dit.main(config())
    losses = logged_losses(tmp_path / "run")
    checkpoint_folders(tmp_path / "run")[-1].rename(tmp_path / "aside")
    train_gap_dit.main(config())
    assert logged_losses(tmp_path / "run") == losses


@pytest.fixture
def pretrained(latents, tmp_path) -> Path:
    """A folder of a text encoder with its tokenizer."""
    tokenizer = word_tokenizer(captions_of(latents), 16)
    torch.manual_seed(1)
    new_text_encoder(tokenizer, TextConfig(**TEXT, max_tokens=16)).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_embeddings_of_a_pretrained_encoder_are_computed_once_and_are_its_own(latents, pretrained, monkeypatch):
    config = TextConfig(encoder=str(pretrained), max_tokens=16)
    encoder, tokenizer = load_text_encoder(config)
    captions = captions_of(latents)
    arguments = latents.folder, captions, encoder, tokenizer, 16, Accelerator(cpu=True)
    text, mask = CaptionEmbeddings(*arguments)[captions[1]]
    tokens = tokenizer([captions[1]], padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0][0]
    torch.testing.assert_close(text, expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(mask, tokens.attention_mask[0].bool())
    monkeypatch.setattr(encoder, "forward", lambda *_, **__: pytest.fail("everything is there"))
    again, _ = CaptionEmbeddings(*arguments)[captions[1]]
    assert torch.equal(again, text)


@pytest.mark.parametrize("train", [False, True])
def test_a_pretrained_text_encoder_is_left_as_it_is_unless_it_is_to_be_trained(config, pretrained, train):
    text = {"encoder": str(pretrained), "max_tokens": 16, "train": train}
    pipeline = GapDiTPipeline.from_pretrained(train_gap_dit.main(config(text=text, loss={"shared_noise": 0.5})))
    before = CLIPTextModel.from_pretrained(pretrained).state_dict()
    after = pipeline.text_encoder.state_dict()
    assert train != all(torch.equal(weight, before[name]) for name, weight in after.items())
    assert pipeline.transformer.config.shared_noise == 0.5


def test_data_without_captions_and_folders_without_encoder_are_refused(config, vae, tmp_path):
    plain = encode_dataset(vae, ClipDataset(DataConfig(**DATA)), tmp_path / "plain", num_clips=3).folder
    with pytest.raises(ValueError, match="plain: none of its 3 clips has a caption; encode them with `data.captions`"):
        captions_of(LatentDataset(plain))
    with pytest.raises(ValueError, match="nowhere: holds no text encoder"):
        load_text_encoder(TextConfig(encoder=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="`text.hidden_size` must be a multiple of `text.num_heads`, got 10 and 4"):
        TextConfig(hidden_size=10)


def test_gaps_are_told_to_a_share_of_the_clips(config, tmp_path):
    path = config(text={})
    text = path.read_text().replace("gap_mode: flow", "gap_mode: flow\n  condition_on_gaps: true")
    path.write_text(text)
    pipeline = GapDiTPipeline.from_pretrained(train_gap_dit.main(path))
    assert pipeline.transformer.gap_condition.weight.abs().sum() > 0
    output = pipeline(positions=[0, 3], num_frames=4, num_inference_steps=2, output_type="latent")
    assert output.positions.tolist() == [[0, 3]]
