"""The learning rate as a pure function of the step."""

import math
from typing import Protocol


class Scheduled(Protocol):
    """The fields of a recipe that the schedule reads."""

    @property
    def schedule(self) -> str: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def drops(self) -> tuple[int, ...]: ...
    @property
    def drop_factor(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def error_warmup_depth(self) -> int: ...
    @property
    def error_warmup_learning_rate(self) -> float: ...


def learning_rate(step: int, recipe: Scheduled, *, depth: int | None = None, warmup_end: int | None = None) -> float:
    """The learning rate of step number `step` (from 0) of a recipe.

    `depth` is that of the network, `warmup_end` the step at which the warm-up that ends by the training error
    has ended, None while it has not: it concerns networks of `error_warmup_depth` layers and more only.
    """
    if warms_up_by_error(recipe, depth) and (warmup_end is None or step < warmup_end):
        return recipe.error_warmup_learning_rate
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "steps":
        # Divided as the paper says it: 0.1, 0.01, 0.001 to the last bit, which 0.1 * 0.1 is not.
        return recipe.learning_rate / recipe.drop_factor ** sum(step >= drop for drop in recipe.drops)
    left = (recipe.steps - step) / (recipe.steps - recipe.warmup_steps)
    if recipe.schedule == "linear":
        return recipe.learning_rate * left
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (1 - left)))


def warms_up_by_error(recipe: Scheduled, depth: int | None) -> bool:
    """Whether a network of this depth starts with the warm-up that ends by the training error."""
    return depth is not None and 0 < recipe.error_warmup_depth <= depth
