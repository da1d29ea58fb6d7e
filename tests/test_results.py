"""Run directories read back: what is damaged is named, and nothing but seeds is averaged."""

import json
import shutil
from pathlib import Path

import pytest

import plainres
from conftest import TINY
from making_runs import make_run
from plainres import fields, groups, recipes, results
from plainres.data.dataset import Dataset
from plainres.errors import Stopped, UserError
from plainres.outcome import Reporter
from plainres.recipe import Recipe, scaled, with_steps
from plainres.statistics import Difference

SHORT = with_steps(recipes.paper(), 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_home: Path) -> Path:
    """Two networks, two seeds each, of three steps."""
    out = tmp_path_factory.mktemp("runs")
    data = plainres.dataset("generated:train=300,test=100")
    for network in (TINY, fields.replace(TINY, {"kind": "plain"}, "network")):
        for seed in (0, 1):
            plainres.train(network, SHORT, data, seed=seed, out=out, engine="eager")
    return out


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def one_of(folder: Path, name: str = "resnet8-custom-paper-s0-*") -> Path:
    return next(folder.glob(name))


def test_what_was_written_is_read(runs: Path) -> None:
    found = results.find([runs])
    assert found.left_out == []
    assert [(run.network, run.seed) for run in found.runs] == [
        ("plain8-custom", 0),
        ("plain8-custom", 1),
        ("resnet8-custom", 0),
        ("resnet8-custom", 1),
    ]
    run = found.runs[0]
    assert run.result
    assert run.predictions is not None
    assert run.predictions.confusion.sum() == 100
    assert run.predictions.missed.sum() == run.result["misses"]
    assert run.generated
    assert run.held_out == "test"
    assert run.recipe == SHORT
    steps, errors = run.curve("test")
    assert run.curve("train")[0] == steps[-1:] == [3]
    assert errors[-1] == run.result["error"]
    assert run.best == min(errors)
    assert len(run.responses) == 7
    assert run.facts("plan.json")["engine"] == "eager"
    assert run.predictions.class_errors == pytest.approx(
        list(plainres.evaluate(run.path, "generated:train=300,test=100").class_errors.values())
    )


def test_seeds_are_averaged(runs: Path) -> None:
    (setting,) = groups.settings(results.find([runs]).runs)
    assert setting.name == "paper, 3 steps, generated"
    group = setting.group("resnet8-custom")
    assert group is not None
    assert len(group.finished) == 2
    assert setting.group("resnet20") is None
    spread = group.spread()
    errors = [json.loads(path.read_text())["error"] for path in sorted(runs.glob("resnet8-*/result.json"))]
    assert spread is not None
    assert spread.n == 2
    assert spread.mean == pytest.approx(sum(errors) / 2)
    assert group.nearest_mean in group.finished
    assert group.spread("not there") is None


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 0.05}, {"steps": 4}, {"name": "other"}, {"normalization": "channel-mean"}]
)
def test_other_recipes_stand_apart(copied: Path, small: Dataset, changes: dict[str, object]) -> None:
    recipe = fields.replace(SHORT, changes, "recipe")
    plainres.train(TINY, recipe, small, seed=2, out=copied, engine="eager")
    found = groups.settings(results.find([copied]).runs)
    assert [len(setting.groups) for setting in found] in ([1, 2], [2, 1])
    assert len({setting.name for setting in found}) == 2  # and are told apart by name
    alone = next(setting for setting in found if len(setting.groups) == 1)
    assert alone.groups[0].finished[0].recipe == recipe


def test_other_data_stands_apart(copied: Path) -> None:
    data = plainres.dataset("generated:train=300,test=90")
    plainres.train(TINY, SHORT, data, seed=2, out=copied, engine="eager")
    assert len(groups.settings(results.find([copied]).runs)) == 2


def test_scaled_runs_say_so(tmp_path: Path, small: Dataset) -> None:
    recipe = scaled(recipes.paper(), 3 / 64_000)
    assert (recipe.steps, recipe.drops) == (3, (2,))  # 1.5 and 2.25 both round to 2
    plainres.train(TINY, recipe, small, out=tmp_path, engine="eager")
    (setting,) = groups.settings(results.find([tmp_path]).runs)
    assert "scaled to 4.6875e-05 of its length" in setting.name


