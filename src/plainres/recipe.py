"""A recipe: everything about training that is not the network, as one value."""

import math
import re
from dataclasses import dataclass

from plainres.errors import UserError
from plainres.fields import added, one_of, replace


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Durations are in steps; learning rates and decay as PyTorch's SGD has them."""

    name: str
    steps: int
    batch_size: int = 128
    # the learning rate
    schedule: str = one_of("steps", "linear", "cosine")
    learning_rate: float = 0.1
    drops: tuple[int, ...] = ()  # the steps at which it is divided by drop_factor
    drop_factor: float = 10.0
    warmup_steps: int = 0  # rises linearly from 0 over these steps
    error_warmup_depth: int = 0  # networks this deep start with the rate below; 0: none does
    error_warmup_learning_rate: float = 0.01
    error_warmup_until: float = 0.8  # until the training error of the last 100 steps is below this
    # the optimizer
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay: str = one_of("all", "weights")  # "weights": neither biases nor BN
    reset_momentum_at_drops: bool = False
    label_smoothing: float = 0.0
    # the images
    validation_images: int = 0  # the last ones of the store's order are kept from training
    normalization: str = one_of("pixel-mean", "channel-mean", "channel-mean-std")
    mean: tuple[float, ...] = ()  # of 0..255 values, by channel; computed from the training part if empty
    std: tuple[float, ...] = ()
    padding: str = one_of("zero-after", "zero-before", "edge")  # zero after or before normalization
    pad: int = 4
    flip: bool = True
    scale: float = added(1.0)  # what part of the full schedule this is; see `scaled`

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}", self.name):  # it names the run directory
            raise ValueError(f"name '{self.name}' must be letters, digits and _.+-, 60 at most")
        self._within(1, 10**9, "steps")
        self._within(1, 65_536, "batch_size")
        self._within(0, 10**9, "warmup_steps", "error_warmup_depth", "validation_images")
        self._within(0, math.inf, "learning_rate", "error_warmup_learning_rate", "weight_decay")
        self._within(0, 32, "pad")
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale is {self.scale}, it must be in (0, 1]")
        self._check_schedule()
        self._check_normalization()
        if not 0 <= self.momentum < 1 or not 0 <= self.label_smoothing < 1:
            raise ValueError("momentum and label_smoothing must be in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")

    def _check_schedule(self) -> None:
        if self.drop_factor <= 0:
            raise ValueError(f"drop_factor is {self.drop_factor}, it must be above 0")
        if not 0 < self.error_warmup_until <= 1:
            raise ValueError(f"error_warmup_until is {self.error_warmup_until}, it must be in (0, 1]")
        if self.warmup_steps >= self.steps and self.schedule != "steps":
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})")
        if list(self.drops) != sorted(set(self.drops)) or any(drop < 1 for drop in self.drops):
            raise ValueError(f"drops {self.drops} must rise, from 1 on")

    def _check_normalization(self) -> None:
        if len(self.mean) not in (0, 3) or len(self.std) not in (0, 3):
            raise ValueError("mean and std take three numbers, or none to have them computed")
        if any(s <= 0 for s in self.std):
            raise ValueError("std must be above 0")
        if self.normalization == "pixel-mean" and (self.mean or self.std):
            raise ValueError("mean and std are given by channel: normalization must be channel-mean(-std)")
        divided = self.normalization == "channel-mean-std"
        if (divided and bool(self.mean) != bool(self.std)) or (self.std and not divided):
            raise ValueError("channel-mean-std takes both mean and std, or neither; channel-mean takes no std")

    def _within(self, least: float, most: float, *names: str) -> None:
        for name in names:
            if not least <= getattr(self, name) <= most:
                limit = f"at least {least}" if getattr(self, name) < least else f"at most {most}"
                raise ValueError(f"{name} is {getattr(self, name)}, it must be {limit}")


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe stopped after `steps`.

    A schedule of drops is cut there and its drops stay where they are; a linear or cosine one ends there, its
    warm-up shortened in proportion.
    """
    if recipe.schedule == "steps":
        return replace(recipe, {"steps": steps}, "recipe")
    warmup_steps = recipe.warmup_steps * steps // recipe.steps
    return replace(recipe, {"steps": steps, "warmup_steps": warmup_steps}, "recipe")


def scaled(recipe: Recipe, scale: float) -> Recipe:
    """The recipe with every duration of its schedule times `scale`, in (0, 1]; its name then says so."""
    if not 0 < scale <= 1:
        raise UserError(f"--scale is {scale:g}, it must be above 0 and at most 1")
    if scale == 1:
        return recipe
    changes = {
        "name": f"{recipe.name}-x{scale:g}",
        "steps": max(1, round(recipe.steps * scale)),
        "drops": tuple(sorted({max(1, round(drop * scale)) for drop in recipe.drops})),
        "warmup_steps": round(recipe.warmup_steps * scale),
        "scale": recipe.scale * scale,
    }
    return replace(recipe, changes, "recipe")


def steps_of(epochs: float, images: int, batch_size: int) -> int:
    """The whole steps of `epochs` passes over `images` training images, at least one."""
    return max(1, int(epochs * images / batch_size))
