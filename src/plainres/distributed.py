"""One run over several processes, as torchrun starts them: who they are, and what they tell one another."""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from plainres.errors import Diverged, InUse, Stopped, Unavailable, UserError

T = TypeVar("T")

TIMEOUT = timedelta(hours=1)  # for the first process to prepare the data; one that dies is noticed at once
REPORTED = "reported by the first process of this run"
"""The note on an error that another process tells the user of."""

_PATIENCE, _PATIENCE_FOR_THE_GONE = 10.0, 1.0  # seconds for the others to leave


class World:
    """The processes of a run: one alone, for which everything here is free. `Processes` are several.

    Every method but `rows` is called by all of them, in the same order: one that waits, waits for the others. An error
    may leave any of them at any time; the others then raise it, too, where they wait next.
    """

    rank, size, local_rank = 0, 1, 0

    def rows(self, count: int) -> slice:
        """The part of so many rows that is this process's."""
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def share(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first process, which alone calls it."""
        return make()

    def gather(self, value: T) -> list[T]:
        """The value of each process, in order."""
        return [value]

    def most(self, *values: int) -> tuple[int, ...]:
        """The highest of each value on any process."""
        return values

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over the processes in place of each tensor: the same bits on all of them."""

    def averaged(self, network: nn.Module, loss: Tensor, misses: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and misses of the whole batch; gradients and statistics become those of all processes."""
        return loss, misses

    def in_turn(self, make: Callable[[], T]) -> T:
        """What `make` gives, called by the first process of each machine before its others: they find what it left."""
        return make()

    def together(self, make: Callable[[], T]) -> T:
        """What `make` gives; Unavailable on all processes where it is on one."""
        return make()

    def leave(self, error: BaseException | None) -> None:
        """Leave, with an error or without: nothing is waited for any more."""


ALONE = World()


class Processes(World):
    """Several processes: control over gloo, tensors over gloo (CPU) or NCCL (CUDA)."""

    def __init__(self, rank: int, size: int, local_rank: int, store: Store) -> None:
        """Wait for all of them. `store` is what carries errors when nothing else does any more."""
        self.rank, self.size, self.local_rank, self.store = rank, size, local_rank, store
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)

    def share(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first process."""
        box: list[Any] = [None if self.rank else make()]
        self._joint(dist.broadcast_object_list, box, 0)
        return box[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        """The value of each process."""
        found: list[Any] = [None] * self.size
        self._joint(dist.all_gather_object, found, value)
        return found

    def most(self, *values: int) -> tuple[int, ...]:
        """The highest of each value."""
        found = torch.tensor(values, dtype=torch.int64)
        self._joint(dist.all_reduce, found, dist.ReduceOp.MAX)
        return tuple(found.tolist())

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """The mean of each tensor, in one message."""
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        self._joint(dist.all_reduce, flat)
        parts = torch.split(flat / self.size, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])

    def averaged(self, network: nn.Module, loss: Tensor, misses: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and misses of the whole batch, with gradients and statistics in one message."""
        mean, missed = loss.clone(), misses.to(loss.dtype)
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        # The same running statistics on all processes, or what the first one saves would not be everybody's.
        statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self.average([*gradients, *statistics, mean, missed])
        return mean, (missed * self.size).round().long()

    def in_turn(self, make: Callable[[], T]) -> T:
        """What `make` gives, called by the first process of each machine before its others."""
        if self.local_rank:
            self.most()
        found = make()
        if not self.local_rank:
            self.most()
        return found

    def together(self, make: Callable[[], T]) -> T:
        """What `make` gives, if every process has it."""
        found: list[T] = []
        refused: Unavailable | None = None
        try:
            found.append(make())
        except Unavailable as error:
            refused = error
        reasons = [reason for reason in self.gather(refused and str(refused)) if reason is not None]
        if reasons:
            raise refused or Unavailable(reasons[0])
        return found[0]

    def leave(self, error: BaseException | None) -> None:
        """Leave; with an error, tell the others of it, and wait a while for them to leave, too.

        A launcher ends the others when the first is gone: by then each has said what it had to say.
        """
        if error is not None:
            self._tell("error", _packed(error))
            dist.destroy_process_group()  # what the others wait for fails now
        patience = _PATIENCE_FOR_THE_GONE if isinstance(error, Gone) else _PATIENCE
        self._meet("left", patience)
        if error is None:
            dist.destroy_process_group()
        elif self.rank and self._told("error", 0):
            error.add_note(REPORTED)
        if self.rank:
            self._tell("done", "")
        else:
            self._meet("done", patience)  # where no launcher holds the store, the first process does: it goes last

    def _meet(self, where: str, patience: float) -> None:
        """Wait so many seconds for the others to come here, too."""
        self._tell(where, "")
        until = time.monotonic() + patience
        while time.monotonic() < until and not all(self._told(where, rank) for rank in range(self.size)):
            time.sleep(0.01)

    def _joint(self, collective: Callable[..., Any], *values: Any) -> None:
        try:
            collective(*values)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a process has left, or is gone
            # without its traceback, whose frames would keep the connections open: those who wait must see them close
            raise self._reason() from error.with_traceback(None)

    def _tell(self, what: str, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store may be gone with its process
            self.store.set(f"{what}{self.rank}", text)

    def _told(self, what: str, rank: int) -> bool:
        with contextlib.suppress(RuntimeError):
            return bool(self.store.check([f"{what}{rank}"]))
        return False

    def _reason(self) -> Exception:
        """The error that a process left with."""
        for rank in range(self.size):
            if self._told("error", rank):
                return _unpacked(rank, self.store.get(f"error{rank}"))
        return Gone("another process of this run is gone; the same command goes on from the last checkpoint")


class Gone(Stopped):
    """A process left without a word: it was killed, or its machine is lost."""


def _packed(error: BaseException) -> str:
    status = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_status", 1)
    return json.dumps([type(error).__name__, str(error), status])


def _unpacked(rank: int, packed: bytes) -> Exception:
    kind, message, status = json.loads(packed)
    known: dict[str, Callable[[str], Exception]] = {k.__name__: k for k in (UserError, InUse, Diverged, Gone)}
    if kind in known:
        return known[kind](message)
    if kind == "Stopped":
        return Stopped(message, exit_status=status)
    return Stopped(f"process {rank} of this run failed ({kind}: {message})", exit_status=status)


_joined: World | None = None


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The processes of this run, as torchrun's environment names them; entered again inside, the same ones."""
    global _joined
    if _joined is not None:
        yield _joined
        return
    world = _joined = _join()
    error: BaseException | None = None
    try:
        yield world
    except BaseException as caught:
        error = caught
        raise
    finally:
        _joined = None
        world.leave(error)


def _join() -> World:
    """The world of the environment; this process alone where there is none."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        _ = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    except (KeyError, ValueError) as error:
        raise UserError(f"WORLD_SIZE is set, but {error} is not as torchrun sets it; start with torchrun") from None
    return Processes(rank, size, local_rank, PrefixStore(f"plainres{next(_numbers)}", _store()))


@functools.cache
def _store() -> Store:
    found: Store = next(rendezvous("env://", timeout=TIMEOUT))[0]
    return found


_numbers = iter(range(2**31))  # of the worlds of this process, whose keys must not meet