def test_differences(runs: Path) -> None:
    (setting,) = groups.settings(results.find([runs]).runs)
    one, other = setting.groups
    found = groups.difference(one, other)
    assert found is not None
    assert found.seeds == 2
    means = [group.spread().mean for group in (one, other)]  # type: ignore[union-attr]
    assert found.mean == pytest.approx(means[0] - means[1])
    assert groups.difference(one, one) == Difference(0, 0, 0, seeds=2)
    tested = groups.mcnemar(one.finished[0], other.finished[0])
    misses = [int(group.finished[0].result["misses"]) for group in (one, other)]  # type: ignore[index]
    assert tested.first_alone - tested.second_alone == misses[0] - misses[1]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _changed_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("run.json", _cut, "not JSON"),
        ("run.json", lambda p: _changed_json(p, seed=7), "was changed"),
        ("run.json", Path.unlink, "No such file"),
        ("result.json", _cut, "not JSON"),
        ("result.json", lambda p: p.write_text("{}"), "damaged"),
        ("result.json", lambda p: _changed_json(p, network="resnet20"), "another run"),
        ("result.json", lambda p: _changed_json(p, misses=1), "misses"),
        ("predictions.safetensors", _cut, "damaged"),
        ("metrics.jsonl", lambda p: p.write_bytes(b"{}\n" + p.read_bytes()), "line 1 is damaged"),
        ("result.json", lambda p: _changed_json(p, error="0.1"), "finite numbers"),
        ("result.json", lambda p: _changed_json(p, error=float("nan")), "finite numbers"),
        ("result.json", lambda p: _changed_json(p, error_interval=[0.1]), "finite numbers"),
        ("result.json", lambda p: _changed_json(p, peak_memory_bytes="x"), "finite numbers"),
        ("result.json", lambda p: _changed_json(p, images=99), "misses of 100"),
        ("run.json", lambda p: _changed_json(p, seed=None), "damaged"),
        ("run.json", lambda p: _changed_json(p, world_size="x"), "damaged"),
        ("plan.json", lambda p: p.write_text("{"), "not JSON"),
        ("machine.json", lambda p: p.write_text("[]"), "no object"),
        ("responses.json", lambda p: p.write_text('["x"]'), "no list of layers"),
        ("responses.json", lambda p: p.write_text('[{"layer": "bn1", "std": NaN}]'), "no list of layers"),
        ("responses.json", lambda p: p.write_text('[{"layer": "bn1", "std": 1.0}]'), "1 layers"),
    ],
)
def test_a_damaged_run_is_named_and_left_out(copied: Path, name: str, damage: object, said: str) -> None:
    damage(one_of(copied) / name)  # type: ignore[operator]
    found = results.find([copied])
    assert len(found.runs) == 3
    (line,) = found.left_out
    assert said in line
    assert str(one_of(copied)) in line
    assert "\n" not in line


def test_an_unfinished_run(tmp_path: Path, small: Dataset) -> None:
    class Stop(Reporter):
        def evaluated(self, line: dict[str, object]) -> None:
            raise Stopped("enough")

    with pytest.raises(Stopped):
        plainres.train(TINY, SHORT, small, eval_every=1, out=tmp_path, engine="eager", reporter=Stop())
    (setting,) = groups.settings(results.find([tmp_path]).runs)
    (group,) = setting.groups
    assert group.finished == []
    assert len(group.unfinished) == 1
    assert group.spread() is None
    assert group.nearest_mean is None


def test_the_same_run_twice_counts_once(runs: Path, tmp_path: Path) -> None:
    run = one_of(runs)
    shutil.copytree(run, tmp_path / run.name)
    found = results.find([runs, tmp_path, run])
    assert len(found.runs) == 4
    (line,) = found.left_out
    assert "the same run as" in line


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plainres reproduce paper"):
        results.find([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        results.find([tmp_path / "nowhere"])


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_scales_that_are_none(scale: float) -> None:
    with pytest.raises(UserError, match="--scale"):
        scaled(recipes.paper(), scale)


def test_a_scale_shortens_every_duration() -> None:
    assert scaled(recipes.paper(), 1) == recipes.paper()
    found = scaled(recipes.quick(), 0.1)
    assert (found.name, found.steps, found.warmup_steps, found.scale) == ("quick-x0.1", 938, 188, 0.1)
    found = scaled(recipes.paper(), 0.025)
    assert (found.steps, found.drops, found.learning_rate) == (1600, (800, 1200), 0.1)


def test_what_came_later_does_not_change_what_was_written() -> None:
    assert "scale" not in fields.to_json(recipes.paper())
    short = scaled(recipes.paper(), 0.5)
    assert fields.to_json(short)["scale"] == 0.5
    assert fields.from_json(Recipe, fields.to_json(short), "recipe") == short


def test_one_seed_from_several_starts_is_not_one_network(tmp_path: Path) -> None:
    for start in ("aaa", "bbb"):
        make_run(tmp_path, {"module": "mine.Net", "structure": "x", "start": start})
    (setting,) = groups.settings(results.find([tmp_path]).runs)
    assert [len(group.finished) for group in setting.groups] == [1, 1]
