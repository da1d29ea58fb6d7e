"""Run directories made up for the tests: valid files, numbers drawn from the network's name and the seed."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from plainres import fields, recipes, runlog, statistics
from plainres.data.dataset import Dataset
from plainres.recipe import Recipe, scaled
from plainres.spec import NetworkSpec

HASH = "e13aeb4cf44e236b3f25e26545ce803673734e78742e47cb7f4cb7fdd0c8e3c0"


def make_run(
    parent: Path,
    network: str | dict[str, Any] = "resnet20",
    recipe: Recipe | None = None,
    seed: int = 0,
    finished: bool = True,
    *,
    error: float | None = None,
    images: int = 200,
    data: Dataset | str | None = None,
    result: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run directory in `parent`, its name as `train` gives it; unfinished, it stops half-way.

    `recipe` is the paper's scaled to 1,600 steps without one; `network` is a name, or what `run.json` says of a
    network from outside. `error` is about its test error; `data` gives labels, positions and hash, or is the name of
    some (without it, 200 made-up ones). `result` changes `result.json` (... leaves out), `changes` change `run.json`.
    """
    chosen = recipe or scaled(recipes.paper(), 0.025)
    spec = None if isinstance(network, dict) else NetworkSpec.named(network)
    facts = network if isinstance(network, dict) else fields.to_json(NetworkSpec.named(network))
    name = network if isinstance(network, str) else str(network["module"]).rpartition(".")[2]
    identity = {**_identity(facts, chosen, seed, data), **changes}
    drawn = np.random.default_rng(zlib.crc32(f"{name} {seed}".encode()))
    path = parent / f"{name.replace('/', '_')}-{chosen.name}-s{seed}-{runlog.identity_hash(identity)}"
    path.mkdir(parents=True)
    _write(path / "run.json", identity)
    _write(path / "plan.json", {"device": "cpu", "engine": "native", "threads": 2, "torch": "2.13.0+cpu"})
    _write(path / "machine.json", {"chip": "A made-up chip", "cores": 2, "system": "Linux", "torch": "2.13.0+cpu"})
    aim = error if error is not None else _error(spec)
    stop = chosen.steps if finished else chosen.steps // 2
    kept = [line for line in _metrics(chosen, aim, drawn, images) if line["step"] <= stop]
    if not finished:
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
        return path
    labels, index = _labelled(data, images)
    logits = _logits(labels, aim, drawn)
    misses = int((logits.argmax(1) != labels).sum())
    kept[-1] |= {"error": misses / len(labels), "misses": misses, "images": len(labels)}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    tensors = {"logits": logits, "labels": labels.astype(np.int64), "index": index.astype(np.int64)}
    safetensors.numpy.save_file(tensors, path / "predictions.safetensors", {"split": "test"})
    if spec:
        _write(path / "responses.json", _responses(spec, drawn))
    counted = {
        "network": name,
        "split": kept[-1]["kind"],
        "misses": misses,
        "images": len(labels),
        "error": misses / len(labels),
        "error_interval": list(statistics.interval(misses, len(labels))),
        "loss": statistics.negative_log_likelihood(logits, labels),
        "train_error": kept[-2]["error"],
        "train_loss": kept[-2]["loss"],
    }
    made = {**counted, **_about(identity, chosen, spec), **(result or {})}
    _write(path / "result.json", {key: value for key, value in made.items() if value is not ...})
    return path


