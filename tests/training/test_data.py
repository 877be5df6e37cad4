from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from diffusers_vidvae.media import VideoWriter
from diffusers_vidvae.training.config import DataConfig
from diffusers_vidvae.training.data import ClipDataset, HeldOutClips
from diffusers_vidvae.training.draws import BucketSampler, DrawSampler, ShuffledOrder
from diffusers_vidvae.training.folders import ClipFolder
from diffusers_vidvae.training.procedural import COLOURS, MOTIONS, SHAPES, ProceduralClips, colour_name


def write_video(path, num_frames: int = 12, height: int = 32, width: int = 48, fps: int = 10):
    """A video whose brightness rises with the frame index."""
    with VideoWriter(path, fps) as writer:
        for index in range(num_frames):
            writer.write(np.full((1, height, width, 3), 20 * index, np.uint8))


def motion_of(clip: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(clip.astype(float), axis=0)).mean(axis=(1, 2, 3))


def test_a_procedural_clip_is_a_function_of_seed_and_index():
    first, second = ProceduralClips(10, height=32, width=24), ProceduralClips(10, height=32, width=24)
    assert first[3].shape == (16, 32, 24, 3) and first[3].dtype == np.uint8
    assert (first[3] == second[3]).all()
    assert (first[3] != first[4]).any() and (first[3] != ProceduralClips(10, height=32, width=24, seed=1)[3]).any()


def test_motions_move_as_their_names_say():
    clips = ProceduralClips(100, height=32, width=32)
    motion = {name: [motion_of(clips[i]) for i in range(100) if clips.motion(i) == name] for name in MOTIONS}
    mean = {name: np.mean(values) for name, values in motion.items()}
    assert mean["static"] == 0 < mean["slow"] < mean["fast"]
    assert all((values == 0).any() and (values > 0).any() for values in motion["bursts"])
    assert np.mean([values.max() for values in motion["cuts"]]) > 5 * np.mean([v.max() for v in motion["slow"]])


@pytest.mark.parametrize("num_frames", [1, 2, 33])
def test_procedural_clips_have_any_length(num_frames):
    assert all(len(clip) == num_frames for clip in (ProceduralClips(5, num_frames, 16, 16)[i] for i in range(5)))


def test_a_draw_does_not_depend_on_processes_or_workers():
    dataset = ClipDataset(DataConfig(num_frames=4, sample_size=16, num_procedural_clips=20, channel_shuffle=True))
    alone = [dataset[draw]["sample"] for draw in range(8)]
    shared: dict[int, torch.Tensor] = {}
    for rank in range(2):
        sampler = DrawSampler(batch_size=2, rank=rank, num_processes=2)
        loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=rank)
        for batch, _ in zip(loader, range(2), strict=False):
            shared.update({int(draw): sample for draw, sample in zip(batch["draw"], batch["sample"], strict=True)})
    assert sorted(shared) == list(range(8))
    assert all(torch.equal(shared[draw], alone[draw]) for draw in range(8))


def test_a_sampler_that_starts_later_goes_on_where_the_other_would():
    def take(first_batch, count):
        return [draw for draw, _ in zip(DrawSampler(3, first_batch=first_batch), range(count), strict=False)]

    assert take(0, 9)[6:] == take(2, 3)


def test_an_epoch_holds_every_clip_once():
    order = ShuffledOrder(7, seed=0)
    epochs = [[order[7 * epoch + i] for i in range(7)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(7)) and epochs[0] != epochs[1]


@pytest.mark.parametrize("cached_side", [None, 24])
def test_folder_clips_are_consecutive_frames_of_the_asked_size(tmp_path, cached_side):
    write_video(tmp_path / "video.mp4")
    folder = ClipFolder([tmp_path], num_frames=4, sample_size=16, cached_side=cached_side)
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(8):
        clip = folder.clip(rng)
        assert clip.shape == (4, 16, 16, 3) and clip.dtype == torch.uint8
        levels = clip.float().mean(dim=(1, 2, 3))
        assert (levels.diff() - 20).abs().max() < 4
        starts.add(round(levels[0].item() / 20))
    assert len(starts) > 2


def test_fps_resampling_skips_frames(tmp_path):
    write_video(tmp_path / "video.mp4")
    folder = ClipFolder([tmp_path], num_frames=4, sample_size=16, fps=5)
    levels = folder.clip(np.random.default_rng(0)).float().mean(dim=(1, 2, 3))
    assert (levels.diff() - 40).abs().max() < 5


def test_images_and_short_videos_are_padded_and_masked(tmp_path):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "image.png")
    write_video(tmp_path / "short.mp4", num_frames=2)
    dataset = ClipDataset(DataConfig([str(tmp_path)], procedural_share=0, num_frames=4, sample_size=16))
    lengths = set()
    for draw in range(12):
        clip = dataset[draw]
        assert clip["sample"].shape == (3, 4, 16, 16)
        assert not clip["sample"][:, ~clip["frame_mask"]].any()
        lengths.add(int(clip["frame_mask"].sum()))
    assert lengths == {1, 2}


