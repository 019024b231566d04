"""A hook of MkDocs: roles such as :func:`name` in docstrings become links, and their "::" a colon."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:func|meth|class|mod|data|attr|exc):\s*<code>~?\.?([\w.]+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Replace each role by its name, which leads to the heading of that name where the page has one."""
    headings = re.findall(r'id="(matchtir[\w.]*)"', html)

    def plain(role: re.Match[str]) -> str:
        name = role[1]
        exact = [one for one in headings if one == name or one.endswith(f".{name}")]
        by_last = [one for one in headings if one.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
        found = exact or (by_last if name.startswith("matchtir.") else [])
        return f'<a href="#{found[0]}"><code>{name}</code></a>' if found else f"<code>{name}</code>"

    return ROLE.sub(plain, html).replace("::</p>", ":</p>")
