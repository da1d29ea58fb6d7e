"""`plainres responses`: Figure 7 of runs and of weights files."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import plainres
from conftest import TINY
from making_runs import make_run
from plainres import report_responses
from plainres.cli import app
from plainres.data.dataset import Dataset
from plainres.errors import UserError
from plainres.recipe import Recipe

DATA = ("--data", "generated:train=300,test=100")


@pytest.fixture(scope="module")
def trained(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe(name="tiny", steps=20, batch_size=20)
    return plainres.train(TINY, recipe, small, out=tmp_path_factory.mktemp("runs"), engine="eager").run_dir


def call(*words: str):
    return CliRunner().invoke(app, ["responses", *words])


def test_a_run_needs_no_data_and_its_weights_give_the_same_numbers(trained: Path) -> None:
    (told,) = report_responses.of([trained])
    assert told.stds == [(x["layer"], x["std"]) for x in json.loads((trained / "responses.json").read_text())]
    (measured,) = report_responses.of([trained / "weights.safetensors"], DATA[1])
    assert [layer for layer, _ in measured.stds] == [layer for layer, _ in told.stds]
    assert [std for _, std in measured.stds] == pytest.approx([std for _, std in told.stds], rel=1e-3)
    assert (measured.network, measured.recipe, measured.seed) == (told.network, "tiny", 0)
    assert measured.data == "generated"


def test_numbers_and_a_picture(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(str(trained))
    assert done.exit_code == 0, done.output
    rows = done.stdout.splitlines()
    stds = [x["std"] for x in json.loads((trained / "responses.json").read_text())]
    assert [row.split()[-1] for row in rows[1 : len(stds) + 1]] == [f"{std:.4f}" for std in stds]
    assert rows[1].split()[:2] == ["1", "bn1"]
    assert rows[len(stds) + 1].split() == ["mean", f"{sum(stds) / len(stds):.4f}"]
    assert "GENERATED DATA" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["responses.png", "responses.svg"]


def test_several_are_drawn_in_one_picture(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", network) for network in ("plain20", "resnet56")]
    done = call(*map(str, runs), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    rows = done.stdout.splitlines()
    assert rows[0].split() == ["layer", "plain-20", "ResNet-56"]
    assert [len(row.split()) for row in rows[1:56]] == [3] * 19 + [2] * 36  # the index and a number each
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"responses.png", "responses.svg"}


def test_json_is_numbers_alone_unless_a_folder_is_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = json.loads(call(str(trained), "--json").stdout.splitlines()[-1])
    assert found["responses"][0]["layers"] == json.loads((trained / "responses.json").read_text())
    assert found["pictures"] == []
    assert not list(tmp_path.iterdir())
    found = json.loads(call(str(trained), "--json", "--out", "here").stdout.splitlines()[-1])
    assert found["pictures"] == ["here/responses.svg", "here/responses.png"]
    assert (tmp_path / "here" / "responses.svg").exists()


def test_labels_tell_networks_apart(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "resnet20"), make_run(tmp_path, "resnet20", seed=1)
    deep = make_run(tmp_path, "resnet56")
    assert report_responses.labels(report_responses.of([first, deep])) == ["ResNet-20", "ResNet-56"]
    assert report_responses.labels(report_responses.of([first, second])) == ["ResNet-20, seed 0", "ResNet-20, seed 1"]
    assert report_responses.labels(report_responses.of([first, first])) == [str(first)] * 2


@pytest.mark.parametrize(
    ("source", "said"),
    [("nowhere", "there is no such file"), ("unfinished", "not finished"), ("text", "not a weights file")],
)
def test_what_has_no_responses_is_one_line(source: str, said: str, tmp_path: Path) -> None:
    paths = {"nowhere": tmp_path / "nowhere", "text": tmp_path / "text"}
    paths["text"].write_text("no weights")
    paths["unfinished"] = make_run(tmp_path, "resnet20", finished=False)
    done = call(str(paths[source]), *DATA)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_matplotlib_there_are_still_the_numbers(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = call(str(trained))
    assert done.exit_code == 2
    assert "stage3.0.bn2" in done.stdout
    assert "pip install 'plainres[report]'" in done.stderr
    assert call(str(trained), "--json").exit_code == 0
    with pytest.raises(UserError):
        report_responses.draw(report_responses.of([trained]), trained)