def test_broken_files_are_skipped_and_counted(tmp_path):
    write_video(tmp_path / "good.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.webm").touch()
    with pytest.warns(UserWarning, match="skipped 2 of 3 files"):
        folder = ClipFolder([tmp_path], num_frames=4, sample_size=16)
    assert len(folder) == 1 and {path.name for path, _ in folder.skipped} == {"text.mp4", "empty.webm"}
    assert folder.clip(np.random.default_rng(0)).float().mean() > 0


def test_real_broken_media_never_become_clips(shared_media):
    names = ["truncated_no_moov.mp4", "encrypted_samples.mp4", "zero_frames_init_segment.mp4", "audio_only.mp4"]
    with pytest.raises(ValueError, match="of 4 files none can be read"):
        ClipFolder([shared_media / "bad" / name for name in names], num_frames=4, sample_size=16)


def test_a_file_that_breaks_later_is_replaced_by_another(tmp_path, shared_media):
    # Its header promises 30 frames, of which 9 decode.
    write_video(tmp_path / "good.mp4")
    broken = shared_media / "bad" / "truncated_mdat_half.mp4"
    folder = ClipFolder([broken, tmp_path], num_frames=4, sample_size=16)
    rng = np.random.default_rng(0)
    assert all(len(folder.clip(rng)) for _ in range(12))
    assert [path for path, _ in folder.skipped] == [broken]


def test_held_out_files_are_never_read(tmp_path):
    for name in ("train.mp4", "test.mp4"):
        write_video(tmp_path / name)
    folder = ClipFolder([tmp_path], num_frames=4, sample_size=16, holdout=["test.mp4"])
    assert [Path(path).name for path in folder.index.paths] == ["train.mp4"]


def test_validation_clips_are_whole_windows_of_their_folders_and_always_the_same(tmp_path):
    (tmp_path / "validation").mkdir()
    write_video(tmp_path / "validation" / "long.mp4", num_frames=6)
    write_video(tmp_path / "validation" / "short.mp4", num_frames=2)
    Image.new("RGB", (20, 30), "red").save(tmp_path / "validation" / "image.png")
    config = DataConfig(validation_folders=[str(tmp_path / "validation")], num_frames=4, sample_size=16)
    clips = HeldOutClips(config).first(5)
    assert clips.shape == (5, 3, 4, 16, 16)
    assert all(clip[:, -1].mean() > clip[:, 0].mean() for clip in clips)  # the long video's rise in brightness
    assert torch.equal(HeldOutClips(config).first(5), clips)
    with pytest.raises(ValueError, match="validation: no video with at least 8 frames."):
        HeldOutClips(replace(config, num_frames=8))


def test_empty_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no video or image to train on"):
        ClipFolder([tmp_path], num_frames=4, sample_size=16)
    with pytest.raises(ValueError, match="nowhere: there is no such file or folder"):
        ClipFolder([tmp_path / "nowhere"], num_frames=4, sample_size=16)


def test_a_bucket_sampler_holds_the_draws_of_a_plain_one_sorted_by_size():
    def sizes(draw: int) -> int:
        return (draw * 7919) % 13

    def batches(rank: int = 0, num_processes: int = 1, first_batch: int = 0, count: int = 8) -> list[list[int]]:
        size = 4 // num_processes
        sampler = iter(BucketSampler(sizes, 4, 0, size, rank, num_processes, first_batch))
        return [[next(sampler) for _ in range(size)] for _ in range(count)]

    whole = batches()
    assert sorted(draw for batch in whole[:4] for draw in batch) == list(range(16))
    spread = [max(map(sizes, batch)) - min(map(sizes, batch)) for batch in whole]
    assert np.mean(spread) < 5
    # Another number of processes sees the same global batches, and a later start goes on where the other would.
    shared = [sorted(one + two) for one, two in zip(batches(0, 2), batches(1, 2), strict=True)]
    assert shared == [sorted(batch) for batch in whole]
    assert batches(first_batch=3, count=5) == whole[3:]


