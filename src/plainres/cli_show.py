"""What the commands show: bars, lines, tables."""

import sys
from dataclasses import fields as fields_of
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from plainres.cli_bar import PrepareBar
from plainres.outcome import Reporter, RunResult

if TYPE_CHECKING:
    from plainres.evaluation import Evaluation
    from plainres.job import Job
    from plainres.recipe import Recipe
    from plainres.spec import NetworkSpec
    from plainres.summary import Layer
    from plainres.weights import Classifier

GENERATED = "GENERATED DATA: drawn by plainres, not CIFAR-10. Its errors say nothing about CIFAR-10."


class RunBar(Reporter):
    """A run on a terminal: a bar, and a line for each evaluation. Where there is no terminal, the lines alone."""

    def __init__(self, *, quiet: bool, to_stderr: bool, beside: "RunBar | None" = None) -> None:
        """With `beside`, the bar is shown under that of another run, and each line says whose it is."""
        terminal = sys.stdout is not None and sys.stdout.isatty() and not to_stderr
        self._lines = sys.stderr if to_stderr else sys.stdout
        self._quiet = quiet or self._lines is None
        self._preparing = PrepareBar(quiet=quiet)
        console = Console() if terminal else Console(stderr=True)
        self._progress: Progress = beside._progress if beside else Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[facts]}"),
            console=console, transient=True, disable=quiet or not console.is_terminal,
        )  # fmt: skip
        self.label = ""  # starts each line of a run among several
        self._task: TaskID | None = None
        self._steps = self._begun = self._batch = 0
        self._begun_seconds: float | None = None
        self._generated = False

    def preparing(self, what: str, done: int, total: int) -> None:
        """Show a bar of its own, which ends when the run begins."""
        self._preparing.start()
        self._preparing(what, done, total)

    def started(self, job: "Job", run_dir: Path, done: int, split: str) -> None:
        """Say what is trained on what, and show the bar."""
        self._preparing.stop()
        self._progress.start()
        recipe, name = job.recipe, job.network_name
        self._steps, self._begun, self._batch = recipe.steps, done, recipe.batch_size
        self._generated = job.data.generated
        images = len(job.data.part("train", recipe.validation_images).labels)
        self.say(
            f"{name}, recipe {recipe.name}, seed {job.seed}: {recipe.steps:,} steps of {recipe.batch_size} "
            f"({recipe.steps * recipe.batch_size / images:.1f} passes over {images:,} images of {job.data.name}) "
            f"on {job.device} in {job.precision}"
            f"{f', in {job.world.size} processes' if job.world.size > 1 else ''}"
        )
        if self._generated:
            self.say(GENERATED)
        self.say(f"{'goes on after step ' + format(done, ',') + ' in' if done else 'run directory'} {run_dir}")
        self._task = self._progress.add_task(self.label or name, total=recipe.steps, completed=done, facts="")

    def progress(self, done: int, loss: float, error: float, seconds: float) -> None:
        """Move the bar."""
        if self._task is None:
            return
        if self._begun_seconds is None:
            self._begun, self._begun_seconds = done, seconds
        speed = (done - self._begun) / max(seconds - self._begun_seconds, 1e-9)
        left = f"{_duration((self._steps - done) / speed)} left" if speed > 0 else ""
        facts = f"{done:,}/{self._steps:,}  loss {loss:.3f}  training error {error:.1%}  "
        facts += f"{speed * self._batch:,.0f} images/s  {left}"
        self._progress.update(self._task, completed=done, facts=facts)

    def evaluated(self, line: dict[str, Any]) -> None:
        """One line."""
        train = line["train_error"]
        shown = f"  training error {train:6.2%}" if train is not None else ""
        self.say(
            f"step {line['step']:>7,}{shown}  {line['kind']} error {line['error']:6.2%}"
            f"  {line['kind']} loss {line['loss']:.4f}"
        )

    def notice(self, text: str) -> None:
        """One line."""
        self.say(f"note: {text}")

    def finished(self, result: RunResult) -> None:
        """The result in one line."""
        if self._task is not None and self.label:  # others go on
            self._progress.remove_task(self._task)
            self._task = None
        self.say(self.summary(result))

    def summary(self, result: RunResult) -> str:
        """The result of a run in one line, or two where the data are generated."""
        facts = result.facts
        low, high = facts["error_interval"]
        line = (
            f"{facts['network']}, {facts['split']} error at step {facts['steps']:,}: {facts['error']:.2%} "
            f"({facts['misses']:,} of {facts['images']:,}; 95 % interval {low:.2%} to {high:.2%}), "
            f"{_duration(facts['seconds'])} of training at {facts['images_per_second']:,.0f} images/s"
        )
        return f"{line}\n{GENERATED}" if facts["generated"] else line

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._quiet:
            return
        text, console = f"{self.label}{': ' if self.label else ''}{text}", self._progress.console
        if not self._progress.disable and console.file is self._lines:
            console.print(text, highlight=False, markup=False, soft_wrap=True)  # above the bar
            return
        try:
            print(text, file=self._lines, flush=True)
        except OSError:  # nobody reads any more: a run of hours goes on without its lines
            self._quiet = True

    def __enter__(self) -> "RunBar":
        return self

    def __exit__(self, _kind: type[BaseException] | None, _value: object, _where: TracebackType | None) -> None:
        self._preparing.stop()
        self._progress.stop()


