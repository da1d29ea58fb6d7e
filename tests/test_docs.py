import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_examples_run(example: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_commands_print_what_the_readme_shows(render: ModuleType, tmp_path: Path) -> None:
    for entry in render.recorded():
        assert entry["output"].strip(), f"{entry['command']}: nothing recorded"
        if not entry.get("needs"):
            printed = render.run_command(entry["command"], tmp_path)
            assert render.masked(printed.strip()) == render.masked(entry["output"].strip())


@pytest.mark.parametrize("line", re.findall(r"^\$ plainres (.+)$", README, re.MULTILINE))
def test_the_commands_have_the_options_shown(line: str) -> None:
    command, *words = shlex.split(line.partition("|")[0], comments=True)
    page = COMMANDS.split(f"## plainres {command}\n")[1].split("\n## ")[0]
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"^ +(-\w, )?{option}\b", page, re.MULTILINE), option


def test_the_mask_hides_numbers_alone(render: ModuleType) -> None:
    shown = "step 16  test error 90.00%, 1 min 5 s of training at 72 images/s in runs/plain20-paper-s0-7a05c66778"
    assert render.masked(shown) == "step 0 test error 0%, 0 of training at 0 images/s in runs/plain0-paper-s0-HASH"
    assert render.masked("test error 1%") != render.masked("training error 1%")


def test_the_readme_is_current(render: ModuleType) -> None:
    assert render.rendered_readme() == README


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
