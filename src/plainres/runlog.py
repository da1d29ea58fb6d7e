"""The run directory: the unit of truth, one process at a time."""

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from plainres import files
from plainres.errors import InUse, UserError

TIMINGS = frozenset({"time", "seconds", "images_per_second"})
"""The fields of a metrics line that a repeated run does not repeat."""

_CURVES = {
    "train": ("loss", "error", "learning_rate", "images_per_second"),
    "test": ("loss", "error"),
    "val": ("loss", "error"),
}
_SHARED_TAGS = {"learning_rate", "images_per_second"}  # not of one split


def identity_hash(identity: dict[str, Any]) -> str:
    """The hash that ends a run directory's name: of the content of its `run.json`."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


class RunDirectory:
    """An open run directory: locked, its metrics appended line by line, TensorBoard events following them."""

    def __init__(self, out: Path, name: str, identity: dict[str, Any]) -> None:
        """Make or reopen `out/name-HASH`. A run in use by another process, or of another recipe, is a UserError."""
        self.hash = identity_hash(identity)
        self.path = out / f"{name}-{self.hash}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path)
        except OSError as error:
            raise files.refused(error, self.path) from error
        try:
            self._claim(identity)
        except BaseException:
            self._lock.close()
            raise
        self._metrics: IO[bytes] | None = None
        self._events: _Events | None = None

    def _claim(self, identity: dict[str, Any]) -> None:
        recorded = self.path / "run.json"
        if not recorded.exists():
            files.write_json(recorded, identity)
            return
        found = files.read_json(recorded)
        if found != identity:
            differing = [k for k in identity if not isinstance(found, dict) or found.get(k) != identity[k]]
            raise UserError(
                f"{self.path} is the run of another {', '.join(differing) or 'kind'}; "
                "its run.json was changed: give another --out"
            )

    def read_object(self, name: str, *needed: str) -> dict[str, Any] | None:
        """A JSON object of the run with the keys `needed`; None if the file is not there."""
        path = self.path / name
        if not path.exists():
            return None
        found = files.read_json(path)
        if not isinstance(found, dict) or not all(key in found for key in needed):
            raise UserError(
                f"{path} is damaged: no object with {', '.join(needed)}; move {self.path} away to begin anew"
            )
        return found

    def write_json(self, name: str, data: Any) -> None:
        """Put a JSON file into the run, whole or not at all."""
        files.write_json(self.path / name, data)

    def start_metrics(self, after: int) -> list[dict[str, Any]]:
        """Open the metrics for writing, without every line after step `after`; returns the lines that stay.

        What is cut is written again as the run goes on; the events are made anew from the lines that stay.
        """
        kept = [line for line in metrics(self.path) if line["step"] <= after]
        path = self.path / "metrics.jsonl"
        files.write(path, b"".join(_encoded(line) for line in kept))
        try:
            # unbuffered: what a full disk refused must not be tried again when the file is closed
            self._metrics = path.open("ab", buffering=0)
            self._events = _Events(self.path)
            for line in kept:
                self._events.add(line)
        except OSError as error:
            raise files.refused(error, path) from error
        return kept

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to the metrics, and its curves to the events."""
        if self._metrics is None or self._events is None:
            raise RuntimeError("start_metrics comes first")
        stamped = {**line, "time": time.time()}
        try:
            _write_all(self._metrics, _encoded(stamped))
            self._events.add(stamped)
        except OSError as error:
            raise files.refused(error, self.path / "metrics.jsonl") from error

    def flush(self) -> None:
        """Have every metrics line on the disk: comes before a checkpoint, which promises them."""
        if self._metrics is None or self._events is None:
            return
        try:
            os.fsync(self._metrics.fileno())
            self._events.flush()
        except OSError as error:
            raise files.refused(error, self.path / "metrics.jsonl") from error

    def close(self) -> None:
        """Release the run for other processes."""
        try:
            if self._metrics is not None:
                self._metrics.close()
            if self._events is not None:
                self._events.close()
        finally:
            self._lock.close()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def metrics(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics, in order; each has a `kind`, a `step`, and finite numbers.

    A torn last line, as a crash leaves it, is passed over; any other damage is a UserError.
    """
    path = run / "metrics.jsonl"
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                return
            line = _decoded(raw)
            if line is None:
                raise UserError(
                    f"{path}: line {number} is damaged; delete it and what follows, and give the command again"
                )
            yield line


def _decoded(raw: bytes) -> dict[str, Any] | None:
    """A line of metrics; None if it is none."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str) or type(line.get("step")) is not int:
        return None
    numbers = [line.get(name, 0.0) for name in ("loss", "error", "learning_rate", *TIMINGS)]
    return line if all(type(n) in (int, float) and math.isfinite(n) for n in numbers) else None


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _write_all(file: IO[bytes], content: bytes) -> None:
    """Write to an unbuffered file, which may take a part of it when the disk is full."""
    while content:
        content = content[file.write(content) :]


def _locked(run: Path) -> IO[bytes]:
    """Hold the run's lock; the system lets go of it when the process dies, however it dies."""
    handle = (run / "lock").open("ab")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise InUse(f"{run} is in use by another process; wait for it, or give another --out") from None
    return handle


class _Events:
    """TensorBoard events, made from metrics lines alone, each on its way to the disk when it is added."""

    def __init__(self, run: Path) -> None:
        # TensorBoard's own writer works in a thread, where a full disk is a traceback and no error
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        for old in run.glob("events.out.tfevents.*"):
            old.unlink()
        now = time.time()
        self._file = (run / f"events.out.tfevents.{int(now)}.plainres").open("wb", buffering=0)
        self._writer = RecordWriter(self._file)
        self._writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())

    def add(self, line: dict[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        split = line["kind"]
        values = [
            Summary.Value(tag=name if name in _SHARED_TAGS else f"{name}/{split}", simple_value=line[name])
            for name in _CURVES.get(split, ())
            if name in line
        ]
        if values:
            event = Event(step=line["step"], wall_time=line["time"], summary=Summary(value=values))
            self._writer.write(event.SerializeToString())

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
