"""The tables of a report as plain values: for the page, for Markdown, for the terminal and for programs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from plainres import published, recipes, statistics, summary
from plainres.groups import Group, Setting
from plainres.report_findings import Comparison, Degradation, comparisons, degradations
from plainres.results import Run
from plainres.statistics import Spread

DASH = "–"


@dataclass(frozen=True)
class Cell:
    """What is shown, the value it sorts by (None: last), and what is shown smaller beside it."""

    text: str
    value: float | str | None = None
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A heading, and whether numbers stand below it; `about` explains it."""

    title: str
    number: bool = True
    about: str = ""


@dataclass(frozen=True)
class Table:
    """Columns, and rows with a cell for each."""

    columns: list[Column]
    rows: list[list[Cell]]


def explained(tables: Iterable[Table]) -> list[tuple[str, str]]:
    """What the headings of some tables mean, those with the same meaning together."""
    meanings: dict[str, dict[str, None]] = {}
    for column in (column for table in tables for column in table.columns if column.about):
        meanings.setdefault(column.about, {})[column.title] = None
    return [(", ".join(titles), about) for about, titles in meanings.items()]


def percent(value: float) -> str:
    """A fraction as percent, without the sign."""
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * value:+.2f}".replace("-", "−")


def _spread(spread: Spread | None) -> Cell:
    if spread is None:
        return Cell(DASH)
    text = percent(spread.mean) + (f" ± {percent(spread.std)}" if spread.std is not None else "")
    return Cell(text, spread.mean)


def _number(value: float | None, form: str) -> Cell:
    return Cell(DASH) if value is None else Cell(format(value, form), value)


def parameters(run: Run) -> int | None:
    """How many trainable parameters its network has; None for one from outside."""
    return sum(layer.parameters for layer in summary.layers(run.spec)) if run.spec else None


def _network(group: Group) -> Cell:
    """The name; of a network that has none of its own, the fields that make it."""
    spec = (group.finished + group.unfinished)[0].spec
    fields = spec.differences() if spec and spec.name.endswith("-custom") else {}
    note = ", ".join(f"{k}={v}" for k, v in fields.items() if k not in ("depth", "kind", "classes"))
    return Cell(group.network, (f"{spec.kind} {spec.depth:06}" if spec else "") + group.network, note)


def errors(setting: Setting) -> Table:
    """The errors of a setting's networks over seeds, in percent, beside the published ones."""
    sources = [s for s in published.SOURCES if any(s in published.of(g.network) for g in setting.groups)]
    sources = sources if setting.data == "CIFAR-10" and setting.held_out == "test" else []
    held = "validation" if setting.held_out == "val" else "test"
    columns = [
        Column("network", number=False),
        Column("parameters"),
        *(Column(source, about="published, at full length") for source in sources),
        Column(f"{held} error", about="at the last step: mean ± standard deviation over n seeds"),
        Column("n"),
        Column("least to most", about="over seeds"),
        Column("training error", about="over the last 100 steps, augmentation on"),
        Column("best over evaluations (optimistic)", about="the least of all looks at the same images"),
        Column("nearest the mean", about="the seed whose weights stand for the network"),
        Column("steps", about="of a whole run; where unfinished ones are"),
    ]
    return Table(columns, [_error_row(group, sources) for group in setting.groups])


def _error_row(group: Group, sources: Sequence[str]) -> list[Cell]:
    figures, error, nearest = published.of(group.network), group.spread(), group.nearest_mean
    span = f"{percent(error.least)}–{percent(error.most)}" if error and error.n > 1 else DASH
    return [
        _network(group),
        _number(parameters((group.finished + group.unfinished)[0]), ","),
        *(_number(figures.get(source), ".2f") for source in sources),
        _spread(error) if error else Cell("unfinished"),
        Cell(str(len(group.finished)), len(group.finished)),
        Cell(span, error.least if error and error.n > 1 else None),
        _spread(group.spread("train_error")),
        _spread(group.best),
        Cell(f"seed {nearest.seed}", nearest.seed) if nearest else Cell(DASH),
        _steps(group),
    ]


def last_step(run: Run) -> int:
    """How far it has come."""
    return run.steps if run.result else max((line["step"] for line in run.lines), default=0)


def _steps(group: Group) -> Cell:
    """The steps of a whole run, and where unfinished ones are."""
    steps = (group.finished + group.unfinished)[0].steps
    behind = [f"seed {run.seed} at {last_step(run):,}" for run in group.unfinished]
    return Cell(f"{steps:,}", steps, ", ".join(behind))


def differences(setting: Setting) -> Table:
    """Differences in the held-out error, in points, by a paired bootstrap; without rows where there are none."""
    columns = [
        Column("error of", number=False),
        Column("minus that of", number=False),
        Column("points"),
        Column("95 % interval"),
        Column("seeds"),
    ]
    rows = [_difference_row(found) for part in comparisons(setting) for found in part]
    return Table(columns, [row for row in rows if row])


def _difference_row(found: Comparison) -> list[Cell]:
    between = found.difference
    if between is None:
        return []
    return [
        Cell(found.first, found.first),
        Cell(found.second, found.second),
        Cell(points(between.mean), between.mean),
        Cell(f"{points(between.low)} to {points(between.high)}", between.low),
        Cell(str(between.seeds), between.seeds),
    ]


