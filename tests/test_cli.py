"""The command line on real clips, with tiny models and the embedded demo."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image

from diffusers_vidvae import FrameSelectVAE, GapDiT, VideoCompressionPipeline, __version__
from diffusers_vidvae.cli import compression
from diffusers_vidvae.cli.app import run
from diffusers_vidvae.conversion import convert_frame_select_vae, convert_gap_dit
from diffusers_vidvae.media import VideoReader, VideoWriter
from diffusers_vidvae.pipelines.compression_budget import DEFAULT_QUALITY


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Folder of a compression pipeline of random weights that takes any size."""
    torch.manual_seed(0)
    vae = FrameSelectVAE(
        sample_size=64,
        patch_size=16,
        latent_channels=6,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        ff_inner_dim=16,
        max_num_frames=16,
        clip_num_frames=8,
        refiner_channels=4,
        refiner_levels=1,
        unpatch_channels=1,
        hidden_size=16,
        rope_type="axial",
        keep_head="pooled",
    )
    folder = tmp_path_factory.mktemp("tiny")
    VideoCompressionPipeline(vae).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def clip(tmp_path) -> Path:
    """A lossless clip of 10 frames of 40x28 pixels."""
    frames = np.random.default_rng(0).integers(0, 256, (10, 28, 40, 3), dtype=np.uint8)
    (tmp_path / "media").mkdir()
    with VideoWriter(tmp_path / "media" / "clip.mkv", 12, lossless=True) as writer:
        writer.write(frames)
    return tmp_path / "media" / "clip.mkv"


