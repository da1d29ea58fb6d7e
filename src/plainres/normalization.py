"""Input normalization: a value that travels with the weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("pixel-mean", "channel-mean", "channel-mean-std")


@dataclass(frozen=True, eq=False)
class Normalization:
    """Pixels of 0..255 less `mean` over `std`.

    `mean` is (3, 32, 32) for "pixel-mean", (3, 1, 1) otherwise; `std` is (3, 1, 1), ones where nothing is
    divided; both float32.
    """

    kind: str
    mean: Tensor
    std: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) of 0..255, uint8 or float, to normalized float32."""
        centred = images.to(torch.float32) - self.mean
        return centred / self.std if self.kind == "channel-mean-std" else centred

    def to(self, device: torch.device | str) -> "Normalization":
        """The same on another device."""
        return Normalization(self.kind, self.mean.to(device), self.std.to(device))


def given(kind: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Normalization:
    """A normalization by channel from given statistics of 0..255 values; no `std` divides by nothing."""
    deviation = torch.tensor(std or (1.0, 1.0, 1.0), dtype=torch.float32)
    return Normalization(kind, torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), deviation.view(3, 1, 1))


def measured(kind: str, images: Tensor) -> Normalization:
    """The normalization of a training part, uint8 (N, 3, 32, 32).

    Every sum is of integers and exact, so the statistics are the same to the last bit on every machine.
    """
    std = torch.ones(3, 1, 1, dtype=torch.float32, device=images.device)
    if kind == "pixel-mean":
        # 256 images of at most 255 stay far below 2^24, so float32 adds them exactly, in whatever order
        sums = [chunk.float().sum(0).double() for chunk in torch.split(images, 256)]
        return Normalization(kind, (torch.stack(sums).sum(0) / len(images)).float(), std)
    channels = images.transpose(0, 1).flatten(1)
    histograms = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
    values = torch.arange(256, dtype=torch.float64, device=images.device)
    mean = (histograms * values).sum(1) / channels.shape[1]
    if kind == "channel-mean-std":
        variance = (histograms * values.square()).sum(1) / channels.shape[1] - mean.square()
        std = variance.sqrt().clamp_min(1e-3).float().view(3, 1, 1)  # a constant channel divides by nothing
    return Normalization(kind, mean.float().view(3, 1, 1), std)