def layer_table(spec: "NetworkSpec", layers: list["Layer"]) -> str:
    """A network's layers, one a line, with their totals."""
    rows = [f"{'layer':<26}{'kind':<13}{'output':<14}{'parameters':>12}{'multiply-adds':>16}"]
    for layer in layers:
        output = "x".join(str(n) for n in layer.output)
        rows.append(f"{layer.name:<26}{layer.kind:<13}{output:<14}{layer.parameters:>12,}{layer.multiply_adds:>16,}")
    parameters, multiply_adds = sum(x.parameters for x in layers), sum(x.multiply_adds for x in layers)
    rows.append(f"{spec.name:<53}{parameters:>12,}{multiply_adds:>16,}")
    differences = ", ".join(f"{k}={v}" for k, v in spec.differences().items())
    return "\n".join([*rows, f"fields: {differences or 'all as by default'}"])


def recipe_table(recipe: "Recipe") -> str:
    """A recipe's fields, one a line."""
    return "\n".join(f"{f.name:<28}{getattr(recipe, f.name)}" for f in fields_of(recipe))


def evaluation_facts(found: "Evaluation", classifier: "Classifier") -> dict[str, Any]:
    """An evaluation as `--json` prints it."""
    recipe = classifier.about.get("recipe", {})
    return {
        "network": _name(classifier),
        "recipe": recipe.get("name"),
        "seed": classifier.about.get("seed"),
        "steps": classifier.about.get("steps"),
        "split": found.split,
        "misses": found.misses,
        "images": found.images,
        "error": found.error,
        "error_interval": list(found.error_interval),
        "loss": found.loss,
        "class_errors": found.class_errors,
        "data": found.data_name,
        "data_hash": found.data_hash,
        "generated": _generated(found, classifier),
    }


def evaluation_table(found: "Evaluation", classifier: "Classifier") -> str:
    """An evaluation for people."""
    low, high = found.error_interval
    facts = evaluation_facts(found, classifier)
    steps = f"{facts['steps']:,}" if isinstance(facts["steps"], int) else "unknown"
    rows = [
        f"{_name(classifier)}, recipe {facts['recipe']}, seed {facts['seed']}, {steps} steps",
        f"{found.split} error {found.error:.2%} ({found.misses:,} of {found.images:,} images of {found.data_name}; "
        f"95 % interval {low:.2%} to {high:.2%}), loss {found.loss:.4f}",
    ]
    rows += [f"  {name:<14}{error:7.2%}" for name, error in found.class_errors.items()]
    if _generated(found, classifier):
        rows.append(GENERATED)
    return "\n".join(rows)


def confusion_table(found: "Evaluation") -> str:
    """The confusion matrix: a row a true class, a column what it was taken for."""
    names = [name[:9] for name in found.classes]
    rows = [f"{'true, taken for':<16}" + "".join(f"{name:>10}" for name in names)]
    for name, row in zip(names, found.confusion.tolist(), strict=True):
        rows.append(f"{name:<16}" + "".join(f"{count:>10,}" for count in row))
    return "\n".join(rows)


def _generated(found: "Evaluation", classifier: "Classifier") -> bool:
    """Whether the data is drawn, or the weights were trained on what is."""
    return "generated" in (found.data_name, classifier.about.get("data"))


def _name(classifier: "Classifier") -> str:
    spec = getattr(classifier.network, "spec", None)
    return spec.name if spec is not None else type(classifier.network).__name__


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds, without the parts that are zero at the front."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"