def caution(setting: Setting) -> str:
    """What the intervals of differences stand on."""
    most = max((spread.n for group in setting.groups if (spread := group.spread())), default=0)
    said = "Each interval is a paired bootstrap over seeds and over the images held out."
    if most >= statistics.FEW_SEEDS:
        return said
    of_seeds = "little of the seeds" if most > 1 else "nothing of the seeds"
    return f"{said} With so few seeds ({most}) it says much of the images and {of_seeds}."


def costs(setting: Setting, train_images: int | None = None) -> Table:
    """What the finished runs took, by network, engine and machine; beside what cfmz's took on a Titan X.

    A pass is over `train_images`; without it CIFAR-10's are known.
    """
    images = train_images or (50_000 - setting.recipe.validation_images if setting.data == "CIFAR-10" else None)
    runs: dict[tuple[str, ...], list[Run]] = {}
    for group in setting.groups:
        for run in group.finished:
            runs.setdefault((group.network, _engine(run), machine(run)), []).append(run)
    compared = any(key[0].removesuffix("-cfmz") in published.CFMZ_COST for key in runs)
    columns = [
        *(Column("network", number=False), Column("runs")),
        *(Column("machine", number=False), Column("engine", number=False)),
        Column("peak memory, MiB"),
        *(Column("seconds a pass", about="of training"), Column("images/s")),
        *(Column("hours of training"), Column("hours in all", about="with evaluation and compilation")),
        *([Column("cfmz, MiB", about="Titan X"), Column("cfmz, seconds a pass")] if compared else []),
    ]
    return Table(columns, [_cost_row(key, members, images, compared) for key, members in runs.items()])


def _cost_row(key: tuple[str, ...], runs: list[Run], images: int | None, compared: bool) -> list[Cell]:
    results = [run.result or {} for run in runs]
    memory, seconds = _mean(results, "peak_memory_bytes"), _mean(results, "seconds")
    whole = [_mean(results, name) or 0 for name in ("seconds", "evaluation_seconds", "compile_seconds")]
    passes = runs[0].steps * runs[0].recipe.batch_size / images if images else None
    theirs = published.CFMZ_COST.get(key[0].removesuffix("-cfmz"), (None, None))
    return [
        Cell(key[0], key[0]),
        Cell(str(len(runs)), len(runs)),
        Cell(key[2], key[2]),
        Cell(key[1], key[1]),
        _number(memory / 2**20 if memory else None, ",.0f"),
        _number(seconds / passes if seconds and passes else None, ",.1f"),
        _number(_mean(results, "images_per_second"), ",.0f"),
        _number(seconds / 3600 if seconds else None, ".2f"),
        _number(sum(whole) / 3600, ".2f"),
        *([_number(theirs[0], ",d"), _number(theirs[1], "d")] if compared else []),
    ]


def _mean(results: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [result[name] for result in results if result.get(name) is not None]
    return sum(values) / len(values) if values else None


def _engine(run: Run) -> str:
    return str((run.result or {}).get("engine") or run.facts("plan.json").get("engine") or DASH)


def machine(run: Run) -> str:
    """The chip it ran on, and how much of it."""
    plan, facts = run.facts("plan.json"), run.facts("machine.json")
    threads = plan.get("threads")
    counted = f", {threads} thread{'s' if threads != 1 else ''}" if threads and plan.get("device") == "cpu" else ""
    return f"{facts.get('chip', plan.get('chip', 'unknown'))}{counted}"


def calibration(run: Run) -> tuple[float, float] | None:
    """Expected calibration error (a fraction) and negative log-likelihood of its predictions."""
    found = run.predictions
    if found is None:
        return None
    parts = (found.logits, found.labels)
    return statistics.calibration_error(*parts), statistics.negative_log_likelihood(*parts)


def warnings(setting: Setting) -> list[str]:
    """What a reader must know before any figure of a setting."""
    found = []
    if setting.data == "generated":
        found.append("GENERATED DATA: drawn by plainres, not CIFAR-10. Its errors say nothing about CIFAR-10.")
    if setting.recipe.scale != 1:
        found.append(
            f"SCALED SCHEDULE: {setting.recipe.scale:g} of its length, {setting.recipe.steps:,} steps; "
            "not comparable with published figures, which are of the whole length (64,000 steps in the paper)."
        )
    base = recipes.RECIPES.get(setting.recipe.name)
    if setting.recipe.scale == 1 and base and setting.recipe.steps < base().steps:
        found.append(
            f"CUT SCHEDULE: {setting.recipe.steps:,} of {base().steps:,} steps; not comparable with published figures."
        )
    return found


@dataclass(frozen=True)
class Tables:
    """What a report says of a setting, computed once."""

    setting: Setting
    degradations: list[Degradation]
    errors: Table
    differences: Table
    costs: Table


def tables(setting: Setting, train_images: int | None = None) -> Tables:
    """All tables of a setting; the bootstraps take a second a row on 10,000 images."""
    made = errors(setting), differences(setting), costs(setting, train_images)
    return Tables(setting, degradations(setting), *made)
