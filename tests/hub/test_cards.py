r"""Model cards of saved folders."""

from __future__ import annotations

import json
import shutil

import pytest

from diffusers_vidvae.hub import build_model_card


@pytest.mark.parametrize(
    ("folder", "tag"),
    [
        ("generation", "image-to-video"),
        ("generation/transformer", "image-to-video"),
        ("generation/scheduler", None),
        ("generation/vae", "video-to-video"),
        ("compression", "video-to-video"),
    ],
)
def test_the_task_is_one_that_the_class_does(saved, folder, tag):
    assert build_model_card(saved / folder).data.pipeline_tag == tag


@pytest.mark.parametrize(
    ("entry", "tag"), [(["transformers", "T5EncoderModel"], "text-to-video"), ([None, None], "image-to-video")]
)
def test_generators_with_a_text_encoder_take_prompts(saved, tmp_path, entry, tag):
    shutil.copytree(saved / "generation", tmp_path / "generation")
    index_file = tmp_path / "generation" / "model_index.json"
    index_file.write_text(json.dumps(json.loads(index_file.read_text()) | {"text_encoder": entry}))
    assert build_model_card(tmp_path / "generation").data.pipeline_tag == tag
