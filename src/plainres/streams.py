"""Random words from counters.

Every random choice is a pure function of (seed, stream, position): nothing is drawn "next", so a run can be
entered at any step, and two processes can draw their shares of one batch. The words are those of Philox 4x64
with ten rounds (Salmon et al. 2011), which NumPy and others implement alike; everything made of them here is
made by integer arithmetic and a stable sort, so that no library's next version can change a run.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_WORDS_PER_COUNT = 4  # Philox 4x64 turns one counter into four words


class Stream(IntEnum):
    """The independent streams of one seed."""

    INITIALIZATION = 1
    ORDER = 2
    CROP = 3
    FLIP = 4
    GENERATED = 5
    DROPOUT = 6  # the seeds of PyTorch's generator, for networks from outside that draw from it


def words(seed: int, stream: int, start: int, count: int) -> NDArray[np.uint64]:
    """Words `start` to `start + count` of a stream: uint64 of shape (count,). Seeds are 0 to 2^64 - 1."""
    skipped = start % _WORDS_PER_COUNT
    # NumPy's Philox steps its counter before the first word: one behind gives the block wanted.
    counter = (start // _WORDS_PER_COUNT - 1) % 2**256
    generator = np.random.Philox(counter=counter, key=(stream << 64) | seed)
    return np.asarray(generator.random_raw(skipped + count)[skipped:], dtype=np.uint64)


def integers(below: int, drawn: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Each word as an integer in [0, below), below < 2^31: equally likely to within below / 2^32."""
    return (((drawn >> np.uint64(32)) * np.uint64(below)) >> np.uint64(32)).astype(np.int64)


def permutation(seed: int, stream: int, draw: int, size: int) -> NDArray[np.int64]:
    """Permutation number `draw` of [0, size): the stable sort of `size` words."""
    return np.argsort(words(seed, stream, draw * size, size), kind="stable")


def uniforms(drawn: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Each word as a float64 in (0, 1): the middle of one of 2^52 equal cells, never 0 or 1."""
    return ((drawn >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def normals(seed: int, stream: int, start: int, count: int) -> NDArray[np.float32]:
    """Standard normal variates number `start` to `start + count` (`start` even), by Box and Muller.

    Worked in float64 and rounded to float32, so that the last bit of a machine's log and cos does not show.
    """
    pairs = (count + 1) // 2
    first, second = uniforms(words(seed, stream, start, 2 * pairs)).reshape(pairs, 2).T
    radius, angle = np.sqrt(-2.0 * np.log(first)), 2.0 * np.pi * second
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return both.reshape(-1)[:count].astype(np.float32)
