"""Rows of data sets that the `datasets` library loads: by their name on the hub, or from a folder."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from ..errors import InputError
from ..rows import BATCH_ROWS, RawRow, table_rows

_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_FILE_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".gz")
# From this version on the library runs no code that comes with a data set.
_FIRST_MAJOR = 4


def is_data_set(source: str | os.PathLike[str]) -> bool:
    """Whether this is a folder, or no path at all but the name of a data set, ``owner/name``."""
    if os.path.isdir(source):
        return True
    if not isinstance(source, str) or os.path.lexists(source):
        return False
    return bool(_HUB_NAME.fullmatch(source)) and not source.endswith(_FILE_SUFFIXES)


@final
class HubRows:
    """A data set, loaded; its rows come as those of a file do.

    Parameters
    ----------
    source : str or path
        Name of a data set on the hub, or a folder: of data files, or saved by ``save_to_disk``.
    split : str, optional
        Which split; needed where there are several. From the hub also a slice such as ``"train[:100]"``.

    Raises
    ------
    ImportError
        Without the `datasets` library, or with one before 4.0, which would run a data set's own scripts.
    InputError
        If the library cannot load it, or `split` is missing or unknown.
    """

    def __init__(self, source: str | os.PathLike[str], split: str | None = None) -> None:
        self.name = os.fspath(source)
        self._done = 0
        found = _loaded(_library(self.name), source, split)
        if isinstance(found, Mapping):
            if len(found) != 1:
                names = ", ".join(map(str, found))
                raise InputError(f"{self.name} has the splits {names}; choose one with split=")
            (found,) = found.values()
        self._data = found
        self._size = len(found)

    def rows(self) -> Iterator[RawRow]:
        """Rows in order; to be called once."""
        batches = self._data.with_format("arrow").iter(batch_size=BATCH_ROWS)
        for row in table_rows(batches, self.name):
            yield row
            self._done = row[0] + 1

    @property
    def progress(self) -> tuple[int, int | None]:
        """Rows read, and rows that there are."""
        return self._done, self._size

    def close(self) -> None:
        """Let go of the data."""
        self._data = ()


def _library(name: str) -> Any:
    """The `datasets` library, or how to get it."""
    hint = 'pip install "matchtir[datasets]"'
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        raise ImportError(f"{name} is loaded through the datasets library: {hint}") from None
    if int(library.__version__.partition(".")[0]) < _FIRST_MAJOR:
        raise ImportError(
            f"datasets {library.__version__} may run code that comes with a data set; "
            f"expected {_FIRST_MAJOR}.0 or later: {hint}"
        )
    return library


def _is_saved(source: str | os.PathLike[str]) -> bool:
    """Whether this is a folder that the library's ``save_to_disk`` wrote."""
    return any((Path(source) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _loaded(library: Any, source: str | os.PathLike[str], split: str | None) -> Any:
    """A data set, or several by their splits."""
    name = os.fspath(source)
    saved = _is_saved(source)
    try:
        found = library.load_from_disk(name) if saved else library.load_dataset(name, split=split)
    except Exception as error:  # whatever the network and the library's many loaders raise
        what = "folder" if os.path.isdir(source) else "file here, and no data set of the hub"
        # The library's own error often says no more than that there was one.
        reason = "; ".join(f"{type(e).__name__}: {e}" for e in (error, error.__cause__) if e is not None)
        raise InputError(f"{name} is no {what} that the datasets library can load: {reason}") from error
    if not saved or split is None:
        return found
    names = list(found) if isinstance(found, Mapping) else [str(found.split)]
    if split not in names:
        raise InputError(f"split is {split!r}; expected {' or '.join(names)}")
    return found[split] if isinstance(found, Mapping) else found
