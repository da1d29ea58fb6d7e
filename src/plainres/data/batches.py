"""CIFAR's batch files, binary or pickled, from a folder or an archive."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from plainres.data import binary, pickles
from plainres.data.archive import FILE_LIMIT, members
from plainres.data.known import CIFAR10_CLASSES, Checks
from plainres.data.records import Gathered, Images, Progress, both_splits, no_progress
from plainres.errors import UserError

_BATCH = re.compile(r"(?:data_batch_(\d{1,4})|(test)_batch|(train)|(test))(\.bin)?")
_NAMES = {"batches.meta.txt": 10, "batches.meta": 10, "fine_label_names.txt": 100, "meta": 100}
_FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar-100-binary", "cifar-100-python")


@dataclass(frozen=True)
class Kind:
    """What the name of a batch file says: `split` is "names" for the class names, `number` counts batches."""

    binary: bool
    classes: int
    split: str
    number: int = 0


def kind(name: str) -> Kind | None:
    """What the file of that name (no folder) is, or None where it is no part of CIFAR."""
    if name in _NAMES:
        return Kind(name.endswith(".txt"), _NAMES[name], "names")
    found = _BATCH.fullmatch(name)
    if found is None:
        return None
    number, ten, train, test, suffix = found.groups()
    classes = 100 if train or test else 10
    return Kind(bool(suffix), classes, "test" if ten or test else "train", int(number or 0))


class _Reader:
    """Takes the files of one source in any order."""

    def __init__(self, where: str, checks: Checks) -> None:
        self.where, self.checks = where, checks
        self.splits = {"train": Gathered(), "test": Gathered()}
        self.names: tuple[str, ...] | None = None
        self.version: tuple[str, bool, int] | None = None

    def take(self, name: str, body: bytes) -> None:
        folder, _, last = name.rpartition("/")
        found = kind(last)
        if found is None:
            return
        version = (folder, found.binary, found.classes)
        if self.version not in (None, version):
            raise UserError(f"{self.where} holds two data sets; give a folder or archive with one: {name}")
        self.version = version
        different = self.checks.file(last, body)
        try:
            self._parse(found, body, f"{self.where}: {name}")
        except UserError as error:
            raise UserError(f"{error} ({different})" if different else str(error)) from None

    def _parse(self, found: Kind, body: bytes, where: str) -> None:
        if found.split == "names":
            self.names = (
                binary.parse_names(body, where) if found.binary else pickles.parse_names(body, found.classes, where)
            )
            if not 0 < len(self.names) <= found.classes:
                raise UserError(f"{where} names {len(self.names)} classes, expected {found.classes}")
            return
        parse = binary.parse_records if found.binary else pickles.parse_batch
        images, labels = parse(body, found.classes, where)
        self.splits[found.split].add(images, labels, number=found.number, name=where)

    def images(self) -> Images:
        if self.version is None:
            raise UserError(f"{self.where} holds no CIFAR batch files (data_batch_1.bin, data_batch_1, train, ...)")
        count = self.version[2]
        names = self.names or (CIFAR10_CLASSES if count == 10 else tuple(map(str, range(count))))
        train, test = (self.splits[s].split(len(names), ordered=True) for s in ("train", "test"))
        return both_splits(train, test, names, self.where)


def read_files(files: Iterable[tuple[str, bytes]], where: str, checks: Checks | None = None) -> Images:
    """The images in batch files given as (name, content), in any order; `where` names the source in errors."""
    reader = _Reader(where, Checks() if checks is None else checks)
    for name, body in files:
        reader.take(name, body)
    return reader.images()


def read_archive(path: Path, checks: Checks | None = None, progress: Progress = no_progress) -> Images:
    """The images in a .tar.gz of either version of CIFAR-10 or CIFAR-100."""
    files = members(path, lambda name: kind(PurePosixPath(name).name) is not None, progress)
    return read_files(files, str(path), checks)


def batch_files(folder: Path) -> list[Path]:
    """The batch files of one version in a folder, or in a folder of an official name below it; may be empty."""
    for place in (folder, *(folder / name for name in _FOLDERS)):
        files = [path for path in sorted(place.glob("*")) if path.is_file()]
        kinds = {path: found for path in files if (found := kind(path.name))}
        for version in ((True, 10), (False, 10), (True, 100), (False, 100)):
            mine = [path for path, found in kinds.items() if (found.binary, found.classes) == version]
            if any(kinds[path].split != "names" for path in mine):
                return mine
    return []


def read_folder(folder: Path, checks: Checks | None = None, progress: Progress = no_progress) -> Images:
    """The images in an unpacked folder of either version of CIFAR-10 or CIFAR-100."""
    return read_files(_contents(batch_files(folder), folder, progress), str(folder), checks)


def _contents(files: list[Path], folder: Path, progress: Progress) -> Iterator[tuple[str, bytes]]:
    total, done = sum(path.stat().st_size for path in files), 0
    for path in files:
        size = path.stat().st_size
        if size > FILE_LIMIT:
            raise UserError(f"{path} has {size:,} bytes, more than {FILE_LIMIT:,}; refused")
        yield path.relative_to(folder).as_posix(), path.read_bytes()
        done += size
        progress(f"reading {folder.name}", done, total)
