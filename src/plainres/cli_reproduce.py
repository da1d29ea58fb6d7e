"""`plainres reproduce`: a study from nothing to its report."""

import json
from typing import Annotated, Any

import typer

from plainres.cli_app import Data, Device, Json, Precision, Quiet, Scale, loaded, seeds_of
from plainres.cli_report import report_shown
from plainres.cli_sweep import AtOnce, DryRun, On, PerGpu, Share, show_plan, sweep_shown


def reproduce(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="paper, techxzen or cfmz.")],
    seeds: Annotated[str, typer.Option(metavar="LIST", help="Such as 0-4 or 0,2,7: a run each.")] = "0-4",
    networks: Annotated[
        str | None, typer.Option(metavar="LIST", help="Such as plain20,resnet20. Default: all of the study.")
    ] = None,
    scale: Scale = 1,
    data: Data = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Parent of the run directories.")] = "runs",
    report: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the report is written. Default: report-RECIPE.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a run; default its share.")] = None,
    on: On = "local",
    at_once: AtOnce = None,
    per_gpu: PerGpu = None,
    share: Share = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the networks of a published study by its recipe, and write the report; the same command goes on."""
    asked, numbers = [name.strip() for name in (networks or "").split(",") if name.strip()], seeds_of(seeds)
    from plainres import reproduce as product
    from plainres.cli_bar import PrepareBar
    from plainres.report_page import need_extra

    chosen = product.study(study)
    if not dry_run:
        need_extra()  # before hours of training
    loaded()
    with PrepareBar(quiet=quiet or as_json) as bar:
        how: dict[str, Any] = {"out": out, "device": device, "precision": precision, "threads": threads}
        runs = product.runs(chosen, numbers, asked, scale=scale, data=data, progress=bar, **how)
    if dry_run:
        show_plan(runs, at_once or 1, as_json=as_json, quiet=quiet)
        return
    shares = {"at_once": at_once, "per_gpu": per_gpu, "share": share}
    outcomes = sweep_shown(runs, on, shares, to_stderr=as_json, quiet=quiet)
    failed = [outcome for outcome in outcomes if outcome.result is None]
    begun = [str(outcome.run.run_dir) for outcome in outcomes if (outcome.run.run_dir / "run.json").exists()]
    folder = report or f"report-{runs[0].recipe.name}"
    left_out = report_shown(begun, folder, str(runs[0].store.path), quiet=quiet or as_json).left_out if begun else []
    if as_json:
        found = {"finished": len(outcomes) - len(failed), "failed": len(failed), "report": folder if begun else None}
        typer.echo(json.dumps({**found, "runs": [outcome.to_json() for outcome in outcomes]}))
    if failed or left_out:
        raise typer.Exit(1)
