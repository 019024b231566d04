"""A file that is whole or not there."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when it is complete.

    Bytes go to a temporary file in the same folder. If the block ends well it is flushed to the disk
    and renamed over `path` in one step; if it raises, anything from ValueError to KeyboardInterrupt,
    it is removed and `path` is as it was. A process that is killed leaves the temporary file, which is
    named ``.NAME.XXXXXXXX.tmp``, and never a part of the output under its name.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            if target.exists():
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