@pytest.fixture
def results(tmp_path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def call(capsys, *arguments) -> dict:
    """Runs a command with `--json`; returns what it printed."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments] + ["--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def fail(capsys, *arguments) -> str:
    """Runs a command that must fail; returns the one line that says why."""
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 1
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if not line.startswith("warning:")]
    assert printed.out == "" and len(errors) == 1, printed
    assert errors[0].startswith("error: ")
    return errors[0]


# Compress, look, decompress


@pytest.mark.parametrize(
    ("name", "num_frames", "size"),
    [
        ("bear_odd_161x121.webm", 30, (161, 121)),
        ("crystal.gif", 20, (180, 120)),
        ("flower_1frame.mp4", 1, (960, 540)),
        ("keyboard_rot90.mov", 3, (320, 568)),
    ],
)
def test_real_clips_go_through_and_back(capsys, shared_media, results, tiny_model, name, num_frames, size):
    compressed = call(
        capsys, "compress", shared_media / "clips" / name, "-o", results / "clip.fsv", "--model", tiny_model
    )
    assert compressed["num_frames"] == num_frames
    assert compressed["num_bytes"] == pytest.approx((results / "clip.fsv").stat().st_size, abs=100)

    told = call(capsys, "info", results / "clip.fsv")
    assert (told["kind"], told["kept_frames"]) == ("compressed video", compressed["kept_frames"])

    back = call(capsys, "decompress", results / "clip.fsv", "-o", results / "clip.mp4", "-m", tiny_model)
    assert (back["num_frames"], (back["width"], back["height"])) == (num_frames, size)
    with VideoReader(results / "clip.mp4") as reader:
        assert reader.read().data.shape == (num_frames, size[1], size[0], 3)


def test_the_demo_is_the_default_and_is_named(capsys, clip, results):
    assert run(["compress", str(clip), "-o", str(results / "clip.fsv")]) == 0
    assert "the embedded demo model" in capsys.readouterr().out
    back = call(capsys, "decompress", results / "clip.fsv", "-o", results / "clip.gif")
    assert (back["model"], back["num_frames"]) == ("the embedded demo model", 10)


def test_photos_go_through_and_back(capsys, results, tiny_model):
    Image.new("RGB", (40, 28), "orange").save(results / "photo.jpg")
    call(capsys, "compress", results / "photo.jpg", "-o", results / "photo.fsv", "-m", tiny_model)
    decompress = ["decompress", results / "photo.fsv", "-m", tiny_model, "-o", results / "back.png"]
    assert "takes no options of videos, got crf" in fail(capsys, *decompress, "--crf", 20)
    call(capsys, *decompress)
    assert Image.open(results / "back.png").size == (40, 28)
    assert "exists already" in fail(capsys, *decompress)


def test_sound_is_carried_over(capsys, shared_media, results, tiny_model):
    sound = shared_media / "clips" / "office_fast_pan_1080p.mp4"
    with VideoWriter(results / "in.mp4", 30, audio_from=sound) as writer:
        writer.write(np.zeros((10, 32, 32, 3), np.uint8))
    call(capsys, "compress", results / "in.mp4", "-o", results / "clip.fsv", "-m", tiny_model)
    options = ["-m", tiny_model, "--audio-from", results / "in.mp4"]
    call(capsys, "decompress", results / "clip.fsv", "-o", results / "clip.mp4", *options)
    assert call(capsys, "info", results / "clip.mp4")["has_audio"]


def test_options_of_compression_arrive(capsys, clip, results, tiny_model):
    report = call(
        capsys,
        *("compress", clip, "-o", results / "clip.fsv", "-m", tiny_model, "--num-frames", 3, "--mode", "uniform"),
        *("--quantize", "int8", "--fps", "6", "--size-mode", "resize"),
    )
    assert (report["num_frames"], report["kept_frames"], report["fps"]) == (5, 3, "6")
    assert (report["quantize"], report["size_mode"], report["model_width"]) == ("int8", "resize", 64)


def test_bernoulli_choices_follow_the_seed(capsys, clip, results, tiny_model):
    def kept(seed):
        output = results / f"{seed}.fsv"
        call(capsys, "compress", clip, "-o", output, "-m", tiny_model, "--mode", "bernoulli", "--seed", seed, "-f")
        return output.read_bytes()

    assert kept(1) == kept(1)
    assert kept(1) != kept(2)


def test_outputs_are_replaced_only_by_force(capsys, clip, results, tiny_model):
    (results / "clip.fsv").write_bytes(b"mine")
    arguments = ["compress", clip, "-o", results / "clip.fsv", "-m", tiny_model]
    assert "clip.fsv: exists already; --force replaces it" in fail(capsys, *arguments)
    assert (results / "clip.fsv").read_bytes() == b"mine"
    call(capsys, *arguments, "--force")
    assert "exists already" in fail(capsys, "decompress", results / "clip.fsv", "-o", clip, "-m", tiny_model)


def test_names_may_begin_with_a_dash(capsys, clip, results, tiny_model, monkeypatch):
    clip.rename(clip.parent / "-clip.mkv")
    monkeypatch.chdir(clip.parent)
    assert run(["compress", "-m", tiny_model, "-o", str(results / "clip.fsv"), "--", "-clip.mkv"]) == 0
    assert call(capsys, "info", results / "clip.fsv")["num_frames"] == 10
    capsys.readouterr()
    assert run(["info", "--json", "--", "-clip.mkv"]) == 0
    assert json.loads(capsys.readouterr().out)["width"] == 40


# Bad files

UNREADABLE = (
    "-leading-dash-.mp4",
    "audio_only.mp4",
    "empty.mp4",
    "encrypted_samples.mp4",
    "first_track_10x12_five_frames.mp4",
    "fragment_without_moov_track.mp4",
    "invalid_bitstream.webm",
    "malformed_free_box.mp4",
    "no_video_stream.mkv",
    "text_named.mp4",
    "truncated_no_moov.mp4",
    "truncated_photo.jpg",
    "zero_frames_init_segment.mp4",
)


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_end_in_one_line(capsys, shared_media, results, tiny_model, name):
    path = shared_media / "bad" / name
    line = fail(capsys, "compress", "-m", tiny_model, "-o", results / "clip.fsv", "--", path)
    assert name in line
    assert list(results.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "num_frames"),
    [("truncated_mdat_half.mp4", range(9, 30)), ("unordered_50x50.mov", [4]), ("png_named.mp4", [1])],
)
def test_damaged_files_give_the_frames_they_have(capsys, shared_media, results, tiny_model, name, num_frames):
    path = shared_media / "bad" / name
    report = call(capsys, "compress", path, "-m", tiny_model, "-o", results / "clip.fsv", "--size-mode", "resize")
    assert report["num_frames"] in num_frames


def test_lost_frames_are_announced(capsys, shared_media, results, tiny_model):
    path = shared_media / "bad" / "truncated_mdat_half.mp4"
    assert run(["compress", str(path), "-m", tiny_model, "-o", str(results / "a.fsv"), "--size-mode", "resize"]) == 0
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and "truncated_mdat_half.mp4" in warning


def test_every_bad_file_is_described_or_refused_in_one_line(capsys, shared_media):
    for path in sorted((shared_media / "bad").iterdir()):
        code = run(["info", "--json", "--", str(path)])
        printed = capsys.readouterr()
        if code == 0:
            assert json.loads(printed.out)["kind"] in ("image", "video")
        else:
            errors = [line for line in printed.err.splitlines() if not line.startswith("warning:")]
            assert code == 1 and len(errors) == 1 and path.name in errors[0], printed


def test_damaged_fsv_files_end_in_one_line(capsys, clip, results, tiny_model):
    call(capsys, "compress", clip, "-o", results / "clip.fsv", "-m", tiny_model)
    content = (results / "clip.fsv").read_bytes()
    (results / "half.fsv").write_bytes(content[: len(content) // 2])
    for command in (["info"], ["decompress", "-m", tiny_model, "-o", results / "clip.mp4"]):
        assert "half.fsv" in fail(capsys, *command, results / "half.fsv")
    assert not (results / "clip.mp4").exists()


def test_the_wrong_model_is_named(capsys, clip, results, tiny_model):
    call(capsys, "compress", clip, "-o", results / "clip.fsv", "-m", tiny_model)
    line = fail(capsys, "decompress", results / "clip.fsv", "-o", results / "clip.mp4")
    assert "clip.fsv" in line and "the model has" in line


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("missing/folder/model.safetensors", "no such file or folder, and not the id of a Hub repository"),
        ("./nothing", "no such file or folder"),
        (".", "holds neither a model"),
        (__file__, "not a readable state dict"),
    ],
)
def test_models_that_are_none_are_refused(capsys, clip, results, monkeypatch, model, message):
    monkeypatch.chdir(results)
    assert message in fail(capsys, "compress", clip, "-o", results / "clip.fsv", "-m", model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "clip.mp4"], "must end in .fsv"),
        (["-o", "missing/clip.fsv"], "there is no folder missing"),
        (["-o", "clip.fsv", "--rate", "2"], "`rate` must be in"),
        (["-o", "clip.fsv", "--num-frames", "11"], "`num_frames` must be from 2"),
        (["-o", "clip.fsv", "--threshold", "0.3"], "--threshold 0.3: is for --mode threshold, got no --mode"),
        (["-o", "clip.fsv", "--threshold", "3", "--mode", "threshold"], "`threshold` must be in [0, 1], got 3.0"),
        (["-o", "clip.fsv", "--fps", "0/1"], "--fps 0/1: must be a positive number or ratio"),
        (["-o", "clip.fsv", "--device", "tpu?"], "--device tpu?"),
    ],
)
def test_bad_options_are_named(capsys, clip, results, tiny_model, monkeypatch, arguments, message):
    monkeypatch.chdir(results)
    assert message in fail(capsys, "compress", clip, "-m", tiny_model, *arguments)
    assert list(results.iterdir()) == []


def test_wrong_usage_exits_with_2(capsys):
    assert run(["compress"]) == 2
    assert run(["compress", "clip.mp4", "-o", "clip.fsv", "--mode", "best"]) == 2
    assert run(["encode-dataset", "clips", "-o", "latents", "--num-clips", "1", "--num-frames", "0"]) == 2
    assert run(["no-such-command"]) == 2
    capsys.readouterr()


def test_debug_shows_the_traceback(clip, results, tiny_model):
    with pytest.raises(ValueError, match="`rate` must be in"):
        run(["compress", str(clip), "-o", str(results / "a.fsv"), "-m", tiny_model, "--rate", "2", "--debug"])


def test_help_names_the_quality_that_is_the_default():
    (option,) = compression.Quality.__metadata__
    assert f"Default: {DEFAULT_QUALITY:g}." in option.help


@pytest.mark.parametrize(
    "command",
    ["compress", "decompress", "reconstruct", "generate", "evaluate", "info", "convert", "push", "train"]
    + ["stats", "encode-dataset"],
)
def test_every_command_has_help(capsys, command):
    assert run([command, "--help"]) == 0
    assert command in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"diffusers-vidvae {__version__}\n"


def test_the_demo_clip_can_be_compressed(capsys, results):
    assert run(["demo-clip", str(results / "clip.mp4"), "--num-frames", "9", "--width", "48", "--height", "32"]) == 0
    told = call(capsys, "info", results / "clip.mp4", "--scan")
    assert (told["decoded_frames"], told["width"], told["height"]) == (9, 48, 32)
    assert call(capsys, "compress", results / "clip.mp4", "-o", results / "clip.fsv")["num_frames"] == 9


def test_one_frame_is_called_one_frame(capsys, results):
    size = ["--width", "48", "--height", "32"]
    assert run(["demo-clip", str(results / "clip.mp4"), "--num-frames", "1", *size]) == 0
    assert "1 frame, 48x32, 24 fps" in capsys.readouterr().out


def test_images_are_described_without_a_frame_rate(capsys, results):
    Image.new("RGB", (40, 24)).save(results / "photo.jpg")
    told = call(capsys, "info", results / "photo.jpg", "--scan")
    assert (told["kind"], told["width"], told["height"]) == ("image", 40, 24)
    assert (told["fps"], told["num_frames"], told["duration_seconds"]) == (None, 1, None)


# Interruption


def heed_interruptions():
    """Shells start background jobs, and so all that they start, with Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("interruption", [signal.SIGINT, signal.SIGTERM])
def test_interruptions_leave_nothing(tmp_path, results, tiny_model, interruption):
    size = ["--num-frames", "900", "--width", "320", "--height", "240"]
    assert run(["demo-clip", str(tmp_path / "long.mp4"), *size]) == 0
    command = [sys.executable, "-c", "from diffusers_vidvae.cli import main; main()", "compress"]
    arguments = [tmp_path / "long.mp4", "-o", results / "clip.fsv", "-m", tiny_model]
    process = subprocess.Popen(
        [*command, *map(str, arguments)], stderr=subprocess.PIPE, text=True, preexec_fn=heed_interruptions
    )
    deadline = time.monotonic() + 120
    # The unfinished file tells that compression has begun.
    while not list(results.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, interruption)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "error: interrupted" in errors and "Traceback" not in errors
    assert list(results.iterdir()) == []


# Reconstruction and evaluation


def test_images_are_reconstructed_beside_their_original(capsys, results):
    Image.effect_noise((40, 24), 64).convert("RGB").save(results / "photo.png")
    report = call(capsys, "reconstruct", results / "photo.png", "-o", results / "out.png", "--no-resize")
    assert (report["class"], report["width"], report["height"]) == ("AutoencoderKL3D", 40, 24)
    assert Image.open(results / "out.png").size == Image.open(report["original"]).size == (40, 24)
    assert report["metrics"]["psnr"] > 0


def test_images_go_to_size_buckets(capsys, results):
    Image.effect_noise((200, 300), 64).convert("RGB").save(results / "photo.png")
    report = call(capsys, "reconstruct", results / "photo.png", "-o", results / "out.png", "--size-bucket", "XX_SMALL")
    assert (report["width"], report["height"]) == (104, 160)


def test_videos_are_reconstructed_at_native_size(capsys, clip, results, tiny_model):
    report = call(capsys, "reconstruct", clip, "-o", results / "out.mkv", "-m", tiny_model, "--no-original")
    assert (report["num_frames"], report["width"], report["height"]) == (10, 40, 28)
    assert [path.name for path in results.iterdir()] == ["out.mkv"]


def test_slow_videos_are_refused_with_their_rate(capsys, clip, results):
    line = fail(capsys, "reconstruct", clip, "-o", results / "out.mkv")
    assert "clip.mkv: has 12.000 frames per second, at least 24 are needed; a lower `fps` takes it" in line
    assert list(results.iterdir()) == []
    assert call(capsys, "reconstruct", clip, "-o", results / "out.mkv", "--fps", 12)["num_frames"] == 10


def test_clips_are_evaluated(capsys, clip, tiny_model):
    report = call(capsys, "evaluate", clip, clip.parent, "-m", tiny_model, "--rate", "0.5")
    assert [Path(row["input"]).name for row in report["clips"]] == ["clip.mkv", "clip.mkv"]
    row = report["clips"][0]
    assert row["num_frames"] == 10 and row["kept_frames"] == 5
    assert 0 < row["psnr"] < 40 and row["bits_per_pixel"] > 0

    assert run(["evaluate", str(clip), "-m", tiny_model]) == 0
    assert "PSNR" in capsys.readouterr().out


@pytest.fixture(scope="session")
def frame_wise_model(tmp_path_factory) -> str:
    """Folder of an image autoencoder of diffusers, of random weights."""
    torch.manual_seed(0)
    vae = AutoencoderKL(norm_num_groups=8, block_out_channels=(8,))
    folder = tmp_path_factory.mktemp("frame_wise")
    vae.save_pretrained(folder)
    return str(folder)


def test_other_autoencoders_are_evaluated_in_chunks(capsys, clip, frame_wise_model):
    whole, chunked = (
        call(capsys, "evaluate", clip, "-m", frame_wise_model, "--chunk-frames", count)["clips"][0]
        for count in (10, 3)
    )
    assert whole["num_frames"] == 10 and chunked.pop("boundary_ratio") is not None
    assert all(chunked[name] == pytest.approx(whole[name], abs=1e-3) for name in chunked if name != "input")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "top_k", "--num-frames", 3], "--mode and --num-frames: AutoencoderKL has no use for them."),
        (["--rate", 0.5], "--rate: AutoencoderKL has no use for it."),
        (["--quantize", "bf16"], "--quantize: AutoencoderKL has no use for it."),
        (["--size-mode", "pad"], "--size-mode: AutoencoderKL has no use for it."),
        (["--seed", 0], "--seed: AutoencoderKL has no use for it."),
    ],
)
def test_options_that_a_model_cannot_use_are_refused(capsys, clip, frame_wise_model, options, message):
    assert message in fail(capsys, "evaluate", clip, "-m", frame_wise_model, *options)


