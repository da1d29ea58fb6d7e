"""The plan: how a run computes, chosen once, stored, replayed on resume."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from plainres import fields, machine
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


def settle(recorded: Any, fresh: Plan, asked: dict[str, Any], *, replan: bool) -> tuple[Plan, dict[str, Any]]:
    """The plan a resumed run goes on with, and what of it differs from the recorded one.

    What a user did not ask otherwise is replayed. What differs still (another chip, another library, another
    number of threads asked for) is a UserError, unless `replan` accepts it.
    """
    if recorded is None:
        return fresh, {}
    before = fields.from_json(Plan, {k: v for k, v in recorded.items() if k != "replans"}, "plan.json")
    replayed = {k: getattr(before, k) for k in ("threads", "eval_every", "eval_batch") if asked.get(k) is None}
    plan = fields.replace(fresh, replayed, "plan")
    then, now = fields.to_json(before), fields.to_json(plan)
    differing = {k: [then[k], now[k]] for k in now if then[k] != now[k]}
    if differing and not replan:
        shown = ", ".join(f"{k} was {old}, is {new}" for k, (old, new) in differing.items())
        raise UserError(f"this run was started under another plan ({shown}); --replan goes on and marks the run")
    return plan, differing


def for_run(job: Job, run: RunDirectory, asked: dict[str, Any], *, replan: bool) -> Plan:
    """The plan of a run, recorded in it if it is new; a change that was accepted is recorded with it.

    `asked` is what the user said of `threads` and `eval_every`, None where nothing.
    """
    images = len(job.data.part("train", job.recipe.validation_images).labels)
    one_pass = steps_of(1, images, job.recipe.batch_size)
    eval_every = one_pass if asked["eval_every"] is None else asked["eval_every"]
    recorded = run.read_json("plan.json")
    settled, changed = settle(recorded, choose(job.device, asked["threads"], eval_every, BATCH), asked, replan=replan)
    if recorded is None or changed:
        replans = [*(recorded or {}).get("replans", []), *([changed] if changed else [])]
        run.write_json("plan.json", {**fields.to_json(settled), "replans": replans})
        run.write_json("machine.json", machine.describe(job.device))
    return settled


def replanned(run: RunDirectory) -> bool:
    """Whether a run went on under another plan than it was started under."""
    return bool(run.read_json("plan.json")["replans"])


@contextlib.contextmanager
def applied(plan: Plan) -> Iterator[None]:
    """Compute as the plan says: its threads, deterministic kernels, true float32; the process is left as found."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    backends = torch.backends
    before = (backends.cudnn.benchmark, backends.cudnn.deterministic)
    convolutions: Any = backends.cudnn.conv  # type: ignore[attr-defined]
    products = backends.cuda.matmul
    precisions = convolutions.fp32_precision, products.fp32_precision
    if plan.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be deterministic
    torch.set_num_threads(plan.threads)
    torch.use_deterministic_algorithms(True)
    _fill_memory(False)  # every tensor would be written twice, to no end: nothing here reads what it has not written
    backends.cudnn.benchmark, backends.cudnn.deterministic = False, True
    convolutions.fp32_precision = products.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        _fill_memory(filling)
        backends.cudnn.benchmark, backends.cudnn.deterministic = before
        convolutions.fp32_precision, products.fp32_precision = precisions


def _fill_memory(fill: bool) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
