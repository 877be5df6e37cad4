from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from diffusers_vidvae import FrameSelectVAE
from diffusers_vidvae.models.clip_windows import clip_windows


TINY = {
    "sample_size": 16,
    "patch_size": 8,
    "latent_channels": 6,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "ff_inner_dim": 24,
    "max_num_frames": 8,
    "clip_num_frames": 4,
    "refiner_channels": 8,
    "refiner_levels": 2,
}
ANY_SIZE = {
    **TINY,
    "hidden_size": 24,
    "patch_norm": False,
    "rope_type": "axial",
    "keep_head": "pooled",
    "refiner_norm": "frame",
}


def make_vae(**config) -> FrameSelectVAE:
    torch.manual_seed(0)
    vae = FrameSelectVAE(**config).eval()
    # A fresh refiner and fresh residual branches add next to nothing and would hide mistakes.
    for parameter in vae.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return vae


@pytest.fixture(scope="module", params=[TINY, ANY_SIZE], ids=["original", "any_size"])
def vae(request):
    return make_vae(**request.param)


@pytest.fixture(scope="module")
def any_size_vae():
    return make_vae(**ANY_SIZE)


def clips(batch_size: int, num_frames: int, height: int = 16, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch_size, 3, num_frames, height, width, generator=generator) * 2 - 1


def length_mask(*lengths: int) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def assert_close(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_default_is_the_published_size():
    with torch.device("meta"):
        assert FrameSelectVAE().num_parameters() == 170_631_304


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 2, 4, 5, 7, 8, 13])
def test_round_trip_keeps_every_frame(vae, num_frames):
    sample = clips(2, num_frames)
    output = vae(sample)
    assert output.sample.shape == sample.shape
    assert output.keep_probs.shape == output.keep_mask.shape == (2, num_frames)
    latents = vae.encode(sample).latent_dist.mode()
    assert latents.shape == (2, 6, num_frames, 2, 2)
    assert vae.decode(latents).sample.shape == sample.shape


@torch.no_grad()
@pytest.mark.parametrize(("long", "short"), [(4, 2), (11, 3), (11, 6)])
def test_batch_mates_do_not_matter(vae, long, short):
    sample, frame_mask = clips(2, long), length_mask(long, short)
    keep_mask = torch.rand(2, long) > 0.5
    keep_mask[:, 0] = True
    batch = vae(sample, frame_mask=frame_mask, keep_mask=keep_mask)
    for clip, length in enumerate((long, short)):
        alone = vae(sample[clip : clip + 1, :, :length], keep_mask=keep_mask[clip : clip + 1, :length])
        assert_close(batch.sample[clip, :, :length], alone.sample[0])
        assert_close(batch.keep_probs[clip, :length], alone.keep_probs[0])
        assert_close(batch.latent_dist.mean[clip, :, :length], alone.latent_dist.mean[0])
    assert not batch.sample[1, :, short:].any()
    assert not batch.keep_probs[1, short:].any()


@torch.no_grad()
def test_padding_content_does_not_matter(vae):
    frame_mask = length_mask(4, 2)
    sample = clips(2, 4)
    other = sample.clone()
    other[1, :, 2:] = 0.7
    first, second = vae(sample, frame_mask=frame_mask), vae(other, frame_mask=frame_mask)
    assert torch.equal(first.sample, second.sample)
    assert torch.equal(first.keep_mask, second.keep_mask)


@torch.no_grad()
def test_slicing_changes_nothing(vae):
    sample, frame_mask = clips(3, 4), length_mask(4, 3, 1)
    expected = vae(sample, frame_mask=frame_mask)
    vae.enable_slicing()
    sliced = vae(sample, frame_mask=frame_mask)
    vae.disable_slicing()
    assert_close(sliced.sample, expected.sample)
    assert_close(sliced.keep_probs, expected.keep_probs)


@pytest.mark.parametrize("num_frames", [1, 9])
def test_an_empty_batch_gives_an_empty_result(any_size_vae, num_frames):
    x = clips(0, num_frames, 16, 40)
    for slicing, tiling in ((False, False), (True, False), (False, True)):
        any_size_vae.use_slicing, any_size_vae.use_tiling = slicing, tiling
        encoded = any_size_vae.encode(x)
        keep_mask = any_size_vae.select_frames(encoded.keep_probs, num_frames=num_frames)
        assert keep_mask.shape == encoded.keep_probs.shape == (0, num_frames)
        latents = encoded.latent_dist.mode()
        assert latents.shape == (0, 6, num_frames, 2, 5)
        assert any_size_vae.decode(latents, keep_mask).sample.shape == x.shape
        assert any_size_vae(x, frame_mask=torch.ones(0, num_frames, dtype=torch.bool)).sample.shape == x.shape
    any_size_vae.use_slicing = any_size_vae.use_tiling = False


