"""How far the reading or sending of a checkpoint's files has come, for people who wait for it."""

import time
from collections.abc import Callable

from trainer.tracking.console import duration

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A line every ten seconds, with the time that is left: ``checking step_00001234: 40%, ETA 12 s``."""

    def __init__(self, what: str, total: int, say: Callable[[str], None]):
        """`total`: bytes."""
        self._what, self._total, self._say = what, total, say
        self._done, self._started = 0, time.monotonic()
        self._next_line = self._started + SECONDS_BETWEEN_LINES

    def at(self, position: int) -> None:
        """`position`: bytes of the file under way that are past."""
        now, done = time.monotonic(), self._done + position
        if now >= self._next_line and done:
            self._next_line = now + SECONDS_BETWEEN_LINES
            left = (now - self._started) * (self._total - done) / done
            self._say(f"{self._what}: {done / self._total:.0%}, ETA {duration(left)}")

    def done(self, size: int) -> None:
        """A file of that many bytes is past."""
        self._done += size
