"""Turns a drawing into PNG bytes that are the same every time."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing

from metaadamw_bench.report.document import Figure

__all__ = ["render", "with_default_style"]

_DOTS_PER_INCH = 120
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def with_default_style(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Run a function under matplotlib's own style, whatever the user's settings are."""

    def styled(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            return function(*args, **kwargs)

    return styled


def render(draw: Callable[[], Drawing], *, name: str, title: str) -> Figure:
    """A picture as PNG bytes; without metadata, the same drawing gives the same bytes."""

    def image() -> bytes:
        buffer, drawing = io.BytesIO(), draw()
        FigureCanvasAgg(drawing)
        drawing.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
        return buffer.getvalue()

    return Figure(name=name, title=title, draw=image)
