"""Downloads from servers on this machine that break, stall, lie or redirect."""

import errno
import os
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from making import archive, binary_folder, small_images
from plainres.data import download as download_module
from plainres.data import known, prepare, store, transfer
from plainres.data.canonical import canonical
from plainres.data.download import download
from plainres.data.transfer import Limits, Part, check_address
from plainres.errors import UserError

QUICK = Limits(bytes_per_second=200_000, seconds=0.15, attempts=2, pause=0.0)
STEADY = Limits(bytes_per_second=1, seconds=5, attempts=2, pause=0.0)  # calls no server slow
BODY = bytes(range(256)) * 2000  # 512,000 bytes


class Server:
    """What a server does: `body`, and how it serves it."""

    def __init__(self, body=BODY, **how):
        self.body, self.how, self.ranges = body, how, []

    def answer(self, request):
        how, wanted = self.how, request.headers.get("Range")
        self.ranges.append(wanted)
        if "status" in how:
            return request.send_error(how["status"])
        if "redirect" in how:
            request.send_response(302)
            request.send_header("Location", how["redirect"])
            return request.end_headers()
        start = int(wanted[6:-1]) if wanted and how.get("resumes", True) else 0
        changed = request.headers.get("If-Range") not in (None, how.get("etag"))
        start = 0 if changed else start
        if start >= len(self.body):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.body)}")
            return request.end_headers()
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(how.get("length", len(self.body) - start)))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        if "etag" in how:
            request.send_header("ETag", how["etag"])
        request.end_headers()
        return self.send(request, self.body[start : start + how.get("breaks_after", len(self.body))])

    def send(self, request, body):
        rate = self.how.get("rate")
        for at in range(0, len(body), 4096):
            request.wfile.write(body[at : at + 4096])
            if rate:
                time.sleep(4096 / rate)
        time.sleep(self.how.get("hangs", 0))


