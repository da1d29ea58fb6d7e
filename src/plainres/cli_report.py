"""`plainres report`: its words, and what it prints."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from plainres.cli_app import Json, Quiet, loaded, say

if TYPE_CHECKING:
    from plainres.report import Report

_WIDE = ("parameters", "least to most", "best over evaluations (optimistic)", "nearest the mean")


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUNS...", help="Run directories, or folders that hold them.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the report is written.")] = "report",
    data: Annotated[
        str | None,
        typer.Option(help="The runs' data, for pictures of mistakes. Default: CIFAR-10 if it is prepared already."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a page, tables and figures of runs: errors, curves, layer responses, cost."""
    from plainres.data.prepare import data_home
    from plainres.data.store import MANIFEST

    loaded()
    usual = data_home() / "cifar10"
    prepared = str(usual) if (usual / MANIFEST).is_file() else None  # a report downloads nothing
    made = report_shown(runs, out, data or prepared, quiet=quiet or as_json)
    if as_json:
        typer.echo(json.dumps(made.to_json()))
    if made.left_out:
        raise typer.Exit(1)


def report_shown(runs: list[str], out: str, data: str | None, *, quiet: bool) -> "Report":
    """Write a report, and print what it says of each setting."""
    from plainres.cli_bar import PrepareBar
    from plainres.report import report as write
    from plainres.report_files import text
    from plainres.report_tables import warnings

    with PrepareBar(quiet=quiet) as bar:
        made = write(runs, out, data=data, progress=bar)
    for found in made.tables:
        said = [f"{one.verdict} {one.sentence}" for one in found.degradations]
        lines = [found.setting.name, *warnings(found.setting), text(found.errors, _WIDE), *said]
        say("\n".join(lines), quiet)
    for line in made.left_out:
        typer.echo(f"plainres: left out: {line}", err=True)
    say(f"written: {made.out / 'index.html'}, table.md, results.csv, figures/", quiet)
    return made
