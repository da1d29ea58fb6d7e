"""The figures in the paper's style, each as SVG and PNG: curves, layer responses, confusion, errors against depth."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plainres import published, report_style, weights
from plainres.data.known import CIFAR10_CLASSES, CIFAR10_HASH
from plainres.errors import UserError
from plainres.groups import Group, Setting
from plainres.report_figure6 import curves
from plainres.report_style import DASHED, Name, Title, group_name, styled, title
from plainres.results import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUMBERED = 20  # classes up to which a confusion matrix has its counts written in it
_MANY_LAYERS = 300  # from which the others would be squeezed to the edge
_FAMILIES = {"plain": "#D55E00", "resnet": "#0072B2"}
_OTHERS = ("#009E73", "#7A5195", "#8C6D31")


def save_all(settings: Sequence[Setting], out: Path) -> list[Path]:
    """Write every figure that the runs have the numbers for into `out/figures`; returns the files.

    One set for each setting; with several, file names begin with what tells them apart.
    """
    written: list[Path] = []
    for setting, prefix in zip(settings, _prefixes(settings), strict=True):
        figures = {
            "curves": curves(setting),
            "curves-end": curves(setting, end=True),
            "responses": layer_responses(setting),
            "errors-by-depth": errors_by_depth(setting),
        }
        for group in setting.groups:
            name = f"confusion-{_slug(group.network)}"
            figures[f"{name}-{len(figures)}" if name in figures else name] = confusion(setting, group)
        for name, figure in figures.items():
            written += report_style.save(figure, out / "figures" / f"{prefix}{name}") if figure else []
    return written


def layer_responses(setting: Setting) -> "Figure | None":
    """Figure 7 of a setting's finished runs, the mean over seeds of each layer; None where no run has them."""
    found = []
    for group in setting.groups:
        each = [[std for _, std in run.responses] for run in group.finished if run.responses]
        if each:
            found.append((group_name(group), group_name(group).label, each))
    return responses_figure(found, title(setting), report_style.seeds(setting)) if found else None


@styled
def responses_figure(
    found: Sequence[tuple[Name, str, Sequence[Sequence[float]]]], of: Title, said: str = ""
) -> "Figure":
    """Figure 7: standard deviations of the layers' responses, of each network its label and one row a run.

    In the layers' order above, sorted by magnitude below; plain networks dashed, as in the paper. A colour a depth, or
    a line where networks of one kind and depth are compared.
    """
    caption = "Standard deviation of each 3x3 layer's output, after BN and before the nonlinearity. Dashed: plain."
    made = report_style.figure(6.6, 4.9, of, caption + said)
    above, below = made.subplots(2, 1)
    by_depth = report_style.colours_of(name.depth for name, _, _ in found)
    found = sorted(found, key=lambda entry: (entry[0].panel, entry[0].depth))
    for number, (name, label, each) in enumerate(found):
        colour = report_style.colour([name for name, _, _ in found], number, by_depth)
        for ax, rows in ((above, np.array(each)), (below, -np.sort(-np.array(each), axis=1))):
            layers, mean = np.arange(1, rows.shape[1] + 1), rows.mean(0)
            line = DASHED if name.family == "plain" else "-"
            many = len(layers) > _MANY_LAYERS
            ax.plot(layers, mean, color=colour, label=label, lw=1.2, ls=line)
            if len(rows) > 1:
                ax.fill_between(layers, rows.min(0), rows.max(0), color=colour, alpha=0.16, lw=0, rasterized=many)
    longest = max(len(each[0]) for _, _, each in found)
    for ax, order in ((above, "original order"), (below, "sorted by magnitude")):
        ax.set(xlabel=f"layer index ({order})", ylabel="std", xlim=(0, longest + 1))
        ax.set_ylim(bottom=0)
        if longest > _MANY_LAYERS:
            ax.set(xscale="log", xlim=(1, longest + 1))
            ax.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
        else:
            ax.locator_params(axis="x", integer=True, steps=[1, 2, 5, 10])
    above.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return made


@styled
def confusion(setting: Setting, group: Group) -> "Figure | None":
    """The confusion matrix of the group's run nearest the mean; None where there are no predictions."""
    run = group.nearest_mean
    if run is None or run.predictions is None:
        return None
    counts, names = run.predictions.confusion, _classes(run)
    wrong = counts - np.diag(np.diag(counts))
    caption = f"{group_name(group).label}, seed {run.seed}"
    caption += " (the run nearest the mean)" if len(group.finished) > 1 else ""
    caption += f": {int(wrong.sum()):,} of {int(counts.sum()):,} images missed. Shade: how many were missed so."
    made = report_style.figure(4.6, 4.7, title(setting), caption)
    ax = made.subplots()
    most = max(1, int(wrong.max()))
    ax.imshow(wrong, cmap="Oranges", vmin=0, vmax=1.1 * most, interpolation="nearest")
    ax.grid(visible=False)
    ax.set(xlabel="taken for", ylabel="true class")
    if len(counts) > _NUMBERED:
        return made
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    for (i, j), count in np.ndenumerate(counts):
        heavy, dark = i == j, wrong[i, j] > 0.7 * most
        colour, weight = "#555555" if heavy else "white" if dark else "black", "bold" if heavy else "normal"
        if count:
            ax.text(j, i, f"{count:,}", ha="center", va="center", fontsize=7.5, color=colour, weight=weight)
    return made


