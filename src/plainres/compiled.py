"""The compiled engine: one compilation for each distinct shape of block, however many blocks there are."""

import copy
import functools
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainres import machine, recompute
from plainres.errors import Unavailable
from plainres.network import Network
from plainres.step import Eager, Work

Function = Callable[..., Any]
Run = Callable[[nn.Module, Tensor], Tensor]


class Runs(NamedTuple):
    """What runs a network's stem, each block of each stage, and its head."""

    stem: Run
    stages: list[list[Run]]
    head: Run


class CompileUnavailable(Unavailable):
    """PyTorch's compiler, or a CUDA graph, cannot run this work here; the message is the reason, in one line."""


class Compiled(Eager):
    """As `Eager`, forward and backward compiled; to be made and stepped under one `machine.exact`.

    `segment` blocks at a time are computed again in the backward pass (0: none). CompileUnavailable where it cannot be.
    Whatever it tries beforehand, it tries on copies.
    """

    def __init__(self, work: Work, segment: int = 0) -> None:
        super().__init__(work)
        network = known(work)
        self.device = next(network.parameters()).device
        self.forward = Forward(network, work.precision, segment)
        self.compile_seconds = self.forward.prepare(work.batch_size, training=True)
        self.eval_size = 0  # images of a compiled evaluation batch

    def logits(self, inputs: Tensor) -> Tensor:
        """Normalized images (N, 3, 32, 32) to logits float32 (N, classes)."""
        if self.work.network.training:
            return self.forward(inputs)
        if len(inputs) > self.eval_size:
            self.eval_size = len(inputs)
            self.compile_seconds += self.forward.prepare(self.eval_size, training=False)
        return filled(self.forward, inputs, self.eval_size)


class Forward:
    """A network as its stem, its blocks and its head, each run by a function that equal ones share.

    Called like the network, in its mode, with the same results; `compiling` or, for comparison, as it is written.
    """

    def __init__(self, network: Network, precision: str, segment: int = 0, *, compiling: bool = True) -> None:
        self.network, self.precision, self.segment, self.compiling = network, precision, segment, compiling
        self.device = next(network.parameters()).device
        self.stages = [list(stage) for stage in recompute.stages(network)]
        self.norms = recompute.norms([network])
        self._runs: dict[tuple[int, bool], Runs] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        """Normalized images (N, 3, 32, 32) to logits float32 (N, classes)."""
        if not self.network.training:
            with torch.no_grad():
                return self.through(inputs)
        # BN counts its batches here, all layers in one call: on a GPU each would be a kernel of its own.
        with recompute.uncounted(self.norms) as counters:
            logits = self.through(inputs)
        if counters:
            torch._foreach_add_(counters, 1)
        return logits

    def through(self, inputs: Tensor) -> Tensor:
        """The same, without counting the batch."""
        runs = self.runs(len(inputs), training=self.network.training)
        x = inputs.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            x = runs.stem(self.network, x)
            for blocks, alike in zip(self.stages, runs.stages, strict=True):
                steps = [functools.partial(run, block) for run, block in zip(alike, blocks, strict=True)]
                x = recompute.run(blocks, x, self.segment, steps)
            return runs.head(self.network, x)

    def autocast(self) -> torch.autocast:
        """The precision; no cache, which would outlive the capture of a CUDA graph: nothing is cast twice."""
        rounded = self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=rounded, cache_enabled=False)

    def runs(self, size: int, *, training: bool) -> Runs:
        """The functions that run batches of `size` images."""
        if (size, training) not in self._runs:
            facts = [v for k, v in vars(self.network.spec).items() if k != "depth"]
            facts += [size, training, self.precision, str(self.device), torch.get_num_threads(), self.segment > 0]

            def made(function: Run, *place: Any) -> Run:
                return compiled(function, (*place, *facts), self.device.type) if self.compiling else function

            stages = [[made(run_block, n, *likeness(b)) for b in blocks] for n, blocks in enumerate(self.stages)]
            self._runs[size, training] = Runs(made(run_stem), stages, made(run_head))
        return self._runs[size, training]

    def prepare(self, size: int, *, training: bool) -> float:
        """Compile for batches of `size` images by running copies; the seconds that compiling took."""
        if not self.compiling:
            return 0.0
        try:
            with warnings.catch_warnings(), torch.set_grad_enabled(training):
                warnings.simplefilter("ignore")  # the compiler's remarks are about itself
                return self._rehearse(size, training=training)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise CompileUnavailable(f"torch.compile failed ({reason(error)})") from error

    def _rehearse(self, size: int, *, training: bool) -> float:
        """Run each distinct piece twice on a copy of its own: the first compiles, the second shows what a run takes."""
        x = torch.zeros(size, 3, 32, 32, device=self.device).contiguous(memory_format=torch.channels_last)
        spent = 0.0
        for run, module in self._distinct(self.runs(size, training=training)):
            module.train(training)
            with self.autocast(), recompute.uncounted(recompute.norms([module] if training else [])):
                first, y = self._timed(run, module, x)
                second, y = self._timed(run, module, x)
            x = y.detach().requires_grad_(training)
            spent += max(0.0, first - second)
        return spent

    def _distinct(self, runs: Runs) -> Iterator[tuple[Run, nn.Module]]:
        """Each function with a copy of one module that it runs, in the order they run."""
        # What a copy is told that it has copied already, it shares: stem and head have no use for the stages.
        shared = {id(stage): stage for stage in recompute.stages(self.network)}
        ends = copy.deepcopy(self.network, shared)
        ends.stage1, ends.stage2, ends.stage3 = nn.Sequential(), nn.Sequential(), nn.Sequential()
        yield runs.stem, ends
        for blocks, alike in zip(self.stages, runs.stages, strict=True):
            for run in dict.fromkeys(alike):
                yield run, copy.deepcopy(blocks[alike.index(run)])
        yield runs.head, ends

    def _timed(self, run: Run, module: nn.Module, x: Tensor) -> tuple[float, Tensor]:
        machine.synchronize(self.device)
        before = time.perf_counter()
        y = run(module, x)
        if y.requires_grad:
            torch.autograd.backward(y, torch.zeros_like(y))
        machine.synchronize(self.device)
        return time.perf_counter() - before, y


