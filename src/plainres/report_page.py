"""The page of a report: everything in one file that opens offline."""

import importlib.util
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from plainres import __version__, report_curves, report_tables
from plainres.data.dataset import Dataset
from plainres.errors import UserError
from plainres.groups import Setting
from plainres.report_details import calibration_table, class_names, details, mistakes, origin, part_of
from plainres.report_findings import Degradation
from plainres.report_tables import DASH, Tables, last_step, points, warnings
from plainres.results import Run

TEMPLATES = Path(__file__).parent / "templates"
_SECTIONS = {
    "degradation": "Degradation",
    "errors": "Errors",
    "differences": "Differences",
    "curves": "Curves",
    "responses": "Layer responses",
    "cost": "Cost",
    "runs": "Single runs",
    "recipes": "Recipes and machines",
}


def need_extra() -> None:
    """Refuse, in one line, where a library of the report is missing."""
    missing = [name for name in ("jinja2", "plotly", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"a report needs {', '.join(missing)}: pip install 'plainres[report]'")


def page(
    tables: Sequence[Tables],
    left_out: Sequence[str] = (),
    *,
    data: Dataset | None = None,
    made: datetime | None = None,
) -> str:
    """The page as HTML. `data` are the images of the mistakes; without it, or of other data, none are shown."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"told": _told, "explained": report_tables.explained}
    settings = [found.setting for found in tables]
    colours = report_curves.colours(settings)
    held: dict[str, Any] = {"panels": {}, "runs": {}, "mistakes": {}}
    parts = [_part(found, i, colours, held, data) for i, found in enumerate(tables)]
    return environment.get_template("report.html.j2").render(
        title=_title(settings),
        version=__version__,
        made=(made or datetime.now().astimezone()).strftime("%Y-%m-%d %H:%M"),
        counted=_counted(settings),
        banners=_banners(settings, left_out),
        sections={key: name for key, name in _SECTIONS.items() if _has(key, parts)},
        settings=parts,
        many=len(parts) > 1,
        colours=colours,
        chosen=_chosen(settings, list(held["runs"])),
        pictured=bool(held["mistakes"]),
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        held=json.dumps(held, allow_nan=False).replace("<", "\\u003c"),  # no text in it can end its element
    )


def _part(
    tables: Tables, number: int, colours: dict[str, int], held: dict[str, Any], data: Dataset | None
) -> dict[str, Any]:
    """What the template shows of a setting; what the script needs goes into `held`."""
    setting = tables.setting
    runs = [run for group in setting.groups for run in group.finished + group.unfinished]
    classes = _classes(runs, setting, data)
    curves = report_curves.curves(setting, colours)
    named = {f"curves-{number}-{i}": panel for i, panel in enumerate(curves)}
    responses = report_curves.responses(setting, colours)
    held["panels"] |= {key: panel.to_json() for key, panel in named.items()}
    if responses:
        held["panels"][f"responses-{number}"] = responses.to_json()
    return {
        "name": setting.name,
        "held": "validation" if setting.held_out == "val" else "test",
        "degradations": [_degradation(found) for found in tables.degradations],
        "errors": tables.errors,
        "differences": tables.differences,
        "caution": report_tables.caution(setting),
        "curves": {key: panel.title for key, panel in named.items()},
        "banded": any(len(group.finished) > 1 for group in setting.groups),
        "responses": f"responses-{number}" if responses else None,
        "costs": tables.costs,
        "calibration": calibration_table(setting, classes),
        "options": _hold_runs(setting, number, classes, held, data),
        "origins": [{**origin(run), "name": f"{run.network}, seed {run.seed}"} for run in runs],
    }


def _classes(runs: Sequence[Run], setting: Setting, data: Dataset | None) -> list[str]:
    counts = [run.predictions.logits.shape[1] for run in runs if run.predictions]
    return class_names(setting, counts[0], data) if counts else []


def _hold_runs(
    setting: Setting, number: int, classes: Sequence[str], held: dict[str, Any], data: Dataset | None
) -> dict[str, str]:
    """Put the runs of a setting, and their pictures, into `held`; the choices of the page, by key."""
    part, options = part_of(setting, data), {}
    for i, group in enumerate(setting.groups):
        own = f"{number}-{i}"
        if part is not None and (found := mistakes(group, part, classes)):
            held["mistakes"][own] = found
        nearest = group.nearest_mean
        for j, run in enumerate(sorted(group.finished, key=lambda run: run is not nearest)):
            if facts := details(run, classes):
                key = f"{own}-{j}"
                held["runs"][key] = {**facts, "network": run.network, "group": own}
                is_nearest = ", nearest the mean" if run is nearest and len(group.finished) > 1 else ""
                options[key] = f"{run.network}, seed {run.seed}{is_nearest}"
    return options


def _chosen(settings: Sequence[Setting], runs: Sequence[str]) -> str | None:
    """The run shown first: of the network with the least mean error, the one nearest that mean."""
    means = {
        f"{number}-{i}-0": spread.mean
        for number, setting in enumerate(settings)
        for i, group in enumerate(setting.groups)
        if (spread := group.spread())
    }
    return min(runs, key=lambda key: means.get(key, 2.0), default=None)


def _degradation(found: Degradation) -> dict[str, Any]:
    """Its words, and its three numbers with those of each seed."""
    sides = {
        f"plain, {found.shallow} to {found.deep} layers": found.plain,
        f"residual, {found.shallow} to {found.deep} layers": found.residual,
        "the difference of the two": found.apart,
    }
    tiles = {
        name: {
            "mean": points(sum(values) / len(values)),
            "each": ", ".join(map(points, values)) + " by seed" if len(values) > 1 else "",
        }
        for name, values in sides.items()
    }
    return {"verdict": found.verdict, "sentence": found.sentence, "variant": found.variant, "tiles": tiles}


def _has(section: str, parts: Sequence[dict[str, Any]]) -> bool:
    """Whether any setting has something to show there."""
    return any(
        {
            "degradation": part["degradations"],
            "errors": part["errors"].rows,
            "differences": part["differences"].rows,
            "curves": part["curves"],
            "responses": part["responses"],
            "cost": part["costs"].rows,
            "runs": part["options"],
            "recipes": part["origins"],
        }[section]
        for part in parts
    )


def _banners(settings: Sequence[Setting], left_out: Sequence[str]) -> list[dict[str, Any]]:
    """What a reader must know first."""
    said = [line.partition(": ") for line in dict.fromkeys(line for s in settings for line in warnings(s))]
    found = [{"title": f"{title.capitalize()}.", "text": _sentence(text), "items": []} for title, _, text in said]
    runs = [run for setting in settings for group in setting.groups for run in group.unfinished]
    behind = [
        f"{run.network}, {run.recipe.name}, seed {run.seed}: step {last_step(run):,} of {run.steps:,}" for run in runs
    ]
    if behind:
        found.append({"title": "Unfinished runs.", "text": "They are in no mean.", "items": behind})
    if left_out:
        found.append({"title": "Left out.", "text": "These directories could not be used.", "items": list(left_out)})
    return found


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _title(settings: Sequence[Setting]) -> str:
    named = {"generated": "generated data", "images": "images of one’s own"}
    data = sorted({named.get(setting.data, setting.data) for setting in settings})
    return f"Plain and residual networks on {' and '.join(data)}"


def _counted(settings: Sequence[Setting]) -> str:
    runs = sum(len(group.finished) + len(group.unfinished) for setting in settings for group in setting.groups)
    networks = len({group.network for setting in settings for group in setting.groups})
    return f"{runs} run{'s' if runs != 1 else ''} of {networks} network{'s' if networks != 1 else ''}"


def _told(value: Any) -> str:
    """A field's value for people."""
    if isinstance(value, list):
        return ", ".join(map(_told, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return DASH if value is None else str(value)
