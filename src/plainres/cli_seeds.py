"""Train from one seed or several, and show it."""

import contextlib
from pathlib import Path
from typing import Any

from plainres.cli_show import RunBar
from plainres.cohort import train_seeds
from plainres.outcome import RunResult
from plainres.recipe import Recipe
from plainres.run import Conduct
from plainres.spec import NetworkSpec
from plainres.statistics import spread


def train_shown(
    spec: NetworkSpec,
    recipe: Recipe,
    data: str | None,
    seeds: list[int],
    *,
    steps: int | None,
    epochs: float | None,
    out: str,
    device: str,
    precision: str,
    conduct: Conduct,
    sync_bn: bool,
    quiet: bool,
    to_stderr: bool,
) -> dict[str, Any]:
    """Train, with a bar and lines a run; the results as `--json` prints them, with their spread."""
    with contextlib.ExitStack() as stack:
        bars: dict[int, RunBar] = {}

        def bar(seed: int) -> RunBar:
            first = next(iter(bars.values()), None)
            bars[seed] = stack.enter_context(RunBar(quiet=quiet, to_stderr=to_stderr, beside=first))
            bars[seed].label = f"seed {seed}" if len(seeds) > 1 else ""
            return bars[seed]

        results = train_seeds(
            spec,
            recipe,
            data,
            seeds=seeds,
            steps=steps,
            epochs=epochs,
            out=Path(out),
            device=device,
            precision=precision,
            conduct=conduct,
            sync_bn=sync_bn,
            reporter=bar,
        )
        for seed, result in zip(seeds, results, strict=True):
            if result.already_finished:
                bars[seed].say(f"already finished: {result.run_dir}")
                bars[seed].say(bars[seed].summary(result))
        found = _summary(results)
        if len(results) > 1:
            bars[seeds[0]].label = ""
            bars[seeds[0]].say(_line(found))
    return found


def _summary(results: list[RunResult]) -> dict[str, Any]:
    errors = spread([result.error for result in results])
    shared = {key: results[0].facts[key] for key in ("network", "recipe", "steps", "split", "generated")}
    return {
        **shared,
        "n": errors.n,
        "error_mean": errors.mean,
        "error_std": errors.std,
        "runs": [result.to_json() for result in results],
    }


def _line(found: dict[str, Any]) -> str:
    each = ", ".join(f"{run['error']:.2%}" for run in found["runs"])
    return (
        f"{found['network']}, recipe {found['recipe']}, {found['split']} error at step {found['steps']:,}: "
        f"{found['error_mean']:.2%} ± {found['error_std']:.2%} (mean and standard deviation, n = {found['n']}: {each})"
    )
