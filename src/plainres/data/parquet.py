"""Parquet as Hugging Face keeps image sets: columns `img` or `image` with {bytes}, and `label`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plainres.data import pictures
from plainres.data.records import (
    IMAGE_BYTES,
    MOST_CLASSES,
    SPLITS,
    Gathered,
    Images,
    Pixels,
    Progress,
    both_splits,
    check_labels,
    no_progress,
)
from plainres.errors import UserError

_ROWS = 1000  # decoded together, to bound memory
_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading parquet needs pyarrow: pip install 'plainres[parquet]'") from None
    return pyarrow, pyarrow.parquet


def parquet_files(source: Path) -> list[Path]:
    """The parquet files of a source: itself, or those in it and one or two folders below; may be empty."""
    if source.is_file():
        return [source]
    found = {path for pattern in ("*", "*/*", "*/*/*") for path in source.glob(f"{pattern}.parquet")}
    return sorted(path for path in found if not path.name.startswith("."))


def read_parquet(source: Path, progress: Progress = no_progress) -> Images:
    """The images of a parquet file with a column `split`, or of a folder of train-* and test-* files.

    Class names come from the Hugging Face metadata, else they are the numbers. Needs the extra [parquet].
    """
    pyarrow, parquet = _pyarrow()
    files = parquet_files(source)
    splits = {split: Gathered() for split in SPLITS}
    names: tuple[str, ...] = ()
    highest = done = 0
    try:
        tables = [(path, parquet.ParquetFile(path, memory_map=False)) for path in files]
        total = sum(table.metadata.num_rows for _, table in tables)
        for path, table in tables:
            names = names or _class_names(table.schema_arrow)
            for split, images, labels in _batches(path, table, source):
                highest = max(highest, int(labels.max(initial=0)))
                splits[split].add(images, labels, number=0, name=str(path))
                done += len(labels)
                progress(f"reading {source.name}", done, total)
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{source} cannot be read as parquet: {what}") from None
    classes = names or tuple(map(str, range(highest + 1)))
    train, test = (splits[split].split(len(classes), ordered=False) for split in SPLITS)
    return both_splits(train, test, classes, str(source))


def _batches(path: Path, table: Any, source: Path) -> Iterator[tuple[str, Pixels, Pixels]]:
    """Split, images (n, 3072) and labels (n,) of a file, some rows at a time."""
    have = table.schema_arrow.names
    image = next((name for name in _IMAGE_COLUMNS if name in have), None)
    label = next((name for name in _LABEL_COLUMNS if name in have), None)
    if image is None or label is None:
        raise UserError(f"{path} has columns {', '.join(have)}; expected img or image, and label")
    whole = None if "split" in have else _split_of(path, source)
    columns = [image, label] + ([] if whole else ["split"])
    row = 0
    for batch in table.iter_batches(_ROWS, columns=columns):
        cells, labels = batch.column(image).to_pylist(), _labels(batch.column(label), path)
        images = np.empty((len(cells), IMAGE_BYTES), np.uint8)
        for i, cell in enumerate(cells):
            images[i] = pictures.decode(_body(cell, f"{path}: row {row + i}"), f"{path}: row {row + i}")
        row += len(cells)
        if whole:
            yield whole, images, labels
            continue
        of = np.array([str(value) for value in batch.column("split").to_pylist()])
        for split in dict.fromkeys(of.tolist()):
            if split not in SPLITS:
                raise UserError(f"{path}: column split holds '{split}', expected train or test")
            yield split, images[of == split], labels[of == split]


def _split_of(path: Path, source: Path) -> str:
    """The split that a file's name, or the folder it lies in, says."""
    parts = [path.name] if path == source else list(path.relative_to(source).parts)[::-1]
    for part in parts:
        for split in SPLITS:
            if part.lower().startswith(split):
                return split
    raise UserError(f"{path} is neither train nor test by its name, and has no column 'split'")


def _labels(column: Any, path: Path) -> Pixels:
    labels = column.to_pylist()
    if not all(type(n) is int and abs(n) < 2**31 for n in labels):
        raise UserError(f"{path}: column label holds something other than numbers")
    found = np.array(labels, np.int64)
    check_labels(found, MOST_CLASSES, str(path))
    return found.astype(np.uint8)


def _body(cell: object, where: str) -> bytes:
    body = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(body, bytes) or len(body) > pictures.LIMIT:
        raise UserError(f"{where} has no picture in it")
    return body


def _class_names(schema: Any) -> tuple[str, ...]:
    """The names that Hugging Face's metadata gives, else nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        label = next(features[name] for name in _LABEL_COLUMNS if name in features)
        names = label["names"]
    except (KeyError, TypeError, ValueError, StopIteration):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) and len(names) <= MOST_CLASSES else ()
