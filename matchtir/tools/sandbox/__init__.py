"""A sandbox for Python tools: :class:`Sandbox` takes calls and gives results.

``pool.py`` is its face and shares calls out; ``instances.py`` keeps objects with state; ``process.py`` holds
one worker; ``worker/`` runs confined.
"""

from .instances import Instance
from .pool import Sandbox
from .records import Call, Result, Status
from .worker.preload import MODULES

__all__ = ["MODULES", "Call", "Instance", "Result", "Sandbox", "Status"]
