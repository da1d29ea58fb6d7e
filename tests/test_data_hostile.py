"""Pickles and archives that mean harm, and files that are cut off or altered."""

import gzip
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from making import archive, binary_folder, parquet_folder, picture, picture_folder, python_folder
from plainres.data import known, pictures
from plainres.data.archive import members
from plainres.data.batches import read_archive, read_folder
from plainres.data.folder import read_pictures
from plainres.data.parquet import read_parquet
from plainres.data.prepare import prepare
from plainres.data.records import no_progress
from plainres.data.unpickle import Array, unpickle
from plainres.errors import UserError


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
U1 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
ATTACKS = {
    "system": pickle.dumps({"data": Calls(os.system, "touch HARM")}),
    "eval": pickle.dumps(Calls(eval, "open('HARM', 'w')"), 2),
    "nested": pickle.dumps([Calls(map, Calls(getattr, Calls(__import__, "os"), "system"), ["touch HARM"])]),
    "old opcodes": b"cos\nsystem\n(S'touch HARM'\ntR.",
    "instance": b"(S'touch HARM'\nios\nsystem\n.",
    "object": b"\x80\x02cposix\nsystem\nU\x0atouch HARM\x85\x81.",
    "persistent": b"Pid\n.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile.x\x93.",
    "name that is no string": b"\x80\x04K\x01K\x02\x93.",
    "call of an array": b"\x80\x02}" + ARRAY + b"U\x01x\x85R.",
    "object dtype": b"\x80\x02cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.",
    "state of a dict": b"\x80\x02}}b.",
    "huge string": b"\x80\x02T\xff\xff\xff\x7fabc.",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"abc.",
    "huge shape": b"\x80\x02" + ARRAY + b"(K\x01(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft" + U1 + b"\x89U\x01xtb.",
    "negative shape": b"\x80\x02" + ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + U1 + b"\x89U\x01xtb.",
    "memo bomb": b"\x80\x02}r\xff\xff\xff\xffj\xfe\xff\xff\xff.",
    "key that is no name": b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
    "huge number": b"I" + b"9" * 10_000 + b"\n.",
    "empty stack": b"\x80\x02R.",
    "no mark": b"\x80\x02]e.",
    "no end": b"\x80\x02}",
    "empty": b"",
    "no pickle": b"\xff\xfe\xfd",
    "a list": pickle.dumps([1, 2]),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_pickles_are_refused_in_one_line(attack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data_batch_1") as caught:
        unpickle(ATTACKS[attack], "data_batch_1")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_lists_of_shared_lists_are_not_spread_out(tmp_path):
    """Two times the same list, 60 deep: 2^60 numbers for whoever makes an array of it."""
    folder = python_folder(tmp_path / "py")
    labels: list = [1]
    for _ in range(60):
        labels = [labels, labels]
    body = {"data": np.zeros((2, 3072), np.uint8), "labels": labels}
    (folder / "test_batch").write_bytes(pickle.dumps(body, 2))
    with pytest.raises(UserError, match="test_batch has no 'labels'"):
        read_folder(folder)


def test_plain_values_and_integer_arrays_are_read():
    value = {"a": [1, -2, 2**70, 1.5, True, None, "ü", b"b", (1, (2,), {"k": []})], b"c": bytearray(b"x")}
    for protocol in range(6):
        # Protocol 2 and older spell bytes as calls, 4 and older spell a bytearray so.
        body = value if protocol == 5 else {"a": value["a"][:6]}
        assert unpickle(pickle.dumps(body, protocol), "x")["a"] == body["a"]
    for protocol in (2, 4, 5):
        for array in (np.arange(6, dtype=">i2").reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))):
            found = unpickle(pickle.dumps({"x": array}, protocol), "x")["x"]
            assert isinstance(found, Array)
            np.testing.assert_array_equal(found.value, array)


def python_batch(tmp_path, **changes):
    folder = python_folder(tmp_path / "py", protocol=2)
    content = {"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1, 2], **changes}
    (folder / "data_batch_2").write_bytes(pickle.dumps(content, 2))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((3, 3071), np.uint8)}, "no 'data' of shape"),
        ({"data": np.zeros((3, 3072), np.int64)}, "no 'data' of shape"),
        ({"data": "x"}, "no 'data' of shape"),
        ({"labels": [0, 1]}, "3 images and 2 labels"),
        ({"labels": [0, 1, [2]]}, "no 'labels'"),
        ({"labels": [0, 1, 2**80]}, "no 'labels'"),
        ({"labels": [0, 1, 10]}, "record 2 has label 10, expected 0 to 9"),
        ({"labels": [0, -1, 0]}, "record 1 has label -1"),
    ],
)
def test_altered_batches(changes, message, tmp_path):
    with pytest.raises(UserError, match=f"data_batch_2.*{message}"):
        read_folder(python_batch(tmp_path, **changes))


