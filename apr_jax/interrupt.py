"""Ending a run in good order when its user or the machine asks for it."""

import signal
import threading
from types import FrameType


class Interrupt:
    """While it is entered, SIGINT and SIGTERM only set `requested`; a second one acts as it would otherwise.

    Python hands signals to the main thread alone. In any other (of a notebook's kernel, of a server) they are left as they
    are, and `requested` stays False.
    """

    def __init__(self):
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not None:  # one that was not set from Python could not be put back
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
