"""Many runs, one command: what is finished is skipped, what broke goes on, what failed is said."""

import signal
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from plainres import files, machine, sweep_local
from plainres.errors import Stopped, UserError, unknown
from plainres.interrupt import StopRequest
from plainres.outcome import is_result
from plainres.sweep_state import enlist, note
from plainres.sweep_wanted import Ended, Wanted

RETRIES = 2
_POLL_SECONDS = 0.5


class Executor(Protocol):
    """Where runs are computed."""

    def room(self) -> bool:
        """Whether it takes another run now."""

    def start(self, run: Wanted) -> None:
        """Begin a run, or go on with it."""

    def ended(self, seconds: float) -> list[Ended]:
        """The runs that have ended since the last call, waited for so long."""

    def ask_to_stop(self, number: signal.Signals) -> None:
        """Have every run save and end."""

    def close(self) -> None:
        """Leave nothing behind that computes."""


class Observer:
    """What a sweep tells while it goes; this one says nothing. Override what is of interest."""

    def told(self, run: Wanted, what: str, why: str) -> None:
        """A run was "skipped" (finished before), "started", "lost" (and is tried again), "finished" or "failed".

        `why` is the error of a run that is finished.
        """

    def waiting(self) -> None:
        """Called about twice a second while runs go."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its `result.json` where it finished, otherwise why it did not."""

    run: Wanted
    result: dict[str, Any] | None
    why: str = ""
    already: bool = False  # finished before the sweep
    tries: int = 0

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        run = self.run
        named = {"network": run.network.name, "recipe": run.recipe.name, "seed": run.seed, "steps": run.recipe.steps}
        state = "failed" if self.result is None else "finished"
        about = {"state": state, "already": self.already, "tries": self.tries, "why": self.why}
        return {**named, **(self.result or {}), **about, "run_dir": str(run.run_dir)}


def executor(
    on: str,
    runs: Sequence[Wanted],
    *,
    at_once: int | None = None,
    per_gpu: int | None = None,
    share: float | None = None,
) -> Executor:
    """Where "local", "ray" or "ray://HOST:PORT" computes these runs.

    `at_once` and `per_gpu` are of the former (see `sweep_local.places`), `share` of the latter (see `sweep_ray.Ray`).
    """
    if on != "local" and on != "ray" and not on.startswith("ray://"):
        raise unknown("place for --on", on, ["local", "ray", "ray://HOST:PORT"])
    if on == "local":
        if share is not None:
            raise UserError("--share goes with --on ray; here --at-once and --per-gpu say how runs share the machine")
        device = machine.device(runs[0].device if runs else "cpu")
        return sweep_local.Local(sweep_local.places(device, at_once, per_gpu))
    if at_once is not None or per_gpu is not None:
        raise UserError("--at-once and --per-gpu go with --on local; on Ray --share says what part a run takes")
    from plainres.sweep_ray import Ray

    return Ray(on, runs, share=share)


def sweep(
    runs: Sequence[Wanted], where: Executor, *, retries: int = RETRIES, observer: Observer | None = None
) -> list[Outcome]:
    """Compute what is not finished of `runs`; how each ended, in their order, each run once.

    A run that was lost is tried again so often; one that failed by itself is not, and keeps no other from going on.
    Raises Stopped on Ctrl-C, SIGTERM or SIGUSR1, once every run has saved. `where` is closed at the end.
    """
    wanted = {run.run_dir: run for run in runs}
    with closing(where), StopRequest() as stop:
        progress = _Progress(list(wanted.values()), where, retries, observer or Observer())
        while progress.unfinished and not stop:
            progress.advance()
        if progress.unfinished:
            where.ask_to_stop(signal.SIGINT if stop.exit_status == 130 else signal.SIGTERM)
            progress.drain()
            raise Stopped(progress.stopped(), exit_status=stop.act())
    return [progress.outcomes[path] for path in wanted]


def finished(run: Wanted) -> dict[str, Any] | None:
    """The content of a run's `result.json`; None where it is not there, or damaged, which the run itself then says."""
    try:
        found = files.read_json(run.run_dir / "result.json")
    except UserError:
        return None
    return found if is_result(found) else None


class _Progress:
    """What is done and to be done of one sweep."""

    def __init__(self, runs: list[Wanted], where: Executor, retries: int, observer: Observer) -> None:
        self.where, self.retries, self.observer = where, retries, observer
        self.outcomes: dict[Path, Outcome] = {}
        self.tries: Counter[Path] = Counter()
        self.waiting = deque(runs)
        self.going = 0
        self.total = len(runs)
        for run in runs:
            if result := finished(run):
                self.waiting.remove(run)
                self._settle(Outcome(run, result, already=True), "skipped")
        for out in {run.out for run in runs}:
            enlist(out, {run.run_dir.name: _entry(run) for run in runs if run.out == out})

    @property
    def unfinished(self) -> bool:
        """Whether anything is left to wait for."""
        return bool(self.waiting or self.going)

    def advance(self) -> None:
        """Start what there is room for, and hear what has ended."""
        while self.waiting and self.where.room():
            run = self.waiting.popleft()
            self.tries[run.run_dir] += 1
            self.going += 1
            self.where.start(run)
            self.observer.told(run, "started", "")
        for ended in self.where.ended(_POLL_SECONDS):
            self.going -= 1
            self.heard(ended)
        self.observer.waiting()

    def heard(self, ended: Ended) -> None:
        """Settle a run that ended, or have it tried again."""
        run, tries = ended.run, self.tries[ended.run.run_dir]
        if ended.status == 0 and (result := finished(run)):
            self._settle(Outcome(run, result, tries=tries), "finished")
        elif ended.lost and tries <= self.retries:
            self.waiting.appendleft(run)
            self.observer.told(run, "lost", f"{ended.line}; try {tries + 1} of {self.retries + 1}")
        else:
            why = ended.line or f"exit status {ended.status}"
            if ended.status == 0:
                why = f"it ended well, but {run.run_dir} has no result: --out must be a folder that every machine sees"
            elif ended.lost:
                why += f" ({tries} times)"
            note(run.out, run.run_dir.name, "failed", why)
            self._settle(Outcome(run, None, why, tries=tries), "failed")

    def drain(self) -> None:
        """Wait until every run that goes has ended; what finishes meanwhile is finished."""
        while self.going:
            for ended in self.where.ended(_POLL_SECONDS):
                self.going -= 1
                if result := finished(ended.run):
                    self._settle(Outcome(ended.run, result), "finished")
                elif (ended.run.run_dir / "run.json").exists():
                    note(ended.run.out, ended.run.run_dir.name, "stopped")
            self.observer.waiting()

    def stopped(self) -> str:
        """The line of a sweep that was stopped."""
        done = sum(outcome.result is not None for outcome in self.outcomes.values())
        return (
            f"stopped with {done} of {self.total} runs finished; what was begun is saved, and the same command goes on"
        )

    def _settle(self, outcome: Outcome, what: str) -> None:
        self.outcomes[outcome.run.run_dir] = outcome
        result = outcome.result
        self.observer.told(
            outcome.run, what, f"{result['split']} error {result['error']:.2%}" if result else outcome.why
        )


def _entry(run: Wanted) -> dict[str, Any]:
    """A run as the list has it."""
    named = {"network": run.network.name, "recipe": run.recipe.name, "seed": run.seed, "steps": run.recipe.steps}
    return {**named, "data": run.store.name, "command": run.command}
