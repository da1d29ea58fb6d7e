"""Sweeps shown: a live table on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from plainres.sweep_state import OVER, STATES, State, States

if TYPE_CHECKING:
    from plainres.sweep import Outcome
    from plainres.sweep_wanted import Wanted

_COLORS = {"running": "cyan", "failed": "red", "damaged": "red", "stopped": "yellow", "finished": "green"}
_PLAIN_WIDTH = 140
_LINE_SECONDS = 2.0  # between two looks at the run directories of a sweep


def duration(seconds: float) -> str:
    """Such as 1:05:00."""
    return str(timedelta(seconds=round(seconds)))


def table(states: Sequence[State]) -> Table:
    """A row a run: state, what it is, step, errors, time left."""
    done = sum(state.state == "finished" for state in states)
    data = sorted({state.data for state in states if state.data})
    title = f"{done} of {len(states)} runs finished" + (f", {data[0]} data" if data == ["generated"] else "")
    made = Table(box=None, pad_edge=False, title=title, title_justify="left")
    apart = len(data) > 1  # a column that is the same in each row is room lost
    for name in ("state", "network", "recipe", *(["data"] if apart else [])):
        made.add_column(name, overflow="fold")
    for name in ("seed", "step", "training", "held out", "time left"):
        made.add_column(name, justify="right", no_wrap=True)  # a number cut off would be another number
    for state in states:
        named = (state.network, state.recipe, *([state.data] if apart else []), str(state.seed))
        errors = (_percent(state.train_error), _percent(state.error))
        left = duration(state.seconds_left) if state.seconds_left is not None and state.state == "running" else ""
        step = f"{state.step:,}/{state.steps:,}"
        made.add_row(state.state, *named, step, *errors, left, style=_COLORS.get(state.state, ""))
    return made


def line(state: State) -> str:
    """A run in one line."""
    parts = [f"{state.network}, recipe {state.recipe}, seed {state.seed}: {state.state}"]
    parts += [f"step {state.step:,} of {state.steps:,}"] if state.state not in ("waiting", "damaged") else []
    parts += [f"training error {_percent(state.train_error)}"] if state.train_error is not None else []
    parts += [f"{state.split} error {_percent(state.error)}"] if state.error is not None else []
    if state.seconds_left is not None and state.state == "running":
        parts.append(f"{duration(state.seconds_left)} left")
    parts += ["generated data"] if state.data == "generated" else []
    return ", ".join([*parts, *([state.why] if state.why else [])])


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:.2%}"


class WatchShown:
    """States shown as they change: a table that stays in its place, or a line for each change where no terminal is."""

    def __init__(self, *, lines_only: bool = False, to_stderr: bool = False, quiet: bool = False) -> None:
        self._stream = sys.stderr if to_stderr or lines_only else sys.stdout
        self.console = Console(file=self._stream)
        if not self.console.is_terminal:
            self.console.width = _PLAIN_WIDTH
        self._quiet = quiet
        live = self.console.is_terminal and not lines_only and not quiet
        self._live = Live(console=self.console, auto_refresh=False, transient=True) if live else None
        self._said: dict[str, object] = {}
        self._states: list[State] = []

    @property
    def is_live(self) -> bool:
        """Whether there is a table that stays in its place."""
        return self._live is not None

    def show(self, states: list[State], *, last: bool = False) -> None:
        """Show what is now; `last`: nothing follows."""
        self._states = states
        if self._live:
            self._live.update(table(states), refresh=True)
            return
        if last and not self._said:
            if not self._quiet:
                self._print_table()
            return
        for state in states:
            news = (state.state, state.error, state.why)
            if self._said.get(state.name) != news:
                self._said[state.name] = news
                self.say(line(state))

    def say(self, text: str) -> None:
        """Print a line, above the table if there is one."""
        if not self._quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _print_table(self) -> None:
        self.console.print(table(self._states))
        for state in self._states:
            if state.why:
                self.say(f"{state.name}: {state.why}")

    def __enter__(self) -> Any:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _value: object, _where: TracebackType | None) -> None:
        if self._live:
            self._live.stop()
            if self._states:
                self._print_table()


class SweepShown(WatchShown):
    """An observer of a sweep: what it tells in lines, and between them the table of its runs."""

    def __init__(self, runs: Sequence["Wanted"], *, quiet: bool, to_stderr: bool) -> None:
        super().__init__(to_stderr=to_stderr, quiet=quiet)
        self._names = {run.run_dir.name for run in runs}
        self._folders = [States(out) for out in dict.fromkeys(run.out for run in runs)]
        self._looked = 0.0

    def told(self, run: "Wanted", what: str, why: str) -> None:
        """A line; of a start none where the table shows it."""
        if what == "started" and self.is_live:
            return
        text = "finished already" if what == "skipped" else what
        self.say(f"{run.label}: {text}{f': {why}' if why else ''}")
        if what == "failed" and self._quiet:
            print(f"plainres: {run.label}: failed: {why}", file=sys.stderr)

    def waiting(self) -> None:
        """Look at the run directories, now and then."""
        if time.monotonic() - self._looked < (1.0 if self.is_live else _LINE_SECONDS) or self._quiet:
            return
        self._looked = time.monotonic()
        found = [state for states in self._folders for state in states.read() if state.name in self._names]
        found.sort(key=lambda state: STATES.index(state.state))
        if self.is_live:
            self.show(found)
            return
        # the sweep itself tells how runs begin and end: what is left are evaluations
        self.show([state for state in found if state.state not in OVER and state.error is not None])


def summary(outcomes: Sequence["Outcome"]) -> str:
    """A sweep's end: the errors of each network and recipe over its seeds, then what failed."""
    from plainres.cli_show import GENERATED
    from plainres.statistics import spread

    groups: dict[str, list[float]] = {}
    for outcome in outcomes:
        if outcome.result is not None:
            run, split = outcome.run, outcome.result["split"]
            named = f"{run.network.name}, recipe {run.recipe.name}: {split} error at step {run.recipe.steps:,}"
            groups.setdefault(named, []).append(outcome.result["error"])
    lines = []
    for name, errors in groups.items():
        found = spread(errors)
        std = "" if found.std is None else f" ± {found.std:.2%} (mean and standard deviation)"
        lines.append(f"{name}: {found.mean:.2%}{std}, n = {found.n}")
    failed = [outcome for outcome in outcomes if outcome.result is None]
    lines += [f"{outcome.run.label}: failed: {outcome.why}" for outcome in failed]
    count = f"{len(outcomes) - len(failed)} of {len(outcomes)} runs finished"
    lines.append(f"{count}, {len(failed)} failed" if failed else count)
    return "\n".join([*lines, GENERATED] if any(o.run.store.generated for o in outcomes) else lines)
