"""Write the generated parts of the docs, or check that they are current (--check).

python docs/render.py            # README.md, docs/commands.md and docs/speed.md
python docs/render.py --check    # fails if one of them would change
python docs/render.py --record   # runs the README's commands that need no CIFAR-10, and keeps what they print
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from plainres import groups, published, results, statistics

ROOT = Path(__file__).resolve().parent.parent
README, COMMANDS, SPEED = ROOT / "README.md", ROOT / "docs" / "commands.md", ROOT / "docs" / "speed.md"
RECORDED = ROOT / "docs" / "recorded.toml"
RESULTS = ROOT / "docs" / "results"

# In reading order: what it stands on last.
TREE = {
    "src/plainres/cli.py": "the commands, one function each",
    "src/plainres/cli_app.py": "the program, errors, shared options",
    "src/plainres/cli_show.py": "bars, lines and tables shown",
    "src/plainres/cli_seeds.py": "one seed or several, shown",
    "src/plainres/cli_world.py": "several processes, one of them speaks",
    "src/plainres/cli_reproduce.py": "a study from nothing to report",
    "src/plainres/cli_sweep.py": "the words of sweep and watch",
    "src/plainres/cli_sweep_show.py": "a live table, or lines",
    "src/plainres/cli_report.py": "the words of the report command",
    "src/plainres/cli_responses.py": "Figure 7 of any trained network",
    "src/plainres/cli_compare.py": "the words of the comparing command",
    "src/plainres/cli_bench.py": "the words of the measuring command",
    "src/plainres/cli_bench_show.py": "cards and comparisons of measurements",
    "src/plainres/cli_bar.py": "the bar while data prepares",
    "src/plainres/cli_demo.py": "the demo of two networks",
    "src/plainres/reproduce.py": "the published studies as runs",
    "src/plainres/sweep.py": "many runs: skipped, retried, reported",
    "src/plainres/sweep_local.py": "runs as processes of this machine",
    "src/plainres/sweep_ray.py": "runs as tasks of Ray",
    "src/plainres/sweep_time.py": "how long runs will take",
    "src/plainres/sweep_wanted.py": "a wanted run and its command",
    "src/plainres/sweep_state.py": "states from run directories alone",
    "src/plainres/report.py": "page, tables, figures of runs",
    "src/plainres/report_page.py": "one page that opens offline",
    "src/plainres/report_curves.py": "the page's figures as plain values",
    "src/plainres/report_details.py": "confusions, mistakes, how to repeat",
    "src/plainres/report_files.py": "tables as Markdown, CSV, text",
    "src/plainres/report_figures.py": "figures in the paper's style",
    "src/plainres/report_figure6.py": "Figure 6, from our own runs",
    "src/plainres/report_responses.py": "Figure 7, numbers and picture",
    "src/plainres/report_style.py": "colours, names, titles of figures",
    "src/plainres/report_tables.py": "every table as plain values",
    "src/plainres/report_findings.py": "degradation, and what differs",
    "src/plainres/compare.py": "two networks set side by side",
    "src/plainres/groups.py": "seeds together, nothing else averaged",
    "src/plainres/results.py": "run directories read back, checked",
    "src/plainres/bench.py": "steps, baseline, ceilings in turns",
    "src/plainres/bench_sides.py": "engine, usual way, data path",
    "src/plainres/bench_profile.py": "where a step's time goes",
    "src/plainres/bench_figures.py": "medians, spreads, shares, times derived",
    "src/plainres/bench_ceilings.py": "large matrix products and copies",
    "src/plainres/bench_power.py": "clocks and energy from NVML",
    "src/plainres/bench_files.py": "CSV tables, earlier results compared",
    "src/plainres/run.py": "train one network, start to end",
    "src/plainres/cohort.py": "several seeds on one device",
    "src/plainres/training.py": "the loop, and its resume",
    "src/plainres/distributed.py": "several processes train one run",
    "src/plainres/synchronized.py": "BN over all processes' batches",
    "src/plainres/shared.py": "one directory, batches in slices",
    "src/plainres/job.py": "names and flags become values",
    "src/plainres/plan.py": "how it computes, replayed later",
    "src/plainres/clock.py": "training seconds, nothing else counted",
    "src/plainres/step.py": "one training step, its window",
    "src/plainres/memory.py": "memory needed, available, and used",
    "src/plainres/engines.py": "which engine a run gets",
    "src/plainres/native.py": "a step in our own kernels",
    "src/plainres/trunk.py": "a network as the kernels' structures",
    "src/plainres/kernels.py": "the C++ compiled, kept, loaded",
    "src/plainres/cpp/trunk.cpp": "forward and backward, fused by hand",
    "src/plainres/cpp/rows.h": "BN, shortcuts, ReLU on rows",
    "src/plainres/cpp/convolution.h": "convolutions of one cached image",
    "src/plainres/cpp/winograd.h": "3x3 convolutions with fewer multiplications",
    "src/plainres/cpp/tiles.h": "the loops that hold registers",
    "src/plainres/cpp/batch.h": "sums over a batch, BN statistics",
    "src/plainres/cpp/trunk.h": "the data that Python fills in",
    "src/plainres/compiled.py": "PyTorch's compiler, block by block",
    "src/plainres/static.py": "a step on tensors that stay",
    "src/plainres/graph.py": "a step as a CUDA graph",
    "src/plainres/recompute.py": "less memory, blocks computed again",
    "src/plainres/evaluation.py": "misses of a trained network",
    "src/plainres/responses.py": "Figure 7: deviations by layer",
    "src/plainres/outcome.py": "what a run tells, leaves",
    "src/plainres/interrupt.py": "signals stop between two steps",
    "src/plainres/runlog.py": "run directory, metrics, events, lock",
    "src/plainres/checkpoint.py": "two generations, checked by hash",
    "src/plainres/weights.py": "weights files and their classifier",
    "src/plainres/machine.py": "devices, threads, chips, library versions",
    "src/plainres/data/dataset.py": "resident images and their batches",
    "src/plainres/data/prepare.py": "any source to verified store",
    "src/plainres/data/store.py": "the store on the disk",
    "src/plainres/data/canonical.py": "one order, so one hash",
    "src/plainres/data/known.py": "checksums of the official files",
    "src/plainres/data/batches.py": "official batch files, both versions",
    "src/plainres/data/binary.py": "binary records, read and written",
    "src/plainres/data/pickles.py": "the Python version's batch files",
    "src/plainres/data/unpickle.py": "pickles without running their code",
    "src/plainres/data/archive.py": "archives that cannot escape",
    "src/plainres/data/folder.py": "pictures by split and class",
    "src/plainres/data/pictures.py": "PNG and JPEG to pixels",
    "src/plainres/data/parquet.py": "parquet files with encoded images",
    "src/plainres/data/download.py": "several addresses, the fastest wins",
    "src/plainres/data/transfer.py": "one address, resumed where broken",
    "src/plainres/data/generated.py": "ten drawn classes, from seeds",
    "src/plainres/data/records.py": "images and labels in memory",
    "src/plainres/files.py": "written whole or not at all",
    "src/plainres/network.py": "the networks, as the paper's",
    "src/plainres/spec.py": "network names and their fields",
    "src/plainres/summary.py": "layers, parameters, multiply-adds counted",
    "src/plainres/recipes.py": "the five named recipes",
    "src/plainres/recipe.py": "what a recipe consists of",
    "src/plainres/schedule.py": "learning rate of a step",
    "src/plainres/augmentation.py": "crop and mirror whole batches",
    "src/plainres/normalization.py": "means and deviations of pixels",
    "src/plainres/sampling.py": "order, crops, mirrors by number",
    "src/plainres/streams.py": "random words from plain counters",
    "src/plainres/statistics.py": "intervals of measured errors",
    "src/plainres/fields.py": "typed fields, overrides and JSON",
    "src/plainres/published.py": "errors that others have published",
    "src/plainres/errors.py": "mistakes, stops, and divergence",
}


def results_table() -> str:
    """The runs under docs/results, seeds together, beside what was published."""
    head = [
        "network",
        "recipe",
        "data",
        "seeds",
        "steps",
        "training error",
        "test error, last step",
        *published.SOURCES,
    ]
    rows = [head, ["---"] * len(head)]
    found = results.find([RESULTS])
    if found.left_out:
        raise SystemExit("; ".join(found.left_out))
    for setting in groups.settings(found.runs):
        recipe = f"{setting.recipe.name}" + (f" (scaled to {setting.recipe.scale:g})" * (setting.recipe.scale != 1))
        for group in (group for group in setting.groups if group.finished):
            errors, known = group.spread(), published.of(group.network)
            assert errors is not None
            cells = [group.network, recipe, setting.data, f"n = {errors.n}", f"{setting.recipe.steps:,}"]
            cells += [percent(group.spread("train_error")), percent(errors)]
            rows.append(
                [*cells, *(f"{known[source]:.2f} %" if source in known else "–" for source in published.SOURCES)]
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def percent(errors: statistics.Spread | None) -> str:
    """A mean error, with its standard deviation if there is one."""
    if errors is None:
        return "–"
    return f"{errors.mean:.2%}".replace("%", " %") + (f" ± {100 * errors.std:.2f}" if errors.std is not None else "")


def commands_block() -> str:
    """The recorded commands with what they printed."""
    blocks = [f"```console\n$ {entry['command']}\n{entry['output'].strip()}\n```" for entry in recorded()]
    return "\n\n".join(blocks)


def tree_block() -> str:
    """The files in reading order."""
    width = max(len(name) for name in TREE) + 2
    return "```\n" + "\n".join(f"{name:<{width}}{what}" for name, what in TREE.items()) + "\n```"


def help_pages() -> str:
    """docs/commands.md: the help of every command."""
    from plainres.cli import app

    names = [command.callback.__name__ for command in app.registered_commands if command.callback]
    pages = ["# Commands\n\nRendered from `--help` by `make docs`.\n"]
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100"}
    for name in ["", *names]:
        words = [sys.executable, "-m", "plainres", *([name] if name else []), "--help"]
        shown = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
        shown = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        pages.append(f"## plainres {name}".rstrip() + f"\n\n```\n{shown}\n```\n")
    return "\n".join(pages)


def recorded() -> list[dict[str, str]]:
    """The README's commands, each with what it printed and, if any, what it needs."""
    return list(tomllib.loads(RECORDED.read_text(encoding="utf-8"))["commands"])


