"""What is measured in turns: an engine of ours, the way everybody writes it, and the data path."""

import contextlib
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from plainres import engines, machine, recipes
from plainres.bench_ceilings import Stopwatch
from plainres.data.dataset import Batches, Dataset, Part
from plainres.errors import Unavailable, UserError
from plainres.network import build
from plainres.recipe import Recipe
from plainres.spec import NetworkSpec
from plainres.step import Engine, Window, Work, sgd
from plainres.summary import operations

# That of the 110-layer warm-up: the same batch again and again at the full rate could leave the finite numbers.
LEARNING_RATE = recipes.named("paper").error_warmup_learning_rate
_WARMUP_STEPS = {"cpu": 3}
_DATA_TIMES = 5  # batches of one reading


class Steps(Protocol):
    """What is timed step by step."""

    def step(self, number: int, learning_rate: float, /) -> None: ...


class Side:
    """One of those measured in turns, under the settings of our trainings in `precision`; None: with none of ours."""

    def __init__(self, runner: Steps, watch: Stopwatch, precision: str | None) -> None:
        self.runner, self.watch, self._precision, self._done = runner, watch, precision, 0

    def step(self) -> None:
        """One step, of the number after the last one's."""
        self.runner.step(self._done, LEARNING_RATE)
        self._done += 1

    def settings(self) -> contextlib.AbstractContextManager[None]:
        """How PyTorch is set while this side runs."""
        device, precision = self.watch.device, self._precision
        return contextlib.nullcontext() if precision is None else machine.exact(device, precision)

    def seconds(self, steps: int) -> float:
        """The seconds of a step, the mean of so many."""
        with self.settings():
            return self.watch(self.step, steps)

    def warm_up(self) -> int:
        """Run steps that do not count; returns how many."""
        count = _WARMUP_STEPS.get(self.watch.device.type, 10)
        self.seconds(count)
        return count


class MadeUp(Dataset):
    """Images that never were pictures, as many as asked for: what a step costs depends on their shape alone."""

    def __init__(self, images: int, device: torch.device) -> None:
        drawn = torch.Generator().manual_seed(0)
        some = torch.randint(0, 256, (min(1000, images), 3, 32, 32), dtype=torch.uint8, generator=drawn)
        pixels = some.repeat(-(-images // len(some)), 1, 1, 1)[:images].to(device)
        labels = torch.arange(images, device=device) % 2  # every network has two classes
        self.name, self.hash, self.generated, self.path = "made up", "", True, Path()
        self.classes, self.device = ("0", "1"), device
        self._splits = {"train": Part("train", pixels, labels, torch.full_like(labels, -1))}


class Resident(Batches):
    """One batch, again and again: what every side trains on, but an engine whose step looks up its own images.

    `asked` says whether the batch was, and so whether the data path is beside the step or in it.
    """

    asked = False

    def __init__(self, dataset: Dataset, recipe: Recipe) -> None:
        super().__init__(dataset, 0, recipe)
        self.batch = super().__getitem__(0)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch, whatever the step."""
        self.asked = True
        return self.batch

    def looked_up(self) -> tuple[Tensor, Tensor]:
        """The batch made as in training: looked up, cropped, mirrored, normalized."""
        return super().__getitem__(0)


def data_seconds(batches: Resident, watch: Stopwatch) -> float:
    """The seconds of making one batch, without the drawing of its random numbers."""
    return watch(batches.looked_up, _DATA_TIMES)


def draw_seconds(batches: Resident, watch: Stopwatch) -> float:
    """The seconds of one batch's random numbers, which are drawn for many batches at once."""
    return min(watch(lambda: batches.draws(0)) for _ in range(3)) / batches.chunk_steps


def engine(name: str, spec: NetworkSpec, batches: Resident, precision: str) -> tuple[str, Engine, list[str]]:
    """An engine of ours, all made as a training makes it; its name before it, and after it why others cannot be had.

    "auto" is the one that a training by the whole recipe gets. UserError where there is no such engine here.
    """
    device, recipe = batches.part.images.device, batches.recipe
    network = build(spec)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    work = Work(network, sgd(network, recipe), recipe, batches, Window(device, recipe.batch_size), precision)
    whole = recipe.steps * recipe.batch_size * operations(network)
    names = engines.candidates(network, device, precision, whole) if name == "auto" else [name]
    reasons: list[str] = []
    with machine.exact(device, precision):
        for candidate in names:
            try:
                return candidate, engines.make(candidate, work), reasons
            except Unavailable as error:
                reasons.append(f"engine '{candidate}': {error}")
    raise UserError("; ".join(reasons))


class Usual:
    """A module in NCHW, eager, autocast where bfloat16, `torch.optim.SGD` as it comes; no setting touched."""

    def __init__(self, spec: NetworkSpec, batch: tuple[Tensor, Tensor], precision: str) -> None:
        images, self.labels = batch
        self.images = images.contiguous()
        self.device, self.half = images.device.type, precision == "bfloat16"
        self.network = build(spec).to(images.device)
        self.network.train()
        parameters = self.network.parameters()
        self.optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)

    def step(self, _number: int, _learning_rate: float) -> None:
        """Train on the batch once more."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            loss = F.cross_entropy(self.network(self.images), self.labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
