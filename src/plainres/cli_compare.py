"""`plainres compare`: two trained networks, or two networks over their seeds."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plainres.cli_app import Data, Json, loaded, say
from plainres.errors import UserError

if TYPE_CHECKING:
    from plainres.compare import Comparison, Pair, Side
    from plainres.statistics import Spread

_NAMES = "A network's name among the finished runs, or NETWORK@RECIPE; or a weights file or run directory."


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=_NAMES)],
    second: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    runs: Annotated[str, typer.Option(metavar="DIR", help="Where runs of networks' names are looked for.")] = "runs",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Compare two networks over their seeds, or two weights files on the same images."""
    from plainres import compare as product

    trained = [product.is_trained(name) for name in (first, second)]
    if trained[0] != trained[1]:
        file, other = (first, second) if trained[0] else (second, first)
        raise UserError(f"{other}: no weights file and no run directory, and {file} is one; give two of a kind")
    loaded()
    if all(trained):
        from plainres.cli_bar import PrepareBar

        with PrepareBar(quiet=as_json) as bar:
            pair = product.compare_trained(first, second, data, progress=bar)
        say(_pair_said(pair), as_json)
        facts = _pair_facts(pair)
    else:
        if data is not None:
            raise UserError("--data is for weights files; networks are compared by what their runs predicted")
        found = product.compare_networks(first, second, runs)
        for line in found.left_out:
            typer.echo(f"left out: {line}", err=True)
        say(_comparison_said(found), as_json)
        facts = _comparison_facts(found)
    if as_json:
        typer.echo(json.dumps(facts))


def _pair_said(pair: "Pair") -> str:
    from plainres.cli_show import GENERATED

    rows = []
    for side in pair.sides:
        low, high = side.interval
        images = len(side.predictions.labels)
        rows.append(
            f"{side.source}: {side.network}, {side.split} error {side.error:.2%} "
            f"({side.misses:,} of {images:,} images of {side.data}; 95 % interval {low:.2%} to {high:.2%})"
        )
    alone = f"{pair.test.first_alone:,} images only the first misses, {pair.test.second_alone:,} only the second"
    rows.append(f"McNemar's exact test: {alone}; p = {pair.test.p:.2g}")
    rows += [GENERATED] if pair.sides[0].data == "generated" else []
    rows += [f"SCALED SCHEDULE: {side.source}, {side.scale:g} of its length" for side in pair.sides if side.scale != 1]
    rows.append("It is about these two trained networks, not about how they were trained: other seeds may differ.")
    return "\n".join(rows)


def _pair_facts(pair: "Pair") -> dict[str, Any]:
    sides = [
        {
            **{"source": side.source, "network": side.network, "split": side.split, "misses": side.misses},
            **{"images": len(side.predictions.labels), "error": side.error, "error_interval": list(side.interval)},
            **{"data": side.data, "data_hash": side.data_hash, "scale": side.scale},
        }
        for side in pair.sides
    ]
    return {"a": sides[0], "b": sides[1], "mcnemar": vars(pair.test)}


def _comparison_said(found: "Comparison") -> str:
    from plainres.cli_show import GENERATED
    from plainres.statistics import FEW_SEEDS

    rows = [line for side in found.sides for line in _side_said(side)]
    settings = [side.setting for side in found.sides]
    rows += [GENERATED] if "generated" in {setting.data for setting in settings} else []
    rows += (
        ["They differ in more than the network: see what is in parentheses."] if settings[0] is not settings[1] else []
    )
    one, other = (side.name for side in found.sides)
    if found.difference is None:
        return "\n".join(
            [*rows, f"no seed that both have, with predictions: no difference of {one} and {other} is told"]
        )
    points, low, high = (100 * value for value in (found.difference.mean, found.difference.low, found.difference.high))
    rows.append(
        f"{one} minus {other}: {points:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f} "
        f"(paired bootstrap over {_count(found.difference.seeds)} and the images)"
    )
    if found.difference.seeds < FEW_SEEDS:
        rows.append(f"With {_count(found.difference.seeds)} the interval says little of what other seeds would give.")
    return "\n".join(rows)


def _side_said(side: "Side") -> list[str]:
    split = side.setting.held_out
    rows = [
        f"{side.name} ({side.setting.name})",
        f"  {split} error      {_percent(side.error)}  n = {side.error.n}",
        f"  training error  {_percent(side.train_error)}",
        f"  ECE             {_percent(side.calibration_error)}",
    ]
    likelihood = side.negative_log_likelihood
    if likelihood:
        std = f" ± {likelihood.std:.4f}" if likelihood.std is not None else ""
        rows.append(f"  NLL             {likelihood.mean:.4f}{std}")
    return [*rows, f"  nearest the mean: seed {side.nearest_mean.seed}, {side.nearest_mean.path}"]


def _comparison_facts(found: "Comparison") -> dict[str, Any]:
    sides = [
        {
            **{"network": side.group.network, "recipe": side.setting.recipe.name, "steps": side.setting.recipe.steps},
            **{"setting": side.setting.name, "split": side.setting.held_out, "n": side.error.n},
            **{"error": vars(side.error), "train_error": _spread(side.train_error)},
            **{"ece": _spread(side.calibration_error), "nll": _spread(side.negative_log_likelihood)},
            **{"nearest_mean": {"seed": side.nearest_mean.seed, "run_dir": str(side.nearest_mean.path)}},
            "data_hash": side.setting.data_hash,
        }
        for side in found.sides
    ]
    difference = vars(found.difference) if found.difference else None
    return {"a": sides[0], "b": sides[1], "difference": difference, "left_out": found.left_out}


def _spread(spread: "Spread | None") -> dict[str, Any] | None:
    return vars(spread) if spread else None


def _percent(spread: "Spread | None") -> str:
    if spread is None:
        return "–"
    if spread.std is None:
        return f"{spread.mean:.2%}"
    return f"{spread.mean:.2%} ± {spread.std:.2%} ({spread.least:.2%} to {spread.most:.2%})"


def _count(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} seeds"
