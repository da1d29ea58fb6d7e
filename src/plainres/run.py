"""Train one network into its run directory."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from plainres import distributed, memory, outcome, plan, shared
from plainres import job as jobs
from plainres.data.dataset import Dataset
from plainres.errors import UserError
from plainres.interrupt import StopRequest
from plainres.outcome import Reporter, RunResult
from plainres.recipe import Recipe
from plainres.spec import NetworkSpec
from plainres.step import OptimizerFactory, Window, Work, own_generator
from plainres.synchronized import synchronized
from plainres.training import Training


@dataclass(frozen=True)
class Conduct:
    """How a run is conducted, which is no part of what it is: see `train`."""

    eval_every: int | None = None
    keep_every: int = 0
    threads: int | None = None
    engine: str | None = None
    recompute: bool = False
    replan: bool = False
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if (self.eval_every or 0) < 0 or self.keep_every < 0 or (self.threads or 1) < 1:
            raise UserError("eval_every and keep_every must not be below 0, threads not below 1")


def train(
    network: str | NetworkSpec | nn.Module = "resnet20",
    recipe: str | Recipe = "paper",
    data: str | Path | Dataset | None = None,
    *,
    seed: int = 0,
    steps: int | None = None,
    epochs: float | None = None,
    eval_every: int | None = None,
    keep_every: int = 0,
    out: str | Path = "runs",
    device: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
    optimizer: OptimizerFactory | None = None,
    engine: str | None = None,
    recompute: bool = False,
    replan: bool = False,
    sync_bn: bool = False,
    checkpoint_seconds: float = 60.0,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train a network by a recipe into a run directory; the same call again goes on, or returns what is finished.

    `network` is a name, a spec, or any module that takes normalized images (N, 3, 32, 32) to logits, which is
    trained in place; `optimizer` makes any optimizer from (parameters, learning rate), otherwise the recipe's SGD
    is used. A module from outside is the same run only if it starts from the same numbers: seed what makes it.
    `eval_every` is in steps (default: one pass; 0: only at the end), `keep_every` keeps weights along the way,
    `checkpoint_seconds` is the time between checkpoints. `engine` is one of `engines.ENGINES` (default: the fastest
    whose compilation pays for a run of this length). `recompute` keeps few activations for the backward pass and
    computes the others again: less memory, more time, the same bits. Raises UserError, Stopped (resumable) or
    Diverged.

    Where torchrun started several processes that all call this, they are one run: each computes its part of every
    batch, and the first alone writes and reports. BN then sees a process's part, or with `sync_bn` the whole batch.
    """
    conduct = Conduct(eval_every, keep_every, threads, engine, recompute, replan, checkpoint_seconds)
    report = reporter or Reporter()
    with distributed.joined() as world:
        job = jobs.resolve(
            network,
            recipe,
            data,
            seed=seed,
            steps=steps,
            epochs=epochs,
            device=device,
            precision=precision,
            optimizer=optimizer,
            progress=report.preparing,
            world=world,
            sync_bn=sync_bn,
        )
        launched = world.size > 1
        with StopRequest(launched=launched) as stop, opened(job, Path(out), conduct, report, stop) as found:
            if isinstance(found, RunResult):
                return found
            found.loop()
            return found.finish()


@contextlib.contextmanager
def opened(
    job: jobs.Job, out: Path, conduct: Conduct, report: Reporter, stop: StopRequest
) -> Iterator[Training | RunResult]:
    """The training of a job, its run directory locked, taken up where it stopped; or the result, if it is finished."""
    world = job.world
    report = report if world.rank == 0 else Reporter()
    with shared.open_directory(out, job.directory_name, job.identity, world) as run:
        finished = run.read_object("result.json", *outcome.FACTS)
        if finished is not None:
            if not outcome.is_result(finished):
                raise UserError(f"{run.path / 'result.json'} is damaged; move {run.path} away to begin anew")
            yield RunResult(run.path, finished, already_finished=True)
            return
        batches, draws = shared.batches_of(job.data, job.seed, job.recipe, world), job.depth is None
        window = Window(job.device, job.recipe.batch_size)
        about = (job.precision, job.seed, draws, world, job.sync_bn)
        work = Work(job.network, job.optimizer, job.recipe, batches, window, *about)
        asked = {"engine": conduct.engine, "threads": conduct.threads, "eval_every": conduct.eval_every}
        asked["segment"] = job.segment if conduct.recompute else None
        room = Room(job, report)
        settled, engine = plan.begin(
            job, run, work, asked, replan=conduct.replan, ready=room.check, notice=report.notice
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(plan.applied(settled, job.precision))
            stack.enter_context(own_generator(job.device, draws=draws))
            stack.enter_context(room.explained(settled))
            if job.sync_bn:
                stack.enter_context(synchronized(job.network, world))
            training = Training(job, run, settled, engine, report, stop)
            training.keep_every, training.checkpoint_seconds = conduct.keep_every, conduct.checkpoint_seconds
            training.resume()
            yield training


class Room:
    """The memory that a training needs, and what there is."""

    SAID_FROM = 2**30  # bytes

    def __init__(self, job: jobs.Job, report: Reporter) -> None:
        self.job, self.report = job, report
        self.has = memory.available(job.device)
        self.batch = job.recipe.batch_size // job.world.size  # of this process

    def check(self, settled: plan.Plan) -> None:
        """Say how much, if it is much; UserError if it does not fit. Of a network from outside nothing is known."""
        needed, batch = self.needed(settled), self.batch
        if needed is None:
            return
        what = self.job.network_name
        memory.check(needed, batch, self.has, what, self.job.device, self.option(settled))
        if needed.bytes(batch) >= self.SAID_FROM:
            gib, free = needed.bytes(batch) / 2**30, self.has / 2**30
            self.report.notice(f"{what} at batch {batch} needs about {gib:.1f} GiB of memory; {free:.1f} GiB are free")

    def explained(self, settled: plan.Plan) -> contextlib.AbstractContextManager[None]:
        """What makes one line of running out of memory; checkpoints are not touched."""
        needed = self.needed(settled)
        if needed is None:
            return contextlib.nullcontext()
        job = self.job
        return memory.explained(needed, self.batch, job.network_name, job.device, self.option(settled))

    def needed(self, settled: plan.Plan) -> memory.Need | None:
        """Bytes; the data are resident already."""
        spec = getattr(self.job.network, "spec", None)
        if not isinstance(spec, NetworkSpec):
            return None
        return memory.need(spec, self.job.precision, 0, engine=settled.engine, segment=settled.segment)

    def option(self, settled: plan.Plan) -> str:
        """What to ask for to need less."""
        return "--set batch_size=" if settled.segment else "--recompute may help, --set batch_size="
