"""A report of runs: the page, the tables, the figures."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plainres import files, results
from plainres.data.dataset import Dataset, dataset
from plainres.data.records import Progress
from plainres.errors import UserError
from plainres.groups import Setting, settings
from plainres.report_figures import save_all
from plainres.report_files import document, record, results_csv
from plainres.report_page import need_extra, page
from plainres.report_tables import Tables, tables


@dataclass(frozen=True)
class Report:
    """A report that was written: its folder, what it says of each setting, and a line for each directory left out."""

    out: Path
    tables: list[Tables]
    runs: list[results.Run]
    left_out: list[str]

    def to_json(self) -> dict[str, Any]:
        """Its folder and its numbers, as `--json` prints them; errors are fractions."""
        return {
            "report": str(self.out / "index.html"),
            "runs": [record(run) for run in self.runs],
            "degradation": [{**asdict(d), "setting": t.setting.name} for t in self.tables for d in t.degradations],
            "left_out": self.left_out,
        }


def report(
    paths: Iterable[str | Path],
    out: str | Path,
    *,
    data: str | Path | Dataset | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write index.html, table.md, results.csv and figures/ of all runs in `paths` into `out`.

    `data` (anything `plainres.dataset` takes) are the images that the most confident mistakes are shown of; None:
    without pictures. Damaged run directories are left out and named. No runs, or a missing library, is a UserError.
    """
    need_extra()
    found = results.find(paths)
    if not found.runs:
        raise UserError(f"no run could be read: {'; '.join(found.left_out)}")
    resident = data if isinstance(data, Dataset) or data is None else dataset(data, progress=progress)
    made = [tables(setting, _train_images(setting, resident)) for setting in settings(found.runs)]
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.refused(error, folder) from error
    files.write(folder / "results.csv", results_csv(found.runs).encode())
    files.write(folder / "table.md", document(made, found.left_out).encode())
    save_all([one.setting for one in made], folder)
    files.write(folder / "index.html", page(made, found.left_out, data=resident).encode())
    return Report(folder, made, found.runs, found.left_out)


def _train_images(setting: Setting, data: Dataset | None) -> int | None:
    """How many images a pass is over, where the data is at hand."""
    if data is None or data.hash != setting.data_hash:
        return None
    return len(data.part("train", setting.recipe.validation_images).labels)
