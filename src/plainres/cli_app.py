"""The command line's frame: the program, its errors and exit statuses, the options that commands share."""

import functools
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
Scale = Annotated[float, typer.Option(help="Shorten every duration of the schedule, as for a CPU; the name says so.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option(help="float32, bfloat16, or on CUDA tf32.")]
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


def say(text: str, silent: bool) -> None:
    """Print a line, unless silent."""
    if not silent:
        typer.echo(text)


def spec_of(network: str, net: list[str] | None = None) -> "NetworkSpec":
    """The network of a name, with the fields of --net changed."""
    from plainres import fields
    from plainres.spec import NetworkSpec

    return fields.override(NetworkSpec.named(network), net or (), "network")


def seeds_of(text: str) -> list[int]:
    """The seeds of a list such as "0-4" or "0,2,7-9"."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = [first, last if dash else first]
        if not all(number.isascii() and number.isdecimal() for number in numbers):
            raise UserError(f"--seeds {text}: '{part}' is no seed and no range; write 0-4 or 0,2,7")
        low, high = int(numbers[0]), int(numbers[1])
        if not low <= high < low + 1000:
            raise UserError(f"--seeds {text}: '{part}' must rise, by less than 1,000")
        seeds.extend(range(low, high + 1))
    if len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds {text} names a seed twice")
    return seeds


def recipe_of(name: str, assignments: list[str] | None = None, scale: float = 1) -> "Recipe":
    """The recipe of a name or a TOML file, with the fields of --set changed, its schedule scaled."""
    from plainres import fields, recipes
    from plainres.recipe import scaled

    file = Path(name)
    if file.suffix == ".toml":
        try:
            base = recipes.from_toml(file.read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: {error}") from None
    else:
        base = recipes.named(name)
    return scaled(fields.override(base, assignments or (), "recipe"), scale)
