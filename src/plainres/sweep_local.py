"""Runs as processes of this machine."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from plainres import files, machine
from plainres.errors import UserError
from plainres.sweep_state import FOLDER
from plainres.sweep_wanted import Ended, Wanted

_LOST = {128 + signal.SIGKILL, 128 + signal.SIGTERM, 75, 130}  # as a shell in between reports the former two
_OWN_FAULT = {signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGBUS}  # repeats exactly
_LOCK_SECONDS, _IN_USE = 60.0, "is in use by another process"  # what a killed sweep left dies by itself
_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def places(device: torch.device, at_once: int | None, per_gpu: int | None) -> list[dict[str, str]]:
    """The environment of each run that goes at the same time: its share of the cores, its GPU.

    On the CPU one at a time unless `at_once` says more: its kernels take every core, and the bits of a run on the
    kernels do not depend on how many. On CUDA `per_gpu` (one) on each GPU that is visible.
    """
    if device.type != "cuda":
        if per_gpu is not None:
            raise UserError(f"--per-gpu: the runs would be on {device}; --at-once says how many go at a time")
        gpus = [""] * (at_once or 1)
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        every = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        chosen = every if device.index is None else [every[device.index]]
        gpus = (chosen * (per_gpu or 1))[: at_once or None]
    threads = str(max(1, machine.threads() // len(gpus)))
    return [{"OMP_NUM_THREADS": threads, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})} for gpu in gpus]


@dataclass
class _Going:
    run: Wanted
    process: subprocess.Popen[bytes]
    place: dict[str, str]
    log: Path
    since: float  # when it was first begun


class Local:
    """An executor: `plainres train` in a process for each place. None of them outlives this one."""

    def __init__(self, places: list[dict[str, str]]) -> None:
        self._free, self._going, self._stopping = list(places), list[_Going](), False

    def room(self) -> bool:
        """Whether a place is free."""
        return bool(self._free)

    def start(self, run: Wanted) -> None:
        """Begin a run in a place that is free."""
        self._start(run, time.monotonic())

    def _start(self, run: Wanted, since: float) -> None:
        place = self._free.pop(0)
        device = "cuda" if run.device.startswith("cuda:") else run.device  # it sees that one alone
        words = replace(run, data=str(run.store.path), device=device).words()
        words = [sys.executable, "-m", "plainres", *words[1:], "--quiet"]
        log = run.out / FOLDER / f"{run.run_dir.name}.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as errors:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env={**os.environ, **place},
                    start_new_session=True,  # Ctrl-C reaches it through us, once
                    preexec_fn=_end_with_parent if _LIBC else None,  # no threads here
                )
        except OSError as error:
            raise files.refused(error, log) from error
        self._going.append(_Going(run, process, place, log, since))

    def ended(self, seconds: float) -> list[Ended]:
        """The runs that have ended since the last call, waited for so long."""
        until = time.monotonic() + seconds
        while not (over := [one for one in self._going if one.process.poll() is not None]):
            if time.monotonic() >= until:
                return []
            time.sleep(0.05)
        found: list[Ended] = []
        for one in over:
            self._going.remove(one)
            self._free.append(one.place)
            end = _told(one)
            if _IN_USE in end.line and not self._stopping and time.monotonic() < one.since + _LOCK_SECONDS:
                self._start(one.run, one.since)
            else:
                found.append(end)
        return found

    def ask_to_stop(self, number: signal.Signals) -> None:
        """Pass a signal on to every run, which then saves and ends."""
        self._stopping = True
        for one in self._going:
            one.process.send_signal(number)

    def close(self) -> None:
        """End what still goes at once; a checkpoint is never half written."""
        for one in self._going:
            one.process.kill()
            one.process.wait()
        self._going.clear()


def _told(one: _Going) -> Ended:
    status = one.process.returncode
    last = ""
    with contextlib.suppress(FileNotFoundError):  # another sweep of the same run has removed it
        last = last_line(one.log.read_bytes().decode(errors="replace"))
    if status == 0:
        one.log.unlink(missing_ok=True)
    if status >= 0:
        return Ended(one.run, status, last, lost=status in _LOST)
    number = signal.Signals(-status)
    return Ended(one.run, status, f"killed by {number.name}", lost=number not in _OWN_FAULT)


def last_line(text: str) -> str:
    """The last line of what a run said, which names its mistake, without the program's name."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("plainres: ") if lines else ""


def _end_with_parent() -> None:
    """Have the system send SIGTERM, upon which a run saves and ends, when the sweep dies, however it dies."""
    assert _LIBC is not None
    _LIBC.prctl(_PDEATHSIG, signal.SIGTERM)
