"""The documentation: blocks run and print what they show, names and links lead somewhere, the site builds.

``python tests/test_docs.py docs/tutorial.md`` runs the blocks of one page in the current folder: Python in
one namespace, shell commands between. A block of language ``text`` right after one is what it prints. Blocks
marked ``run with stand-ins`` find those of docs_stand_ins.py.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "docs").is_dir():
    pytest.skip("the tests do not stand in a checkout", allow_module_level=True)

PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
MARK = re.compile(r"<!-- (not run|run with stand-ins|run by (tests/\S+\.py)): (.+?) -->\s*$")
STAND_INS = "run with stand-ins"


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, line, language and text, its mark, and what it is said to print."""

    page: str
    line: int
    language: str
    text: str
    mark: str | None  # "not run", "run with stand-ins", or the test that runs it
    reason: str | None
    shown: str | None = None

    @property
    def runs_here(self) -> bool:
        return self.language in ("python", "sh") and self.mark in (None, STAND_INS)


def blocks_of(path: Path) -> list[Block]:
    """All fenced blocks of a page."""
    lines = path.read_text(encoding="utf-8").splitlines()
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    assert len(fences) % 2 == 0, f"{path}: a block does not end"
    page = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    found: list[Block] = []
    end = 0
    for begin, after in zip(fences[::2], fences[1::2], strict=True):
        text = "".join(f"{line}\n" for line in lines[begin + 1 : after])
        between = [line for line in lines[end:begin] if line.strip()]
        mark = MARK.search(between[-1]) if between else None
        language = lines[begin].strip().strip("`")
        if language == "text" and not between and found and found[-1].language in ("python", "sh"):
            found[-1] = Block(**{**vars(found[-1]), "shown": text})
        found.append(
            Block(page, begin + 1, language, text, *((mark[2] or mark[1], mark[3]) if mark else (None, None)))
        )
        end = after + 1
    return found


def printed_by(block: Block, names: dict[str, Any], env: dict[str, str] | None = None) -> str:
    """Run a block; what it prints. An error of it, and an example that prints something else, is raised."""
    if block.language == "sh":
        command = ["bash", "-e", "-o", "pipefail", "-c", block.text]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
        return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())
    printed = io.StringIO()
    if ">>>" not in block.text:
        with contextlib.redirect_stdout(printed):
            # The empty lines give errors the line of the page.
            exec(compile("\n" * block.line + block.text, block.page, "exec"), names)
        return printed.getvalue()
    examples = doctest.DocTestParser().get_doctest(block.text, names, block.page, block.page, block.line)
    examples.globs = names  # the block's names are for those after it
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False)
    if runner.run(examples, out=printed.write, clear_globs=False).failed or not examples.examples:
        raise AssertionError(printed.getvalue() or "the block has no example")
    return ""


def run_page(path: Path) -> int:
    """Run the blocks of a page in order; how many were run."""
    names: dict[str, Any] = {"__name__": "example"}
    ran = [block for block in blocks_of(path) if block.runs_here]
    with contextlib.ExitStack() as stack:
        env = None
        if helped := "".join(block.text for block in ran if block.mark == STAND_INS):
            import docs_stand_ins

            env = stack.enter_context(docs_stand_ins.stand_ins(Path.cwd(), helped))
        for block in ran:
            printed = printed_by(block, names, env if block.mark == STAND_INS else None)
            if block.shown is not None and printed != block.shown:
                raise AssertionError(
                    f"{block.page}, line {block.line}, shows\n{block.shown}and prints\n{printed}"
                )
    return len(ran)


