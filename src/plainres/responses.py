"""Layer responses: Figure 7 of the paper."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from plainres.normalization import Normalization


@torch.no_grad()
def responses(
    network: nn.Module, images: Tensor, normalization: Normalization, *, batch: int = 500
) -> list[dict[str, Any]]:
    """The standard deviation of what each BN gives, before the nonlinearity, in the order they run.

    Over uint8 images (N, 3, 32, 32), in evaluation mode. In plain and residual networks that is the output of
    each 3x3 layer after its BN, as in Figure 7; the BN of projection shortcuts is left out.
    """
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d) and "shortcut" not in n}
    moments: dict[str, list[Tensor]] = {name: [] for name in layers}

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            variance, mean = torch.var_mean(output.float(), correction=0)
            moments[name].append(torch.stack([variance, mean, mean.new_tensor(output.numel())]))

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in layers.items()]
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        for part in torch.split(images, batch):
            network(normalization(part).contiguous(memory_format=torch.channels_last))
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return [{"layer": name, "std": _pooled(torch.stack(batches))} for name, batches in moments.items() if batches]


def _pooled(batches: Tensor) -> float:
    """The standard deviation over all batches, from the (variance, mean, count) of each."""
    variances, means, counts = batches.cpu().double().T
    weights = counts / counts.sum()
    mean = (weights * means).sum()
    return float((weights * (variances + (means - mean).square())).sum().sqrt())
