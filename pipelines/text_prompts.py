r"""From prompts to text embeddings, with the text encoders and tokenizers of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.utils import logging


logger = logging.get_logger(__name__)

# Tokenizers that know no limit say so by a huge number.
LONGEST_PROMPT = 512


class TextEmbeddings(NamedTuple):
    """Embeddings `(batch, text_tokens, text_dim)` and a bool mask `(batch, text_tokens)`, False for padding."""

    embeds: torch.Tensor
    mask: torch.Tensor | None

    def repeated(self, count: int) -> TextEmbeddings:
        """Each text `count` times in a row."""
        mask = None if self.mask is None else self.mask.repeat_interleave(count, dim=0)
        return TextEmbeddings(self.embeds.repeat_interleave(count, dim=0), mask)

    def for_batch(self, batch_size: int) -> TextEmbeddings:
        """One text for all videos, or a text for each."""
        if len(self.embeds) not in (1, batch_size):
            raise ValueError(f"There must be a prompt for each of the {batch_size} videos, got {len(self.embeds)}.")
        return self if len(self.embeds) == batch_size else self.repeated(batch_size)

    def arguments(self) -> dict[str, torch.Tensor]:
        """Arguments of the transformer."""
        found = {"encoder_hidden_states": self.embeds}
        return found if self.mask is None else {**found, "encoder_attention_mask": self.mask}


def count_prompts(
    prompt: str | list[str] | None, prompt_embeds: torch.Tensor | None, num_videos_per_prompt: int
) -> int:
    """Number of videos that prompts ask for; one prompt may be for more."""
    texts = prompt if isinstance(prompt, list) else prompt_embeds
    return (1 if texts is None else len(texts)) * num_videos_per_prompt


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers and mask `(batch, max_length)`; says what of a longer text is lost."""
    limit = min(tokenizer.model_max_length, LONGEST_PROMPT)
    max_length = limit if max_length is None else max_length
    if not 1 <= max_length <= limit:
        raise ValueError(f"`max_sequence_length` must be from 1 to {limit}, got {max_length}.")
    options = {"padding": "max_length", "max_length": max_length, "return_tensors": "pt"}
    tokens = tokenizer(list(texts), truncation=True, return_attention_mask=True, **options)
    for text, row in zip(texts, tokenizer(list(texts)).input_ids, strict=True):
        if len(row) > max_length:
            lost = tokenizer.decode(row[max_length - 1 :], skip_special_tokens=True)
            logger.warning(f"The prompt {text!r} is longer than {max_length} tokens; this is left out: {lost!r}.")
    return tokens.input_ids, tokens.attention_mask.bool()


def embed_texts(
    text_encoder: Any, tokenizer: Any, texts: Sequence[str], max_length: int | None, device: torch.device
) -> TextEmbeddings:
    """Embeddings of texts by a text encoder, on a device."""
    token_ids, mask = tokenize(tokenizer, texts, max_length)
    embeds = text_encoder(token_ids.to(device), attention_mask=mask.to(device))[0]
    return TextEmbeddings(embeds, mask.to(device))
