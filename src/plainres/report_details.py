"""What a report says of single runs: confusions, the most confident mistakes as pictures, how to repeat them."""

import base64
import io
import shlex
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from plainres import fields
from plainres.data.dataset import Dataset, Part
from plainres.data.generated import CLASSES
from plainres.data.known import CIFAR10_CLASSES
from plainres.data.store import Store
from plainres.groups import Group, Setting
from plainres.report_tables import Cell, Column, Table, calibration, machine, percent
from plainres.results import Predictions, Run
from plainres.statistics import softmax
from plainres.sweep_wanted import Wanted

_CLASSES: dict[str, tuple[str, ...]] = {"CIFAR-10": CIFAR10_CLASSES, "generated": CLASSES}
MISTAKES = 24  # pictures of a network


def class_names(setting: Setting, count: int, data: Dataset | None = None) -> list[str]:
    """The names of the classes; numbers where the data is not at hand and not known."""
    if data is not None and data.hash == setting.data_hash:
        return list(data.classes)
    known = _CLASSES.get(setting.data, ())
    return list(known) if len(known) == count else [f"class {i}" for i in range(count)]


def details(run: Run, classes: Sequence[str]) -> dict[str, Any] | None:
    """Calibration, the error of each class and the confusion matrix of a finished run; None without predictions."""
    found = run.predictions
    if run.result is None or found is None:
        return None
    ece, nll = calibration(run) or (None, None)
    return {
        "error": run.result["error"],
        "interval": run.result["error_interval"],
        "ece": ece,
        "nll": nll,
        "classes": list(classes),
        "class_errors": found.class_errors,
        "confusion": found.confusion.tolist(),
    }


def calibration_table(setting: Setting, classes: Sequence[str]) -> Table:
    """A row for each finished run: its error, its calibration, the class it misses most."""
    columns = [
        *(Column("network", number=False), Column("seed"), Column("error, %")),
        Column("95 % interval", about="Wilson’s, over the images of this one run"),
        *(Column("calibration error, %"), Column("−log p, nats"), Column("hardest class", number=False)),
    ]
    runs = [run for group in setting.groups for run in group.finished]
    return Table(columns, [row for run in runs if (row := _calibration_row(run, classes))])


def _calibration_row(run: Run, classes: Sequence[str]) -> list[Cell]:
    found = details(run, classes)
    if found is None:
        return []
    hardest, error = max(zip(classes, found["class_errors"], strict=True), key=lambda pair: pair[1] or 0)
    low, high = found["interval"]
    return [
        Cell(run.network, run.network),
        Cell(str(run.seed), run.seed),
        Cell(percent(found["error"]), found["error"]),
        Cell(f"{percent(low)} to {percent(high)}", low),
        Cell(percent(found["ece"]), found["ece"]),
        Cell(f"{found['nll']:.4f}", found["nll"]),
        Cell(f"{hardest}, {percent(error or 0)}", hardest),
    ]


def part_of(setting: Setting, data: Dataset | None) -> Part | None:
    """The images that a setting's runs were evaluated on; None where `data` is not theirs."""
    if data is None or data.hash != setting.data_hash:
        return None
    return data.part(setting.held_out, setting.recipe.validation_images)


def mistakes(group: Group, part: Part, classes: Sequence[str]) -> dict[str, Any] | None:
    """The mistakes that the run nearest the mean was surest of, each a picture with what it is and was taken for."""
    run = group.nearest_mean
    found = run.predictions if run else None
    if run is None or found is None or not np.array_equal(found.labels, part.labels.cpu().numpy()):
        return None
    probabilities = softmax(found.logits)
    sure = np.where(found.missed, probabilities.max(1), -1.0)
    chosen = np.argsort(-sure, kind="stable")[: min(MISTAKES, int(found.missed.sum()))]
    return {
        "seed": run.seed,
        "pictures": [_mistake(found, part, int(i), float(sure[i]), classes) for i in chosen],
    }


def _mistake(found: Predictions, part: Part, i: int, probability: float, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "picture": _data_uri(part.images[i].cpu().numpy()),
        "index": int(found.index[i]),
        "true": classes[int(found.labels[i])],
        "taken": classes[int(found.logits[i].argmax())],
        "probability": probability,
    }


def _data_uri(pixels: Any) -> str:
    """uint8 (3, H, W) as a PNG inside an address."""
    from PIL import Image

    body = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(body, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(body.getvalue()).decode()


def command(run: Run) -> str | None:
    """The command that repeats it; None for what was made from Python with a network or an optimizer of its own.

    DATA stands for data that has no name of its own.
    """
    told = run.identity
    if run.spec is None or "optimizer" in told:
        return None
    data = None if told["data"] == "CIFAR-10" else "DATA"
    # of the store only the name of the directory depends, and it is not asked for
    wanted = Wanted(run.spec, run.recipe, run.seed, cast(Store, None), data, precision=told["precision"])
    words, world = wanted.words(), told.get("world_size", 1)
    if world > 1:
        words = ["torchrun", "--nproc-per-node", str(world), "-m", *words]
        words += ["--sync-bn"] if told.get("sync_bn") else []
    return shlex.join(words)


def origin(run: Run) -> dict[str, Any]:
    """Recipe and machine of a run, and the command that repeats it."""
    plan, facts = run.facts("plan.json"), run.facts("machine.json")
    names = ("cores", "system", "python")
    kept = ("engine", "device", "threads", "eval_every", "torch", "cuda", "numpy", "kernels", "replans")
    return {
        "command": command(run),
        "recipe": fields.to_json(run.recipe),
        "machine": {
            "machine": machine(run),
            **{name: facts[name] for name in names if name in facts},
            **{name: plan[name] for name in kept if name in plan},
        },
        "named": run.identity["data"] == "CIFAR-10",
        "data": f"{run.identity['data']}, hash {run.identity['data_hash']}",
        "run_dir": run.path.resolve().name,
    }