def tar_of(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, body in entries:
            info.size = len(body) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(body))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("/etc/data_batch_1.bin")], "outside"),
        ([entry("a/../../data_batch_1.bin")], "outside"),
        ([entry("C:\\data_batch_1.bin")], "outside"),
        ([entry("data_batch_1.bin", tarfile.SYMTYPE, "/etc/passwd")], "link or device"),
        ([entry("data_batch_1.bin", tarfile.LNKTYPE, "x")], "link or device"),
        ([entry("data_batch_1.bin", tarfile.CHRTYPE)], "link or device"),
        ([entry("data_batch_1.bin", tarfile.FIFOTYPE)], "link or device"),
        ([entry("a/data_batch_1.bin"), entry("a/./data_batch_1.bin")], "comes twice"),
        ([entry("a/data_batch_1.bin"), entry("b/data_batch_2.bin")], "two data sets"),
        ([entry("a/data_batch_1.bin"), entry("a/data_batch_2")], "two data sets"),
        ([entry("readme.txt")], "no CIFAR batch files"),
    ],
)
def test_attack_archives_are_refused(entries, message, tmp_path):
    path = tar_of(tmp_path / "x.tar.gz", *((info, bytes(3073)) for info in entries))
    with pytest.raises(UserError, match=message):
        read_archive(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar.gz"]


def header_only(path: Path, name: str, size: int, kind: bytes = tarfile.REGTYPE) -> Path:
    info = entry(name, kind)
    info.size = size
    path.write_bytes(gzip.compress(info.tobuf() + bytes(1024)))
    return path


def test_declared_sizes_are_not_believed(tmp_path):
    with pytest.raises(UserError, match="more than"):
        read_archive(header_only(tmp_path / "a.tar.gz", "data_batch_1.bin", 2**40))
    with pytest.raises(UserError, match=r"found 1,024 bytes of data_batch_1.bin, expected 30,730,000"):
        read_archive(header_only(tmp_path / "b.tar.gz", "data_batch_1.bin", 30_730_000))
    with pytest.raises(UserError, match="impossible size"):
        read_archive(header_only(tmp_path / "c.tar.gz", "x", 2**30, tarfile.XHDTYPE))


def test_archives_that_are_cut_off_or_damaged(tmp_path):
    whole = archive(binary_folder(tmp_path / "cifar-10-batches-bin"), tmp_path / "x.tar.gz").read_bytes()
    cut = tmp_path / "cut.tar.gz"
    for share in (0.3, 0.6, 0.9, 0.999):
        cut.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=r"cut.tar.gz.* is cut off"):
            read_archive(cut)
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 255
    cut.write_bytes(altered)
    with pytest.raises(UserError, match=r"cut\.tar\.gz"):
        read_archive(cut)
    cut.write_bytes(b"\x1f\x8b" + b"nothing" * 9)
    with pytest.raises(UserError, match=r"no .tar.gz archive"):
        read_archive(cut)


def test_content_of_other_members_is_not_read(tmp_path):
    path = tar_of(tmp_path / "x.tar.gz", (entry("a"), b"1"), (entry("b"), b"2"))
    assert list(members(path, lambda name: name == "b", no_progress)) == [("b", b"2")]


def test_binary_files_that_are_cut_off_or_altered(tmp_path):
    folder = binary_folder(tmp_path / "bin")
    body = bytearray((folder / "data_batch_2.bin").read_bytes())
    (folder / "data_batch_2.bin").write_bytes(body[:-1])
    with pytest.raises(UserError, match=r"data_batch_2.bin is cut off.*found 30,729 bytes, expected.*30,730"):
        read_folder(folder)
    body[3073 * 4] = 10
    (folder / "data_batch_2.bin").write_bytes(body)
    with pytest.raises(UserError, match=r"data_batch_2.bin: record 4 has label 10, expected 0 to 9"):
        read_folder(folder)
    (folder / "batches.meta.txt").write_text("cat\ndog\n")
    body[3073 * 4] = 9
    (folder / "data_batch_2.bin").write_bytes(body)
    with pytest.raises(UserError, match=r"record 2 has label 2, expected 0 to 1"):
        read_folder(folder)


