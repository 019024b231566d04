"""Rollout files in, score files out.

Reading streams: one row is decoded at a time, and a row that cannot be read becomes a
:class:`~matchtir.errors.RowError` in its place, so that the rows around it are scored. Writing is whole
or not at all: a file appears under its name only when its last byte is on the disk.
``docs/formats.md`` describes both sides for users.
"""

from ..rows import STDIN, whole_file
from .read import FORMATS, RolloutFile, Row, read_rollouts, sample_path
from .write import OUTPUT_SUFFIXES, check_output, json_line, score_records, write_scores

__all__ = [
    "FORMATS",
    "OUTPUT_SUFFIXES",
    "STDIN",
    "RolloutFile",
    "Row",
    "check_output",
    "json_line",
    "read_rollouts",
    "sample_path",
    "score_records",
    "whole_file",
    "write_scores",
]
