"""The report page as text: template, style and scripts, and the rollouts in compressed chunks."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from ..terminal import printable
from .charts import Chart

CHUNK = 50
"""Rollouts that are unpacked together."""

# The rest in order of their names; each may use what stands in those before it.
_LAST_SCRIPT = "page.js"
_UNSAFE = "<>&\u2028\u2029"


@dataclass(frozen=True)
class Report:
    """What a page shows.

    Attributes
    ----------
    title : str
    columns, details
        As :func:`.rollouts.describe` gives them.
    files : list of str
        Names of the files that the column `file` counts.
    facts : list of (label, value, note)
        Figures at the top, as text.
    facts_of_rollouts : list of (label, value, note)
        Figures above the list, of its rollouts alone.
    settings : list of (name, text)
    charts : list of Chart
    broken : list of str
        What was left out, and why.
    method : str, optional
    integration : str, optional
        How the two parts of an advantage become one.
    """

    title: str
    columns: dict[str, list[Any]]
    details: list[dict[str, Any]]
    files: list[str]
    facts: list[tuple[str, str, str]] = field(default_factory=list)
    facts_of_rollouts: list[tuple[str, str, str]] = field(default_factory=list)
    settings: list[tuple[str, str]] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    method: str | None = None
    integration: str | None = None


def render(report: Report, *, version: str, live: bool = False, state: str | None = None) -> str:
    """The page.

    Parameters
    ----------
    report : Report
    version : str
        Of matchtir.
    live : bool
        Whether the page asks its server for news.
    state : str, optional
        What the server says of its content, as long as it is this one.

    Returns
    -------
    str
        HTML that loads nothing. A content security policy forbids every script but its own, by its hash, and
        text of rollouts is only in JSON, where nothing can end the element that holds it, or compressed.

    Raises
    ------
    ImportError
        If Jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError('a report needs Jinja2: pip install "matchtir[report]"') from error
    templates = resources.files(__package__) / "templates"
    texts = {one.name: one.read_text(encoding="utf-8") for one in templates.iterdir() if one.is_file()}
    scripts = sorted(
        (name for name in texts if name.endswith(".js")), key=lambda name: (name == _LAST_SCRIPT, name)
    )
    js = "\n".join(texts[name] for name in scripts)
    index: dict[str, Any] = {"live": live, "chunk": CHUNK, "method": report.method}
    index |= {"rows": report.columns, "files": report.files, "version": state}
    index["integration"] = report.integration
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=printable(report.title),
        version=version,
        live=live,
        facts=report.facts,
        facts_of_rollouts=report.facts_of_rollouts,
        settings=[(printable(name), printable(text)) for name, text in report.settings],
        charts=[{**vars(chart), "svg": Markup(chart.svg)} for chart in report.charts],
        broken=list(map(printable, report.broken)),
        index_json=Markup(_safe(json.dumps(index, allow_nan=False))),
        chunks=list(_chunks(report.details)),
        css=Markup(texts["page.css"]),
        js=Markup(js),
        csp_hash="sha256-" + base64.b64encode(hashlib.sha256(js.encode()).digest()).decode(),
    )


def _safe(text: str) -> str:
    """JSON in which no character means anything to HTML."""
    for letter in _UNSAFE:
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _chunks(details: Sequence[dict[str, Any]]) -> list[str]:
    """Details in pieces, as base64 of gzip of JSON."""
    pieces = (
        json.dumps(details[k : k + CHUNK], allow_nan=False).encode() for k in range(0, len(details), CHUNK)
    )
    return [base64.b64encode(gzip.compress(piece, 6, mtime=0)).decode() for piece in pieces]
