"""Sweeps on Ray, against a real cluster of two nodes on this machine. Ray has a process of its own: it warns."""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from plainres import fields
from plainres.data.dataset import Dataset
from plainres.errors import UserError
from plainres.recipe import with_steps
from plainres.recipes import named
from plainres.run import Conduct, train
from plainres.spec import NetworkSpec
from plainres.sweep import executor, finished
from plainres.sweep_ray import Ray, gpu_share, train_there
from plainres.sweep_wanted import Wanted, wanted

DATA = "generated:train=300,test=100"
SEEDS, STEPS = (0, 1, 2), 300

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
from test_sweep_ray import runs_into
from plainres.sweep import Observer, executor, sweep

small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=small)
second = cluster.add_node(**{**small, "include_dashboard": None})
os.environ["RAY_ADDRESS"] = cluster.address
raylet = second.all_processes["raylet"][0].process
runs = runs_into(Path(sys.argv[1]))
story = {"killed": None, "told": []}


def children():
    threads = Path(f"/proc/{raylet.pid}/task").glob("*/children")
    return [pid for thread in threads for pid in thread.read_text().split()]


def on_second_node():
    "The run whose lock a worker of the second node holds, once it has a checkpoint behind its first metrics."
    open_files = [os.path.realpath(file) for pid in children() for file in Path(f"/proc/{pid}/fd").glob("*")]
    held = [run for run in runs if str(run.run_dir.resolve() / "lock") in open_files]
    return next((run for run in held if step_of(run) >= 100), None)


def step_of(run):
    "Of its checkpoint: the first line of the file."
    path = run.run_dir / "checkpoint.pt"
    return json.loads(path.open("rb").readline())["step"] if path.exists() else 0


class Killing(Observer):
    def told(self, run, what, why):
        story["told"].append([run.run_dir.name, what])

    def waiting(self):
        run = None if story["killed"] else on_second_node()
        if run is not None:
            workers = [int(pid) for pid in children()]
            raylet.kill()
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            story.update(killed=run.run_dir.name, time=time.time())


outcomes = sweep(runs, executor("ray", runs), observer=Killing())
story["finished"] = {o.run.run_dir.name: o.result["weights_sha256"] for o in outcomes if o.result}
story["tries"] = {o.run.run_dir.name: o.tries for o in outcomes}
cluster.shutdown()
print(json.dumps(story))
"""


def runs_into(out: Path) -> list[Wanted]:
    conduct = Conduct(eval_every=0, threads=1, engine="eager", checkpoint_seconds=0.5)
    recipe = fields.replace(with_steps(named("paper"), STEPS), {"batch_size": 20}, "recipe")
    return wanted([NetworkSpec(depth=8, width=4)], recipe, SEEDS, DATA, out=out, device="cpu", conduct=conduct)


@pytest.mark.ray
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_node_that_dies_changes_no_weights(tmp_path: Path, small: Dataset) -> None:
    undisturbed = {}
    for run in runs_into(tmp_path / "alone"):
        found = train(
            run.network, run.recipe, small, seed=run.seed, out=run.out, eval_every=0, threads=1, engine="eager"
        )
        assert found.run_dir == run.run_dir
        undisturbed[found.run_dir.name] = found.facts["weights_sha256"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "RAY_TMPDIR": os.environ.get("RAY_TMPDIR", "/tmp"),
    }
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "swept")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    story = json.loads(done.stdout.splitlines()[-1])
    assert story["finished"] == undisturbed
    killed = story["killed"]
    assert [killed, "lost"] in story["told"]
    assert story["tries"] == {name: 2 if name == killed else 1 for name in undisturbed}
    first = json.loads((tmp_path / "swept" / killed / "metrics.jsonl").read_text().splitlines()[0])
    assert first["time"] < story["time"], "it did not go on from its checkpoint"


@pytest.fixture
def _as_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker sets for itself is taken back."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("_as_worker", "small")
def test_a_run_whose_lock_is_still_held_is_waited_for(tmp_path: Path) -> None:
    run = replace(runs_into(tmp_path)[0], recipe=with_steps(named("paper"), 1))
    run.run_dir.mkdir(parents=True)
    with (run.run_dir / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        later = threading.Timer(1.0, fcntl.flock, (lock, fcntl.LOCK_UN))
        later.start()
        assert train_there(run, 1) == (0, "")
        assert later.finished.is_set()
    assert finished(run) is not None


@pytest.mark.usefixtures("_as_worker", "small")
def test_a_run_that_fails_in_a_worker_says_one_line(tmp_path: Path) -> None:
    hot = replace(runs_into(tmp_path)[0], recipe=with_steps(replace(named("paper"), learning_rate=1e30), 5))
    status, line = train_there(hot, 1)
    assert status == 1
    assert "is not finite" in line


def test_ray_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--on ray needs Ray: pip install 'plainres\[ray\]'"):
        Ray("ray", runs_into(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"at_once": 2}, "--on local"), ({"per_gpu": 2}, "--on local"), ({"share": 0.0}, "must be above 0")],
)
def test_options_of_elsewhere_are_refused(options: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        executor("ray", runs_into(tmp_path), **options)  # type: ignore[arg-type]


def test_small_networks_share_a_gpu(tmp_path: Path) -> None:
    run = runs_into(tmp_path)[0]
    sizes = {name: gpu_share(Wanted(NetworkSpec.named(name), run.recipe, 0, run.store)) for name in NAMES}
    assert sizes == {"plain20": 0.25, "resnet32": 0.5, "resnet56": 1.0, "resnet110": 1.0}


NAMES = ("plain20", "resnet32", "resnet56", "resnet110")
