"""The store: canonical, whole or not at all, checked when it is opened; and what prepare makes of a source."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from making import binary_folder, picture_folder, small_images
from plainres.data import canonical as canonical_module
from plainres.data import known, prepare, store
from plainres.data.canonical import canonical
from plainres.data.records import Images, Split
from plainres.data.store import open_store, write_store
from plainres.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAINRES_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def test_arrays_are_sorted_and_complete(tmp_path):
    import hashlib

    images = small_images()
    kept = write_store(images, tmp_path / "s", "images").split("train")
    digests = [hashlib.sha256(image.tobytes()).digest() for image in kept.images]
    assert digests == sorted(digests)
    np.testing.assert_array_equal(images.splits["train"].images[kept.index], kept.images)
    np.testing.assert_array_equal(images.splits["train"].labels[kept.index], kept.labels)
    assert (kept.images.dtype, kept.labels.dtype, kept.index.dtype) == ("u1", "u1", "i8")
    with pytest.raises(ValueError, match="read-only"):
        kept.images[0] = 0


def test_hash_is_known(tmp_path):
    """Golden: another hash would part every store and result from those made before."""
    pixels = (np.arange(3 * 3072) % 251).astype(np.uint8).reshape(3, 3, 32, 32)
    split = Split(pixels, np.array([0, 1, 1], np.uint8), np.arange(3))
    images = Images({"train": split, "test": split}, ("a", "b"))
    assert canonical(images).hash == "3a265fbc7ad2a600ef7e61285ba32acaea6f10c2629eece7b615ef757cdbd7eb"


def test_hash_is_of_images_and_labels_alone():
    one = small_images()
    train = one.splits["train"]
    names = Images(one.splits, tuple("abcdefghij"))
    unknown = Split(train.images, train.labels, np.full(len(train), -1))
    assert canonical(names).hash == canonical(one).hash
    assert canonical(Images({**one.splits, "train": unknown}, one.classes)).hash == canonical(one).hash
    other = Split(train.images, train.labels[::-1], train.index)
    assert canonical(Images({**one.splits, "train": other}, one.classes)).hash != canonical(one).hash


def test_equal_images_are_ordered_by_label_then_index():
    pixels = np.zeros((4, 3, 32, 32), np.uint8)
    split = Split(pixels, np.array([1, 0, 1, 0], np.uint8), np.array([3, 2, 1, 0]))
    assert canonical(Images({"train": split, "test": split}, ("a", "b"))).orders["train"].tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("name", ["train_images", "train_index", "test_labels"])
def test_a_damaged_store_names_the_file(name, tmp_path):
    path = write_store(small_images(), tmp_path / "s", "images").path
    file = path / f"{name}.npy"
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)
    with pytest.raises(UserError, match=rf"{name}.npy does not have the content.*plainres prepare again"):
        open_store(path)
    file.write_bytes(body[:-1])
    with pytest.raises(UserError, match=rf"{name}.npy has [\d,]+ bytes, expected"):
        open_store(path)
    file.unlink()
    with pytest.raises(UserError, match=rf"{name}.npy is missing"):
        open_store(path)


@pytest.mark.parametrize(
    "change",
    [
        {"hash": "0" * 64},
        {"name": "CIFAR-10"},
        {"name": 3},
        {"classes": None},
        {"counts": {"train": 49, "test": 20}},
        {"bytes": {"../x": 3}},
        {"format": 99},
    ],
)
def test_a_manifest_that_does_not_fit(change, tmp_path):
    path = write_store(small_images(), tmp_path / "s", "images").path
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(UserError, match=r"prepare again"):
        open_store(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is no manifest"):
        open_store(path)
    with pytest.raises(UserError, match="no prepared store"):
        open_store(tmp_path)


def test_arrays_that_could_hold_objects_are_not_loaded(tmp_path):
    path = write_store(small_images(), tmp_path / "s", "images").path
    np.save(path / "train_labels.npy", np.array([{}], object), allow_pickle=True)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["bytes"]["train_labels"] = (path / "train_labels.npy").stat().st_size
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"train_labels.npy"):
        open_store(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_behind(code, home, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(code, os.strerror(code))

    source = binary_folder(tmp_path / "b")
    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(UserError, match=r"no space left on the disk; the store needs 1 MiB"):
        prepare.prepare(source, any_images=True)
    assert list(home.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLAINRES_DATA", str(tmp_path / "file" / "x"))
    with pytest.raises(UserError, match="cannot write"):
        prepare.prepare(binary_folder(tmp_path / "b"), any_images=True)


def test_an_older_store_is_replaced_and_a_damaged_one_mended(home, tmp_path):
    source = binary_folder(tmp_path / "b")
    first = prepare.prepare(source, any_images=True)
    (first.path / "test_labels.npy").write_bytes(b"")
    assert prepare.prepare(source, any_images=True).new
    assert open_store(first.path) == first
    assert [path.name for path in home.iterdir()] == [first.path.name]


def make_known(monkeypatch, images=None):
    monkeypatch.setattr(known, "CIFAR10_HASH", canonical(images or small_images()).hash)
    monkeypatch.setattr(store, "CIFAR10_HASH", known.CIFAR10_HASH)


def test_cifar10_is_recognised_in_any_packing(home, tmp_path, monkeypatch):
    make_known(monkeypatch)
    kept = prepare.prepare(picture_folder(tmp_path / "p"))
    assert (kept.name, kept.path, kept.new) == ("CIFAR-10", home / "cifar10", True)
    assert kept.classes == known.CIFAR10_CLASSES
    assert not prepare.prepare(binary_folder(tmp_path / "b")).new
    assert not prepare.prepare().new
    assert prepare.find_store(None) == kept == prepare.find_store(kept.path)
    assert not kept.generated


def test_a_store_is_a_source(tmp_path):
    kept = write_store(small_images(), tmp_path / "s", "images")
    with pytest.raises(UserError, match="not CIFAR-10"):
        prepare.prepare(kept.path)
    again = prepare.prepare(kept.path, any_images=True)
    assert (again.hash, again.new) == (kept.hash, True)


def test_find_store_takes_any_source(tmp_path):
    source = binary_folder(tmp_path / "b")
    assert prepare.find_store(source).new
    assert not prepare.find_store(str(source)).new


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("genrated", "did you mean 'generated'"),
        ("Generatd:5", "did you mean 'generated'"),
        ("nowhere/at/all", "there is no file or folder nowhere/at/all"),
    ],
)
def test_data_that_is_not_there(name, message):
    with pytest.raises(UserError, match=message):
        prepare.find_store(name)


def test_sources_that_are_nothing(tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UserError, match="holds no images that plainres knows"):
        prepare.prepare(tmp_path)
    with pytest.raises(UserError, match=r"neither a .tar.gz archive nor a parquet file"):
        prepare.prepare(tmp_path / "x.txt")
    with pytest.raises(UserError, match="no file or folder"):
        prepare.prepare(tmp_path / "y")
    with pytest.raises(UserError, match="not both"):
        prepare.prepare(tmp_path, url="https://example.org/x")


def test_data_home(monkeypatch, tmp_path):
    assert prepare.data_home() == tmp_path / "home"
    monkeypatch.delenv("PLAINRES_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepare.data_home() == tmp_path / "plainres"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert prepare.data_home() == tmp_path / "me" / ".cache" / "plainres"


def test_progress_is_reported(tmp_path):
    seen = []
    prepare.prepare(binary_folder(tmp_path / "b"), any_images=True, progress=lambda *x: seen.append(x))
    assert {what for what, _, _ in seen} == {"reading b", "sorting the images", "writing the store"}
    assert all(0 <= done <= total for _, done, total in seen)


def test_splits_larger_than_a_piece(tmp_path, monkeypatch):
    whole = canonical(small_images()).hash
    monkeypatch.setattr(canonical_module, "_ROWS", 7)
    assert canonical(small_images()).hash == whole
    assert open_store(write_store(small_images(), tmp_path / "s", "images").path).hash == whole


def test_preparing_needs_no_torch():
    code = "import sys, plainres.data.prepare; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
