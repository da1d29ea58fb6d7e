"""Activation checkpointing: only what enters a few blocks is kept for the backward pass, the rest computed again."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor, is_grad_enabled, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from plainres.errors import Unavailable
from plainres.network import Network
from plainres.step import Eager, Work

Step = Callable[[Tensor], Tensor]


def stages(network: Network) -> tuple[nn.Sequential, ...]:
    """The stages of a network, in the order they run."""
    return network.stage1, network.stage2, network.stage3


def norms(modules: Iterable[nn.Module]) -> list[_BatchNorm]:
    """The BN layers inside `modules`."""
    return [inner for module in modules for inner in module.modules() if isinstance(inner, _BatchNorm)]


def run(modules: Sequence[nn.Module], x: Tensor, segment: int, steps: Sequence[Step] | None = None) -> Tensor:
    """`x` through `modules` in turn; of each `segment` of so many, the inside is not kept (0: all is kept).

    `steps` are what computes each module, where that is not its own forward. Same bits, statistics included.
    """
    steps = steps or list(modules)
    if segment < 1 or not is_grad_enabled():
        return _chain(steps)(x)
    for first in range(0, len(modules), segment):
        part = slice(first, first + segment)
        x = _checkpointed(_chain(steps[part]), norms(modules[part]), x)
    return x


class Recomputed(Eager):
    """As `Eager`, to the last bit, with the inside of each `segment` of so many blocks computed again."""

    def __init__(self, work: Work, segment: int) -> None:
        super().__init__(work)
        if not isinstance(work.network, Network):
            raise Unavailable("the network is not one of plainres, so its blocks are not known")
        self.network, self.segment = work.network, segment

    def logits(self, inputs: Tensor) -> Tensor:
        """Normalized images (N, 3, 32, 32) to logits float32 (N, classes)."""
        with applied(self.network, self.segment):
            return super().logits(inputs)


@contextlib.contextmanager
def applied(network: Network, segment: int) -> Iterator[None]:
    """A forward pass of `network` inside is one that recomputes, whoever calls it; its names and state stay."""
    for stage in stages(network):
        vars(stage)["forward"] = lambda x, blocks=list(stage): run(blocks, x, segment)
    try:
        yield
    finally:
        for stage in stages(network):
            del vars(stage)["forward"]


def _chain(steps: Sequence[Step]) -> Step:
    def forward(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return forward


def _checkpointed(forward: Step, inside: list[_BatchNorm], x: Tensor) -> Tensor:
    # Nothing here draws, and asking for the generator's state would wait for the device.
    result: Tensor = checkpoint(
        forward,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (contextlib.nullcontext(), spared(inside)),
    )
    return result


@contextlib.contextmanager
def spared(inside: list[_BatchNorm]) -> Iterator[None]:
    """While entered, the BN layers compute as ever, and their running statistics stay as they are.

    A footgun: a recomputation in training mode is a second forward pass, and would update them twice.
    """
    kept = [(norm, norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in inside]
    for norm, mean, variance, _ in kept:
        # Copies, not None: what is saved for the backward pass must be of the same number and shapes.
        norm.running_mean = None if mean is None else mean.clone()
        norm.running_var = None if variance is None else variance.clone()
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, mean, variance, count in kept:
            norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, variance, count


@contextlib.contextmanager
def uncounted(inside: list[_BatchNorm]) -> Iterator[list[Tensor]]:
    """While entered, the BN layers do not count their batches; the counters that this leaves to the caller."""
    counters = [norm.num_batches_tracked for norm in inside]
    for norm in inside:
        norm.num_batches_tracked = None
    try:
        yield [counter for counter in counters if counter is not None]
    finally:
        for norm, counter in zip(inside, counters, strict=True):
            norm.num_batches_tracked = counter
