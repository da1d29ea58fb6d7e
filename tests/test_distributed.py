"""One run over several processes. This file is also what they run: see `main`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import plainres
from conftest import TINY
from plainres import distributed, engines, plan, recipes
from plainres.cohort import train_seeds
from plainres.data.dataset import Dataset, dataset
from plainres.distributed import ALONE, World
from plainres.errors import Diverged, Stopped, Unavailable, UserError
from plainres.evaluation import evaluate_part
from plainres.run import train
from plainres.runlog import RunDirectory, metrics
from plainres.shared import batches_of, open_directory
from plainres.step import Window, Work, sgd
from plainres.synchronized import normalized
from plainres.training import Training

DATA = "generated:train=300,test=103"
BATCH = 20  # of the evaluations here: 103 images are six batches, the last of three images
SHORT = recipes.resolve("paper", ["batch_size=24", "steps=10", "learning_rate=0.01", "name=short"])
LONG = ["train", "resnet8", "--net", "width=4", "--data", DATA, "--set", "batch_size=20", "--steps", "400"]
NETWORKS = {"wide": "resnet8", "cfmz": "resnet8-cfmz"}  # the kernels know no network as narrow as TINY


class Part(World):
    """One of several processes, as far as it needs no other."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def train_short(out: Path, name: str, data: Dataset, **options: Any) -> plainres.RunResult:
    return train(NETWORKS[name], SHORT, data, eval_every=6, out=out, **options)


# -- what each process runs


def main(out: Path) -> None:
    """Several runs, one after the other, in this process of two; what it saw goes into `rank0.json` or `rank1.json`."""
    rank, data = int(os.environ["RANK"]), dataset(DATA)
    plan.BATCH = BATCH  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    seen: dict[str, Any] = {"bn": synchronized_bn()}
    for engine in ("eager", "native"):
        seen[engine] = train_short(out / engine, "wide", data, engine=engine).facts
    for name in ("wide", "cfmz"):
        seen[f"{name} sync"] = train_short(out / f"{name} sync", name, data, sync_bn=True).facts
    seen["recompute"] = train_short(out / "recompute", "wide", data, recompute=True, sync_bn=True).facts
    with stop_after(5, on=1):
        seen["stopped"] = [failure(lambda: train_short(out / "stopped", "wide", data, engine="native"))]
    seen["stopped"] += [train_short(out / "stopped", "wide", data, engine="native").facts]
    seen["finished"] = train_short(out / "stopped", "wide", data).already_finished
    with RunDirectory(out / "used", "x", {}) if rank == 0 else contextlib.nullcontext():
        seen["refused"] = failure(lambda: open_used(out / "used"))
    seen["own"] = failure(lambda: train("tiny" if rank else "resnet8", SHORT, data, out=out))
    seen["diverged"] = failure(lambda: train(TINY, recipes.resolve(SHORT, ["learning_rate=1e30"]), data, out=out))
    seen["engine"] = failure(lambda: train_short(out / "engine", "wide", data, engine="native", sync_bn=True))
    seen["seeds"] = failure(lambda: train_seeds(TINY, SHORT, data, seeds=[0, 1], out=out))
    seen["unseeded"] = failure(lambda: train(stranger(rank), SHORT, data, out=out))
    train(TINY, recipes.resolve("paper", ["batch_size=20"]), data, steps=400, out=out / "long")  # as LONG
    (out / f"rank{rank}.json").write_text(json.dumps(seen))


def synchronized_bn() -> float:
    """How far BN over both processes, forward and backward, is from BN of the whole batch; in float64."""
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, theirs = (nn.BatchNorm2d(3, dtype=torch.float64) for _ in range(2))
    with distributed.joined() as world:
        rows = world.rows(len(x))
        part, whole = x[rows].clone().requires_grad_(), x.clone().requires_grad_()
        (normalized(ours, world, part) ** 3).mean().backward()
        (theirs(whole) ** 3).mean().backward()
        world.average([p.grad for p in ours.parameters() if p.grad is not None])
        assert part.grad is not None
        assert whole.grad is not None
        # the process's own loss is the mean over half the batch
        found = [(part.grad / world.size, whole.grad[rows])]
    found += [(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True)]
    found += [(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]  # type: ignore[misc]
    return max(float((a - b).abs().max()) for a, b in found)


def failure(run: Any) -> list[Any]:
    """How a run ends that must not end well, and the seconds it takes."""
    begun = time.monotonic()
    try:
        run()
    except (UserError, Stopped, Diverged) as error:
        noted = distributed.REPORTED in getattr(error, "__notes__", ())
        return [type(error).__name__, str(error), error.exit_status, noted, time.monotonic() - begun]
    return ["none"]


def open_used(out: Path) -> None:
    with distributed.joined() as world:
        open_directory(out, "x", {}, world)


def stranger(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))


