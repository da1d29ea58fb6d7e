"""What a network is made of: layers, parameters, multiply-adds."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plainres.network import Network
from plainres.spec import NetworkSpec


@dataclass(frozen=True)
class Layer:
    """A module with parameters: its name, class, output shape for one image, parameters and multiply-adds."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


def layers(network: str | NetworkSpec) -> list[Layer]:
    """The layers of a network in the order they run."""
    spec = NetworkSpec.named(network) if isinstance(network, str) else network
    with torch.device("meta"):
        return module_layers(Network(spec).eval(), torch.empty(1, 3, 32, 32))


def module_layers(network: nn.Module, image: Tensor) -> list[Layer]:
    """The layers that run when `network` sees `image` (1, 3, 32, 32).

    A multiply-add is one multiplication of a convolution or linear layer with its addition; a bias counts as one
    addition an output. BN, ReLU and the additions of shortcuts are not counted, as in the paper's FLOPs.
    """
    found: list[Layer] = []

    def record(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            parameters = sum(p.numel() for p in module.parameters(recurse=False))
            kind = type(module).__name__
            found.append(Layer(name, kind, tuple(output.shape[1:]), parameters, _multiply_adds(module, output)))

        return hook

    hooks = [
        module.register_forward_hook(record(name, module))
        for name, module in network.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    with torch.no_grad():
        network(image)
    for handle in hooks:
        handle.remove()
    return found


def operations(network: nn.Module) -> int:
    """Floating-point operations of training on one image: forward, and twice that backward; 0 if not one of ours.

    A multiply-add is two; nothing but convolutions and linear layers is counted, and the gradient of the images,
    which nobody needs, is not.
    """
    if not isinstance(network, Network):
        return 0
    found = layers(network.spec)
    return 2 * (3 * sum(layer.multiply_adds for layer in found) - found[0].multiply_adds)


def _multiply_adds(module: nn.Module, output: Tensor) -> int:
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return 0
    return output.numel() * (module.weight[0].numel() + (module.bias is not None))
