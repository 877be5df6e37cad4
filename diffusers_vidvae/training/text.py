r"""Captions as conditions of a generator: which text encoder, its embeddings, and when a clip goes without.

Either a pretrained text encoder of the CLIP or T5 family stays as it is, and its embeddings of all captions are
computed once and kept beside the latents; or a small one, with a tokenizer of the captions' own words, is trained with
the generator.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from torch.utils.data import Dataset, Sampler
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5EncoderModel,
)

from diffusers_vidvae.files import atomic_path
from diffusers_vidvae.fingerprints import weights_fingerprint
from diffusers_vidvae.pipelines.text_prompts import embed_texts

from .config import check_range
from .draws import numpy_generator
from .latent_shards import LatentDataset


NEW_ENCODER = "new"

TEXT_ENCODERS: dict[str, Any] = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}

# Of new position embeddings, beside word embeddings of deviation 1.
POSITION_STD = 0.3

SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")

# Captions in a file of embeddings, and those embedded at once.
_EMBEDDINGS_PER_FILE = 1024
_BATCH = 32


@dataclass
class TextConfig:
    """How captions condition the model.

    Args:
        encoder: Folder or Hub id of a text encoder (or of a pipeline that holds one as `text_encoder`), which is not
            trained unless `train` says so; "new" for a small one that is trained with the model; None for a model
            without text.
        tokenizer: Folder or Hub id of the tokenizer of a pretrained encoder; None for where the encoder is.
        train: Whether a pretrained encoder is trained on with the model; a new one always is.
        max_tokens: Tokens of a caption; longer ones are cut.
        dropout: Share of the clips that are trained without their caption, so that the model can be guided.
        hidden_size: Width of a new encoder.
        num_layers: Its layers.
        num_heads: Heads of its attention.
    """

    encoder: str | None = None
    tokenizer: str | None = None
    train: bool = False
    max_tokens: int = 32
    dropout: float = 0.1
    hidden_size: int = 96
    num_layers: int = 2
    num_heads: int = 4

    @property
    def is_trained(self) -> bool:
        """Whether the encoder is trained with the model."""
        return self.train or self.encoder == NEW_ENCODER

    def __post_init__(self) -> None:
        check_range("text.max_tokens", self.max_tokens, 3)
        check_range("text.dropout", self.dropout, 0, 1)
        for name in ("hidden_size", "num_layers", "num_heads"):
            check_range(f"text.{name}", getattr(self, name), 1)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"`text.hidden_size` must be a multiple of `text.num_heads`, got {self.hidden_size} and"
                f" {self.num_heads}."
            )


def word_tokenizer(captions: Iterable[str], max_tokens: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the lower-case words and punctuation marks of captions, in alphabetical order."""
    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words = {word for text in captions for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    vocabulary = {word: number for number, word in enumerate([*SPECIAL_TOKENS, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    ends = [(token, vocabulary[token]) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=max_tokens,
    )


def new_text_encoder(tokenizer: PreTrainedTokenizerBase, config: TextConfig) -> CLIPTextModel:
    r"""A small text encoder in the form of CLIP's, with new weights.

    It starts as the words alone, in embeddings of deviation 1: steps of a usual learning rate turn those of CLIP's
    initial size, .02, into others before a model has learned what they mean.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=2 * config.hidden_size,
            projection_dim=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_tokens,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    weights = dict(encoder.named_parameters())
    nn.init.normal_(weights["embeddings.token_embedding.weight"])
    nn.init.normal_(weights["embeddings.position_embedding.weight"], std=POSITION_STD)
    for name, weight in weights.items():
        if name.endswith(("out_proj.weight", "fc2.weight")):
            nn.init.zeros_(weight)
    return encoder


def load_text_encoder(config: TextConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained text encoder and its tokenizer.

    Raises:
        ValueError: There is none, or it is of another family than CLIP and T5.
    """
    assert config.encoder is not None
    for subfolder in ("", "text_encoder"):
        try:
            kind = AutoConfig.from_pretrained(config.encoder, subfolder=subfolder).model_type
        except (OSError, ValueError):
            continue
        if kind not in TEXT_ENCODERS:
            raise ValueError(f"{config.encoder}: is a {kind}, only text encoders of CLIP and T5 are known.")
        encoder = TEXT_ENCODERS[kind].from_pretrained(config.encoder, subfolder=subfolder)
        inside = "tokenizer" if subfolder and config.tokenizer is None else ""
        return encoder.eval(), AutoTokenizer.from_pretrained(config.tokenizer or config.encoder, subfolder=inside)
    raise ValueError(f"{config.encoder}: holds no text encoder, neither alone nor as part of a pipeline.")


class CaptionedLatents(Dataset):
    r"""Encoded clips with their captions, or without for a share of them.

    An item is that of `LatentDataset` with `"text_mask"`, bool `(max_tokens,)`, and either `"token_ids"`, or `"text"`,
    embeddings `(max_tokens, text_dim)`.

    Args:
        latents: The clips.
        tokenizer: Makes tokens of captions.
        config: Length and dropout.
        seed: Seed of the dropout.
        embeddings: Takes the place of tokens.
    """

    def __init__(
        self,
        latents: LatentDataset,
        tokenizer: PreTrainedTokenizerBase,
        config: TextConfig,
        seed: int,
        embeddings: CaptionEmbeddings | None = None,
    ):
        self.latents = latents
        self.tokenizer = tokenizer
        self.config = config
        self.seed = seed
        self.embeddings = embeddings
        self._tokens: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        is_dropped = numpy_generator(self.seed, draw, 7).random() < self.config.dropout
        caption = "" if is_dropped else self.latents.caption(self.latents.order[draw])
        item = self.latents[draw]
        if self.embeddings is not None:
            text, mask = self.embeddings[caption]
            return item | {"text": text, "text_mask": mask}
        if caption not in self._tokens:
            token_ids, mask = tokenize_quietly(self.tokenizer, [caption], self.config.max_tokens)
            self._tokens[caption] = token_ids[0], mask[0]
        token_ids, mask = self._tokens[caption]
        return item | {"token_ids": token_ids, "text_mask": mask}

    def sampler(self, batch_size: int, rank: int, num_processes: int, first_batch: int) -> Sampler[int]:
        """The draws of a process; see `LatentDataset.sampler`."""
        return self.latents.sampler(batch_size, rank, num_processes, first_batch)


def tokenize_quietly(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers and mask of captions, cut without a word for each."""
    tokens = tokenizer(list(texts), padding="max_length", truncation=True, max_length=max_tokens, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask.bool()


def captions_of(latents: LatentDataset) -> list[str]:
    """All captions of a data set, each once, in alphabetical order, and first the empty one.

    Raises:
        ValueError: No clip has a caption.
    """
    found = {latents.caption(index) for index in range(len(latents))} - {""}
    if not found:
        raise ValueError(
            f"{latents.folder}: none of its {len(latents)} clips has a caption; encode them with `data.captions` true."
        )
    return ["", *sorted(found)]


class CaptionEmbeddings:
    r"""Embeddings of captions by a pretrained text encoder, computed once and kept in files.

    Args:
        folder: Where the files are, or are to be written.
        captions: All captions.
        text_encoder: The text encoder.
        tokenizer: Its tokenizer.
        max_tokens: Tokens of a caption.
        accelerator: Splits the work over its processes.
    """

    def __init__(
        self,
        folder: Path,
        captions: Sequence[str],
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        accelerator: Accelerator,
    ):
        self.rows = {caption: row for row, caption in enumerate(captions)}
        about = [weights_fingerprint(text_encoder), tokenizer.name_or_path, max_tokens, list(captions)]
        digest = sha256(json.dumps(about).encode()).hexdigest()[:16]
        starts = range(0, len(captions), _EMBEDDINGS_PER_FILE)
        self.files = [folder / f"text-{digest}-{number:05d}.safetensors" for number in range(len(starts))]
        self._open: dict[int, Any] = {}

        missing = [number for number, path in enumerate(self.files) if not path.exists()]
        accelerator.wait_for_everyone()  # everyone has looked before anyone writes
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        text_encoder.to(accelerator.device)
        for number in tqdm(mine, desc="Embedding captions", delay=2):
            some = captions[starts[number] : starts[number] + _EMBEDDINGS_PER_FILE]
            _write_embeddings(self.files[number], some, text_encoder, tokenizer, max_tokens, accelerator.device)
        accelerator.wait_for_everyone()

    def __getitem__(self, caption: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings `(max_tokens, text_dim)`, float32, and mask of a caption."""
        number, row = divmod(self.rows[caption], _EMBEDDINGS_PER_FILE)
        if number not in self._open:
            self._open[number] = safe_open(self.files[number], framework="pt")
        file = self._open[number]
        return file.get_slice("embeds")[row].float(), file.get_slice("mask")[row]

    def __getstate__(self) -> dict[str, Any]:
        """Open files do not travel to loading workers."""
        return self.__dict__ | {"_open": {}}


@torch.no_grad()
def _write_embeddings(
    path: Path,
    captions: Sequence[str],
    text_encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    device: torch.device,
) -> None:
    parts = [
        embed_texts(text_encoder, tokenizer, captions[start : start + _BATCH], max_tokens, device)
        for start in range(0, len(captions), _BATCH)
    ]
    embeds = torch.cat([part.embeds.half().cpu() for part in parts])
    mask = torch.cat([part.mask.cpu() for part in parts if part.mask is not None])
    with atomic_path(path) as temporary:
        save_file({"embeds": embeds.contiguous(), "mask": mask.contiguous()}, temporary)
