"""Where the time of a step goes.

An engine that can tell, tells it (`profile()`: seconds of one step by category). Otherwise a few steps run under
PyTorch's profiler, and each operation (on CUDA: each kernel) is put in a category by its name; those shares are
taken of the step as timed without the profiler. A processor's convolution gives both its gradients in one
operation: their time is divided as the two take it when each is asked for alone, over the network's layers.
"""

import os
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from plainres.bench_ceilings import Stopwatch
from plainres.network import Network
from plainres.spec import NetworkSpec

FUSED = "BN and pointwise"
GRADIENTS = "both gradients"
CATEGORIES = (
    *("convolution forward", "input gradient", "weight gradient", "BN", "pointwise", FUSED),
    *("update", "data", "other"),
)
_STEPS = 3

# The first that matches: operations with all that they call, except compiled code, which counts by itself alone.
_OPERATIONS = (
    (r"(aten::(convolution|_convolution|conv2d|mkldnn_convolution)|mkldnn::_convolution_pointwise.*)$", CATEGORIES[0]),
    (r"aten::convolution_backward$", GRADIENTS),
    (r"aten::(batch_norm|native_batch_norm\w*|_native_batch_norm_legit\w*|_batch_norm\w*|batch_norm_backward)$", "BN"),
    (r"Optimizer\.(step|zero_grad)#|aten::_fused_sgd_", "update"),
    (r"Torch-Compiled Region|CompiledFunction|graph_\d+_\w*fused|triton_", FUSED),
    (
        r"aten::(relu_?|clamp_min_?|threshold_backward|add_?|mul_?|pad|constant_pad_nd|slice_backward|avg_pool2d\w*"
        r"|contiguous|clone|copy_|to|_to_copy)$|autograd::engine::evaluate_function: (Slice|ConstantPad)",
        "pointwise",
    ),
)
_KERNELS = (
    (r"wgrad|bwd_?filter|backward_?filter", "weight gradient"),
    (r"dgrad|bwd_?data|backward_?data", "input gradient"),
    (r"fprop|implicit_?gemm|winograd|convolve|conv2d|cudnn\w*conv", "convolution forward"),
    (r"triton_\w*batch_norm", FUSED),
    (r"batch_?norm|\bbn_[fb]w", "BN"),
    (r"multi_tensor_apply|fused_?sgd", "update"),
    (r"triton_|elementwise|nchwtonhwc|nhwctonchw|copy", "pointwise"),
)


def settled(parts: dict[str, float], total: float) -> dict[str, float]:
    """`parts` by category, with "other" what they leave of `total`.

    Parts that are together more than the total, as two measurements of one thing can be, are scaled to it.
    """
    known = sum(seconds for name, seconds in parts.items() if name != "other")
    scale = min(1.0, total / known) if known else 1.0
    scaled = {name: seconds * scale for name, seconds in parts.items() if name != "other"}
    scaled["other"] = max(0.0, total - known * scale)
    ranks = {name: rank for rank, name in enumerate(CATEGORIES)}
    return dict(sorted(scaled.items(), key=lambda item: ranks.get(item[0], ranks["update"] - 0.5)))


def parts(
    runner: object, step: Callable[[], None], watch: Stopwatch, input_share: Callable[[], float], step_seconds: float
) -> dict[str, float]:
    """Seconds by category of one `step` of `runner`, which takes `step_seconds`; what has no category is missing."""
    if callable(own := getattr(runner, "profile", None)):
        told = [own() for _ in range(_STEPS)]
        found = {name: statistics.median(parts[name] for parts in told) for name in told[0]}
        # With an "other" it is a whole step, slower for being counted: its shares are what it says.
        scale = step_seconds / sum(found.values()) if "other" in found else 1.0
        return {name: seconds * scale for name, seconds in found.items()}
    return {name: part * step_seconds for name, part in traced(step, watch, input_share).items()}


def category(name: str, rules: Iterable[tuple[str, str]]) -> str | None:
    """The category of an operation's or a kernel's name."""
    return next((found for pattern, found in rules if re.search(pattern, name, re.IGNORECASE)), None)


def traced(step: Callable[[], None], watch: Stopwatch, input_share: Callable[[], float]) -> dict[str, float]:
    """The part of a step's time that each category has, by PyTorch's profiler; what is left is no category's.

    `input_share` gives the input gradient's share of both gradients, where they are one operation.
    """
    device = watch.device
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would report itself on standard error
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        total = watch(step, _STEPS) * _STEPS
    spent: Counter[str] = Counter()
    for event in profiler.events():
        if device.type != "cuda" and event.cpu_parent is None:
            _add_operation(event, spent)
        elif device.type == "cuda" and event.device_type.name == "CUDA":
            spent[category(event.name, _KERNELS) or "other"] += event.time_range.elapsed_us()
    parts = {name: microseconds / 1e6 / total for name, microseconds in spent.items() if name != "other"}
    if both := parts.pop(GRADIENTS, 0.0):
        share = input_share()
        parts |= {"input gradient": both * share, "weight gradient": both * (1 - share)}
    return parts


def _add_operation(event: Any, spent: Counter[str]) -> None:
    found = category(event.name, _OPERATIONS)
    if found == FUSED:
        spent[found] += event.self_cpu_time_total
    elif found is not None:
        spent[found] += event.cpu_time_total
        return
    for child in event.cpu_children:
        _add_operation(child, spent)


def input_gradient_share(spec: NetworkSpec, batch: int, precision: str, *, nchw: bool, watch: Stopwatch) -> float:
    """Seconds of the input gradients of all convolutions over those of both gradients, each timed alone."""
    layout = torch.contiguous_format if nchw else torch.channels_last
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    sums = {"input": 0.0, "weight": 0.0}
    for (image, layer, is_first), count in convolutions(spec).items():
        shapes = ((batch, *image), (layer.out_channels, layer.in_channels, *layer.kernel_size))
        values, weight = (
            torch.ones(shape, dtype=kind, device=watch.device).to(memory_format=layout) for shape in shapes
        )
        for of, mask in (("input", (True, False, False)), ("weight", (False, True, False))):
            if not (is_first and of == "input"):  # images have no gradient
                sums[of] += count * _gradient_seconds(values, weight, layer, mask, watch)
    return sums["input"] / sum(sums.values())


def _gradient_seconds(
    values: Tensor, weight: Tensor, layer: nn.Conv2d, mask: tuple[bool, bool, bool], watch: Stopwatch
) -> float:
    output = torch.nn.functional.conv2d(values, weight, None, layer.stride, layer.padding)

    def gradient() -> None:
        torch.ops.aten.convolution_backward(
            output, values, weight, None, layer.stride, layer.padding, (1, 1), False, (0, 0), 1, mask
        )

    gradient()
    return min(watch(gradient) for _ in range(3))


def convolutions(spec: NetworkSpec) -> Counter[tuple[tuple[int, ...], Any, bool]]:
    """The convolutions of a network that differ, and how many there are: (shape of one input, layer, is the first)."""
    found: Counter[tuple[tuple[int, ...], Any, bool]] = Counter()
    alike: dict[tuple[object, ...], Any] = {}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            image = tuple(inputs[0].shape[1:])
            first = not found
            key = (image, layer.out_channels, layer.kernel_size, layer.stride, first)
            found[image, alike.setdefault(key, layer), first] += 1

    with torch.device("meta"), torch.no_grad():
        network = Network(spec).eval()
        for module in network.modules():
            module.register_forward_hook(see)
        network(torch.empty(1, 3, 32, 32))
    return found
