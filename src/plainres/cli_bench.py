"""`plainres bench`: its words, and what it prints."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plainres.cli_app import Device, Json, loaded, say
from plainres.errors import UserError

if TYPE_CHECKING:
    from plainres.bench import Settings


def bench(
    networks: Annotated[
        list[str] | None, typer.Argument(metavar="NETWORK", help="Names. Default: resnet20 resnet56.")
    ] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="float32, tf32 or bfloat16.")] = "float32",
    batch: Annotated[int, typer.Option(help="Images of a step.")] = 128,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all cores.")] = None,
    engine: Annotated[
        str, typer.Option(help="auto (what the paper's recipe gets), native, graph, compiled or eager.")
    ] = "auto",
    against: Annotated[
        str | None, typer.Option(metavar="eager", help="Measure the way everybody writes it in turns with ours.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything has its turn.")] = 7,
    seconds: Annotated[float, typer.Option(help="Of steps in each turn, about.")] = 1.0,
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time of a step goes.")] = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Measure nothing: set two earlier results (--out, --json) side by side."),
    ] = None,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Append a row for each network.")] = None,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write the result as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Measure training steps: speed, memory, and the distance to what the machine could do."""
    if compare:
        if networks or csv or out or profile or against:
            raise UserError("--compare reads two earlier results, and goes with --json alone")
        _compare(*map(Path, compare), as_json=as_json)
        return
    from plainres.bench import Settings

    loaded()
    chosen = Settings(device, precision, batch, threads, engine, against, rounds, seconds, profile)
    _measure(networks, chosen, Path(csv) if csv else None, Path(out) if out else None, as_json=as_json)


def _measure(
    networks: list[str] | None, settings: "Settings", csv: Path | None, out: Path | None, *, as_json: bool
) -> None:
    from plainres import files
    from plainres.bench import NETWORKS, bench, document
    from plainres.bench_files import Table, need_folder
    from plainres.cli_bench_show import Waiting, card

    if out:
        need_folder(out)
    table = Table(csv) if csv else None
    rows: list[dict[str, Any]] = []
    with Waiting() as waiting:
        for row in bench(networks or NETWORKS, settings, progress=waiting):
            waiting.stop()
            say(card(row), as_json)
            rows.append(row)
            found = document(rows, settings)
            if table:
                table.append({**row, "torch": found["machine"]["torch"], "plainres": found["plainres"]})
    if out:
        files.write_json(out, found)
        say(f"written to {out}", as_json)
    if as_json:
        typer.echo(json.dumps(found))


def _compare(before: Path, after: Path, *, as_json: bool) -> None:
    from plainres.bench_files import compare, differences, read
    from plainres.cli_bench_show import comparison

    first, second = read(before), read(after)
    rows, differing = compare(first, second), differences(first, second)
    if as_json:
        typer.echo(json.dumps({"compare": rows, "differences": differing}))
        return
    typer.echo(comparison(rows, differing, str(before), str(after)))
