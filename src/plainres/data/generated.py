"""The built-in data set `generated`: ten kinds of emblem on changing backgrounds, drawn from a seed.

It is for demonstrations, tests and machines without a network; errors on it say nothing about CIFAR-10. A
class is an outline and a pattern of colors. An image shows its class at some place, width, height, tint and
direction, before a background of its own, over a fainter emblem of another class, under noise. All of it is
integer arithmetic on the words of streams.py, so that every machine draws the same bytes.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plainres import files, streams
from plainres.data.batches import read_folder
from plainres.data.binary import write_binary
from plainres.data.known import Checks
from plainres.data.prepare import data_home
from plainres.data.records import SIDE, Images, Pixels, Split, no_progress
from plainres.data.store import Store, open_store, write_store
from plainres.errors import UserError, unknown
from plainres.streams import Stream

NAME = "generated"
VERSION = 1  # of the drawing: with another, stores of this one are not opened
CLASSES = tuple(f"emblem {letter}" for letter in "ABCDEFGHIJ")

Integers = NDArray[np.int32]
Places = NDArray[np.int64]
Words = NDArray[np.uint64]

# The words of one image: choices (the other emblem's class, the background's color, then eight each for the
# other emblem and its own), knots of the background, noise. Words are eight bytes.
_CHOICES = 20
_KNOTS = 4
_BACKGROUND_WORDS = 4 * _KNOTS * _KNOTS // 8
_IMAGE_WORDS = _CHOICES + _BACKGROUND_WORDS + 3 * SIDE * SIDE // 8
_FIRST_WORD = {"train": 2**40, "test": 2**41}  # far apart: no count makes one split run into the other
_CHUNK = 250  # images drawn together: bounds memory, changes nothing

# Set by trial: ten passes over 5,000 images at a learning rate of 0.1 leave resnet20 about 10 % test error, and
# plain56 still at chance. A fainter pattern or a stronger second emblem makes it harder, and slower to begin.
_CELL = 64  # emblems are stored at 64x64 and sampled
_OUTLINE_KNOTS, _PATTERN_KNOTS = 6, 5
_SIZES = (13, 26)  # width and height of an emblem in pixels, each chosen on its own
_MARGIN = 3  # how far an emblem may lie outside the image, in pixels
_COVER, _OTHER_COVER = 232, 140  # of 256: how far an emblem hides what is behind it
_PATTERN = 55  # a pattern's largest distance from its emblem's tint, in gray levels
_TINTS, _BASES = (56, 200), (48, 208)  # the colors of emblems and of backgrounds
_NOISE = 3  # 15 times this is the largest noise, in gray levels


@dataclass(frozen=True)
class Request:
    """How much to draw, and from which seed."""

    train: int = 5_000
    test: int = 1_000
    seed: int = 0


_LIMITS = {"train": (10, 1_000_000), "test": (10, 1_000_000), "seed": (0, 2**64 - 1)}


def generated_store(description: str = NAME) -> Store:
    """Open the store that a description names (see `parse`), drawn and written first where it is not there.

    The images go the way of real ones: written in the binary layout, read by its reader, put in canonical
    order.
    """
    wanted = parse(description)
    folder = f"{NAME}-v{VERSION}-train{wanted.train}-test{wanted.test}-seed{wanted.seed}"
    try:
        return open_store(data_home() / folder)
    except UserError:  # not there, or damaged
        return write_store(_as_read(wanted), data_home() / folder, NAME)


def parse(description: str) -> Request:
    """Read `generated`, `generated:5000` or `generated:train=5000,test=1000,seed=0`; else UserError."""
    name, _, settings = description.partition(":")
    if name != NAME:
        raise unknown("data", name, [NAME])
    given: dict[str, int] = {}
    for number, item in enumerate(settings.split(",") if settings else []):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals and number == 0:
            key, value = "train", key
        if key not in _LIMITS:
            raise unknown("setting of generated data", key, _LIMITS)
        if key in given:
            raise UserError(f"'{description}' gives {key} twice")
        given[key] = _whole(key, value)
    return Request(**given)


def draw(count_train: int, count_test: int, seed: int) -> Images:
    """Draw both splits, pixels and labels uint8, classes equally often.

    The emblems follow from the seed alone, and image i of a split from the seed and i: a smaller set is the
    beginning of a larger one.
    """
    counts = {"train": count_train, "test": count_test}
    return Images({split: _draw_split(split, count, seed) for split, count in counts.items()}, CLASSES)


def _as_read(wanted: Request) -> Images:
    """The images, after a way through files in the binary layout."""
    try:
        data_home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=data_home()) as folder:
            write_binary(Path(folder), draw(wanted.train, wanted.test, wanted.seed))
            return read_folder(Path(folder), Checks(), no_progress)
    except OSError as error:
        raise files.refused(error, data_home()) from error


def _whole(key: str, value: str) -> int:
    low, high = _LIMITS[key]
    if not re.fullmatch(r"[0-9]{1,20}", value) or not low <= int(value) <= high:
        raise UserError(f"generated data: {key} must be a whole number from {low:,} to {high:,}, not '{value}'")
    return int(value)


def _draw_split(split: str, count: int, seed: int) -> Split:
    emblems = _emblems(seed)
    images = np.empty((count, 3, SIDE, SIDE), np.uint8)
    labels = (np.arange(count) % len(CLASSES)).astype(np.uint8)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        first, size = _FIRST_WORD[split] + start * _IMAGE_WORDS, (stop - start) * _IMAGE_WORDS
        drawn = streams.words(seed, Stream.GENERATED, first, size).reshape(-1, _IMAGE_WORDS)
        images[start:stop] = _paint(emblems, labels[start:stop].astype(np.int64), drawn)
    return Split(images, labels, np.full(count, -1, np.int64))


def _emblems(seed: int) -> Integers:
    """Cover (0 to 256), then three color offsets, of every class: (4, classes, cell, cell)."""
    outlines = len(CLASSES) * _OUTLINE_KNOTS**2
    patterns = len(CLASSES) * 3 * _PATTERN_KNOTS**2
    drawn = _bytes(streams.words(seed, Stream.GENERATED, 0, (outlines + patterns + 7) // 8)[None])[0]
    outline = drawn[:outlines].reshape(-1, _OUTLINE_KNOTS, _OUTLINE_KNOTS)
    pattern = drawn[outlines : outlines + patterns].reshape(3, -1, _PATTERN_KNOTS, _PATTERN_KNOTS)
    middle = 2 * np.arange(_CELL, dtype=np.int32) - (_CELL - 1)
    distance = (middle[:, None] ** 2 + middle**2) * 256 // (_CELL - 2) ** 2  # from the middle, 256 at the rim
    cover = np.clip((_interpolate(outline, _CELL) - distance) * 8, 0, 256) * (distance < 256)
    offsets = np.clip((_interpolate(pattern, _CELL) - 128) * 6, -_PATTERN, _PATTERN)  # patches, soft edges
    return np.concatenate([cover[None], offsets])


def _paint(emblems: Integers, labels: Places, drawn: Words) -> Pixels:
    """One image for each label and row of words."""
    choices, knots, noise = np.split(drawn, [_CHOICES, _CHOICES + _BACKGROUND_WORDS], axis=1)
    other = (labels + 1 + streams.integers(len(CLASSES) - 1, choices[:, 0])) % len(CLASSES)
    canvas = _background(choices[:, 1:4], _bytes(knots))
    canvas = _stamp(canvas, emblems, other, choices[:, 4:12], _OTHER_COVER)
    canvas = _stamp(canvas, emblems, labels, choices[:, 12:20], _COVER)
    grain = _bytes(noise).reshape(canvas.shape)
    canvas += ((grain >> 4) + (grain & 15) - 15) * _NOISE  # two nibbles: a triangle around zero
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _background(color_words: Words, knots: Integers) -> Integers:
    """A color of the image's own under soft light and a little soft color: (N, 3, side, side)."""
    soft = _interpolate(knots.reshape(-1, 4, _KNOTS, _KNOTS), SIDE) - 128
    return _color(color_words, _BASES) + soft[:, :1] * 5 // 8 + soft[:, 1:] * 3 // 8


