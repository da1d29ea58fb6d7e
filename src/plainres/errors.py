"""What goes wrong in ways that are expected."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake of the user: one line that names what is wrong, where, and what to do. Exit status 2."""

    exit_status = 2


class InUse(UserError):
    """A run directory that another process holds; it may be free a moment later."""


class Stopped(Exception):
    """A run that was stopped and can go on; the message says where. Exit status 75, or 130."""

    def __init__(self, message: str, *, exit_status: int = 75) -> None:
        """`exit_status` is 130 when the user interrupted, 75 when the system asked the run to stop."""
        super().__init__(message)
        self.exit_status = exit_status


class Diverged(Exception):
    """A run whose loss is not finite: it fails again if repeated. Exit status 1."""

    exit_status = 1


class Unavailable(Exception):
    """An engine that this machine, or this network, cannot have; the message says why, and another one is taken."""


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist: it names the nearest right one, or all if none is near."""
    names = [str(k) for k in known]
    near = get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.6)
    if near:
        right = next(n for n in names if n.lower() == near[0])
        return UserError(f"unknown {what} '{name}'; did you mean '{right}'?")
    return UserError(f"unknown {what} '{name}'; there are: {', '.join(names)}")
