"""One training step, and the window of the last hundred."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from plainres import streams
from plainres.distributed import ALONE, World
from plainres.recipe import Recipe
from plainres.streams import Stream

WINDOW = 100  # steps between readings of loss and error

OptimizerFactory = Callable[[Iterable[nn.Parameter], float], Optimizer]
"""(parameters, learning rate) to an optimizer. Each step sets "lr" of its groups, times their "lr_scale" if any."""


class Window:
    """Loss and misses of the steps since the last reading, kept on the device so that no step waits for the host."""

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self.losses = torch.zeros(WINDOW, dtype=torch.float32, device=device)
        self.misses = torch.zeros(WINDOW, dtype=torch.int64, device=device)
        self.batch_size = batch_size

    def put(self, step: int, loss: Tensor, misses: Tensor) -> None:
        """Keep what step number `step` gave."""
        self.losses[step % WINDOW] = loss
        self.misses[step % WINDOW] = misses

    def read(self, done: int) -> dict[str, Any]:
        """Loss, error, misses and images of the window that ends after `done` steps; waits for the device."""
        count = (done - 1) % WINDOW + 1
        misses, images = int(self.misses[:count].sum()), count * self.batch_size
        loss = float(self.losses[:count].cpu().double().mean())  # not every device has float64
        return {"loss": loss, "error": misses / images, "misses": misses, "images": images}

    def first_not_finite(self, done: int) -> int | None:
        """The first step of the window that ends after `done` steps whose loss is not finite."""
        count = (done - 1) % WINDOW + 1
        losses = self.losses[:count].tolist()
        return next((done - count + i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it."""
        return {"losses": self.losses, "misses": self.misses}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.losses.copy_(state["losses"])
        self.misses.copy_(state["misses"])


class Batches(Protocol):
    """What gives the batch of a step: images float32 (B, 3, 32, 32), augmented and normalized, labels int64 (B,)."""

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, eq=False)
class Work:
    """What an engine trains: the network on its device, the optimizer of its parameters, batches, and the window."""

    network: nn.Module
    optimizer: Optimizer
    recipe: Recipe
    batches: Batches
    window: Window
    precision: str = "float32"
    seed: int = 0
    draws: bool = False  # the network may draw from PyTorch's generator (dropout), which then is seeded at each step
    world: World = ALONE  # the batches are this process's part of it
    sync_bn: bool = False  # BN layers talk to the other processes

    @property
    def batch_size(self) -> int:
        """Images of a batch that this process computes."""
        return self.recipe.batch_size // self.world.size

    def update(self, number: int, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """What follows the backward pass of step `number`: the network's update, and the window's."""
        misses = (logits.detach().argmax(1) != labels).sum()
        loss, misses = self.world.averaged(self.network, loss.detach(), misses)
        self.optimizer.step()
        self.window.put(number, loss, misses)


class Engine(Protocol):
    """Runs the steps of one training; each engine is one way of doing so."""

    work: Work
    compile_seconds: float

    def step(self, number: int, learning_rate: float) -> None:
        """Train on the batch of step `number`; its loss and its misses go into the window."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Normalized images (N, 3, 32, 32) to logits float32 (N, classes), of a network in evaluation mode."""


class Eager:
    """Forward, loss, backward, update, operation by operation: the reference for every faster engine."""

    compile_seconds = 0.0

    def __init__(self, work: Work) -> None:
        self.work = work
        self.scales = [group.get("lr_scale", 1.0) for group in work.optimizer.param_groups]

    def step(self, number: int, learning_rate: float) -> None:
        """Train on the batch of step `number`."""
        work = self.work
        if work.draws:
            own = number * work.world.size + work.world.rank
            torch.manual_seed(int(streams.words(work.seed, Stream.DROPOUT, own, 1)[0] >> np.uint64(1)))
        set_learning_rate(work, self.scales, number, learning_rate)
        images, labels = work.batches[number]
        logits = self.logits(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=work.recipe.label_smoothing)
        work.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        work.update(number, logits, labels, loss)

    def logits(self, inputs: Tensor) -> Tensor:
        """Normalized images (N, 3, 32, 32) to logits float32 (N, classes)."""
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.work.precision == "bfloat16"):
            logits: Tensor = self.work.network(inputs)
        return logits.float()


def set_learning_rate(work: Work, scales: list[float], number: int, learning_rate: float) -> None:
    """Set the rate of a step, and clear the momentum where the recipe does at its drops."""
    for group, scale in zip(work.optimizer.param_groups, scales, strict=True):
        group["lr"] = learning_rate * scale
    if work.recipe.reset_momentum_at_drops and number in work.recipe.drops:
        work.optimizer.state.clear()


@contextlib.contextmanager
def own_generator(device: torch.device, *, draws: bool) -> Iterator[None]:
    """Leave PyTorch's generators as found, where a network `draws` from them."""
    with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=draws):
        yield


def sgd(network: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's stochastic gradient descent; with decay "weights", biases and BN are not decayed."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": recipe.weight_decay}]
    if recipe.decay == "weights":
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=fused,
    )


def is_due(done: int, every: int) -> bool:
    """Whether what happens every so many steps (0: never) happens after `done` steps."""
    return every > 0 and done % every == 0
