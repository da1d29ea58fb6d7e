"""Checkpoints: one line a person can read, then everything needed to go on, checked by its hash."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from plainres import files
from plainres.errors import UserError

_FORMAT = "plainres checkpoint 1"
_CURRENT, _PREVIOUS, _FRESH = "checkpoint.pt", "checkpoint.previous.pt", ".checkpoint.new"
_NAMES = (_FRESH, _CURRENT, _PREVIOUS)


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after `step` steps; the checkpoint before it is kept as the previous one.

    `state` holds tensors and plain Python only. A full disk is a UserError and loses neither older one.
    """
    payload = io.BytesIO()
    torch.save({**state, "step": step}, payload)
    content = payload.getvalue()
    header = {
        "format": _FORMAT,
        "step": step,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    fresh = folder / _FRESH
    try:
        files.write(fresh, json.dumps(header).encode() + b"\n" + content)
        if (folder / _CURRENT).exists():
            (folder / _CURRENT).replace(folder / _PREVIOUS)
        fresh.replace(folder / _CURRENT)
        files.flush_folder(folder)
    except OSError as error:
        raise files.refused(error, folder / _CURRENT) from error


def present(folder: Path) -> bool:
    """Whether a run has a checkpoint, whole or not."""
    return any((folder / name).exists() for name in _NAMES)


def load(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest state whose hash holds, and a line for each damaged file passed over.

    None if the run has no checkpoint; UserError if it has some and none is whole.
    """
    damaged: list[str] = []
    found: list[dict[str, Any]] = []
    for path in (folder / name for name in _NAMES if (folder / name).exists()):
        try:
            found.append(_read(path))
        except ValueError as error:
            damaged.append(f"{path} is damaged ({error}); another checkpoint is used")
        except OSError as error:
            raise files.refused(error, path) from error
    if damaged and not found:
        raise UserError(f"{folder}: every checkpoint is damaged; move the folder away to begin anew")
    return max(found, key=lambda state: int(state["step"]), default=None), damaged


def _read(path: Path) -> dict[str, Any]:
    """The state of one file; ValueError if it is not whole."""
    with path.open("rb") as file:
        line = file.readline(4096)
        header = json.loads(line)
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise ValueError("not a checkpoint of this project")
        size = os.fstat(file.fileno()).st_size - len(line)
        if size != header.get("bytes"):
            raise ValueError(f"{size} bytes, expected {header.get('bytes')}")
        content = file.read()
    if hashlib.sha256(content).hexdigest() != header.get("sha256"):
        raise ValueError("its content does not match its checksum")
    state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    return state