@contextlib.contextmanager
def stop_after(step: int, on: int) -> Iterator[None]:
    """Send one process SIGTERM after some step."""
    before = Training.after_step

    def after_step(self: Training) -> None:
        if self.done == step and self.world.rank == on:
            signal.raise_signal(signal.SIGTERM)
        before(self)

    Training.after_step = after_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        Training.after_step = before  # type: ignore[method-assign]


# -- starting them


def torchrun(*words: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]


@contextlib.contextmanager
def processes(*words: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes of the command line, as a launcher would start them, their exit statuses our own to see."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **place, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "plainres", *words]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def ends(started: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each."""
    return [(process.returncode, *said) for process in started for said in [process.communicate(timeout=180)]]


def wait_for(step: int, out: Path) -> None:
    """Until the run in `out` has logged some step."""
    for _ in range(1800):
        time.sleep(0.1)
        for run in out.glob("resnet8*"):
            if any(line["step"] >= step for line in metrics(run)):
                return
    pytest.fail(f"no line of step {step} in {out} in three minutes")


def weights(run: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(next(run.glob("resnet8*")) / "weights.safetensors")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return dataset(DATA)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of what two processes ran, and what each of them saw."""
    out = tmp_path_factory.mktemp("both")
    done = subprocess.run(
        torchrun(__file__, str(out)),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return out, [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)]


# -- what they ran


def distance(first: Path, second: Path) -> float:
    """How far the weights of one run are from another's, of their length."""
    a, b = (torch.cat([x.double().flatten() for x in weights(run).values()]) for run in (first, second))
    return float((a - b).norm() / a.norm())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    """The folder of the same runs by this process alone."""
    out = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "BATCH", BATCH)
        for name in NETWORKS:
            train_short(out / name, name, data, engine="native", threads=1)
    return out


@pytest.mark.parametrize("name", NETWORKS)
def test_with_synchronised_bn_the_result_is_that_of_one_process(name: str, both: Any, alone: Path) -> None:
    out, (seen, _) = both
    assert seen["bn"] < 1e-12
    assert distance(alone / name, out / f"{name} sync") < 1e-3
    lines = [list(metrics(next(run.glob("resnet8*")))) for run in (alone / name, out / f"{name} sync")]
    for one, two in zip(*lines, strict=True):
        assert (one["kind"], one["step"], one["images"]) == (two["kind"], two["step"], two["images"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-2)
    assert seen["recompute"]["weights_sha256"] == seen["wide sync"]["weights_sha256"]


def test_bn_of_each_process_is_another_run_with_bits_of_its_own(both: Any, alone: Path) -> None:
    out, (seen, _) = both
    assert distance(out / "eager", out / "native") < 1e-3
    assert distance(alone / "wide", out / "native") > 5e-3
    assert seen["native"]["weights_sha256"] != seen["eager"]["weights_sha256"]
    run = json.loads(next((out / "native").glob("resnet8*/run.json")).read_text())
    assert (run["world_size"], run["sync_bn"]) == (2, False)
    assert json.loads(next((out / "native").glob("resnet8*/plan.json")).read_text())["world_size"] == 2
    whole = json.loads(next((alone / "wide").glob("resnet8*/run.json")).read_text())
    assert whole["world_size"] == 1
    assert "sync_bn" not in whole


def test_a_signal_to_either_stops_both_and_the_run_goes_on_with_the_same_bits(both: Any) -> None:
    _, (first, second) = both
    for seen, noted in ((first, False), (second, True)):
        (kind, message, status, told_elsewhere, seconds), facts = seen["stopped"]
        assert (kind, status, told_elsewhere) == ("Stopped", 75, noted)
        assert "after step 5 of 10" in message
        assert seconds < 8  # nobody waited for somebody who had left
        assert facts["weights_sha256"] == first["native"]["weights_sha256"]
        assert seen["finished"]
    assert first["stopped"][1] == second["stopped"][1]


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("refused", "InUse", "in use by another process"),  # on the first alone
        ("own", "UserError", "unknown network 'tiny'"),  # on the second alone
        ("diverged", "Diverged", "is not finite"),
        ("engine", "UserError", "synchronised BN is the eager engine's alone"),
        ("seeds", "UserError", "of several processes all train one run: give a single seed, not 2"),
        ("unseeded", "UserError", "the processes would train different runs"),
    ],
)
def test_an_error_of_one_is_everybodys_and_told_once(what: str, kind: str, message: str, both: Any) -> None:
    _, (first, second) = both
    for seen, noted in ((first, False), (second, True)):
        assert seen[what][0] == kind
        assert message in seen[what][1]
        assert seen[what][3] is noted
        assert seen[what][4] < 8


def test_every_test_image_is_counted_once_in_order(both: Any, data: Dataset) -> None:
    out, (seen, other) = both
    run = next((out / "wide sync").glob("resnet8*"))
    found = safetensors.torch.load_file(run / "predictions.safetensors")
    classifier = plainres.load(run)
    classifier.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with plan.applied(plan.choose("eager", torch.device("cpu"), segment=0, threads=1, eval_every=0, eval_batch=1), ""):
        alone = evaluate_part(
            classifier.network, data.part("test"), classifier.normalization, data.classes, batch=BATCH
        )
    assert found["logits"].equal(alone.logits)
    assert found["labels"].equal(alone.labels)
    assert (seen["wide sync"]["images"], seen["wide sync"]["misses"]) == (103, alone.misses)
    assert seen["wide sync"] == other["wide sync"]


