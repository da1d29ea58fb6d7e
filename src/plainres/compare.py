"""Two trained networks, or two networks over their seeds, set against each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plainres import fields, groups, results, statistics, weights
from plainres.data.dataset import Dataset, dataset
from plainres.data.known import CIFAR10_HASH
from plainres.data.records import Progress
from plainres.errors import UserError
from plainres.evaluation import evaluate
from plainres.groups import Group, Setting
from plainres.results import Predictions, Run
from plainres.spec import NetworkSpec
from plainres.statistics import Difference, McNemar, Spread


@dataclass(frozen=True, eq=False)
class Trained:
    """One trained network on the images it was evaluated on."""

    source: str
    network: str
    predictions: Predictions
    split: str
    data: str
    data_hash: str
    scale: float = 1.0  # of the schedule it was trained by

    @property
    def misses(self) -> int:
        """How many images it took for another class."""
        return int(self.predictions.missed.sum())

    @property
    def error(self) -> float:
        """A fraction."""
        return self.misses / len(self.predictions.labels)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the error."""
        return statistics.interval(self.misses, len(self.predictions.labels))


@dataclass(frozen=True, eq=False)
class Pair:
    """Two trained networks on the same images, and McNemar's exact test of them."""

    sides: tuple[Trained, Trained]
    test: McNemar


@dataclass(frozen=True, eq=False)
class Side:
    """A network over its seeds: spreads of its errors and of its calibration (None without predictions)."""

    setting: Setting
    group: Group
    nearest_mean: Run
    error: Spread
    train_error: Spread | None
    calibration_error: Spread | None
    negative_log_likelihood: Spread | None

    @property
    def name(self) -> str:
        """As it can be asked for."""
        return f"{self.group.network}@{self.setting.recipe.name}"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two networks over their seeds; the error of the first minus that of the second, None without common seeds."""

    sides: tuple[Side, Side]
    difference: Difference | None
    left_out: list[str]


def is_trained(name: str) -> bool:
    """Whether a name is a weights file or a run directory, and not a network's name."""
    path = Path(name)
    return path.is_file() or (path / "run.json").exists() or (path / "weights.safetensors").exists()


def compare_trained(
    first: str, second: str, data: str | Path | None = None, *, progress: Progress | None = None
) -> Pair:
    """McNemar's exact test of two weights files or run directories.

    A finished run's predictions are taken where it has them, of the images it was evaluated on; everything else is
    evaluated on the test images of `data`. UserError where the images are not the same.
    """
    opened = dataset(data, progress=progress) if data is not None else None
    both = [_predicted(source, opened) for source in (first, second)]
    if None in both and opened is None:
        other_images = next((side for side in both if side and side.data_hash != CIFAR10_HASH), None)
        if other_images:
            raise UserError(f"{other_images.source} was evaluated on {other_images.data}: --data names those images")
        opened = dataset(None, progress=progress)
    one, other = (side or _evaluated(source, opened) for side, source in zip(both, (first, second), strict=True))
    same = np.array_equal(one.predictions.labels, other.predictions.labels)
    if (one.data_hash, one.split) != (other.data_hash, other.split) or not same:
        which = " and ".join(
            f"{side.source} on {len(side.predictions.labels):,} of {side.data} ({side.split}, {side.data_hash[:8]})"
            for side in (one, other)
        )
        raise UserError(f"not the same images: {which}; --data names the ones to evaluate both on")
    return Pair((one, other), statistics.mcnemar(one.predictions.missed, other.predictions.missed))


def _predicted(source: str, data: Dataset | None) -> Trained | None:
    """What a finished run predicted, unless other images are asked for."""
    path = Path(source)
    if not (path / "run.json").exists():
        return None
    run = results.read(path)
    if run.result is None:
        raise UserError(f"{source}: the run is not finished; its command goes on with it")
    told = run.identity["data"], run.identity["data_hash"]
    if run.predictions is None or (data is not None and (data.hash, "test") != (told[1], run.held_out)):
        return None
    return Trained(source, run.network, run.predictions, run.held_out, *told, run.recipe.scale)


def _evaluated(source: str, data: Dataset | None) -> Trained:
    classifier = weights.load(source)
    found = evaluate(classifier, data)
    made = Predictions(found.logits.numpy(), found.labels.numpy(), np.full(found.images, -1))
    name = fields.from_json(NetworkSpec, classifier.about["network"], f"{source}: network").name
    scale = float(classifier.about.get("recipe", {}).get("scale", 1.0))
    return Trained(source, name, made, found.split, found.data_name, found.data_hash, scale)


def compare_networks(first: str, second: str, runs: str | Path = "runs") -> Comparison:
    """Two networks over their seeds, each NETWORK or NETWORK@RECIPE, among the finished runs of a folder.

    A network in several settings needs its recipe, unless one setting alone has both.
    """
    found = results.find([runs])
    finished = [(s, g) for s in groups.settings(found.runs) for g in s.groups if g.finished]
    if not finished:
        raise UserError(f"{runs}: no finished runs in it; the commands that made them go on with them")
    candidates = [_candidates(name, finished, runs) for name in (first, second)]
    pairs = [(a, b) for a in candidates[0] for b in candidates[1] if a[1] is not b[1]]
    if not pairs:
        raise UserError(f"'{first}' and '{second}' are the same runs: {_listed(candidates[0])}")
    pairs = [(a, b) for a, b in pairs if a[0] is b[0]] or pairs
    if len(pairs) > 1:
        several = candidates[0] if len(candidates[0]) > 1 else candidates[1]
        raise UserError(
            f"several runs match: {_listed(several)}; write NETWORK@RECIPE, or give --runs a folder with one of them"
        )
    one, other = (_side(setting, group) for setting, group in pairs[0])
    if one.setting.held_out != other.setting.held_out:
        raise UserError(
            f"{one.name} and {other.name} were evaluated on different images: there is no paired difference"
        )
    return Comparison((one, other), groups.difference(one.group, other.group), found.left_out)


def _candidates(name: str, finished: Sequence[tuple[Setting, Group]], runs: str | Path) -> list[tuple[Setting, Group]]:
    network, at, recipe = name.partition("@")
    found = [(s, g) for s, g in finished if g.network == network and (not at or s.recipe.name == recipe)]
    if not found:
        raise UserError(f"no finished run of '{name}' in {runs}; there are: {_listed(finished)}")
    return found


def _listed(found: Sequence[tuple[Setting, Group]]) -> str:
    return "; ".join(f"{group.network}@{setting.recipe.name} ({setting.name})" for setting, group in found)


def _side(setting: Setting, group: Group) -> Side:
    error, nearest = group.spread("error"), group.nearest_mean
    if error is None or nearest is None:
        raise ValueError("a group without finished runs")
    known = [run.predictions for run in group.finished]
    held = [predictions for predictions in known if predictions is not None]
    both = (statistics.calibration_error, statistics.negative_log_likelihood)
    measured = [
        statistics.spread([f(p.logits, p.labels) for p in held]) if len(held) == len(known) else None for f in both
    ]
    return Side(setting, group, nearest, error, group.spread("train_error"), *measured)
