"""What the processes of one run share: its directory, which the first alone writes, and its batches."""

from pathlib import Path
from typing import Any

from torch import Tensor

from plainres.data.dataset import Batches, Dataset
from plainres.distributed import World
from plainres.errors import UserError
from plainres.recipe import Recipe
from plainres.runlog import RunDirectory, identity_hash


class SharedDirectory(RunDirectory):
    """A run directory that only the first process opens; the others hear from it what it holds."""

    def __init__(self, out: Path, name: str, identity: dict[str, Any], world: World) -> None:
        """UserError where the processes do not mean the same run."""
        if len(set(world.gather(identity_hash(identity)))) > 1:
            raise UserError("the processes would train different runs: seed what makes the network, the same on each")
        self.world, self.writes = world, world.rank == 0
        self._metrics = self._events = None
        if self.writes:
            super().__init__(out, name, identity)
        self.hash, self.path = world.share(lambda: (self.hash, self.path))

    def read_object(self, name: str, *needed: str) -> dict[str, Any] | None:
        """A JSON object of the run, read by the first process."""
        read = super().read_object
        return self.world.share(lambda: read(name, *needed))

    def write_json(self, name: str, data: Any) -> None:
        """Put a JSON file into the run."""
        if self.writes:
            super().write_json(name, data)

    def start_metrics(self, after: int) -> list[dict[str, Any]]:
        """Open the metrics for writing; the lines that stay, on every process."""
        start = super().start_metrics
        return self.world.share(lambda: start(after))

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to the metrics."""
        if self.writes:
            super().log(line)

    def close(self) -> None:
        """Release the run for other processes."""
        if self.writes:
            super().close()


class SharedBatches(Batches):
    """A process's part of each batch of a run: the images, crops and mirrors of the single run."""

    def __init__(self, dataset: Dataset, seed: int, recipe: Recipe, world: World) -> None:
        super().__init__(dataset, seed, recipe)
        self.rows = world.rows(recipe.batch_size)

    def draws(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """As those of the whole batch, of this process's rows."""
        index, crop, flip = super().draws(number)
        return index[:, self.rows], crop[:, self.rows], flip[:, self.rows]


def open_directory(out: Path, name: str, identity: dict[str, Any], world: World) -> RunDirectory:
    """The run directory of one process or of several."""
    return RunDirectory(out, name, identity) if world.size == 1 else SharedDirectory(out, name, identity, world)


def batches_of(dataset: Dataset, seed: int, recipe: Recipe, world: World) -> Batches:
    """The batches of one process, or this one's part of them."""
    return dataset.batches(seed, recipe) if world.size == 1 else SharedBatches(dataset, seed, recipe, world)
