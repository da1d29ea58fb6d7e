"""The native engine: a network's trunk in the C++ kernels, its classifier and loss in PyTorch."""

import ctypes
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor, nn

from plainres import kernels
from plainres.errors import Unavailable
from plainres.network import Block, Network, PaddedShortcut

GROUPS = 16  # parts of a batch whose sums are taken apart: the most threads that have work
CATEGORIES = ("convolution forward", "input gradient", "weight gradient", "BN and pointwise")
_SLOTS, _LANES = 3, 16  # as the kernels have them; of lanes, the most


class _Conv(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("inputs", "outputs", "size", "stride", "width")),
        *((name, c_int64) for name in ("s_out", "s_in", "s_y", "s_x", "taps")),
        *((name, c_void_p) for name in ("weight", "gradient", "forward", "backward")),
    ]


class _Norm(Structure):
    _fields_ = [
        ("channels", c_int64),
        ("eps", c_double),
        ("momentum", c_double),
        *((name, c_void_p) for name in ("gamma", "beta", "bias")),
        *((name, c_void_p) for name in ("gamma_gradient", "beta_gradient", "bias_gradient")),
        *((name, c_void_p) for name in ("running_mean", "running_var", "batches")),
        *((name, c_void_p) for name in ("scale", "shift", "a", "b", "c", "mean", "rstd")),
    ]


class _Block(Structure):
    _fields_ = [
        *((name, _Conv) for name in ("conv1", "conv2", "projection")),
        *((name, _Norm) for name in ("norm1", "norm2", "norm3")),
        *((name, c_int64) for name in ("shortcut", "before", "average", "starts_segment")),
        *((name, c_void_p) for name in ("x", "u1", "u2", "v")),
    ]


class _Net(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("images", "groups", "blocks", "profile")),
        ("stem", _Conv),
        ("stem_norm", _Norm),
        ("input", c_void_p),
        ("u0", c_void_p),
        ("block", POINTER(_Block)),
        ("pooled", c_void_p),
        ("pooled_gradient", c_void_p),
        ("g", c_void_p * 3),
        ("partial", c_void_p),
        ("sums", c_void_p),
        ("partial_size", c_int64),
        ("channels", c_int64),
        ("seconds", c_double * len(CATEGORIES)),
    ]


