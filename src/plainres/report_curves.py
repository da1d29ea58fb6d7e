"""Interactive figures of a report as plain values for plotly: curves (Figure 6) and layer responses (Figure 7).

A colour is a number, which the page turns into one for its light or its dark scheme: the same depth has the same
colour in every figure.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plainres.groups import Group, Setting
from plainres.report_findings import family
from plainres.results import Run
from plainres.statistics import spread

Trace = dict[str, Any]

DEPTHS = (20, 32, 44, 56, 110, 1202, 164, 1001)  # published ones, in the order of their colours
SPARE = (6, 7, 8, 9)  # colours of other depths
_TITLES = {"plain": "Plain", "resnet": "Residual", "preact": "Pre-activation"}
_WHOLE_ERROR = 20.0  # the paper's axis ends there
_HIDDEN = {"hoverinfo": "skip", "showlegend": False}


def colours(settings: Iterable[Setting]) -> dict[str, int]:
    """The colour of each network: that of its depth; what has no known depth gets one that is left."""
    chosen: dict[str, int] = {}
    others: dict[object, int] = {}
    for setting in settings:
        for group in setting.groups:
            named = family(group.network)
            if named and named[1] in DEPTHS:
                chosen[group.network] = DEPTHS.index(named[1])
            else:
                kept = others.setdefault(named[1] if named else group.network, len(others))
                chosen[group.network] = SPARE[kept % len(SPARE)]
    return chosen


@dataclass(frozen=True)
class Panel:
    """A figure of the page: its title, plotly's traces, its axes, and the ranges that its buttons choose."""

    title: str
    traces: list[Trace]
    layout: dict[str, Any]
    zooms: dict[str, dict[str, list[float]]]

    def to_json(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {"traces": self.traces, "layout": self.layout, "zooms": self.zooms}


def curves(setting: Setting, colour: dict[str, int]) -> list[Panel]:
    """Errors against steps, a panel for each family: training dashed, held out solid, on the same axes."""
    families: dict[tuple[str, str], list[Group]] = {}
    for group in setting.groups:
        if any(run.lines for run in group.finished + group.unfinished):
            named = family(group.network)
            families.setdefault((named[0], named[2]) if named else ("", ""), []).append(group)
    drawn = {key: [t for group in members for t in _group(group, colour)] for key, members in families.items()}
    traces = [trace for part in drawn.values() for trace in part]
    if not traces:
        return []
    zooms = {"whole": _whole(setting, traces), "end": _end(setting, traces)}
    axes = {
        "xaxis": {"title": {"text": "steps"}, "range": zooms["whole"]["x"], "tickformat": _steps_format(setting)},
        "yaxis": {"title": {"text": "error, %"}, "range": zooms["whole"]["y"]},
    }
    order = [*_TITLES, ""]
    keys = sorted(drawn, key=lambda key: (order.index(key[0]), key[1]))
    return [Panel(_title(*key), drawn[key], axes, zooms) for key in keys]


def _title(kind: str, variant: str) -> str:
    return f"{_TITLES[kind]} networks{f' ({variant[1:]})' if variant else ''}" if kind else "Other networks"


def _steps_format(setting: Setting) -> str:
    return "~s" if setting.recipe.steps >= 10_000 else ",d"


def _group(group: Group, colour: dict[str, int]) -> list[Trace]:
    """The mean of the finished runs with a band from least to most, and each unfinished run by itself."""
    own = colour[group.network]
    traces = _lines(group.network, group.finished, own) if group.finished else []
    for run in group.unfinished:
        traces += _lines(f"{group.network}, seed {run.seed}, unfinished", [run], own)
    return traces


def _lines(name: str, runs: Sequence[Run], colour: int) -> list[Trace]:
    traces = []
    name, held = html.escape(name, quote=False), runs[0].held_out  # plotly reads markup in its texts
    for kind in ("train", held):
        steps, rows = _common([run.curve(kind) for run in runs])
        if not steps:
            continue
        found = [spread(row) for row in rows]
        if len(runs) > 1:
            traces += _band(name, steps, [s.least for s in found], [s.most for s in found], colour)
        words = {"train": "training", "val": "validation"}.get(kind, kind)
        over = f", mean of {len(runs)} seeds" if len(runs) > 1 else ""
        told = f"%{{fullData.name}}<br>step %{{x:,}}<br>{words} error %{{y:.2f}} %{over}<extra></extra>"
        traces.append(
            {
                **{"type": "scatter", "mode": "lines", "name": name, "legendgroup": name},
                **{"x": steps, "y": _rounded(s.mean for s in found), "showlegend": kind == held},
                "line": {"width": 1.3, "dash": "4px,3px"} if kind == "train" else {"width": 2.2},
                "meta": {"colour": colour},
                "hovertemplate": told,
            }
        )
    if traces and not any(trace["showlegend"] for trace in traces):
        traces[-1]["showlegend"] = True  # without an evaluation so far, the training curve stands in the legend
    return traces


def _band(name: str, steps: list[int], least: list[float], most: list[float], colour: int) -> list[Trace]:
    shared = {"type": "scatter", "mode": "lines", "name": name, "legendgroup": name, "x": steps, **_HIDDEN}
    edge = {"line": {"width": 0}, "meta": {"band": colour}}
    return [{**shared, **edge, "y": _rounded(most)}, {**shared, **edge, "y": _rounded(least), "fill": "tonexty"}]


def _common(found: Sequence[tuple[list[int], list[float]]]) -> tuple[list[int], list[list[float]]]:
    """The first curve's steps where all curves are, and the values at each, in between read off the line."""
    found = [one for one in found if one[0]]
    if not found:
        return [], []
    low, high = max(steps[0] for steps, _ in found), min(steps[-1] for steps, _ in found)
    steps = [step for step in found[0][0] if low <= step <= high]
    return steps, np.array([np.interp(steps, *one) for one in found]).T.tolist()


def _rounded(fractions: Iterable[float]) -> list[float]:
    return [round(100 * value, 3) for value in fractions]


def _whole(setting: Setting, traces: list[Trace]) -> dict[str, list[float]]:
    """0 to 20 % as in the paper for a schedule of its length; for shorter ones, what follows the first steep fall."""
    steps = setting.recipe.steps
    highest = max(_after(traces, 0.1 * steps) or _after(traces, 0))
    full = setting.recipe.scale == 1 and steps >= 30_000 and min(_after(traces, 0)) < _WHOLE_ERROR
    top = _WHOLE_ERROR if full else min(100.0, 5 * (highest // 5 + 1))
    return {"x": [0, steps], "y": [0, top]}


def _end(setting: Setting, traces: list[Trace]) -> dict[str, list[float]]:
    """From shortly before the last drop of the learning rate (else the last quarter) on, as cfmz's second figure."""
    drops = [drop for drop in setting.recipe.drops if drop < setting.recipe.steps]
    start = 0.95 * drops[-1] if drops else 0.75 * setting.recipe.steps
    values = _after(traces, start) or _after(traces, 0)
    margin = 0.06 * (max(values) - min(values)) or 1.0
    return {"x": [start, setting.recipe.steps], "y": [max(0.0, min(values) - margin), max(values) + margin]}


def _after(traces: list[Trace], start: float) -> list[float]:
    return [y for trace in traces for x, y in zip(trace["x"], trace["y"], strict=True) if x >= start]


def responses(setting: Setting, colour: dict[str, int]) -> Panel | None:
    """Standard deviations of the layers' responses: in order above, sorted below; plain dashed, residual solid."""
    traces: list[Trace] = []
    for group in setting.groups:
        name = html.escape(group.network, quote=False)
        held = [[std for _, std in run.responses] for run in group.finished if run.responses]
        if not held:
            continue
        means = [round(sum(layer) / len(layer), 5) for layer in zip(*held, strict=True)]
        named = family(group.network)
        dashed = named is not None and named[0] == "plain"
        layers = [layer for layer, _ in next(run for run in group.finished if run.responses).responses]
        for axis, values, words in (("", means, layers), ("2", sorted(means, reverse=True), None)):
            traces.append(
                {
                    **{"type": "scatter", "mode": "lines", "name": name, "legendgroup": name},
                    **{"x": list(range(1, len(values) + 1)), "y": values, "showlegend": not axis},
                    **{"xaxis": f"x{axis}", "yaxis": f"y{axis}", "meta": {"colour": colour[group.network]}},
                    "line": {"width": 1.8, "dash": "4px,3px" if dashed else "solid"},
                    **({"text": words} if words else {}),
                    "hovertemplate": "%{fullData.name}<br>"
                    + ("%{text}, layer %{x}" if words else "rank %{x}")
                    + "<br>%{y:.3f}<extra></extra>",
                }
            )
    if not traces:
        return None
    highest = 1.05 * max(y for trace in traces for y in trace["y"])
    axes: dict[str, Any] = {
        "xaxis": {"title": {"text": "layer, in order"}, "anchor": "y"},
        "xaxis2": {"title": {"text": "layer, sorted by size"}, "anchor": "y2"},
        "yaxis": {"title": {"text": "std"}, "domain": [0.58, 1], "range": [0, highest]},
        "yaxis2": {"title": {"text": "std"}, "domain": [0, 0.42], "range": [0, highest]},
    }
    return Panel("Layer responses", traces, axes, {})
