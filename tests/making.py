"""Small data sets in every packing, made for the tests."""

import io
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from plainres.data.binary import write_binary
from plainres.data.records import Images, Split

CLASSES = tuple(f"class{i}" for i in range(10))
FEATURES = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}


def small_images(train: int = 50, test: int = 20, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Images:
    """Random images; every class occurs in both splits."""
    drawn = np.random.default_rng(seed)
    splits = {}
    for name, count in (("train", train), ("test", test)):
        pixels = drawn.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        labels = (np.arange(count) % len(classes)).astype(np.uint8)
        splits[name] = Split(pixels, labels, np.arange(count))
    return Images(splits, classes)


def binary_folder(folder: Path, images: Images | None = None) -> Path:
    write_binary(folder, images or small_images())
    return folder


def python2_batch(data: np.ndarray, labels: list[int], key: str = "labels") -> bytes:
    """A batch as Python 2 wrote it: the pixels are one string."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\t(K\x01J"
        + struct.pack("<i", len(data))
        + b"M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ"
        + b"\xff\xff\xff\xffK\x00tb\x89T"
    )
    return b"".join(
        [
            b"\x80\x02}q\x01(",
            b"U" + bytes([len(key)]) + key.encode() + b"]q\x05(",
            *(b"K" + bytes([label]) for label in labels),
            b"eU\x04dataq\x06",
            array + struct.pack("<I", data.size) + data.tobytes() + b"tbu.",
        ]
    )


def python_folder(folder: Path, images: Images | None = None, protocol: int | None = None) -> Path:
    """The Python version, two training batches: as Python 2 wrote it, or pickled here with `protocol`."""
    images = images or small_images()
    folder.mkdir(parents=True, exist_ok=True)
    train, test = images.splits["train"], images.splits["test"]
    half = len(train) // 2
    parts = [("data_batch_1", train, slice(half)), ("data_batch_2", train, slice(half, None))]
    for name, split, rows in [*parts, ("test_batch", test, slice(None))]:
        data, labels = split.images[rows].reshape(-1, 3072), split.labels[rows].tolist()
        content = {"data": data, "labels": labels, "filenames": ["x.png"] * len(labels)}
        body = python2_batch(data, labels) if protocol is None else pickle.dumps(content, protocol)
        (folder / name).write_bytes(body)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(images.classes)}, 2))
    return folder


def picture(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    body = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(body, kind)
    return body.getvalue()


def picture_folder(folder: Path, images: Images | None = None) -> Path:
    images = images or small_images()
    for name, split in images.splits.items():
        for i, (pixels, label) in enumerate(zip(split.images, split.labels, strict=True)):
            place = folder / name / images.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i}.png").write_bytes(picture(pixels))
    return folder


def parquet_folder(folder: Path, images: Images | None = None, column: str = "img") -> Path:
    import pyarrow
    import pyarrow.parquet

    images = images or small_images()
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in images.splits.items():
        cells = [{"bytes": picture(pixels), "path": None} for pixels in split.images[::-1]]
        table = pyarrow.table({column: cells, "label": split.labels[::-1].astype(int)})
        table = table.replace_schema_metadata({"huggingface": json.dumps(FEATURES)})
        pyarrow.parquet.write_table(table, folder / f"{name}-00000-of-00001.parquet")
    return folder


def archive(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.add(folder, arcname=folder.name)
    return path