def test_lpips_is_loaded_once_for_every_autoencoder(capsys, monkeypatch, clip, tiny_model, frame_wise_model):
    loaded = []

    class Distance:
        def __init__(self, device):
            loaded.append(device)

        def __call__(self, reference, reconstruction):
            return (reference - reconstruction).abs().mean(dim=(1, 2, 3))

    monkeypatch.setattr("diffusers_vidvae.metrics.LPIPS", Distance)
    for model in (tiny_model, frame_wise_model):
        loaded.clear()
        rows = call(capsys, "evaluate", clip, clip, "-m", model, "--lpips")["clips"]
        assert len(loaded) == 1 and all(0 < row["lpips"] < 1 for row in rows)


def test_quality_0_is_the_best_rather_than_the_default(capsys, clip, results, frame_wise_model):
    sizes = []
    for crf in (0, 18):
        output = results / f"{crf}.mp4"
        call(capsys, "reconstruct", clip, "-o", output, "-m", frame_wise_model, "--crf", crf)
        sizes.append(output.stat().st_size)
    assert sizes[0] > 1.2 * sizes[1]


def test_unreadable_clips_are_refused_before_others_are_evaluated(capsys, clip, results):
    (results / "text.mp4").write_text("no video")
    message = fail(capsys, "evaluate", clip, results / "text.mp4", "-m", "./nothing")
    assert "text.mp4: not a readable video or image" in message


