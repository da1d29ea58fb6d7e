"""The command line: each command parses, calls one function, prints."""

import json
import math
from typing import Annotated, Any

import typer

from plainres.cli_app import (
    Data,
    Device,
    Json,
    Net,
    Precision,
    Quiet,
    RecipeName,
    Scale,
    Set,
    app,
    command,
    loaded,
    recipe_of,
    say,
    seeds_of,
    spec_of,
)
from plainres.cli_bench import bench
from plainres.cli_compare import compare
from plainres.cli_report import report
from plainres.cli_reproduce import reproduce
from plainres.cli_responses import responses
from plainres.cli_sweep import sweep, watch
from plainres.cli_world import one_voice
from plainres.errors import UserError

__all__ = ["app"]


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
    say(f"{what}: {counts}, {len(store.classes)} classes", quiet or as_json)
    say(f"{'prepared' if store.new else 'already there'}: {store.path}  (hash {store.hash[:16]})", quiet or as_json)
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
    spec = spec_of(network, net)
    resolved = recipe_of(recipe, set_) if recipe else None
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
    seed: Annotated[
        int | None, typer.Option(help="Decides initialization, order, crops and mirrors. Default: 0.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="LIST", help="Several, such as 0-4: a run each.")] = None,
    net: Net = None,
    set_: Set = None,
    scale: Scale = 1,
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="The same in passes over the training images.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations; default one pass, 0 none.")] = None,
    keep_every: Annotated[int, typer.Option(help="Keep the weights every so many steps.")] = 0,
    out: Annotated[str, typer.Option(metavar="DIR", help="Parent of the run directory.")] = "runs",
    device: Device = "auto",
    precision: Precision = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all cores.")] = None,
    engine: Annotated[str, typer.Option(help="auto, native, graph, compiled or eager.")] = "auto",
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Keep few activations and compute the others again: less memory.")
    ] = False,
    replan: Annotated[
        bool, typer.Option("--replan", help="Go on although machine, libraries or threads changed; marks the run.")
    ] = False,
    sync_bn: Annotated[
        bool, typer.Option("--sync-bn", help="Under torchrun: BN over the batch of all processes, not of each.")
    ] = False,
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints.")] = 60,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a network; the same command again goes on where it stopped. Under torchrun, in several processes."""
    with one_voice() as speaks:
        spec, chosen = spec_of(network, net), recipe_of(recipe, set_, scale)
        if seeds is not None and seed is not None:
            raise UserError("give --seed or --seeds, not both")
        wanted = seeds_of(seeds) if seeds is not None else [seed or 0]
        from plainres.cli_seeds import train_shown
        from plainres.run import Conduct

        loaded()
        asked: dict[str, Any] = {"steps": steps, "epochs": epochs, "out": out, "device": device, "precision": precision}
        conduct = Conduct(eval_every, keep_every, threads, engine, recompute, replan, checkpoint_seconds)
        how: dict[str, Any] = {"conduct": conduct, "sync_bn": sync_bn, "quiet": quiet or not speaks}
        facts = train_shown(spec, chosen, data, wanted, **asked, **how, to_stderr=as_json)
        if as_json and speaks:
            typer.echo(json.dumps(facts if seeds is not None else facts["runs"][0]))


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


command(bench)
command(sweep)
command(watch)
command(reproduce)
command(report)
command(responses)
command(compare)


@command
def demo(
    out: Annotated[str, typer.Option(metavar="DIR", help="Parent of the run directories.")] = "runs",
    epochs: Annotated[float, typer.Option(help="Passes over the 5,000 training images.")] = 6,
) -> None:
    """Train plain20 and resnet20 for a short while on the generated data set, and compare them."""
    from plainres.cli_demo import run

    loaded()
    run(out, epochs)
