"""Builds ``matchtir._core`` with CMake; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import ExecError

ROOT = Path(__file__).resolve().parent


def program(name: str) -> str | None:
    """Path of a program: on PATH, or beside this interpreter, where pip puts it."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def find_cmake() -> str:
    """Path of CMake, after a look at everything else that the build needs from the system."""
    compiler = shlex.split(os.environ.get("CXX", ""))[:1]
    if compiler and shutil.which(compiler[0]) is None:
        raise ExecError(f"CXX is {compiler[0]!r}, and there is no such program; expected a C++20 compiler")
    if not compiler and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise ExecError(
            "building matchtir needs a C++20 compiler (GCC 10, Clang 13 or newer): "
            "`apt-get install g++`, `xcode-select --install`, or set CXX"
        )
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        raise ExecError(
            f"building matchtir needs Python's headers, and {headers} has no Python.h: "
            "`apt-get install python3-dev`, or the like for your Python"
        )
    cmake = program("cmake")
    if cmake is None:
        raise ExecError(
            "building matchtir needs CMake 3.18 or newer: `pip install cmake`, or your system's package"
        )
    return cmake


class CoreFirst(build):
    """Builds the core before it copies the Python files, so that what is missing is said first."""

    sub_commands = sorted(build.sub_commands, key=lambda command: command[0] != "build_ext")


class CMakeBuild(build_ext):
    """Configures and builds with CMake, where setuptools would call the compiler itself.

    Environment: ``CXX`` the compiler, ``CMAKE_ARGS`` further arguments for the configure step (such
    as ``-DMATCHTIR_SANITIZE=address,undefined``), ``CMAKE_BUILD_PARALLEL_LEVEL`` jobs.
    """

    def build_extension(self, ext: Extension) -> None:
        cmake = find_cmake()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        # Build isolation moves the interpreter's environment; a cache from the last one would point nowhere.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            *(["-G", "Ninja"] if shutil.which("ninja") else []),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        for step in (configure, [cmake, "--build", str(build), "--parallel"]):
            done = subprocess.run(step, capture_output=not self.verbose, text=True)
            if done.returncode != 0:
                output = (done.stdout or "") + (done.stderr or "")
                failed = f"{' '.join(step[:3])} … failed:\n{output}"
                raise ExecError(f"{failed}\nmatchtir's C++ core could not be built; see above")
        if not target.exists():
            raise ExecError(f"CMake built no {target.name}; expected it in {target.parent}")


setup(
    ext_modules=[Extension("matchtir._core", sources=[])],
    cmdclass={"build": CoreFirst, "build_ext": CMakeBuild},
)