class Trunk:
    """Forward and backward pass of a network up to its pooled features, on the CPU in float32.

    Holds the memory of one batch of at most `images`. With `segment` blocks to a segment, only each segment's input
    is kept from the forward pass and the rest is computed again in the backward pass: less memory, more time, the
    same bits. Unavailable where the network is none that the kernels know.
    """

    def __init__(self, network: nn.Module, images: int, *, segment: int = 0, groups: int = GROUPS) -> None:
        self.network, self.images, self.groups = check(network), images, groups
        self.kernels = kernels.library()
        sizes = [int(self.kernels.trunk_size(i)) for i in range(4)]
        if sizes != [ctypes.sizeof(kind) for kind in (_Conv, _Norm, _Block, _Net)]:
            raise Unavailable("the compiled kernels are of another version")
        self.memory: list[Tensor] = []
        self._build(segment)

    def _build(self, segment: int) -> None:
        """Fill in the structures, and take the memory they point to."""
        self.bytes = 0  # of memory held, beside the parameters and their gradients
        self.gradients: dict[nn.Parameter, Tensor] = {}
        blocks = [block for stage in stages(self.network) for block in stage]
        self._blocks = (_Block * len(blocks))()
        width = 32
        for i, block in enumerate(blocks):
            self._blocks[i] = self._block(block, width)
            width //= block.conv1.stride[0]
        self._share(segment or len(blocks))
        self.net = self._net(len(blocks), width)

    def forward(self, inputs: Tensor, *, training: bool) -> Tensor:
        """Normalized images (N, 3, 32, 32) to pooled features (N, C), new memory; N is at most `images`."""
        self._input = inputs.permute(0, 2, 3, 1).contiguous()
        pooled = torch.empty(len(inputs), self.network.fc.in_features)
        self.net.images, self.net.input, self.net.pooled = len(inputs), self._input.data_ptr(), pooled.data_ptr()
        self.kernels.trunk_forward(ctypes.byref(self.net), c_int64(training))
        return pooled

    def backward(self, gradient: Tensor) -> None:
        """From the gradient of the features of the last forward pass to `grad` of every parameter of the trunk."""
        held = gradient.contiguous()
        self.net.pooled_gradient = held.data_ptr()
        self.kernels.trunk_backward(ctypes.byref(self.net))
        for parameter, found in self.gradients.items():
            parameter.grad = found

    def seconds(self) -> dict[str, float]:
        """Where the time of all threads went since `net.profile` was set."""
        return dict(zip(CATEGORIES, self.net.seconds, strict=True))

    # -- the structures

    def _new(self, count: int, dtype: torch.dtype = torch.float32) -> Any:
        """The address of new memory."""
        self.bytes += count * dtype.itemsize
        self.memory.append(torch.empty(count, dtype=dtype))
        return self.memory[-1].data_ptr()

    def _gradient(self, parameter: Any) -> Any:
        """The address of a parameter's gradient."""
        self.gradients[parameter] = torch.empty_like(parameter, requires_grad=False)
        return self.gradients[parameter].data_ptr()

    def _conv(self, conv: nn.Conv2d, width: int) -> _Conv:
        weight = conv.weight
        inputs, outputs, size, stride = conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0]
        tiled = size == 3 and stride == 1 and inputs % _LANES == 0  # by Winograd's tiles of 16 taps
        taps = 16 if tiled else size * size
        found = _Conv(inputs, outputs, size, stride, width, *weight.stride(), taps)
        found.weight, found.gradient = weight.data_ptr(), self._gradient(weight)
        found.forward, found.backward = (self._new(taps * inputs * outputs) for _ in range(2))
        return found

    def _norm(self, norm: nn.BatchNorm2d, conv: nn.Conv2d) -> _Norm:
        count = norm.num_features
        found = _Norm(count, norm.eps, norm.momentum)
        found.gamma, found.gamma_gradient = norm.weight.data_ptr(), self._gradient(norm.weight)
        found.beta, found.beta_gradient = norm.bias.data_ptr(), self._gradient(norm.bias)
        if conv.bias is not None:
            found.bias, found.bias_gradient = conv.bias.data_ptr(), self._gradient(conv.bias)
        for name in ("running_mean", "running_var"):
            setattr(found, name, getattr(norm, name).data_ptr())
        found.batches = norm.num_batches_tracked.data_ptr()  # type: ignore[union-attr]
        for name in ("scale", "shift", "a", "b", "c"):
            setattr(found, name, self._new(count))
        found.mean, found.rstd = self._new(count, torch.float64), self._new(count, torch.float64)
        return found

    def _block(self, block: Block, width: int) -> _Block:
        inner = width // block.conv1.stride[0]
        found = _Block(self._conv(block.conv1, width), self._conv(block.conv2, inner))
        found.norm1, found.norm2 = self._norm(block.bn1, block.conv1), self._norm(block.bn2, block.conv2)
        shortcut = block.shortcut
        if isinstance(shortcut, nn.Identity):
            found.shortcut = 1
        elif isinstance(shortcut, PaddedShortcut):
            found.shortcut, found.before, found.average = 2, shortcut.channels[4], shortcut.average
        elif isinstance(shortcut, nn.Sequential):
            parts: list[Any] = list(shortcut)
            found.shortcut, found.projection = 3, self._conv(parts[0], width)
            if len(parts) > 1:
                found.norm3 = self._norm(parts[1], parts[0])
        return found

    def _share(self, segment: int) -> None:
        """Give every block its memory; blocks at the same place of two segments share theirs."""
        for place in range(segment):
            mine = list(range(place, len(self._blocks), segment))
            outputs = max((_outputs(self._blocks[i].conv2) for i in mine), default=0) * self.images
            inputs = max((_inputs(self._blocks[i].conv1) for i in mine), default=0) * self.images
            projected = any(self._blocks[i].shortcut == 3 for i in mine)
            u1, u2, v = self._new(outputs), self._new(outputs), self._new(outputs if projected else 0)
            x = self._new(inputs) if place else None
            for i in mine:
                block = self._blocks[i]
                block.u1, block.u2, block.v, block.starts_segment = u1, u2, v, place == 0
                block.x = x if place else self._new(_inputs(block.conv1) * self.images)

    def _net(self, blocks: int, width: int) -> _Net:
        net = _Net(self.images, self.groups, blocks)
        network = self.network
        net.stem = self._conv(network.conv1, 32)
        net.stem_norm = self._norm(network.bn1, network.conv1)
        net.u0 = self._new(_outputs(net.stem) * self.images)
        net.block = ctypes.cast(self._blocks, POINTER(_Block))
        every = [net.stem, *(c for b in self._blocks for c in (b.conv1, b.conv2))]
        largest = max(_outputs(conv) for conv in every) * self.images
        for i in range(3):
            net.g[i] = self._new(largest)
        net.partial_size = max(_weights(b.conv1) + _weights(b.projection) for b in self._blocks)
        net.partial_size = max(net.partial_size, *(_weights(conv) for conv in every))
        net.channels = max(conv.outputs for conv in every)
        net.partial = self._new(net.partial_size * self.groups)
        net.sums = self._new(net.channels * self.groups * 2 * _SLOTS, torch.float64)
        return net


class Outline(Trunk):
    """What a trunk for a batch would hold, without taking it: `bytes`."""

    def __init__(self, network: Network, images: int, *, segment: int = 0) -> None:
        """`network` may be on the meta device."""
        self.network, self.images, self.groups = network, images, GROUPS
        self._build(segment)

    def _new(self, count: int, dtype: torch.dtype = torch.float32) -> Any:
        self.bytes += count * dtype.itemsize
        return 0


def _outputs(conv: _Conv) -> int:
    return int((conv.width // conv.stride) ** 2 * conv.outputs)


def _inputs(conv: _Conv) -> int:
    return int(conv.width**2 * conv.inputs)


def _weights(conv: _Conv) -> int:
    return int(conv.taps * conv.inputs * conv.outputs)


def stages(network: Network) -> Iterator[Any]:
    """The three stages, each a sequence of blocks."""
    yield from (network.stage1, network.stage2, network.stage3)


def knows(network: nn.Module) -> bool:
    """Whether the kernels are for such a network: of basic blocks, its widths those of a vector register."""
    if not isinstance(network, Network) or network.spec.width % _LANES:
        return False
    return all(isinstance(block, Block) for stage in stages(network) for block in stage)


def check(network: nn.Module) -> Network:
    """The network, if the kernels can run it as it is."""
    if not isinstance(network, Network) or not knows(network):
        raise Unavailable("the kernels know plain and residual networks of the basic block, of 16, 32, ... filters")
    tensors = [*network.parameters(), *network.buffers()]
    if any(t.device.type != "cpu" or t.dtype not in (torch.float32, torch.int64) for t in tensors):
        raise Unavailable("the kernels compute in float32 on the CPU")
    if not all(parameter.requires_grad for parameter in network.parameters()):
        raise Unavailable("the kernels train every parameter")
    return network
