"""Ending a run in good order when its user or the machine asks for it."""

import signal
from types import FrameType


class Interrupt:
    """While it is entered, SIGINT and SIGTERM only set `requested`; a second one acts as it would otherwise."""

    def __init__(self):
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
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
