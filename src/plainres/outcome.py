"""What a run tells while it goes, and what it leaves."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from plainres import __version__, fields, files
from plainres.data.dataset import Part
from plainres.evaluation import Evaluation
from plainres.job import Job


class Reporter:
    """What a run tells while it goes; this one says nothing. Override what is of interest."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """The data is being prepared: bytes done of a total, 0 if unknown, of one part of it."""

    def started(self, job: Job, run_dir: Path, done: int, split: str) -> None:
        """The run begins, or goes on after `done` steps; `split` is the part it evaluates on."""

    def progress(self, done: int, loss: float, error: float, seconds: float) -> None:
        """Loss and error of the steps since the last hundred, after `done` steps and `seconds` of training."""

    def evaluated(self, line: dict[str, Any]) -> None:
        """An evaluation was logged: kind, step, loss, error, misses, images, train_error."""

    def notice(self, text: str) -> None:
        """Something a user should know."""

    def finished(self, result: "RunResult") -> None:
        """The run is done."""


@dataclass(frozen=True)
class RunResult:
    """A finished run: its directory, and the content of its `result.json`."""

    run_dir: Path
    facts: dict[str, Any]
    already_finished: bool = False  # by an earlier call

    @property
    def misses(self) -> int:
        """Images of the part held out that were taken for another class, at the last step."""
        return int(self.facts["misses"])

    @property
    def error(self) -> float:
        """The error at the last step, a fraction."""
        return float(self.facts["error"])

    def to_json(self) -> dict[str, Any]:
        """The result with its directory, as `--json` prints it."""
        return {**self.facts, "run_dir": str(self.run_dir)}


def write_predictions(path: Path, logits: Tensor, part: Part) -> None:
    """Logits float32 (N, classes), labels and published positions of an evaluated part, in the store's order."""
    tensors = {"logits": logits, "labels": part.labels.cpu(), "index": part.index.cpu()}
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    files.write(path, safetensors.torch.save(tensors, {"split": part.name}))


FACTS = ("network", "split", "steps", "misses", "images", "error", "error_interval", "train_error", "seconds")
"""What a `result.json` must have to be one."""

_MAY_BE_MISSING = ("evaluation_seconds", "compile_seconds", "images_per_second", "peak_memory_bytes", "loss")


def is_result(found: object) -> bool:
    """Whether this is the content of a `result.json`, its figures finite numbers."""
    if not isinstance(found, dict) or not all(key in found for key in FACTS):
        return False
    pair = found["error_interval"]
    numbers = [found[name] for name in ("error", "train_error", "seconds")]
    numbers += [found[name] for name in _MAY_BE_MISSING if found.get(name) is not None]
    numbers += pair if isinstance(pair, list) and len(pair) == 2 else [None]
    counts = all(type(found[name]) is int for name in ("steps", "misses", "images"))
    named = all(isinstance(found[name], str) for name in ("network", "split"))
    return counts and named and all(type(n) in (int, float) and math.isfinite(n) for n in numbers)


def facts(job: Job, found: Evaluation, last_window: dict[str, Any]) -> dict[str, Any]:
    """What `result.json` says of a run beside its times."""
    return {
        "network": job.network_name,
        "recipe": job.recipe.name,
        "seed": job.seed,
        "steps": job.recipe.steps,
        "precision": job.precision,
        "split": found.split,
        "misses": found.misses,
        "images": found.images,
        "error": found.error,
        "error_interval": list(found.error_interval),
        "loss": found.loss,
        "train_error": last_window["error"],
        "train_loss": last_window["loss"],
        "data": job.data.name,
        "data_hash": job.data.hash,
        "generated": job.data.generated,
        "plainres": __version__,
    }


def about(job: Job) -> dict[str, Any]:
    """What a weights file says of the run that made it."""
    return {
        "network": job.network_facts,
        "recipe": fields.to_json(job.recipe),
        "seed": job.seed,
        "classes": list(job.data.classes),
        "data": job.data.name,
        "data_hash": job.data.hash,
    }
