import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from making import binary_folder
from plainres import __version__
from plainres.cli import app

DATA = ("--data", "generated:train=300,test=100")
TINY = ("--net", "depth=8", "--net", "width=4")
SHORT = ("--set", "batch_size=20", "--steps", "30")


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def trained(out: Path, *more: str) -> Path:
    done = call("train", "resnet20", *TINY, *DATA, *SHORT, "--out", str(out), "--json", *more)
    assert done.exit_code == 0, done.output
    return Path(json.loads(done.stdout.splitlines()[-1])["run_dir"])


def test_help_and_version_need_no_torch() -> None:
    program = "import sys; from plainres.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass\n"
    program += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules and 'rich' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert call("--version").stdout.strip() == __version__
    assert "resnet56" in call("info", "--help").stdout


def test_info() -> None:
    shown = call("info", "resnet20", "--recipe", "paper", "--set", "steps=9").stdout
    assert "269,722      40,551,050" in shown
    assert re.search(r"^steps +9$", shown, re.MULTILINE)
    facts = json.loads(call("info", "plain56-techxzen", "--recipe", "techxzen", "--json").stdout)
    assert (facts["parameters"], facts["recipe"]["batch_size"]) == (855_050, 100)


def test_train_and_evaluate(tmp_path: Path) -> None:
    run = trained(tmp_path)
    result = json.loads((run / "result.json").read_text())
    done = call("evaluate", str(run), *DATA, "--json", "--confusion")
    facts = json.loads(done.stdout.splitlines()[-1])
    shared = {"network", "recipe", "seed", "steps", "misses", "images", "error", "loss", "data_hash"}
    assert {k: facts[k] for k in shared} == {k: pytest.approx(result[k]) for k in shared}
    assert sum(map(sum, facts["confusion"])) == 100
    assert facts["generated"] is result["generated"] is True
    shown = call("evaluate", str(run / "weights.safetensors"), *DATA, "--split", "train", "--confusion").stdout
    assert "train error" in shown
    assert "GENERATED DATA" in shown
    assert "true, taken for" in shown


def test_train_says_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    words = ("train", "plain20", *TINY, *DATA, *SHORT, "--eval-every", "10", "--out", str(tmp_path))
    lines = call(*words).stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["10", "20", "30"]
    assert sum("GENERATED DATA" in line for line in lines) == 2
    assert "test error at step 30" in lines[-2]
    assert "already finished" in call(*words).stdout
    assert call(*words, "--quiet").output == ""


def test_train_shows_a_bar_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "plainres", "train", "resnet20", *TINY, *DATA, *SHORT, "--out", str(tmp_path)]
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    assert process.wait() == 0
    assert b"images/s" in shown
    assert b"30/30" in shown


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "plainres", "train", "resnet20", *DATA, "--steps", "100", "--out", str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"plainres: stopped after step \d+ of 100, saved in \S+; the same command goes on\n", said)


@pytest.mark.parametrize(
    ("network", "recipe"),
    [("plain8-techxzen", "techxzen"), ("resnet8-techxzen", "techxzen"), ("resnet8-cfmz", "cfmz"), ("resnet8", "best")],
)
def test_the_systems_networks_train_by_their_recipes(network: str, recipe: str, tmp_path: Path) -> None:
    words = ("train", network, "--net", "width=4", "--recipe", recipe, *DATA, *SHORT, "--out", str(tmp_path), "--json")
    facts = json.loads(call(*words).stdout.splitlines()[-1])
    assert (facts["recipe"], facts["steps"]) == (recipe, 30)


def test_a_recipe_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "quick"\nbatch_size = 20\nlearning_rate = 0.05\n')
    run = trained(tmp_path / "runs", "--recipe", str(file))
    assert "-mine-s0-" in run.name
    assert json.loads((run / "run.json").read_text())["recipe"]["learning_rate"] == 0.05


