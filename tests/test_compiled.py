import copy
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from conftest import TINY
from plainres import compiled, machine, recipes, recompute
from plainres.compiled import Compiled, CompileUnavailable, Forward, filled
from plainres.data.dataset import Dataset
from plainres.errors import Unavailable
from plainres.network import build
from plainres.recipe import Recipe
from plainres.recompute import Recomputed
from plainres.spec import NetworkSpec
from plainres.step import Eager, Engine, Window, Work, sgd

SHORT = recipes.resolve("quick", ["batch_size=20", "steps=130", "warmup_steps=20", "name=short"])
GENTLE = 0.0001  # a rate at which a difference in the last bit does not grow within 20 steps
CPU = torch.device("cpu")


def work(
    data: Dataset, spec: NetworkSpec = TINY, recipe: Recipe = SHORT, precision: str = "float32", **other: Any
) -> Work:
    """A fresh start of a network, with everything an engine needs."""
    network = build(spec)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches, window = data.batches(0, recipe), Window(data.device, recipe.batch_size)
    return Work(network.to(data.device), sgd(network, recipe), recipe, batches, window, precision, **other)


def state(work: Work) -> dict[str, Tensor]:
    """All that a step changes."""
    momenta = {f"momentum {i}": s["momentum_buffer"] for i, s in work.optimizer.state_dict()["state"].items()}
    return {**work.network.state_dict(), **momenta, **work.window.state()}


