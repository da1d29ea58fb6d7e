"""The plain and residual networks of He et al. 2015 on CIFAR-10: trained, evaluated, measured, handed out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "weights",
    "Dataset": "data.dataset",
    "Evaluation": "evaluation",
    "NetworkSpec": "spec",
    "Recipe": "recipe",
    "Reporter": "outcome",
    "RunResult": "outcome",
    "Diverged": "errors",
    "Stopped": "errors",
    "UserError": "errors",
    "build": "network",
    "dataset": "data.dataset",
    "evaluate": "evaluation",
    "learning_rate": "schedule",
    "load": "weights",
    "prepare": "data.prepare",
    "train": "run",
    "train_seeds": "cohort",
}
__all__ = [*sorted(_HOMES), "__version__"]

if TYPE_CHECKING:
    from plainres.cohort import train_seeds
    from plainres.data.dataset import Dataset, dataset
    from plainres.data.prepare import prepare
    from plainres.errors import Diverged, Stopped, UserError
    from plainres.evaluation import Evaluation, evaluate
    from plainres.network import build
    from plainres.outcome import Reporter, RunResult
    from plainres.recipe import Recipe
    from plainres.run import train
    from plainres.schedule import learning_rate
    from plainres.spec import NetworkSpec
    from plainres.weights import Classifier, load


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import plainres` itself does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'plainres' has no attribute '{name}'")
    value = getattr(import_module(f"plainres.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
