"""The step as a CUDA graph. What needs no GPU is tried without: the body of the step, and its host's part."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from plainres import machine, recipes
from plainres.augmentation import fetched
from plainres.compiled import CompileUnavailable, Forward
from plainres.data.dataset import Dataset, dataset
from plainres.errors import UserError
from plainres.graph import Graph
from plainres.recipe import Recipe
from plainres.spec import NetworkSpec
from plainres.static import Static
from plainres.step import Eager, Work
from test_compiled import CPU, GENTLE, SHORT, close, copied, same, state, steps, traced, work

__all__ = ["traced"]

PLAIN = recipes.resolve("paper", ["batch_size=20", "steps=130", "name=plain"])
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven steps of 20 images to a chunk of draws."""
    monkeypatch.setattr("plainres.data.dataset._CHUNK", 140)


@pytest.fixture
def exact() -> Iterator[None]:
    with machine.exact(CPU):
        yield


class Called:
    """The engine without its graph: every step calls what would have been recorded."""

    compile_seconds = 0.0

    def __init__(self, work: Work, segment: int = 0, *, compiling: bool = False) -> None:
        self.work = work
        self.static = Static(work, Forward(work.network, work.precision, segment, compiling=compiling))
        if compiling:
            self.static.forward.prepare(work.recipe.batch_size, training=True)

    def step(self, number: int, learning_rate: float) -> None:
        self.static.prepare(number, learning_rate)
        self.static.body()

    def logits(self, inputs: Tensor) -> Tensor:
        return self.static.forward(inputs)


