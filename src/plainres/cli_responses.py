"""`plainres responses`: Figure 7 of any trained network, as numbers and as a picture."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plainres.cli_app import Data, Json, loaded, say

if TYPE_CHECKING:
    from plainres.report_responses import Layers


def responses(
    sources: Annotated[list[str], typer.Argument(metavar="RUN|WEIGHTS...", help="Run directories, weights files.")],
    data: Data = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where responses.svg and responses.png go. Default: this folder; with --json, no picture.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print and draw the standard deviations of a network's layer responses: Figure 7 of the paper."""
    from plainres.cli_bar import PrepareBar
    from plainres.report_responses import draw, labels, marks, of

    loaded()
    with PrepareBar(quiet=as_json) as bar:
        found = of(sources, data, progress=bar)
    say(_table(labels(found), found), as_json)
    for mark in marks(found):
        say(mark, as_json)
    pictures = [] if as_json and out is None else [str(path) for path in draw(found, Path(out or "."))]
    for path in pictures:
        say(f"written to {path}", as_json)
    if as_json:
        typer.echo(json.dumps({"responses": [_facts(layers) for layers in found], "pictures": pictures}))


def _facts(layers: "Layers") -> dict[str, object]:
    told = {key: getattr(layers, key) for key in ("source", "network", "recipe", "seed", "data")}
    return {**told, "layers": [{"layer": layer, "std": std} for layer, std in layers.stds]}


def _table(labels: list[str], found: list["Layers"]) -> str:
    """A row a layer, a column a network; layers have their names where all have the same."""
    longest = max(found, key=lambda layers: len(layers.stds)).stds
    named = all([layer for layer, _ in layers.stds] == [layer for layer, _ in longest] for layers in found)
    width = max(10, *(len(label) + 2 for label in labels))
    rows = [f"{'layer':<22}" + "".join(f"{label:>{width}}" for label in labels)]
    for i, (layer, _) in enumerate(longest):
        cells = [f"{layers.stds[i][1]:.4f}" if i < len(layers.stds) else "" for layers in found]
        rows.append((f"{i + 1:<5}{layer if named else '':<17}" + "".join(f"{c:>{width}}" for c in cells)).rstrip())
    means = [sum(std for _, std in layers.stds) / len(layers.stds) for layers in found]
    return "\n".join([*rows, f"{'mean':<22}" + "".join(f"{mean:>{width}.4f}" for mean in means)])
