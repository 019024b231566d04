"""Every example in the docstrings and in the documents runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import matchtir

ROOT = Path(__file__).parents[1]
MODULES = [
    "matchtir",
    *sorted(
        module.name
        for module in pkgutil.walk_packages(matchtir.__path__, "matchtir.")
        if not module.name.endswith(("__main__", "._core"))
    ),
]
DOCUMENTS = [
    file
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if ">>> " in file.read_text("utf-8")
]


NEEDED = {
    "matchtir.integrations.trl": "trl",
    "matchtir.integrations.verl": "omegaconf",
    "matchtir.integrations.verl_agent_loop": "omegaconf",
    "matchtir.integrations.verl_plugin": "omegaconf",
    "matchtir.integrations.verl_scoring": "omegaconf",
}


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    if name in NEEDED:
        pytest.importorskip(NEEDED[name], reason="an adapter, whose trainer is not installed here")
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_docstring_examples_are_found():
    # `matchtir.similarity` is a module and a function; the examples of the module must be the ones that run.
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in (
        "matchtir",
        "matchtir.types",
        "matchtir.similarity",
        "matchtir.scatter",
        "matchtir.ops.hungarian",
    ):
        tests = finder.find(importlib.import_module(name))
        assert sum(len(test.examples) for test in tests) > 0, name


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_document_examples(file):
    # A closing fence right after the output would be taken for output.
    lines = ["" if x.lstrip().startswith("```") else x for x in file.read_text("utf-8").splitlines()]
    test = doctest.DocTestParser().get_doctest("\n".join(lines) + "\n", {}, file.name, str(file), 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