RECIPES = [
    recipes.resolve(PLAIN, options)
    for options in (
        [],
        ["nesterov=yes", "label_smoothing=0.1"],
        ["decay=weights", "weight_decay=0.1", "padding=edge", "normalization=channel-mean-std"],
        ["momentum=0", "padding=zero-before", "flip=no"],
        ["drops=5,9", "reset_momentum_at_drops=yes"],
    )
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_body_is_the_step_of_eager_to_the_last_bit(recipe: Recipe, small: Dataset, exact: None) -> None:
    eager, called = (work(small, recipe=recipe) for _ in range(2))
    engines = Eager(eager), Called(called)
    # rates that float32 holds, as the device does
    steps(*engines, count=12, rate=0.125)
    steps(*engines, start=12, count=8, rate=0.03125)
    assert same(state(eager), state(called))
    assert called.optimizer.param_groups[0]["lr"] == 0.03125


@pytest.mark.parametrize(("segment", "precision"), [(1, "float32"), (2, "bfloat16")])
def test_the_body_recomputes_and_rounds_as_eager_does(
    segment: int, precision: str, small: Dataset, exact: None
) -> None:
    eager, called = (work(small, NetworkSpec(depth=14, width=4), precision=precision) for _ in range(2))
    steps(Eager(eager), Called(called, segment), count=5, rate=0.125)
    assert same(state(eager), state(called))


def test_the_body_can_be_compiled_and_compiles_once(small: Dataset, traced: None) -> None:
    eager, called = work(small), work(small)
    engine = Called(called, compiling=True)
    with engine.static.rehearsal():
        engine.static.body()
    with torch.compiler.set_stance("fail_on_recompile"):
        steps(Eager(eager), engine)
    assert close(state(eager), state(called))


def test_a_rehearsal_leaves_no_trace(small: Dataset, exact: None) -> None:
    rehearsed, plain = work(small), work(small)
    engines = Called(rehearsed), Called(plain)
    steps(*engines, count=3)
    rehearsed.network.eval()
    before = copied(rehearsed)
    with engines[0].static.rehearsal():
        for _ in range(3):
            engines[0].static.body()
        assert not same(before, state(rehearsed))
    assert same(before, state(rehearsed))
    assert not rehearsed.network.training
    rehearsed.network.train()
    steps(*engines, start=3, count=10)
    assert same(state(rehearsed), state(plain))


def test_a_loaded_state_is_the_one_that_steps(small: Dataset, exact: None) -> None:
    whole, first, second = work(small), work(small), work(small)
    steps(Called(whole), rate=0.125)
    stopped = Called(first)
    steps(stopped, count=11, rate=0.125)
    buffer = io.BytesIO()
    torch.save([first.network.state_dict(), first.optimizer.state_dict(), first.window.state()], buffer)
    buffer.seek(0)
    network, optimizer, window = torch.load(buffer, weights_only=True)
    resumed = Called(second)  # made before the state is loaded, as the loop does
    steps(resumed, count=2)
    second.network.load_state_dict(network)
    second.optimizer.load_state_dict(optimizer)
    second.window.restore(window)
    steps(resumed, start=11, count=9, rate=0.125)
    assert same(state(whole), state(second))


def test_momentum_goes_from_engine_to_engine(small: Dataset, exact: None) -> None:
    whole, handed = work(small), work(small)
    steps(Eager(whole), rate=0.125)
    steps(Eager(handed), count=6, rate=0.125)
    steps(Called(handed), start=6, count=7, rate=0.125)
    steps(Eager(handed), start=13, count=7, rate=0.125)
    assert same(state(whole), state(handed))


def test_groups_with_rates_of_their_own(small: Dataset, exact: None) -> None:
    made = [work(small), work(small)]
    for each in made:
        weights, rest = [], []
        for parameter in each.network.parameters():
            (weights if parameter.ndim > 1 else rest).append(parameter)
        groups = [{"params": weights}, {"params": rest, "lr_scale": 2.0}]
        object.__setattr__(each, "optimizer", torch.optim.SGD(groups, 0.1, momentum=0.9, fused=True))
    steps(Eager(made[0]), Called(made[1]), rate=0.125)
    assert same(state(made[0]), state(made[1]))


def test_nothing_in_the_body_asks_the_host(small: Dataset, exact: None) -> None:
    class Watch(TorchDispatchMode):
        """Every operation, and those that a GPU would have to be waited for."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.add(str(function).split(".")[1])
            return function(*args, **(kwargs or {}))

    engine = Called(work(small))
    steps(engine, count=2)
    engine.static.prepare(2, GENTLE)
    with Watch() as watch:
        engine.static.body()
    assert "convolution" in watch.seen
    assert not watch.seen & {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique"}


@pytest.mark.parametrize("padding", ["zero-after", "zero-before", "edge"])
@pytest.mark.parametrize("normalization", ["pixel-mean", "channel-mean", "channel-mean-std"])
@pytest.mark.parametrize("pad", [0, 4, 9])
def test_fetched_pixels_are_the_augmented_batch(padding: str, normalization: str, pad: int, small: Dataset) -> None:
    options = [f"padding={padding}", f"normalization={normalization}", f"pad={pad}"]
    batches = small.batches(3, recipes.resolve(SHORT, options))
    index, crop, flip = (drawn[2] for drawn in batches.draws(5))
    expected, labels = batches[5 * batches.chunk_steps + 2]
    part = batches.part
    found = fetched(part.images, index, crop, flip, batches.normalization, padding=padding, pad=pad)
    assert torch.equal(found, expected)
    assert torch.equal(part.labels[index], labels)


def test_without_a_gpu_it_says_so(small: Dataset) -> None:
    made = work(small)
    if not torch.cuda.is_available():
        with pytest.raises(CompileUnavailable, match="NVIDIA"):
            Graph(made)


class Replayed:
    """In place of the recording: nothing but the order of calls."""

    def __init__(self, body: Any, stream: Any) -> None:
        self.body, self.result = body, body()

    def replay(self) -> None:
        again = self.body()
        if again is not None:
            self.result.copy_(again)


def test_the_engine_around_the_graph(small: Dataset, exact: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the recording, on a device that has no streams."""

    class Stream:
        def wait_stream(self, other: object) -> None: ...

    monkeypatch.setattr("torch.cuda.Stream", lambda device: Stream())
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: Stream())
    monkeypatch.setattr("torch.cuda.stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr("plainres.graph.Recorded", Replayed)
    monkeypatch.setattr("plainres.graph.check", lambda work: work.network)
    eager, made = work(small), work(small)
    before = copied(made)
    engine = Graph(made, compiling=False)
    assert same(before, {k: v for k, v in state(made).items() if k in before})
    engines = Eager(eager), engine
    inputs = made.batches.normalization(small.part("test").images)  # type: ignore[attr-defined]
    for start in (0, 10):
        steps(*engines, start=start, count=10, rate=0.125)
        with torch.no_grad():
            eager.network.eval()
            made.network.eval()
            expected = eager.network(inputs)
            for size in (100, 30, 100):
                assert torch.allclose(engine.logits(inputs[:size]), expected[:size], atol=1e-5)
            eager.network.train()
            made.network.train()
    assert same(state(eager), state(made))


def test_precisions_of_a_device() -> None:
    with pytest.raises(UserError, match="'tf32' needs an NVIDIA GPU"):
        machine.precision("tf32", CPU)
    with pytest.raises(UserError, match="did you mean 'tf32'"):
        machine.precision("tf23")
    assert machine.precision("tf32") == "tf32"
    assert machine.precision("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize("found", ["highest", "high", "medium"])
def test_settings_are_left_as_found(found: str) -> None:
    def settings() -> list[Any]:
        backends: Any = torch.backends
        kinds = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
        older = (torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)
        return [*(kind.fp32_precision for kind in kinds), *older]

    start = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(found)
    try:
        before = settings()
        with machine.exact(CPU):
            assert settings() == ["ieee"] * 4 + ["highest", False, False]
        with machine.exact(CPU, "tf32"):
            assert settings() == ["tf32"] * 2 + ["ieee"] * 2 + ["high", True, True]
        assert settings() == before
    finally:
        torch.set_float32_matmul_precision(start)
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch.backends.cuda.matmul.fp32_precision = "none"


# -- with a GPU


@pytest.fixture(scope="module")
def resident(data_home: object) -> Dataset:
    return dataset("generated:train=300,test=100", "cuda")


@pytest.fixture
def exact_on_cuda() -> Iterator[None]:
    with machine.exact(torch.device("cuda")):
        yield
        torch.cuda.synchronize()


@pytest.mark.cuda
@on_cuda
@pytest.mark.parametrize("compiling", [False, True])
def test_on_cuda_20_steps_agree_with_eager_and_with_the_cpu(
    compiling: bool, small: Dataset, resident: Dataset, exact_on_cuda: None
) -> None:
    cpu, eager, made = work(small), work(resident), work(resident)
    before = copied(made)
    engine = Graph(made, compiling=compiling)
    assert same(before, {k: v for k, v in state(made).items() if k in before})
    steps(Eager(cpu), Eager(eager), engine)
    torch.cuda.synchronize()
    assert close(state(eager), state(made))
    assert close(state(cpu), {k: v.cpu() for k, v in state(made).items()})


@pytest.mark.cuda
@on_cuda
@pytest.mark.parametrize("recipe", RECIPES)
def test_on_cuda_every_rule_of_the_update(recipe: Recipe, resident: Dataset, exact_on_cuda: None) -> None:
    eager, made = (work(resident, recipe=recipe) for _ in range(2))
    engines = Eager(eager), Graph(made, compiling=False)
    steps(*engines, count=12, rate=GENTLE)
    steps(*engines, start=12, count=8, rate=GENTLE / 2)
    torch.cuda.synchronize()
    assert close(state(eager), state(made))


@pytest.mark.cuda
@on_cuda
def test_on_cuda_killed_and_resumed_gives_the_same_bits(resident: Dataset, exact_on_cuda: None) -> None:
    whole, first, second = work(resident), work(resident), work(resident)
    steps(Graph(whole), rate=0.125)
    steps(Graph(first), count=11, rate=0.125)
    torch.cuda.synchronize()
    buffer = io.BytesIO()
    torch.save([first.network.state_dict(), first.optimizer.state_dict(), first.window.state()], buffer)
    buffer.seek(0)
    network, optimizer, window = torch.load(buffer, weights_only=True)
    resumed = Graph(second)
    second.network.load_state_dict(network)
    second.optimizer.load_state_dict(optimizer)
    second.window.restore(window)
    second.network.eval()
    resumed.logits(resident.batches(0, SHORT).normalization(resident.part("test").images))
    second.network.train()
    steps(resumed, start=11, count=9, rate=0.125)
    torch.cuda.synchronize()
    assert same(state(whole), state(second))


@pytest.mark.cuda
@on_cuda
def test_on_cuda_several_at_once_are_each_as_alone(resident: Dataset, exact_on_cuda: None) -> None:
    alone, together = work(resident), [work(resident) for _ in range(3)]
    steps(Graph(alone), count=60, rate=0.125)
    steps(*[Graph(each) for each in together], count=60, rate=0.125)
    torch.cuda.synchronize()
    assert all(same(state(alone), state(each)) for each in together)


@pytest.mark.cuda
@on_cuda
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_on_cuda_no_step_waits_for_the_device(precision: str, resident: Dataset) -> None:
    with machine.exact(torch.device("cuda"), precision):
        made = work(resident, precision=precision)
        engine = Graph(made)
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps(engine, count=30)  # over several chunks of draws
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
        assert made.window.losses[:30].isfinite().all()


@pytest.mark.cuda
@on_cuda
def test_on_cuda_recomputation_changes_no_bit(resident: Dataset, exact_on_cuda: None) -> None:
    kept, again = (work(resident, NetworkSpec(depth=20, width=4)) for _ in range(2))
    steps(Graph(kept), Graph(again, segment=2), rate=0.125)
    torch.cuda.synchronize()
    assert same(state(kept), state(again))


@pytest.mark.cuda
@on_cuda
def test_on_cuda_evaluation_agrees_with_eager(resident: Dataset, exact_on_cuda: None) -> None:
    made = work(resident)
    engine = Graph(made)
    steps(engine, count=5)
    made.network.eval()
    inputs = resident.batches(0, SHORT).normalization(resident.part("test").images)
    with torch.no_grad():
        found = engine.logits(inputs)
        torch.cuda.synchronize()
        assert torch.allclose(found, made.network(inputs), rtol=1e-3, atol=1e-3)
        assert torch.equal(engine.logits(inputs[:7]), found[:7])


@pytest.mark.cuda
@on_cuda
def test_on_cuda_what_cannot_be_recorded_says_why(resident: Dataset) -> None:
    made = work(resident)
    object.__setattr__(made, "optimizer", torch.optim.Adam(made.network.parameters()))
    with pytest.raises(CompileUnavailable, match="the optimizer is Adam"):
        Graph(made)
