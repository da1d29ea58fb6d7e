"""The machine: devices, threads, versions."""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plainres.errors import UserError, unknown

DEVICES = ("auto", "cpu", "cuda", "mps")


def device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA, then MPS, then the CPU. A device that is absent is a UserError."""
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (number and not number.isdigit()):
        raise unknown("device", name, DEVICES)
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        kind = next(k for k in ("cuda", "mps", "cpu") if present[k])
    if not present[kind]:
        raise UserError(f"device '{kind}': this machine, or this build of PyTorch, has none; --device cpu works")
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        raise UserError(f"device '{name}': this machine has {torch.cuda.device_count()} CUDA devices, from 0")
    return torch.device(f"{kind}:{number}" if number else kind)


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
