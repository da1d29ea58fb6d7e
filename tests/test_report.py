"""A report's numbers: tables, sentence, curves, files, the command; its page is driven in test_report_page.py."""

import csv
import io
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer

from making_runs import make_run
from plainres import cli_report, groups, recipes, report_curves, report_tables, results
from plainres.data.dataset import Dataset
from plainres.errors import UserError
from plainres.fields import override, to_json
from plainres.groups import Setting
from plainres.recipe import Recipe, scaled, with_steps
from plainres.report import Report, report
from plainres.report_details import command, mistakes, part_of
from plainres.report_files import document, markdown, results_csv, text
from plainres.report_findings import Degradation, degradations
from plainres.report_page import page
from plainres.report_tables import Cell, Column, Table, costs, differences, errors, tables


def setting_of(folder: Path, number: int = 0) -> Setting:
    return groups.settings(results.find([folder]).runs)[number]


def cells(table: Table, row: str) -> dict[str, Cell]:
    found = next(cells for cells in table.rows if cells[0].text == row)
    return dict(zip([column.title for column in table.columns], found, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two depths of both families, two seeds, and an unfinished third."""
    parent = tmp_path_factory.mktemp("runs")
    trained = {"plain20": (0.30, 0.31), "plain56": (0.40, 0.42), "resnet20": (0.25, 0.26), "resnet56": (0.22, 0.24)}
    for network, values in trained.items():
        for seed, train_error in enumerate(values):
            make_run(parent, network, seed=seed, result={"train_error": train_error})
    make_run(parent, "resnet56", seed=2, finished=False)
    return parent


@pytest.fixture(scope="module")
def setting(folder: Path) -> Setting:
    return setting_of(folder)


def test_errors_are_those_of_the_runs_beside_the_published(setting: Setting) -> None:
    row = cells(errors(setting), "resnet56")
    runs = next(group for group in setting.groups if group.network == "resnet56").finished
    values = [run.result["error"] for run in runs if run.result]
    assert row["test error"].text == f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"
    assert (row["n"].text, row["parameters"].text) == ("2", "853,018")
    assert (row["paper"].text, row["techxzen"].text, row["cfmz"].text) == ("6.97", "7.41", "6.31")
    assert row["steps"] == Cell("1,600", 1600, "seed 2 at 800")
    assert row["training error"].value == pytest.approx(0.23)
    assert row["best over evaluations (optimistic)"].value == pytest.approx(np.mean([run.best for run in runs]))
    assert row["least to most"].text == f"{100 * min(values):.2f}–{100 * max(values):.2f}"
    assert cells(errors(setting), "plain56")["paper"].text == "–"


def test_an_unfinished_network_is_shown_as_such(tmp_path: Path) -> None:
    make_run(tmp_path, "resnet20", finished=False)
    row = cells(errors(setting_of(tmp_path)), "resnet20")
    assert (row["test error"].text, row["test error"].value) == ("unfinished", None)
    assert row["steps"].note == "seed 0 at 800"
    assert differences(setting_of(tmp_path)).rows == costs(setting_of(tmp_path)).rows == []


def test_other_data_steps_or_precision_make_another_table(tmp_path: Path) -> None:
    make_run(tmp_path, "resnet20", error=0.1)
    make_run(tmp_path, "resnet20", error=0.5, precision="bfloat16")
    make_run(tmp_path, "resnet20", error=0.5, data_hash="0" * 64, data="images")
    make_run(tmp_path, "resnet20", recipes.quick(), error=0.5)
    found = [tables(one) for one in groups.settings(results.find([tmp_path]).runs)]
    assert [[row[0].text for row in one.errors.rows] for one in found] == [["resnet20"]] * 4
    assert len({one.setting.name for one in found}) == 4
    written = document(found)
    assert all(f"## {one.setting.name}" in written for one in found)
    of_images = next(one for one in found if one.setting.data == "images")
    assert "paper" not in [column.title for column in of_images.errors.columns], "published errors are of CIFAR-10"


def test_degradation_is_computed_for_each_seed_that_all_four_have(setting: Setting) -> None:
    (found,) = degradations(setting)
    assert (found.shallow, found.deep, found.seeds) == (20, 56, (0, 1))
    assert found.plain == pytest.approx((0.10, 0.11))
    assert found.residual == pytest.approx((-0.03, -0.02))
    assert found.apart == pytest.approx((0.13, 0.13))
    assert found.verdict == "Plain networks degrade with depth, residual ones do not."
    assert found.sentence == (
        "From 20 to 56 layers the training error of plain networks rises by 10.50 (10.00 and 11.00) points, "
        "that of residual networks falls by 2.50 (3.00 and 2.00) points; "
        "the difference of the two is 13.00 (13.00 and 13.00) points (seeds 0 and 1)."
    )


@pytest.mark.parametrize(
    ("plain", "residual", "said"),
    [
        ((0.1,), (0.05,), "Both plain and residual networks get worse with depth, plain ones more."),
        ((0.1,), (0.2,), "Both plain and residual networks get worse with depth, residual ones as much or more."),
        ((0.00001,), (-0.001,), "Plain networks do not degrade with depth here."),
        ((-0.1,), (-0.2,), "Plain networks do not degrade with depth here."),
        ((-0.1,), (0.2,), "Plain networks do not degrade with depth here. Residual ones do."),
        (
            (0.1, -0.05),
            (-0.1, -0.1),
            "Plain networks degrade with depth, residual ones do not. But the seeds disagree on the direction.",
        ),
    ],
)
def test_both_directions_are_said(plain: tuple[float, ...], residual: tuple[float, ...], said: str) -> None:
    assert Degradation("", 20, 56, tuple(range(len(plain))), plain, residual).verdict == said


@pytest.mark.parametrize("networks", [("plain20", "resnet20"), ("plain20", "plain56", "resnet56"), ("resnet20",)])
def test_no_degradation_without_two_depths_of_both(tmp_path: Path, networks: tuple[str, ...]) -> None:
    for network in networks:
        make_run(tmp_path, network)
    assert degradations(setting_of(tmp_path)) == []


def test_no_degradation_without_a_common_seed(tmp_path: Path) -> None:
    for seed, network in enumerate(["plain20", "plain56", "resnet20", "resnet56"]):
        make_run(tmp_path, network, seed=seed)
    assert degradations(setting_of(tmp_path)) == []


def test_differences_pair_families_and_neighbours(setting: Setting) -> None:
    found = differences(setting)
    assert [(row[0].text, row[1].text) for row in found.rows] == [
        *(("plain20", "resnet20"), ("plain56", "resnet56")),
        *(("plain56", "plain20"), ("resnet56", "resnet20")),
    ]
    between = groups.difference(*(group for n in ("plain56", "resnet56") if (group := setting.group(n))))
    assert between
    assert found.rows[1][2].value == between.mean
    assert found.rows[1][3].text == f"{report_tables.points(between.low)} to {report_tables.points(between.high)}"
    assert "With so few seeds (2)" in report_tables.caution(setting)


def test_variants_are_compared_with_their_own_kind(tmp_path: Path) -> None:
    for network in ("plain20", "resnet20", "resnet20-b", "resnet32-b", "plain20-techxzen"):
        make_run(tmp_path, network)
    pairs = {(row[0].text, row[1].text) for row in differences(setting_of(tmp_path)).rows}
    assert pairs == {("plain20", "resnet20"), ("resnet32-b", "resnet20-b")}


def test_cost_is_of_the_results(tmp_path: Path) -> None:
    figures = {"seconds": 360.0, "evaluation_seconds": 36.0, "compile_seconds": 0.0, "images_per_second": 500.0}
    make_run(tmp_path, "resnet20", result={**figures, "peak_memory_bytes": 100 << 20})
    make_run(tmp_path, "plain20", result={"peak_memory_bytes": ...})
    row = cells(costs(setting_of(tmp_path)), "resnet20")
    assert row["seconds a pass"].text == f"{360 / (1600 * 128 / 50_000):.1f}"
    assert (row["hours of training"].text, row["hours in all"].text) == ("0.10", "0.11")
    assert (row["peak memory, MiB"].text, row["cfmz, MiB"].text, row["cfmz, seconds a pass"].text) == (
        "100",
        "521",
        "11",
    )
    assert row["machine"].text == "A made-up chip, 2 threads"
    assert cells(costs(setting_of(tmp_path)), "plain20")["peak memory, MiB"].text == "–"


def test_markdown_and_text_keep_a_cell_on_its_place() -> None:
    table = Table([Column("a|b", number=False), Column("n")], [[Cell("x|<i>\ny", "x"), Cell("1", 1, "note")]])
    assert markdown(table).splitlines()[2] == "| x\\|&lt;i> y | 1 (note) |"
    assert text(table, ["n"]).splitlines()[0] == "a|b"


def test_csv_has_raw_numbers_and_one_line_a_run(folder: Path) -> None:
    runs = results.find([folder]).runs
    rows = list(csv.DictReader(io.StringIO(results_csv(runs))))
    assert len(rows) == 9
    assert [row["state"] for row in rows].count("unfinished") == 1
    first = runs[0]
    assert first.result
    assert float(rows[0]["error"]) == first.result["error"]
    assert float(rows[0]["scale"]) == 0.025
    assert rows[0]["run_dir"] == first.path.name
    assert float(rows[0]["nll"]) == pytest.approx(first.result["loss"])


def test_curves_have_a_panel_a_family_and_a_colour_a_depth(setting: Setting) -> None:
    import plotly.graph_objects

    colours = report_curves.colours([setting])
    assert colours["plain56"] == colours["resnet56"] != colours["plain20"]
    panels = report_curves.curves(setting, colours)
    assert [panel.title for panel in panels] == ["Plain networks", "Residual networks"]
    for panel in [*panels, report_curves.responses(setting, colours)]:
        assert panel
        plotly.graph_objects.Figure(panel.traces, panel.layout)  # refuses what plotly does not know
    named = [trace for trace in panels[1].traces if trace["name"] == "resnet56" and "hovertemplate" in trace]
    training, test = named
    assert training["line"]["dash"] != "solid"
    assert "dash" not in test["line"]
    runs = next(group for group in setting.groups if group.network == "resnet56").finished
    assert test["y"][-1] == pytest.approx(100 * np.mean([run.curve("test")[1][-1] for run in runs]), abs=1e-3)
    unfinished = [trace for trace in panels[1].traces if "unfinished" in trace["name"]]
    assert max(unfinished[0]["x"]) == 800
    assert panels[0].zooms["end"]["x"][0] > 800


def test_a_whole_schedule_is_shown_as_in_the_paper(tmp_path: Path) -> None:
    make_run(tmp_path, "resnet20", recipes.paper(), error=0.08)
    setting = setting_of(tmp_path)
    (panel,) = report_curves.curves(setting, report_curves.colours([setting]))
    assert panel.zooms["whole"] == {"x": [0, 64_000], "y": [0, 20]}


def test_mistakes_are_the_surest_and_of_these_images(tmp_path: Path, small: Dataset) -> None:
    make_run(tmp_path, "resnet20", data=small)
    setting = setting_of(tmp_path)
    part = part_of(setting, small)
    assert part
    found = mistakes(setting.groups[0], part, small.classes)
    assert found
    sure = [picture["probability"] for picture in found["pictures"]]
    assert sure == sorted(sure, reverse=True)
    assert all(picture["true"] != picture["taken"] for picture in found["pictures"])
    assert found["pictures"][0]["picture"].startswith("data:image/png;base64,")
    make_run(tmp_path / "others", "resnet20")
    assert part_of(setting_of(tmp_path / "others"), small) is None, "not of these images"


@pytest.mark.parametrize(
    "recipe",
    [
        recipes.paper(),
        scaled(recipes.techxzen(), 0.05),
        with_steps(recipes.quick(), 500),
        override(recipes.paper(), ["learning_rate=0.05", "name=mine"], "recipe"),
    ],
)
def test_the_command_repeats_the_run(tmp_path: Path, recipe: Recipe) -> None:
    from plainres.cli_app import recipe_of

    path = make_run(tmp_path, "plain20-techxzen", recipe, seed=3, finished=False, precision="bfloat16")
    words = shlex.split(command(results.read(path)) or "")
    assert words[:3] == ["plainres", "train", "plain20-techxzen"]
    told = dict(zip(words[3::2], words[4::2], strict=True))
    changed = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    made = recipe_of(told["--recipe"], changed, float(told.get("--scale", 1)))
    made = with_steps(made, int(told["--steps"])) if "--steps" in told else made
    assert to_json(made) == to_json(recipe)
    assert (told["--seed"], told["--precision"]) == ("3", "bfloat16")


def test_a_run_from_python_has_no_command(tmp_path: Path) -> None:
    stranger = {"module": "mine.Net", "structure": "1", "start": "2"}
    assert command(results.read(make_run(tmp_path, stranger))) is None


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    runs = tmp_path_factory.mktemp("copied")
    shutil.copytree(folder, runs, dirs_exist_ok=True)
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{")
    return report([runs], tmp_path_factory.mktemp("report") / "new")


def test_report_writes_everything_and_names_what_is_left_out(written: Report) -> None:
    names = {path.name for path in written.out.iterdir()}
    assert names == {"index.html", "table.md", "results.csv", "figures"}
    assert len(written.left_out) == 1
    for name in ("index.html", "table.md"):
        content = (written.out / name).read_text(encoding="utf-8")
        assert "broken/run.json" in content
        assert "0.025 of its length" in content
        assert "Plain networks degrade with depth, residual ones do not." in content
    assert json.dumps(written.to_json())
    assert list((written.out / "figures").glob("*.svg"))


def test_generated_data_is_marked(tmp_path: Path, small: Dataset) -> None:
    make_run(tmp_path, "resnet20", data=small)
    made = [tables(setting_of(tmp_path))]
    assert "GENERATED DATA" in document(made)
    assert "Generated data." in page(made, data=small)


def test_a_page_of_nothing_but_a_beginning_is_not_broken(tmp_path: Path) -> None:
    path = make_run(tmp_path, "resnet20", finished=False)
    (path / "metrics.jsonl").unlink()
    found = page([tables(setting_of(tmp_path))])
    assert 'id="errors"' in found
    assert not any(f'id="{section}"' in found for section in ("degradation", "differences", "curves", "cost", "runs"))


def test_no_name_is_markup(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    make_run(tmp_path, {"module": f"mine.{evil}", "structure": "1", "start": "2"})
    found = page([tables(setting_of(tmp_path))], [evil])
    assert evil not in found
    assert "<img src=x" not in found
    assert "&lt;img src=x onerror=alert(1)&gt;" in found


@pytest.mark.parametrize("missing", ["jinja2", "plotly", "matplotlib"])
def test_a_missing_extra_is_one_line(
    missing: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(UserError, match=rf"{missing}: pip install 'plainres\[report\]'"):
        report([folder], tmp_path)


def test_the_command_prints_and_fails_if_something_is_left_out(
    written: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plainres.report.report", lambda *_, **__: written)
    with pytest.raises(typer.Exit) as ended:
        cli_report.report(["runs"], out=str(tmp_path), as_json=False)
    assert ended.value.exit_code == 1
    told = capsys.readouterr()
    assert "Plain networks degrade" in told.out
    assert "index.html" in told.out
    assert "left out:" in told.err
    with pytest.raises(typer.Exit):
        cli_report.report(["runs"], out=str(tmp_path), as_json=True)
    assert json.loads(capsys.readouterr().out)["runs"][0]["network"] == "plain20"


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plainres train"):
        report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_seeds_evaluated_at_other_steps_still_make_a_curve() -> None:
    found = report_curves._common([([10, 20, 30], [0.5, 0.4, 0.2]), ([15, 25, 35], [0.6, 0.4, 0.3])])
    assert found[0] == [20, 30]
    assert found[1] == [pytest.approx([0.4, 0.5]), pytest.approx([0.2, 0.35])]


def test_cut_and_validation_runs_do_not_stand_beside_published_errors(tmp_path: Path) -> None:
    make_run(tmp_path / "cut", recipe=with_steps(recipes.paper(), 100))
    assert any("CUT SCHEDULE: 100 of 64,000" in line for line in report_tables.warnings(setting_of(tmp_path / "cut")))
    make_run(tmp_path / "val", recipe=override(recipes.paper(), ["validation_images=5000"], "recipe"))
    assert "paper" not in [column.title for column in errors(setting_of(tmp_path / "val")).columns]
