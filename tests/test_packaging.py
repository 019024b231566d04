"""Packaging: what the sdist holds, the wheel built from it, what a failed build says, and the README."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

import matchtir
from matchtir import cli

ROOT = Path(__file__).parents[1]
SITE = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
BUILT = [".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "*.so"]
TOP = ["setup.py", "pyproject.toml", "CMakeLists.txt", "Makefile", "constraints.txt", "README.md", "LICENSE"]


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command without the environment that would tell it of this checkout or of another compiler."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CXX", "CMAKE_ARGS")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**kept, **env}, capture_output=True, text=True
    )


def require(*modules: str) -> None:
    """Skip where the build's own requirements are not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def pyproject() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what was built in it."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("the tests do not stand in a checkout")
    copy = tmp_path_factory.mktemp("checkout") / "matchtir"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*BUILT))
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, built without a compiler in reach."""
    require("setuptools")
    target = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(target)!r})"
    done = run(sys.executable, "-c", code, cwd=source, PATH=str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = target.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist alone."""
    require("pip", "setuptools", "Cython")
    target = tmp_path_factory.mktemp("wheel")
    flags = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")
    done = run(sys.executable, "-m", "pip", "wheel", *flags, "-w", target, sdist, cwd=target)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = target.glob("*.whl")
    return archive


def bare_venv(folder: Path) -> Path:
    """The interpreter of a new environment that sees this one's packages, but none of its programs."""
    done = run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", code, cwd=folder).stdout.strip())
    # Paths only: the .pth files inside, an editable matchtir's for one, are not followed.
    (site / "outer.pth").write_text("\n".join(SITE))
    return python


