"""The Python version of CIFAR: pickled dicts of an array and lists."""

import numpy as np

from plainres.data.records import IMAGE_BYTES, Pixels, check_labels
from plainres.data.unpickle import Array, unpickle
from plainres.errors import UserError


def parse_batch(body: bytes, classes: int, where: str) -> tuple[Pixels, Pixels]:
    """Images (n, 3072) and labels (n,) of one file: `data` and `labels`, or `fine_labels` of 100 classes."""
    content = unpickle(body, where)
    data = content.get("data")
    images = data.value if isinstance(data, Array) else None
    if images is None or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != IMAGE_BYTES:
        raise UserError(f"{where} has no 'data' of shape (n, {IMAGE_BYTES}), uint8")
    key = "fine_labels" if classes > 10 else "labels"
    found = content.get(key)
    if isinstance(found, Array) and found.value is not None and found.value.ndim == 1:
        labels = found.value
    elif isinstance(found, list) and all(type(n) is int and -(2**31) < n < 2**31 for n in found):
        labels = np.array(found, np.int64)
    else:
        raise UserError(f"{where} has no '{key}', a list of numbers")
    if len(labels) != len(images) or not len(images):
        raise UserError(f"{where} has {len(images):,} images and {len(labels):,} labels")
    check_labels(labels, classes, where)
    return images.astype(np.uint8, copy=False), labels.astype(np.uint8)


def parse_names(body: bytes, classes: int, where: str) -> tuple[str, ...]:
    """The class names of batches.meta or meta."""
    names = unpickle(body, where).get("fine_label_names" if classes > 10 else "label_names")
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise UserError(f"{where} has no list of class names")
    return tuple(name.decode("latin-1") if isinstance(name, bytes) else name for name in names)
