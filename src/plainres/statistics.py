"""Statistics of results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
