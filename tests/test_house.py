"""The house: which room may import which, and how large its parts may be."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import apr_jax

ROOT = Path(__file__).parent.parent
PROGRAMS = ("benchmarks", "experiments", "configs")
# From the ground up: what stands on a floor imports its own room and the floors below.
FLOORS = (
    ("files", "settings", "record", "interrupt", "sharding"),
    ("tokenizer", "model"),
    ("pretrained", "decode"),
    ("protocols",),
    ("methods",),
    ("train",),
    ("tasks",),
    ("evaluate",),
    ("rl",),
    ("sweep",),
    ("tools",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for place in ("apr_jax", *PROGRAMS)
    for path in sorted((ROOT / place).rglob("*.py"))
}
LINES, FUNCTION_LINES = 400, 60


def imports(module: str) -> Iterator[str]:
    """The modules of the project that a module names in its imports, wherever they stand in it."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            # What is imported is a module, or stands in one.
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in submodules]
        else:
            continue
        yield from (name for name in names if name in FILES)


def room(module: str) -> str:
    """The room of a module of the package; the ground floor is one."""
    name = module.split(".")[1]
    return "ground" if FLOOR_OF[name] == 0 else name


def test_no_import_leads_in_a_circle():
    graph = {module: set(imports(module)) - {module} for module in FILES}
    assert len(graph) > 100
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_no_import_leads_upwards():
    modules = [module for module in FILES if module.startswith("apr_jax.")]
    assert {module.split(".")[1] for module in modules} == set(FLOOR_OF)
    for module in modules:
        for name in imports(module):
            assert name.startswith("apr_jax."), f"{module} imports {name}: the package imports no program"
            below = FLOOR_OF[name.split(".")[1]] < FLOOR_OF[module.split(".")[1]]
            assert below or room(name) == room(module), f"{module} imports {name}, which does not stand below it"


def test_evaluation_knows_no_task_by_name():
    for module in FILES:
        if module.startswith("apr_jax.evaluate"):
            known = (name for name in imports(module) if name.startswith("apr_jax.tasks."))
            named = [name for name in known if name.count(".") > 2 or is_package(name)]
            assert not named, f"{module} imports {named}"


def is_package(module: str) -> bool:
    return FILES[module].name == "__init__.py"


def test_programs_import_no_program():
    """Experiments stand alone; benchmarks share what is theirs; configurations build on configurations."""
    for module in FILES:
        own = module.split(".")[0]
        if own in PROGRAMS:
            others = {name for name in imports(module) if name.split(".")[0] in PROGRAMS}
            allowed = set() if own == "experiments" else {name for name in others if name.split(".")[0] == own}
            assert others == allowed, f"{module} imports {others - allowed}"


@pytest.mark.parametrize("module", FILES)
def test_parts_are_small(module):
    text = FILES[module].read_text()
    assert len(text.splitlines()) <= LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < FUNCTION_LINES, f"{node.name} has too many lines"


def test_sources_in_other_languages_are_small_too():
    others = [path for suffix in ("cc", "h", "html", "css", "js") for path in (ROOT / "apr_jax").rglob(f"*.{suffix}")]
    assert len(others) > 5
    assert [path for path in others if len(path.read_text().splitlines()) > LINES] == []


def test_nothing_is_named_after_nothing():
    assert [path for path in (*FILES.values(), *(ROOT / "tests").rglob("*.py")) if path.stem in ("utils", "util")] == []


def names_of(module: str) -> set[str]:
    """What a module defines or imports at its top."""
    found = set()
    for node in ast.parse(FILES[module].read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def is_there(dotted: str) -> bool:
    """Whether a dotted name is that of a module, or of something in one."""
    parts = dotted.split(".")
    last = next((i for i in range(len(parts), 0, -1) if ".".join(parts[:i]) in FILES), 0)
    return last == len(parts) or bool(last) and parts[last] in names_of(".".join(parts[:last]))


TEXTS = [*FILES.values(), ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "Makefile"]
EARLIER = {"experiments.benchmark.workers"}  # where the workers of earlier commits are


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_prose_are_there(path):
    text = path.read_text()
    dotted = set(re.findall(rf"(?<![\w/.\"'])(?:apr_jax|{'|'.join(PROGRAMS)})(?:\.[A-Za-z_]\w*)+", text)) - EARLIER
    missing = [name for name in dotted if not is_there(name) and not name.endswith((".py", ".md"))]
    assert missing == []
    files = set(re.findall(rf"(?<![\w/.])(?:apr_jax|{'|'.join(PROGRAMS)}|tests|docs)/[\w/]+\.\w+", text))
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_public_names_are_there():
    listed = re.findall(r"^    (apr_jax[\w.]*): (.*)$", apr_jax.__doc__, re.M)
    assert len(listed) > 10
    for module, names in listed:
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


def test_importing_the_package_costs_nothing():
    heavy = "import sys, apr_jax; raise SystemExit(any(name in sys.modules for name in ('jax', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, check=False).returncode == 0
