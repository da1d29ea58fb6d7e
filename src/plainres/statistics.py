"""Statistics of results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

FEW_SEEDS = 5
"""With fewer than these an interval says little of the seeds."""
_Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def interval(misses: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an error: Wilson's, of a binomial proportion of `misses` in `images`."""
    if images == 0:
        return (0.0, 1.0)
    error = misses / images
    centre = (error + _Z95**2 / (2 * images)) / (1 + _Z95**2 / images)
    half = _Z95 / (1 + _Z95**2 / images) * math.sqrt(error * (1 - error) / images + _Z95**2 / (4 * images**2))
    return (max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Spread:
    """Results over seeds: how many, their mean, standard deviation (None for one), least and most."""

    n: int
    mean: float
    std: float | None
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value; the standard deviation is the sample's, over n - 1."""
    n, mean = len(values), math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
    return Spread(n, mean, std, min(values), max(values))


def nearest_mean(values: Sequence[float]) -> int:
    """Which of the values is nearest their mean; of equally near ones the first."""
    mean = math.fsum(values) / len(values)
    return min(range(len(values)), key=lambda i: abs(values[i] - mean))


def negative_log_likelihood(logits: Array, labels: Array) -> float:
    """The mean of -log p of the true class, in nats; logits (N, classes), labels (N,)."""
    return float(-_log_softmax(logits)[np.arange(len(labels)), labels].mean())


def calibration_error(logits: Array, labels: Array, bins: int = 15) -> float:
    """The expected calibration error of Guo et al. 2017, a fraction; logits (N, classes), labels (N,).

    The predicted classes' probabilities are put into `bins` of equal width; the gaps between mean probability and
    accuracy are averaged with the bins' shares of the images.
    """
    probabilities = softmax(logits)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def softmax(logits: Array) -> Array:
    """The probabilities that logits (N, classes) stand for, float64."""
    return np.asarray(np.exp(_log_softmax(logits)))


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


@dataclass(frozen=True)
class Difference:
    """A difference of two mean errors (fractions), its 95 % interval, and the number of seeds it stands on."""

    mean: float
    low: float
    high: float
    seeds: int


def paired_difference(first: Array, second: Array, *, resamples: int = 4000) -> Difference:
    """The mean error of `first` minus that of `second`, by a paired bootstrap over seeds and over images.

    Both are misses, bool (seeds, images), with the same seeds and the same images in the same order. Each resample
    draws seeds and images with replacement, and takes both sides of what it drew. The draws are always the same.
    With few seeds the interval says little of the seeds: of one, nothing.
    """
    if first.shape != second.shape or first.ndim != 2 or 0 in first.shape:
        raise ValueError(f"misses must be (seeds, images) of one shape, got {first.shape} and {second.shape}")
    apart = first.astype(np.float64) - second.astype(np.float64)
    seeds, images = apart.shape
    drawn = np.random.Generator(np.random.Philox(0))
    means = np.empty(resamples)
    for i in range(resamples):
        shares = np.bincount(drawn.integers(0, seeds, seeds), minlength=seeds) / seeds
        means[i] = (shares @ apart)[drawn.integers(0, images, images)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(apart.mean()), float(low), float(high), seeds)


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same images: how many the first alone missed, the second alone, and the exact p."""

    first_alone: int
    second_alone: int
    p: float


def mcnemar(first: Array, second: Array) -> McNemar:
    """McNemar's exact two-sided test on misses, bool (images,): of two trained networks, not of two recipes."""
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"misses must be (images,) of one shape, got {first.shape} and {second.shape}")
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    n, least = one + other, min(one, other)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1)]
    tail = math.fsum(math.exp(log - n * math.log(2)) for log in logs)
    return McNemar(one, other, min(1.0, 2 * tail))
