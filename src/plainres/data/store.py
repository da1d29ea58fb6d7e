"""The prepared images: six arrays and a manifest in one folder, in an order that the images alone decide.

Each split is sorted by the SHA-256 of its images (then by label, then by published index), so that every
packing of the same images gives the same arrays, and the same hash.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from plainres.data.canonical import TYPES, Array, Canonical, canonical, store_hash
from plainres.data.known import CIFAR10_HASH
from plainres.data.records import SIDE, SPLITS, Images, Progress, Split, no_progress
from plainres.errors import UserError, unknown

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class Store:
    """A prepared data set. `hash` is of the images and labels; `new` says that this call wrote it."""

    path: Path
    name: str
    hash: str
    classes: tuple[str, ...]
    counts: dict[str, int]
    new: bool = field(default=False, compare=False)

    @property
    def generated(self) -> bool:
        """Whether the images are plainres's own drawings, which every result has to say."""
        return self.name == "generated"

    def split(self, name: str) -> Split:
        """The split "train" or "test", mapped from disk and read-only."""
        if name not in self.counts:
            raise unknown("split", name, self.counts)
        return Split(*(_mapped(self.path / f"{name}_{part}.npy") for part in TYPES))


def write_store(images: Images, path: Path, name: str, progress: Progress = no_progress) -> Store:
    """Write images as a store at `path` (see `write_canonical`)."""
    return write_canonical(canonical(images, progress), path, name, progress)


def write_canonical(found: Canonical, path: Path, name: str, progress: Progress = no_progress) -> Store:
    """Write a store at `path`, whole or not at all; what was there before is replaced.

    `name` is "CIFAR-10", "CIFAR-100", "generated" or "images". A full disk or a forbidden folder is a
    UserError, and leaves nothing behind.
    """
    with _writing(path, found), _temporary(path) as folder:
        _write_arrays(found, folder, progress)
        manifest = {
            "format": _FORMAT,
            "name": name,
            "hash": found.hash,
            "classes": list(found.images.classes),
            "counts": {split: len(found.orders[split]) for split in SPLITS},
            "sha256": found.digests,
            "bytes": {key: (folder / f"{key}.npy").stat().st_size for key in found.digests},
        }
        with (folder / MANIFEST).open("wb") as file:
            file.write(json.dumps(manifest, indent=2).encode() + b"\n")
            _flush(file)
        _put(folder, path)
    counts = {split: len(order) for split, order in found.orders.items()}
    return Store(path, name, found.hash, found.images.classes, counts, new=True)


def _write_arrays(found: Canonical, folder: Path, progress: Progress) -> None:
    total, done = sum(len(order) for order in found.orders.values()), 0
    for split in SPLITS:
        for part, kind in TYPES.items():
            with (folder / f"{split}_{part}.npy").open("wb") as file:
                shape = found.shape(split, part)
                header = {"descr": kind, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for piece in found.pieces(split, part):
                    file.write(piece.data)
                    if part == "images":
                        done += len(piece)
                        progress("writing the store", done, total)
                _flush(file)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _writing(path: Path, found: Canonical) -> Iterator[None]:
    """Turn what the system refuses into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = sum(split.images.nbytes for split in found.images.splits.values()) >> 20
            raise UserError(
                f"{path.parent}: no space left on the disk; the store needs {size + 1} MiB. Free some, "
                "or set PLAINRES_DATA to a folder elsewhere"
            ) from None
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A folder beside `path`, gone afterwards unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        folder.chmod(0o755)  # mkdtemp's 0700 would hide a shared store from others
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(folder: Path, path: Path) -> None:
    """Rename `folder` to `path`; an older one is moved away first and removed."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-old-", dir=path.parent) as old:
        if path.exists():
            path.rename(Path(old) / "store")
        folder.rename(path)
    with suppress(OSError):  # not every system lets a folder be flushed
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def open_store(path: Path) -> Store:
    """Open a store, every byte checked against its manifest; what is damaged is a UserError that names it.

    CIFAR-10 took 0.16 to 0.18 s on two busy cores with SHA instructions (measured with two threads).
    """
    manifest = _manifest(path)
    for key, size in manifest["bytes"].items():
        file = path / f"{key}.npy"
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found:,} bytes, expected {size:,}"
            raise _damaged(file, what)
    keys = sorted(manifest["sha256"], reverse=True)  # the longest first
    with ThreadPoolExecutor(2) as pool:
        arrays = [_mapped(path / f"{key}.npy") for key in keys]
        digests = list(pool.map(lambda array: hashlib.sha256(array.data).hexdigest(), arrays))
    shapes = {key: array.shape for key, array in zip(keys, arrays, strict=True)}
    for key, digest in zip(keys, digests, strict=True):
        if digest != manifest["sha256"][key] or shapes[key][0] != manifest["counts"][key.split("_")[0]]:
            raise _damaged(path / f"{key}.npy", "does not have the content its manifest says")
    if store_hash(shapes, dict(zip(keys, digests, strict=True))) != manifest["hash"]:
        raise _damaged(path / MANIFEST, "does not have the hash of its arrays")
    if manifest["name"] == "CIFAR-10" and manifest["hash"] != CIFAR10_HASH:
        raise _damaged(path / MANIFEST, "calls images CIFAR-10 that are not")
    return Store(path, manifest["name"], manifest["hash"], tuple(manifest["classes"]), manifest["counts"])


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}; the store is damaged: remove {path.parent} and run plainres prepare again")


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        raise UserError(f"{path} is no prepared store (no {MANIFEST})")
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
        if found["format"] != _FORMAT:
            raise UserError(f"{file} has format {found['format']}, expected {_FORMAT}; run plainres prepare again")
        keys = {f"{split}_{part}" for split in SPLITS for part in TYPES}
        texts = [found["name"], found["hash"], *found["classes"], *found["sha256"].values()]
        numbers = [*found["bytes"].values(), *found["counts"].values()]
        good = found["bytes"].keys() == keys == found["sha256"].keys() and found["counts"].keys() == set(SPLITS)
        if not (good and all(type(t) is str for t in texts) and all(type(n) is int for n in numbers)):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(file, "is no manifest") from None
    return found


def _mapped(path: Path) -> Array:
    """An array of a store, mapped from disk; its type is the one its name says."""
    part = path.stem.split("_")[1]
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise _damaged(path, f"cannot be read ({error})") from None
    if array.dtype.str != TYPES[part] or array.shape[1:] != ((3, SIDE, SIDE) if part == "images" else ()):
        raise _damaged(path, "has another type or shape")
    return array
