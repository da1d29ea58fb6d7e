"""Results: run directories read back."""

import functools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from plainres import fields, files, runlog
from plainres.errors import UserError
from plainres.outcome import is_result
from plainres.recipe import Recipe
from plainres.spec import NetworkSpec
from plainres.statistics import Array

_MARKS = ("run.json", "result.json", "plan.json", "metrics.jsonl", "checkpoint.pt")
_NEEDED = {  # of a run.json
    **{"network": dict, "recipe": dict, "seed": int, "steps": int},
    **{"precision": str, "data": str, "data_hash": str},
}
_NAMED = re.compile(r".+-([0-9a-f]{10})")  # a run directory as `train` names it


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits float32 (N, classes) at the last step, labels int64 (N,), published positions int64 (N,), -1 unknown."""

    logits: Array
    labels: Array
    index: Array

    @property
    def missed(self) -> Array:
        """Which images were taken for another class: bool (N,)."""
        return np.asarray(self.logits.argmax(1) != self.labels)

    @property
    def confusion(self) -> Array:
        """How many images of class i (row) were taken for class j (column): int64 (classes, classes)."""
        count = self.logits.shape[1]
        pairs = self.labels * count + self.logits.argmax(1)
        return np.bincount(pairs, minlength=count * count).reshape(count, count)

    @property
    def class_errors(self) -> list[float | None]:
        """The error of each class, a fraction; None of a class without images."""
        confusion = self.confusion
        return [1 - int(row[i]) / int(row.sum()) if row.sum() else None for i, row in enumerate(confusion)]


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory read back. `result` is the content of its `result.json`, None while it is unfinished."""

    path: Path
    identity: dict[str, Any]
    result: dict[str, Any] | None

    @functools.cached_property
    def spec(self) -> NetworkSpec | None:
        """The network; None for one from outside."""
        facts = self.identity["network"]
        return None if "module" in facts else fields.from_json(NetworkSpec, facts, f"{self.path}: network")

    @property
    def network(self) -> str:
        """The network's name."""
        return self.spec.name if self.spec else str(self.identity["network"]["module"]).rpartition(".")[2]

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The recipe, its schedule as it was run."""
        return fields.from_json(Recipe, self.identity["recipe"], f"{self.path}: recipe")

    @property
    def seed(self) -> int:
        """What decided its initialization and its images' order."""
        return int(self.identity["seed"])

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return int(self.identity["steps"])

    @property
    def generated(self) -> bool:
        """Whether its data is drawn by plainres and not CIFAR-10."""
        return bool(self.identity["data"] == "generated")

    @functools.cached_property
    def lines(self) -> list[dict[str, Any]]:
        """Its metrics, in order."""
        return list(runlog.metrics(self.path))

    def curve(self, kind: str, value: str = "error") -> tuple[list[int], list[float]]:
        """Steps and values of the lines of a kind: "train" (each 100 steps), "test" or "val"."""
        found = [line for line in self.lines if line["kind"] == kind and value in line]
        return [line["step"] for line in found], [line[value] for line in found]

    @property
    def held_out(self) -> str:
        """The part it is evaluated on: "test", or "val" if its recipe keeps one."""
        return "val" if self.recipe.validation_images else "test"

    @property
    def best(self) -> float | None:
        """The least error over its evaluations: an optimistic figure, for a column that says so."""
        return min(self.curve(self.held_out)[1], default=None)

    @functools.cached_property
    def predictions(self) -> Predictions | None:
        """What it predicted at the last step; None where the file is not there."""
        path = self.path / "predictions.safetensors"
        return _predictions(path, self.result) if path.exists() else None

    @functools.cached_property
    def responses(self) -> list[tuple[str, float]]:
        """The standard deviation of each layer's output, in order: Figure 7. Empty where there is none."""
        path = self.path / "responses.json"
        found = files.read_json(path) if path.exists() else []
        try:
            stds = [(str(layer["layer"]), float(layer["std"])) for layer in found]
            if not all(math.isfinite(std) for _, std in stds):
                raise ValueError("not finite")
            return stds
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{path} is damaged: no list of layers with their std") from None

    def facts(self, name: str) -> dict[str, Any]:
        """Its `plan.json` or `machine.json`; empty where there is none."""
        found = files.read_json(self.path / name) if (self.path / name).exists() else {}
        if not isinstance(found, dict):
            raise UserError(f"{self.path / name} is damaged: no object")
        return found


