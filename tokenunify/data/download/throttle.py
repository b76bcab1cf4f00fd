"""The limit of the rate at which a stage's threads download."""

import threading
import time


class Throttle:
    """Makes all threads that share it wait, so that no more than so many bytes per second arrive together."""

    def __init__(self, max_mb_per_second: float | None = None):
        self.rate = None if max_mb_per_second is None else max_mb_per_second * 1e6
        self.free, self.turn = 0.0, threading.Lock()

    def spend(self, num_bytes: int) -> None:
        """Wait until this many bytes may have arrived."""
        if self.rate is None:
            return
        with self.turn:
            now = time.monotonic()
            self.free = max(self.free, now) + num_bytes / self.rate
            pause = self.free - now
        time.sleep(pause)
