"""Leaving a long loop in order: when the time is up, or when somebody asks for it."""

import signal
import time


class StopRequest:
    """True once the time is up or the process was asked to stop (Ctrl-C, SIGTERM): a loop can then save and leave."""

    def __init__(self, max_minutes: float | None):
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
        self.signal_number = 0

    def __bool__(self) -> bool:
        return bool(self.signal_number) or time.monotonic() > self.deadline

    def __enter__(self) -> "StopRequest":
        self.previous = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _request(self, signal_number: int, frame) -> None:
        self.signal_number = signal_number