if __name__ == "__main__":
    print(run_page(Path(sys.argv[1]).resolve()))
    sys.exit()

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
LEFT_OUT = [block for block in BLOCKS if block.mark not in (None, STAND_INS)]


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def in_a_process(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a page in a folder and a process of its own, with this Python's commands."""
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {"PATH": scripts, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, __file__, str(page)],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_block_names_its_language() -> None:
    known = {"python", "sh", "console", "json", "text", "yaml"}
    assert [(one.page, one.line, one.language) for one in BLOCKS if one.language not in known] == []


def test_json_blocks_are_json() -> None:
    assert of("json")
    for block in of("json"):
        json.loads(block.text)


@pytest.mark.parametrize("page", sorted({one.page for one in BLOCKS if one.runs_here}))
def test_blocks_run_and_print_what_they_show(page: str, tmp_path: Path) -> None:
    done = in_a_process(ROOT / page, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    expected = [one for one in BLOCKS if one.page == page and one.runs_here]
    assert done.stdout.split()[-1:] == [str(len(expected))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```python\nx = 1\n```\n\n```python\nprint(x + 1)\n```\n```text\n3\n```\n", "prints\n2"),
        ("```python\n>>> 1 + 1\n3\n\n```\n", "Got:\n    2"),
        ("```python\n\n\nraise KeyError(7)\n```\n", "line 4"),
        ("```python\n>>> x = 1\n\n```\n\n```python\nassert x == 2\n```\n", "AssertionError"),
        ("```sh\nfalse\necho done\n```\n", "CalledProcessError"),
        ("```sh\nfalse | true\n```\n", "CalledProcessError"),
        ("```sh\necho 1\n```\n```text\n2\n```\n", "prints\n1"),
    ],
)
def test_block_that_is_wrong_is_found(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    done = in_a_process(tmp_path / "page.md", tmp_path)
    assert done.returncode == 1
    assert said in done.stderr


def test_blocks_share_names_and_folder(tmp_path: Path) -> None:
    write = '```python\n>>> x = "7"\n\n```\n```python\nopen("f", "w").write(x)\n```\n'
    text = f"{write}```sh\ncat f\n```\n```text\n7\n```\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    done = in_a_process(tmp_path / "page.md", tmp_path)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_blocks_that_are_not_run_here_say_why() -> None:
    print(f"{len(LEFT_OUT)} of {len(of('python', 'sh'))} blocks are not run here:")
    for one in LEFT_OUT:
        print(f"  {one.page}, line {one.line}: {one.mark}, {one.reason}")
    marks = [
        line
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*<!-- (not )?run", line)
    ]
    marked = [one for one in BLOCKS if one.mark is not None]
    assert len(marks) == len(marked), "a mark stands before no block"
    assert {one.language for one in marked} <= {"python", "sh"}
    for one in LEFT_OUT:
        if one.mark != "not run":
            assert Path(one.page).name in (ROOT / str(one.mark)).read_text(encoding="utf-8"), one


@pytest.mark.parametrize("block", LEFT_OUT, ids=lambda one: f"{one.page}:{one.line}")
def test_block_that_is_not_run_is_well_formed(block: Block) -> None:
    if block.language == "python":
        compile(block.text, block.page, "exec")
        return
    done = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def commands() -> list[tuple[str, int, str]]:
    """Commands of ours in blocks that are not run, with their page and line."""
    found = []
    for block in (*LEFT_OUT, *of("console")):
        joined = re.sub(r"\\\n\s*", " ", block.text)
        for line in joined.splitlines():
            line = line.removeprefix("$ ").split(" | ")[0].split(" #")[0].strip()
            if line.startswith("matchtir "):
                found.append((block.page, block.line, line))
            elif " -m matchtir " in line:
                found.append((block.page, block.line, "matchtir " + line.split(" -m matchtir ")[1]))
    return found


@pytest.mark.parametrize(("page", "line", "command"), commands())
def test_commands_that_are_not_run_have_options_that_exist(page: str, line: int, command: str) -> None:
    from matchtir.cli import parser

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


def prose_of(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_names_in_the_text_exist() -> None:
    named = {name for page in PAGES for name in re.findall(r"`(matchtir(?:\.\w+)+)", prose_of(page))}
    assert len(named) > 15
    wrong = []
    for name in sorted(named):
        try:
            pkgutil.resolve_name(name)
        except ModuleNotFoundError as error:
            # Adapters import what they adapt.
            if error.name is None or error.name.startswith("matchtir"):
                wrong.append(name)
        except AttributeError:
            wrong.append(name)
    assert wrong == []


def test_links_to_elsewhere_are_well_formed() -> None:
    links = [
        (page.name, link)
        for page in PAGES
        for link in re.findall(r"(?:\]\(|<|\bhref=\")(\w+://[^\s)>\"]*)", prose_of(page))
    ]
    assert links
    for page, link in links:
        parts = urlsplit(link)
        assert parts.scheme == "https", f"{page}: {link}"
        assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), f"{page}: {link}"
        assert not re.search(r"[.,;:]$", link), f"{page}: {link}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: links and anchors that lead nowhere are errors."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: matchtir[docs]")
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    return folder


def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    loading = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?((?:https?:)?//[^\s\">]+)"
        r"|<link[^>]*rel=\"?(?:stylesheet|preconnect|preload|icon)[^>]*href=\"?((?:https?:)?//[^\s\">]+)"
    )
    assert [(page.name, found) for page in pages for found in loading.findall(page.read_text())] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text()), style


def test_site_has_the_reference(site: Path) -> None:
    missing, asked = [], 0
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        made = set(re.findall(r'id="(matchtir[\w.]*)"', (site / "api" / f"{page.stem}.html").read_text()))
        for module, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", page.read_text(), re.MULTILINE):
            members = [f"{module}.{name}" for name in re.findall(r"- (\w+)$", options, re.MULTILINE)]
            missing += [name for name in members if name not in made]
            if not any(name.startswith(f"{module}.") for name in made):
                missing.append(module)
            asked += len(members)
    assert asked > 30
    assert missing == []


def test_site_shows_docstrings_and_pages_as_they_are_meant(site: Path) -> None:
    for page in sorted(site.rglob("*.html")):
        html = page.read_text(encoding="utf-8")
        assert html.count("<h1") == 1 or page.name == "404.html", f"{page}: a line of text became a title"
        assert not re.search(r":(?:func|class|meth|mod|data|attr|exc):", html), f"{page}: a role is left"
        assert "<p>====" not in html, f"{page}: a table in RST markup"
        assert not re.search(r"<blockquote>\s*<blockquote>", html), f"{page}: an example outside of Examples"
