"""The figures: what they show, of which runs, and how they are written."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import plainres
from making_runs import make_run
from plainres import groups, recipes, report_figure6, report_figures, report_style, results, weights
from plainres.data.dataset import Dataset
from plainres.errors import UserError
from plainres.groups import Setting
from plainres.recipe import Recipe, scaled, with_steps
from plainres.spec import NetworkSpec

SHORT = scaled(recipes.paper(), 0.025)


def settings_of(folder: Path) -> list[Setting]:
    return groups.settings(results.find([folder]).runs)


def study(folder: Path, networks: dict[str, float | None], seeds: int = 2, recipe: Recipe = SHORT) -> Setting:
    for network, error in networks.items():
        for seed in range(seeds):
            make_run(folder, network, recipe, seed, error=error)
    (setting,) = settings_of(folder)
    return setting


def lines(ax) -> dict[str, list]:
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def test_every_figure_is_written_as_svg_and_png(tmp_path: Path) -> None:
    setting = study(tmp_path / "runs", {"plain20": None, "resnet20": None}, seeds=1)
    written = report_figures.save_all([setting], tmp_path / "out")
    names = ["curves", "curves-end", "responses", "errors-by-depth", "confusion-plain20", "confusion-resnet20"]
    assert written == [tmp_path / "out" / "figures" / f"{name}.{kind}" for name in names for kind in ("svg", "png")]
    for path in written:
        content = path.read_bytes()
        assert content.startswith(b"<?xml" if path.suffix == ".svg" else b"\x89PNG")
        assert len(content) < 300 * 1024


def test_the_same_runs_make_the_same_bytes(tmp_path: Path) -> None:
    study(tmp_path / "runs", {"resnet56": None})
    one, other = (report_figures.save_all(settings_of(tmp_path / "runs"), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    assert b"<dc:date>" not in one[0].read_bytes()


def test_the_whole_table_at_full_length_is_small_files(tmp_path: Path) -> None:
    networks = ["plain20", "plain56", *(f"resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202))]
    setting = study(tmp_path / "runs", dict.fromkeys(networks), seeds=3, recipe=recipes.paper())
    for figure in (report_figure6.curves(setting), report_figures.layer_responses(setting)):
        assert figure is not None
        svg, _ = report_style.save(figure, tmp_path / "figure")
        assert svg.stat().st_size < 300 * 1024


def test_figure_6_has_the_papers_panels_colours_and_range(tmp_path: Path) -> None:
    networks = {"plain20": 0.09, "plain110": 0.6, "resnet20": 0.08, "resnet110": 0.07, "resnet1202": 0.08}
    figure = report_figure6.curves(study(tmp_path, networks, seeds=1, recipe=recipes.paper()))
    assert figure is not None
    plain, residual, deep = figure.axes
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["plain networks", "residual networks", "residual networks, very deep"]
    assert [list(lines(ax)) for ax in figure.axes] == [
        ["plain-20", "plain-110"],
        ["ResNet-20", "ResNet-110"],
        ["ResNet-110", "ResNet-1202"],
    ]
    assert lines(plain)["plain-20"].get_color() == lines(residual)["ResNet-20"].get_color()
    assert lines(plain)["plain-110"].get_color() == lines(deep)["ResNet-110"].get_color() == "#000000"
    assert {ax.get_ylim() for ax in figure.axes} == {(0, 20)}
    assert plain.get_xlabel() == "iter. (1e4)"
    assert plain.get_xlim() == (0, 6.4)
    assert re.fullmatch(r"plain-110 is at \d\d %, not shown", plain.get_legend().get_title().get_text())
    assert [text.get_text() for text in plain.texts] == ["20-layer"]


def test_curves_are_those_of_the_runs(tmp_path: Path) -> None:
    setting = study(tmp_path, {"resnet20": None}, seeds=3)
    figure = report_figure6.curves(setting)
    assert figure is not None
    (ax,) = figure.axes
    held, train = (line for line in ax.get_lines() if len(line.get_xdata()))
    assert (held.get_linestyle(), train.get_linestyle()) == ("-", "--")
    assert held.get_linewidth() > train.get_linewidth()
    for line, kind in ((held, "test"), (train, "train")):
        each = [run.curve(kind) for run in setting.groups[0].finished]
        assert list(line.get_xdata()) == each[0][0]
        np.testing.assert_allclose(line.get_ydata(), 100 * np.mean([values for _, values in each], axis=0))
    assert len(ax.collections) == 2  # the bands of both


def test_many_points_are_thinned_and_the_last_one_stays() -> None:
    steps = list(range(100, 64_001, 100))
    errors = np.linspace(0.9, 0.1, len(steps))
    for mean in (True, False):
        curve = report_figure6._over_seeds([(steps, list(errors))], mean=mean)
        assert curve is not None
        assert len(curve.steps) == len(steps) // 5
        assert curve.steps[-1] == 64_000
        assert curve.last == pytest.approx(100 * (errors[-5:].mean() if mean else errors[-1]))


def test_the_zoom_shows_the_end(tmp_path: Path) -> None:
    setting = study(tmp_path, {"plain20": 0.3, "plain56": 0.35, "resnet20": 0.25})
    whole, end = (report_figure6.curves(setting, end=end) for end in (False, True))
    assert whole is not None
    assert end is not None
    assert whole.axes[0].get_xlim() == (0, 1600)
    assert end.axes[0].get_xlim() == (760, 1600)
    low, high = end.axes[0].get_ylim()
    assert 0 < low < 25
    assert 35 < high < whole.axes[0].get_ylim()[1]


def test_an_unfinished_run_is_shown_as_such_and_never_averaged(tmp_path: Path) -> None:
    make_run(tmp_path, "plain20")
    make_run(tmp_path, "plain20", seed=1, finished=False)
    make_run(tmp_path, "plain56", finished=False)
    (setting,) = settings_of(tmp_path)
    figure = report_figure6.curves(setting)
    assert figure is not None
    assert list(lines(figure.axes[0])) == ["plain-20", "plain-56 (unfinished)"]
    end = report_figure6.curves(setting, end=True)
    assert end is not None
    assert end.axes[0].get_legend().get_title().get_text() == "plain-56 is unfinished"
    assert not figure.axes[0].collections  # of one finished seed there is no band
    assert [report_figures.confusion(setting, group) is None for group in setting.groups] == [False, True]


@pytest.mark.parametrize(
    ("recipe", "data", "said"),
    [
        (SHORT, "CIFAR-10", "SHORTENED SCHEDULE"),
        (with_steps(recipes.quick(), 300), "generated", "GENERATED DATA"),
        (with_steps(recipes.quick(), 300), "CIFAR-10", None),
    ],
)
def test_a_title_says_what_is_not_comparable(
    recipe: Recipe, data: str, said: str | None, tmp_path: Path, small: Dataset
) -> None:
    make_run(tmp_path, "resnet20", recipe, data=small if data == "generated" else None)
    (setting,) = settings_of(tmp_path)
    title = report_style.title(setting)
    assert said is None or said in title.marks[0]
    assert bool(title.marks) == (said is not None)
    for figure in (report_figure6.curves(setting), report_figures.errors_by_depth(setting)):
        assert figure is not None
        assert (said or setting.name) in re.sub(r"\s+", " ", figure.get_suptitle())
        labels = [text.get_text() for text in (figure.axes[0].get_legend() or figure).get_texts()]
        hollow = [label for label in labels if label.startswith("paper")]
        assert bool(hollow) == (data == "CIFAR-10" and "layers" in figure.axes[0].get_xlabel())


def test_figure_7_is_in_order_above_and_sorted_below(tmp_path: Path) -> None:
    setting = study(tmp_path, {"plain20": None, "resnet56": None})
    figure = report_figures.layer_responses(setting)
    assert figure is not None
    above, below = figure.axes
    for network, label, style in (("plain20", "plain-20", "--"), ("resnet56", "ResNet-56", "-")):
        group = setting.group(network)
        assert group is not None
        each = np.array([[std for _, std in run.responses] for run in group.finished])
        np.testing.assert_allclose(lines(above)[label].get_ydata(), each.mean(0))
        assert lines(above)[label].get_linestyle() == style
        shown = below.get_lines()[[line.get_label() for line in below.get_lines()].index(label)].get_ydata()
        np.testing.assert_allclose(shown, np.sort(each, axis=1)[:, ::-1].mean(0))


def test_networks_of_one_depth_get_lines_of_their_own_colour(tmp_path: Path) -> None:
    name = report_style.name_of(NetworkSpec.named("resnet20"), "resnet20")
    title = report_style.Title("two seeds", ())
    figure = report_figures.responses_figure([(name, "seed 0", [[1, 2]]), (name, "seed 1", [[2, 1]])], title)
    shown = lines(figure.axes[0])
    assert shown["seed 0"].get_color() != shown["seed 1"].get_color()


def test_the_confusion_matrix_is_of_the_run_nearest_the_mean(tmp_path: Path) -> None:
    for seed, error in enumerate((0.1, 0.3, 0.33)):
        make_run(tmp_path, "resnet20", seed=seed, error=error)
    (setting,) = settings_of(tmp_path)
    (group,) = setting.groups
    figure = report_figures.confusion(setting, group)
    assert figure is not None
    assert group.nearest_mean is not None
    assert f"seed {group.nearest_mean.seed} (the run nearest the mean)" in figure.get_supxlabel().replace("\n", " ")
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()][:2] == ["airplane", "automobile"]
    predictions = group.nearest_mean.predictions
    assert predictions is not None
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): int(t.get_text()) for t in ax.texts}
    assert written == {place: int(n) for place, n in np.ndenumerate(predictions.confusion) if n}


def test_a_run_without_predictions_or_responses_leaves_those_figures_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, "resnet20")
    (run / "predictions.safetensors").unlink()
    (run / "responses.json").unlink()
    written = report_figures.save_all(settings_of(tmp_path), tmp_path / "out")
    assert {path.stem for path in written} == {"curves", "curves-end", "errors-by-depth"}


def test_errors_against_depth_with_their_spread(tmp_path: Path) -> None:
    setting = study(tmp_path, {"plain20": 0.1, "plain56": 0.13, "plain110": 0.7, "resnet20": 0.09, "resnet56": 0.07})
    figure = report_figures.errors_by_depth(setting)
    assert figure is not None
    (ax,) = figure.axes
    group = setting.group("resnet56")
    assert group is not None
    error = group.spread()
    assert error is not None
    shown = lines(ax)["residual networks"]
    assert list(shown.get_xdata()) == [20, 56]
    assert shown.get_ydata()[1] == pytest.approx(100 * error.mean)
    assert {"paper, residual", "techxzen, plain", "techxzen, residual", "cfmz, residual"} <= lines(ax).keys()
    assert lines(ax)["paper, residual"].get_markerfacecolor() == "none"
    assert 15.4 < ax.get_ylim()[1] < 60  # the network that does not learn is written, not drawn
    assert [text.get_text().endswith(" %") for text in ax.texts] == [True]


def test_settings_have_file_names_of_their_own(tmp_path: Path, small: Dataset) -> None:
    for steps in (300, 400):
        make_run(tmp_path, "resnet20", with_steps(recipes.quick(), steps))
    make_run(tmp_path, "resnet20", with_steps(recipes.quick(), 300), precision="bfloat16")
    make_run(tmp_path, "resnet20")
    make_run(tmp_path, "resnet20", SHORT, data=small)
    names = report_figures._prefixes(settings_of(tmp_path))
    assert len(set(names)) == 5
    assert "paper-x0.025-" in names
    assert "paper-x0.025-generated-" in names
    assert "quick-400-" in names


@pytest.mark.parametrize(
    ("spec", "network", "label", "panel"),
    [
        (NetworkSpec.named("plain20"), "plain20", "plain-20", "plain networks"),
        (
            NetworkSpec.named("resnet56-techxzen"),
            "resnet56-techxzen",
            "ResNet-56 techxzen",
            "residual networks, techxzen",
        ),
        (NetworkSpec.named("preact164"), "preact164", "preact-164", "pre-activation networks"),
        (NetworkSpec(width=4), "resnet20-custom", "ResNet-20 width=4", "residual networks, width=4"),
        (None, "Mine", "Mine", "other networks"),
    ],
)
def test_names_of_networks(spec: NetworkSpec | None, network: str, label: str, panel: str) -> None:
    name = report_style.name_of(spec, network)
    assert name.label == label
    assert list(report_style.families([name])) == [panel]


def test_a_network_from_outside_has_curves(tmp_path: Path) -> None:
    make_run(tmp_path, {"module": "torch.nn.Mine", "structure": "x"})
    written = report_figures.save_all(settings_of(tmp_path), tmp_path / "out")
    assert {path.stem for path in written} == {"curves", "curves-end", "confusion-Mine"}


def test_networks_from_outside_are_told_apart(tmp_path: Path) -> None:
    for name in ("One", "Two"):
        make_run(tmp_path, {"module": f"torch.nn.{name}", "structure": name})
    (setting,) = settings_of(tmp_path)
    figure = report_figure6.curves(setting)
    assert figure is not None
    shown = lines(figure.axes[0])
    assert shown["One"].get_color() != shown["Two"].get_color()
    assert {text.get_text() for text in figure.axes[0].texts} == {"One", "Two"}


def test_names_of_classes_are_text_and_no_formulas(tmp_path: Path, small: Dataset) -> None:
    run = make_run(tmp_path, "resnet20", data=small)
    network, inputs = plainres.build("resnet20", seed=0), small.normalization("paper")
    for classes, shown in ((["$a_{", "<b>&", *"cdefghij"], "$a_{"), (["too", "few"], "0")):
        weights.save(run / "weights.safetensors", network, inputs, {"classes": classes})
        (setting,) = settings_of(tmp_path)
        figure = report_figures.confusion(setting, setting.groups[0])
        assert figure is not None
        assert figure.axes[0].get_yticklabels()[0].get_text() == shown
        report_style.save(figure, tmp_path / "figure")
    (run / "weights.safetensors").write_text("damaged")
    assert report_figures._classes(results.read(run)) == [str(i) for i in range(10)]


def test_labels_at_the_ends_do_not_overlap(tmp_path: Path) -> None:
    networks = {f"resnet{depth}": 0.07 for depth in (20, 32, 44, 56, 110)}
    figure = report_figure6.curves(study(tmp_path, networks, seeds=1, recipe=recipes.paper()))
    assert figure is not None
    places = sorted(text.xy[1] for text in figure.axes[0].texts)
    assert len(places) == 5
    assert np.diff(places).min() >= 1 - 1e-9  # of 20: the height of a line


def test_without_matplotlib_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = study(tmp_path, {"resnet20": None})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'plainres\[report\]'"):
        report_figures.save_all([setting], tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    setting = study(tmp_path / "runs", {"resnet20": None})
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(UserError, match="figures: "):
        report_figures.save_all([setting], tmp_path)
