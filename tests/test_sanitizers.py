"""The core built with AddressSanitizer and UBSan, under the core's own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    "csrc",
    "matchtir",
    "tests",
    "CMakeLists.txt",
    "setup.py",
    "pyproject.toml",
    "LICENSE",
    "README.md",
]
SUITE = ["hungarian", "sinkhorn", "similarity", "scatter", "matching"]

# Fewer examples: instrumented code is several times slower. And proof of what the tests ran on.
PLUGIN = """
from hypothesis import settings

settings.register_profile("sanitized", deadline=None, max_examples=15, derandomize=True, database=None)

def pytest_sessionstart(session):
    from matchtir import _core
    print("ran on", _core.__file__, "sanitize", _core.build_info()["sanitize"])
"""


def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def runtime(name: str) -> str:
    """Path of a sanitizer's shared library."""
    done = subprocess.run(
        [compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=False
    )
    path = done.stdout.strip()
    if not os.path.isabs(path) or not os.path.exists(path):
        pytest.skip(f"the compiler comes without {name}")
    return os.path.realpath(path)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> Path:
    """A copy of the tree with an instrumented core in place."""
    if sys.platform != "linux":
        pytest.skip("the sanitizers' run-time libraries are preloaded as on Linux")
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("the sources of the core are not here")
    runtime("libasan.so")
    runtime("libubsan.so")
    tree = tmp_path_factory.mktemp("sanitized")
    probe = tree / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    linked = subprocess.run(
        [compiler(), "-fsanitize=address,undefined", str(probe), "-o", str(tree / "probe")],
        capture_output=True,
        check=False,
    )
    if linked.returncode:
        pytest.skip("the compiler cannot link with the sanitizers")
    unbuilt = shutil.ignore_patterns("*.so", "__pycache__", "*.pyc", "build")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=unbuilt)
        else:
            shutil.copy2(source, tree / name)
    (tree / "sanitized_profile.py").write_text(PLUGIN)
    build = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "build_ext",
            "--build-lib",
            str(tree),
            "--build-temp",
            str(tree / "build"),
        ],
        cwd=tree,
        env=os.environ | {"CMAKE_ARGS": "-DMATCHTIR_SANITIZE=address,undefined"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, (build.stdout + build.stderr)[-4000:]
    return tree


def environment(tree: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "LD_PRELOAD": " ".join([runtime("libasan.so"), runtime("libubsan.so")]),
        # Python never frees all it has. A report must end the process, not only print.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:halt_on_error=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "MATCHTIR_BACKEND": "",
    }


def test_sanitized_core_is_instrumented(sanitized):
    (library,) = (sanitized / "matchtir").glob("_core.*.so")
    code = library.read_bytes()
    for symbol in (b"__asan_report_load", b"__asan_report_store", b"__ubsan_handle_"):
        assert symbol in code, symbol
    done = subprocess.run(
        [sys.executable, "-c", "from matchtir import _core; print(_core.build_info()['sanitize'])"],
        cwd=sanitized,
        env=environment(sanitized),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "address+undefined", done.stderr[-2000:]


def test_sanitized_core_passes_its_tests(sanitized):
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-s",
            "-p", "no:cacheprovider", "-p", "sanitized_profile",
            "--hypothesis-profile=sanitized", "-k", "not torch and not equals_pot",
            *[f"tests/test_{name}.py" for name in SUITE],
        ],
        cwd=sanitized,
        env=environment(sanitized),
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    report = done.stdout[-3000:] + done.stderr[-5000:]
    assert "ERROR: AddressSanitizer" not in report, report
    assert "runtime error:" not in report, report
    assert done.returncode == 0, report
    assert f"ran on {sanitized}" in done.stdout
    assert "sanitize address+undefined" in done.stdout
    assert " passed" in done.stdout
