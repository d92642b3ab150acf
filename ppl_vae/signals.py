"""Ctrl-C and SIGTERM as a request that a loop answers between two steps."""

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Stop", "Stopped"]


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and has been saved.

    Args:
        step: steps taken.
        number: of the signal.
    """

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; a checkpoint is written")
        self.step, self.number = step, number


class Stop:
    """Within, the first SIGINT or SIGTERM is remembered as `requested`; a second one interrupts at once.

    Python delivers signals to the main thread: in others this does nothing.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.requested = number
