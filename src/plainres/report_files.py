"""The tables of a report as files: Markdown, CSV, and text for the terminal."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from plainres.report_tables import Cell, Table, Tables, calibration, caution, explained, last_step, warnings
from plainres.results import Run


def record(run: Run) -> dict[str, Any]:
    """One run in raw numbers, errors as fractions: a line of results.csv."""
    result, spec = run.result or {}, run.spec
    ece, nll = calibration(run) or (None, None)
    copied = ("misses", "images", "error", "train_error", "loss", "seconds", "evaluation_seconds")
    return {
        "network": run.network,
        "depth": spec.depth if spec else None,
        "recipe": run.recipe.name,
        "scale": run.recipe.scale,
        "seed": run.seed,
        "state": "finished" if run.result else "unfinished",
        "step": last_step(run),
        "steps": run.steps,
        "split": run.held_out,
        **{name: result.get(name) for name in copied},
        "best_error": run.best,
        "ece": ece,
        "nll": nll,
        "images_per_second": result.get("images_per_second"),
        "peak_memory_bytes": result.get("peak_memory_bytes"),
        "engine": result.get("engine"),
        "precision": run.identity["precision"],
        "world_size": run.identity.get("world_size", 1),
        "data": run.identity["data"],
        "data_hash": run.identity["data_hash"],
        "run_dir": run.path.resolve().name,
    }


def results_csv(runs: Sequence[Run]) -> str:
    """One line for each run."""
    records = [record(run) for run in runs]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown."""
    head = [column.title for column in table.columns]
    rule = ["---:" if column.number else "---" for column in table.columns]
    body = [[_escaped(_plain(cell)) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *body])


def text(table: Table, without: Sequence[str] = ()) -> str:
    """A table for the terminal, columns aligned, some left out."""
    kept = [i for i, column in enumerate(table.columns) if column.title not in without]
    columns = [table.columns[i] for i in kept]
    rows = [[column.title for column in columns], *([_plain(row[i]) for i in kept] for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    sides = [">" if column.number else "<" for column in columns]
    lines = ("  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _plain(cell: Cell) -> str:
    return f"{cell.text} ({cell.note})" if cell.note else cell.text


def document(tables: Sequence[Tables], left_out: Sequence[str] = ()) -> str:
    """The whole table.md."""
    parts = ["# Results"]
    parts += [f"Left out: {_escaped(line)}" for line in left_out]
    for found in tables:
        setting = found.setting
        parts += [f"## {_escaped(setting.name)}", *warnings(setting)]
        parts += [f"{one.verdict} {one.sentence}" for one in found.degradations]
        parts += ["### Errors, in percent", markdown(found.errors), _explained(found.errors)]
        if found.differences.rows:
            parts += ["### Differences of errors, in points", markdown(found.differences), caution(setting)]
        if found.costs.rows:
            parts += ["### Cost", markdown(found.costs), _explained(found.costs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _explained(table: Table) -> str:
    return "; ".join(f"{_escaped(titles)}: {_escaped(about)}" for titles, about in explained([table]))


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    for mark in ("\\", "|", "*", "_", "`", "["):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