def run_command(command: str, folder: Path) -> str:
    """What a command prints in a folder, data in a folder beside it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PLAINRES_DATA": str(folder / "data"), "COLUMNS": "100"}
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True, text=True, check=False, cwd=folder, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{command}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def masked(text: str) -> str:
    """An output without what differs from machine to machine: numbers, and the paths made of them."""
    text = re.sub(r"-[0-9a-f]{10}\b", "-HASH", text)
    text = re.sub(r"\d[\d,.]*( h \d+ min| min \d+ s)?", "0", text)
    return re.sub(r" +", " ", text.replace("0 min 0 s", "0"))


def record() -> None:
    """Run what needs no CIFAR-10, and keep what it prints."""
    entries = recorded()
    with tempfile.TemporaryDirectory() as folder:
        for entry in entries:
            if not entry.get("needs"):
                entry["output"] = run_command(entry["command"], Path(folder))
    lines = ["# What the README's commands printed; `needs` names what a reader must have to repeat one."]
    for entry in entries:
        needs = f'needs = "{entry["needs"]}"\n' if entry.get("needs") else ""
        output = entry["output"].strip()
        lines.append(f"[[commands]]\ncommand = '{entry['command']}'\n{needs}output = '''\n{output}\n'''")
    RECORDED.write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def speed_tables() -> str:
    """The measurements under docs/results, each with its command."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("speed-*.json"))]
    return "\n\n".join(map(speed_table, found)) or "Nothing is measured yet."


