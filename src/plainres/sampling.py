"""Which image, which crop, which mirror: the draws of any stretch of steps."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plainres import streams
from plainres.streams import Stream


@dataclass(frozen=True)
class Draws:
    """What `count` consecutive images of the endless training stream are.

    `index` (count,): positions in the training part; `crop` (count, 2): the first row and column of the crop in
    the padded image; `flip` (count,): whether it is mirrored. All int64, `flip` 0 or 1.
    """

    index: NDArray[np.int64]
    crop: NDArray[np.int64]
    flip: NDArray[np.int64]


def draw(seed: int, images: int, start: int, count: int, *, pad: int, flip: bool) -> Draws:
    """The draws of images number `start` to `start + count` of the stream over a training part of `images`."""
    offsets = 2 * pad + 1
    crop = streams.integers(offsets**2, streams.words(seed, Stream.CROP, start, count))
    flips = streams.words(seed, Stream.FLIP, start, count) >> np.uint64(63)
    return Draws(
        index=order(seed, images, start, count),
        crop=np.stack([crop // offsets, crop % offsets], axis=1),
        flip=flips.astype(np.int64) if flip else np.zeros(count, dtype=np.int64),
    )


def order(seed: int, images: int, start: int, count: int) -> NDArray[np.int64]:
    """Positions number `start` to `start + count` of the endless stream of permutations of [0, images)."""
    passes = range(start // images, (start + count - 1) // images + 1)
    permutations = [streams.permutation(seed, Stream.ORDER, p, images) for p in passes]
    skipped = start - passes.start * images
    return np.concatenate(permutations)[skipped : skipped + count]