def _stamp(canvas: Integers, emblems: Integers, kinds: Places, choices: Words, cover: int) -> Integers:
    """The canvas with emblem `kinds[i]` on image i, at the size, place, direction and tint of its choices."""
    across, down = _samples(choices[:, 0], choices[:, 1]), _samples(choices[:, 2], choices[:, 3])
    mirrored = streams.integers(2, choices[:, 4])[:, None] == 1
    across = np.where(mirrored, _CELL - 1 - across, across)
    where = ((kinds[:, None] * _CELL + down) * _CELL)[:, :, None] + across[:, None, :]
    hides, *offsets = (plane.reshape(-1)[where] for plane in emblems)
    color = _color(choices[:, 5:8], _TINTS) + np.stack(offsets, axis=1)
    change: Integers = ((color - canvas) * (hides[:, None] * cover)) >> 16
    return canvas + change


def _samples(size_words: Words, place_words: Words) -> Places:
    """Which row (or column) of its emblem lies under each pixel of an image: (N, side)."""
    low, high = _SIZES
    size = low + streams.integers(high - low + 1, size_words)
    room = SIDE - size + 2 * _MARGIN
    start = (streams.integers(1 << 16, place_words) * room >> 16) - _MARGIN
    middles = 2 * np.arange(SIDE) + 1 - 2 * start[:, None]  # of pixels, in half pixels
    return np.clip(middles * _CELL // (2 * size[:, None]), 0, _CELL - 1)  # the rim of an emblem is empty


def _color(drawn: Words, limits: tuple[int, int]) -> Integers:
    """A color for each row of three words: (N, 3, 1, 1)."""
    low, high = limits
    return (low + streams.integers(high - low, drawn)).astype(np.int32)[:, :, None, None]


def _interpolate(knots: Integers, size: int) -> Integers:
    """The last two axes of `knots` stretched to size x size, bilinear in eight-bit fixed point."""
    last = knots.shape[-1] - 1
    place = np.arange(size, dtype=np.int32) * (last * 256) // (size - 1)
    low = np.minimum(place >> 8, last - 1)
    part = place - (low << 8)
    rows = knots[..., low, :] * (256 - part)[:, None] + knots[..., low + 1, :] * part[:, None]
    both: Integers = (rows[..., low] * (256 - part) + rows[..., low + 1] * part) >> 16
    return both


def _bytes(drawn: Words) -> Integers:
    """The bytes of each row of words, the lowest first on every machine."""
    return np.ascontiguousarray(drawn, dtype="<u8").view(np.uint8).astype(np.int32)
