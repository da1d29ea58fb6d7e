"""The named recipes, each a function that makes a value."""

import tomllib
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Any

from plainres import fields
from plainres.errors import UserError, unknown
from plainres.recipe import Recipe, steps_of


def paper() -> Recipe:
    """Section 4.2 of He et al. 2015, as it is written.

    What it leaves open is chosen so: 50,000 images, padding with zeros after normalization, no Nesterov
    momentum, decay on every parameter (BN included), batches cut from an endless stream of permutations.
    Table 6: ResNet-20 8.75 %, 32 7.51, 44 7.17, 56 6.97, 110 6.61 ± 0.16.
    """
    return Recipe(
        name="paper",
        batch_size=128,
        steps=64_000,
        learning_rate=0.1,
        drops=(32_000, 48_000),
        error_warmup_depth=110,
        momentum=0.9,
        weight_decay=1e-4,
        normalization="pixel-mean",
        padding="zero-after",
    )


def techxzen() -> Recipe:
    """The recipe of techxzen/pytorch-residual-networks, which made its optimizer anew at each drop.

    Its errors, plain / residual: 20 10.08 / 8.74 %, 32 11.15 / 8.30, 44 14.12 / 7.16, 56 15.39 / 7.41.
    """
    return Recipe(
        name="techxzen",
        batch_size=100,
        steps=64_000,
        learning_rate=0.1,
        drops=(32_000, 48_000),
        reset_momentum_at_drops=True,
        momentum=0.9,
        weight_decay=1e-4,
        normalization="channel-mean",
        mean=(125.0, 123.0, 114.0),
        padding="edge",
    )


def cfmz() -> Recipe:
    """The recipe of apark263/cfmz: 180 passes of 50,000 images, drops at 90 and 135, images padded first.

    Its errors: 20 8.29 %, 32 7.26, 56 6.31, 110 6.00.
    """
    return Recipe(
        name="cfmz",
        batch_size=128,
        steps=steps_of(180, 50_000, 128),
        learning_rate=0.1,
        drops=(steps_of(90, 50_000, 128), steps_of(135, 50_000, 128)),
        momentum=0.9,
        weight_decay=1e-4,
        normalization="channel-mean",
        padding="zero-before",
    )


def quick() -> Recipe:
    """ResNet-20 in 25 minutes on two cores: a linear schedule with a large peak, chosen on a 45,000/5,000 split."""
    steps = steps_of(24, 50_000, 128)
    return Recipe(
        name="quick",
        batch_size=128,
        steps=steps,
        schedule="linear",
        learning_rate=0.4,
        warmup_steps=steps // 5,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        normalization="channel-mean-std",
    )


def best() -> Recipe:
    """A first recipe for a low error with the unchanged network: 200 passes, cosine, more decay, Nesterov."""
    steps = steps_of(200, 50_000, 128)
    return Recipe(
        name="best",
        batch_size=128,
        steps=steps,
        schedule="cosine",
        learning_rate=0.1,
        warmup_steps=steps_of(5, 50_000, 128),
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        normalization="channel-mean-std",
    )


RECIPES: dict[str, Callable[[], Recipe]] = {f.__name__: f for f in (paper, techxzen, cfmz, quick, best)}


def named(name: str) -> Recipe:
    """The recipe of this name; an unknown name fails with the nearest right one."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()


def from_toml(text: str, file: str) -> Recipe:
    """A recipe from TOML: `base = "paper"` and any fields beside it. `file` names it, and is named in errors."""
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file}: not TOML: {error}") from None
    base = data.pop("base", None)
    if not isinstance(base, str):
        raise UserError(f'{file}: base = "NAME" is missing; there are: {", ".join(RECIPES)}')
    return fields.replace(named(base), {"name": PurePath(file).stem, **data}, f"{file}: recipe")


def resolve(recipe: str | Recipe, assignments: Iterable[str] = ()) -> Recipe:
    """A recipe from its name or itself, with "field=value" overrides."""
    base = recipe if isinstance(recipe, Recipe) else named(recipe)
    return fields.override(base, assignments, "recipe")
