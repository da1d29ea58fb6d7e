"""Runs grouped so that only seeds are ever averaged, and what groups differ by."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from plainres import fields, recipes, statistics
from plainres.errors import UserError
from plainres.recipe import Recipe, scaled, with_steps
from plainres.results import Run
from plainres.statistics import Array, Difference, McNemar, Spread


@dataclass(frozen=True, eq=False)
class Setting:
    """What must be equal for figures to stand in one table: recipe, steps, data, precision, part held out."""

    key: str
    recipe: Recipe
    data: str
    data_hash: str
    precision: str
    held_out: str
    world_size: int
    groups: list["Group"]

    @property
    def name(self) -> str:
        """In words: recipe, steps, data, and whatever is not usual."""
        unusual = _changed(self.recipe)
        unusual += [self.precision] if self.precision != "float32" else []
        unusual += [f"{self.world_size} processes"] if self.world_size > 1 else []
        unusual += ["errors on validation images"] if self.held_out == "val" else []
        unusual += [f"scaled to {self.recipe.scale:g} of its length"] if self.recipe.scale != 1 else []
        return ", ".join([f"{self.recipe.name}, {self.recipe.steps:,} steps, {self.data}", *unusual])

    def group(self, network: str) -> "Group | None":
        """The runs of a network, if there are any."""
        return next((group for group in self.groups if group.network == network), None)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seed alone."""

    network: str
    finished: list[Run]
    unfinished: list[Run]

    def spread(self, fact: str = "error") -> Spread | None:
        """The spread over seeds of a number of `result.json`; None if no run is finished or one lacks it."""
        values = [run.result[fact] for run in self.finished if run.result and run.result.get(fact) is not None]
        return statistics.spread(values) if values and len(values) == len(self.finished) else None

    @property
    def best(self) -> Spread | None:
        """The spread of the least errors over evaluations: for a column that says so."""
        values = [run.best for run in self.finished if run.best is not None]
        return statistics.spread(values) if values else None

    @property
    def nearest_mean(self) -> Run | None:
        """The finished run whose error is nearest the mean."""
        errors = [float(run.result["error"]) for run in self.finished if run.result]
        return self.finished[statistics.nearest_mean(errors)] if errors else None


def settings(runs: Iterable[Run]) -> list[Setting]:
    """Runs sorted into settings, and in each by network: what differs in more than the seed is never averaged."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        apart = {k: v for k, v in run.identity.items() if k not in ("network", "seed", "data")}
        found.setdefault(json.dumps(apart, sort_keys=True), []).append(run)
    return [_setting(key, members) for key, members in found.items()]


def _changed(recipe: Recipe) -> list[str]:
    """The fields in which a recipe differs from the one it is named after."""
    base = recipes.RECIPES.get(recipe.name.removesuffix(f"-x{recipe.scale:g}"))
    if base is None:
        return []
    usual = fields.to_json(with_steps(scaled(base(), recipe.scale), recipe.steps))
    return [f"{name}={value}" for name, value in fields.to_json(recipe).items() if value != usual.get(name)]


def _setting(key: str, runs: Sequence[Run]) -> Setting:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        facts = {k: v for k, v in run.identity["network"].items() if k != "start"}  # a seed makes another start
        groups.setdefault(json.dumps(facts, sort_keys=True), []).append(run)
    for kind, members in list(groups.items()):
        if len({run.seed for run in members}) < len(members):  # one seed, several starts: not the seed alone differs
            del groups[kind]
            for run in members:
                groups.setdefault(f"{kind} {run.identity['network'].get('start')}", []).append(run)
    first = runs[0]
    told = first.identity
    made = [
        Group(members[0].network, [r for r in members if r.result], [r for r in members if not r.result])
        for members in groups.values()
    ]
    world = int(told.get("world_size", 1))
    return Setting(key, first.recipe, told["data"], told["data_hash"], told["precision"], first.held_out, world, made)


def difference(first: Group, second: Group) -> Difference | None:
    """The error of `first` minus that of `second` over the seeds both have; None without common ones.

    By a paired bootstrap over seeds and images. UserError where the images are not the same.
    """
    sides = [{run.seed: run for run in group.finished if run.predictions} for group in (first, second)]
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        return None
    _check_same_images(*(side[common[0]] for side in sides))
    one, other = (_missed([side[seed] for seed in common]) for side in sides)
    return statistics.paired_difference(one, other)


def mcnemar(first: Run, second: Run) -> McNemar:
    """McNemar's test of two finished runs on the same images."""
    _check_same_images(first, second)
    one, other = (_missed([run])[0] for run in (first, second))
    return statistics.mcnemar(one, other)


def _check_same_images(first: Run, second: Run) -> None:
    """Refuse a pair that was evaluated on different images: there is nothing to pair."""
    parts = [(run.identity["data_hash"], run.held_out, run.recipe.validation_images) for run in (first, second)]
    if parts[0][0] != parts[1][0] or parts[0][1] != parts[1][1] or (parts[0][1] == "val" and parts[0] != parts[1]):
        raise UserError("the two were evaluated on different images: they cannot be compared in pairs")


def _missed(runs: Sequence[Run]) -> Array:
    rows = []
    for run in runs:
        if run.predictions is None:
            raise UserError(f"{run.path}: no predictions.safetensors in it")
        rows.append(run.predictions.missed)
    return np.stack(rows)