MISTAKES: list[tuple[Sequence[str], str]] = [
    (("train", "resnet21"), "depth 21 is not 6n+2; nearest: 20 or 26"),
    (("train", "resnett20"), "did you mean 'resnet20'"),
    (("train", "resnet20", "--recipe", "papier"), "unknown recipe 'papier'; did you mean 'paper'"),
    (("train", "resnet20", "--recipe", "none.toml"), "No such file"),
    (("train", "resnet20", "--set", "lr=1"), "unknown recipe field 'lr'"),
    (("train", "resnet20", "--set", "steps=many"), "expected an integer, got 'many'"),
    (("train", "resnet20", "--net", "shortcut=Z"), "there are: A, B, C"),
    (("train", "resnet20", *DATA, "--device", "gpu"), "unknown device 'gpu'"),
    (("train", "resnet20", *DATA, "--device", "cuda:99"), "device 'cuda"),
    (("train", "resnet20", *DATA, "--precision", "fp16"), "unknown precision 'fp16'"),
    (("train", "resnet20", *DATA, "--steps", "5", "--epochs", "1"), "not both"),
    (("train", "resnet20", "--data", "generatd"), "did you mean 'generated'"),
    (("train", "resnet20", "--data", "nowhere"), "there is no file or folder nowhere"),
    (("train", "resnet20", *DATA, "--out", "/dev/null/runs"), "/dev/null/runs"),
    (("evaluate", "nowhere.safetensors"), "nowhere.safetensors: there is no such file"),
    (("evaluate", "/dev/null"), "/dev/null: "),
    (("evaluate", "x" * 300), "File name too long"),
    (("train", "resnet20", "--data", "~nobodyhere/x"), "there is no file or folder ~nobodyhere/x"),
    (("train", "resnet20", "--steps", "abc"), "Invalid value for '--steps'"),
    (("train", "resnet20", "--bogus"), "No such option: --bogus"),
    (("train",), "Missing argument"),
    (("trian",), "unknown command 'trian'; did you mean 'train'"),
    (("info", "resnet20", "--set", "steps=1"), "name one with --recipe"),
    (("train", "resnet20", *DATA, "--set", "name=../evil"), "must be letters, digits"),
    (("prepare", "nowhere"), "there is no file or folder nowhere"),
    (("info", "vgg16"), "unknown network 'vgg16'"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda value: value if isinstance(value, str) else None)
def test_a_mistake_is_one_line(
    words: Sequence[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert done.stderr.startswith("plainres: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_lines_go_where_standard_output_goes(tmp_path: Path) -> None:
    """With `> log` in a terminal the bar stays there, and the lines are in the log."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "plainres", "train", "resnet20", *TINY, *DATA, *SHORT, "--out", str(tmp_path / "r")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=theirs, env={**os.environ, "TERM": "xterm"})
        os.close(theirs)
        try:
            while os.read(ours, 4096):
                pass
        except OSError:
            pass
        assert process.wait() == 0
    assert "test error at step 30" in (tmp_path / "log").read_text()


def test_a_run_outlives_its_reader(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "plainres", "train", "resnet20", *TINY, *DATA, *SHORT, "--out", str(tmp_path)]
    reading, writing = os.pipe()
    with (tmp_path / "stderr").open("wb") as said:
        process = subprocess.Popen(words, stdout=writing, stderr=said)
    os.close(writing)
    os.close(reading)
    assert process.wait() in (0, 1)
    assert b"Traceback" not in (tmp_path / "stderr").read_bytes()
    assert list(tmp_path.glob("*/result.json"))


@pytest.mark.parametrize(
    ("option", "said"), [(("--precision", "half"), "unknown precision"), (("--split", "tset"), "unknown split 'tset'")]
)
def test_evaluate_checks_before_it_opens_data(option: tuple[str, str], said: str, tmp_path: Path) -> None:
    run = trained(tmp_path)
    done = call("evaluate", str(run), *option)  # without --data it would download
    assert done.exit_code == 2
    assert said in done.stderr


def test_weights_and_data_of_other_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = trained(tmp_path / "runs"), str(binary_folder(tmp_path / "some"))
    done = call("evaluate", str(run), "--data", folder)
    assert done.exit_code == 2
    assert "these weights know the classes emblem A, emblem B, emblem C, ... (10)" in done.stderr


def test_evaluation_of_what_is_no_run(tmp_path: Path) -> None:
    done = call("evaluate", str(tmp_path))
    assert done.exit_code == 2
    assert "no weights.safetensors in it; is the run finished?" in done.stderr


def test_mistakes_leave_a_run_as_it_was(tmp_path: Path) -> None:
    run = trained(tmp_path)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert call("evaluate", str(run), *DATA, "--split", "tset").exit_code == 2
    assert call("evaluate", str(run), *DATA, "--split", "val").exit_code == 2
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_prepare_does_without_torch(tmp_path: Path) -> None:
    program = "import sys; from plainres.cli import app\ntry: app(['prepare', 'nowhere'])\nexcept SystemExit: pass\n"
    program += "assert 'rich' in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


def test_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(binary_folder(tmp_path / "some"))
    monkeypatch.setenv("PLAINRES_DATA", str(tmp_path / "home"))
    refused = call("prepare", folder)
    assert refused.exit_code == 2
    assert "is not CIFAR-10" in refused.stderr
    first, again = (call("prepare", folder, "--any-images", "--json").stdout for _ in range(2))
    assert json.loads(first)["new"] is True
    assert json.loads(again) == {**json.loads(first), "new": False}
    assert "not CIFAR-10: 50 training and 20 test images" in call("prepare", folder, "--any-images").stdout


def test_several_seeds(tmp_path: Path) -> None:
    words = ("train", "plain20", *TINY, *DATA, *SHORT, "--out", str(tmp_path), "--seeds", "0-1,4")
    lines = call(*words).stdout.splitlines()
    expected = r"plain\S+, recipe paper, test error at step 30: .* n = 3: .*%, .*%, .*%\)"
    assert re.fullmatch(expected, lines[-1]), lines[-1]
    assert [line.split(":")[0] for line in lines if " of 100; " in line] == ["seed 0", "seed 1", "seed 4"]
    found = json.loads(call(*words, "--json").stdout.splitlines()[-1])
    assert found["n"] == 3
    assert [run["seed"] for run in found["runs"]] == [0, 1, 4]
    assert found["error_mean"] == pytest.approx(sum(run["error"] for run in found["runs"]) / 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "1", "--seeds", "2"), "--seed or --seeds"),
        (("--seeds", "1-"), "'1-' is no seed"),
        (("--seeds", "x"), "'x' is no seed"),
        (("--seeds", "3-1"), "must rise"),
        (("--seeds", "1,0-2"), "names a seed twice"),
        (("--engine", "nativ"), "did you mean 'native'"),
        (("--engine", "native"), "engine 'native': the kernels know"),
        (("--engine", "graph"), "engine 'graph': CUDA graphs need an NVIDIA GPU"),
        (("--precision", "tf32"), "needs an NVIDIA GPU"),
    ],
)
def test_words_of_the_engine_and_the_seeds(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = call("train", "plain20", *TINY, *DATA, *SHORT, "--out", str(tmp_path), "--device", "cpu", *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_recomputing_by_name_gives_the_same_weights(tmp_path: Path) -> None:
    kept, again = trained(tmp_path / "kept"), trained(tmp_path / "again", "--recompute", "--engine", "eager")
    assert (kept / "weights.safetensors").read_bytes() == (again / "weights.safetensors").read_bytes()
    assert json.loads((again / "plan.json").read_text())["segment"] == 2
