from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from fsv_clips import make_header

from diffusers_vidvae.codec import FsvError, FsvHeader, TileLayout, check_model, weight_probe
from diffusers_vidvae.fingerprints import config_fingerprint


def test_metadata_comes_back():
    header = make_header(sha256="0" * 64)
    assert FsvHeader.from_metadata(header.to_metadata()) == header


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": -1}, "num_frames: -1 is not a whole number from 0 to 16777216"),
        ({"num_frames": 2**60}, "num_frames"),
        ({"num_frames": 1.5}, "num_frames"),
        ({"height": True}, "height: True"),
        ({"height": 0}, "height: 0 is not a whole number from 1"),
        ({"latent_channels": 2**20}, "latent_channels"),
        ({"clip_num_frames": 0}, "clip_num_frames"),
        ({"latent_width": 5}, "latent_width: 3 x 5 latents do not divide 48 x 48 pixels into square patches"),
        ({"height": 49}, "model_width: 49 x 40 pixels cannot be padded to 48 x 48"),
        ({"size_fit": "resize", "height": 30000, "width": 30000}, "width: 30000 x 30000 pixels are more than"),
        ({"size_fit": "crop"}, "size_fit: 'crop' is not one of pad, resize, tile"),
        ({"size_fit": "tile"}, "tile: None with size_fit 'tile'"),
        ({"tile": TileLayout(8, 2)}, "with size_fit 'pad'; tiles go with 'tile' only"),
        ({"size_fit": "tile", "tile": TileLayout(8, 8)}, "tile_overlap: 8 is not a whole number from 0 to 7"),
        ({"fps": 30.0}, "fps: expected a Fraction or None, got 30.0"),
        ({"fps": Fraction(-30)}, "fps: -30 is not a positive ratio"),
        ({"fps": Fraction(1, 2**40)}, "fps"),
        ({"quantization": "int2"}, "quantization: 'int2' is not one of"),
        ({"latent_dtype": "float64"}, "latent_dtype: 'float64' is not one of"),
        ({"model_id": "a\nb"}, "model_id: expected at most 512 printable characters"),
        ({"model_hash": "xyz"}, "model_hash: expected 64 hexadecimal digits"),
        ({"model_probe": (float("nan"),)}, "model_probe: expected at most 16 finite numbers"),
    ],
)
def test_a_header_out_of_limits_is_refused(changes, message):
    with pytest.raises(FsvError, match=message):
        make_header(**changes)


def test_latents_of_another_config_are_refused():
    with pytest.raises(FsvError, match="clip.fsv: model_hash: .*written by 'someone/some-vae', to be read by 'other'"):
        check_model(make_header(), config_fingerprint({}), "other", name="clip.fsv")


def test_latents_of_other_weights_are_refused():
    weight = torch.randn(16)
    header = make_header(model_probe=weight_probe(weight))
    with pytest.raises(FsvError, match="clip.fsv: model_probe: same config, other weights"):
        check_model(header, header.model_hash, model_probe=weight_probe(torch.randn(16)), name="clip.fsv")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_weights_pass_in_any_precision(dtype):
    for _ in range(50):
        weight = torch.randn(16)
        header = make_header(model_probe=weight_probe(weight))
        check_model(header, header.model_hash, "any name", weight_probe(weight.to(dtype)))


def test_an_unknown_model_is_not_compared():
    check_model(make_header(model_hash="", model_probe=()), config_fingerprint({}), model_probe=(1.0,))
