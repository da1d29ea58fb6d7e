"""The networks of the paper and of the two systems.

Section 4.2 of He et al. 2015: a 3x3 convolution, three stages of n blocks on maps of 32, 16 and 8 pixels with
16, 32 and 64 filters, global average pooling, a fully connected layer. 6n+2 weighted layers. The plain network
is the residual one without the addition, so one `Block` makes both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainres import streams
from plainres.spec import NetworkSpec
from plainres.streams import Stream


class PaddedShortcut(nn.Module):
    """Option A: every second pixel (or the mean of 2x2), and channels of zeros; no parameters."""

    def __init__(self, spec: NetworkSpec, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        new = outputs - inputs
        before = new // 2 if spec.zero_channels == "centred" else 0
        self.channels = (0, 0, 0, 0, before, new - before)
        self.stride = stride
        self.average = spec.subsample == "average"

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride) if self.average else x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, self.channels)


def shortcut(spec: NetworkSpec, inputs: int, outputs: int, stride: int) -> nn.Module:
    """The shortcut of a block: identity, option A, B or C, or cfmz's trainable projection without BN."""
    same = inputs == outputs and stride == 1
    if same and spec.shortcut != "C":
        return nn.Identity()
    if spec.shortcut == "A":
        return PaddedShortcut(spec, inputs, outputs, stride)
    projection = nn.Conv2d(inputs, outputs, 1, stride, bias=spec.conv_bias)
    if spec.shortcut == "identity-projection" or spec.kind == "preact":
        return nn.Sequential(projection)
    return nn.Sequential(projection, nn.BatchNorm2d(outputs))


