"""The plan: how a run computes, chosen once, stored, replayed on resume."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from plainres import checkpoint, fields, machine
from plainres.errors import UserError
from plainres.evaluation import BATCH
from plainres.job import Job
from plainres.recipe import steps_of
from plainres.runlog import RunDirectory


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run's bits beside what `run.json` says. Bits are promised for equal plans."""

    engine: str
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


def choose(device: torch.device, threads: int | None, eval_every: int, eval_batch: int) -> Plan:
    """The plan of a new run on this machine."""
    return Plan(
        engine="eager",
        device=device.type,
        threads=threads or machine.threads(),
        memory_format="channels_last",
        world_size=1,
        eval_every=eval_every,
        eval_batch=eval_batch,
        **machine.kernels(device),
    )


def settle(before: Plan, fresh: Plan, asked: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """The plan a resumed run goes on with, and what of it changes the run's bits against the plan before.

    What the user did not ask otherwise is replayed; how often to evaluate may change freely. What is left is
    another chip, another library, or another number of threads asked for.
    """
    replayed = {k: getattr(before, k) for k in ("threads", "eval_every", "eval_batch") if asked.get(k) is None}
    plan = fields.replace(fresh, replayed, "plan")
    then, now = fields.to_json(before), fields.to_json(plan)
    return plan, {k: [then[k], now[k]] for k in now if then[k] != now[k] and k != "eval_every"}


def for_run(job: Job, run: RunDirectory, asked: dict[str, Any], *, replan: bool) -> Plan:
    """The plan of a run, recorded in it if it is new; a change of bits that `replan` accepted is recorded with it.

    `asked` is what the user said of `threads` and `eval_every`, None where nothing. A change that `replan` does
    not accept is a UserError, and so is a plan that is missing beside a checkpoint.
    """
    images = len(job.data.part("train", job.recipe.validation_images).labels)
    one_pass = steps_of(1, images, job.recipe.batch_size)
    eval_every = one_pass if asked["eval_every"] is None else asked["eval_every"]
    settled = choose(job.device, asked["threads"], eval_every, BATCH)
    changed: dict[str, Any] = {}
    recorded = run.read_object("plan.json", "replans")
    if recorded is not None:
        known = {k: v for k, v in recorded.items() if k != "replans"}
        before = fields.from_json(Plan, known, str(run.path / "plan.json"))
        settled, changed = settle(before, settled, asked)
    elif checkpoint.present(run.path):
        changed = {"plan": ["missing", "chosen again"]}
    if changed and not replan:
        shown = ", ".join(f"{k} was {old}, is {new}" for k, (old, new) in changed.items())
        raise UserError(f"{run.path} was started under another plan ({shown}); --replan goes on and marks the run")
    replans = [*(recorded or {}).get("replans", []), *([changed] if changed else [])]
    written = {**fields.to_json(settled), "replans": replans}
    if written != recorded:
        run.write_json("plan.json", written)
        run.write_json("machine.json", machine.describe(job.device))
    return settled


def replanned(run: RunDirectory) -> bool:
    """Whether a run went on under another plan than it was started under."""
    return bool((run.read_object("plan.json", "replans") or {}).get("replans"))


@contextlib.contextmanager
def applied(plan: Plan) -> Iterator[None]:
    """Compute as the plan says: its threads, deterministic kernels, true float32; settings are left as found."""
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        with machine.exact(torch.device(plan.device)):
            yield
    finally:
        torch.set_num_threads(threads)
