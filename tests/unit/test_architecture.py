"""The package is one distribution of stages: imports go down, folders stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import grimp
import pytest

import seal_lite

PACKAGE = Path(seal_lite.__file__).parent
REPOSITORY = PACKAGE.parent
# A stage may import from itself and from the stages before it.
STAGES = (
    "terminal",
    "errors",
    "paths",
    "locks",
    "cache",
    "io",
    "schema",
    "config",
    "plots",
    "data",
    "encoders",
    "model",
    "training",
    "evaluation",
    "slides",
    "hub",
    "integrations",
    "tutorial",
    "studies",
    "cli",
)
# What the type of an argument of this name says, in every public function.
MEANINGS = {"data": "Path", "sections": "Section", "precision": "str"}


def stage_of(module: str) -> str:
    """'seal_lite.data.genes' -> 'data'; the package itself belongs to no stage."""
    return module.partition(".")[2].partition(".")[0]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("seal_lite", exclude_type_checking_imports=True)


def test_every_module_belongs_to_a_stage(graph):
    stages = {stage_of(module) for module in graph.modules} - {""}
    assert stages == set(STAGES)


def test_no_stage_imports_from_a_later_one(graph):
    rank = {stage: i for i, stage in enumerate(STAGES)}
    upward = [
        f"{importer} imports {imported}"
        for importer in sorted(graph.modules)
        for imported in sorted(graph.find_modules_directly_imported_by(importer))
        if rank.get(stage_of(imported), -1) > rank.get(stage_of(importer), -1)
    ]
    assert upward == []


def test_no_modules_import_one_another_in_a_circle(graph):
    circles = []
    for module in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            if graph.chain_exists(importer=imported, imported=module):
                circles.append(f"{module} -> {imported}")
    assert circles == []


def test_a_folder_holds_at_most_ten_modules():
    folders = [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]
    sizes = {folder.name: len(list(folder.glob("[!_]*.py"))) for folder in folders}
    crowded = {name: size for name, size in sizes.items() if size > 10}
    assert crowded == {}


def test_sibling_modules_define_no_function_of_one_name():
    homes = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                homes[file.parent, node.name].add(file.stem)
    twice = {name: sorted(files) for (_, name), files in homes.items() if len(files) > 1}
    assert twice == {}


def public_arguments(name):
    """Yield (module.function, annotation) of each public function's argument of this name.

    Commands are left out: the shell gives them text.
    """
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            is_public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if not is_public or file.parent.name == "cli":
                continue
            for argument in (*node.args.args, *node.args.kwonlyargs):
                if argument.arg == name:
                    yield f"{file.stem}.{node.name}", ast.unparse(argument.annotation)


@pytest.mark.parametrize(("name", "kind"), MEANINGS.items())
def test_an_argument_of_one_name_means_one_thing(name, kind):
    others = {
        function: annotation
        for function, annotation in public_arguments(name)
        if kind not in annotation
    }
    assert others == {}


def test_only_seal_lite_is_installed():
    import tomllib

    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["packages"]["find"]["include"] == ["seal_lite*"]
    assert (PACKAGE / "py.typed").exists()


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, seal_lite, seal_lite.cli; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "timm", "peft", "anndata", "scanpy", "sklearn", "matplotlib", "pandas"}
    assert heavy & set(run.stdout.split()) == set()


def test_formatted_code_is_never_exempted():
    """`ruff format` lays out everything; nothing opts out."""
    folders = ("seal_lite", "tests", "notebooks", "benchmarks", "book")
    marks = ("# fmt:" + " skip", "# fmt:" + " off")
    exempted = [
        f"{file.relative_to(REPOSITORY)}:{number}"
        for folder in folders
        for file in sorted((REPOSITORY / folder).rglob("*.py"))
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if line.rstrip().endswith(marks)
    ]
    assert exempted == []
