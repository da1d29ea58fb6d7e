"""Several seeds of one training at once on one device."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plainres import distributed
from plainres import job as jobs
from plainres.data.dataset import Dataset
from plainres.errors import Diverged, Stopped, UserError
from plainres.interrupt import StopRequest
from plainres.outcome import Reporter, RunResult
from plainres.recipe import Recipe
from plainres.run import Conduct, opened
from plainres.spec import NetworkSpec
from plainres.training import Training


def train_seeds(
    network: str | NetworkSpec,
    recipe: str | Recipe = "paper",
    data: str | Path | Dataset | None = None,
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    epochs: float | None = None,
    out: str | Path = "runs",
    device: str = "auto",
    precision: str = "float32",
    conduct: Conduct | None = None,
    sync_bn: bool = False,
    at_once: int | None = None,
    reporter: Callable[[int], Reporter] | None = None,
) -> list[RunResult]:
    """Train a network from several seeds, each into its own run directory, as `train` does one; the results in order.

    They share the resident data. `at_once` of them take their steps in turn (default: on CUDA all, so that the
    device works on one while the host feeds another; on the CPU one, whose kernels take every core). Each gives the
    same bits as alone. Of several processes (see `train`, and `sync_bn` there) all train the one seed given.
    `reporter` makes the reporter of a seed. If one diverges, the others go on, and
    Diverged names it at the end; Stopped once all are saved.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError("give each seed once, and at least one")
    make, options = reporter or (lambda _seed: Reporter()), conduct or Conduct()
    results: list[RunResult] = []
    failures: list[Diverged] = []
    with distributed.joined() as world:
        if len(seeds) > 1 < world.size:
            raise UserError(f"of several processes all train one run: give a single seed, not {len(seeds)}")
        target = data.device if isinstance(data, Dataset) else jobs.device_of(device, world)
        reporters = {seed: make(seed) for seed in seeds}
        shared = jobs.opened(data, target, reporters[seeds[0]].preparing, world)
        asked: dict[str, Any] = {"steps": steps, "epochs": epochs, "device": device, "precision": precision}
        asked |= {"optimizer": None, "world": world, "sync_bn": sync_bn}
        together = at_once or (len(seeds) if target.type == "cuda" else 1)
        with StopRequest(launched=world.size > 1) as stop:
            for first in range(0, len(seeds), together):
                group = seeds[first : first + together]
                found = [jobs.resolve(network, recipe, shared, seed=seed, **asked) for seed in group]
                results += _in_turn(found, Path(out), options, [reporters[seed] for seed in group], stop, failures)
        if failures:
            raise Diverged("; ".join(map(str, failures)))
    return results


def _in_turn(
    group: Sequence[jobs.Job],
    out: Path,
    conduct: Conduct,
    reporters: Sequence[Reporter],
    stop: StopRequest,
    failures: list[Diverged],
) -> list[RunResult]:
    """Train the members of a group, a step of each in turn."""
    results: dict[int, RunResult] = {}
    with contextlib.ExitStack() as stack:
        running: dict[int, Training] = {}
        for job, report in zip(group, reporters, strict=True):
            found = stack.enter_context(opened(job, out, conduct, report, stop))
            if isinstance(found, RunResult):
                results[job.seed] = found
            else:
                running[job.seed] = found
        for training in running.values():
            training.begin()
        stopped: Stopped | None = None
        while running:
            for seed, training in list(running.items()):
                try:
                    training.advance()
                    if training.finished:
                        results[seed] = training.finish()
                        del running[seed]
                except Stopped as error:  # each saves before any leaves
                    stopped = error
                    del running[seed]
                except Diverged as error:
                    failures.append(error)
                    del running[seed]
        if stopped is not None:
            raise stopped
    return [results[job.seed] for job in group if job.seed in results]
