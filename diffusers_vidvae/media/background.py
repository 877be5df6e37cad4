"""Reading ahead and writing behind in threads, while a model works."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar


T = TypeVar("T")

# Memory that waiting frames may take.
_WAITING_BYTES = 96 * 2**20


def waiting_frames(height: int, width: int) -> int:
    """How many RGB frames may wait in a queue, 2 at least."""
    return max(2, min(32, _WAITING_BYTES // (3 * height * width)))


def read_ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The items of an iterator, of which a thread takes up to `depth` ahead, beginning with the first one asked for.

    What the iterator raises is raised in its place. The thread ends with the last item, or when the result is closed.
    """
    taken: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def hand_over(kind: str, value: Any) -> None:
        while not stop.is_set():
            try:
                return taken.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                hand_over("item", item)
                if stop.is_set():
                    return
            hand_over("end", None)
        except BaseException as error:
            hand_over("error", error)

    thread = threading.Thread(target=run, name="vidvae-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = taken.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()


class WriteBehind(Generic[T]):
    """Does `work` for one item after the other in a thread, with up to `depth` of them waiting.

    What `work` raises is raised by the next `put`, or by `finish`; items behind it are dropped.
    """

    def __init__(self, work: Callable[[T], None], depth: int):
        self._work = work
        self._waiting: queue.Queue[T | None] = queue.Queue(depth)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="vidvae-write-behind", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Hands over an item; waits while the queue is full."""
        self._put(item)
        self._raise()

    def finish(self) -> None:
        """Waits until all items are done."""
        self._put(None)
        self._thread.join()
        self._raise()

    def abort(self) -> None:
        """Drops what waits, and waits for the item at work."""
        self._stop.set()
        self._thread.join()

    def _put(self, item: T | None) -> None:
        while self._error is None:
            try:
                return self._waiting.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                item = self._waiting.get(timeout=0.1)
            except queue.Empty:
                continue
            if item is None:
                return
            try:
                self._work(item)
            except BaseException as error:
                self._error = error
                return