def known(work: Work) -> Network:
    """The network of a work that can be compiled; CompileUnavailable for any other."""
    network = work.network
    if not isinstance(network, Network) or work.draws:
        raise CompileUnavailable("the network is not one of plainres")
    kind = next(network.parameters()).device.type
    if kind not in ("cpu", "cuda"):
        raise CompileUnavailable(f"not on the device '{kind}'")
    if kind == "cpu" and machine.compiler() is None:
        raise CompileUnavailable("this machine has no C++ compiler")
    return network


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def run_stem(network: nn.Module, x: Tensor) -> Tensor:
    """What comes before the first block, as `Network.features` has it."""
    assert isinstance(network, Network)
    x = network.conv1(x)
    return x if network.spec.kind == "preact" else F.relu(network.bn1(x))


def run_block(module: nn.Module, x: Tensor) -> Tensor:
    """One block."""
    y: Tensor = module(x)
    return y


def run_head(network: nn.Module, x: Tensor) -> Tensor:
    """What comes after the last block, as `Network.features` has it."""
    assert isinstance(network, Network)
    x = F.relu(network.bn1(x)) if network.spec.kind == "preact" else x
    return network.classify(x.mean((2, 3))).float()


def likeness(module: nn.Module) -> tuple[str, bool]:
    """Equal for two blocks of one stage that are computed alike."""
    return repr(module), bool(getattr(module, "activated_shortcut", False))


@functools.cache
def compiled(function: Function, key: tuple[Any, ...], device: str) -> Function:
    """`function` compiled for what `key` tells apart: for the whole process, so that engines share it.

    The compiler keeps a short list of versions for each code object, and gives up where it is full: each key has
    a code object of its own.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    options = {"deterministic": True} if device == "cuda" and hasattr(_inductor(), "deterministic") else None
    return torch.compile(own, dynamic=False, fullgraph=True, options=options)  # type: ignore[arg-type]


_numbers = itertools.count()


def _inductor() -> Any:
    import torch._inductor.config

    return torch._inductor.config


def filled(forward: Callable[[Tensor], Tensor], inputs: Tensor, size: int) -> Tensor:
    """`forward` on batches of exactly `size` images, the last one filled up with zeros: no other size is met."""
    if len(inputs) == size:
        return forward(inputs)
    found = []
    for batch in torch.split(inputs, size):
        whole = F.pad(batch, (0, 0) * 3 + (0, size - len(batch)))
        found.append(forward(whole)[: len(batch)])
    return torch.cat(found)
