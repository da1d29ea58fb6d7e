"""The machine: devices, threads, versions."""

import contextlib
import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plainres.errors import UserError, unknown

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("float32", "tf32", "bfloat16")


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


def precision(name: str, on: torch.device | None = None) -> str:
    """The name of a precision, if there is one of this name, and if the device has it."""
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    if on is not None and name == "tf32" and (on.type != "cuda" or torch.cuda.get_device_capability(on) < (8, 0)):
        raise UserError(f"precision 'tf32' needs an NVIDIA GPU of 2020 or later, not '{on}'; float32 works everywhere")
    if on is not None and name == "bfloat16" and on.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError(f"precision 'bfloat16': {torch.cuda.get_device_name(on)} has none; float32 works everywhere")
    return name


def compiler() -> str | None:
    """The C++ compiler that PyTorch's compiler would call on this machine, if there is one."""
    names = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    return next((found for name in names if name and (found := shutil.which(name.split()[0]))), None)


def synchronize(device: torch.device) -> None:
    """Wait for a device's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def exact(device: torch.device, precision: str = "float32") -> Iterator[None]:
    """Deterministic kernels while entered, and true float32, or TF32 if that is the precision.

    PyTorch's settings are left as found. On CUDA, CUBLAS_WORKSPACE_CONFIG is set where it is not, and stays:
    cuBLAS reads it once.
    """
    backends = torch.backends
    deterministic = torch.are_deterministic_algorithms_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    before = backends.cudnn.benchmark, backends.cudnn.deterministic
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    _fill_memory(False)  # every tensor would be written twice, to no end: nothing here reads what it has not written
    backends.cudnn.benchmark, backends.cudnn.deterministic = False, True
    try:
        with _float32(tf32=precision == "tf32"):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        _fill_memory(filling)
        backends.cudnn.benchmark, backends.cudnn.deterministic = before


@contextlib.contextmanager
def _float32(*, tf32: bool) -> Iterator[None]:
    """What float32 convolutions and products are computed in."""
    backends: Any = torch.backends
    cuda = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    cpu = (backends.mkldnn.conv, backends.mkldnn.matmul)
    before = {kind: kind.fp32_precision for kind in (*cuda, *cpu)}
    # A footgun: PyTorch's compiler also asks by the older names, which refuse to answer where they disagree with
    # these (pytorch issue 166387), and setting them warns in some versions. So both are set, and both put back;
    # where somebody had set them at odds already, nothing is known of the older ones.
    older: list[Any] = [None, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(RuntimeError):
            older[0] = torch.get_float32_matmul_precision()
        with contextlib.suppress(RuntimeError):
            older[1] = backends.cudnn.allow_tf32
    precision = "tf32" if tf32 else "ieee"
    _set_float32({kind: precision if kind in cuda else "ieee" for kind in before}, "high" if tf32 else "highest", tf32)
    try:
        yield
    finally:
        _set_float32(before, *older)


def _set_float32(precisions: dict[Any, str], products: str | None, convolutions: bool | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
    for kind, precision in precisions.items():
        kind.fp32_precision = precision


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
