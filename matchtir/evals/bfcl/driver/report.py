"""What the driver tells the process that started it: one JSON object a line."""

from __future__ import annotations

import json
import os
import threading
from typing import Any, NoReturn


class Refusal(Exception):  # noqa: N818
    """The job cannot be done as it was asked for; the words are for the user."""


class Down(Exception):  # noqa: N818
    """The endpoint cannot be used."""


class Report:
    """Takes standard output for itself; what others print goes to standard error, which is a log file."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        self._lock = threading.Lock()
        os.dup2(2, 1)

    def say(self, **event: Any) -> None:
        """Send one event; it is out when this returns."""
        line = json.dumps(event).encode("ascii") + b"\n"
        with self._lock:
            view = memoryview(line)
            while view:
                view = view[os.write(self._out, view) :]

    def leave(self, **event: Any) -> NoReturn:
        """Send the last event and end this process."""
        self.say(**event)
        os._exit(0)