def speed_table(found: dict[str, Any]) -> str:
    """One result of `plainres bench --out`: what it was measured on and by which command, and a row a network."""
    machine, first = found["machine"], found["networks"][0]
    where = f"{machine['chip']}, {machine['device']}"
    where += f", {first['threads']} threads" if first["device"] == "cpu" else ""
    head = f"{where}, {first['precision']}, batch {first['batch']}, PyTorch {machine['torch']}: `{found['command']}`"
    columns = {
        "network": lambda row: row["network"],
        "engine": lambda row: row["engine"],
        "ms a step": lambda row: spread(row, "ms_per_step", 1),
        "images/s": lambda row: f"{row['images_per_second']:,.0f}",
        "times as fast as eager": lambda row: spread(row, "ratio", 2),
        "data path, ms": lambda row: f"{row['data_ms_per_step']:.1f}" + (" (in the step)" * row["data_in_step"]),
        "50,000 images, s": lambda row: f"{row['seconds_per_50000_images']:,.{1 if first['device'] == 'cpu' else 3}f}",
        "paper's recipe, h": lambda row: f"{row['paper_hours']:,.2f}",
        "peak memory, MiB": lambda row: f"{row['peak_memory_bytes'] / 2**20:,.0f} ({row['peak_memory_of']})",
        "matrix products, GFLOP/s": lambda row: f"{row['gemm_gflops']:,.0f}",
        "of them": lambda row: spread(row, "gemm_share", 2),
        "copy, GB/s": lambda row: f"{row['copy_gbs']:,.1f}",
        "of it": lambda row: spread(row, "copy_share", 2),
        "compiling, s": lambda row: f"{row['compile_seconds']:.1f}",
    }
    rows = [
        list(columns),
        ["---"] * len(columns),
        *([cell(row) for cell in columns.values()] for row in found["networks"]),
    ]
    return f"{head}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def spread(row: dict[str, Any], key: str, digits: int) -> str:
    """A median with its quartiles."""
    if row[key] is None:
        return "–"
    _, lower, upper, _ = row[f"{key}_spread"]
    return f"{row[key]:,.{digits}f} ({lower:,.{digits}f} to {upper:,.{digits}f})"


def rendered_readme() -> str:
    """README.md with its generated parts as they should be."""
    return rendered(README, {"results": results_table(), "commands": commands_block(), "tree": tree_block()})


def rendered(page: Path, blocks: dict[str, str]) -> str:
    """A page with its generated parts as they should be."""
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: rendered by docs/render.py -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise SystemExit(f"{page.name}: the marks of '{name}' are missing")
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n{block}\n{end}{rest.split(end, 1)[1]}"
    return text


def main() -> None:
    """Render, or check."""
    kinds = (".py", ".cpp", ".h")
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "src/plainres").rglob("*") if p.suffix in kinds}
    listed = sources - {"src/plainres/__init__.py", "src/plainres/__main__.py", "src/plainres/data/__init__.py"}
    if listed != set(TREE):
        raise SystemExit(f"docs/render.py: the tree lacks, or should not have: {sorted(listed ^ set(TREE))}")
    if "--record" in sys.argv:
        record()
    pages = {README: rendered_readme(), COMMANDS: help_pages(), SPEED: rendered(SPEED, {"speed": speed_tables()})}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        if stale:
            raise SystemExit(f"not current: {', '.join(p.name for p in stale)}; run make docs")
        print("docs are current")
        return
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
