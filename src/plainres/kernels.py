"""The kernels in C++: compiled on first use for this very processor, kept, loaded."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from plainres import machine
from plainres.errors import Unavailable

SOURCES = Path(__file__).with_name("cpp")
FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-std=c++17", "-fopenmp", "-shared", "-fPIC"]


@functools.cache
def compiler_version() -> str:
    """What the C++ compiler says of itself. Unavailable where there is none."""
    found = machine.compiler()
    if found is None:
        raise Unavailable("no C++ compiler (g++, clang++ or c++) is installed")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    return next(iter(said.splitlines()), found)


@functools.cache
def fingerprint() -> str:
    """What decides the kernels' bits: sources, flags, processor, and the compiler's version."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    digest.update(
        "\n".join([*FLAGS, compiler_version(), machine.processor(), torch.backends.cpu.get_cpu_capability()]).encode()
    )
    return digest.hexdigest()[:16]


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels, compiled first if need be (some seconds, once a machine). Unavailable says why not."""
    place = _place()
    try:
        loaded = ctypes.CDLL(str(place))
    except OSError:  # not there yet, or damaged
        _compile(place)
        try:
            loaded = ctypes.CDLL(str(place))
        except OSError as error:
            raise Unavailable(f"the compiled kernels do not load: {error}") from None
    loaded.trunk_forward.restype = loaded.trunk_backward.restype = None
    loaded.trunk_size.restype = ctypes.c_int64
    return loaded


def _place() -> Path:
    root = os.environ.get("PLAINRES_CACHE")
    home = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plainres"
    return home / "kernels" / f"trunk-{fingerprint()}.so"


def _compile(place: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "trunk.so"
        command = [str(machine.compiler()), *FLAGS, str(SOURCES / "trunk.cpp"), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
            raise Unavailable(f"{command[0]} does not compile the kernels: {first.strip()}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".{place.name}.{os.getpid()}")  # others may compile at once
            shutil.copyfile(made, temporary)
            temporary.replace(place)
        except OSError as error:
            raise Unavailable(f"the compiled kernels cannot be kept: {error}") from None