@contextmanager
def serving(**servers):
    """Addresses by name, each answered by its server; `url(name)` gives one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            try:
                servers[self.path.split("/")[1]].answer(self)
            except OSError:
                self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield lambda name: f"http://127.0.0.1:{server.server_address[1]}/{name}/cifar.tar.gz"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file(tmp_path):
    seen = []
    with serving(a=Server()) as url:
        path = download([url("a")], tmp_path, limits=STEADY, progress=lambda *x: seen.append(x))
    assert path.read_bytes() == BODY
    assert names(tmp_path) == ["cifar.tar.gz"]
    assert seen[-1] == ("downloading cifar.tar.gz from 127.0.0.1", len(BODY), len(BODY))


@pytest.mark.parametrize("etag", [{}, {"etag": '"v1"'}])
def test_a_broken_download_is_resumed(etag, tmp_path):
    broken = Server(breaks_after=200_000, **etag)
    with serving(a=broken) as url:
        assert download([url("a")], tmp_path, limits=STEADY).read_bytes() == BODY
    assert broken.ranges == [None, "bytes=200000-", "bytes=400000-"]


def test_a_later_call_goes_on_where_an_earlier_one_stopped(tmp_path):
    server = Server(etag='"v1"', breaks_after=100_000)

    def stop(what, done, total):
        if done == 100_000:
            raise KeyboardInterrupt

    with serving(a=server) as url:
        with pytest.raises(KeyboardInterrupt):
            download([url("a")], tmp_path, limits=STEADY, progress=stop)
        assert all(".part" in name for name in names(tmp_path))
        server.how = {"etag": '"v1"'}
        assert download([url("a")], tmp_path, limits=STEADY).read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-"]


@pytest.mark.parametrize("how", [{"resumes": False}, {"etag": '"v2"'}])
def test_a_server_that_cannot_resume_starts_again(how, tmp_path):
    with serving(a=Server(**how)) as url:
        part = Part(url("a"), tmp_path)
        part.path.write_bytes(b"of another version")
        part.note.write_text('{"version": "\\"v1\\""}')
        assert download([url("a")], tmp_path, limits=STEADY).read_bytes() == BODY


@pytest.mark.parametrize("part", [BODY, BODY + b"too much"])
def test_a_part_that_is_whole_or_too_long(part, tmp_path):
    with serving(a=Server()) as url:
        Part(url("a"), tmp_path).path.write_bytes(part)
        assert download([url("a")], tmp_path, limits=STEADY).read_bytes() == BODY
    assert names(tmp_path) == ["cifar.tar.gz"]


def test_the_next_address_is_tried_when_one_fails(tmp_path):
    with serving(a=Server(status=404), b=Server(status=503), c=Server(breaks_after=0), d=Server()) as url:
        path = download([url(name) for name in "abcd"], tmp_path, limits=STEADY)
    assert path.read_bytes() == BODY


def test_a_slow_address_is_left(tmp_path):
    slow = Server(rate=50_000)
    with serving(slow=slow, fast=Server()) as url:
        begun = time.monotonic()
        assert download([url("slow"), url("fast")], tmp_path, limits=QUICK).read_bytes() == BODY
    assert time.monotonic() - begun < 2
    assert names(tmp_path) == ["cifar.tar.gz"]
    assert len(slow.ranges) == 1


def test_a_stalled_address_is_left(tmp_path):
    with serving(stalled=Server(breaks_after=50_000, hangs=0.5), fast=Server()) as url:
        assert download([url("stalled"), url("fast")], tmp_path, limits=QUICK).read_bytes() == BODY


def test_the_fastest_is_taken_when_all_are_slow(tmp_path):
    body = bytes(60_000)
    servers = {"a": Server(body, rate=40_000), "b": Server(body, rate=160_000), "c": Server(body, rate=40_000)}
    with serving(**servers) as url:
        assert download([url(name) for name in "abc"], tmp_path, limits=QUICK).read_bytes() == body
    assert [len(servers[name].ranges) for name in "abc"] == [1, 2, 1]
    assert servers["b"].ranges[1].startswith("bytes=")


def test_when_nothing_works_every_address_is_named(tmp_path):
    with (
        serving(a=Server(status=404), b=Server(breaks_after=0)) as url,
        pytest.raises(UserError, match=r"/a/cifar.*: 404 Not Found; .*/b/cifar.*: the connection broke"),
    ):
        download([url("a"), url("b")], tmp_path, limits=STEADY)
    assert "cifar.tar.gz" not in names(tmp_path)


@pytest.mark.parametrize("url", ["http://example.org/x", "file:///etc/passwd", "ftp://x/y", "x", "https://[", ""])
def test_only_https_is_fetched(url, tmp_path):
    with pytest.raises(UserError, match="only https"):
        download([url], tmp_path)
    check_address("https://example.org/x.tar.gz")


@pytest.mark.parametrize("target", ["http://example.org/x", "https://", "ftp://localhost/x"])
def test_redirects_to_other_schemes_are_refused(target, tmp_path):
    with serving(a=Server(redirect=target)) as url, pytest.raises(UserError, match="only https"):
        download([url("a")], tmp_path, limits=STEADY)


def test_too_large_files_are_refused(tmp_path):
    limits = Limits(most=100_000, attempts=1, pause=0)
    with serving(a=Server()) as url, pytest.raises(UserError, match="512,000 bytes, more than 100,000"):
        download([url("a")], tmp_path, limits=limits)


def test_a_full_disk_ends_the_download_and_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(transfer.os, "fsync", full)
    other = Server()
    with serving(a=Server(), b=other) as url, pytest.raises(UserError, match="no space left on the disk"):
        download([url("a"), url("b")], tmp_path, limits=STEADY)
    assert names(tmp_path) == []
    assert other.ranges == []


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """An archive that passes for CIFAR-10, and downloads that are quick."""
    monkeypatch.setenv("PLAINRES_DATA", str(tmp_path / "home"))
    monkeypatch.setattr(known, "CIFAR10_HASH", canonical(small_images()).hash)
    monkeypatch.setattr(store, "CIFAR10_HASH", known.CIFAR10_HASH)
    monkeypatch.setattr(download_module, "Limits", lambda: STEADY)
    return archive(binary_folder(tmp_path / "b"), tmp_path / "x.tar.gz").read_bytes()


def test_prepare_downloads_checks_and_keeps(cifar, tmp_path, monkeypatch):
    altered = archive(binary_folder(tmp_path / "c", small_images(seed=1)), tmp_path / "y.tar.gz").read_bytes()
    with serving(cut=Server(cifar[:-999]), other=Server(altered), good=Server(cifar)) as url:
        monkeypatch.setattr(known, "ADDRESSES", (url("other"), url("good")))
        kept = prepare.prepare(url=url("cut"))
    assert (kept.name, kept.new) == ("CIFAR-10", True)
    assert list((tmp_path / "home" / "downloads").iterdir()) == []
    assert not prepare.prepare().new


def test_prepare_says_what_else_can_be_done(cifar, monkeypatch):
    with serving(a=Server(status=500)) as url:
        monkeypatch.setattr(known, "ADDRESSES", (url("a"),))
        with pytest.raises(UserError, match=r"500.*prepare SOURCE.*--url"):
            prepare.find_store()
