"""Measure training steps: ours, the usual way beside them, and what the machine could do, in turns."""

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plainres import __version__, bench_profile, engines, fields, machine, memory, recipes
from plainres.bench_ceilings import COPY_BYTES, SIZES, Ceilings, Stopwatch
from plainres.bench_figures import PASS_IMAGES, Samples, figures
from plainres.bench_power import power
from plainres.bench_sides import MadeUp, Resident, Side, Usual, data_seconds, draw_seconds, engine
from plainres.errors import UserError, unknown
from plainres.spec import NetworkSpec
from plainres.summary import layers, operations

NETWORKS = ("resnet20", "resnet56")
ENGINES = ("auto", *engines.ENGINES)
BASELINES = ("eager",)
_MOST_STEPS = 10_000  # of one side in one round

Progress = Callable[[str, int, int], None]
"""Called as `progress(network, rounds done, rounds)`."""


@dataclass(frozen=True)
class Settings:
    """What to measure, and how long. `against` is None or "eager"; `seconds` are of each side in each round."""

    device: str = "auto"
    precision: str = "float32"
    batch: int = 128
    threads: int | None = None
    engine: str = "auto"
    against: str | None = None
    rounds: int = 7
    seconds: float = 1.0
    profile: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        machine.precision(self.precision)
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        if self.against is not None and self.against not in BASELINES:
            raise unknown("baseline", self.against, BASELINES)
        if (self.threads or 1) < 1 or self.rounds < 1 or not 0 < self.seconds < float("inf"):
            raise UserError("--threads and --rounds must be at least 1, --seconds above 0")

    def command(self, networks: Sequence[str]) -> str:
        """The command that measures this again."""
        default, words = Settings(), ["plainres", "bench", *networks]
        for name, value in vars(self).items():
            if value != getattr(default, name):
                words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return shlex.join(words)


@dataclass(frozen=True)
class Sizes:
    """How large what is measured beside the steps is; tests make it small."""

    images: int = PASS_IMAGES
    products: tuple[int, ...] = SIZES
    copy_bytes: int = COPY_BYTES


def bench(
    networks: Sequence[str | NetworkSpec] = NETWORKS,
    settings: Settings | None = None,
    *,
    sizes: Sizes | None = None,
    now: Callable[[], float] = time.perf_counter,
    progress: Progress = lambda network, done, rounds: None,
) -> Iterator[dict[str, Any]]:
    """Measure networks one after another; what is found of each is given as soon as it is known.

    A network that does not fit is a UserError before the first is measured.
    """
    settings, sizes = settings or Settings(), sizes or Sizes()
    specs = dict.fromkeys(NetworkSpec.named(n) if isinstance(n, str) else n for n in networks)
    device = machine.device(settings.device)
    machine.precision(settings.precision, device)
    recipe = fields.replace(recipes.named("paper"), {"batch_size": settings.batch}, "recipe")
    needs = {spec: memory.need(spec, settings.precision, sizes.images) for spec in specs}
    for spec, needed in needs.items():
        memory.check(needed, settings.batch, memory.available(device), spec.name, device)
    watch = Stopwatch(device, now)
    batches = Resident(MadeUp(sizes.images, device), recipe)
    for spec, needed in needs.items():
        with memory.explained(needed, settings.batch, spec.name, device), _threads(settings.threads):
            turns = Turns(spec, settings, sizes, batches, watch)
            for number in range(settings.rounds):
                progress(spec.name, number, settings.rounds)
                turns.take_round(number)
            found = turns.facts()
            del turns  # its memory is not the next network's
        yield found


