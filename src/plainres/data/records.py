"""What every reader of images gives: two splits of uint8 arrays."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plainres.errors import UserError

SPLITS = ("train", "test")
SIDE = 32
IMAGE_BYTES = 3 * SIDE * SIDE
MOST_CLASSES = 256  # labels are bytes

Pixels = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`, in bytes or images; `total` is 0 where it is not known."""


def no_progress(what: str, done: int, total: int) -> None:
    """The progress of those who do not want to know."""


@dataclass(frozen=True, eq=False)
class Split:
    """One split: images uint8 (N, 3, 32, 32), labels uint8 (N,), index int64 (N,).

    `index` is the position in the published order (train 0 to 49,999 over data_batch_1 to 5, test 0 to
    9,999), -1 where it is not known.
    """

    images: Pixels
    labels: Pixels
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Images:
    """The splits "train" and "test", and the name of each label."""

    splits: dict[str, Split]
    classes: tuple[str, ...]


class Gathered:
    """One split that grows part by part, in place: a second copy of 150 MB would be the most of a reader's memory.

    Parts come in any order; each has a number, by which the index counts.
    """

    def __init__(self) -> None:
        self._images = np.empty((0, IMAGE_BYTES), np.uint8)
        self._labels: list[Pixels] = []
        self._parts: list[tuple[int, str, int]] = []

    def add(self, images: Pixels, labels: Pixels, *, number: int, name: str) -> None:
        """Add part `number`, called `name` in errors: images (n, 3072), labels (n,)."""
        before = len(self._images)
        # realloc moves the pages of a block this large instead of copying it.
        self._images.resize((before + len(images), IMAGE_BYTES), refcheck=False)
        self._images[before:] = images
        self._labels.append(np.array(labels, np.uint8))
        self._parts.append((number, name, len(labels)))

    def split(self, classes: int, *, ordered: bool) -> Split:
        """The split; labels not below `classes` are refused, and the index is -1 unless parts are `ordered`."""
        for (_, name, _), labels in zip(self._parts, self._labels, strict=True):
            check_labels(labels, classes, name)
        index = [
            sum(count for other, _, count in self._parts if other < number) + np.arange(count)
            for number, _, count in self._parts
        ]
        labels = np.concatenate(self._labels) if self._labels else np.empty(0, np.uint8)
        known = ordered and len({number for number, _, _ in self._parts}) == len(self._parts)
        places = np.concatenate(index) if known and index else np.full(len(labels), -1)
        return Split(self._images.reshape(-1, 3, SIDE, SIDE), labels, places.astype(np.int64))


def check_labels(labels: NDArray[np.integer], classes: int, where: str) -> None:
    """Refuse labels outside 0 to `classes` - 1, naming the first: UserError."""
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(bad):
        raise UserError(f"{where}: record {bad[0]} has label {labels[bad[0]]}, expected 0 to {classes - 1}")


def both_splits(train: Split, test: Split, classes: tuple[str, ...], where: str) -> Images:
    """The two splits of one source, neither of them empty: else UserError."""
    for name, split in zip(SPLITS, (train, test), strict=True):
        if not len(split):
            raise UserError(f"{where} holds no {name} images; a training and a test set are needed")
    return Images({"train": train, "test": test}, classes)
