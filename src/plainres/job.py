"""What a run is: names and flags resolved into values, before anything is computed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from plainres import fields, machine, recipes
from plainres.data.dataset import Dataset, dataset
from plainres.errors import UserError, unknown
from plainres.network import build
from plainres.recipe import Recipe, steps_of, with_steps
from plainres.spec import NetworkSpec
from plainres.step import OptimizerFactory

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, eq=False)
class Job:
    """One training, fully decided: the network initialized, the data resident, the recipe with its steps."""

    network: nn.Module
    network_name: str
    spec: NetworkSpec | None  # None: a network from outside
    recipe: Recipe
    data: Dataset
    seed: int
    precision: str
    device: torch.device
    optimizer: OptimizerFactory | None = None

    @property
    def depth(self) -> int | None:
        """Weighted layers, where they are known."""
        return self.spec.depth if self.spec else None

    @property
    def network_facts(self) -> dict[str, Any]:
        """The network as `run.json` and weights files have it."""
        if self.spec:
            return fields.to_json(self.spec)
        kind = type(self.network)
        count = sum(p.numel() for p in self.network.parameters())
        return {"module": f"{kind.__module__}.{kind.__qualname__}", "parameters": count}

    @property
    def identity(self) -> dict[str, Any]:
        """The content of `run.json`: equal for the same run, and different for any other."""
        identity = {
            "format": 1,
            "network": self.network_facts,
            "recipe": fields.to_json(self.recipe),
            "seed": self.seed,
            "steps": self.recipe.steps,
            "validation_images": self.recipe.validation_images,
            "precision": self.precision,
            "world_size": 1,
            "data": self.data.name,
            "data_hash": self.data.hash,
        }
        if self.optimizer is not None:
            identity["optimizer"] = getattr(self.optimizer, "__qualname__", type(self.optimizer).__qualname__)
        return identity

    @property
    def directory_name(self) -> str:
        """How the name of its run directory starts."""
        return f"{self.network_name}-{self.recipe.name}-s{self.seed}"


def resolve(
    network: str | NetworkSpec | nn.Module,
    recipe: str | Recipe,
    data: str | Dataset | None,
    *,
    seed: int,
    steps: int | None,
    epochs: float | None,
    device: str,
    precision: str,
    optimizer: OptimizerFactory | None,
) -> Job:
    """The job that these names stand for; every mistake is found here, before the data is opened if it can be."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if not 0 <= seed < 2**64:
        raise UserError(f"seed {seed} is not between 0 and 2^64 - 1")
    if steps is not None and epochs is not None:
        raise UserError("give --steps or --epochs, not both")
    if (steps is not None and steps < 1) or (epochs is not None and not epochs > 0):
        raise UserError("--steps and --epochs must be above 0")
    chosen = recipes.resolve(recipe)
    spec = NetworkSpec.named(network) if isinstance(network, str) else network
    target = data.device if isinstance(data, Dataset) else machine.device(device)
    resident = data if isinstance(data, Dataset) else dataset(data, target)
    images = len(resident.part("train", chosen.validation_images).labels)
    if epochs is not None:
        steps = steps_of(epochs, images, chosen.batch_size)
    chosen = with_steps(chosen, steps) if steps is not None else chosen
    module, known, name = _network(spec, len(resident.classes), seed)
    module.to(device=target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Job(module, name, known, chosen, resident, seed, precision, target, optimizer)


def _network(network: NetworkSpec | nn.Module, classes: int, seed: int) -> tuple[nn.Module, NetworkSpec | None, str]:
    """The module to train, its spec if it is one of ours, and its name."""
    if isinstance(network, NetworkSpec):
        spec = network.with_classes(classes)
        return build(spec, seed=seed), spec, spec.name
    return network, None, type(network).__name__
