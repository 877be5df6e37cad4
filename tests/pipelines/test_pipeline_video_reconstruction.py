from __future__ import annotations

import json
import logging

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, ConfigMixin, DiffusionPipeline, ModelMixin, WanPipeline
from diffusers.configuration_utils import register_to_config
from PIL import Image
from tiny_autoencoders import AUTOENCODERS, allegro, make_autoencoder

from diffusers_vidvae import VideoCompressionPipeline, VideoReconstructionPipeline
from diffusers_vidvae.autoencoders import geometry_of, pad_clip, probe_geometry


class FoldingAutoencoder(ModelMixin, ConfigMixin):
    """Loses nothing: folds 3 frames of 4x4 pixels into the channels of one latent. Of a class nobody knows."""

    @register_to_config
    def __init__(self, keep_frames: bool = True):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def encode(self, x):
        x = x.unflatten(4, (-1, 4)).unflatten(3, (-1, 4)).unflatten(2, (-1, 3))  # (B, C, t, 3, h, 4, w, 4)
        return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4) * self.weight

    def decode(self, z):
        x = z.unflatten(1, (3, 3, 4, 4)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        x = x.flatten(6, 7).flatten(4, 5).flatten(2, 3) / self.weight
        return x if self.config.keep_frames else x[:, :, 1:]


def make_pipe(name_or_vae) -> VideoReconstructionPipeline:
    vae = make_autoencoder(name_or_vae) if isinstance(name_or_vae, str) else name_or_vae
    pipe = VideoReconstructionPipeline(vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe


SLOW = (
    "vidtok_fsq",
    "vidtok_noncausal",
    "kvae_video",
    "flux_2",
    "hunyuan_image",
    "hunyuan_image_refiner",
    "kvae",
    "consistency_decoder",
    "kandinsky_6_sr",
)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in AUTOENCODERS],
)
def any_pipe(request):
    return make_pipe(request.param)


@pytest.fixture(scope="module")
def wan_pipe():
    return make_pipe("wan")


@pytest.fixture(scope="module")
def kl_3d_pipe():
    return make_pipe("kl_3d")


@pytest.fixture(scope="module")
def frame_select_pipe():
    return make_pipe("frame_select")


