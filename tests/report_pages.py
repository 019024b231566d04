"""Pages of `matchtir report` in headless Chromium, and what the browser says about them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from matchtir.cli import main

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str:
    """The browser's executable, or the one that ``MATCHTIR_CHROMIUM`` names; skips without."""
    found = os.environ.get("MATCHTIR_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium; install it (Debian: apt install chromium) or set MATCHTIR_CHROMIUM")
    return found


@contextmanager
def launched() -> Iterator[Any]:
    """A headless browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    executable = chromium()
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


class Watched:
    """A page, and everything it asked of the network or complained about."""

    def __init__(self, browser: Any, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("dialog", self._dialog)

    def _dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, path: Path, hash: str = "") -> Any:
        """Open a file from disk and wait until its list or its rollout is there."""
        self.page.goto(f"{path.as_uri()}{hash}")
        self.page.wait_for_selector("#list tbody tr[data-place], #conversation")
        return self.page

    def rollout(self, b: int) -> Any:
        """Go to rollout b of the page and wait until it is shown."""
        self.page.evaluate("b => { location.hash = linkTo({ r: keyOf(b), turn: '' }) }", b)
        self.until(f"view.b === {b} && view.detail !== null")
        return self.page

    def until(self, expression: str) -> None:
        """Wait until an expression is true. The driver's own wait needs `eval`, which the page forbids."""
        end = time.monotonic() + 30
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"not so within 30 s: {expression}"
            time.sleep(0.02)


def write_report(folder: Path, *arguments: str) -> Path:
    """The page that the command writes."""
    path = folder / "report.html"
    assert main(["report", *arguments, "-o", str(path)]) == 0
    return path


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scores(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What `matchtir score` writes."""
    path = folder / "scores.jsonl"
    assert main(["score", *arguments, "-o", str(path)]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]
