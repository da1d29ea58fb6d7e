"""What run directories alone say of their runs: waiting, running, stopped, finished, failed, damaged."""

import contextlib
import fcntl
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plainres import fields, files
from plainres.errors import UserError
from plainres.spec import NetworkSpec

STATES = ("running", "failed", "damaged", "stopped", "waiting", "finished")
OVER = frozenset({"finished", "failed", "damaged"})
"""The states that nothing is expected to follow."""

RUNNING_SECONDS, RUNNING_WINDOWS = 120, 3
"""A run that wrote nothing for so long, and for the time of so many of its windows, is taken for stopped.

A checkpoint comes every 60 seconds; an evaluation, in which nothing is written, takes less than a window or two.
"""

LIST, FOLDER = "sweep.json", ".sweep"
_WRITTEN = ("metrics.jsonl", "checkpoint.pt", "plan.json", "run.json", "result.json")
_TAIL = 1 << 16  # bytes of the metrics that are read: some 400 lines, 40,000 steps
_RECENT = 10  # windows that the speed is taken from


@dataclass(frozen=True)
class State:
    """A run as its directory shows it. Errors are fractions; `split` is the part that `error` is of."""

    name: str
    state: str
    network: str
    recipe: str
    seed: int
    steps: int
    data: str
    step: int = 0
    train_error: float | None = None
    error: float | None = None
    split: str = "test"
    seconds_left: float | None = None
    why: str = ""
    window_seconds: float = 0.0


class States:
    """The runs of a folder; read again, only what has changed is read from the disk."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._known: dict[str, tuple[object, State]] = {}

    def read(self, now: float | None = None) -> list[State]:
        """Every run of the folder or of its list, by state and name. A damaged one is said to be so."""
        entries = listed(self.out)
        folders = {path.parent.name for path in self.out.glob("*/run.json")}
        moment = time.time() if now is None else now
        found = [self._state(name, entries.get(name, {}), moment) for name in sorted({*entries, *folders})]
        return sorted(found, key=lambda state: STATES.index(state.state))

    def _state(self, name: str, entry: dict[str, Any], now: float) -> State:
        signature, wrote = _signature(self.out / name)
        state = self._read(name, entry, signature)
        noted = entry.get("noted")
        if noted and noted["wrote"] == wrote and state.state not in ("finished", "damaged"):
            return replace(state, state=noted["state"], why=noted["why"], seconds_left=None)
        limit = max(RUNNING_SECONDS, RUNNING_WINDOWS * state.window_seconds)
        if state.state == "running" and now - wrote > limit:
            return replace(state, state="stopped", seconds_left=None)
        return state

    def _read(self, name: str, entry: dict[str, Any], signature: object) -> State:
        """The state of a directory, running where it is neither finished nor damaged nor still to be made."""
        key = (signature, json.dumps(entry, sort_keys=True))
        if name not in self._known or self._known[name][0] != key:
            self._known[name] = (key, _of_directory(self.out / name, entry))
        return self._known[name][1]


def _signature(path: Path) -> tuple[object, float]:
    """What changes with a run's files, and when it last wrote to one; 0 where there is none."""
    found = []
    for name in _WRITTEN:
        with contextlib.suppress(OSError):
            stat = (path / name).stat()
            found.append((name, stat.st_ino, stat.st_size, stat.st_mtime))
    return tuple(found), max((mtime for *_, mtime in found), default=0.0)


def steps_done(path: Path) -> int:
    """The steps that a run directory shows; 0 where there are none, or it is damaged."""
    return _of_directory(path, {}).step


def to_json(state: State) -> dict[str, Any]:
    """A state as `--json` prints it."""
    return {name: value for name, value in vars(state).items() if name != "window_seconds"}


def _of_directory(path: Path, entry: dict[str, Any]) -> State:
    facts = {"network": path.name, "recipe": "", "seed": 0, "steps": 0, "data": ""}
    facts |= {key: entry[key] for key in facts if key in entry}
    if not (path / "run.json").exists():
        return State(path.name, "waiting", **facts)  # type: ignore[arg-type]
    try:
        facts = _identity(path)
        state = _with_metrics(State(path.name, "running", **facts), path)  # type: ignore[arg-type]
        if not (path / "result.json").exists():
            return state
        result = _object(path / "result.json", "error", "split", "train_error", "steps")
        if not all(type(result[key]) in (int, float) for key in ("error", "train_error", "steps")):
            raise UserError(f"{path / 'result.json'} is damaged: its errors are no numbers")
    except UserError as error:
        return State(path.name, "damaged", **facts, why=str(error))  # type: ignore[arg-type]
    known = {key: result[key] for key in ("error", "split", "train_error")}
    return replace(state, state="finished", step=result["steps"], seconds_left=None, **known)


