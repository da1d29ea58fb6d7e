"""`plainres compare`: two trained networks, or two networks over their seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import plainres
from conftest import TINY
from making_runs import make_run
from plainres import compare, recipes, results, statistics
from plainres.cli import app
from plainres.data.dataset import Dataset
from plainres.recipe import Recipe, with_steps

DATA = "generated:train=300,test=100"
QUICK = with_steps(recipes.quick(), 300)


@pytest.fixture(scope="module")
def trained(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    recipe, out = Recipe(name="tiny", steps=60, batch_size=20), tmp_path_factory.mktemp("runs")
    first, second = (plainres.train(TINY, recipe, small, out=out, engine="eager", seed=seed) for seed in (0, 1))
    return first.run_dir, second.run_dir


def call(*words: object):
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def test_two_runs_by_what_they_predicted(trained: tuple[Path, Path]) -> None:
    first, second = trained
    found = json.loads(call(first, second, "--json").stdout.splitlines()[-1])
    missed = [run.predictions.missed for run in map(results.read, trained) if run.predictions]
    assert [found[side]["misses"] for side in "ab"] == [int(m.sum()) for m in missed]
    assert found["mcnemar"] == vars(statistics.mcnemar(*missed))
    assert found["mcnemar"]["first_alone"] == int((missed[0] & ~missed[1]).sum())
    assert found["a"]["error_interval"] == list(statistics.interval(found["a"]["misses"], 100))
    shown = call(first, second).stdout
    assert "McNemar's exact test" in shown
    assert "GENERATED DATA" in shown
    assert "other seeds may differ" in shown


def test_weights_files_are_evaluated_and_agree_with_the_runs(trained: tuple[Path, Path]) -> None:
    of_runs = compare.compare_trained(*map(str, trained))
    files = [str(run / "weights.safetensors") for run in trained]
    assert compare.compare_trained(*files, DATA).test == of_runs.test
    assert compare.compare_trained(files[0], str(trained[1]), DATA).test == of_runs.test


def test_other_images_are_evaluated_anew(trained: tuple[Path, Path]) -> None:
    pair = compare.compare_trained(*map(str, trained), "generated:train=300,test=50")
    assert [len(side.predictions.labels) for side in pair.sides] == [50, 50]


def test_two_networks_over_their_seeds(tmp_path: Path) -> None:
    for seed, errors in enumerate([(0.3, 0.25), (0.35, 0.2), (0.32, 0.22)]):
        for network, error in zip(("plain20", "resnet20"), errors, strict=True):
            make_run(tmp_path, network, seed=seed, error=error)
    make_run(tmp_path, "resnet20", seed=7)  # no partner: in its spread, not in the difference
    done = call("plain20", "resnet20", "--runs", tmp_path, "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["a"]["n"], found["b"]["n"], found["difference"]["seeds"]) == (3, 4, 3)
    runs = {(run.network, run.seed): run for run in results.find([tmp_path]).runs}
    errors = [runs["plain20", seed].result["error"] for seed in range(3)]
    assert found["a"]["error"]["mean"] == pytest.approx(np.mean(errors))
    assert found["a"]["error"]["std"] == pytest.approx(np.std(errors, ddof=1))
    nearest = min(range(3), key=lambda seed: abs(errors[seed] - np.mean(errors)))
    assert found["a"]["nearest_mean"] == {"seed": nearest, "run_dir": str(runs["plain20", nearest].path)}
    held = [runs["plain20", seed].predictions for seed in range(3)]
    assert found["a"]["ece"]["mean"] == pytest.approx(
        np.mean([statistics.calibration_error(p.logits, p.labels) for p in held])
    )
    apart = [errors[seed] - runs["resnet20", seed].result["error"] for seed in range(3)]
    assert found["difference"]["mean"] == pytest.approx(np.mean(apart))
    assert found["difference"]["low"] < found["difference"]["mean"] < found["difference"]["high"]
    shown = call("plain20", "resnet20", "--runs", tmp_path).stdout
    assert f"plain20@paper-x0.025 minus resnet20@paper-x0.025: {100 * np.mean(apart):+.2f} points" in shown
    assert "With 3 seeds the interval says little" in shown


def test_recipes_of_one_network_are_told_apart_by_name(tmp_path: Path) -> None:
    make_run(tmp_path, "resnet20")
    make_run(tmp_path, "resnet20", QUICK)
    make_run(tmp_path, "plain20", QUICK)
    shown = call("resnet20@quick", "resnet20@paper-x0.025", "--runs", tmp_path).stdout
    assert "They differ in more than the network" in shown
    assert "With one seed" in shown
    found = compare.compare_networks("resnet20", "plain20", tmp_path)  # one setting alone has both
    assert [side.setting.recipe.name for side in found.sides] == ["quick", "quick"]


def test_without_a_common_seed_no_difference_is_told(tmp_path: Path) -> None:
    make_run(tmp_path, "plain20")
    make_run(tmp_path, "resnet20", seed=1)
    done = call("plain20", "resnet20", "--runs", tmp_path)
    assert "no seed that both have" in done.stdout
    assert "points" not in done.stdout


def test_a_damaged_run_is_named_and_the_others_compared(tmp_path: Path) -> None:
    damaged = make_run(tmp_path, "plain20", seed=1)
    (damaged / "result.json").write_text("{")
    for network in ("plain20", "resnet20"):
        make_run(tmp_path, network)
    done = call("plain20", "resnet20", "--runs", tmp_path)
    assert done.exit_code == 0
    assert done.stderr.startswith("left out: ")
    assert damaged.name in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plain56", "resnet20"), "no finished run of 'plain56'"),
        (("plain20@best", "resnet20"), "no finished run of 'plain20@best'"),
        (("resnet20", "resnet20@quick"), None),
        (("plain20", "plain20"), "are the same runs"),
        (("resnet20", "plain20"), "several runs match: resnet20@paper-x0.025 (paper-x0.025, 1,600 steps, CIFAR-10"),
        (("resnet20", "nowhere.safetensors"), "no finished run of 'nowhere.safetensors'"),
        (("plain20", "resnet20@quick", "--data", "generated"), "--data is for weights files"),
        (("plain20", "resnet20", "--runs", "nowhere"), "there is no such folder"),
        (("plain20", "/dev/null/x", "--runs", "."), "/dev/null/x"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    words: tuple[str, ...], said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs"), "resnet20")
    make_run(Path("runs"), "resnet20", QUICK)
    make_run(Path("runs"), "plain20", with_steps(QUICK, 200))
    done = call(*words)
    if said is None:
        assert done.exit_code == 0, done.output
        return
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_and_a_name_are_not_compared(trained: tuple[Path, Path]) -> None:
    done = call(trained[0], "resnet20")
    assert done.exit_code == 2
    assert "resnet20: no weights file and no run directory" in done.stderr


def test_an_unfinished_run_has_nothing_to_compare(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "plain20"), make_run(tmp_path, "resnet20", finished=False)]
    done = call(*runs)
    assert done.exit_code == 2
    assert "is not finished" in done.stderr
    shown = call("plain20", "resnet20", "--runs", tmp_path)
    assert "no finished run of 'resnet20'" in shown.stderr


@pytest.mark.parametrize("weights", [False, True])
def test_other_images_are_refused(weights: bool, tmp_path: Path, trained: tuple[Path, Path]) -> None:
    other = trained[0] / "weights.safetensors" if weights else make_run(tmp_path, "resnet20")
    done = call(trained[1], other)  # without --data, CIFAR-10 would be downloaded
    assert done.exit_code == 2
    assert "--data names" in done.stderr


def test_scaled_runs_are_marked(tmp_path: Path) -> None:
    both = [make_run(tmp_path, seed=seed) for seed in (0, 1)]  # of a scaled recipe
    assert call(*both).stdout.count("SCALED SCHEDULE") == 2
    assert json.loads(call(*both, "--json").stdout.splitlines()[-1])["a"]["scale"] == 0.025