def _labelled(data: Dataset | str | None, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and positions of a data set's test images, or of so many made-up ones."""
    if isinstance(data, Dataset):
        return data.part("test").labels.numpy(), data.part("test").index.numpy()
    return np.arange(images) % 10, np.arange(images)


def _identity(network: dict[str, Any], recipe: Recipe, seed: int, data: Dataset | str | None) -> dict[str, Any]:
    """The content of a `run.json`."""
    return {
        "format": 1,
        "network": network,
        "recipe": fields.to_json(recipe),
        "seed": seed,
        "steps": recipe.steps,
        "validation_images": recipe.validation_images,
        "precision": "float32",
        "world_size": 1,
        "data": data.name if isinstance(data, Dataset) else data or "CIFAR-10",
        "data_hash": data.hash if isinstance(data, Dataset) else HASH,
    }


def _about(identity: dict[str, Any], recipe: Recipe, spec: NetworkSpec | None) -> dict[str, Any]:
    """What a result says of its run beside its errors: what it was, and made-up times."""
    seconds = recipe.steps * (0.1 + 0.01 * (spec.depth if spec else 1))
    return {
        **{key: identity[key] for key in ("seed", "steps", "precision", "data", "data_hash")},
        "recipe": recipe.name,
        "generated": identity["data"] == "generated",
        "seconds": seconds,
        "evaluation_seconds": seconds / 10,
        "compile_seconds": 1.5,
        "images_per_second": recipe.steps * recipe.batch_size / seconds,
        "peak_memory_bytes": (500 + 10 * (spec.depth if spec else 1)) << 20,
        "engine": "native",
        "replanned": False,
        "warmup_end": None,
        "plainres": "0.1.0",
        "weights_sha256": "0" * 64,
    }


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _error(spec: NetworkSpec | None) -> float:
    """About what a network of the paper ends at: the deeper plain ones worse, the deeper residual ones better."""
    if spec is None:
        return 0.3
    return 0.2 + 0.003 * spec.depth if spec.kind == "plain" else 0.24 - 0.0012 * min(spec.depth, 110)


def _metrics(recipe: Recipe, aim: float, drawn: np.random.Generator, images: int) -> list[dict[str, Any]]:
    """Lines of training each 100 steps (and at the end) and of evaluation each 200, falling from 90 % to `aim`."""
    lines: list[dict[str, Any]] = []
    kind = "val" if recipe.validation_images else "test"
    for step in sorted({*range(100, recipe.steps, 100), recipe.steps}):
        part = step / recipe.steps
        level = aim + (0.9 - aim) * math.exp(-5 * part) + (0.04 if part < 0.5 else 0.0)
        error = min(1.0, max(0.0, level + float(drawn.normal(0, 0.01))))
        speed = {"seconds": step * 0.1, "images_per_second": 1280.0, "time": 1_790_000_000.0 + step}
        train = {"loss": 3 * error, "error": error, "misses": round(error * 12_800), "images": 12_800}
        lines.append({"kind": "train", "step": step, **train, "learning_rate": 0.1, **speed})
        if step % 200 == 0 or step == recipe.steps:
            error = min(1.0, max(0.0, level + 0.02 + float(drawn.normal(0, 0.02))))
            held = {"loss": 3 * error, "error": error, "misses": round(error * images), "images": images}
            lines.append({"kind": kind, "step": step, **held, "seconds": step * 0.1, "time": speed["time"]})
    return lines


def _logits(labels: np.ndarray, aim: float, drawn: np.random.Generator) -> np.ndarray:
    """Logits that miss about a share `aim` of the labels."""
    logits = drawn.normal(0, 1, (len(labels), 10))
    told = np.where(drawn.random(len(labels)) < aim, (labels + drawn.integers(1, 10, len(labels))) % 10, labels)
    logits[np.arange(len(labels)), told] = logits.max(1) + drawn.exponential(2, len(labels)) + 0.1
    return logits.astype(np.float32)


def _responses(spec: NetworkSpec, drawn: np.random.Generator) -> list[dict[str, Any]]:
    layers = ["bn1"] + [f"stage{s}.{b}.bn{i}" for s in (1, 2, 3) for b in range(spec.blocks) for i in (1, 2)]
    scale = 1.0 if spec.kind == "plain" else 0.4
    return [{"layer": layer, "std": scale * float(0.6 + 0.4 * drawn.random())} for layer in layers]
