"""Ends a run cleanly at SIGINT or SIGTERM."""

import signal
import threading
from types import FrameType


class Interrupt:
    """A context manager in which the first SIGINT or SIGTERM only sets `requested`; a second signal has its usual effect.

    Python delivers signals to the main thread only. In any other thread (of a notebook's kernel, of a server) signals keep their
    usual effect, and `requested` stays False.
    """

    def __init__(self):
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not None:  # a handler not set from Python could not be restored
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
