r"""AutoencoderKL3D: configuration, geometry, bad input, saving and dtypes."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.utils import logging as diffusers_logging

from diffusers_vidvae.models.autoencoder_kl_3d import AutoencoderKL3D, kl_per_element


TINY = {
    "block_out_channels": (8, 16, 16, 16),
    "latent_channels": 4,
    "layers_per_block": 1,
    "mid_block_layers": 1,
}


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL3D:
    torch.manual_seed(0)
    return AutoencoderKL3D(**TINY).eval().requires_grad_(False)


def clip(num_frames: int = 5, height: int = 24, width: int = 32, batch_size: int = 1) -> torch.Tensor:
    return 2 * torch.rand(batch_size, 3, num_frames, height, width) - 1


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_default_has_the_published_parameter_counts():
    with torch.device("meta"):
        vae = AutoencoderKL3D()
    assert num_parameters(vae.encoder) == 170_071_072
    assert num_parameters(vae.decoder) == 176_485_763
    assert num_parameters(vae) == 346_556_835


@pytest.mark.parametrize(
    "layout, encoder, decoder",
    [
        (
            {"layers_per_block": 4, "shortcut_kernel_size": 3, "mid_block_layers": 2, "mid_block_attention": True},
            170_088_608,
            176_503_683,
        ),
        ({}, 170_084_000, 176_499_075),
        ({"layers_per_block": (2, 2, 5, 5), "mid_block_layers": 1}, 170_084_000, 176_499_075),
        (
            {
                "block_out_channels": (128, 256, 512, 512, 512),
                "layers_per_block": (2, 2, 3, 3, 3),
                "mid_block_layers": 2,
            },
            170_084_000,
            176_499_075,
        ),
    ],
    ids=["attention", "default", "one mid block", "five levels"],
)
def test_other_layouts_with_these_counts_are_configurations(layout, encoder, decoder):
    with torch.device("meta"):
        vae = AutoencoderKL3D(**layout, norm_type="group")
    assert (num_parameters(vae.encoder), num_parameters(vae.decoder)) == (encoder, decoder)


@pytest.mark.parametrize("num_frames", range(1, 10))
def test_every_length_comes_back_whole(vae, num_frames):
    x = clip(num_frames)
    latents = vae.encode(x).latent_dist.mode()
    assert latents.shape == (1, 4, -(-num_frames // 4), 3, 4)
    assert vae(x).sample.shape == x.shape


@pytest.mark.parametrize("size", [(8, 8), (9, 17), (23, 8), (31, 33)])
def test_every_size_comes_back_whole(vae, size):
    x = clip(3, *size)
    assert vae.encode(x).latent_dist.mode().shape[1:] == vae.latent_shape(3, *size)
    assert vae(x).sample.shape == x.shape


@pytest.mark.parametrize("frames, latents", [(1, 1), (2, 2), (5, 2), (6, 3), (9, 3), (13, 4)])
def test_the_first_frame_may_stand_alone(frames, latents):
    vae = AutoencoderKL3D(**TINY, first_frame_alone=True).eval().requires_grad_(False)
    x = clip(frames)
    z = vae.encode(x).latent_dist.mode()
    assert z.shape[1:] == vae.latent_shape(*x.shape[2:]) == (4, latents, 3, 4)
    assert vae(x).sample.shape == x.shape
    assert vae.decode(z).sample.shape[2] == 4 * latents - 3


def test_the_first_frame_alone_sees_no_later_frame_and_all_others_are_seen():
    vae = AutoencoderKL3D(**TINY, first_frame_alone=True).eval().requires_grad_(False)
    x = clip(5)
    latents = vae.encode(x).latent_dist.mean
    for frame in range(5):
        changed = x.clone()
        changed[:, :, frame] = -changed[:, :, frame]
        first, second = (vae.encode(changed).latent_dist.mean - latents).abs().amax(dim=(0, 1, 3, 4))
        assert second > 1e-3 and (first > 1e-3) == (frame == 0), frame


@pytest.mark.parametrize(
    "num_frames, message", [(4, "needs 2 latents, got 3, which decode to 6 to 9"), (10, "needs 4")]
)
def test_frames_that_the_latents_do_not_hold_are_refused_with_the_first_alone(num_frames, message):
    vae = AutoencoderKL3D(**TINY, first_frame_alone=True)
    with pytest.raises(ValueError, match=f"`num_frames` = {num_frames} {message}"):
        vae.decode(torch.zeros(1, 4, 3, 3, 4), num_frames)


@pytest.mark.parametrize("frames, latents", [(1, 1), (4, 1), (5, 2), (24, 6), (25, 7), (120, 30)])
def test_latent_shape_rounds_up(vae, frames, latents):
    assert vae.latent_shape(frames, 720, 1270) == (4, latents, 90, 159)


def test_decode_without_a_size_gives_all_it_can(vae):
    assert vae.decode(torch.randn(2, 4, 2, 3, 4)).sample.shape == (2, 3, 8, 24, 32)
    assert vae.decode(torch.randn(1, 4, 1, 3, 4)).sample.shape == (1, 3, 4, 24, 32)


def test_frames_past_the_end_repeat_the_last_one(vae):
    x = clip(5)
    padded = torch.cat([x, x[:, :, -1:].expand(-1, -1, 3, -1, -1)], dim=2)
    torch.testing.assert_close(vae.encode(x).latent_dist.mean, vae.encode(padded).latent_dist.mean, rtol=0, atol=1e-5)


def test_a_frame_does_not_depend_on_later_groups_of_four(vae):
    x = clip(12)
    changed = x.clone()
    changed[:, :, 8:] = clip(4)
    torch.testing.assert_close(vae(x).sample[:, :, :8], vae(changed).sample[:, :, :8], rtol=0, atol=1e-5)


def test_every_frame_reaches_the_latents(vae):
    x = clip(8)
    latents = vae.encode(x).latent_dist.mean
    for frame in range(8):
        changed = x.clone()
        changed[:, :, frame] = -changed[:, :, frame]
        assert (vae.encode(changed).latent_dist.mean - latents).abs().max() > 1e-3, frame


@pytest.mark.parametrize(
    "config, ratios",
    [
        ({"block_out_channels": (8, 16), "temporal_downsample": (True,)}, (2, 2)),
        ({"block_out_channels": (8, 16), "temporal_downsample": (True, True)}, (4, 4)),
        (
            {"block_out_channels": (8, 16, 16), "temporal_downsample": (False, True), "decoder_layers_per_block": 2},
            (2, 4),
        ),
        ({"block_out_channels": (8, 8), "temporal_downsample": (False,), "shortcut_kernel_size": 3}, (1, 2)),
        ({"norm_type": "group", "norm_num_groups": 4, "mid_block_attention": True, "mid_block_layers": 2}, (4, 8)),
        ({"pixel_range": (-1.0, 1.0)}, (4, 8)),
    ],
)
def test_other_configurations_keep_shape_in_chunks_too(config, ratios):
    vae = AutoencoderKL3D(**{**TINY, **config}).eval().requires_grad_(False)
    assert (vae.temporal_compression_ratio, vae.spatial_compression_ratio) == ratios
    for x in (clip(9, 18, 21), clip(1, 18, 21)):
        whole = vae(x).sample
        assert whole.shape == x.shape
        vae.enable_temporal_chunking(4, full_resolution_frames=1)
        torch.testing.assert_close(vae(x).sample, whole, rtol=0, atol=1e-5)
        vae.disable_temporal_chunking()


def test_pixel_range_is_inside_only():
    vae = AutoencoderKL3D(**TINY).eval().requires_grad_(False)
    plain = AutoencoderKL3D(**TINY, pixel_range=(-1.0, 1.0)).eval().requires_grad_(False)
    plain.load_state_dict(vae.state_dict())
    x = clip()
    latents = vae.encode(x).latent_dist.mean
    torch.testing.assert_close(latents, plain.encode((x + 1) / 2).latent_dist.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(vae.decode(latents).sample, 2 * plain.decode(latents).sample - 1, rtol=0, atol=1e-5)


def test_forward_returns_the_posterior_when_asked(vae):
    x = clip()
    assert vae(x).latent_dist is None
    output = vae(x, return_posterior=True)
    assert isinstance(output.latent_dist, DiagonalGaussianDistribution)
    sample, posterior = vae(x, return_dict=False, return_posterior=True)
    assert torch.equal(sample, output.sample) and torch.equal(posterior.mean, output.latent_dist.mean)
    assert len(vae(x, return_dict=False)) == 1


def test_posterior_draws_follow_the_generator(vae):
    x = clip()
    first, again, other = (
        vae(x, sample_posterior=True, generator=torch.Generator().manual_seed(seed)).sample for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_kl_per_element_is_that_of_the_standard_normal():
    mean, logvar = torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 2, 4, 4)
    posterior = DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1))
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).mean(1)
    torch.testing.assert_close(kl_per_element(posterior), expected)


def test_normalized_latents_have_the_configured_statistics():
    statistics = {"latents_mean": [1.0, -2.0, 0.0, 3.0], "latents_std": [2.0, 0.5, 1.0, 4.0]}
    vae = AutoencoderKL3D(**TINY, **statistics, scaling_factor=0.5)
    mean, std = (torch.tensor(values)[:, None, None, None] for values in statistics.values())
    latents = mean + std * torch.randn(2, 4, 3, 5, 5)
    normalized = vae.normalize_latents(latents)
    torch.testing.assert_close(normalized, (latents - mean) / std * 0.5)
    torch.testing.assert_close(vae.denormalize_latents(normalized), latents)


def test_normalizing_without_statistics_is_the_identity(vae):
    latents = torch.randn(1, 4, 2, 3, 3)
    assert torch.equal(vae.normalize_latents(latents), latents)


def test_saved_model_gives_the_same_output(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderKL3D.from_pretrained(tmp_path)
    x = clip(6)
    assert torch.equal(loaded(x).sample, vae(x).sample)


def test_halves_may_have_different_dtypes():
    vae = AutoencoderKL3D(**TINY).eval().requires_grad_(False).to(torch.bfloat16)
    vae.encoder.to(torch.float32)
    output = vae(clip(), return_posterior=True)
    assert output.latent_dist.mean.dtype == torch.float32
    assert output.sample.dtype == torch.bfloat16


def test_bfloat16_stays_close_to_float32(vae):
    x = clip(5)
    expected = vae.decode(vae.encode(x).latent_dist.mean, 5).sample
    half = AutoencoderKL3D(**TINY).eval().requires_grad_(False)
    half.load_state_dict(vae.state_dict())
    output = half.to(torch.bfloat16)(x).sample.float()
    assert (output - expected).square().mean().sqrt() < 0.05 * expected.std()


@pytest.mark.parametrize("leaf", [True, False])
def test_layerwise_casting_and_offloading_leave_the_output(vae, leaf):
    model = AutoencoderKL3D(**TINY).eval().requires_grad_(False)
    model.load_state_dict(vae.state_dict())
    x = clip(5)
    expected = model(x).sample
    if leaf:
        model.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        assert torch.equal(model(x).sample, expected)
    else:
        model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        assert model.encoder.mid_block.resnets[0].conv1.weight.dtype == torch.float8_e4m3fn
        assert (model(x).sample - expected).square().mean().sqrt() < 0.5 * expected.std()


def test_return_dict_false_gives_tuples(vae):
    (posterior,) = vae.encode(clip(), return_dict=False)
    (sample,) = vae.decode(posterior.mode(), return_dict=False)
    assert isinstance(vae.decode(posterior.mode()), DecoderOutput)
    assert sample.shape == (1, 3, 8, 24, 32)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(1, 3, 4, 7, 16), "at least 8, got 7 and 16"),
        (torch.zeros(1, 3, 4, 16, 2), "at least 8, got 16 and 2"),
        (torch.zeros(1, 1, 4, 16, 16), r"\(batch, 3, frames, height, width\), got \(1, 1, 4, 16, 16\)"),
        (torch.zeros(3, 4, 16, 16), r"\(batch, 3, height, width\), got \(3, 4, 16, 16\)"),
        (torch.zeros(1, 3, 0, 16, 16), r"got \(1, 3, 0, 16, 16\)"),
        (torch.zeros(1, 3, 4, 16, 16, dtype=torch.uint8), "floats in .*, got torch.uint8"),
    ],
)
def test_bad_pixels_are_refused(vae, x, message):
    with pytest.raises(ValueError, match=message):
        vae.encode(x)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_frames": 9}, "`num_frames` = 9 needs 3 latents, got 2, which decode to 5 to 8"),
        ({"num_frames": 4}, "`num_frames` = 4 needs 1 latents, got 2"),
        ({"height": 25}, "`height` = 25 needs 4 latents, got 3, which decode to 17 to 24"),
        ({"width": 24}, "`width` = 24 needs 3 latents, got 4"),
    ],
)
def test_sizes_that_the_latents_do_not_fit_are_refused(vae, arguments, message):
    with pytest.raises(ValueError, match=message):
        vae.decode(torch.zeros(1, 4, 2, 3, 4), **arguments)


def test_latents_of_wrong_shape_are_refused(vae):
    with pytest.raises(ValueError, match=r"\(batch, 4, frames, height, width\), got \(1, 5, 2, 3, 4\)"):
        vae.decode(torch.zeros(1, 5, 2, 3, 4))


def test_nan_is_named_when_asked_to_check(vae):
    x, z = clip(), torch.zeros(1, 4, 2, 3, 4)
    x[0, 0, 0, 0, :2] = float("nan")
    z[0, 0, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="Pixels hold NaN: 2 of 11520 values"):
        vae.encode(x, check_finite=True)
    with pytest.raises(ValueError, match="Latents hold infinite values"):
        vae.decode(z, check_finite=True)
    with pytest.raises(ValueError, match="Pixels hold NaN"):
        list(vae.encode_stream([x], check_finite=True))


@pytest.mark.parametrize("chunk_frames", [0, 3, 6, -4])
def test_chunks_are_multiples_of_four(vae, chunk_frames):
    with pytest.raises(ValueError, match=f"positive multiple of 4, got {chunk_frames}"):
        vae.enable_temporal_chunking(chunk_frames)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tile_sample_size": 100}, "multiples of 8, got 100"),
        ({"tile_overlap": 1.0}, r"in \[0, 1\) or 'exact', got 1.0"),
        ({"tile_overlap": "all"}, "got 'all'"),
        ({"tile_sample_size": 64, "tile_overlap": "exact"}, r"exact overlap of 160 pixels, got \(64, 64\)"),
    ],
)
def test_bad_tiles_are_refused(vae, arguments, message):
    with pytest.raises(ValueError, match=message):
        vae.enable_tiling(**arguments)
    assert not vae.use_tiling


def test_tiles_are_set_as_those_of_other_autoencoders(vae):
    model = AutoencoderKL3D(**TINY).eval().requires_grad_(False)
    model.load_state_dict(vae.state_dict())
    x = clip(1, 40, 56)
    model.enable_tiling((32, 24), 0.25)
    expected = model(x).sample
    names = (
        "tile_sample_min_height",
        "tile_sample_min_width",
        "tile_sample_stride_height",
        "tile_sample_stride_width",
    )
    settings = {name: getattr(model, name) for name in names}
    assert list(settings.values()) == [32, 24, 24, 16]
    model.enable_tiling()
    for name, value in settings.items():
        setattr(model, name, value)
    assert torch.equal(model(x).sample, expected)
    model.enable_tiling()
    model.enable_tiling(**settings)
    assert torch.equal(model(x).sample, expected)
    model.tile_sample_stride_width = 32
    with pytest.raises(ValueError, match="`tile_sample_stride_width` .* `tile_sample_min_width` = 24, got 32"):
        model.encode(x)


def test_derived_entries_follow_the_configuration_without_warnings(vae, tmp_path, caplog):
    vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["z_dim"], config["latents_mean"], config["scale_factor_spatial"]) == (4, [0.0] * 4, 8)
    config["temporal_downsample"] = [False, False, True]
    (tmp_path / "config.json").write_text(json.dumps(config))
    logger = diffusers_logging.get_logger("diffusers")
    logger.addHandler(caplog.handler)
    loaded = AutoencoderKL3D.from_pretrained(tmp_path)
    again = AutoencoderKL3D.from_config(loaded.config)
    logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if "not expected" in record.message]
    for model in (loaded, again):
        assert model.config.scale_factor_temporal == model.config.temporal_compression_ratio == 2
        assert model.temperal_downsample == [False, False, True]


@pytest.mark.parametrize(
    "config, message",
    [
        ({"layers_per_block": (1, 2)}, "each of the 4 levels, got"),
        ({"temporal_downsample": (True,) * 5}, "1 to 4 entries, got 5"),
        ({"norm_type": "batch"}, "one of .*, got 'batch'"),
        ({"shortcut_kernel_size": 2}, "1 or 3, got 2"),
        ({"latents_std": [1.0]}, "each of the 4 latent channels, got 1"),
    ],
)
def test_bad_configurations_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderKL3D(**{**TINY, **config})
