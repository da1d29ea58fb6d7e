"""The figures of a measurement: medians with their spread, and what follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plainres.summary import Layer

PASS_IMAGES = 50_000  # of CIFAR-10
PAPER_IMAGES = 64_000 * 128  # of the paper's recipe


@dataclass(frozen=True)
class Spread:
    """The median of the rounds' figures, between their quartiles and extremes."""

    median: float
    lower: float
    upper: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        least, lower, median, upper, most = (float(x) for x in np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
        return cls(median, lower, upper, least, most)

    def to_json(self, key: str) -> dict[str, Any]:
        """The median under `key`, the rest under `key`_spread."""
        return {key: self.median, f"{key}_spread": [self.least, self.lower, self.upper, self.most]}


@dataclass(frozen=True)
class Samples:
    """What the rounds of one network gave, one figure a round: seconds of a step or a batch, and rates."""

    step: list[float] = field(default_factory=list)
    against: list[float] = field(default_factory=list)
    data: list[float] = field(default_factory=list)  # without the drawing of its random numbers
    products: list[dict[str, dict[int, float]]] = field(default_factory=list)  # FLOP/s by precision and size
    copy: list[float] = field(default_factory=list)  # bytes/s
    joules: list[float] = field(default_factory=list)  # of one step
    clocks: list[dict[str, int]] = field(default_factory=list)  # MHz


def moved_bytes(layers: Sequence[Layer], precision: str) -> int:
    """The bytes that one training image moves where everything but the convolutions' outputs stays in caches.

    Each output is written, read by the next convolution; with its gradient read for BN's sums, and again for the
    convolution's own gradients (two, two); read once more for the next weight's gradient; its gradient is
    written: eight in all. A step that moves less has fused beyond that.
    """
    outputs = sum(int(np.prod(layer.output)) for layer in layers if layer.kind == "Conv2d")
    return 8 * outputs * (2 if precision == "bfloat16" else 4)


def figures(
    samples: Samples,
    layers: Sequence[Layer],
    *,
    flops: int,
    batch: int,
    precision: str,
    draw_seconds: float,
    data_in_step: bool = False,
) -> dict[str, Any]:
    """What `bench` tells of one network, from what its rounds gave.

    `flops` are one image's training operations, `draw_seconds` those of one batch's random numbers. Shares and the
    ratio are medians of each round's own, for what is measured side by side has met the same machine. Times of
    whole trainings include the data path, which but for the drawing is in the step already where `data_in_step`.
    """
    step = Spread.of(samples.step)
    data = draw_seconds + float(np.median(samples.data))
    moved = moved_bytes(layers, precision)
    image = (step.median + (draw_seconds if data_in_step else data)) / batch
    return {
        "parameters": sum(layer.parameters for layer in layers),
        "multiply_adds": sum(layer.multiply_adds for layer in layers),
        **Spread.of([1e3 * seconds for seconds in samples.step]).to_json("ms_per_step"),
        "images_per_second": batch / step.median,
        "data_ms_per_step": 1e3 * data,
        "data_in_step": data_in_step,
        "seconds_per_50000_images": PASS_IMAGES * image,
        "paper_hours": PAPER_IMAGES * image / 3600,
        "flops_per_image": flops,
        "moved_bytes_per_image": moved,
        **_shares(samples, batch * flops, batch * moved, precision),
        **_against(samples),
        **_energy(samples, batch),
    }


def _shares(samples: Samples, flops: int, moved: int, precision: str) -> dict[str, Any]:
    """The two ceilings, and how far below them the step is, of so many operations and bytes."""
    best = [max(rate for each in _reachable(found, precision) for rate in each.values()) for found in samples.products]
    return {
        **Spread.of([rate / 1e9 for rate in best]).to_json("gemm_gflops"),
        **Spread.of(_quotients(flops, samples.step, best)).to_json("gemm_share"),
        **Spread.of([rate / 1e9 for rate in samples.copy]).to_json("copy_gbs"),
        **Spread.of(_quotients(moved, samples.step, samples.copy)).to_json("copy_share"),
        "products_gflops": _by_size(samples.products),
    }


def _reachable(found: dict[str, dict[int, float]], precision: str) -> list[dict[int, float]]:
    """The products that a training in `precision` can be held against: not bfloat16's for float32."""
    return [rates for name, rates in found.items() if name in ("float32", precision)]


def _quotients(work: float, seconds: list[float], rates: list[float]) -> list[float]:
    return [work / s / rate for s, rate in zip(seconds, rates, strict=True)]


def _by_size(products: list[dict[str, dict[int, float]]]) -> dict[str, dict[str, float]]:
    return {
        precision: {str(size): float(np.median([found[precision][size] for found in products])) / 1e9 for size in sizes}
        for precision, sizes in products[0].items()
    }


def _against(samples: Samples) -> dict[str, Any]:
    if not samples.against:
        return {"against_ms_per_step": None, "ratio": None}
    ratios = [theirs / ours for ours, theirs in zip(samples.step, samples.against, strict=True)]
    times = Spread.of([1e3 * seconds for seconds in samples.against])
    return {**times.to_json("against_ms_per_step"), **Spread.of(ratios).to_json("ratio")}


def _energy(samples: Samples, batch: int) -> dict[str, Any]:
    joules = float(np.median(samples.joules)) / batch if samples.joules else None
    names = samples.clocks[0] if samples.clocks else ()
    clocks = {name: int(np.median([found[name] for found in samples.clocks])) for name in names}
    return {"joules_per_image": joules, "clocks_mhz": clocks or None}
