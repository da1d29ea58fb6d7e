"""The command line: each command parses, calls one function, prints."""

import functools
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from plainres import __version__
from plainres.errors import Diverged, Stopped, UserError, unknown

if TYPE_CHECKING:
    from plainres.recipe import Recipe
    from plainres.spec import NetworkSpec

P = ParamSpec("P")
# what typer raises for a mistake it finds: of click, or of the copy of click that newer versions carry
_FoundByTyper: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class OneLineErrors(typer.core.TyperGroup):
    """A mistake that typer finds is one line too, and a wrong command's name brings the nearest right one."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command of the words given, and leave with its exit status."""
        try:
            sys.exit(super().main(*args, **{**options, "standalone_mode": False}) or 0)
        except _FoundByTyper as error:
            message = error.format_message()
            one_line = f"plainres: {' '.join(message.split()).rstrip('.')}; see --help"
            typer.echo(message if "--help" in message else one_line, err=True)  # the former: no command, so the help
            sys.exit(2)
        except UserError as error:
            typer.echo(f"plainres: {error}", err=True)
            sys.exit(2)

    def resolve_command(self, context: Any, words: list[str]) -> Any:
        """The command of the first word."""
        if words and not words[0].startswith("-") and words[0] not in self.commands:
            raise unknown("command", words[0], self.commands)
        return super().resolve_command(context, words)


