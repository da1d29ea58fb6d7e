"""What is shown of runs from their directories alone, made up here."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from plainres import fields, sweep_state
from plainres.cli import app
from plainres.recipes import named
from plainres.spec import NetworkSpec
from plainres.sweep_state import State, States, enlist, note

NOW = 1_800_000_000.0
RESULT = {"error": 0.125, "split": "test", "train_error": 0.1, "steps": 64_000}


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def make(out: Path, name: str, lines: list[dict[str, Any]] | None = None, *, wrote: float = NOW) -> Path:
    """A run directory as `train` leaves it, last written at `wrote`."""
    run = out / name
    run.mkdir(parents=True)
    recipe = named("paper")
    spec = fields.to_json(NetworkSpec.named("resnet20"))
    identity = {"network": spec, "recipe": fields.to_json(recipe), "seed": 3, "steps": recipe.steps, "data": "CIFAR-10"}
    (run / "run.json").write_text(json.dumps(identity))
    if lines is not None:
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    touch(run, wrote)
    return run


def touch(run: Path, moment: float) -> None:
    for path in run.iterdir():
        os.utime(path, (moment, moment))


def trained(*steps: int, seconds: float = 50.0) -> list[dict[str, Any]]:
    """Lines of windows that took so long each, the last one just now, and an evaluation."""
    lines = [
        {"kind": "train", "step": step, "error": 0.5, "time": NOW - seconds * (steps[-1] - step) / 100}
        for step in steps
    ]
    return [*lines, {"kind": "test", "step": steps[-1], "error": 0.25, "time": NOW}]


def only(out: Path, now: float = NOW) -> State:
    (state,) = States(out).read(now)
    return state


def test_a_running_run_shows_step_errors_and_time_left(tmp_path: Path) -> None:
    make(tmp_path, "r", trained(100, 200, 300))
    state = only(tmp_path)
    assert (state.state, state.network, state.recipe, state.seed) == ("running", "resnet20", "paper", 3)
    assert (state.step, state.steps, state.train_error, state.error, state.split) == (300, 64_000, 0.5, 0.25, "test")
    assert state.seconds_left == pytest.approx((64_000 - 300) * 0.5)


def test_a_stop_in_between_does_not_slow_the_estimate(tmp_path: Path) -> None:
    lines = trained(100, 200, 300, 400, 500)
    lines[0]["time"] -= 100_000
    make(tmp_path, "r", lines)
    assert only(tmp_path).seconds_left == pytest.approx((64_000 - 500) * 0.5)


@pytest.mark.parametrize(
    ("window", "age", "expected"),
    [(1, 119, "running"), (1, 121, "stopped"), (600, 1799, "running"), (600, 1801, "stopped")],
)
def test_running_is_told_from_stopped_by_the_age_of_the_last_write(
    window: float, age: float, expected: str, tmp_path: Path
) -> None:
    make(tmp_path, "r", trained(100, 200, 300, seconds=window), wrote=NOW)
    assert only(tmp_path, NOW + age).state == expected


def test_a_checkpoint_keeps_a_run_running(tmp_path: Path) -> None:
    run = make(tmp_path, "r", trained(100))
    (run / "checkpoint.pt").write_bytes(b"")
    os.utime(run / "checkpoint.pt", (NOW + 400, NOW + 400))
    assert only(tmp_path, NOW + 450).state == "running"


def test_a_finished_run_shows_its_result(tmp_path: Path) -> None:
    run = make(tmp_path, "r", trained(100, 200))
    (run / "result.json").write_text(json.dumps(RESULT))
    state = only(tmp_path, NOW + 1e6)
    assert (state.state, state.step, state.error, state.seconds_left) == ("finished", 64_000, 0.125, None)


def test_the_list_knows_the_runs_that_wait_and_keeps_those_of_others(tmp_path: Path) -> None:
    entry = {"network": "plain20", "recipe": "paper", "seed": 1, "steps": 7}
    enlist(tmp_path, {"one": entry})
    enlist(tmp_path, {"two": {**entry, "seed": 2}})
    found = States(tmp_path).read(NOW)
    assert [(state.name, state.state, state.seed, state.steps) for state in found] == [
        ("one", "waiting", 1, 7),
        ("two", "waiting", 2, 7),
    ]


def test_a_failure_holds_until_the_run_writes_again(tmp_path: Path) -> None:
    run = make(tmp_path, "r", trained(100))
    note(tmp_path, "r", "failed", "the loss is not finite")
    states = States(tmp_path)
    (state,) = states.read(NOW)
    assert (state.state, state.why, state.step) == ("failed", "the loss is not finite", 100)
    touch(run, NOW + 10)
    assert states.read(NOW + 20)[0].state == "running"
    note(tmp_path, "r", "stopped")
    assert states.read(NOW + 20)[0].state == "stopped"
    enlist(tmp_path, {"r": {}})
    assert states.read(NOW + 20)[0].state == "running"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"network": 1, "recipe": {}, "seed": 0, "steps": 1, "data": ""}'),
        ("result.json", '{"error": 0.1}'),
        ("result.json", '{"error": "x", "split": "test", "train_error": 0.1, "steps": 3}'),
        ("metrics.jsonl", '{"kind": "train", "step": 1\nx\n'),
        ("metrics.jsonl", "[1]\n"),
        ("metrics.jsonl", '{"kind": "train"}\n'),
    ],
)
def test_a_damaged_run_is_named_and_the_rest_goes_on(file: str, content: str, tmp_path: Path) -> None:
    make(tmp_path, "good", trained(100, 200))
    run = make(tmp_path, "bad", [])
    (run / file).write_text(content)
    good, bad = States(tmp_path).read(NOW)
    assert (good.name, good.state, bad.name, bad.state) == ("good", "running", "bad", "damaged")
    assert str(run / file) in bad.why
    done = call("watch", str(tmp_path), "--once")
    assert done.exit_code == 1
    assert str(run / file) in done.stdout


def test_a_torn_last_line_is_no_damage(tmp_path: Path) -> None:
    run = make(tmp_path, "r", trained(100, 200))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    touch(run, NOW)
    assert (only(tmp_path).state, only(tmp_path).step) == ("running", 200)


def test_long_metrics_are_read_from_their_end_and_only_when_they_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path, "r", trained(*range(100, 400_100, 100)))
    read: list[Path] = []
    tail = sweep_state._tail
    monkeypatch.setattr(sweep_state, "_tail", lambda path: read.append(path) or tail(path))
    states = States(tmp_path)
    for _ in range(3):
        assert states.read(NOW)[0].step == 400_000
    assert len(read) == 1
    assert len(tail(run / "metrics.jsonl")) < 1_000
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 400_100, "error": 0.5, "time": NOW + 50}) + "\n")
    assert states.read(NOW)[0].step == 400_100


def test_watch_once_prints_a_table(tmp_path: Path) -> None:
    run = make(tmp_path, "r", trained(100, 200), wrote=time.time())
    done = call("watch", str(tmp_path), "--once")
    assert done.exit_code == 0, done.output
    assert "0 of 1 runs finished" in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("running")]
    assert row.split()[:7] == ["running", "resnet20", "paper", "3", "200/64,000", "50.00%", "25.00%"]
    drawn = make(tmp_path, "drawn")
    changed = json.loads((drawn / "run.json").read_text()) | {"data": "generated"}
    (drawn / "run.json").write_text(json.dumps(changed))
    both = call("watch", str(tmp_path), "--once").stdout
    assert "CIFAR-10" in both
    assert "generated" in both
    shutil.rmtree(drawn)
    (run / "result.json").write_text(json.dumps(RESULT))
    facts = json.loads(call("watch", str(tmp_path), "--json").stdout.splitlines()[-1])["runs"]
    assert [(run["state"], run["error"], run["name"]) for run in facts] == [("finished", 0.125, "r")]


def test_watch_says_lines_until_nothing_more_is_expected(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "plainres", "watch", str(tmp_path), "--every", "0.1"]
    runs = [make(tmp_path, name, trained(100, 200), wrote=time.time()) for name in "ab"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in runs]
        assert all("running, step 200 of 64,000, training error 50.00%, test error 25.00%" in line for line in first)
        (runs[0] / "result.json").write_text(json.dumps(RESULT))
        assert "finished, step 64,000 of 64,000" in process.stdout.readline()
        assert process.poll() is None
        (runs[1] / "result.json").write_text(json.dumps(RESULT))
        rest = process.stdout.read()
    assert process.returncode == 0
    assert rest.count("\n") == 1


def test_watch_does_not_wait_for_torch() -> None:
    program = "import sys; import plainres.cli_sweep, plainres.cli_sweep_show, plainres.sweep_state; "
    program += "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_folder_without_runs_says_what_to_do(tmp_path: Path) -> None:
    done = call("watch", str(tmp_path))
    assert done.exit_code == 2
    assert done.stderr == (
        f"plainres: {tmp_path} holds no run; plainres sweep resnet20 --seeds 0-4 --out {tmp_path} begins some\n"
    )
    done = call("watch", str(tmp_path / "none"))
    assert done.exit_code == 2
    assert "there is no folder" in done.stderr
