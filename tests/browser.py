"""A headless Chromium for tests of pages; a test is skipped where one of its parts is missing."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1280,1400"),
]


def require_browser() -> None:
    """Skip the test, with a reason, if there is no Chromium, no driver of it, or no selenium."""
    pytest.importorskip("selenium", reason="tests in a browser need the package selenium")
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"tests in a browser need {program} (Debian: chromium and chromium-driver)")


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """A browser with a new profile."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def requested_addresses(driver: Any) -> set[str]:
    """Each address of a host that the pages have asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {address for address in asked if address.startswith(("http:", "https:", "ws:", "wss:"))}
