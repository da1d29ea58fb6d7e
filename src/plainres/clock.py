"""Training seconds: synchronised, without evaluation and saving, surviving a resume."""

import contextlib
import time
from collections.abc import Iterator

import torch

from plainres import machine


class Clock:
    """Counts the seconds a device trains; does not run until it is started."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0  # up to the last pause
        self._since: float | None = None  # while it runs

    def start(self) -> None:
        """Let it run."""
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop it, once the device has done what was asked of it, until what is inside has ended well."""
        machine.synchronize(self.device)
        self.seconds = self.elapsed()
        self._since = None
        yield
        self.start()

    def elapsed(self) -> float:
        """Training seconds so far, to the host's knowledge."""
        return self.seconds + (time.perf_counter() - self._since if self._since is not None else 0.0)
