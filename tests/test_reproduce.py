"""The studies: the right networks with the right recipe, and one command from nothing to a report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plainres import recipes, reproduce
from plainres.cli import app
from plainres.errors import UserError
from plainres.recipe import scaled

DATA = "generated:train=300,test=100"


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("paper", 9, "plain20", "resnet110"),
        ("techxzen", 8, "plain20-techxzen", "resnet56-techxzen"),
        ("cfmz", 4, "resnet20-cfmz", "resnet110-cfmz"),
    ],
)
def test_the_studies(name: str, count: int, first: str, last: str) -> None:
    found = reproduce.runs(reproduce.study(name), [0, 1, 2], data=DATA)
    assert len(found) == 3 * count
    assert [found[0].network.name, found[-1].network.name] == [first, last]
    assert {run.recipe for run in found} == {recipes.named(name)}
    assert {run.conduct.eval_every for run in found} == {None}


def test_a_network_by_its_plain_name_is_the_variant_of_the_study() -> None:
    found = reproduce.networks(reproduce.study("cfmz"), ["resnet20", "resnet44-cfmz", "resnet20-cfmz"])
    assert [spec.name for spec in found] == ["resnet20-cfmz", "resnet44-cfmz"]


@pytest.mark.parametrize(
    ("study", "network", "said"),
    [
        ("paper", "resnet20-b", "no network of the study"),
        ("paper", "preact20", "no network of the study"),
        ("techxzen", "resnet20-cfmz", "no network of the study"),
        ("paper", "resnet21", "6n\\+2"),
    ],
)
def test_networks_of_no_study(study: str, network: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        reproduce.networks(reproduce.study(study), [network])


def test_the_nearest_study() -> None:
    with pytest.raises(UserError, match="did you mean 'paper'"):
        reproduce.study("papre")


def test_a_scaled_study_has_curves_all_the_same() -> None:
    (run,) = reproduce.runs(reproduce.study("paper"), [0], ["plain20"], scale=0.025, data=DATA)
    assert run.recipe == scaled(recipes.paper(), 0.025)
    assert run.conduct.eval_every == 200
    assert "--scale 0.025" in run.command


def test_from_nothing_to_a_report(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "plainres", "reproduce", "paper", "--seeds", "0-1", "--networks", "plain8,resnet8"]
    words += ["--scale", "0.00005", "--data", DATA, "--report", "page"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "paper-x5e-05" in done.stdout
    assert "GENERATED" in done.stdout
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "figures",
        "index.html",
        "results.csv",
        "table.md",
    ]
    again = subprocess.run([*words, "--json"], cwd=tmp_path, capture_output=True, text=True)
    facts = json.loads(again.stdout.splitlines()[-1])
    assert [run["already"] for run in facts["runs"]] == [True] * 4
    assert facts["report"] == "page"


def test_a_missing_extra_is_told_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["reproduce", "paper", "--networks", "plain8", "--data", DATA])
    assert done.exit_code == 2
    assert "plainres[report]" in done.output
    assert not (tmp_path / "runs").exists()
