"""The members of a .tar.gz, read one after the other and never written to disk."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from plainres.data.records import Progress
from plainres.errors import UserError

FILE_LIMIT = 256 << 20
"""The most bytes of one file: CIFAR-100's largest has 155 million."""
_TOTAL_LIMIT = 1 << 30
_MEMBER_LIMIT = 10_000  # tarfile keeps a note of each
_CHUNK = 1 << 20


class _Unzipped(gzip.GzipFile):
    """A gzip stream that gives little at a time: a tar header may ask for as much as it likes."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= 8 * _CHUNK:
            raise tarfile.ReadError("a header of impossible size")
        return super().read(size)


def members(path: Path, wanted: Callable[[str], bool], progress: Progress) -> Iterator[tuple[str, bytes]]:
    """Name and content of each wanted file of an archive, in its order.

    Whatever is no plain file or folder inside the archive's own folder, comes twice or is too large is a
    UserError, and so is an archive that is cut off or damaged.
    """
    size = path.stat().st_size
    seen: set[str] = set()
    try:
        with path.open("rb") as raw, _Unzipped(fileobj=raw) as unzipped:
            tar = tarfile.open(fileobj=unzipped, mode="r:")  # noqa: SIM115 (it closes nothing of its own)
            for member in tar:
                _check(member, seen, path)
                if member.isreg() and wanted(member.name):
                    yield member.name, _content(tar, member, unzipped, path)
                progress(f"reading {path.name}", raw.tell(), size)
            while unzipped.read(_CHUNK):  # to the checksum at its end
                if unzipped.tell() > _TOTAL_LIMIT:
                    raise UserError(f"{path}: more than {_TOTAL_LIMIT:,} bytes")
    except EOFError:
        raise UserError(f"{path} is cut off: it ends within its {size:,} bytes; fetch it again") from None
    except (tarfile.TarError, zlib.error, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged, or no .tar.gz archive: {error}") from None


def _check(member: tarfile.TarInfo, seen: set[str], path: Path) -> None:
    """Refuse what no archive of images holds."""
    name = member.name[:200]
    pure = PurePosixPath(member.name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or ":" in name.split("/")[0]:
        raise UserError(f"{path}: '{name}' lies outside the archive's folder; refused")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise UserError(f"{path}: '{name}' is a link or device, not a file; refused")
    if not 0 <= member.size <= FILE_LIMIT or member.offset_data + member.size > _TOTAL_LIMIT:
        raise UserError(f"{path}: '{name}' has {member.size:,} bytes, more than {FILE_LIMIT:,}; refused")
    if member.isreg() and str(pure) in seen:
        raise UserError(f"{path}: '{name}' comes twice; refused")
    seen.add(str(pure))
    if len(seen) > _MEMBER_LIMIT:
        raise UserError(f"{path}: more than {_MEMBER_LIMIT:,} files; refused")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, unzipped: _Unzipped, path: Path) -> bytes:
    """The bytes of one member, taken piece by piece: what its header declares is not believed."""
    body = io.BytesIO()
    unzipped.seek(member.offset_data)
    try:
        while left := member.size - body.tell():
            piece = unzipped.read(min(left, _CHUNK))
            if not piece:
                raise EOFError
            body.write(piece)
    except EOFError:
        raise UserError(
            f"{path} is cut off: found {body.tell():,} bytes of {member.name}, expected {member.size:,}; fetch it again"
        ) from None
    return body.getvalue()
