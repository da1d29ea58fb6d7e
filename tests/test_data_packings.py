"""The same images give the same store, whatever they are packed in."""

import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from making import (
    CLASSES,
    archive,
    binary_folder,
    parquet_folder,
    picture,
    picture_folder,
    python_folder,
    small_images,
)
from plainres.data.batches import kind, read_archive, read_folder
from plainres.data.canonical import canonical
from plainres.data.folder import read_pictures
from plainres.data.parquet import read_parquet
from plainres.data.prepare import prepare
from plainres.data.records import Images, Split
from plainres.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAINRES_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def reversed_images() -> Images:
    images = small_images()
    parts = {s: Split(x.images[::-1], x.labels[::-1], x.index[::-1]) for s, x in images.splits.items()}
    return replace(images, splits=parts)


PACKINGS = {
    "binary": binary_folder,
    "binary, other order": lambda path: binary_folder(path, reversed_images()),
    "binary archive": lambda path: archive(binary_folder(path), path.with_suffix(".tar.gz")),
    "python 2": python_folder,
    "python archive": lambda path: archive(python_folder(path), path.with_suffix(".tgz")),
    "python, protocol 2": lambda path: python_folder(path, protocol=2),
    "python, protocol 4": lambda path: python_folder(path, protocol=4),
    "python, protocol 5": lambda path: python_folder(path, protocol=5),
    "pictures": picture_folder,
    "parquet": parquet_folder,
    "parquet, image": lambda path: parquet_folder(path, column="image"),
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_packing_gives_the_same_store(packing, tmp_path):
    if "parquet" in packing:
        pytest.importorskip("pyarrow")
    source = PACKINGS[packing](tmp_path / "source")
    store = prepare(source, any_images=True)
    assert store.hash == canonical(small_images()).hash
    assert (store.name, store.classes, store.counts) == ("images", CLASSES, {"train": 50, "test": 20})
    assert store.new
    assert not prepare(source, any_images=True).new


def test_published_index_is_kept_over_files_in_any_order(tmp_path):
    images = small_images()
    folder = binary_folder(tmp_path / "a", images)
    path = tmp_path / "odd.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("test_batch.bin", "data_batch_4.bin", "data_batch_1.bin", "data_batch_5.bin"):
            tar.add(folder / name, name)
        for name in ("data_batch_3.bin", "data_batch_2.bin"):
            tar.add(folder / name, name)
    train = read_archive(path).splits["train"]
    assert train.index.tolist()[:11] == [*range(30, 40), 0]
    np.testing.assert_array_equal(images.splits["train"].images[train.index], train.images)
    assert canonical(read_archive(path)).hash == canonical(images).hash


def test_index_is_unknown_for_pictures(tmp_path):
    split = read_pictures(picture_folder(tmp_path / "p")).splits["train"]
    assert set(split.index.tolist()) == {-1}


@pytest.mark.parametrize("count", [5, 7])
def test_writer_and_reader_agree(count, tmp_path):
    images = small_images(count, 3)
    read = read_folder(binary_folder(tmp_path / "a", images))
    for name, split in images.splits.items():
        np.testing.assert_array_equal(read.splits[name].images, split.images)
        np.testing.assert_array_equal(read.splits[name].labels, split.labels)
        np.testing.assert_array_equal(read.splits[name].index, split.index)
    assert read.classes == CLASSES


def cifar100(folder: Path, version: str) -> Path:
    images = small_images(200, 100, tuple(f"fine{i}" for i in range(100)))
    folder.mkdir()
    for name, split in images.splits.items():
        data, fine = split.images.reshape(-1, 3072), split.labels
        if version == "binary":
            rows = np.concatenate([fine[:, None] // 5, fine[:, None], data], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            import pickle

            body = {"fine_labels": fine.tolist(), "coarse_labels": (fine // 5).tolist(), "data": data}
            (folder / name).write_bytes(pickle.dumps(body, 2))
    if version == "binary":
        (folder / "fine_label_names.txt").write_text("\n".join(images.classes) + "\n")
        (folder / "coarse_label_names.txt").write_text("fish\n")
    else:
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(images.classes)}, 2))
    return folder


@pytest.mark.parametrize("version", ["binary", "python"])
def test_cifar100_comes_through_the_same_path(version, tmp_path):
    folder = cifar100(tmp_path / version, version)
    expected = small_images(200, 100, tuple(f"fine{i}" for i in range(100)))
    for source in (folder, archive(folder, tmp_path / "a.tar.gz")):
        store = prepare(source, any_images=True)
        assert store.hash == canonical(expected).hash
        assert store.classes == expected.classes
    with pytest.raises(UserError, match=r"not CIFAR-10 .*--any-images"):
        prepare(folder)


def test_one_parquet_file_with_a_split_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = parquet_folder(tmp_path / "two")
    tables = [parquet.read_table(path) for path in sorted(folder.iterdir())]
    named = [
        t.append_column("split", pyarrow.array([s] * len(t))) for t, s in zip(tables, ("test", "train"), strict=True)
    ]
    parquet.write_table(pyarrow.concat_tables(named), tmp_path / "one.parquet")
    assert canonical(read_parquet(tmp_path / "one.parquet")).hash == canonical(small_images()).hash


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'plainres\[parquet\]'"):
        prepare(tmp_path / "train.parquet")


def test_gray_and_palette_pictures_become_rgb(tmp_path):
    from PIL import Image

    for mode in ("L", "P", "RGBA", "1"):
        for split in ("train", "test"):
            (tmp_path / split / "a").mkdir(parents=True, exist_ok=True)
            Image.new(mode, (32, 32), 1).save(tmp_path / split / "a" / f"{mode}.png")
    (tmp_path / "train" / ".hidden").write_text("skipped")
    (tmp_path / "train" / "a" / ".hidden").write_text("skipped")
    images = read_pictures(tmp_path)
    assert images.splits["train"].images.shape == (4, 3, 32, 32)
    assert images.splits["train"].images[0].max() in (1, 255)


def test_jpeg_is_read(tmp_path):
    pixels = np.full((3, 32, 32), 100, np.uint8)
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "x.jpg").write_bytes(picture(pixels, "JPEG"))
    assert abs(int(read_pictures(tmp_path).splits["test"].images.mean()) - 100) < 3


def test_names_of_batch_files():
    assert kind("data_batch_3.bin").number == 3
    assert kind("test_batch").binary is False
    assert kind("train").classes == 100
    assert kind("._data_batch_1") is kind("readme.html") is kind("data_batch_1.bin.bak") is None
