"""The page of a report in a real Chromium: at two widths and in both schemes, with names that are markup."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from making_runs import make_run
from plainres import groups, results
from plainres.data.dataset import Dataset
from plainres.report_page import page
from plainres.report_tables import tables

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Locator, Page, Request

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SECTIONS = ["degradation", "errors", "differences", "curves", "responses", "cost", "runs", "recipes"]
EVIL = "<img src=x onerror=alert(1)>"
LOOKS: list[tuple[int, Any]] = [(width, scheme) for width in (400, 1400) for scheme in ("light", "dark")]

# of the text of elements against the page, as WCAG defines it
CONTRAST = """selector => {
  const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const parse = text => text.match(/[\\d.]+/g).slice(0, 3).map(c => linear(c / 255));
  const bright = text => parse(text).reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const back = bright(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll(selector)].map(e => {
    const style = getComputedStyle(e), own = bright(e instanceof SVGElement ? style.fill : style.color);
    return (Math.max(own, back) + .05) / (Math.min(own, back) + .05);
  });
}"""
TEXT = (
    "p, .notes, .soft, small, .data button, .data td, summary b, .key span, h2, .legendtext, .xtick text, .ytick text"
)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, small: Dataset) -> str:
    """A page of two depths of both families (two seeds, one unfinished), of a second setting, and of a bad name."""
    runs, file = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("page") / "index.html"
    for network, error in {"plain20": 0.30, "plain56": 0.40, "resnet20": 0.06, "resnet56": 0.20}.items():
        for seed in (0, 1):
            make_run(runs, network, seed=seed, error=error, data=small)
    make_run(runs, "resnet110", finished=False, data=small)
    make_run(runs, {"module": f"mine.{EVIL}", "structure": "1", "start": "2"})
    found = results.find([runs])
    made = [tables(setting) for setting in groups.settings(found.runs)]
    file.write_text(page(made, [f"{EVIL} is damaged"], data=small), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def opened(request: pytest.FixtureRequest, browser: "Browser", address: str) -> Iterator["Page"]:
    """The page at a width and in a scheme; whatever it complains of, or asks the network for, is a failure."""
    width, scheme = getattr(request, "param", LOOKS[2])
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.set_default_timeout(15_000)
    complaints: list[str] = []

    def asked_for(request: "Request") -> None:
        if request.url != address and not request.url.startswith("data:"):
            complaints.append(request.url)

    def alerted(dialog: "Dialog") -> None:
        complaints.append(dialog.message)
        dialog.dismiss()

    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", asked_for)
    page.on("dialog", alerted)
    page.goto(address)
    page.wait_for_selector(".plot .legend")
    yield page
    page.close()
    assert complaints == []


def families(page: "Page") -> "Locator":
    """The curves of plain and residual networks, a panel each."""
    return page.locator(".curves", has_text="Plain networks")


def ranges(page: "Page") -> list[list[float]]:
    plots = families(page).locator(".plot")
    return list(plots.evaluate_all("all => all.map(p => [...p.layout.xaxis.range, ...p.layout.yaxis.range])"))


@pytest.mark.parametrize("opened", LOOKS, indirect=True)
def test_every_section_is_there_and_fits(opened: "Page") -> None:
    assert opened.eval_on_selector_all("main > section", "all => all.map(s => s.id)") == SECTIONS
    assert opened.eval_on_selector_all("nav a", "all => all.map(a => a.hash.slice(1))") == SECTIONS
    assert opened.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    plots = opened.eval_on_selector_all(
        ".plot", "all => all.map(p => [p.clientWidth, p.querySelectorAll('.scatterlayer .trace').length])"
    )
    assert len(plots) == 4
    assert all(width >= 300 and traces > 0 for width, traces in plots)
    assert min(opened.evaluate(CONTRAST, TEXT)) >= 4.5


@pytest.mark.parametrize("opened", LOOKS[:1], indirect=True)
def test_wide_tables_scroll_inside_their_box_and_panels_stack(opened: "Page") -> None:
    boxes = opened.eval_on_selector_all(".box", "all => all.map(b => b.scrollWidth > b.clientWidth)")
    assert any(boxes)
    tops = families(opened).locator("figure").evaluate_all("all => all.map(f => f.offsetTop)")
    assert tops[0] < tops[1]


def test_panels_stand_side_by_side(opened: "Page") -> None:
    tops = families(opened).locator("figure").evaluate_all("all => all.map(f => f.offsetTop)")
    assert tops[0] == tops[1]


def test_a_legend_click_hides_both_curves_of_a_network(opened: "Page") -> None:
    plot = opened.locator(".curves .plot", has_text="plain56").first
    shown = "p => p.data.filter(t => t.name === 'plain56').map(t => t.visible ?? true)"
    assert set(plot.evaluate(shown)) == {True}
    count = plot.locator(".scatterlayer .trace").count()
    plot.locator(".legend .traces", has_text="plain56").locator(".legendtoggle").click()
    opened.wait_for_timeout(700)  # plotly waits whether a second click follows
    assert set(plot.evaluate(shown)) == {"legendonly"}
    assert plot.locator(".scatterlayer .trace").count() < count
    assert set(plot.evaluate("p => p.data.filter(t => t.name === 'plain20').map(t => t.visible ?? true)")) == {True}


def test_zoom_buttons_change_the_axes_there_and_back(opened: "Page") -> None:
    before = ranges(opened)
    part = families(opened)
    part.get_by_role("button", name="End of training").click()
    after = ranges(opened)
    assert after[0][0] > 1000 > before[0][0]
    assert after[0] == after[1], "both panels"
    assert part.get_by_role("button", name="End of training").get_attribute("aria-pressed") == "true"
    part.get_by_role("button", name="Whole training").click()
    assert ranges(opened) == before


def test_a_table_sorts_numbers_as_numbers_and_what_has_none_last(opened: "Page") -> None:
    table = opened.locator("#errors table", has_text="plain56")
    heading = table.locator("th", has_text="test error")
    column = heading.evaluate("h => h.cellIndex")

    def values() -> list[str]:
        rows = table.locator("tbody tr")
        return list(rows.evaluate_all(f"rows => rows.map(r => r.cells[{column}].dataset.value)"))

    for state, reverse in (("ascending", False), ("descending", True)):
        heading.locator("button").focus()
        opened.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == state
        found = values()
        assert found[-1] == "", "the unfinished network"
        assert [float(value) for value in found[:-1]] == sorted(map(float, found[:-1]), reverse=reverse)
    table.locator("th", has_text="network").locator("button").click()
    assert heading.get_attribute("aria-sort") is None
    names = table.locator("tbody th").evaluate_all("all => all.map(h => h.textContent)")
    assert names == ["plain20", "plain56", "resnet20", "resnet56", "resnet110"], "by kind, then depth"


def test_the_select_changes_matrix_classes_and_pictures(opened: "Page") -> None:
    def shown() -> list[Any]:
        cells = opened.locator("#confusion td").all_text_contents()
        pictures = opened.locator("#pictures img").evaluate_all("all => all.map(i => i.src.length * i.naturalWidth)")
        return [cells, opened.locator("#shares").text_content(), pictures]

    first = shown()
    assert sum(int(cell) for cell in first[0] if cell) == 100, "every test image once"
    assert opened.locator("#run option:checked").text_content() == "resnet20, seed 0, nearest the mean"
    assert first[2]
    assert all(first[2]), "each picture could be decoded"
    opened.select_option("#run", label="plain56, seed 0, nearest the mean")
    assert all(one != other for one, other in zip(first, shown(), strict=True))
    assert len(shown()[2]) <= 24
    size = opened.locator("#pictures img").first.bounding_box()
    assert size
    assert size["width"] == pytest.approx(size["height"], abs=1)


def test_figures_follow_the_scheme_and_keep_what_was_zoomed(opened: "Page") -> None:
    families(opened).get_by_role("button", name="End of training").click()
    zoomed = ranges(opened)
    ink = """[['.legendtext', 'fill'], ['.js-line', 'stroke']]
      .map(([selector, what]) => getComputedStyle(document.querySelector(selector))[what])"""
    before = opened.evaluate(ink)
    opened.emulate_media(color_scheme="dark")
    opened.wait_for_timeout(300)
    after = opened.evaluate(ink)
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert ranges(opened) == zoomed
    assert min(opened.evaluate(CONTRAST, ".legendtext")) >= 4.5


def test_no_name_is_markup(opened: "Page") -> None:
    assert opened.locator("img[src=x]").count() == 0
    assert opened.locator(".legendtext", has_text=EVIL).count() >= 1
    assert opened.locator("#errors th", has_text=EVIL).count() == 1
    opened.select_option("#run", label=f"{EVIL}, seed 0")
    assert opened.locator("img[src=x]").count() == 0
