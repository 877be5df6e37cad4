from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny, ModelMixin
from tiny_autoencoders import frame_select_any_size


@pytest.fixture(scope="module")
def models() -> dict[str, ModelMixin]:
    """Tiny models by name, one that selects frames and one that keeps all."""
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    return {"selecting": frame_select_any_size().eval(), "<tiny>": tiny.eval()}
