"""The native engine against PyTorch in float64, against itself on other threads, and where it cannot be had."""

import functools
import platform
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plainres import engines, kernels, machine, memory, recipes, trunk
from plainres.data.dataset import Dataset
from plainres.errors import Stopped, Unavailable, UserError
from plainres.job import Job
from plainres.memory import need
from plainres.native import Native
from plainres.network import Network, build
from plainres.outcome import Reporter
from plainres.run import Room, train
from plainres.spec import NetworkSpec
from plainres.step import Eager, Engine, Window, Work, sgd
from plainres.trunk import Outline, Trunk

pytestmark = pytest.mark.skipif(machine.compiler() is None, reason="no C++ compiler here")

VARIANTS = {
    "plain": NetworkSpec(depth=8, kind="plain"),
    "residual": NetworkSpec(depth=14),
    "B": NetworkSpec(depth=8, shortcut="B"),
    "C": NetworkSpec(depth=14, shortcut="C"),
    "techxzen": NetworkSpec.named("resnet20-techxzen"),
    "techxzen plain": NetworkSpec.named("plain20-techxzen"),
    "cfmz": NetworkSpec.named("resnet20-cfmz"),
    "wide": NetworkSpec(depth=8, width=32),
}
SHORT = recipes.resolve("quick", ["batch_size=24", "steps=12", "warmup_steps=4", "learning_rate=0.05", "name=short"])


