"""Runs as tasks of Ray: on the nodes of a cluster, by the share of CPUs or of a GPU that each needs."""

import os
import signal
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plainres.errors import Diverged, InUse, Stopped, UserError
from plainres.summary import layers
from plainres.sweep_wanted import Ended, Wanted

_OBJECT_STORE_BYTES = 80 * 2**20  # of a cluster of our own: results go through files, not through it
_ENVIRONMENT = {  # read when Ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to its makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # otherwise it advises on what a later version does
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # a node that dies would print pages to standard output; the sweep says it
}
_LOCK_SECONDS = 60.0  # a node's processes may outlive it for a moment
_QUARTER_OPERATIONS = 41e6  # multiply-adds of ResNet-20, four of which share a GPU


class Ray:
    """An executor: each run is a task, which computes in its worker and keeps everything in the shared folder.

    Ray itself retries nothing: the sweep does, in the same way everywhere, and Ray places the new task on a node
    that lives. `share` is the part of a GPU that a run takes, or the CPUs where the cluster has no GPU (or the runs
    ask for the CPU); without it, a part that goes with the network's size, or the CPUs divided over the runs.
    """

    def __init__(self, on: str, runs: Sequence[Wanted], *, share: float | None = None) -> None:
        if share is not None and not share > 0:
            raise UserError(f"--share is {share:g}, it must be above 0")
        self._ray = _connected(on)
        self._share, self._runs = share, len(runs)
        self._going: dict[Any, Wanted] = {}

    def room(self) -> bool:
        """Always: Ray keeps what has to wait."""
        return True

    def start(self, run: Wanted) -> None:
        """Hand a run to Ray."""
        resources = self._resources(run)
        threads = run.conduct.threads or max(1, int(resources["num_cpus"]))
        there = replace(run, out=run.out.absolute(), data=str(run.store.path.absolute()))
        task = self._ray.remote(train_there).options(**resources, max_retries=0, name=run.run_dir.name)
        self._going[task.remote(there, threads)] = run

    def ended(self, seconds: float) -> list[Ended]:
        """The runs that have ended since the last call, waited for so long."""
        over, _ = self._ray.wait(list(self._going), num_returns=1, timeout=seconds)
        return [self._told(task, self._going.pop(task)) for task in over]

    def ask_to_stop(self, _number: signal.Signals) -> None:
        """Cancel every task: one that goes is interrupted, saves, and ends; one that waits is dropped."""
        for task in self._going:
            self._ray.cancel(task)

    def close(self) -> None:
        """End what still goes, and leave the cluster."""
        for task in self._going:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()

    def _resources(self, run: Wanted) -> dict[str, float]:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if run.device != "cpu" and any(node.get("GPU") for node in nodes):
            return {"num_cpus": 1, "num_gpus": self._share or gpu_share(run)}
        cpus = [node["CPU"] for node in nodes if node.get("CPU")]
        wanted = self._share or run.conduct.threads or max(1, min(int(sum(cpus)) // self._runs, int(min(cpus))))
        if not any(wanted <= have for have in cpus):
            raise UserError(f"no node of the Ray cluster has {wanted:g} CPUs, the largest has {max(cpus, default=0):g}")
        return {"num_cpus": wanted, "num_gpus": 0}

    def _told(self, task: Any, run: Wanted) -> Ended:
        errors = self._ray.exceptions
        try:
            status, line = self._ray.get(task)
        except errors.TaskCancelledError:
            return Ended(run, 130, "cancelled", lost=True)
        except errors.RayTaskError as error:
            return Ended(run, 1, f"{type(error.cause).__name__}: {error.cause}".splitlines()[0])
        except errors.RayError as error:  # of the worker, of its node, of its memory
            return Ended(run, 137, f"{type(error).__name__} (its worker or its node died)", lost=True)
        if status == 0:
            _seen(run.run_dir / "result.json")
        return Ended(run, status, line, lost=status in (75, 130))


def _seen(path: Path) -> None:
    """Wait a moment until a file that another machine wrote is seen here: network file systems remember absences."""
    for _ in range(10):
        if path.parent.is_dir() and path in path.parent.iterdir():  # opening a folder asks its server anew
            return
        time.sleep(0.5)


def gpu_share(run: Wanted) -> float:
    """The part of a GPU that a run asks for: a quarter up to 20 layers, half up to 32, a whole one for larger."""
    operations = sum(layer.multiply_adds for layer in layers(run.network))
    return next((part for part in (0.25, 0.5) if operations <= part * 4 * _QUARTER_OPERATIONS), 1.0)


def train_there(run: Wanted, threads: int) -> tuple[int, str]:
    """Train a run in a worker; the exit status that `plainres train` would have, and the line it would say."""
    from plainres.run import train

    os.environ["OMP_NUM_THREADS"] = str(threads)  # for a new run; one that goes on keeps its plan's
    until = time.monotonic() + _LOCK_SECONDS
    conduct = vars(run.conduct)
    while True:
        try:
            train(
                run.network,
                run.recipe,
                run.data,
                seed=run.seed,
                out=run.out,
                device=run.device,
                precision=run.precision,
                **conduct,
            )
            return 0, ""
        except (Diverged, Stopped) as error:
            return error.exit_status, str(error)
        except InUse as error:
            if time.monotonic() > until:
                return error.exit_status, str(error)
            time.sleep(0.5)  # what a killed node leaves dies by itself
        except UserError as error:
            return error.exit_status, str(error)


def _connected(on: str) -> Any:
    """Ray, connected to the cluster of an address, to one that is there, or to one of our own."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise UserError(f"--on {on} needs Ray: pip install 'plainres[ray]'") from None
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if on.startswith("ray://"):
            with warnings.catch_warnings(action="ignore"):  # what it says of a timeout is the error's line too
                ray.init(on, **quiet)
            return ray
        try:
            ray.init("auto", **quiet)
        except ConnectionError:
            if "RAY_ADDRESS" in os.environ:
                raise
            ray.init("local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"--on {on}: no Ray cluster answers: {reason}; one that asks for a token needs RAY_AUTH_MODE=token here"
        ) from None
    return ray
