"""Qualities, targets and any autoencoder through the compression pipeline."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from diffusers_vidvae import (
    AutoencoderKL3D,
    CompressedVideo,
    FrameSelectVAE,
    FsvError,
    VideoCompressionPipeline,
    VideoReconstructionPipeline,
    demo_model,
)
from diffusers_vidvae.autoencoders.latents_basis import measure_latents_basis, store_latents_basis
from diffusers_vidvae.codec import CodedFsvWriter, FsvHeader, FsvWriter, LatentWindow
from diffusers_vidvae.media import VideoWriter
from diffusers_vidvae.pipelines.compression_budget import first_that, operating_points, parse_size


def demo_pipeline(subfolder: str = "vae") -> VideoCompressionPipeline:
    model = {"vae": FrameSelectVAE, "autoencoder_kl_3d": AutoencoderKL3D}[subfolder]
    pipeline = VideoCompressionPipeline(model.from_pretrained(demo_model(), subfolder=subfolder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> VideoCompressionPipeline:
    return demo_pipeline()


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    """A disc that moves over a gradient, `(1, 3, 32, 64, 64)`."""
    row, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    frames = []
    for time in range(32):
        disc = ((row - 32) ** 2 + (column - 10 - time) ** 2 < 120).float()
        frames.append(torch.stack([row / 32 - 1, column / 32 - 1, 2 * disc - 1]))
    return torch.stack(frames, dim=1)[None]


def psnr(pipeline: VideoCompressionPipeline, compressed: CompressedVideo, clip: torch.Tensor) -> float:
    frames = pipeline.decompress(compressed, output_type="pt").frames[0].transpose(0, 1) * 2 - 1
    return float(10 * torch.log10(4 / (frames - clip[0]).square().mean()))


def test_all_frames_are_kept_unless_asked_otherwise(pipeline, clip):
    assert pipeline.compress(clip).kept_frames == 32
    assert pipeline.compress(clip, rate=0.25).kept_frames == 8
    assert pipeline.compress(clip, mode="systematic").kept_frames < 32


def test_quality_is_monotone_in_bytes_and_fidelity(pipeline, clip):
    videos = [pipeline.compress(clip, quality=quality) for quality in (0, 30, 60, 100)]
    sizes = [video.num_bytes for video in videos]
    fidelities = [psnr(pipeline, video, clip) for video in videos]
    assert sizes == sorted(sizes) and fidelities == sorted(fidelities)
    raw = pipeline.compress(clip, quantize="fp32")
    assert fidelities[-1] > psnr(pipeline, raw, clip) - 0.1
    assert sizes[2] < raw.num_bytes / 20


def test_a_coded_clip_is_the_same_in_memory_and_on_disk(pipeline, clip, tmp_path):
    in_memory = pipeline.compress(clip)
    on_disk = pipeline.compress_file(clip, tmp_path / "clip.fsv")
    assert in_memory.save(tmp_path / "saved.fsv").read_bytes() == (tmp_path / "clip.fsv").read_bytes()
    one, two = (pipeline.decompress(video, output_type="pt").frames for video in (in_memory, on_disk))
    assert torch.equal(one, two)


@pytest.mark.parametrize("options", [{}, {"rate": 0.25}], ids=["frames chosen", "rate given"])
def test_a_target_size_is_met_and_used(pipeline, clip, options):
    video = pipeline.compress(clip, target_size=1500, **options)
    assert 1300 < video.num_bytes <= 1500
    if options:
        assert video.kept_frames == 8


def test_a_target_of_bits_per_pixel_is_met(pipeline, clip, tmp_path):
    video = pipeline.compress(clip, target_bpp=0.05, output=tmp_path / "clip.fsv")
    assert video.bits_per_pixel <= 0.05 and (tmp_path / "clip.fsv").stat().st_size == video.num_bytes


def test_a_target_psnr_is_reached_with_fewer_bytes_than_the_best(pipeline, clip):
    best = pipeline.compress(clip, quality=100)
    target = psnr(pipeline, best, clip) - 1
    video = pipeline.compress(clip, target_psnr=target)
    assert target - 0.05 <= psnr(pipeline, video, clip) <= target + 0.5
    assert video.num_bytes < best.num_bytes / 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_size": 50}, r"cannot be met; the nearest that can is \d+ bytes\.$"),
        ({"target_bpp": 1e-4}, r"cannot be met; the nearest that can is 0\.\d+ bits per pixel\.$"),
        ({"target_psnr": 80.0}, r"cannot be met; the nearest that can is \d+\.\d\d dB\.$"),
        ({"quality": 101}, r"`quality` must be from 0 to 100, got 101"),
        ({"quality": -1}, r"`quality` must be from 0 to 100, got -1"),
        ({"target_size": 0}, r"`target_size` must be positive, got 0"),
        ({"quality": 50, "target_size": 900}, r"Give one of .*got quality and target_size"),
        ({"target_bpp": 0.1, "target_psnr": 20}, r"Give one of .*got target_bpp and target_psnr"),
        ({"quantize": "int8", "quality": 3}, r"Give one of .*got quantize and quality"),
    ],
)
def test_what_cannot_be_met_is_refused(pipeline, clip, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pipeline.compress(clip[:, :, :8], output=tmp_path / "clip.fsv", **options)
    assert not list(tmp_path.iterdir())


def test_sizes_for_people():
    texts = ["200kB", "1.5 MB", "4096", "2KiB", "7b"]
    assert [parse_size(text) for text in texts] == [200_000, 1_500_000, 4096, 2048, 7]
    for text in ("", "kB", "-5", "5 parsecs", "nan", "inf"):
        with pytest.raises(ValueError, match="is not a"):
            parse_size(text)


def test_the_search_finds_the_first_point_that_fits():
    points = operating_points(fixed_rate=False)
    for wanted in (0, 1, 200, len(points) - 2, len(points) - 1):
        assert first_that(points, lambda *p: points.index(p), lambda index, w=wanted: index >= w) == wanted


def test_files_in_another_basis_are_refused(pipeline, clip, tmp_path):
    pipeline.compress_file(clip[:, :, :8], tmp_path / "clip.fsv")
    other = demo_pipeline()
    store_latents_basis(other.vae, replace(other.latents_basis, name=""))
    changed = other.latents_basis.to_config()
    changed["unit"] = 2 * changed["unit"]
    other.vae.register_to_config(_latents_basis=changed)
    with pytest.raises(FsvError, match="clip.fsv: basis: written in the basis .*, the model has"):
        other.decompress(tmp_path / "clip.fsv")
    other.vae.register_to_config(_latents_basis=None)
    with pytest.raises(FsvError, match="the model has none"):
        other.decompress(tmp_path / "clip.fsv")


def test_files_of_other_weights_are_refused(pipeline, clip, tmp_path):
    pipeline.compress_file(clip[:, :, :8], tmp_path / "clip.fsv")
    other = demo_pipeline()
    for weight in other.vae.decoder.parameters():
        weight.data += 0.3 * weight.data.abs().mean() * torch.randn(weight.shape)
    with pytest.raises(FsvError, match="same config, other weights"):
        other.decompress(tmp_path / "clip.fsv")


def test_latents_that_are_not_finite_are_refused(clip):
    broken = demo_pipeline()
    next(broken.vae.parameters()).data.fill_(float("nan"))
    with pytest.raises((FsvError, ValueError), match="not finite"):
        broken.compress(clip[:, :, :4])


@pytest.mark.parametrize("kind", ["kl3d", "kl3d without basis", "images"])
def test_any_autoencoder_is_stored_and_comes_back(kind, clip, tmp_path):
    torch.manual_seed(0)
    if kind == "images":
        vae = AutoencoderKL(block_out_channels=(32, 32), latent_channels=4, sample_size=32, layers_per_block=1)
        vae.register_to_config(down_block_types=("DownEncoderBlock2D",) * 2)
        pipeline = VideoCompressionPipeline(vae.eval())
        pipeline.set_progress_bar_config(disable=True)
    else:
        pipeline = demo_pipeline("autoencoder_kl_3d")
        if "without" in kind:
            pipeline.vae.register_to_config(_latents_basis=None)
    clip = clip[:, :, :9, :60, :50]
    compressed = pipeline.compress_file(clip, tmp_path / "clip.fsv", quality=100)
    frames = pipeline.decompress(tmp_path / "clip.fsv", output_type="pt").frames[0]
    assert frames.shape == (9, 3, 60, 50) and compressed.header.num_frames == 9
    plain = VideoReconstructionPipeline(pipeline.vae)
    plain.set_progress_bar_config(disable=True)
    expected = torch.as_tensor(plain(clip, output_type="pt").frames[0])
    assert (frames - expected).square().mean().sqrt() < 0.02
    smaller = pipeline.compress(clip, quality=20)
    assert smaller.num_bytes < compressed.num_bytes
    with pytest.raises(ValueError, match="does not select frames, got rate"):
        pipeline.compress(clip, rate=0.5)


def test_long_clips_of_a_causal_model_stream(clip):
    pipeline = demo_pipeline("autoencoder_kl_3d")
    pipeline.vae.enable_temporal_chunking(8)
    compressed = pipeline.compress(clip, quality=100)
    assert len(compressed.windows) > 1
    frames = pipeline.decompress(compressed, output_type="pt").frames[0].transpose(0, 1) * 2 - 1
    with torch.no_grad():
        whole = pipeline.vae.decode(pipeline.vae.encode(clip).latent_dist.mode(), num_frames=32, height=64, width=64)
    assert (frames - whole.sample[0].clamp(-1, 1)).square().mean().sqrt() < 0.02


def test_a_basis_makes_files_smaller(clip, tmp_path):
    """Fewer bytes than channels as they are for a fidelity that is no worse, on a clip that was not measured."""
    with_basis, without = demo_pipeline(), demo_pipeline()
    without.vae.register_to_config(_latents_basis=None)
    coded, plain = with_basis.compress(clip, quality=20), without.compress(clip, quality=46)
    assert psnr(without, plain, clip) < psnr(with_basis, coded, clip)
    assert coded.num_bytes < plain.num_bytes


def test_a_measured_basis_survives_saving(tmp_path, clip):
    pipeline = demo_pipeline()
    frames = ((clip[0, :, :16].permute(1, 2, 3, 0) + 1) * 127.5).byte().numpy()
    with warnings.catch_warnings(), VideoWriter(tmp_path / "clip.mp4", 24) as writer:
        writer.write(frames)
    basis = measure_latents_basis(pipeline.vae, [tmp_path / "clip.mp4"])
    store_latents_basis(pipeline.vae, basis)
    pipeline.vae.save_pretrained(tmp_path / "vae")
    loaded = VideoCompressionPipeline(FrameSelectVAE.from_pretrained(tmp_path / "vae"))
    assert loaded.latents_basis.name == basis.name != demo_pipeline().latents_basis.name


@pytest.mark.parametrize("subfolder", ["vae", "autoencoder_kl_3d"])
def test_the_embedded_basis_fits_its_weights(subfolder):
    """`vidvae stats --update` renews it after a training: equal errors in its axes are equal errors of pixels."""
    pipeline = demo_pipeline(subfolder)
    vae, basis = pipeline.vae, pipeline.latents_basis
    generator = torch.Generator().manual_seed(0)
    sample = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, 8, generator=generator) * 2 - 1, size=(8, 64, 64))
    with torch.no_grad():
        latents = vae.encode(sample).latent_dist.mode()
        changes = []
        for axis in (0, 3):
            step = torch.zeros_like(latents)
            noise = torch.randn(latents.shape[2:], generator=generator)
            change = torch.from_numpy(basis.inverse[: basis.cycle.channels, axis])
            step[0] = change[:, None, None, None].float() * noise * 0.1
            decoded = [
                vae.decode(values, **decode_options(vae, sample)).sample for values in (latents, latents + step)
            ]
            changes.append(float((decoded[1] - decoded[0]).square().sum() / (0.01 * noise.square().sum())))
    assert all(0.3 < change < 3 for change in changes), changes


def decode_options(vae, sample: torch.Tensor) -> dict:
    if isinstance(vae, FrameSelectVAE):
        return {"keep_mask": torch.ones(1, sample.shape[2], dtype=torch.bool)}
    return {"num_frames": sample.shape[2], "height": sample.shape[3], "width": sample.shape[4]}


# Files that claim more than the model allows


def small_header(**changes) -> FsvHeader:
    fields = {"num_frames": 0, "height": 64, "width": 64, "model_height": 64, "model_width": 64, "clip_num_frames": 16}
    fields |= {"latent_channels": 24, "latent_height": 8, "latent_width": 8, "quantization": "int4"}
    return FsvHeader(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_num_frames": 65536}, "clip_num_frames: windows of 65536 frames, the model takes 64"),
        (
            {"size_fit": "tile", "tile": (4096, 8)},
            r"tile_size: tiles of 4096 pixels exceed the model's 128; `vae.enable_tiling\(4096\)` allows them",
        ),
        ({"latent_channels": 12}, "latents of 12 channels"),
    ],
)
def test_a_small_file_cannot_ask_for_any_memory(pipeline, tmp_path, changes, message):
    from diffusers_vidvae.codec import TileLayout

    if "tile" in changes:
        changes = changes | {"tile": TileLayout(*changes["tile"])}
    header = small_header(**changes)
    length = min(header.clip_num_frames, 60000)
    window = LatentWindow(
        start=0, num_frames=length, gaps=torch.tensor([0]), latents=torch.zeros(header.latent_channels, 1, 8, 8)
    )
    with FsvWriter(tmp_path / "clip.fsv", header) as writer:
        writer.write_window(window)
    assert (tmp_path / "clip.fsv").stat().st_size < 4000
    with pytest.raises(FsvError, match=f"clip.fsv: {message}"):
        pipeline.open_compressed(tmp_path / "clip.fsv")


def test_a_coded_file_cannot_claim_windows_beyond_all_measure(tmp_path, pipeline):
    basis = pipeline.latents_basis
    header = small_header(
        quantization="coded", step=1.0, basis=basis.name, clip_num_frames=65535, model_height=4096, model_width=4096,
        latent_height=4, latent_width=4, shared_channels=basis.cycle.shared, cycle_length=basis.cycle.length,
    )  # fmt: skip
    window = LatentWindow(start=0, num_frames=1, gaps=torch.tensor([0]), latents=torch.zeros(24, 1, 4, 4))
    with CodedFsvWriter(tmp_path / "clip.fsv", header, basis) as writer:
        writer.write_window(window)
    with pytest.raises(FsvError, match="clip_num_frames: windows of 65535 frames exceed"):
        CompressedVideo.load(tmp_path / "clip.fsv")
    assert Path(tmp_path / "clip.fsv").stat().st_size < 1000


def test_a_run_of_minutes_is_announced(pipeline, clip, monkeypatch, capsys):
    from diffusers_vidvae.pipelines import pipeline_video_compression as module

    said = []
    monkeypatch.setattr(module.logger, "warning", said.append)
    monkeypatch.setattr(module, "LONG_RUN", 0)
    pipeline.decompress(pipeline.compress(clip), output_type="np")
    assert [text.split()[0] for text in said] == ["Compressing", "Decompressing"]
    monkeypatch.setattr(module, "LONG_RUN", 1e9)
    pipeline.compress(clip)
    assert len(said) == 2
