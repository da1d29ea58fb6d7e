"""The memory that a training needs, has, and used."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plainres import machine, recompute
from plainres.data.records import IMAGE_BYTES
from plainres.errors import UserError
from plainres.network import Network
from plainres.spec import NetworkSpec
from plainres.trunk import Outline

_GIB = 2**30
_PARAMETER_COPIES = 3  # weights, gradients, momentum
_PASSING = 3  # maps of the largest size that live beside the kept ones: gradients in and out, and one in the making
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Need:
    """Bytes that training takes: whatever the batch, and for each of its images."""

    fixed: int
    per_image: int

    def bytes(self, batch: int) -> int:
        """Those of a batch."""
        return self.fixed + batch * self.per_image


def need(spec: NetworkSpec, precision: str, images: int, *, engine: str = "eager", segment: int = 0) -> Need:
    """What training on so many resident images takes at least, from shapes alone.

    What the native engine holds is known. Of the others, what a forward pass keeps for the backward pass is counted,
    tensor by tensor; in bfloat16 it is half. Eager PyTorch on a CPU was measured at 1.6 to 2.5 times this, for glibc
    gives the gaps between freed maps back late (with MALLOC_MMAP_THRESHOLD_=131072 set: at most 1.3 times).
    """
    with torch.device("meta"):
        network = Network(spec)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    fixed = _PARAMETER_COPIES * weights + images * IMAGE_BYTES
    if engine == "native":
        one, two = (Outline(network, count, segment=segment).bytes for count in (1, 2))
        return Need(fixed + 2 * one - two, two - one)
    kept, largest = _kept(network)
    if segment:
        with recompute.applied(network, segment):
            kept = _kept(network)[0] + kept * segment // (3 * spec.blocks)  # between segments, and inside of one
    return Need(fixed, (kept + _PASSING * largest) // (2 if precision == "bfloat16" else 1))


def _kept(network: Network) -> tuple[int, int]:
    """Bytes an image that a forward pass of a network on the meta device keeps, and those of its largest tensor."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.empty(2, 3, 32, 32))  # BN of one image's logits would fail
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    sizes = [tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own]
    return sum(sizes) // 2, max(sizes) // 2


def available(device: torch.device) -> int:
    """Bytes that a device can still give; 0 where nobody says."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + idle
    return min(_system_available(), _group_available() or sys.maxsize) if device.type == "cpu" else 0


def _system_available() -> int:
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return machine.memory()


def _group_available() -> int:
    """What the container that this process runs in may still take; 0 where it has no limit."""
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text(encoding="ascii"))  # "max": no limit
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        return max(1, limit - int((group / "memory.current").read_text(encoding="ascii")) + cached)
    return 0


def check(needed: Need, batch: int, has: int, what: str, device: torch.device, option: str = "--batch ") -> None:
    """UserError where a training needs more than there is, with the batch that would fit; `option` sets it."""
    if has and needed.bytes(batch) > has:
        fits = (has - needed.fixed) // needed.per_image
        advice = f"{option}{fits} would fit" if fits > 0 else "no batch would fit"
        raise UserError(
            f"{what} at batch {batch} needs at least {needed.bytes(batch) / _GIB:,.1f} GiB of memory, "
            f"and {device} has {has / _GIB:,.1f} GiB free; {advice}"
        )


@contextlib.contextmanager
def explained(needed: Need, batch: int, what: str, device: torch.device, option: str = "--batch ") -> Iterator[None]:
    """Turn running out of memory into one line: what was estimated, what there is, a batch that fits."""
    has = available(device)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise UserError(
            f"{what} at batch {batch} ran out of memory: at least {needed.bytes(batch) / _GIB:,.1f} GiB were expected, "
            f"{device} had {has / _GIB:,.1f} GiB free; try {option}{max(1, batch // 2)}"
        ) from error


class Peak:
    """The most memory used from now on: of a CUDA device, otherwise of this process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        self._reset = device.type == "cuda" or _forget_peak()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> tuple[int, str]:
        """Bytes, and whose they are."""
        of_process = "process" if self._reset else "process, since its start"
        return peak(self._device), "device" if self._device.type == "cuda" else of_process


def peak(device: torch.device) -> int:
    """The most bytes used so far: of a CUDA device by tensors, otherwise by this process."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _process_peak()


def _forget_peak() -> bool:
    """Let the process's peak start again, memory freed before given back; whether the system allows it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _process_peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource  # not on every system

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
