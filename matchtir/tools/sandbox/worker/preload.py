"""Imports what tools may use, and makes lazy parts of it load now: a confined process opens no file."""

from __future__ import annotations

import codecs
import contextlib
import importlib
import io
import os
import sys
import zlib
from collections.abc import Iterator
from typing import Any

MODULES = (
    *("base64", "bisect", "calendar", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal"),
    *(
        "enum",
        "fractions",
        "functools",
        "heapq",
        "itertools",
        "json",
        "math",
        "numbers",
        "operator",
        "random",
    ),
    *("re", "statistics", "string", "textwrap", "time", "typing", "unicodedata"),
)
"""Modules of the standard library that every tool finds."""

_RARE = {"dataclasses", "decimal", "fractions", "numbers", "statistics"}
"""Those of them that only the reserve has: they are large, and few tools use them."""

OPTIONAL_MODULES = ("dateutil", "dateutil.parser", "dateutil.relativedelta", "dateutil.tz", "pytz")
"""Modules that a tool finds if they are installed."""

_USUAL_ENCODINGS = ("ascii", "latin-1", "utf-8")
_ENCODINGS = (
    *("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"),
    *("iso8859-15", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "base64", "hex", "rot13"),
)

_kept: list[Any] = []  # zones; zoneinfo itself forgets them


def preload_usual(modules: list[str]) -> None:
    """Import what tools use often: what every fork pays for.

    Of `modules` too those that lie in a package which is here: a tool may reach them by attribute, which no
    import announces. If one fails, :func:`preload_rest` says why.
    """
    with _without_fork_hooks():
        for name in MODULES:
            if name not in _RARE:
                importlib.import_module(name)
        importlib.import_module("importlib.machinery")
        for name in modules:
            if name.partition(".")[0] in sys.modules:
                with contextlib.suppress(BaseException):
                    importlib.import_module(name)
        sys.modules["datetime"].datetime.strptime("2000-01-01", "%Y-%m-%d")
        sys.modules["time"].localtime()
        for name in _USUAL_ENCODINGS:
            codecs.lookup(name)


def preload_rest(modules: list[str], paths: list[str]) -> dict[str, str]:
    """Import all else, `modules` too, looking in `paths`; returns why each of `modules` that failed did."""
    with _without_fork_hooks():
        return _preload_rest(modules, paths)


@contextlib.contextmanager
def _without_fork_hooks() -> Iterator[None]:
    """Let modules register nothing to be run after a fork.

    `threading` and `random` do; their hooks touch a third of all the memory that a child must copy. A child
    has no threads and cannot start one, and the worker seeds `random` before each fork.
    """
    register = os.register_at_fork
    os.register_at_fork = lambda **hooks: None
    try:
        yield
    finally:
        os.register_at_fork = register


def _preload_rest(modules: list[str], paths: list[str]) -> dict[str, str]:
    """Import the modules; returns why each one that failed did."""
    for name in _RARE:
        importlib.import_module(name)
    before = list(sys.path)
    sys.path.extend(paths)
    failed = {}
    for name in OPTIONAL_MODULES:
        with contextlib.suppress(BaseException):  # one that is broken is as good as none
            importlib.import_module(name)
    for name in modules:
        try:
            importlib.import_module(name)
        except BaseException as error:  # a module may raise anything
            failed[name] = f"{type(error).__name__}: {error}"
    _warm(set(modules) - failed.keys())
    sys.path[:] = before
    return failed


def seed_random() -> None:
    """Draw a new seed for `random`, before a fork and not in the child, where every page touched is a copy.

    It is not imported by name: that would happen before :func:`preload_usual`, and register its hook.
    """
    sys.modules["random"].seed()


def _warm(modules: set[str]) -> None:
    """Use what imports or reads files on its first use; zones by name only where `modules` asks for them."""
    for name in _ENCODINGS:
        codecs.lookup(name)
    if "pytz" in sys.modules:
        _keep_files_of_pytz()
    if "zoneinfo" in modules:
        zoneinfo = sys.modules["zoneinfo"]
        _kept.extend(map(zoneinfo.ZoneInfo, sorted(zoneinfo.available_timezones())))
    if zones := sys.modules.get("dateutil.tz"):
        zones.gettz("UTC")


def _keep_files_of_pytz() -> None:
    """Have pytz find its 600 files in memory, in one compressed piece: every MiB makes every fork slower."""
    pytz: Any = sys.modules["pytz"]
    pack, pieces, places, end = zlib.compressobj(), [], {}, 0
    for name in pytz.all_timezones:
        data = pytz.open_resource(name).read()
        pieces.append(pack.compress(data))
        places[name] = end, end + len(data)
        end += len(data)
    packed = b"".join(pieces) + pack.flush()

    def open_resource(name: str) -> io.BytesIO:
        begin, end = places[name]
        return io.BytesIO(zlib.decompress(packed)[begin:end])

    pytz.open_resource = open_resource
