"""What the cite page shows of the licences of the packages that SEAL-lite installs."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageMetadata, PackageNotFoundError, files, metadata, requires
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
APPROVED = "License :: OSI Approved"
NOT_STATED = {"", "UNKNOWN"}


def declared() -> dict[str, list[str]]:
    """Return the names of the declared dependencies: "" for all users, then those of each extra."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: [Requirement(line).name for line in requirements]
        for extra, requirements in groups.items()
    }


def licence(package: str) -> str:
    """Return the licence that an installed package states in its metadata, or in its own file."""
    fields = metadata(package)
    classifiers = "; ".join(_licence_classifiers(fields))
    stated = {name: fields[name] for name in ("License-Expression", "License") if name in fields}
    texts = [stated.get("License-Expression"), classifiers, stated.get("License")]
    texts += [path.read_text() for path in files(package) or [] if "LICENSE" in path.name]
    first_lines = [text.strip().partition("\n")[0] for text in texts if text]
    return next((line for line in first_lines if line not in NOT_STATED), "not stated")


def _licence_classifiers(fields: PackageMetadata) -> list[str]:
    """Return the names of the licences among a package's classifiers."""
    classifiers = fields.get_all("Classifier") or []
    return [
        line.rpartition(" :: ")[2]
        for line in classifiers
        if line.startswith("License ::") and line != APPROVED
    ]


def licence_rows() -> list[tuple[str, str, str]]:
    """Return (extra, package, licence) of every declared dependency that is installed."""
    rows = []
    for extra, packages in declared().items():
        for package in sorted(packages):
            try:
                rows.append((extra, package, licence(package)))
            except PackageNotFoundError:
                continue
    return rows


def installed_with(packages: list[str]) -> dict[str, str]:
    """Return the licence of each package and of all that it needs, by name, where installed."""
    licences: dict[str, str] = {}
    left = list(packages)
    while left:
        package = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if package in licences:
            continue
        try:
            licences[package] = licence(package)
        except PackageNotFoundError:  # of another platform, or of an extra
            continue
        needed = [Requirement(line) for line in requires(package) or []]
        left += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return licences
