"""BN over the batches of all processes, forward and backward; PyTorch's own (SyncBatchNorm) needs a GPU."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from plainres import recompute
from plainres.distributed import World


@contextlib.contextmanager
def synchronized(network: nn.Module, world: World) -> Iterator[None]:
    """While entered, the BN layers of `network` train on the statistics of the whole batch; names and state stay."""
    norms = recompute.norms([network])
    for norm in norms:
        vars(norm)["forward"] = functools.partial(normalized, norm, world)
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]


def normalized(norm: _BatchNorm, world: World, x: Tensor) -> Tensor:
    """A BN layer's output for this process's equal part (N, C, ...) of the batch; running statistics are updated."""
    if not norm.training:
        return type(norm).forward(norm, x)
    inputs = x.to(torch.promote_types(x.dtype, torch.float32))
    around = [d for d in range(x.ndim) if d != 1]
    variance, mean = (found.double() for found in torch.var_mean(inputs, around, correction=0))
    # float64, so that the difference of the squares keeps what float32 knew
    mean, square = Mean.apply(torch.stack([mean, variance + mean * mean]), world)  # type: ignore[no-untyped-call]
    variance = square - mean * mean
    _track(norm, mean.detach(), variance.detach(), x.numel() // x.shape[1] * world.size)
    scale = torch.rsqrt(variance + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
    scale, shift = (value.to(inputs.dtype).view(shape) for value in (scale, shift))
    return torch.addcmul(shift, inputs, scale).to(x.dtype)


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Update the running statistics as PyTorch's BN does, with the unbiased variance."""
    factor = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1
        factor = 1 / int(norm.num_batches_tracked) if factor is None else factor
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), factor or 0.0)
        norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), factor or 0.0)


class Mean(torch.autograd.Function):
    """The mean of a tensor over the processes. Each knows the gradient of its own loss alone; the run's is the mean."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        """The mean, the same on each."""
        ctx.world = world
        return _mean(tensor, world)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The mean of the gradients, which is the gradient of this process's part."""
        return _mean(gradients[0], ctx.world), None


def _mean(tensor: Tensor, world: World) -> Tensor:
    found = tensor.clone()
    world.average([found])
    return found