def _identity(path: Path) -> dict[str, Any]:
    found = _object(path / "run.json", "network", "recipe", "seed", "steps", "data")
    network, recipe = found["network"], found["recipe"]
    if not (isinstance(network, dict) and isinstance(recipe, dict) and type(found["steps"]) is int):
        raise UserError(f"{path / 'run.json'} is damaged: it describes no run")
    module = str(network.get("module", "")).rpartition(".")[2]  # of a network from outside
    name = module or fields.from_json(NetworkSpec, network, str(path / "run.json")).name
    facts = {key: found[key] for key in ("seed", "steps", "data")}
    return {"network": name, "recipe": str(recipe.get("name")), **facts}


def _object(path: Path, *needed: str) -> dict[str, Any]:
    found = files.read_json(path)
    if not isinstance(found, dict) or not all(key in found for key in needed):
        raise UserError(f"{path} is damaged: no object with {', '.join(needed)}")
    return found


def _with_metrics(state: State, path: Path) -> State:
    """The state with the last of everything in its metrics, and the time left at the speed of late."""
    lines = _tail(path / "metrics.jsonl")
    try:
        trained = [(line["step"], line["time"], line["error"]) for line in lines if line["kind"] == "train"]
        held_out = [line for line in lines if line["kind"] in ("test", "val")]
        if held_out:
            state = replace(state, error=held_out[-1]["error"], split=held_out[-1]["kind"])
        state = replace(state, step=max((line["step"] for line in lines), default=0))
        if not trained:
            return state
        state = replace(state, train_error=trained[-1][2])
        recent = trained[-_RECENT - 1 :]
        windows = [(late[1] - early[1]) / (late[0] - early[0]) for early, late in itertools.pairwise(recent)]
    except (KeyError, TypeError, ZeroDivisionError):
        raise UserError(f"{path / 'metrics.jsonl'} is damaged: a line of its end is none of a run") from None
    if not windows:
        return state
    middle = statistics.median(windows)
    pace = statistics.fmean(x for x in windows if x <= 10 * middle)  # a longer one holds a stop
    return replace(state, seconds_left=pace * (state.steps - state.step), window_seconds=100 * pace)


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last lines of a file of metrics; a torn last one is passed over."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            raw = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise files.refused(error, path) from error
    try:
        lines = [json.loads(line) for line in (raw[1:] if size > _TAIL else raw)]
    except ValueError:
        raise UserError(f"{path} is damaged: a line of its end is no JSON") from None
    if not all(isinstance(line, dict) for line in lines):
        raise UserError(f"{path} is damaged: a line of its end is no object")
    return lines


# -- the list of the runs that are wanted, beside them


def listed(out: Path) -> dict[str, dict[str, Any]]:
    """The runs that sweeps into a folder want, by directory name; none where there is no list."""
    path = out / LIST
    if not path.exists():
        return {}
    found = files.read_json(path)
    runs = found.get("runs") if isinstance(found, dict) else None
    if not isinstance(runs, dict) or not all(isinstance(entry, dict) for entry in runs.values()):
        raise UserError(f"{path} is damaged: no list of runs; delete it, the next sweep writes it again")
    return runs


def enlist(out: Path, wanted: dict[str, dict[str, Any]]) -> None:
    """Put entries into the list, those of other sweeps kept; what was noted in an entry of before is forgotten."""
    with _list_locked(out):
        files.write_json(out / LIST, {"format": 1, "runs": {**listed(out), **wanted}})


def note(out: Path, name: str, state: str, why: str = "") -> None:
    """Note that a run has failed by itself, or was stopped: its directory does not say. It holds until it writes."""
    with _list_locked(out):
        runs = listed(out)
        noted = {"state": state, "why": why, "wrote": _signature(out / name)[1]}
        runs[name] = {**runs.get(name, {}), "noted": noted}
        files.write_json(out / LIST, {"format": 1, "runs": runs})


@contextlib.contextmanager
def _list_locked(out: Path) -> Iterator[None]:
    folder = out / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise files.refused(error, folder) from error
