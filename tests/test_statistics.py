"""Statistics: calibration, paired differences, McNemar's test; each against a value known another way."""

import math

import numpy as np
import pytest

from plainres import statistics


def logits_of(probabilities: list[list[float]]) -> np.ndarray:
    return np.log(np.array(probabilities)).astype(np.float32) + 7  # a shift changes nothing


def test_the_likelihood_of_given_probabilities() -> None:
    found = statistics.negative_log_likelihood(logits_of([[0.7, 0.3], [0.2, 0.8]]), np.array([0, 0]))
    assert found == pytest.approx(-(math.log(0.7) + math.log(0.2)) / 2, rel=1e-6)


def test_calibration_by_hand() -> None:
    # bins of a tenth: 0.65 holds one right and one wrong image, 0.95 one right: (2 |0.65 - 0.5| + |0.95 - 1|) / 3
    logits = logits_of([[0.65, 0.35], [0.65, 0.35], [0.05, 0.95]])
    found = statistics.calibration_error(logits, np.array([0, 1, 1]), bins=10)
    assert found == pytest.approx((2 * 0.15 + 0.05) / 3, rel=1e-5)


def test_calibration_of_one_bin_is_the_gap_of_the_means() -> None:
    drawn = np.random.default_rng(0)
    logits, labels = drawn.normal(size=(500, 10)), drawn.integers(0, 10, 500)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gap = abs(probabilities.max(1).mean() - (logits.argmax(1) == labels).mean())
    assert statistics.calibration_error(logits, labels, bins=1) == pytest.approx(gap)


def test_certain_and_right_is_calibrated() -> None:
    logits = np.array([[1000.0, 0.0], [0.0, 1000.0]], dtype=np.float32)
    assert statistics.calibration_error(logits, np.array([0, 1])) == 0
    assert statistics.negative_log_likelihood(logits, np.array([0, 1])) == 0


def test_a_paired_difference_of_one_seed_is_that_of_the_images() -> None:
    """Of one seed only the images are drawn: the interval is the normal one of a mean of paired differences."""
    drawn = np.random.default_rng(1)
    first, second = drawn.random((1, 4000)) < 0.3, drawn.random((1, 4000)) < 0.25
    apart = first[0].astype(float) - second[0]
    found = statistics.paired_difference(first, second)
    half = 1.96 * apart.std() / math.sqrt(4000)
    assert found.mean == pytest.approx(apart.mean())
    assert (found.low, found.high) == pytest.approx((apart.mean() - half, apart.mean() + half), abs=0.1 * half)
    assert found == statistics.paired_difference(first, second)  # the same draws


def test_seeds_that_disagree_widen_the_interval() -> None:
    drawn = np.random.default_rng(2)
    base = drawn.random((4, 2000)) < 0.2
    apart = base.copy()
    apart[:2, :400] = True  # two seeds much worse, two the same
    wide, narrow = (statistics.paired_difference(first, base) for first in (apart, base))
    assert (narrow.mean, narrow.low, narrow.high, narrow.seeds) == (0, 0, 0, 4)
    by_images_alone = statistics.paired_difference(apart.reshape(1, -1), base.reshape(1, -1))
    assert wide.high - wide.low > 4 * (by_images_alone.high - by_images_alone.low)


def test_the_same_images_in_pairs_narrow_the_interval() -> None:
    drawn = np.random.default_rng(3)
    first = drawn.random((1, 3000)) < 0.3
    paired = statistics.paired_difference(first | (drawn.random((1, 3000)) < 0.02), first)
    unpaired = statistics.paired_difference(drawn.random((1, 3000)) < 0.31, first)
    assert paired.high - paired.low < 0.4 * (unpaired.high - unpaired.low)


@pytest.mark.parametrize(
    ("first", "second", "p"), [(0, 0, 1.0), (0, 5, 2 / 32), (1, 7, 18 / 256), (5, 5, 1.0), (300, 200, 8.77e-6)]
)
def test_mcnemar(first: int, second: int, p: float) -> None:
    """Exact: twice the binomial tail of the rarer side; the last value by its normal approximation, corrected."""
    one = np.array([True] * first + [False] * second + [True, False])
    other = np.array([False] * first + [True] * second + [True, False])
    found = statistics.mcnemar(one, other)
    assert (found.first_alone, found.second_alone) == (first, second)
    assert found.p == pytest.approx(p, rel=0.1 if p < 1e-3 else 1e-9)


def test_shapes_that_do_not_pair() -> None:
    with pytest.raises(ValueError, match="one shape"):
        statistics.paired_difference(np.zeros((1, 3), bool), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="one shape"):
        statistics.mcnemar(np.zeros(3, bool), np.zeros(4, bool))


def test_nearest_the_mean() -> None:
    assert statistics.nearest_mean([0.07, 0.09, 0.081]) == 2
    assert statistics.nearest_mean([0.07, 0.09]) == 0