def _predictions(path: Path, result: dict[str, Any] | None) -> Predictions:
    try:
        held = safetensors.numpy.load(path.read_bytes())
        found = Predictions(held["logits"], held["labels"], held["index"])
        whole = found.logits.ndim == 2 and found.labels.ndim == 1 and found.labels.dtype.kind == "i"
        whole = whole and len(found.logits) == len(found.labels) == len(found.index) > 0
        whole = whole and bool(np.isfinite(found.logits).all())
        whole = whole and found.labels.min() >= 0 and found.labels.max() < found.logits.shape[1]
    except (safetensors.SafetensorError, KeyError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged: no logits with their labels")
    misses = int(found.missed.sum())
    if result is not None and (misses, len(found.labels)) != (result["misses"], result["images"]):
        told = f"{result['misses']:,} misses of {result['images']:,}"
        raise UserError(f"{path} has {misses:,} misses of {len(found.labels):,}, the run's result {told}")
    return found


def read(path: Path) -> Run:
    """The run of a directory; one that is damaged is a UserError that says how."""
    identity = files.read_json(path / "run.json")
    whole = isinstance(identity, dict) and all(type(identity.get(key)) is kind for key, kind in _NEEDED.items())
    if not whole or type(identity.get("world_size", 1)) is not int:
        raise UserError(f"{path / 'run.json'} is damaged: it must have {', '.join(_NEEDED)}")
    named = _NAMED.fullmatch(path.name)
    if named and named[1] != runlog.identity_hash(identity):
        raise UserError(f"{path / 'run.json'} was changed: it is not of the run that the folder is named after")
    result = files.read_json(path / "result.json") if (path / "result.json").exists() else None
    if result is not None and not is_result(result):
        raise UserError(f"{path / 'result.json'} is damaged: its figures must be there, and be finite numbers")
    run = Run(path, identity, result)
    _ = run.recipe, run.lines, run.facts("plan.json"), run.facts("machine.json")  # damage is found here, not in a table
    _check_shapes(run)
    told = None if result is None else (result["network"], result.get("seed"), result["steps"])
    if told not in (None, (run.network, run.seed, run.steps)):
        raise UserError(f"{path / 'result.json'} is of another run than its run.json")
    return run


def _check_shapes(run: Run) -> None:
    """Refuse predictions and responses that are not of the run's network."""
    spec, predictions = run.spec, run.predictions
    if spec and predictions and predictions.logits.shape[1] != spec.classes:
        raise UserError(f"{run.path}: its predictions are of {predictions.logits.shape[1]} classes, not {spec.classes}")
    count = len(run.responses)
    if spec and spec.kind != "preact" and count not in (0, spec.depth - 1):  # every layer but the classifier
        raise UserError(f"{run.path}: responses.json has {count} layers, {spec.name} has {spec.depth - 1}")


@dataclass(frozen=True)
class Found:
    """Runs read, and a line for each directory that was left out."""

    runs: list[Run]
    left_out: list[str]


def find(paths: Iterable[str | Path]) -> Found:
    """The runs in `paths`, each a run directory or a folder with such below it; damaged ones are named, not read.

    The same run in two places counts once. A path that is not there, or no run at all, is a UserError.
    """
    asked = [Path(path) for path in paths]
    for path in asked:
        if not path.is_dir():
            raise UserError(f"{path}: there is no such folder; give run directories, or folders that hold them")
    runs: dict[str, Run] = {}
    left_out: list[str] = []
    for directory in _directories(asked):
        try:
            run = read(directory)
        except UserError as error:
            left_out.append(str(error))
            continue
        key = runlog.identity_hash(run.identity)
        if key in runs and runs[key].result is not None:
            left_out.append(f"{directory}: the same run as {runs[key].path}")
        else:
            runs[key] = run
    if not runs and not left_out:
        places = ", ".join(map(str, asked))
        raise UserError(f"no runs in {places}; 'plainres train' or 'plainres reproduce paper' makes some")
    return Found(sorted(runs.values(), key=_order), left_out)


def _directories(asked: Sequence[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for path in asked:
        inside = {mark.parent for name in _MARKS for mark in path.rglob(name)}
        found |= {directory.resolve(): directory for directory in sorted(inside)}
    return list(found.values())


def _order(run: Run) -> tuple[Any, ...]:
    depth = run.spec.depth if run.spec else 0
    return (run.generated, run.recipe.name, run.network.rstrip("0123456789"), depth, run.network, run.seed)
