"""What the runs of a setting say: does depth hurt plain networks, and what differs from what."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from plainres import groups
from plainres.groups import Group, Setting
from plainres.statistics import Difference

_NAME = re.compile(r"(plain|resnet|preact)(\d+)((?:-(?!custom)[a-z]+)?)")  # custom ones may be of any fields


def family(network: str) -> tuple[str, int, str] | None:
    """Kind, depth and variant of a network's name; None where the name says too little."""
    match = _NAME.fullmatch(network)
    return (match[1], int(match[2]), match[3]) if match else None


@dataclass(frozen=True)
class Degradation:
    """What depth does to the training error (fractions): a change for each seed, deepest minus shallowest."""

    variant: str
    shallow: int
    deep: int
    seeds: tuple[int, ...]
    plain: tuple[float, ...]
    residual: tuple[float, ...]

    @property
    def apart(self) -> tuple[float, ...]:
        """By how much more plain networks suffer from depth than residual ones, for each seed."""
        return tuple(p - r for p, r in zip(self.plain, self.residual, strict=True))

    @property
    def verdict(self) -> str:
        """Both directions, in a few words."""
        plain, residual = round(_mean(self.plain), 4), round(_mean(self.residual), 4)  # as the sentence shows them
        unsure = " But the seeds disagree on the direction." if _mixed(self.plain) or _mixed(self.residual) else ""
        if plain > 0:
            said = "Plain networks degrade with depth, residual ones do not."
            if residual > 0:
                more = "plain ones more" if plain > residual else "residual ones as much or more"
                said = f"Both plain and residual networks get worse with depth, {more}."
        else:
            said = "Plain networks do not degrade with depth here."
            if residual > 0:
                said += " Residual ones do."
        return said + unsure

    @property
    def sentence(self) -> str:
        """The figures, in points of training error."""
        parts = [
            f"From {self.shallow} to {self.deep} layers the training error of plain networks {_moved(self.plain)}",
            f"that of residual networks {_moved(self.residual)}",
            f"the difference of the two is {_points(self.apart)} points",
        ]
        seeds = f"{_listed(self.seeds)}" if len(self.seeds) > 1 else f"{self.seeds[0]} alone"
        return f"{parts[0]}, {parts[1]}; {parts[2]} ({'seeds' if len(self.seeds) > 1 else 'seed'} {seeds})."


def degradations(setting: Setting) -> list[Degradation]:
    """For each variant with plain and residual networks of two depths or more, over the seeds that all four have."""
    depths: dict[str, dict[str, set[int]]] = {}
    for group in setting.groups:
        if (named := family(group.network)) and group.finished:
            depths.setdefault(named[2], {}).setdefault(named[0], set()).add(named[1])
    found = []
    for variant, by_kind in depths.items():
        common = by_kind.get("plain", set()) & by_kind.get("resnet", set())
        made = _degradation(setting, variant, min(common), max(common)) if len(common) > 1 else None
        found += [made] if made else []
    return found


def _degradation(setting: Setting, variant: str, shallow: int, deep: int) -> Degradation | None:
    corners = [_train_errors(setting.group(f"{k}{d}{variant}")) for k in ("plain", "resnet") for d in (shallow, deep)]
    seeds = sorted(set.intersection(*(set(errors) for errors in corners)))
    if not seeds:
        return None
    plain, residual = (
        tuple(deeper[seed] - shallower[seed] for seed in seeds) for shallower, deeper in (corners[:2], corners[2:])
    )
    return Degradation(variant, shallow, deep, tuple(seeds), plain, residual)


def _train_errors(group: Group | None) -> dict[int, float]:
    """The training error of each seed, over the last 100 steps."""
    if group is None:
        return {}
    results = ((run.seed, run.result["train_error"]) for run in group.finished if run.result)
    return {seed: error for seed, error in results if error is not None}


@dataclass(frozen=True)
class Comparison:
    """Two networks of a setting, and by how much the first's error is above the second's; None: no common seeds."""

    first: str
    second: str
    difference: Difference | None


def comparisons(setting: Setting) -> tuple[list[Comparison], list[Comparison]]:
    """Plain against residual networks of the same depth; and each depth against the next of its family."""
    named = {name: group for group in setting.groups if (name := family(group.network)) and group.finished}
    against = [
        _compared(group, named["resnet", depth, variant])
        for (kind, depth, variant), group in sorted(named.items(), key=lambda item: item[0][1])
        if kind == "plain" and ("resnet", depth, variant) in named
    ]
    return against, [_compared(deeper, shallower) for shallower, deeper in _neighbours(named)]


def _neighbours(named: dict[tuple[str, int, str], Group]) -> Iterator[tuple[Group, Group]]:
    ordered = sorted(named, key=lambda name: (name[0], name[2], name[1]))
    for _, members in itertools.groupby(ordered, key=lambda name: (name[0], name[2])):
        for shallower, deeper in itertools.pairwise(members):
            yield named[shallower], named[deeper]


def _compared(first: Group, second: Group) -> Comparison:
    return Comparison(first.network, second.network, groups.difference(first, second))


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def _mixed(values: tuple[float, ...]) -> bool:
    return min(values) < 0 < max(values)


def _moved(values: tuple[float, ...]) -> str:
    mean = _mean(values)
    if f"{100 * mean:.2f}" in ("0.00", "-0.00"):
        return "stays the same"
    turned = values if mean > 0 else tuple(-value for value in values)
    return f"{'rises' if mean > 0 else 'falls'} by {_points(turned)} points"


def _points(values: tuple[float, ...]) -> str:
    """The mean in points, and in brackets that of each seed if there are several."""
    each = f" ({_listed([f'{100 * value:.2f}' for value in values])})" if len(values) > 1 else ""
    return f"{100 * _mean(values):.2f}{each}"


def _listed(values: tuple[int, ...] | list[str]) -> str:
    texts = [str(value) for value in values]
    return f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else texts[0]
