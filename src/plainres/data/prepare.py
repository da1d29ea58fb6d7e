"""From any source of images to a verified store."""

import hashlib
import os
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from plainres.data import known
from plainres.data.batches import batch_files, read_archive, read_folder
from plainres.data.canonical import Canonical, canonical
from plainres.data.download import download
from plainres.data.folder import is_picture_folder, read_pictures
from plainres.data.parquet import parquet_files, read_parquet
from plainres.data.records import SPLITS, Images, Progress, no_progress
from plainres.data.store import MANIFEST, Store, open_store, write_canonical
from plainres.errors import UserError, unknown

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"


def data_home() -> Path:
    """Where stores are kept: $PLAINRES_DATA, else plainres in the user's cache folder."""
    if home := os.environ.get("PLAINRES_DATA"):
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "plainres"


def prepare(
    source: str | Path | None = None,
    *,
    any_images: bool = False,
    url: str | None = None,
    progress: Progress | None = None,
) -> Store:
    """Read a source and keep its images as a store in `data_home()`; CIFAR-10 where no source is given.

    A source is an archive or folder of either version of CIFAR, a folder of pictures by split and class, a
    parquet file or folder, or a store. Without one, CIFAR-10 is downloaded unless it is there; `url` is an
    address to try first. `Store.new` is False where it was there already. What is not CIFAR-10 is a
    UserError unless `any_images`, and so is everything that cannot be read.
    """
    report = progress or no_progress
    if source is not None:
        if url is not None:
            raise UserError("an address is for downloading; give a source or an address, not both")
        return _prepare_source(existing(source), any_images, report)
    try:
        return open_store(data_home() / "cifar10")
    except UserError:  # not there, or damaged: both are mended by preparing it
        return _prepare_download(url, any_images, report)


def find_store(data: str | Path | None = None, progress: Progress | None = None) -> Store:
    """The store that `--data` means: CIFAR-10 (prepared first where it is not), `generated`, or any source."""
    if data is None:
        return prepare(progress=progress)
    name = str(data)
    if name.partition(":")[0] == "generated":
        from plainres.data.generated import generated_store

        return generated_store(name)
    near = get_close_matches(name.partition(":")[0].lower(), ["generated"], cutoff=0.7)
    if near and not Path(name).exists():
        raise unknown("data", name.partition(":")[0], near)
    if (existing(data) / MANIFEST).is_file():
        return open_store(existing(data))
    return prepare(data, any_images=True, progress=progress)


def existing(source: str | Path) -> Path:
    """The path of a source that is there; else UserError."""
    try:
        path = Path(source).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError, RuntimeError):  # the last: a home of nobody
        raise UserError(f"there is no file or folder {source}") from None
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror or error}") from None
    return path


@dataclass(frozen=True, eq=False)
class _Found:
    """What a source holds: its images in canonical order, which data set they are, what differs from CIFAR-10."""

    content: Canonical
    name: str
    verdict: str | None


def _prepare_source(source: Path, any_images: bool, progress: Progress) -> Store:
    if (source / MANIFEST).is_file():
        store = open_store(source)
        images = Images({split: store.split(split) for split in SPLITS}, store.classes)
        found = _Found(canonical(images, progress), store.name, None)
    else:
        found = _read(source, progress)
    return _keep(_accepted(found, source, any_images), progress)


def _prepare_download(url: str | None, any_images: bool, progress: Progress) -> Store:
    """Download, read and keep; a file that is not CIFAR-10 counts as an address that failed."""
    read: list[_Found] = []
    any_images = any_images and url is not None

    def check(archive: Path) -> None:
        read.append(_accepted(_read(archive, progress), archive, any_images))

    addresses = ((url,) if url else ()) + known.ADDRESSES
    try:
        archive = download(addresses, data_home() / "downloads", progress=progress, check=check)
    except UserError as error:
        raise UserError(
            f"{error}; plainres prepare SOURCE takes a CIFAR-10 archive or folder that you have, "
            "--url ADDRESS another place to download it from"
        ) from None
    store = _keep(read[-1], progress)
    archive.unlink(missing_ok=True)  # the store holds all of it
    return store


def _read(source: Path, progress: Progress) -> _Found:
    """Read a source, whatever it is, by what is in it."""
    checks = known.Checks()
    images = _images(source, checks, progress)
    content = canonical(images, progress)
    name = _name(content.hash, source, checks, images)
    if name == "CIFAR-10":  # names may be missing or in another language; the labels are right
        content = replace(content, images=Images(images.splits, known.CIFAR10_CLASSES))
    return _Found(content, name, checks.verdict())


def _images(source: Path, checks: known.Checks, progress: Progress) -> Images:
    try:
        if source.is_dir():
            if batch_files(source):
                return read_folder(source, checks, progress)
            if is_picture_folder(source):
                return read_pictures(source, progress)
            if parquet_files(source):
                return read_parquet(source, progress)
            raise UserError(
                f"{source} holds no images that plainres knows: expected data_batch_1.bin or data_batch_1, "
                "train/CLASS/x.png, or train-*.parquet"
            )
        with source.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror or error}") from None
    if start.startswith(_GZIP):
        return read_archive(source, checks, progress)
    if start == _PARQUET:
        return read_parquet(source, progress)
    raise UserError(f"{source} is neither a .tar.gz archive nor a parquet file; expected one, or a folder")


def _name(found: str, source: Path, checks: known.Checks, images: Images) -> str:
    """Which data set it is; CIFAR-100 by its files, or where they have no checksum by its archive."""
    if found == known.CIFAR10_HASH:
        return "CIFAR-10"
    if checks.whole(known.CIFAR100_PYTHON):
        return "CIFAR-100"
    if len(images.classes) == 100 and source.is_file():
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        return known.ARCHIVES.get(digest, "images")
    return "images"


def _accepted(found: _Found, source: Path, any_images: bool) -> _Found:
    """What was found, refused unless it is CIFAR-10 or `any_images`."""
    if found.name != "CIFAR-10" and not any_images:
        why = f": {found.verdict}" if found.verdict else ""
        raise UserError(
            f"{source} is not CIFAR-10 (store hash {found.content.hash[:12]}){why}; "
            "use --any-images to prepare it anyway"
        )
    return found


def _keep(found: _Found, progress: Progress) -> Store:
    """The store of what was found: the one that is there, else a new one."""
    ten = found.name == "CIFAR-10"
    path = data_home() / ("cifar10" if ten else f"{found.name.lower()}-{found.content.hash[:12]}")
    try:
        return open_store(path)
    except UserError:  # not there, or damaged
        return write_canonical(found.content, path, found.name, progress)
