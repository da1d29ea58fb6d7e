"""How the figures look: the paper's order of colours, names of networks, titles that say what data and schedule."""

import functools
import io
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from plainres import files
from plainres.errors import UserError
from plainres.groups import Group, Setting
from plainres.spec import NetworkSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

# The paper's yellow, cyan, green, red, black and magenta, in the palette of Okabe and Ito, which the colour-blind can
# tell apart; the two of pre-activation follow.
_DEPTHS = {
    **{20: "#E69F00", 32: "#56B4E9", 44: "#009E73", 56: "#D55E00", 110: "#000000", 1202: "#CC79A7"},
    **{164: "#0072B2", 1001: "#7A5195"},
}
_OTHER_DEPTHS = ("#0072B2", "#7A5195", "#8C6D31", "#4D4D4D", "#CC79A7")
_FAMILIES = {"plain": "plain", "residual": "ResNet", "preact": "preact"}
_PANELS = {"plain": "plain networks", "ResNet": "residual networks", "preact": "pre-activation networks"}
_STYLE: Any = {
    **{"font.family": ["STIXGeneral", "DejaVu Sans"], "font.size": 8.5, "text.parse_math": False},
    **{"axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "figure.titlesize": 9},
    **{"xtick.labelsize": 8, "ytick.labelsize": 8, "xtick.direction": "in", "ytick.direction": "in"},
    **{"axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.4},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": "#dddddd", "grid.linewidth": 0.5},
    **{"legend.frameon": True, "legend.framealpha": 0.85, "legend.edgecolor": "none", "legend.handlelength": 1.6},
    **{"figure.facecolor": "white", "savefig.dpi": 200, "lines.solid_capstyle": "round"},
    **{"svg.fonttype": "path", "svg.hashsalt": "plainres"},  # readable without the font; the same ids each time
}
_MARKED = "#9C2A00"  # the colour of a title that says that errors are not the paper's
DASHED = (0, (3.5, 1.5))
"""How lines are dashed."""


@dataclass(frozen=True)
class Name:
    """A network as the figures name it: family and variant are a panel, the label is a line of its legend."""

    family: str
    variant: str
    depth: int

    @property
    def label(self) -> str:
        """As the paper writes it: ResNet-56."""
        depth = f"-{self.depth}" if self.depth else ""
        return f"{self.family}{depth}{' ' if self.variant else ''}{self.variant}"

    @property
    def panel(self) -> tuple[int, str, str]:
        """Sorts as the paper's panels do: plain, residual, others."""
        order = list(_FAMILIES.values())
        return (order.index(self.family) if self.family in order else len(order), self.family, self.variant)


def name_of(spec: NetworkSpec | None, network: str) -> Name:
    """The name of a network, or of one from outside."""
    if spec is None:
        return Name(network, "", 0)
    variant = network.partition("-")[2]
    if variant == "custom":
        variant = ", ".join(f"{k}={v}" for k, v in spec.differences().items() if k not in ("depth", "kind", "classes"))
    return Name(_FAMILIES[spec.kind], variant, spec.depth)


def group_name(group: Group) -> Name:
    """The name of a group's network."""
    return name_of([*group.finished, *group.unfinished][0].spec, group.network)


def colours(setting: Setting) -> dict[int, str]:
    """A colour for each depth of a setting, the same in every panel."""
    return colours_of(group_name(group).depth for group in setting.groups)


def colours_of(depths: Iterable[int]) -> dict[int, str]:
    """A colour for each depth; those that are not the paper's get others in their order."""
    others = sorted(set(depths) - _DEPTHS.keys())
    return _DEPTHS | {depth: _OTHER_DEPTHS[i % len(_OTHER_DEPTHS)] for i, depth in enumerate(others)}


def colour(names: Sequence[Name], number: int, by_depth: dict[int, str]) -> str:
    """The colour of one of several lines: its depth's, or its own where networks of a kind share a depth."""
    shared = len({(name.family, name.depth) for name in names}) < len(names)
    if shared or not names[number].depth:  # a network from outside tells no depth
        return list(_DEPTHS.values())[number % len(_DEPTHS)]
    return by_depth[names[number].depth]


def seeds(setting: Setting) -> str:
    """What lines and bands are, for a caption."""
    counts = {len(group.finished) for group in setting.groups if group.finished}
    if not counts or counts == {1}:
        return " One seed." if counts else ""
    n = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(max(counts))
    return f" Lines: means of {n} seeds; bands: least to most."


def families(names: Sequence[Name]) -> dict[str, list[Name]]:
    """Names by family and variant, each in the order of depth."""
    found: dict[str, list[Name]] = {}
    for name in sorted(names, key=lambda n: (n.panel, n.depth)):
        title = _PANELS.get(name.family, "other networks") + (f", {name.variant}" if name.variant else "")
        found.setdefault(title, []).append(name)
    return found


def panels(names: Sequence[Name]) -> dict[str, list[Name]]:
    """Names by panel: a family each, and one for 110 and 1202 layers where 1202 are there, as in the paper."""
    found = families(names)
    for title, members in list(found.items()):
        if 1202 in [name.depth for name in members] and len(members) > 2:
            found[f"{title}, very deep"] = [name for name in members if name.depth in (110, 1202)]
            found[title] = [name for name in members if name.depth != 1202]
    return found


@dataclass(frozen=True)
class Title:
    """What a figure is of, and what keeps its errors from being compared with the paper's."""

    text: str
    marks: tuple[str, ...]


def title(setting: Setting) -> Title:
    """The title of a figure of a setting."""
    return Title(setting.name, marks(setting.data == "generated", setting.recipe.scale))


def marks(generated: bool, scale: float) -> tuple[str, ...]:
    """What a title says where data are drawn or a schedule was shortened."""
    found = ["GENERATED DATA, not CIFAR-10: it says nothing about CIFAR-10"] if generated else []
    return (*found, *(["SHORTENED SCHEDULE: not comparable with published figures"] if scale != 1 else []))


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Have a function draw in this style; UserError where matplotlib is not installed."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            import matplotlib.figure
        except ImportError:
            raise UserError("figures need matplotlib: pip install 'plainres[report]'") from None
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def figure(width: float, height: float, title: Title, caption: str) -> "Figure":
    """An empty figure of some inches, its caption below; a title with marks stands out."""
    from matplotlib.figure import Figure

    made = Figure((width, height), layout="constrained")
    made.suptitle(_wrapped([title.text, *title.marks], 17 * width), color=_MARKED if title.marks else "black")
    made.supxlabel(_wrapped([caption], 19 * width), fontsize=8, color="#444444")
    return made


def end_labels(ax: "Axes", ends: Sequence[tuple[float, str, str]]) -> None:
    """Texts at the right edge, each (value, text, colour), moved apart where they would overlap."""
    low, high = ax.get_ylim()
    gap = (high - low) * 0.052
    inside = sorted((min(max(value, low), high), text, colour) for value, text, colour in ends)
    places: list[float] = []
    for value, _, _ in inside:
        places.append(max(value, places[-1] + gap) if places else value)
    over = max(0.0, places[-1] - high) if places else 0.0
    for i in reversed(range(len(places))):  # down again, where the highest would leave the axes
        places[i] = min(places[i], places[i + 1] - gap if i + 1 < len(places) else places[i] - over)
    for place, (_, text, colour) in zip(places, inside, strict=True):
        ax.annotate(
            text, (1, place), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            color=colour, va="center", fontsize=7.5, annotation_clip=False,
        )  # fmt: skip


@styled
def save(made: "Figure", path: Path) -> list[Path]:
    """Write a figure as `path`.svg and `path`.png: the same figure makes the same bytes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.refused(error, path.parent) from error
    written = []
    for kind, metadata in (("svg", {"Date": None, "Creator": "plainres"}), ("png", {"Software": "plainres"})):
        content = io.BytesIO()
        made.savefig(content, format=kind, metadata=metadata)
        written.append(path.with_name(f"{path.name}.{kind}"))
        files.write(written[-1], _rounded(content.getvalue()) if kind == "svg" else content.getvalue())
    return written


def usual(values: Sequence[float]) -> float:
    """The largest of some errors that a figure shows: a network that does not learn would squeeze the others."""
    return max(value for value in values if value <= 3.5 * statistics.median(values))


def _rounded(svg: bytes) -> bytes:
    """An SVG with two digits after the points of its coordinates: of six, most of a curve's bytes are noise."""
    places = re.compile(rb' (?:d|x|y)="[^"]*"')
    return places.sub(lambda found: re.sub(rb"(\.\d\d)\d+", rb"\1", found[0]), svg)


def _wrapped(lines: Sequence[str], letters: float) -> str:
    return "\n".join(textwrap.fill(line, int(letters)) for line in lines)
