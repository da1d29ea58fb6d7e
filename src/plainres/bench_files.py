"""Results of `bench` in files: a table that grows, and earlier results set side by side."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plainres import files
from plainres.errors import UserError

COLUMNS = (
    *("network", "engine", "device", "chip", "precision", "batch", "threads", "parameters", "multiply_adds"),
    *("ms_per_step", "images_per_second", "data_ms_per_step", "data_in_step", "seconds_per_50000_images"),
    *("paper_hours", "peak_memory_bytes", "peak_memory_of", "gemm_gflops", "gemm_share", "copy_gbs", "copy_share"),
    *("against", "against_ms_per_step", "ratio", "compile_seconds", "warmup_steps", "rounds", "steps_per_round"),
    *("joules_per_image", "torch", "plainres"),
)


class Table:
    """A CSV file with a row for each network measured; what is there stays.

    A file whose columns are others is refused when it is opened, before anything is measured.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        need_folder(path)
        try:
            found = path.read_text(encoding="utf-8") if path.exists() else ""
            self._is_new = not found
            self._breaks_off = bool(found) and not found.endswith("\n")
            if path.exists():
                path.open("a", encoding="utf-8").close()  # may it be written? A new one is not made before its rows
        except OSError as error:
            raise files.refused(error, path) from None
        except UnicodeDecodeError:
            raise UserError(f"{path}: not a table of plainres bench; name another file") from None
        header = next(csv.reader(io.StringIO(found)), [])
        if found and header != list(COLUMNS):
            raise UserError(f"{path}: its columns are not those of this version's table; name another file")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add the row of one network, and the header where the file is new."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if self._is_new:
            writer.writerow(COLUMNS)
        writer.writerow("" if (value := row.get(name)) is None else value for name in COLUMNS)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._breaks_off + text.getvalue())  # a last line that was cut short stays alone
        except OSError as error:
            raise files.refused(error, self._path) from None
        self._is_new = self._breaks_off = False


def need_folder(path: Path) -> None:
    """UserError where a file cannot be made for want of its folder."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.absolute().parent}")


def read(path: Path) -> dict[str, Any]:
    """An earlier result: a file of `--out`, or whatever `--json` printed, whose last line is the result."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise files.refused(error, path) from None
    except UnicodeDecodeError:
        text = ""
    for candidate in (text, text.strip().rpartition("\n")[2]):
        try:
            found = json.loads(candidate)
        except ValueError:
            continue
        if _is_result(found):
            return dict(found)
    raise UserError(f"{path}: not a result of plainres bench; --out FILE.json writes one")


def _is_result(found: object) -> bool:
    rows = found.get("networks") if isinstance(found, dict) else None
    return isinstance(rows, list) and all(_is_row(row) for row in rows) and bool(rows)


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("network"), str):
        return False
    numbers = (row.get(key) for key in ("ms_per_step", "images_per_second", "peak_memory_bytes"))
    return all(isinstance(n, (int, float)) and not isinstance(n, bool) and n > 0 for n in numbers)


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The networks of both results side by side: what each has, and how many times as many images/s the second does.

    A network of only one result has None for the other.
    """
    first, second = ({row["network"]: row for row in result["networks"]} for result in (before, after))
    found = []
    for name in dict.fromkeys([*first, *second]):
        a, b = first.get(name), second.get(name)
        speed = b["images_per_second"] / a["images_per_second"] if a and b else None
        memory = b["peak_memory_bytes"] / a["peak_memory_bytes"] if a and b else None
        found.append({"network": name, "a": a, "b": b, "ratio": speed, "memory_ratio": memory})
    return found


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What of the circumstances differs between two results, a phrase each: machine, libraries, settings."""
    said = []
    machines = [result.get("machine") or {} for result in (before, after)]
    said += _changed(machines, ("chip", "cores", "torch", "cuda"))
    rows = [row for row in compare(before, after) if row["a"] and row["b"]]
    for row in rows:
        said += _changed([row["a"], row["b"]], ("engine", "device", "precision", "batch", "threads"))
    return list(dict.fromkeys(said))


def _changed(pair: list[Mapping[str, Any]], keys: tuple[str, ...]) -> list[str]:
    return [f"{k} {pair[0].get(k)} and {pair[1].get(k)}" for k in keys if pair[0].get(k) != pair[1].get(k)]
