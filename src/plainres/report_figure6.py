"""Figure 6 of the paper from our runs: training error dashed, test error solid, plain beside residual."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from plainres import report_style
from plainres.groups import Group, Setting
from plainres.report_style import DASHED, Name, group_name
from plainres.statistics import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FULL_LENGTH = 60_000  # steps from which a run is shown as the paper's: 0 to 20 %, in 1e4 iterations
_PAPERS = (0, 20)  # percents of its Figure 6
_POINTS = 128  # of a curve: what a panel's width can show


@dataclass(frozen=True, eq=False)
class Curve:
    """An error in percent at some steps: over seeds the mean, the least, the most."""

    steps: Array
    mean: Array
    least: Array
    most: Array

    @property
    def last(self) -> float:
        """The mean at the last step."""
        return float(self.mean[-1])


@dataclass(frozen=True, eq=False)
class Line:
    """The curves of a group: of the training error and of the error of the part held out."""

    name: Name
    finished: bool
    train: Curve | None
    held: Curve | None

    @property
    def both(self) -> list[Curve]:
        """Those there are; the error of the part held out is the first."""
        return [curve for curve in (self.held, self.train) if curve is not None]


@report_style.styled
def curves(setting: Setting, *, end: bool = False) -> "Figure | None":
    """Errors against steps, a panel for each family; `end`: zoomed to the end of training, as cfmz's second figure."""
    lines = [line for line in map(_line, setting.groups) if line.both]
    if not lines:
        return None
    found = report_style.panels([line.name for line in lines])
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    what = "validation" if setting.held_out == "val" else "test"
    caption = f"Solid: {what} error. Dashed: training error (augmented images, 100 steps each)."
    made = report_style.figure(
        max(4.2, 1.0 + 3.0 * columns),
        0.9 + 2.5 * rows,
        report_style.title(setting),
        caption + report_style.seeds(setting),
    )
    begin = _end_of_training(setting) if end else 0
    limits = _limits(setting, [curve for line in lines for curve in line.both], begin)
    all_axes = list(made.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for ax, (title, names) in zip(all_axes, found.items(), strict=False):
        unit = 1e4 if setting.recipe.steps >= _FULL_LENGTH else 1
        ax.set(xlim=(begin / unit, setting.recipe.steps / unit), ylim=limits, title=title)
        ax.set(xlabel="iter. (1e4)" if unit > 1 else "steps", ylabel="error (%)" if ax in all_axes[::columns] else "")
        ax.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
        ax.locator_params(axis="y", steps=[1, 2, 5, 10])
        _draw(ax, [line for line in lines if line.name in names], report_style.colours(setting), unit, zoomed=end)
    for ax in all_axes[len(found) :]:
        ax.remove()
    return made


def _draw(ax: "Axes", lines: Sequence[Line], colours: dict[int, str], unit: float, *, zoomed: bool) -> None:
    ends, notes = [], []
    lines = sorted(lines, key=lambda line: line.name.depth)
    names = [line.name for line in lines]
    for number, line in enumerate(lines):
        colour, label = report_style.colour(names, number, colours), line.name.label
        for curve in line.both:
            style = {"lw": 1.7} if curve is line.held else {"lw": 0.8, "ls": DASHED}
            ax.plot(curve.steps / unit, curve.mean, color=colour, **style)
            if (curve.most > curve.least).any():
                ax.fill_between(curve.steps / unit, curve.least, curve.most, color=colour, alpha=0.14, lw=0)
        ax.plot([], [], color=colour, lw=1.7, label=label + ("" if line.finished else " (unfinished)"))
        last = line.both[0].last
        if last > ax.get_ylim()[1]:
            notes.append(f"{label} is at {last:.0f} %, not shown")
        elif line.finished:
            alone = line.name.depth and [name.depth for name in names].count(line.name.depth) == 1
            ends.append((last, f"{line.name.depth}-layer" if alone else label, colour))
        elif zoomed:
            notes.append(f"{label} is unfinished")
    report_style.end_labels(ax, ends)
    title = "\n".join(notes) or None
    if not zoomed:
        ax.legend(loc="lower left" if ax.get_ylim() == _PAPERS else "best", title=title, title_fontsize=7)
    elif notes:  # the labels at the ends say which line is which, and curves are everywhere
        ax.legend([], [], loc="upper right", title=title, title_fontsize=7)


def _line(group: Group) -> Line:
    """Unfinished runs are shown only where none is finished."""
    runs = group.finished or group.unfinished
    train = _over_seeds([run.curve("train") for run in runs], mean=True)
    held = _over_seeds([run.curve(run.held_out) for run in runs], mean=False)
    return Line(group_name(group), bool(group.finished), train, held)


def _over_seeds(each: Sequence[tuple[list[int], list[float]]], *, mean: bool) -> Curve | None:
    """Curves of several seeds as one, at the steps of the first, up to where the shortest ends.

    Of more points than can be seen, every so many from the last one back are kept, with `mean` as the mean of those
    between: the training error of so many more steps.
    """
    each = [(steps, values) for steps, values in each if steps]
    if not each:
        return None
    steps = np.array([step for step in each[0][0] if step <= min(known[-1] for known, _ in each)])
    rows = 100 * np.array([np.interp(steps, known, values) for known, values in each])
    take = -(-len(steps) // _POINTS)
    if take > 1:
        kept = np.arange(len(steps) - 1, take - 2, -take)[::-1]
        rows = np.stack([rows[:, i - take + 1 : i + 1].mean(1) if mean else rows[:, i] for i in kept], axis=1)
        steps = steps[kept]
    return Curve(steps, rows.mean(0), rows.min(0), rows.max(0)) if len(steps) else None


def _end_of_training(setting: Setting) -> int:
    """Where the zoom begins: just before the first drop of the learning rate, or at two thirds."""
    drops, steps = setting.recipe.drops, setting.recipe.steps
    return int(0.95 * drops[0]) if drops and drops[0] < steps else steps * 2 // 3


def _limits(setting: Setting, found: Sequence[Curve], begin: int) -> tuple[float, float]:
    """The percents shown from a step on: the paper's 0 to 20 at full length, otherwise what the curves need."""
    if setting.recipe.steps >= _FULL_LENGTH and setting.data == "CIFAR-10" and not begin:
        return _PAPERS
    found = [curve for curve in found if curve.steps[-1] >= begin] or found
    usual = report_style.usual([curve.last for curve in found])
    late = [curve.mean[curve.steps >= (begin or 0.1 * setting.recipe.steps)] for curve in found if curve.last <= usual]
    ends = [curve.last for curve in found if curve.last <= usual]
    every = np.concatenate([*late, ends])
    low, high = float(every.min()), max(float(np.quantile(every, 0.97)), *ends)
    grid = 1 if high - low < 8 else 2 if high - low < 20 else 5
    return grid * (low // grid) if begin or low > 0.4 * high else 0, grid * (high // grid + 1)
