"""The whole training step on tensors that stay where they are: what a CUDA graph can hold and replay."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from plainres import recompute
from plainres.augmentation import fetched
from plainres.compiled import Forward, Function, compiled
from plainres.data.dataset import Batches
from plainres.normalization import Normalization
from plainres.step import WINDOW, Work


class Static:
    """`prepare` is what the host does for a step, `body` what the device does: the same work, whichever step it is.

    The body finds its batch by a counter on the device, and nothing in it waits for the host. Network, optimizer
    and window stay those of the work, current after every step.
    """

    def __init__(self, work: Work, forward: Forward) -> None:
        assert isinstance(work.batches, Batches)
        self.work, self.forward, self.batches = work, forward, work.batches
        device = forward.device
        self.counter = torch.zeros((), dtype=torch.int64, device=device)  # the step
        self.slots = torch.arange(WINDOW, device=device)
        self.draws = [torch.empty_like(drawn, device=device) for drawn in self.batches.draws(0)]
        self.chunk = self.next = -1  # the chunk in `draws`, and the step in `counter`
        self.update = Update(work.optimizer)
        recipe, normalization = work.recipe, self.batches.normalization
        where = (str(device), recipe.batch_size, recipe.padding, recipe.pad, recipe.label_smoothing)
        facts = (*where, normalization.kind, tuple(normalization.mean.shape), len(self.batches.part.labels))

        def made(function: Function) -> Function:
            return compiled(function, facts, device.type) if forward.compiling else function

        self.pick, self.score, self.record = made(pick), made(score), made(record)

    def prepare(self, number: int, learning_rate: float) -> None:
        """Set what step `number` needs; most steps need nothing, or one small write that waits for nobody."""
        if number // self.batches.chunk_steps != self.chunk:
            self._load(number // self.batches.chunk_steps)
        if number != self.next:
            self.counter.fill_(number)
        self.next = number + 1
        self.update.set_rate(learning_rate)
        if self.work.recipe.reset_momentum_at_drops and number in self.work.recipe.drops:
            self.update.clear()

    def body(self) -> None:
        """Pick the batch, go forward and backward, update, and keep loss and misses; then the counter is one more."""
        work, part, recipe = self.work, self.batches.part, self.work.recipe
        self._drop_gradients()
        images, labels = self.pick(
            self.counter, *self.draws, part.images, part.labels, self.batches.normalization, recipe.padding, recipe.pad
        )
        # The backward pass is inside, too: where it recomputes, it runs the same functions.
        with recompute.uncounted(self.forward.norms) as counters:
            loss, misses = self.score(self.forward.through(images), labels, recipe.label_smoothing)
            torch.autograd.backward(loss)
        with torch.no_grad():
            if counters:
                torch._foreach_add_(counters, 1)
            self.update()
            self.record(self.counter, self.slots, work.window.losses, work.window.misses, loss.detach(), misses)
        self._drop_gradients()

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Steps taken inside leave no trace: not in the network, nor the optimizer, the window or the counter."""
        network, window = self.work.network, self.work.window
        tensors: list[Tensor] = [*network.parameters(), *network.buffers(), *self.update.buffers.values()]
        tensors += [window.losses, window.misses, self.counter]
        kept = [tensor.detach().clone() for tensor in tensors]
        gradients = [parameter.grad for parameter in network.parameters()]
        modes = {module: module.training for module in network.modules()}
        network.train()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's remarks are about itself
                self.prepare(0, 0.0)
                yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, kept, strict=True):
                    tensor.copy_(value)
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.grad = gradient
            for module, mode in modes.items():
                module.training = mode
            self.next = -1

    def _load(self, chunk: int) -> None:
        for place, drawn in zip(self.draws, self.batches.draws(chunk), strict=True):
            # the allocator of pinned memory keeps it until the copy is done
            place.copy_(drawn.pin_memory() if place.is_cuda else drawn, non_blocking=True)
        self.chunk = chunk

    def _drop_gradients(self) -> None:
        for parameter in self.work.network.parameters():
            parameter.grad = None


class Update:
    """The step of a `torch.optim.SGD`, its momentum in buffers that stay, its learning rates on the device."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.scales = [group.get("lr_scale", 1.0) for group in optimizer.param_groups]
        device = optimizer.param_groups[0]["params"][0].device
        self.rates = [torch.zeros((), dtype=torch.float32, device=device) for _ in self.scales]
        self.rate: float | None = None
        momenta = [group for group in optimizer.param_groups if group["momentum"]]
        self.buffers: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for group in momenta for p in group["params"]}
        self.adopt(optimizer)
        # A footgun: loading a state puts other tensors into the optimizer, which a recorded step would never see.
        optimizer.register_load_state_dict_post_hook(self.adopt)

    def adopt(self, optimizer: Optimizer) -> None:
        """Take the optimizer's momentum into the buffers, and put them in its place."""
        with torch.no_grad():
            for parameter, buffer in self.buffers.items():
                found = optimizer.state[parameter].get("momentum_buffer")
                # from zero, the first step gives the gradient itself, as SGD starts
                buffer.zero_() if found is None else buffer.copy_(found)
                optimizer.state[parameter] = {"momentum_buffer": buffer}
        self.rate = None

    def set_rate(self, learning_rate: float) -> None:
        """Write the learning rate where it has changed."""
        if learning_rate == self.rate:
            return
        self.rate = learning_rate
        for group, rate, scale in zip(self.optimizer.param_groups, self.rates, self.scales, strict=True):
            group["lr"] = learning_rate * scale
            rate.fill_(learning_rate * scale)

    def clear(self) -> None:
        """Forget the momentum."""
        if self.buffers:
            torch._foreach_zero_(list(self.buffers.values()))

    def __call__(self) -> None:
        """Update every parameter that has a gradient, in one or a few launches for each group."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            parameters = [p for p in group["params"] if p.grad is not None]
            fused: Any = torch._fused_sgd_
            fused(
                parameters,
                [p.grad for p in parameters],
                [self.buffers[p] for p in parameters if p in self.buffers],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=rate,
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                is_first_step=False,
            )


def pick(
    counter: Tensor,
    index: Tensor,
    crop: Tensor,
    flip: Tensor,
    images: Tensor,
    labels: Tensor,
    normalization: Normalization,
    padding: str,
    pad: int,
) -> tuple[Tensor, Tensor]:
    """The batch of the step in `counter`, out of a chunk of draws: images channels-last, and labels."""
    row = (counter % len(index)).view(1)  # not an index of no dimensions, which would be read by the host
    index, crop, flip = (drawn.index_select(0, row).squeeze(0) for drawn in (index, crop, flip))
    batch = fetched(images, index, crop, flip, normalization, padding=padding, pad=pad)
    return batch.contiguous(memory_format=torch.channels_last), labels.index_select(0, index)


def score(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The mean loss of a batch, and its misses."""
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return loss, (logits.detach().argmax(1) != labels).sum()


def record(counter: Tensor, slots: Tensor, losses: Tensor, misses: Tensor, loss: Tensor, missed: Tensor) -> None:
    """Put a step's loss and misses into the window, and count the step."""
    here = slots == counter % WINDOW
    losses.copy_(torch.where(here, loss, losses))
    misses.copy_(torch.where(here, missed, misses))
    counter.add_(1)
