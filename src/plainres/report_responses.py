"""Layer responses of runs and weights files: the numbers of Figure 7, and their picture."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plainres import fields, machine, report_figures, report_style, results, weights
from plainres.data.dataset import Dataset, dataset
from plainres.data.records import Progress
from plainres.errors import UserError
from plainres.recipe import Recipe
from plainres.report_style import Name, Title
from plainres.responses import responses
from plainres.spec import NetworkSpec
from plainres.weights import Classifier


@dataclass(frozen=True)
class Layers:
    """The standard deviation of each layer's output of one trained network, in order; where it was measured."""

    source: str
    network: str
    name: Name
    recipe: str
    seed: int | None
    data: str
    scale: float
    stds: list[tuple[str, float]]


def of(
    sources: Sequence[str | Path], data: str | Path | None = None, *, progress: Progress | None = None
) -> list[Layers]:
    """The layer responses of run directories and weights files, in their order.

    A finished run has its own, of the images it was evaluated on, unless `data` names others; everything else is
    measured on the test images of `data`, which without a name is opened only if it is needed.
    """
    found: list[Layers] = []
    opened = dataset(data, machine.device("auto"), progress=progress) if data is not None else None
    for source in map(Path, sources):
        run = results.read(source) if (source / "run.json").exists() else None
        if run is not None and run.result is None:
            raise UserError(f"{source}: the run is not finished; its command goes on with it")
        others = run is not None and opened is not None and run.identity["data_hash"] != opened.hash
        if run is not None and run.responses and not others:
            name = report_style.name_of(run.spec, run.network)
            told = (str(source), run.network, name, run.recipe.name, run.seed, run.identity["data"], run.recipe.scale)
            found.append(Layers(*told, run.responses))
            continue
        classifier = weights.load(source)  # before data is prepared: a mistake is told at once
        opened = opened or dataset(data, machine.device("auto"), progress=progress)
        found.append(_measured(str(source), classifier, opened))
    return found


def _measured(source: str, classifier: Classifier, data: Dataset) -> Layers:
    classifier.to(data.device)
    about, spec = classifier.about, fields.from_json(NetworkSpec, classifier.about["network"], f"{source}: network")
    recipe = fields.from_json(Recipe, about["recipe"], f"{source}: recipe") if "recipe" in about else None
    layers = responses(classifier.network, data.part("test").images, classifier.normalization)
    trained_on = "generated" if about.get("data") == "generated" else data.name
    told = (recipe.name if recipe else "unknown", about.get("seed"), trained_on, recipe.scale if recipe else 1.0)
    stds = [(layer["layer"], layer["std"]) for layer in layers]
    return Layers(source, spec.name, report_style.name_of(spec, spec.name), *told, stds)


def labels(found: Sequence[Layers]) -> list[str]:
    """A label for each: the network, and whatever it takes to tell it from the others."""
    seeded = [f"{layers.name.label}, seed {layers.seed}" for layers in found]
    recipes = [f"{label}, {layers.recipe}" for label, layers in zip(seeded, found, strict=True)]
    for candidates in ([layers.name.label for layers in found], seeded, recipes):
        if max(Counter(candidates).values()) == 1:
            return candidates
    return [layers.source for layers in found]


def draw(found: Sequence[Layers], out: Path) -> list[Path]:
    """Write `responses.svg` and `responses.png` into a folder: all in one picture."""
    lines = [
        (layers.name, label, [[std for _, std in layers.stds]])
        for layers, label in zip(found, labels(found), strict=True)
    ]
    figure = report_figures.responses_figure(lines, Title("Layer responses", marks(found)))
    return report_style.save(figure, out / "responses")


def marks(found: Sequence[Layers]) -> tuple[str, ...]:
    """What keeps the numbers from being compared with the paper's, in words."""
    return report_style.marks("generated" in {x.data for x in found}, min(x.scale for x in found))
