"""What goes wrong, one class a boundary. Every message names what came, where, and what was expected."""

from __future__ import annotations


class MatchtirError(Exception):
    """Base of every error that matchtir raises on purpose."""


class InputError(MatchtirError, ValueError):
    """An array, call or trajectory handed to a function is not what it takes."""


class ConfigError(MatchtirError, ValueError):
    """A configuration holds an unknown name or an impossible value."""


class RowError(MatchtirError, ValueError):
    """A row of a rollout file cannot be read; the message holds file, line and reason."""


class BackendError(MatchtirError, RuntimeError):
    """A backend was asked for by name and is not available."""


class SandboxError(MatchtirError, RuntimeError):
    """The sandbox cannot do what it promises here: no worker starts, or a layer of it does not hold."""


class TrainingError(MatchtirError, RuntimeError):
    """Training cannot go on; what is known of the reason has been saved."""


class SandboxWarning(UserWarning):
    """The sandbox holds, but with fewer layers than it could have."""


class ConvergenceWarning(UserWarning):
    """Some problems of a batch stopped at the iteration limit, before the tolerance was met."""
