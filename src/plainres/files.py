"""Writing a file whole or not at all."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from plainres.errors import UserError


def write(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that after a crash at any moment the old file or the new one is there.

    A full disk or a folder that cannot be written is a UserError, and the old file stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one writer at a time: the run is locked
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise refused(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """`data` as JSON that a person can read, keys sorted."""
    write(path, (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """The JSON of a file; what is no JSON is a UserError that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise refused(error, path) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def flush_folder(folder: Path) -> None:
    """Make renames in a folder outlast a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refused(error: OSError, path: Path) -> UserError:
    """The one line for a file that the system would not read or write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; free some space and give the same command again")
    return UserError(f"{path}: {error.strerror or error}")