def test_the_first_alone_writes(both: Any) -> None:
    out, _ = both
    run = next((out / "native").glob("resnet8*"))
    assert len(list(run.glob("events*"))) == 1
    lines = [(line["kind"], line["step"]) for line in metrics(run)]
    assert lines == [("test", 6), ("train", 10), ("test", 10)]


# -- the command line


def test_killed_and_stopped_runs_go_on_with_the_same_bits(both: Any, tmp_path: Path) -> None:
    whole, out = both[0] / "long", tmp_path
    # torchrun is asked to stop, as by a cluster: both save and leave
    command = torchrun("-m", "plainres", *LONG, "--out", str(out))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        wait_for(100, out)
        running.send_signal(signal.SIGTERM)
        said, errors = running.communicate(timeout=180)
    assert said.count("run directory") == errors.count("plainres: stopped after step") == 1
    # one is killed: the other does not wait for it
    with processes(*LONG, "--out", str(out)) as started:
        wait_for(200, out)
        started[1].kill()
        status, _, errors = ends(started)[0]
    assert status == 75
    assert (
        errors == "plainres: another process of this run is gone; the same command goes on from the last checkpoint\n"
    )
    for expected in ("goes on after step", "already finished"):
        with processes(*LONG, "--out", str(out), "--json") as started:
            (first, said, shown), (second, *silence) = ends(started)
        assert (first, second, silence) == (0, 0, ["", ""])
        assert expected in shown
        run = Path(json.loads(said)["run_dir"])
        assert (run / "weights.safetensors").read_bytes() == (whole / run.name / "weights.safetensors").read_bytes()


def test_a_batch_that_cannot_be_divided_is_one_line(tmp_path: Path) -> None:
    words = ["train", "resnet8", "--data", DATA, "--set", "batch_size=25", "--steps", "9", "--out", str(tmp_path)]
    with processes(*words) as started:
        found = ends(started)
    line = "plainres: batch_size 25 cannot be divided among 2 processes; --set batch_size=24 can\n"
    assert found == [(2, "", line), (2, "", "")]


# -- in this process


def test_parts_of_a_batch_are_those_of_the_single_run(data: Dataset) -> None:
    whole = batches_of(data, 3, SHORT, ALONE)
    parts = [batches_of(data, 3, SHORT, Part(rank, 3)) for rank in range(3)]
    for step in (0, 7):
        images, labels = (torch.cat(both) for both in zip(*(part[step] for part in parts), strict=True))
        assert images.equal(whole[step][0])
        assert labels.equal(whole[step][1])


def test_alone_nothing_is_done() -> None:
    value = torch.ones(2)
    ALONE.average([value])
    assert value.tolist() == [1, 1]
    assert ALONE.most(3, 4) == (3, 4)
    assert ALONE.gather("x") == ["x"]
    assert ALONE.rows(7) == slice(0, 7)
    with distributed.joined() as world:
        assert world is ALONE
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_bn_of_one_process_is_pytorchs(momentum: float | None) -> None:
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = (nn.BatchNorm1d(4, momentum=momentum, dtype=torch.float64) for _ in range(2))
    for _ in range(2):
        torch.testing.assert_close(normalized(ours, ALONE, x), theirs(x))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    torch.testing.assert_close(normalized(ours.eval(), ALONE, x), theirs.eval()(x))


def test_an_engine_that_holds_one_process_is_not_taken(data: Dataset) -> None:
    network, cpu, cuda = plainres.build("resnet8"), torch.device("cpu"), torch.device("cuda")
    assert engines.candidates(network, cuda, "float32", 1e15, world_size=2) == ["compiled", "eager"]
    assert engines.candidates(network, cpu, "float32", 1e15, world_size=2) == ["native", "eager"]
    assert engines.candidates(network, cpu, "float32", 1e15, world_size=2, sync_bn=True) == ["eager"]
    batches = batches_of(data, 0, SHORT, Part(0, 2))
    work = Work(network, sgd(network, SHORT), SHORT, batches, Window(cpu, 24), world=Part(0, 2))
    with pytest.raises(Unavailable, match="a CUDA graph holds the step of a single process"):
        engines.make("graph", work)


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({"WORLD_SIZE": "2"}, {}, "WORLD_SIZE is set, but 'RANK' is not as torchrun sets it"),
        ({}, {"network": "resnet8-cfmz", "recipe": ["batch_size=1"]}, "needs a batch_size of at least 2"),
    ],
)
def test_mistakes(
    environment: dict[str, str], options: Any, message: str, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        train(options.get("network", TINY), recipes.resolve(SHORT, options.get("recipe", [])), data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