def copied(work: Work) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state(work).items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether they are equal, were it not for the order in which numbers are added."""
    assert first.keys() == second.keys()
    distances = {name: (tensor.double() - second[name].double()).norm() for name, tensor in first.items()}
    return all(far <= 1e-6 + 0.02 * first[name].double().norm() for name, far in distances.items())


def steps(*engines: Engine, start: int = 0, count: int = 20, rate: float = GENTLE) -> None:
    for number, engine in itertools.product(range(start, start + count), engines):
        engine.step(number, rate)


@pytest.fixture
def exact() -> Iterator[None]:
    with machine.exact(CPU):
        yield


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, exact: None) -> Iterator[None]:
    """The compiler's front half alone: it finds what a function does, and PyTorch's own kernels do it, at once."""
    real = torch.compile
    quick = functools.partial(real, backend="aot_eager", dynamic=False, fullgraph=True)
    monkeypatch.setattr("torch.compile", lambda function, **_: quick(function))
    compiled.compiled.cache_clear()
    yield
    compiled.compiled.cache_clear()


# -- compiled


def test_compiled_agrees_with_eager_and_compiles_nothing_in_the_loop(small: Dataset, exact: None) -> None:
    eager, made = work(small), work(small)
    before, names, drawn = copied(made), list(made.network.state_dict()), torch.get_rng_state()
    engine = Compiled(made)
    assert engine.compile_seconds > 0
    assert same(before, copied(made))
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in made.network.parameters())
    with torch.compiler.set_stance("fail_on_recompile"):
        steps(Eager(eager), engine)
    assert close(state(eager), state(made))
    assert list(made.network.state_dict()) == names
    assert int(made.network.get_buffer("stage1.0.bn1.num_batches_tracked")) == 20


def test_evaluation_compiles_once_whatever_the_last_batch(small: Dataset, traced: None) -> None:
    made = work(small)
    engine = Compiled(made)
    steps(engine, count=3)
    made.network.eval()
    inputs = small.batches(0, SHORT).normalization(small.part("test").images)
    expected, training_seconds = made.network(inputs).detach(), engine.compile_seconds
    found = engine.logits(inputs)
    assert engine.compile_seconds > training_seconds
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(engine.logits(inputs), found)
        assert torch.equal(engine.logits(inputs[:37]), found[:37])
        made.network.train()
        steps(engine, start=3, count=1)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not found.requires_grad


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_many_blocks_are_few_compilations(small: Dataset, precision: str, traced: None) -> None:
    counters.clear()
    for depth in (20, 38):
        eager, made = (work(small, NetworkSpec(depth=depth, width=4), precision=precision) for _ in range(2))
        engine = Compiled(made)
        with torch.compiler.set_stance("fail_on_recompile"):
            steps(Eager(eager), engine, count=2)
        assert same(state(eager), state(made))
        # stem, head, and by stage one kind of block, or two where the first one changes the shape
        assert counters["stats"]["unique_graphs"] == 7


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec(depth=14, width=4, kind="plain"),
        NetworkSpec(depth=14, width=4, shortcut="B", subsample="average"),
        NetworkSpec(depth=14, width=4, shortcut="identity-projection", fc_bias=False, fc_bn=True),
        NetworkSpec(depth=14, width=4, kind="preact"),
        NetworkSpec(depth=20, width=4, kind="preact", block="bottleneck", shortcut="B"),
        NetworkSpec(depth=20, width=4, block="bottleneck", shortcut="C"),
    ],
)
def test_the_pieces_are_the_network(spec: NetworkSpec, small: Dataset, exact: None) -> None:
    network, other = build(spec), build(spec)
    inputs = small.batches(0, SHORT)[0][0].contiguous(memory_format=torch.channels_last)
    forward = Forward(other, "float32", compiling=False)
    for mode in (True, False):
        network.train(mode)
        other.train(mode)
        assert torch.equal(network(inputs), forward(inputs))
    assert same(network.state_dict(), other.state_dict())


def test_what_cannot_be_compiled_says_why_in_one_line(
    small: Dataset, exact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    made = work(small)
    with pytest.raises(CompileUnavailable, match="not one of plainres"):
        Compiled(Work(stranger, sgd(stranger, SHORT), SHORT, made.batches, made.window, draws=True))
    with monkeypatch.context() as patch:
        patch.setattr("plainres.machine.compiler", lambda: None)
        with pytest.raises(Unavailable, match=r"no C\+\+ compiler"):
            Compiled(made)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the back end\nis broken")

    before = copied(made)
    monkeypatch.setattr("torch.compile", lambda *_, **__: broken)
    compiled.compiled.cache_clear()
    with pytest.raises(CompileUnavailable, match=r"^torch.compile failed \(RuntimeError: the back end is broken\)$"):
        Compiled(made)
    compiled.compiled.cache_clear()
    assert same(before, copied(made))


def test_no_image_is_lost_in_filled_batches() -> None:
    seen: list[int] = []

    def double(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return batch.flatten(1)[:, :1] * 2

    for count in (1, 4, 7, 8):
        inputs = torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 3, 2, 2)
        assert filled(double, inputs, 4).flatten().tolist() == [2.0 * i for i in range(count)]
    assert set(seen) == {4}


# -- recomputation


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("segment", [1, 2, 3])
def test_recomputation_changes_no_bit(segment: int, precision: str, small: Dataset, exact: None) -> None:
    kept, again = (work(small, NetworkSpec(depth=20, width=4), precision=precision) for _ in range(2))
    names = list(again.network.state_dict())
    steps(Eager(kept), Recomputed(again, segment), count=4, rate=0.1)
    assert same(state(kept), state(again))
    assert names == list(again.network.state_dict())
    assert same(state(kept), copy.deepcopy(again.network).state_dict() | state(again))


def test_recomputation_of_compiled_blocks_changes_no_bit(small: Dataset, traced: None) -> None:
    kept, again = (work(small, NetworkSpec(depth=20, width=4)) for _ in range(2))
    engines = Compiled(kept), Compiled(again, segment=2)
    with torch.compiler.set_stance("fail_on_recompile"):
        steps(*engines, count=4, rate=0.1)
    assert same(state(kept), state(again))


def test_recomputation_keeps_less(small: Dataset, exact: None) -> None:
    network = build(NetworkSpec(depth=56, width=4))
    inputs, _ = small.batches(0, SHORT)[0]

    def kept(segment: int) -> int:
        """Bytes kept for the backward pass, each storage once."""
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if segment:
                with recompute.applied(network, segment):
                    network(inputs)
            else:
                network(inputs)
        return sum(sizes.values())

    whole = kept(0)
    assert kept(5) < whole / 8


def test_statistics_are_spared_even_where_a_recomputation_fails(small: Dataset, exact: None) -> None:
    network = build(TINY)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    images, _ = small.batches(0, SHORT)[0]

    def fail(*_: object) -> None:
        raise RuntimeError("midway")

    network.fc.register_forward_hook(fail)
    with recompute.spared(recompute.norms([network])), pytest.raises(RuntimeError, match="midway"):
        network(images)
    assert same(before, dict(network.named_buffers()))


def test_a_network_without_known_blocks_is_not_recomputed(small: Dataset) -> None:
    stranger = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    made = work(small)
    with pytest.raises(Unavailable, match="not one of plainres"):
        Recomputed(Work(stranger, sgd(stranger, SHORT), SHORT, made.batches, made.window), 2)
