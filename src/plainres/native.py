"""The native engine: a step in this project's own kernels, for the basic block in float32 on the CPU."""

import contextlib
import ctypes
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from plainres.errors import Unavailable
from plainres.step import Work, set_learning_rate
from plainres.trunk import Trunk


class Native:
    """The trunk in the kernels, classifier, loss and update in PyTorch. The bits are the same on any number of threads.

    Unavailable where there is no compiler, or the network or the precision is not one the kernels know.
    """

    def __init__(self, work: Work, *, segment: int = 0) -> None:
        """With `segment` blocks to a segment, the rest is computed again: see `Trunk`."""
        if work.precision != "float32":
            raise Unavailable(f"the kernels compute in float32, not in {work.precision}")
        before = time.perf_counter()
        self.work = work
        self.trunk = Trunk(work.network, work.batch_size, segment=segment)
        self.network = self.trunk.network
        self.scales = [group.get("lr_scale", 1.0) for group in work.optimizer.param_groups]
        self.compile_seconds = time.perf_counter() - before

    def step(self, number: int, learning_rate: float) -> None:
        """Train on the batch of step `number`."""
        work = self.work
        set_learning_rate(work, self.scales, number, learning_rate)
        images, labels = work.batches[number]
        features = self.trunk.forward(images, training=True).requires_grad_()
        work.optimizer.zero_grad(set_to_none=True)
        with _one_thread():
            logits = self.network.classify(features)
            loss = F.cross_entropy(logits, labels, label_smoothing=work.recipe.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
        assert features.grad is not None
        self.trunk.backward(features.grad)
        work.update(number, logits, labels, loss)

    def logits(self, inputs: Tensor) -> Tensor:
        """Normalized images (N, 3, 32, 32) to logits (N, classes), of a network in evaluation mode."""
        parts = torch.split(inputs, self.trunk.images)
        features = torch.cat([self.trunk.forward(part, training=False) for part in parts])
        with _one_thread():
            return self.network.classify(features)

    def profile(self, number: int = 0, learning_rate: float = 0.0) -> dict[str, float]:
        """Take a step and say where its seconds went: in the trunk by category, and the rest."""
        net = self.trunk.net
        ctypes.memset(net.seconds, 0, ctypes.sizeof(net.seconds))
        net.profile = 1
        before = time.perf_counter()
        try:
            self.step(number, learning_rate)
        finally:
            net.profile = 0
        whole = time.perf_counter() - before
        spent = {name: seconds / torch.get_num_threads() for name, seconds in self.trunk.seconds().items()}
        return {**spent, "other": whole - sum(spent.values())}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch's matrix products add up in another order on another number of threads; the classifier's are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
