"""A browser for tests of pages: Chromium, as Debian installs it."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-proxy-server"]


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A running browser. Without one, the test is skipped."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser; pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
