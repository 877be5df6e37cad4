"""Threads that read ahead and write behind: order, bounds, errors in their place, and no thread left over."""

from __future__ import annotations

import threading

import pytest

from diffusers_vidvae.media.background import WriteBehind, read_ahead, waiting_frames


def num_threads():
    return sum(thread.name.startswith("vidvae") for thread in threading.enumerate())


def test_reading_ahead_keeps_order_and_stays_bounded():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    ahead = read_ahead(items(), 4)
    assert taken == []
    assert next(ahead) == 0
    assert list(ahead) == list(range(1, 100))
    ahead = read_ahead(items(), 4)
    taken.clear()
    next(ahead)
    ahead.close()
    assert len(taken) <= 7
    assert num_threads() == 0


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_errors_of_reading_come_in_their_place(kind):
    def items():
        yield 1
        yield 2
        raise kind("damaged")

    seen = []
    with pytest.raises(kind):
        for item in read_ahead(items(), 8):
            seen.append(item)
    assert seen == [1, 2]
    assert num_threads() == 0


def test_writing_behind_does_everything_in_order():
    done = []
    behind = WriteBehind(done.append, 2)
    for item in range(50):
        behind.put(item)
    behind.finish()
    assert done == list(range(50))
    assert num_threads() == 0


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_errors_of_writing_end_it(kind):
    def work(item):
        if item == 3:
            raise kind("full")

    behind = WriteBehind(work, 2)
    with pytest.raises(kind):
        for item in range(100):
            behind.put(item)
        behind.finish()
    behind.abort()
    assert num_threads() == 0


def test_aborting_drops_what_waits():
    started, release = threading.Event(), threading.Event()
    done = []

    def work(item):
        started.set()
        release.wait(5)
        done.append(item)

    behind = WriteBehind(work, 8)
    for item in range(5):
        behind.put(item)
    started.wait(5)
    threading.Timer(0.1, release.set).start()
    behind.abort()
    assert done == [0]


def test_waiting_frames_are_few_where_they_are_large():
    assert waiting_frames(64, 64) == 32
    assert waiting_frames(1080, 1920) == 16
    assert waiting_frames(8192, 8192) == 2
