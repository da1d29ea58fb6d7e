"""How long runs will take, from a short measurement of each kind on this machine."""

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from plainres import job as jobs
from plainres import machine
from plainres.bench_ceilings import Stopwatch
from plainres.bench_sides import LEARNING_RATE
from plainres.data.dataset import Dataset, Part
from plainres.errors import UserError
from plainres.evaluation import evaluate_part
from plainres.interrupt import StopRequest
from plainres.outcome import Reporter, RunResult
from plainres.run import opened
from plainres.sweep_state import steps_done
from plainres.sweep_wanted import Wanted
from plainres.training import Training

_WARMUP_STEPS, _LEAST_STEPS, _MOST_STEPS = 3, 3, 1000
_SECONDS = 1.0  # of steps measured


@dataclass(frozen=True)
class Speed:
    """What one run takes: to compile, for a step, for an evaluation of the part held out, and how often that is."""

    compile_seconds: float
    step_seconds: float
    evaluation_seconds: float
    eval_every: int

    def seconds(self, steps: int, done: int = 0) -> float:
        """Of a run of so many steps that has `done` some. Figure 7's responses, at its end, are one evaluation more."""
        every = self.eval_every or steps
        evaluations = 1 + -(-steps // every) - done // every  # the last step is always evaluated
        return self.compile_seconds + (steps - done) * self.step_seconds + evaluations * self.evaluation_seconds


def estimates(runs: Iterable[Wanted], threads: int) -> Iterator[tuple[Wanted, float | None, str]]:
    """Each run with the seconds that are left of it; None, and why, where this machine cannot train it.

    Runs that differ in their seed alone are measured once.
    """
    known: dict[Wanted, Speed | str] = {}
    for run in runs:
        kind = replace(run, seed=0)
        if kind not in known:
            try:
                known[kind] = measure(run, threads)
            except UserError as error:
                known[kind] = str(error)
        found = known[kind]
        if isinstance(found, str):
            yield run, None, found
        else:
            yield run, found.seconds(run.recipe.steps, steps_done(run.run_dir)), ""


def measure(run: Wanted, threads: int) -> Speed:
    """Measure the engine that a run would get, on its data, in a folder that is gone afterwards.

    UserError where this machine cannot train it.
    """
    device = machine.device(run.device)
    data = Dataset(run.store, device)
    job = jobs.resolve(
        run.network,
        run.recipe,
        data,
        seed=run.seed,
        steps=None,
        epochs=None,
        device=run.device,
        precision=run.precision,
        optimizer=None,
    )
    conduct = replace(run.conduct, threads=run.conduct.threads or threads)
    with (
        tempfile.TemporaryDirectory() as folder,
        opened(job, Path(folder), conduct, Reporter(), StopRequest()) as training,
    ):
        assert not isinstance(training, RunResult)
        return _measured(training)


def _measured(training: Training) -> Speed:
    watch, number, warming = Stopwatch(training.job.device), 0, training.engine.compile_seconds

    def step() -> None:
        nonlocal number
        training.engine.step(number, LEARNING_RATE)
        number += 1

    training.job.network.train()
    watch(step, _WARMUP_STEPS)
    compiling = max(warming, training.engine.compile_seconds)
    once = watch(step, _LEAST_STEPS)
    each = watch(step, max(_LEAST_STEPS, min(_MOST_STEPS, round(_SECONDS / once))))
    held_out, batch = training.held_out, training.plan.eval_batch
    some = Part(held_out.name, *(x[:batch] for x in (held_out.images, held_out.labels, held_out.index)))
    training.job.network.eval()

    def evaluate() -> None:
        classes = training.job.data.classes
        logits = training.engine.logits
        evaluate_part(training.job.network, some, training.normalization, classes, logits=logits, batch=batch)

    watch(evaluate)
    evaluation = watch(evaluate) * len(held_out.labels) / len(some.labels)
    return Speed(compiling, each, evaluation, training.plan.eval_every)


def whole(seconds: Iterable[float], at_once: int) -> float:
    """Until the last of the runs ends, each begun in order in the first of `at_once` places that is free."""
    free = [0.0] * at_once
    for run in seconds:
        heapq.heappush(free, heapq.heappop(free) + run)
    return max(free)
