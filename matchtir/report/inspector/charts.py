"""Curves of the report page: SVG by matplotlib in the page's own colours, and the numbers that they show."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..learning_curve import smoothed
from ..terminal import printable

_SIZE = (5.2, 2.9)  # inches
# Okabe and Ito's colours, told apart by everybody; the page's style sheet may set others.
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_INK = "#010203"  # stands for the colour of the page's text
_POINTS = 300  # of a line; a longer one is thinned
_ROWS = 200  # of a table


@dataclass(frozen=True)
class Chart:
    """A chart as the page's template takes it.

    Attributes
    ----------
    id, title, note : str
    svg : str
        An element `svg`.
    table : dict
        `columns`, a list of names, and `rows`, lists of numbers or None.
    """

    id: str
    title: str
    note: str
    svg: str
    table: dict[str, list[Any]]


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, x, y and, where it is known, an interval of y."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    smooth: bool = False


def line_chart(
    id: str, title: str, lines: Sequence[Line], *, x: str, note: str = "", share: bool = False
) -> Chart:
    """Lines over x; those that are noisy are drawn pale with a mean of neighbours above them.

    Parameters
    ----------
    id, title, note : str
    lines : sequence of Line
        The same x may be in several. Values of None are gaps.
    x : str
        What x is.
    share : bool
        Whether y is a share, from 0 to 1.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    figure, axes = _figure()
    for k, line in enumerate(lines):
        colour, name = _SERIES[k % len(_SERIES)], _label(line.name)
        at, y = np.array(line.x, dtype=float), _numbers(line.y)
        if line.low is not None and line.high is not None:
            low, high = _numbers(line.low), _numbers(line.high)
            axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
            if len(at) == 1:  # of which a band shows nothing
                axes.vlines(at, low, high, color=colour, linewidth=1.2)
        if line.smooth and len(at) > 10:
            window = max(3, len(at) // 12) | 1
            axes.plot(*_thin(at, y), color=colour, alpha=0.35, linewidth=0.8)
            axes.plot(*_thin(at, smoothed(y, window)), color=colour, linewidth=1.8, label=name)
        else:
            axes.plot(*_thin(at, y), color=colour, linewidth=1.6, marker="o", markersize=3, label=name)
    _finish(axes, x, share, legend=len(lines) > 1)
    if any(line.smooth and len(line.x) > 10 for line in lines):
        note = "; ".join(filter(None, (note, "pale: single steps")))
    return Chart(id, title, note, _svg(figure, id), _table(x, lines))


def stacked_chart(
    id: str, title: str, x: Sequence[float], parts: Mapping[str, Sequence[float]], *, label: str
) -> Chart:
    """Parts of a whole over x, one above the other."""
    figure, axes = _figure()
    axes.stackplot(x, *parts.values(), labels=list(map(_label, parts)), colors=_SERIES, linewidth=0)
    _finish(axes, label, False, legend=True)
    lines = [Line(name, x, list(values)) for name, values in parts.items()]
    return Chart(id, title, "", _svg(figure, id), _table(label, lines))


def _figure() -> tuple[Any, Any]:
    """A figure and its axes, in the colour that stands for text."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('a report needs matplotlib: pip install "matchtir[report]"') from error
    figure = Figure(figsize=_SIZE, layout="constrained")
    return figure, figure.subplots()


def _label(name: str) -> str:
    """A name as a legend shows it, which takes text between two dollars for a formula."""
    return printable(name).replace("$", r"\$")


def _finish(axes: Any, x: str, share: bool, legend: bool) -> None:
    """Labels, grid, colours and limits."""
    axes.set_xlabel(x, fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.grid(alpha=0.15, linewidth=0.6, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.02)
    if share:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter("{x:.0%}")
    if legend:
        axes.legend(fontsize=8, frameon=False, labelcolor=_INK, loc="best")


def _svg(figure: Any, id: str) -> str:
    """The figure as an element of HTML: text stays text, and takes the page's colour and font."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": id, "svg.id": f"svg-{id}"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids are shared by all charts of the page.
    text = re.sub(r'\bid="([^"]+)"', lambda found: f'id="{id}-{found[1]}"', text)
    text = re.sub(r'(href="|url\()#', lambda found: f"{found[1]}#{id}-", text)
    text = re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?)px[^;\"]*", r"font: \1px var(--sans, sans-serif)", text)
    for k, colour in enumerate(_SERIES, 1):
        text = text.replace(colour, f"var(--series-{k}, {colour})")
    return text.replace(_INK, "currentColor")


def _table(x: str, lines: Sequence[Line]) -> dict[str, list[Any]]:
    """The numbers, a row for each x; evenly spread ones where there are many."""
    columns, cells = [x], []
    for line in lines:
        series = [(line.name, line.y)]
        if line.low is not None and line.high is not None:
            series += [(f"{line.name}, low", line.low), (f"{line.name}, high", line.high)]
        for name, values in series:
            columns.append(printable(name))
            cells.append(dict(zip(line.x, values, strict=True)))
    places = sorted({value for line in lines for value in line.x})
    if len(places) > _ROWS:
        places = [places[k] for k in np.linspace(0, len(places) - 1, _ROWS).round().astype(int)]
    return {
        "columns": columns,
        "rows": [[_cell(at), *(_cell(one.get(at)) for one in cells)] for at in places],
    }


def _cell(value: float | None) -> float | int | None:
    """A number of four significant digits."""
    if value is None or not np.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.4g}")


def _numbers(values: Sequence[float | None]) -> Any:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _thin(x: Any, y: Any) -> tuple[Any, Any]:
    """At most so many points, evenly spread, the last among them."""
    if len(x) <= _POINTS:
        return x, y
    kept = np.linspace(0, len(x) - 1, _POINTS).round().astype(int)
    return x[kept], y[kept]
