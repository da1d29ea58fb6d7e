"""The plan: how a run computes, chosen once, stored, replayed on resume."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from plainres import checkpoint, engines, fields, kernels, machine
from plainres.errors import Unavailable, UserError
from plainres.evaluation import BATCH
from plainres.job import Job
from plainres.recipe import steps_of
from plainres.runlog import RunDirectory
from plainres.step import Engine, Work
from plainres.summary import operations


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run's bits beside what `run.json` says. Bits are promised for equal plans."""

    engine: str
    kernels: str  # of an engine that compiles for the CPU: what from, and by which compiler
    segment: int  # blocks to a segment whose inside is computed again in the backward pass; 0: nothing is
    device: str
    threads: int
    memory_format: str
    world_size: int
    eval_every: int
    eval_batch: int
    chip: str
    instructions: str
    torch: str
    numpy: str
    cuda: str


def choose(
    engine: str,
    device: torch.device,
    *,
    segment: int,
    threads: int | None,
    eval_every: int,
    eval_batch: int,
    world_size: int = 1,
) -> Plan:
    """The plan of a new run on this machine. Unavailable where the engine cannot be had."""
    return Plan(
        engine=engine,
        kernels=_kernels(engine, device),
        segment=segment,
        device=device.type,
        threads=threads or machine.threads(),
        memory_format="channels_last",
        world_size=world_size,
        eval_every=eval_every,
        eval_batch=eval_batch,
        **machine.kernels(device),
    )


def _kernels(engine: str, device: torch.device) -> str:
    if engine == "native":
        return kernels.fingerprint()
    return kernels.compiler_version() if engine == "compiled" and device.type == "cpu" else ""


def settle(before: Plan, fresh: Plan, asked: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """The plan a resumed run goes on with, and what of it changes the run's bits against the plan before.

    What the user did not ask otherwise is replayed. How often to evaluate may change freely, and on the engines where
    it is shown to change no bit, what is computed again (native, eager) and the number of threads (native). What is
    left is another engine, chip or library, or another number of threads or segments asked for.
    """
    kept = ("threads", "eval_every", "eval_batch", "segment")
    plan = fields.replace(fresh, {k: getattr(before, k) for k in kept if asked.get(k) is None}, "plan")
    free = {"eval_every"} | {"native": {"segment", "threads"}, "eager": {"segment"}}.get(plan.engine, set())
    then, now = fields.to_json(before), fields.to_json(plan)
    return plan, {k: [then[k], now[k]] for k in now if then[k] != now[k] and k not in free}


def begin(
    job: Job,
    run: RunDirectory,
    work: Work,
    asked: dict[str, Any],
    *,
    replan: bool,
    ready: Callable[[Plan], None],
    notice: Callable[[str], None],
) -> tuple[Plan, Engine]:
    """The plan of a run, recorded in it, and the engine it names; `notice` is told of an engine that cannot be had.

    `ready` is called with a plan before its engine takes memory, and may refuse by an exception.

    `asked` is what the user said of `engine`, `threads`, `segment` and `eval_every`, None where nothing. A change of
    bits that `replan` accepted is recorded with the plan; one that it does not accept is a UserError, and so is a plan
    that is missing beside a checkpoint, or an engine asked for that cannot be had.
    """
    recorded = run.read_object("plan.json", "replans")
    known = {k: v for k, v in (recorded or {}).items() if k != "replans"}
    before = fields.from_json(Plan, known, str(run.path / "plan.json")) if recorded else None
    lost = before is None and job.world.share(lambda: checkpoint.present(run.path))

    def attempt(name: str) -> tuple[Plan, dict[str, Any], Engine]:
        settled, changed = _settled(job, name, before, asked)
        changed = {"plan": ["missing", "chosen again"]} if lost else changed
        _accept(run, changed, replan=replan)
        ready(settled)
        with applied(settled, job.precision):
            return settled, changed, engines.make(name, work, segment=settled.segment)

    names = _engines(job, before, asked["engine"])
    for i, name in enumerate(names):
        try:
            settled, changed, engine = job.world.together(functools.partial(attempt, name))
        except Unavailable as error:
            if i + 1 == len(names):
                raise UserError(f"engine '{name}': {error}") from None
            notice(f"no {name} engine: {error}; going on with '{names[i + 1]}', which is slower")
            continue
        _record(job, run, settled, recorded, changed)
        return settled, engine
    raise AssertionError


def _engines(job: Job, before: Plan | None, asked: str | None) -> list[str]:
    """The engines to try: the one asked for alone; the one recorded first; those that pay."""
    if asked not in (None, "auto"):
        return [asked]
    images = job.recipe.steps * job.recipe.batch_size
    whole = operations(job.network) * images
    what = (job.network, job.device, job.precision, whole)
    names = engines.candidates(*what, world_size=job.world.size, sync_bn=job.sync_bn)
    return names if before is None else [before.engine, *(name for name in names if name != before.engine)]


def _settled(job: Job, engine: str, before: Plan | None, asked: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    images = len(job.data.part("train", job.recipe.validation_images).labels)
    one_pass = steps_of(1, images, job.recipe.batch_size)
    eval_every = one_pass if asked["eval_every"] is None else asked["eval_every"]
    numbers = {"segment": asked["segment"] or 0, "threads": asked["threads"], "eval_every": eval_every}
    fresh = choose(engine, job.device, **numbers, eval_batch=BATCH, world_size=job.world.size)
    return (fresh, {}) if before is None else settle(before, fresh, asked)


def _accept(run: RunDirectory, changed: dict[str, Any], *, replan: bool) -> None:
    if changed and not replan:
        shown = ", ".join(f"{k} was {old}, is {new}" for k, (old, new) in changed.items())
        raise UserError(f"{run.path} was started under another plan ({shown}); --replan goes on and marks the run")


def _record(
    job: Job, run: RunDirectory, settled: Plan, recorded: dict[str, Any] | None, changed: dict[str, Any]
) -> None:
    replans = [*(recorded or {}).get("replans", []), *([changed] if changed else [])]
    written = {**fields.to_json(settled), "replans": replans}
    if written != recorded:
        run.write_json("plan.json", written)
        run.write_json("machine.json", machine.describe(job.device))


def replanned(run: RunDirectory) -> bool:
    """Whether a run went on under another plan than it was started under."""
    return bool((run.read_object("plan.json", "replans") or {}).get("replans"))


@contextlib.contextmanager
def applied(plan: Plan, precision: str) -> Iterator[None]:
    """Compute as the plan says: its threads, deterministic kernels, true float32 (or TF32, if that is the precision).

    Settings are left as found.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        with machine.exact(torch.device(plan.device), precision):
            yield
    finally:
        torch.set_num_threads(threads)
