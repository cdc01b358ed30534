"""What the tests of the book share: the modules of book/."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture(scope="session")
def book():
    """Import a module of book/ as the scripts and Sphinx there do."""
    return importlib.import_module
