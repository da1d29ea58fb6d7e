"""Evaluation: always in evaluation mode, integer misses, the network left as it was."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainres import fields, machine, recipes, weights
from plainres.data.dataset import PARTS, Dataset, Part, dataset
from plainres.data.records import Progress
from plainres.distributed import ALONE, World
from plainres.errors import Stopped, UserError, unknown
from plainres.normalization import Normalization
from plainres.recipe import Recipe
from plainres.statistics import interval

BATCH = 500  # images evaluated at once


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Logits float32 (N, classes) of a part in its order, its labels (N,), and what they come to."""

    split: str
    logits: Tensor
    labels: Tensor
    misses: int
    loss: float
    classes: tuple[str, ...]
    data_name: str = ""
    data_hash: str = ""

    @property
    def images(self) -> int:
        """How many images were evaluated."""
        return len(self.labels)

    @property
    def error(self) -> float:
        """The top-1 error, a fraction."""
        return self.misses / self.images

    @property
    def error_interval(self) -> tuple[float, float]:
        """The 95 % interval of the error as a binomial proportion."""
        return interval(self.misses, self.images)

    @property
    def confusion(self) -> Tensor:
        """How many images of class i (row) were taken for class j (column): int64 (classes, classes)."""
        count = len(self.classes)
        pairs = self.labels * count + self.logits.argmax(1)
        return torch.bincount(pairs, minlength=count * count).view(count, count)

    @property
    def class_errors(self) -> dict[str, float]:
        """The error of each class that has images."""
        confusion = self.confusion
        wrong, total = confusion.sum(1) - confusion.diag(), confusion.sum(1)
        return {c: int(w) / int(t) for c, w, t in zip(self.classes, wrong, total, strict=True) if t}


@torch.no_grad()
def evaluate_part(
    network: nn.Module,
    part: Part,
    normalization: Normalization,
    classes: tuple[str, ...],
    *,
    logits: Callable[[Tensor], Tensor] | None = None,
    precision: str = "float32",
    batch: int = BATCH,
    should_stop: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> Evaluation:
    """Evaluate `network` on a part on the device where both are; Stopped if `should_stop` says so on the way.

    The processes of a `world` take its batches in turn, and each has the whole result.

    `logits` is an engine's way of running this very network, float32 out; without it, it is run as it stands.
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        found: list[Tensor] = []
        batches = torch.split(part.images, batch)
        for first in range(0, len(batches), world.size):
            if should_stop():
                raise Stopped("stopped during an evaluation")
            if first + world.rank >= len(batches):
                continue
            images = batches[first + world.rank]
            inputs = normalization(images).contiguous(memory_format=torch.channels_last)
            if logits is not None:
                found.append(logits(inputs))
                continue
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                found.append(network(inputs).float())
    finally:
        for module in training:
            module.training = True
    each = world.gather([logits.cpu() for logits in found])  # not every device has float64
    whole = torch.cat([each[i % world.size][i // world.size] for i in range(len(batches))])
    labels = part.labels.cpu()
    if whole.shape[1] != len(classes):
        raise UserError(f"the network has {whole.shape[1]} outputs, the data {len(classes)} classes")
    misses = int((whole.argmax(1) != labels).sum())
    loss = float(F.cross_entropy(whole.double(), labels))
    return Evaluation(part.name, whole, labels, misses, loss, classes)


def evaluate(
    what: str | Path | nn.Module,
    data: str | Path | Dataset | None = None,
    *,
    split: str = "test",
    recipe: str | Recipe = "paper",
    device: str = "auto",
    precision: str = "float32",
    progress: Progress | None = None,
) -> Evaluation:
    """The error of a weights file, a run directory, a Classifier, or any module.

    A module from outside gets images normalized as `recipe` has it, and is moved to the data's device. `split` is
    "test", "train" or "val", the last two as the weights' own recipe (or `recipe`) divides the training set.
    `progress` is told of data being prepared. UserError where weights and data do not belong together.
    """
    machine.precision(precision)
    if split not in PARTS:
        raise unknown("split", split, PARTS)
    what = weights.load(what) if isinstance(what, (str, Path)) else what
    target = machine.device(device)
    machine.precision(precision, target)
    network, inputs, classes = what, None, None
    if isinstance(what, weights.Classifier):
        network, inputs, classes = what.network, what.normalization, what.classes
        recipe = _recipe_of(what.about, recipe)
    chosen = recipes.resolve(recipe)
    whole = data if isinstance(data, Dataset) else dataset(data, target, progress=progress)
    if classes not in (None, whole.classes):
        raise UserError(f"these weights know the classes {_listed(classes)}, the data has {_listed(whole.classes)}")
    part = whole.part(split, chosen.validation_images)
    normalization = inputs.to(whole.device) if inputs else whole.normalization(chosen)
    network.to(whole.device)
    with machine.exact(whole.device, precision):
        found = evaluate_part(network, part, normalization, whole.classes, precision=precision)
    return replace(found, data_name=whole.name, data_hash=whole.hash)


def _listed(classes: Sequence[str] | None) -> str:
    names = list(classes or ())
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")


def _recipe_of(about: dict[str, Any], otherwise: str | Recipe) -> str | Recipe:
    recorded = about.get("recipe")
    return fields.from_json(Recipe, recorded, "the weights' recipe") if recorded else otherwise
