import hashlib

import numpy as np
import pytest

from plainres import streams
from plainres.streams import Stream

_M0, _M1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_W0, _W1 = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_MASK = 2**64 - 1


def philox(counter: int, seed: int, stream: int) -> list[int]:
    """Philox 4x64-10 written from the paper: an implementation that is not NumPy's."""
    c, k = [counter >> (64 * i) & _MASK for i in range(4)], [seed, stream]
    for _ in range(10):
        first, second = _M0 * c[0], _M1 * c[2]
        c = [(second >> 64) ^ c[1] ^ k[0], second & _MASK, (first >> 64) ^ c[3] ^ k[1], first & _MASK]
        k = [(k[0] + _W0) & _MASK, (k[1] + _W1) & _MASK]
    return c


@pytest.mark.parametrize(("seed", "stream"), [(0, Stream.ORDER), (7, Stream.CROP), (2**64 - 1, Stream.FLIP)])
def test_words_are_philox(seed: int, stream: Stream) -> None:
    expected = [word for counter in range(5) for word in philox(counter, seed, stream)]
    assert streams.words(seed, stream, 0, 20).tolist() == expected


def test_words_can_be_entered_anywhere() -> None:
    whole = streams.words(3, Stream.ORDER, 0, 100)
    for start in (0, 1, 4, 7, 50, 99):
        assert np.array_equal(streams.words(3, Stream.ORDER, start, 100 - start), whole[start:])


def test_streams_and_seeds_differ() -> None:
    drawn = [streams.words(seed, stream, 0, 4).tobytes() for seed in (0, 1) for stream in Stream]
    assert len(set(drawn)) == len(drawn)


def test_permutations_are_permutations_and_golden() -> None:
    first, second = (streams.permutation(0, Stream.ORDER, i, 1000) for i in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert not np.array_equal(first, second)
    assert streams.permutation(0, Stream.ORDER, 0, 8).tolist() == [6, 5, 3, 1, 2, 7, 4, 0]


def test_integers_are_even() -> None:
    counts = np.bincount(streams.integers(81, streams.words(0, Stream.CROP, 0, 810_000)), minlength=81)
    assert len(counts) == 81
    assert np.square(counts - 10_000).sum() / 10_000 < 140  # chi-square of 80 degrees: above in 1 of 20,000


def test_normals_are_normal_and_golden() -> None:
    drawn = streams.normals(0, Stream.INITIALIZATION, 0, 100_000)
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.01
    assert abs((np.abs(drawn) < 1).mean() - 0.6827) < 0.005
    assert np.array_equal(drawn[10:31], streams.normals(0, Stream.INITIALIZATION, 10, 21))
    assert hashlib.sha256(drawn[:1000].tobytes()).hexdigest()[:16] == "054002ba0c507fb2"
