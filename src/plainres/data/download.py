"""A download that survives broken connections and slow servers."""

import errno
import http.client
import time
import urllib.error
from collections.abc import Callable, Sequence
from pathlib import Path

from plainres.data.records import Progress, no_progress
from plainres.data.transfer import Limits, Pace, Part, Slow, attempt, check_address
from plainres.errors import UserError

_FAILURES = (OSError, http.client.HTTPException, ValueError)


def download(
    addresses: Sequence[str],
    folder: Path,
    *,
    progress: Progress = no_progress,
    limits: Limits | None = None,
    check: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Fetch the first address that gives a whole file fast enough, into `folder`; the file's path.

    When all that work are slow, the fastest of them is taken. A download that was broken goes on where it
    stopped, in this call or a later one; until it is whole, its name ends in .part. `check` is called with
    the file and raises UserError to have it removed and the next address tried. UserError when none is left.
    """
    limits = limits or Limits()
    for url in addresses:
        check_address(url)
    with _Disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        whole = _first(addresses, folder, progress, limits, check)
        for url in addresses:
            Part(url, folder).remove()  # what the addresses that were left had brought
        return whole


def _first(
    addresses: Sequence[str], folder: Path, progress: Progress, limits: Limits, check: Callable[[Path], None]
) -> Path:
    failed: list[str] = []
    slow: dict[str, float] = {}
    for url in addresses:
        try:
            return _fetch(url, folder, progress, limits, check, patient=False)
        except Slow as error:
            slow[url] = error.rate
        except UserError as error:
            failed.append(f"{url}: {error}")
    for url in sorted(slow, key=lambda url: -slow[url]):
        try:
            return _fetch(url, folder, progress, limits, check, patient=True)
        except UserError as error:
            failed.append(f"{url}: {error}")
    raise UserError(f"nothing could be downloaded ({'; '.join(failed)})")


class _Disk:
    """What this disk refuses ends the download: another address would not help."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if full:  # partial files would keep the disk full
                for part in self.folder.glob("*.part*"):
                    part.unlink()
            what = "no space left on the disk" if full else f"cannot be written: {error.strerror or error}"
            raise UserError(f"{self.folder}: {what}; PLAINRES_DATA sets another folder") from None


def _fetch(
    url: str,
    folder: Path,
    progress: Progress,
    limits: Limits,
    check: Callable[[Path], None],
    *,
    patient: bool,
) -> Path:
    """One address, again and again as long as it brings something: the whole file, checked."""
    part, pace = Part(url, folder), Pace(url, limits, progress, patient)
    idle = 0
    while True:
        before = part.size()
        try:
            if attempt(url, part, pace):
                break
            what = "the connection broke"
        except _FAILURES as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
                raise
            reason = getattr(error, "reason", error)
            if isinstance(error, urllib.error.HTTPError):
                reason = f"{error.code} {error.reason}"
                if error.code < 500 and error.code not in (408, 429):  # it will not change its mind
                    raise UserError(reason) from None
            if isinstance(reason, TimeoutError) and not patient:
                raise Slow(0.0) from None
            what = str(reason) or type(error).__name__
        idle = 0 if part.size() > before else idle + 1
        if idle >= limits.attempts:
            raise UserError(what)
        time.sleep(limits.pause)
    part.path.replace(part.whole)
    part.remove()
    try:
        check(part.whole)
    except UserError:
        part.whole.unlink(missing_ok=True)
        raise
    return part.whole
