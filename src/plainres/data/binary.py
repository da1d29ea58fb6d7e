"""The binary layout of CIFAR, read and written.

A record is one byte of label (CIFAR-100: a coarse and a fine one), then 1,024 bytes each of red, green and
blue, row by row (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from pathlib import Path

import numpy as np

from plainres.data.records import IMAGE_BYTES, Images, Pixels, Split, check_labels
from plainres.errors import UserError

_PARTS = 5  # as published


def parse_records(body: bytes, classes: int, where: str) -> tuple[Pixels, Pixels]:
    """Images (n, 3072) and labels (n,) of one file, as views of `body`; `classes` is 10 or 100.

    A size that is no whole number of records, or a label too large, is a UserError that names `where`.
    """
    labels_each = 2 if classes > 10 else 1
    record = labels_each + IMAGE_BYTES
    if len(body) % record or not body:
        whole = (len(body) // record + 1) * record
        raise UserError(
            f"{where} is cut off or altered: found {len(body):,} bytes, expected a multiple of {record:,} "
            f"such as {whole:,}"
        )
    records = np.frombuffer(body, np.uint8).reshape(-1, record)
    labels = records[:, labels_each - 1]
    check_labels(labels, classes, where)
    return records[:, labels_each:], labels


def parse_names(body: bytes, where: str) -> tuple[str, ...]:
    """The class names of batches.meta.txt or fine_label_names.txt, one a line."""
    try:
        lines = body.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not a list of class names: {error.reason}") from None
    return tuple(line.strip() for line in lines if line.strip())


def write_binary(folder: Path, images: Images) -> None:
    """Write images of at most ten classes as data_batch_*.bin, test_batch.bin and batches.meta.txt in `folder`.

    The training images go into five equal files where they can, else into one; splits keep their order.
    """
    if len(images.classes) > 10:
        raise ValueError(f"the layout holds ten classes, not {len(images.classes)}")
    folder.mkdir(parents=True, exist_ok=True)
    train = images.splits["train"]
    parts = _PARTS if len(train) % _PARTS == 0 else 1
    size = len(train) // parts
    for part in range(parts):
        _write_records(folder / f"data_batch_{part + 1}.bin", train, slice(part * size, (part + 1) * size))
    _write_records(folder / "test_batch.bin", images.splits["test"], slice(None))
    (folder / "batches.meta.txt").write_text("\n".join(images.classes) + "\n\n", encoding="utf-8")


def _write_records(path: Path, split: Split, rows: slice) -> None:
    labels = split.labels[rows]
    pixels = split.images[rows].reshape(len(labels), IMAGE_BYTES)
    path.write_bytes(np.concatenate([labels[:, None], pixels], axis=1).tobytes())
