"""Now and then a line that says how far a long evaluation has come."""

import time
from collections.abc import Callable

from trainer.tracking.console import duration

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Call it with what is done of `total`; every ten seconds `say` hears of it, with an estimate of the time left."""

    def __init__(self, say: Callable[[str], None], what: str, total: int, unit: str = "images"):
        self._say, self._what, self._total, self._unit = say, what, total, unit
        self._start = time.monotonic()
        self._next_line = self._start + SECONDS_BETWEEN_LINES

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now < self._next_line or not done:
            return
        self._next_line = now + SECONDS_BETWEEN_LINES
        speed = done / (now - self._start)
        self._say(
            f"{self._what}: {done:,} of {self._total:,} {self._unit}, {speed:,.0f} a second, "
            f"ETA {duration((self._total - done) / speed)}"
        )