# Generation


@pytest.mark.parametrize("name", ["video.mp4", "animation.gif", "sheet.png"])
def test_generated_frames_go_where_the_name_says(capsys, results, name):
    report = call(
        capsys,
        *("generate", "-o", results / name, "--num-latent-frames", 2, "--num-frames", 5, "--steps", 2, "--seed", 3),
    )
    assert (report["num_frames"], report["seed"], len(report["positions"])) == (5, 3, 2)
    if name != "sheet.png":
        with VideoReader(results / name) as reader:
            assert len(reader.read()) == 5
    else:
        assert Image.open(results / name).width > 64


def test_outputs_that_cannot_be_written_are_refused_before_a_model_is_loaded(capsys, results):
    message = fail(capsys, "generate", "-o", results / "frames.jpg", "-m", "./nothing")
    assert "frames.jpg: the ending must be one of" in message
    assert list(results.iterdir()) == []


def test_given_pictures_stay_where_they_are_put(capsys, results):
    Image.effect_noise((64, 64), 64).convert("RGB").save(results / "photo.png")
    report = call(
        capsys,
        *("generate", "-o", results / "frames", "--num-latent-frames", 3, "--num-frames", 8, "--steps", 2),
        *("--image", results / "photo.png", "--image", results / "photo.png"),
        *("--frame-index", 0, "--frame-index", 7, "--scheduler", "euler", "--contact-sheet", results / "sheet.png"),
    )
    assert {0, 7} <= set(report["positions"]) and report["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    assert len(list((results / "frames").iterdir())) == 8 and (results / "sheet.png").exists()


def test_clips_are_continued_at_their_rate(capsys, clip, results):
    report = call(
        capsys,
        *("generate", "-o", results / "clip.mp4", "--num-latent-frames", 3, "--num-frames", 6, "--steps", 2),
        *("--video", clip, "--last", 2, "--scheduler", "unipc"),
    )
    assert report["positions"][:2] == [0, 1] and report["fps"] == "12"


def test_the_seed_repeats_a_video(capsys, results):
    options = ["--num-latent-frames", 2, "--num-frames", 3, "--steps", 2]
    first = call(capsys, "generate", "-o", results / "a", *options)
    call(capsys, "generate", "-o", results / "b", *options, "--seed", first["seed"])
    for name in ("frame_00000.png", "frame_00002.png"):
        assert (results / "a" / name).read_bytes() == (results / "b" / name).read_bytes()


# Conversion


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """Original checkpoints of random weights, `vae.pt` and `dit.pt`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, source in (("vae.pt", convert_frame_select_vae), ("dit.pt", convert_gap_dit)):
        plan = source.key_plan(source.TINY_CONFIG)
        torch.save({key: 0.1 * torch.randn(planned.shape) for key, planned in plan.items()}, folder / name)
    return folder


def test_checkpoints_are_described(capsys, checkpoints):
    report = call(capsys, "info", checkpoints / "vae.pt")
    assert (report["kind"], report["source"], report["fits"]) == ("checkpoint", "frame_select_vae", True)
    assert report["config"]["latent_channels"] == convert_frame_select_vae.TINY_CONFIG["latent_channels"]


def test_clips_of_the_original_project_are_described(capsys, results):
    clip = {
        "compressed": torch.zeros(1, 2, 16, 4),
        "selection_indices": torch.tensor([[1, 3]]),
        "compression_mask": torch.tensor([[True, True]]),
        "original_num_frames": 6,
        "num_kept_frames": 2,
    }
    torch.save(clip, results / "clip.pt")
    report = call(capsys, "info", results / "clip.pt")
    assert (report["kind"], report["kept_frames"]) == ("compressed video of the original project", 2)


def test_dry_runs_write_nothing(capsys, checkpoints):
    before = sorted(checkpoints.iterdir())
    assert run(["convert", str(checkpoints / "vae.pt"), "--dry-run"]) == 0
    assert "fill_token (1, 1, 1, 24) -> fill_token" in capsys.readouterr().out
    assert sorted(checkpoints.iterdir()) == before


def test_checkpoints_become_folders(capsys, checkpoints, results):
    report = call(capsys, "convert", checkpoints / "vae.pt", "-o", results / "vae", "--dtype", "bfloat16")
    assert (report["class"], report["dtype"]) == ("FrameSelectVAE", "bfloat16")
    assert FrameSelectVAE.from_pretrained(results / "vae").config.patch_size == 8
    assert "exists already; --force" in fail(capsys, "convert", checkpoints / "vae.pt", "-o", results / "vae")

    told = call(capsys, "info", results / "vae")
    assert (told["class"], told["num_parameters"]) == ("FrameSelectVAE", report["num_parameters"])


def test_checkpoints_become_pipelines(capsys, checkpoints, results):
    arguments = ["convert", checkpoints / "dit.pt", "-o", results / "pipe", "--to-pipeline"]
    assert "give --vae" in fail(capsys, *arguments)
    report = call(capsys, *arguments, "--vae", checkpoints / "vae.pt")
    assert report["class"] == "GapDiTPipeline"
    assert isinstance(GapDiT.from_pretrained(results / "pipe", subfolder="transformer"), GapDiT)
    generated = call(
        capsys,
        *("generate", "-m", results / "pipe", "-o", results / "a.gif", "--num-frames", 4, "--num-latent-frames", 2),
        *("--steps", 1),
    )
    assert generated["num_frames"] == 4


def test_checkpoints_run_without_conversion(capsys, checkpoints, clip, results):
    report = call(capsys, "compress", clip, "-o", results / "clip.fsv", "-m", checkpoints / "vae.pt")
    assert report["num_frames"] == 10


def test_checkpoints_that_do_not_fit_are_listed(capsys, checkpoints, results):
    weights = torch.load(checkpoints / "vae.pt", weights_only=True)
    del weights["encoder.selection_layer1.weight"]
    torch.save(weights, results / "vae.pt")
    assert run(["convert", str(results / "vae.pt"), "-o", str(results / "vae")]) == 1
    assert "missing encoder.selection_layer1.weight" in capsys.readouterr().err
    assert [path.name for path in results.iterdir()] == ["vae.pt"]


def test_folders_of_other_things_are_left_alone(capsys, checkpoints, results):
    (results / "letter.txt").write_text("dear")
    assert "no model's folder" in fail(capsys, "convert", checkpoints / "vae.pt", "-o", results, "--force")
    assert "is not the folder of a model" in fail(capsys, "push", results, "owner/name")


# Data sets


def test_latents_of_a_data_set_are_encoded(capsys, shared_media, results):
    report = call(
        capsys,
        *("encode-dataset", shared_media / "clips" / "crystal.gif", "-o", results / "latents", "--num-clips", 2),
        *("--num-frames", 4, "--sample-size", 32),
    )
    assert report["num_clips"] == 2
    index = json.loads((results / "latents" / "index.json").read_text())
    assert index["complete"] and len(index["latents_mean"]) == len(index["latents_std"])


def test_statistics_go_into_the_config(capsys, clip, results, tiny_model):
    vae = FrameSelectVAE.from_pretrained(tiny_model, subfolder="vae")
    vae.save_pretrained(results / "vae")
    report = call(capsys, "stats", clip, "-m", results / "vae", "--update")
    assert report["num_frames"] == 10 and report["kl_per_element"] > 0
    updated = FrameSelectVAE.from_pretrained(results / "vae")
    assert updated.config.latents_mean == report["latents_mean"]
    assert updated.config.latents_std == report["latents_std"]
    assert "needs a --model that is a folder" in fail(capsys, "stats", clip, "--update")


def test_statistics_go_beside_a_config_that_has_no_place_for_them(capsys, clip, results):
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    vae.save_pretrained(results / "vae")
    config = json.loads((results / "vae" / "config.json").read_text())
    report = call(capsys, "stats", clip, "-m", results / "vae", "--update")
    assert report["updated"] == str(results / "vae" / "latent_statistics.json")
    written = json.loads(Path(report["updated"]).read_text())
    assert written == {name: report[name] for name in ("latents_mean", "latents_std")}
    updated = json.loads((results / "vae" / "config.json").read_text())
    assert updated.pop("_latents_basis")["channels"] == 4 and updated == config


def test_axes_are_found_without_writing_them(capsys, clip, results, tiny_model):
    vae = FrameSelectVAE.from_pretrained(tiny_model, subfolder="vae")
    vae.save_pretrained(results / "vae")
    config = (results / "vae" / "config.json").read_bytes()
    assert call(capsys, "stats", clip, "-m", results / "vae")["axes"] is None
    axes = call(capsys, "stats", clip, "-m", results / "vae", "--axes")["axes"]
    size = vae.config.latent_channels
    assert np.shape(axes["forward"]) == (size, size) and 1 <= axes["show_90_percent"] <= size
    assert (results / "vae" / "config.json").read_bytes() == config


def test_training_names_a_missing_file(capsys):
    assert "nowhere.yaml" in fail(capsys, "train", "gap-dit", "--config", "nowhere.yaml")


# Where models come from


def test_every_model_can_be_had_in_a_revision_and_a_variant():
    from diffusers_vidvae.cli.app import app

    commands = typer.main.get_command(app).commands
    with_model = [name for name, command in commands.items() if any("--model" in p.opts for p in command.params)]
    assert {"compress", "decompress", "reconstruct", "evaluate", "generate", "encode-dataset", "stats"} <= set(
        with_model
    )
    for name in with_model:
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert {"--revision", "--variant", "--trust-remote-code", "--device"} <= options, name


def test_variants_are_loaded(capsys, clip, results, tiny_model):
    VideoCompressionPipeline.from_pretrained(tiny_model).save_pretrained(results / "model", variant="fp16")
    arguments = ["compress", clip, "-m", results / "model", "-o", results / "clip.fsv"]
    assert "diffusion_pytorch_model" in fail(capsys, *arguments)
    call(capsys, *arguments, "--variant", "fp16")


def test_sources_that_a_model_does_not_have_are_refused(capsys, clip, results, tiny_model):
    arguments = ["compress", clip, "-o", results / "clip.fsv"]
    for model in ([], ["-m", tiny_model]):
        assert "--revision main: is for models on the Hub" in fail(capsys, *arguments, *model, "--revision", "main")
    assert "has no variants" in fail(capsys, *arguments, "--variant", "fp16")
    assert "is for models on the Hub" in fail(capsys, "generate", "-o", results / "a.gif", "--revision", "main")


@pytest.mark.slow
def test_the_package_runs_as_a_module(results):
    command = [sys.executable, "-m", "diffusers_vidvae", "--version"]
    printed = subprocess.run(command, cwd=results, capture_output=True, text=True, check=True).stdout
    assert printed == f"diffusers-vidvae {__version__}\n"


@pytest.mark.slow
def test_processes_share_the_encoding_of_a_data_set(shared_media, results):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "diffusers_vidvae"]
    arguments = [shared_media / "clips" / "crystal.gif", "-o", results / "latents", "--num-clips", 2]
    options = ["--num-frames", 4, "--sample-size", 32, "--shard-size", 1, "--device", "cpu", "--json"]
    command = [*launcher, "encode-dataset", *map(str, [*arguments, *options])]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["num_clips"] == 2  # one report
    assert len(list((results / "latents").glob("*.safetensors"))) == 2
    assert json.loads((results / "latents" / "index.json").read_text())["complete"]


# Memory

MEASURE_PAGES = """
import ctypes, resource
from diffusers_vidvae.cli.models import keep_freed_memory

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p

def pages(num_bytes=40_000_000):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(library.malloc(ctypes.c_size_t(num_bytes)))
    library.memset(block, 1, ctypes.c_size_t(num_bytes))
    library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(pages(), pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep their ways")
def test_freed_memory_is_there_for_what_comes_next():
    result = subprocess.run([sys.executable, "-c", MEASURE_PAGES], capture_output=True, text=True, check=True)
    fresh, again = map(int, result.stdout.split())
    assert again < fresh / 10
