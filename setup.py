"""Builds ``matchtir._core`` with CMake; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import ExecError

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds with CMake, where setuptools would call the compiler itself.

    Environment: ``CXX`` the compiler, ``CMAKE_ARGS`` further arguments for the configure step (such
    as ``-DMATCHTIR_SANITIZE=address,undefined``), ``CMAKE_BUILD_PARALLEL_LEVEL`` jobs.
    """

    def build_extension(self, ext: Extension) -> None:
        cmake = shutil.which("cmake")
        if cmake is None:
            raise ExecError(
                "building matchtir needs CMake 3.18 or newer: `pip install cmake`, or your system's package"
            )
        compiler = os.environ.get("CXX")
        if compiler is None and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise ExecError(
                "building matchtir needs a C++20 compiler (GCC 10, Clang 13 or newer): "
                "`apt-get install g++`, `xcode-select --install`, or set CXX"
            )
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
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        for step in (configure, [cmake, "--build", str(build), "--parallel"]):
            done = subprocess.run(step, capture_output=not self.verbose, text=True)
            if done.returncode != 0:
                output = (done.stdout or "") + (done.stderr or "")
                raise ExecError(
                    f"{' '.join(step[:3])} … failed:\n{output}\nmatchtir's C++ core could not be built; see above"
                )
        if not target.exists():
            raise ExecError(f"CMake built no {target.name}; expected it in {target.parent}")


setup(ext_modules=[Extension("matchtir._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
