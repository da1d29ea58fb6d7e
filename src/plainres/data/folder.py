"""A folder of pictures by split and class: train/airplane/x.png, test/airplane/y.png."""

from pathlib import Path

import numpy as np

from plainres.data import pictures
from plainres.data.records import (
    IMAGE_BYTES,
    MOST_CLASSES,
    SIDE,
    SPLITS,
    Images,
    Progress,
    Split,
    both_splits,
    no_progress,
)
from plainres.errors import UserError


def is_picture_folder(folder: Path) -> bool:
    """Whether a folder looks like pictures by split and class: it holds a folder "train" or "test"."""
    return any((folder / split).is_dir() for split in SPLITS)


def read_pictures(folder: Path, progress: Progress = no_progress) -> Images:
    """The pictures of a folder, all 32x32; the classes are the sorted names, the same in both splits."""
    for split in SPLITS:
        if not (folder / split).is_dir():
            raise UserError(f"{folder} has no folder '{split}'; expected train/CLASS/x.png and test/CLASS/x.png")
    classes = _classes(folder)
    files = {split: _files(folder / split, classes) for split in SPLITS}
    total, done = sum(map(len, files.values())), 0
    splits = []
    for split in SPLITS:
        splits.append(_read(files[split], folder, done, total, progress))
        done += len(files[split])
    return both_splits(splits[0], splits[1], classes, str(folder))


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _classes(folder: Path) -> tuple[str, ...]:
    train, test = ({p.name for p in _visible(folder / split) if p.is_dir()} for split in SPLITS)
    if train != test:
        odd = min(train ^ test)
        have, lack = SPLITS if odd in train else SPLITS[::-1]
        raise UserError(f"{folder}: class '{odd}' is in {have} but not in {lack}")
    if not 0 < len(train) <= MOST_CLASSES:
        raise UserError(f"{folder} has {len(train)} classes, expected 1 to {MOST_CLASSES}")
    return tuple(sorted(train))


def _files(split: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    for path in _visible(split):
        if not path.is_dir():
            raise UserError(f"{path} is in no class; expected {split.name}/CLASS/{path.name}")
    return [(path, label) for label, name in enumerate(classes) for path in _visible(split / name)]


def _read(files: list[tuple[Path, int]], folder: Path, done: int, total: int, progress: Progress) -> Split:
    images = np.empty((len(files), IMAGE_BYTES), np.uint8)
    for i, (path, _) in enumerate(files):
        if not path.is_file() or path.stat().st_size > pictures.LIMIT:
            raise UserError(f"{path} is no PNG or JPEG of {SIDE}x{SIDE} pixels")
        images[i] = pictures.decode(path.read_bytes(), str(path))
        if i % 500 == 0:
            progress(f"reading {folder.name}", done + i, total)
    progress(f"reading {folder.name}", done + len(files), total)
    labels = np.array([label for _, label in files], np.uint8)
    return Split(images.reshape(-1, 3, SIDE, SIDE), labels, np.full(len(files), -1, np.int64))
