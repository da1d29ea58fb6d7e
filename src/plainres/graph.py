"""The CUDA engine: a whole training step recorded once as a CUDA graph, and launched as one."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plainres import machine
from plainres.compiled import CompileUnavailable, Forward, filled, known, reason
from plainres.data.dataset import Batches
from plainres.network import Network
from plainres.static import Static
from plainres.step import Work

WARMUPS = 3  # steps before a recording: libraries make their handles and workspaces at the first ones


class Graph:
    """Steps on a stream of its own, so that several engines share a device; made and stepped under `machine.exact`.

    No step waits for the device. Who reads or writes network, optimizer or window calls `join` first, or
    synchronizes the device; the next step waits for what was queued meanwhile. `segment` blocks at a time are
    computed again in the backward pass (0: none); without `compiling`, the kernels are PyTorch's own.
    CompileUnavailable where it cannot be.
    """

    def __init__(self, work: Work, segment: int = 0, *, compiling: bool = True) -> None:
        network = check(work)
        begun = time.perf_counter()
        self.work, self.forward = work, Forward(network, work.precision, segment, compiling=compiling)
        self.device = self.forward.device
        self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self.static = Static(work, self.forward)
        self.forward.prepare(work.recipe.batch_size, training=True)
        with self.static.rehearsal():
            self.recorded = Recorded(self.static.body, self.stream)
        self.evaluation: Recorded | None = None
        self.inputs: Tensor | None = None  # of the recorded evaluation
        self.compile_seconds = time.perf_counter() - begun

    def step(self, number: int, learning_rate: float) -> None:
        """Train on the batch of step `number`."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            self.static.prepare(number, learning_rate)
            self.recorded.replay()

    def join(self) -> None:
        """What is queued after this on the current stream waits for the steps so far; the host does not."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def logits(self, inputs: Tensor) -> Tensor:
        """Normalized images (N, 3, 32, 32) to logits float32 (N, classes)."""
        self.join()
        if self.work.network.training:
            return self.forward(inputs)
        if self.inputs is None or len(inputs) > len(self.inputs):
            self._record_evaluation(inputs)
        assert self.inputs is not None
        return filled(self._evaluated, inputs, len(self.inputs))

    def _evaluated(self, batch: Tensor) -> Tensor:
        assert self.inputs is not None
        assert self.evaluation is not None
        self.inputs.copy_(batch)
        self.evaluation.replay()
        result: Tensor = self.evaluation.result.clone()
        return result

    def _record_evaluation(self, inputs: Tensor) -> None:
        begun = time.perf_counter()
        self.forward.prepare(len(inputs), training=False)
        own = torch.zeros_like(inputs, memory_format=torch.channels_last)
        self.evaluation = Recorded(lambda: self.forward(own), self.stream)
        self.inputs = own
        self.compile_seconds += time.perf_counter() - begun


class Recorded:
    """What `body` does on a device, to be replayed by one launch: on the same tensors, with what they hold then."""

    def __init__(self, body: Callable[[], Any], stream: torch.cuda.Stream) -> None:
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(stream.device):
                with torch.cuda.stream(stream):
                    for _ in range(WARMUPS):
                        body()
                with torch.cuda.graph(self.graph, stream=stream):
                    self.result = body()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise CompileUnavailable(f"no CUDA graph of it ({reason(error)})") from error
        torch.cuda.current_stream(stream.device).wait_stream(stream)

    def replay(self) -> None:
        """Queue it on the current stream."""
        self.graph.replay()


def check(work: Work) -> Network:
    """The network of a work that can be recorded; CompileUnavailable for any other."""
    if next(work.network.parameters()).device.type != "cuda":
        raise CompileUnavailable("CUDA graphs need an NVIDIA GPU")
    if type(work.optimizer) is not torch.optim.SGD:
        raise CompileUnavailable(f"the optimizer is {type(work.optimizer).__qualname__}, not PyTorch's SGD")
    if not isinstance(work.batches, Batches):
        raise CompileUnavailable("the batches are not those of a resident data set")
    machine.precision(work.precision, work.batches.part.images.device)
    return known(work)
