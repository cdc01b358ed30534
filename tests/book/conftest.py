"""What the tests of the book share: one headless Chromium, and the modules of book/."""

from __future__ import annotations

import importlib

import pytest
from browser import chromium


@pytest.fixture(scope="session")
def browser():
    """One headless Chromium for all tests that look at pages."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def book():
    """Import a module of book/ as the scripts and Sphinx there do."""
    return importlib.import_module
