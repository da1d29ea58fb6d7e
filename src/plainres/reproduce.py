"""The published studies: which networks, by which recipe."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from plainres import recipes
from plainres.data.records import Progress
from plainres.errors import UserError, unknown
from plainres.recipe import scaled, steps_of
from plainres.run import Conduct
from plainres.spec import NetworkSpec
from plainres.sweep_wanted import Wanted, wanted

_POINTS = 8  # evaluations that a curve has at least, however short its schedule


@dataclass(frozen=True)
class Study:
    """Networks trained by one recipe, as a source published their errors."""

    name: str  # of the study and of its recipe
    networks: tuple[str, ...]
    variant: str = ""  # what the names of its networks end with


def _family(kind: str, depths: Iterable[int], variant: str = "") -> tuple[str, ...]:
    return tuple(f"{kind}{depth}{variant}" for depth in depths)


STUDIES = {
    study.name: study
    for study in (
        Study("paper", _family("plain", (20, 32, 44, 56)) + _family("resnet", (20, 32, 44, 56, 110))),
        Study(
            "techxzen",
            _family("plain", (20, 32, 44, 56), "-techxzen") + _family("resnet", (20, 32, 44, 56), "-techxzen"),
            "-techxzen",
        ),
        Study("cfmz", _family("resnet", (20, 32, 56, 110), "-cfmz"), "-cfmz"),
    )
}
"""Table 6 and Figure 6 of He et al. 2015, and the tables of the two systems."""


def study(name: str) -> Study:
    """The study of this name; an unknown one is a UserError with the nearest."""
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    return STUDIES[name]


def networks(of: Study, asked: Iterable[str] = ()) -> list[NetworkSpec]:
    """The study's networks, or those `asked` for, of any depth: "resnet20" is the study's own variant of it.

    A network that is no variant of the study's is a UserError: the recipe would be paired with what it is not of.
    """
    found = []
    for name in asked or of.networks:
        spec = NetworkSpec.named(name if "-" in name else name + of.variant)
        if NetworkSpec.named(f"{'plain' if spec.kind == 'plain' else 'resnet'}{spec.depth}{of.variant}") != spec:
            raise UserError(f"{name} is no network of the study '{of.name}', which has {', '.join(of.networks)}")
        found.append(spec)
    return list(dict.fromkeys(found))


def runs(
    of: Study,
    seeds: Iterable[int],
    asked: Iterable[str] = (),
    *,
    scale: float = 1,
    data: str | None = None,
    out: str | Path = "runs",
    device: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Wanted]:
    """The runs of a study, its schedule times `scale`. Evaluated at each pass, and when scaled more often than that."""
    specs, recipe = networks(of, asked), scaled(recipes.named(of.name), scale)
    every = min(steps_of(1, 50_000, recipe.batch_size), max(1, recipe.steps // _POINTS))
    how = Conduct(eval_every=every if scale != 1 else None, threads=threads)
    return wanted(
        specs, recipe, seeds, data, out=out, device=device, precision=precision, conduct=how, progress=progress
    )
