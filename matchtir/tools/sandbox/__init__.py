"""A sandbox for Python tools: :class:`Sandbox` takes calls and gives results.

``pool.py`` is its face and shares calls out; ``process.py`` holds one worker; ``worker/`` runs confined.
"""

from .pool import Sandbox
from .records import Call, Result, Status
from .worker.preload import MODULES

__all__ = ["MODULES", "Call", "Result", "Sandbox", "Status"]
