from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusers_vidvae import CompressedVideo, FrameSelectVAE, FsvError, VideoCompressionPipeline
from diffusers_vidvae.media import MediaError, MediaWarning, VideoReader, VideoWriter
from diffusers_vidvae.models.clip_windows import clip_windows
from diffusers_vidvae.models.frame_selection import distribute_frames


CLIP_NUM_FRAMES = 6


def tiny_vae(**changes) -> FrameSelectVAE:
    torch.manual_seed(0)
    config = {
        "sample_size": 32,
        "patch_size": 8,
        "latent_channels": 6,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "ff_inner_dim": 16,
        "max_num_frames": 12,
        "clip_num_frames": CLIP_NUM_FRAMES,
        "refiner_channels": 4,
        "refiner_levels": 1,
        "hidden_size": 16,
        "rope_type": "axial",
        "keep_head": "pooled",
    }
    vae = FrameSelectVAE(**{**config, **changes}).eval()
    # A fresh refiner adds nothing and a fresh keep head says nothing.
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return vae


def make_pipeline(**changes) -> VideoCompressionPipeline:
    pipeline = VideoCompressionPipeline(tiny_vae(**changes))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> VideoCompressionPipeline:
    return make_pipeline()


def random_clip(num_frames: int, height: int = 32, width: int = 32, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    return 2 * torch.rand(batch, 3, num_frames, height, width, generator=generator) - 1


def uint8_clip(num_frames: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(num_frames).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


# What goes in comes out


@pytest.mark.parametrize("num_frames", [1, 5, 6, 7, 12, 13])
def test_every_frame_comes_back(pipeline, num_frames):
    output = pipeline(random_clip(num_frames), output_type="pt")
    assert output.frames.shape == (1, num_frames, 3, 32, 32)
    assert output.compressed[0].header.num_frames == num_frames


@pytest.mark.parametrize("size_mode", ["auto", "pad", "tile", "resize"])
@pytest.mark.parametrize("size", [(32, 32), (9, 61), (47, 33)])
def test_clips_come_back_at_their_own_size(pipeline, size, size_mode):
    output = pipeline(random_clip(2, *size), size_mode=size_mode, output_type="pt")
    assert output.frames.shape == (1, 2, 3, *size)


@pytest.mark.parametrize(("size", "size_mode"), [((20, 32), "pad"), ((20, 40), "tile"), ((40, 40), "resize")])
def test_a_model_of_one_size_takes_clips_of_any(size, size_mode):
    output = make_pipeline(keep_head="latent", rope_type="raster")(
        random_clip(2, *size), size_mode=size_mode, output_type="pt"
    )
    assert output.frames.shape == (1, 2, 3, *size)


@pytest.mark.parametrize("num_frames", [5, 6, 13])
def test_windows_give_what_the_model_gives_for_the_whole_clip(pipeline, num_frames):
    clip = random_clip(num_frames)
    vae = pipeline.vae
    with torch.no_grad():
        posterior, keep_probs, _ = vae.encode(clip, return_dict=False)
        masks = [
            vae.select_frames(keep_probs[:, window.first_new : window.stop])
            for window in clip_windows(num_frames, CLIP_NUM_FRAMES)
        ]
        keep_mask = torch.cat(masks, dim=1)
        (expected,) = vae.decode(posterior.mode(), keep_mask, return_dict=False)

    output = pipeline(clip, mode="systematic", quantize="fp32", output_type="pt")
    assert torch.equal(output.compressed[0].keep_mask, keep_mask[0])
    expected = (expected / 2 + 0.5).clamp(0, 1).transpose(1, 2)
    assert torch.allclose(output.frames, expected, atol=1e-5)


@pytest.mark.parametrize("quantize", ["bf16", "fp16", "fp32", "int8", "int4"])
def test_compressing_to_a_file_is_compressing_in_memory(pipeline, tmp_path, quantize):
    clip = random_clip(13, 20, 41)
    in_memory = pipeline.compress(clip, quantize=quantize)
    streamed = pipeline.compress_file(clip, tmp_path / "clip.fsv", quantize=quantize)
    in_memory.save(tmp_path / "saved.fsv")

    frames = [
        pipeline.decompress(compressed, output_type="pt").frames
        for compressed in (in_memory, streamed, tmp_path / "saved.fsv", tmp_path / "clip.fsv")
    ]
    assert all(torch.equal(frames[0], other) for other in frames[1:])


def test_a_file_compresses_to_what_its_frames_compress_to(pipeline, tmp_path):
    clip = uint8_clip(13, 24, 34)
    with VideoWriter(tmp_path / "clip.mkv", 25, lossless=True) as writer:
        writer.write(clip)
    from_file = pipeline.compress(tmp_path / "clip.mkv")
    assert from_file.header.fps == 25

    sources = (clip, list(clip), iter(clip), [Image.fromarray(frame) for frame in clip], clip.astype(np.float32) / 255)
    for source in sources:
        from_memory = pipeline.compress(source)
        for window, expected in zip(from_memory.windows, from_file.windows, strict=True):
            assert torch.allclose(window.latents, expected.latents, atol=1e-5)
            assert torch.equal(window.gaps, expected.gaps)


def test_batch_mates_do_not_matter(pipeline):
    clips = random_clip(8, 24, 24, batch=2)
    together = pipeline(clips, output_type="np")
    alone = pipeline(clips[1:], output_type="np")
    assert np.array_equal(together.frames[1:], alone.frames)
    assert together.statistics[1] == alone.statistics[0]


def test_clips_of_a_batch_may_differ_in_shape(pipeline):
    output = pipeline([uint8_clip(3, 16, 24), uint8_clip(8, 40, 16)], output_type="np")
    assert [frames.shape for frames in output.frames] == [(3, 16, 24, 3), (8, 40, 16, 3)]


def test_output_types_agree(pipeline):
    compressed = pipeline.compress(random_clip(8, 16, 24))
    pt, array, pil, latents = (pipeline.decompress(compressed, kind).frames for kind in ("pt", "np", "pil", "latent"))
    assert np.allclose(pt.permute(0, 1, 3, 4, 2).numpy(), array)
    assert len(pil) == 1 and np.abs(np.stack(pil[0]) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6
    assert latents.shape == (1, 6, 8, 2, 3)
    assert torch.equal(latents[0].abs().sum(dim=(0, 2, 3)) > 0, compressed.keep_mask)


def test_outputs_come_as_tuples_too(pipeline):
    frames, compressed, statistics = pipeline(random_clip(2), output_type="pt", return_dict=False)
    assert frames.shape == (1, 2, 3, 32, 32)
    assert compressed[0].kept_frames == statistics[0]["kept_frames"]


def test_saving_and_loading_a_pipeline_changes_nothing(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    expected = pipeline(random_clip(3), output_type="pt").frames
    for loader in (VideoCompressionPipeline, DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert isinstance(loaded, VideoCompressionPipeline)
        assert torch.equal(loaded(random_clip(3), output_type="pt").frames, expected)


def test_models_in_half_precision_run():
    pipeline = make_pipeline().to(torch.bfloat16)
    output = pipeline(random_clip(2, 20, 20), size_mode="resize", output_type="np")
    assert output.frames.shape == (1, 2, 20, 20, 3) and output.frames.dtype == np.float32
    assert output.compressed[0].header.latent_dtype == "bfloat16"


# Constant memory


def test_frames_are_read_no_further_than_they_are_needed(pipeline, tmp_path):
    frames = uint8_clip(25)
    num_read = 0

    def read():
        nonlocal num_read
        for frame in frames:
            num_read += 1
            yield frame

    ahead = []

    def after_window(pipe, index, start, tensors):
        ahead.append(num_read - start)
        return {}

    pipeline.compress(read(), output=tmp_path / "clip.fsv", callback_on_step_end=after_window)
    assert max(ahead) <= CLIP_NUM_FRAMES + 1


def test_decoding_reads_one_window_at_a_time(pipeline, tmp_path):
    compressed = pipeline.compress(random_clip(19), output=tmp_path / "clip.fsv")
    lengths = [len(frames) for frames in pipeline.decompress_frames(compressed)]
    assert lengths == [6, 6, 6, 1]


# Which frames are kept


@pytest.mark.parametrize("budget", [3, 4, 7, 13])
@pytest.mark.parametrize("mode", ["systematic", "top_k", "uniform"])
def test_a_budget_is_met_exactly(pipeline, budget, mode):
    compressed = pipeline.compress(random_clip(13), mode=mode, num_frames=budget)
    assert compressed.kept_frames == budget


def test_a_rate_holds_for_the_whole_clip(pipeline):
    assert pipeline.compress(random_clip(30), rate=0.25).kept_frames == 8
    assert pipeline.compress(random_clip(30), rate=1.0).kept_frames == 30


@given(lengths=st.lists(st.just(32), min_size=0, max_size=40), last=st.integers(1, 32), share=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_budgets_are_shared_out_whole_and_fairly(lengths, last, share):
    lengths = [*lengths, last]
    budget = len(lengths) + int(share * (sum(lengths) - len(lengths)))
    counts = distribute_frames(budget, lengths)
    assert sum(counts) == budget
    assert all(1 <= count <= length for count, length in zip(counts, lengths, strict=True))
    assert all(abs(count - budget * length / sum(lengths)) < 1 for count, length in zip(counts, lengths, strict=True))


def test_generators_make_random_choices_repeatable(pipeline):
    def keep_mask(seed):
        return pipeline.compress(
            random_clip(24), mode="bernoulli", generator=torch.Generator().manual_seed(seed)
        ).keep_mask

    assert torch.equal(keep_mask(1), keep_mask(1))
    assert not torch.equal(keep_mask(1), keep_mask(2))


def test_every_window_keeps_a_frame(pipeline):
    compressed = pipeline.compress(random_clip(13), mode="threshold", threshold=1.0)
    assert [window.num_kept for window in compressed.windows] == [1, 1, 1]


def test_a_callback_may_choose_the_frames(pipeline):
    def keep_first(pipe, index, start, tensors):
        assert tensors["keep_probs"].shape == tensors["keep_mask"].shape
        return {"keep_mask": torch.arange(tensors["keep_mask"].shape[1])[None] == 0}

    compressed = pipeline.compress(
        random_clip(13),
        callback_on_step_end=keep_first,
        callback_on_step_end_tensor_inputs=["keep_probs", "keep_mask"],
    )
    assert compressed.positions.tolist() == [0, 6, 12]


def test_interrupting_ends_the_clip_after_the_window(pipeline):
    def stop(pipe, index, start, tensors):
        pipe._interrupt = True
        return {}

    assert pipeline.compress(random_clip(13), callback_on_step_end=stop).header.num_frames == 6


# Statistics


def test_statistics_count_the_whole_file(pipeline, tmp_path):
    compressed = pipeline.compress(random_clip(12, 32, 32), num_frames=4, fps=Fraction(30000, 1001))
    compressed.save(tmp_path / "clip.fsv")
    statistics = pipeline.decompress(compressed, output_type="latent").statistics[0]
    assert statistics["kept_frames"] == 4
    assert statistics["keep_rate"] == pytest.approx(4 / 12)
    assert statistics["value_ratio"] == pytest.approx(3 * 12 * 32 * 32 / (4 * 6 * 4 * 4))
    assert statistics["bits_per_pixel"] == pytest.approx(
        8 * (tmp_path / "clip.fsv").stat().st_size / (12 * 32 * 32), rel=0.01
    )


# The model's tiling is the caller's business


@pytest.mark.parametrize("size_mode", ["pad", "tile"])
@pytest.mark.parametrize("enabled", [False, True])
def test_tiling_is_as_it_was_afterwards(pipeline, size_mode, enabled):
    vae = pipeline.vae
    if enabled:
        vae.enable_tiling(tile_sample_size=16, tile_overlap=0.5)
    before = vae.use_tiling, vae.tile_sample_size, vae.tile_overlap
    try:
        pipeline(random_clip(1, 48, 40), size_mode=size_mode, output_type="latent")
        assert (vae.use_tiling, vae.tile_sample_size, vae.tile_overlap) == before
    finally:
        vae.disable_tiling()
        vae.tile_sample_size, vae.tile_overlap = 32, 0.25


def test_a_clip_is_decoded_in_the_tiles_it_was_encoded_in(pipeline):
    pipeline.vae.enable_tiling(tile_sample_size=16, tile_overlap=0.5)
    try:
        compressed = pipeline.compress(random_clip(1, 48, 40))
        expected = pipeline.decompress(compressed, "pt").frames
    finally:
        pipeline.vae.disable_tiling()
        pipeline.vae.tile_sample_size, pipeline.vae.tile_overlap = 32, 0.25
    assert (compressed.header.tile.size, compressed.header.tile.overlap) == (16, 8)
    assert torch.equal(pipeline.decompress(compressed, "pt").frames, expected)


# Files


def test_a_clip_is_decoded_into_a_video_file(pipeline, tmp_path):
    compressed = pipeline.compress(uint8_clip(8, 20, 30), fps=12)
    pipeline.decompress_file(compressed, tmp_path / "clip.mkv", lossless=True)
    with VideoReader(tmp_path / "clip.mkv") as reader:
        written = reader.read().data
        assert (reader.info.fps, written.shape) == (12, (8, 20, 30, 3))
    assert np.array_equal(written, np.concatenate(list(pipeline.decompress_frames(compressed))))


def test_the_originals_files_are_decoded(pipeline, tmp_path):
    latents = torch.randn(1, 5, 16, 6)
    torch.save(
        {
            "compressed": latents,
            "selection_indices": torch.tensor([[1, 3, 0, 0, 0]]),
            "compression_mask": torch.tensor([[True, True, False, False, False]]),
            "original_num_frames": 5,
            "num_kept_frames": 2,
        },
        tmp_path / "clip.pt",
    )
    frames = pipeline.decompress(tmp_path / "clip.pt", "pt").frames

    dense = torch.zeros(1, 6, 5, 4, 4)
    dense[:, :, [1, 4]] = latents[:, :2].permute(0, 3, 1, 2).unflatten(3, (4, 4))
    with torch.no_grad():
        expected = pipeline.vae.decode(dense, torch.tensor([[False, True, False, False, True]])).sample
    assert torch.allclose(frames, (expected / 2 + 0.5).clamp(0, 1).transpose(1, 2), atol=1e-6)


def save_original(path, num_frames: int, positions: list[int]) -> None:
    """Writes what the original project writes."""
    latents = torch.randn(1, len(positions), 16, 6)
    gaps = torch.tensor(positions).diff(prepend=torch.zeros(1, dtype=torch.long))[None]
    content = {"compressed": latents, "selection_indices": gaps, "compression_mask": torch.ones_like(gaps).bool()}
    torch.save(content | {"original_num_frames": num_frames, "num_kept_frames": len(positions)}, path)


@torch.no_grad()
def test_original_clips_longer_than_a_window_decode_in_one_as_there(pipeline, tmp_path):
    save_original(tmp_path / "clip.pt", 11, [0])
    compressed = pipeline.open_compressed(tmp_path / "clip.pt")
    assert compressed.header.clip_num_frames == 11 > CLIP_NUM_FRAMES
    frames = pipeline.decompress(compressed, "pt").frames
    assert frames.shape == (1, 11, 3, 32, 32)
    save_original(tmp_path / "longer.pt", 13, [0])
    with pytest.raises(ValueError, match="windows of 13 frames, the model takes 12"):
        pipeline.decompress(tmp_path / "longer.pt")


def test_files_are_resampled_by_time(pipeline, tmp_path):
    with VideoWriter(tmp_path / "clip.mkv", 24, lossless=True) as writer:
        writer.write(uint8_clip(12))
    compressed = pipeline.compress(tmp_path / "clip.mkv", fps=12)
    assert (compressed.header.num_frames, compressed.header.fps) == (6, 12)


def test_uneven_times_are_announced(pipeline, tmp_path):
    with VideoWriter(tmp_path / "clip.mkv", 24, lossless=True) as writer:
        writer.write(uint8_clip(4), pts_seconds=[0.0, 0.1, 0.2, 0.6])
    with pytest.warns(MediaWarning, match="last from 100 to 400 ms"):
        compressed = pipeline.compress(tmp_path / "clip.mkv")
    assert compressed.header.num_frames == 4


def test_an_error_leaves_no_file(pipeline, tmp_path):
    def frames():
        yield from uint8_clip(8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.compress(frames(), output=tmp_path / "clip.fsv")
    compressed = pipeline.compress(uint8_clip(8))
    with pytest.raises(MediaError, match="ending"):
        pipeline.decompress_file(compressed, tmp_path / "clip.txt")
    assert list(tmp_path.iterdir()) == []


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "best"}, r"`mode` must be one of \('systematic', .*got 'best'"),
        ({"size_mode": "crop"}, r"`size_mode` must be one of .*got 'crop'"),
        ({"quantize": "int2"}, r"`quantize` must be one of .*got 'int2'"),
        ({"num_frames": 0}, "`num_frames` must be from 1 to .*got 0"),
        ({"num_frames": 2}, "`num_frames` must be from 3, one for each window, to the clip's 13 frames, got 2"),
        ({"num_frames": 14}, "to the clip's 13 frames, got 14"),
        ({"rate": 0.0}, r"`rate` must be in \(0, 1\], got 0.0"),
        ({"rate": 0.5, "num_frames": 4}, "`num_frames` or `rate`, not both, got 4 and 0.5"),
        ({"mode": "bernoulli", "rate": 0.5}, "do not apply to mode 'bernoulli'"),
        ({"fps": -1}, "`fps` must be positive, got -1"),
        ({"fps": float("inf")}, "`fps` must be positive, got inf"),
        ({"generator": [torch.Generator()] * 2}, "one for each of 1 clips, got 2"),
        ({"callback_on_step_end_tensor_inputs": ["gaps"]}, r"got \['gaps'\]"),
    ],
)
def test_bad_arguments_are_named(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline.compress(random_clip(13), **arguments)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (random_clip(1)[:, :2], r"shape \(B, C, T, H, W\) .* got .* \(1, 2, 1, 32, 32\)"),
        (255 * random_clip(1).abs(), r"lie in .-1, 1., got a float32 tensor .* with values from 0"),
        (random_clip(1) * float("nan"), "lie in .-1, 1., got .* from nan to nan"),
        (uint8_clip(1).astype(np.float64), "lie in .0, 1., got a float64 array"),
        (uint8_clip(1).transpose(0, 3, 1, 2), r"shape \(T, H, W, C\) .* got .* \(1, 3, 32, 32\); `layout`"),
        ([], "at least one frame, got an empty list"),
        (
            [np.zeros((16, 16, 3), np.uint8), np.zeros((16, 24, 3), np.uint8)],
            "frame 0 of the clip is .16, 16., frame 1 is .16, 24",
        ),
        (7, "must be a path, .*a PIL image.*got int"),
        (random_clip(1, 7, 40), "frames of 40x7 are smaller than a patch of 8x8"),
        ("missing.mp4", "missing.mp4: no such file"),
    ],
)
def test_bad_clips_are_named(pipeline, video, message):
    with pytest.raises(ValueError, match=message):
        pipeline.compress(video)


def test_a_model_of_one_size_says_what_it_cannot_pad():
    with pytest.raises(ValueError, match="frames of 40x20 are larger than this model's 32x32; `size_mode` 'tile'"):
        make_pipeline(keep_head="latent").compress(random_clip(1, 20, 40), size_mode="pad")


def test_an_iterator_cannot_be_counted(pipeline):
    with pytest.raises(ValueError, match="an iterator does not tell its number of frames"):
        pipeline.compress(iter(uint8_clip(3)), num_frames=2)


def test_only_one_clip_goes_into_a_file(pipeline, tmp_path):
    with pytest.raises(ValueError, match="`output` takes one clip, got a batch of 2"):
        pipeline.compress(random_clip(1, batch=2), output=tmp_path / "clip.fsv")


def test_existing_files_are_kept(pipeline, tmp_path):
    (tmp_path / "clip.fsv").write_bytes(b"mine")
    with pytest.raises(FsvError, match=r"clip\.fsv: exists already"):
        pipeline.compress(random_clip(1), output=tmp_path / "clip.fsv")
    assert (tmp_path / "clip.fsv").read_bytes() == b"mine"
    pipeline.compress(random_clip(1), output=tmp_path / "clip.fsv", overwrite=True)
    assert CompressedVideo.load(tmp_path / "clip.fsv").header.num_frames == 1


def test_clips_of_another_model_are_refused(pipeline, tmp_path):
    compressed = pipeline.compress(random_clip(2), output=tmp_path / "clip.fsv")
    with pytest.raises(FsvError, match=r"clip\.fsv: latents of 6 channels .* the model has 4"):
        make_pipeline(latent_channels=4).decompress(compressed)
    with pytest.raises(FsvError, match=r"clip\.fsv: model_hash"):
        make_pipeline(num_decoder_layers=2).decompress(compressed)
    other = make_pipeline()
    torch.nn.init.normal_(other.vae.fill_token.weight)
    with pytest.raises(FsvError, match=r"clip\.fsv: model_.*: same config, other weights"):
        other.decompress(compressed)


def test_unknown_output_types_are_refused(pipeline):
    with pytest.raises(ValueError, match="`output_type` must be one of .*got 'jpg'"):
        pipeline.decompress(pipeline.compress(random_clip(1)), "jpg")
