"""A run that is wanted: a value that knows its directory and its command."""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer

from plainres import fields as typed
from plainres import job as jobs
from plainres import machine, recipes
from plainres.data.dataset import Dataset
from plainres.data.prepare import find_store
from plainres.data.records import Progress
from plainres.data.store import Store
from plainres.errors import UserError
from plainres.recipe import Recipe, scaled, with_steps
from plainres.run import Conduct
from plainres.runlog import identity_hash
from plainres.spec import NetworkSpec, known_names


@dataclass(frozen=True)
class Wanted:
    """One run, decided but not begun. `data` is how the user named the store, None: CIFAR-10."""

    network: NetworkSpec
    recipe: Recipe
    seed: int
    store: Store = field(hash=False)
    data: str | None = None
    out: Path = Path("runs")
    device: str = "auto"
    precision: str = "float32"
    conduct: Conduct = field(default_factory=Conduct)

    @cached_property
    def run_dir(self) -> Path:
        """The directory that `train` gives this run."""
        spec = self.network.with_classes(len(self.store.classes))
        job = jobs.Job(
            network=nn.Identity(),  # neither the network nor the optimizer decides the name, of a store its hash does
            network_name=spec.name,
            network_facts=typed.to_json(spec),
            depth=spec.depth,
            recipe=self.recipe,
            data=cast(Dataset, self.store),
            seed=self.seed,
            precision=self.precision,
            device=machine.device("cpu"),
            optimizer=cast(Optimizer, None),
            optimizer_facts=None,
        )
        return self.out / f"{job.directory_name}-{identity_hash(job.identity)}"

    @property
    def label(self) -> str:
        """What to call it in a line."""
        return f"{self.network.name}, recipe {self.recipe.name}, seed {self.seed}"

    def words(self) -> list[str]:
        """Its command as words: what differs from the defaults of `plainres train`."""
        words = ["plainres", "train", *network_words(self.network), *recipe_words(self.recipe)]
        words += ["--seed", str(self.seed), "--out", str(self.out)]
        words += [] if self.data is None else ["--data", self.data]
        for name in ("device", "precision"):
            words += _option(name, getattr(self, name), getattr(Wanted, name))
        for part in fields(Conduct):
            words += _option(part.name, getattr(self.conduct, part.name), part.default)
        return words

    @property
    def command(self) -> str:
        """Its command as one line for a shell."""
        return shlex.join(self.words())


def wanted(
    networks: Iterable[NetworkSpec],
    recipe: Recipe,
    seeds: Iterable[int],
    data: str | None = None,
    *,
    out: str | Path = "runs",
    device: str = "auto",
    precision: str = "float32",
    conduct: Conduct | None = None,
    progress: Progress | None = None,
) -> list[Wanted]:
    """A run of each network from each seed, the first seed of every network first. The store is opened once.

    Data that is not prepared yet is prepared, of which `progress` is told.
    """
    store, specs, how = find_store(data, progress), list(networks), conduct or Conduct()
    return [
        Wanted(spec, recipe, seed, store, data, Path(out), device, precision, how) for seed in seeds for spec in specs
    ]


@dataclass(frozen=True)
class Ended:
    """How one try of a run ended: an exit status of `train`, its last line, and whether it was `lost`.

    Lost is what did not fail by itself: it was killed, its machine died, or somebody asked it to stop.
    """

    run: Wanted
    status: int
    line: str = ""
    lost: bool = False


def _option(name: str, value: Any, default: Any) -> list[str]:
    if value == default:
        return []
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, _text(value)]


def network_words(spec: NetworkSpec) -> list[str]:
    """A network as words of a command: its nearest name and the fields that differ. The classes follow the data."""
    family, _, _ = NetworkSpec(kind=spec.kind, block="basic").name.partition("20")
    variants = dict.fromkeys(name.partition("-")[2] for name in known_names())
    bases: list[tuple[str, list[str]]] = []
    for name in [f"{family}{spec.depth}{'-' if variant else ''}{variant}" for variant in variants] + ["resnet20"]:
        try:
            bases.append((name, _differences(NetworkSpec.named(name), spec)))
        except UserError:  # no such depth or variant in this family
            continue
    name, differences = min(bases, key=lambda base: len(base[1]))
    return [name, *(word for difference in differences for word in ("--net", difference))]


def recipe_words(recipe: Recipe) -> list[str]:
    """The fewest words that make this recipe, each way of saying it tried out."""
    return min(_readings(recipe), key=len)


def _readings(recipe: Recipe) -> Iterator[list[str]]:
    for name in recipes.RECIPES:
        for scale in dict.fromkeys((1.0, recipe.scale)):
            for steps in (recipe.steps, None):
                try:
                    base = recipes.named(name)
                    near = _shortened(base, scale, steps)
                    differences = _differences(near, recipe)
                    made = _shortened(typed.override(base, differences, "recipe"), scale, steps)
                except UserError:  # a scale or steps that this one cannot have
                    continue
                if made == recipe:
                    words = ["--recipe", name, *(word for text in differences for word in ("--set", text))]
                    words += _option("scale", scale, 1.0) + _option("steps", steps, None)
                    yield words


def _shortened(recipe: Recipe, scale: float, steps: int | None) -> Recipe:
    made = scaled(recipe, scale)
    return made if steps is None else with_steps(made, steps)


def _differences(base: Any, wanted: Any) -> list[str]:
    """The assignments that make `wanted` of `base`."""
    changed = {part.name: getattr(wanted, part.name) for part in fields(wanted)}
    return [f"{name}={_text(value)}" for name, value in changed.items() if value != getattr(base, name)]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