app = typer.Typer(
    cls=OneLineErrors,
    help="The plain and residual networks of He et al. 2015 on CIFAR-10.",
    epilog="Exit status: 0 done, 1 something failed, 2 a mistake in the command, "
    "75 stopped and resumable, 130 interrupted (resumable too).",
    rich_markup_mode=None,  # rich's help would double the start-up time
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Data = Annotated[
    str | None,
    typer.Option(
        help="A prepared store, 'generated', or any source of 'prepare'. Default: CIFAR-10, prepared first if need be."
    ),
]
Net = Annotated[
    list[str] | None, typer.Option("--net", metavar="FIELD=VALUE", help="Change a field of the network. Repeatable.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe. Repeatable.")
]
RecipeName = Annotated[
    str, typer.Option(metavar="NAME|FILE", help="paper, techxzen, cfmz, quick, best, or a TOML file with a 'base'.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option(help="float32 or bfloat16.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Register a command whose expected failures are one line and an exit status."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except (UserError, Stopped, Diverged) as error:
            typer.echo(f"plainres: {error}", err=True)
            raise typer.Exit(error.exit_status) from None
        except BrokenPipeError:  # who read the output has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except OSError as error:
            typer.echo(f"plainres: {error.filename or 'system'}: {error.strerror or error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("plainres: interrupted", err=True)
            raise typer.Exit(130) from None

    app.command()(run)
    return run


def loaded() -> None:
    """The libraries are loaded: Ctrl-C may be an exception again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@command
def prepare(
    source: Annotated[
        str | None, typer.Argument(help="An archive, a folder or a parquet file. Default: download CIFAR-10.")
    ] = None,
    any_images: Annotated[bool, typer.Option("--any-images", help="Accept images that are not CIFAR-10.")] = False,
    url: Annotated[str | None, typer.Option(help="An address to try before the built-in ones.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn CIFAR-10, in whatever packing, into the verified store that training reads."""
    from plainres.cli_bar import PrepareBar
    from plainres.data.prepare import prepare as run

    loaded()
    with PrepareBar(quiet=quiet) as bar:
        store = run(source, any_images=any_images, url=url, progress=bar)
    facts = {"data": store.name, "data_hash": store.hash, "path": str(store.path), **store.counts}
    what = store.name if store.name == "CIFAR-10" else f"{store.name}, not CIFAR-10"
    counts = f"{store.counts['train']:,} training and {store.counts['test']:,} test images"
    _say(f"{what}: {counts}, {len(store.classes)} classes", quiet or as_json)
    _say(f"{'prepared' if store.new else 'already there'}: {store.path}  (hash {store.hash[:16]})", quiet or as_json)
    if as_json:
        typer.echo(json.dumps({**facts, "classes": len(store.classes), "new": store.new}))


@command
def info(
    network: Annotated[str, typer.Argument(help="A network's name, such as resnet56 or plain20-techxzen.")],
    net: Net = None,
    recipe: Annotated[str | None, typer.Option(help="Show this recipe too, with every field.")] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Print a network's layers, parameters and multiply-adds, and a recipe."""
    from plainres import fields
    from plainres.cli_show import layer_table, recipe_table
    from plainres.summary import layers

    if set_ and not recipe:
        raise UserError("--set changes a recipe: name one with --recipe")
    spec = _spec(network, net)
    resolved = _recipe(recipe, set_) if recipe else None
    found = layers(spec)
    if as_json:
        counts = {"parameters": sum(x.parameters for x in found), "multiply_adds": sum(x.multiply_adds for x in found)}
        facts: dict[str, Any] = {"network": spec.name, "spec": fields.to_json(spec), **counts}
        typer.echo(json.dumps({**facts, "recipe": fields.to_json(resolved) if resolved else None}))
        return
    typer.echo(layer_table(spec, found))
    if resolved:
        typer.echo(recipe_table(resolved))


@command
def train(
    network: Annotated[str, typer.Argument(help="A network's name, such as resnet20.")],
    recipe: RecipeName = "paper",
    data: Data = None,
    seed: Annotated[int, typer.Option(help="Decides initialization, order, crops and mirrors.")] = 0,
    net: Net = None,
    set_: Set = None,
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="The same in passes over the training images.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations; default one pass, 0 none.")] = None,
    keep_every: Annotated[int, typer.Option(help="Keep the weights every so many steps.")] = 0,
    out: Annotated[str, typer.Option(metavar="DIR", help="Parent of the run directory.")] = "runs",
    device: Device = "auto",
    precision: Precision = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all cores.")] = None,
    replan: Annotated[
        bool, typer.Option("--replan", help="Go on although machine, libraries or threads changed; marks the run.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a network; the same command again goes on where it stopped."""
    spec, chosen = _spec(network, net), _recipe(recipe, set_)
    from plainres.cli_show import RunBar
    from plainres.training import train as run

    loaded()
    with RunBar(quiet=quiet, to_stderr=as_json) as bar:
        result = run(
            spec,
            chosen,
            data,
            seed=seed,
            steps=steps,
            epochs=epochs,
            eval_every=eval_every,
            keep_every=keep_every,
            out=out,
            device=device,
            precision=precision,
            threads=threads,
            replan=replan,
            reporter=bar,
        )
    if result.already_finished:
        _say(f"already finished: {result.run_dir}", quiet or as_json)
        _say(bar.summary(result), quiet or as_json)
    if as_json:
        typer.echo(json.dumps(result.to_json()))


@command
def evaluate(
    weights: Annotated[str, typer.Argument(metavar="WEIGHTS|RUN", help="A weights file or a run directory.")],
    data: Data = None,
    split: Annotated[str, typer.Option(help="test, val or train.")] = "test",
    confusion: Annotated[bool, typer.Option("--confusion", help="Print the confusion matrix.")] = False,
    device: Device = "auto",
    precision: Precision = "float32",
    as_json: Json = False,
) -> None:
    """Count the errors of trained weights."""
    from plainres.cli_bar import PrepareBar
    from plainres.cli_show import confusion_table, evaluation_facts, evaluation_table
    from plainres.evaluation import evaluate as run
    from plainres.weights import load

    loaded()
    classifier = load(weights)
    with PrepareBar(quiet=as_json) as bar:
        found = run(classifier, data, split=split, device=device, precision=precision, progress=bar)
    facts = evaluation_facts(found, classifier)
    if not as_json:
        typer.echo(evaluation_table(found, classifier))
        if confusion:
            typer.echo(confusion_table(found))
        return
    matrix = {"confusion": found.confusion.tolist()} if confusion else {}
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}
    typer.echo(json.dumps({**finite, **matrix}))


@command
def demo(
    out: Annotated[str, typer.Option(metavar="DIR", help="Parent of the run directories.")] = "runs",
    epochs: Annotated[float, typer.Option(help="Passes over the 5,000 training images.")] = 6,
) -> None:
    """Train plain20 and resnet20 for a short while on the generated data set, and compare them."""
    from plainres.cli_demo import run

    loaded()
    run(out, epochs)


def _say(text: str, silent: bool) -> None:
    if not silent:
        typer.echo(text)


def _spec(network: str, net: list[str] | None) -> "NetworkSpec":
    from plainres import fields
    from plainres.spec import NetworkSpec

    return fields.override(NetworkSpec.named(network), net or (), "network")


def _recipe(name: str, assignments: list[str] | None) -> "Recipe":
    from plainres import fields, recipes

    file = Path(name)
    if file.suffix == ".toml":
        try:
            base = recipes.from_toml(file.read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: {error}") from None
    else:
        base = recipes.named(name)
    return fields.override(base, assignments or (), "recipe")