@styled
def errors_by_depth(setting: Setting) -> "Figure | None":
    """Errors at the last step against depth, mean and standard deviation over seeds, published errors hollow."""
    groups = [group for group in setting.groups if group.finished and group_name(group).depth]
    if not groups:
        return None
    what = "validation" if setting.held_out == "val" else "test"
    comparable = setting.data == "CIFAR-10" and setting.held_out == "test"
    caption = f"Large dots: {what} error at the last step. Small dots, dashed: training error."
    caption += " Bars: standard deviation over seeds." if any(len(group.finished) > 1 for group in groups) else ""
    caption += " Hollow: published test errors, of 64,000 steps and more." if comparable else ""
    made = report_style.figure(5.2, 3.7, title(setting), caption)
    ax = made.subplots()
    free = iter(_OTHERS * len(groups))
    for kind, names in report_style.families([group_name(group) for group in groups]).items():
        colour = next(free) if "," in kind else {"plain": "#D55E00", "ResNet": "#0072B2"}.get(names[0].family)
        members = sorted((g for g in groups if group_name(g) in names), key=lambda g: group_name(g).depth)
        _draw_errors(ax, members, colour or next(free), kind)
    drawn = {group_name(group).depth for group in groups}
    drawn |= _draw_published(ax, max(110, *drawn)) if comparable else set()
    ax.set_xscale("log")
    ax.set_xticks(sorted(drawn), [str(depth) for depth in sorted(drawn)])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="layers", ylabel="error (%)", xlim=(min(drawn) / 1.15, max(drawn) * 1.15))
    _cut(
        ax, groups, max(error for table in published.SOURCES.values() for error in table.values()) if comparable else 0
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return made


def _cut(ax: "Axes", groups: Sequence[Group], at_least: float) -> None:
    """End the axis below networks that do not learn, and write where they are."""
    points = [(group_name(group).depth, 100 * spread.mean) for group in groups if (spread := group.spread())]
    usual = report_style.usual([error for _, error in points])
    outside = [(depth, error) for depth, error in points if error > usual]
    ax.set_ylim(bottom=0, top=1.15 * max(usual, at_least) if outside else None)
    for depth, error in outside:
        ax.annotate(f"{error:.0f} %", (depth, ax.get_ylim()[1]), (0, -12), textcoords="offset points", ha="center")


def _draw_errors(ax: "Axes", groups: Sequence[Group], colour: str, label: str) -> None:
    for fact in ("error", "train_error"):
        spreads = [(group_name(group).depth, group.spread(fact)) for group in groups]
        depths = [depth for depth, spread in spreads if spread]
        means = [100 * spread.mean for _, spread in spreads if spread]
        stds = [100 * (spread.std or 0) for _, spread in spreads if spread]
        ax.errorbar(depths, means, stds, color=colour, ls="none", capsize=2.5 if any(stds) else 0, elinewidth=0.8)
        style: Any = (
            {"marker": "o", "ms": 4.5} if fact == "error" else {"marker": ".", "ms": 4.5, "ls": DASHED, "lw": 0.8}
        )
        ax.plot(depths, means, color=colour, label=label if fact == "error" else None, **style)


def _draw_published(ax: "Axes", deepest: int) -> set[int]:
    """Draw the published errors up to a depth, the sources beside one another; returns the depths there are."""
    drawn: set[int] = set()
    for (source, table), marker, moved in zip(published.SOURCES.items(), "Ds^", (0.97, 1, 1.03), strict=True):
        for family, colour in _FAMILIES.items():
            points = {int(name.removeprefix(family)): e for name, e in table.items() if name.startswith(family)}
            points = {depth: error for depth, error in points.items() if depth <= deepest}
            places = [depth * moved for depth in points]
            if points:
                label = f"{source}, {'plain' if family == 'plain' else 'residual'}"
                ax.plot(places, [*points.values()], marker, mfc="none", mec=colour, ms=4.5, mew=0.9, label=label)
                drawn |= points.keys()
    return drawn


def _classes(run: Run) -> list[str]:
    """The names of a run's classes: CIFAR-10's, or those its weights tell; numbers, where they cannot be read."""
    if run.identity["data_hash"] == CIFAR10_HASH:
        return list(CIFAR10_CLASSES)
    try:
        known = weights.read(run.path / "weights.safetensors").about.get("classes")
    except UserError:
        known = None
    count = run.predictions.logits.shape[1] if run.predictions else 0
    return [str(name) for name in known] if known and len(known) == count else [str(i) for i in range(count)]


def _prefixes(settings: Sequence[Setting]) -> list[str]:
    """What file names begin with: nothing for one setting; else recipe and data, and steps or a hash where needed."""
    if len(settings) == 1:
        return [""]
    names = [_slug(s.recipe.name + ("" if s.data == "CIFAR-10" else f"-{s.data}")) for s in settings]
    names = [f"{n}-{s.recipe.steps}" if names.count(n) > 1 else n for n, s in zip(names, settings, strict=True)]
    hashes = [hashlib.sha256(setting.key.encode()).hexdigest()[:6] for setting in settings]
    return [(f"{n}-{h}" if names.count(n) > 1 else n) + "-" for n, h in zip(names, hashes, strict=True)]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:60] or "network"