def test_sdist_holds_every_source_file(sdist: Path, source: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    expected = {
        *(f"csrc/{path.name}" for path in (source / "csrc").iterdir()),
        *(path.relative_to(source).as_posix() for path in (source / "docs").rglob("*.*")),
        *(f"tests/{path.name}" for path in (source / "tests").iterdir()),
        *(str(path.relative_to(source)) for path in (source / "matchtir").rglob("*") if path.is_file()),
        *TOP,
        ".ci/run",
    }
    assert expected - held == set()


def test_wheel_holds_the_package_and_nothing_else(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {str(path.relative_to(source)) for path in (source / "matchtir").rglob("*") if path.is_file()}
    assert held == {*package, "matchtir/_core" + sysconfig.get_config_var("EXT_SUFFIX")}


def test_metadata_of_sdist_and_wheel_is_valid(sdist: Path, wheel: Path) -> None:
    metadata = pytest.importorskip("packaging.metadata")
    with tarfile.open(sdist) as archive:
        (name,) = [name for name in archive.getnames() if re.fullmatch(r"[^/]+/PKG-INFO", name)]
        member = archive.extractfile(name)
        assert member is not None
        of_sdist = member.read()
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        of_wheel = archive.read(name)
    for found in (of_sdist, of_wheel):
        read = metadata.Metadata.from_email(found, validate=True)  # raises for every field that is not valid
        assert (read.name, str(read.version)) == ("matchtir", matchtir.__version__)
        assert read.description_content_type == "text/markdown"
        assert read.description.startswith("# matchtir")
        assert read.license_expression == "Apache-2.0"


def test_wheel_from_the_sdist_scores_the_sample(wheel: Path, tmp_path: Path) -> None:
    python = bare_venv(tmp_path / "venv")
    flags = ("--no-deps", "--no-index", "--quiet")
    done = run(sys.executable, "-m", "pip", "--python", python, "install", *flags, wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    code = "import matchtir._core; print(matchtir.__file__, matchtir._core.__file__, sep='\\n')"
    where = run(python, "-c", code, cwd=tmp_path).stdout.split()
    assert len(where) == 2
    assert all(path.startswith(str(tmp_path)) for path in where)
    done = run(python.with_name("matchtir"), "score", "--sample", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "matchtir: sample: recognised as jsonl\n")
    assert re.search(r"^ *rollouts +32 *$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("programs", "env", "message"),
    [
        ([], {}, r"error: building matchtir needs a C\+\+20 compiler \(.*\): .*apt-get install g\+\+.*"),
        (["c++"], {}, r"error: building matchtir needs CMake 3.18 or newer: `pip install cmake`.*"),
        (["cmake"], {"CXX": "no-such-c++ -g"}, r"error: CXX is 'no-such-c\+\+', and there is .*"),
    ],
    ids=["no compiler", "no CMake", "wrong CXX"],
)
@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_build_without_a_tool_says_so_in_one_line(
    source: Path, tmp_path: Path, hook: str, programs: list[str], env: dict[str, str], message: str
) -> None:
    require("setuptools")
    python = bare_venv(tmp_path / "venv")
    path = tmp_path / "bin"
    path.mkdir()
    for program in programs:
        (path / program).write_text("#!/bin/sh\nexit 1\n")
        (path / program).chmod(0o755)
    checkout = tmp_path / "checkout"
    shutil.copytree(source, checkout)
    code = f"from setuptools import build_meta; build_meta.{hook}({str(tmp_path)!r})"
    done = run(python, "-c", code, cwd=checkout, PATH=str(path), **env)
    assert done.returncode == 1
    assert re.fullmatch(message, done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stdout + done.stderr
    if hook == "build_wheel":
        assert len((done.stdout + done.stderr).splitlines()) <= 5


def test_avx2_kernels_leave_nothing_for_the_linker_to_share(source: Path, tmp_path: Path) -> None:
    # A weak symbol of an AVX2 object could be the copy that a processor without AVX2 then runs.
    require("Cython")
    scripts = sysconfig.get_path("scripts")
    cmake = shutil.which("cmake") or shutil.which("cmake", path=scripts)
    if (sys.platform, platform.machine()) != ("linux", "x86_64") or not cmake or not shutil.which("nm"):
        pytest.skip("needs x86-64 Linux with CMake and binutils")
    options = ("-S", source, "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}")
    configured = run(cmake, *options, cwd=tmp_path)
    assert configured.returncode == 0, configured.stderr
    built = run(cmake, "--build", tmp_path, "--target", "kernels_avx2", cwd=tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    objects = sorted(tmp_path.rglob("kernels_avx2.dir/**/*.o"))
    assert [path.name for path in objects] == ["hungarian_kernel.cpp.o", "sinkhorn_kernel.cpp.o"]
    for path in objects:
        # Explicit instantiations are weak by the language, but their names belong to one instruction set.
        listed = run("nm", "-C", "--defined-only", "--extern-only", path, cwd=tmp_path).stdout.splitlines()
        assert listed
        assert [line for line in listed if "matchtir::avx2::" not in line] == []


@pytest.mark.parametrize(
    ("name", "versions"),
    [("constraints.txt", ("3.10", "3.11", "3.12", "3.13")), ("constraints-verl.txt", ("3.11",))],
)
def test_constraints_pin_every_direct_requirement_within_its_range(
    name: str, versions: tuple[str, ...]
) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    pins: dict[str, list[Any]] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            pin = requirements.Requirement(line)
            pins.setdefault(pin.name.lower().replace("_", "-"), []).append(pin)
    meta = pyproject()
    wanted = [*meta["build-system"]["requires"], *meta["project"]["dependencies"]]
    extras = meta["project"]["optional-dependencies"]
    chosen_extras = {"verl", "torch", "tools", "parquet"} if "verl" in name else set(extras) - {"verl"}
    wanted += [line for extra in chosen_extras for line in extras[extra]]
    assert len(wanted) > 10
    for line in wanted:
        want = requirements.Requirement(line)
        if want.name == "matchtir":
            continue
        for version in versions:
            chosen = [
                pin
                for pin in pins.get(want.name.lower().replace("_", "-"), [])
                if pin.marker is None or pin.marker.evaluate({"python_version": version})
            ]
            assert len(chosen) == 1, f"{want.name} on Python {version}"
            assert re.fullmatch(r"==[\w.]+", str(chosen[0].specifier))
            assert str(chosen[0].specifier)[2:] in want.specifier


def test_make_alone_lists_its_targets() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    done = run("make", "--no-print-directory", cwd=ROOT, MAKEFLAGS="", MAKELEVEL="0")
    assert done.returncode == 0, done.stderr
    listed = [line.split()[:2] for line in done.stdout.splitlines()]
    assert sorted(name for _, name in listed) == sorted(set(targets) - {"help"})
    assert {word for word, _ in listed} == {"make"}


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("make score", ["score", "--sample"]),
        ("matchtir explain --sample --row 2", ["explain", "--sample", "--row", "2"]),
    ],
)
def test_readme_shows_what_the_command_prints(
    command: str, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = [block.partition(f"$ {command}\n")[2] for block in blocks("console") if f"$ {command}\n" in block]
    assert cli.main(arguments) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [block.splitlines() for block in shown] == [printed]


def test_readme_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []
