"""A command in several processes: one of them speaks."""

import contextlib
import os
from collections.abc import Iterator

import typer

from plainres.errors import Diverged, Stopped, UserError


@contextlib.contextmanager
def one_voice() -> Iterator[bool]:
    """Whether this process speaks: the first of those that torchrun started. An error is told once.

    All join before anything can go wrong; where there is one process, nothing is imported for it.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield True
        return
    from plainres.distributed import REPORTED, joined

    try:
        with joined() as world:
            yield world.rank == 0
    except (UserError, Stopped, Diverged, OSError, KeyboardInterrupt) as error:
        if REPORTED not in getattr(error, "__notes__", ()):
            raise
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_status", 2)) from None
