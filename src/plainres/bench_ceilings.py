"""What a machine can do at best: large matrix products, and a large copy."""

import math
import time
from collections.abc import Callable, Sequence

import torch

from plainres import machine

SIZES = (1024, 2048, 4096)
COPY_BYTES = 512 * 2**20
_LEAST_SECONDS = {"cpu": 0.1, "cuda": 0.02}  # of one reading: long beside the clock and the launch


class Stopwatch:
    """The seconds that something takes on a device, nothing queued before or left after it."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.now = device, now

    def __call__(self, work: Callable[[], object], times: int = 1) -> float:
        """Seconds of one `work()`, the mean of so many."""
        machine.synchronize(self.device)
        start = self.now()
        for _ in range(times):
            work()
        machine.synchronize(self.device)
        return (self.now() - start) / times


class Ceilings:
    """Matrix products of the sizes and precisions given, and a copy; all memory is taken at the start."""

    def __init__(
        self, watch: Stopwatch, precisions: Sequence[str], sizes: Sequence[int] = SIZES, copy_bytes: int = COPY_BYTES
    ) -> None:
        self._watch, device = watch, watch.device
        self._products = {name: {size: _product(name, size, device) for size in sizes} for name in precisions}
        # written once: pages that nobody wrote are all one page of zeros, which copies faster than memory can
        source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
        target = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
        self.copy_bytes = copy_bytes
        self._copy = lambda: target.copy_(source)
        self._times: dict[Callable[[], object], int] = {}

    def products(self) -> dict[str, dict[int, float]]:
        """FLOP/s by precision and size, each product done often enough to be timed."""
        found: dict[str, dict[int, float]] = {}
        for name, by_size in self._products.items():
            with machine.exact(self._watch.device, name):
                found[name] = {size: 2 * size**3 / self._seconds(product) for size, product in by_size.items()}
        return found

    def copy(self) -> float:
        """Bytes read and written in a second."""
        return 2 * self.copy_bytes / self._seconds(self._copy)

    def _seconds(self, work: Callable[[], object]) -> float:
        if work not in self._times:
            work()
            least = _LEAST_SECONDS.get(self._watch.device.type, 0.02)
            self._times[work] = max(1, min(1000, math.ceil(least / max(self._watch(work), 1e-9))))
        return self._watch(work, self._times[work])


def _product(precision: str, size: int, device: torch.device) -> Callable[[], object]:
    drawn = torch.Generator().manual_seed(size)  # numbers as in a training: a chip clocks higher on zeros
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(size, size, generator=drawn).to(device, kind) for _ in ("left", "right"))
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)
