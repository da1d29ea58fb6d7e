"""Crop and mirror of a whole batch, without a loop over images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from plainres.normalization import Normalization


def augment(
    images: Tensor, crop: Tensor, flip: Tensor, normalization: Normalization, *, padding: str, pad: int
) -> Tensor:
    """A training batch: uint8 (N, 3, 32, 32) to normalized float32 of the same shape.

    `crop` (N, 2) is the first row and column of each crop in the image padded by `pad`, `flip` (N,) is nonzero
    where the crop is mirrored. Padding "zero-after" normalizes, pads with zeros and crops; "zero-before" and
    "edge" pad the pixels, crop, and then normalize what is left as an image of its own.
    """
    if padding == "zero-after":
        return cropped(F.pad(normalization(images), (pad,) * 4), crop, flip, images.shape[-1])
    pixels = images.to(torch.float32)
    padded = F.pad(pixels, (pad,) * 4, mode="replicate" if padding == "edge" else "constant")
    return normalization(cropped(padded, crop, flip, images.shape[-1]))


def cropped(padded: Tensor, crop: Tensor, flip: Tensor, size: int) -> Tensor:
    """Square crops of `size`, each where `crop` says, mirrored where `flip` says."""
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # a view: (N, 3, offsets, offsets, size, size)
    each = torch.arange(len(padded), device=padded.device)
    crops = windows[each, :, crop[:, 0], crop[:, 1]]
    return torch.where(flip.view(-1, 1, 1, 1) != 0, crops.flip(-1), crops)


def fetched(
    images: Tensor, index: Tensor, crop: Tensor, flip: Tensor, normalization: Normalization, *, padding: str, pad: int
) -> Tensor:
    """`augment(images[index], ...)` to the last bit, each pixel fetched from where it comes from.

    Nothing is padded and nothing copied twice: one kernel, where it is compiled. Run as it stands it is slower.
    """
    height = images.shape[-1]
    place = torch.arange(height, device=images.device)
    rows = place + crop[:, :1] - pad
    columns = torch.where(flip.view(-1, 1) != 0, height - 1 - place, place) + crop[:, 1:] - pad
    kept_rows, kept_columns = rows.clamp(0, height - 1), columns.clamp(0, height - 1)
    inside = (rows == kept_rows).view(-1, 1, height, 1) & (columns == kept_columns).view(-1, 1, 1, height)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    here = (channel, kept_rows.view(-1, 1, height, 1), kept_columns.view(-1, 1, 1, height))
    pixels = images[(index.view(-1, 1, 1, 1), *here)].to(torch.float32)
    if padding != "zero-after":
        return normalization(pixels if padding == "edge" else torch.where(inside, pixels, 0.0))
    mean = normalization.mean.expand(images.shape[1:])[here]  # that of the place in the image, not in the crop
    return torch.where(inside, Normalization(normalization.kind, mean, normalization.std)(pixels), 0.0)
