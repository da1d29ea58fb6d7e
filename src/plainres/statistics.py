"""Statistics of results."""

import math

_Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def interval(misses: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an error: Wilson's, of a binomial proportion of `misses` in `images`."""
    if images == 0:
        return (0.0, 1.0)
    error = misses / images
    centre = (error + _Z95**2 / (2 * images)) / (1 + _Z95**2 / images)
    half = _Z95 / (1 + _Z95**2 / images) * math.sqrt(error * (1 - error) / images + _Z95**2 / (4 * images**2))
    return (max(0.0, centre - half), min(1.0, centre + half))
