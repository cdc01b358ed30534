"""Print, as rules for make, which modules of the package each chapter imports.

    python book/dependencies.py > book/_build/notebooks.mk

A chapter is executed again only where a module that it imports, directly or through others, or a
data file of the package has changed. One that asks for a shared run waits for it.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
SHARED_RUNS = "seal_lite.tutorial.runs"
SUFFIXES = (".toml", ".tsv", ".md", ".html")  # of tables and templates that modules read
DATA_FILES = sorted(f for f in (ROOT / "seal_lite").rglob("*") if f.suffix in SUFFIXES)


def imported_modules(script: Path, graph: grimp.ImportGraph) -> set[str]:
    """Return the modules of the package that a script imports, directly or through others."""
    direct = direct_modules(script, graph)
    modules = set(direct)
    for module in direct:
        modules |= graph.find_upstream_modules(module)
    return modules


def direct_modules(script: Path, graph: grimp.ImportGraph) -> set[str]:
    """Return the modules of the package that define what a script imports."""
    direct: set[str] = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        module = node.module
        if module.startswith("seal_lite"):
            direct.update(home_of(module, alias.name, graph) for alias in node.names)
    return direct & graph.modules


def home_of(module: str, name: str, graph: grimp.ImportGraph) -> str:
    """Return the module that defines what `from module import name` gives."""
    if f"{module}.{name}" in graph.modules:
        return f"{module}.{name}"
    if not graph.find_children(module):
        return module
    value = getattr(importlib.import_module(module), name)  # a package exports it
    return getattr(value, "__module__", module)


def file_of(module: str) -> str:
    """Return a module's file, relative to the repository."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return str(file.relative_to(ROOT))


def main() -> None:
    """Print a rule for each chapter, and one for the runs that chapters share."""
    graph = grimp.build_graph("seal_lite")
    data_files = [str(file.relative_to(ROOT)) for file in DATA_FILES]
    for script in sorted((ROOT / "notebooks").glob("*.py")):
        files = sorted(file_of(module) for module in imported_modules(script, graph))
        chapter = f"book/notebooks/{script.stem}.ipynb"
        print(f"{chapter}:", *files, *data_files)
        if SHARED_RUNS in direct_modules(script, graph):
            print(f"{chapter}: | runs/chapters/.made")
    shared = {SHARED_RUNS, *graph.find_upstream_modules(SHARED_RUNS)}
    print("runs/chapters/.made:", *sorted(file_of(module) for module in shared), *data_files)


if __name__ == "__main__":
    main()
