from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from diffusers_vidvae.media import Frame, MediaError, check_min_fps, read_video, resample_frames


def frames_at(times, last_duration=1 / 30):
    """Frames whose pixels hold their own index."""
    ends = [*times[1:], times[-1] + last_duration]
    return [
        Frame(np.full((1, 1, 3), index, np.uint8), start, end - start)
        for index, (start, end) in enumerate(zip(times, ends, strict=True))
    ]


def indices(frames):
    return [int(frame.data[0, 0, 0]) for frame in frames]


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), 24, 60, 12.5, 1])
def test_clip_at_the_wanted_rate_comes_back_frame_for_frame(fps):
    frames = frames_at([float(i / Fraction(fps)) for i in range(50)], float(1 / Fraction(fps)))
    assert indices(resample_frames(frames, fps)) == list(range(50))


def test_times_rounded_to_milliseconds_do_not_drop_or_repeat_frames():
    frames = frames_at([round(i / 30, 3) for i in range(200)])
    assert indices(resample_frames(frames, 30)) == list(range(200))


def test_halving_the_rate_takes_every_second_frame():
    frames = frames_at([i / 60 for i in range(20)], 1 / 60)
    assert indices(resample_frames(frames, 30)) == list(range(0, 20, 2))


def test_doubling_the_rate_repeats_every_frame():
    frames = frames_at([i / 12 for i in range(5)], 1 / 12)
    assert indices(resample_frames(frames, 24)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_long_still_stretch_keeps_its_length():
    frames = frames_at([0.0, 0.1, 1.1, 1.2], last_duration=0.1)
    assert indices(resample_frames(frames, 10)) == [0, *[1] * 10, 2, 3]


@pytest.mark.parametrize("fps", [24, 25, Fraction(24000, 1001), 7])
def test_frames_are_spaced_evenly_and_cover_the_clip(fps):
    frames = frames_at([10 + i / 29.97 for i in range(90)], 1 / 29.97)
    resampled = list(resample_frames(frames, fps))
    period = float(1 / Fraction(fps))
    np.testing.assert_allclose([f.pts_seconds for f in resampled], 10 + period * np.arange(len(resampled)), atol=1e-5)
    assert abs(resampled[-1].end_seconds - frames[-1].end_seconds) <= period / 2 + 1e-6
    # No frame is shown more than half a period away from its time.
    for frame in resampled:
        source = frames[int(frame.data[0, 0, 0])]
        assert source.pts_seconds - period / 2 - 1e-5 <= frame.pts_seconds <= source.end_seconds + period / 2 + 1e-5


def test_single_frame_gives_at_least_one_frame():
    assert indices(resample_frames(frames_at([3.0], 0.001), 24)) == [0]
    assert list(resample_frames([], 24)) == []


def test_resampling_streams():
    seen = []

    def source():
        for frame in frames_at([i / 30 for i in range(100)]):
            seen.append(frame)
            yield frame

    next(resample_frames(source(), 24))
    assert len(seen) <= 3


@pytest.mark.parametrize("fps", [0, -24])
def test_rate_that_is_not_positive_is_refused(fps):
    with pytest.raises(ValueError, match=f"fps must be positive, got {fps}"):
        resample_frames([], fps)


def test_slow_clip_is_refused_with_its_rate():
    with pytest.raises(MediaError, match=r"clip.gif: has 10\.000 frames per second, at least 24 are needed"):
        check_min_fps("clip.gif", Fraction(10), 24)
    check_min_fps("film.mp4", Fraction(24000, 1001), 24)
    check_min_fps("clip.mp4", Fraction(24), 24)


def test_variable_frame_rate_file_keeps_its_length(shared_media):
    batch, _ = read_video(shared_media / "clips" / "crystal_vfr.mp4", fps=24)
    assert len(batch) == 120  # 5.0 s
    np.testing.assert_allclose(np.diff(batch.pts_seconds), 1 / 24)
