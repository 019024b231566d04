"""`python -m matchtir`."""

from .cli import run

run()
