"""What verl loads by itself, as the entry point ``verl.plugins``: it registers all that is named matchtir.

verl passes over a plugin that fails, and says so at DEBUG alone. Here the reason is shown.
"""

from __future__ import annotations

import logging

try:
    from . import verl as adapter
except BaseException as error:
    logging.getLogger(__name__).error(
        "matchtir is not registered with verl: %s: %s (VERL_USE_EXTERNAL_PLUGINS=none leaves it out)",
        type(error).__name__,
        error,
    )
    raise

__all__ = ["adapter"]
