"""Sweeps on this machine: what is said, skipped, retried, reported, stopped and taken up again."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from plainres import fields
from plainres.cli import app
from plainres.cli_app import recipe_of, spec_of
from plainres.data.dataset import Dataset
from plainres.data.prepare import find_store
from plainres.errors import Stopped, UserError
from plainres.outcome import FACTS, Reporter
from plainres.recipe import Recipe, scaled, with_steps
from plainres.recipes import named
from plainres.run import Conduct, train
from plainres.spec import NetworkSpec
from plainres.sweep import Observer, executor, sweep
from plainres.sweep_local import places
from plainres.sweep_state import States
from plainres.sweep_time import Speed, whole
from plainres.sweep_wanted import Ended, Wanted, wanted

DATA = "generated:train=300,test=100"
TINY = NetworkSpec(depth=8, width=4)
CONDUCT = Conduct(eval_every=0, threads=1, engine="eager")
PAPER = fields.replace(named("paper"), {"batch_size": 20}, "recipe")


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def runs_into(out: Path, seeds: Iterable[int] = (0,), *, steps: int = 20, **changes: Any) -> list[Wanted]:
    recipe = fields.replace(with_steps(PAPER, steps), changes, "recipe")
    return wanted([TINY], recipe, seeds, DATA, out=out, device="cpu", conduct=CONDUCT)


def trained(run: Wanted, data: Dataset, reporter: Reporter | None = None) -> dict[str, Any]:
    """The result of a run made in this process."""
    how = {**vars(run.conduct), "seed": run.seed, "out": run.out, "device": run.device}
    return train(run.network, run.recipe, data, reporter=reporter, **how).facts


# -- a run as a value


NETWORKS = [
    NetworkSpec.named("resnet56"),
    NetworkSpec.named("plain20-techxzen"),
    NetworkSpec.named("preact164"),
    NetworkSpec(depth=8, width=4),
    NetworkSpec(depth=14, kind="plain", conv_bias=True),
    NetworkSpec(depth=38, kind="preact", block="bottleneck", shortcut="C"),
    replace(NetworkSpec.named("resnet20-cfmz"), fc_bias=True),
]
RECIPES = [
    named("paper"),
    scaled(named("cfmz"), 0.05),
    with_steps(named("quick"), 100),
    with_steps(scaled(named("techxzen"), 0.1), 500),
    scaled(fields.replace(named("best"), {"learning_rate": 0.07, "flip": False}, "recipe"), 0.3),
    fields.replace(named("paper"), {"name": "mine", "drops": (), "decay": "weights", "steps": 77}, "recipe"),
    fields.replace(named("techxzen"), {"mean": (1.5, 2.25, 3e-7), "schedule": "cosine", "nesterov": True}, "recipe"),
]


def taken(words: list[str], option: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == option]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_command_says_the_network_and_the_recipe(network: NetworkSpec, recipe: Recipe, tmp_path: Path) -> None:
    words = Wanted(network, recipe, 0, find_store(DATA), out=tmp_path).words()
    assert words[:2] == ["plainres", "train"]
    assert spec_of(words[2], taken(words, "--net")) == network
    scale, steps = taken(words, "--scale") or ["1"], taken(words, "--steps")
    said = recipe_of(taken(words, "--recipe")[0], taken(words, "--set"), float(scale[0]))
    assert (with_steps(said, int(steps[0])) if steps else said) == recipe


def test_a_command_says_no_more_than_it_has_to() -> None:
    store = find_store(DATA)
    scaled_run = Wanted(NetworkSpec.named("resnet20"), scaled(named("paper"), 0.05), 3, store)
    assert scaled_run.command == "plainres train resnet20 --recipe paper --scale 0.05 --seed 3 --out runs"
    how = Conduct(eval_every=0, threads=2, recompute=True)
    odd = Wanted(TINY, with_steps(named("quick"), 9), 0, store, DATA, Path("a b"), "cpu", conduct=how)
    assert odd.command == (
        "plainres train resnet8 --net width=4 --recipe quick --steps 9 --seed 0 --out 'a b' "
        f"--data {DATA} --device cpu --eval-every 0 --threads 2 --recompute"
    )


@pytest.mark.parametrize("change", [{}, {"validation_images": 20}, {"scale": 0.5, "name": "short"}])
def test_a_run_knows_its_directory(change: dict[str, Any], tmp_path: Path, small: Dataset) -> None:
    (run,) = runs_into(tmp_path, [7], steps=1, **change)
    trained(run, small)
    assert list(tmp_path.iterdir()) == [run.run_dir]


# -- how runs end, played by an executor that computes nothing


class Played:
    """Ends each run as told: by seed, the (status, line, lost) of each try."""

    def __init__(self, endings: dict[int, list[tuple[int, str, bool]]]) -> None:
        self.endings, self.going, self.asked, self.closed = endings, list[Wanted](), [], False

    def room(self) -> bool:
        return len(self.going) < 2

    def start(self, run: Wanted) -> None:
        self.going.append(run)

    def ended(self, seconds: float) -> list[Ended]:
        run = self.going.pop(0)
        status, line, lost = self.endings[run.seed].pop(0)
        if status == 0 and line != "elsewhere":
            run.run_dir.mkdir(parents=True)
            named = {"network": "resnet8", "split": "test", "error_interval": [0.2, 0.3]}
            result = {**dict.fromkeys(FACTS, 0), **named, "error": 0.25}
            (run.run_dir / "result.json").write_text(json.dumps(result))
        return [Ended(run, status, line, lost)]

    def ask_to_stop(self, number: signal.Signals) -> None:
        self.asked.append(number)
        for run in self.going:
            self.endings[run.seed] = [(130, "stopped", True)]

    def close(self) -> None:
        self.closed = True


KILLED, DONE = (-9, "killed by SIGKILL", True), (0, "", False)


@pytest.mark.parametrize(
    ("tries", "expected", "why"),
    [
        ([DONE], 1, None),
        ([KILLED, KILLED, DONE], 3, None),
        ([KILLED, KILLED, KILLED], 3, "killed by SIGKILL (3 times)"),
        ([(75, "stopped after step 5", True), DONE], 2, None),
        ([(1, "the loss of step 3 is not finite", False)], 1, "the loss of step 3 is not finite"),
        ([(2, "", False)], 1, "exit status 2"),
        ([(0, "elsewhere", False)], 1, "--out must be a folder that every machine sees"),
    ],
)
def test_what_is_retried_and_what_is_reported(
    tries: list[tuple[int, str, bool]], expected: int, why: str | None, tmp_path: Path
) -> None:
    where = Played({0: list(tries), 1: [DONE]})
    first, second = sweep(runs_into(tmp_path, (0, 1)), where)
    assert where.closed
    assert second.result is not None, "the others go on"
    assert (first.result is None) is (why is not None)
    assert first.tries == expected
    assert (why or "") in first.why
    states = {state.seed: state for state in States(tmp_path).read()}  # of a run without a directory the list tells
    assert (states[0].state == "failed", states[0].why) == (why is not None, first.why)


def test_finished_runs_are_skipped_and_each_run_is_made_once(tmp_path: Path) -> None:
    runs = runs_into(tmp_path, (0, 1))
    sweep(runs[:1], Played({0: [DONE]}))
    told: list[tuple[int, str]] = []

    class Telling(Observer):
        def told(self, run: Wanted, what: str, why: str) -> None:
            told.append((run.seed, what))

    outcomes = sweep([*runs, *runs], Played({1: [DONE]}), observer=Telling())
    assert told == [(0, "skipped"), (1, "started"), (1, "finished")]
    assert [(outcome.run.seed, outcome.already) for outcome in outcomes] == [(0, True), (1, False)]


def test_a_damaged_result_is_no_finished_run(tmp_path: Path) -> None:
    (run,) = runs_into(tmp_path)
    run.run_dir.mkdir()
    (run.run_dir / "result.json").write_text("{")
    (outcome,) = sweep([run], Played({0: [(2, "result.json is damaged", False)]}))
    assert outcome.why == "result.json is damaged"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stop_lets_every_run_save(number: signal.Signals, status: int, tmp_path: Path) -> None:
    class Stopping(Observer):
        def waiting(self) -> None:
            if not where.asked:
                os.kill(os.getpid(), number)

    where = Played({seed: [DONE] for seed in range(4)})
    with pytest.raises(
        Stopped, match="stopped with 1 of 4 runs finished; what was begun is saved, and the same command"
    ) as raised:
        sweep(runs_into(tmp_path, range(4)), where, observer=Stopping())
    assert raised.value.exit_status == status
    assert where.closed
    assert (where.asked, where.going) == ([number], [])


def test_a_run_that_another_process_still_holds_is_waited_for(tmp_path: Path) -> None:
    (run,) = runs_into(tmp_path)
    run.run_dir.mkdir(parents=True)
    with (run.run_dir / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        here = executor("local", [run])
        here.start(run)
        assert here.ended(20) == []  # it found the lock taken, and began again
    while not (found := here.ended(1)):
        pass
    here.close()
    assert [(end.status, end.line) for end in found] == [(0, "")]


def test_exit_status_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endings = {0: [DONE], 1: [(1, "it diverged", False)]}
    monkeypatch.setattr("plainres.sweep.executor", lambda *_, **__: Played(endings))
    words = ["sweep", "resnet8", "--data", DATA, "--seeds", "0-1", "--out", str(tmp_path)]
    done = call(*words, "--json")
    assert done.exit_code == 1
    facts = json.loads(done.stdout.splitlines()[-1])
    assert (facts["finished"], facts["failed"]) == (1, 1)
    assert [(run["seed"], run["state"], run["why"]) for run in facts["runs"]] == [
        (0, "finished", ""),
        (1, "failed", "it diverged"),
    ]
    endings[1] = [DONE]
    done = call(*words)
    assert done.exit_code == 0
    assert "seed 0: finished already: test error 25.00%" in done.stdout
    assert "2 of 2 runs finished\nGENERATED DATA" in done.stdout
    assert call(*words, "--quiet").output == ""


# -- real processes


def children() -> list[int]:
    """The processes that this one began."""
    threads = Path("/proc/self/task").glob("*/children")
    return [int(pid) for thread in threads for pid in thread.read_text().split()]


class StopAt(Reporter):
    """Asks the run to stop when it is evaluated."""

    def evaluated(self, line: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def saved_step(run: Wanted) -> int:
    path = run.run_dir / "checkpoint.pt"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return int(json.loads(file.readline())["step"])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_run_goes_on_to_the_same_weights_and_one_that_diverges_is_said(tmp_path: Path, small: Dataset) -> None:
    (run,) = runs_into(tmp_path / "swept", steps=300)
    (alone,) = runs_into(tmp_path / "alone", steps=300)
    (hot,) = runs_into(tmp_path / "swept", [1], steps=300, learning_rate=1e30)
    with pytest.raises(Stopped):  # a checkpoint to go on from
        trained(replace(run, conduct=replace(CONDUCT, eval_every=120)), small, StopAt())
    assert saved_step(run) == 120
    told: list[tuple[int, str, str]] = []

    class Killing(Observer):
        def told(self, run: Wanted, what: str, why: str) -> None:
            told.append((run.seed, what, why))

        def waiting(self) -> None:
            lines = (run.run_dir / "metrics.jsonl").read_text().splitlines()
            if "lost" not in [what for _, what, _ in told] and json.loads(lines[-1])["step"] >= 200:
                (child,) = (pid for pid in children() if str(run.out) in Path(f"/proc/{pid}/cmdline").read_text())
                os.kill(child, signal.SIGKILL)

    where = executor("local", [run], at_once=1)
    finished, failed = sweep([run, hot], where, observer=Killing())
    assert (0, "lost", "killed by SIGKILL; try 2 of 3") in told
    assert finished.result is not None
    assert finished.result["weights_sha256"] == trained(alone, small)["weights_sha256"]
    assert (finished.tries, failed.tries) == (2, 1)
    assert "is not finite" in failed.why
    assert not failed.why.startswith("plainres")
    assert {state.seed: state.state for state in States(run.out).read()} == {0: "finished", 1: "failed"}


def started(words: list[str], until: Callable[[], bool]) -> "subprocess.Popen[str]":
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not until():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child may outlive a sweep that was killed")
def test_a_sweep_that_is_stopped_saves_and_the_same_command_goes_on(tmp_path: Path, small: Dataset) -> None:
    (run,) = runs_into(tmp_path / "swept", steps=500)
    words = ["resnet8", "--net", "width=4", "--set", "batch_size=20", "--steps", "500", "--data", DATA]
    words += ["--eval-every", "0", "--threads", "1", "--engine", "eager", "--out", str(run.out), "--device", "cpu"]
    command = [sys.executable, "-m", "plainres", "sweep", *words]

    def trains_on(after: int) -> Callable[[], bool]:
        return lambda: any(line.get("step", 0) > after for line in metrics(run))

    first = started(command, trains_on(0))
    first.kill()
    first.communicate()
    deadline = time.monotonic() + 30
    while not (before := saved_step(run)):  # its child has SIGTERM from the system
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = started(command, trains_on(before + 100))
    second.send_signal(signal.SIGINT)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 130
    assert (
        said == "plainres: stopped with 0 of 1 runs finished; what was begun is saved, and the same command goes on\n"
    )
    assert before < saved_step(run) < 500
    assert [state.state for state in States(run.out).read()] == ["stopped"]
    done = call("sweep", *words, "--json")
    assert done.exit_code == 0, done.output
    (facts,) = json.loads(done.stdout.splitlines()[-1])["runs"]
    assert facts["run_dir"] == str(run.run_dir)
    assert facts["weights_sha256"] == trained(replace(run, out=tmp_path / "alone"), small)["weights_sha256"]


def metrics(run: Wanted) -> list[dict[str, Any]]:
    path = run.run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


# -- what would be done


def test_a_dry_run_prints_commands_that_a_shell_takes(tmp_path: Path, small: Dataset) -> None:
    out = tmp_path / "the runs"
    done_before, left = runs_into(out, (0, 1), steps=5)
    trained(done_before, small)
    words = ["resnet8", "--net", "width=4", "--set", "batch_size=20", "--steps", "5", "--seeds", "0-1"]
    words += ["--eval-every", "0", "--threads", "1", "--engine", "eager", "--device", "cpu"]
    done = call("sweep", *words, "--data", DATA, "--out", str(out), "--dry-run")
    assert done.exit_code == 0
    assert done.stdout == left.command + "\n"
    assert shlex.quote(str(out)) in done.stdout
    assert "1 of 2 runs are finished already and left out" in done.stderr
    assert "seed 1: about 0:00:0" in done.stderr
    assert "xargs" in done.stderr
    assert "sbatch --array=1-1" in done.stderr
    assert list(out.iterdir()) == [done_before.run_dir]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", done.stdout], check=True, env={**os.environ, "PATH": path}, capture_output=True)
    assert (left.run_dir / "result.json").exists()
    done = call("sweep", *words, "--data", DATA, "--out", str(out), "--dry-run")
    assert (done.exit_code, done.stdout) == (0, "")


def test_a_run_that_cannot_be_measured_here_is_printed_all_the_same(tmp_path: Path) -> None:
    words = ["resnet8", "--data", DATA, "--out", str(tmp_path), "--device", "cuda:99", "--dry-run"]
    done = call("sweep", *words)
    assert done.exit_code == 0
    assert done.stdout.startswith("plainres train resnet8 ")
    assert "no estimate: device 'cuda" in done.stderr
    facts = json.loads(call("sweep", *words, "--json").stdout)
    assert (facts["seconds"], len(facts["runs"])) == (None, 1)


def test_the_time_of_a_run_counts_steps_evaluations_and_what_is_done() -> None:
    speed = Speed(compile_seconds=5.0, step_seconds=1.0, evaluation_seconds=10.0, eval_every=100)
    assert speed.seconds(1000) == 5 + 1000 + 11 * 10
    assert speed.seconds(1050) == 5 + 1050 + 12 * 10
    assert speed.seconds(1000, done=500) == 5 + 500 + 6 * 10
    assert replace(speed, eval_every=0).seconds(1000) == 5 + 1000 + 2 * 10
    assert whole([3, 1, 1, 1], at_once=1) == 6
    assert whole([3, 1, 1, 1], at_once=2) == 3


# -- the machine shared


def test_runs_at_once_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert places(torch.device("cpu"), None, None) == [{"OMP_NUM_THREADS": "7"}]
    assert places(torch.device("cpu"), 3, None) == [{"OMP_NUM_THREADS": "2"}] * 3
    with pytest.raises(UserError, match="--per-gpu"):
        places(torch.device("cpu"), None, 2)


def test_runs_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    found = places(torch.device("cuda"), None, 2)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in found] == ["4", "5", "4", "5"]
    assert {place["OMP_NUM_THREADS"] for place in found} == {"2"}
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places(torch.device("cuda:1"), None, None)] == ["5"]
    assert len(places(torch.device("cuda"), 3, 2)) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "slurm"], "unknown place for --on 'slurm'; there are: local, ray, ray://HOST:PORT"),
        (["--share", "0.5"], "--share goes with --on ray"),
        (["--seeds", "x"], "'x' is no seed"),
        (["--at-once", "0"], "--at-once"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    done = call("sweep", "resnet8", "--data", DATA, "--out", str(tmp_path), *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