def test_windows_cover_a_clip_once():
    assert clip_windows(3, 4) == [(0, 3, 0)]
    assert clip_windows(4, 4) == [(0, 4, 0)]
    assert clip_windows(10, 4) == [(0, 4, 0), (4, 8, 4), (6, 10, 8)]
    for num_frames in range(1, 40):
        windows = clip_windows(num_frames, 7)
        assert [i for window in windows for i in range(window.first_new, window.stop)] == list(range(num_frames))
        assert all(window.stop - window.start == min(7, num_frames) for window in windows)


@torch.no_grad()
def test_windows_of_a_long_clip_are_independent(vae):
    sample = clips(1, 10)
    latents = vae.encode(sample).latent_dist.mode()
    decoded = vae.decode(latents).sample
    for start, stop, first_new in clip_windows(10, 4):
        window = vae.encode(sample[:, :, start:stop]).latent_dist.mode()
        assert_close(window[:, :, first_new - start :], latents[:, :, first_new:stop])
        frames = vae.decode(latents[:, :, start:stop]).sample
        assert_close(frames[:, :, first_new - start :], decoded[:, :, first_new:stop])


@torch.no_grad()
def test_dropped_latents_are_not_read(vae):
    latents = torch.randn(1, 6, 4, 2, 2)
    keep_mask = torch.tensor([[True, False, False, True]])
    expected = vae.decode(latents, keep_mask).sample
    latents[:, :, 1:3] = float("nan")
    assert torch.equal(vae.decode(latents, keep_mask).sample, expected)
    assert not torch.equal(vae.decode(torch.zeros_like(latents), keep_mask).sample, expected)


@torch.no_grad()
def test_one_tile_is_the_untiled_result(vae):
    sample = clips(1, 3)
    expected = vae(sample)
    vae.enable_tiling()
    tiled = vae(sample)
    vae.disable_tiling()
    assert_close(tiled.sample, expected.sample)
    assert_close(tiled.keep_probs, expected.keep_probs)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 40), (48, 24), (72, 56)])
def test_tiles_give_any_size_back(vae, height, width):
    sample = clips(2, 5, height, width)
    vae.enable_tiling(tile_overlap=0.5)
    output = vae(sample)
    vae.enable_tiling(tile_overlap=0.5, tiles_per_batch=1)
    one_by_one = vae(sample)
    vae.disable_tiling()
    assert output.sample.shape == sample.shape
    assert output.latent_dist.mean.shape == (2, 6, 5, height // 8, width // 8)
    assert_close(one_by_one.sample, output.sample)
    assert_close(one_by_one.keep_probs, output.keep_probs)


@pytest.mark.parametrize(
    ("changes", "tile"),
    [({}, (32, 0.125)), ({"rope_type": "raster"}, (16, 0.25)), ({"keep_head": "latent"}, (16, 0.25))],
)
def test_tiles_outgrow_training_where_positions_and_keep_head_do(changes, tile):
    vae = make_vae(**(ANY_SIZE | changes))
    vae.enable_tiling()
    assert (vae.tile_sample_size, vae.tile_overlap) == vae.usual_tile == tile


@torch.no_grad()
@pytest.mark.parametrize("tiled", [False, True])
def test_levels_are_pixels_in_eight_bits(any_size_vae, tiled):
    vae, levels = any_size_vae, torch.randint(256, (1, 3, 3, 40, 56), dtype=torch.uint8)
    vae.enable_tiling() if tiled else vae.disable_tiling()
    (by_levels,), (by_pixels,) = (list(vae.encode_stream([clip])) for clip in (levels, levels / 127.5 - 1))
    latents, keep_mask = by_levels.latent_dist.mode(), torch.tensor([[True, False, True]])
    (decoded,) = vae.decode_stream([(latents, keep_mask)], as_levels=True)
    expected = vae.decode(latents, keep_mask).sample
    vae.disable_tiling()
    assert_close(latents, by_pixels.latent_dist.mode())
    assert decoded.dtype == torch.uint8
    assert (decoded - ((expected + 1) * 127.5).clamp(0, 255)).abs().max() < 0.501


@torch.no_grad()
def test_tiles_blend_linearly_where_they_overlap(any_size_vae):
    """Two tiles side by side: outside the overlap each shows alone, inside they cross-fade without a step."""
    vae = any_size_vae
    latents = torch.randn(1, 6, 1, 4, 6)
    vae.enable_tiling(tile_sample_size=32, tile_overlap=0.5)
    blended = vae.decode(latents).sample
    vae.disable_tiling()
    left, right = vae.decode(latents[..., :4]).sample, vae.decode(latents[..., 2:]).sample
    assert_close(blended[..., :16], left[..., :16])
    assert_close(blended[..., 32:], right[..., 16:])
    weight = torch.arange(1, 17) / 17
    assert_close(blended[..., 16:32], left[..., 16:] * (1 - weight) + right[..., :16] * weight)


@torch.no_grad()
def test_free_sizes_need_no_tiles(any_size_vae):
    sample = clips(1, 2, 24, 40)
    assert any_size_vae(sample).sample.shape == sample.shape


def test_gradient_checkpointing_gives_the_same_gradients(vae):
    sample, frame_mask = clips(2, 4), length_mask(4, 3)

    def gradients() -> dict[str, torch.Tensor]:
        vae.zero_grad()
        output = vae(sample, frame_mask=frame_mask)
        (output.sample.square().mean() + output.keep_logits.mean()).backward()
        return {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}

    vae.train()
    expected = gradients()
    vae.enable_gradient_checkpointing()
    checkpointed = gradients()
    vae.disable_gradient_checkpointing()
    vae.eval()
    vae.zero_grad()
    assert expected.keys() == checkpointed.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@torch.no_grad()
def test_fused_projections_change_nothing(vae):
    sample = clips(1, 3)
    expected = vae(sample).sample
    vae.fuse_qkv_projections()
    fused = vae(sample).sample
    vae.unfuse_qkv_projections()
    assert_close(fused, expected)


@torch.no_grad()
def test_attention_backends_agree(vae):
    sample, frame_mask = clips(2, 4), length_mask(4, 2)
    expected = vae(sample, frame_mask=frame_mask).sample
    vae.set_attention_backend("_native_math")
    try:
        assert_close(vae(sample, frame_mask=frame_mask).sample, expected)
    finally:
        vae.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


@torch.no_grad()
def test_saved_model_gives_the_same_output(vae, tmp_path):
    sample = clips(1, 6)
    vae.save_pretrained(tmp_path, max_shard_size="40kB")
    assert torch.equal(FrameSelectVAE.from_pretrained(tmp_path)(sample).sample, vae(sample).sample)


@torch.no_grad()
def test_half_precision_keeps_selection_in_float32(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    half = FrameSelectVAE.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    output = half(clips(1, 4))
    assert output.sample.dtype == output.latent_dist.mean.dtype == torch.bfloat16
    assert output.keep_probs.dtype == output.keep_logits.dtype == torch.float32
    torch.testing.assert_close(output.keep_probs, vae(clips(1, 4)).keep_probs, atol=0.05, rtol=0)


@torch.no_grad()
def test_tuples_have_the_order_of_the_dataclasses(vae):
    sample = clips(1, 3)
    output = vae(sample)
    as_tuple = vae(sample, return_dict=False)
    assert torch.equal(as_tuple[0], output.sample)
    assert torch.equal(as_tuple[1].mean, output.latent_dist.mean)
    assert all(torch.equal(a, b) for a, b in zip(as_tuple[2:], output.to_tuple()[2:], strict=True))


@torch.no_grad()
def test_posterior_noise_follows_the_generator(vae):
    sample = clips(1, 3)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return vae(sample, sample_posterior=True, generator=generator).sample

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_latent_statistics_are_inverse_of_each_other():
    vae = make_vae(**TINY, latents_mean=[0.5] * 6, latents_std=[2.0] * 6)
    latents = torch.randn(2, 6, 3, 2, 2)
    assert_close(vae.normalize_latents(latents), (latents - 0.5) / 2)
    assert_close(vae.denormalize_latents(vae.normalize_latents(latents)), latents)
    plain = make_vae(**TINY)
    assert torch.equal(plain.normalize_latents(latents), latents)


@torch.no_grad()
def test_pixels_are_mapped_to_the_range_the_model_was_trained_in():
    unit = make_vae(**TINY, pixel_range=(0.0, 1.0))
    signed = make_vae(**TINY, pixel_range=(-1.0, 1.0))
    sample = clips(1, 3)
    latents = unit.encode(sample).latent_dist.mode()
    assert_close(signed.encode((sample + 1) / 2).latent_dist.mode(), latents)
    assert_close((unit.decode(latents).sample + 1) / 2, signed.decode(latents).sample)


@torch.no_grad()
@pytest.mark.slow
def test_whole_model_compiles_without_graph_breaks(any_size_vae):
    sample = clips(1, 4)
    tables = any_size_vae._rotary_embeddings(4, 2, 2, sample.device)
    expected = any_size_vae.encoder(sample, *tables)
    compiled = torch.compile(any_size_vae.encoder, fullgraph=True)(sample, *tables)
    for actual, reference in zip(compiled, expected, strict=True):
        assert_close(actual, reference)
    latents = torch.randn(1, 6, 4, 2, 2)
    decoder = torch.compile(any_size_vae.decoder, fullgraph=True)
    assert_close(decoder(latents, *tables), any_size_vae.decoder(latents, *tables))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (torch.zeros(1, 3, 2, 12, 16), "multiples of the patch size 8, got 12x16"),
        (torch.zeros(1, 3, 2, 4, 4), "multiples of the patch size 8, got 4x4"),
        (
            torch.zeros(1, 4, 2, 16, 16),
            r"must have shape \(batch, 3, frames, height, width\).*got \(1, 4, 2, 16, 16\)",
        ),
        (torch.zeros(3, 2, 16, 16), r"got \(3, 2, 16, 16\)"),
        (torch.zeros(1, 3, 0, 16, 16), "at least one frame"),
    ],
)
def test_bad_samples_are_named(vae, sample, message):
    with pytest.raises(ValueError, match=message):
        vae.encode(sample)


def test_other_sizes_need_tiling_where_the_keep_head_is_fixed():
    vae = make_vae(**TINY)
    with pytest.raises(ValueError, match=r"takes 16x16 frames, larger ones after `enable_tiling\(\)`, got 24x16"):
        vae.encode(clips(1, 2, 24, 16))
    vae.enable_tiling()
    with pytest.raises(ValueError, match="got 8x24"):
        vae.encode(clips(1, 2, 8, 24))
    vae.enable_tiling(tile_sample_size=24)
    with pytest.raises(ValueError, match="tiles must be 16x16, got `tile_sample_size` 24"):
        vae.encode(clips(1, 2, 24, 24))


@pytest.mark.parametrize(
    ("frame_mask", "message"),
    [
        (torch.ones(1, 3, dtype=torch.bool), r"= \(2, 4\), got \(1, 3\)"),
        (length_mask(4, 0), "at least one real frame"),
        (torch.tensor([[True] * 4, [True, False, True, False]]), "end it with padding"),
    ],
)
def test_bad_frame_masks_are_named(vae, frame_mask, message):
    with pytest.raises(ValueError, match=message):
        vae.encode(clips(2, 4), frame_mask)


def test_bad_latents_and_keep_masks_are_named(vae):
    with pytest.raises(
        ValueError, match=r"must have shape \(batch, 6, frames, height, width\), got \(1, 5, 2, 2, 2\)"
    ):
        vae.decode(torch.zeros(1, 5, 2, 2, 2))
    latents = torch.zeros(2, 6, 3, 2, 2)
    with pytest.raises(ValueError, match=r"`keep_mask` must have shape .* \(2, 3\), got \(2, 2\)"):
        vae.decode(latents, torch.ones(2, 2))
    with pytest.raises(ValueError, match="clip 1 keeps none"):
        vae.decode(latents, torch.tensor([[True, True, True], [False, False, False]]))
    with pytest.raises(ValueError, match="clip 1 keeps none"):
        vae.decode(latents, torch.tensor([[True] * 3, [False, False, True]]), length_mask(3, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_size": 20}, "multiple of `patch_size`, got 20 and 8"),
        ({"refiner_levels": 4}, "got 8 and 4 levels"),
        ({"refiner_levels": -1}, "at least 0, got 8 and -1 levels"),
        ({"clip_num_frames": 9}, "got 9 and 8"),
        ({"keep_head": "mean"}, "'latent', 'pooled'"),
        ({"refiner_norm": "batch"}, "'clip', 'frame'"),
        ({"rope_type": "2d"}, "'raster', 'axial'"),
        ({"fill": "blend"}, "'token', 'interpolate', 'wiener'"),
        ({"fill": "interpolate", "cycle_channels": TINY["latent_channels"]}, "below the .* latent channels"),
        ({"cycle_channels": 1}, "got 1 and 'token'"),
        ({"cycle_length": 0}, "at least 1, got 0"),
        ({"filter_size": 3}, "1 unless `fill` is 'wiener', got 3 and 'token'"),
        ({"fill": "wiener", "filter_size": 4}, "odd"),
    ],
)
def test_bad_configurations_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        FrameSelectVAE(**{**TINY, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile_sample_size": 12}, "multiple of the patch size 8, got 12"),
        ({"tile_overlap": 1.0}, r"in \[0, 1\), got 1.0"),
        ({"tiles_per_batch": 0}, "at least 1, got 0"),
    ],
)
def test_bad_tilings_are_named(any_size_vae, arguments, message):
    with pytest.raises(ValueError, match=message):
        any_size_vae.enable_tiling(**arguments)
    assert not any_size_vae.use_tiling