def batch(images: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return 60 * torch.randn(images, 3, 32, 32, generator=drawn), torch.randint(0, 10, (images,), generator=drawn)


def pass_through(network: Network, found: Trunk, images: Tensor, labels: Tensor) -> float:
    """One training pass; leaves the gradients in the network."""
    features = found.forward(images, training=True).requires_grad_()
    loss = F.cross_entropy(network.classify(features), labels)
    loss.backward()
    assert features.grad is not None
    found.backward(features.grad)
    return loss.item()


def gradients(network: Network) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def differences(spec: NetworkSpec, images: Tensor, labels: Tensor) -> dict[str, float]:
    """How far one training pass of the kernels is from PyTorch's in float64: loss, gradients, statistics."""
    ours, theirs = build(spec), build(spec).double()
    ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = pass_through(ours, Trunk(ours, len(images)), images, labels)
    expected = F.cross_entropy(theirs(images.double()), labels)
    expected.backward()
    found = {"loss": abs(loss / expected.item() - 1)}
    for name, parameter in theirs.named_parameters():
        own, right = gradients(ours)[name].double(), parameter.grad
        assert right is not None
        constant = name.endswith(("conv1.bias", "conv2.bias"))  # which BN takes away: zero but for rounding
        found[name] = float((own - right).norm() / (1 if constant else right.norm()))
    for name, statistic in theirs.named_buffers():
        own, right = ours.get_buffer(name).double(), statistic.double()
        found[name] = float((own - right).norm() / right.norm())
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_pass_is_that_of_pytorch_in_float64(variant: str) -> None:
    """A ReLU's input next to zero may fall to the other side, and changes every gradient before it; so three tries."""
    worst = []
    for seed in range(3):
        found = differences(VARIANTS[variant], *batch(3, seed))  # fewer images than groups
        assert max(found.values()) < 0.1
        worst.append(max(found.items(), key=lambda item: item[1]))
    assert min(value for _, value in worst) < 3e-5, worst


@pytest.mark.parametrize("variant", ["residual", "B", "cfmz", "techxzen"])
def test_evaluation_uses_the_running_statistics_and_changes_nothing(variant: str) -> None:
    network, (images, labels) = build(VARIANTS[variant]), batch(10)
    found = Trunk(network, 4)  # smaller than the batch to evaluate
    for _ in range(3):
        pass_through(network, found, images[:4], labels[:4])
    work = Work(network, sgd(network, SHORT), SHORT, {}, Window(torch.device("cpu"), 4))  # type: ignore[arg-type]
    engine = Native(work)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(engine.logits(images), network(images), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_bits_do_not_depend_on_threads_or_on_recomputing() -> None:
    spec, (images, labels) = NetworkSpec(depth=20, shortcut="B"), batch(37)
    found = []
    for threads, segment in ((1, 0), (2, 0), (2, 1), (2, 2), (1, 4), (2, 9)):
        network = build(spec)
        made = Trunk(network, 37, segment=segment)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            features = made.forward(images, training=True)
            made.backward(torch.ones_like(features) * labels.view(-1, 1))
        finally:
            torch.set_num_threads(before)
        found.append([features, *network.state_dict().values(), *gradients(network).values()])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_recomputing_takes_less_memory_and_the_outline_knows_how_much() -> None:
    network = build("resnet56")
    all_kept, few_kept = Trunk(network, 4), Trunk(network, 4, segment=5)
    assert few_kept.bytes < all_kept.bytes
    with torch.device("meta"):
        shape = Network(network.spec)
    assert Outline(shape, 4).bytes == all_kept.bytes
    assert Outline(shape, 4, segment=5).bytes == few_kept.bytes
    needed = need(network.spec, "float32", 0, engine="native", segment=5)
    assert needed.per_image < 0.45 * need(network.spec, "float32", 0, engine="native").per_image
    assert needed.bytes(4) == few_kept.bytes + 3 * 4 * sum(p.numel() for p in network.parameters())


def test_what_is_not_a_number_is_not_hidden_by_relu() -> None:
    network, (images, labels) = build(VARIANTS["residual"]), batch(4)
    images[2, 1, 5, 5] = float("nan")
    assert not torch.isfinite(Trunk(network, 4).forward(images, training=True)).all()
    del labels


def work_of(data: Dataset, spec: NetworkSpec) -> Work:
    network = build(spec)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    window = Window(torch.device("cpu"), SHORT.batch_size)
    return Work(network, sgd(network, SHORT), SHORT, data.batches(0, SHORT), window)


def test_twenty_steps_agree_with_eager(small: Dataset) -> None:
    ends: list[tuple[Tensor, Tensor]] = []
    makers: list[Callable[[Work], Engine]] = [Eager, Native]
    for make in makers:
        engine = make(work_of(small, NetworkSpec(depth=8)))
        parameters = list(engine.work.network.parameters())
        start = torch.cat([p.detach().flatten() for p in parameters])
        for number in range(20):
            engine.step(number, 1e-3)
        moved = torch.cat([p.detach().flatten() for p in parameters]) - start
        ends.append((engine.work.window.losses[:20].clone(), moved))
    (eager_losses, eager), (losses, native) = ends
    torch.testing.assert_close(losses, eager_losses, rtol=1e-3, atol=1e-3)
    assert losses[-1] < 0.95 * losses[0]  # and it learns
    assert (eager - native).norm() <= 0.01 * eager.norm()


class Notices(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def notice(self, text: str) -> None:
        self.lines.append(text)

    def started(self, job: Job, run_dir: Path, done: int, split: str) -> None:
        self.begun_after = done


class StopAtTen(Reporter):
    def progress(self, done: int, loss: float, error: float, seconds: float) -> None:
        if done == 10:
            signal.raise_signal(signal.SIGTERM)


def test_a_stopped_run_ends_with_the_same_bits_on_any_number_of_threads(small: Dataset, tmp_path: Path) -> None:
    spec = NetworkSpec(depth=8)
    alone = train(spec, SHORT, small, engine="native", out=tmp_path / "a", threads=2)
    with pytest.raises(Stopped):
        train(spec, SHORT, small, engine="native", out=tmp_path / "b", threads=2, reporter=StopAtTen())
    again = train(spec, SHORT, small, engine="native", out=tmp_path / "b", threads=1, recompute=True)
    assert again.facts["weights_sha256"] == alone.facts["weights_sha256"]
    assert again.facts["engine"] == "native"
    assert not again.facts["replanned"]
    with pytest.raises(Stopped):
        train(spec, SHORT, small, engine="native", out=tmp_path / "c", reporter=StopAtTen())
    with pytest.raises(UserError, match="engine was native, is eager"):
        train(spec, SHORT, small, engine="eager", out=tmp_path / "c")


def test_a_profile_accounts_for_the_whole_step(small: Dataset) -> None:
    engine = Native(work_of(small, NetworkSpec(depth=8)))
    found = engine.profile()
    assert set(found) == {*trunk.CATEGORIES, "other"}
    assert all(seconds >= 0 for seconds in found.values())
    assert found["convolution forward"] > 0
    assert engine.trunk.net.profile == 0


def test_who_gets_it() -> None:
    cpu, resnet = torch.device("cpu"), build("resnet20")
    assert engines.candidates(resnet, cpu, "float32", 1e13) == ["native", "eager"]
    assert engines.candidates(resnet, cpu, "float32", 1e10) == ["eager"]  # over before the kernels were compiled
    assert engines.candidates(resnet, cpu, "bfloat16", 1e15) == ["compiled", "eager"]
    assert engines.candidates(build("preact20"), cpu, "float32", 1e15) == ["compiled", "eager"]
    assert engines.candidates(torch.nn.Linear(1, 1), cpu, "float32", 1e15) == ["eager"]


@pytest.mark.parametrize(("spec", "reason"), [("preact20", "basic block"), (NetworkSpec(depth=8, width=8), "16, 32")])
def test_a_network_the_kernels_do_not_know_is_refused(
    spec: str | NetworkSpec, reason: str, small: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"engine 'native'.*{reason}"):
        train(spec, SHORT, small, engine="native", out=tmp_path)


@pytest.fixture
def _no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernels were never compiled here, and will not be known afterwards."""
    monkeypatch.setenv("PLAINRES_CACHE", str(tmp_path / "cache"))
    for cached in (kernels.library, kernels.fingerprint, kernels.compiler_version):
        monkeypatch.setattr(kernels, cached.__name__, cached.__wrapped__)


def test_what_does_not_fit_is_refused_before_it_starts(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda _device: 20 * 2**20)
    with pytest.raises(UserError, match=r"needs at least 0.0 GiB .* --recompute may help, --set batch_size=\d+ would"):
        train(NetworkSpec(depth=20), SHORT, small, engine="native", out=tmp_path)
    assert not list(tmp_path.rglob("plan.json"))
    monkeypatch.setattr(Room, "SAID_FROM", 2**20)
    monkeypatch.setattr(memory, "available", lambda _device: 2**30)
    report = Notices()
    train(NetworkSpec(depth=8), SHORT, small, steps=1, engine="native", out=tmp_path, reporter=report)
    assert [line for line in report.lines if "needs about 0.0 GiB of memory; 1.0 GiB are free" in line]


def test_running_out_of_memory_loses_no_checkpoint(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Eager.step

    def step(self: Eager, number: int, learning_rate: float) -> None:
        if number == 7:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        real(self, number, learning_rate)

    monkeypatch.setattr(Eager, "step", step)
    with pytest.raises(UserError, match=r"ran out of memory.*--set batch_size=12"):
        train(NetworkSpec(depth=8, width=4), SHORT, small, engine="eager", out=tmp_path, checkpoint_seconds=0.0)
    monkeypatch.undo()
    report = Notices()
    train(NetworkSpec(depth=8, width=4), SHORT, small, engine="eager", out=tmp_path, reporter=report)
    assert report.begun_after == 7


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize("architecture", ["x86-64-v3", "x86-64"])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of another kind")
def test_other_processors_compute_the_same(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with shorter vector registers, and fewer: the code is the same, its tiles are not."""
    monkeypatch.setattr(kernels, "FLAGS", [*kernels.FLAGS, f"-march={architecture}"])
    monkeypatch.setattr(kernels, "library", functools.cache(kernels.library))
    for variant in ("residual", "B"):
        found = [max(differences(VARIANTS[variant], *batch(3, seed)).values()) for seed in range(3)]
        assert min(found) < 3e-5


@pytest.mark.usefixtures("_no_library")
def test_without_a_compiler_a_run_goes_on_eager_with_one_line(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "compiler", lambda: None)
    monkeypatch.setitem(engines._PAYS_FROM, "native", 0.0)
    report = Notices()
    result = train(NetworkSpec(depth=8), SHORT, small, steps=2, out=tmp_path, reporter=report)
    assert result.facts["engine"] == "eager"
    assert len(report.lines) == 1
    assert "no C++ compiler" in report.lines[0]


@pytest.mark.usefixtures("_no_library")
def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setattr(machine, "compiler", lambda: str(broken))
    with pytest.raises(Unavailable, match=r"does not compile the kernels: x.cpp:1: error: no such thing"):
        kernels.library()
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.mark.usefixtures("_no_library")
def test_a_damaged_library_is_compiled_again() -> None:
    place = kernels._place()
    place.parent.mkdir(parents=True)
    place.write_bytes(b"\x7fELF, or the beginning of it")
    assert kernels.library().trunk_size(3) > 0
