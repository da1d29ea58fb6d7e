"""`plainres sweep` and `plainres watch`: their words, and what they print."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plainres.cli_app import (
    Data,
    Device,
    Json,
    Net,
    Precision,
    Quiet,
    RecipeName,
    Scale,
    Set,
    loaded,
    recipe_of,
    say,
    seeds_of,
    spec_of,
)
from plainres.errors import UserError

if TYPE_CHECKING:
    from plainres.sweep import Outcome
    from plainres.sweep_wanted import Wanted

HOW_TO_USE = (
    "with these lines in commands.txt: sbatch --array=1-{count} --wrap "
    "'sh -c \"$(sed -n ${{SLURM_ARRAY_TASK_ID}}p commands.txt)\"', or: "
    "tr '\\n' '\\0' < commands.txt | xargs -0 -n 1 sh -c"
)


On = Annotated[str, typer.Option(metavar="PLACE", help="local, ray or ray://HOST:PORT.")]
AtOnce = Annotated[
    int | None, typer.Option(min=1, help="Local runs at a time, which share the cores. Default: 1, or one a GPU.")
]
PerGpu = Annotated[int | None, typer.Option(min=1, help="Local runs at a time on each GPU. Default: 1.")]
Share = Annotated[
    float | None, typer.Option(help="Part of a GPU, or CPUs, of a run on Ray. Default: by the network's size.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the command of each unfinished run, and the time it will take.")
]


def sweep(
    networks: Annotated[list[str], typer.Argument(metavar="NETWORK...", help="Names, such as plain20 resnet20.")],
    recipe: RecipeName = "paper",
    seeds: Annotated[str, typer.Option(metavar="LIST", help="Such as 0-4 or 0,2,7: a run each.")] = "0",
    data: Data = None,
    net: Net = None,
    set_: Set = None,
    scale: Scale = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop each after so many steps.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations; default one pass, 0 none.")] = None,
    keep_every: Annotated[int, typer.Option(help="Keep the weights every so many steps.")] = 0,
    out: Annotated[str, typer.Option(metavar="DIR", help="Parent of the run directories.")] = "runs",
    device: Device = "auto",
    precision: Precision = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a run; default its share.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, native, graph, compiled or eager.")] = None,
    recompute: Annotated[bool, typer.Option("--recompute", help="Less memory, more time.")] = False,
    replan: Annotated[bool, typer.Option("--replan", help="Go on although machine or libraries changed.")] = False,
    on: On = "local",
    at_once: AtOnce = None,
    per_gpu: PerGpu = None,
    share: Share = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train several networks from several seeds; the same command again goes on. `plainres watch` shows it."""
    specs, chosen, numbers = [spec_of(name, net) for name in networks], recipe_of(recipe, set_, scale), seeds_of(seeds)
    from plainres.cli_bar import PrepareBar
    from plainres.recipe import with_steps
    from plainres.run import Conduct
    from plainres.sweep_wanted import wanted

    loaded()
    chosen = chosen if steps is None else with_steps(chosen, steps)
    how = Conduct(eval_every, keep_every, threads, engine, recompute, replan)
    with PrepareBar(quiet=quiet or as_json) as bar:
        options: dict[str, Any] = {"out": out, "device": device, "precision": precision, "conduct": how}
        runs = wanted(specs, chosen, numbers, data, **options, progress=bar)
    if dry_run:
        show_plan(runs, at_once or 1, as_json=as_json, quiet=quiet)
        return
    shares = {"at_once": at_once, "per_gpu": per_gpu, "share": share}
    outcomes = sweep_shown(runs, on, shares, to_stderr=as_json, quiet=quiet)
    failed = [outcome for outcome in outcomes if outcome.result is None]
    if as_json:
        found = {"finished": len(outcomes) - len(failed), "failed": len(failed)}
        typer.echo(json.dumps({**found, "runs": [outcome.to_json() for outcome in outcomes]}))
    if failed:
        raise typer.Exit(1)


def sweep_shown(
    runs: list["Wanted"], on: str, shares: dict[str, Any], *, to_stderr: bool, quiet: bool
) -> list["Outcome"]:
    """Compute runs where `on` says, shown as a table or in lines, and summed up; how each ended."""
    from plainres.cli_sweep_show import SweepShown, summary
    from plainres.sweep import executor
    from plainres.sweep import sweep as run

    where = executor(on, runs, **shares)
    with SweepShown(runs, quiet=quiet, to_stderr=to_stderr) as shown:
        outcomes = run(runs, where, observer=shown)
    say(summary(outcomes), quiet or to_stderr)
    return outcomes


def show_plan(runs: list["Wanted"], at_once: int, *, as_json: bool, quiet: bool) -> None:
    """Print the command of each unfinished run, and on stderr how long they will take."""
    from plainres.cli_sweep_show import duration
    from plainres.machine import threads
    from plainres.sweep import finished
    from plainres.sweep_time import estimates, whole

    todo = [run for run in dict.fromkeys(runs) if finished(run) is None]
    done = len(set(runs)) - len(todo)

    def tell(text: str) -> None:
        if not (quiet or as_json):
            typer.echo(text, err=True)

    for run in todo:
        say(run.command, as_json)
    sys.stdout.flush()  # before what is measured
    if done:
        tell(f"{done} of {done + len(todo)} runs are finished already and left out")
    if not todo or (quiet and not as_json):
        if as_json:
            typer.echo(json.dumps({"runs": [], "seconds": 0.0}))
        return
    found: list[dict[str, Any]] = []
    for run, seconds, why in estimates(todo, max(1, threads() // at_once)):
        found.append({"command": run.command, "run_dir": str(run.run_dir), "seconds": seconds, "why": why})
        tell(f"{run.label}: {f'about {duration(seconds)}' if seconds is not None else f'no estimate: {why}'}")
    known = [item["seconds"] for item in found if item["seconds"] is not None]
    total = whole(known, at_once) if len(known) == len(found) else None
    if total is not None:
        tell(f"{len(todo)} runs, {at_once} at a time on this machine: about {duration(total)}")
    tell(HOW_TO_USE.format(count=len(todo)))
    if as_json:
        typer.echo(json.dumps({"runs": found, "seconds": total}))


def watch(
    runs: Annotated[str, typer.Argument(metavar="[RUNS]", help="The folder that --out named.")] = "runs",
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Show the runs of a folder until none is waiting, running or stopped, from their files alone.

    So it works on any machine that sees the folder. A run counts as running while one of its files was written in
    the last 120 seconds, or in three times what its last hundred steps took; after that as stopped.
    """
    from plainres.cli_sweep_show import WatchShown
    from plainres.sweep_state import OVER, States, to_json

    folder = Path(runs)
    if not folder.is_dir():
        raise UserError(f"there is no folder {runs}; name the one that --out of plainres sweep named")
    states = States(folder)
    with WatchShown(lines_only=as_json) as shown:
        while True:
            found = states.read()
            if not found:
                raise UserError(f"{runs} holds no run; plainres sweep resnet20 --seeds 0-4 --out {runs} begins some")
            shown.show(found, last=once)
            if once or all(state.state in OVER for state in found):
                break
            time.sleep(every)
    if as_json:
        typer.echo(json.dumps({"runs": [to_json(state) for state in found]}))
    if any(state.state in ("failed", "damaged") for state in found):
        raise typer.Exit(1)