class Turns:
    """One network, and everything that takes turns with it."""

    def __init__(
        self, spec: NetworkSpec, settings: Settings, sizes: Sizes, batches: Resident, watch: Stopwatch
    ) -> None:
        self.spec, self.settings, self.batches, self.watch = spec, settings, batches, watch
        device, batches.asked = watch.device, False
        peak = memory.Peak(device)
        self.engine_name, self.engine, self.unavailable = engine(settings.engine, spec, batches, settings.precision)
        self.sides = {"step": Side(self.engine, watch, settings.precision)}
        self.warmup_steps = self.sides["step"].warm_up()
        self.data_in_step = not batches.asked
        self.peak_bytes, self.peak_of = peak.read()  # before anything else takes memory
        if settings.against:
            self.sides["against"] = Side(Usual(spec, batches.batch, settings.precision), watch, None)
            self.sides["against"].warm_up()
        room = memory.available(device) // 8 or sizes.copy_bytes
        precisions = dict.fromkeys(["float32", settings.precision, "bfloat16" if device.type == "cuda" else "float32"])
        self.ceilings = Ceilings(watch, list(precisions), sizes.products, min(sizes.copy_bytes, room))
        step_seconds = self.sides["step"].seconds(1)
        self.steps = max(1, min(_MOST_STEPS, round(settings.seconds / step_seconds)))
        self.power = power(device)
        self.samples = Samples()

    def take_round(self, number: int) -> None:
        """Time everything once; who of the sides comes first changes, so that no drift of the machine favours one."""
        for name in list(self.sides)[:: -1 if number % 2 else 1]:
            before = self.power.joules() if self.power and name == "step" else None
            getattr(self.samples, name).append(self.sides[name].seconds(self.steps))
            if self.power and name == "step":
                self._sample_power(before)
        self.samples.data.append(data_seconds(self.batches, self.watch))
        self.samples.products.append(self.ceilings.products())
        self.samples.copy.append(self.ceilings.copy())

    def _sample_power(self, before: float | None) -> None:
        after, clocks = (self.power.joules(), self.power.clocks()) if self.power else (None, None)
        if before is not None and after is not None:
            self.samples.joules.append((after - before) / self.steps)
        if clocks is not None:
            self.samples.clocks.append(clocks)

    def facts(self) -> dict[str, Any]:
        """Everything that is known of the network now."""
        settings, batch = self.settings, self.batches.recipe.batch_size
        found = figures(
            self.samples,
            layers(self.spec),
            flops=operations(self.engine.work.network),
            batch=batch,
            precision=settings.precision,
            draw_seconds=draw_seconds(self.batches, self.watch),
            data_in_step=self.data_in_step,
        )
        return {
            "network": self.spec.name,
            "engine": self.engine_name,
            "unavailable": self.unavailable,
            "device": str(self.watch.device),
            "chip": machine.kernels(self.watch.device)["chip"],
            "precision": settings.precision,
            "batch": batch,
            "threads": torch.get_num_threads(),
            **found,
            "peak_memory_bytes": self.peak_bytes,
            "peak_memory_of": self.peak_of,
            "compile_seconds": self.engine.compile_seconds,
            "warmup_steps": self.warmup_steps,
            "rounds": settings.rounds,
            "steps_per_round": self.steps,
            "copy_bytes": self.ceilings.copy_bytes,
            "against": settings.against,
            "profile_ms": self.profile("step", found) if settings.profile else None,
            "against_profile_ms": self.profile("against", found) if settings.profile and settings.against else None,
        }

    def profile(self, name: str, found: dict[str, Any]) -> dict[str, float]:
        """Milliseconds by category of one side's step and its data path, which they sum to."""
        side, step_ms = self.sides[name], found["ms_per_step" if name == "step" else "against_ms_per_step"]

        def input_share() -> float:
            batch, precision, nchw = self.batches.recipe.batch_size, self.settings.precision, name == "against"
            return bench_profile.input_gradient_share(self.spec, batch, precision, nchw=nchw, watch=self.watch)

        with side.settings():
            parts = bench_profile.parts(side.runner, side.step, self.watch, input_share, step_ms / 1e3)
        beside_ms = 0.0 if self.data_in_step and name == "step" else found["data_ms_per_step"]
        if beside_ms:
            parts["data"] = beside_ms / 1e3
        settled = bench_profile.settled(parts, (step_ms + beside_ms) / 1e3)
        return {category: 1e3 * seconds for category, seconds in settled.items()}


def document(rows: Sequence[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """The result of one call as `--json` and `--out` have it, and `--compare` and the docs read it."""
    command = settings.command([row["network"] for row in rows])
    described = machine.describe(machine.device(settings.device))
    return {"format": 1, "plainres": __version__, "command": command, "machine": described, "networks": list(rows)}


@contextlib.contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or machine.threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)
