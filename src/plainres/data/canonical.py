"""The order in which a store keeps its images, and its hash: both of the images alone."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plainres.data.records import IMAGE_BYTES, SIDE, SPLITS, Images, Progress, Split, no_progress

TYPES = {"images": "|u1", "labels": "|u1", "index": "<i8"}
"""The arrays of a split and their types on disk."""
HASHED = ("images", "labels")
_ROWS = 2000  # gathered together: a sorted copy of the whole would double the memory

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Canonical:
    """Images with the order in which a store keeps them, the digest of each array, and the store's hash."""

    images: Images
    orders: dict[str, NDArray[np.int64]]
    digests: dict[str, str]
    hash: str

    def pieces(self, split: str, part: str) -> Iterator[Array]:
        """One array in canonical order, some rows at a time."""
        order, array = self.orders[split], getattr(self.images.splits[split], part)
        for start in range(0, len(order), _ROWS):
            yield array[order[start : start + _ROWS]].astype(TYPES[part], copy=False)

    def shape(self, split: str, part: str) -> tuple[int, ...]:
        """The shape of one array."""
        return (len(self.orders[split]), *((3, SIDE, SIDE) if part == "images" else ()))


def canonical(images: Images, progress: Progress = no_progress) -> Canonical:
    """Find the order and the hash of a store of these images; nothing is copied or written."""
    total, done = sum(len(images.splits[split]) for split in SPLITS), 0
    orders = {}
    for split in SPLITS:
        orders[split] = _order(images.splits[split], done, total, progress)
        done += len(orders[split])
    found = Canonical(images, orders, {}, "")
    digests = {}
    for split in SPLITS:
        for part in TYPES:
            sha = hashlib.sha256()
            for piece in found.pieces(split, part):
                sha.update(piece.data)
            digests[f"{split}_{part}"] = sha.hexdigest()
    shapes = {f"{split}_{part}": found.shape(split, part) for split in SPLITS for part in TYPES}
    return Canonical(images, orders, digests, store_hash(shapes, digests))


def _order(split: Split, done: int, total: int, progress: Progress) -> NDArray[np.int64]:
    rows = np.ascontiguousarray(split.images).reshape(len(split), IMAGE_BYTES)
    joined = bytearray()
    for i, row in enumerate(rows):
        joined += hashlib.sha256(row.data).digest()
        if i % 5000 == 0:
            progress("sorting the images", done + i, total)
    progress("sorting the images", done + len(rows), total)
    keys = np.frombuffer(joined, ">u8").reshape(len(split), 4).astype(np.uint64)
    return np.lexsort((split.index, split.labels, *keys.T[::-1]))


def store_hash(shapes: dict[str, tuple[int, ...]], digests: dict[str, str]) -> str:
    """SHA-256 of name, shape and SHA-256 of the arrays of images and labels.

    A hash of hashes, so that two threads can check it when a store is opened and a damaged file has a name.
    """
    names = [f"{split}_{part}" for split in SPLITS for part in HASHED]
    lines = [f"{name} {'x'.join(map(str, shapes[name]))} {digests[name]}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