def convolution(spec: NetworkSpec, inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    """A convolution that keeps the map's size, or divides it by the stride."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=spec.conv_bias)


class Block(nn.Module):
    """Convolution, BN, ReLU, convolution, BN, the shortcut added (or, in a plain network, not), ReLU."""

    def __init__(self, spec: NetworkSpec, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(spec, inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(spec, outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = None if spec.kind == "plain" else shortcut(spec, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return F.relu(y)


class BottleneckBlock(nn.Module):
    """The 1x1, 3x3, 1x1 unit of three weighted layers, BN after each; four times as many filters leave as work."""

    def __init__(self, spec: NetworkSpec, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv1 = convolution(spec, inputs, inner, size=1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = convolution(spec, inner, inner, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = convolution(spec, inner, outputs, size=1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = None if spec.kind == "plain" else shortcut(spec, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return F.relu(y)


class PreactBlock(nn.Module):
    """The pre-activation unit (arXiv 1603.05027): BN and ReLU before each convolution, a clean shortcut.

    Where the shape changes, and in the first unit of the network, the shortcut starts after the first ReLU.
    """

    def __init__(self, spec: NetworkSpec, inputs: int, outputs: int, stride: int, first: bool) -> None:
        super().__init__()
        bottleneck = spec.block == "bottleneck"
        inner = outputs // 4 if bottleneck else outputs
        size = 1 if bottleneck else 3
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = convolution(spec, inputs, inner, 1 if bottleneck else stride, size)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = convolution(spec, inner, inner, stride if bottleneck else 1)
        self.bn3 = nn.BatchNorm2d(inner) if bottleneck else None
        self.conv3 = convolution(spec, inner, outputs, size=1) if bottleneck else None
        self.shortcut = shortcut(spec, inputs, outputs, stride)
        self.activated_shortcut = first or inputs != outputs or stride > 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(x))
        passed = self.shortcut(y if self.activated_shortcut else x)
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        if self.bn3 is not None and self.conv3 is not None:
            y = self.conv3(F.relu(self.bn3(y)))
        return torch.add(y, passed)


class Network(nn.Module):
    """A network of `spec`: normalized images (N, 3, 32, 32) in, logits (N, classes) out."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        expansion = 4 if spec.block == "bottleneck" else 1
        widths = [spec.width * expansion * 2**i for i in range(3)]
        self.conv1 = convolution(spec, 3, spec.width)
        self.bn1 = nn.BatchNorm2d(widths[-1] if spec.kind == "preact" else spec.width)
        self.stage1 = stage(spec, spec.width, widths[0], 1)
        self.stage2 = stage(spec, widths[0], widths[1], 2)
        self.stage3 = stage(spec, widths[1], widths[2], 2)
        self.fc = nn.Linear(widths[2], spec.classes, bias=spec.fc_bias)
        self.fc_bn = nn.BatchNorm1d(spec.classes) if spec.fc_bn else None

    def features(self, x: Tensor) -> Tensor:
        """Normalized images (N, 3, 32, 32) to pooled features (N, 64)."""
        preact = self.spec.kind == "preact"
        x = self.conv1(x)
        x = x if preact else F.relu(self.bn1(x))
        x = self.stage3(self.stage2(self.stage1(x)))
        x = F.relu(self.bn1(x)) if preact else x  # the last unit's activation
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images (N, 3, 32, 32) to logits (N, classes)."""
        return self.classify(self.features(x))

    def classify(self, features: Tensor) -> Tensor:
        """Pooled features (N, 64) to logits (N, classes)."""
        logits: Tensor = self.fc(features)
        return logits if self.fc_bn is None else self.fc_bn(logits)


def stage(spec: NetworkSpec, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """`spec.blocks` blocks, of which the first changes the shape."""
    blocks: list[nn.Module] = []
    for i in range(spec.blocks):
        shape = (inputs, outputs, stride) if i == 0 else (outputs, outputs, 1)
        if spec.kind == "preact":
            blocks.append(PreactBlock(spec, *shape, first=i == 0 and stride == 1))
        elif spec.block == "bottleneck":
            blocks.append(BottleneckBlock(spec, *shape))
        else:
            blocks.append(Block(spec, *shape))
    return nn.Sequential(*blocks)


def build(network: str | NetworkSpec, *, seed: int = 0, classes: int | None = None) -> Network:
    """The network of a name ("resnet56") or a spec, initialized from `seed`; the global generator is not used."""
    spec = NetworkSpec.named(network) if isinstance(network, str) else network
    spec = spec.with_classes(classes or spec.classes)
    with torch.device("meta"):  # PyTorch's own initialization, and its generator, never run
        built = Network(spec)
    built.to_empty(device="cpu")
    initialize(built, seed)
    return built


@torch.no_grad()
def initialize(network: Network, seed: int) -> None:
    """Set every parameter and statistic: He et al. 2015b for convolutions, BN 1 and 0, biases 0.

    Weights are drawn in the order of the modules, so a plain network and its residual twin start alike.
    """
    spec, drawn = network.spec, 0
    for name, module in network.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.reset_parameters()
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        if module.bias is not None:
            module.bias.zero_()
        if spec.shortcut == "identity-projection" and ".shortcut." in name:
            _set_identity(module.weight, spec)
            continue
        values = streams.normals(seed, Stream.INITIALIZATION, drawn, module.weight.numel())
        drawn += 2 * ((module.weight.numel() + 1) // 2)
        module.weight.copy_(torch.from_numpy(values).view_as(module.weight) * _deviation(module, spec))


def _deviation(module: nn.Conv2d | nn.Linear, spec: NetworkSpec) -> float:
    """The standard deviation of a layer's initial weights."""
    outputs, inputs = module.weight.shape[:2]
    area = module.weight[0, 0].numel()
    if isinstance(module, nn.Linear) and spec.fc_init == "xavier":
        return float((2 / (inputs + outputs)) ** 0.5)
    fan = outputs if spec.init == "fan_out" else inputs
    return float((2 / (fan * area)) ** 0.5)


def _set_identity(weight: Tensor, spec: NetworkSpec) -> None:
    """A 1x1 projection that passes its input on, the other channels zero, placed as option A places them."""
    outputs, inputs = weight.shape[:2]
    first = (outputs - inputs) // 2 if spec.zero_channels == "centred" else 0
    weight.zero_()
    weight[first : first + inputs, :, 0, 0] = torch.eye(inputs)
