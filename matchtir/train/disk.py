"""The disk under a run: what is full is said in words, and what is written is really there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries that write weights raise errors of their own; with less than this free they mean the disk.
_LITTLE = 1 << 20


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the errors of a full disk, whoever raises them, into an InputError that names the path."""
    try:
        yield
    except Exception as error:
        full = error.errno in _FULL if isinstance(error, OSError) else _little_is_free(path)
        if not full:
            raise
        raise InputError(
            f"{path} cannot be written: the disk is full. What was written before is whole; the same command "
            "goes on from the newest checkpoint once there is room"
        ) from error


def new_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder that is new or empty; InputError if it is not, or its parent is not there."""
    target = Path(folder).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"output {str(folder)!r} is there already; expected a new or an empty folder")
    if not target.parent.is_dir():
        raise InputError(f"output {str(folder)!r}: there is no folder {str(target.parent)!r}")
    return target


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Write a folder that appears under its name only when it is complete.

    Gives the path under which the block makes it. If the block raises, nothing is left of it.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        remove(temporary)
        try:
            yield temporary
            sync_tree(temporary)
            os.replace(temporary, target)
            sync(target.parent)
        except BaseException:
            remove(temporary)
            raise


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush a folder with all that is in it to the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _little_is_free(path: Path) -> bool:
    """Whether the disk of a path has no room to speak of."""
    there = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    return there is not None and shutil.disk_usage(there).free < _LITTLE
