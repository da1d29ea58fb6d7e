"""Signals as requests: a run stops between two steps."""

import signal
import threading
from types import FrameType
from typing import Any

_ASKED = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGUSR1: 75}  # signal to exit status


class StopRequest:
    """While entered, Ctrl-C, SIGTERM and SIGUSR1 are noted instead of obeyed; a second one is obeyed.

    Not so where the process was `launched` by another, through which one Ctrl-C may arrive twice.
    """

    def __init__(self, *, launched: bool = False) -> None:
        self.launched = launched
        self.exit_status: int | None = None
        self._obeyed = False
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.exit_status is not None

    def act(self) -> int:
        """The exit status asked for; from now on the request counts as obeyed."""
        self._obeyed = True
        return self.exit_status or 75

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.exit_status = _ASKED[signal.Signals(number)]
        if not self.launched:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in _ASKED:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._restore()
        if kind is None and self.exit_status == 130 and not self._obeyed:
            raise KeyboardInterrupt  # it came too late to stop the run, not too late for what comes after it
