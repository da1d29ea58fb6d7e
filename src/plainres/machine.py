"""The machine: devices, threads, versions."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plainres.errors import UserError, unknown

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("float32", "bfloat16")


def device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA, then MPS, then the CPU. A device that is absent is a UserError."""
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (number and not (kind == "cuda" and number.isascii() and number.isdecimal())):
        raise unknown("device", name, DEVICES)
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        kind = next(k for k in ("cuda", "mps", "cpu") if present[k])
    if not present[kind]:
        raise UserError(f"device '{kind}': this machine, or this build of PyTorch, has none; --device cpu works")
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        raise UserError(f"device '{name}': this machine has {torch.cuda.device_count()} CUDA devices, from 0")
    return torch.device(f"{kind}:{number}" if number else kind)


def precision(name: str) -> str:
    """The name of a precision, if there is one of this name."""
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    return name


def synchronize(device: torch.device) -> None:
    """Wait for a device's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Deterministic kernels and true float32 while entered; PyTorch's settings are left as found.

    On CUDA, CUBLAS_WORKSPACE_CONFIG is set where it is not, and stays: cuBLAS reads it once.
    """
    backends = torch.backends
    convolutions: Any = backends.cudnn.conv  # type: ignore[attr-defined]
    products = backends.cuda.matmul
    deterministic = torch.are_deterministic_algorithms_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    before = backends.cudnn.benchmark, backends.cudnn.deterministic
    precisions = convolutions.fp32_precision, products.fp32_precision
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    _fill_memory(False)  # every tensor would be written twice, to no end: nothing here reads what it has not written
    backends.cudnn.benchmark, backends.cudnn.deterministic = False, True
    convolutions.fp32_precision = products.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        _fill_memory(filling)
        backends.cudnn.benchmark, backends.cudnn.deterministic = before
        convolutions.fp32_precision, products.fp32_precision = precisions


def _fill_memory(fill: bool) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def threads() -> int:
    """The threads to compute with: the cores this process may use, unless OMP_NUM_THREADS says otherwise."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kernels(device: torch.device) -> dict[str, str]:
    """What decides the bits of a computation on a device beside the program: the chip and the libraries."""
    chip = processor()
    if device.type == "cuda":
        chip = torch.cuda.get_device_name(device)
    return {
        "chip": chip,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": str(torch.version.cuda),
    }


def describe(device: torch.device) -> dict[str, Any]:
    """The machine as `machine.json` has it: plain JSON, nothing that names its user."""
    return {
        **kernels(device),
        "device": str(device),
        "cores": threads(),
        "memory_bytes": memory(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory() -> int:
    """Main memory in bytes; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
