"""pyproject.toml, requirements.lock and environment.yml say the same thing.

Each check is a function of parsed data that returns the disagreements it finds, so that the tests
can also hand it data that disagrees and see it fail.
"""

import ast
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CONDA_NAMES = {"pytorch": "torch"}  # conda-forge name -> package index name, where they differ
IMPORT_NAMES = {
    "PIL": "pillow",
    "openslide": "openslide-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}  # module -> distribution
# Tools that call an adapter of seal_lite/integrations, so that they are there when it runs.
CALLERS = ("lazyslide_models", "slide2vec", "trident")


def declared() -> dict[str, SpecifierSet]:
    """Name -> range of every dependency in pyproject.toml, all extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return parse([*project["dependencies"], *(line for extra in extras for line in extra)])


def parse(lines: list[str]) -> dict[str, SpecifierSet]:
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r.specifier for r in requirements}


def locked(text: str) -> dict[str, list[str]]:
    """Name -> pinned versions; several where the pin depends on the platform or the Python."""
    pins = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "==" and not requirement.url, f"not a pin: {line}"
            pins.setdefault(canonicalize_name(requirement.name), []).append(pin.version)
    return pins


def environment(text: str) -> dict[str, SpecifierSet]:
    """Name on the package index -> range, conda and pip sections together."""
    *conda, last = yaml.safe_load(text)["dependencies"]
    pip = [line for line in last["pip"] if not line.startswith("-")]
    found = parse([line for line in conda if line != "pip"] + pip)
    return {CONDA_NAMES.get(name, name): specifier for name, specifier in found.items()}


def lock_problems(ranges, pins) -> list[str]:
    problems = [f"{name} is not in the lock" for name in ranges if name not in pins]
    for name in ranges.keys() & pins.keys():
        problems += [
            f"the lock pins {name} {version}, outside {ranges[name]}"
            for version in pins[name]
            if version not in ranges[name]
        ]
    return sorted(problems)


def environment_problems(ranges, conda) -> list[str]:
    problems = [f"{name} is in one of the two only" for name in ranges.keys() ^ conda.keys()]
    problems += [
        f"{name} is {ranges[name]} in pyproject.toml and {conda[name]} in environment.yml"
        for name in ranges.keys() & conda.keys()
        if ranges[name] != conda[name]
    ]
    return sorted(problems)


def import_problems(source: str, ranges, inside=()) -> list[str]:
    """Third-party modules that a source file imports and nothing declares.

    Inside a function, or for type checkers alone, it may import what is declared in `inside` too.
    """
    tree = ast.parse(source)
    lazy = set()
    for node in ast.walk(tree):
        type_checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if isinstance(node, ast.FunctionDef) or type_checking:
            lazy.update(ast.walk(node))
    undeclared = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module]
        else:
            continue
        allowed = {*ranges, *inside} if node in lazy else {*ranges}
        roots = {module.partition(".")[0] for module in modules}
        for root in roots - set(sys.stdlib_module_names) - {"seal_lite"}:
            if canonicalize_name(IMPORT_NAMES.get(root, root)) not in allowed:
                undeclared.add(root)
    return sorted(f"{root} is imported but not declared" for root in undeclared)


def core() -> dict[str, SpecifierSet]:
    """What a plain `pip install seal_lite` brings, and the optional weights."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return parse(project["dependencies"] + project["optional-dependencies"]["offline"])


def extras() -> dict[str, SpecifierSet]:
    """What `seal_lite[data,slides,dinov2,encoders,openslide]` brings beside."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = ("data", "slides", "dinov2", "encoders", "openslide")
    return parse([p for name in names for p in project["optional-dependencies"][name]])


def test_the_lock_pins_every_dependency_within_its_range():
    assert lock_problems(declared(), locked((ROOT / "requirements.lock").read_text())) == []


def test_the_lock_names_no_index():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "--" not in text


def test_the_environment_has_every_dependency_with_the_same_range():
    conda = environment((ROOT / "environment.yml").read_text())
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert environment_problems(declared() | {"python": SpecifierSet(python)}, conda) == []


def test_the_package_imports_only_what_it_declares():
    problems = {}
    for path in sorted((ROOT / "seal_lite").rglob("*.py")):
        is_adapter = path.parent.name == "integrations"
        callers = parse(list(CALLERS)) if is_adapter else {}
        available = core() | callers
        problems[path.name] = import_problems(path.read_text(), available, extras())
    assert {name: lines for name, lines in problems.items() if lines} == {}


def test_the_checks_can_fail():
    ranges = parse(["torch>=2.4", "scikit-learn>=1.4"])
    assert lock_problems(ranges, locked("torch==2.3.0\n")) == [
        "scikit-learn is not in the lock",
        "the lock pins torch 2.3.0, outside >=2.4",
    ]
    assert lock_problems(ranges, locked("torch==2.5\nscikit_learn==1.4\n")) == []
    with pytest.raises(AssertionError, match="not a pin"):
        locked("torch>=2.4\n")

    lines = ["python>=3.11", "pytorch>=2.5", {"pip": ["extra>=1", "--editable ."]}]
    conda = environment(yaml.safe_dump({"dependencies": lines}))
    assert environment_problems(ranges, conda) == [
        "extra is in one of the two only",
        "python is in one of the two only",
        "scikit-learn is in one of the two only",
        "torch is >=2.4 in pyproject.toml and >=2.5 in environment.yml",
    ]

    source = "import os, requests\nfrom sklearn.linear_model import Ridge\nfrom . import errors\n"
    assert import_problems(source, ranges) == ["requests is imported but not declared"]
    late = "def f():\n    import requests"
    assert import_problems(late, ranges, parse(["requests"])) == []
    assert import_problems(source, ranges, parse(["requests"])) != []