def test_a_label_above_99(tmp_path):
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(bytes([0, 100]) + bytes(3072))
    with pytest.raises(UserError, match="record 0 has label 100, expected 0 to 99"):
        read_folder(tmp_path)


def test_a_missing_split(tmp_path):
    folder = binary_folder(tmp_path / "bin")
    (folder / "test_batch.bin").unlink()
    with pytest.raises(UserError, match="no test images"):
        read_folder(folder)


def test_published_files_that_differ_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAINRES_DATA", str(tmp_path / "home"))
    folder = binary_folder(tmp_path / "bin")
    with pytest.raises(UserError, match=r"data_batch_1.bin has 30,730,000 bytes, this one 30,730"):
        prepare(folder)
    same = {p.name: known.Published("sha256", "0" * 64, p.stat().st_size) for p in folder.glob("*.bin")}
    monkeypatch.setattr(known, "VERSIONS", (same,))
    with pytest.raises(UserError, match=rf"published data_batch_1.bin has SHA-256 {'0' * 64}, this one \w{{64}}"):
        prepare(folder)
    assert not (tmp_path / "home").exists()


def test_a_missing_published_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAINRES_DATA", str(tmp_path / "home"))
    import hashlib

    folder = binary_folder(tmp_path / "bin")
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.bin")}
    monkeypatch.setattr(known, "VERSIONS", ({n: known.Published("sha256", s) for n, s in sums.items()},))
    (folder / "data_batch_5.bin").unlink()
    with pytest.raises(UserError, match=r"not CIFAR-10 .*: data_batch_5.bin is missing"):
        prepare(folder)


def test_pictures_that_cannot_be_used(tmp_path):
    large = io.BytesIO()
    Image.new("RGB", (33, 32)).save(large, "PNG")
    deep = io.BytesIO()
    Image.new("I;16", (32, 32)).save(deep, "PNG")
    good = picture(np.zeros((3, 32, 32), np.uint8))
    folder = picture_folder(tmp_path / "pictures")
    for body, message in (
        (large.getvalue(), "33x32 pixels, expected 32x32"),
        (deep.getvalue(), "8 bits"),
        (b"GIF89a", "no PNG or JPEG"),
        (good[:60], "cannot be decoded|no PNG"),
        (good[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + good[24:], "odd.png"),
        (bytes(pictures.LIMIT + 1), "no PNG or JPEG"),
    ):
        (folder / "train" / "class3" / "odd.png").write_bytes(body)
        with pytest.raises(UserError, match=message) as caught:
            read_pictures(folder)
        assert "odd.png" in str(caught.value)


def test_picture_folders_that_do_not_agree(tmp_path):
    folder = picture_folder(tmp_path / "p")
    (folder / "train" / "class1").rename(folder / "train" / "klass1")
    with pytest.raises(UserError, match="class 'class1' is in test but not in train"):
        read_pictures(folder)
    (folder / "test" / "x.png").write_bytes(b"")
    (folder / "train" / "klass1").rename(folder / "train" / "class1")
    with pytest.raises(UserError, match=r"x.png is in no class"):
        read_pictures(folder)
    with pytest.raises(UserError, match="no folder 'train'"):
        read_pictures(tmp_path)


def test_parquet_that_cannot_be_used(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "train.parquet"
    cell = {"bytes": picture(np.zeros((3, 32, 32), np.uint8))}
    for table, message in (
        ({"text": ["a"]}, "columns text; expected img or image"),
        ({"img": [cell], "label": [300]}, "label 300"),
        ({"img": [cell], "label": ["cat"]}, "other than numbers"),
        ({"img": [{"bytes": b"no"}], "label": [1]}, "row 0 is no PNG or JPEG"),
        ({"img": [None], "label": [1]}, "row 0 has no picture"),
        ({"img": [cell], "label": [1]}, "no test images"),
        ({"img": [cell], "label": [1], "split": ["dev"]}, "column split holds 'dev'"),
    ):
        parquet.write_table(pyarrow.table(table), path)
        with pytest.raises(UserError, match=message):
            read_parquet(path)
    path.rename(tmp_path / "x.parquet")
    parquet.write_table(pyarrow.table({"img": [cell], "label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="neither train nor test"):
        read_parquet(tmp_path / "x.parquet")
    folder = parquet_folder(tmp_path / "cut")
    file = folder / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read_parquet(folder)
