import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import plainres
from conftest import TINY
from plainres import checkpoint, fields, recipes
from plainres.data.dataset import Dataset
from plainres.errors import Diverged, Stopped, UserError
from plainres.network import build
from plainres.outcome import Reporter
from plainres.recipe import Recipe
from plainres.run import train
from plainres.runlog import TIMINGS, metrics

SHORT = recipes.resolve("quick", ["batch_size=20", "steps=130", "warmup_steps=20", "learning_rate=0.1", "name=short"])


def lines(run: Path) -> list[dict[str, Any]]:
    """A run's metrics without what a repetition does not repeat."""
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in metrics(run)]


def same(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same bits and the same lines."""
    files = ("weights.safetensors", "predictions.safetensors", "responses.json")
    return lines(first) == lines(second) and all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in files
    )


@pytest.fixture(scope="module")
def undisturbed(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> plainres.RunResult:
    return train(TINY, SHORT, small, eval_every=30, out=tmp_path_factory.mktemp("runs"))


class StopAt(Reporter):
    """Ask for a stop, as Ctrl-C would, at the first report after some step."""

    def __init__(self, *steps: int, number: signal.Signals = signal.SIGINT) -> None:
        self.steps, self.number = list(steps), number

    def progress(self, done: int, loss: float, error: float, seconds: float) -> None:
        if self.steps and done >= self.steps[0]:
            self.steps.pop(0)
            signal.raise_signal(self.number)


def test_a_run_leaves_what_the_design_says(undisturbed: plainres.RunResult, small: Dataset) -> None:
    run, facts = undisturbed.run_dir, undisturbed.facts
    left = {path.name for path in run.iterdir() if not path.name.startswith("events")}
    assert left == {
        *("run.json", "plan.json", "machine.json", "metrics.jsonl", "result.json", "responses.json", "lock"),
        *("checkpoint.pt", "weights.safetensors", "predictions.safetensors"),
    }
    assert run.name.startswith("resnet8-custom-short-s0-")
    assert facts["images"] == 100
    assert facts["error"] == facts["misses"] / 100 == undisturbed.error
    assert facts["steps"] == 130
    assert facts["data_hash"] == small.hash
    assert facts["generated"] is True
    assert [x["step"] for x in lines(run) if x["kind"] == "train"] == [100, 130]
    assert [x["step"] for x in lines(run) if x["kind"] == "test"] == [30, 60, 90, 120, 130]
    assert [x["images"] for x in lines(run) if x["kind"] == "train"] == [2000, 600]
    responses = json.loads((run / "responses.json").read_text())
    assert len(responses) == 7
    assert all(0 < layer["std"] < 100 for layer in responses)


def test_the_weights_give_the_misses_of_the_result(undisturbed: plainres.RunResult, small: Dataset) -> None:
    for what in (undisturbed.run_dir, undisturbed.run_dir / "weights.safetensors"):
        assert plainres.evaluate(what, small).misses == undisturbed.misses
    assert plainres.load(undisturbed.run_dir).about["misses"] == undisturbed.misses


def test_events_are_the_metrics(undisturbed: plainres.RunResult) -> None:
    events = EventAccumulator(str(undisturbed.run_dir)).Reload()
    tags = ("error/test", "error/train", "images_per_second", "learning_rate", "loss/test", "loss/train")
    assert tuple(sorted(events.Tags()["scalars"])) == tags
    logged = [x for x in lines(undisturbed.run_dir) if x["kind"] == "test"]
    shown = [(e.step, e.value) for e in events.Scalars("error/test")]
    assert shown == [(x["step"], pytest.approx(x["error"])) for x in logged]


def test_the_same_command_again_says_it_is_finished(undisturbed: plainres.RunResult, small: Dataset) -> None:
    again = train(TINY, SHORT, small, out=undisturbed.run_dir.parent)
    assert again.already_finished
    assert again.facts == undisturbed.facts


@pytest.mark.parametrize("stops", [(10,), (30, 50, 100), (120,), (130,)])
def test_stopped_and_resumed_gives_the_same_bits(
    stops: tuple[int, ...], undisturbed: plainres.RunResult, small: Dataset, tmp_path: Path
) -> None:
    reporter = StopAt(*stops)
    for _ in stops:
        with pytest.raises(Stopped, match="the same command goes on") as caught:
            train(TINY, SHORT, small, eval_every=30, out=tmp_path, reporter=reporter)
        assert caught.value.exit_status == 130
    result = train(TINY, SHORT, small, eval_every=30, out=tmp_path)
    assert same(result.run_dir, undisturbed.run_dir)
    events = EventAccumulator(str(result.run_dir)).Reload()
    assert [e.step for e in events.Scalars("error/test")] == [30, 60, 90, 120, 130]


def test_sigterm_is_resumable(small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Stopped) as caught:
        train(TINY, SHORT, small, out=tmp_path, reporter=StopAt(20, number=signal.SIGTERM))
    assert caught.value.exit_status == 75


def test_killed_at_random_moments_gives_the_same_bits(undisturbed: plainres.RunResult, tmp_path: Path) -> None:
    program = (
        "import sys; from plainres import fields, train, Recipe, NetworkSpec; import json;"
        f"spec, recipe = json.loads({json.dumps(json.dumps([fields.to_json(TINY), fields.to_json(SHORT)]))});"
        "train(fields.from_json(NetworkSpec, spec, ''), fields.from_json(Recipe, recipe, ''),"
        f"'generated:train=300,test=100', eval_every=30, out={str(tmp_path)!r}, checkpoint_seconds=0.02)"
    )
    for delay in (0.2, 0.7):
        process = subprocess.Popen([sys.executable, "-c", program])
        while not list(tmp_path.glob("*/checkpoint.pt")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        process.wait()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert same(next(tmp_path.iterdir()), undisturbed.run_dir)


def test_a_damaged_checkpoint_is_passed_over(undisturbed: plainres.RunResult, small: Dataset, tmp_path: Path) -> None:
    reporter = StopAt(40, 90)
    for _ in range(2):
        with pytest.raises(Stopped):
            train(TINY, SHORT, small, eval_every=30, out=tmp_path, reporter=reporter)
    run = next(tmp_path.iterdir())
    content = bytearray((run / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "checkpoint.pt").write_bytes(content)
    state, damaged = checkpoint.load(run)
    assert state is not None
    assert state["step"] == 40
    assert "does not match its checksum" in damaged[0]
    assert same(train(TINY, SHORT, small, eval_every=30, out=tmp_path).run_dir, undisturbed.run_dir)


def test_a_torn_metrics_line_is_written_again(undisturbed: plainres.RunResult, small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(TINY, SHORT, small, eval_every=30, out=tmp_path, reporter=StopAt(100))
    with (next(tmp_path.iterdir()) / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 110, "lo')
    assert same(train(TINY, SHORT, small, eval_every=30, out=tmp_path).run_dir, undisturbed.run_dir)


def test_a_full_disk_loses_nothing(
    undisturbed: plainres.RunResult, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        train(TINY, SHORT, small, eval_every=30, out=tmp_path, reporter=StopAt(50))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match="the disk is full"):
            train(TINY, SHORT, small, eval_every=30, out=tmp_path)
    assert same(train(TINY, SHORT, small, eval_every=30, out=tmp_path).run_dir, undisturbed.run_dir)


def test_a_metrics_line_that_the_disk_refuses_is_one_error(
    undisturbed: plainres.RunResult, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A file that takes seven bytes more."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, content: bytes) -> int:
            if len(content) < 8:
                raise OSError(28, "No space left on device")
            return int(self.file.write(content[:7]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    real = plainres.runlog.RunDirectory.start_metrics

    def start(self: Any, after: int) -> Any:
        kept = real(self, after)
        self._metrics = Full(self._metrics)
        return kept

    with monkeypatch.context() as patch:
        patch.setattr("plainres.runlog.RunDirectory.start_metrics", start)
        with pytest.raises(UserError, match=r"metrics.jsonl: the disk is full"):
            train(TINY, SHORT, small, eval_every=30, out=tmp_path)
    assert same(train(TINY, SHORT, small, eval_every=30, out=tmp_path).run_dir, undisturbed.run_dir)


def test_one_process_at_a_time(small: Dataset, tmp_path: Path) -> None:
    class Twice(Reporter):
        def progress(self, done: int, loss: float, error: float, seconds: float) -> None:
            with pytest.raises(UserError, match="in use by another process"):
                train(TINY, SHORT, small, out=tmp_path)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(TINY, SHORT, small, out=tmp_path, reporter=Twice())


def test_a_run_directory_of_another_recipe(small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(TINY, SHORT, small, out=tmp_path, reporter=StopAt(10))
    run = next(tmp_path.iterdir())
    recorded = json.loads((run / "run.json").read_text())
    recorded["recipe"]["learning_rate"] = 0.2
    (run / "run.json").write_text(json.dumps(recorded))
    with pytest.raises(UserError, match="the run of another recipe"):
        train(TINY, SHORT, small, out=tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plan.json", "[]"),
        ("plan.json", "{}"),
        ("plan.json", '{"replans": []}'),
        ("plan.json", "{"),
        ("result.json", "[]"),
        ("result.json", "{}"),
        ("metrics.jsonl", "nothing\n"),
        ("metrics.jsonl", '{"step": 1}\n'),
        ("metrics.jsonl", '{"kind": "train", "step": 1e400}\n'),
        ("metrics.jsonl", '{"kind": "train", "step": 1, "loss": "a"}\n'),
        ("metrics.jsonl", '{"kind": [], "step": 1}\n'),
        ("checkpoint.pt", "nothing"),
    ],
)
def test_a_damaged_run_directory_is_named(name: str, content: str, small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(TINY, SHORT, small, out=tmp_path, reporter=StopAt(10))
    run = next(tmp_path.iterdir())
    (run / name).write_text(content)
    with pytest.raises(UserError) as caught:
        train(TINY, SHORT, small, out=tmp_path)
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_gone_is_refused_or_marked(small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(TINY, SHORT, small, out=tmp_path, reporter=StopAt(10))
    (next(tmp_path.iterdir()) / "plan.json").unlink()
    with pytest.raises(UserError, match=r"plan was missing.*--replan"):
        train(TINY, SHORT, small, out=tmp_path)
    assert train(TINY, SHORT, small, out=tmp_path, replan=True).facts["replanned"] is True


def test_evaluating_at_other_steps_changes_no_bits(
    undisturbed: plainres.RunResult, small: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        train(TINY, SHORT, small, eval_every=15, out=tmp_path, reporter=StopAt(20))
    result = train(TINY, SHORT, small, eval_every=50, out=tmp_path)
    assert result.facts["replanned"] is False
    assert [x["step"] for x in lines(result.run_dir) if x["kind"] == "test"] == [15, 50, 100, 130]
    assert result.facts["weights_sha256"] == undisturbed.facts["weights_sha256"]


def test_the_clock_counts_training_alone(small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object, **__: object) -> None:
        time.sleep(0.3)

    monkeypatch.setattr("plainres.checkpoint.save", lambda *a, _real=checkpoint.save: (slow(), _real(*a)))
    monkeypatch.setattr("plainres.training.Training.save_weights", lambda *a: slow() or "")
    begun = time.perf_counter()
    with pytest.raises(Stopped):
        train(TINY, SHORT, small, steps=20, keep_every=5, out=tmp_path, reporter=StopAt(10))
    result = train(TINY, SHORT, small, steps=20, keep_every=5, out=tmp_path)
    slept = 7 * 0.3  # four kept weights, two checkpoints, the weights of the end
    assert 0 < result.facts["seconds"] < time.perf_counter() - begun - slept
    assert result.facts["images_per_second"] == 400 / result.facts["seconds"]


def test_another_plan_is_refused_or_marked(small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(TINY, SHORT, small, out=tmp_path, threads=1, reporter=StopAt(10))
    run = next(tmp_path.iterdir())
    assert json.loads((run / "plan.json").read_text())["threads"] == 1
    with pytest.raises(UserError, match=r"threads was 1, is 2.*--replan"):
        train(TINY, SHORT, small, out=tmp_path, threads=2)
    with pytest.raises(Stopped):  # nothing asked for: what was chosen is replayed
        train(TINY, SHORT, small, out=tmp_path, reporter=StopAt(20))
    result = train(TINY, SHORT, small, out=tmp_path, threads=2, replan=True)
    assert result.facts["replanned"] is True
    assert json.loads((run / "plan.json").read_text())["replans"] == [{"threads": [1, 2]}]


def test_seeds_and_precision_make_other_runs(undisturbed: plainres.RunResult, small: Dataset, tmp_path: Path) -> None:
    other = train(TINY, SHORT, small, seed=1, steps=20, out=tmp_path)
    rounded = train(TINY, SHORT, small, precision="bfloat16", steps=20, out=tmp_path)
    assert len({other.run_dir, rounded.run_dir, undisturbed.run_dir}) == 3
    assert math.isfinite(rounded.facts["loss"])


def test_bfloat16_keeps_statistics_and_loss_in_float32(small: Dataset, tmp_path: Path) -> None:
    result = train(TINY, SHORT, small, precision="bfloat16", steps=10, out=tmp_path)
    kinds = {tensor.dtype for tensor in plainres.load(result.run_dir).network.state_dict().values()}
    assert kinds == {torch.float32, torch.int64}


@pytest.mark.parametrize("eval_every", [0, 10])
def test_a_loss_that_is_not_finite_stops_the_run(eval_every: int, small: Dataset, tmp_path: Path) -> None:
    wild = recipes.resolve(SHORT, ["learning_rate=1e20", "warmup_steps=0", "schedule=steps"])
    with pytest.raises(Diverged, match=r"(loss|weights).* not finite \(learning rate 1e\+20\); .*checkpoint"):
        train(TINY, wild, small, eval_every=eval_every, out=tmp_path, checkpoint_seconds=0)
    state, _ = checkpoint.load(next(tmp_path.iterdir()))
    assert state is None or all(bool(t.isfinite().all()) for t in state["network"].values())
    assert not list(tmp_path.glob("*/result.json"))


def test_divergence_keeps_the_last_good_checkpoint(small: Dataset, tmp_path: Path) -> None:
    class Bomb(nn.Module):
        """A network that breaks at its fiftieth training step."""

        def __init__(self) -> None:
            super().__init__()
            self.fc, self.seen = nn.Linear(3072, 10), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += self.training
            return self.fc(x.flatten(1)) * (float("nan") if self.seen > 50 else 1.0)

    with pytest.raises(Diverged, match=r"step 50 is not finite.*the last good checkpoint is of step"):
        train(Bomb(), SHORT, small, out=tmp_path, checkpoint_seconds=0)
    state, damaged = checkpoint.load(next(tmp_path.iterdir()))
    assert state is not None
    assert state["step"] == 50
    assert all(bool(t.isfinite().all()) for t in state["network"].values())
    assert damaged == []


def test_validation_runs_never_look_at_the_test_set(small: Dataset, tmp_path: Path) -> None:
    recipe = recipes.resolve(SHORT, ["validation_images=100", "steps=40"])
    result = train(TINY, recipe, small, eval_every=20, out=tmp_path)
    assert {x["kind"] for x in lines(result.run_dir)} == {"train", "val"}
    assert (result.facts["split"], result.facts["images"]) == ("val", 100)
    assert plainres.evaluate(result.run_dir, small, split="val").misses == result.misses


def test_the_warm_up_ends_by_the_training_error(small: Dataset, tmp_path: Path) -> None:
    options = ["error_warmup_depth=8", "error_warmup_until=0.85", "steps=250", "batch_size=20"]
    recipe = recipes.resolve("paper", options)
    with pytest.raises(Stopped):
        train(TINY, recipe, small, eval_every=0, out=tmp_path, reporter=StopAt(150))
    result = train(TINY, recipe, small, eval_every=0, out=tmp_path)
    end = result.facts["warmup_end"]
    assert end in (100, 200)
    rates = [(x["step"], x["learning_rate"]) for x in metrics(result.run_dir) if x["kind"] == "train"]
    assert rates == [(step, 0.01 if step <= end else 0.1) for step in (100, 200, 250)]
    errors = {x["step"]: x["error"] for x in metrics(result.run_dir) if x["kind"] == "train"}
    assert all((errors[step] < 0.85) == (step >= end) for step in (100, 200) if step <= end)
    assert [x["step"] for x in metrics(result.run_dir) if x["kind"] == "warmup_end"] == [end]


def reference(recipe: Recipe, data: Dataset) -> Iterator[nn.Module]:
    """Training as anyone would write it, in float64, on the same batches: the network after each step."""
    network = build(TINY, seed=0).double()
    velocity = [torch.zeros_like(p) for p in network.parameters()]
    for step, (images, labels) in enumerate(data.batches(0, recipe)):
        network.zero_grad()
        nn.functional.cross_entropy(network(images.double()), labels).backward()
        if recipe.reset_momentum_at_drops and step in recipe.drops:
            velocity = [torch.zeros_like(p) for p in network.parameters()]
        rate = plainres.learning_rate(step, recipe)
        with torch.no_grad():
            for p, v in zip(network.parameters(), velocity, strict=True):
                assert p.grad is not None
                decay = recipe.weight_decay if recipe.decay == "all" or p.ndim > 1 else 0.0
                gradient = p.grad + decay * p
                v.mul_(recipe.momentum).add_(gradient)
                p.sub_(rate * (gradient + recipe.momentum * v if recipe.nesterov else v))
        yield network


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["drops=5", "reset_momentum_at_drops=yes", "padding=edge"],
        ["drops=5", "normalization=channel-mean"],
        ["nesterov=yes", "weight_decay=0.1"],
        ["decay=weights", "weight_decay=0.1"],
    ],
)
def test_training_is_what_anyone_would_write(options: list[str], small: Dataset, tmp_path: Path) -> None:
    base = ["learning_rate=0.01", "normalization=channel-mean-std", "batch_size=20", "steps=8"]
    recipe = recipes.resolve("paper", [*base, *options])
    result = train(TINY, recipe, small, eval_every=0, out=tmp_path)
    expected = dict(next(itertools.islice(reference(recipe, small), 7, None)).named_parameters())
    start = dict(build(TINY, seed=0).named_parameters())
    for key, value in plainres.load(result.run_dir).network.named_parameters():
        moved = (expected[key] - start[key]).norm()
        assert (value - expected[key]).norm() < 0.05 * moved, key  # a wrong rule is off by 0.3 and more


def test_a_strangers_network_and_optimizer(small: Dataset, tmp_path: Path) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 225, 10))

    def adam(parameters: Any, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, rate, weight_decay=1e-4)

    recipe = recipes.resolve(SHORT, ["learning_rate=0.001", "steps=60"])
    once = train(network(), recipe, small, out=tmp_path / "once", optimizer=adam)
    with pytest.raises(Stopped):
        train(network(), recipe, small, out=tmp_path / "twice", optimizer=adam, reporter=StopAt(30))
    twice = train(network(), recipe, small, out=tmp_path / "twice", optimizer=adam)
    assert once.run_dir.name.startswith("Sequential-short-s0-")
    assert same(once.run_dir, twice.run_dir)
    trained = network()
    held = plainres.weights.read(once.run_dir / "weights.safetensors")
    plainres.weights.fill(trained, held.state, "weights")
    assert plainres.evaluate(trained, small, recipe=recipe).misses == once.misses
    with pytest.raises(UserError, match="a network from outside plainres"):
        plainres.load(once.run_dir)


def trained(network: nn.Module, small: Dataset, out: Path, **options: Any) -> plainres.RunResult:
    recipe = recipes.resolve(SHORT, ["learning_rate=0.001", "steps=40"])
    return train(network, recipe, small, out=out, **options)


def linear(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), *more, nn.Linear(3072, 10))


def test_another_strangers_network_is_another_run(small: Dataset, tmp_path: Path) -> None:
    other = linear()
    nn.init.zeros_(other[1].bias)
    runs = [trained(n, small, tmp_path) for n in (linear(), linear(nn.Tanh()), linear(nn.ReLU()), other)]
    runs += [
        trained(linear(), small, tmp_path, optimizer=lambda p, r: torch.optim.Adam(p, r)),
        trained(linear(), small, tmp_path, optimizer=lambda p, r: torch.optim.Adam(p, r, weight_decay=0.1)),
        trained(linear(), small, tmp_path, optimizer=lambda p, r: torch.optim.SGD(p, r)),
    ]
    assert not any(run.already_finished for run in runs)
    assert trained(linear(), small, tmp_path).already_finished


def test_dropout_is_the_same_after_a_stop(small: Dataset, tmp_path: Path) -> None:
    once = trained(linear(nn.Dropout()), small, tmp_path / "once")
    torch.manual_seed(99)  # the generator's state, which must not matter, and must be left as it is
    before = torch.get_rng_state()
    network = linear(nn.Dropout())
    torch.set_rng_state(before)
    with pytest.raises(Stopped):
        trained(network, small, tmp_path / "twice", reporter=StopAt(20))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(once.run_dir, trained(linear(nn.Dropout()), small, tmp_path / "twice").run_dir)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)), r"turns 2 images into \(2, 5\), expected \(2, 10\)"),
        (nn.Linear(3, 10), "does not take images"),
        (nn.Flatten(), "no parameters to train"),
        (nn.ModuleDict({"normalization": nn.ParameterDict({"mean": torch.zeros(1)})}), "keep for themselves"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_at_the_start(
    network: nn.Module, said: str, small: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        train(network, SHORT, small, out=tmp_path)


def test_networks_with_their_own_ideas_finish(small: Dataset, tmp_path: Path) -> None:
    class Own(nn.Module):
        """Tied weights, a submodule called module, and a BN that runs in training alone."""

        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(3072, 10)
            self.twin = nn.Linear(3072, 10)
            self.twin.weight = self.module.weight
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn(x) if self.training else x
            return self.module(x.flatten(1)) + self.twin(x.flatten(1))

    torch.manual_seed(0)
    result = trained(Own(), small, tmp_path)
    again = Own()
    plainres.weights.fill(again, plainres.weights.read(result.run_dir / "weights.safetensors").state, "w")
    recipe = recipes.resolve(SHORT, ["learning_rate=0.001", "steps=40"])
    assert plainres.evaluate(again, small, recipe=recipe).misses == result.misses


def test_kept_weights_survive_a_stop_in_the_evaluation(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = plainres.training.evaluate_part

    def stopped(*words: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr("plainres.training.evaluate_part", stopped)
        with pytest.raises(Stopped):
            train(TINY, SHORT, small, steps=40, keep_every=20, eval_every=20, out=tmp_path)
    result = train(TINY, SHORT, small, steps=40, keep_every=20, eval_every=20, out=tmp_path)
    assert len(list(result.run_dir.glob("weights-*"))) == 2
    assert [x["step"] for x in lines(result.run_dir) if x["kind"] == "test"] == [20, 40]
    assert not list(result.run_dir.glob(".*"))


def test_an_interrupt_at_the_very_end_is_passed_on(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Reporter):
        def finished(self, result: plainres.RunResult) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, small, steps=10, out=tmp_path, reporter=Late())
    assert train(TINY, SHORT, small, steps=10, out=tmp_path).already_finished


def test_keep_every(small: Dataset, tmp_path: Path) -> None:
    result = train(TINY, SHORT, small, steps=50, keep_every=20, out=tmp_path)
    kept = sorted(path.name for path in result.run_dir.glob("weights-*"))
    assert kept == ["weights-20.safetensors", "weights-40.safetensors"]
    assert plainres.load(result.run_dir / kept[0]).about["steps"] == 20


def test_a_run_directory_can_be_moved(small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(TINY, SHORT, small, steps=40, out=tmp_path / "a", reporter=StopAt(20))
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert train(TINY, SHORT, small, steps=40, out=tmp_path / "b").facts["steps"] == 40


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "float16"}, "unknown precision 'float16'; did you mean 'bfloat16'"),
        ({"seed": -1}, "seed -1 is not between"),
        ({"steps": 5, "epochs": 1}, "not both"),
        ({"steps": 0}, "above 0"),
        ({"epochs": float("inf")}, "--epochs must be a number above 0"),
        ({"epochs": 1e300}, "it must be at most 1000000000"),
        ({"eval_every": -1}, "must not be below 0"),
        ({"keep_every": -3}, "must not be below 0"),
        ({"device": "cpu:7"}, "unknown device 'cpu:7'"),
        ({"network": plainres.NetworkSpec(classes=20)}, "'classes' is 20, the data has 10 classes"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"recipe": "papr"}, "did you mean 'paper'"),
        ({"network": "resnet19"}, "depth 19 is not 6n+2"),
    ],
)
def test_mistakes_are_found_before_anything_is_made(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(**{"network": "resnet20", "data": "generated:train=300,test=100", "out": tmp_path / "runs", **options})
    assert said in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_mistakes_are_found_before_data_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plainres.job.dataset", lambda *_, **__: pytest.fail("the data was opened"))
    for options in ({"precision": "half"}, {"seed": -1}, {"epochs": 0.0}, {"recipe": "papr"}, {"network": "resnet19"}):
        with pytest.raises(UserError):
            train(**{"network": "resnet20", "out": tmp_path, **options})  # type: ignore[arg-type]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_cuda_agrees_with_the_cpu(small: Dataset, tmp_path: Path) -> None:
    recipe = recipes.resolve("paper", ["batch_size=20", "steps=20", "learning_rate=0.01"])
    runs = [train(TINY, recipe, "generated:train=300,test=100", device=d, out=tmp_path / d) for d in ("cpu", "cuda")]
    states = [plainres.load(run.run_dir).network.state_dict() for run in runs]
    for key, value in states[0].items():
        assert torch.allclose(value.float(), states[1][key].float(), rtol=1e-2, atol=1e-3), key
