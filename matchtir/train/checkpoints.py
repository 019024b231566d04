"""Folders of checkpoints: each whole or not there, kept by number and by best.

    checkpoints/step-000040/state/      what training goes on from
                            weights/    the model as a Hugging Face folder
                best.json               which of them was best

What is inside is written by whoever trains; this file only sees to it that a name means a whole folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..rows import whole_file
from .disk import remove, sync, sync_tree, writing

STATE = "state"
WEIGHTS = "weights"
BEST = "best.json"

_NAME = re.compile(r"step-(\d{6,})")
_LEFT = re.compile(r"\.step-\d{6,}\.(tmp|old)")


class Checkpoints:
    """The checkpoints of a run. All processes have one; the first alone renames and removes.

    Parameters
    ----------
    folder : str or path
        Made when the first checkpoint is written. Several processes must see the same one.
    rank : int
        Number of this process.
    barrier : callable
        Returns when all processes have called it.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, rank: int = 0, barrier: Callable[[], None] = lambda: None
    ) -> None:
        self.folder = Path(folder)
        self._first = rank == 0
        self._barrier = barrier

    def path(self, step: int) -> Path:
        """Where the checkpoint after `step` steps is, or would be."""
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(entry.name) for entry in self.folder.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def newest(self) -> int | None:
        """Step of the newest checkpoint, or None. What a killed process left unfinished is removed."""
        if self._first and self.folder.is_dir():
            for entry in self.folder.iterdir():
                if _LEFT.fullmatch(entry.name):
                    remove(entry)
        return max(self.steps(), default=None)

    @contextmanager
    def write(self, step: int) -> Iterator[Path]:
        """Write a checkpoint: all processes fill the folder that this gives, and then it gets its name.

        If the block raises, nothing is left of it. A process that is killed leaves a hidden folder, which
        :meth:`newest` passes over and removes.

        Raises
        ------
        InputError
            If there is one of this step already, or the disk is full.
        """
        target = self.path(step)
        temporary = self.folder / f".{target.name}.tmp"
        if target.exists():
            raise InputError(f"{target} is there already; expected a step without checkpoint")
        self._barrier()
        try:
            with writing(target):
                if self._first:
                    remove(temporary)
                    temporary.mkdir(parents=True)
                self._barrier()
                yield temporary
                self._barrier()
                if self._first:
                    sync_tree(temporary)
                    os.rename(temporary, target)
                    sync(self.folder)
        except BaseException:
            if self._first:
                remove(temporary)
            raise
        self._barrier()

    def prune(self, keep: int, best: int | None = None) -> None:
        """Remove all checkpoints but the newest `keep` and that of step `best`."""
        if not self._first:
            return
        for step in self.steps()[:-keep]:
            if step != best:
                # By another name first: a removal that is interrupted leaves no half checkpoint.
                leaving = self.folder / f".{self.path(step).name}.old"
                remove(leaving)
                os.rename(self.path(step), leaving)
                remove(leaving)

    def mark_best(self, step: int, **values: Any) -> None:
        """Record that the policy after `step` steps is the best so far, with what says so."""
        if self._first:
            target = self.folder / BEST
            with writing(target):
                self.folder.mkdir(parents=True, exist_ok=True)
                with whole_file(target) as stream:
                    stream.write(json.dumps({"step": step, **values}).encode("ascii") + b"\n")

    def best(self) -> Mapping[str, Any] | None:
        """What :meth:`mark_best` recorded, with `step`; None if nothing, or that checkpoint is gone."""
        source = self.folder / BEST
        if not source.is_file():
            return None
        try:
            found = json.loads(source.read_bytes())
            step = int(found["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{source} does not name a step; expected {{'step': ...}}: {error}") from error
        return {**found, "step": step} if self.path(step).is_dir() else None
