"""Clocks and energy of an NVIDIA GPU, from the library that comes with its driver."""

import contextlib
import ctypes
from typing import Any

import torch

_CLOCKS = {"sm": 1, "memory": 2}  # NVML_CLOCK_SM, NVML_CLOCK_MEM


class Power:
    """One GPU in NVML. What it does not tell is None."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def joules(self) -> float | None:
        """The energy it has used since its driver was loaded."""
        millijoules = ctypes.c_ulonglong()
        failed = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(millijoules))
        return None if failed else millijoules.value / 1e3

    def clocks(self) -> dict[str, int] | None:
        """Its clocks in MHz, of processors and memory."""
        found = {}
        for name, kind in _CLOCKS.items():
            megahertz = ctypes.c_uint()
            if self._library.nvmlDeviceGetClockInfo(self._handle, kind, ctypes.byref(megahertz)):
                return None
            found[name] = megahertz.value
        return found


def power(device: torch.device, library: Any = None) -> Power | None:
    """The GPU of a device in NVML, or None: no NVIDIA GPU, or no NVML that knows it."""
    if device.type != "cuda":
        return None
    with contextlib.suppress(OSError, AttributeError):  # no such library; a build of PyTorch that gives no UUID
        library = library or ctypes.CDLL("libnvidia-ml.so.1")
        # by its UUID: CUDA_VISIBLE_DEVICES renumbers CUDA's devices, not NVML's
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        handle = ctypes.c_void_p()
        if not library.nvmlInit_v2() and not library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
            return Power(library, handle)
    return None
