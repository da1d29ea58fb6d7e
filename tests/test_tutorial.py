"""The tutorial: its cells run from the first to the last, at a tiny scale, and it is committed without outputs."""

import json
from pathlib import Path
from typing import Any

import pytest

from plainres import results

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
TINY = 'DATA = "generated:train=300,test=20"\nSHALLOW, DEEP, EPOCHS, RUNS = 8, 14, 2, "runs"'
NETWORKS = {"plain8", "plain14", "resnet8", "resnet14"}


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(TUTORIAL.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_it_is_committed_without_outputs() -> None:
    for cell in cells("code"):
        assert not cell["outputs"]
        assert cell["execution_count"] is None
    assert TUTORIAL.stat().st_size < 50_000


def test_one_cell_has_the_parameters_that_the_test_replaces() -> None:
    (parameters,) = [cell for cell in cells("code") if "parameters" in cell["metadata"].get("tags", [])]
    given: dict[str, Any] = {}
    replaced: dict[str, Any] = {}
    exec("".join(parameters["source"]), given)
    exec(TINY, replaced)
    assert given.keys() == replaced.keys()


@pytest.mark.notebook
def test_it_runs(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the notebook needs nbclient")
    nbformat = pytest.importorskip("nbformat", reason="the notebook needs nbformat")
    pytest.importorskip("ipykernel", reason="the notebook needs a Python kernel")
    notebook = nbformat.read(TUTORIAL, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = TINY
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    runs = results.find([tmp_path / "runs"]).runs
    assert {run.network for run in runs} == NETWORKS
    assert all(run.result and run.responses and run.predictions for run in runs)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    for run in runs:
        assert run.result is not None
        assert f"test error {run.result['error']:6.1%}" in printed
    trained = {run.network: run.result["train_error"] for run in runs if run.result}
    removed = trained["plain14"] - trained["plain8"] - trained["resnet14"] + trained["resnet8"]
    assert f"degradation that the shortcuts remove: {100 * removed:+.1f} points" in printed
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
