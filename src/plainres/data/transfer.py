"""One request for a file: where it starts, how fast it goes, and whether it is whole."""

import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from plainres.data.records import Progress
from plainres.errors import UserError

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Limits:
    """When an address is given up: under `bytes_per_second` for `seconds`, or more than `most` bytes in all."""

    bytes_per_second: float = 200_000.0
    seconds: float = 20.0
    attempts: int = 5  # in a row that bring nothing
    pause: float = 1.0  # between attempts
    most: int = 1 << 30


class Slow(Exception):
    """An address that stays under the limit; its rate in bytes a second."""

    def __init__(self, rate: float) -> None:
        super().__init__(f"slow: {rate / 1000:.0f} kB/s")
        self.rate = rate


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        try:
            check_address(newurl)
        except UserError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_address(url: str) -> None:
    """Only https is fetched; plain http from this machine alone. UserError otherwise."""
    try:
        parts = urlsplit(url)
        good = (parts.scheme == "https" and bool(parts.hostname)) or (parts.scheme == "http" and _local(url))
    except ValueError:
        good = False
    if not good:
        raise UserError(f"{url}: only https addresses are fetched")


def _local(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


class Part:
    """The file of one address while it grows, and beside it what the server said of its version."""

    def __init__(self, url: str, folder: Path) -> None:
        name = re.sub(r"[^\w.-]", "_", unquote(Path(urlsplit(url).path).name))[-100:].lstrip(".") or "download"
        # The address is in the name: two mirrors may hold different bytes under one name.
        key = hashlib.sha256(url.encode()).hexdigest()[:8]
        self.whole = folder / name
        self.path = folder / f"{name}.{key}.part"
        self.note = folder / f"{name}.{key}.part.json"

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> str | None:
        """The ETag or date of the version begun, None where the server gave none."""
        with suppress(OSError, ValueError, AttributeError):
            found = json.loads(self.note.read_text()).get("version")
            return found if isinstance(found, str) and found.isprintable() else None
        return None

    def begin(self, headers: Any) -> None:
        etag = headers.get("ETag", "")
        version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
        self.note.write_text(json.dumps({"version": version}))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


class Pace:
    """Watches the rate of one address over all its connections, and reports progress."""

    def __init__(self, url: str, limits: Limits, progress: Progress, patient: bool) -> None:
        parts = urlsplit(url)
        self.what = f"downloading {Path(parts.path).name} from {parts.hostname}"
        self.limits, self.progress, self.patient = limits, progress, patient
        self.since, self.bytes = time.monotonic(), 0

    def add(self, count: int, done: int, total: int | None) -> None:
        self.progress(self.what, done, total or 0)
        self.bytes += count
        passed = time.monotonic() - self.since
        if passed >= self.limits.seconds:
            rate = self.bytes / passed
            if not self.patient and rate < self.limits.bytes_per_second:
                raise Slow(rate)
            self.since, self.bytes = time.monotonic(), 0


def attempt(url: str, part: Part, pace: Pace) -> bool:
    """One request, from where the part ends. True when the file is whole."""
    have = part.size()
    headers = {"User-Agent": "plainres"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version := part.version():
            headers["If-Range"] = version
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (check_address was here)
    direct = [urllib.request.ProxyHandler({})] if _local(url) else []
    opener = urllib.request.build_opener(_Redirects(), *direct)
    try:
        response = opener.open(request, timeout=pace.limits.seconds)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416:
                raise
            # Nothing is left to send: the part is whole, or of another version.
            if error.headers.get("Content-Range", "") == f"bytes */{have}":
                return True
        part.remove()
        return False
    with response:
        start, total = _extent(response, have)
        if start != have:
            part.remove()
        if start == 0:
            part.begin(response.headers)
        if total is not None and total > pace.limits.most:
            raise UserError(f"{total:,} bytes, more than {pace.limits.most:,}; refused")
        return _receive(response, part, start, total, pace)


def _extent(response: Any, have: int) -> tuple[int, int | None]:
    """Where the answer starts in the file, and the file's size where the server says it."""
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            raise ValueError("the server sent another range than the one asked for")
        return have, None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _receive(response: Any, part: Part, start: int, total: int | None, pace: Pace) -> bool:
    done = start
    with part.path.open("ab") as file:
        try:
            while piece := response.read1(_CHUNK):
                file.write(piece)
                done += len(piece)
                if done > pace.limits.most:
                    raise UserError(f"more than {pace.limits.most:,} bytes; refused")
                pace.add(len(piece), done, total)
        finally:
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done > total:
        part.remove()
        return False
    return total is None or done == total
