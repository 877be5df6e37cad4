from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from fsv_clips import make_header, make_window

from diffusers_vidvae.codec import CompressedVideo, FsvError, FsvWriter


resource = pytest.importorskip("resource", reason="limits on file sizes are POSIX")


def test_windows_are_written_one_by_one(tmp_path):
    path = tmp_path / "clip.fsv"
    with FsvWriter(path, make_header()) as writer:
        writer.write_window(make_window(0, 8, [0, 3, 7]))
        assert writer.num_frames == 8 and writer.num_kept == 3
        assert not path.exists()
        writer.write_window(make_window(8, 3, [1]))
    video = CompressedVideo.load(path)
    assert video.header == writer.header and video.header.sha256 == writer.header.sha256


def test_frames_are_counted_when_their_number_is_unknown(tmp_path):
    with FsvWriter(tmp_path / "clip.fsv", make_header(num_frames=0)) as writer:
        for start in range(0, 800, 8):
            writer.write_window(make_window(start, 8, [0, 5]))
    assert writer.header.num_frames == 800
    assert CompressedVideo.load(tmp_path / "clip.fsv").kept_frames == 200


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        with FsvWriter(tmp_path / "clip.fsv", make_header()) as writer:
            writer.write_window(make_window(0, 8, [0]))
            raise error
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_the_old_file(fsv_file):
    before = fsv_file.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        with FsvWriter(fsv_file, make_header(), overwrite=True) as writer:
            writer.write_window(make_window(0, 8, [0]))
            raise KeyboardInterrupt
    assert fsv_file.read_bytes() == before
    assert [path.name for path in fsv_file.parent.iterdir()] == [fsv_file.name]


def test_too_few_frames_leave_nothing(tmp_path):
    with pytest.raises(FsvError, match="clip.fsv: num_frames: 8 frames were written of 11"):
        with FsvWriter(tmp_path / "clip.fsv", make_header()) as writer:
            writer.write_window(make_window(0, 8, [0]))
    assert list(tmp_path.iterdir()) == []


def test_no_window_at_all_is_an_error(tmp_path):
    with pytest.raises(FsvError, match="num_frames: 0 frames were written of any"):
        with FsvWriter(tmp_path / "clip.fsv", make_header(num_frames=0)):
            pass


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (make_window(1, 8, [0]), "start: the window begins at frame 1, the one before it ends at 0"),
        (make_window(0, 9, [0]), "window_frames: 9 frames exceed clip_num_frames 8"),
        (make_window(0, 8, [0], (5, 3, 4)), r"latents: \(5, 3, 4\) a frame, the header says \(5, 3, 3\)"),
    ],
)
def test_a_window_that_contradicts_the_header_is_refused(tmp_path, window, message):
    with pytest.raises(FsvError, match=message):
        with FsvWriter(tmp_path / "clip.fsv", make_header()) as writer:
            writer.write_window(window)


def test_latents_that_are_not_finite_are_refused_by_name(tmp_path):
    window = make_window(0, 8, [0])
    window.latents[0, 0, 0, 0] = torch.inf
    with pytest.raises(FsvError, match="clip.fsv: latents: 1 values are not finite"):
        with FsvWriter(tmp_path / "clip.fsv", make_header()) as writer:
            writer.write_window(window)


def test_an_existing_file_needs_overwrite(fsv_file, make_video):
    with pytest.raises(FsvError, match="clip.fsv: exists already; overwrite=True replaces it"):
        FsvWriter(fsv_file, make_header())
    make_video(quantization="int8").save(fsv_file, overwrite=True)
    assert CompressedVideo.load(fsv_file).header.quantization == "int8"


def test_a_file_that_appears_while_writing_is_not_replaced(tmp_path):
    path = tmp_path / "clip.fsv"
    with pytest.raises(FsvError, match="exists already"):
        with FsvWriter(path, make_header(num_frames=8)) as writer:
            writer.write_window(make_window(0, 8, [0]))
            path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"
    assert len(list(tmp_path.iterdir())) == 1


def test_unwritable_places_are_refused(tmp_path, make_video):
    with pytest.raises(FsvError, match="no/clip.fsv: cannot be written, the folder .* does not exist"):
        make_video().save(tmp_path / "no" / "clip.fsv")
    with pytest.raises(FsvError, match="is a folder"):
        make_video().save(tmp_path, overwrite=True)


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(FsvError, match=r"clip.fsv: not enough disk space \(.*, \d+ bytes are free\)"):
            with FsvWriter(tmp_path / "clip.fsv", make_header(num_frames=0)) as writer:
                for start in range(0, 8000, 8):
                    writer.write_window(make_window(start, 8, [0, 5]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_caller_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"):
        with FsvWriter(tmp_path / "clip.fsv", make_header()):
            raise FileNotFoundError("source")


def test_the_file_has_ordinary_permissions(fsv_file):
    mask = os.umask(0)
    os.umask(mask)
    assert fsv_file.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_link_is_written_through(tmp_path, make_video):
    target = make_video().save(tmp_path / "target.fsv")
    link = tmp_path / "link.fsv"
    link.symlink_to(target)
    video = make_video()
    video.header = replace(video.header, quantization="int8")
    video.save(link, overwrite=True)
    assert link.is_symlink() and CompressedVideo.load(target).header.quantization == "int8"
