"""The documentation: every code block runs, and the site builds without a warning."""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from matchtir.cli import parser

ROOT = Path(__file__).parents[1]
if not (ROOT / "docs").is_dir():
    pytest.skip("the tests do not stand in a checkout", allow_module_level=True)

PAGES = sorted((ROOT / "docs").rglob("*.md"))
MARK = re.compile(r"<!-- not run: (.+?) -->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, line, language and text, and why it is not run, if it is not."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None


def blocks_of(path: Path) -> list[Block]:
    """All fenced blocks of a page."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    begin: int | None = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if begin is None:
            begin = number
            continue
        before = [one for one in lines[max(0, begin - 2) : begin] if one.strip()]
        mark = MARK.search(before[-1]) if before else None
        language = lines[begin].strip().strip("`")
        text = "\n".join(lines[begin + 1 : number]) + "\n"
        page = path.relative_to(ROOT).as_posix()
        found.append(Block(page, begin + 1, language, text, mark[1] if mark else None))
        begin = None
    assert begin is None, f"{path}: a block does not end"
    return found


BLOCKS = [block for page in (*PAGES, ROOT / "README.md") for block in blocks_of(page)]


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def test_every_block_names_its_language() -> None:
    known = {"python", "sh", "console", "json", "text", "yaml"}
    assert [(one.page, one.line, one.language) for one in BLOCKS if one.language not in known] == []


@pytest.mark.parametrize("page", sorted({one.page for one in of("python") if ">>>" in one.text}))
def test_examples_print_what_they_show(page: str) -> None:
    text = "\n".join(one.text for one in of("python") if one.page == page and one.reason is None)
    examples = doctest.DocTestParser().get_doctest(text, {}, page, page, 0)
    assert len(examples.examples) > 2
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples, out=said.append)
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize(
    "block", [one for one in of("sh") if one.reason is None], ids=lambda one: f"{one.page}:{one.line}"
)
def test_commands_run(block: Block, tmp_path: Path) -> None:
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", block.text],
        cwd=tmp_path,
        env={**os.environ, "PATH": scripts, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


ELSEWHERE = {
    "README.md": "tests/test_packaging.py",
    "docs/loss.md": "tests/test_packaging.py",
    "docs/sandbox.md": "tests/test_packaging.py",
    "docs/integrations.md": "tests/test_trl.py, tests/verl",
}
"""Pages whose plain blocks other tests run, with what they need."""


@pytest.mark.parametrize(
    "page",
    sorted(
        {one.page for one in of("python") if ">>>" not in one.text and one.reason is None} - set(ELSEWHERE)
    ),
)
def test_plain_examples_run(page: str, tmp_path: Path) -> None:
    code = "\n".join(
        one.text for one in of("python") if one.page == page and ">>>" not in one.text and not one.reason
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def commands() -> list[tuple[str, int, str]]:
    """Commands of ours in blocks that are not run, with their page and line."""
    found = []
    for block in (*of("sh"), *of("console")):
        if block.language == "sh" and block.reason is None:
            continue
        joined = re.sub(r"\\\n\s*", " ", block.text)
        for line in joined.splitlines():
            line = line.removeprefix("$ ").split(" | ")[0].split(" #")[0].strip()
            if line.startswith("matchtir "):
                found.append((block.page, block.line, line))
    return found


@pytest.mark.parametrize(("page", "line", "command"), commands())
def test_commands_that_are_not_run_have_options_that_exist(page: str, line: int, command: str) -> None:
    words = shlex.split(command)[1:]
    if words[0] == "train":
        pytest.importorskip("jsonargparse")
        from matchtir.train.settings import known_settings

        known = {*known_settings(), "config", "fresh", "list-methods", "help"}
        given = [word[2:].split("=")[0] for word in words[1:] if word.startswith("--")]
        assert [name for name in given if name not in known] == [], f"{page}, line {line}"
        return
    if words[:2] == ["eval", "bfcl"]:
        words = [*words, "--help"]
    code: object = 0
    try:
        parser().parse_args(words)
    except SystemExit as stop:
        code = stop.code
    assert not code, f"{page}, line {line}: {command}"


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    for name in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: matchtir[docs]")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    index = (tmp_path / "site/index.html").read_text()
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"', index)
    assert loaded == []  # nothing comes from elsewhere
    reference = (tmp_path / "site/api/credit.html").read_text()
    for name in ("matchtir.credit.assign_credit", "matchtir.matching.match", "matchtir.types.Trajectory"):
        assert f'id="{name}"' in reference
