"""A store resident on a device, and its batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plainres import normalization, recipes, sampling
from plainres.augmentation import augment
from plainres.data.prepare import find_store
from plainres.data.records import Progress
from plainres.data.store import Store
from plainres.errors import UserError, unknown
from plainres.normalization import Normalization
from plainres.recipe import Recipe

PARTS = ("train", "val", "test")
_CHUNK = 1 << 16  # images whose draws are made and uploaded at once


@dataclass(frozen=True, eq=False)
class Part:
    """Images uint8 (N, 3, 32, 32), labels int64 (N,), and their published positions int64 (N,), -1 if unknown."""

    name: str
    images: Tensor
    labels: Tensor
    index: Tensor


class Dataset:
    """A whole store on one device: about 184 MB for CIFAR-10."""

    def __init__(self, store: Store, device: torch.device | str = "cpu") -> None:
        self.name, self.hash, self.classes = store.name, store.hash, store.classes
        self.generated = store.generated
        self.path = store.path
        self.device = torch.device(device)
        self._splits = {split: self._upload(store, split) for split in ("train", "test")}

    def _upload(self, store: Store, name: str) -> Part:
        split = store.split(name)
        arrays = (np.array(split.images), split.labels.astype(np.int64), split.index.astype(np.int64))
        return Part(name, *(torch.from_numpy(array).to(self.device) for array in arrays))

    def part(self, name: str, validation_images: int = 0) -> Part:
        """The part "train", "val" or "test".

        The last `validation_images` of the training split are "val" and not "train": last in the store's order,
        which is that of the images' hashes, so a random choice, and the same for every seed.
        """
        if name == "test":
            return self._splits["test"]
        if name not in PARTS:
            raise unknown("split", name, PARTS)
        whole = self._splits["train"]
        cut = len(whole.labels) - validation_images
        if cut <= 0:
            raise UserError(f"{validation_images} validation images of {len(whole.labels)} leave none to train on")
        if name == "val" and validation_images == 0:
            raise UserError("this recipe keeps no validation images; --set validation_images=5000 does")
        rows = slice(0, cut) if name == "train" else slice(cut, None)
        return Part(name, whole.images[rows], whole.labels[rows], whole.index[rows])

    def normalization(self, recipe: str | Recipe) -> Normalization:
        """The input normalization of a recipe: its given statistics, or those of its training part."""
        recipe = recipes.resolve(recipe)
        if recipe.mean and (recipe.std or recipe.normalization == "channel-mean"):
            made = normalization.given(recipe.normalization, recipe.mean, recipe.std)
            return made.to(self.device)
        images = self.part("train", recipe.validation_images).images.cpu()  # not every device has float64
        return normalization.measured(recipe.normalization, images).to(self.device)

    def batches(self, seed: int = 0, recipe: str | Recipe = "paper", start: int = 0) -> "Batches":
        """The endless training batches of a recipe from step `start` on."""
        return Batches(self, seed, recipes.resolve(recipe), start)


class Batches:
    """Batches as a function of (seed, step): iterate them, or take any one by its step.

    Each is (images float32 (B, 3, 32, 32) augmented and normalized, labels int64 (B,)), on the data set's device.
    """

    def __init__(self, dataset: Dataset, seed: int, recipe: Recipe, start: int = 0) -> None:
        self.part = dataset.part("train", recipe.validation_images)
        self.normalization = dataset.normalization(recipe)
        self.seed, self.recipe, self.start = seed, recipe, start
        self.chunk_steps = max(1, _CHUNK // recipe.batch_size)  # whose draws are made at once
        self._chunk: tuple[int, Tensor, Tensor, Tensor] | None = None

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step."""
        index, crop, flip = self._draws(step)
        images = self.part.images.index_select(0, index)
        padding, pad = self.recipe.padding, self.recipe.pad
        batch = augment(images, crop, flip, self.normalization, padding=padding, pad=pad)
        return batch, self.part.labels.index_select(0, index)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from `start` on, without end."""
        step = self.start
        while True:
            yield self[step]
            step += 1

    def draws(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Index (S, B), crop (S, B, 2) and flip (S, B) of chunk `number`, in main memory, int64, as `Draws` has them.

        Step s is row s % `chunk_steps` of chunk s // `chunk_steps`.
        """
        rows = (self.chunk_steps, self.recipe.batch_size)
        size = rows[0] * rows[1]
        pad, flip = self.recipe.pad, self.recipe.flip
        drawn = sampling.draw(self.seed, len(self.part.labels), number * size, size, pad=pad, flip=flip)
        index, crop, mirror = (torch.from_numpy(array) for array in (drawn.index, drawn.crop, drawn.flip))
        return index.view(rows), crop.view(*rows, 2), mirror.view(rows)

    def _draws(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        number, row = divmod(step, self.chunk_steps)
        if self._chunk is None or self._chunk[0] != number:
            index, crop, flip = (drawn.to(self.part.images.device) for drawn in self.draws(number))
            self._chunk = (number, index, crop, flip)
        _, index, crop, flip = self._chunk
        return index[row], crop[row], flip[row]


def dataset(
    data: str | Path | None = None, device: torch.device | str = "cpu", *, progress: Progress | None = None
) -> Dataset:
    """What `--data` names (a store, `generated`, any source of `prepare`; None: CIFAR-10), on a device.

    Where it has to be prepared first, `progress` is told what is done, and how much of how much.
    """
    return Dataset(find_store(data, progress=progress), device)
