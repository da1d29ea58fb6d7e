"""The layers of the code, read from its source: imports go down only, and the pure part stays pure.

An import inside a function counts like any other. `plainres/__init__.py` alone may reach everywhere, lazily.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "plainres"

# Rows from the bottom up; a module may import modules of the rows below its own.
ROWS = [
    ("0 facts", "errors published"),
    ("1 pure", "fields schedule statistics streams normalization"),
    ("1 pure", "spec sampling augmentation"),
    ("1 pure", "network recipe"),
    ("1 pure", "recipes summary"),
    ("2 world", "files"),
    ("2 world", "data data.* weights checkpoint runlog machine"),
    (
        "3 engine",
        "training step cohort evaluation responses plan job outcome clock interrupt run "
        "kernels trunk native engines compiled static graph recompute memory distributed synchronized shared",
    ),
    ("4 products", "results sweep_state sweep_wanted bench_ceilings bench_figures bench_files bench_power"),
    ("4 products", "groups sweep_local sweep_ray bench_profile bench_sides"),
    ("4 products", "sweep sweep_time compare report_findings report_style"),
    ("4 products", "report_tables report_figure6"),
    ("4 products", "report_figures report_curves report_files report_details"),
    ("4 products", "report_page report_responses bench zoo export"),
    ("4 products", "report reproduce"),
    ("5 shell", "cli cli_* __main__"),
]
PEERS = {3, 5}  # layers whose modules may import one another; the modules of data may, too
TENSOR_CODE = {"network", "summary", "normalization", "augmentation"}  # of layers 0 and 1: those on torch
LONGEST_FUNCTION, LONGEST_FILE = 60, 300

IMPURE_MODULES = """
    os io sys time datetime random secrets tempfile shutil subprocess socket threading logging
    multiprocessing urllib warnings atexit signal
""".split()  # noqa: SIM905
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__"}
IMPURE_NAMES = [  # as written; a star is anything
    "pathlib.Path",
    "torch.manual_seed",
    "torch.seed",
    "torch.default_generator",
    "torch.rand*",
    "torch.normal",
    "torch.bernoulli",
    "torch.multinomial",
    "torch.cuda*",
    "torch.mps*",
    "torch.backends*",
    "torch.set_*",
    "torch.load",
    "torch.save",
    "torch.nn.init*",
    "nn.init*",
    "np.load*",
    "np.save*",
    "np.fromfile",
    "np.memmap",
    "np.random.[a-z]*",  # its classes are generators of one's own, its functions the global one
]


def name_of(path: Path) -> str:
    """The module of a file without the package's name: `data.store`; the package itself is ''."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in FILES.items()}
MODULES = [name for name in FILES if name]


def find_row(module: str) -> int:
    """The row of a module, or -1."""
    matches = (any(fnmatchcase(module, pattern) for pattern in names.split()) for _, names in ROWS)
    return next((number for number, found in enumerate(matches) if found), -1)


def row(module: str) -> int:
    """The row of a module, or a failure that says where to add it."""
    if find_row(module) < 0:
        pytest.fail(f"plainres.{module} has no layer: give it one in ROWS of tests/test_layers.py")
    return find_row(module)


def layer(module: str) -> int:
    return int(ROWS[row(module)][0][0])


def are_peers(one: str, other: str) -> bool:
    in_data = one.split(".")[0] == other.split(".")[0] == "data"
    return in_data or (layer(one) == layer(other) and layer(one) in PEERS)


def imported(node: ast.AST, module: str) -> Iterator[str]:
    """The full dotted names that one node imports, relative ones resolved."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        inside = ["plainres", *module.split(".")]
        up = len(inside) - node.level + (FILES[module].name == "__init__.py")
        base = ".".join([*(inside[:up] if node.level else []), *filter(None, [node.module])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def outside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo.extend(ast.iter_child_nodes(node))


def own_imports(module: str, nodes: Iterable[ast.AST]) -> Iterator[tuple[str, int]]:
    """The modules of plainres that some nodes of a module import, each with its line."""
    for node in nodes:
        for full in imported(node, module):
            if full.split(".")[0] != "plainres" or full == "plainres.__version__":
                continue
            name = full.partition(".")[2]
            while name not in FILES:  # a name inside a module: up to the module
                name = name.rpartition(".")[0]
            yield name, getattr(node, "lineno", 0)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    own = row(module)
    for other, line in own_imports(module, ast.walk(TREES[module])):
        where = f"{FILES[module].name}:{line}"
        if not other:
            # The package itself re-exports everything: through it any layer could be reached.
            assert layer(module) == 5, f"{where}: import from the module that defines it, not from plainres"
        elif other != module and not are_peers(module, other):
            assert row(other) < own, f"{where}: {ROWS[own][0]} {module} may not import {ROWS[row(other)][0]} {other}"


def test_no_circle_when_modules_are_imported() -> None:
    below = {
        module: {other for other, _ in own_imports(module, outside_functions(TREES[module]))} - {module, ""}
        for module in MODULES
    }
    while leaves := {module for module, others in below.items() if not others & below.keys()}:
        below = {module: others for module, others in below.items() if module not in leaves}
    assert not below, f"a circle of imports in or below: {', '.join(sorted(below))}"


PURE = [module for module in MODULES if find_row(module) >= 0 and layer(module) <= 1]


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_touch_no_file_clock_device_or_global_generator(module: str) -> None:
    for node in ast.walk(TREES[module]):
        where = f"{FILES[module].name}:{getattr(node, 'lineno', 0)}"
        for full in imported(node, module):
            assert full.split(".")[0] not in IMPURE_MODULES, f"{where}: imports {full}"
            assert not any(fnmatchcase(full, name) for name in IMPURE_NAMES), f"{where}: imports {full}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in IMPURE_CALLS, f"{where}: calls {node.func.id}"
        if isinstance(node, ast.Attribute):
            written = ast.unparse(node)
            assert not any(fnmatchcase(written, name) for name in IMPURE_NAMES), f"{where}: uses {written}"


@pytest.mark.parametrize("module", [module for module in PURE if module not in TENSOR_CODE])
def test_values_do_not_wait_for_torch(module: str) -> None:
    for node in outside_functions(TREES[module]):
        for full in imported(node, module):
            assert full.split(".")[0] != "torch", f"{FILES[module].name} imports torch when it is imported"
            assert full.split(".")[:2] not in [["plainres", m] for m in TENSOR_CODE], f"{full} imports torch"


def test_the_package_imports_only_the_standard_library() -> None:
    for node in outside_functions(TREES[""]):
        for full in imported(node, ""):
            assert full.split(".")[0] in sys.stdlib_module_names, f"__init__.py imports {full}"


def test_import_plainres_does_not_import_torch() -> None:
    code = "import sys, plainres; sys.exit(', '.join({'torch', 'numpy'} & sys.modules.keys()) or 0)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("module", FILES)
def test_files_and_functions_are_short(module: str) -> None:
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{FILES[module].name} has {lines} lines"
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{FILES[module].name}: {node.name} has {lines} lines"


def test_every_row_has_one_place() -> None:
    patterns = [pattern for _, names in ROWS for pattern in names.split()]
    assert len(patterns) == len(set(patterns))
    assert [int(name[0]) for name, _ in ROWS] == sorted(int(name[0]) for name, _ in ROWS)