def test_captions_say_what_procedural_clips_show():
    clips = ProceduralClips(60, num_frames=8, height=32, width=32, max_shapes=1, contrast=0.0, palette=True)
    for index in range(60):
        frames, caption = clips.with_caption(index)
        assert (frames == clips[index]).all()
        scenes = caption.split(", then ")
        assert (len(scenes) > 1) == (clips.motion(index) == "cuts")
        # The background's colour fills the corners that the shape does not reach.
        corners = frames[0, [0, 0, -1, -1], [0, -1, 0, -1]] / 255
        named = [colour_name(corner) for corner in corners]
        assert max(set(named), key=named.count) in scenes[0].split(" on a ")[1]
        words = scenes[0].split(" on a ")[0].split()
        assert words[1] in ("small", "medium", "large") and words[2] in COLOURS and words[3] in SHAPES
        if clips.motion(index) == "static":
            assert "stands still" in caption and "moves" not in caption


def test_a_shape_moves_first_to_where_its_caption_says():
    clips = ProceduralClips(
        40, num_frames=2, height=64, width=64, max_shapes=1, contrast=0.0, motions=("fast",), palette=True
    )
    right = 0
    for index in range(40):
        frames, caption = clips.with_caption(index)
        background = np.median(frames.reshape(-1, 3), axis=0)
        covered = np.abs(frames - background).sum(axis=-1) > 60
        first, second = (np.argwhere(mask).mean(axis=0) for mask in covered)
        rows, columns = second - first
        direction = {"right": columns, "left": -columns, "down": rows, "up": -rows}[
            caption.split(" on a ")[0].split()[-1]
        ]
        right += direction > 0
    assert right >= 36  # a shape at a border may turn at once


def test_clips_without_cuts_and_captions_only_on_demand():
    config = DataConfig(num_frames=4, sample_size=16, procedural_motions=["slow"], procedural_palette=True)
    dataset = ClipDataset(config)
    assert "caption" not in dataset[0]
    plain = replace(config, captions=True, horizontal_flip=False, time_reversal=False)
    assert all("moves slowly" in ClipDataset(plain)[draw]["caption"] for draw in range(5))
    with pytest.raises(ValueError, match="`data.captions` needs `data.time_reversal` to be false"):
        replace(config, captions=True, horizontal_flip=False)
    with pytest.raises(ValueError, match="`motions` must be some of"):
        ClipDataset(replace(config, procedural_motions=["jump"]))


def test_shapes_stay_inside_at_the_sizes_and_speeds_asked_for():
    clips = ProceduralClips(
        20,
        height=32,
        width=32,
        max_shapes=1,
        contrast=0.0,
        motions=("fast",),
        palette=True,
        radii=(5.0, 6.0),
        speeds=(0.5, 0.6),
        colours=("red", "blue"),
        upright=True,
        inside=True,
    )
    for index in range(20):
        frames, caption = clips.with_caption(index)
        assert caption.count("red") == caption.count("blue") == 1
        frames = frames.astype(int)
        distance = np.abs(frames - np.median(frames[0].reshape(-1, 3), axis=0)).sum(axis=-1)
        covered = distance / distance.max()  # (T, H, W)
        areas = covered.sum(axis=(1, 2))
        assert areas.min() > 0.85 * areas.max() > 20  # nothing is cut off, bar a square's corner
        centres = np.einsum("thw,chw->tc", covered, np.indices((32, 32))) / areas[:, None]
        assert 0.4 < np.linalg.norm(centres[-1] - centres[0]) / 15 < 0.7
    with pytest.raises(ValueError, match=r"`colours` must be two or more of .*, got \('red', 'mauve'\)"):
        ProceduralClips(1, colours=("red", "mauve"))
    for wrong in ({"radii": (6.0, 5.0)}, {"speeds": (0.0, 1.0)}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be two positive numbers that do not fall"):
            ProceduralClips(1, **wrong)


def test_captions_of_files_come_with_their_clips(tmp_path):
    write_video(tmp_path / "one.mp4")
    write_video(tmp_path / "two.mp4")
    (tmp_path / "one.txt").write_text("it brightens")
    unchanged = {"horizontal_flip": False, "time_reversal": False, "captions": True}
    config = DataConfig([str(tmp_path)], procedural_share=0, num_frames=4, sample_size=16, **unchanged)
    assert {ClipDataset(config)[draw]["caption"] for draw in range(8)} == {"it brightens", ""}
