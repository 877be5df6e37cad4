"""Frame rates: resampling by timestamps, and refusing clips that are too slow for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

from .errors import MediaError
from .frames import Frame
from .limits import MOST_REPEATS


# 24000/1001, the rate of most films, counts as 24.
NTSC_TOLERANCE = Fraction(1, 1000)

_ROUNDING = Fraction(1, 1_000_000)


def resample_frames(frames: Iterable[Frame], fps: Fraction | float) -> Iterator[Frame]:
    r"""Resamples a clip to a constant frame rate by its frames' times, one frame at a time.

    Output frame k is shown at `first time + k / fps`; it is the source frame that is on screen there, or that appears
    less than half an output frame later. Frames are dropped or repeated, never blended, and a long still stretch of a
    clip with a variable rate stays as long as it was. A clip that has the rate already comes back frame for frame.

    Args:
        frames: Source frames in order.
        fps: The rate to reach.

    Raises:
        ValueError: `fps` is not positive.
        MediaError: A frame would be repeated more than 100,000 times, which over an hour of a still picture takes at
            24 frames per second; damaged or hostile files have such times.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}.")
    period = 1 / exact_fps(fps)
    return _resampled(iter(frames), period)


def _resampled(frames: Iterator[Frame], period: Fraction) -> Iterator[Frame]:
    current = next(frames, None)
    if current is None:
        return
    start, slot = Fraction(current.pts_seconds), 0
    for following in frames:
        _check_repeats(current, Fraction(following.pts_seconds) - Fraction(current.pts_seconds), period)
        # The slot belongs to the last frame that appears before its middle.
        while start + (slot + Fraction(1, 2)) * period <= Fraction(following.pts_seconds) + _ROUNDING:
            yield _at_slot(current, start, slot, period)
            slot += 1
        current = following
    end = Fraction(current.end_seconds)
    _check_repeats(current, Fraction(current.duration_seconds), period)
    while slot == 0 or start + (slot + Fraction(1, 2)) * period <= end + _ROUNDING:
        yield _at_slot(current, start, slot, period)
        slot += 1


def _check_repeats(frame: Frame, seconds: Fraction, period: Fraction) -> None:
    if seconds > MOST_REPEATS * period:
        raise MediaError(
            f"The frame at {frame.pts_seconds:.3f} s stays for {float(seconds):.0f} s; at {float(1 / period):g} frames"
            f" per second it would be repeated {int(seconds / period)} times, {MOST_REPEATS} are allowed."
        )


def _at_slot(frame: Frame, start: Fraction, slot: int, period: Fraction) -> Frame:
    return Frame(frame.data, float(start + slot * period), float(period))


def exact_fps(fps: Fraction | float) -> Fraction:
    """A frame rate as the quotient that is meant: 29.97002997 is 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def check_min_fps(path: str | Path, fps: Fraction, min_fps: Fraction | float) -> None:
    """Refuses a clip whose average rate lies below `min_fps`; 24000/1001 counts as 24.

    Raises:
        MediaError: The rate is too low; the message names the file and both rates.
    """
    if fps < Fraction(min_fps) * (1 - NTSC_TOLERANCE):
        raise MediaError(
            f"{path}: has {float(fps):.3f} frames per second, at least {float(min_fps):g} are needed; a lower `fps`"
            " takes it."
        )
