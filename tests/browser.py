"""A headless Chromium for tests of pages, and where the built book is."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

HTML = Path(__file__).parents[1] / "book/_build/html"
SIZES = {"desktop": (1300, 900), "phone": (420, 900)}


def built(page: str = "index.html") -> Path:
    """The page's file; the test is skipped where no book has been built."""
    if not (HTML / page).exists():
        pytest.skip(f"book/_build/html/{page} is absent: run `make book` first")
    return HTML / page


@contextmanager
def chromium():
    """Playwright's browser, by the Chromium of the machine; skipped where there is none.

    With SEAL_BROWSER=required, as in continuous integration, a missing one is a failure.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None and os.environ.get("SEAL_BROWSER") == "required":
        pytest.fail("no Chromium: apt install chromium")
    if program is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
