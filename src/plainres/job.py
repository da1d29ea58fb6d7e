"""What a run is: names and flags resolved into values, before anything is computed."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from plainres import fields, machine, recipes, weights
from plainres.data.dataset import Dataset, dataset
from plainres.data.records import Progress
from plainres.distributed import ALONE, World
from plainres.errors import UserError
from plainres.network import Network, build
from plainres.recipe import Recipe, steps_of, with_steps
from plainres.spec import NetworkSpec
from plainres.step import OptimizerFactory, sgd

_CLASSES = NetworkSpec().classes


@dataclass(frozen=True, eq=False)
class Job:
    """One training, fully decided: the network initialized, the data resident, the recipe with its steps."""

    network: nn.Module
    network_name: str
    network_facts: dict[str, Any]  # as `run.json` and weights files have it
    depth: int | None  # weighted layers; None for a network from outside
    recipe: Recipe
    data: Dataset
    seed: int
    precision: str
    device: torch.device
    optimizer: Optimizer
    optimizer_facts: str | None  # None: the recipe's own
    world: World = ALONE
    sync_bn: bool = False  # BN over the batch of all processes

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
            "world_size": self.world.size,
            "data": self.data.name,
            "data_hash": self.data.hash,
        }
        if self.world.size > 1:
            identity["sync_bn"] = self.sync_bn
        return identity if self.optimizer_facts is None else {**identity, "optimizer": self.optimizer_facts}

    @property
    def segment(self) -> int:
        """Blocks to a segment whose activations are computed again: that keeps the fewest activations at once."""
        blocks = 3 * self.network.spec.blocks if isinstance(self.network, Network) else 1
        return max(1, round(math.sqrt(blocks)))

    @property
    def directory_name(self) -> str:
        """How the name of its run directory starts."""
        return f"{self.network_name}-{self.recipe.name}-s{self.seed}"


def resolve(
    network: str | NetworkSpec | nn.Module,
    recipe: str | Recipe,
    data: str | Path | Dataset | None,
    *,
    seed: int,
    steps: int | None,
    epochs: float | None,
    device: str,
    precision: str,
    optimizer: OptimizerFactory | None,
    progress: Progress | None = None,
    world: World = ALONE,
    sync_bn: bool = False,
) -> Job:
    """The job that these names stand for; what is a mistake without the data is found before it is opened."""
    machine.precision(precision)
    _check_numbers(seed, steps, epochs)
    chosen = recipes.resolve(recipe)
    spec = NetworkSpec.named(network) if isinstance(network, str) else network
    sync_bn = sync_bn and world.size > 1
    _check_batch(chosen, spec, world, sync_bn=sync_bn)
    target = data.device if isinstance(data, Dataset) else device_of(device, world)
    machine.precision(precision, target)
    resident = opened(data, target, progress, world)
    images = len(resident.part("train", chosen.validation_images).labels)
    if epochs is not None:
        steps = steps_of(epochs, images, chosen.batch_size)
    if steps is not None:
        chosen = with_steps(chosen, steps)
    module, name, facts, depth = _network(spec, len(resident.classes), seed, chosen)
    module.to(device=target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    made = optimizer(module.parameters(), chosen.learning_rate) if optimizer else sgd(module, chosen)
    described = f"{type(made).__qualname__} {_digest(repr(made).encode())}" if optimizer else None
    return Job(module, name, facts, depth, chosen, resident, seed, precision, target, made, described, world, sync_bn)


def device_of(name: str, world: World) -> torch.device:
    """The device of a name; of several processes each has its own, by its number on its machine."""
    found = machine.device(name)
    if world.size > 1 and found.type == "mps":
        raise UserError("device 'mps' cannot be shared by processes; --device cpu can")
    if world.size > 1 and found.type == "cuda":
        found = found if found.index is not None else machine.device(f"cuda:{world.local_rank}")
        torch.cuda.set_device(found)
    return found


def opened(data: str | Path | Dataset | None, device: torch.device, progress: Progress | None, world: World) -> Dataset:
    """The data set, resident; of several processes on a machine, one prepares it where it has to be."""
    return data if isinstance(data, Dataset) else world.in_turn(lambda: dataset(data, device, progress=progress))


def _check_batch(recipe: Recipe, network: NetworkSpec | nn.Module, world: World, *, sync_bn: bool) -> None:
    batch = recipe.batch_size
    if batch % world.size:
        nearest = max(world.size, batch - batch % world.size)
        raise UserError(
            f"batch_size {batch} cannot be divided among {world.size} processes; --set batch_size={nearest} can"
        )
    together = batch if sync_bn else batch // world.size
    if isinstance(network, NetworkSpec) and network.fc_bn and together < 2:
        raise UserError("a network with BN on its classifier needs a batch_size of at least 2, in each process")


def _check_numbers(seed: int, steps: int | None, epochs: float | None) -> None:
    if not 0 <= seed < 2**64:
        raise UserError(f"seed {seed} is not between 0 and 2^64 - 1")
    if steps is not None and epochs is not None:
        raise UserError("give --steps or --epochs, not both")
    if steps is not None and steps < 1:
        raise UserError("--steps must be above 0")
    if epochs is not None and not (0 < epochs < math.inf):
        raise UserError("--epochs must be a number above 0")


def _network(
    network: NetworkSpec | nn.Module, classes: int, seed: int, recipe: Recipe
) -> tuple[nn.Module, str, dict[str, Any], int | None]:
    """The module to train, its name, what identifies it, and its depth if it is one of ours."""
    if isinstance(network, nn.Module):
        _check_stranger(network, classes)
        return network, type(network).__name__, _stranger_facts(network), None
    if network.classes not in (_CLASSES, classes):
        raise UserError(f"network field 'classes' is {network.classes}, the data has {classes} classes")
    spec = fields.replace(network, {"classes": classes}, "network")
    return build(spec, seed=seed), spec.name, fields.to_json(spec), spec.depth


def _check_stranger(network: nn.Module, classes: int) -> None:
    """Refuse at the start what would fail at the end."""
    if clash := [key for key in weights.RESERVED if key in network.state_dict()]:
        raise UserError(f"the network has a tensor called {clash[0]}, which weights files keep for themselves")
    training = [module for module in network.modules() if module.training]
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise UserError("the network has no parameters to train")
    network.eval()
    try:
        with torch.no_grad():
            found = tuple(network(torch.zeros(2, 3, 32, 32, device=parameter.device)).shape)
    except RuntimeError as error:
        raise UserError(f"the network does not take images (N, 3, 32, 32): {str(error).splitlines()[0]}") from error
    finally:
        for module in training:
            module.training = True
    if found != (2, classes):
        raise UserError(f"the network turns 2 images into {found}, expected {(2, classes)}, for {classes} classes")


def _stranger_facts(network: nn.Module) -> dict[str, Any]:
    """What identifies a network from outside: its class, its structure, and the numbers it starts from."""
    kind = type(network)
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "module": f"{kind.__module__}.{kind.__qualname__}",
        "structure": _digest(repr(network).encode()),
        "start": digest.hexdigest()[:16],
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
