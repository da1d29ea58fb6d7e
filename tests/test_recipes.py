import itertools

import pytest

from plainres import fields, recipes
from plainres.errors import UserError
from plainres.recipe import Recipe, steps_of, with_steps
from plainres.schedule import learning_rate


def trace(recipe: Recipe, **options: int | None) -> list[tuple[float, int]]:
    """The learning rate over the whole length of a recipe: (rate, steps it holds) in order."""
    rates = (learning_rate(step, recipe, **options) for step in range(recipe.steps))
    return [(rate, len(list(steps))) for rate, steps in itertools.groupby(rates)]


def test_the_paper() -> None:
    assert trace(recipes.paper()) == [(0.1, 32_000), (0.01, 16_000), (0.001, 16_000)]
    assert recipes.paper().steps * recipes.paper().batch_size == 8_192_000


def test_the_warm_up_of_110_layers() -> None:
    paper = recipes.paper()
    until_400 = [(0.01, 400), (0.1, 31_600), (0.01, 16_000), (0.001, 16_000)]
    assert trace(paper, depth=110, warmup_end=400) == until_400
    assert trace(paper, depth=1202, warmup_end=400) == until_400
    assert trace(paper, depth=56, warmup_end=None) == trace(paper)
    assert trace(paper, depth=110, warmup_end=None) == [(0.01, 64_000)]
    for other in (recipes.techxzen(), recipes.cfmz()):
        assert trace(other, depth=110) == trace(other)


def test_techxzen() -> None:
    assert trace(recipes.techxzen()) == [(0.1, 32_000), (0.01, 16_000), (0.001, 16_000)]
    assert recipes.techxzen().reset_momentum_at_drops


def test_cfmz() -> None:
    assert trace(recipes.cfmz()) == [(0.1, 35_156), (0.01, 52_734 - 35_156), (0.001, 70_312 - 52_734)]


def test_quick_rises_and_falls_linearly() -> None:
    recipe = recipes.quick()
    rates = [learning_rate(step, recipe) for step in range(recipe.steps)]
    top, warm = recipe.learning_rate, recipe.warmup_steps
    assert max(rates) == rates[warm - 1] == rates[warm] == top
    assert rates[0] == pytest.approx(top / warm)
    assert rates[-1] == pytest.approx(top / (recipe.steps - warm))
    rise, fall = rates[:warm], rates[warm:]
    assert all(b - a == pytest.approx(top / warm) for a, b in itertools.pairwise(rise))
    assert all(a - b == pytest.approx(top / (recipe.steps - warm)) for a, b in itertools.pairwise(fall))


def test_best_is_a_cosine() -> None:
    recipe = recipes.best()
    rates = [learning_rate(step, recipe) for step in range(recipe.steps)]
    middle = recipe.warmup_steps + (recipe.steps - recipe.warmup_steps) // 2
    assert rates[middle] == pytest.approx(recipe.learning_rate / 2, rel=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[recipe.warmup_steps :]))
    assert 0 < rates[-1] < 1e-6


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_are_values(name: str) -> None:
    recipe = recipes.named(name)
    assert recipe.name == name
    assert hash(recipe) == hash(recipes.named(name))
    assert fields.from_json(Recipe, fields.to_json(recipe), "recipe") == recipe


def test_overrides_are_typed() -> None:
    recipe = recipes.resolve("paper", ["learning_rate=0.05", "drops=100,200", "flip=no", "weight-decay=5e-4"])
    assert (recipe.learning_rate, recipe.drops, recipe.flip, recipe.weight_decay) == (0.05, (100, 200), False, 5e-4)
    assert recipes.resolve("paper", ["drops="]).drops == ()


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("learningrate=1", "unknown recipe field 'learningrate'; did you mean 'learning_rate'?"),
        ("learning_rate=fast", "recipe field 'learning_rate': expected a number, got 'fast'"),
        ("learning_rate=nan", "expected a number, got 'nan'"),
        ("steps=1.5", "expected an integer, got '1.5'"),
        ("nesterov=1", "expected true or false, got '1'"),
        ("padding=reflect", "'reflect'; there are: zero-after, zero-before, edge"),
        ("steps=0", "steps is 0, it must be at least 1"),
        ("drops=5,3", "must rise"),
        ("mean=1,2", "three numbers"),
        ("mean=1,2,3", "given by channel"),
        ("drops=-5", "must rise, from 1 on"),
        ("momentum=5", "must be in [0, 1)"),
        ("error_warmup_until=-1", "must be in (0, 1]"),
        ("batch_size=1000000000000", "it must be at most 65536"),
        ("learning_rate=1e999", "expected a number"),
        ("name=../../evil", "must be letters, digits"),
        ("name=", "must be letters, digits"),
        ("batch_size=-1", "batch_size is -1"),
    ],
)
def test_wrong_overrides(assignment: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.resolve("paper", [assignment])
    assert said in str(caught.value)


@pytest.mark.parametrize("half", [["mean=1,2,3"], ["std=1,2,3"], ["std=1,2,3", "normalization=channel-mean"]])
def test_statistics_that_would_be_ignored_are_refused(half: list[str]) -> None:
    with pytest.raises(UserError, match="takes both mean and std, or neither"):
        recipes.resolve("quick", half)


def test_unknown_recipe() -> None:
    with pytest.raises(UserError, match="unknown recipe 'papr'; did you mean 'paper'"):
        recipes.named("papr")


def test_toml() -> None:
    text = 'base = "paper"\nlearning_rate = 0.05\ndrops = [10, 20]\nsteps = 30\n'
    recipe = recipes.from_toml(text, "short.toml")
    assert (recipe.name, recipe.drops, recipe.steps, recipe.batch_size) == ("short", (10, 20), 30, 128)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rate = 0.1", 'base = "NAME" is missing'),
        ('base = "paper"\nlr = 0.1', "short.toml: recipe field 'lr'"),
        ('base = "paper"\nsteps = true', "expected an integer, got 'True'"),
        ("base = ", "not TOML"),
        ('base = "papers"', "did you mean 'paper'"),
    ],
)
def test_wrong_toml(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.from_toml(text, "short.toml")
    assert said in str(caught.value)


def test_fewer_steps() -> None:
    assert trace(with_steps(recipes.paper(), 200)) == [(0.1, 200)]
    quick = with_steps(recipes.quick(), 300)
    assert (quick.steps, quick.warmup_steps) == (300, recipes.quick().warmup_steps * 300 // recipes.quick().steps)
    assert steps_of(24, 50_000, 128) == recipes.quick().steps == 9375
    assert steps_of(0.0001, 50_000, 128) == 1
