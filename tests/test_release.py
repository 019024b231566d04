"""What a release is made of: one version, its change log, citation, and the workflow that builds wheels."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import matchtir

ROOT = Path(__file__).parents[1]
if not (ROOT / "setup.py").exists():
    pytest.skip("the tests do not stand in a checkout", allow_module_level=True)


def pyproject() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return found


def yaml_of(path: str) -> dict[Any, Any]:
    found: dict[Any, Any] = pytest.importorskip("yaml").safe_load((ROOT / path).read_text())
    return found


def test_version_has_one_place_and_is_named_in_change_log_and_citation() -> None:
    settings = pyproject()
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "matchtir.__version__"}
    newest = re.findall(
        r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert newest[0][0] == matchtir.__version__
    assert str(yaml_of("CITATION.cff")["version"]) == matchtir.__version__


def test_citation_has_what_its_format_demands() -> None:
    citation = yaml_of("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == pyproject()["project"]["license"]
    for entry in (citation, *citation["references"]):
        assert entry["title"]
        assert all("name" in author or "family-names" in author for author in entry["authors"])
    assert all("type" in reference for reference in citation["references"])


def test_wheels_are_tested_by_files_that_exist() -> None:
    settings = pyproject()["tool"]["cibuildwheel"]
    named = re.findall(r"tests/\w+\.py", settings["test-command"])
    assert len(named) >= 10
    assert [name for name in (*named, *settings["test-sources"]) if not (ROOT / name).exists()] == []


def test_wheels_are_built_for_the_pythons_that_the_package_names() -> None:
    settings = pyproject()
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(settings["project"]["classifiers"]))
    built = [
        f"3.{minor}"
        for minor in re.findall(r"cp3(\d+)-", "\n".join(settings["tool"]["cibuildwheel"]["build"]))
    ]
    assert built == classified


def test_workflow_builds_for_both_machines_of_linux_and_for_macos_and_publishes_tags_alone() -> None:
    jobs = yaml_of(".github/workflows/wheels.yml")["jobs"]
    systems = jobs["wheels"]["strategy"]["matrix"]["os"]
    for wanted in ("ubuntu-24.04", "ubuntu-24.04-arm", "macos-15", "macos-15-intel"):
        assert wanted in systems
    assert jobs["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert jobs["check"]["needs"] == ["wheels", "sdist"]
    assert jobs["publish"]["needs"] == ["check", "suite"]


def test_workflow_uses_released_actions_and_takes_away_what_exists() -> None:
    jobs = yaml_of(".github/workflows/wheels.yml")["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(re.search(r"@(v\d+|[0-9a-f]{40}$)", step["uses"]) for step in steps if "uses" in step)
    # What may publish is named by its commit, which nobody can move.
    allowed = [job for job in jobs.values() if "write" in job.get("permissions", {}).values()]
    assert allowed == [jobs["publish"]]
    assert all(re.search(r"@[0-9a-f]{40}$", step["uses"]) for step in jobs["publish"]["steps"])
    (taken,) = re.findall(r"rm -r (.+)", "\n".join(step.get("run", "") for step in steps))
    assert [name for name in taken.split() if not (ROOT / name.removeprefix("../suite/")).exists()] == []


def test_licence_is_apache_2_whole() -> None:
    # Of https://www.apache.org/licenses/LICENSE-2.0.txt.
    whole = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == whole


def test_setuptools_reads_the_version_without_importing_the_package() -> None:
    # Not imported here: that would fail where something has imported the standard library's distutils.
    if int(metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("needs setuptools 77")
    code = (
        "import sys; from setuptools.config.pyprojecttoml import read_configuration as read;"
        "print(read('pyproject.toml')['project']['version']); assert 'matchtir' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, matchtir.__version__), done.stderr