def clips(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def reconstruct(pipe, video, **options) -> torch.Tensor:
    """Reconstruction as `(B, C, T, H, W)` in [-1, 1]."""
    return pipe(video, output_type="pt", **options).frames.transpose(1, 2) * 2 - 1


# Sizes


@pytest.mark.parametrize("size", [(1, 8, 9), (6, 20, 36)], ids=str)
def test_shape_in_is_shape_out(any_pipe, size):
    output = any_pipe(clips(1, 3, *size), output_type="pt")
    assert output.frames.shape == output.original.shape == (1, size[0], 3, *size[1:])


def test_no_frame_is_lost(any_pipe):
    video = clips(1, 3, 6, 20, 36)
    other = video.clone()
    other[:, :, -1] *= -1
    change = (reconstruct(any_pipe, video) - reconstruct(any_pipe, other)).abs()
    assert change[:, :, -1].max() > 0


@pytest.mark.slow
def test_allegro_runs_in_tiles_and_stays_as_it_was():
    pipe = make_pipe(allegro().eval())
    output = pipe(clips(1, 3, 2, 30, 50), output_type="pt")
    assert output.frames.shape == (1, 2, 3, 30, 50)
    assert not pipe.vae.use_tiling


@pytest.mark.parametrize("name", ["kl_3d", "frame_select", "hunyuan_video_15", "kl", "temporal_decoder"])
def test_batch_mates_do_not_matter(name):
    pipe, video = make_pipe(name), clips(2, 3, 6, 20, 36)
    torch.testing.assert_close(reconstruct(pipe, video)[1:], reconstruct(pipe, video[1:]), rtol=1e-4, atol=1e-5)


# Models whose own `forward` takes clips in [-1, 1] and pads nothing.
PLAIN = {
    "kl_3d": 5,
    "wan": 5,
    "wan_22": 5,
    "ltx": 5,
    "ltx_2": 9,
    "hunyuan_video": 5,
    "hunyuan_video_15": 5,
    "cogvideox": 9,
    "mochi": 7,
    "magvit": 5,
    "vidtok": 5,
    "cosmos": 9,
    "kvae_video": 9,
}


@torch.no_grad()
@pytest.mark.parametrize("name", PLAIN)
def test_a_clip_that_fits_is_what_the_model_itself_makes_of_it(name):
    pipe, video = make_pipe(name), clips(1, 3, PLAIN[name], 32, 48)
    expected = pipe.vae(video, sample_posterior=False).sample.clamp(-1, 1)
    torch.testing.assert_close(reconstruct(pipe, video), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["kl", "asymmetric_kl", "vq"])
def test_image_models_take_frame_by_frame(name):
    pipe, video = make_pipe(name), clips(1, 3, 11, 16, 24)
    expected = pipe.vae(video[0].transpose(0, 1)).sample.clamp(-1, 1)
    torch.testing.assert_close(reconstruct(pipe, video)[0].transpose(0, 1), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_temporal_decoder_decodes_clips_of_images():
    pipe, video = make_pipe("temporal_decoder"), clips(2, 3, 3, 16, 24)
    expected = pipe.vae(video.transpose(1, 2).flatten(0, 1), num_frames=3).sample.clamp(-1, 1)
    result = reconstruct(pipe, video).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_minimax_h3_gets_pixels_normalised_as_it_was_trained():
    pipe, video = make_pipe("minimax_h3"), clips(1, 3, 22, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = (pipe.vae(((video + 1) / 2 - mean) / std).sample * std + mean).clamp(0, 1) * 2 - 1
    torch.testing.assert_close(reconstruct(pipe, video), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("class_name", "size", "padded"),
    [
        ("AutoencoderKLWan", (80, 719, 1281), (81, 720, 1288)),
        ("AutoencoderKLLTXVideo", (10, 480, 720), (17, 480, 736)),
        ("AutoencoderKLLTX2Video", (10, 20, 720), (17, 64, 736)),
        ("AutoencoderKLHunyuanVideo", (3, 9, 16), (5, 16, 16)),
        ("AutoencoderKLCogVideoX", (46, 480, 720), (48, 480, 720)),
        ("AutoencoderKLCogVideoX", (49, 480, 720), (49, 480, 720)),
        ("AutoencoderKLMochi", (2, 480, 848), (7, 480, 848)),
        ("AutoencoderKLMagvit", (6, 384, 672), (9, 384, 672)),
        ("AutoencoderKLCosmos", (10, 704, 1280), (17, 704, 1280)),
        ("AutoencoderVidTok", (16, 256, 256), (17, 256, 256)),
        ("AutoencoderKLAllegro", (25, 321, 100), (40, 520, 320)),
    ],
)
def test_sizes_at_default_configuration(class_name, size, padded):
    with torch.device("meta"):
        vae = getattr(diffusers, class_name)()
    assert geometry_of(vae).padded_size(*size) == padded


@pytest.mark.parametrize("name", ["wan", "ltx_2", "hunyuan_video_15", "cosmos", "magvit", "kl"])
def test_probing_finds_the_sizes_that_the_rules_know(name):
    vae = make_autoencoder(name)
    probed, known = probe_geometry(vae), geometry_of(vae)
    assert probed.frames == known.frames
    assert (probed.height.step, probed.per_frame) == (known.height.step, known.per_frame)


def test_model_of_an_unknown_class_is_probed():
    pipe, video = make_pipe(FoldingAutoencoder()), clips(2, 3, 7, 18, 21)
    torch.testing.assert_close(reconstruct(pipe, video), video)
    latents = pipe(video, output_type="latent").frames
    assert latents.shape == (2, 144, 3, 5, 6)


def test_model_that_loses_frames_is_refused():
    with pytest.raises(ValueError, match="Cannot tell which sizes FoldingAutoencoder takes"):
        make_pipe(FoldingAutoencoder(keep_frames=False))(clips(1, 3, 4, 8, 8))


def test_another_size_than_expected_is_an_error_with_both():
    class Lossy(AutoencoderKLWan):
        def decode(self, z):
            return super().decode(z).sample[:, :, 1:]

    vae = Lossy(base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    with pytest.raises(ValueError, match=r"Lossy was given .* \(5, 24, 40\) and returned one of \(4, 24, 40\)"):
        make_pipe(vae)(clips(1, 3, 4, 20, 36))


def test_geometry_tells_sizes(wan_pipe):
    assert wan_pipe.geometry.padded_size(6, 20, 36) == (9, 24, 40)
    assert wan_pipe.geometry.accepts_frames(13) and not wan_pipe.geometry.accepts_frames(12)


# Inputs and outputs


def test_output_types_agree(wan_pipe):
    video = clips(1, 3, 2, 16, 24)
    pt, array, pil = (wan_pipe(video, output_type=kind) for kind in ("pt", "np", "pil"))
    np.testing.assert_allclose(pt.frames.permute(0, 1, 3, 4, 2), array.frames, atol=1e-6)
    assert array.frames.dtype == np.float32 and 0 <= array.frames.min() and array.frames.max() <= 1
    assert len(pil.frames) == 1 and len(pil.frames[0]) == len(pil.original[0]) == 2
    np.testing.assert_allclose(np.asarray(pil.frames[0][1]) / 255, array.frames[0, 1], atol=0.51 / 255)


def test_latents_are_those_of_the_padded_clip(wan_pipe):
    video = clips(1, 3, 6, 20, 36)
    latents = wan_pipe(video, output_type="latent").frames
    with torch.no_grad():
        expected = wan_pipe.vae.encode(pad_clip(video, (9, 24, 40))).latent_dist.mode()
    torch.testing.assert_close(latents, expected)


def test_tuple_has_the_fields_of_the_output(wan_pipe):
    frames, original, metrics, keep_mask, fps = wan_pipe(clips(1, 3, 2, 16, 16), return_dict=False, output_type="np")
    assert frames.shape == original.shape
    assert metrics is keep_mask is fps is None


def test_inputs_of_all_kinds_agree(wan_pipe):
    array = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    tensor = torch.from_numpy(array).permute(3, 0, 1, 2)[None] / 127.5 - 1
    images = [Image.fromarray(frame) for frame in array]
    expected = wan_pipe(tensor, output_type="np").frames
    for video in (array, array.astype(np.float32) / 255, images, iter(images), [images]):
        np.testing.assert_allclose(wan_pipe(video, output_type="np").frames, expected, atol=1e-5)
    assert wan_pipe([images, images], output_type="np").frames.shape == (2, *expected.shape[1:])


def test_image_is_a_clip_of_one_frame(wan_pipe):
    array = np.random.default_rng(0).integers(0, 256, (17, 24, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    expected = wan_pipe([image], output_type="np").frames
    tensor = torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1
    for given in (image, array, tensor, [image]):
        np.testing.assert_allclose(wan_pipe(image=given, output_type="np").frames, expected, atol=1e-5)
    assert wan_pipe(image=[image, image], output_type="np").frames.shape == (2, 1, 17, 24, 3)


def test_metrics_of_every_clip():
    pipe, video = make_pipe(FoldingAutoencoder()), clips(2, 3, 4, 16, 24)
    metrics = pipe(video, compute_metrics=True).metrics
    assert [clip["psnr"] for clip in metrics] == [100, 100]
    assert [clip["num_frames"] for clip in metrics] == [4, 4]


@pytest.mark.parametrize("name", ["kl_3d", "frame_select", "ltx_timestep_conditioned", "hunyuan_video", "kl", "tiny"])
def test_bfloat16_is_close_to_float32(name):
    pipe, video = make_pipe(name), clips(1, 3, 6, 20, 36)
    expected = reconstruct(pipe, video)
    result = reconstruct(pipe.to(torch.bfloat16), video)
    assert result.dtype == torch.float32
    assert (result - expected).abs().mean() < 0.1 * expected.std()


@torch.no_grad()
def test_posterior_is_drawn_on_demand(wan_pipe):
    video = clips(2, 3, 5, 16, 16)
    generator = torch.Generator().manual_seed(1)
    drawn = wan_pipe(video, sample_posterior=True, generator=generator, output_type="latent").frames
    expected = wan_pipe.vae.encode(video).latent_dist.sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn, expected)
    assert not torch.equal(drawn, wan_pipe(video, output_type="latent").frames)
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    same = wan_pipe(video[[0, 0]], sample_posterior=True, generator=generators, output_type="latent").frames
    torch.testing.assert_close(same[0], same[1])


def test_timestep_conditioned_decoder_is_told_its_timestep():
    pipe, video = make_pipe("ltx_timestep_conditioned"), clips(1, 3, 5, 16, 16)
    without = reconstruct(pipe, video)
    told = reconstruct(pipe, video, decode_timestep=0.5, decode_noise_scale=0.0)
    noisy = [
        reconstruct(pipe, video, decode_timestep=0.5, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert (told - without).abs().max() > 1e-4
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])


# Chunks


@pytest.mark.parametrize("chunk_frames", [4, 8])
@pytest.mark.parametrize("name", ["kl_3d", "kl_3d_first_frame_alone"])
def test_chunks_of_autoencoder_kl_3d_are_exact(name, chunk_frames):
    kl_3d_pipe, video = make_pipe(name), clips(2, 3, 14, 20, 36)
    expected = reconstruct(kl_3d_pipe, video)
    torch.testing.assert_close(reconstruct(kl_3d_pipe, video, chunk_frames=chunk_frames), expected, rtol=0, atol=1e-5)
    latents = [kl_3d_pipe(video, chunk_frames=n, output_type="latent").frames for n in (None, chunk_frames)]
    torch.testing.assert_close(*latents, rtol=0, atol=1e-5)


def test_chunks_of_other_models_are_clips_of_their_own(wan_pipe):
    video = clips(1, 3, 12, 16, 24)
    result = reconstruct(wan_pipe, video, chunk_frames=5)
    expected = [reconstruct(wan_pipe, video[:, :, start : start + 5]) for start in (0, 5, 10)]
    torch.testing.assert_close(result, torch.cat(expected, dim=2))


@pytest.mark.parametrize(
    ("name", "chunk_frames", "message"),
    [
        ("wan", 4, r"AutoencoderKLWan takes at once, 1, 5, 9, 13, 17, \.\.\., got 4; the next is 5\."),
        ("cogvideox", 4, "takes at once, 1, 8, 9, 16, 17"),
        ("kl_3d", 6, r"AutoencoderKL3D takes at once, 4, 8, 12, 16, 20, \.\.\., got 6; the next is 8\."),
        ("kl_3d", 0, "got 0"),
        ("frame_select", 4, "windows of its own `clip_num_frames`, 4"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(name, chunk_frames, message):
    with pytest.raises(ValueError, match=message):
        make_pipe(name)(clips(1, 3, 5, 16, 16), chunk_frames=chunk_frames)


def test_frame_wise_models_lose_nothing_by_chunks():
    pipe, video, starts = make_pipe("kl"), clips(1, 3, 35, 16, 24), []

    def callback(pipe, index, start, tensors):
        starts.append(start)
        return {}

    result = reconstruct(pipe, video, callback_on_step_end=callback)
    assert starts == [0, 16, 32]
    torch.testing.assert_close(result, reconstruct(pipe, video, chunk_frames=35), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "shorter"), [("kl", 8), ("kl_3d", 12)])
def test_memory_that_runs_out_is_tried_once_with_less(monkeypatch, caplog, name, shorter):
    pipe, video, lengths = make_pipe(name), clips(1, 3, 40, 16, 24), []
    expected = reconstruct(pipe, video)

    def callback(pipe, index, start, tensors):
        lengths.append(start)
        if len(lengths) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return {}

    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    result = reconstruct(pipe, video, callback_on_step_end=callback)
    assert lengths[:3] == [0, 0, shorter]
    assert "Memory ran out with" in caplog.text and f"trying {shorter} frames at a time" in caplog.text
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_memory_that_runs_out_twice_is_an_error(kl_3d_pipe):
    def callback(pipe, index, start, tensors):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        kl_3d_pipe(clips(1, 3, 40, 16, 24), callback_on_step_end=callback)


def test_callback_sees_every_chunk_and_may_change_its_latents(wan_pipe):
    video, seen = clips(1, 3, 12, 16, 16), []

    def callback(pipe, index, start, tensors):
        seen.append((index, start, tensors["latents"].shape[2]))
        return {"latents": torch.zeros_like(tensors["latents"])}

    result = reconstruct(wan_pipe, video, chunk_frames=5, callback_on_step_end=callback)
    assert seen == [(0, 0, 2), (1, 5, 2), (2, 10, 2)]
    torch.testing.assert_close(result[:, :, :5], result[:, :, 5:10])


@pytest.mark.parametrize(("name", "chunk_frames"), [("wan", 5), ("kl_3d", 4)])
def test_interrupted_output_ends_with_its_chunk(name, chunk_frames):
    def callback(pipe, index, start, tensors):
        pipe._interrupt = index == 1
        return {}

    pipe = make_pipe(name)
    output = pipe(
        clips(1, 3, 20, 16, 16),
        chunk_frames=chunk_frames,
        output_type="pt",
        callback_on_step_end=callback,
        compute_metrics=True,
    )
    assert output.frames.shape == output.original.shape == (1, 2 * chunk_frames, 3, 16, 16)
    assert output.metrics[0]["num_frames"] == 2 * chunk_frames


# Frame selection


@torch.no_grad()
def test_frames_are_selected_on_demand(frame_select_pipe):
    video = clips(2, 3, 7, 16, 16)
    output = frame_select_pipe(video, mode="uniform", num_frames=3, output_type="pt", compute_metrics=True)
    assert output.keep_mask.sum(dim=1).tolist() == [3, 3]
    expected = frame_select_pipe.vae(video, keep_mask=output.keep_mask).sample.clamp(-1, 1)
    torch.testing.assert_close(output.frames.transpose(1, 2) * 2 - 1, expected, rtol=1e-4, atol=1e-5)
    assert output.metrics[0]["keep_rate"] == pytest.approx(3 / 7)


@pytest.mark.parametrize(("mode", "num_frames"), [("uniform", 2), ("top_k", 4), ("systematic", 3)])
def test_every_window_keeps_a_frame_and_shows_its_clip(frame_select_pipe, mode, num_frames):
    first, other = (clips(1, 3, 8, 16, 16, seed=seed) for seed in (0, 1))
    output = frame_select_pipe(first, mode=mode, num_frames=num_frames, output_type="pt")
    assert output.keep_mask.sum() == num_frames and output.keep_mask.unflatten(1, (2, 4)).any(dim=2).all()
    same = frame_select_pipe(other, mode=mode, num_frames=num_frames, output_type="pt").frames == output.frames
    assert not same.unflatten(1, (2, 4)).flatten(2).all(dim=2).any()


def test_fewer_frames_than_windows_are_refused_with_both_numbers(frame_select_pipe):
    with pytest.raises(ValueError, match="must be from 2, one for each window, to the clip's 8 frames, got 1"):
        frame_select_pipe(clips(1, 3, 8, 16, 16), mode="uniform", num_frames=1)


def test_all_frames_are_kept_by_default(frame_select_pipe):
    video = clips(1, 3, 6, 16, 16)
    assert frame_select_pipe(video).keep_mask is None
    everything = reconstruct(frame_select_pipe, video, mode="uniform", rate=1.0)
    torch.testing.assert_close(reconstruct(frame_select_pipe, video), everything)


def test_frames_larger_than_the_models_are_tiled_for_the_call(frame_select_pipe):
    video = clips(1, 3, 3, 24, 40)
    result = reconstruct(frame_select_pipe, video)
    assert not frame_select_pipe.vae.use_tiling
    frame_select_pipe.vae.enable_tiling()
    expected = reconstruct(frame_select_pipe, video)
    assert frame_select_pipe.vae.use_tiling
    frame_select_pipe.vae.disable_tiling()
    torch.testing.assert_close(result, expected)


# The rest of diffusers


@pytest.mark.parametrize(
    ("name", "library", "class_name"),
    [("wan", "diffusers", "AutoencoderKLWan"), ("kl_3d", "diffusers_vidvae", "AutoencoderKL3D")],
)
@pytest.mark.parametrize("loader", [VideoReconstructionPipeline, DiffusionPipeline])
def test_saved_pipeline_loads(tmp_path, name, library, class_name, loader):
    pipe, video = make_pipe(name), clips(1, 3, 3, 16, 24)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vae"] == [library, class_name]
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is VideoReconstructionPipeline and type(loaded.vae).__name__ == class_name
    torch.testing.assert_close(reconstruct(loaded, video), reconstruct(pipe, video))


def test_vae_moves_over_from_other_pipelines(frame_select_pipe):
    compression = VideoCompressionPipeline(frame_select_pipe.vae)
    assert VideoReconstructionPipeline.from_pipe(compression).vae is compression.vae
    assert VideoCompressionPipeline.from_pipe(frame_select_pipe).vae is frame_select_pipe.vae
    wan = WanPipeline(tokenizer=None, text_encoder=None, vae=make_autoencoder("wan"), scheduler=None)
    assert VideoReconstructionPipeline.from_pipe(wan).vae is wan.vae


def test_offloading_knows_every_component(wan_pipe):
    assert set(wan_pipe.model_cpu_offload_seq.split("->")) == set(wan_pipe.components)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`video` or `image`, got neither"),
        ({"video": clips(1, 3, 2, 16, 16), "image": clips(1, 3, 16, 16)}, "not both"),
        ({"video": clips(1, 3, 2, 16, 16), "output_type": "jpg"}, "`output_type` must be one of .* got 'jpg'"),
        ({"video": clips(1, 4, 2, 16, 16)}, r"\(B, C, T, H, W\) .* got .* \(1, 4, 2, 16, 16\)"),
        ({"video": [np.zeros((2, 16, 16, 3)), np.zeros((3, 16, 16, 3))]}, r"\(2, 16, 16\), clip 1 has \(3, 16, 16\)"),
        ({"video": clips(1, 3, 2, 16, 16) * 100}, "lie in \\[-1, 1\\]"),
        ({"video": clips(1, 3, 2, 16, 16), "fps": -24}, "`fps` must be positive, got -24"),
        ({"video": 3}, "A video must be .* got int"),
        ({"image": [np.zeros((16, 16, 3)), np.zeros((16, 8, 3))]}, r"\(1, 16, 16\), clip 1 has \(1, 16, 8\)"),
        ({"image": []}, "An empty list holds no image"),
        ({"video": clips(1, 3, 2, 16, 16), "mode": "top_k"}, "AutoencoderKLWan does not select frames"),
        ({"video": clips(1, 3, 2, 16, 16), "rate": 0.5}, "need a `mode`"),
        ({"video": clips(1, 3, 2, 16, 16), "decode_timestep": 0.05}, "that of AutoencoderKLWan is not"),
        (
            {"video": clips(1, 3, 2, 16, 16), "compute_metrics": True, "output_type": "latent"},
            "`compute_metrics` needs pixels",
        ),
        (
            {"video": clips(1, 3, 2, 16, 16), "callback_on_step_end_tensor_inputs": ["prompt"]},
            r"among \['latents', 'keep_mask'\], got \['prompt'\]",
        ),
    ],
)
def test_bad_arguments_are_refused(wan_pipe, options, message):
    with pytest.raises(ValueError, match=message):
        wan_pipe(**options)


def test_model_without_posterior_is_not_drawn_from():
    with pytest.raises(ValueError, match="AutoencoderTiny has no posterior to draw from"):
        make_pipe("tiny")(clips(1, 3, 1, 16, 16), sample_posterior=True)


def test_unknown_mode_is_refused(frame_select_pipe):
    with pytest.raises(ValueError, match="`mode` must be None or one of .* got 'best'"):
        frame_select_pipe(clips(1, 3, 2, 16, 16), mode="best")
