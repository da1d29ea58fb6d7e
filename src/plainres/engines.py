"""The engines a step can run in, and which of them a run gets."""

import torch
from torch import nn

from plainres import trunk
from plainres.compiled import Compiled
from plainres.errors import Unavailable, unknown
from plainres.graph import Graph
from plainres.native import Native
from plainres.network import Network
from plainres.recompute import Recomputed
from plainres.step import Eager, Engine, Work

ENGINES = ("native", "graph", "compiled", "eager")
_PAYS_FROM = {"native": 4e11, "graph": 1e14, "compiled": 3e13}
"""Floating-point operations of a training from which on compiling is won back.

The kernels compile in two seconds, PyTorch's compiler takes a minute or two; two cores do some 1e11 a second eager.
"""


def candidates(
    network: nn.Module,
    device: torch.device,
    precision: str,
    operations: float,
    *,
    world_size: int = 1,
    sync_bn: bool = False,
) -> list[str]:
    """The engines to try for a training of so many floating-point operations, the best first, "eager" last.

    A network from outside is run as it was written, and synchronised BN by PyTorch.
    """
    if not isinstance(network, Network) or sync_bn:
        return ["eager"]
    native = device.type == "cpu" and precision == "float32" and trunk.knows(network)
    names = ["native"] if native else ["graph", "compiled"] if device.type == "cuda" else ["compiled"]
    names = [name for name in names if name != "graph" or world_size == 1]
    return [*(name for name in names if operations >= _PAYS_FROM[name]), "eager"]


def make(name: str, work: Work, *, segment: int = 0) -> Engine:
    """The engine of a name for this work; Unavailable says why it cannot be had here.

    `segment`: blocks between two activations that are kept, the rest being computed again; 0 keeps all.
    """
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    if work.sync_bn and name != "eager":
        raise Unavailable("synchronised BN is the eager engine's alone")
    if work.world.size > 1 and name == "graph":
        raise Unavailable("a CUDA graph holds the step of a single process")
    if name == "native":
        return Native(work, segment=segment)
    if name == "graph":
        return Graph(work, segment)
    if name == "compiled":
        return Compiled(work, segment)
    return Recomputed(work, segment) if segment else Eager(work)
